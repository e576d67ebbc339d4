"""``make base-policy``: made beside what ships, compared with it, put in its place if asked."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hapo_ros.policies import checkpoint

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "base_policy.py"


@pytest.fixture
def compare():
    return runpy.run_path(str(SCRIPT))["compare"]


def curve(**successes) -> dict:
    """A record; successes: steps_N=successes of 60, each with the interval 30 % to 50 %."""
    return {
        "demonstration_seeds": [1, 20],
        "selection_seeds": [5000, 5059],
        "settings": ["seed=0"],
        "curve": [
            {"steps": int(name[6:]), "successes": count, "n": 60, "wilson_95": [0.3, 0.5]}
            for name, count in successes.items()
        ],
    }


def test_a_rerun_has_to_lie_within_the_recorded_intervals(compare, capsys):
    recorded = curve(steps_300=24, steps_600=23)
    assert compare(curve(steps_300=18, steps_600=30), recorded)
    assert "300 steps: 18/60; recorded 24/60, 30% to 50%: within" in capsys.readouterr().out
    assert not compare(curve(steps_300=24, steps_600=31), recorded)
    assert "600 steps: 31/60; recorded 23/60, 30% to 50%: NOT within" in capsys.readouterr().out


def test_only_the_same_is_compared(compare, capsys):
    recorded = curve(steps_300=24)
    assert compare(curve(steps_900=60), recorded)
    assert "900 steps: 60/60; not recorded" in capsys.readouterr().out
    assert compare(curve(steps_300=60) | {"demonstration_seeds": [1, 5]}, recorded)
    assert "Not compared" in capsys.readouterr().out


@pytest.mark.timeout(400)
def test_what_ships_is_replaced_only_where_that_is_asked_for(tmp_path):
    """One demonstration, two steps, one seed: the whole way, in a checkout of its own."""
    for name in ("benchmarks/base_policy.py", "docs/base_policy.json"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    shipped, record = tmp_path / "models" / "lift_base", tmp_path / "docs" / "base_policy.json"
    shutil.copytree(ROOT / "models" / "lift_base", shipped)
    version, text = checkpoint.version_of(shipped), record.read_text()

    def make(*words):
        tiny = ["--demonstrations", "1", "--steps", "2", "--seeds", "1"]
        command = [sys.executable, tmp_path / "benchmarks" / "base_policy.py", *tiny, *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = make()
    assert done.returncode == 0, done.stderr
    made = tmp_path / "runs" / "base"
    assert "Not compared with the recorded curve" in done.stdout
    assert json.loads((made / "curve.json").read_text())["chosen"] == 2
    assert checkpoint.load(made / "chosen").version != version
    assert (checkpoint.version_of(shipped), record.read_text()) == (version, text)

    again = make()
    assert again.returncode == 1 and "Nothing is overwritten" in again.stderr
    nowhere = make("--replace", "--work", tmp_path / "nowhere")
    assert nowhere.returncode == 1 and "Nothing was replaced" in nowhere.stderr
    assert (checkpoint.version_of(shipped), record.read_text()) == (version, text)

    done = make("--replace")
    assert done.returncode == 0, done.stderr
    assert checkpoint.version_of(shipped) == checkpoint.version_of(made / "chosen")
    assert record.read_text() == (made / "curve.json").read_text()
    assert [path.name for path in shipped.parent.iterdir()] == ["lift_base"]
