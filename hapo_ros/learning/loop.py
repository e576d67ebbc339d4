"""The loop that all training is: optimizer steps, their metrics, what ends them, and going on."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hapo_ros.learning import sharding
from hapo_ros.learning.runlog import Notes
from hapo_ros.learning.table import GROUPS

HISTOGRAMS_EVERY = 10  # optimizer steps
FINAL_STEPS = 50  # over which the provenance's final metrics are averaged
RUNAWAY = -15.0
"""Mean log-ratio of an undesirable action, over FINAL_STEPS steps, below which a run warns; of a
chunk, as many times that as its log-ratio has actions.

Measured: runs that ended at -27 and -36 (hapo), or -38 (kto), gained nothing that could be shown
and lost likelihood of the demonstrations; a floor of -5 keeps runs far from that. At -15 an action
is 3e-7 times as likely as it was: it is avoided, and what is pushed further goes to anything else.
"""


CANCELLED = "Training was cancelled. No checkpoint was written."


class NotTrained(RuntimeError):
    """A training ended early, and no checkpoint was written."""


class Cancelled(NotTrained):
    """It was stopped on request."""


class Diverged(NotTrained):
    """It produced NaN or infinity."""


class OutOfMemory(NotTrained):
    """There was not enough memory."""


@dataclass
class Hooks:
    """How a run talks to whoever started it.

    progress: called after each step, on rank 0, with step, total, loss, reward_desirable,
    reward_undesirable (NaN where the method has none) and time_left_s. cancelled: asked before each
    step. clock: monotonic seconds.
    """

    progress: Callable[[dict], None] = lambda report: None
    cancelled: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic

    def stop_if_cancelled(self) -> None:
        if self.cancelled():
            raise Cancelled(CANCELLED)


class Training:
    """A run between its first and its last optimizer step.

    One step is one effective batch, whatever micro-batches and ranks it is divided among; the
    learning rate's horizon counts these steps. What learns beside the policy is clipped by a norm
    of its own. ``state_dict`` is all that the steps to come depend on: another Training of the same
    arguments that loads it goes on as this one would have.
    """

    def __init__(self, policy, update, sampler, settings: dict, log: Notes):
        self.policy, self.update, self.sampler = policy, update, sampler
        self.settings, self.log, self.ranks = settings, log, update.ranks
        self.group = update.table.group
        self.modules = torch.nn.ModuleList([policy.network, *update.modules])
        self.parameters = [
            [p for p in module.parameters() if p.requires_grad] for module in self.modules
        ]
        # fused: one pass over the weights and no copies of them; 27 million take a CPU a fourth of
        # the time
        self.optimizer = torch.optim.AdamW(
            [{"params": kind} for kind in sharding.kinds(p for g in self.parameters for p in g)],
            weight_decay=settings["weight_decay"],
            fused=True,
        )
        self.step = 0
        self.batch = np.zeros(0, np.int64)  # of the last step, of all ranks
        self.recent: deque[dict] = deque(maxlen=FINAL_STEPS)

    def run(self, hooks: Hooks, keep: Callable[[], None] = lambda: None) -> dict:
        """Every step that is left; returns metrics averaged over the last of them.

        keep: called after every ``save_every`` steps, to write the ``state_dict``. Raises Cancelled
        (on all ranks where one was cancelled) and Diverged.
        """
        total, first, started = self.settings["steps"], self.step, hooks.clock()
        every = self.settings["save_every"]
        now = started
        self.policy.network.train()
        while self.step < total:
            if self.ranks.any(hooks.cancelled()):
                raise Cancelled(CANCELLED)
            metrics = self._next()
            before, now = now, hooks.clock()
            self._draw(now - before)
            pace_s = (now - started) / (self.step - first)
            if self.ranks.first:
                hooks.progress(
                    {
                        "step": self.step,
                        "total": total,
                        "loss": metrics["loss"],
                        "reward_desirable": metrics.get("reward_desirable", math.nan),
                        "reward_undesirable": metrics.get("reward_undesirable", math.nan),
                        "time_left_s": pace_s * (total - self.step),
                    }
                )
            if every and self.step % every == 0 and self.step < total:
                self.log.keep()
                keep()
        self.policy.network.eval()
        return {key: float(np.mean([m[key] for m in self.recent])) for key in self.recent[0]}

    def _draw(self, taken_s: float) -> None:
        """What TensorBoard shows of the last step besides its metrics: how much of the batch was of
        each group, how fast it was, and now and then the samples' weights."""
        drawn = np.bincount(self.group[self.batch], minlength=len(GROUPS)) / len(self.batch)
        scalars = {f"share/{name}": share for name, share in zip(GROUPS, drawn, strict=True)}
        if taken_s > 0:
            scalars["samples_per_s"] = self.settings["batch_size"] / taken_s
        wanted = self.step == 1 or self.step % HISTOGRAMS_EVERY == 0
        self.log.draw(self.step, scalars, self.update.samples if wanted else {})

    def _next(self) -> dict[str, float]:
        """One optimizer step; its metrics."""
        settings = self.settings
        lr = settings["lr"] * rate(self.step, settings["steps"], settings["warmup"])
        self.step += 1
        self.batch = self.sampler.whole()
        self.optimizer.zero_grad()
        metrics = self.update.accumulate(self.batch)
        self.ranks.sum_gradients(p for group in self.parameters for p in group)
        limit = settings["max_grad_norm"]
        norm = math.hypot(
            *(sharding.clip_gradients(group, limit, self.ranks) for group in self.parameters)
        )
        if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
            raise Diverged(
                f"Loss {metrics['loss']:g} and gradient {norm:g} at step {self.step}. Training "
                "stopped and no checkpoint was written. The batch was: "
                f"{self.update.table.names(self.batch)}. Look at these episodes, or use a lower "
                "learning rate."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        metrics |= {"grad_norm": norm, "lr": lr}
        self.recent.append(metrics)
        if "reward_undesirable" in metrics:
            _warn_of_runaway(self.step, self.recent, self.policy.ratio_actions, self.log)
        self.log.write(self.step, metrics)
        return metrics

    def state_dict(self) -> dict:
        """After ``step`` steps: what is trained and the optimizer's moments, by name, the places of
        sampler and update in their random sequences, the last metrics, and the notes so far.

        All ranks have to ask for it: weights that are divided among them are gathered, on rank 0.
        """
        trained = {name: p for name, p in self.modules.named_parameters() if p.requires_grad}
        moments = {name: self.optimizer.state.get(p, {}) for name, p in trained.items()}
        return {
            "step": self.step,
            "parameters": {name: self.ranks.whole(p.detach()) for name, p in trained.items()},
            "optimizer": {
                name: {key: self.ranks.whole(value) for key, value in kept.items()}
                for name, kept in moments.items()
            },
            "sampler": self.sampler.state_dict(),
            "update": self.update.state_dict(),
            "recent": list(self.recent),
            "notes": list(self.log.notes),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from another Training's ``state_dict``, whatever its ranks were. ValueError where
        its sampler drew from other groups."""
        self.sampler.load_state_dict(state["sampler"])
        self.step = state["step"]
        with torch.no_grad():
            for name, parameter in self.modules.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(sharding.held(state["parameters"][name], parameter))
                    self.optimizer.state[parameter] = {
                        key: sharding.held(value, parameter)
                        for key, value in state["optimizer"][name].items()
                    }
        self.update.load_state_dict(state["update"])
        self.recent.extend(state["recent"])
        self.log.notes[:] = state["notes"]


def _warn_of_runaway(step: int, recent: deque[dict], actions: int, log: Notes) -> None:
    """Note once where the log-ratio of undesirable actions, each of so many, runs away; the metric
    ``runaway`` is 1 from that step on, 0 before."""
    ratios = np.array([m["reward_undesirable"] for m in recent])
    ratios = ratios[np.isfinite(ratios)]
    before = len(recent) > 1 and recent[-2]["runaway"] == 1.0
    found = bool(ratios.size) and ratios.mean() < RUNAWAY * actions
    recent[-1]["runaway"] = float(before or found)
    if found and not before:
        log.note(
            step,
            f"The mean log-ratio of undesirable actions has run away to {ratios.mean():.0f} (below "
            f"{RUNAWAY * actions:.0f}) at step {step}: likelihood goes to anything else, and what "
            "was demonstrated loses too. Look at the policy before you use it. Set "
            f"undesirable_floor={-5 * actions} and bc_weight=1 (as hapo_anchored), or use a lower "
            "lr or fewer steps.",
        )


def rate(step: int, total: int, warmup: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0), over its highest: warm-up, then cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
