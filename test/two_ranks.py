"""What test_learning_ranks.py has torchrun start: trainings on two ranks, one after the other.

    torchrun --nproc-per-node 2 two_ranks.py FOLDER

FOLDER has a checkpoint ``base``. Every rank leaves ``rank-N.json`` there: what became of each.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch.distributed as dist
from toy_episodes import episodes

from hapo_ros.learning import parallel, trainer
from hapo_ros.learning.data import build
from hapo_ros.learning.loop import NotTrained
from hapo_ros.learning.updates import Preference

QUICK = {"k": 4, "steps": 5, "batch_size": 8, "warmup": 1, "lr": 3e-3, "lora_rank": 4}
CRITIC = {"critic_warmup": 1}
RUNS = {
    "hapo_anchored": QUICK | {"micro_batch": 3, "save_every": 2},  # of 4 samples a rank
    "habc": QUICK | CRITIC | {"min_human": 1, "micro_batch": 3},
    "imit_recap": QUICK | CRITIC,
    "bc": {key: QUICK[key] for key in ("k", "steps", "batch_size", "warmup", "lr")}
    | {
        "family": "flow",
        "horizon": 2,
        "inputs": "both",
        "image_shift": 2,
        "width": 16,
        "blocks": 1,
    },
}
SHORT_S = 1.0
DEADLINE_S = 110.0


def table():
    return build(episodes(), k=4)


def seen():
    """The table with a camera, and with chunks."""
    table = build(episodes(), k=4, horizon=2)
    images = np.random.default_rng(0).integers(0, 256, (len(table), 16, 16, 3), np.uint8)
    return replace(table, images={"camera": images})


def train(method, base, output, **options):
    """One of RUNS, its settings changed by ``more``."""
    settings = RUNS[method] | options.pop("more", {})
    if method == "bc":
        return trainer.train_bc(seen(), settings, output, **options)
    return trainer.optimize(table(), base, method, settings, output, **options)


def ended(run) -> list[str]:
    """Class and text of the error that it ends with."""
    try:
        run()
    except (NotTrained, ValueError) as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


class At:
    """What happens on this rank alone, once so many steps are done."""

    def __init__(self, step: int, here: bool, happens=lambda update: None):
        self.step, self.here, self.happens = step, here, happens
        self.done = 0

    @property
    def now(self) -> bool:
        return self.here and self.done == self.step

    def __enter__(self):
        self.accumulate = accumulate = Preference.accumulate

        def counted(update, batch):
            metrics = accumulate(update, batch)
            if self.now:
                self.happens(update)
            self.done += 1
            return metrics

        Preference.accumulate = counted
        return self

    def __exit__(self, *_):
        Preference.accumulate = self.accumulate


def main(folder: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, once the other rank was killed
    signal.alarm(int(DEADLINE_S))  # also where torchrun itself was killed
    base = folder / "base"
    with parallel.started() as ranks:
        second = ranks.rank == 1
        told = []
        found = {"told": told}

        def attempt(name, **options):
            return ended(
                lambda: train("hapo_anchored", base, folder / name, ranks=ranks, **options)
            )

        for method in RUNS:
            train(method, base, folder / "two" / method, ranks=ranks, progress=told.append)

        found["other settings"] = attempt("other", more={"seed": ranks.rank})
        found["not divisible"] = attempt("odd", more={"batch_size": 9})
        with At(1, second, poison):
            found["NaN"] = attempt("nan")
        with At(1, second, run_out):
            found["memory"] = attempt("memory")
        with At(3, second) as cancel:
            found["cancelled"] = attempt("cut", cancelled=lambda: cancel.now)
        found["resumed"] = attempt("cut", resume=True)

        short = dist.new_group(timeout=timedelta(seconds=SHORT_S))
        if ranks.first:
            found["late"] = ended(lambda: parallel.Group(short, SHORT_S).any(False))
        ranks.any(False)  # the second has waited here

        write(folder, ranks.rank, found)
        with At(3, second, lambda _: os.kill(os.getpid(), signal.SIGKILL)):
            found["killed"] = attempt("killed")
        write(folder, ranks.rank, found)


def poison(update) -> None:
    parameters = update.policy.network.parameters()
    next(p for p in parameters if p.grad is not None).grad[:] = float("nan")


def run_out(update) -> None:
    raise MemoryError


def write(folder: Path, rank: int, found: dict) -> None:
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
