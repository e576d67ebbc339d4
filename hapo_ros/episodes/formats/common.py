"""What every format shares: an episode between two forms, its steps as columns, what is refused."""

import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hapo_ros.arbitration.types import Reason
from hapo_ros.episodes import reviews
from hapo_ros.episodes.contents import MAX_STEPS, checked_info, checked_result
from hapo_ros.episodes.types import EpisodeInfo, EpisodeResult, Observation, Step
from hapo_ros.episodes.writer import EPISODE_ID
from hapo_ros.labels import HUMAN, NONE, POLICY, UNDESIRABLE

REASONS = {
    "missing": "There is nothing here.",
    "format": "This is not the format it was said to be.",
    "damaged": "The file is damaged or ends early.",
    "malformed": "It holds what the format does not allow.",
    "too large": "It says that it is larger than any episode.",
    "elsewhere": "It refers to data outside itself, which is never followed.",
    "name": "A name in it is no safe name of an episode.",
    "no observations": "It holds no observations.",
    "taken": "An episode of that name is there already; nothing was overwritten.",
}
MAX_BYTES = 32 << 30  # of one array of an episode
MAX_SIDE = 8192  # pixels of an image
# What the operator would say. MimicGen's are from the APO authors' code
# (GeWu-Lab/Action-Preference-Optimization, dataset/balance_apo_dataset.py).
INSTRUCTIONS = {
    "lift": "lift the cube",
    "coffee": "make coffee",
    "stack": "stack the red block on top of the green block",
    "stackthree": "stack the blocks in the order of blue, red, and green from top to bottom",
    "threading": "insert the needle into the needle hole",
    "square": "slide the square block onto the wooden stick",
    "nutassemblysquare": "slide the square block onto the wooden stick",
    "threepieceassembly": "stack the three pieces",
}
OSC_POSE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
OSC_POSE_SCALES = (0.05, 0.5)  # m and rad that an action of 1 moves the goal, a step


class BadSource(Exception):
    """Data that cannot be imported. name: one of ``REASONS``; the text says which data and why."""

    def __init__(self, name: str, where, detail: str = ""):
        super().__init__(f"{where}: {REASONS[name]} {detail}".rstrip())
        self.name = name


class NotInstalled(Exception):
    """A library of an extra is missing; the text says how to get it."""


def need(module: str, extra: str = "formats"):
    """The imported module of an optional requirement. Raises :class:`NotInstalled`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise NotInstalled(
            f"{module.split('.')[0]} is not installed, so nothing was read or written. Install it: "
            f"pip install 'hapo_ros[{extra}]', or in a checkout: pip install -r "
            f"requirements/{extra}.txt"
        ) from error


@dataclass(frozen=True)
class Options:
    """What a source does not say by itself, from the command line; empty: as the source has it.

    task, instruction, source: of EpisodeInfo; outcome: of EpisodeResult. robot: name or file of a
    robot whose topics a plain bag holds. k: K of exported labels. video: LeRobot images as video,
    which loses some.
    """

    task: str = ""
    instruction: str = ""
    source: str = ""
    outcome: str = ""
    robot: str = ""
    k: int = 10
    video: bool = False


@dataclass
class Foreign:
    """An episode that came from elsewhere, as ``bags.write_bag`` takes it.

    timeline: (S,) live labels of every control step, those without an observation included; None:
    the steps are all there are. result: as it was recorded; None: of ``outcome``, counted anew.
    review: edits, as in ``reviews.Review``.
    """

    info: EpisodeInfo
    steps: list[Step]
    outcome: str = "success"
    note: str = ""
    timeline: np.ndarray | None = None
    result: EpisodeResult | None = None
    review: tuple[dict, ...] = ()


class Found(NamedTuple):
    """An episode of a source. load reads it; raises :class:`BadSource`."""

    name: str
    load: Callable[[], Foreign]


@dataclass
class Summary:
    """What was brought from one form into another. skipped: a sentence for each that was not."""

    output: Path
    episodes: int = 0
    steps: int = 0
    skipped: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)  # names of REASONS, of what was skipped


def json_of(text) -> dict:
    """The JSON object in a text. Raises ValueError where there is none."""
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    return data


def instruction_for(task: str, options: Options) -> str:
    """The instruction asked for, the task's own where it is known, or the task's name in words."""
    if options.instruction:
        return options.instruction
    name = re.sub(r"_D\d+$", "", task, flags=re.IGNORECASE)
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name).lower()
    return INSTRUCTIONS.get(words.replace(" ", ""), words)


def outcome_of(source: str, options: Options) -> tuple[str, str]:
    """(outcome, note) where the data do not say it: a demonstration is taken for a success."""
    if options.outcome or source == "demonstration":
        return options.outcome or "success", ""
    return "failure", "The source does not say how it ended; --outcome does."


def safe_id(*parts: str) -> str:
    """An episode's id out of names; raises :class:`BadSource` where one of them is not safe."""
    for part in parts:
        if not EPISODE_ID.fullmatch(part):
            raise BadSource("name", repr(part))
    return "_".join(parts)[:100]


def stem_of(path: Path) -> str:
    """A file's name without its ending, as part of an id: other characters become ``_``."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem).strip("_-") or "episode"


def osc_pose_space(control_hz: float, scales=OSC_POSE_SCALES) -> dict:
    """The action space of robosuite's OSC_POSE deltas, as the simulation's episodes have it."""
    return {
        "names": list(OSC_POSE_NAMES),
        "control_hz": control_hz,
        "linear_scale_m_s": scales[0] * control_hz,
        "angular_scale_rad_s": scales[1] * control_hz,
        "gripper": "-1 open, 1 closed",
        "frame": "world",
        "controller": "robosuite OSC_POSE, deltas",
    }


def nowhere(joints: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(joint positions, pose) where a source has none: constants, from which nothing is learned."""
    return np.zeros(joints), np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])


def foreign_steps(observations, actions, live, period_ns: int, start_ns: int = 0) -> list[Step]:
    """Steps of a source without our columns: one every period, from 0 on.

    observations: T of Observation. actions: (T, D), finite. live: (T,) of POLICY, HUMAN, NONE. What
    was requested is what was executed. Raises ValueError for numbers that are not finite.
    """
    actions = np.asarray(actions)
    if actions.ndim != 2 or not len(actions) or len(actions) > MAX_STEPS:
        raise ValueError(f"its actions have shape {actions.shape}")
    if not np.isfinite(actions).all():
        raise ValueError("its actions are not all finite")
    because = {POLICY: Reason.POLICY_ACTS, HUMAN: Reason.HUMAN_ACTS, NONE: Reason.NO_EPISODE}
    actions = actions.astype(np.float32)
    return [
        Step(
            sequence=t,
            stamp_ns=start_ns + t * period_ns,
            observation=observations[t],
            action=actions[t],
            requested=actions[t] if live[t] != NONE else actions[t, :0],
            live=int(live[t]),
            label=int(live[t]),
            policy_version="",
            limited=False,
            reason=int(because[int(live[t])]),
            confidence=float("nan"),
        )
        for t in range(len(actions))
    ]


# Steps as columns, and an episode's own words as JSON: in every format that can hold more columns.

COLUMNS = ("sequence", "stamp_ns", "c_t", "c_t_live", "intervention", "requested")
COLUMNS += ("limited", "reason", "confidence", "policy_version")


def columns(steps: list[Step]) -> dict[str, np.ndarray]:
    """(T, ...) of what a Step has besides observation and action; ``about`` names the versions.

    requested: (T, D) float32, a row of NaN where it is empty. c_t: the final label; c_t_live: as
    decided. intervention: the operator acted. policy_version: index into ``about``'s list.
    """
    versions = sorted({step.policy_version for step in steps})
    nothing = np.full(len(steps[0].action), np.nan, np.float32)
    return {
        "sequence": np.array([s.sequence for s in steps], np.int64),
        "stamp_ns": np.array([s.stamp_ns for s in steps], np.int64),
        "c_t": np.array([s.label for s in steps], np.int64),
        "c_t_live": np.array([s.live for s in steps], np.int64),
        "intervention": np.array([s.live == HUMAN for s in steps], bool),
        "requested": np.stack([s.requested if s.requested.size else nothing for s in steps]),
        "limited": np.array([s.limited for s in steps], bool),
        "reason": np.array([s.reason for s in steps], np.int64),
        "confidence": np.array([s.confidence for s in steps], np.float32),
        "policy_version": np.array([versions.index(s.policy_version) for s in steps], np.int64),
    }


def about(reader, steps: list[Step], k: int) -> str:
    """JSON of what an episode is, beside its columns; :func:`from_about` reads it."""
    return json.dumps(
        {
            "info": reader.info.as_dict(),
            "result": reader.result.as_dict(),
            "timeline": reader.timeline.tolist(),
            "policy_versions": sorted({step.policy_version for step in steps}),
            "k": k,
            "bag_hash": reader.bag_hash,
            "review": list(reader.review.edits),
        },
        ensure_ascii=False,
    )


def from_about(text, arrays: dict[str, np.ndarray], observations, actions) -> Foreign:
    """The episode of :func:`about` and :func:`columns`. Raises ValueError where they are not."""
    data = json_of(text)
    info, result = checked_info(data), checked_result(data)
    actions = np.asarray(actions, np.float32)
    length = len(actions)
    missing = [name for name in COLUMNS if len(arrays.get(name, ())) != length]
    if missing or actions.ndim != 2 or not length:
        raise ValueError(f"its steps lack {', '.join(missing) or 'actions'}")
    timeline = np.asarray(data.get("timeline"))
    sequence, live = arrays["sequence"], arrays["c_t_live"]
    fits = timeline.ndim == 1 and timeline.dtype.kind == "i" and timeline.size <= MAX_STEPS
    fits = fits and (np.diff(sequence) > 0).all() and sequence[0] >= 0
    if not fits or sequence[-1] >= timeline.size or (timeline[sequence] != live).any():
        raise ValueError("its steps and its timeline of labels do not agree")
    if not np.isin(timeline, (POLICY, HUMAN, NONE)).all() or not np.isfinite(actions).all():
        raise ValueError("it has a label or an action that is none")
    if not np.isin(arrays["c_t"], (UNDESIRABLE, POLICY, HUMAN, NONE)).all():
        raise ValueError("it has a label that is none of 0, 1, 2, 3")
    versions = data.get("policy_versions")
    index = arrays["policy_version"]
    if not isinstance(versions, list) or not ((index >= 0) & (index < len(versions))).all():
        raise ValueError("its policy versions are not named")
    requested = np.asarray(arrays["requested"], np.float32).reshape(actions.shape)
    steps = [
        Step(
            sequence=int(sequence[t]),
            stamp_ns=int(arrays["stamp_ns"][t]),
            observation=observations[t],
            action=actions[t],
            requested=requested[t, :0] if np.isnan(requested[t]).all() else requested[t],
            live=int(live[t]),
            label=int(arrays["c_t"][t]),
            policy_version=str(versions[index[t]]),
            limited=bool(arrays["limited"][t]),
            reason=int(Reason(int(arrays["reason"][t]))),
            confidence=float(arrays["confidence"][t]),
        )
        for t in range(length)
    ]
    review = data.get("review") or []
    try:
        reviews.check(review, timeline.size)
    except reviews.ReviewError as error:
        raise ValueError(f"its review: {error}") from error
    return Foreign(info, steps, result.outcome, result.note, timeline, result, tuple(review))


def pictures(array, camera: str) -> np.ndarray:
    """(T, H, W, 3) uint8, checked."""
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
        raise ValueError(
            f"its images of {camera} are {array.shape} {array.dtype}, not (T, H, W, 3) uint8"
        )
    if 0 in array.shape or max(array.shape[1:3]) > MAX_SIDE:
        raise ValueError(f"its images of {camera} have a size of {array.shape[1:3]} pixels")
    return array


def observation(images, joints, pose, state) -> Observation:
    """An Observation, its numbers as float64."""
    return Observation(
        images=images,
        joint_positions=np.asarray(joints, np.float64),
        eef_pose=np.asarray(pose, np.float64),
        object_state=None if state is None else np.asarray(state, np.float64),
    )
