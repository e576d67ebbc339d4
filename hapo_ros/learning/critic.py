"""What judges a policy's steps while it is trained: heads on the policy's own features.

They exist in training only: a checkpoint holds the policy alone.
"""

import torch
from torch import nn


def head(features: int, outputs: int) -> nn.Sequential:
    """From (B, features) to (B, outputs); all 0 before it has learned anything."""
    layers = nn.Sequential(
        nn.LayerNorm(features), nn.Linear(features, features), nn.GELU(),
        nn.Linear(features, outputs),
    )  # fmt: skip
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return layers


class Critic(nn.Module):
    """The two heads of HABC (method.md 2, eq. (2)).

    viability: logit of success from here on. efficiency: minus the steps to success; it is learned
    in units of ``t_max``, the steps that an episode may take, so that a learning rate that suits
    the policy suits it. The same seed gives the same weights.
    """

    def __init__(self, features: int, t_max: int, seed: int):
        super().__init__()
        self.t_max = t_max
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.viability, self.efficiency = head(features, 1), head(features, 1)

    def forward(self, features):
        """(B, W) -> z_v (B,), V_e (B,) in steps."""
        return self.viability(features)[:, 0], self.t_max * self.efficiency(features)[:, 0]


class Returns(nn.Module):
    """The value head of imit_recap: a distribution over what an episode still returns (HABC
    appendix A), ``bins`` values from ``lowest`` to 0. The same seed gives the same weights."""

    def __init__(self, features: int, lowest: float, bins: int, seed: int):
        super().__init__()
        self.register_buffer("returns", torch.linspace(lowest, 0.0, bins))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = head(features, bins)

    def forward(self, features):
        """(B, W) -> (B, bins) logits."""
        return self.head(features)

    def value(self, logits):
        """(B,) mean of the distribution."""
        return (logits.softmax(-1) * self.returns).sum(1)
