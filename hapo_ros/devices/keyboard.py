"""A terminal's keys as an operator's device, for trying things out without a SpaceMouse.

A terminal tells of key presses and of auto-repeats (every 30 ms or so, after a first delay of 250
to 660 ms), never of a release. So a key deflects its axis for a hold time longer than the repeat
interval: a tap is one nudge, a held key nudges, pauses for the first delay and then goes on. The
pause is on purpose: bridging it would let every tap move the arm for half a second. Buttons bridge
it, so that holding space is one press; two presses have to be ``BUTTON_HOLD_S`` apart.
"""

import os
import re
import select
import sys
import termios
import tty

import numpy as np

from hapo_ros.devices.reports import AXES, DeviceLost, DeviceReport

# Signs as in spacemouse.py: forward, left, up, tilt right, tilt away, counter-clockwise are plus.
AXIS_KEYS = {
    "w": ("x", 1), "s": ("x", -1),
    "a": ("y", 1), "d": ("y", -1),
    "r": ("z", 1), "f": ("z", -1),
    "o": ("roll", 1), "u": ("roll", -1),
    "i": ("pitch", 1), "k": ("pitch", -1),
    "j": ("yaw", 1), "l": ("yaw", -1),
}  # fmt: skip
GRIPPER, AUTHORITY = 0, 1  # the arbiter's default gripper_button and authority_button
BUTTON_KEYS = {" ": GRIPPER, "\t": AUTHORITY, "\n": AUTHORITY, "\r": AUTHORITY}
QUIT_KEY = "q"
BUTTON_HOLD_S = 0.7  # longer than terminals' delay before the first repeat
HELP = (
    "w/s forward/back, a/d left/right, r/f up/down, u/o roll, i/k pitch, j/l yaw, "
    "space gripper, tab or enter take over and hand back, q quit"
)

# Arrow keys and the like end in letters that are keys here: ESC [ A must not mean "a".
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|[^\[O])", re.DOTALL)
_BROKEN_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*|O)?$")


class Keys:
    """Which axes and buttons the keys hold. Pure: time comes in as steady seconds."""

    def __init__(self, deflection: float = 0.5, hold_s: float = 0.15, first_hold_s: float = 0.15):
        """deflection: of a pressed axis, above 0 to 1. hold_s: after a repeated key; first_hold_s:
        after the first press (the terminal's repeat delay here removes the pause; see above).
        """
        if not 0 < deflection <= 1:
            raise ValueError(f"deflection must be above 0 and at most 1, not {deflection}")
        if not (hold_s > 0 and first_hold_s > 0):
            raise ValueError(f"hold times must be above 0 s, not {hold_s} and {first_hold_s}")
        self.deflection, self.hold_s, self.first_hold_s = deflection, hold_s, first_hold_s
        self.quit = False
        self._signs = np.zeros(6, np.float32)
        self._axes_until_s = np.full(6, -np.inf)
        self._buttons_until_s = [-np.inf, -np.inf]
        self._rest = ""  # an escape sequence that has not ended yet

    def feed(self, text: str, now_s: float) -> None:
        """Take the characters that the terminal sent, in order; unknown ones mean nothing."""
        text = _ESCAPES.sub("", self._rest + text)
        broken = _BROKEN_ESCAPE.search(text)
        self._rest = broken.group() if broken else ""
        for key in text.removesuffix(self._rest).lower():
            if key in AXIS_KEYS:
                name, sign = AXIS_KEYS[key]
                axis = AXES.index(name)
                again = now_s < self._axes_until_s[axis] and self._signs[axis] == sign
                self._signs[axis] = sign
                self._axes_until_s[axis] = now_s + (self.hold_s if again else self.first_hold_s)
            elif key in BUTTON_KEYS:
                self._buttons_until_s[BUTTON_KEYS[key]] = now_s + BUTTON_HOLD_S
            elif key == QUIT_KEY:
                self.quit = True

    def report(self, now_s: float) -> DeviceReport:
        """The state now."""
        axes = np.where(now_s < self._axes_until_s, self._signs * self.deflection, 0.0)
        buttons = tuple(int(now_s < until_s) for until_s in self._buttons_until_s)
        return DeviceReport(axes.astype(np.float32), buttons, now_s)


class Terminal:
    """The terminal on a file descriptor, key by key and without echo, until ``close``.

    Ctrl-C still means SIGINT. Raises DeviceLost where the descriptor is no terminal.
    """

    def __init__(self, fd: int | None = None):
        fd = _stdin() if fd is None else fd
        if not os.isatty(fd):
            raise DeviceLost(
                "The keyboard needs a terminal and standard input is none. Use `hapo deploy "
                "operator:=keyboard`, or operator:=spacemouse or operator:=simulated."
            )
        self._fd, self._before = fd, termios.tcgetattr(fd)
        tty.setcbreak(fd)

    def read(self) -> str:
        """What was typed since the last call; never waits. Raises DeviceLost if it hung up."""
        typed = b""
        while select.select([self._fd], [], [], 0)[0]:
            try:
                part = os.read(self._fd, 1024)
            except OSError as error:
                raise DeviceLost(_hung_up(error)) from error
            if not part:
                raise DeviceLost(_hung_up("end of input"))
            typed += part
        return typed.decode("ascii", "ignore")

    def close(self) -> None:
        """Give the terminal its settings back; one that hung up has none."""
        try:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        except termios.error:
            if os.isatty(self._fd):
                raise


def _stdin() -> int:
    return sys.stdin.fileno() if sys.stdin and not sys.stdin.closed else -1


def _hung_up(why) -> str:
    return f"The keyboard's terminal is gone ({why}). Nothing is published. Start it in another."
