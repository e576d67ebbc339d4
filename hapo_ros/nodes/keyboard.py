"""The keyboard node: a terminal's keys as the operator's device. See hapo_ros.devices.keyboard."""

from collections.abc import Sequence

from hapo_ros.devices import DeviceLost
from hapo_ros.devices.keyboard import HELP, Keys, Terminal
from hapo_ros.nodes.common import FatalError, run
from hapo_ros.nodes.spacemouse import OperatorNode
from hapo_ros.parameters import PARAMETERS


class KeyboardNode(OperatorNode):
    """Publishes the keys' axes and buttons at a fixed rate until q is pressed."""

    def __init__(self):
        super().__init__("keyboard", PARAMETERS["keyboard"])
        own = self.parameters
        self._keys = Keys(own.deflection, own.hold_s, own.first_hold_s)
        self.every(1.0 / own.rate_hz, self._publish)
        try:
            self._terminal = Terminal()  # last: from here on there is something to give back
        except DeviceLost as error:
            raise FatalError(str(error)) from error
        self.get_logger().info(HELP)

    def _publish(self) -> None:
        try:
            typed = self._terminal.read()
        except DeviceLost as error:
            raise FatalError(str(error)) from error
        now_s = self.now_s()
        self._keys.feed(typed, now_s)
        self.publish_report(self._keys.report(now_s))
        self.finished = self._keys.quit

    def shut_down(self) -> None:
        self._terminal.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node; returns the exit code."""
    return run(KeyboardNode, argv)
