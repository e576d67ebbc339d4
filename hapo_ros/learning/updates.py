"""One optimizer step's gradients: an effective batch in micro-batches, for each objective.

An update's ``accumulate(rows)`` adds the gradients of one effective batch and returns its metrics.
Splitting the batch differently gives the same gradients.
"""

import math

import numpy as np
import torch

from hapo_ros.learning import objectives
from hapo_ros.learning.augment import augment
from hapo_ros.learning.data import StepTable
from hapo_ros.learning.reference import Reference


def split(rows, size: int) -> list[np.ndarray]:
    """Rows in micro-batches of ``size``; the last may be smaller."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


class Cloning:
    """Behaviour cloning: mean over the batch of the mean negative log-likelihood of its tokens."""

    needs_reference = False

    def __init__(self, policy, table: StepTable, settings: dict):
        self.policy, self.table, self.settings = policy, table, settings
        self.generator = torch.Generator().manual_seed(settings["seed"])

    def accumulate(self, rows) -> dict[str, float]:
        total = 0.0
        for micro in split(rows, self.settings["micro_batch"]):
            shift = self.settings["image_shift"]
            batch = augment(self.table.batch(micro), shift, self.generator)
            loss = self.policy.bc_loss(batch).sum() / len(rows)
            loss.backward()
            total += float(loss.detach())
        return {"loss": total}


class Preference:
    """HAPO and its relatives, eqs. (1)-(6), with the options of method.md 1.2 and 1.3."""

    needs_reference = True

    def __init__(self, policy, table: StepTable, settings: dict, reference: Reference):
        self.policy, self.table, self.settings = policy, table, settings
        self.reference = reference
        self.device = next(policy.network.parameters()).device
        self.desirable = torch.from_numpy(table.desirable)
        self.rejected_mask = self._rejected_mask()

    def _rejected_mask(self):
        """(tokens,) which count for undesirable samples: all but the gripper's (method.md 1.2)."""
        names = self.policy.token_names
        if names is None or self.settings["no_gripper_rule"]:
            return None
        return torch.tensor(["gripper" not in name for name in names], device=self.device)

    def accumulate(self, rows) -> dict[str, float]:
        """One effective batch: loss, rewards, margins, z0, weights, and the cloning term."""
        micros = split(rows, self.settings["micro_batch"])
        totals = None
        if len(micros) > 1:
            with torch.no_grad():
                totals = [sum(t) for t in zip(*(self._forward(m)[1] for m in micros), strict=True)]
        desirable_count = max(1, int(self.desirable[rows].sum()))
        parts, cloning = [], 0.0
        for micro in micros:
            scored, own = self._forward(micro, needs_totals=totals is None)
            loss, metrics = self._preference_loss(micro, scored, totals or own)
            loss = loss * len(micro) / len(rows)
            if self.settings["bc_weight"]:
                nll = scored.mean_nll()[self._desirable(micro)].sum() / desirable_count
                loss = loss + self.settings["bc_weight"] * nll
                cloning += float(nll.detach())
            loss.backward()
            parts.append(metrics)
        metrics = {k: float(v) for k, v in objectives.merge_metrics(parts).items()}
        metrics["preference_loss"] = metrics["loss"]
        metrics["bc_loss"] = cloning if self.settings["bc_weight"] else math.nan
        if self.settings["bc_weight"]:
            metrics["loss"] += self.settings["bc_weight"] * cloning
        return metrics

    def _desirable(self, rows):
        return self.desirable[rows].to(self.device)

    def _forward(self, rows, needs_totals: bool = True):
        """Scores of the rows, and what they add to the sums over the effective batch.

        The mismatched actions are scored on the same prefix, without gradient, with their own
        tokens as the teacher-forced ones (method.md 1.2).
        """
        batch = self.table.batch(rows)
        prefix = self.policy.forward_observation(batch)
        generate = self.settings["l1_prediction"] == "generate"
        scored = self.policy.score(batch, prefix, generate=generate)
        if not needs_totals:
            return scored, None
        kl = torch.zeros(2, device=self.device)
        if not self.settings["no_z0"]:
            partners = self.reference.partners[rows]
            with torch.no_grad():
                other = batch.with_actions(*self.table.action_tensors(partners))
                mismatched = self.policy.score(other, prefix)
            kl = torch.stack(
                objectives.mismatched_kl(
                    mismatched.logps, self._reference("kl_logps", rows), mismatched.mask
                )
            )
        l1 = objectives.l1_totals(scored.l1, self._desirable(rows), scored.decodable)
        return scored, (kl, *l1)

    def _reference(self, name: str, rows):
        return torch.from_numpy(getattr(self.reference, name)[rows]).to(self.device)

    def _preference_loss(self, rows, scored, totals):
        settings, desirable = self.settings, self._desirable(rows)
        kl, l1_sum, l1_count = totals
        weights = None
        if not settings["no_reweighting"]:
            weights = objectives.adaptive_weights(
                scored.l1,
                desirable,
                beta_d=settings["beta_d"],
                beta_u=settings["beta_u"],
                scope=settings["scope"],
                scale=settings["scale"],
                decodable=scored.decodable,
                l1_sum=l1_sum,
                l1_count=l1_count,
            )
        return objectives.kto_loss(
            scored.logps,
            self._reference("logps", rows),
            desirable,
            z0=objectives.baseline(*kl, upper=settings["z0_max"]),
            beta=settings["beta"],
            weights=weights,
            rejected_mask=self.rejected_mask,
            mask=scored.mask,
            undesirable_floor=settings["undesirable_floor"],
        )


OBJECTIVES = {"cloning": Cloning, "preference": Preference}
