"""The steps that a policy is trained from, as arrays."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from hapo_ros import labels
from hapo_ros.learning.credit import Windows, label_windows
from hapo_ros.policies.base import Batch

GROUPS = ("expert", "human", "undesirable", "policy")
UNIONS = {"interaction": ("human", "undesirable", "policy"), "all": GROUPS}  # groups of groups
TAKEOVER = "takeover"  # the group of the first human steps of takeovers that are pairs of segments
ROWS = (
    "proprio", "actions", "action_mask", "labels", "sequence", "takeover", "episode", "place"
)  # fmt: skip
STEPS_OF = UNIONS | {TAKEOVER: ("human", "undesirable")}  # steps that a group is made from


@dataclass
class StepTable:
    """N learnable steps in memory, rows of one episode next to each other.

    images: camera -> (N, H, W, 3) uint8. proprio: (N, 11) float32. object_state: (N, S) float32 or
    None. actions: (N, T, D) float32, action_mask: (N, T) bool. labels: (N,) c_t. sequence: (N,)
    step number in its episode. episode: (N,) index into ``episodes``, which holds for each used
    episode its id, bag and review hash, source, policy version, outcome, task and instruction.
    recorded: the labels (T,) of all steps of each of them, kept or not; place: (N,) index into
    these. groups: name -> row numbers, of GROUPS, UNIONS and TAKEOVER. takeover: (N,) as
    ``labels.takeover_windows``. ages: policy version -> optimizer steps from it to the policy that
    is to be optimized, as far as known. counts: steps kept and left out, by reason. skipped: a
    sentence for every bag that was given and is not used.
    """

    images: dict[str, np.ndarray]
    proprio: np.ndarray
    object_state: np.ndarray | None
    actions: np.ndarray
    action_mask: np.ndarray
    labels: np.ndarray
    sequence: np.ndarray
    takeover: np.ndarray
    episode: np.ndarray
    place: np.ndarray
    episodes: list[dict]
    recorded: list[np.ndarray]
    action_names: tuple[str, ...]
    k: int
    counts: dict[str, int]
    skipped: list[str] = field(default_factory=list)
    ages: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def demonstration(self) -> np.ndarray:
        """(N,) bool: of a demonstration."""
        return np.array([e["source"] == "demonstration" for e in self.episodes], bool)[self.episode]

    @property
    def success(self) -> np.ndarray:
        """(N,) bool: of an episode that succeeded."""
        return np.array([e["outcome"] == "success" for e in self.episodes], bool)[self.episode]

    @property
    def group(self) -> np.ndarray:
        """(N,) index into GROUPS."""
        return group_of(self.labels, self.demonstration)

    @property
    def groups(self) -> dict[str, np.ndarray]:
        group = self.group
        groups = {name: np.flatnonzero(group == i) for i, name in enumerate(GROUPS)}
        unions = {
            name: np.sort(np.concatenate([groups[part] for part in parts]))
            for name, parts in UNIONS.items()
        }
        return groups | unions | {TAKEOVER: np.array(sorted(self.pairs), np.int64)}

    @cached_property
    def pairs(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """First human row of a takeover -> rows of its human segment, and of the one before it.

        Takeovers of which the table has one side only are left out.
        """
        rows = np.flatnonzero(self.takeover >= 0)
        pair = np.stack([self.episode[rows], self.takeover[rows]])
        ends = np.flatnonzero((np.diff(pair) != 0).any(0)) + 1
        pairs = {}
        for part in np.split(rows, ends):
            human = part[self.labels[part] == labels.HUMAN]
            before = part[self.labels[part] == labels.UNDESIRABLE]
            if human.size and before.size:
                pairs[int(human[0])] = (human, before)
        return pairs

    @property
    def unpaired(self) -> int:
        """Number of takeovers that are in no pair, as the table has one of their sides only."""
        takeovers = {pair for pair in zip(self.episode, self.takeover, strict=True) if pair[1] >= 0}
        return len(takeovers) - len(self.pairs)

    @property
    def desirable(self) -> np.ndarray:
        """(N,) bool: c_t is 1 or 2."""
        return self.labels != labels.UNDESIRABLE

    @property
    def whole(self) -> np.ndarray:
        """(N,) bool: no action of the chunk is masked."""
        return self.action_mask.all(1)

    def of_whole_chunks(self) -> "StepTable":
        """Only the ``whole`` rows; ``counts`` has the others as ``cut_chunk``."""
        kept, group = self.whole, self.group
        counts = {name: int((kept & (group == i)).sum()) for i, name in enumerate(GROUPS)}
        steps = np.bincount(self.episode[kept], minlength=len(self.episodes))
        return replace(
            self,
            images={name: images[kept] for name, images in self.images.items()},
            object_state=None if self.object_state is None else self.object_state[kept],
            episodes=[{**e, "steps": int(n)} for e, n in zip(self.episodes, steps, strict=True)],
            counts={**self.counts, **counts, "cut_chunk": int((~kept).sum())},
            **{name: getattr(self, name)[kept] for name in ROWS},
        )

    @property
    def following(self) -> np.ndarray:
        """(N,) row of the episode's next step in this table; the row itself at the last one."""
        last = np.r_[np.diff(self.episode) != 0, True]
        return np.arange(len(self)) + ~last

    @property
    def age(self) -> np.ndarray:
        """(N,) of the policy of each row's episode, see ``ages``; NaN where it is not known."""
        ages = [self.ages.get(e["policy_version"], np.nan) for e in self.episodes]
        return np.array(ages, np.float64)[self.episode]

    def windows(self, window: int, min_human: int) -> Windows:
        """``credit.label_windows`` of every row, from whole episodes whatever was left out."""
        made = []
        for i, (episode, c) in enumerate(zip(self.episodes, self.recorded, strict=True)):
            whole = label_windows(
                c,
                int(episode["outcome"] == "success"),
                demonstration=episode["source"] == "demonstration",
                window=window,
                min_human=min_human,
            )
            made.append(whole.at(self.place[self.episode == i]))
        return Windows.joined(made)

    def fingerprint(self) -> str:
        """Hash of what the rows are: episodes by content, steps, labels and action chunks."""
        digest = hashlib.sha256(repr([e["bag_hash"] for e in self.episodes]).encode())
        arrays = (
            self.episode,
            self.sequence,
            self.labels,
            self.actions,
            self.action_mask,
            self.proprio,
        )
        for array in arrays:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(repr({k: v.shape for k, v in sorted(self.images.items())}).encode())
        return digest.hexdigest()

    def batch(self, rows) -> Batch:
        """The rows as tensors."""
        import torch

        rows = np.asarray(rows)
        state = None if self.object_state is None else torch.from_numpy(self.object_state[rows])
        return Batch(
            {name: torch.from_numpy(images[rows]) for name, images in self.images.items()},
            torch.from_numpy(self.proprio[rows]),
            state,
            [self.episodes[e]["instruction"] for e in self.episode[rows]],
            *self.action_tensors(rows),
        )

    def action_tensors(self, rows):
        """(B, T, D) actions and (B, T) mask of the rows, for ``Batch.with_actions``."""
        import torch

        rows = np.asarray(rows)
        return torch.from_numpy(self.actions[rows]), torch.from_numpy(self.action_mask[rows])

    def seen_by(self, policy) -> "StepTable":
        """This table with only what ``policy`` sees; ValueError where it does not fit the policy.

        Arrays are shared, not copied.
        """
        have = {name: images.shape[1:3] for name, images in self.images.items()}
        state = 0 if self.object_state is None else self.object_state.shape[1]
        for what, trained, recorded in (
            ("horizon", policy.horizon, self.actions.shape[1]),
            ("action dimensions", tuple(policy.action_names), self.action_names),
            ("object state", policy.object_state, state if policy.object_state else 0),
            *((f"camera {n}", tuple(s), have.get(n)) for n, s in policy.cameras.items()),
        ):
            if trained != recorded:
                raise ValueError(
                    f"The policy and the episodes do not fit: {what} is {trained} for the policy "
                    f"and {recorded} in the episodes. Nothing was trained. Use episodes recorded "
                    "with this policy's configuration."
                )
        images = {name: self.images[name] for name in policy.cameras}
        return replace(
            self, images=images, object_state=self.object_state if policy.object_state else None
        )

    def names(self, rows) -> str:
        """Episodes and steps of some rows, for messages."""
        by_episode: dict[str, list[int]] = {}
        for row in np.asarray(rows):
            episode_id = self.episodes[self.episode[row]]["episode_id"]
            by_episode.setdefault(episode_id, []).append(int(self.sequence[row]))
        return "; ".join(f"{k} steps {sorted(set(v))}" for k, v in by_episode.items())


def group_of(c, demonstration) -> np.ndarray:
    """(N,) index into GROUPS of labels c (N,); -1 for NONE. demonstration: (N,) bool."""
    c = np.asarray(c)
    group = np.full(len(c), -1)
    group[c == labels.POLICY] = GROUPS.index("policy")
    group[c == labels.HUMAN] = GROUPS.index("human")
    group[c == labels.UNDESIRABLE] = GROUPS.index("undesirable")
    group[(c == labels.POLICY) & demonstration] = GROUPS.index("expert")
    return group
