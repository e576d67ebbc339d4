"""The parameters of every node: type, unit, range and default, as data.

The nodes declare them; a deployment checks its file against them before anything is started; the
README lists them. Nothing here needs ROS.
"""

import array
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from hapo_ros.arbitration import OPEN_M, ArbiterConfig
from hapo_ros.episodes.types import MAX_LOST_FRACTION
from hapo_ros.sim.operator import OperatorConfig

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number with a decimal point, such as 1.0",
    str: "text",
}


@dataclass(frozen=True)
class Parameter:
    """A node parameter. The type is the default's; ``unit`` is "" for plain numbers and names."""

    name: str
    default: object
    text: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: Sequence[str] = ()

    @property
    def description(self) -> str:
        parts = [self.text]
        if self.unit:
            parts.append(f"[{self.unit}]")
        if self.choices:
            parts.append(f"one of {', '.join(self.choices)}")
        return " ".join(parts)

    def problem(self, value) -> str:
        """Why ``value`` cannot be used, as a sentence; empty if it can. A range is that of each."""
        many = isinstance(self.default, list)
        if many and not isinstance(value, list | tuple | array.array):
            return f"{self.name} must be a list, not {value!r}."
        kind = type(self.default[0] if many else self.default)
        values = list(value) if many else [value]
        # Lists of numbers are vectors, lists of text are as long as one likes.
        if many and kind is float and len(values) != len(self.default):
            return f"{self.name} must be {len(self.default)} numbers, not {len(values)}."
        return next(filter(None, (self._problem(each, kind) for each in values)), "")

    def _problem(self, value, kind: type) -> str:
        if self.choices and value not in self.choices:
            return f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}."
        if type(value) is not kind:
            return f"{self.name} must be {_KINDS[kind]}, not {value!r}."
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if kind in (int, float) and not low <= value <= high:
            unit = f" {self.unit}" if self.unit else ""
            return f"{self.name} must lie in {low:g}..{high:g}{unit}, not {value}."
        return ""


_CORE, _SIMULATED = ArbiterConfig(), OperatorConfig()


def _core(name: str, text: str, unit: str = "", low=None, high=None, choices=()) -> Parameter:
    """A parameter that is a field of :class:`ArbiterConfig`, with its default."""
    default = getattr(_CORE, name)
    default = list(default) if isinstance(default, tuple) else default
    return Parameter(name, default, text, unit, low, high, choices)


_OPERATOR = (  # of whoever publishes the operator's device
    Parameter("rate_hz", 100.0, "Rate at which the device is published", "Hz", 10.0, 500.0),
    Parameter(
        "linear_scale_m_s", _CORE.linear_scale_m_s, "Speed of full deflection", "m/s", 1e-3, 10.0
    ),
    Parameter(
        "angular_scale_rad_s",
        _CORE.angular_scale_rad_s,
        "Rate of full deflection",
        "rad/s",
        1e-3,
        50.0,
    ),
    Parameter("frame_id", "base_link", "Frame of the twist: the robot's base"),
)
PARAMETERS: dict[str, tuple[Parameter, ...]] = {
    "arbiter": (
        Parameter(
            "lock_step", False, "Decide only when every input of the tick is there (simulation)"
        ),
        _core("control_period_s", "Time between ticks", "s", 0.002, 1.0),
        Parameter(
            "policy_deadline_s", 0.04, "Longest wait for the policy after a tick", "s", 0.001, 1.0
        ),
        Parameter(
            "tick_timeout_s", 0.25, "Without a tick for this long, own timer", "s", 0.01, 10.0
        ),
        Parameter(
            "give_up_ticks_s",
            10.0,
            "Without a tick for this long in an episode, and no human in control, the run ends",
            "s",
            0.1,
            3600.0,
        ),
        Parameter(
            "stamp_tolerance_s",
            5.0,
            "In real time, ticks and reports stamped further from now are refused",
            "s",
            0.1,
            1e6,
        ),
        Parameter("status_hz", 5.0, "Rate of AuthorityStatus beside changes", "Hz", 2.0, 50.0),
        Parameter(
            "readers",
            0,
            "Readers of ExecutedAction to wait for before the first decision",
            "",
            0,
            10,
        ),
        _core("linear_scale_m_s", "Speed of action 1", "m/s", 1e-3, 10.0),
        _core("angular_scale_rad_s", "Rate of action 1", "rad/s", 1e-3, 50.0),
        _core("max_speed_m_s", "Largest speed along x, y, z", "m/s", 1e-4, 10.0),
        _core("max_rate_rad_s", "Largest rate of roll, pitch, yaw", "rad/s", 1e-4, 50.0),
        _core("max_step_m", "Longest way in one control period", "m", 1e-5, 1.0),
        _core("max_step_rad", "Largest turn in one control period", "rad", 1e-5, 10.0),
        _core(
            "max_acceleration_m_s2",
            "How fast the speed may grow; 0: any. A stop is at once",
            "m/s2",
            0,
            1e3,
        ),
        _core("max_acceleration_rad_s2", "The same of the rate", "rad/s2", 0, 1e4),
        _core(
            "workspace_min_m",
            "Lower corner of the box that the hand is kept in",
            "m",
            -OPEN_M,
            OPEN_M,
        ),
        _core("workspace_max_m", "Upper corner; a side at 1000 m is open", "m", -OPEN_M, OPEN_M),
        _core(
            "operator_frame",
            "Whose axes the operator's motion is in",
            choices=("base", "tool", "camera"),
        ),
        _core(
            "camera_rotation",
            "Quaternion x y z w of the camera (x into the image, y left, z up) in the base",
            "",
            -1.0,
            1.0,
        ),
        Parameter("operator_frame_id", "base_link", "Frame that the operator's twist must be in"),
        _core("takeover_threshold", "Deflection that takes over", "", 0.01, 0.99),
        _core("release_threshold", "Below it the cap is neutral", "", 0.005, 0.98),
        _core("handback", "How the operator hands back", choices=("button", "release", "deadman")),
        _core("release_after_s", "Neutral for this long hands back", "s", 0.05, 10.0),
        _core("min_dwell_s", "Least time between hand-overs", "s", 0.0, 5.0),
        _core("gripper_button", "Button of the gripper", "", 0, 31),
        _core(
            "gripper_mode",
            "A press toggles it, or it is closed while held",
            choices=("toggle", "hold"),
        ),
        _core("authority_button", "Button that takes over and hands back", "", 0, 31),
        _core("device_timeout_s", "Silence after which the device is lost", "s", 0.02, 10.0),
        _core("on_device_lost", "While the policy has control", choices=("hold", "continue")),
        _core(
            "max_policy_failures",
            "Policy steps late or refused in a row before a hold",
            "",
            1,
            1000,
        ),
    ),
    "policy": (
        Parameter("checkpoint", "", "Folder of the checkpoint to serve"),
        Parameter(
            "promoted", "", "Folder whose current.json names what to serve instead, if it is there"
        ),
        Parameter(
            "promoted_ignored_ns", 0, "Not the one that was written at this time", "ns", 0, 1 << 62
        ),
        Parameter("threads", 1, "Threads of inference", "", 1, 64),
        Parameter(
            "deadline_s",
            0.0,
            "An answer later than this after its tick came is not sent; 0: all are (lock-step)",
            "s",
            0.0,
            10.0,
        ),
        Parameter(
            "readers", 0, "Readers of PolicyAction to wait for before the first answer", "", 0, 10
        ),
    ),
    "recorder": (
        Parameter("root", "runs/bags", "Folder of the episodes"),
        Parameter("cameras", ["agentview", "wrist"], "Cameras to record; [''] for none"),
        Parameter("object_state", False, "Record the object state too"),
        Parameter("operator", True, "Record the operator's device; false: there is none"),
        Parameter("lock_step", True, "Log time is the time of the tick (simulation)"),
        Parameter("close_timeout_s", 0.8, "Longest wait for the last messages", "s", 0.0, 30.0),
        Parameter("min_free_mib", 500, "Free space an episode needs to start", "MiB", 0, 1 << 20),
        Parameter(
            "max_lost_fraction",
            MAX_LOST_FRACTION,
            "Share of a topic's messages that an episode may lose before it is marked lossy",
            "",
            0.0,
            1.0,
        ),
        Parameter("settings_json", "{}", "Settings of the deployment, for episode/info"),
    ),
    "robosuite_bridge": (
        Parameter("task", "Lift", "Task to simulate"),
        Parameter("cameras", ["agentview", "wrist"], "Cameras to render; [''] for none"),
        Parameter("image_size", 84, "Height and width of the images", "px", 16, 1024),
        Parameter("object_state", False, "Publish the object state, for state-based policies"),
        Parameter("lock_step", True, "Wait for every decision instead of running in real time"),
        Parameter("control_period_s", 0.05, "Time between ticks", "s", 0.05, 0.05),
        Parameter(
            "tick_readers",
            ["policy", "arbiter", "recorder", "simulated_operator"],
            "Nodes that have to read the ticks before an episode begins; [''] for none",
        ),
        Parameter(
            "image_readers",
            ["policy", "recorder"],
            "Nodes that have to read the images before an episode begins; [''] for none",
        ),
        Parameter(
            "decision_timeout_s", 30.0, "Longest wait for a decision in lock-step", "s", 1.0, 3600.0
        ),
    ),
    "observation_assembler": (
        Parameter("robot", "", "Robot of config/robots, or its YAML file"),
        Parameter("task", "", "Task of the episodes"),
        Parameter("instruction", "", "What the policy is told"),
        Parameter("cameras", [""], "Cameras of the robot that are observed; [''] for none"),
        Parameter(
            "tick_readers",
            ["policy", "arbiter", "recorder", "robot_output"],
            "Nodes that have to read the ticks before an episode begins; [''] for none",
        ),
        Parameter(
            "image_readers",
            ["policy", "recorder"],
            "Nodes that have to read the images before an episode begins; [''] for none",
        ),
    ),
    "robot_output": (
        Parameter("robot", "", "Robot of config/robots, or its YAML file"),
        Parameter(
            "dry_run", False, "Send the robot nothing; show on robot/dry_run what would be sent"
        ),
    ),
    "simulated_robot": (
        Parameter("robot", "simulated", "Robot of config/robots, or its YAML file"),
        Parameter("task", "Lift", "Task to simulate"),
        Parameter("joint_state_hz", 50.0, "Rate of joint states and pose", "Hz", 1.0, 1000.0),
    ),
    "spacemouse": (
        *_OPERATOR,
        Parameter(
            "device_path", "", "Device file, such as /dev/hidraw0; empty: the device_index-th"
        ),
        Parameter("device_index", 0, "Which of the SpaceMice found, by order of files", "", 0, 15),
        Parameter("deadband", 0.05, "Deflection of each axis that counts as none", "", 0.0, 0.5),
        Parameter(
            "silent_after_s",
            0.1,
            "A deflected cap that reports nothing for this long is silent",
            "s",
            0.03,
            2.0,
        ),
        Parameter(
            "reopen_every_s", 1.0, "Time between attempts to reopen a lost device", "s", 0.1, 60
        ),
    ),
    "keyboard": (
        *_OPERATOR,
        Parameter("deflection", 0.5, "Deflection of an axis while its key is held", "", 0.2, 1.0),
        Parameter("hold_s", 0.15, "A repeated key holds its axis for this long", "s", 0.05, 1.0),
        Parameter(
            "first_hold_s",
            0.15,
            "So does the first press; the terminal's repeat delay makes held keys move without "
            "a pause",
            "s",
            0.05,
            1.0,
        ),
    ),
    "simulated_operator": (
        Parameter("task", "Lift", "Task of the episodes"),
        Parameter(
            "source", "deployment", "What is recorded", choices=("deployment", "demonstration")
        ),
        Parameter("lock_step", True, "Answer every tick with its own stamp"),
        Parameter("episodes", 10, "Episodes to run, at most", "", 1, 1_000_000),
        Parameter("takeovers", 0, "Stop after this many takeovers; 0: never", "", 0, 1_000_000),
        Parameter(
            "first_seed", 1, "Seed of the first episode; the next ones count up", "", 0, 1 << 31
        ),
        Parameter("start_timeout_s", 60.0, "Longest wait for an episode to start", "s", 1.0, 600.0),
        Parameter("readers", 2, "Readers of the device to wait for", "", 0, 10),
        Parameter(
            "patience_steps",
            _SIMULATED.patience_steps,
            "Steps without progress before it takes over",
            "",
            1,
            10_000,
        ),
        Parameter("progress_m", _SIMULATED.progress_m, "What counts as progress", "m", 0.0, 1.0),
        Parameter(
            "second_chances", _SIMULATED.second_chances, "Falls that do not count", "", 0, 100
        ),
        Parameter(
            "reaction_steps", _SIMULATED.reaction_steps, "Largest reaction delay", "", 0, 100
        ),
        Parameter(
            "noise", _SIMULATED.noise, "Standard deviation of the hand, full scale 1", "", 0.0, 1.0
        ),
        Parameter("finish", _SIMULATED.finish, "Finish the task instead of handing back"),
        Parameter(
            "success_steps", _SIMULATED.success_steps, "Ticks of success that end it", "", 1, 100
        ),
    ),
    "optimizer": (
        Parameter(
            "cancel_grace_s",
            10.0,
            "Time for a cancelled training to end by itself",
            "s",
            0.1,
            120.0,
        ),
        Parameter(
            "niceness", 5, "How much the training gives way to the robot's processes", "", 0, 19
        ),
    ),
    "gateway": (
        Parameter("server_timeout_s", 10.0, "Longest wait for a server to appear", "s", 0.1, 600.0),
        Parameter("console", False, "Tell of the device and of diagnostics too"),
    ),
}


def read_file(path: Path) -> dict[str, dict]:
    """Node -> parameters that a YAML file of node parameters gives it, as ROS reads such files.

    Raises ValueError, with a sentence, for what the nodes would refuse or, worse, not heed: a
    section or a parameter that there is not, a wrong type, a bad value.
    """
    found: dict[str, dict] = {node: {} for node in PARAMETERS}
    try:
        for section, values in _sections(_load(path)):
            nodes = list(PARAMETERS) if section == "/**" else [section.removeprefix("/")]
            for name, value in values.items():
                _check(section, nodes, name, value)
            for node in nodes:
                found[node] |= values
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be used: {error} Nothing is started. Mend it, or leave config:= out."
        ) from error
    return found


def _load(path: Path):
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"it is no YAML ({' '.join(str(error).split())}).") from error


def _sections(content) -> Iterator[tuple[str, dict]]:
    form = "A section is NODE: {ros__parameters: {NAME: VALUE}}."
    if not isinstance(content, dict | None):
        raise ValueError(f"it holds no sections. {form}")
    for section, inner in (content or {}).items():
        node = str(section).removeprefix("/")
        if node != "**" and node not in PARAMETERS:
            raise ValueError(f"there is no node {section!r}{_meant(node, PARAMETERS)}.")
        values = inner.get("ros__parameters") if isinstance(inner, dict) else inner
        if not isinstance(values, dict | None) or set(inner or ()) - {"ros__parameters"}:
            raise ValueError(f"the section {section!r} is not understood. {form}")
        yield str(section), values or {}


def _check(section: str, nodes: list[str], name: str, value) -> None:
    declared = [parameter for node in nodes for parameter in PARAMETERS[node]]
    same = [parameter for parameter in declared if parameter.name == name]
    if not same:
        meant = _meant(name, [parameter.name for parameter in declared])
        raise ValueError(f"the node {section!r} has no parameter {name!r}{meant}.")
    if problem := next(filter(None, (parameter.problem(value) for parameter in same)), ""):
        raise ValueError(f"of {section!r}, {problem}")


def _meant(name: str, known) -> str:
    close = get_close_matches(str(name), known, 1)
    return f"; perhaps {close[0]!r} is meant" if close else f". There are: {', '.join(known)}"
