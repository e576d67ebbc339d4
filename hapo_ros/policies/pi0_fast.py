"""pi0_fast: action chunks as tokens of what often stands together in their spectrum.

The form of pi0-FAST (arXiv 2501.09747) on the small network of ``tiny_vla``: one answer is a chunk,
of as many tokens as it takes and one that ends it. Unlike there, the network is told how many of
the chunk's integers the tokens so far stand for: so small a one, trained from nothing, has much to
do to count them (cloning 60 demonstrations of Lift: 4.2 nats a token after 250 steps, not 4.6).
"""

from dataclasses import dataclass

import numpy as np
import torch

from hapo_ros.policies.autoregressive import TokenPolicy
from hapo_ros.policies.base import Batch
from hapo_ros.policies.fast_tokenizer import FastTokenizer
from hapo_ros.policies.small import Normalisation, Recorded, SmallConfig
from hapo_ros.policies.tokenizers import Words


@dataclass(frozen=True)
class Pi0FastConfig(SmallConfig):
    """scale, vocabulary: see ``FastTokenizer.fit``; both are used there alone."""

    horizon: int = 5
    scale: float = 20.0
    vocabulary: int = 1024


class Pi0Fast(TokenPolicy):
    """The policy; see :class:`hapo_ros.policies.base.Policy` for what each member means."""

    family = "pi0_fast"
    Config = Pi0FastConfig
    whole_chunks = True
    token_names = None

    def __init__(
        self,
        config: Pi0FastConfig,
        normalisation: Normalisation,
        words: Words,
        tokenizer: FastTokenizer,
    ):
        super().__init__(config, normalisation, words)
        shape = (tokenizer.horizon, tokenizer.dimensions)
        if shape != (self.horizon, len(self.action_names)):
            raise ValueError(
                f"The tokenizer is of chunks of {shape[0]} x {shape[1]} and the policy of "
                f"{self.horizon} x {len(self.action_names)}. The files of this policy do not "
                "belong together."
            )
        self.tokenizer, self.end = tokenizer, tokenizer.end
        self.lengths = torch.tensor([*map(len, tokenizer.pieces), 0])
        self._build(slots=tokenizer.longest, vocabulary=len(tokenizer))

    @classmethod
    def _fitted(cls, config: Pi0FastConfig, normalisation: Normalisation, recorded: Recorded):
        low, high = normalisation.action_low, normalisation.action_high
        chunks = recorded.actions[recorded.action_mask.all(1)]
        chunks = 2.0 * (chunks - low) / (high - low) - 1.0
        return (FastTokenizer.fit(chunks, config.scale, config.vocabulary),)

    @classmethod
    def _stored(cls, tokenizer: dict):
        return (FastTokenizer.from_dict(tokenizer["actions"]),)

    def _tokens(self, batch: Batch):
        """Of a chunk that is cut, no token counts."""
        actions = self._normalise(batch.actions.to(self.device))
        rows = self.tokenizer.encode(actions.cpu().numpy())
        whole = batch.action_mask.all(1).tolist()
        tokens = np.full((len(rows), max(map(len, rows))), self.end)
        mask = np.zeros(tokens.shape, bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
            mask[i, : len(row)] = whole[i]
        return tuple(torch.from_numpy(array).to(self.device) for array in (tokens, mask))

    def _values(self, tokens, there):
        chunks = np.full((len(tokens), self.horizon, len(self.action_names)), np.nan, np.float32)
        answers = zip(tokens.tolist(), there.sum(1).tolist(), strict=True)
        for i, (row, length) in enumerate(answers):
            chunk = self.tokenizer.decode(row[:length])
            if chunk is not None:
                chunks[i] = chunk
        return torch.from_numpy(chunks).to(self.device)

    def _places(self, tokens):
        """The number of the chunk's integers before each token."""
        lengths = self.lengths.to(tokens.device)[tokens]
        return (lengths.cumsum(1) - lengths).clamp(max=self.slots - 1)

    def parts(self) -> dict[str, dict]:
        parts = super().parts()
        parts["tokenizer"]["actions"] = self.tokenizer.as_dict()
        return parts
