"""Which nodes, parameters and restart rules a deployment has: data, and nothing else.

``launch/deploy.launch.py`` translates it for ROS 2's launch, ``hapo deploy`` supervises the same
executables where launch is not installed.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hapo_ros.parameters import PARAMETERS, read_file
from hapo_ros.policies.promoted import current, written_ns
from hapo_ros.resources import resource
from hapo_ros.robots import config as robots
from hapo_ros.settings import of_deployment
from hapo_ros.sim.tasks import TASKS, get_task

PACKAGE = "hapo_ros"


@dataclass(frozen=True)
class Argument:
    """An argument of a deployment; given as ``name:=value``, always text."""

    name: str
    default: str
    text: str
    choices: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        return f"{self.text} ({' | '.join(self.choices)})" if self.choices else self.text


ARGUMENTS = (
    Argument("task", "Lift", "Task of the episodes"),
    Argument("policy", "", "Checkpoint to serve; empty: the promoted one, or the one that ships"),
    Argument("instruction", "", "What the policy is told; empty: as the task says"),
    Argument(
        "robot",
        "simulation",
        "What executes the actions: simulation, a robot of config/robots, or its FILE.yaml",
    ),
    Argument(
        "robot_dry_run",
        "false",
        "Send the robot nothing, and show what would be sent",
        ("true", "false"),
    ),
    Argument(
        "operator", "spacemouse", "Who takes over", ("spacemouse", "keyboard", "simulated", "none")
    ),
    Argument("bags", "runs/bags", "Folder of the recorded episodes"),
    Argument("checkpoints", "runs/checkpoints", "Folder that current.json of `hapo promote` is in"),
    Argument("config", "", "YAML file of node parameters; empty: the one that ships"),
    Argument(
        "lock_step",
        "auto",
        "Wait for every decision; auto: with a simulated operator",
        ("auto", "true", "false"),
    ),
    Argument("optimizer", "true", "Start the optimizer node", ("true", "false")),
    Argument("episodes", "10", "Episodes of the simulated operator, at most"),
    Argument("takeovers", "0", "The simulated operator stops after this many takeovers; 0: never"),
    Argument("first_seed", "1", "Seed of the simulated operator's first episode"),
)


@dataclass(frozen=True)
class Restart:
    """A node that dies is started again, at most ``times`` in ``within_s``; then the run ends.

    refusal_s: exit code 1 within this time of the run's begin is no accident but the node's word
    that what it needs is not there, and ends the run; 0: it never is.
    """

    times: int = 3
    within_s: float = 60.0
    delay_s: float = 0.2
    refusal_s: float = 0.0


@dataclass(frozen=True)
class NodeSpec:
    """One node of a deployment, in its own process.

    restart: None: not restarted. essential: its end ends the run. done: its end with exit code 0 is
    a success, ends the run and it is not started again. terminal: it reads this terminal.
    stop_order: nodes are stopped in this order, those of equal order together. stop_timeout_s: from
    SIGTERM to SIGKILL.
    """

    name: str
    executable: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    restart: Restart | None = None
    essential: bool = False
    done: bool = False
    terminal: bool = False
    stop_order: int = 0
    stop_timeout_s: float = 5.0


@dataclass(frozen=True)
class Deployment:
    """Everything ``describe`` found out: nodes in order of start, and the parameter file."""

    nodes: tuple[NodeSpec, ...]
    parameter_file: Path
    lock_step: bool
    arguments: Mapping[str, str]


def parse(words) -> dict[str, str]:
    """``["task:=Lift", ...]`` -> dict. Raises ValueError for what is not of that form."""
    values = {}
    for word in words:
        name, separator, value = word.partition(":=")
        if not separator:
            raise ValueError(f"{word!r} is no argument. Write name:=value, such as task:=Lift.")
        values[name] = value
    return values


def _complete(arguments: Mapping[str, str]) -> dict[str, str]:
    known = {argument.name: argument for argument in ARGUMENTS}
    for name in arguments:
        if name not in known:
            raise ValueError(
                f"There is no argument {name!r}. Nothing is started. Use: {', '.join(known)}."
            )
    values = {name: str(arguments.get(name, known[name].default)) for name in known}
    values = {name: os.path.expanduser(value) for name, value in values.items()}  # name:=~/folder
    for argument in ARGUMENTS:
        if argument.choices and values[argument.name] not in argument.choices:
            raise ValueError(
                f"{argument.name}:={values[argument.name]} is not known. Nothing is started. Use "
                f"one of: {', '.join(argument.choices)}."
            )
    operator = {parameter.name: parameter for parameter in PARAMETERS["simulated_operator"]}
    for name in ("episodes", "takeovers", "first_seed"):
        value = int(values[name]) if values[name].isdecimal() else values[name]
        if problem := operator[name].problem(value):
            raise ValueError(f"{problem} Nothing is started.")
    return values


def describe(arguments: Mapping[str, str] | None = None) -> Deployment:
    """The nodes of a deployment, their parameters and restart rules.

    arguments: see :data:`ARGUMENTS`; missing ones have their defaults. Starts nothing. Raises
    ValueError or FileNotFoundError with a sentence where the arguments cannot be used.
    """
    values = _complete(arguments or {})
    parameter_file = Path(values["config"] or resource("config/deployment.yaml"))
    if not parameter_file.is_file():
        raise FileNotFoundError(
            f"There is no configuration {parameter_file}. Nothing is started. Give config:=FILE."
        )
    in_file = read_file(parameter_file)
    checkpoints = Path(values["checkpoints"]).resolve()
    policy = values["policy"] or current(checkpoints) or resource("models/lift_base")
    policy = Path(policy).resolve()
    # A policy that was asked for by name is served, whatever was promoted before.
    promoted_ignored_ns = written_ns(checkpoints) if values["policy"] else 0
    robot = None if values["robot"] == "simulation" else robots.load(values["robot"])
    _check_together(values, robot)
    sizes, object_state = _what_it_sees(policy)
    simulated = values["operator"] == "simulated"
    lock_step = values["lock_step"] == "true" or (
        values["lock_step"] == "auto" and simulated and robot is None
    )
    seen = {"cameras": list(sizes) or [""], "object_state": object_state}
    mode = {"lock_step": lock_step}
    bags = str(Path(values["bags"]).resolve())
    again = Restart()
    arbiter = mode | {"readers": 2 if lock_step else 0} | _arbiter(values, robot)
    if lock_step:  # whoever does not decide is given up sooner, by the simulation
        arbiter["give_up_ticks_s"] = 60.0
    defaults = {parameter.name: parameter.default for parameter in PARAMETERS["arbiter"]}
    deadline_s = (defaults | in_file["arbiter"] | arbiter)["policy_deadline_s"]
    operator = _operator(values, robot, lock_step)
    hand = (operator[0].name, operator[0].parameters) if operator else None
    try:
        settings = of_deployment(values["robot"], values["operator"], in_file, arbiter, hand)
    except ValueError as error:
        raise ValueError(
            f"{parameter_file} cannot be used: {error}. Nothing is started. Mend it, or leave "
            "config:= out."
        ) from error
    if robot is not None:
        settings["robot_dry_run"] = values["robot_dry_run"]
    nodes = [
        NodeSpec(
            "recorder",
            "recorder",
            seen
            | mode
            | {
                "operator": values["operator"] != "none",
                "root": bags,
                "settings_json": json.dumps(settings),
            },
            restart=again,
            stop_order=3,
            stop_timeout_s=15.0,
        ),
        *(
            _simulation(values, seen | mode, sizes, policy)
            if robot is None
            else _robot(values, robot, sizes, object_state, policy)
        ),
        NodeSpec("arbiter", "arbiter", arbiter, restart=again, stop_order=1),
        NodeSpec(
            "policy",
            "policy",
            {
                "checkpoint": str(policy),
                "promoted": str(checkpoints),
                "promoted_ignored_ns": promoted_ignored_ns,
                "deadline_s": 0.0 if lock_step else deadline_s,
                "readers": 2 if lock_step else 0,
            },
            restart=again,
        ),
    ]
    nodes += operator
    if values["optimizer"] == "true":
        nodes.append(NodeSpec("optimizer", "optimizer", stop_timeout_s=15.0))
    return Deployment(tuple(nodes), parameter_file.resolve(), lock_step, values)


def _check_together(values: Mapping[str, str], robot: robots.RobotConfig | None) -> None:
    """Raise ValueError where arguments do not go together."""
    simulated = values["operator"] == "simulated"
    if robot is None or robot.simulated or not values["instruction"]:
        get_task(values["task"])
    for name, unset in (("robot_dry_run", "false"), ("instruction", "")):
        if robot is None and values[name] != unset:
            raise ValueError(
                f"{name}:= is for a robot, and robot:=simulation is none. Nothing is started. "
                "Leave it out, or name the robot."
            )
    if robot is not None and simulated and not robot.simulated:
        raise ValueError(
            f"operator:=simulated needs a simulation: it cannot see what robot {robot.name} does. "
            "Nothing is started. Use operator:=spacemouse."
        )
    if values["lock_step"] == "true" and robot is not None:
        raise ValueError(
            f"lock_step:=true needs robot:=simulation: {robot.name} does not wait for a decision. "
            "Nothing is started. Leave lock_step out."
        )
    if values["lock_step"] == "true" and not simulated:
        raise ValueError(
            "lock_step:=true needs operator:=simulated: a person does not answer every tick. "
            "Nothing is started. Leave lock_step out."
        )


def _simulation(values: Mapping[str, str], shared: dict, sizes: dict, policy: Path):
    """The simulation: lock-step or real time, one square image size."""
    different = set(sizes.values())
    if len(different) > 1 or any(height != width for height, width in different):
        raise ValueError(
            f"{policy} needs images of {sorted(different)}; the simulation renders one square size."
            " Nothing is started. Serve a checkpoint of one square image size."
        )
    return [
        NodeSpec(
            "robosuite_bridge",
            "robosuite_bridge",
            shared
            | {
                "task": values["task"],
                "image_size": next(iter(different))[0] if different else 84,
                "tick_readers": ["policy", "arbiter", "recorder"]
                + (["simulated_operator"] if values["operator"] == "simulated" else []),
                "image_readers": ["policy", "recorder"],
            },
            essential=True,
            stop_order=2,
        )
    ]


def _robot(
    values: Mapping[str, str],
    robot: robots.RobotConfig,
    sizes: dict,
    object_state: bool,
    policy: Path,
) -> list[NodeSpec]:
    """A robot's two sides, and its stand-in where it is simulated."""
    offered = {camera.name: camera.size for camera in robot.cameras}
    needs = [f"camera {c} of {h} x {w}" for c, (h, w) in sizes.items() if offered.get(c) != (h, w)]
    needs += ["an object state"] if object_state else []
    if needs:
        has = [f"{name} of {h} x {w}" for name, (h, w) in offered.items()]
        raise ValueError(
            f"{policy} needs {', '.join(needs)}; robot {robot.name} has cameras "
            f"{', '.join(has) or 'none'}. Nothing is started. Serve a policy of this robot, or "
            "change the robot's file."
        )
    simulated = ["simulated_robot"] if robot.simulated else []
    simulated += ["simulated_operator"] if values["operator"] == "simulated" else []
    path = Path(values["robot"])
    named = {"robot": str(path.resolve() if path.suffix else path)}
    task = TASKS.get(values["task"])
    specs = [
        NodeSpec(
            "observation_assembler",
            "observation_assembler",
            named
            | {
                "task": values["task"],
                "instruction": values["instruction"] or task.instruction,
                "cameras": list(sizes) or [""],
                "tick_readers": ["policy", "arbiter", "recorder", "robot_output", *simulated],
                "image_readers": ["policy", "recorder"],
            },
            # Restarted: a human who has the arm keeps it. The recording ends without one.
            restart=Restart(refusal_s=10.0),
            stop_order=2,
        ),
        # Restarted: a human has to be able to move the arm away. It stops the arm as it comes up,
        # and a policy that had the arm moves it only after a human's act.
        NodeSpec(
            "robot_output",
            "robot_output",
            named | {"dry_run": values["robot_dry_run"] == "true"},
            restart=Restart(),
            stop_order=2,
        ),
    ]
    if robot.simulated:
        parameters = named | {"task": values["task"]}
        specs.append(
            NodeSpec("simulated_robot", "simulated_robot", parameters, essential=True, stop_order=3)
        )
    return specs


def _arbiter(values: Mapping[str, str], robot: robots.RobotConfig | None) -> dict:
    """What the arbiter has to know of who is there and what it commands."""
    if robot is None:
        return {"on_device_lost": "continue"} if values["operator"] == "none" else {}
    box = {"workspace_min_m": robot.workspace_min_m, "workspace_max_m": robot.workspace_max_m}
    return {
        "control_period_s": robot.control_period_s,
        "policy_deadline_s": round(0.8 * robot.control_period_s, 6),
        "linear_scale_m_s": robot.linear_scale_m_s,
        "angular_scale_rad_s": robot.angular_scale_rad_s,
        "max_speed_m_s": [robot.max_linear_m_s] * 3,
        "max_rate_rad_s": [robot.max_angular_rad_s] * 3,
        "max_acceleration_m_s2": robot.max_acceleration_m_s2,
        "max_acceleration_rad_s2": robot.max_acceleration_rad_s2,
    } | {name: list(corner) for name, corner in box.items() if math.isfinite(corner[0])}


def _operator(
    values: Mapping[str, str], robot: robots.RobotConfig | None, lock_step: bool
) -> list[NodeSpec]:
    operator = values["operator"]
    if operator == "none":
        return []
    scales = {}
    if robot is not None:  # full deflection is action 1
        scales = {
            "linear_scale_m_s": robot.linear_scale_m_s,
            "angular_scale_rad_s": robot.angular_scale_rad_s,
        }
    if operator == "spacemouse":
        # It refuses to start without a device. Later it waits for a lost one by itself.
        return [NodeSpec("spacemouse", "spacemouse", scales, restart=Restart(refusal_s=10.0))]
    if operator == "keyboard":
        # It has the terminal, and q in it ends the run.
        return [NodeSpec("keyboard", "keyboard", scales, essential=True, terminal=True)]
    parameters = {
        "task": values["task"],
        "lock_step": lock_step,
        "episodes": int(values["episodes"]),
        "takeovers": int(values["takeovers"]),
        "first_seed": int(values["first_seed"]),
    }
    # It gives up after a minute in which no episode could be started: those ends count together.
    again = Restart(within_s=600.0)
    name = "simulated_operator"
    return [NodeSpec(name, name, parameters, restart=again, done=True)]


def check_devices(deployment: Deployment) -> None:
    """Raise DeviceLost with a sentence where the operator's device is not plugged in.

    Before anything is started: the nodes beside it would take seconds to start and to stop.
    """
    if deployment.arguments["operator"] != "spacemouse":
        return
    from hapo_ros.devices import DeviceLost
    from hapo_ros.devices.spacemouse import INSTEAD, list_devices

    try:
        problem = "" if list_devices() else "No SpaceMouse is plugged in."
    except DeviceLost as error:
        problem = str(error)
    if problem:
        raise DeviceLost(f"{problem} Nothing is started. {INSTEAD}")


def _what_it_sees(policy: Path) -> tuple[dict[str, tuple[int, int]], bool]:
    """Camera -> (height, width), and whether it needs the object state, from a checkpoint."""
    from hapo_ros.policies.checkpoint import read_config

    config = read_config(policy)["config"]
    sizes = {name: tuple(map(int, size)) for name, size in dict(config["cameras"]).items()}
    return sizes, bool(config["object_state"])
