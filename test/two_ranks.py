"""What test_learning_ranks.py has torchrun start: trainings on two ranks, one after the other.

    torchrun --nproc-per-node 2 two_ranks.py FOLDER

FOLDER is as of ``prepare``. Every rank leaves ``rank-N.json`` there: what became of each.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch.distributed as dist
from toy_episodes import episodes, trained_base

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
        "blocks": 2,
    },
}
CHUNKS = QUICK | {"steps": 2, "micro_batch": 3, "parameters": "full"}
CHUNKS |= {"l1_prediction": "generate", "activation_checkpointing": True}
DIVIDED = {name: RUNS[name] for name in ("hapo_anchored", "imit_recap", "bc")} | {"chunks": CHUNKS}
"""Runs whose weights are divided. chunks: hapo_anchored of a pi0_fast."""
SHARD = {"shard_weights": True}
BY_TURNS = (2, False, SHARD), (3, True, {}), (5, True, SHARD)  # a run that is gone on with twice
SHORT_S = 1.0
DEADLINE_S = 110.0


def table():
    return build(episodes(), k=4)


def chunks():
    return build(episodes(), k=4, horizon=2)


def prepare(folder):
    """Policies to go on from: ``base``, and ``chunks/base`` of family pi0_fast."""
    trained_base(table(), folder, blocks=2)
    trained_base(chunks(), folder / "chunks", family="pi0_fast", horizon=2, blocks=2)


def seen():
    """The table with a camera, and with chunks."""
    table = chunks()
    images = np.random.default_rng(0).integers(0, 256, (len(table), 16, 16, 3), np.uint8)
    return replace(table, images={"camera": images})


def train(name, folder, output, **options):
    """One of RUNS or DIVIDED on the policies of ``folder``, its settings changed by ``more``."""
    settings = (RUNS | DIVIDED)[name] | options.pop("more", {})
    if name == "bc":
        return trainer.train_bc(seen(), settings, output, **options)
    if name == "chunks":
        base = folder / "chunks" / "base"
        return trainer.optimize(chunks(), base, "hapo_anchored", settings, output, **options)
    return trainer.optimize(table(), folder / "base", name, settings, output, **options)


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


class Weighed(trainer.Training):
    """It leaves in ``held`` how many bytes of its blocks this rank holds when it has ended."""

    held: ClassVar[dict[str, int]]

    def run(self, *arguments):
        metrics = super().run(*arguments)
        blocks = [*self.policy.network.blocks.parameters()]
        moments = [self.optimizer.state.get(p, {}) for p in blocks]
        Weighed.held = {
            "weights": stored(blocks),
            "gradients": stored(p.grad for p in blocks if p.grad is not None),
            "moments": stored(t for kept in moments for t in kept.values() if t.ndim),
        }
        return metrics


def stored(tensors) -> int:
    """Bytes that they, or this rank's parts of them, take."""
    own = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in own)}
    return sum(storages.values())


def main(folder: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, once the other rank was killed
    signal.alarm(int(DEADLINE_S))  # also where torchrun itself was killed
    trainer.Training = Weighed  # it trains as before
    with parallel.started() as ranks:
        second = ranks.rank == 1
        told = []
        found = {"told": told, "held": {}}

        def attempt(name, **options):
            return ended(
                lambda: train("hapo_anchored", folder, folder / name, ranks=ranks, **options)
            )

        for name in RUNS:
            train(name, folder, folder / "two" / name, ranks=ranks, progress=told.append)
        for name in DIVIDED:
            train(name, folder, folder / "divided" / name, ranks=ranks, more=SHARD)
            found["held"][name] = Weighed.held
        found["by turns"] = [by_turns(folder, ranks, *part) for part in BY_TURNS]

        found["other settings"] = attempt("other", more={"seed": ranks.rank})
        found["not divisible"] = attempt("odd", more={"batch_size": 9})
        with At(1, second, poison):
            found["NaN"] = attempt("nan")
        with At(1, second, run_out):
            found["memory"] = attempt("memory")
        with At(1, second, run_out_in_a_pass):
            found["memory in a pass"] = attempt(
                "divided memory", more=SHARD | {"parameters": "full"}
            )
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


def run_out_in_a_pass(update) -> None:
    """In the next backward pass, between its two blocks."""

    def forward(block, inputs):
        if inputs[0].requires_grad:
            inputs[0].register_hook(run_out)

    update.policy.network.blocks[1].register_forward_pre_hook(forward)


def by_turns(folder: Path, ranks, stop_at: int, resume: bool, more: dict) -> list[str]:
    """A part of a run of bc, until so many steps are done."""
    told = []
    options = {
        "progress": told.append,
        "cancelled": lambda: bool(told) and told[-1]["step"] == stop_at,
        "resume": resume,
        "more": more,
    }
    return ended(lambda: train("bc", folder, folder / "turns", ranks=ranks, **options))


def write(folder: Path, rank: int, found: dict) -> None:
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
