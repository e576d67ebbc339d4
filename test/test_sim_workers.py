"""Seeds over processes: in order, with progress, and an error instead of a hang."""

import importlib
import os
import signal
import subprocess
import sys

import pytest
from ros_graph import nothing_left_running

from hapo_ros.sim.workers import WorkerError, run_seeds

# Workers import what they are sent by name, so this has to be a module that they find.
SETUPS = """
import os, signal, time
from dataclasses import dataclass

@dataclass(frozen=True)
class Work:
    bad_seed: int = -1
    how: str = ""

    def start(self):
        if self.how == "no start":
            raise OSError("no disk")
        return self.run

    def run(self, seed):
        if seed == self.bad_seed:
            if self.how == "raises":
                raise ValueError("the arm fell off")
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "exits":
                os._exit(7)
            if self.how == "hangs":
                time.sleep(1000)
            if self.how == "begins":
                print("begun", seed, flush=True)
                time.sleep(1000)
        time.sleep(0.02 * (seed % 3))
        return seed * seed, os.getpid()

    def tidy(self, seed):
        print("tidied", seed, flush=True)
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    (tmp_path / "hapo_test_setups.py").write_text(SETUPS)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.reload(importlib.import_module("hapo_test_setups")).Work


def test_results_come_in_the_order_of_the_seeds(work):
    seeds = [5, 3, 8, 1, 2, 7]
    told = []
    results = run_seeds(work(), seeds, workers=2, progress=lambda *news: told.append(news))
    assert [square for square, _ in results] == [seed * seed for seed in seeds]
    assert len({process for _, process in results}) == 2
    assert [done for done, _, _ in told] == [1, 2, 3, 4, 5, 6]
    assert {total for _, total, _ in told} == {6}


def test_no_workers_means_this_process(work):
    assert [square for square, _ in run_seeds(work(), [2, 3], workers=0)] == [4, 9]


def test_a_seed_that_fails_is_tidied_away(work, capfd):
    for workers, error in ((0, ValueError), (1, WorkerError)):
        with pytest.raises(error, match="the arm fell off"):
            run_seeds(work(3, "raises"), [2, 3], workers=workers)
        assert capfd.readouterr().out == "tidied 3\n"


def test_no_seeds_give_no_results(work):
    assert run_seeds(work(), [], workers=2) == []


def test_a_seed_named_twice_is_refused(work):
    with pytest.raises(ValueError, match="twice"):
        run_seeds(work(), [1, 1])


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("raises", r"Seed 3 failed in its worker.*the arm fell off"),
        ("killed", r"seed 3 died \(exit code -9\)"),
        ("exits", r"seed 3 died \(exit code 7\)"),
    ],
)
def test_a_worker_that_goes_down_is_an_error_that_names_the_seed(work, how, text):
    with pytest.raises(WorkerError, match=text):
        run_seeds(work(3, how), range(6), workers=2)


def test_a_worker_that_cannot_start_is_an_error(work):
    with pytest.raises(WorkerError, match="no disk"):
        run_seeds(work(how="no start"), range(3), workers=1)


def test_a_worker_that_hangs_is_an_error_that_names_the_seed(work):
    with pytest.raises(WorkerError, match="seeds 1"):
        run_seeds(work(1, "hangs"), [1], workers=1, limit_s=3.0)


MAIN = """
from hapo_ros.sim.workers import run_seeds
from hapo_test_setups import Work

if __name__ == "__main__":
    run_seeds(Work(1, "begins"), [1], workers=1)
"""


def test_ctrl_c_lets_the_workers_tidy_up_and_leaves_none(work, tmp_path):
    """As a terminal does it: SIGINT to the whole group, of which only the parent takes notice."""
    (tmp_path / "main.py").write_text(MAIN)
    with nothing_left_running():
        running = subprocess.Popen(
            [sys.executable, tmp_path / "main.py"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert running.stdout.readline() == "begun 1\n"
        os.killpg(running.pid, signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert out == "tidied 1\n", err
    assert err.count("Traceback") == 1 and err.rstrip().endswith("KeyboardInterrupt"), err
