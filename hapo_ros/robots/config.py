"""A robot as data: what it publishes, what it is commanded with, how fast, and when it is late.

One YAML file a robot, ``config/robots/NAME.yaml``. Every key is checked: one that is unknown,
missing or out of range is refused with a sentence that names the file and the key.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hapo_ros.resources import resource

FOLDER = "config/robots"
UNITS = ("speed_units", "unitless")
SERVO_SHARE = 0.75  # of the servo's time-out, at most, is a control period: a twist may come late
GRIPPER_KINDS = ("float64_multi_array", "joint_trajectory")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TOPIC = re.compile(r"/?[A-Za-z_~][A-Za-z0-9_~]*(/[A-Za-z_][A-Za-z0-9_]*)*")


@dataclass(frozen=True)
class CameraConfig:
    """One camera.

    compressed: sensor_msgs/CompressedImage instead of Image. source: (height, width) in pixels of
    the camera's own images; others are refused. size: (height, width) as published for policy and
    recorder. crop: (top, left, height, width) inside ``source``, taken before the image is resized;
    None for all of it. rate_hz: what it publishes at. tolerance_s: an
    image received longer ago than this is late. frozen_after: so many images in a row that are the
    same bit for bit mean that it is frozen; 0: not looked at (a simulation may show the same).
    """

    name: str
    topic: str
    compressed: bool
    source: tuple[int, int]
    size: tuple[int, int]
    crop: tuple[int, int, int, int] | None
    rate_hz: float
    tolerance_s: float
    frozen_after: int


@dataclass(frozen=True)
class JointStatesConfig:
    """A topic of sensor_msgs/JointState and the joints taken from it, in order."""

    topic: str
    joints: tuple[str, ...]
    tolerance_s: float


@dataclass(frozen=True)
class PoseConfig:
    """Where the tool's pose in the base frame is from: a topic of PoseStamped, or TF (empty)."""

    topic: str
    tolerance_s: float


@dataclass(frozen=True)
class GripperConfig:
    """How the gripper is commanded: to ``open`` or ``closed``, in the units of its controller.

    joints: those that the controller moves, each to the same value. duration_s: how long a
    joint_trajectory gives them.
    """

    kind: str
    topic: str
    joints: tuple[str, ...]
    open: float
    closed: float
    duration_s: float


@dataclass(frozen=True)
class RobotConfig:
    """One robot. SI units; actions and poses are in ``base_frame``, the pose is of ``tool_frame``.

    servo_topic: geometry_msgs/TwistStamped. unitless: it takes -1..1 and multiplies by itself.
    linear_scale_m_s, angular_scale_rad_s: speed of action 1 (with ``unitless``, the servo's own).
    max_linear_m_s, max_angular_rad_s: largest speed along or about one axis. max_acceleration_*:
    how fast the speed may grow, 0: any. workspace_*_m: corners of the box that the tool is kept in,
    in ``base_frame``; infinite: open. decision_timeout_s: a
    decision that comes longer after its tick is not executed. command_timeout_s: without a decision
    for this long the arm is stopped. stop_s: for how long it is told so. servo_timeout_s: the
    servo's own time-out, after which it halts a twist by itself. lost_after_s: an input
    that is gone for this long ends the recording. stamp_tolerance_s: between a stamp and this
    machine's clock. simulated: ``simulated_robot`` stands in for it.
    """

    name: str
    base_frame: str
    tool_frame: str
    control_period_s: float
    cameras: tuple[CameraConfig, ...]
    joint_states: tuple[JointStatesConfig, ...]
    pose: PoseConfig
    servo_topic: str
    unitless: bool
    gripper: GripperConfig
    linear_scale_m_s: float
    angular_scale_rad_s: float
    max_linear_m_s: float
    max_angular_rad_s: float
    max_acceleration_m_s2: float
    max_acceleration_rad_s2: float
    workspace_min_m: tuple[float, ...]
    workspace_max_m: tuple[float, ...]
    decision_timeout_s: float
    command_timeout_s: float
    stop_s: float
    servo_timeout_s: float
    lost_after_s: float
    stamp_tolerance_s: float
    simulated: bool = False

    @property
    def joints(self) -> tuple[str, ...]:
        """Names of the observed joint positions, in order."""
        return tuple(joint for source in self.joint_states for joint in source.joints)

    @property
    def max_linear(self) -> float:
        """``max_linear_m_s`` as an action, at most 1."""
        return min(1.0, self.max_linear_m_s / self.linear_scale_m_s)

    @property
    def max_angular(self) -> float:
        """``max_angular_rad_s`` as an action, at most 1."""
        return min(1.0, self.max_angular_rad_s / self.angular_scale_rad_s)

    def action_space(self) -> dict:
        """The action space as it goes into ``EpisodeInfo``: names, rate, and speed of action 1."""
        return {
            "names": ["x", "y", "z", "roll", "pitch", "yaw", "gripper"],
            "control_hz": 1.0 / self.control_period_s,
            "linear_scale_m_s": self.linear_scale_m_s,
            "angular_scale_rad_s": self.angular_scale_rad_s,
            "gripper": "-1 open, 1 closed",
            "frame": self.base_frame,
            "controller": f"{self.name}: twists on {self.servo_topic}",
        }


def names() -> list[str]:
    """The robots that ship."""
    return sorted(path.stem for path in resource(FOLDER).glob("*.yaml"))


def load(robot: str | Path) -> RobotConfig:
    """The robot of that name, or of that YAML file.

    Raises FileNotFoundError where there is none, and ValueError for a file that cannot be used.
    """
    text = str(robot)
    path = Path(text) if text.endswith((".yaml", ".yml")) else resource(FOLDER) / f"{text}.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no robot {text}. Nothing is started. Give one of {', '.join(names())}, or "
            "the path of a file ending in .yaml."
        )
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML(typ="safe").load(path.read_text("utf8"))
    except (YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return parse(data, path.stem, str(path))


def parse(data, name: str, where: str = "the robot's configuration") -> RobotConfig:
    """RobotConfig of a parsed YAML file. Raises ValueError, with ``where``, for the first fault."""
    top = _Section(data, where)
    frames, servo = top.section("frames"), top.section("servo")
    scales, limits = top.section("scales"), top.section("limits")
    timeouts = top.section("timeouts", {})
    period = top.number("control_period_s", 0.01, 1.0, 0.05)
    config = RobotConfig(
        name=name,
        base_frame=frames.text("base"),
        tool_frame=frames.text("tool"),
        control_period_s=period,
        cameras=tuple(_camera(*named) for named in top.named_sections("cameras")),
        joint_states=tuple(
            JointStatesConfig(
                topic=source.topic(),
                joints=source.texts("joints"),
                tolerance_s=source.number("tolerance_s", 0.005, 5.0, 0.1),
            )
            for source in top.sections("joint_states")
        ),
        pose=_pose(top.section("pose")),
        servo_topic=servo.topic(),
        unitless=servo.choice("units", UNITS) == "unitless",
        gripper=_gripper(top.section("gripper")),
        linear_scale_m_s=scales.number("linear_m_s", 1e-3, 10.0),
        angular_scale_rad_s=scales.number("angular_rad_s", 1e-3, 50.0),
        max_linear_m_s=limits.number("linear_m_s", 1e-3, 10.0),
        max_angular_rad_s=limits.number("angular_rad_s", 1e-3, 50.0),
        max_acceleration_m_s2=limits.number("acceleration_m_s2", 0.0, 1e3, 0.0),
        max_acceleration_rad_s2=limits.number("acceleration_rad_s2", 0.0, 1e4, 0.0),
        workspace_min_m=limits.numbers("workspace_min_m", 3, -math.inf),
        workspace_max_m=limits.numbers("workspace_max_m", 3, math.inf),
        decision_timeout_s=timeouts.number("decision_s", 0.005, 1.0, 0.9 * period),
        command_timeout_s=timeouts.number("command_s", 0.01, 2.0, 2 * period),
        stop_s=timeouts.number("stop_s", 0.0, 5.0, 0.3),
        servo_timeout_s=timeouts.number("servo_s", 0.02, 2.0, 0.1),
        lost_after_s=timeouts.number("lost_s", 0.1, 60.0, 2.0),
        stamp_tolerance_s=top.number("stamp_tolerance_s", 0.01, 3600.0, 0.5),
        simulated=top.flag("simulated", False),
    )
    top.finish()
    _check(config, where)
    return config


def _camera(name: str, section: "_Section") -> CameraConfig:
    rate_hz = section.number("rate_hz", 0.5, 1000.0)
    return CameraConfig(
        name=name,
        topic=section.topic(),
        compressed=section.choice("kind", ("raw", "compressed"), "raw") == "compressed",
        source=section.whole_numbers("source", 2, 1),
        size=section.whole_numbers("size", 2, 1),
        crop=section.whole_numbers("crop", 4, 0, optional=True),
        rate_hz=rate_hz,
        tolerance_s=section.number("tolerance_s", 0.005, 10.0, 3.0 / rate_hz),
        frozen_after=int(section.number("frozen_after", 0, 10_000, 15)),
    )


def _pose(section: "_Section") -> PoseConfig:
    by_tf = section.choice("source", ("topic", "tf")) == "tf"
    tolerance_s = section.number("tolerance_s", 0.005, 5.0, 0.1)
    return PoseConfig("" if by_tf else section.topic(), tolerance_s)


def _gripper(section: "_Section") -> GripperConfig:
    return GripperConfig(
        kind=section.choice("kind", GRIPPER_KINDS),
        topic=section.topic(),
        joints=section.texts("joints"),
        open=section.number("open", -1e3, 1e3),
        closed=section.number("closed", -1e3, 1e3),
        duration_s=section.number("duration_s", 0.01, 10.0, 0.5),
    )


def _check(config: RobotConfig, where: str) -> None:
    """What one key cannot tell. Raises ValueError."""

    def check(ok: bool, text: str) -> None:
        if not ok:
            raise ValueError(f"{where}: {text}. Nothing is started. Mend the file.")

    check(config.gripper.open != config.gripper.closed, "gripper: open and closed are the same")
    check(
        config.decision_timeout_s <= config.control_period_s,
        f"timeouts.decision_s is {config.decision_timeout_s:g} s, more than the control period of "
        f"{config.control_period_s:g} s: a decision would be executed in another's place",
    )
    check(
        config.command_timeout_s >= config.control_period_s,
        f"timeouts.command_s is {config.command_timeout_s:g} s, less than the control period of "
        f"{config.control_period_s:g} s: the arm would stop between two decisions",
    )
    check(
        config.control_period_s <= SERVO_SHARE * config.servo_timeout_s,
        f"control_period_s is {config.control_period_s:g} s, more than {SERVO_SHARE:g} of "
        f"timeouts.servo_s, the servo's own time-out of {config.servo_timeout_s:g} s: it would "
        "halt between two twists, and the arm go less far than each action says",
    )
    corners = zip(config.workspace_min_m, config.workspace_max_m, strict=True)
    check(all(low < high for low, high in corners), "limits: the workspace has no room")
    for camera in config.cameras:
        rows, columns = camera.source
        top, left, height, width = camera.crop or (0, 0, rows, columns)
        check(
            0 < height <= rows - top and 0 < width <= columns - left,
            f"cameras: {camera.name}: the crop {camera.crop} (top, left, height, width) is not "
            f"inside its source of {rows} x {columns}",
        )
    topics = [camera.topic for camera in config.cameras]
    topics += {source.topic for source in config.joint_states}  # which parts of it may share
    topics += [config.pose.topic or "/tf", config.servo_topic, config.gripper.topic]
    repeated = {topic for topic in topics if topics.count(topic) > 1}
    check(not repeated, f"{', '.join(sorted(repeated))} is named twice")


_REQUIRED = object()


class _Section:
    """A mapping whose keys are taken one by one; those never asked for are refused at the end."""

    def __init__(self, data, where: str):
        if not isinstance(data, dict):
            raise ValueError(f"{where}: keys with values are needed, not {data!r}.")
        self._left, self._where, self._inner = dict(data), where, []

    def _take(self, key: str, default=_REQUIRED):
        if default is _REQUIRED and key not in self._left:
            raise self._fault(key, "is missing")
        return self._left.pop(key, default)

    def _fault(self, key: str, what: str) -> ValueError:
        return ValueError(f"{self._where}: {key} {what}. Nothing is started. Mend the file.")

    def _nested(self, data, key: str) -> "_Section":
        inner = _Section(data, f"{self._where}: {key}")
        self._inner.append(inner)
        return inner

    def section(self, key: str, default=_REQUIRED) -> "_Section":
        return self._nested(self._take(key, default), key)

    def sections(self, key: str) -> list["_Section"]:
        data = self._take(key)
        if not isinstance(data, list) or not data:
            raise self._fault(key, f"must be a list of sections, not {data!r}")
        return [self._nested(each, f"{key} {i + 1}") for i, each in enumerate(data)]

    def named_sections(self, key: str) -> list[tuple[str, "_Section"]]:
        data = self._take(key)
        if not isinstance(data, dict):
            raise self._fault(key, f"must have a section for each name, not be {data!r}")
        for name in data:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise self._fault(f"{key}: {name!r}", "must be a word of letters, digits and _")
        return [(name, self._nested(each, f"{key}: {name}")) for name, each in data.items()]

    def text(self, key: str) -> str:
        value = self._take(key)
        if not isinstance(value, str) or not value:
            raise self._fault(key, f"must be a word, not {value!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._take(key)
        words = isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)
        if not words:
            raise self._fault(key, f"must be a list of names, not {value!r}")
        return tuple(value)

    def topic(self) -> str:
        value = self.text("topic")
        if not _TOPIC.fullmatch(value):
            raise self._fault("topic", f"must be a topic's name such as /joint_states, not {value}")
        return value

    def choice(self, key: str, choices: Sequence[str], default=_REQUIRED) -> str:
        value = self._take(key, default)
        if value not in choices:
            raise self._fault(key, f"must be one of {', '.join(choices)}, not {value!r}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self._fault(key, f"must be true or false, not {value!r}")
        return value

    def number(self, key: str, low: float, high: float, default=_REQUIRED) -> float:
        value = self._take(key, default)
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not math.isfinite(value) or not low <= value <= high:
            raise self._fault(key, f"must be a number in {low:g}..{high:g}, not {value!r}")
        return float(value)

    def numbers(self, key: str, count: int, default: float) -> tuple[float, ...]:
        """So many numbers, finite; all of them the default where the key is left out."""
        value = self._take(key, None)
        if value is None:
            return (default,) * count
        plain = isinstance(value, list) and all(type(v) in (int, float) for v in value)
        if not plain or len(value) != count or not all(map(math.isfinite, value)):
            raise self._fault(key, f"must be {count} numbers, not {value!r}")
        return tuple(map(float, value))

    def whole_numbers(self, key: str, count: int, least: int, optional: bool = False):
        value = self._take(key, None if optional else _REQUIRED)
        if value is None and optional:
            return None
        plain = isinstance(value, list) and all(type(v) is int and v >= least for v in value)
        if not plain or len(value) != count:
            raise self._fault(key, f"must be {count} whole numbers from {least} on, not {value!r}")
        return tuple(value)

    def finish(self) -> None:
        """Raises ValueError where a key is left that nobody asked for."""
        for key in self._left:
            raise self._fault(str(key), "is not known here")
        for inner in self._inner:
            inner.finish()
