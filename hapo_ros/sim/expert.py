"""Scripted experts on privileged state: the competence of the simulated human.

Proportional servoing to where the object is now; nothing is remembered, so an expert can go on from
whatever state a policy has left. Actions are (7,) float32 in OSC_POSE's own units: x y z and
roll pitch yaw deltas in the world frame, -1..1, and the gripper, -1 open or +1 closed.
"""

from collections.abc import Mapping

import numpy as np

GAIN = 2.0
LINEAR_UNIT_M = 0.05  # position error that counts as 1
ANGULAR_UNIT_RAD = 0.5
SHOULDER = np.array([-0.56, 0.0, 0.0])  # of the Panda at its table, world frame, in the plane
OPEN, CLOSED = -1.0, 1.0


def position(privileged: Mapping[str, float], prefix: str) -> np.ndarray:
    """(3,) m, world frame."""
    return np.array([privileged[f"{prefix}_{axis}"] for axis in "xyz"])


def rotation(privileged: Mapping[str, float], prefix: str) -> np.ndarray:
    """(3, 3) rotation matrix, body axes as columns in the world frame."""
    x, y, z, w = (privileged[f"{prefix}_q{axis}"] for axis in "xyzw")
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def servo(offset_m, turn_rad, gripper: float) -> np.ndarray:
    """Action (7,) that moves by ``offset_m`` and turns by the rotation vector ``turn_rad``."""
    linear = GAIN * np.asarray(offset_m) / LINEAR_UNIT_M
    angular = GAIN * np.asarray(turn_rad) / ANGULAR_UNIT_RAD
    return np.r_[np.clip(np.r_[linear, angular], -1, 1), gripper].astype(np.float32)


def turn_between(current: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation vector (3,), world frame, that takes one (3, 3) rotation to another; rad, <= pi."""
    error = target @ current.T
    (_, xy, xz), (yx, _, yz), (zx, zy, _) = error
    axis = np.array([zy - yz, xz - zx, yx - xy])
    sine, cosine = np.linalg.norm(axis) / 2, (np.trace(error) - 1) / 2
    if sine < 1e-9:  # no turn; or half a turn, whose direction is left to the next step
        return np.zeros(3)
    return axis / (2 * sine) * np.arctan2(sine, cosine)


def grasp_rotation(eef: np.ndarray, cube: np.ndarray) -> np.ndarray:
    """(3, 3) rotation of the hand that points down and closes along a side of the cube.

    The fingers close along the hand's x axis; its z axis points out of the palm. Of the four sides
    the one nearest to the left (+y) is taken, as the arm starts, so that the wrist never winds up
    to its limit; where two are about as near, the one nearer to the hand.
    """
    sides = [side for side in (*cube.T, *-cube.T) if abs(side[2]) < 0.8]
    flat = [np.r_[side[:2], 0] / np.linalg.norm(side[:2]) for side in sides]
    x = max(flat, key=lambda side: side[1] + 0.3 * side @ eef[:, 0])
    z = np.array([0.0, 0.0, -1.0])
    return np.stack([x, np.cross(z, x), z], axis=1)


class LiftExpert:
    """Hover over the cube, descend, close, lift. Starts again wherever the cube has got to."""

    hover_m = 0.08  # above the cube's centre
    lift_m = 0.08  # per step at most; saturates the action
    open_m = 0.06  # fingers this far apart pass over the cube
    near_m = 0.012  # hand at the cube: close
    straight_rad = -1.2  # an elbow straighter than this is bent first
    keep_m = 0.02  # hand still at the cube: go on closing, or descending

    def act(self, privileged: Mapping[str, float]) -> np.ndarray:
        """The action (7,) float32 for the state in ``privileged`` (see ``Simulation``)."""
        hand = rotation(privileged, "eef")
        turn = turn_between(hand, grasp_rotation(hand, rotation(privileged, "cube")))
        offset = position(privileged, "cube") - position(privileged, "eef")
        beside, angle = np.linalg.norm(offset[:2]), np.linalg.norm(turn)
        closing = privileged["gripper_command"] > 0
        apart = privileged["finger_opening"] > self.open_m

        if privileged["grasped"]:
            return servo([0, 0, self.lift_m], np.zeros(3), CLOSED)
        reach = self.keep_m if closing else self.near_m
        around = np.linalg.norm(offset) < reach and angle < 0.3
        if around and (apart or (closing and privileged["finger_opening"] > 0.03)):
            return servo(offset, turn, CLOSED)
        if beside < self.keep_m and angle < 0.2 and apart:
            return servo(offset, turn, OPEN)
        above = offset + [0, 0, self.hover_m]
        outwards = position(privileged, "eef") - SHOULDER
        outwards[2] = 0
        if privileged["elbow"] > self.straight_rad and beside > self.hover_m:
            unfold = np.cross([0, 0, 1], outwards)  # bends an elbow that a straight pull would lock
            return servo(above, unfold, OPEN)
        if above[2] > 0.04:  # low beside the cube: rise before moving over it
            above[:2] = 0
        return servo(above, turn, OPEN)
