"""The robot's output side: executed actions become twists for its servo and gripper commands.

What is executed, held or stopped is ``hapo_ros.robots.output``. With ``dry_run`` nothing is sent to
the robot: the commands are published on topics of their own, and every step says so.
"""

from dataclasses import replace

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Twist, TwistStamped, Vector3
from rclpy.duration import Duration
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from hapo_ros import topics
from hapo_ros.arbitration import Applied
from hapo_ros.episodes import messages
from hapo_ros.msg import AppliedAction, ExecutedAction, ObservationTick
from hapo_ros.nodes.common import RECORD, FatalError, HapoNode, run
from hapo_ros.parameters import PARAMETERS
from hapo_ros.robots import config
from hapo_ros.robots.commands import NO_MOTION, gripper_value
from hapo_ros.robots.output import Command, RobotOutput


def command_qos(timeout_s: float) -> QoSProfile:
    """Of a robot's commands: one that is older than ``timeout_s`` is delivered to no one."""
    return QoSProfile(
        depth=1,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy.RELIABLE,
        deadline=Duration(seconds=timeout_s),
        lifespan=Duration(seconds=timeout_s),
    )


class RobotOutputNode(HapoNode):
    """Commands one robot."""

    def __init__(self):
        super().__init__("robot_output", PARAMETERS["robot_output"])
        own = self.parameters
        try:
            self._robot = robot = config.load(own.robot)
        except (ValueError, OSError) as error:
            raise FatalError(str(error)) from error
        self._core = RobotOutput(robot)
        self._heard = False  # a servo listens
        names = (topics.DRY_RUN_TWIST, topics.DRY_RUN_GRIPPER)
        self._names = names if own.dry_run else (robot.servo_topic, robot.gripper.topic)
        qos = command_qos(robot.command_timeout_s)
        trajectory = robot.gripper.kind == "joint_trajectory"
        type_ = JointTrajectory if trajectory else Float64MultiArray
        self._twist = self.create_publisher(TwistStamped, self._names[0], qos)
        self._gripper = self.create_publisher(type_, self._names[1], qos)
        self._applied = self.create_publisher(AppliedAction, topics.APPLIED_ACTION, RECORD)
        self.create_subscription(ExecutedAction, topics.EXECUTED_ACTION, self._on_decision, RECORD)
        self.create_subscription(ObservationTick, topics.OBSERVATION_TICK, self._on_tick, RECORD)
        self.every(0.01, self._watch)
        self.diagnose(self._diagnosis)
        if own.dry_run:
            self.get_logger().warning(
                f"DRY RUN: {robot.name} is sent nothing and does not move. What would be sent to "
                f"{robot.servo_topic} and {robot.gripper.topic} is on {' and '.join(names)}; no "
                "step of this run is learned from."
            )

    def _on_tick(self, message: ObservationTick) -> None:
        try:
            self._core.see_tick(messages.tick_from(message), self.now_s())
        except ValueError as error:
            self.get_logger().error(f"A tick was refused: {error}.", throttle_duration_sec=1.0)

    def _on_decision(self, message: ExecutedAction) -> None:
        try:
            decision = messages.decision_from(message)
        except ValueError as error:
            self._core.counts["decisions malformed"] += 1
            self.get_logger().error(f"A decision was refused: {error}.", throttle_duration_sec=1.0)
            return
        at = messages.message_stamp_ns(message)
        now = self.now_s(), self.ros_now_ns()
        command = self._core.decide(decision, at, message.tick, *now, self._gripper_listens)
        if command is None:
            return
        self._send(command)
        command = self._as_executed(command)
        if command.text:
            self.get_logger().warning(command.text, throttle_duration_sec=1.0)
        if command.action is None:
            return
        self._applied.publish(
            AppliedAction(
                header=messages.header(self.types, now[1]),
                episode_id=decision.episode_id,
                sequence=decision.sequence,
                tick=message.tick,
                applied=int(command.applied),
                action=self.types.sequence(command.action),
            )
        )

    @property
    def _gripper_listens(self) -> bool:
        """Whether a gripper command reaches anyone, or is only to be shown."""
        return self.parameters.dry_run or self._gripper.get_subscription_count() > 0

    def _as_executed(self, command: Command) -> Command:
        """The command, refused where it cannot have moved the robot."""
        if command.applied is not Applied.APPLIED:
            return command
        text = ""
        if self.parameters.dry_run:
            text = self._shown(command)
        elif not self._twist.get_subscription_count():
            text = (
                f"No one takes twists on {self._names[0]}. The arm does not move. Start its servo."
            )
        if not text:
            return command
        return replace(command, applied=Applied.REFUSED, action=self._core.hold(), text=text)

    def _shown(self, command: Command) -> str:
        twist = NO_MOTION if command.twist is None else command.twist
        numbers = " ".join(f"{number:+.3f}" for number in twist)
        return f"DRY RUN: {self._robot.servo_topic} would be sent {numbers}."

    def _send(self, command: Command) -> None:
        if command.twist is not None:
            self._publish_twist(command.twist)
        if command.closed is None:
            return
        gripper = self._robot.gripper
        value = gripper_value(command.closed, gripper)
        values = [value] * len(gripper.joints)
        if gripper.kind == "float64_multi_array":
            self._gripper.publish(Float64MultiArray(data=values))
        else:
            reached = Duration(seconds=gripper.duration_s).to_msg()
            point = JointTrajectoryPoint(positions=values, time_from_start=reached)
            self._gripper.publish(JointTrajectory(joint_names=list(gripper.joints), points=[point]))
        state = "closed" if command.closed else "open"
        self.get_logger().info(f"Gripper: {state} ({value:g} on {self._names[1]}).")

    def _publish_twist(self, numbers) -> None:
        x, y, z, roll, pitch, yaw = (float(number) for number in numbers)
        self._twist.publish(
            TwistStamped(
                header=messages.header(self.types, self.ros_now_ns(), self._robot.base_frame),
                twist=Twist(linear=Vector3(x=x, y=y, z=z), angular=Vector3(x=roll, y=pitch, z=yaw)),
            )
        )

    def _watch(self) -> None:
        before, self._heard = self._heard, self._twist.get_subscription_count() > 0
        if self._heard and not before:
            self._core.stop(self.now_s())
        if self._core.stop_due(self.now_s()):
            self._publish_twist(NO_MOTION)

    def _diagnosis(self):
        level, text = DiagnosticStatus.OK, f"{self._names[0]} is commanded."
        if self.parameters.dry_run:
            level, text = DiagnosticStatus.WARN, "Dry run: the robot is sent nothing."
        elif not self._heard:
            level, text = DiagnosticStatus.ERROR, f"No one takes twists on {self._names[0]}."
        elif not self._gripper_listens:
            level = DiagnosticStatus.WARN
            text = f"No one takes gripper commands on {self._names[1]}. Start its controller."
        return level, text, self._core.counts

    def shut_down(self) -> None:
        """Leave the arm with a last stop."""
        self._publish_twist(NO_MOTION)
        self.until_heard(self._twist)


def main(argv=None) -> int:
    return run(RobotOutputNode, argv)
