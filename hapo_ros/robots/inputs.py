"""What a robot publishes, as a table: topic, message type, how a value is read out of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from hapo_ros.robots.assembly import Assembler, Input
from hapo_ros.robots.commands import gripper_closed
from hapo_ros.robots.config import JointStatesConfig, RobotConfig
from hapo_ros.robots.images import picture
from hapo_ros.robots.transforms import TransformTree

POSE = "pose"  # the key of the tool's pose; a camera's key is its name


@dataclass(frozen=True)
class Source:
    """A topic that an observation needs.

    key: of the input in an Assembler. read: message -> array; None where the message is of no
    concern here; ValueError with a sentence where it cannot be used.
    """

    key: str
    topic: str
    type_name: str
    read: Callable[[object], np.ndarray | None]


def joints_key(index: int) -> str:
    """Key of the robot's index-th topic of joint states."""
    return f"joints {index}"


def inputs(robot: RobotConfig, cameras) -> dict[str, Input]:
    """What has to be there for an observation, by key; cameras: names of those that are wanted.

    Raises ValueError where the robot lacks one.
    """
    if missing := set(cameras) - {camera.name for camera in robot.cameras}:
        raise ValueError(
            f"Robot {robot.name} has no camera {', '.join(sorted(missing))}. Nothing is observed. "
            "Add it to the robot's file."
        )
    found = {}
    for camera in robot.cameras:
        if camera.name in cameras:
            name = f"camera {camera.name} ({camera.topic})"
            found[camera.name] = Input(name, camera.tolerance_s, camera.frozen_after)
    for index, source in enumerate(robot.joint_states):
        name = f"joint state ({source.topic})"
        found[joints_key(index)] = Input(name, source.tolerance_s)
    where = robot.pose.topic or f"TF of {robot.tool_frame} in {robot.base_frame}"
    return found | {POSE: Input(f"pose ({where})", robot.pose.tolerance_s)}


def sources(robot: RobotConfig, cameras) -> list[Source]:
    """Where the inputs come from; the pose only where it has a topic of its own."""
    found = []
    for camera in robot.cameras:
        if camera.name in cameras:
            type_name = f"sensor_msgs/msg/{'CompressedImage' if camera.compressed else 'Image'}"
            read = partial(picture, camera=camera)
            found.append(Source(camera.name, camera.topic, type_name, read))
    for index, each in enumerate(robot.joint_states):
        read = partial(positions_from, source=each)
        found.append(Source(joints_key(index), each.topic, "sensor_msgs/msg/JointState", read))
    if robot.pose.topic:
        read = partial(pose_from, base_frame=robot.base_frame)
        found.append(Source(POSE, robot.pose.topic, "geometry_msgs/msg/PoseStamped", read))
    return found


def positions_from(message, source: JointStatesConfig) -> np.ndarray | None:
    """(J,) float64 positions of a JointState in the order of ``source.joints``.

    None for a message that lacks one of them: several publishers may share the topic. Raises
    ValueError for a position that is not finite.
    """
    if len(message.name) != len(message.position):
        return None  # of velocities or efforts only
    positions = dict(zip(message.name, message.position, strict=True))
    if not positions.keys() >= set(source.joints):
        return None
    values = np.array([positions[joint] for joint in source.joints], np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a joint's position is not finite")
    return values


def pose_from(message, base_frame: str) -> np.ndarray:
    """(7,) float64 of a PoseStamped: x y z (m), quaternion x y z w of norm 1.

    Raises ValueError for another frame, numbers that are not finite, or no quaternion.
    """
    frame = message.header.frame_id.lstrip("/")
    if frame != base_frame:
        raise ValueError(f"it is in frame {frame!r}, not in {base_frame!r}")
    at, turn = message.pose.position, message.pose.orientation
    pose = np.array([at.x, at.y, at.z, turn.x, turn.y, turn.z, turn.w], np.float64)
    norm = np.linalg.norm(pose[3:])
    if not np.isfinite(pose).all() or not 0.9 < norm < 1.1:
        raise ValueError("its numbers are not finite, or its quaternion's norm is not 1")
    pose[3:] /= norm
    return pose


class PoseFromTf:
    """The tool's pose as an input, where it is TF's to say."""

    def __init__(self, robot: RobotConfig, assembler: Assembler):
        self._robot, self._assembler = robot, assembler
        self._tree = TransformTree()
        self._stamp_ns: int | None = None  # of the pose that was last found

    def add(self, message, received_s: float, now_s: float) -> None:
        """Take in a TFMessage; received_s: infinite for one of static transforms."""
        for transform in message.transforms:
            try:
                self._tree.add(transform, received_s)
            except ValueError as error:
                self._assembler.refuse(POSE, str(error), now_s)

    def look_up(self, now_s: float, ros_now_ns: int) -> None:
        """Give the assembler the present pose, as old as the oldest transform it is made of."""
        try:
            pose, at, received_s = self._tree.pose(self._robot.base_frame, self._robot.tool_frame)
        except LookupError as error:
            self._assembler.refuse(POSE, str(error), now_s)
            return
        if at != self._stamp_ns:
            self._stamp_ns = at
            self._assembler.add(POSE, pose, at, now_s, ros_now_ns, received_s=received_s)


def measured_gripper(positions: np.ndarray, robot: RobotConfig) -> float | None:
    """The gripper as an action, -1 open, 1 closed, from (J,) positions of ``robot.joints``.

    None where its joint is not among them.
    """
    joint = robot.gripper.joints[0]
    if joint not in robot.joints:
        return None
    position = float(positions[robot.joints.index(joint)])
    return 1.0 if gripper_closed(position, robot.gripper) else -1.0
