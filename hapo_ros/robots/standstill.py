"""A robot that is told to move and does not, which its servo may not say of itself.

'Applied' means that the servo was sent the command and listens. One that is paused, has no command
type, or has halted at a singularity or in contact listens too. Pure.
"""

import math
from collections import deque

import numpy as np

from hapo_ros.arbitration.limits import ARM
from hapo_ros.arbitration.types import Applied
from hapo_ros.robots.config import RobotConfig

WINDOW_S = 1.0
DELAY_S = 0.3  # what was asked later than that may still be on its way
ASKED = (0.01, 0.1)  # m, rad: with less there is nothing to see
MOVED = 0.05  # of what was asked; less is standing still


class Standstill:
    """Compares what a robot was asked to do in the last second with how its pose changed."""

    def __init__(self, robot: RobotConfig):
        period_s = robot.control_period_s
        scales = [robot.linear_scale_m_s] * 3 + [robot.angular_scale_rad_s] * 3
        self._way = np.array(scales) * period_s  # of action 1 in a period: m, rad
        self._delay = math.ceil(DELAY_S / period_s)
        self._steps = deque(maxlen=1 + self._delay + math.ceil((WINDOW_S - DELAY_S) / period_s))

    def see(self, applied: Applied, action: np.ndarray, pose: np.ndarray) -> None:
        """Take in a tick: what became of the last decision, (7,) action applied, (7,) pose now."""
        if applied is not Applied.APPLIED:
            self._steps.clear()
        self._steps.append((np.asarray(action, np.float64)[ARM] * self._way, pose))

    @property
    def text(self) -> str:
        """A sentence where the robot stands still though it was told to move; else empty."""
        steps = list(self._steps)
        if len(steps) < self._steps.maxlen:
            return ""
        asked = sum(way for way, _ in steps[1 : len(steps) - self._delay])
        poses = np.array([pose for _, pose in steps])
        ways = (np.linalg.norm(asked[:3]), np.linalg.norm(asked[3:]))
        moved = (
            np.linalg.norm(poses[:, :3] - poses[0, :3], axis=1).max(),
            2 * np.arccos(np.clip(np.abs(poses[:, 3:] @ poses[0, 3:]).min(), 0.0, 1.0)),
        )
        for way, least, far, unit in zip(ways, ASKED, moved, ("m", "rad"), strict=True):
            if way >= least and far < MOVED * way:
                return (
                    f"The robot is told to move and does not ({way:.3f} {unit} asked, {far:.4f} "
                    f"{unit} seen): is its servo paused, without a command type, at a singularity "
                    "or in contact? The steps count as applied. Look at the servo's own status."
                )
        return ""
