"""tiny_vla: a vision-language-action policy small enough for two CPU cores.

Images and / or an object-state vector, instruction words and proprioception go through a small
causal transformer that answers with D action tokens for each of T steps.
"""

from dataclasses import dataclass

from hapo_ros.policies.autoregressive import TokenPolicy
from hapo_ros.policies.base import Batch
from hapo_ros.policies.small import Normalisation, SmallConfig
from hapo_ros.policies.tokenizers import UniformBins, Words


@dataclass(frozen=True)
class TinyVlaConfig(SmallConfig):
    """bins: tokens of each action dimension."""

    bins: int = 256


class TinyVla(TokenPolicy):
    """The policy; see :class:`hapo_ros.policies.base.Policy` for what each member means."""

    family = "tiny_vla"
    Config = TinyVlaConfig

    def __init__(self, config: TinyVlaConfig, normalisation: Normalisation, words: Words):
        super().__init__(config, normalisation, words)
        self.bins = UniformBins(config.bins)
        self.token_names = self.action_names * config.horizon
        self._build(slots=len(self.token_names), vocabulary=config.bins)

    def _tokens(self, batch: Batch):
        tokens = self.bins.encode(self._normalise(batch.actions.to(self.device))).flatten(1)
        return tokens, batch.action_mask.to(self.device).repeat_interleave(
            len(self.action_names), 1
        )

    def _values(self, tokens, there):
        return self.bins.decode(tokens).unflatten(1, (self.horizon, -1))

    def parts(self) -> dict[str, dict]:
        parts = super().parts()
        parts["tokenizer"]["actions"] = "uniform_bins"
        return parts
