"""Messages -> the core's own types; for messages of rclpy and of rosbags alike.

Every parser checks what it reads and raises ValueError with a sentence: a stranger's message never
fails later, elsewhere, obscurely. Numbers are not judged: NaN is for the arbiter to refuse.
"""

import json
import re

import numpy as np

from hapo_ros import topics
from hapo_ros.arbitration.types import (
    Applied,
    Authority,
    Decision,
    HumanSample,
    PolicyCommand,
    Reason,
    Tick,
)
from hapo_ros.episodes.types import Observation

_INFO_FIELDS = {
    topics.OBSERVATION_INFO: {
        "task": str,
        "instruction": str,
        "cameras": dict,
        "object_state": list,
        "action_space": dict,
    },
    topics.POLICY_INFO: {"version": str, "normalisation": dict},
}
IMAGE_TOPIC = re.compile(re.escape(topics.image("CAMERA")).replace("CAMERA", "([^/]+)"))


def time_ns(time) -> int:
    """Nanoseconds of a builtin_interfaces/Time."""
    return int(time.sec) * 1_000_000_000 + int(time.nanosec)


def message_stamp_ns(message) -> int:
    """Stamp in ns of a message with a header."""
    return time_ns(message.header.stamp)


def tick_from(message) -> Tick:
    """Tick of an ObservationTick; :func:`tick_stamps` gives the topics that belong to it."""
    tick_stamps(message)
    return Tick(
        episode_id=message.episode_id,
        sequence=int(message.sequence),
        stamp_ns=message_stamp_ns(message),
        applied_sequence=int(message.applied_sequence),
        applied=_member(Applied, message.applied, "applied"),
        applied_action=vector(message.applied_action, np.float32, "applied_action"),
        authority=_member(Authority, message.authority, "authority"),
        epoch=int(message.epoch),
        policy_due=bool(message.policy_due),
        success=bool(message.success),
    )


def tick_stamps(message) -> dict[str, int]:
    """Topic -> stamp in ns of every message that belongs to an ObservationTick."""
    names = list(message.topics)
    if len(names) != len(message.stamps):
        raise ValueError(f"the tick names {len(names)} topics but {len(message.stamps)} stamps")
    if len(set(names)) != len(names):
        raise ValueError("the tick names a topic twice")
    return {name: time_ns(at) for name, at in zip(names, message.stamps, strict=True)}


def policy_command_from(message) -> PolicyCommand:
    """PolicyCommand of a PolicyAction, actions (T, D) float32."""
    shape = int(message.horizon), int(message.action_dim)
    actions = vector(message.actions, np.float32, "actions")
    if 0 in shape or actions.size != shape[0] * shape[1]:
        raise ValueError(
            f"the policy sent {actions.size} numbers for a chunk of {shape[0]} x {shape[1]}"
        )
    return PolicyCommand(
        episode_id=message.episode_id,
        sequence=int(message.sequence),
        epoch=int(message.epoch),
        version=message.policy_version,
        actions=actions.reshape(shape),
        confidence=float(message.confidence),
        inference_s=float(message.inference_s),
    )


def decision_from(message) -> Decision:
    """Decision of an ExecutedAction (its ``detail`` is empty; ``message.tick`` tells data)."""
    action = vector(message.action, np.float32, "action")
    requested = vector(message.requested, np.float32, "requested")
    if requested.size not in (0, action.size):
        raise ValueError(
            f"{requested.size} numbers were requested and {action.size} executed in one decision"
        )
    if message.label not in (1, 2, 3):
        raise ValueError(f"live label {message.label} is none of 1 (policy), 2 (human), 3 (none)")
    return Decision(
        episode_id=message.episode_id,
        sequence=int(message.sequence),
        action=action,
        requested=requested,
        label=int(message.label),
        authority=_member(Authority, message.authority, "authority"),
        reason=_member(Reason, message.reason, "reason"),
        epoch=int(message.epoch),
        policy_version=message.policy_version,
        limited=bool(message.limited),
        policy_due=bool(message.policy_due),
    )


def human_sample_from(joy, twist, received_s: float) -> HumanSample:
    """HumanSample of a Joy and a TwistStamped of the same stamp; received_s: receipt clock."""
    if message_stamp_ns(joy) != message_stamp_ns(twist):
        raise ValueError(
            f"Joy is stamped {message_stamp_ns(joy)} ns, its twist {message_stamp_ns(twist)} ns"
        )
    linear, angular = twist.twist.linear, twist.twist.angular
    return HumanSample(
        axes=vector(joy.axes, np.float32, "axes", 6),
        buttons=tuple(int(button) for button in joy.buttons),
        twist=np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z], np.float64),
        received_s=received_s,
        stamp_ns=message_stamp_ns(joy),
    )


def image_from(message) -> np.ndarray:
    """(H, W, 3) uint8 RGB copy of a sensor_msgs/Image in rgb8 or bgr8."""
    if message.encoding not in ("rgb8", "bgr8"):
        raise ValueError(f"image encoding {message.encoding!r} is neither rgb8 nor bgr8")
    height, width, step = int(message.height), int(message.width), int(message.step)
    data = np.asarray(message.data, np.uint8)
    if 0 in (height, width) or step < 3 * width or data.size != height * step:
        raise ValueError(
            f"an image of {height} x {width} in rows of {step} bytes has {data.size} bytes"
        )
    image = data.reshape(height, step)[:, : 3 * width].reshape(height, width, 3)
    return (image[..., ::-1] if message.encoding == "bgr8" else image).copy()


def state_vector_from(message) -> dict[str, float]:
    """Name -> value of a StateVector."""
    names = list(message.names)
    values = vector(message.values, np.float64, "values", len(names)).tolist()
    if len(set(names)) != len(names):
        raise ValueError("a state vector has the same name twice")
    return dict(zip(names, values, strict=True))


def pose_from(message) -> np.ndarray:
    """(7,) float64 of a PoseStamped: x y z in m and the quaternion x y z w."""
    at, turn = message.pose.position, message.pose.orientation
    return np.array([at.x, at.y, at.z, turn.x, turn.y, turn.z, turn.w], np.float64)


def observation_from(messages: dict[str, object]) -> Observation:
    """Observation of the messages of one tick, by topic; images as far as there are any.

    Raises ValueError where joint state or end-effector pose is missing or a message is malformed.
    """
    for name in (topics.JOINT_STATE, topics.EEF_POSE):
        if name not in messages:
            raise ValueError(f"the observation has no {name}")
    state = messages.get(topics.OBJECT_STATE)
    cameras = {name: IMAGE_TOPIC.fullmatch(name) for name in messages}
    return Observation(
        images={match[1]: image_from(messages[name]) for name, match in cameras.items() if match},
        joint_positions=vector(
            messages[topics.JOINT_STATE].position, np.float64, "joint positions"
        ),
        eef_pose=pose_from(messages[topics.EEF_POSE]),
        object_state=(
            None if state is None else np.array(list(state_vector_from(state).values()), np.float64)
        ),
    )


def info_from(message, topic: str = topics.EPISODE_INFO) -> dict:
    """The dict in an ``episode/info``, ``observation/info`` or ``policy/info``."""
    try:
        data = json.loads(message.data)
    except ValueError as error:
        raise ValueError(f"{topic} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{topic} is not a JSON object")
    for name, kind in _INFO_FIELDS.get(topic, {}).items():
        if not isinstance(data.get(name), kind):
            raise ValueError(f"{name} in {topic} is no {kind.__name__}")
    return data


def vector(values, dtype, name: str, length: int | None = None) -> np.ndarray:
    """A contiguous 1-D copy of values, checked for its length."""
    row = np.array(values, dtype)
    if row.ndim != 1 or length not in (None, row.size):
        wanted = "one row of numbers" if length is None else f"{length} numbers"
        raise ValueError(f"{name} must be {wanted}, not of shape {row.shape}")
    return row


def _member(enum, value, name: str):
    try:
        return enum(int(value))
    except ValueError:
        raise ValueError(f"{name} {value} is none of {', '.join(enum.__members__)}") from None
