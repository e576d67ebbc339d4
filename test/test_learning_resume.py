"""Going on with a training that was cancelled or killed: as if nothing had happened."""

import json
from dataclasses import replace

import numpy as np
import pytest
from toy_episodes import episodes, run, trained_base

from hapo_ros.labels import POLICY
from hapo_ros.learning import loop, methods, trainer
from hapo_ros.learning.data import build

QUICK = {"k": 4, "steps": 6, "batch_size": 8, "min_human": 1, "warmup": 2, "lr": 1e-3}
QUICK |= {"critic_warmup": 2}


@pytest.fixture(scope="module")
def table():
    return build(episodes(), k=4)


@pytest.fixture(scope="module")
def base(table, tmp_path_factory):
    return trained_base(table, tmp_path_factory.mktemp("base")).checkpoint


def optimize(table, base, output, method="hapo", stop_at=None, **settings):
    """A quick run, and its reports; stop_at: cancelled when so many steps are done."""
    own = {name: value for name, value in QUICK.items() if name in methods.resolve(method)}
    told = []
    options = {
        "progress": told.append,
        "cancelled": lambda: bool(told) and told[-1]["step"] == stop_at,
        "resume": settings.pop("resume", False),
    }
    settings = own | settings
    if method == "bc":
        return trainer.train_bc(table, settings, output, **options), told
    return trainer.optimize(table, base, method, settings, output, **options), told


def cancelled(table, base, output, stop_at, **options):
    with pytest.raises(loop.Cancelled) as error:
        optimize(table, base, output, stop_at=stop_at, **options)
    return str(error.value)


SEEING = {"inputs": "both", "image_shift": 2, "width": 32, "blocks": 1}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("bc", SEEING),
        ("sirius", {}),
        ("hapo", {}),
        ("tpo", {}),
        ("habc", {}),
        ("imit_recap", {}),  # it chooses its threshold at step 3
    ],
    ids=str,
)
def test_a_run_that_was_cancelled_twice_ends_as_one_that_was_not(
    base, table, tmp_path, method, settings
):
    """Same weights, and the same metrics of every step."""
    if "image_shift" in settings:
        images = np.random.default_rng(0).integers(0, 256, (len(table), 16, 16, 3), np.uint8)
        table = replace(table, images={"camera": images})
    options = {"method": method, **settings}
    whole, _ = optimize(table, base, tmp_path / "whole", **options)
    output = tmp_path / "cut"
    said = cancelled(table, base, output, 3, **options)
    assert "had done 3 of 6 steps; the same command with --resume goes on from there" in said
    assert "had done 4 of 6" in cancelled(table, base, output, 4, resume=True, **options)
    trained, told = optimize(table, base, output, resume=True, **options)
    assert trained.version == whole.version and trained.notes == whole.notes
    assert trained.metrics == pytest.approx(whole.metrics, nan_ok=True, rel=0, abs=0)
    assert [report["step"] for report in told] == [5, 6] and told[-1]["time_left_s"] == 0
    lines = [(made.run / "metrics.jsonl").read_text() for made in (trained, whole)]
    assert lines[0] == lines[1]
    assert trained.run.name == "cut.run" and not list(trained.run.glob("*resume*"))


def test_what_a_cancelled_run_did_later_than_it_kept_is_done_again(base, table, tmp_path):
    """It may have been killed after it was resumed."""
    whole, _ = optimize(table, base, tmp_path / "whole")
    cancelled(table, base, tmp_path / "cut", 3)
    kept = tmp_path / "cut.run" / "resume.pt"
    before = kept.read_bytes()
    cancelled(table, base, tmp_path / "cut", 5, resume=True)
    kept.write_bytes(before)
    trained, told = optimize(table, base, tmp_path / "cut", resume=True)
    assert trained.version == whole.version and told[0]["step"] == 4
    lines = (trained.run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


class Crash(BaseException):
    """Nothing catches it."""


def test_a_run_that_was_killed_goes_on_from_what_it_kept_last(base, table, tmp_path):
    whole, _ = optimize(table, base, tmp_path / "whole", save_every=2)

    def crash(report):
        if report["step"] == 5:
            raise Crash

    settings = {name: QUICK[name] for name in QUICK if name in methods.resolve("hapo")}
    with pytest.raises(Crash):
        trainer.optimize(
            table, base, "hapo", settings | {"save_every": 2}, tmp_path / "cut", progress=crash
        )
    folder = tmp_path / "cut.run"
    kept = folder / "resume.pt"
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "lo')  # it was killed while it wrote
    (folder / ".resume.pt.writing").write_bytes(kept.read_bytes()[:99])
    trained, told = optimize(table, base, tmp_path / "cut", resume=True, save_every=2)
    assert trained.version == whole.version and told[0]["step"] == 5
    lines = [(made.run / "metrics.jsonl").read_text() for made in (trained, whole)]
    assert lines[0] == lines[1] and not list(folder.glob("*resume*"))


def test_a_run_that_is_to_keep_nothing_keeps_nothing(base, table, tmp_path):
    def kept(report):
        assert not list((tmp_path / "new.run").glob("*resume*"))

    settings = {"k": 4, "steps": 3, "batch_size": 8, "save_every": 0}
    trainer.optimize(table, base, "hapo", settings, tmp_path / "new", progress=kept)


def test_the_last_run_is_gone_on_with_and_others_are_left_alone(base, table, tmp_path):
    cancelled(table, base, tmp_path / "new", 2)
    cancelled(table, base, tmp_path / "new", 4)
    trained, told = optimize(table, base, tmp_path / "new", resume=True)
    assert trained.run.name == "new.run-2" and told[0]["step"] == 5
    assert (tmp_path / "new.run" / "resume.pt").exists()


def test_another_run_is_not_gone_on_with_and_it_is_said_what_is_different(base, table, tmp_path):
    def refused(steps=table, **options):
        with pytest.raises(ValueError) as error:
            optimize(steps, base, tmp_path / "new", resume=True, **options)
        assert "nothing was trained" in str(error.value)
        return str(error.value)

    assert "There is no interrupted run in " in refused()
    cancelled(table, base, tmp_path / "new", 2)
    kept = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert "other settings, so" in refused(lr=1e-4)
    assert "other method, other settings" in refused(method="sirius")
    more = build([*episodes(), run("more", [POLICY] * 4)], k=4)
    assert "other episodes, so" in refused(more)
    judged = episodes()
    judged[2].outcome = "failure"
    assert "other episodes, so" in refused(build(judged, k=4))
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == kept
    (tmp_path / "new.run" / "resume.pt").write_bytes(b"PK")
    assert "resume.pt is damaged" in refused()
