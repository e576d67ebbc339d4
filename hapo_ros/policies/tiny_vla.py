"""tiny_vla: a vision-language-action policy small enough for two CPU cores.

Images and / or an object-state vector, instruction words and proprioception go through a small
causal transformer that answers with D action tokens for each of T steps.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from hapo_ros.episodes.types import Observation
from hapo_ros.policies.base import Batch, Scored
from hapo_ros.policies.network import ActionTokens
from hapo_ros.policies.small import Normalisation, SmallConfig, SmallPolicy
from hapo_ros.policies.tokenizers import UniformBins, Words


@dataclass(frozen=True)
class TinyVlaConfig(SmallConfig):
    """bins: tokens of each action dimension."""

    bins: int = 256


class TinyVla(SmallPolicy):
    """The policy; see :class:`hapo_ros.policies.base.Policy` for what each member means."""

    family = "tiny_vla"
    Config = TinyVlaConfig

    def __init__(self, config: TinyVlaConfig, normalisation: Normalisation, words: Words):
        super().__init__(config, normalisation, words)
        self.bins = UniformBins(config.bins)
        self.token_names = self.action_names * config.horizon
        self.network = ActionTokens(
            tokens=len(self.token_names), vocabulary=config.bins, **self._observer()
        )

    # Acting

    @torch.inference_mode()
    def act(self, observation: Observation, instruction: str) -> np.ndarray:
        """(T, D) float32 in the action space, the most probable token at each place.

        Raises ValueError where the observation lacks something the policy was trained with.
        """
        tokens, probabilities = self._generate(
            self.forward_observation(self.batch_of(observation, instruction)), 1
        )
        self.confidence = float(probabilities.mean())
        return self._decode(tokens)[0].cpu().numpy()

    # Scoring

    def score(self, batch: Batch, prefix=None, generate: bool = False) -> Scored:
        if prefix is None:
            prefix = self.forward_observation(batch)
        tokens, mask = self._tokens(batch)
        logits = self._teacher_forced(prefix, tokens)
        logps = F.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]
        with torch.no_grad():
            best = self._generate(prefix, len(batch))[0] if generate else logits.argmax(-1)
            recorded = self._normalise(batch.actions.to(self.device)).flatten(1)
            error = (self.bins.decode(best) - recorded).abs() * mask
            l1 = error.sum(1) / mask.sum(1).clamp(min=1)
        return Scored(logps, mask, l1, torch.ones(len(batch), dtype=torch.bool, device=self.device))

    def log_prob(self, batch: Batch):
        scored = self.score(batch)
        return scored.logps, scored.mask

    @torch.no_grad()
    def predict(self, batch: Batch, generate: bool = False, noise=None):
        prefix = self.forward_observation(batch)
        if generate:
            return self._decode(self._generate(prefix, len(batch))[0], noise)
        return self._decode(self._teacher_forced(prefix, self._tokens(batch)[0]).argmax(-1), noise)

    def bc_loss(self, batch: Batch):
        return self.score(batch).bc_loss()

    def response(self, batch: Batch):
        return self.log_prob(batch)[0]

    def logits(self, batch: Batch):
        """(B, N, bins) teacher-forced logits."""
        return self._teacher_forced(self.forward_observation(batch), self._tokens(batch)[0])

    def _teacher_forced(self, prefix, tokens):
        return self.network.slot_logits(prefix, tokens.roll(1, 1))[0]

    def _generate(self, prefix, count: int):
        """Greedy (B, N) tokens and their (B, N) probabilities, one slot after the other."""
        token = torch.zeros(count, 1, dtype=torch.long, device=self.device)
        tokens, probabilities = [], []
        for slot in range(len(self.token_names)):
            logits, prefix = self.network.slot_logits(prefix, token, slot)
            probability, token = logits[:, 0].softmax(-1).max(-1, keepdim=True)
            tokens.append(token)
            probabilities.append(probability)
        return torch.cat(tokens, 1), torch.cat(probabilities, 1)

    def _tokens(self, batch: Batch):
        """(B, N) tokens of the recorded actions and their (B, N) mask."""
        tokens = self.bins.encode(self._normalise(batch.actions.to(self.device))).flatten(1)
        return tokens, batch.action_mask.to(self.device).repeat_interleave(
            len(self.action_names), 1
        )

    def _decode(self, tokens, noise=None):
        """(B, N) tokens -> (B, T, D) actions in the action space; noise: see ``predict``."""
        values = self.bins.decode(tokens).unflatten(1, (self.horizon, -1))
        if noise is not None:
            values = values + noise.to(values)
        return self._denormalise(values)

    def parts(self) -> dict[str, dict]:
        parts = super().parts()
        parts["tokenizer"]["actions"] = "uniform_bins"
        return parts
