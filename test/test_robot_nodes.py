"""The robot's two sides as processes; the test is the robot at the other end of their topics."""

import os
import signal
import time
from functools import partial

import numpy as np
import pytest
from ros_graph import wait_for
from ruamel.yaml import YAML

from hapo_ros import labels, topics
from hapo_ros.arbitration import Applied, Authority, Decision, Reason, Tick
from hapo_ros.arbitration.limits import hold
from hapo_ros.episodes import EpisodeInfo, messages
from hapo_ros.resources import resource

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("no_node_is_left")
JOINTS = [f"joint_{i}" for i in range(7)] + ["left_finger", "right_finger"]
HOME = dict(zip(JOINTS, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.04, 0.04], strict=True))
# Patient with a busy machine: what is late here has been long gone.
ROBOT = {
    "frames": {"base": "base", "tool": "tool"},
    "control_period_s": 0.2,
    "scales": {"linear_m_s": 0.5, "angular_rad_s": 2.0},
    "limits": {"linear_m_s": 0.5, "angular_rad_s": 2.0},
    "cameras": {
        "front": {"topic": "/front", "source": [4, 6], "size": [4, 6], "rate_hz": 15,
                  "tolerance_s": 1.5},
        "wrist": {"topic": "/wrist/compressed", "kind": "compressed", "source": [12, 8],
                  "size": [4, 4], "crop": [2, 0, 8, 8], "rate_hz": 4, "tolerance_s": 2.0,
                  "frozen_after": 0},
        "unused": {"topic": "/unused", "source": [4, 4], "size": [4, 4], "rate_hz": 15},
    },
    "joint_states": [{"topic": "/joint_states", "joints": JOINTS, "tolerance_s": 1.5}],
    "pose": {"source": "topic", "topic": "/pose", "tolerance_s": 1.5},
    "servo": {"topic": "/servo/twist", "units": "speed_units"},
    "gripper": {"kind": "float64_multi_array", "topic": "/gripper", "joints": ["left_finger"],
                "open": 0.04, "closed": 0.0},
    "timeouts": {"decision_s": 0.2, "command_s": 0.5, "servo_s": 0.3, "lost_s": 0.5},
    "stamp_tolerance_s": 5.0,
}  # fmt: skip


@pytest.fixture
def start(start, tmp_path):
    """Starts nodes for the robot of this test, as the fixture of all tests does."""

    def start_of_robot(name, robot=ROBOT, **parameters):
        if isinstance(robot, dict):
            path = tmp_path / "mine.yaml"
            YAML(typ="safe").dump(robot, path)
            robot = path
        if robot is not None:
            parameters["robot"] = robot
        return start(name, **parameters)

    return start_of_robot


@pytest.mark.parametrize(
    ("node", "robot", "parameters", "said"),
    [
        ("observation_assembler", "r2d2", {}, "There is no robot r2d2"),
        ("robot_output", "r2d2", {}, "There is no robot r2d2"),
        ("simulated_robot", "r2d2", {}, "There is no robot r2d2"),
        ("observation_assembler", ROBOT | {"speed": 3}, {}, "speed is not known here"),
        ("robot_output", ROBOT | {"speed": 3}, {}, "speed is not known here"),
        ("observation_assembler", ROBOT, {"cameras": "[front,top]"}, "has no camera top"),
        ("simulated_robot", ROBOT, {}, "Task Lift has no camera front"),
        ("simulated_robot", ROBOT | {"cameras": {}}, {}, "cannot stand in for robot mine"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_stops_a_node_at_its_start_with_a_sentence(
    start, node, robot, parameters, said
):
    process = start(node, robot, **parameters)
    assert process.wait(60) == 1
    log = process.log.read_text()
    assert said in log and log.count("\n") <= 3, log


# The input side


class Sensors:
    """What a robot publishes, by its own timers; each can fall silent, freeze or go mad."""

    def __init__(self, probe):
        from geometry_msgs.msg import PoseStamped
        from sensor_msgs.msg import CompressedImage, Image, JointState

        from hapo_ros.nodes.common import ros_types
        from hapo_ros.nodes.simulated_robot import SENSOR

        self.types, self.probe, self.compressed = ros_types(), probe, CompressedImage
        self.silent, self.frozen = set(), set()
        self.position, self.pose = dict(HOME), np.array([0.3, 0, 0.5, 0, 0, 0, 1.0])
        self.stamp_off_ns = 0
        self.shown = {}  # topic -> stamp -> what the camera saw, in order
        self._rng = np.random.default_rng(0)
        for name, type_, rate_hz, make in (
            ("/front", Image, 15, self._front),
            ("/wrist/compressed", CompressedImage, 4, self._wrist),
            ("/joint_states", JointState, 30, self._joints),
            ("/pose", PoseStamped, 25, self._pose),
        ):
            publisher = probe.node.create_publisher(type_, name, SENSOR)
            probe.node.create_timer(1 / rate_hz, partial(self._publish, name, publisher, make))

    def _publish(self, name, publisher, make):
        if name not in self.silent:
            publisher.publish(make(time.time_ns() + self.stamp_off_ns))

    def _seen(self, name, at, shape):
        if name in self.frozen:
            image = next(reversed(self.shown[name].values()))
        else:
            image = self._rng.integers(0, 256, shape, np.uint8)
        self.shown.setdefault(name, {})[at] = image
        return image

    def _front(self, at):
        return messages.image_message(self.types, self._seen("/front", at, (4, 6, 3)), at, "lens")

    def _wrist(self, at):
        import cv2

        image = self._seen("/wrist/compressed", at, (12, 8, 3))
        _, data = cv2.imencode(".png", image[..., ::-1])
        return self.compressed(
            header=messages.header(self.types, at), format="png", data=self.types.sequence(data)
        )

    def _joints(self, at):
        names = ["another", *reversed(JOINTS)]
        positions = [9.0, *(self.position[name] for name in names[1:])]
        return messages.joint_state_message(self.types, positions, at, names)

    def _pose(self, at):
        return messages.pose_message(self.types, self.pose, at, "base")


class Assembled:
    """A running assembler, its robot, and what it publishes."""

    def __init__(self, probe, start, robot=ROBOT, **parameters):
        known = {"cameras": "[front,wrist]", "task": "fold", "instruction": "fold the towel"}
        readers = {"tick_readers": "[probe]", "image_readers": "[probe]"}
        parameters = known | readers | parameters
        self.probe, self.sensors = probe, Sensors(probe)
        self.types, self.infos = self.sensors.types, []
        self.ticks = probe.listen(topics.OBSERVATION_TICK)
        self.states = {name: probe.listen(name) for name in (topics.JOINT_STATE, topics.EEF_POSE)}
        self.images = {name: self._listen_to_images(name) for name in ("front", "wrist")}
        self._listen_to_info()
        self.diagnoses = probe_diagnoses(probe)
        self.publishers = {
            name: probe.publisher(name)
            for name in (topics.EPISODE_STATE, topics.EXECUTED_ACTION, topics.APPLIED_ACTION)
        }
        self.process = start("observation_assembler", robot, **parameters)
        wait_for(lambda: all(p.get_subscription_count() for p in self.publishers.values()))

    def _listen_to_images(self, name):
        from sensor_msgs.msg import Image

        from hapo_ros.nodes.common import IMAGES

        kept = []
        self.probe.node.create_subscription(Image, topics.image(name), kept.append, IMAGES)
        return kept

    def _listen_to_info(self):
        from std_msgs.msg import String

        from hapo_ros.nodes.common import LATCHED

        def hear(message):
            self.infos.append(messages.info_from(message))

        self.probe.node.create_subscription(String, topics.OBSERVATION_INFO, hear, LATCHED)

    def until_info(self, condition):
        return wait_for(lambda: next((i for i in self.infos[-1:] if condition(i)), None))

    def until_complete(self):
        return self.until_info(lambda info: not info["problems"])

    def episode(self, episode_id="ep", state=2):
        info = EpisodeInfo(episode_id, "fold", "fold the towel", "deployment", seed=1)
        message = messages.episode_state_message(self.types, time.time_ns(), state, info)
        self.publishers[topics.EPISODE_STATE].publish(message)

    def decide(self, sequence, authority=Authority.POLICY, epoch=0):
        decision = decided(sequence, authority=authority, epoch=epoch)
        message = messages.executed_action_message(self.types, decision, time.time_ns())
        self.publishers[topics.EXECUTED_ACTION].publish(message)

    def apply(self, sequence, action, applied=Applied.APPLIED):
        from hapo_ros.msg import AppliedAction

        message = AppliedAction(episode_id="ep", sequence=sequence, tick=True, applied=applied)
        message.action = self.types.sequence(np.asarray(action, np.float32))
        self.publishers[topics.APPLIED_ACTION].publish(message)

    def tick(self, sequence, episode_id="ep"):
        """Wait for a tick; returns it."""

        def found():
            key = episode_id, sequence
            return [tick for tick in self.ticks if (tick.episode_id, tick.sequence) == key]

        return wait_for(found)[0]

    def newest(self):
        """The number of the newest tick; waits for one."""
        return wait_for(lambda: self.ticks and self.ticks[-1]).sequence


def probe_diagnoses(probe) -> list:
    """What nodes say of themselves on /diagnostics, from now on."""
    from diagnostic_msgs.msg import DiagnosticArray

    heard = []
    probe.node.create_subscription(
        DiagnosticArray, "/diagnostics", lambda message: heard.extend(message.status), 10
    )
    return heard


MOTION = np.array([0.5, 0, 0, 0, 0, 0, 1], np.float32)


def decided(sequence, action=MOTION, authority=Authority.POLICY, epoch=0, hold=False):
    label = labels.HUMAN if authority is Authority.HUMAN else labels.POLICY
    return Decision(
        "ep",
        sequence,
        action,
        np.zeros(0, np.float32) if hold else action,
        labels.NONE if hold else label,
        authority,
        Reason.POLICY_ACTS,
        epoch,
        policy_due=True,
    )


def test_ticks_name_by_their_stamps_the_newest_of_what_came_at_rates_of_its_own(probe, start):
    around = Assembled(probe, start)
    complete = around.until_complete()
    assert complete["cameras"] == {"front": [4, 6], "wrist": [4, 4]}
    assert (complete["task"], complete["instruction"]) == ("fold", "fold the towel")
    assert complete["action_space"]["linear_scale_m_s"] == 0.5
    wait_for(lambda: len(around.images["wrist"]) > 3)  # shown, though no episode runs
    assert not around.ticks
    around.episode()
    around.tick(20)
    ticks = [around.tick(sequence) for sequence in range(21)]
    assert [tick.sequence for tick in around.ticks[:21]] == list(range(21))
    wait_for(lambda: messages.message_stamp_ns(around.images["front"][-1]) >= stamp(ticks[-1]))
    for state in around.states.values():
        wait_for(lambda state=state: messages.message_stamp_ns(state[-1]) >= stamp(ticks[-1], ""))

    front, wrist = (
        {messages.message_stamp_ns(m): m for m in around.images[name]} for name in around.images
    )
    shown = around.sensors.shown
    for tick in ticks:
        stamps = messages.tick_stamps(tick)
        assert list(stamps) == [
            topics.JOINT_STATE,
            topics.EEF_POSE,
            *map(topics.image, around.images),
        ]
        at = stamps[topics.image("front")]
        np.testing.assert_array_equal(messages.image_from(front[at]), shown["/front"][at])
        at = stamps[topics.image("wrist")]
        seen = messages.image_from(wrist[at])
        corner = shown["/wrist/compressed"][at][2:4, :2].reshape(-1, 3)  # cropped, then averaged
        assert seen.shape == (4, 4, 3)
        assert np.abs(seen[0, 0] - corner.mean(0)).max() <= 0.5
        for name, kept in around.states.items():
            assert stamps[name] in [messages.message_stamp_ns(message) for message in kept]
    # The slow camera's images were seen by several ticks, and published again for the first.
    of_wrist = [messages.tick_stamps(tick)[topics.image("wrist")] for tick in ticks]
    assert of_wrist == sorted(of_wrist) and len(set(of_wrist)) < len(of_wrist)
    sent = [messages.message_stamp_ns(m) for m in around.images["wrist"]]
    for at in set(of_wrist):
        assert sent.count(at) <= 1 + (at == of_wrist[0])

    (joint, pose) = (around.states[name][-1] for name in (topics.JOINT_STATE, topics.EEF_POSE))
    assert joint.name == JOINTS and list(joint.position) == list(HOME.values())
    assert pose.header.frame_id == "base" and pose.pose.position.z == 0.5


def stamp(tick, camera="front") -> int:
    name = topics.image(camera) if camera else topics.EEF_POSE
    return messages.tick_stamps(tick)[name]


def test_a_tick_says_what_became_of_the_decision_and_what_the_arbiter_said_last(probe, start):
    around = Assembled(probe, start)
    around.sensors.position["left_finger"] = 0.01  # it holds something
    around.until_complete()
    around.episode()
    first = around.tick(0)
    assert (first.applied, first.applied_sequence) == (first.NO_DECISION, -1)
    assert first.applied_action[6] == 1.0 and first.authority == Authority.HOLD
    assert not first.success and first.policy_due

    def answered(tick) -> bool:
        """Whether both words on a tick came before the next; on a busy machine, some do not."""
        around.apply(tick.sequence, MOTION)
        around.decide(tick.sequence, epoch=4)
        following = around.tick(tick.sequence + 1)
        assert following.applied_sequence == tick.sequence
        if following.applied == following.LATE_HELD:
            assert not np.any(following.applied_action[:6])
            return False
        assert following.applied == following.APPLIED
        np.testing.assert_array_equal(following.applied_action, MOTION)
        return following.epoch == 4 and following.authority == Authority.POLICY

    around.apply(0, MOTION[:3])  # a stranger's: it is no one's word
    around.apply(0, MOTION, applied=77)
    wait_for(lambda: answered(around.tick(around.newest())))
    last = around.newest()
    assert around.tick(last + 2).applied == first.LATE_HELD  # no word

    def answered_late(tick) -> bool:
        """Whether a word still counts that comes just after the period: not always when busy."""
        around.decide(tick.sequence, epoch=5)
        late_ns = stamp(tick, "") + round(1.05e9 * ROBOT["control_period_s"])
        wait_for(lambda: time.time_ns() > late_ns)
        around.apply(tick.sequence, MOTION)
        return around.tick(tick.sequence + 1).applied == tick.APPLIED

    # After a tick that is not answered, the next one is not put off.
    wait_for(lambda: answered_late(around.tick(around.newest() + 2)))
    # Its pose stands still all the while.
    said = "The robot is told to move and does not (0."
    wait_for(
        lambda: said in around.diagnoses[-1].message,
        meanwhile=lambda: answered(around.tick(around.newest())),
    )
    assert said in around.process.log.read_text()
    around.episode(state=4)
    around.episode("next")
    again = around.tick(0, "next")
    assert (again.epoch, again.authority, again.applied_sequence) == (0, Authority.HOLD, -1)


def silent(around, name):
    around.sensors.silent.add(name)


def frozen(around, name):
    around.sensors.frozen.add(name)


def mad(around, name):
    around.sensors.pose[1] = np.nan


def elsewhen(around, name):
    around.sensors.stamp_off_ns = 3600_000_000_000


def well(around):
    around.sensors.silent.clear()
    around.sensors.frozen.clear()
    around.sensors.pose[1] = 0.0
    around.sensors.stamp_off_ns = 0


@pytest.mark.parametrize(
    ("fail", "name", "said"),
    [
        (silent, "/front", "camera front (/front) has not come for more than 1.5 s"),
        (silent, "/joint_states", "joint state (/joint_states) has not come for more than 1.5 s"),
        (frozen, "/front", "camera front (/front) shows the same for 15 messages"),
        (mad, "/pose", "pose (/pose) is refused: its numbers are not finite"),
        (elsewhen, "/front", "camera front (/front) is refused: its stamps are 3.6e+03 s in the"),
    ],
    ids=["camera dies", "joints die", "camera freezes", "NaN pose", "stamps far in the future"],
)
def test_a_sensor_that_fails_ends_the_ticks_is_named_and_may_come_back(
    probe, start, fail, name, said
):
    around = Assembled(probe, start)
    around.until_complete()
    around.episode()
    around.tick(2)
    fail(around, name)
    told = around.until_info(lambda info: any(said in text for text in info["problems"]))
    last = around.newest()
    # What the assembler published last, it published before this; no tick came after.
    if fail is not elsewhen:
        assert len(told["problems"]) == 1
    around.until_info(lambda info: info["lost"])
    assert around.newest() == last
    wait_for(lambda: said in around.diagnoses[-1].message)
    if "refused" in said:
        counted = {pair.key: pair.value for pair in around.diagnoses[-1].values}
        assert int(counted[f"{said.split(' is refused')[0]}: refused"]) > 0
    well(around)
    around.until_complete()
    around.tick(last + 1)
    assert [tick.sequence for tick in around.ticks] == list(range(len(around.ticks)))


def test_as_long_as_a_human_has_the_arm_an_observation_is_not_given_up(probe, start):
    around = Assembled(probe, start)
    around.until_complete()
    around.episode()
    around.tick(1)
    around.decide(1, Authority.HUMAN, epoch=1)
    wait_for(lambda: around.ticks[-1].authority == Authority.HUMAN)
    silent(around, "/front")
    around.until_info(lambda info: info["problems"])
    told = len(around.infos)
    # Twice as long as it would take, by the arbiter's own timer, which goes on.
    until_s = time.monotonic() + 2 * ROBOT["timeouts"]["lost_s"]
    last = around.newest()
    wait_for(lambda: around.decide(last, Authority.HUMAN, 1) or time.monotonic() > until_s)
    around.decide(last, Authority.HOLD, epoch=2)  # let go
    lost = around.until_info(lambda info: info["lost"])
    assert [info["lost"] for info in around.infos[told - 1 :]] == [False, True]
    assert "camera front" in lost["problems"][0]


@pytest.mark.parametrize("missing", ["/front", "/pose"])
def test_the_recorder_refuses_to_start_without_a_sensor_and_names_it(
    probe, start, tmp_path, missing
):
    from hapo_ros.srv import StartEpisode

    names = topics.recorded(("front", "wrist"), False)
    for name in set(names) - {topics.image("front"), topics.image("wrist")}:
        if not name.startswith("observation/"):
            probe.publisher(name)
    start("recorder", None, root=tmp_path / "bags", cameras="[front,wrist]", lock_step="false")
    around = Assembled(probe, start)
    around.until_complete()
    silent(around, missing)
    client = probe.node.create_client(StartEpisode, topics.START_EPISODE)
    wait_for(client.service_is_ready)

    def asked():
        future = client.call_async(StartEpisode.Request(task="fold", source="demonstration"))
        wait_for(future.done)
        return future.result()

    around.until_info(lambda info: any(missing in text for text in info["problems"]))
    reply = wait_for(lambda: next((r for r in [asked()] if missing in r.text), None))
    assert not reply.ok and "Nothing is recorded" in reply.text
    assert not list((tmp_path / "bags").iterdir())
    well(around)
    around.until_complete()
    wait_for(lambda: asked().ok)


def test_without_tf2_msgs_a_robot_whose_pose_is_tfs_is_refused_with_a_sentence(start):
    try:
        import tf2_msgs.msg  # noqa: F401
    except ImportError:
        process = start("observation_assembler", ROBOT | {"pose": {"source": "tf"}})
        assert process.wait(60) == 1
        log = process.log.read_text()
        assert "tf2_msgs is not installed" in log and "give the robot a pose topic" in log


# The output side


class Commanded:
    """A running output, the arbiter before it and the robot's controllers after it."""

    def __init__(
        self, probe, start, robot=ROBOT, prefix="", servo=True, gripper=True, **parameters
    ):
        from geometry_msgs.msg import TwistStamped

        from hapo_ros.nodes.common import ros_types

        self.probe, self.types = probe, ros_types()
        self.twists, self.grippers = [], []
        names = (topics.DRY_RUN_TWIST, topics.DRY_RUN_GRIPPER) if prefix else (
            robot["servo"]["topic"], robot["gripper"]["topic"])  # fmt: skip
        if servo:
            probe.node.create_subscription(TwistStamped, names[0], self.twists.append, 100)
        if gripper:
            self.listen_to_gripper(names[1], robot["gripper"]["kind"])
        self.words = probe.listen(topics.APPLIED_ACTION)
        self.publishers = {
            name: probe.publisher(name)
            for name in (topics.EXECUTED_ACTION, topics.OBSERVATION_TICK)
        }
        self.process = start("robot_output", robot, **parameters)
        wait_for(lambda: all(p.get_subscription_count() for p in self.publishers.values()))
        wait_for(lambda: probe.node.count_publishers(topics.APPLIED_ACTION))
        if servo:
            wait_for(lambda: self.twists)
            assert not any(map(moves, self.twists))  # the first thing it says is a stop

    def listen_to_gripper(self, name="/gripper", kind="float64_multi_array"):
        from std_msgs.msg import Float64MultiArray
        from trajectory_msgs.msg import JointTrajectory

        type_ = JointTrajectory if kind == "joint_trajectory" else Float64MultiArray
        self.probe.node.create_subscription(type_, name, self.grippers.append, 100)

    def tick(self, sequence, gripper=-1.0, episode_id="ep"):
        tick = Tick(episode_id, sequence, time.time_ns(), applied_action=hold(gripper))
        message = messages.tick_message(self.types, tick, {})
        self.publishers[topics.OBSERVATION_TICK].publish(message)

    def decide(self, decision, at=None, tick=True):
        message = messages.executed_action_message(
            self.types, decision, at or time.time_ns(), tick=tick
        )
        self.publishers[topics.EXECUTED_ACTION].publish(message)

    def word(self, sequence):
        """Wait for the word on a decision; returns it."""
        return wait_for(lambda: [w for w in self.words if w.tick and w.sequence == sequence])[0]

    def in_time(self, first: int, **known):
        """Let it execute a decision; on a busy machine one may be late. Returns its word."""
        for sequence in range(first, first + 20):
            self.decide(decided(sequence, **known))  # before its tick: it cannot be late
            word = self.word(sequence)
            if word.applied != Applied.LATE_HELD:
                return word
        raise AssertionError("every decision was late")

    def until_gripper(self, first: int, **known):
        """Execute a change of the gripper, once the output sees that it listens."""
        newest = first - 1

        def ask():
            nonlocal newest
            newest = self.in_time(newest + 1, **known).sequence

        return wait_for(lambda: self.grippers, meanwhile=ask)


def moves(message) -> bool:
    twist = message.twist
    parts = (twist.linear, twist.angular)
    return any(getattr(part, axis) for part in parts for axis in "xyz")


def test_a_decision_becomes_a_twist_in_the_base_frame_and_a_gripper_command(probe, start):
    diagnoses = probe_diagnoses(probe)
    around = Commanded(probe, start, gripper=False)
    around.decide(decided(0, action=hold(-1.0), hold=True))
    word = around.in_time(1, action=np.array([0.5, 0, -0.2, 0, 0, 1, 1], np.float32))
    assert word.applied == Applied.APPLIED and word.tick and word.episode_id == "ep"
    np.testing.assert_allclose(word.action, [0.5, 0, -0.2, 0, 0, 1, 1])
    sent = wait_for(lambda: [m for m in around.twists if moves(m)])[0]
    assert sent.header.frame_id == "base" and sent.header.stamp.sec
    assert (sent.twist.linear.x, sent.twist.linear.z, sent.twist.angular.z) == pytest.approx(
        (0.25, -0.1, 2.0)
    )
    # How the gripper stood was not known: it is not moved. And no one is there to be told to open.
    word = around.in_time(word.sequence + 1, action=hold(-1.0))
    assert word.applied == Applied.REFUSED and word.action[6] == 1.0
    said = "No one takes gripper commands on /gripper"
    wait_for(lambda: diagnoses and said in diagnoses[-1].message)
    around.listen_to_gripper()
    (sent,) = around.until_gripper(word.sequence + 1, action=hold(-1.0))
    assert list(sent.data) == [0.04]


def test_a_gripper_with_a_trajectory_controller_is_sent_its_joints_and_a_time(probe, start):
    gripper = ROBOT["gripper"] | {"kind": "joint_trajectory", "duration_s": 1.5,
                                  "joints": ["left_finger", "right_finger"]}  # fmt: skip
    around = Commanded(probe, start, ROBOT | {"gripper": gripper})
    known = around.in_time(0, action=hold(-1.0)).sequence
    (sent,) = around.until_gripper(known + 1, action=hold(1.0))
    assert sent.joint_names == ["left_finger", "right_finger"]
    (point,) = sent.points
    assert list(point.positions) == [0.0, 0.0]
    assert (point.time_from_start.sec, point.time_from_start.nanosec) == (1, 500_000_000)


def test_commands_expire_and_have_a_deadline(probe, start):
    around = Commanded(probe, start)
    for name in (ROBOT["servo"]["topic"], ROBOT["gripper"]["topic"]):
        (known,) = around.probe.node.get_publishers_info_by_topic(name)
        assert known.qos_profile.deadline.nanoseconds == 500_000_000
        assert known.qos_profile.lifespan.nanoseconds == 500_000_000


def test_without_decisions_the_arm_is_told_to_stop_and_then_nothing(probe, start):
    around = Commanded(probe, start)
    around.in_time(0)
    wait_for(lambda: any(map(moves, around.twists)))
    moved = [i for i, m in enumerate(around.twists) if moves(m)]
    wait_for(lambda: len(around.twists) > moved[-1] + 5)
    assert len(moved) == 1  # once, and nothing but stops after it

    def silence():  # its timers run: what is not sent for a while of them is not sent
        heard = len(around.twists)
        until_s = time.monotonic() + 0.3
        wait_for(lambda: time.monotonic() > until_s)
        return heard == len(around.twists)

    wait_for(silence)
    assert not any(map(moves, around.twists[moved[-1] + 1 :]))
    around.in_time(20)  # it is well
    wait_for(lambda: moves(around.twists[-1]) or any(map(moves, around.twists[moved[-1] + 1 :])))


def test_a_decision_that_a_newer_tick_has_overtaken_is_held_and_said_to_be_late(probe, start):
    around = Commanded(probe, start)
    around.in_time(0)  # from the episode's first decision on: it knows how the gripper stands
    for sequence in range(6):
        around.tick(sequence)
    # Ticks and decisions come on two topics: this one is there when the last tick's is answered.
    wait_for(lambda: around.decide(decided(5)) or [w for w in around.words if w.sequence == 5])
    around.decide(decided(3, action=hold(-1.0)))
    heard = len(around.twists)
    until_s = time.monotonic() + 0.3
    around.tick(6)
    wait_for(lambda: time.monotonic() > until_s)
    around.decide(decided(6))
    late = around.word(6)
    assert late.applied == Applied.LATE_HELD and not np.any(late.action[:6])
    assert not any(map(moves, around.twists[heard:]))
    assert not [w for w in around.words if w.sequence == 3]  # it was older than one answered


@pytest.mark.parametrize(
    ("action", "off_s"),
    [(np.array([np.nan] * 7), 0), (np.array([2.0, 0, 0, 0, 0, 0, 1]), 0), (MOTION, -60),
     (MOTION, 60)],
    ids=["NaN", "too fast", "stamped a minute ago", "stamped in a minute"],
)  # fmt: skip
def test_what_cannot_be_executed_is_refused_and_the_arm_held(probe, start, action, off_s):
    diagnoses = probe_diagnoses(probe)
    around = Commanded(probe, start)
    first = around.in_time(0, action=hold(1.0)).sequence  # how the gripper stands is known
    at = time.time_ns() + off_s * 1_000_000_000
    around.decide(decided(first + 1, action=action.astype(np.float32)), at)
    word = around.word(first + 1)
    assert word.applied == Applied.REFUSED and list(word.action) == list(hold(1.0))
    assert around.in_time(first + 2).applied == Applied.APPLIED
    diagnosis = wait_for(lambda: [d for d in diagnoses if d.values])[-1]
    assert [pair.value for pair in diagnosis.values if "late" not in pair.key] == ["1"]
    wait_for(lambda: any(map(moves, around.twists)))
    assert sum(map(moves, around.twists)) == 1
    assert np.isfinite([m.twist.linear.x for m in around.twists]).all()


def test_without_a_servo_nothing_is_said_to_be_applied(probe, start):
    around = Commanded(probe, start, servo=False)
    # Nothing it has said tells that it hears already: a first decision may be lost.
    wait_for(lambda: around.words, meanwhile=lambda: around.decide(decided(0)))
    assert {word.applied for word in around.words} == {Applied.REFUSED}
    assert "No one takes twists on /servo/twist" in around.process.log.read_text()


def test_the_last_thing_a_robot_hears_is_a_stop(probe, start):
    around = Commanded(probe, start)
    around.in_time(0)
    wait_for(lambda: any(map(moves, around.twists)))
    around.process.send_signal(signal.SIGINT)
    around.process.send_signal(signal.SIGINT)  # a second one changes nothing
    assert around.process.wait(20) == 0
    wait_for(lambda: not moves(around.twists[-1]))


def test_an_output_that_was_killed_comes_back_with_a_stop_and_the_policy_waits_for_a_human(
    probe, start
):
    around = Commanded(probe, start)
    around.in_time(0)
    around.process.kill()
    around.process.wait()
    wait_for(lambda: not probe.node.count_publishers(topics.APPLIED_ACTION))
    heard = len(around.twists)
    start("robot_output")
    wait_for(lambda: len(around.twists) > heard)
    wait_for(lambda: around.publishers[topics.EXECUTED_ACTION].get_subscription_count())
    told, newest = len(around.words), 30

    def go_on():  # the first it hears is a decision, and says nothing of the gripper
        nonlocal newest
        around.decide(decided(newest))
        around.tick(newest, gripper=1.0)
        newest += 1

    held = wait_for(lambda: around.words[told:], meanwhile=go_on)
    assert {word.applied for word in held} <= {Applied.REFUSED, Applied.LATE_HELD}
    assert {word.action[6] for word in held} == {1.0}  # never opened: it is closed
    around.decide(decided(newest, authority=Authority.HUMAN, epoch=1))
    assert around.word(newest).applied == Applied.APPLIED
    around.decide(decided(newest + 1, epoch=2))
    assert around.word(newest + 1).applied == Applied.APPLIED
    wait_for(lambda: sum(map(moves, around.twists[heard:])) == 2)


def test_a_dry_run_shows_what_would_be_sent_and_sends_the_robot_nothing(probe, start):
    around = Commanded(probe, start, prefix="robot/dry_run", dry_run="true")
    word = around.in_time(0)
    assert word.applied == Applied.REFUSED and not np.any(word.action[:6])
    shown = wait_for(lambda: [m for m in around.twists if moves(m)])[0]
    assert shown.twist.linear.x == pytest.approx(0.25)
    around.in_time(word.sequence + 1, action=hold(-1.0))
    wait_for(lambda: around.grippers)
    for name in (ROBOT["servo"]["topic"], ROBOT["gripper"]["topic"]):
        assert probe.node.count_publishers(name) == 0
    log = around.process.log.read_text()
    assert "DRY RUN: mine is sent nothing and does not move" in log
    assert "DRY RUN: /servo/twist would be sent +0.250" in log


def test_the_robots_that_ship_are_installed():
    assert os.listdir(resource("config/robots"))
