"""What an episode is: observations, steps, and what is known about the whole.

Used by the nodes, by the synchronous core and by learning; numpy only.
"""

from dataclasses import asdict, dataclass, field, fields

import numpy as np

SOURCES = ("demonstration", "deployment")
MAX_LOST_FRACTION = 0.05  # of what is recorded, if nothing else is asked for
OUTCOMES = ("success", "failure", "discarded")


@dataclass
class Observation:
    """What was observed at one tick.

    images: camera name -> (H, W, 3) uint8, RGB, upright. joint_positions: (J,) float64, arm joints
    in rad, then fingers in m. eef_pose: (7,) float64, x y z in m and the quaternion x y z w, in
    the world frame. object_state: (S,) float64, only for state-based tasks.
    """

    images: dict[str, np.ndarray]
    joint_positions: np.ndarray
    eef_pose: np.ndarray
    object_state: np.ndarray | None = None


@dataclass
class Step:
    """One control step as the reader gives it: what was seen, what was applied, who decided.

    action, requested: (D,) float32 in the action space of the episode; requested is empty on a
    hold. live: 1, 2, 3 as recorded, but NONE where the decision was not applied; label: c_t after
    relabelling and review. stamp_ns: ROS time of the tick.
    """

    sequence: int
    stamp_ns: int
    observation: Observation
    action: np.ndarray
    requested: np.ndarray
    live: int
    label: int
    policy_version: str
    limited: bool
    reason: int
    confidence: float


@dataclass
class EpisodeInfo:
    """What is known when an episode starts; the first ``episode/info`` message of its bag.

    max_lost_fraction: an episode that lost more messages of one topic than this, of its ticks, is
    marked lossy; 1: never, as in bags from before there was a limit.
    """

    episode_id: str
    task: str
    instruction: str
    source: str
    seed: int
    policy_version: str = ""
    cameras: dict[str, list[int]] = field(default_factory=dict)  # name -> [height, width]
    object_state: list[str] = field(default_factory=list)  # names of its numbers
    action_space: dict = field(default_factory=dict)  # names, control_hz, scales, frame
    normalisation: dict = field(default_factory=dict)  # the policy's statistics, by name
    settings: dict = field(default_factory=dict)  # robot, arbiter, operator, disturbance
    versions: dict = field(default_factory=dict)  # software
    max_lost_fraction: float = 1.0

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}, not {self.source!r}")

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "EpisodeInfo":
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})


@dataclass
class EpisodeResult:
    """What is known when an episode ends; the last ``episode/info`` message of its bag.

    outcome: success | failure | discarded. steps: decided ticks. labels: live steps by name.
    unresolved: it ended while the operator was still correcting, so the correction may not be worth
    learning from.
    lost: messages known to be lost, by topic. complete: False where recording was cut short;
    recovered: True where ``hapo recover`` wrote the bag. note: why, as a sentence. lossy: more was
    lost than EpisodeInfo's ``max_lost_fraction``. clock_jumps: [s since the start, s that the wall
    clock was set forward] of each time that it was.
    """

    outcome: str
    steps: int
    labels: dict[str, int]
    lost: dict[str, int] = field(default_factory=dict)
    complete: bool = True
    recovered: bool = False
    unresolved: bool = False
    note: str = ""
    lossy: bool = False
    clock_jumps: list[list[float]] = field(default_factory=list)

    def __post_init__(self):
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}, not {self.outcome!r}")

    def as_dict(self) -> dict:
        return asdict(self)


def in_words(lost: dict[str, int]) -> str:
    """What is lost, by topic, for a sentence; "" if nothing is."""
    return ", ".join(f"{count} of {topic}" for topic, count in lost.items())
