"""Limits on what may be executed. Numbers that are not finite are refused, never clamped."""

import math
from operator import mul, truediv

import numpy as np

from hapo_ros.arbitration.types import OPEN_M, ArbiterConfig, finite

ACTION_DIM = 7  # x y z roll pitch yaw gripper
ARM = slice(0, 6)
GRIPPER = 6


def valid_action(action) -> bool:
    """Whether ``action`` is (7,) and finite; anything else is refused whole."""
    return finite(action, ACTION_DIM)


class Limits:
    """The limits of an :class:`ArbiterConfig`, in units of the action.

    Translation and rotation each on its own:

    - speed of each axis and length of a step: the vector is scaled, its direction is kept;
    - acceleration: the speed in the direction asked for grows no faster. Slowing down, stopping and
      letting go of another direction take effect at once, so a stop is never delayed;
    - workspace: what would leave the box is taken out of the translation, what remains goes on, so
      the arm slides along a wall and can always come back in. Last, because nothing may undo it.
    """

    def __init__(self, config: ArbiterConfig):
        period_s = config.control_period_s
        linear, angular = config.linear_scale_m_s, config.angular_scale_rad_s

        def part(start, scale, fastest, step, growth):
            """Its place; in units of the action, largest of each axis, longest step, growth."""
            largest = tuple(min(speed / scale, 1.0) for speed in fastest)
            return start, largest, step / (scale * period_s), growth * period_s / scale

        self._parts = (
            part(0, linear, config.max_speed_m_s, config.max_step_m, config.max_acceleration_m_s2),
            part(
                3,
                angular,
                config.max_rate_rad_s,
                config.max_step_rad,
                config.max_acceleration_rad_s2,
            ),
        )
        self._low, self._high = config.workspace_min_m, config.workspace_max_m
        self._metres = config.step_m
        self.needs_pose = any(abs(side) < OPEN_M for side in (*self._low, *self._high))

    def apply(self, action, motion, pose=None) -> tuple[np.ndarray, bool]:
        """What may be executed of an action.

        action: (7,) finite. motion: (6,) executed in the step before. pose: of the hand, x y z in m
        first, in the frame of the workspace; needed where ``needs_pose``. Returns (7,) float32 and
        whether anything changed; the gripper is clipped to -1..1.
        """
        wanted = np.asarray(action).tolist()  # for 7 numbers plain floats are five times faster
        limited = list(wanted)
        for start, largest, longest, growth in self._parts:
            part = limited[start : start + 3]
            length = math.hypot(*part)
            if not length:
                continue
            over = max(length / longest, *map(truediv, map(abs, part), largest))
            factor = 1.0 / over if over > 1.0 else 1.0
            if growth:
                along = sum(map(mul, part, motion[start : start + 3]))
                factor = min(factor, (max(along / length, 0.0) + growth) / length)
            limited[start : start + 3] = [v * factor for v in part]
        if self.needs_pose:
            for axis, at in enumerate(pose[:3]):
                low = min((self._low[axis] - at) / self._metres, 0.0)
                high = max((self._high[axis] - at) / self._metres, 0.0)
                limited[axis] = min(max(limited[axis], low), high)
        limited[GRIPPER] = min(max(limited[GRIPPER], -1.0), 1.0)
        return np.array(limited, np.float32), limited != wanted


def hold(gripper: float) -> np.ndarray:
    """The (7,) float32 action of no motion, with the gripper left as it is."""
    action = np.zeros(ACTION_DIM, np.float32)
    action[GRIPPER] = gripper
    return action
