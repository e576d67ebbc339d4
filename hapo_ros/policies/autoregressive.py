"""Small policies that act by tokens, each chosen after those before it."""

import numpy as np
import torch
from torch.nn import functional as F

from hapo_ros.episodes.types import Observation
from hapo_ros.policies.base import Batch, Scored
from hapo_ros.policies.network import ActionTokens
from hapo_ros.policies.small import SmallPolicy


class TokenPolicy(SmallPolicy):
    """The part of a policy of action tokens that does not depend on which tokens they are.

    A family calls ``_build`` in ``__init__`` and says in ``_tokens`` which tokens actions are, and
    in ``_values`` which actions tokens are. slots: N, tokens an answer has at most. end: the token
    that ends an answer; -1 where each has N.
    """

    network: ActionTokens
    slots: int
    end = -1

    def _build(self, slots: int, vocabulary: int) -> None:
        self.slots = slots
        self.network = ActionTokens(tokens=slots, vocabulary=vocabulary, **self._observer())

    def _tokens(self, batch: Batch):
        """(B, L) tokens of the recorded actions, L <= N, and (B, L) bool, those that count."""
        raise NotImplementedError

    def _values(self, tokens, there):
        """(B, L) tokens, of which those ``there`` (B, L) belong to the answer -> (B, T, D) actions
        in normalised units, NaN where they are none."""
        raise NotImplementedError

    def _places(self, tokens):
        """(B, L) where in an answer each of these tokens (B, L) stands, by those before it; None:
        in its own slot."""
        return None

    # Acting

    @torch.inference_mode()
    def act(self, observation: Observation, instruction: str) -> np.ndarray:
        """(T, D) float32 in the action space, the most probable token at each place.

        Raises ValueError where the observation lacks something the policy was trained with.
        """
        prefix = self.forward_observation(self.batch_of(observation, instruction))
        tokens, there, probabilities = self._generate(prefix, 1)
        self.confidence = float(probabilities[there].mean())
        return self._denormalise(self._values(tokens, there))[0].cpu().numpy()

    # Scoring

    def score(self, batch: Batch, prefix=None, generate: bool = False) -> Scored:
        if prefix is None:
            prefix = self.forward_observation(batch)
        tokens, mask = self._tokens(batch)
        logits = self._teacher_forced(prefix, tokens)
        logps = F.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]
        logps = logps.masked_fill(~mask, 0.0)  # whatever the longest answer of this batch is
        with torch.no_grad():
            best = self._generate(prefix, len(batch)) if generate else (logits.argmax(-1), mask)
            values = self._values(*best[:2])
            recorded = self._normalise(batch.actions.to(self.device))
            counted = batch.action_mask.to(self.device).repeat_interleave(recorded.shape[2], 1)
            error = (values - recorded).abs().flatten(1) * counted
            l1 = error.sum(1) / counted.sum(1).clamp(min=1)
            decodable = values.isfinite().flatten(1).all(1)
        missing = (0, self.slots - tokens.shape[1])
        return Scored(
            F.pad(logps, missing), F.pad(mask, missing), l1.where(decodable, 0.0), decodable
        )

    def log_prob(self, batch: Batch):
        scored = self.score(batch)
        return scored.logps, scored.mask

    @torch.no_grad()
    def predict(self, batch: Batch, generate: bool = False, noise=None):
        prefix = self.forward_observation(batch)
        if generate:
            tokens, there, _ = self._generate(prefix, len(batch))
        else:
            recorded, there = self._tokens(batch)
            tokens = self._teacher_forced(prefix, recorded).argmax(-1)
        values = self._values(tokens, there)
        return self._denormalise(values if noise is None else values + noise.to(values))

    def bc_loss(self, batch: Batch):
        return self.score(batch).bc_loss()

    def response(self, batch: Batch):
        return self.log_prob(batch)[0]

    def logits(self, batch: Batch):
        """(B, L, vocabulary) teacher-forced logits."""
        return self._teacher_forced(self.forward_observation(batch), self._tokens(batch)[0])

    def _teacher_forced(self, prefix, tokens):
        return self.network.slot_logits(prefix, tokens.roll(1, 1), places=self._places(tokens))[0]

    def _generate(self, prefix, count: int):
        """Greedy tokens (B, L), (B, L) bool which belong to the answer, those up to its ``end``,
        and their (B, L) probabilities, one slot after the other until every answer has ended;
        every slot where those of other processes may not have (``network.Blocks.in_step``)."""
        token = torch.zeros(count, 1, dtype=torch.long, device=self.device)
        going = torch.ones(count, 1, dtype=torch.bool, device=self.device)
        slots = []
        for slot in range(self.slots):
            places = self._places(torch.cat([*(said[0] for said in slots), token], 1))
            logits, prefix = self.network.slot_logits(
                prefix, token, slot, None if places is None else places[:, -1:]
            )
            probability, token = logits[:, 0].softmax(-1).max(-1, keepdim=True)
            slots.append((token, going, probability))
            going = going & (token != self.end)
            if not (going.any() or self.network.blocks.in_step):
                break
        return tuple(torch.cat(column, 1) for column in zip(*slots, strict=True))
