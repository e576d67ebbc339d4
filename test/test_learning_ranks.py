"""Training divided among two processes by torchrun: what must not change, and how they end."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_ranks

from hapo_ros.learning import interrupted, sharding
from hapo_ros.learning.parallel import Ranks
from hapo_ros.policies import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two ranks made, in ``two``, in ``divided`` and beside them."""
    folder = tmp_path_factory.mktemp("ranks")
    two_ranks.prepare(folder)
    script = Path(two_ranks.__file__)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(script), str(folder)],
        cwd=script.parent,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=two_ranks.DEADLINE_S,
    )
    assert "Signal 9 (SIGKILL)" in done.stderr and "rank-0.json" in str(os.listdir(folder)), (
        done.stderr
    )
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What became of the runs, by rank."""
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def by_one(folder, name):
    """The checkpoint that this process alone makes, by the name of a run."""
    made = folder / "one" / name
    if not made.exists():
        two_ranks.train(name, folder, made, device="cpu")
    return made


def same_weights(folder, other) -> None:
    """But for a tenth of a step: Adam moves a weight without a gradient by the sign of rounding."""
    one, two = (checkpoint.load(path).network.state_dict() for path in (folder, other))
    for name in one:
        tolerance = 0.1 * two_ranks.QUICK["lr"]
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=tolerance)


def metrics(run) -> list[dict]:
    """Of each step, NaN where there are none."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [{k: math.nan if v is None else v for k, v in line.items()} for line in lines]


@pytest.mark.parametrize(
    ("how", "name"),
    [("two", name) for name in two_ranks.RUNS] + [("divided", name) for name in two_ranks.DIVIDED],
)
def test_two_ranks_do_what_one_does(folder, how, name):
    """z0, weights of samples, HABC's mean, recap's threshold, draws, image shifts, at each step;
    and where the weights are divided among them."""
    runs = by_one(folder, name), folder / how / name
    lines = [metrics(run.with_name(f"{name}.run")) for run in runs]
    assert len(lines[0]) == len(lines[1]) == (two_ranks.RUNS | two_ranks.DIVIDED)[name]["steps"]
    for one, two in zip(*lines, strict=True):
        assert two == pytest.approx(one, rel=2e-3, abs=1e-6, nan_ok=True)
    if name == "hapo_anchored":
        assert lines[0][-1]["z0"] > 1e-3 and lines[0][-1]["lambda_undesirable"] < 1.0
    elif name in ("habc", "imit_recap"):
        assert lines[0][-1].get("gate_policy", lines[0][-1].get("kept")) != 1.0
    same_weights(*runs)
    provenance = checkpoint.read_provenance(folder / how / name)
    assert provenance["ranks"] == 2
    assert provenance["settings"]["shard_weights"] == (how == "divided")
    assert provenance["effective_batch"] == sum(provenance["batch_composition"].values()) == 8


@pytest.mark.parametrize("name", two_ranks.DIVIDED)
def test_a_rank_holds_half_of_the_blocks_where_weights_are_divided(found, folder, name):
    """Of an adapter it holds everything, moments too."""
    policy = checkpoint.load(by_one(folder, name))
    whole = two_ranks.stored(policy.network.blocks.parameters())
    for held in (rank["held"][name] for rank in found):
        if name in ("bc", "chunks"):
            assert held == {"weights": whole // 2, "gradients": whole // 2, "moments": whole}
        else:
            adapter = held["weights"] - whole // 2
            assert adapter > 0 and held["moments"] == 2 * adapter


def test_a_run_is_gone_on_with_whether_its_weights_are_divided_or_not(found, folder):
    for rank in found:
        divided, whole, last = rank["by turns"]
        assert divided[0] == whole[0] == "Cancelled" and last == ["nothing", ""]
        assert "had done 2 of 5" in divided[1] and "had done 3 of 5" in whole[1]
    same_weights(by_one(folder, "bc"), folder / "turns")


def test_weights_are_not_divided_by_a_process_alone(tmp_path):
    settings = two_ranks.RUNS["bc"] | two_ranks.SHARD
    with pytest.raises(ValueError, match=r"this one is alone, so nothing was trained\. Start"):
        two_ranks.trainer.train_bc(two_ranks.seen(), settings, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_weights_of_a_network_without_blocks_are_not_divided(folder):
    class Two(Ranks):
        size = 2

    policy = checkpoint.load(folder / "base")
    policy.network = policy.network.head
    with pytest.raises(ValueError, match="family tiny_vla have no blocks whose weights can be"):
        sharding.divide(policy, Two(), "cpu")


def test_the_first_rank_alone_tells_how_far_it_is(found):
    steps = [report["step"] for report in found[0]["told"]]
    assert steps == list(range(1, 6)) * len(two_ranks.RUNS) and found[1]["told"] == []


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("other settings", "ValueError", r"Rank 1 has other settings than rank 0, so nothing was"),
        ("not divisible", "ValueError", r"A batch of 9 cannot be divided among 2 ranks .this is"),
        ("NaN", "Diverged", r"gradient nan at step 2\. .*The batch was: (\S+ )+steps \["),
        ("memory", "OutOfMemory", r"^On rank 1: Memory ran out"),
        ("memory in a pass", "OutOfMemory", r"^On rank 1: Memory ran out"),
        ("cancelled", "Cancelled", r"had done 3 of 5 steps; the same command with --resume"),
    ],
)
def test_what_ends_one_rank_ends_both_with_the_same_error(found, folder, what, kind, text):
    assert found[0][what][0] == kind
    assert re.search(text, found[0][what][1])
    assert found[0][what] == found[1][what]


def test_runs_that_ended_early_left_no_checkpoint(folder):
    for name in ("other", "odd", "nan", "memory", "divided memory", "killed"):
        assert not (folder / name).exists()


def test_a_run_that_was_cancelled_on_one_rank_is_gone_on_with_by_both(found, folder):
    assert found[0]["resumed"] == found[1]["resumed"] == ["nothing", ""]
    whole, resumed = folder / "two" / "hapo_anchored", folder / "cut"
    assert checkpoint.load(whole).version == checkpoint.load(resumed).version


def test_a_rank_that_is_gone_or_does_not_come_ends_the_other(found):
    assert found[0]["late"][0] == "RankLost" and "did not answer for 1 s" in found[0]["late"][1]
    assert found[0]["killed"][0] == "RankLost" and "--resume goes on" in found[0]["killed"][1]
    assert "killed" not in found[1]  # it was killed there


def test_what_a_killed_run_has_kept_is_gone_on_with_by_any_number_of_ranks(folder):
    kept = torch.load(folder / "killed.run" / interrupted.NAME, weights_only=True)
    assert kept["state"]["step"] == 2
    two_ranks.train("hapo_anchored", folder, folder / "killed", resume=True, device="cpu")
    same_weights(by_one(folder, "hapo_anchored"), folder / "killed")
    assert [step["step"] for step in metrics(folder / "killed.run")] == [1, 2, 3, 4, 5]
