"""The SpaceMouse node: publishes the operator's device as Joy and TwistStamped of one stamp.

As long as the device is live its state is published at a fixed rate, at rest too; a device that is
lost or silent is published as silence, which the arbiter's time-out turns into a hold. When it is
live and when it is silent: ``hapo_ros.devices.spacemouse``.
"""

from collections.abc import Sequence

from hapo_ros import topics
from hapo_ros.devices import DeviceLost, DeviceReport, twist_from_axes
from hapo_ros.devices.spacemouse import INSTEAD, SpaceMouse, list_devices, open_spacemouse
from hapo_ros.episodes.messages import operator_messages
from hapo_ros.nodes.common import COMMAND, FatalError, HapoNode, run
from hapo_ros.parameters import PARAMETERS, Parameter


class OperatorNode(HapoNode):
    """A node that publishes device reports on the two operator topics."""

    def __init__(self, name: str, parameters: Sequence[Parameter]):
        super().__init__(name, parameters)
        self._outputs = {
            topics.JOY: self.create_publisher(self.types.Joy, topics.JOY, COMMAND),
            topics.TWIST: self.create_publisher(self.types.TwistStamped, topics.TWIST, COMMAND),
        }
        self._stamp_ns = -1

    def publish_report(self, report: DeviceReport) -> None:
        """Publish a report as Joy and TwistStamped; the stamp they share is no other report's."""
        own = self.parameters
        twist = twist_from_axes(report.axes, own.linear_scale_m_s, own.angular_scale_rad_s)
        now_ns = self.ros_now_ns()
        # Time that was set back is followed; two reports within one reading of it are told apart.
        self._stamp_ns = now_ns + 1 if now_ns == self._stamp_ns else now_ns
        messages = operator_messages(
            self.types, report.axes, report.buttons, twist, self._stamp_ns, own.frame_id
        )
        for topic, message in messages.items():
            self._outputs[topic].publish(message)


class SpaceMouseNode(OperatorNode):
    """Reads the device, publishes it, and opens it again after a loss."""

    def __init__(self):
        super().__init__("spacemouse", PARAMETERS["spacemouse"])
        self._mouse: SpaceMouse | None = None
        self._silent = False
        self._retry_s = 0.0
        try:
            self._plugged_in = len(list_devices())
            self._open()
        except DeviceLost as error:
            raise FatalError(f"{error} {INSTEAD}") from error
        if self._plugged_in > 1 and not self.parameters.device_path:
            self.get_logger().warning(
                f"{self._plugged_in} SpaceMice are plugged in; number "
                f"{self.parameters.device_index} is used. Set device_path to be sure which."
            )
        self.every(1.0 / self.parameters.rate_hz, self._publish)

    def _open(self) -> None:
        own = self.parameters
        self._mouse = open_spacemouse(
            self.now_s(),
            path=own.device_path,
            index=own.device_index,
            deadband=own.deadband,
            silent_after_s=own.silent_after_s,
        )
        self._silent = False
        self.get_logger().info(f"{self._mouse.name} at {self._mouse.path} is open.")

    def _publish(self) -> None:
        if self._mouse is None and not self._reopened():
            return
        now_s = self.now_s()
        try:
            reports = self._mouse.samples(now_s)
        except DeviceLost as error:
            self.get_logger().error(str(error))
            self._mouse.close()
            self._mouse, self._retry_s = None, now_s + self.parameters.reopen_every_s
            return
        self._tell_silence(now_s)
        for report in reports:
            self.publish_report(report)

    def _reopened(self) -> bool:
        if self.now_s() < self._retry_s:
            return False
        self._retry_s = self.now_s() + self.parameters.reopen_every_s
        try:
            if not self.parameters.device_path and not self._all_are_back():
                return False
            self._open()
        except DeviceLost as error:
            self.get_logger().debug(str(error))
            return False
        return True

    def _all_are_back(self) -> bool:
        """While one of several is missing, the same index is another operator's mouse."""
        there = list_devices()
        if there and len(there) < self._plugged_in:
            self.get_logger().warning(
                f"{self._plugged_in} SpaceMice were plugged in at the start, and there is only "
                f"{', '.join(f'{d.name} at {d.path}' for d in there)}. None is opened: it may be "
                "another operator's. Plug the others in again, or set device_path and restart.",
                throttle_duration_sec=10.0,
            )
        return len(there) >= self._plugged_in

    def _tell_silence(self, now_s: float) -> None:
        if self._mouse.silent == self._silent:
            return
        self._silent = self._mouse.silent
        if self._silent:
            self.get_logger().error(
                "SpaceMouse silent (deflected, but no report for "
                f"{self._mouse.silence_s(now_s):.2f} s > {self.parameters.silent_after_s:.2f} s). "
                "Nothing is published. Let go of the cap and move it; if that does not help, "
                "reconnect it. Then press resume."
            )
        else:
            self.get_logger().info("The SpaceMouse reports again.")

    def shut_down(self) -> None:
        if self._mouse is not None:
            self._mouse.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node; returns the exit code."""
    return run(SpaceMouseNode, argv)
