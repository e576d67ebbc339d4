"""Actions <-> a robot's commands: twists in its servo's units, a gripper that is open or not."""

import numpy as np

from hapo_ros.arbitration.limits import ARM, GRIPPER, valid_action
from hapo_ros.robots.config import GripperConfig, RobotConfig

NO_MOTION = np.zeros(6)
NO_MOTION.setflags(write=False)
_OPEN_SHARE = 0.1  # of the way from open to closed: nearer to open than that, fingers hold nothing


def twist_from(action, robot: RobotConfig) -> np.ndarray:
    """(6,) float64 linear and angular numbers of the servo's TwistStamped, for a (7,) action.

    In m/s and rad/s, or in -1..1 for a unitless servo; along the axes of the robot's base frame.
    Raises ValueError for an action that is not (7,) and finite: NaN is never made into a number.
    """
    if not valid_action(action):
        raise ValueError(f"an action of a robot is 7 finite numbers, not {np.asarray(action)}")
    return np.asarray(action, np.float64)[ARM] * _scale(robot)


def action_from(twist, closed: bool, robot: RobotConfig) -> np.ndarray:
    """(7,) float32 action that a twist in the servo's units and a gripper command stand for.

    Raises ValueError for a twist that is not (6,) and finite.
    """
    twist = np.asarray(twist, np.float64)
    if twist.shape != (6,) or not np.isfinite(twist).all():
        raise ValueError(f"a twist is 6 finite numbers, not {twist}")
    return np.append(twist / _scale(robot), 1.0 if closed else -1.0).astype(np.float32)


def within_limits(action, robot: RobotConfig) -> bool:
    """Whether a finite (7,) action is within the robot's speeds, up to rounding."""
    linear, angular = np.abs(np.asarray(action, np.float64)[ARM]).reshape(2, 3).max(1)
    return bool(linear <= robot.max_linear + 1e-4 and angular <= robot.max_angular + 1e-4)


def closes(action) -> bool:
    """Whether an action wants the gripper closed: its last number is above 0."""
    return bool(action[GRIPPER] > 0)


def gripper_value(closed: bool, gripper: GripperConfig) -> float:
    """What the gripper's controller is sent."""
    return gripper.closed if closed else gripper.open


def gripper_closed(value: float, gripper: GripperConfig) -> bool:
    """Whether a commanded or measured value means closed: away from open, on the way to closed.

    Fingers that hold something stop on the way.
    """
    return (value - gripper.open) / (gripper.closed - gripper.open) > _OPEN_SHARE


def _scale(robot: RobotConfig) -> np.ndarray:
    if robot.unitless:
        return np.ones(6)
    return np.array([robot.linear_scale_m_s] * 3 + [robot.angular_scale_rad_s] * 3)
