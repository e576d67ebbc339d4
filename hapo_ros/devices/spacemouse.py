"""3Dconnexion SpaceMouse through pyspacemouse and hidapi.

Axes (REP 103, the operator looking along the robot's +x): cap pushed away +x, to the left +y,
lifted +z; tilted to the right +roll, tilted away +pitch, turned counter-clockwise seen from above
+yaw. That is pyspacemouse's ``AxisConvention.HID_Z_UP`` (x right, y away, z up) turned by a quarter
about z: x = y', y = -x', roll = pitch', pitch = -roll'.

Silence. A cap at rest sends nothing; a deflected one sends every 8 ms, and zeros three times when
it comes to rest (measured on a SpaceNavigator: FreeSpacenav/spacenavd issue 108). Hence, by polls:

- at rest, no reports, no error: live. Its value, neutral, is published on.
- deflected, and no report of axes for ``silent_after_s``: the value is stale (driver, receiver or
  battery gone). Silent: nothing is published, so the arbiter's time-out fires, until axes are
  reported again. A report of buttons does not refresh the axes.
- after opening and after a silence the value is unknown: translation and rotation come in reports
  of their own, so the first one may look neutral under a cap that is held. For ``SETTLE_S`` nothing
  is published. A held cap says so within it; neutral is never made up (faults.md row 3).
- the handle cannot be read: :class:`DeviceLost`. A device opened anew settles like a new one.

A wireless mouse that is switched off at rest looks like one at rest: ``hapo doctor --live`` tells.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hapo_ros.devices.reports import DeviceLost, DeviceReport, apply_deadband, condense

SETTLE_S = 0.25
_MAX_REPORTS = 512  # in one poll: two seconds' worth; a flood does not stop the node
_MULTI_AXIS = (1, 8)  # HID usage page and usage of a cap
# What an operator can do who has no SpaceMouse.
INSTEAD = "Run hapo doctor, or go on without one: operator:=keyboard or operator:=simulated."
_NO_HIDAPI = "libhidapi is missing: no SpaceMouse can be read. sudo apt install libhidapi-hidraw0"


@dataclass(frozen=True)
class FoundDevice:
    """One SpaceMouse that is plugged in."""

    path: str  # /dev/hidrawN
    name: str  # pyspacemouse's name of the model
    serial: str = ""


class _Tap:
    """An HID handle that remembers the report read last: pyspacemouse does not say if one came."""

    def __init__(self, hid):
        self.hid, self.report = hid, b""

    def read(self, size: int) -> bytes:
        self.report = b""
        self.report = self.hid.read(size)
        return self.report

    def __getattr__(self, name: str):
        return getattr(self.hid, name)


class SpaceMouse:
    """An open device. ``poll`` and ``samples`` take the steady clock (seconds) and never wait."""

    def __init__(self, info, hid, opened_s: float, deadband=0.05, silent_after_s: float = 0.1):
        """info: pyspacemouse DeviceInfo; hid: object with open, close, read(size) and easyhid's
        attributes. deadband: as in :func:`apply_deadband`. Raises DeviceLost if opening fails.
        """
        import pyspacemouse
        from easyhid import HIDException

        if not silent_after_s > 0:
            raise ValueError(f"silent_after_s must be above 0, not {silent_after_s}")
        apply_deadband(np.zeros(6), deadband)
        self.name, self.path = info.name, str(getattr(hid, "path", ""))
        self.deadband, self.silent_after_s = deadband, silent_after_s
        self._errors = (HIDException, OSError)
        self._tap = _Tap(hid)
        convention = pyspacemouse.AxisConvention.HID_Z_UP
        info = pyspacemouse.apply_axis_convention(info, convention)
        self._axis_channels = {spec.channel for spec in info.mappings.values()}
        self._device = pyspacemouse.SpaceMouseDevice(info=info, device=self._tap)
        try:
            self._device.open()
            if hasattr(hid, "set_nonblocking"):
                hid.set_nonblocking(True)
        except (RuntimeError, *self._errors) as error:
            raise DeviceLost(
                f"{self.name} at {self.path} cannot be opened ({error}): no permission, or another "
                "program has it. Run hapo doctor."
            ) from error
        self._current = DeviceReport(
            np.zeros(6, np.float32), (0,) * len(info.button_specs), opened_s
        )
        self._axes_s = opened_s  # last report of axes
        self._silent = False
        self._settled_s = opened_s + SETTLE_S

    def poll(self, now_s: float) -> list[DeviceReport]:
        """Every report since the last call, in order, each its own copy. Raises DeviceLost."""
        reports, fresh = [], False
        for _ in range(_MAX_REPORTS):
            try:
                state = self._device.read()
            except self._errors as error:
                raise DeviceLost(
                    f"SpaceMouse lost ({self.name} at {self.path}: {error}). Nothing is published "
                    "until it is back. Reconnect it, let go of the cap, press resume."
                ) from error
            if not self._tap.report:
                break
            fresh |= self._tap.report[0] in self._axis_channels
            reports.append(self._report(state, now_s))
        if reports:
            self._current = reports[-1]
        if fresh:
            if self._silent:
                self._settled_s = now_s + SETTLE_S
            self._axes_s, self._silent = now_s, False
        elif self.deflected and self.silence_s(now_s) > self.silent_after_s:
            self._silent = True
        return reports

    def samples(self, now_s: float) -> list[DeviceReport]:
        """Poll, and what is to be published now: the current state, after every change of the
        buttons since the last call; [] while the device is silent or settles. Raises DeviceLost.
        """
        reports = self.poll(now_s)
        if self.silent or now_s < self._settled_s:
            return []
        last = DeviceReport(self._current.axes.copy(), self._current.buttons, now_s)
        return [*condense(reports)[:-1], last]

    @property
    def silent(self) -> bool:
        """Whether, as of the last poll, a deflected cap has stopped reporting."""
        return self._silent

    @property
    def deflected(self) -> bool:
        """Whether the last value of any axis is beyond its deadband."""
        return bool(np.any(self._current.axes))

    def silence_s(self, now_s: float) -> float:
        """Seconds since the last report of axes, or since the device was opened."""
        return now_s - self._axes_s

    def close(self) -> None:
        """Close the handle; a handle that is gone is closed too."""
        self._device.close()

    def _report(self, state, now_s: float) -> DeviceReport:
        right, away, up = state.x, state.y, state.z
        axes = (away, -right, up, state.pitch, -state.roll, state.yaw)
        buttons = tuple(int(button) for button in state.buttons)
        return DeviceReport(apply_deadband(axes, self.deadband), buttons, now_s)


def list_devices() -> list[FoundDevice]:
    """Every SpaceMouse that is plugged in, readable or not. Raises DeviceLost without hidapi."""
    return [found for found, _, _ in enumerate_devices()]


def open_spacemouse(
    now_s: float, *, path: str = "", index: int = 0, deadband=0.05, silent_after_s: float = 0.1
) -> SpaceMouse:
    """Open the device at ``path`` (/dev/hidrawN or a link to it), or else the ``index``-th found.
    Raises DeviceLost with a sentence where there is none.
    """
    devices = enumerate_devices()
    if path:
        wanted = [d for d in devices if Path(d[0].path).resolve() == Path(path).resolve()]
    else:
        wanted = devices[index : index + 1]
    if not wanted:
        if not devices:
            raise DeviceLost("No SpaceMouse is plugged in.")
        found = ", ".join(f"{d.name} at {d.path}" for d, _, _ in devices)
        sought = f"at {path}" if path else f"number {index}"
        raise DeviceLost(f"No SpaceMouse {sought} is plugged in, but {found}.")
    _, info, hid = wanted[0]
    return SpaceMouse(info, hid, now_s, deadband, silent_after_s)


def enumerate_devices() -> list[tuple[FoundDevice, object, object]]:
    """(device, pyspacemouse DeviceInfo, easyhid HIDDevice), one a path, in order of paths.
    Raises DeviceLost where pyspacemouse or hidapi is missing.
    """
    try:
        import pyspacemouse
        from easyhid import Enumeration
    except ImportError as error:
        raise DeviceLost(
            f"{error.name or error} is not installed, so no SpaceMouse can be read. "
            "pip install pyspacemouse"
        ) from error
    except OSError as error:
        raise DeviceLost(_NO_HIDAPI) from error
    try:
        handles = Enumeration().find()
    except AttributeError as error:  # easyhid without its library
        raise DeviceLost(_NO_HIDAPI) from error
    models = {(i.vendor_id, i.product_id): i for i in pyspacemouse.get_device_specs().values()}
    known = [hid for hid in handles if (hid.vendor_id, hid.product_id) in models]
    # A receiver has other interfaces (keyboard, mouse) of the same ids; old hidapi tells no usage.
    caps = [hid for hid in known if (hid.usage_page, hid.usage) == _MULTI_AXIS] or known
    unique = {hid.path: hid for hid in sorted(caps, key=lambda hid: (len(hid.path), hid.path))}
    return [
        (FoundDevice(hid.path, info.name, hid.serial_number or ""), info, hid)
        for hid in unique.values()
        for info in [models[(hid.vendor_id, hid.product_id)]]
    ]
