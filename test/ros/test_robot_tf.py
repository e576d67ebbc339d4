"""A robot whose pose is TF's, with ROS 2's own tf2_msgs: run by ``make test-ros``."""

import time

import pytest
from geometry_msgs.msg import TransformStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_graph import Probe, nothing_left_running, start_node, wait_for
from ruamel.yaml import YAML
from sensor_msgs.msg import JointState
from tf2_msgs.msg import TFMessage

from hapo_ros import topics
from hapo_ros.resources import resource

pytestmark = pytest.mark.ros
JOINTS = ["shoulder", "elbow", "left", "right"]


def transform(parent, child, at, **position):
    made = TransformStamped(child_frame_id=child)
    made.header.frame_id = parent
    made.header.stamp.sec, made.header.stamp.nanosec = divmod(at, 1_000_000_000)
    made.transform.rotation.w = 1.0
    for axis, value in position.items():
        setattr(made.transform.translation, axis, value)
    return made


def test_the_pose_follows_tf_and_a_tf_that_dies_is_named(tmp_path, ros_domain):
    yaml = YAML(typ="safe")
    robot = yaml.load(resource("config/robots/ur.yaml").read_text())
    robot |= {"stamp_tolerance_s": 5.0}
    robot["joint_states"] = [{"topic": "/joint_states", "joints": JOINTS, "tolerance_s": 2.0}]
    robot["pose"] = {"source": "tf", "tolerance_s": 1.0}
    yaml.dump(robot, tmp_path / "robot.yaml")
    alive, reach = ["tf"], [0.5]
    with nothing_left_running(), Probe(ros_domain) as probe:
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        static = probe.node.create_publisher(TFMessage, "/tf_static", latched)
        moving = probe.node.create_publisher(TFMessage, "/tf", 100)
        joints = probe.node.create_publisher(JointState, "/joint_states", 10)
        static.publish(TFMessage(transforms=[transform("wrist", "tool0", 0, z=0.1)]))

        def publish():
            at = time.time_ns()
            if alive:
                link = transform("base_link", "wrist", at, x=reach[0])
                moving.publish(TFMessage(transforms=[link]))
            message = JointState(name=JOINTS, position=[0.0] * 4)
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(at, 1_000_000_000)
            joints.publish(message)

        probe.node.create_timer(0.02, publish)
        poses = probe.listen(topics.EEF_POSE)
        log = tmp_path / "assembler.log"
        process = start_node("observation_assembler", log, robot=tmp_path / "robot.yaml")
        try:
            for x in (0.5, -0.25):
                reach[0] = x
                wait_for(lambda x=x: poses and poses[-1].pose.position.x == x)
                assert poses[-1].pose.position.z == 0.1
                assert poses[-1].header.frame_id == "base_link"
            alive.clear()
            said = "pose (TF of tool0 in base_link) has not come for more than 1 s"
            wait_for(lambda: said in log.read_text())
        finally:
            process.terminate()
            assert process.wait(20) == 0
