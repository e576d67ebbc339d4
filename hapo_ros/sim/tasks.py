"""The simulation tasks, as data: what is asked, what is seen, when it is done, who can do it.

A task is one entry of :data:`TASKS`; everything else in ``sim`` is the same for all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from hapo_ros.sim.expert import LiftExpert

TABLE_HEIGHT_M = 0.8
CAMERAS = MappingProxyType({"agentview": "agentview", "wrist": "robot0_eye_in_hand"})


@dataclass(frozen=True)
class Progress:
    """How far a task has come: a later phase is further; within one, a larger ``value`` (m)."""

    phase: int
    value: float


@dataclass(frozen=True)
class Task:
    """One task.

    name: as on the command line and in a bag. instruction: what the policy is told. environment:
    robosuite's name of it. horizon: steps at 20 Hz after which an episode has failed. objects:
    reads a running robosuite environment and returns named float64 numbers (poses in the world
    frame, m; quaternions x y z w). object_state: names of the privileged numbers that a state-based
    policy sees. expert: makes a scripted expert with ``act(privileged) -> (7,) float32``. progress:
    how far the task has come. resolved: whether a correction has overcome the difficulty, so that
    the policy can finish. cameras: name in ``Observation.images`` -> robosuite's name.
    """

    name: str
    instruction: str
    environment: str
    horizon: int
    objects: Callable[[object], dict[str, float]]
    object_state: tuple[str, ...]
    expert: Callable[[], object]
    progress: Callable[[Mapping[str, float]], Progress]
    resolved: Callable[[Mapping[str, float]], bool]
    cameras: Mapping[str, str] = field(default_factory=lambda: CAMERAS)


def named(prefix: str, axes: str, values) -> dict[str, float]:
    """``named("cube", "xyz", position)`` -> ``{"cube_x": ..., "cube_y": ..., "cube_z": ...}``."""
    return {f"{prefix}_{axis}": float(value) for axis, value in zip(axes, values, strict=True)}


def quaternion(prefix: str, wxyz) -> dict[str, float]:
    """MuJoCo's quaternion w x y z as ``prefix_qx`` ... ``prefix_qw``, in our order x y z w."""
    w, x, y, z = (float(value) for value in wxyz)
    return {f"{prefix}_qx": x, f"{prefix}_qy": y, f"{prefix}_qz": z, f"{prefix}_qw": w}


def _lift_objects(env) -> dict[str, float]:
    data, cube = env.sim.data, env.cube_body_id
    position, gripper = data.body_xpos[cube], data.site_xpos[env.robots[0].eef_site_id["right"]]
    grasped = env._check_grasp(gripper=env.robots[0].gripper["right"], object_geoms=env.cube)
    return {
        **named("cube", "xyz", position),
        **quaternion("cube", data.body_xquat[cube]),
        **named("gripper_to_cube", "xyz", position - gripper),
        "cube_height": float(position[2] - TABLE_HEIGHT_M),  # of its centre; 0.021 when it rests
        "grasped": float(grasped),
    }


def _lift_progress(privileged: Mapping[str, float]) -> Progress:
    if privileged["grasped"]:
        return Progress(1, privileged["cube_height"])
    away = sum(privileged[f"gripper_to_cube_{axis}"] ** 2 for axis in "xyz") ** 0.5
    return Progress(0, -away)


def _lift_resolved(privileged: Mapping[str, float]) -> bool:
    """The cube is held and has left the table, by 1 to 3 mm: lifting it is left to the policy."""
    return bool(privileged["grasped"]) and privileged["cube_height"] > 0.023


LIFT = Task(
    name="Lift",
    instruction="lift the cube",
    environment="Lift",
    horizon=150,
    objects=_lift_objects,
    object_state=(
        *(f"cube_{axis}" for axis in ("x", "y", "z", "qx", "qy", "qz", "qw")),
        *(f"gripper_to_cube_{axis}" for axis in "xyz"),
    ),
    expert=LiftExpert,
    progress=_lift_progress,
    resolved=_lift_resolved,
)

TASKS: dict[str, Task] = {task.name: task for task in (LIFT,)}  # the next task goes in here


def get_task(name: str) -> Task:
    """The task of that name. Raises ValueError, with the names there are."""
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}. Known tasks: {', '.join(TASKS)}.")
    return TASKS[name]
