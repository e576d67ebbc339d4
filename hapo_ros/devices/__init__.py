"""Operator's devices: what the hand does -> six axes and buttons, and the twist they ask for.

Axes are a cap's deflection, -1..1, in the robot's base frame as the operator sees it from behind
the robot (REP 103): x forward, y left, z up, then the turns about them.
"""

from hapo_ros.devices.reports import (
    AXES,
    DeviceLost,
    DeviceReport,
    apply_deadband,
    twist_from_axes,
)

__all__ = ["AXES", "DeviceLost", "DeviceReport", "apply_deadband", "twist_from_axes"]
