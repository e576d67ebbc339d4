"""Messages <-> the core's own types: one conversion for the nodes and for the synchronous core.

Builders, here, take a *namespace* of message classes as their first argument and return its
messages; parsers (``parsers.py``, given here too) read the messages of any namespace. There are
two:

- :func:`bag_types`, dataclasses of rosbags: needs no ROS, and goes to and from CDR bytes with
  :func:`to_cdr` and :func:`from_cdr`;
- rclpy's generated classes, assembled in ``hapo_ros.nodes`` as :class:`MessageTypes` describes.

Both raise ValueError with a sentence for what cannot be converted.
"""

import json

import numpy as np

from hapo_ros import topics
from hapo_ros.arbitration.types import Authority, Decision, PolicyCommand, Reason, Tick
from hapo_ros.episodes.interfaces import (
    MessageTypes,
    bag_types,
    from_cdr,
    interface_folder,
    ros_sequence,
    to_cdr,
    typestore,
)
from hapo_ros.episodes.parsers import (
    decision_from,
    human_sample_from,
    image_from,
    info_from,
    message_stamp_ns,
    observation_from,
    policy_command_from,
    pose_from,
    state_vector_from,
    tick_from,
    tick_stamps,
    time_ns,
    vector,
)
from hapo_ros.episodes.types import EpisodeInfo, Observation

__all__ = [
    "MessageTypes",
    "authority_status_message",
    "bag_types",
    "decision_from",
    "episode_state_message",
    "executed_action_message",
    "from_cdr",
    "header",
    "human_sample_from",
    "image_from",
    "image_message",
    "info_from",
    "info_json",
    "info_message",
    "interface_folder",
    "joint_state_message",
    "message_stamp_ns",
    "observation_from",
    "observation_messages",
    "operator_messages",
    "policy_action_message",
    "policy_command_from",
    "pose_from",
    "pose_message",
    "privileged_message",
    "ros_sequence",
    "stamp",
    "state_vector_from",
    "state_vector_message",
    "tick_from",
    "tick_message",
    "tick_stamps",
    "time_ns",
    "to_cdr",
    "typestore",
    "vector",
]


def stamp(types: MessageTypes, stamp_ns: int):
    """builtin_interfaces/Time of ROS time in ns."""
    sec, nanosec = divmod(int(stamp_ns), 1_000_000_000)
    return types.Time(sec=sec, nanosec=nanosec)


def header(types: MessageTypes, stamp_ns: int, frame_id: str = ""):
    """std_msgs/Header."""
    return types.Header(stamp=stamp(types, stamp_ns), frame_id=frame_id)


def image_message(types: MessageTypes, image: np.ndarray, stamp_ns: int, frame_id: str):
    """sensor_msgs/Image, rgb8, of an (H, W, 3) uint8 RGB array."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    return types.Image(
        header=header(types, stamp_ns, frame_id),
        height=image.shape[0],
        width=image.shape[1],
        encoding="rgb8",
        is_bigendian=0,
        step=3 * image.shape[1],
        data=types.sequence(image.reshape(-1)),
    )


def joint_state_message(types: MessageTypes, positions, stamp_ns: int, names=()):
    """sensor_msgs/JointState of (J,) positions; names default to joint_1 .. joint_J."""
    positions = vector(positions, np.float64, "joint_positions")
    names = list(names) or [f"joint_{i + 1}" for i in range(len(positions))]
    if len(names) != len(positions):
        raise ValueError(f"{len(positions)} joint positions have {len(names)} names")
    nothing = np.zeros(0, np.float64)
    return types.JointState(
        header=header(types, stamp_ns),
        name=names,
        position=types.sequence(positions),
        velocity=types.sequence(nothing),
        effort=types.sequence(nothing),
    )


def pose_message(types: MessageTypes, pose, stamp_ns: int, frame_id: str = "world"):
    """geometry_msgs/PoseStamped of (7,) x y z (m) and quaternion x y z w."""
    x, y, z, qx, qy, qz, qw = vector(pose, np.float64, "pose", 7).tolist()
    return types.PoseStamped(
        header=header(types, stamp_ns, frame_id),
        pose=types.Pose(
            position=types.Point(x=x, y=y, z=z),
            orientation=types.Quaternion(x=qx, y=qy, z=qz, w=qw),
        ),
    )


def state_vector_message(types: MessageTypes, names, values, stamp_ns: int):
    """StateVector of names and (S,) values."""
    values, names = vector(values, np.float64, "state"), list(names)
    if len(names) != len(values):
        raise ValueError(f"{len(values)} state values have {len(names)} names")
    return types.StateVector(
        header=header(types, stamp_ns), names=names, values=types.sequence(values)
    )


def privileged_message(types: MessageTypes, state: dict[str, float], stamp_ns: int):
    """StateVector of the simulator's privileged state (topic PRIVILEGED_STATE), never recorded."""
    return state_vector_message(types, state.keys(), list(state.values()), stamp_ns)


def tick_message(types: MessageTypes, tick: Tick, stamps: dict[str, int]):
    """ObservationTick. stamps: topic -> stamp in ns of the messages that belong to it."""
    return types.ObservationTick(
        header=header(types, tick.stamp_ns),
        episode_id=tick.episode_id,
        sequence=int(tick.sequence),
        topics=list(stamps),
        stamps=[stamp(types, stamp_ns) for stamp_ns in stamps.values()],
        applied_sequence=int(tick.applied_sequence),
        applied=int(tick.applied),
        applied_action=types.sequence(vector(tick.applied_action, np.float32, "applied_action")),
        authority=int(tick.authority),
        epoch=int(tick.epoch),
        policy_due=bool(tick.policy_due),
        success=bool(tick.success),
    )


def observation_messages(
    types: MessageTypes,
    observation: Observation,
    tick: Tick,
    object_state_names=(),
    *,
    joint_names=(),
    camera_frames: dict[str, str] | None = None,
) -> dict[str, object]:
    """Every message of one tick, by topic, all stamped with ``tick.stamp_ns``; the tick comes last.

    camera_frames: camera -> frame_id, ``<camera>_optical_frame`` where not given.
    Raises ValueError where shapes and names don't agree.
    """
    at, frames = tick.stamp_ns, camera_frames or {}
    messages = {
        topics.JOINT_STATE: joint_state_message(
            types, observation.joint_positions, at, joint_names
        ),
        topics.EEF_POSE: pose_message(types, observation.eef_pose, at),
    }
    if observation.object_state is not None:
        messages[topics.OBJECT_STATE] = state_vector_message(
            types, object_state_names, observation.object_state, at
        )
    for camera, image in observation.images.items():
        frame = frames.get(camera, f"{camera}_optical_frame")
        messages[topics.image(camera)] = image_message(types, image, at, frame)
    messages[topics.OBSERVATION_TICK] = tick_message(types, tick, dict.fromkeys(messages, at))
    return messages


def policy_action_message(types: MessageTypes, command: PolicyCommand, stamp_ns: int):
    """PolicyAction of a command; stamp_ns: the tick's."""
    actions = np.asarray(command.actions, np.float32)
    if actions.ndim != 2:
        raise ValueError(f"a policy's actions must have shape (T, D), not {actions.shape}")
    return types.PolicyAction(
        header=header(types, stamp_ns),
        episode_id=command.episode_id,
        sequence=int(command.sequence),
        epoch=int(command.epoch),
        policy_version=command.version,
        horizon=actions.shape[0],
        action_dim=actions.shape[1],
        actions=types.sequence(actions.reshape(-1)),
        confidence=float(command.confidence),
        inference_s=float(command.inference_s),
    )


def executed_action_message(
    types: MessageTypes,
    decision: Decision,
    stamp_ns: int,
    frame_id: str = "base_link",
    tick: bool = True,
):
    """ExecutedAction of a decision; stamp_ns: the tick's; tick: False on the arbiter's own timer.

    ``decision.detail`` is for the status and the log and does not travel.
    """
    return types.ExecutedAction(
        header=header(types, stamp_ns, frame_id),
        episode_id=decision.episode_id,
        sequence=int(decision.sequence),
        action=types.sequence(vector(decision.action, np.float32, "action")),
        requested=types.sequence(vector(decision.requested, np.float32, "requested")),
        label=int(decision.label),
        authority=int(decision.authority),
        reason=int(decision.reason),
        epoch=int(decision.epoch),
        policy_version=decision.policy_version,
        limited=bool(decision.limited),
        policy_due=bool(decision.policy_due),
        tick=bool(tick),
    )


def authority_status_message(
    types: MessageTypes,
    stamp_ns: int,
    authority: Authority,
    reason: Reason,
    *,
    episode_id: str = "",
    sequence: int = 0,
    epoch: int = 0,
    device_live: bool = False,
    device_armed: bool = False,
    takeovers: int = 0,
    labels=(0, 0, 0, 0),
    text: str = "",
):
    """AuthorityStatus. labels: (4,) steps by live c_t; text: the reason's sentence by default."""
    return types.AuthorityStatus(
        header=header(types, stamp_ns),
        authority=int(authority),
        reason=int(reason),
        text=text or Reason(reason).sentence,
        episode_id=episode_id,
        sequence=int(sequence),
        epoch=int(epoch),
        device_live=bool(device_live),
        device_armed=bool(device_armed),
        takeovers=int(takeovers),
        labels=vector(labels, np.uint32, "labels", 4),
    )


def operator_messages(
    types: MessageTypes, axes, buttons, twist, stamp_ns: int, frame_id: str = "base_link"
) -> dict[str, object]:
    """{JOY: Joy, TWIST: TwistStamped} of one report of the device, of one stamp.

    axes: (6,) -1..1; buttons: 0 or 1 each; twist: (6,) m/s and rad/s in ``frame_id``.
    """
    x, y, z, roll, pitch, yaw = vector(twist, np.float64, "twist", 6).tolist()
    return {
        topics.JOY: types.Joy(
            header=header(types, stamp_ns),
            axes=types.sequence(vector(axes, np.float32, "axes", 6)),
            buttons=types.sequence(vector(buttons, np.int32, "buttons")),
        ),
        topics.TWIST: types.TwistStamped(
            header=header(types, stamp_ns, frame_id),
            twist=types.Twist(
                linear=types.Vector3(x=x, y=y, z=z),
                angular=types.Vector3(x=roll, y=pitch, z=yaw),
            ),
        ),
    }


def episode_state_message(
    types: MessageTypes,
    stamp_ns: int,
    state: int,
    info: EpisodeInfo | None = None,
    *,
    outcome: str = "",
    bag: str = "",
    text: str = "",
):
    """EpisodeState; state: a constant of the message, such as ``types.EpisodeState.RUNNING``."""
    return types.EpisodeState(
        header=header(types, stamp_ns),
        state=int(state),
        episode_id=info.episode_id if info else "",
        task=info.task if info else "",
        instruction=info.instruction if info else "",
        source=info.source if info else "",
        seed=int(info.seed) if info else 0,
        outcome=outcome,
        bag=str(bag),
        text=text,
    )


def info_json(data: dict) -> str:
    """JSON of an ``episode/info``; numpy numbers and arrays in it are written as plain ones."""

    def plain(value):
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        raise TypeError(f"{type(value).__name__} cannot be written into episode/info")

    return json.dumps(data, default=plain, ensure_ascii=False)


def info_message(types: MessageTypes, data: dict):
    """std_msgs/String with :func:`info_json` (topic EPISODE_INFO)."""
    return types.String(data=info_json(data))
