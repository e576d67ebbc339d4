"""Behaviour cloning and what weights it: groups, classes, or a critic (method.md 1.6 and 2).

An update's ``accumulate(batch)`` adds the gradients of one effective batch, in micro-batches, and
returns its metrics. Of several ranks each adds those of its part, and all return the same metrics.
Splitting the batch differently, among micro-batches or ranks, gives the same gradients in the end.
"""

import math
from dataclasses import replace

import numpy as np
import torch

from hapo_ros import labels
from hapo_ros.learning import objectives
from hapo_ros.learning.augment import augment, draw_shifts
from hapo_ros.learning.credit import INTERVENTION, NO_WINDOW, POLICY_WINDOW, UNLABELLED, Windows
from hapo_ros.learning.critic import Critic, Returns
from hapo_ros.learning.draws import Draws
from hapo_ros.learning.parallel import Ranks
from hapo_ros.learning.precision import autocast
from hapo_ros.learning.table import GROUPS, StepTable


def split(rows, size: int) -> list[np.ndarray]:
    """Rows in micro-batches of ``size``; the last may be smaller."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


class Update:
    """What the trainer asks of every objective, besides ``accumulate``.

    needs_reference: it takes a Reference. needs_following: it looks at the step after each one,
    whoever made that. modules: trained beside the policy's network and gone after the run. notes:
    sentences that a user should read. ranks: that effective batches are divided among. updates:
    effective batches so far, counted by each objective. samples: one value a sample of the last
    one, by what a histogram of them is called.
    """

    needs_reference = False
    needs_following = False
    modules: tuple[torch.nn.Module, ...] = ()
    notes: tuple[str, ...] = ()
    updates = 0
    ranks = Ranks()

    def __init__(self):
        self.samples: dict[str, torch.Tensor] = {}

    @staticmethod
    def drawn(table: StepTable, settings: dict) -> np.ndarray:
        """(N,) bool: rows that batches are drawn from, by group. ValueError where data is missing
        that the groups do not tell of."""
        return np.ones(len(table), bool)

    def state_dict(self) -> dict:
        """What it remembers from one effective batch to the next, besides ``modules``."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """Go on from another one's ``state_dict``."""
        self.updates = state["updates"]


class Cloning(Update):
    """Behaviour cloning: mean over the batch of ``bc_loss``, each sample by its weight."""

    @staticmethod
    def drawn(table: StepTable, settings: dict) -> np.ndarray:
        return table.desirable if settings.get("no_undesirable") else np.ones(len(table), bool)

    def __init__(self, policy, table: StepTable, settings: dict):
        super().__init__()
        self.policy, self.table, self.settings = policy, table, settings
        self.generator = torch.Generator().manual_seed(settings["seed"])
        self.draws = Draws(policy, settings["seed"])

    def state_dict(self) -> dict:
        return {**super().state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.generator.set_state(state["generator"])

    def accumulate(self, batch) -> dict[str, float]:
        return {"loss": self._clone(batch, torch.ones(len(batch)))}

    def _clone(self, batch, weights) -> float:
        """Gradients of the mean loss of an effective batch, by (len(batch),) weights; that mean."""
        pixels = self.settings["image_shift"]
        shifts = draw_shifts(len(batch), len(self.table.images), pixels, self.generator)
        own = (self.ranks.part(part) for part in (batch, weights, shifts))
        parts = (split(part, self.settings["micro_batch"]) for part in own)
        means = []
        for rows, weight, shift in zip(*parts, strict=True):
            micro = augment(self.table.batch(rows), pixels, shift)
            micro = self.draws.given(micro, rows, self.updates)
            with autocast(self.policy, self.settings["precision"]):
                losses = self.policy.bc_loss(micro)
            loss = (losses * weight.to(losses)).sum() / len(batch)
            loss.backward()
            means.append(loss.detach())
        self.updates += 1
        return float(self.ranks.sum(sum(means)))


class Sirius(Cloning):
    """Behaviour cloning weighted by who acted and what came of it: method.md 1.6."""

    def __init__(self, policy, table: StepTable, settings: dict):
        super().__init__(policy, table, settings)
        counts = [len(table.groups[name]) for name in GROUPS]
        self.weights = objectives.sirius_weights(counts)[torch.from_numpy(table.group)]

    def accumulate(self, batch) -> dict[str, float]:
        self.samples = {"weight": self.weights[batch]}
        return {"loss": self._clone(batch, self.weights[batch])}


class ImitDagger(Cloning):
    """Behaviour cloning of demonstrations and of corrections that are long enough: method.md 2."""

    @staticmethod
    def drawn(table: StepTable, settings: dict) -> np.ndarray:
        return table.windows(settings["window"], settings["min_human"]).kind != NO_WINDOW


def credit(table: StepTable, settings: dict) -> Windows:
    """Every row's window; those that a policy made too long ago are not labelled any more."""
    windows = table.windows(settings["window"], settings["min_human"])
    stale = _stale(table, settings)
    return replace(
        windows,
        outcome=np.where(stale, UNLABELLED, windows.outcome),
        progress=windows.progress & ~stale,
    )


def _stale(table: StepTable, settings: dict) -> np.ndarray:
    """(N,) bool: what a policy did that is known to be older than ``stale_after``."""
    limit = settings["stale_after"]
    by_policy = ~table.demonstration & (table.labels != labels.HUMAN)
    return by_policy & (table.age > (math.inf if limit is None else limit))


class Judged(Cloning):
    """Cloning weighted by a critic that learns from the same batches.

    The critic reads the policy's features, and its loss goes no further than its own heads, unless
    ``critic_backbone``: so that what is served is changed by the weighted cloning alone, and the
    warm-up is plain cloning.
    """

    needs_following = True

    def __init__(self, policy, table: StepTable, settings: dict, critic: torch.nn.Module):
        super().__init__(policy, table, settings)
        self.device = next(policy.network.parameters()).device
        self.critic = critic.to(self.device)
        self.modules = (self.critic,)
        self.following = table.following
        imitable = table.whole if policy.whole_chunks else np.ones(len(table), bool)
        self.imitable = torch.from_numpy(imitable).to(self.device)
        cut = int((~imitable).sum())
        if cut:
            self.notes += (
                f"Of {len(table)} steps, {cut} have a chunk that is cut by a takeover or the end "
                "of the episode: the critic learns from them, the policy does not.",
            )
        stale = int(_stale(table, settings).sum())
        if stale:
            self.notes += (
                f"Not used: {stale} steps of policies that are more than {settings['stale_after']} "
                "optimizer steps old.",
            )
        warmup = settings["critic_warmup"]
        if warmup >= settings["steps"]:
            self.notes += (
                f"All {settings['steps']} steps were the critic's warm-up (critic_warmup {warmup}),"
                " so nothing was weighted by it. Train for more steps.",
            )

    def accumulate(self, batch) -> dict[str, float]:
        """One effective batch: ``loss`` of the weighted cloning, and what ``_judge`` says."""
        weights, metrics = self._judge(batch, warm=self.updates < self.settings["critic_warmup"])
        self.samples = {"weight": weights}
        return {"loss": self._clone(batch, weights), **metrics}

    def _judge(self, batch, warm: bool):
        """The critic's gradients; (len(batch),) weights, while it is warm too; its metrics."""
        raise NotImplementedError

    def _micros(self, batch) -> list[np.ndarray]:
        """This rank's part of an effective batch, in micro-batches."""
        return split(self.ranks.part(batch), self.settings["micro_batch"])

    def _seen(self, rows):
        """The critic's answers to a micro-batch, and without gradient to the steps after it."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.settings["critic_backbone"]):
            features = self._features(rows)
        with torch.no_grad():
            after = self.critic(self._features(self.following[rows]))
        return self.critic(features), after

    def _features(self, rows):
        with autocast(self.policy, self.settings["precision"]):
            return self.policy.features(self.table.batch(rows)).float()


class Habc(Judged):
    """Cloning weighted by viability and efficiency of what the policy did: HABC, method.md 2."""

    @staticmethod
    def drawn(table: StepTable, settings: dict) -> np.ndarray:
        windows = credit(table, settings)
        own = windows.kind == POLICY_WINDOW
        if not (settings["allow_missing_group"] or (windows.outcome == 1).any()):
            raise ValueError(
                "There is no step of the policy in an episode that succeeded without a human, or "
                "after the last correction, so there is nothing to weight and nothing was trained. "
                "Record deployment episodes that succeed so, or set allow_missing_group to clone "
                "demonstrations and corrections alone. (What a policy of more than stale_after "
                "optimizer steps ago did is not counted.)"
            )
        return (windows.kind != NO_WINDOW) & ~(own & (windows.outcome == UNLABELLED))

    def __init__(self, policy, table: StepTable, settings: dict):
        t_max = settings["t_max"] or max(map(len, table.recorded))
        critic = Critic(policy.feature_size, t_max, settings["seed"])
        super().__init__(policy, table, settings, critic)
        windows = credit(table, settings)
        self.kind, self.outcome, self.progress, self.terminal = (
            torch.from_numpy(getattr(windows, name)).to(self.device)
            for name in ("kind", "outcome", "progress", "terminal")
        )
        if not (windows.outcome == 0).any():
            what = "alike" if settings["no_efficiency"] else "by efficiency"
            self.notes += (
                "There is no step of the policy in an episode that failed without a human, or "
                "after the last correction, so viability was learned from successes alone and "
                f"tells nothing: the policy's steps count {what}. Record such failures, too.",
            )

    def _judge(self, batch, warm: bool):
        """Weights of eq. (8). Metrics: both heads' losses, and the mean gate of the policy's and of
        the operator's steps (NaN for none; in the warm-up 1)."""
        values, metrics = self._learn(batch)
        kind, outcome = self.kind[batch], self.outcome[batch]
        gate = torch.ones(len(batch), device=self.device)
        if not warm:
            gate = objectives.habc_gate(
                *values, self.terminal[batch], no_efficiency=self.settings["no_efficiency"]
            )
        weights = objectives.habc_weights(
            gate,
            torch.where(self.imitable[batch], kind, NO_WINDOW),
            outcome,
            reweight_interventions=self.settings["reweight_interventions"],
            demonstrations_in_mean=self.settings["demonstrations_in_mean"],
            eps=self.settings["eps"],
        )
        metrics["gate_policy"] = float(gate[(kind == POLICY_WINDOW) & (outcome == 1)].mean())
        metrics["gate_human"] = float(gate[kind == INTERVENTION].mean())
        return weights, metrics

    def _learn(self, batch):
        """Gradients of eq. (4); z_v and V_e (len(batch),) at each step and the one after it, in the
        order of ``habc_gate``; and both losses."""
        counts = int((self.outcome[batch] != UNLABELLED).sum()), int(self.progress[batch].sum())
        values, losses = [], []
        for micro in self._micros(batch):
            (z_v, v_e), (z_v_next, v_e_next) = self._seen(micro)
            terminal = self.terminal[micro]
            viability, efficiency = objectives.critic_losses(
                z_v,
                v_e,
                objectives.efficiency_target(v_e_next, terminal, self.critic.t_max),
                self.outcome[micro],
                self.progress[micro],
                delta=self.settings["huber_delta"],
                counts=counts,
            )
            (viability if self.settings["no_efficiency"] else viability + efficiency).backward()
            values.append(torch.stack([z_v.detach(), z_v_next, v_e.detach(), v_e_next]))
            losses.append(torch.stack([viability, efficiency]).detach())
        viability, efficiency = self.ranks.sum(sum(losses)).tolist()
        metrics = {"viability_loss": viability, "efficiency_loss": efficiency}
        return self.ranks.join(torch.cat(values, 1)), metrics


class ImitRecap(Judged):
    """Cloning of the steps that turned out better than a value had expected: method.md 2.

    Whoever acted: nothing is made of control authority. A step is rewarded with -1, the last one of
    a success with 0 and of a failure with -``failure_penalty``. Of deployments, a step is kept
    where its temporal difference is above a threshold, which lets the share ``keep`` of held-out
    episodes pass and is chosen anew every ``REFRESH`` steps. Demonstrations are always kept.
    """

    REFRESH = 50
    HELD_OUT_STEPS = 512  # at most so many of them are looked at

    @staticmethod
    def held_out(table: StepTable, settings: dict) -> np.ndarray:
        """(N,) bool: of the episodes that the threshold is chosen on, a seeded draw."""
        deployments = np.unique(table.episode[~table.demonstration])
        if len(deployments) < 2:
            raise ValueError(
                f"Deployment episodes to learn from: {len(deployments)}. Some have to be held out "
                "to choose what is kept, so nothing was trained. Record more of them."
            )
        count = min(max(1, round(settings["held_out"] * len(deployments))), len(deployments) - 1)
        draw = np.random.default_rng([settings["seed"], 0x4E1D]).permutation(deployments)
        return np.isin(table.episode, draw[:count])

    @classmethod
    def drawn(cls, table: StepTable, settings: dict) -> np.ndarray:
        return ~cls.held_out(table, settings) & ~_stale(table, settings)

    def __init__(self, policy, table: StepTable, settings: dict):
        gamma, penalty = settings["gamma"], settings["failure_penalty"]
        longest = max(map(len, table.recorded))
        lowest = -penalty - sum(gamma**step for step in range(longest))
        critic = Returns(policy.feature_size, lowest, settings["value_bins"], settings["seed"])
        super().__init__(policy, table, settings, critic)
        end = self.following == np.arange(len(table))
        last = np.where(table.success, 0.0, -penalty)
        reward = np.where(end, last, -1.0).astype(np.float32)
        self.end, self.reward, self.demonstration = (
            torch.from_numpy(array).to(self.device) for array in (end, reward, table.demonstration)
        )
        held = np.flatnonzero(self.held_out(table, settings))
        draw = np.random.default_rng([settings["seed"], 0x4E1E]).permutation(held)
        self.held = draw[: self.HELD_OUT_STEPS]
        self.threshold = -math.inf

    def state_dict(self) -> dict:
        return {**super().state_dict(), "threshold": self.threshold}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.threshold = state["threshold"]

    def _judge(self, batch, warm: bool):
        """1 for every step that is kept, over their share. Metrics: the value's loss, the threshold
        (NaN in the warm-up, which keeps everything) and the share of deployment steps kept."""
        if not warm and (self.updates - self.settings["critic_warmup"]) % self.REFRESH == 0:
            self.threshold = self._choose()
        residuals, means = [], []
        for micro in self._micros(batch):
            logits, target, residual = self._residuals(micro)
            losses = objectives.value_losses(logits, target, self.critic.returns)
            loss = losses.sum() / len(batch)
            loss.backward()
            means.append(loss.detach())
            residuals.append(residual)
        demonstration = self.demonstration[batch]
        kept = demonstration | (self.ranks.join(torch.cat(residuals)) > self.threshold)
        kept &= self.imitable[batch]
        weights = kept / kept.float().mean().clamp(min=1.0 / len(batch))
        return weights, {
            "value_loss": float(self.ranks.sum(sum(means))),
            "threshold": self.threshold if math.isfinite(self.threshold) else math.nan,
            "kept": float(kept[~demonstration].float().mean()),
        }

    def _residuals(self, rows):
        """Logits, target and, without gradient, temporal difference of a micro-batch."""
        logits, after = self._seen(rows)
        target = objectives.recap_target(
            self.reward[rows], self.critic.value(after), self.end[rows], self.settings["gamma"]
        )
        return logits, target, target - self.critic.value(logits).detach()

    @torch.no_grad()
    def _choose(self) -> float:
        """The threshold that the share ``keep`` of the held-out steps is above; rank 0's. All look
        for it: what they would wait for takes no longer, and the weights may be divided."""
        own = self._quantile()
        return self.ranks.from_first(lambda: own)

    def _quantile(self) -> float:
        micros = split(self.held, self.settings["micro_batch"])
        residuals = torch.cat([self._residuals(micro)[2] for micro in micros])
        return float(residuals.quantile(1.0 - self.settings["keep"]))
