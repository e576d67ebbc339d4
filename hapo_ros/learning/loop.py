"""The loop that all training is: optimizer steps, their metrics, and what ends them."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hapo_ros.learning.runlog import RunLog

FINAL_STEPS = 50  # over which the provenance's final metrics are averaged
RUNAWAY = -15.0
"""Mean log-ratio of an undesirable action, over FINAL_STEPS steps, below which a run warns; of a
chunk, as many times that as it has actions.

Measured: runs that ended at -27 and -36 (hapo), or -38 (kto), gained nothing that could be shown
and lost likelihood of the demonstrations; a floor of -5 keeps runs far from that. At -15 an action
is 3e-7 times as likely as it was: it is avoided, and what is pushed further goes to anything else.
"""


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

    progress: called after each step with step, total, loss, reward_desirable, reward_undesirable
    (NaN where the method has none) and time_left_s. cancelled: asked before each step. clock:
    monotonic seconds.
    """

    progress: Callable[[dict], None] = lambda report: None
    cancelled: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic

    def stop_if_cancelled(self) -> None:
        if self.cancelled():
            raise Cancelled("Training was cancelled. No checkpoint was written.")


def fit(policy, update, sampler, settings: dict, log, hooks: Hooks) -> dict:
    """The loop: ``settings['steps']`` optimizer steps; returns metrics averaged over the last.

    One step is one effective batch, whatever the micro-batch; the learning rate's horizon counts
    these steps. What learns beside the policy is clipped by a norm of its own. Raises Cancelled
    and Diverged.
    """
    modules = (policy.network, *update.modules)
    parameters = [[p for p in m.parameters() if p.requires_grad] for m in modules]
    optimizer = torch.optim.AdamW(
        [p for group in parameters for p in group],
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(step, settings["steps"], settings["warmup"])
    )
    total, started = settings["steps"], hooks.clock()
    recent: deque[dict] = deque(maxlen=FINAL_STEPS)
    policy.network.train()
    for step in range(1, total + 1):
        hooks.stop_if_cancelled()
        rows = next(sampler)
        optimizer.zero_grad()
        metrics = update.accumulate(rows)
        limit = settings["max_grad_norm"]
        norms = [float(torch.nn.utils.clip_grad_norm_(group, limit)) for group in parameters]
        norm = math.hypot(*norms)
        if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
            raise Diverged(
                f"Loss {metrics['loss']:g} and gradient {norm:g} at step {step}. Training stopped "
                f"and no checkpoint was written. The batch was: {update.table.names(rows)}. Look "
                "at these episodes, or use a lower learning rate."
            )
        metrics |= {"grad_norm": norm, "lr": schedule.get_last_lr()[0]}
        optimizer.step()
        schedule.step()
        recent.append(metrics)
        if "reward_undesirable" in metrics:
            _warn_of_runaway(step, recent, policy.horizon, log)
        log.write(step, metrics)
        hooks.progress(
            {
                "step": step,
                "total": total,
                "loss": metrics["loss"],
                "reward_desirable": metrics.get("reward_desirable", math.nan),
                "reward_undesirable": metrics.get("reward_undesirable", math.nan),
                "time_left_s": (hooks.clock() - started) / step * (total - step),
            }
        )
    policy.network.eval()
    return {key: float(np.mean([m[key] for m in recent])) for key in recent[0]}


def _warn_of_runaway(step: int, recent: deque[dict], horizon: int, log: RunLog) -> None:
    """Note once where the log-ratio of undesirable actions runs away; the metric ``runaway`` is 1
    from that step on, 0 before."""
    ratios = np.array([m["reward_undesirable"] for m in recent])
    ratios = ratios[np.isfinite(ratios)]
    before = len(recent) > 1 and recent[-2]["runaway"] == 1.0
    found = bool(ratios.size) and ratios.mean() < RUNAWAY * horizon
    recent[-1]["runaway"] = float(before or found)
    if found and not before:
        log.note(
            step,
            f"The mean log-ratio of undesirable actions has run away to {ratios.mean():.0f} (below "
            f"{RUNAWAY * horizon:.0f}) at step {step}: likelihood goes to anything else, and what "
            "was demonstrated loses too. Look at the policy before you use it. Set "
            f"undesirable_floor={-5 * horizon} and bc_weight=1 (as hapo_anchored), or use a lower "
            "lr or fewer steps.",
        )


def rate(step: int, total: int, warmup: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0), over its highest: warm-up, then cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
