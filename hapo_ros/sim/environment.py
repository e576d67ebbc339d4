"""A robosuite task as a robot that is stepped at 20 Hz: actions in, observations out.

Deterministic: the same seed gives the same reset, rollout and images, bit for bit, whatever ran
before in the process.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hapo_ros.episodes.types import Observation
from hapo_ros.sim.rendering import Renderer, no_gl
from hapo_ros.sim.tasks import Task, named, quaternion

CONTROL_HZ = 20.0
ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
# OSC_POSE sets its goal 0.05 m and 0.5 rad from where the hand is for an action of 1, every 50 ms:
# 1 m/s and 10 rad/s asked for. The arm lags behind its goal, so what it reaches is less.
LINEAR_SCALE_M_S = 0.05 * CONTROL_HZ
ANGULAR_SCALE_RAD_S = 0.5 * CONTROL_HZ
NOTHING_APPLIED = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)  # at a reset: still, opening


@dataclass(frozen=True)
class Disturbance:
    """Bursts of a constant offset on the arm's six numbers, downstream of every decision.

    probability: that a burst starts at a step without one. sigma: standard deviation of the offset,
    per number, in action units. min_steps, max_steps: how long a burst lasts, both included.
    """

    probability: float = 0.05
    sigma: float = 0.45
    min_steps: int = 3
    max_steps: int = 9

    def __post_init__(self):
        if not 0 <= self.probability <= 1 or not 0 <= self.sigma < np.inf:
            raise ValueError("A disturbance needs a probability in 0..1 and a sigma of at least 0.")
        if not 1 <= self.min_steps <= self.max_steps:
            raise ValueError("A disturbance needs 1 <= min_steps <= max_steps.")


class _Bursts:
    """The offsets of one episode, in order; seeded by the episode's seed."""

    def __init__(self, disturbance: Disturbance | None, seed: int):
        self._disturbance = disturbance
        self._rng = np.random.default_rng([seed, 1])
        self._offset, self._left = np.zeros(6), 0

    def next(self) -> np.ndarray:
        """(6,) offset of the next step, zero outside a burst."""
        how = self._disturbance
        if self._left == 0:
            self._offset = np.zeros(6)
            if how is not None and self._rng.random() < how.probability:
                self._left = int(self._rng.integers(how.min_steps, how.max_steps + 1))
                self._offset = self._rng.normal(0.0, how.sigma, 6)
        self._left = max(self._left - 1, 0)
        return self._offset


def action_space() -> dict:
    """The action space as it goes into ``EpisodeInfo``: names, rate, and speed of action 1."""
    return {
        "names": list(ACTION_NAMES),
        "control_hz": CONTROL_HZ,
        "linear_scale_m_s": LINEAR_SCALE_M_S,
        "angular_scale_rad_s": ANGULAR_SCALE_RAD_S,
        "gripper": "-1 open, 1 closed",
        "frame": "world",
        "controller": "robosuite OSC_POSE, deltas",
    }


class Simulation:
    """One robot (Panda, OSC_POSE deltas) and one task.

    task: from :func:`hapo_ros.sim.tasks.get_task`. image_size: height and width in pixels. cameras:
    names out of ``task.cameras``; () renders nothing and needs no GL. disturbance: see
    :class:`Disturbance`. Raises ValueError for an unknown camera, and RuntimeError where images are
    asked for and no GL library is installed, or where robosuite is not.
    """

    def __init__(
        self,
        task: Task,
        image_size: int = 84,
        cameras: Sequence[str] = ("agentview", "wrist"),
        disturbance: Disturbance | None = None,
    ):
        unknown = [camera for camera in cameras if camera not in task.cameras]
        if unknown:
            raise ValueError(
                f"Task {task.name} has no camera {', '.join(unknown)}. "
                f"Its cameras: {', '.join(task.cameras)}."
            )
        self.task, self.image_size, self.cameras = task, int(image_size), tuple(cameras)
        self.disturbance = disturbance
        if cameras:
            os.environ.setdefault("MUJOCO_GL", "egl")  # before robosuite is imported
        self._env = _make_environment(task)
        seen = {camera: task.cameras[camera] for camera in cameras}
        self._renderer = Renderer(self._env.sim, seen, self.image_size) if cameras else None
        self.reset(0)

    def reset(self, seed: int, images: bool = True) -> Observation:
        """Start an episode. The seed places the objects and the arm, and makes the bursts.

        images: False renders none; :meth:`render` does when it is asked.
        """
        env = self._env
        env.rng = np.random.default_rng([int(seed), 0])
        placement = env.placement_initializer
        for sampler in (placement, *getattr(placement, "samplers", {}).values()):
            sampler.rng = env.rng
        env.reset()
        self._bursts = _Bursts(self.disturbance, int(seed))
        self.applied_action = NOTHING_APPLIED.copy()
        return self._observe(images)

    def step(self, action, images: bool = True) -> Observation:
        """Execute ``action`` for 50 ms; images: see :meth:`reset`.

        action: (7,) finite, ``ACTION_NAMES``, -1..1; motion in the world frame. No motion with the
        gripper as it was is a hold. What drove the robot is then in ``applied_action``. Raises
        ValueError for anything else.
        """
        action = np.asarray(action, np.float32)
        if action.shape != (len(ACTION_NAMES),):
            raise ValueError(f"An action has shape ({len(ACTION_NAMES)},), not {action.shape}.")
        if not np.all(np.isfinite(action)):
            raise ValueError(f"An action must be finite, not {action.tolist()}.")
        applied = action.copy()
        applied[:6] += self._bursts.next()
        self.applied_action = np.clip(applied, -1.0, 1.0)
        self._env.step(self.applied_action.astype(np.float64))
        return self._observe(images)

    @property
    def success(self) -> bool:
        """The task's own success predicate, now."""
        return bool(self._privileged["success"])

    def privileged(self) -> dict[str, float]:
        """What a human sees and a policy does not, by name, in a fixed order; float64.

        The hand's pose (grip site, world frame, m, quaternion x y z w), ``elbow`` (rad, -3.07
        folded to -0.07 straight), ``finger_opening`` (m, 0 to 0.08), ``gripper_command`` (last
        applied, -1 open), the task's own, and ``success`` (0 or 1).
        """
        return dict(self._privileged)

    def render(self, camera: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB of what one of ``cameras`` sees now."""
        return self._renderer.render(camera)

    def close(self) -> None:
        """Free the simulation and its GL context. Closing twice is harmless."""
        if self._renderer is not None:
            self._renderer.close()
        if self._env is not None:
            self._env.close()
            self._env = None

    def _observe(self, images: bool) -> Observation:
        import mujoco

        env, robot = self._env, self._env.robots[0]
        env.sim.forward()  # poses belong to the joint positions of this very moment
        data, site = env.sim.data, robot.eef_site_id["right"]
        arm = data.qpos[robot._ref_joint_pos_indexes]
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes["right"]]
        hand, wxyz = np.array(data.site_xpos[site]), np.empty(4)
        mujoco.mju_mat2Quat(wxyz, data.site_xmat[site].ravel())
        self._privileged = {
            **named("eef", "xyz", hand),
            **quaternion("eef", wxyz),
            "elbow": float(arm[3]),
            "finger_opening": float(fingers[0] - fingers[1]),
            "gripper_command": float(self.applied_action[6]),
            **self.task.objects(env),
            "success": float(env._check_success()),
        }
        return Observation(
            images={name: self.render(name) for name in self.cameras if images},
            joint_positions=np.concatenate([arm, fingers]),
            eef_pose=np.concatenate([hand, wxyz[[1, 2, 3, 0]]]),
            object_state=np.array([self._privileged[name] for name in self.task.object_state]),
        )


def _make_environment(task: Task):
    """The robosuite environment, without observables and rendering of its own."""
    logging.getLogger("robosuite_logs").addFilter(_is_error)
    try:
        import robosuite
        from robosuite.controllers import load_composite_controller_config
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"The simulation is not installed ({error}). Install robosuite 1.5.2 and mujoco 3.9.0."
        ) from error
    except (ImportError, AttributeError, OSError) as error:
        raise no_gl(error) from error
    controller = load_composite_controller_config(controller="BASIC", robot="Panda")
    controller["body_parts"] = {"right": controller["body_parts"]["right"]}
    env = robosuite.make(
        task.environment,
        robots="Panda",
        controller_configs=controller,
        renderer="mujoco",
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=False,
        control_freq=CONTROL_HZ,
        ignore_done=True,
        hard_reset=False,
        seed=0,  # of what is made once, such as the cube's size
    )
    for name in env.observation_names:  # what is needed is read directly: 3 ms a step, not 5
        env.modify_observable(name, "enabled", False)
    return env


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
