"""flow: a policy trained by flow matching over a chunk of actions, as pi0 and pi0.5 are.

Images and / or an object-state vector, instruction words and proprioception go through a small
transformer; noise that follows the velocity it gives becomes T actions. Time runs from 0, noise, to
1, actions. docs/flow.md has the mathematics.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from hapo_ros.episodes.types import Observation
from hapo_ros.policies.base import Batch, Scored
from hapo_ros.policies.network import ActionFlow
from hapo_ros.policies.small import Normalisation, SmallConfig, SmallPolicy
from hapo_ros.policies.tokenizers import Words

NATS = 10.0
"""Log-likelihood that a unit of flow-matching error stands for: what it is worth where actions
scatter by 2 / (pi NATS) = 0.064 normalised units, docs/flow.md eq. (6)."""


@dataclass(frozen=True)
class FlowConfig(SmallConfig):
    """horizon: T, actions of a chunk in training. executed: the first of them, that are executed
    before the policy is asked again; half of them where not given. integration_steps: of Euler's
    method, from noise to actions."""

    horizon: int = 50
    executed: int | None = None
    integration_steps: int = 10

    def __post_init__(self):
        super().__post_init__()
        if self.executed is None:
            object.__setattr__(self, "executed", (self.horizon + 1) // 2)
        if not 1 <= self.executed <= self.horizon or self.integration_steps < 1:
            raise ValueError(
                f"Of a chunk of {self.horizon} actions {self.executed} cannot be executed, or "
                f"{self.integration_steps} integration steps are too few. Give 1 or more of each, "
                "and no more executed actions than the horizon."
            )


@dataclass
class FlowScored(Scored):
    """logps stand for log-probabilities: minus NATS times the flow-matching error of each number,
    over the chunk's valid actions (docs/flow.md, eq. (4)), so that a log-ratio is per action."""

    def bc_loss(self) -> torch.Tensor:
        return -self.logps.sum(1) / NATS


class Flow(SmallPolicy):
    """The policy; see :class:`hapo_ros.policies.base.Policy` for what each member means."""

    family = "flow"
    Config = FlowConfig
    SIZES = (*SmallPolicy.SIZES, "executed", "integration_steps")
    needs_draws = True

    def __init__(self, config: FlowConfig, normalisation: Normalisation, words: Words):
        super().__init__(config, normalisation, words)
        self.executed, self.ratio_actions = config.executed, 1
        self.token_names = self.action_names * config.horizon
        self.network = ActionFlow(
            actions=config.horizon, size=len(self.action_names), **self._observer()
        )

    # Acting

    @torch.inference_mode()
    def act(self, observation: Observation, instruction: str) -> np.ndarray:
        """(executed, D) float32 in the action space; always from the same noise.

        ``confidence`` is how little that noise matters: 1 minus half the mean difference, in
        normalised units, to the mean of what the policy does from any. Raises ValueError where the
        observation lacks something the policy was trained with.
        """
        prefix = self.forward_observation(self.batch_of(observation, instruction))
        both = torch.cat(self._integrated(prefix, self._start(1)))[:, : self.executed]
        self.confidence = float(1.0 - (both[0] - both[1]).abs().mean() / 2.0)
        return self._denormalise(both[0]).cpu().numpy()

    def _integrated(self, prefix, x):
        """Normalised actions, in [-1, 1], that noise x (B, T, D) becomes by Euler's method; and the
        mean of what any noise becomes, which is where the first velocity points to."""
        steps, mean = self.config.integration_steps, None
        for step in range(steps):
            velocity = self.network.velocity(prefix, x, x.new_full((len(x),), step / steps))
            mean = x + velocity if step == 0 else mean
            x = x + velocity / steps
        return x.clamp(-1.0, 1.0), mean.clamp(-1.0, 1.0)

    # Scoring

    def flow_error(self, batch: Batch, noise, time):
        """(B,) mean over the valid actions, and over S draws, of the squared velocity error
        ||v - u||^2: HABC eq. (1), docs/flow.md eq. (2).

        noise: (B, S, T, D) standard normal. time: (B, S) in [0, 1].
        """
        return self.bc_loss(replace(batch, noise=noise, time=time))

    def bc_loss(self, batch: Batch):
        return self.score(batch).bc_loss()

    def score(self, batch: Batch, prefix=None, generate: bool = False) -> FlowScored:
        """At the batch's draws. l1: of the chunk that a noisy one is on the way to (its actions
        are in it, as in teacher forcing), or, where ``generate``, of the one from this policy's
        own noise."""
        if prefix is None:
            prefix = self.forward_observation(batch)
        error, time, mask = self._velocity_error(batch, prefix)
        count = mask.sum(1).clamp(min=1)
        logps = -NATS * error.square().mean(1) / count[:, None, None]
        with torch.no_grad():
            if generate:
                predicted, _ = self._integrated(prefix, self._start(len(batch)))
                difference = (predicted - self._normalise(batch.actions.to(self.device))).abs()
            else:
                # x + (1 - t) v would be the actions, and x + (1 - t) u is
                difference = ((1.0 - time) * error).abs().mean(1)
            l1 = difference.mean(2).masked_fill(~mask, 0.0).sum(1) / count
        names = len(self.action_names)
        return FlowScored(
            logps.flatten(1),
            mask.repeat_interleave(names, 1),
            l1,
            torch.ones(len(batch), dtype=torch.bool, device=self.device),
        )

    def _velocity_error(self, batch: Batch, prefix):
        """v - u of the batch's actions at its S draws, (B, S, T, D), 0 where there is no action;
        times (B, S, 1, 1) and the mask (B, T)."""
        if batch.noise is None:
            raise ValueError(
                "A flow policy scores actions at draws of noise and time; the batch holds none, "
                "so nothing was scored. Put them in with hapo_ros.learning.draws.Draws."
            )
        mask = batch.action_mask.to(self.device)
        noise, time = batch.noise.to(self.device), batch.time.to(self.device)[..., None, None]
        there = mask[:, None, :, None]
        actions = self._normalise(batch.actions.to(self.device))[:, None]
        noisy = torch.where(there, (1.0 - time) * noise + time * actions, 0.0)
        samples = noise.shape[1]
        velocity = self.network.velocity(
            _repeated(prefix, samples),
            noisy.flatten(0, 1),
            time.flatten(),
            mask.repeat_interleave(samples, 0),
        ).unflatten(0, (-1, samples))
        return torch.where(there, velocity - (actions - noise), 0.0), time, mask

    @torch.no_grad()
    def predict(self, batch: Batch, generate: bool = False, noise=None):
        """The chunk from this policy's own noise, whatever ``generate`` says."""
        chunk, _ = self._integrated(self.forward_observation(batch), self._start(len(batch)))
        return self._denormalise(chunk if noise is None else chunk + noise.to(chunk))

    def response(self, batch: Batch):
        """(B, T D) velocities of this policy's own noise as it sets out."""
        start = self._start(len(batch))
        prefix = self.forward_observation(batch)
        return self.network.velocity(prefix, start, start.new_zeros(len(start))).flatten(1)

    def _start(self, count: int):
        return self.network.start.expand(count, -1, -1)


def _repeated(prefix, times: int):
    """A prefix whose every sample stands ``times`` times, one after the other."""
    if times == 1:
        return prefix
    return [tuple(part.repeat_interleave(times, 0) for part in block) for block in prefix]
