"""A long run through the graph, with takeovers and faults: nothing is lost, nothing grows."""

import runpy
from pathlib import Path

import pytest
from ros_graph import nothing_left_running

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)
pytest.importorskip("robosuite")

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "soak.py"
# A leak of one tick's message (1 KiB) a step would be ten times that.
KIB_PER_1000_STEPS = 100.0


@pytest.mark.timeout(900)
def test_ten_thousand_steps_are_all_recorded_and_nothing_grows(tmp_path, ros_domain):
    soak = runpy.run_path(str(SCRIPT))
    with nothing_left_running():
        run = soak["Soak"](tmp_path, 10_000, lock_step=True, cameras=False, sample=250)
        report = run.run()
    assert report["unaccounted"] == [] and report["steps"] >= 10_000
    assert report["takeovers"] > 20 and report["done"].keys() == set(soak["FAULTS"])
    for name, grown in report["growth"].items():
        assert grown["descriptors"] <= 0 and grown["threads"] <= 0, (name, report["samples"][name])
        assert grown["kib_per_1000_steps"] < KIB_PER_1000_STEPS, (name, report["samples"][name])
