"""The classes of the messages: where the .msg files are, rosbags' classes of them, CDR bytes.

Everything heavy is imported where it is used; nothing here needs ROS.
"""

import array
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import numpy as np

from hapo_ros.resources import resource

OWN_PACKAGE = "hapo_ros"
CLASSES = {
    "builtin_interfaces": ("Time",),
    "std_msgs": ("Header", "String"),
    "sensor_msgs": ("Image", "JointState", "Joy"),
    "geometry_msgs": (
        ("Point", "Quaternion", "Pose", "PoseStamped") + ("Vector3", "Twist", "TwistStamped")
    ),
    OWN_PACKAGE: (
        ("ObservationTick", "PolicyAction", "ExecutedAction")
        + ("AuthorityStatus", "EpisodeState", "StateVector", "AppliedAction")
    ),
}


class MessageTypes(Protocol):
    """What a namespace of message classes provides: every class of ``CLASSES`` by its short name
    (``types.Image``), callable with all its fields as keywords, and ``sequence``.
    """

    def sequence(self, values: np.ndarray):
        """A field value for an unbounded primitive array, from a 1-D array of the field's dtype.

        rosbags wants the numpy array itself; rclpy wants :func:`ros_sequence`.
        """


def ros_sequence(values: np.ndarray) -> array.array:
    """``MessageTypes.sequence`` for rclpy: array.array of the same dtype, filled from bytes.

    That is rclpy's fast path, 5 us for an image where numpy costs 5-9 ms (design.md section 7).
    """
    return array.array(values.dtype.char, values.tobytes())


def interface_folder(kind: str) -> Path:
    """Folder of this project's .msg, .srv or .action files (kind: msg, srv, action).

    Installed packages carry them in ``hapo_ros/interfaces``, a source checkout beside the package.
    Raises FileNotFoundError where there are none.
    """
    return resource(kind)


@cache
def typestore():
    """rosbags' typestore of ROS 2 Jazzy with this project's messages registered."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    found = {}
    for path in sorted(interface_folder("msg").glob("*.msg")):
        found |= get_types_from_msg(path.read_text("utf8"), f"{OWN_PACKAGE}/msg/{path.stem}")
    store.register(found)
    return store


@cache
def bag_types() -> MessageTypes:
    """The namespace of rosbags' dataclasses; needs no ROS."""
    store = typestore()
    classes = {
        name: store.types[f"{package}/msg/{name}"]
        for package, names in CLASSES.items()
        for name in names
    }
    return SimpleNamespace(sequence=np.ascontiguousarray, **classes)


def to_cdr(message, type_name: str) -> bytes:
    """CDR bytes of a :func:`bag_types` message; type_name as in ``topics.TYPES``."""
    return bytes(typestore().serialize_cdr(message, type_name))


def from_cdr(data: bytes, type_name: str):
    """The :func:`bag_types` message in CDR bytes. Raises ValueError where they are none."""
    from rosbags.serde import SerdeError

    store = typestore()
    if type_name not in store.fielddefs:
        raise ValueError(f"message type {type_name} is unknown")
    try:
        return store.deserialize_cdr(data, type_name)
    except (SerdeError, IndexError, OverflowError, MemoryError) as error:
        raise ValueError(f"these bytes are no {type_name}: {error}") from error
