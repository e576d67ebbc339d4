"""Batches of an exact composition (method.md 1.4)."""

import math
import zlib

import numpy as np

RECORD = {
    "expert": "Record demonstrations, in which an expert does the whole task.",
    "human": "Record deployment episodes in which the operator takes over and resolves the task.",
    "undesirable": "Record deployment episodes in which the policy acts and the operator then takes"
    " over; the K steps before a takeover are these.",
    "policy": "Record deployment episodes in which the policy acts.",
    "takeover": "Record deployment episodes in which the policy acts and the operator then takes"
    " over and resolves the task.",
    "interaction": "Record deployment episodes in which the operator takes over where needed.",
    "all": "Record demonstrations, and deployment episodes in which the operator takes over.",
}


def composition(fractions: dict[str, float], batch_size: int) -> dict[str, int]:
    """Samples of each group in a batch: largest remainder, ties to the group named first."""
    shares = {name: fraction * batch_size for name, fraction in fractions.items()}
    counts = {name: math.floor(share + 1e-9) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: round(counts[name] - shares[name], 9))
    for name in by_remainder[: batch_size - sum(counts.values())]:
        counts[name] += 1
    return counts


class BalancedSampler:
    """Endless batches that hold each group in exactly its share, without replacement in a group.

    groups: name -> indices. batch_size: the *effective* batch, over all ranks. fractions: name ->
    share, summing to 1; a group with share 0 or not named is never drawn. Every group is walked
    through in a shuffled order, shuffled anew after each pass. Each rank gets every
    ``world_size``-th sample, so that ranks differ by at most one sample of a group and together
    make up the exact batch. Step n is a pure function of the arguments and n.

    A group with a share but no indices is a ValueError that says what to record, unless
    ``allow_missing``: then its share goes to the others in proportion, and ``notes`` says so.
    """

    def __init__(
        self, groups, batch_size, fractions, seed, rank=0, world_size=1, allow_missing=False
    ):
        if batch_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            raise ValueError(
                f"A batch of {batch_size} cannot be divided among {world_size} ranks (this is rank "
                f"{rank}). Choose a multiple of the number of ranks."
            )
        if any(f < 0 for f in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
            raise ValueError(f"Fractions must be >= 0 and sum to 1, not {dict(fractions)}.")
        self.groups = {name: np.asarray(indices, np.int64) for name, indices in groups.items()}
        self.batch_size, self.seed = int(batch_size), int(seed)
        self.rank, self.world_size = int(rank), int(world_size)
        self.notes: list[str] = []
        self.fractions = self._present(fractions, allow_missing)
        self.counts = composition(self.fractions, self.batch_size)
        never = [name for name, count in self.counts.items() if count == 0]
        if never:
            raise ValueError(
                f"A batch of {self.batch_size} has no room for {', '.join(never)} at the fractions "
                f"{self.fractions}; it would never be seen. Use a larger batch."
            )
        self.step = 0
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def _present(self, fractions: dict, allow_missing: bool) -> dict[str, float]:
        wanted = {name: f for name, f in fractions.items() if f > 0}
        missing = [name for name in wanted if not len(self.groups.get(name, ()))]
        if not missing:
            return wanted
        share = sum(wanted[name] for name in missing)
        if len(missing) == len(wanted) or not allow_missing:
            others = "" if len(missing) == len(wanted) else " Or set allow_missing_group, to give"
            raise ValueError(
                f"There is no step for {' and '.join(missing)} ({share:.0%} of every batch), so "
                f"nothing was trained. {' '.join(RECORD.get(name, '') for name in missing)}"
                f"{others and others + ' the share to the others.'}"
            )
        kept = {name: f / (1 - share) for name, f in wanted.items() if name not in missing}
        parts = ", ".join(f"{name} {f:.1%}" for name, f in kept.items())
        self.notes.append(
            f"There is no step for {' and '.join(missing)}; its share goes to the others: {parts}."
        )
        return kept

    def effective(self, step: int) -> np.ndarray:
        """(batch_size,) indices of the effective batch of a step, group after group."""
        return np.concatenate(
            [self._draw(name, step * count, count) for name, count in self.counts.items()]
        )

    def __iter__(self):
        return self

    def __next__(self) -> np.ndarray:
        """(batch_size / world_size,) int64: this rank's part of the next effective batch."""
        return self.whole()[self.rank :: self.world_size]

    def whole(self) -> np.ndarray:
        """(batch_size,) int64: the next effective batch, of all ranks."""
        indices = self.effective(self.step)
        self.step += 1
        return indices

    def state_dict(self) -> dict:
        return {
            "step": self.step,
            "seed": self.seed,
            "counts": dict(self.counts),
            "sizes": {name: len(self.groups[name]) for name in self.counts},
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where another sampler stopped; ValueError where it drew from other groups."""
        own = self.state_dict()
        if {**state, "step": 0} != {**own, "step": 0}:
            raise ValueError(f"The sampler's state {state} was made by other groups or settings.")
        self.step = state["step"]

    def _draw(self, name: str, start: int, count: int) -> np.ndarray:
        """``count`` places from ``start`` on in the group's endless sequence of shuffles."""
        indices = self.groups[name]
        passes, places = np.divmod(np.arange(start, start + count), len(indices))
        return np.array(
            [indices[self._order(name, int(p))[i]] for p, i in zip(passes, places, strict=True)],
            np.int64,
        )

    def _order(self, name: str, number: int) -> np.ndarray:
        if self._orders.get(name, (None,))[0] != number:
            key = [self.seed, zlib.crc32(name.encode()), number]
            order = np.random.default_rng(key).permutation(len(self.groups[name]))
            self._orders[name] = (number, order)
        return self._orders[name][1]
