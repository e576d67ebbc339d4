"""Frames of an operator's motion. Plain floats: for three numbers, numpy is ten times slower."""

import math
from collections.abc import Sequence


def turned(twist: Sequence[float], quaternion: Sequence[float]) -> list[float]:
    """A twist (6: linear, angular) of one frame, seen in another.

    quaternion: x y z w, how the twist's frame stands in the other one; it need not be of length 1.
    Both parts are turned; the point of reference stays, as a servo controller moves the hand about
    itself. Raises ValueError for a quaternion that is not finite or of length 0.
    """
    length = math.hypot(*quaternion) if len(quaternion) == 4 else 0.0
    if not 0.0 < length < math.inf:
        raise ValueError(f"{list(quaternion)} is no quaternion (x y z w)")
    x, y, z, w = (float(q) / length for q in quaternion)
    parts = []
    for a, b, c in (twist[:3], twist[3:]):
        # v + 2 w (q x v) + 2 q x (q x v)
        ta, tb, tc = 2 * (y * c - z * b), 2 * (z * a - x * c), 2 * (x * b - y * a)
        parts += [
            float(a + w * ta + y * tc - z * tb),
            float(b + w * tb + z * ta - x * tc),
            float(c + w * tc + x * tb - y * ta),
        ]
    return parts
