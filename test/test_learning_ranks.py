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
from toy_episodes import trained_base

from hapo_ros.learning import interrupted
from hapo_ros.policies import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two ranks made, in ``two`` and beside it, and in ``one`` the same by one."""
    folder = tmp_path_factory.mktemp("ranks")
    trained_base(two_ranks.table(), folder)
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
    for method in two_ranks.RUNS:
        two_ranks.train(method, folder / "base", folder / "one" / method, device="cpu")
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What became of the runs, by rank."""
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


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


@pytest.mark.parametrize("method", two_ranks.RUNS)
def test_two_ranks_do_what_one_does(folder, method):
    """z0, weights of samples, HABC's mean, recap's threshold, draws, image shifts, at each step."""
    lines = [metrics(folder / of / f"{method}.run") for of in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) == two_ranks.QUICK["steps"]
    for one, two in zip(*lines, strict=True):
        assert two == pytest.approx(one, rel=2e-3, abs=1e-6, nan_ok=True)
    if method == "hapo_anchored":
        assert lines[0][-1]["z0"] > 1e-3 and lines[0][-1]["lambda_undesirable"] < 1.0
    elif method in ("habc", "imit_recap"):
        assert lines[0][-1].get("gate_policy", lines[0][-1].get("kept")) != 1.0
    same_weights(folder / "one" / method, folder / "two" / method)
    provenance = checkpoint.read_provenance(folder / "two" / method)
    assert provenance["ranks"] == 2
    assert provenance["effective_batch"] == sum(provenance["batch_composition"].values()) == 8


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
        ("cancelled", "Cancelled", r"had done 3 of 5 steps; the same command with --resume"),
    ],
)
def test_what_ends_one_rank_ends_both_with_the_same_error(found, folder, what, kind, text):
    assert found[0][what][0] == kind
    assert re.search(text, found[0][what][1])
    assert found[0][what] == found[1][what]


def test_runs_that_ended_early_left_no_checkpoint(folder):
    for name in ("other", "odd", "nan", "memory", "killed"):
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
    two_ranks.train("hapo_anchored", folder / "base", folder / "killed", resume=True, device="cpu")
    same_weights(folder / "one" / "hapo_anchored", folder / "killed")
    assert [step["step"] for step in metrics(folder / "killed.run")] == [1, 2, 3, 4, 5]
