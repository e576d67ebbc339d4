"""Which nodes, parameters and restart rules a deployment has: data, and nothing else.

``launch/deploy.launch.py`` translates it for ROS 2's launch, ``hapo deploy`` supervises the same
executables where launch is not installed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hapo_ros.policies.promoted import current, written_ns
from hapo_ros.resources import resource
from hapo_ros.settings import of_deployment
from hapo_ros.sim.tasks import get_task

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
    Argument("robot", "simulation", "What executes the actions", ("simulation",)),
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
    for argument in ARGUMENTS:
        if argument.choices and values[argument.name] not in argument.choices:
            raise ValueError(
                f"{argument.name}:={values[argument.name]} is not known. Nothing is started. Use "
                f"one of: {', '.join(argument.choices)}."
            )
    get_task(values["task"])
    for name in ("episodes", "takeovers", "first_seed"):
        if not values[name].isdecimal():
            raise ValueError(f"{name} must be a whole number >= 0, not {values[name]!r}.")
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
    checkpoints = Path(values["checkpoints"]).resolve()
    policy = values["policy"] or current(checkpoints) or resource("models/lift_base")
    policy = Path(policy).resolve()
    # A policy that was asked for by name is served, whatever was promoted before.
    promoted_after_ns = written_ns(checkpoints) if values["policy"] else 0
    cameras, image_size, object_state = _what_it_sees(policy)
    simulated = values["operator"] == "simulated"
    lock_step = {"auto": simulated, "true": True, "false": False}[values["lock_step"]]
    if lock_step and not simulated:
        raise ValueError(
            "lock_step:=true needs operator:=simulated: a person does not answer every tick. "
            "Nothing is started. Leave lock_step out."
        )
    seen = {"cameras": cameras or [""], "object_state": object_state}
    mode = {"lock_step": lock_step}
    bags = str(Path(values["bags"]).resolve())
    again = Restart()
    arbiter = mode | {"readers": 2 if lock_step else 0}
    arbiter |= {"on_device_lost": "continue"} if values["operator"] == "none" else {}
    operator = _operator(values, lock_step)
    hand = (operator[0].name, operator[0].parameters) if operator else None
    settings = of_deployment(values["robot"], values["operator"], parameter_file, arbiter, hand)
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
        NodeSpec(
            "robosuite_bridge",
            "robosuite_bridge",
            seen
            | mode
            | {
                "task": values["task"],
                "image_size": image_size,
                "tick_readers": ["policy", "arbiter", "recorder"]
                + (["simulated_operator"] if simulated else []),
                "image_readers": ["policy", "recorder"],
            },
            essential=True,
            stop_order=2,
        ),
        NodeSpec("arbiter", "arbiter", arbiter, restart=again, stop_order=1),
        NodeSpec(
            "policy",
            "policy",
            {
                "checkpoint": str(policy),
                "promoted": str(checkpoints),
                "promoted_after_ns": promoted_after_ns,
                "readers": 2 if lock_step else 0,
            },
            restart=again,
        ),
    ]
    nodes += operator
    if values["optimizer"] == "true":
        nodes.append(NodeSpec("optimizer", "optimizer", stop_timeout_s=15.0))
    return Deployment(tuple(nodes), parameter_file.resolve(), lock_step, values)


def _operator(values: Mapping[str, str], lock_step: bool) -> list[NodeSpec]:
    operator = values["operator"]
    if operator == "none":
        return []
    if operator == "spacemouse":
        # It refuses to start without a device. Later it waits for a lost one by itself.
        return [NodeSpec("spacemouse", "spacemouse", restart=Restart(refusal_s=10.0))]
    if operator == "keyboard":
        # It has the terminal, and q in it ends the run.
        return [NodeSpec("keyboard", "keyboard", essential=True, terminal=True)]
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


def _what_it_sees(policy: Path) -> tuple[list[str], int, bool]:
    """Cameras, image size and whether the object state is needed, from a checkpoint's config."""
    from hapo_ros.policies.checkpoint import read_config

    config = read_config(policy)["config"]
    cameras = dict(config["cameras"])
    sizes = {tuple(size) for size in cameras.values()}
    if len(sizes) > 1 or any(height != width for height, width in sizes):
        raise ValueError(
            f"{policy} needs images of {sorted(sizes)}; the simulation renders one square size. "
            "Nothing is started. Serve a checkpoint of one square image size."
        )
    size = next(iter(sizes))[0] if sizes else 84
    return list(cameras), int(size), bool(config["object_state"])
