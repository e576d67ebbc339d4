"""Limits on what may be executed. Numbers that are not finite are refused, never clamped."""

import numpy as np

ACTION_DIM = 7  # x y z roll pitch yaw gripper
ARM = slice(0, 6)
GRIPPER = 6


def valid_action(action) -> bool:
    """Whether ``action`` is (7,) and finite; anything else is refused whole."""
    action = np.asarray(action)
    return action.shape == (ACTION_DIM,) and bool(np.all(np.isfinite(action)))


def limit_action(action, max_linear: float, max_angular: float) -> tuple[np.ndarray, bool]:
    """Scale motion into its limits with its direction kept; the gripper is clipped to -1..1.

    action: (7,) finite, of x y z, roll pitch yaw and gripper. Returns (7,) float32 and whether
    anything changed. Translation and rotation are scaled separately, each by its largest component.
    """
    limited = np.array(action, np.float64)
    for part, largest in ((slice(0, 3), max_linear), (slice(3, 6), max_angular)):
        size = np.abs(limited[part]).max()
        if size > largest:
            limited[part] *= largest / size
    limited[GRIPPER] = np.clip(limited[GRIPPER], -1.0, 1.0)
    return limited.astype(np.float32), bool(np.any(limited != action))


def hold(gripper: float) -> np.ndarray:
    """The (7,) float32 action of no motion, with the gripper left as it is."""
    action = np.zeros(ACTION_DIM, np.float32)
    action[GRIPPER] = gripper
    return action
