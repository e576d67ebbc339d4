"""A SpaceMouse without hardware: a socket whose packets are the device's raw reports.

They go through pyspacemouse's own parser; a socket that is closed is a pulled cable.
"""

import os
import select
import socket
import struct
import sys
from pathlib import Path

DEADLINE_S = 60.0
AT_REST, AWAY = b"\x01" + bytes(6), b"\x01" + struct.pack("<3h", 0, -350, 0)
# The spacemouse node as a program; its first argument is the path of the socket. That of a second
# mouse has a 2 at its end.
NODE = """
import os, socket, sys
from easyhid import HIDException
import pyspacemouse
from hapo_ros.devices import spacemouse as devices

PATH = sys.argv.pop(1)

class Hid:
    product_string, manufacturer_string, serial_number, release_number = "", "", "", 0
    def __init__(self, path):
        self.path = path
    def open(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(self.path)
        self.socket.setblocking(False)
    def close(self):
        self.socket.close()
    def read(self, size):
        try:
            report = self.socket.recv(64)
        except BlockingIOError:
            return bytearray()
        if not report:
            raise HIDException("Failed to read from HID device: -1")
        return bytearray(report.ljust(size, b"\\0"))

def enumerate_devices():
    info = pyspacemouse.get_device_specs()["SpaceNavigator"]
    there = [path for path in (PATH, PATH + "2") if os.path.exists(path)]
    return [(devices.FoundDevice(path, info.name), info, Hid(path)) for path in there]

devices.enumerate_devices = enumerate_devices
from hapo_ros.nodes.spacemouse import main
sys.exit(main())
"""


class Mouse:
    """A SpaceMouse that is plugged in: the test's end of its cable."""

    def __init__(self, path: Path):
        self.path = path
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listening.bind(str(path))
        self.listening.listen()
        self.listening.settimeout(DEADLINE_S)
        self.cable = None

    def wanted(self) -> bool:
        """Whether a node waits for :meth:`opened`."""
        return bool(select.select([self.listening], [], [], 0)[0])

    def opened(self) -> None:
        """A node has opened the device, or does so before the deadline."""
        if self.cable is not None:
            self.cable.close()
        self.cable, _ = self.listening.accept()
        self.cable.settimeout(DEADLINE_S)

    def unplug(self) -> None:
        self.path.unlink()
        self.listening.close()
        self.cable.close()


def install(prefix: Path, path: Path) -> str:
    """Install the node of the device at ``path`` below ``prefix``; returns the AMENT_PREFIX_PATH
    with which it stands before the real one."""
    node = prefix / "lib" / "hapo_ros" / "spacemouse"
    node.parent.mkdir(parents=True)
    node.write_text(f"import sys\nsys.argv.insert(1, {str(path)!r})\n{NODE}")
    return os.pathsep.join([str(prefix), sys.prefix])
