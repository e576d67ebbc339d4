"""The keyboard node: a terminal's keys as the operator's device. See hapo_ros.devices.keyboard."""

from collections.abc import Sequence

from hapo_ros.devices import DeviceLost
from hapo_ros.devices.keyboard import HELP, Keys, Terminal
from hapo_ros.nodes.common import FatalError, Parameter, run
from hapo_ros.nodes.spacemouse import OPERATOR_PARAMETERS, OperatorNode

PARAMETERS = (
    *OPERATOR_PARAMETERS,
    Parameter("deflection", 0.5, "Deflection of an axis while its key is held", "", 0.2, 1.0),
    Parameter("hold_s", 0.15, "A repeated key holds its axis for this long", "s", 0.05, 1.0),
    Parameter(
        "first_hold_s",
        0.15,
        "So does the first press; the terminal's repeat delay makes held keys move without a pause",
        "s",
        0.05,
        1.0,
    ),
)


class KeyboardNode(OperatorNode):
    """Publishes the keys' axes and buttons at a fixed rate until q is pressed."""

    def __init__(self):
        super().__init__("keyboard", PARAMETERS)
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
