"""A simulated arm behind a real robot's interface, to try the whole robot path out without a robot.

It runs free, in real time: physics at 20 Hz, every camera and the joints at their own rates. It
follows the newest twist, as a servo would, and stops when none comes. Nobody puts the cube back by
hand, so it is reset when an episode begins.
"""

import cv2
import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray

from hapo_ros import topics
from hapo_ros.episodes import messages
from hapo_ros.msg import EpisodeState, ObservationTick, StateVector
from hapo_ros.nodes.common import LATCHED, RECORD, SENSOR, FatalError, HapoNode, run
from hapo_ros.parameters import PARAMETERS
from hapo_ros.robots import config
from hapo_ros.robots.commands import action_from, gripper_closed
from hapo_ros.sim.environment import (
    ANGULAR_SCALE_RAD_S,
    CONTROL_HZ,
    LINEAR_SCALE_M_S,
    NOTHING_APPLIED,
    Simulation,
)
from hapo_ros.sim.tasks import get_task


class SimulatedRobot(HapoNode):
    """One robosuite task that runs by itself."""

    def __init__(self):
        super().__init__("simulated_robot", PARAMETERS["simulated_robot"])
        own = self.parameters
        try:
            self._robot = robot = config.load(own.robot)
            cameras = [camera.name for camera in robot.cameras]
            image_size = robot.cameras[0].source[0] if cameras else 1
            self._simulation = Simulation(get_task(own.task), image_size, cameras)
        except (ValueError, OSError, RuntimeError) as error:
            raise FatalError(f"{error} The simulated robot does not start.") from error
        self._check()
        self._observation = self._simulation.reset(0, images=False)
        self._twist, self._twist_s = np.zeros(6), -np.inf
        self._closed = False
        self._episode_id = ""

        for camera in robot.cameras:
            type_ = CompressedImage if camera.compressed else Image
            publisher = self.create_publisher(type_, camera.topic, SENSOR)
            show = self._show_compressed if camera.compressed else self._show
            self.every(
                1.0 / camera.rate_hz,
                lambda show=show, publisher=publisher, name=camera.name: show(publisher, name),
            )
        (joints,) = robot.joint_states
        self._joint_state = self.create_publisher(JointState, joints.topic, SENSOR)
        self._pose = self.create_publisher(PoseStamped, robot.pose.topic, SENSOR)
        self._privileged = self.create_publisher(StateVector, topics.PRIVILEGED_STATE, RECORD)
        self.create_subscription(TwistStamped, robot.servo_topic, self._on_twist, 10)
        self.create_subscription(Float64MultiArray, robot.gripper.topic, self._on_gripper, 10)
        self.create_subscription(EpisodeState, topics.EPISODE_STATE, self._on_episode, LATCHED)
        self.create_subscription(ObservationTick, topics.OBSERVATION_TICK, self._on_tick, RECORD)
        self.every(1.0 / CONTROL_HZ, self._step)
        self.every(1.0 / own.joint_state_hz, self._publish_state)

    def _check(self) -> None:
        robot = self._robot
        scales = robot.linear_scale_m_s, robot.angular_scale_rad_s
        one_size = (self._simulation.image_size, self._simulation.image_size)
        usable = (
            all(camera.source == one_size for camera in robot.cameras)
            and scales == (LINEAR_SCALE_M_S, ANGULAR_SCALE_RAD_S)
            and len(robot.joint_states) == 1
            and len(robot.joints) == self._simulation.reset(0, images=False).joint_positions.size
            and robot.pose.topic
            and robot.gripper.kind == "float64_multi_array"
        )
        if not usable:
            raise FatalError(
                f"The simulation cannot stand in for robot {robot.name}: it has one topic of joint "
                "states with 7 joints and 2 fingers, a pose topic, a float64_multi_array gripper, "
                f"speeds of {LINEAR_SCALE_M_S:g} m/s and {ANGULAR_SCALE_RAD_S:g} rad/s, and "
                "cameras whose source is one square size. It does not start. See "
                "config/robots/simulated.yaml."
            )

    # Commands

    def _on_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        twist = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
        if np.isfinite(twist).all():
            self._twist, self._twist_s = twist, self.now_s()

    def _on_gripper(self, message: Float64MultiArray) -> None:
        self._closed = gripper_closed(message.data[0], self._robot.gripper)

    def _on_episode(self, message: EpisodeState) -> None:
        if message.state != EpisodeState.RUNNING:
            return
        if message.episode_id != self._episode_id:
            self._episode_id = message.episode_id
            self._closed = bool(NOTHING_APPLIED[6] > 0)
            self._observation = self._simulation.reset(message.seed, images=False)

    def _step(self) -> None:
        live = self.now_s() - self._twist_s <= self._robot.servo_timeout_s
        twist = self._twist if live else np.zeros(6)
        action = np.clip(action_from(twist, self._closed, self._robot), -1.0, 1.0)
        self._observation = self._simulation.step(action, images=False)

    # Sensors

    def _show(self, publisher, camera: str) -> None:
        image, at = self._simulation.render(camera), self.ros_now_ns()
        publisher.publish(messages.image_message(self.types, image, at, f"{camera}_optical_frame"))

    def _show_compressed(self, publisher, camera: str) -> None:
        image, at = self._simulation.render(camera), self.ros_now_ns()
        _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        publisher.publish(
            CompressedImage(
                header=messages.header(self.types, at, f"{camera}_optical_frame"),
                format="rgb8; jpeg compressed bgr8",
                data=self.types.sequence(data),
            )
        )

    def _publish_state(self) -> None:
        at, observation, robot = self.ros_now_ns(), self._observation, self._robot
        self._joint_state.publish(
            messages.joint_state_message(self.types, observation.joint_positions, at, robot.joints)
        )
        self._pose.publish(
            messages.pose_message(self.types, observation.eef_pose, at, robot.base_frame)
        )

    def _on_tick(self, message: ObservationTick) -> None:
        """What the simulated operator sees of the scene at this tick; no policy does."""
        self._privileged.publish(
            messages.privileged_message(
                self.types, self._simulation.privileged(), messages.message_stamp_ns(message)
            )
        )

    def shut_down(self) -> None:
        self._simulation.close()


def main(argv=None) -> int:
    return run(SimulatedRobot, argv)
