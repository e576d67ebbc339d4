"""One optimizer step's gradients: an effective batch in micro-batches, for each objective.

Those of the preference objectives are here, those that clone in ``cloning.py``.
"""

import math

import numpy as np
import torch

from hapo_ros.learning import objectives
from hapo_ros.learning.cloning import Cloning, Habc, ImitDagger, ImitRecap, Sirius, Update, split
from hapo_ros.learning.draws import Draws
from hapo_ros.learning.precision import autocast
from hapo_ros.learning.reference import Reference, Second
from hapo_ros.learning.table import StepTable


class Preference(Update):
    """What all preference objectives share: micro-batches, reference, floor and cloning term.

    Of a flow policy, what stands for log-probabilities is scored at the draws that the reference
    was scored at (docs/flow.md).

    One of them says in ``_loss`` what its samples are worth, and in ``_totals`` which sums over
    the effective batch it needs to know before. Sums over the effective batch are over all ranks.
    """

    needs_reference = True

    @staticmethod
    def second(settings: dict) -> Second | None:
        """The second action that this objective wants the reference to have."""

    @staticmethod
    def draws(policy, settings: dict) -> Draws:
        """What the reference is to be scored at, where the policy needs it."""
        return Draws(policy, settings["seed"], settings["flow_samples"], settings["flow_sets"])

    def __init__(self, policy, table: StepTable, settings: dict, reference: Reference):
        super().__init__()
        self.policy, self.table, self.settings = policy, table, settings
        self.reference = reference
        self.device = next(policy.network.parameters()).device
        self.desirable = torch.from_numpy(table.desirable)

    def accumulate(self, batch) -> dict[str, float]:
        """One effective batch: the objective's metrics, ``preference_loss`` and ``bc_loss``."""
        micros = split(self.ranks.part(batch), self.settings["micro_batch"])
        casting = autocast(self.policy, self.settings["precision"])
        with casting:
            totals = self._totals(micros) if len(micros) > 1 else None
        desirable_count = max(1, int(self.desirable[batch].sum()))
        bc_weight = self.settings["bc_weight"]
        parts, cloning = [], []
        for micro in micros:
            with casting:
                loss, metrics, nll = self._loss(micro, totals)
            loss = loss * len(micro) / len(batch)
            if bc_weight:
                nll = nll[self._desirable(micro)].sum() / desirable_count
                loss = loss + bc_weight * nll
                cloning.append(nll.detach())
            loss.backward()
            parts.append({name: value.cpu() for name, value in metrics.items()})
        cloning = float(self.ranks.sum(sum(cloning))) if bc_weight else math.nan
        parts = [part for own in self.ranks.gathered(parts) for part in own]
        metrics = {k: float(v) for k, v in objectives.merge_metrics(parts).items()}
        metrics["preference_loss"] = metrics["loss"]
        metrics["bc_loss"] = cloning
        if bc_weight:
            metrics["loss"] += bc_weight * cloning
        self.updates += 1
        return metrics

    def _totals(self, micros):
        """Sums over the effective batch that ``_loss`` needs where there are several micros."""

    def _loss(self, rows, totals):
        """Mean loss of the rows, its metrics, and (len(rows),) what cloning would make small.

        totals: as ``_totals`` gave; None where these rows are the whole effective batch.
        """
        raise NotImplementedError

    def _desirable(self, rows):
        return self.desirable[rows].to(self.device)

    def _batch(self, rows):
        """The rows (B,) at this step's draws."""
        draws = self.reference.draws
        return draws.given(self.table.batch(rows), rows, draws.chosen(self.updates, rows))

    def _reference(self, name: str, rows):
        """What is kept for these rows, of any shape, at this step's draws."""
        draws = self.reference.draws
        place = np.asarray(rows) * draws.sets + draws.chosen(self.updates, rows)
        return torch.from_numpy(getattr(self.reference, name)[place]).to(self.device)

    def _score_second(self, batch, prefix, rows):
        """Scores of the rows' second actions, on the observation's prefix, with their own tokens
        as the teacher-forced ones (method.md 1.2)."""
        actions = (self.reference.second_actions, self.reference.second_action_mask)
        other = batch.with_actions(*(torch.from_numpy(array[rows]) for array in actions))
        return self.policy.score(other, prefix)


class Kto(Preference):
    """Desirable and undesirable samples against a baseline z0: method.md 1.2, eqs. (1)-(3)."""

    @staticmethod
    def second(settings: dict) -> Second | None:
        return None if settings["no_z0"] else Second("mismatched", settings["seed"])

    def __init__(self, policy, table: StepTable, settings: dict, reference: Reference):
        super().__init__(policy, table, settings, reference)
        self.rejected_mask = self._rejected_mask()

    def _rejected_mask(self):
        """(tokens,) which count for undesirable samples: all but the gripper's (method.md 1.2)."""
        names = self.policy.token_names
        if names is None or self.settings["no_gripper_rule"]:
            return None
        return torch.tensor(["gripper" not in name for name in names], device=self.device)

    @torch.no_grad()
    def _totals(self, micros):
        return self.ranks.sum(sum(self._own_totals(rows, *self._forward(rows)) for rows in micros))

    def _loss(self, rows, totals):
        scored, batch, prefix = self._forward(rows)
        if totals is None:
            totals = self.ranks.sum(self._own_totals(rows, scored, batch, prefix))
        kl, *l1 = totals
        desirable = self._desirable(rows)
        loss, metrics = objectives.kto_loss(
            scored.logps,
            self._reference("logps", rows),
            desirable,
            z0=objectives.baseline(*kl, upper=self.settings["z0_max"]),
            beta=self.settings["beta"],
            weights=self._weights(scored, desirable, *l1),
            rejected_mask=self.rejected_mask,
            mask=scored.mask,
            undesirable_floor=self.settings["undesirable_floor"],
        )
        return loss, metrics, scored.bc_loss()

    def _forward(self, rows):
        """Scores of the rows, with the batch and the prefix they were made from."""
        batch = self._batch(rows)
        prefix = self.policy.forward_observation(batch)
        return self._score(batch, prefix), batch, prefix

    def _score(self, batch, prefix):
        return self.policy.score(batch, prefix)

    @torch.no_grad()
    def _own_totals(self, rows, scored, batch, prefix):
        """(3, 2) what the rows add to the effective batch's sums: of z0 and, twice, of l1."""
        kl = torch.zeros(2, device=self.device)
        if not self.settings["no_z0"]:
            other = self._score_second(batch, prefix, rows)
            reference = self._reference("second_logps", rows)
            kl = torch.stack(objectives.mismatched_kl(other.logps, reference, other.mask))
        l1 = objectives.l1_totals(scored.l1, self._desirable(rows), scored.decodable)
        return torch.stack([kl, *l1])

    def _weights(self, scored, desirable, l1_sum, l1_count):
        """(len(rows),) lambda; None: 1."""


class Hapo(Kto):
    """Kto with adaptive weights: method.md 1.3, eqs. (4)-(6)."""

    def accumulate(self, batch) -> dict[str, float]:
        self._lambdas: list[torch.Tensor] = []
        metrics = super().accumulate(batch)
        if self._lambdas:
            weights, desirable = self.ranks.join(torch.cat(self._lambdas)), self._desirable(batch)
            self.samples = {
                "lambda/desirable": weights[desirable],
                "lambda/undesirable": weights[~desirable],
            }
        return metrics

    def _score(self, batch, prefix):
        generate = self.settings["l1_prediction"] == "generate"
        return self.policy.score(batch, prefix, generate=generate)

    def _weights(self, scored, desirable, l1_sum, l1_count):
        if self.settings["no_reweighting"]:
            return None
        weights = objectives.adaptive_weights(
            scored.l1,
            desirable,
            beta_d=self.settings["beta_d"],
            beta_u=self.settings["beta_u"],
            scope=self.settings["scope"],
            scale=self.settings["scale"],
            decodable=scored.decodable,
            l1_sum=l1_sum,
            l1_count=l1_count,
        )
        self._lambdas.append(weights)
        return weights


class Dpo(Preference):
    """What was recorded rather than what the policy would have done, disturbed: method.md 1.6."""

    @staticmethod
    def second(settings: dict) -> Second:
        return Second("perturbed", settings["seed"], settings["sigma"])

    def __init__(self, policy, table: StepTable, settings: dict, reference: Reference):
        super().__init__(policy, table, settings, reference)
        none = int((reference.mask.any(1) & ~reference.second_mask.any(1)).sum())
        if none:
            self.notes += (
                f"Of {len(table)} steps, {none} have nothing to reject: what the base would do "
                "there decodes to no action. Of them the recorded action alone is learned.",
            )

    def _loss(self, rows, totals):
        batch = self._batch(rows)
        prefix = self.policy.forward_observation(batch)
        chosen = self.policy.score(batch, prefix)
        rejected = self._score_second(batch, prefix, rows)
        loss, metrics = objectives.dpo_loss(
            chosen.logps,
            rejected.logps,
            self._reference("logps", rows),
            self._reference("second_logps", rows),
            beta=self.settings["beta"],
            chosen_mask=chosen.mask,
            rejected_mask=rejected.mask,
            undesirable_floor=self.settings["undesirable_floor"],
        )
        return loss, metrics, chosen.bc_loss()


class Tpo(Preference):
    """Corrections rather than what came before them, in whole segments: method.md 1.6.

    A row stands for the takeover whose first human step it is.
    """

    def _loss(self, rows, totals):
        steps, there = self._segments(rows)
        scored = self.policy.score(self._batch(steps.flatten()))
        logps = scored.logps.unflatten(0, steps.shape)
        reference = self._reference("logps", steps)
        mask = scored.mask.unflatten(0, steps.shape) & there[..., None]
        loss, metrics = objectives.tpo_loss(
            *logps,
            *reference,
            beta=self.settings["beta"],
            chosen_mask=mask[0],
            rejected_mask=mask[1],
            undesirable_floor=self.settings["undesirable_floor"],
        )
        nll = scored.bc_loss().unflatten(0, steps.shape)[0] * there[0]
        return loss, metrics, nll.sum(1) / there[0].sum(1)

    def _segments(self, rows):
        """(2, P, L) rows of the segments, human ones first, and a tensor that says which of them
        are steps: those of a short segment are followed by its first, repeated."""
        pairs = [self.table.pairs[int(row)] for row in rows]
        segments = [pair[side] for side in (0, 1) for pair in pairs]
        longest = max(map(len, segments))
        steps = np.stack([np.r_[s, np.full(longest - len(s), s[0])] for s in segments])
        there = np.arange(longest) < np.array([[len(s)] for s in segments])
        shape = (2, len(rows), longest)
        return steps.reshape(shape), torch.from_numpy(there.reshape(shape)).to(self.device)


OBJECTIVES = {
    "cloning": Cloning,
    "sirius": Sirius,
    "imit_dagger": ImitDagger,
    "imit_recap": ImitRecap,
    "habc": Habc,
    "kto": Kto,
    "hapo": Hapo,
    "dpo": Dpo,
    "tpo": Tpo,
}
