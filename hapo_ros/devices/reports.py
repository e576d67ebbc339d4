"""What every operator's device says, and the arithmetic on it. numpy only, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

AXES = ("x", "y", "z", "roll", "pitch", "yaw")


class DeviceLost(Exception):
    """The device cannot be read any more, or not opened; the text is for the operator."""


@dataclass(frozen=True)
class DeviceReport:
    """State of a device at one moment.

    axes: (6,) float32 deflection, -1..1: x y z roll pitch yaw. buttons: 0 or 1 each.
    received_s: steady clock at which it was read.
    """

    axes: np.ndarray
    buttons: tuple[int, ...]
    received_s: float


def apply_deadband(axes, deadband) -> np.ndarray:
    """(6,) float32 deflection in which each axis is 0 within its deadband and grows from 0 to 1
    beyond it, so there is no jump at the edge. deadband: one number, or (6,); 0 <= deadband < 1.
    """
    axes, deadband = np.asarray(axes, np.float64), np.asarray(deadband, np.float64)
    if not np.all((deadband >= 0) & (deadband < 1)):
        raise ValueError(f"deadband must be at least 0 and below 1, not {deadband.tolist()}")
    beyond = np.maximum(np.abs(axes) - deadband, 0.0) / (1.0 - deadband)
    return (np.sign(axes) * np.minimum(beyond, 1.0)).astype(np.float32)


def twist_from_axes(axes, linear_scale_m_s: float, angular_scale_rad_s: float) -> np.ndarray:
    """(6,) float64 motion asked for: axes (6,) times the speed (m/s) and rate (rad/s) of full
    deflection. Raises ValueError for other shapes, and for scales that are not finite or negative.
    NaN in the axes stays NaN: refusing it is the arbiter's.
    """
    axes = np.asarray(axes, np.float64)
    if axes.shape != (6,):
        raise ValueError(f"axes must have shape (6,), not {axes.shape}")
    scales = np.repeat(np.array([linear_scale_m_s, angular_scale_rad_s], np.float64), 3)
    if not np.all(np.isfinite(scales) & (scales >= 0)):
        raise ValueError(
            "scales must be finite and not negative, not "
            f"{linear_scale_m_s} m/s and {angular_scale_rad_s} rad/s"
        )
    return axes * scales


def condense(reports: Sequence[DeviceReport]) -> list[DeviceReport]:
    """The last report, and before it every one whose buttons the next one changed.

    A device reports faster than a node publishes; axes may be skipped, a press may not.
    """
    changing = [a for a, b in pairwise(reports) if a.buttons != b.buttons]
    return changing + list(reports[-1:])
