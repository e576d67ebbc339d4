"""Recorded episodes as arrays to train from: which steps are learned from, and which are not."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hapo_ros import labels
from hapo_ros.episodes.contents import BadEpisode
from hapo_ros.episodes.types import EpisodeInfo, Step
from hapo_ros.learning.table import GROUPS, STEPS_OF, StepTable, group_of
from hapo_ros.policies.base import proprioception

LEFT_OUT = ("none", "unresolved", "not_asked_for", "episodes_left_out")  # steps, but for the last
# What an action of 1 means. Data from elsewhere may not say: then it goes with any.
UNITS = ("control_hz", "linear_scale_m_s", "angular_scale_rad_s", "frame")


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
    episodes: Iterable[Episode | BadEpisode],
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
    once; a BadEpisode stands for one that could not be read. ``skipped`` says so. Raises ValueError
    where nothing is left or episodes do not fit together.
    """
    builder = _Builder(k, horizon, groups, cameras, object_state, drop_unresolved)
    for episode in episodes:
        builder.add(episode)
    return builder.table()


def from_readers(readers, *, k: int = labels.DEFAULT_K, **options) -> StepTable:
    """``build`` from what ``hapo_ros.episodes.open_episodes`` gives, one episode at a time.

    A bag whose images turn out malformed is left out, and ``skipped`` says so.
    """
    images = options.get("cameras") is None or bool(options["cameras"])
    return build((_read(reader, k, images) for reader in readers), k=k, **options)


def _read(reader, k: int, images: bool) -> Episode | BadEpisode:
    unused = reader.excluded or reader.outcome == "discarded"
    try:
        steps = [] if unused else reader.steps(k, images=images)
    except BadEpisode as error:
        return error
    return Episode(
        info=reader.info,
        steps=steps,
        bag_hash=reader.bag_hash,
        outcome=reader.outcome,
        unresolved=reader.result.unresolved,
        review_hash=reader.review_hash,
        excluded=reader.excluded,
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


def _same(one, other) -> bool:
    """Whether two values agree; numbers that were computed in different ways do, too."""
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return math.isclose(one, other, rel_tol=1e-6) if numbers else one == other


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
        self.form: dict = {}  # what all episodes have to agree on

    def add(self, episode: Episode | BadEpisode) -> None:
        if isinstance(episode, BadEpisode):
            self.counts["episodes_left_out"] += 1
            self.skipped.append(f"{episode} It is not used.")
            return
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
        """Cameras, sizes, state and names are those of the first episode, units of the first that
        says them."""
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
        }
        units = {key: info.action_space.get(key) for key in UNITS}
        form |= {key: value for key, value in units.items() if value is not None}
        self.form = form | self.form
        different = [key for key in form if not _same(form[key], self.form[key])]
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
