"""Recorded episodes as arrays to train from: which steps are learned from, and which are not."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from hapo_ros import labels
from hapo_ros.episodes.types import EpisodeInfo, Step
from hapo_ros.learning.credit import Windows, label_windows
from hapo_ros.policies.base import Batch, proprioception

GROUPS = ("expert", "human", "undesirable", "policy")
UNIONS = {"interaction": ("human", "undesirable", "policy"), "all": GROUPS}  # groups of groups
TAKEOVER = "takeover"  # the group of the first human steps of takeovers that are pairs of segments
STEPS_OF = UNIONS | {TAKEOVER: ("human", "undesirable")}  # steps that a group is made from
LEFT_OUT = ("none", "unresolved", "not_asked_for", "episodes_left_out")  # steps, but for the last


@dataclass
class Episode:
    """One episode as the table takes it.

    steps: every recorded step, in order, labelled. bag_hash: identity of its contents. outcome:
    success | failure | discarded. unresolved: it ended in a correction that did not come to an end.
    excluded: a reviewer took it out.
    """

    info: EpisodeInfo
    steps: list[Step]
    bag_hash: str
    outcome: str = "success"
    unresolved: bool = False
    review_hash: str = ""
    excluded: bool = False


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


def chunks(actions, controller, sequence, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Action chunks (T, horizon, D) and their masks (T, horizon) for one episode's (T, D) actions.

    A chunk at t holds the actions t .. t + horizon - 1; it is masked from the end of the episode, a
    change of ``controller`` (T,) or a gap in ``sequence`` (T,) on (method.md 1.4). Masked actions
    are 0.
    """
    actions, sequence = np.asarray(actions, np.float32), np.asarray(sequence)
    breaks = np.r_[False, (np.diff(controller) != 0) | (np.diff(sequence) != 1)]
    segment = np.cumsum(breaks)
    index = np.arange(len(actions))[:, None] + np.arange(horizon)
    inside = index < len(actions)
    index = np.where(inside, index, 0)
    mask = inside & (segment[index] == segment[:, None])
    return np.where(mask[..., None], actions[index], 0.0).astype(np.float32), mask


def build(
    episodes: Iterable[Episode],
    *,
    k: int = labels.DEFAULT_K,
    horizon: int = 1,
    groups=GROUPS,
    cameras=None,
    object_state: bool = True,
    drop_unresolved: bool = True,
) -> StepTable:
    """The table of some episodes.

    k: the K their labels were made with. groups: whose steps are kept, of GROUPS, UNIONS and
    TAKEOVER; others are only counted.
    cameras: names to keep, all by default. object_state: whether to keep it where recorded.
    drop_unresolved: the last correction of an episode that ended ``unresolved`` is counted and not
    learned from: one that never resolves teaches what does not work (tasks.md). The steps before it
    stay undesirable, and the corrections before it stay.
    NONE steps and discarded or excluded episodes are never used; an episode given twice is used
    once, and ``skipped`` says so. Raises ValueError where nothing is left or episodes do not fit
    together.
    """
    builder = _Builder(k, horizon, groups, cameras, object_state, drop_unresolved)
    for episode in episodes:
        builder.add(episode)
    return builder.table()


def from_readers(readers, *, k: int = labels.DEFAULT_K, **options) -> StepTable:
    """``build`` from what ``hapo_ros.episodes.open_episodes`` gives, one episode at a time."""
    images = options.get("cameras") is None or bool(options["cameras"])
    return build((_read(reader, k, images) for reader in readers), k=k, **options)


def _read(reader, k: int, images: bool) -> Episode:
    excluded = bool(getattr(reader, "excluded", False))
    outcome = reader.result.outcome
    unused = excluded or outcome == "discarded"
    steps = [] if unused else reader.steps(k, images=images)
    return Episode(
        info=reader.info,
        steps=steps,
        bag_hash=reader.bag_hash,
        outcome=outcome,
        unresolved=reader.result.unresolved,
        review_hash=reader.review_hash,
        excluded=excluded,
    )


def last_correction(c) -> np.ndarray:
    """(T,) bool: the human steps of the last human segment of labels c (T,).

    A segment begins after a step that the policy executed; a hold inside it does not split it.
    """
    c = np.asarray(c)
    human = c == labels.HUMAN
    if not human.any():
        return human
    last = np.flatnonzero(human)[-1]
    acted = np.flatnonzero(np.isin(c[:last], (labels.POLICY, labels.UNDESIRABLE)))
    begin = acted[-1] + 1 if acted.size else 0
    return human & (np.arange(len(c)) >= begin)


class _Builder:
    """Collects the rows of one episode after the other."""

    def __init__(self, k, horizon, groups, cameras, object_state, drop_unresolved):
        self.k, self.horizon = k, horizon
        self.groups = {part for name in groups for part in STEPS_OF.get(name, (name,))}
        self.cameras, self.object_state = cameras, object_state
        self.drop_unresolved = drop_unresolved
        self.counts = dict.fromkeys((*GROUPS, *LEFT_OUT), 0)
        self.skipped: list[str] = []
        self.seen: dict[str, str] = {}
        self.episodes: list[dict] = []
        self.recorded: list[np.ndarray] = []
        self.columns: dict[str, list[np.ndarray]] = {}
        self.form: dict | None = None

    def add(self, episode: Episode) -> None:
        info = episode.info
        first = self.seen.setdefault(info.episode_id, episode.bag_hash)
        if info.episode_id in {e["episode_id"] for e in self.episodes} or first != episode.bag_hash:
            same = "" if first == episode.bag_hash else " with other contents; the first one counts"
            self.skipped.append(
                f"Episode {info.episode_id} was given twice{same} and is used once."
            )
            return
        if episode.excluded or episode.outcome == "discarded":
            why = "excluded in review" if episode.excluded else "discarded"
            self.counts["episodes_left_out"] += 1
            self.skipped.append(f"Episode {info.episode_id} was {why} and is not used.")
            return
        rows = self._rows(episode)
        if rows.size:
            self._store(episode, rows)

    def _rows(self, episode: Episode) -> np.ndarray:
        """Numbers of the steps to keep; everything is counted here."""
        c = np.array([step.label for step in episode.steps], np.int64)
        demonstration = episode.info.source == "demonstration"
        group = group_of(c, np.full(len(c), demonstration))
        kept = np.isin(group, [GROUPS.index(name) for name in self.groups])
        self.counts["none"] += int(np.count_nonzero(group < 0))
        unresolved = np.zeros(len(c), bool)
        if self.drop_unresolved and not demonstration and episode.unresolved:
            unresolved = kept & last_correction(c)
            self.counts["unresolved"] += int(unresolved.sum())
        self.counts["not_asked_for"] += int(np.count_nonzero(~kept & (group >= 0)))
        kept &= ~unresolved
        for i, name in enumerate(GROUPS):
            self.counts[name] += int(np.count_nonzero(kept & (group == i)))
        return np.flatnonzero(kept)

    def _store(self, episode: Episode, rows: np.ndarray) -> None:
        info, steps = episode.info, episode.steps
        self._require_same_form(info, steps[0])
        demonstration = info.source == "demonstration"
        sequence = np.array([s.sequence for s in steps])
        # a demonstration's expert is one controller, whatever device moved the arm
        controller = np.array([s.label if demonstration else s.live for s in steps])
        actions, mask = chunks([s.action for s in steps], controller, sequence, self.horizon)
        takeover = labels.takeover_windows([step.label for step in steps], self.k)
        seen = [steps[row].observation for row in rows]
        columns = {
            "proprio": np.stack([proprioception(o) for o in seen]),
            "actions": actions[rows],
            "action_mask": mask[rows],
            "labels": np.array([steps[row].label for row in rows], np.int8),
            "sequence": sequence[rows].astype(np.int32),
            "takeover": takeover[rows].astype(np.int32),
            "episode": np.full(len(rows), len(self.episodes), np.int32),
            "place": rows.astype(np.int32),
        }
        if self.form["object_state"]:
            columns["object_state"] = np.stack([o.object_state for o in seen]).astype(np.float32)
        for name in self.form["cameras"]:
            columns[f"image {name}"] = np.stack([o.images[name] for o in seen])
        for name, column in columns.items():
            if column.dtype == np.float32 and not np.isfinite(column).all():
                raise ValueError(
                    f"Episode {info.episode_id} holds NaN or infinity in its {name}, "
                    "so nothing was trained. Exclude it in review."
                )
            self.columns.setdefault(name, []).append(column)
        self.recorded.append(np.array([s.label for s in steps], np.int8))
        self.episodes.append(
            {
                "episode_id": info.episode_id,
                "bag_hash": episode.bag_hash,
                "review_hash": episode.review_hash,
                "source": info.source,
                "policy_version": info.policy_version,
                "outcome": episode.outcome,
                "task": info.task,
                "instruction": info.instruction,
                "steps": len(rows),
            }
        )

    def _require_same_form(self, info: EpisodeInfo, step: Step) -> None:
        """Cameras, sizes, state and action space are those of the first episode."""
        recorded = step.observation.images
        wanted = sorted(recorded) if self.cameras is None else list(self.cameras)
        missing = [name for name in wanted if name not in recorded]
        if missing:
            raise ValueError(
                f"Episode {info.episode_id} has no images of {', '.join(missing)}, so nothing was "
                f"trained. It has: {', '.join(sorted(recorded)) or 'none'}. Leave it out."
            )
        names = info.action_space.get("names")
        if not names or len(names) != len(step.action):
            raise ValueError(
                f"Episode {info.episode_id} does not name its {len(step.action)} action "
                "dimensions, so the gripper's cannot be told. Record with action_space names."
            )
        state = step.observation.object_state if self.object_state else None
        form = {
            "cameras": {name: recorded[name].shape for name in wanted},
            "object_state": 0 if state is None else len(state),
            "object_state_names": list(info.object_state) if self.object_state else [],
            "action_names": list(names),
            "action_scale": info.action_space.get("scale"),
        }
        self.form = self.form or form
        different = [key for key in form if form[key] != self.form[key]]
        if different:
            key = different[0]
            raise ValueError(
                f"Episode {info.episode_id} does not fit the others ({key}: {form[key]} and not "
                f"{self.form[key]}), so nothing was trained. Train on episodes of one kind."
            )

    def table(self) -> StepTable:
        if not self.episodes:
            raise ValueError(
                f"No step to learn from is left (found: {self.counts}), so nothing was "
                f"trained. {' '.join(self.skipped)}".strip()
            )
        joined = {name: np.concatenate(self.columns.pop(name)) for name in list(self.columns)}
        return StepTable(
            images={
                n.removeprefix("image "): joined.pop(n)
                for n in list(joined)
                if n.startswith("image ")
            },
            object_state=joined.pop("object_state", None),
            episodes=self.episodes,
            recorded=self.recorded,
            action_names=tuple(self.form["action_names"]),
            k=self.k,
            counts=self.counts,
            skipped=self.skipped,
            **joined,
        )
