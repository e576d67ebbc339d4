"""The arbiter's vocabulary: what goes in, what comes out, and why. numpy only."""

import math
from dataclasses import dataclass, field
from enum import Enum, IntEnum

import numpy as np


def finite(values, n: int) -> bool:
    """Whether ``values`` are n finite numbers in a row."""
    values = np.asarray(values)
    return values.shape == (n,) and all(map(math.isfinite, values.tolist()))


class Authority(IntEnum):
    """Who commands the robot; the constants of AuthorityStatus.msg."""

    POLICY = 1
    HUMAN = 2
    HOLD = 3
    FAULT = 4


class Applied(IntEnum):
    """What became of a decision on the robot side; the constants of ObservationTick.msg."""

    NO_DECISION = 0
    APPLIED = 1
    LATE_HELD = 2
    REFUSED = 3


@dataclass(frozen=True)
class Tick:
    """One ObservationTick, field by field, without the topics that belong to it.

    stamp_ns: ROS time. applied_action: at the start of an episode, the hold that the robot stands
    in (its last number is the gripper command). authority, epoch and policy_due echo the last
    Decision the robot side knows of; at the start of an episode authority is HOLD and policy_due is
    true. eef_pose: (7,) of the hand, x y z (m) and quaternion x y z w; a message of its own that
    belongs to the tick, None where it is unknown.
    """

    episode_id: str
    sequence: int
    stamp_ns: int
    applied_sequence: int = -1
    applied: Applied = Applied.NO_DECISION
    applied_action: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    authority: Authority = Authority.HOLD
    epoch: int = 0
    policy_due: bool = True
    success: bool = False
    eef_pose: np.ndarray | None = None


@dataclass(frozen=True)
class PolicyCommand:
    """A policy's answer: actions (T, D) float32 from tick ``sequence`` on, made under ``epoch``.

    confidence: mean probability of the chosen action tokens, NaN where unknown.
    """

    episode_id: str
    sequence: int
    epoch: int
    version: str
    actions: np.ndarray
    confidence: float = float("nan")
    inference_s: float = 0.0


@dataclass(frozen=True)
class HumanSample:
    """One report of the operator's device (Joy and TwistStamped of one stamp).

    axes: (6,) float32 cap deflection, -1..1: x y z roll pitch yaw. buttons: ints, 0 or 1.
    twist: (6,) float64 motion asked for, m/s and rad/s. received_s: steady receipt clock.
    stamp_ns: sender's ROS time. One that could not be read has axes and twist of (0,).
    """

    axes: np.ndarray
    buttons: tuple[int, ...]
    twist: np.ndarray
    received_s: float
    stamp_ns: int

    @property
    def executable(self) -> bool:
        """Whether axes and twist are (6,) each and finite; anything else is refused whole."""
        return finite(self.axes, 6) and finite(self.twist, 6)


@dataclass(frozen=True)
class Decision:
    """The arbiter's answer to one tick; becomes one ExecutedAction.

    action: (D,) float32 to execute; requested: (D,) float32 before limits, or (0,) on a hold.
    label: live c_t. policy_due: the policy has to answer the next tick. refusals: of this step's
    requests, for the log; they do not travel.
    """

    episode_id: str
    sequence: int
    action: np.ndarray
    requested: np.ndarray
    label: int
    authority: Authority
    reason: "Reason"
    epoch: int
    policy_version: str = ""
    limited: bool = False
    policy_due: bool = False
    refusals: tuple["Refusal", ...] = ()


class Event(IntEnum):
    """Requests and facts that are not device reports; consumed in order, once a tick."""

    START_DEPLOYMENT = 1
    START_DEMONSTRATION = 2
    END_EPISODE = 3
    RESUME = 4  # hand the arm back to the policy, or leave a hold
    HOLD = 5
    ESTOP = 6
    CLEAR_FAULT = 7
    SECOND_ARBITER = 8
    TIME_RESET = 9
    RECORDING_ENDED = 10  # by a fault, while the episode runs
    JOIN = 11  # after a start: the episode ran before this arbiter did
    JOIN_IN_FAULT = 12  # at its start: the arbiter before this one had latched a fault


class Reason(IntEnum):
    """Why the authority, or a hold, is what it is. ``sentence`` is for people."""

    NO_EPISODE = 0
    POLICY_ACTS = 1
    CAP_MOVED = 2
    BUTTON_TAKEOVER = 3
    HUMAN_ACTS = 4
    HANDED_BACK = 5
    LET_GO = 6
    AWAITING_HUMAN = 7
    OPERATOR_HOLD = 8
    POLICY_LATE = 9
    POLICY_INVALID = 10
    POLICY_GONE = 11
    DEVICE_LOST = 12
    DEVICE_LOST_POLICY = 13
    DEVICE_INVALID = 14
    TICKS_LOST = 15
    ESTOPPED = 16
    SECOND_ARBITER_SEEN = 17
    TIME_WAS_RESET = 18
    RESUMED = 19
    FAULT_CLEARED = 20
    DEADMAN_RELEASED = 21
    RESTARTED = 22
    POSE_UNKNOWN = 23
    RECORDING_ENDED = 24
    RESTARTED_IN_FAULT = 25

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]


_SENTENCES = {
    Reason.NO_EPISODE: "No episode is running. Holding. Start one.",
    Reason.POLICY_ACTS: "The policy has control.",
    Reason.CAP_MOVED: "The operator moved the cap and has control.",
    Reason.BUTTON_TAKEOVER: "The operator pressed the takeover button and has control.",
    Reason.HUMAN_ACTS: "The operator has control.",
    Reason.HANDED_BACK: "The operator handed back. Holding until the policy has looked anew.",
    Reason.LET_GO: "The operator let go. Holding until the policy has looked anew.",
    Reason.AWAITING_HUMAN: "Waiting for the operator to take the arm. Move the cap.",
    Reason.OPERATOR_HOLD: "The operator asked for a hold. Press resume to go on.",
    Reason.POLICY_LATE: "The policy missed its deadline. Holding this step.",
    Reason.POLICY_INVALID: "The policy's action was not executable and was refused. Holding this "
    "step.",
    Reason.POLICY_GONE: "The policy failed too often in a row. Holding. Mend it, or take over; "
    "then press resume.",
    Reason.DEVICE_LOST: "The operator's device is silent while it has control. Holding. Reconnect "
    "it, let go of the cap, press resume.",
    Reason.DEVICE_LOST_POLICY: "The operator's device is silent, so no one could take over. "
    "Holding. Reconnect it, let go of the cap, press resume.",
    Reason.DEVICE_INVALID: "The operator's device sent numbers that are not executable. Holding "
    "this step. Check the device.",
    Reason.TICKS_LOST: "No observation arrives. Holding. Check the cameras and the robot side.",
    Reason.ESTOPPED: "Emergency stop. Release it, let go of the cap, clear the fault.",
    Reason.SECOND_ARBITER_SEEN: "Someone else publishes commands on the same topic. Holding. Stop "
    "the other publisher, let go of the cap, clear the fault.",
    Reason.TIME_WAS_RESET: "Time was reset. Holding. Start a new episode.",
    Reason.RESUMED: "Resumed. Holding until the policy has looked anew.",
    Reason.DEADMAN_RELEASED: "The operator let go of the deadman. Holding. Move the cap, or press "
    "resume.",
    Reason.RESTARTED: "The arbiter was restarted while an episode runs. Holding. Press resume, or "
    "take over.",
    Reason.POSE_UNKNOWN: "The pose of the hand is unknown, so the workspace or the tool's frame "
    "cannot be kept. Holding this step. Check the robot's pose.",
    Reason.RECORDING_ENDED: "The recording ended by a fault, so the policy goes no further. "
    "Holding. The recorder's log says why. A human may move the arm; start another episode.",
    Reason.RESTARTED_IN_FAULT: "The arbiter was restarted in a fault. Holding. See to its cause, "
    "let go of the cap, clear the fault.",
    Reason.FAULT_CLEARED: "The fault was cleared. Holding. Press resume to go on.",
}


class Refusal(Enum):
    """Why a request is not carried out; the value is for people."""

    START_IN_FAULT = (
        "The policy does not begin: a fault is latched. See to its cause, let go of the cap, clear "
        "the fault, then resume."
    )
    RESUME_IN_FAULT = (
        "Not resumed: a fault is latched. See to its cause, let go of the cap, clear the fault, "
        "then resume."
    )
    RESUME_WITHOUT_DEVICE = (
        "Not resumed: the operator's device was lost and has not been seen at rest since. "
        "Reconnect it, let go of the cap, then resume."
    )
    CLEAR_WITHOUT_DEVICE = (
        "The fault is not cleared: the operator's device has to report, with its cap at rest. "
        "Reconnect it, let go of the cap, then clear the fault."
    )


OPEN_M = 1000.0  # no infinity: JSON has none, and a bag says what its arbiter was told


@dataclass(frozen=True)
class ArbiterConfig:
    """Parameters of arbitration. Ranges are checked in ``__post_init__``; see config/.

    The limits are ``limits.Limits``'s; those of a step are on the length of its vector. The
    workspace is a box in the frame of the hand's pose; a side at ``OPEN_M`` or beyond is open. What
    ``operator_frame`` means: the twist is one of the robot's base, of the tool (the hand as it
    stands), or of a camera, whose ``camera_rotation`` (quaternion x y z w) says how its frame
    (x into the image, y left, z up) stands in the base.
    """

    linear_scale_m_s: float = 1.0  # speed of action 1.0 on x, y, z
    angular_scale_rad_s: float = 10.0  # rate of action 1.0 on roll, pitch, yaw
    control_period_s: float = 0.05
    max_speed_m_s: tuple[float, ...] = (1.0, 1.0, 1.0)  # of x, y, z
    max_rate_rad_s: tuple[float, ...] = (10.0, 10.0, 10.0)  # of roll, pitch, yaw
    max_step_m: float = 0.1
    max_step_rad: float = 1.0
    max_acceleration_m_s2: float = 0.0  # 0: not limited
    max_acceleration_rad_s2: float = 0.0
    workspace_min_m: tuple[float, ...] = (-OPEN_M,) * 3
    workspace_max_m: tuple[float, ...] = (OPEN_M,) * 3
    operator_frame: str = "base"  # base | tool | camera
    camera_rotation: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0)
    gripper_mode: str = "toggle"  # toggle | hold: closed as long as the button is down
    takeover_threshold: float = 0.15  # deflection that takes over
    release_threshold: float = 0.08  # below it the cap is neutral
    handback: str = "button"  # button | release | deadman
    release_after_s: float = 0.5  # with handback release or deadman
    min_dwell_s: float = 0.25  # least time between takeover and hand-back by release
    gripper_button: int = 0
    authority_button: int = 1
    device_timeout_s: float = 0.2
    on_device_lost: str = "hold"  # hold | continue, while the policy has control
    max_policy_failures: int = 5  # late or refused in a row before HOLD
    lock_step: bool = False  # silence of the device never makes a hold

    def __post_init__(self):
        def check(ok, text):
            if not ok:
                raise ValueError(f"arbiter configuration: {text}")

        for name in (
            "linear_scale_m_s",
            "angular_scale_rad_s",
            "control_period_s",
            "max_step_m",
            "max_step_rad",
            "release_after_s",
            "device_timeout_s",
        ):
            value = getattr(self, name)
            check(np.isfinite(value) and value > 0, f"{name} must be above 0, not {value}")
        for name in ("max_speed_m_s", "max_rate_rad_s"):
            value = _numbers(self, name, 3)
            check(np.all(np.isfinite(value) & (value > 0)), f"{name} must be above 0, not {value}")
        for name in ("max_acceleration_m_s2", "max_acceleration_rad_s2"):
            value = getattr(self, name)
            check(np.isfinite(value) and value >= 0, f"{name} must be at least 0, not {value}")
        low, high = (_numbers(self, f"workspace_{end}_m", 3) for end in ("min", "max"))
        check(bool(np.all(low < high)), f"the workspace has no room: {low} to {high}")
        length = np.linalg.norm(_numbers(self, "camera_rotation", 4))
        check(abs(length - 1) < 1e-3, f"camera_rotation has length {length:.3g}, not 1")
        for name, known in (
            ("operator_frame", ("base", "tool", "camera")),
            ("gripper_mode", ("toggle", "hold")),
        ):
            value = getattr(self, name)
            check(value in known, f"{name} must be one of {', '.join(known)}, not {value!r}")
        check(
            0 < self.release_threshold < self.takeover_threshold < 1,
            "0 < release_threshold < takeover_threshold < 1 is needed, not "
            f"{self.release_threshold} and {self.takeover_threshold}",
        )
        check(self.min_dwell_s >= 0, f"min_dwell_s must not be negative: {self.min_dwell_s}")
        check(
            self.handback in ("button", "release", "deadman"),
            f"handback must be button, release or deadman, not {self.handback!r}",
        )
        check(
            self.on_device_lost in ("hold", "continue"),
            f"on_device_lost must be hold or continue, not {self.on_device_lost!r}",
        )
        check(self.max_policy_failures >= 1, "max_policy_failures must be at least 1")
        check(self.gripper_button != self.authority_button, "two buttons have the same number")
        check(
            min(self.gripper_button, self.authority_button) >= 0,
            f"buttons are numbered from 0: {self.gripper_button} and {self.authority_button}",
        )

    @property
    def step_m(self) -> float:
        """How far action 1.0 moves the hand in a step, m."""
        return self.linear_scale_m_s * self.control_period_s


def _numbers(config: ArbiterConfig, name: str, n: int) -> np.ndarray:
    """(n,) of a field; ValueError for another number of numbers."""
    values = np.asarray(getattr(config, name), np.float64)
    if values.shape != (n,):
        raise ValueError(
            f"arbiter configuration: {name} must be {n} numbers, not {values.tolist()}"
        )
    return values
