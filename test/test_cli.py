"""``hapo ...``: what it says, what it writes and how it ends; above all when something is wrong."""

import argparse
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ros_graph import nothing_left_running, wait_for

from hapo_ros import labels, topics
from hapo_ros.arbitration import Applied, Authority, Decision, Reason, Tick
from hapo_ros.cli import _parser, main
from hapo_ros.episodes import (
    EpisodeInfo,
    EpisodeWriter,
    Observation,
    messages,
    open_episodes,
)
from hapo_ros.policies import checkpoint
from hapo_ros.policies.flow import Flow
from hapo_ros.policies.small import Normalisation
from hapo_ros.policies.tiny_vla import TinyVla
from hapo_ros.policies.tokenizers import Words
from hapo_ros.sim.tasks import get_task

P, H, N = labels.POLICY, labels.HUMAN, labels.NONE
TYPES = messages.bag_types()
NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
STATE = list(get_task("Lift").object_state)
PERIOD_NS = 50_000_000
CORRECTED = [P] * 14 + [H] * 6 + [N] + [P] * 5
DEADLINE_S = 60.0


def record(
    root: Path, episode_id: str, live, source="deployment", decided=True, lost=(), clock_jumps=()
) -> Path:
    """A bag of made-up steps without images; lost: sequences whose joint state is not there."""
    info = EpisodeInfo(
        episode_id=episode_id,
        task="Lift",
        instruction="lift the cube",
        source=source,
        seed=1,
        object_state=STATE,
        action_space={"names": NAMES, "control_hz": 20.0},
        max_lost_fraction=0.05 if lost else 1.0,
    )
    rng = np.random.default_rng(len(live))
    recorded = topics.recorded(info.cameras, bool(info.object_state))
    with EpisodeWriter(root, info, recorded, start_ns=0) as writer:
        for sequence in range(len(live) + 1):
            at_ns = sequence * PERIOD_NS
            applied = Applied.APPLIED if sequence else Applied.NO_DECISION
            tick = Tick(episode_id, sequence, at_ns, sequence - 1, applied)
            observation = Observation(
                {}, rng.normal(size=9), rng.normal(size=7), rng.normal(size=10)
            )
            built = messages.observation_messages(TYPES, observation, tick, STATE)
            if decided and sequence < len(live):
                action = rng.uniform(-1, 1, 7).astype(np.float32)
                requested = action if live[sequence] != N else action[:0]
                decision = Decision(
                    *(episode_id, sequence, action, requested, live[sequence]),
                    *(Authority.POLICY, Reason.POLICY_ACTS, 0),
                )
                built[topics.EXECUTED_ACTION] = messages.executed_action_message(
                    TYPES, decision, at_ns
                )
            for topic, message in built.items():
                if topic != topics.JOINT_STATE or sequence not in lost:
                    writer.write_message(topic, message, at_ns)
        for jump in clock_jumps:
            writer.note_clock_jump(*jump)
        return writer.finish(writer.result("success"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Folders of bags: demonstrations; corrected, rescued (corrected for longer) and alone, which
    are deployments; unlabelled; empty."""
    root = tmp_path_factory.mktemp("recordings")
    for number in range(3):
        record(root / "demonstrations", f"d{number}", [H] * 20, "demonstration")
        record(root / "corrected", f"c{number}", CORRECTED)
        record(root / "alone", f"a{number}", [P] * 20)
        record(root / "rescued", f"r{number}", [P] * 14 + [H] * 12 + [P] * 5)
    record(root / "unlabelled", "u0", [P] * 5, decided=False)
    (root / "empty").mkdir()
    return root


def make_policy(folder: Path, object_state: int, kind=TinyVla, **sizes) -> Path:
    """An untrained policy for states of so many numbers."""
    rng = np.random.default_rng(0)
    proprio, state = rng.normal(size=(30, 11)), rng.normal(size=(30, object_state))
    config = kind.Config({}, object_state, tuple(NAMES), width=16, blocks=1, **sizes)
    torch.manual_seed(0)
    made = kind(config, Normalisation.fit(7, proprio, state), Words.fit(["lift the cube"]))
    checkpoint.save(made, folder, {"method": "none"})
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """A policy for Lift."""
    return make_policy(tmp_path_factory.mktemp("checkpoints") / "policy", len(STATE))


@pytest.fixture
def hapo(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def no_nodes(tmp_path, monkeypatch):
    """A machine on which no node is installed."""
    monkeypatch.setenv("AMENT_PREFIX_PATH", "")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def strict_json(line: str):
    """JSON as every reader knows it: without NaN and Infinity."""

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(line, parse_constant=refuse)


# Bad input


TINY = ("--set", "steps=1", "--set", "batch_size=8", "--set", "width=16", "--set", "blocks=1")
BAD = {
    "train: an unknown setting": (
        "train {demonstrations} --output out --set speed=3",
        "Method bc has no setting 'speed'",
    ),
    "train: a bad value": (
        "train {demonstrations} --output out --set steps=0",
        "steps must be a whole number >= 1, not 0",
    ),
    "train: a setting without a value": (
        "train {demonstrations} --output out --set steps",
        "--set 'steps' is not of the form name=value.",
    ),
    "train: settings that are no object": (
        "train {demonstrations} --output out --settings [1]",
        "--settings must be a JSON object",
    ),
    "train: an output that exists": (
        "train {demonstrations} --output {policy}",
        "exists already, so nothing was trained",
    ),
    "train: images that were not recorded": (
        "train {demonstrations} --output out --set inputs=images",
        "The episodes hold no images",
    ),
    "train: nothing to go on with": (
        "train {demonstrations} --output out --resume",
        "There is no interrupted run in out.run",
    ),
    "train: no demonstration": ("train {corrected} --output out", "nothing was trained"),
    "train: an empty folder": ("train {empty} --output out", "nothing was trained"),
    "train: no folder": ("train nowhere --output out", "nothing was trained"),
    "train: bags without labels": ("train {unlabelled} --output out", "nothing was trained"),
    "optimize: no such base": (
        "optimize {corrected} --base nowhere --method hapo --output out",
        "nowhere does not exist, so no policy was loaded",
    ),
    "optimize: a base that is no checkpoint": (
        "optimize {corrected} --base {empty} --method hapo --output out",
        "has no config.json",
    ),
    "optimize: an unknown method": (
        "optimize {corrected} --base {policy} --method magic --output out",
        "There is no method 'magic'. Use one of: ",
    ),
    "optimize: an unknown setting": (
        "optimize {corrected} --base {policy} --method hapo --output out --set speed=3",
        "Method hapo has no setting 'speed'",
    ),
    "optimize: an output that exists": (
        "optimize {corrected} --base {policy} --method hapo --output {policy}",
        "exists already, so nothing was trained",
    ),
    "optimize: an empty folder": (
        "optimize {empty} --base {policy} --method hapo --output out",
        "nothing was trained",
    ),
    "optimize: bags without labels": (
        "optimize {unlabelled} --base {policy} --method hapo --output out",
        "nothing was trained",
    ),
    "optimize: no human steps": (
        "optimize {demonstrations} {alone} --base {policy} --method hapo --output out",
        "human",
    ),
    "optimize: no demonstrations": (
        "optimize {corrected} --base {policy} --method hapo --output out",
        "expert",
    ),
    "collect: an unknown task": (
        "collect --task Juggle --output out",
        "There is no task 'Juggle'. Known tasks: Lift",
    ),
    "collect: no such policy": (
        "collect --policy nowhere --output out",
        "nowhere does not exist, so no policy was loaded",
    ),
    "collect: no episodes": (
        "collect --episodes 0 --output out",
        "--episodes must be at least 1.",
    ),
    "evaluate: no such policy": ("evaluate nowhere", "nowhere does not exist"),
    "evaluate: an unknown task": (
        "evaluate {policy} --task Juggle",
        "There is no task 'Juggle'. Known tasks: Lift",
    ),
    "info: a negative K": ("info {corrected} --k -1", "K must be a whole number"),
    "promote: no such checkpoint": ("promote nowhere --checkpoints out", "does not exist"),
    "promote: no checkpoint": ("promote {empty} --checkpoints out", "has no config.json"),
    "promote: into a file": (
        "promote {policy} --checkpoints {policy}/config.json",
        "config.json/current.json cannot be written",
    ),
    "deploy: a word that is no argument": ("deploy task=Lift", "Write name:=value"),
    "deploy: an unknown argument": ("deploy tusk:=Lift", "There is no argument 'tusk'"),
    "deploy: a bad choice": ("deploy operator:=me", "operator:=me is not known"),
    "deploy: no such policy": ("deploy policy:=nowhere", "does not exist"),
    "deploy: no such configuration": ("deploy config:=nowhere", "no configuration nowhere"),
}


def filled(command: str, recordings: Path, policy: Path) -> list[str]:
    known = {path.name: path for path in recordings.iterdir()} | {"policy": policy}
    return [word.format(**known) for word in command.split()]


@pytest.mark.parametrize(("command", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_a_sentence_and_nothing_is_written(
    hapo, recordings, policy, tmp_path, command, says
):
    before = written(recordings.parent), written(policy.parent)
    words = filled(command, recordings, policy)
    code, out, err = hapo(*words)
    assert code == 1
    assert err.startswith(f"hapo {words[0]}: ") and says in err
    assert "Traceback" not in err and err.rstrip().endswith((".", ")"))
    assert out == "" and written(tmp_path) == set()
    assert (written(recordings.parent), written(policy.parent)) == before


AWAITED = {
    "what was skipped is named, with the reason": (
        "train {unlabelled} --output out",
        "no step of which it says who decided it",
    ),
    "a folder without bags is named": ("train {empty} --output out", "recordings0/empty"),
    "settings that are no JSON are explained": (
        "train {demonstrations} --output out --settings {{bad",
        "--settings",
    ),
    "workers are counted from 0": ("collect --workers -1 --output out", "--workers"),
    "there is nothing to show": ("info {empty}", "hapo info: "),
    "there is nothing at all": ("recover nowhere", "nowhere"),
}


@pytest.mark.parametrize(("command", "says"), AWAITED.values(), ids=AWAITED)
def test_bad_input_is_a_sentence_that_helps(hapo, recordings, policy, command, says):
    words = filled(command, recordings, policy)
    code, _, err = hapo(*words)
    assert code == 1 and says in err and "Traceback" not in err


def test_an_episode_that_exists_is_not_recorded_again_and_said_so_in_a_sentence(hapo, tmp_path):
    command = "collect --inputs state --no-disturbance --episodes 1 --workers 0 --output out --json"
    code, out, err = hapo(*command.split())
    assert code == 0, err
    report = strict_json(out)
    assert (report["episodes"], report["source"]) == (1, "demonstration")
    assert report["bags"] == str(tmp_path / "out") and report["steps"] > 0
    before = written(tmp_path)

    code, out, err = hapo(*command.split())
    assert code == 1 and out == "" and written(tmp_path) == before
    assert "exists already" in err and "nothing was overwritten" in err
    assert "Traceback" not in err


def test_a_policy_for_another_task_is_refused(hapo, tmp_path):
    make_policy(tmp_path / "other", object_state=4)  # and not Lift's ten
    before = written(tmp_path)
    for command in ("evaluate {} --workers 0", "collect --policy {} --workers 0 --output out"):
        code, _, err = hapo(*command.format(tmp_path / "other").split())
        assert code == 1 and "It is a policy for another task." in err
        assert "Traceback" not in err
    assert written(tmp_path) == before


def test_ctrl_c_keeps_the_episodes_that_were_finished_and_nothing_else(tmp_path):
    """As a terminal does it: SIGINT to the whole group."""
    bags = tmp_path / "out"
    command = "collect --inputs state --episodes 500 --workers 2 --output out"
    with nothing_left_running():
        running = subprocess.Popen(
            [sys.executable, "-m", "hapo_ros.cli", *command.split()],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_for(lambda: list(bags.glob("lift-*")) and list(bags.glob(".lift-*.partial")))
        os.killpg(running.pid, signal.SIGINT)
        _, err = running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 1
    assert err.endswith("Interrupted. What was finished is kept.\n") and "Traceback" not in err
    assert not list(bags.glob(".*"))
    readers, skipped = open_episodes(bags)
    assert readers and not skipped


# Training and optimizing


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "JSON"])
def test_a_base_policy_is_trained_optimized_and_promoted(
    hapo, recordings, tmp_path, no_nodes, as_json
):
    json_flag = ["--json"] if as_json else []
    code, out, err = hapo(
        "train", recordings / "demonstrations", "--output", "base", *TINY, *json_flag
    )
    assert code == 0, err
    bags = [recordings / name for name in ("demonstrations", "corrected")]
    optimize = ["--base", "base", "--method", "hapo", "--output", "better", "--set", "steps=1"]
    code, optimized, err = hapo("optimize", *bags, *optimize, *json_flag)
    assert code == 0, err
    code, promoted, err = hapo("promote", "better", "--checkpoints", "served", *json_flag)
    assert code == 0, err

    version = checkpoint.load(tmp_path / "better").version
    current = json.loads((tmp_path / "served" / "current.json").read_text())
    assert current == {"checkpoint": str(tmp_path / "better"), "version": version}
    assert [path.name for path in (tmp_path / "served").iterdir()] == ["current.json"]
    if as_json:
        assert json.loads(optimized.splitlines()[-1])["version"] == version
        assert json.loads(promoted)["running_policy"].startswith("no policy node")
        assert json.loads(out.splitlines()[0])["step"] == 1
    else:
        assert f"version: {version}" in optimized and f"version: {version}" in promoted


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> Path:
    """A flow policy for Lift."""
    return make_policy(tmp_path_factory.mktemp("flows") / "flow", len(STATE), Flow, horizon=10)


@pytest.mark.parametrize("family", ["policy", "flow"])
def test_every_method_learns_from_the_same_bags_by_the_same_command(
    hapo, recordings, family, request
):
    from hapo_ros.learning.methods import METHODS

    policy = request.getfixturevalue(family)
    bags = [recordings / name for name in ("demonstrations", "rescued")]

    def optimize(method, base):
        command = ["--base", base, "--method", method, "--output", f"{method} of {base.name}"]
        command += ["--set", "steps=2", "--set", "batch_size=8", "--set", "warmup=0", "--json"]
        return hapo("optimize", *bags, *command)

    made = {}
    for method in (name for name in METHODS if name != "bc"):
        base = policy
        if METHODS[method].after:  # it goes on from what another has trained, and says so
            code, out, _ = optimize(method, policy)
            assert code == 1 and "Run habc first, and give its" in strict_json(out)["text"]
            base = made["habc"]
        code, out, err = optimize(method, base)
        assert code == 0, err
        made[method] = Path(strict_json(out.splitlines()[-1])["checkpoint"])
        provenance = checkpoint.read_provenance(made[method])
        assert provenance["method"] == method and provenance["version"] != provenance["parent"]


def test_bags_that_were_skipped_are_a_loss_and_it_is_said_which_and_why(hapo, recordings):
    bags = [recordings / name for name in ("demonstrations", "unlabelled")]
    code, out, err = hapo("train", *bags, "--output", "base", *TINY)
    assert code == 3, err
    assert "skipped: " in out and str(recordings / "unlabelled" / "u0") in out
    bags = [
        recordings / "demonstrations",
        recordings / "corrected",
        recordings / "corrected" / "c1",
    ]
    optimize = ["--base", "base", "--method", "hapo", "--output", "better", "--set", "steps=1"]
    code, out, err = hapo("optimize", *bags, *optimize, "--json")
    assert code == 3, err
    report = strict_json(out.splitlines()[-1])
    (skipped,) = report["skipped"]
    assert "c1" in skipped and report["text"].endswith(f"1 bag was skipped: {skipped}")


def test_the_share_of_a_missing_group_is_given_away_only_where_that_is_allowed(
    hapo, recordings, policy
):
    command = ["optimize", recordings / "demonstrations", "--base", policy, "--method", "hapo"]
    command += ["--output", "better", "--set", "steps=1"]
    code, _, err = hapo(*command)
    assert code == 1 and "allow_missing_group" in err
    code, out, err = hapo(*command, "--allow-missing-group")
    assert code == 0, err
    assert "its share goes to the others: expert 100.0%" in out


def test_the_json_of_a_training_is_json_for_every_reader(hapo, recordings):
    code, out, err = hapo(
        "train", recordings / "demonstrations", "--output", "base", *TINY, "--json"
    )
    assert code == 0, err
    progress, result = map(strict_json, out.splitlines())
    assert progress["total"] == 1 and result["checkpoint"]


def test_a_failed_training_in_json_says_why_in_json(hapo, recordings):
    code, out, _ = hapo("train", recordings / "corrected", "--output", "out", "--json")
    assert code == 1 and "nothing was trained" in strict_json(out)["text"]


def test_a_training_that_was_interrupted_goes_on_by_the_same_command_with_resume(
    recordings, tmp_path
):
    command = ["train", recordings / "demonstrations", "--output", "base", "--json", *TINY]
    command += ["--set", "steps=1000000"]

    def interrupt(number, *flags, start=()):
        """Run it until it has done one step; the steps that it tells of, and what it says last."""
        running = subprocess.Popen(
            [sys.executable, *start, "-m", "hapo_ros.cli", *command, *flags],
            cwd=tmp_path,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            first = strict_json(running.stdout.readline())
            running.send_signal(number)
            said, _ = running.communicate(timeout=DEADLINE_S)
        finally:
            running.kill()
        assert running.returncode == 1
        *told, last = map(strict_json, said.splitlines())
        return [first["step"], *(report["step"] for report in told)], last["text"]

    # On two ranks, of which one alone tells; then on one.
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    steps, said = interrupt(signal.SIGINT, start=torchrun)
    assert "No checkpoint was written" in said and "with --resume" in said
    done = int(re.search(r"It had done (\d+) of 1000000 steps", said)[1])
    assert steps == list(range(1, done + 1))
    assert interrupt(signal.SIGTERM, "--resume")[0][0] == done + 1
    assert [path.name for path in tmp_path.iterdir()] == ["base.run"]


def test_a_training_that_runs_out_of_memory_ends_with_a_sentence(recordings, tmp_path):
    """It may have 16 GB of address space, and asks for a layer of 160."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))

    command = [sys.executable, "-m", "hapo_ros.cli", "train", recordings / "demonstrations"]
    command += ["--output", "base", "--set", "width=200000", "--set", "blocks=1"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("hapo train: Memory ran out (") and "Traceback" not in done.stderr
    assert written(tmp_path) == set()


def test_a_checkpoint_that_was_damaged_is_not_promoted(
    hapo, recordings, policy, tmp_path, no_nodes
):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in policy.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / "normalisation.json").write_text("{}")
    code, _, err = hapo("promote", "damaged", "--checkpoints", "served")
    assert code == 1 and "damaged" in err
    assert not (tmp_path / "served").exists()


# What is in the bags


def test_info_counts_what_the_bags_hold(hapo, recordings):
    code, out, _ = hapo("info", recordings / "corrected", recordings / "demonstrations", "--json")
    assert code == 0
    found = strict_json(out)
    total = found["summary"]
    assert (total["episodes"], total["takeovers"]) == (6, 3)
    assert total["sources"] == {"deployment": 3, "demonstration": 3}
    one = next(e for e in found["episodes"] if e["episode_id"] == "c0")
    assert one["labels"] == {"undesirable": 10, "policy": 9, "human": 6, "none": 1}
    assert one["intervention_ratio"] == pytest.approx(6 / 25)
    assert found["skipped"] == []


def test_k_is_chosen_on_reading(hapo, recordings):
    _, out, _ = hapo("info", recordings / "corrected", "--json", "--k", "3")
    assert strict_json(out)["summary"]["labels"]["undesirable"] == 9


def test_info_names_what_it_skips_and_says_so_by_its_exit_code(hapo, recordings):
    code, out, _ = hapo("info", recordings / "corrected", recordings / "unlabelled", "--json")
    assert code == 3
    (skipped,) = strict_json(out)["skipped"]
    assert skipped["path"].endswith("u0") and "who decided it" in skipped["reason"]


def test_info_is_readable_without_a_terminal(hapo, recordings):
    code, out, _ = hapo("info", recordings / "corrected")
    assert code == 0
    text = " ".join(out.split())
    for part in ("3 episodes, 78 steps, 3 takeovers", "intervention ratio 24.0%"):
        assert part in text
    for number in range(3):
        assert f" c{number} " in text


def test_where_nothing_is_to_be_recovered_nothing_happens(hapo, tmp_path):
    (tmp_path / "bags").mkdir()
    assert hapo("recover", "bags") == (0, "There is nothing to recover.\n", "")


def test_what_a_crash_left_is_recovered_and_called_a_loss(hapo, recordings, tmp_path):
    folder = tmp_path / "bags"
    whole = record(folder, "ep1", CORRECTED)
    whole.rename(folder / ".ep1.partial")
    code, out, _ = hapo("recover", "bags")
    assert code == 3 and "bags/.ep1.partial -> " in out
    code, out, _ = hapo("info", "bags", "--accept-recovered", "--json")
    assert strict_json(out)["summary"]["episodes"] == 1


def test_what_lost_too_much_is_a_loss_until_it_is_accepted_and_a_clock_that_was_set_is_told(
    hapo, tmp_path
):
    record(tmp_path / "bags", "ep1", CORRECTED, lost=range(5, 10), clock_jumps=[(0.1, -3600.25)])
    record(tmp_path / "bags", "ep2", CORRECTED)
    code, out, _ = hapo("info", "bags")
    assert code == 3 and "Too much was lost while recording" in out
    assert f"(5 of {topics.JOINT_STATE})" in out and "clock" not in out
    code, out, _ = hapo("info", "bags", "--accept-recovered")
    assert code == 0 and out.count("success (lossy)") == 1
    assert "ep1: the wall clock was set by -3600.2 s after 0.1 s" in out


# Evaluating


def test_an_evaluation_reports_its_uncertainty(hapo, policy):
    code, out, err = hapo("evaluate", policy, "--episodes", "1", "--workers", "0", "--json")
    assert code == 0, err
    report = strict_json(out)
    assert (report["episodes"], report["seeds"]) == (1, [1, 1])
    assert report["undecodable"] == 0
    low, high = report["wilson_95"]
    assert 0 <= low <= report["success_rate"] <= high <= 1


# Deploying, with doubles in place of the nodes


STEADY = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
STEADY += "while True: signal.pause()\n"


@pytest.fixture
def doubles(tmp_path, monkeypatch):
    """Nodes that do nothing; returns the function that gives one of them a program."""
    folder = tmp_path / "prefix" / "lib" / "hapo_ros"
    folder.mkdir(parents=True)
    names = ["recorder", "robosuite_bridge", "arbiter", "policy", "optimizer"]
    for name in [*names, "simulated_operator"]:
        (folder / name).write_text(STEADY)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path / "prefix"))
    return lambda name, program: (folder / name).write_text(program)


def test_a_deployment_ends_well_when_the_simulated_operator_is_done(hapo, policy, doubles):
    doubles("simulated_operator", "")
    code, out, err = hapo("deploy", "operator:=simulated", f"policy:={policy}")
    assert (code, err) == (0, "")
    assert out.startswith("Running recorder, robosuite_bridge, arbiter, policy, simulated_operator")


def test_a_deployment_whose_robot_dies_ends_with_an_error(hapo, policy, doubles):
    doubles("robosuite_bridge", "import sys; sys.exit(9)")
    code, _, err = hapo("deploy", "operator:=simulated", f"policy:={policy}")
    assert code == 1
    assert err == "hapo deploy: robosuite_bridge ended with exit code 9. The run ends.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_deployment_that_is_told_to_end_ends_well(policy, doubles, number):
    command = [sys.executable, "-m", "hapo_ros.cli", "deploy", "operator:=simulated"]
    running = subprocess.Popen(
        [*command, f"policy:={policy}"], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    try:
        assert running.stdout.readline().startswith("Running ")
        running.send_signal(number)
        assert running.wait(DEADLINE_S) == 0
    finally:
        running.kill()
        running.wait(DEADLINE_S)
        running.stdout.close()


# Help


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


@pytest.mark.parametrize("name", commands())
def test_every_command_explains_itself_with_an_example_that_can_be_given(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    example = text.rpartition("Example: ")[2]
    words = shlex.split(example)
    assert words[:2] == ["hapo", name]
    assert _parser().parse_args(words[1:]).command == name


def test_the_help_of_optimize_says_what_each_method_does(capsys):
    from hapo_ros.learning.methods import METHODS

    with pytest.raises(SystemExit):
        main(["optimize", "--help"])
    text = capsys.readouterr().out
    for method in METHODS.values():
        assert (f"  {method.name:15}{method.text}\n" in text) == (method.name != "bc")


def test_the_commands_are_listed_with_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "Exit codes: 0 clean, 1 error, 3 finished with loss" in " ".join(text.split())
    for name in commands():
        assert f"    {name}" in text


def test_the_version_is_that_of_the_package(capsys):
    import hapo_ros

    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == hapo_ros.__version__


def test_help_needs_no_heavy_library():
    """`hapo --help` is instant: torch, mujoco and rclpy are imported where they are used."""
    program = (
        "import sys\nfrom hapo_ros.cli import _parser\n_parser()\n"
        "print([m for m in ('torch', 'mujoco', 'robosuite', 'rclpy', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_doctor_can_be_asked_where_numpy_cannot_be_imported():
    program = (
        "import sys\nsys.modules['numpy'] = None\nfrom hapo_ros.cli import _parser\n"
        "print(_parser().parse_args(['doctor']).command)\n"
        "from hapo_ros.doctor import _live_axes\nprint(_live_axes(1.0).status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.stdout.split() == ["doctor", "warn"], done.stderr
