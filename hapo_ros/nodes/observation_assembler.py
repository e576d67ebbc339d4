"""The robot's input side: cameras, joint states and pose that run free become one tick a period.

It publishes what the simulation's bridge publishes. An observation that is not complete is no tick:
then the arbiter goes on by its own timer, a human can go on moving the arm, and nothing is data.
"""

import zlib

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from hapo_ros import topics
from hapo_ros.arbitration import Applied
from hapo_ros.arbitration.limits import ACTION_DIM
from hapo_ros.episodes import messages
from hapo_ros.msg import AppliedAction, EpisodeState, ExecutedAction, ObservationTick
from hapo_ros.nodes.common import (
    IMAGES,
    LATCHED,
    RECORD,
    SENSOR,
    FatalError,
    HapoNode,
    message_class,
    run,
)
from hapo_ros.parameters import PARAMETERS
from hapo_ros.robots import config
from hapo_ros.robots.assembly import Assembler, EpisodeTicks, Fault, Problem
from hapo_ros.robots.inputs import (
    POSE,
    PoseFromTf,
    Source,
    inputs,
    joints_key,
    measured_gripper,
    sources,
)
from hapo_ros.robots.standstill import Standstill

EPISODE = "episode"  # the key of what is wrong with the episode's ticks, beside those of the inputs
TF = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
TF_STATIC = QoSProfile(depth=100, durability=LATCHED.durability)
HEARING_S = 5.0  # that it may take a node that has just started to hear who has the arm
PUT_OFF = 0.2  # of a control period, at most, that a tick waits for the word on the last decision


class ObservationAssembler(HapoNode):
    """Assembles observations, and numbers them within an episode."""

    def __init__(self):
        super().__init__("observation_assembler", PARAMETERS["observation_assembler"])
        own = self.parameters
        self._cameras = [camera for camera in own.cameras if camera]
        try:
            self._robot = config.load(own.robot)
            known = inputs(self._robot, self._cameras)
        except (ValueError, OSError) as error:
            raise FatalError(str(error)) from error
        self._assembler = Assembler(known, self._robot.stamp_tolerance_s)
        self._ticks = EpisodeTicks()
        self._standstill = Standstill(self._robot)
        self._tf = PoseFromTf(self._robot, self._assembler)
        self._sent: dict[str, int] = {}  # camera -> stamp of the image that was last published
        self._told = None  # faults by input, and whether the observation is lost
        self._complete_s = self.now_s()  # when it last was

        self._images = {
            camera: self.create_publisher(Image, topics.image(camera), IMAGES)
            for camera in self._cameras
        }
        self._joint_state = self.create_publisher(JointState, topics.JOINT_STATE, RECORD)
        self._eef_pose = self.create_publisher(PoseStamped, topics.EEF_POSE, RECORD)
        self._tick = self.create_publisher(ObservationTick, topics.OBSERVATION_TICK, RECORD)
        self._info = self.create_publisher(String, topics.OBSERVATION_INFO, LATCHED)
        self._subscribe()
        self.create_subscription(ExecutedAction, topics.EXECUTED_ACTION, self._on_decision, RECORD)
        self.create_subscription(AppliedAction, topics.APPLIED_ACTION, self._on_applied, RECORD)
        self.create_subscription(EpisodeState, topics.EPISODE_STATE, self._on_episode, LATCHED)
        self.every(self._robot.control_period_s, self._on_period)
        # The executor serves timers before messages: a word that is there already must count.
        self._after_messages = self.every(0.001, self._observe)
        self._after_messages.cancel()
        self._until_s = -np.inf  # to when this period's tick may be put off
        self.diagnose(self._diagnosis)

    # Inputs

    def _subscribe(self) -> None:
        robot = self._robot
        for source in sources(robot, self._cameras):
            self.create_subscription(
                message_class(source.type_name),
                source.topic,
                lambda message, source=source: self._on_input(source, message),
                SENSOR,
            )
        if robot.pose.topic:
            return
        try:
            type_ = message_class("tf2_msgs/msg/TFMessage")
        except ImportError as error:
            raise FatalError(
                f"Robot {robot.name} has its pose from TF, and tf2_msgs is not installed ({error})."
                " Nothing is observed. Install tf2_msgs, or give the robot a pose topic."
            ) from error
        self.create_subscription(
            type_, "/tf", lambda m: self._tf.add(m, self.now_s(), self.now_s()), TF
        )
        self.create_subscription(
            type_, "/tf_static", lambda m: self._tf.add(m, np.inf, self.now_s()), TF_STATIC
        )

    def _on_input(self, source: Source, message) -> None:
        try:
            value = source.read(message)
        except ValueError as error:
            self._assembler.refuse(source.key, str(error), self.now_s())
            return
        if value is not None:
            digest = zlib.crc32(value) if source.key in self._cameras else None
            at = messages.message_stamp_ns(message)
            now = self.now_s(), self.ros_now_ns()
            self._assembler.add(source.key, value, at, *now, digest)

    # The episode

    def _on_episode(self, message: EpisodeState) -> None:
        ticks = self._ticks
        if message.state == EpisodeState.FAILED:
            return  # what ended is the recording: a human who has the arm goes on
        if message.state != EpisodeState.RUNNING:
            # IDLE: a restarted recorder, whatever was running when it was killed.
            if message.state == EpisodeState.IDLE or message.episode_id == ticks.episode_id:
                ticks.stop()
        elif message.episode_id != ticks.episode_id:
            ticks.start(message.episode_id, joined=self.is_from_before(message))

    def _on_decision(self, message: ExecutedAction) -> None:
        try:
            self._ticks.see_decision(messages.decision_from(message), message.tick)
        except ValueError as error:
            self.get_logger().error(f"A decision was refused: {error}.", throttle_duration_sec=1.0)

    def _on_applied(self, message: AppliedAction) -> None:
        try:
            applied = Applied(message.applied)
            action = messages.vector(message.action, np.float32, "action", ACTION_DIM)
        except ValueError as error:
            self.get_logger().error(f"An answer was refused: {error}.", throttle_duration_sec=1.0)
            return
        self._ticks.see_applied(message.episode_id, message.sequence, applied, action, message.tick)

    # Output

    def _on_period(self) -> None:
        self._until_s = self.now_s() + PUT_OFF * self._robot.control_period_s
        self._after_messages.reset()

    def _observe(self) -> None:
        if self._ticks.awaits_word and self.now_s() < self._until_s:
            return  # and look again in a millisecond
        self._after_messages.cancel()
        if not self._robot.pose.topic:
            self._tf.look_up(self.now_s(), self.ros_now_ns())
        problems, at = self._problems(), self.ros_now_ns()
        self._tell(problems)
        if POSE not in problems:
            # Whatever else is missing: a human's motion is limited by it, and goes on.
            pose, _ = self._assembler.value(POSE)
            self._eef_pose.publish(
                messages.pose_message(self.types, pose, at, self._robot.base_frame)
            )
        if not problems:
            self._publish(at)

    def _problems(self) -> dict[str, Problem]:
        """What keeps the next tick from being made, by key."""
        found = self._assembler.problems(self.now_s())
        if self._ticks.joined:
            found[EPISODE] = Problem(
                Fault.FORGOTTEN,
                f"observation_assembler was started again while {self._ticks.episode_id} ran, and "
                "does not know its ticks",
            )
        return found

    def _publish(self, at: int) -> None:
        """The observation but for its pose, and its tick, stamped ``at``."""
        begins, robot = self._ticks.begins, self._robot
        stamps = {topics.JOINT_STATE: at, topics.EEF_POSE: at}
        parts = [self._assembler.value(joints_key(i))[0] for i in range(len(robot.joint_states))]
        positions = np.concatenate(parts)
        if begins:
            self._sent.clear()  # the bag is to have every image that its ticks name
            self._ticks.meet_gripper(measured_gripper(positions, robot))
        for camera, publisher in self._images.items():
            picture, taken = self._assembler.value(camera)
            stamps[topics.image(camera)] = taken
            if self._sent.get(camera) != taken:  # two ticks may see the same image
                self._sent[camera] = taken
                frame = f"{camera}_optical_frame"
                publisher.publish(messages.image_message(self.types, picture, taken, frame))
        self._joint_state.publish(
            messages.joint_state_message(self.types, positions, at, robot.joints)
        )
        if self._ticks.episode_id and (not begins or self._matched()):
            tick = self._ticks.next(at)
            self._tick.publish(messages.tick_message(self.types, tick, stamps))
            pose, _ = self._assembler.value(POSE)
            self._standstill.see(tick.applied, tick.applied_action, pose)
            if text := self._standstill.text:
                self.get_logger().warning(text, throttle_duration_sec=2.0)

    def _matched(self) -> bool:
        """Whether everyone who needs the first tick would get it."""
        own = self.parameters
        return self.is_read_by(self._tick, own.tick_readers) and all(
            self.is_read_by(image, own.image_readers) for image in self._images.values()
        )

    def _tell(self, problems) -> None:
        """Say what is wrong, once: in the log, and to the recorder, which then does not start.

        An observation that is lost for good ends the recording; not while a human has the arm.
        """
        now = self.now_s()
        self._complete_s = self._complete_s if problems else now
        known = self._ticks.human is not None or now - self.started_s > HEARING_S
        gone = now - self._complete_s > self._robot.lost_after_s
        lost = gone and known and not self._ticks.human
        told = {key: problem.fault for key, problem in problems.items()}, lost
        if told == self._told:
            return
        before, self._told = self._told, told
        sentences = [problem.text for problem in problems.values()]
        self.publish_info(
            self._info,
            {
                "task": self.parameters.task,
                "instruction": self.parameters.instruction,
                "cameras": {c.name: c.size for c in self._robot.cameras if c.name in self._cameras},
                "object_state": [],
                "action_space": self._robot.action_space(),
                "problems": sentences,
                "lost": lost,
            },
        )
        if sentences:
            self.get_logger().warning(
                f"No observation: {'; '.join(sentences)}. No tick is sent: the policy has no say, "
                "a human can go on, and nothing is data. Look at that input.",
                throttle_duration_sec=1.0,
            )
        elif before is not None:
            self.get_logger().info("The observation is complete.", throttle_duration_sec=1.0)

    def _diagnosis(self):
        problems = self._problems()
        text = "; ".join(problem.text for problem in problems.values())
        if not problems and self._ticks.episode_id:
            text = self._standstill.text
        level = DiagnosticStatus.WARN if text else DiagnosticStatus.OK
        counts = self._assembler.counts + self._ticks.counts
        return level, text or "The observation is complete.", counts


def main(argv=None) -> int:
    return run(ObservationAssembler, argv)
