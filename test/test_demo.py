"""``hapo demo`` as a new user runs it, only shorter: to its end, too few takeovers, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ros_graph import nothing_left_running, wait_for

from hapo_ros.demo import DemoOptions, _Graph, _move_aside
from hapo_ros.episodes import open_episodes

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)
pytest.importorskip("robosuite")

SHORT = {"demonstrations": 2, "seeds": 1, "steps": 2, "episodes": 2, "takeovers": 1, "workers": 2}


def demo(folder: Path, **options) -> subprocess.Popen:
    """A demo in a session of its own, its output in demo.log."""
    words = ["--output", str(folder / "demo")]
    words += [f"--{name}={value}" for name, value in (SHORT | options).items()]
    with (folder / "demo.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "hapo_ros.cli", "demo", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,
        )


def said(folder: Path) -> str:
    return (folder / "demo.log").read_text()


@pytest.mark.timeout(600)
def test_the_whole_loop_runs_to_its_end_and_says_what_came_of_it(tmp_path, ros_domain):
    with nothing_left_running():
        code = demo(tmp_path).wait(590)
    text = said(tmp_path)
    assert code == 0 and "Traceback" not in text, text
    folder = tmp_path / "demo"
    results = json.loads((folder / "results.json").read_text())
    arms = results["evaluation"]["arms"]
    assert set(arms) == {"base", "hapo_anchored", "bc_continue"}
    assert all(len(arm["successes"]) == 1 for arm in arms.values())
    assert results["summary"]["takeovers"] >= 1 and sum(results["labels"].values()) > 20
    for what in (
        "policy node (pid",
        "verdict",
        "intervention ratio",
        "labels recorded:",
        "report:",
    ):
        assert what in text, what
    assert (folder / "report.html").stat().st_size > 10_000
    used, skipped = open_episodes([folder / "bags" / "demonstrations", folder / "bags/deployment"])
    assert len(used) >= 2 + 1 + 2 and not skipped
    for method in ("hapo_anchored", "bc_continue"):
        assert (folder / "checkpoints" / method / "provenance.json").is_file()


def test_too_few_takeovers_end_it_with_a_sentence_and_exit_code_3(tmp_path, ros_domain):
    with nothing_left_running():
        code = demo(tmp_path, episodes=1, takeovers=8).wait(110)
    text = said(tmp_path)
    assert code == 3 and "Traceback" not in text, text
    assert "in 1 episodes; at least 8 are needed" in text and "more --episodes" in text
    assert "Optimize" not in text.split("takeovers in 1 episodes")[1]
    assert not list((tmp_path / "demo" / "checkpoints").glob("*/provenance.json"))
    assert len(open_episodes(tmp_path / "demo" / "bags" / "deployment")[0]) == 1


@pytest.mark.parametrize("phase", ["demonstrations", "deployment"])
def test_ctrl_c_leaves_no_process_and_no_broken_bag(tmp_path, ros_domain, phase):
    bags = tmp_path / "demo" / "bags"
    with nothing_left_running():
        process = demo(tmp_path, demonstrations=40 if phase == "demonstrations" else 2, takeovers=9)
        wait_for(lambda: list((bags / phase).glob(".*.partial/*.mcap")), timeout_s=100)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 1
    text = said(tmp_path)
    assert "Traceback" not in text and "Interrupted." in text, text
    assert not list(bags.rglob(".*"))
    _, skipped = open_episodes(bags / phase, accept_recovered=True)
    assert not [each for each in skipped if each.name not in ("no bag", "no labels")]


@pytest.mark.parametrize(
    ("option", "least"),
    [("demonstrations", 2), ("seeds", 1), ("steps", 1), ("episodes", 1), ("takeovers", 1)],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(tmp_path, option, least):
    process = demo(tmp_path, **{option: least - 1})
    assert process.wait(60) == 1
    assert f"--{option} must be at least {least}" in said(tmp_path)
    assert not (tmp_path / "demo").exists()


def test_an_earlier_demo_is_moved_aside_and_nothing_else_is_touched(tmp_path, capsys):
    output = tmp_path / "demo"
    _move_aside(output)
    (output / "report.html").write_text("the first")
    _move_aside(output)
    (aside,) = [path for path in tmp_path.iterdir() if path != output]
    assert (aside / "report.html").read_text() == "the first"
    assert not (output / "report.html").exists() and str(aside) in capsys.readouterr().out
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is no earlier demo"):
        _move_aside(mine)
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_the_takeovers_that_are_enough_are_never_more_than_were_asked_for():
    assert DemoOptions().enough == 8 and DemoOptions(takeovers=3).enough == 3


def test_the_demo_counts_recorded_episodes_and_outlives_other_news():
    graph = _Graph()
    ended = {"event": "episode", "outcome": "success", "bag": "/bags/one"}
    for event in (
        {"event": "policy", "version": "1"},
        {"event": "authority", "takeovers": 2},
        {"event": "authority_lost", "text": "The arbiter is gone."},
        ended | {"outcome": "", "bag": ""},
        ended,
    ):
        graph.hear(event)
    assert graph.episodes == [ended] and graph.takeovers == 2
