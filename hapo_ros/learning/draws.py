"""The noise and the times that a flow policy's actions are scored at (docs/flow.md).

They are drawn for each row by itself, from a generator of their own, so that they depend neither on
how a batch is split nor on what was drawn before: two policies can be compared at the same ones.
"""

from dataclasses import replace

import numpy as np

from hapo_ros.policies.base import Batch


class Draws:
    """Numbered draws for every row of a table: ``samples`` of noise and time each, the times spread
    evenly over [0, 1]. None for a policy that needs none.

    sets: how many of them a row has where they are to be gone through again and again. The same
    arguments give the same draws.
    """

    def __init__(self, policy, seed: int, samples: int = 1, sets: int = 1):
        self.needed, self.seed, self.samples = policy.needs_draws, seed, samples
        self.sets = sets if self.needed else 1
        self.shape = samples, policy.horizon, len(policy.action_names)

    def __str__(self) -> str:
        return f"{self.seed} {self.shape} {self.sets}" if self.needed else ""

    def chosen(self, step: int, rows) -> np.ndarray:
        """Which of its sets each row, of any shape, is scored at in an optimizer step: a random
        one."""
        rows = np.asarray(rows)
        if self.sets == 1:
            return np.zeros(rows.shape, int)
        sets = [self._rng(0, step, row).integers(self.sets) for row in rows.flat]
        return np.reshape(sets, rows.shape)

    def given(self, batch: Batch, rows, number) -> Batch:
        """The batch of these rows (B,) with the draws of this number: one, or (B,) of them."""
        if not self.needed:
            return batch
        import torch

        numbers = np.broadcast_to(number, len(rows))
        drawn = [self._draw(*of) for of in zip(rows, numbers, strict=True)]
        noise, time = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
        return replace(batch, noise=noise, time=time)

    def _draw(self, row: int, number: int):
        """(S, T, D) noise and (S,) times, one in each S-th of [0, 1], float32."""
        rng = self._rng(1, number, row)
        time = (np.arange(self.samples) + rng.random(self.samples)) / self.samples
        return rng.standard_normal(self.shape, np.float32), time.astype(np.float32)

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 0xF10, *map(int, key)])
