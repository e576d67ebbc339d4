"""The newest transform of every frame, and a pose out of them. What a robot's pose needs of TF.

No interpolation: the links of an arm are published together, so the newest of each belong together.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Transform:
    """A child frame in its parent: position (3,) in m, quaternion (4,) x y z w of norm 1.

    stamp_ns: sender's ROS time. received_s: steady receipt clock; infinite for a static one, which
    never ages.
    """

    parent: str
    position: np.ndarray
    rotation: np.ndarray
    stamp_ns: int
    received_s: float


class TransformTree:
    """Transforms by child frame. Time comes in; nothing is forgotten, an older one is replaced."""

    def __init__(self):
        self._by_child: dict[str, Transform] = {}

    def add(self, message, received_s: float) -> None:
        """Take in one geometry_msgs/TransformStamped; received_s: infinite for a static one.

        Raises ValueError for numbers that are no transform.
        """
        at, turn = message.transform.translation, message.transform.rotation
        position = np.array([at.x, at.y, at.z], np.float64)
        rotation = np.array([turn.x, turn.y, turn.z, turn.w], np.float64)
        child = message.child_frame_id.lstrip("/")
        norm = np.linalg.norm(rotation)
        if not np.isfinite([*position, norm]).all() or not 0.9 < norm < 1.1:
            raise ValueError(f"the transform of {child} is not finite or its quaternion not of 1")
        stamp = message.header.stamp
        self._by_child[child] = Transform(
            message.header.frame_id.lstrip("/"),
            position,
            rotation / norm,
            stamp.sec * 1_000_000_000 + stamp.nanosec,
            received_s,
        )

    def pose(self, base: str, tool: str) -> tuple[np.ndarray, int, float]:
        """(7,) pose of frame ``tool`` in frame ``base``: x y z (m), quaternion x y z w.

        With it stamp (ns) and receipt (s) of the oldest transform on the way between them that is
        not static. Raises LookupError with a sentence where the frames are not connected.
        """
        up, down = self._ancestors(base), self._ancestors(tool)
        common = next((frame for frame in down if frame in up), None)
        if common is None:
            known = ", ".join(sorted(self._by_child)) or "none"
            raise LookupError(f"TF does not connect {tool} to {base}; frames there are: {known}")
        up, down = up[: up.index(common)], down[: down.index(common)]
        position, rotation = _compose(*_inverse(*self._down(up)), *self._down(down))
        links = [self._by_child[frame] for frame in (*up, *down)]
        moving = [link for link in links if np.isfinite(link.received_s)]
        return (
            np.concatenate([position, rotation]),
            min((link.stamp_ns for link in moving), default=0),
            min((link.received_s for link in moving), default=np.inf),
        )

    def _ancestors(self, frame: str) -> list[str]:
        """The frame, its parent, and so on to the root. Raises LookupError for a loop."""
        found = [frame.lstrip("/")]
        while found[-1] in self._by_child:
            parent = self._by_child[found[-1]].parent
            if parent in found:
                raise LookupError(f"TF has a loop: {' in '.join([*found, parent])}")
            found.append(parent)
        return found

    def _down(self, frames: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The first of ``frames`` (each the child of the next) in the parent of the last."""
        position, rotation = np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0])
        for frame in frames:
            link = self._by_child[frame]
            position, rotation = _compose(link.position, link.rotation, position, rotation)
        return position, rotation


def _turned(rotation: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """The vector, turned by the quaternion x y z w."""
    axis, w = rotation[:3], rotation[3]
    across = 2.0 * np.cross(axis, vector)
    return vector + w * across + np.cross(axis, across)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The quaternion of turning by ``b``, then by ``a``."""
    vector = a[3] * b[:3] + b[3] * a[:3] + np.cross(a[:3], b[:3])
    product = np.append(vector, a[3] * b[3] - a[:3] @ b[:3])
    return product / np.linalg.norm(product)


def _compose(position_a, rotation_a, position_b, rotation_b):
    """Transform a after b."""
    return position_a + _turned(rotation_a, position_b), _product(rotation_a, rotation_b)


def _inverse(position, rotation):
    back = rotation * [-1.0, -1.0, -1.0, 1.0]
    return -_turned(back, position), back
