"""A plain rosbag2 bag, as `ros2 bag record` writes it: read, given the robot whose topics it holds.

The robot is a file as under config/robots: where its images, joints and pose are, what it is
commanded with, how fast. Observations are put together as ``observation_assembler`` does it live,
with the time at which the messages were recorded for clock; the action of a step is what drove the
robot by its end.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hapo_ros.episodes import parsers
from hapo_ros.episodes.bag import METADATA
from hapo_ros.episodes.contents import MAX_STEPS
from hapo_ros.episodes.formats import common
from hapo_ros.episodes.formats.common import BadSource, Foreign, Found, Options
from hapo_ros.episodes.interfaces import typestore
from hapo_ros.episodes.types import MAX_LOST_FRACTION, EpisodeInfo
from hapo_ros.labels import HUMAN, NONE, POLICY
from hapo_ros.robots import config, inputs
from hapo_ros.robots.assembly import Assembler
from hapo_ros.robots.commands import action_from, gripper_closed

TF, TF_STATIC = "/tf", "/tf_static"


def found(source: Path, options: Options) -> list[Found]:
    """A bag, or those directly under a folder, each an episode. Raises ValueError without a robot
    or an instruction: a plain bag says neither."""
    if not options.robot or not (options.instruction or options.task):
        raise ValueError(
            "A plain bag says neither what its topics mean nor what was asked. Nothing was "
            f"imported. Give --robot ({', '.join(config.names())}, or a file made like them) and "
            "--instruction."
        )
    robot = config.load(options.robot)
    folders = [source] if (source / METADATA).is_file() else sorted(source.glob(f"*/{METADATA}"))
    folders = [path.parent if path.name == METADATA else path for path in folders]
    if not folders:
        raise BadSource("format", source, f"It has no {METADATA}.")
    return [Found(path.name, lambda path=path: _load(path, robot, options)) for path in folders]


def _load(path: Path, robot: config.RobotConfig, options: Options) -> Foreign:
    _check_files(path)
    replay = _Replay(robot)
    try:
        for topic, message, log_ns in _messages(path, replay.wanted):
            replay.add(topic, message, log_ns)
    except (ValueError, AttributeError, OverflowError) as error:
        raise BadSource("malformed", path, f"({error})") from error
    if not replay.seen:
        why = "; ".join(problem.text for problem in replay.problems.values())
        raise BadSource("no observations", path, f"({why or 'none of the topics is in it'})")
    origin = options.source or "demonstration"
    acted = HUMAN if origin == "demonstration" else POLICY
    first, period_ns = min(replay.seen), replay.period_ns
    last = max(replay.actions, default=-1)
    timeline = np.array([acted if t in replay.actions else NONE for t in range(first, last + 1)])
    kept = [t for t in sorted(replay.seen) if first <= t <= last]
    if not kept:
        raise BadSource("malformed", path, "(no command was recorded with an observation)")
    still = np.zeros(7, np.float32)
    steps = common.foreign_steps(
        [replay.seen[t] for t in kept],
        np.stack([replay.actions.get(t, still) for t in kept]),
        timeline[np.array(kept) - first],
        period_ns,
    )
    for step, t in zip(steps, kept, strict=True):
        step.sequence, step.stamp_ns = t - first, replay.begin_ns + t * period_ns
    outcome, note = common.outcome_of(origin, options)
    info = EpisodeInfo(
        episode_id=common.safe_id(common.stem_of(path.resolve())),
        task=options.task or "unknown",
        instruction=common.instruction_for(options.task, options),
        source=origin,
        seed=0,
        cameras={camera.name: list(camera.size) for camera in robot.cameras},
        action_space=robot.action_space(),
        settings={"robot": robot.name},
        max_lost_fraction=MAX_LOST_FRACTION,
    )
    return Foreign(info, steps, outcome, note, timeline)


def _check_files(path: Path) -> None:
    """Raises BadSource where metadata.yaml names files outside the bag's folder."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML(typ="safe").load((path / METADATA).read_text("utf8"))
        names = data["rosbag2_bagfile_information"]["relative_file_paths"]
        inside = all(isinstance(name, str) and Path(name).name == name for name in names)
    except (YAMLError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise BadSource("malformed", path / METADATA, f"({type(error).__name__})") from error
    if not inside:
        raise BadSource("elsewhere", path / METADATA, f"({names})")


def _messages(path: Path, wanted: set[str]):
    """(topic, message, log time in ns) of the wanted topics, in the order of their log time."""
    from rosbags.highlevel import AnyReader, AnyReaderError
    from rosbags.rosbag2 import ReaderError
    from rosbags.serde import SerdeError

    try:
        with AnyReader([path], default_typestore=typestore()) as reader:
            chosen = [each for each in reader.connections if each.topic in wanted]
            for connection, log_ns, data in reader.messages(chosen):
                message = reader.deserialize(data, connection.msgtype)
                yield connection.topic, message, log_ns
    except (AnyReaderError, ReaderError, SerdeError, OSError, IndexError, KeyError) as error:
        raise BadSource("damaged", path, f"({type(error).__name__}: {error})") from error


@dataclass
class _Replay:
    """A robot's messages as they came; every control period what was seen and what drove it.

    seen: step -> observation, where it was whole. actions: step -> (7,) what drove the robot.
    """

    robot: config.RobotConfig
    begin_ns: int | None = None
    seen: dict = field(default_factory=dict)
    actions: dict = field(default_factory=dict)
    problems: dict = field(default_factory=dict)

    def __post_init__(self):
        robot, cameras = self.robot, [camera.name for camera in self.robot.cameras]
        self.period_ns = round(robot.control_period_s * 1e9)
        self._assembler = Assembler(inputs.inputs(robot, cameras), robot.stamp_tolerance_s)
        self._sources: dict[str, list] = {}
        for source in inputs.sources(robot, cameras):
            self._sources.setdefault(source.topic, []).append(source)
        self._tf = None if robot.pose.topic else inputs.PoseFromTf(robot, self._assembler)
        self._step, self._twist, self._closed = 0, None, None
        self.wanted = {*self._sources, robot.servo_topic, robot.gripper.topic}
        if self._tf:
            self.wanted |= {TF, TF_STATIC}

    def add(self, topic: str, message, log_ns: int) -> None:
        """Take in a message; time goes on to when it was recorded."""
        if self.begin_ns is None:
            self.begin_ns = log_ns
        while self.begin_ns + self._step * self.period_ns <= log_ns:
            self._tick()
        now_s = log_ns / 1e9
        if topic in self._sources:
            for source in self._sources[topic]:
                self._observe(source, message, now_s, log_ns)
        elif topic in (TF, TF_STATIC):
            self._tf.add(message, np.inf if topic == TF_STATIC else now_s, now_s)
        elif topic == self.robot.servo_topic:
            twist = message.twist
            self._twist = (
                log_ns,
                [
                    *(twist.linear.x, twist.linear.y, twist.linear.z),
                    *(twist.angular.x, twist.angular.y, twist.angular.z),
                ],
            )
        else:
            self._closed = self._gripper(message)

    def _observe(self, source, message, now_s: float, log_ns: int) -> None:
        try:
            value = source.read(message)
        except ValueError as error:
            self._assembler.refuse(source.key, str(error), now_s)
            return
        if value is not None:
            digest = zlib.crc32(value) if value.dtype == np.uint8 else None
            at = parsers.message_stamp_ns(message)
            self._assembler.add(source.key, value, at, now_s, log_ns, digest)

    def _gripper(self, message) -> bool | None:
        """Whether the newest command closes it; as before where the message commands nothing."""
        gripper = self.robot.gripper
        if gripper.kind == "joint_trajectory":
            values = message.points[-1].positions if message.points else ()
        else:
            values = message.data
        return gripper_closed(float(values[0]), gripper) if len(values) else self._closed

    def _tick(self) -> None:
        """The end of a step is the beginning of the next one."""
        step, at_ns = self._step, self.begin_ns + self._step * self.period_ns
        self._step += 1
        if self._step > MAX_STEPS:
            raise ValueError("it is longer than any episode")
        held_ns = max(self.period_ns, round(self.robot.command_timeout_s * 1e9))
        if self._twist is not None and step and at_ns - self._twist[0] <= held_ns:
            self.actions[step - 1] = action_from(self._twist[1], bool(self._closed), self.robot)
        if self._tf:
            self._tf.look_up(at_ns / 1e9, at_ns)
        problems = self._assembler.problems(at_ns / 1e9)
        if problems:
            self.problems = problems
            return
        joints = np.concatenate(
            [
                self._assembler.value(inputs.joints_key(i))[0]
                for i in range(len(self.robot.joint_states))
            ]
        )
        if self._closed is None:
            self._closed = (inputs.measured_gripper(joints, self.robot) or -1.0) > 0
        images = {
            camera.name: self._assembler.value(camera.name)[0] for camera in self.robot.cameras
        }
        pose = self._assembler.value(inputs.POSE)[0]
        self.seen[step] = common.observation(images, joints, pose, None)
