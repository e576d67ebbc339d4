"""SpaceMouse and keyboard without hardware: raw reports go through pyspacemouse's own parser."""

import os
import pty
import struct
import termios
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hapo_ros.arbitration import ArbiterConfig
from hapo_ros.devices import AXES, DeviceLost, DeviceReport, apply_deadband, twist_from_axes
from hapo_ros.devices import spacemouse as module
from hapo_ros.devices.keyboard import AUTHORITY, BUTTON_HOLD_S, GRIPPER, Keys, Terminal
from hapo_ros.devices.reports import condense
from hapo_ros.devices.spacemouse import SETTLE_S, SpaceMouse

pyspacemouse = pytest.importorskip("pyspacemouse")
easyhid = pytest.importorskip("easyhid")

NAVIGATOR = pyspacemouse.get_device_specs()["SpaceNavigator"]


class FakeHid:
    """An HID handle whose reports the test writes; None in the queue is a pulled cable."""

    product_string = manufacturer_string = serial_number = ""
    release_number = 0

    def __init__(self, path="/dev/hidraw7", usage=(1, 8), ids=(0x046D, 0xC626), opens=True):
        self.path, (self.usage_page, self.usage) = path, usage
        (self.vendor_id, self.product_id), self.opens = ids, opens
        self.queue, self.closed = deque(), False

    def open(self):
        if not self.opens:
            raise easyhid.HIDException("Failed to open device")

    def close(self):
        self.closed = True

    def set_nonblocking(self, nonblocking):
        assert nonblocking is True

    def read(self, size):
        report = self.queue.popleft() if self.queue else b""
        if report is None:
            raise easyhid.HIDException("Failed to read from HID device: -1")
        return bytearray(report.ljust(size, b"\0")) if report else bytearray()


def motion(x=0, y=0, z=0):
    """Report 1, HID's frame: x right, y towards the user, z down."""
    return b"\x01" + struct.pack("<3h", x, y, z)


def rotation(x=0, y=0, z=0):
    """Report 2, right-handed turns about HID's axes."""
    return b"\x02" + struct.pack("<3h", x, y, z)


def pressed(*buttons):
    return b"\x03" + struct.pack("<H", sum(1 << button for button in buttons))


def opened(opened_s=0.0, deadband=0.0, **settings):
    hid = FakeHid()
    return SpaceMouse(NAVIGATOR, hid, opened_s, deadband, **settings), hid


@pytest.mark.parametrize(
    ("report", "axis", "value"),
    [
        (motion(y=-350), "x", 1),  # pushed away from the user
        (motion(x=-350), "y", 1),  # pushed to the left
        (motion(z=-350), "z", 1),  # lifted
        (rotation(y=-350), "roll", 1),  # tilted to the right: HID's y points at the user
        (rotation(x=-350), "pitch", 1),  # tilted away
        (rotation(z=-350), "yaw", 1),  # counter-clockwise from above: HID's z points down
        (motion(y=350), "x", -1),
        (motion(x=175), "y", -0.5),
        (motion(z=70), "z", -0.2),
        (rotation(y=35), "roll", -0.1),
        (rotation(x=350), "pitch", -1),
        (rotation(z=1000), "yaw", -1),  # more than full deflection is full deflection
    ],
)
def test_raw_reports_become_axes_of_the_base_frame(report, axis, value):
    mouse, hid = opened()
    hid.queue.append(report)
    (read,) = mouse.poll(1.5)
    expected = np.zeros(6)
    expected[AXES.index(axis)] = value
    np.testing.assert_allclose(read.axes, expected, atol=1e-6)
    assert read.axes.dtype == np.float32 and read.received_s == 1.5


def test_every_queued_report_is_returned_in_order_as_its_own_copy():
    mouse, hid = opened()
    hid.queue.extend([motion(y=-35), motion(y=-70), pressed(1), rotation(z=-350), pressed()])
    reports = mouse.poll(0.0)
    assert [round(float(r.axes[0]), 3) for r in reports] == [0.1, 0.2, 0.2, 0.2, 0.2]
    assert [r.buttons for r in reports] == [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)]
    assert float(reports[0].axes[5]) == 0 and float(reports[-1].axes[5]) == 1
    assert mouse.poll(0.1) == []


def test_a_flood_of_reports_does_not_hold_a_poll_up():
    mouse, hid = opened()
    hid.queue.extend([motion(y=-35)] * 5000)
    assert 0 < len(mouse.poll(0.0)) < 5000


def test_at_rest_the_neutral_value_is_published_on_without_reports():
    mouse, _ = opened()
    for now_s in (SETTLE_S, 1.0, 3600.0):
        (sample,) = mouse.samples(now_s)
        assert not sample.axes.any() and sample.buttons == (0, 0) and sample.received_s == now_s
    assert not mouse.silent


def test_a_cap_held_at_start_is_never_published_as_neutral():
    """Translation reports come first and are zero while the cap is turned."""
    mouse, hid = opened()
    published = []
    for step in range(60):
        hid.queue.append(rotation(z=-200) if step % 2 else motion())
        published += mouse.samples(0.01 * step)
    assert published and all(sample.axes[5] > 0.5 for sample in published)


def test_a_deflected_cap_that_keeps_reporting_is_live():
    mouse, hid = opened()
    for step in range(200):
        hid.queue.append(motion(y=-350))
        samples = mouse.samples(0.016 * step)
        assert len(samples) == (0.016 * step >= SETTLE_S)
    assert mouse.deflected and not mouse.silent


def test_a_deflected_cap_that_stops_reporting_is_silent_until_it_has_settled_again():
    mouse, hid = opened(silent_after_s=0.1)
    hid.queue.append(motion(y=-350))
    mouse.samples(1.0)
    assert mouse.samples(1.09) and not mouse.silent  # not for longer than silent_after_s
    assert mouse.samples(1.11) == [] and mouse.silent
    assert mouse.silence_s(1.11) == pytest.approx(0.11)
    hid.queue.append(pressed(0))  # buttons say nothing about the axes
    assert mouse.samples(5.0) == [] and mouse.silent
    hid.queue.append(motion())  # neutral, but the turn may only be on its way
    assert mouse.samples(6.0) == [] and not mouse.silent
    hid.queue.append(rotation(z=-350))
    assert mouse.samples(6.0 + SETTLE_S / 2) == []
    hid.queue.append(rotation(z=-350))
    (sample,) = mouse.samples(6.0 + SETTLE_S)
    assert sample.axes[5] == 1


def test_a_late_poll_with_reports_waiting_is_no_silence():
    mouse, hid = opened(silent_after_s=0.1)
    hid.queue.append(motion(y=-350))
    mouse.samples(1.0)
    hid.queue.append(motion(y=-300))  # the node was held up, not the device
    (sample,) = mouse.samples(2.0)
    assert 0.8 < sample.axes[0] < 0.9 and not mouse.silent


def test_a_cap_that_rests_within_the_deadband_is_not_silent():
    mouse, hid = opened(deadband=0.05)
    hid.queue.append(motion(y=-10))
    assert mouse.samples(1.0) and mouse.samples(9.0) and not mouse.deflected


def test_a_pulled_cable_is_a_sentence_and_closes():
    mouse, hid = opened()
    hid.queue.extend([motion(y=-350), None])
    with pytest.raises(
        DeviceLost, match=r"SpaceMouse lost \(SpaceNavigator at /dev/hidraw7.*resume"
    ):
        mouse.samples(1.0)
    mouse.close()
    assert hid.closed


def test_a_device_without_permission_names_the_doctor():
    with pytest.raises(DeviceLost, match=r"cannot be opened.*permission.*hapo doctor"):
        SpaceMouse(NAVIGATOR, FakeHid(opens=False), 0.0)


def test_two_presses_between_two_publications_are_both_published():
    mouse, hid = opened()
    mouse.samples(1.0)
    hid.queue.extend([pressed(1), motion(y=-35), pressed(), motion(y=-70), pressed(1), pressed()])
    samples = mouse.samples(1.01)
    assert [sample.buttons[1] for sample in samples] == [1, 0, 1, 0]
    assert float(samples[-1].axes[0]) == pytest.approx(0.2)


def test_samples_are_copies():
    mouse, _ = opened()
    mouse.samples(1.0)[0].axes[:] = 1
    assert not mouse.samples(1.1)[0].axes.any()


def test_every_model_that_pyspacemouse_knows_can_be_opened():
    for info in pyspacemouse.get_device_specs().values():
        SpaceMouse(info, FakeHid(), 0.0).poll(0.0)


@pytest.mark.parametrize("settings", [{"deadband": 1.0}, {"deadband": -0.1}, {"silent_after_s": 0}])
def test_settings_that_cannot_be_used_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        opened(**settings)


def plug_in(monkeypatch, *handles):
    monkeypatch.setattr(easyhid, "Enumeration", lambda: SimpleNamespace(find=lambda: handles))


def test_devices_are_listed_once_a_path_and_only_their_cap(monkeypatch):
    receiver = (0x256F, 0xC652)
    plug_in(
        monkeypatch,
        FakeHid("/dev/hidraw10", ids=receiver),
        FakeHid("/dev/hidraw2", usage=(1, 6), ids=receiver),  # the receiver's keyboard
        FakeHid("/dev/hidraw3"),
        FakeHid("/dev/hidraw3"),
        FakeHid("/dev/hidraw1", ids=(0x1234, 0x5678)),
    )
    found = [(device.path, device.name) for device in module.list_devices()]
    assert found == [("/dev/hidraw3", "SpaceNavigator"), ("/dev/hidraw10", "UniversalReceiver")]


def test_a_device_is_opened_by_path_or_by_number(monkeypatch):
    plug_in(monkeypatch, FakeHid("/dev/hidraw3"), FakeHid("/dev/hidraw4"))
    assert module.open_spacemouse(0.0, index=1).path == "/dev/hidraw4"
    assert module.open_spacemouse(0.0, path="/dev/hidraw4").path == "/dev/hidraw4"
    with pytest.raises(DeviceLost, match=r"number 2 .*but SpaceNavigator at /dev/hidraw3"):
        module.open_spacemouse(0.0, index=2)
    with pytest.raises(DeviceLost, match=r"No SpaceMouse at /dev/hidraw9 is plugged in"):
        module.open_spacemouse(0.0, path="/dev/hidraw9")
    plug_in(monkeypatch)
    with pytest.raises(DeviceLost, match=r"^No SpaceMouse is plugged in\.$"):
        module.open_spacemouse(0.0)


def test_a_missing_hidapi_is_a_sentence(monkeypatch):
    def enumeration():
        raise AttributeError("hid_enumerate")

    monkeypatch.setattr(easyhid, "Enumeration", enumeration)
    with pytest.raises(DeviceLost, match="sudo apt install libhidapi-hidraw0"):
        module.list_devices()


@given(st.floats(-2, 2), st.floats(0, 0.9))
def test_the_deadband_is_continuous_odd_and_reaches_full_deflection(value, deadband):
    axes = apply_deadband(np.full(6, value), deadband)
    assert np.all(np.abs(axes) <= 1)
    assert np.all(axes == -apply_deadband(np.full(6, -value), deadband))
    if abs(value) <= deadband:
        assert not axes.any()
    else:
        assert np.all(np.abs(axes) <= (abs(value) - deadband) / (1 - deadband) + 1e-6)
    assert np.all(apply_deadband(np.ones(6), deadband) == 1)


def test_the_deadband_may_differ_by_axis():
    axes = apply_deadband([0.1] * 6, [0.05, 0.1, 0.2, 0, 0, 0])
    np.testing.assert_allclose(axes, [0.05 / 0.95, 0, 0, 0.1, 0.1, 0.1], rtol=1e-6)


def test_full_deflection_asks_for_the_scales_and_by_default_for_action_one():
    twist = twist_from_axes([1, -1, 0.5, 1, 0, -0.5], 0.2, 0.8)
    np.testing.assert_allclose(twist, [0.2, -0.2, 0.1, 0.8, 0, -0.4])
    assert twist.dtype == np.float64
    for bad in (([1, 2], 1, 1), (np.zeros(6), np.nan, 1), (np.zeros(6), 1, -1)):
        with pytest.raises(ValueError, match="must"):
            twist_from_axes(*bad)


def test_condensing_keeps_every_change_of_buttons_and_the_last_report():
    reports = [DeviceReport(np.full(6, i), (b,), i) for i, b in enumerate([0, 0, 1, 1, 0])]
    assert [r.received_s for r in condense(reports)] == [1, 3, 4]
    assert condense([]) == []


# The keyboard


@pytest.mark.parametrize(
    ("keys", "axis"),
    [("ws", "x"), ("ad", "y"), ("rf", "z"), ("ou", "roll"), ("ik", "pitch"), ("jl", "yaw")],
)
def test_keys_deflect_their_axis(keys, axis):
    for key, sign in zip(keys, (1, -1), strict=True):
        for typed in (key, key.upper()):
            board = Keys(deflection=0.4)
            board.feed(typed, 1.0)
            expected = np.zeros(6, np.float32)
            expected[AXES.index(axis)] = sign * 0.4
            np.testing.assert_allclose(board.report(1.0).axes, expected)


def test_a_tap_is_a_nudge_and_a_held_key_goes_on():
    board = Keys(deflection=1.0, hold_s=0.15, first_hold_s=0.15)
    times = [0.0, 0.5, 0.53, 0.56, 0.59]  # first press, delay of the terminal, repeats
    moving = {}
    for step in range(100):
        now_s = step / 100
        for at_s in [t for t in times if now_s - 0.005 <= t < now_s + 0.005]:
            board.feed("w", at_s)
        moving[step] = bool(board.report(now_s).axes[0])
    assert [moving[s] for s in (0, 14, 16, 49, 50, 60, 73, 75, 99)] == [
        True, True, False, False, True, True, True, False, False,
    ]  # fmt: skip


def test_a_long_first_hold_bridges_the_terminals_delay():
    board = Keys(hold_s=0.15, first_hold_s=0.6)
    board.feed("w", 0.0)
    assert board.report(0.55).axes[0] > 0
    board.feed("w", 0.55)  # now it repeats, and a release is noticed soon
    assert board.report(0.69).axes[0] > 0 and board.report(0.71).axes[0] == 0


def test_the_opposite_key_wins_at_once():
    board = Keys(deflection=1.0)
    board.feed("ws", 0.0)
    assert board.report(0.01).axes[0] == -1


def test_holding_space_is_one_press_of_the_gripper_button():
    board = Keys()
    states = []
    for step in range(200):
        if step == 0 or 50 <= step <= 80:
            board.feed(" ", step / 100)
        states.append(board.report(step / 100).buttons[GRIPPER])
    assert states[0] == 1 and sum(np.diff(states) == 1) == 0 and states[-1] == 0
    board.feed(" ", 2.0 + BUTTON_HOLD_S)
    assert board.report(2.0 + BUTTON_HOLD_S).buttons[GRIPPER] == 1


def test_tab_and_enter_press_the_authority_button():
    defaults = ArbiterConfig()
    assert (defaults.gripper_button, defaults.authority_button) == (GRIPPER, AUTHORITY)
    for key in "\t\n\r":
        board = Keys()
        board.feed(key, 0.0)
        assert board.report(0.1).buttons == (0, 1)


def test_arrow_keys_and_the_like_are_not_read_as_letters():
    board = Keys()
    board.feed("\x1b[A\x1b[1;5D\x1bOD\x1bw\x1b[", 0.0)
    board.feed("D", 0.01)  # the end of the sequence that the last read had cut
    board.feed("é€\x00", 0.02)
    assert not board.report(0.03).axes.any()
    board.feed("d", 0.04)
    assert board.report(0.05).axes[1] < 0


def test_q_quits():
    board = Keys()
    board.feed("w", 0.0)
    assert not board.quit
    board.feed("q", 0.1)
    assert board.quit


@given(st.text(max_size=30), st.floats(0, 10))
def test_whatever_is_typed_the_report_is_in_range(text, now_s):
    board = Keys()
    board.feed(text, now_s)
    report = board.report(now_s)
    assert np.all(np.abs(report.axes) <= 0.5) and set(report.buttons) <= {0, 1}


def test_a_terminal_is_read_without_enter_and_gets_its_settings_back():
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    terminal = Terminal(theirs)
    assert termios.tcgetattr(theirs) != before
    assert terminal.read() == ""
    os.write(ours, b"wa ")
    typed = ""
    while len(typed) < 3:  # the pytest time-out is the deadline
        typed += terminal.read()
    assert typed == "wa "
    terminal.close()
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_a_terminal_that_hangs_up_is_a_lost_device():
    ours, theirs = pty.openpty()
    terminal = Terminal(theirs)
    os.close(ours)
    with pytest.raises(DeviceLost, match="terminal is gone"):
        while True:
            terminal.read()
    terminal.close()
    os.close(theirs)


def test_a_pipe_is_no_terminal():
    reading, writing = os.pipe()
    with pytest.raises(DeviceLost, match="needs a terminal"):
        Terminal(reading)
    os.close(reading)
    os.close(writing)
