"""The arbiter as a process: what reaches its core, what it says, and how it ends."""

import time
from importlib import import_module

import numpy as np
import pytest
from ros_graph import called, diagnosed, fill, log, publish_report, wait_for

from hapo_ros import labels, topics
from hapo_ros.arbitration import Authority, Event, PolicyCommand, Reason, Tick
from hapo_ros.episodes import (
    EpisodeInfo,
    messages,
)
from hapo_ros.restarts import RUN_ENDS

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("no_node_is_left")
VERSION = "1234"


class Around:
    """What is around an arbiter, by hand: recorder, robot, policy and device."""

    PERIOD_NS = 50_000_000

    def __init__(self, probe, lock_step=False):
        from hapo_ros.nodes.common import ros_types

        self.types, self.probe = ros_types(), probe
        self.began_ns = time.time_ns()
        names = (topics.EPISODE_STATE, topics.OBSERVATION_TICK, topics.POLICY_ACTION)
        self.publishers = {
            name: probe.publisher(name) for name in (*names, topics.JOY, topics.TWIST)
        }
        self.executed = probe.listen(topics.EXECUTED_ACTION)
        self.status = probe.listen(topics.AUTHORITY_STATUS)
        wait_for(lambda: self.status and (lock_step or self.executed))
        wait_for(lambda: all(p.get_subscription_count() for p in self.publishers.values()))

    def episode(self, episode_id="ep", state=2):
        info = EpisodeInfo(episode_id, "Lift", "lift the cube", "deployment", seed=1)
        message = messages.episode_state_message(self.types, time.time_ns(), state, info)
        self.publishers[topics.EPISODE_STATE].publish(message)

    def tick(self, sequence, episode_id="ep", epoch=0, **told):
        tick = Tick(episode_id, sequence, self.stamp_ns(sequence), epoch=epoch, **told)
        message = messages.tick_message(self.types, tick, {})
        self.publishers[topics.OBSERVATION_TICK].publish(message)

    def stamp_ns(self, sequence) -> int:
        return self.began_ns + sequence * self.PERIOD_NS

    def answer(self, sequence, x=0.5, episode_id="ep", epoch=0, length=7):
        actions = np.array([[x, 0, 0, 0, 0, 0, -1]], np.float32)[:, :length]
        command = PolicyCommand(episode_id, sequence, epoch, VERSION, actions)
        message = messages.policy_action_message(self.types, command, 0)
        self.publishers[topics.POLICY_ACTION].publish(message)

    def device(self, x=0.0, buttons=(0, 0), **known):
        publish_report(self.types, self.publishers, x, buttons, **known)

    def decided(self, sequence, episode_id="ep"):
        """Wait for the decision of a tick; returns it."""

        def found():
            return [
                m
                for m in self.executed
                if m.tick and (m.episode_id, m.sequence) == (episode_id, sequence)
            ]

        return wait_for(found)[0]

    def policy_step(self, sequence, x=0.5):
        self.tick(sequence)
        self.answer(sequence, x)
        return self.decided(sequence)

    def request(self, event):
        from hapo_ros.srv import RequestAuthority

        return called(self.probe, RequestAuthority, topics.REQUEST_AUTHORITY, event=int(event))

    def begin(self, **known):
        self.episode(**known)
        first = self.policy_step(0)
        assert first.label == labels.POLICY and first.policy_version == VERSION


# Of an arbiter that a busy machine does not make hold.
PATIENT = {
    "policy_deadline_s": 0.5,
    "tick_timeout_s": 2.0,
    "device_timeout_s": 5.0,
    "stamp_tolerance_s": 3000.0,
}


@pytest.fixture
def around(start, probe, request):
    """An arbiter that waits long enough for this test, and its surroundings."""
    given = {"on_device_lost": "continue"} | getattr(request, "param", {})
    start("arbiter", **(PATIENT | given))
    return Around(probe)


def test_without_the_hands_pose_the_tools_frame_is_unknown_and_with_it_the_motion_is_turned(
    start, probe
):
    start("arbiter", on_device_lost="continue", operator_frame="tool", **PATIENT)
    around = Around(probe)
    poses = probe.publisher(topics.EEF_POSE)
    wait_for(poses.get_subscription_count)
    around.begin()
    around.device(0.0)
    around.device(0.5)
    around.tick(1)
    blind = around.decided(1)
    assert (blind.authority, blind.label) == (Authority.HUMAN, labels.NONE)
    assert blind.reason == Reason.POSE_UNKNOWN and not any(blind.action[:6])
    # The tool's x points along the base's y.
    turn = [0, 0, np.sqrt(0.5), np.sqrt(0.5)]
    pose = messages.pose_message(around.types, [0, 0, 1, *turn], around.stamp_ns(2))
    poses.publish(pose)
    around.tick(2)
    around.device(0.5)
    moved = around.decided(2)
    assert moved.label == labels.HUMAN
    assert moved.action[:3].tolist() == pytest.approx([0, 0.5, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("durability", "reliability"),
    [("TRANSIENT_LOCAL", "RELIABLE"), ("VOLATILE", "RELIABLE"), ("VOLATILE", "BEST_EFFORT")],
)
def test_an_estop_is_latched_and_cleared_only_when_it_is_released(around, durability, reliability):
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
    from std_msgs.msg import Bool

    from hapo_ros.srv import RequestAuthority

    node = around.probe.node
    qos = QoSProfile(
        depth=1,
        durability=DurabilityPolicy[durability],
        reliability=ReliabilityPolicy[reliability],
    )
    estop = node.create_publisher(Bool, topics.ESTOP, qos)
    client = node.create_client(RequestAuthority, topics.REQUEST_AUTHORITY)
    wait_for(lambda: estop.get_subscription_count() >= 1 and client.service_is_ready())

    def clear():
        reply = client.call_async(RequestAuthority.Request(event=int(Event.CLEAR_FAULT)))
        wait_for(reply.done)
        return reply.result()

    around.begin()
    estop.publish(Bool(data=True))
    sequence = iter(range(1, 10_000))

    def step(until):
        """Ticks, with a device at rest, until a decision is as it is to be."""

        def decided():
            number = next(sequence)
            around.device(0.0)
            around.tick(number)
            around.answer(number, epoch=around.executed[-1].epoch)
            return until(around.decided(number))

        wait_for(decided)

    step(lambda d: d.authority == Authority.FAULT and d.reason == Reason.ESTOPPED)
    refused = clear()
    assert not refused.ok and "still pressed" in refused.text
    step(lambda d: d.authority == Authority.FAULT)
    estop.publish(Bool(data=False))
    step(lambda d: d.authority == Authority.FAULT)  # released is not cleared
    wait_for(lambda: clear().ok)
    step(lambda d: d.authority == Authority.HOLD and d.reason == Reason.FAULT_CLEARED)


def test_what_stops_the_arm_does_not_wait_for_the_policy(start, probe):
    """In lock-step, where nothing else would end the wait."""
    from rclpy.qos import QoSProfile
    from std_msgs.msg import Bool

    start("arbiter", lock_step=True, on_device_lost="continue")
    around = Around(probe, lock_step=True)
    estop = probe.node.create_publisher(Bool, topics.ESTOP, QoSProfile(depth=1))
    wait_for(estop.get_subscription_count)
    around.episode()

    def wait_for_the_policy(sequence):
        around.device(stamp_ns=around.stamp_ns(sequence))
        around.tick(sequence)

    wait_for_the_policy(0)
    around.answer(0)
    assert around.decided(0).label == labels.POLICY
    wait_for_the_policy(1)
    assert around.request(Event.HOLD).ok
    assert around.decided(1).reason == Reason.OPERATOR_HOLD
    assert around.request(Event.RESUME).ok
    wait_for_the_policy(2)
    assert around.decided(2).authority == Authority.POLICY  # which holds once more
    wait_for_the_policy(3)
    estop.publish(Bool(data=True))
    assert around.decided(3).authority == Authority.FAULT


def test_an_arbiter_that_is_started_under_a_pressed_estop_is_in_fault(start, probe):
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from std_msgs.msg import Bool

    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    probe.node.create_publisher(Bool, topics.ESTOP, qos).publish(Bool(data=True))
    start("arbiter", on_device_lost="continue")
    executed = probe.listen(topics.EXECUTED_ACTION)
    wait_for(lambda: executed and executed[-1].authority == Authority.FAULT)
    assert executed[-1].reason == Reason.ESTOPPED and not any(executed[-1].action[:6])


def test_what_an_arbiter_that_is_killed_had_latched_is_latched_by_the_next_one(start, probe):
    """Without an episode, whose ticks would tell; by an e-stop that tells of changes only."""
    from rclpy.qos import QoSProfile
    from std_msgs.msg import Bool

    estop = probe.node.create_publisher(Bool, topics.ESTOP, QoSProfile(depth=1))
    status = probe.listen(topics.AUTHORITY_STATUS)

    def in_fault(reason):
        return status and (status[-1].authority, status[-1].reason) == (Authority.FAULT, reason)

    def killed(arbiter):
        arbiter.kill()
        arbiter.wait(10)
        status.clear()

    arbiter = start("arbiter", on_device_lost="continue")
    wait_for(lambda: status and estop.get_subscription_count())
    estop.publish(Bool(data=True))
    wait_for(lambda: in_fault(Reason.ESTOPPED))
    killed(arbiter)
    arbiter = start("arbiter", on_device_lost="continue")
    wait_for(lambda: in_fault(Reason.RESTARTED_IN_FAULT))
    around = Around(probe)
    refused = around.request(Event.CLEAR_FAULT)
    assert not refused.ok and "still pressed" in refused.text
    wait_for(estop.get_subscription_count)
    estop.publish(Bool(data=False))
    wait_for(lambda: around.request(Event.CLEAR_FAULT).ok)
    wait_for(lambda: status[-1].reason == Reason.FAULT_CLEARED)
    killed(arbiter)
    start("arbiter", on_device_lost="continue")
    wait_for(lambda: status)
    assert status[-1].authority == Authority.HOLD


def test_an_estop_is_latched_though_the_disk_is_full(small_disk, start, probe, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(small_disk))
    start("arbiter", **(PATIENT | {"on_device_lost": "continue"}))
    around = Around(probe)
    fill(small_disk)
    around.begin()
    assert around.request(Event.ESTOP).ok
    around.tick(1)
    assert around.decided(1).authority == Authority.FAULT
    (left,) = small_disk.glob("hapo_ros_*_arbiter.lock")
    wait_for(lambda: "fault" in left.read_text())  # it is written over what is there


def test_a_second_arbiter_is_a_fault_of_both_which_name_each_other(around, start):
    around.begin()
    assert around.executed[-1].authority == Authority.POLICY
    start("arbiter", "-r", "__node:=another_arbiter", on_device_lost="continue")
    seen = Reason.SECOND_ARBITER_SEEN

    def both_know():
        texts = " ".join(m.text for m in around.status if m.reason == seen)
        return "/another_arbiter" in texts and "/arbiter" in texts.replace("/another_arbiter", "")

    wait_for(both_know)
    known = len(around.executed)
    wait_for(lambda: len(around.executed) > known + 20)
    for message in around.executed[known:]:
        assert message.authority == Authority.FAULT and not any(message.action[:6])


def test_a_stray_script_that_commands_the_robot_is_a_fault_that_names_it(around):
    from hapo_ros.msg import ExecutedAction

    around.begin()
    stray = around.probe.node.create_publisher(ExecutedAction, topics.EXECUTED_ACTION, 10)
    wait_for(lambda: stray.get_subscription_count() >= 2)
    assert around.executed[-1].authority == Authority.POLICY  # it has said nothing yet
    command = ExecutedAction(episode_id="ep", sequence=1, action=[1.0] * 7, tick=True)
    wait_for(lambda: around.status[-1].authority == Authority.FAULT, lambda: stray.publish(command))
    assert "/probe" in around.status[-1].text


def test_time_that_goes_back_ends_the_episode_and_disarms(start, probe):
    start("arbiter", lock_step="true", on_device_lost="continue")
    around = Around(probe, lock_step=True)

    def step(sequence, stamp_ns, x=0.0):
        tick = Tick("ep", sequence, stamp_ns)
        message = messages.tick_message(around.types, tick, {})
        around.publishers[topics.OBSERVATION_TICK].publish(message)
        around.device(x, stamp_ns=stamp_ns)
        around.answer(sequence)
        return around.decided(sequence)

    around.episode()
    for sequence in range(5):
        assert step(sequence, (100 + sequence) * around.PERIOD_NS).label == labels.POLICY
    reset = step(5, 3 * around.PERIOD_NS, x=0.9)
    assert (reset.authority, reset.label) == (Authority.HOLD, labels.NONE)
    assert reset.reason == Reason.TIME_WAS_RESET and not any(reset.action[:6])
    moved = step(6, 4 * around.PERIOD_NS, x=0.9)  # a cap that is not at rest takes nothing over
    assert moved.authority == Authority.HOLD and not any(moved.action[:6])


def test_a_stamp_far_from_now_is_refused_and_counted(around):
    around.begin()
    around.device(0.0)
    hours_ns = 3_600_000_000_000
    for offset_ns in (-hours_ns, hours_ns):
        around.device(0.9, stamp_ns=time.time_ns() + offset_ns)
    assert around.policy_step(1).label == labels.POLICY  # no one took over
    wait_for(lambda: int(diagnosis(around).get("stamps_refused", 0)) >= 2)


def test_a_twist_of_another_frame_is_refused_and_counted(around):
    around.begin()
    around.device(0.0)
    around.device(0.9, frame="some_camera")
    assert around.policy_step(1).label == labels.POLICY
    wait_for(lambda: int(diagnosis(around).get("device_reports_refused", 0)) >= 1)


def test_while_a_human_has_the_arm_a_report_that_cannot_be_read_holds_it_at_once(around):
    around.begin()
    around.device(0.0)
    around.device(0.5)
    around.tick(1)
    assert around.decided(1).action[0] == pytest.approx(0.5)
    around.device(0.9, frame="some_camera")
    sequence = iter(range(2, 10_000))

    def held():
        number = next(sequence)
        around.tick(number)
        decision = around.decided(number)
        assert decision.authority == Authority.HUMAN
        return decision.reason == Reason.DEVICE_INVALID and not any(decision.action[:6])

    wait_for(held)


def diagnosis(around) -> dict:
    """What the arbiter last said on /diagnostics, by name."""
    return {value.key: value.value for value in diagnosed(around.probe).values}


def test_when_the_recording_fails_the_policy_stops_and_a_human_moves_on(around):
    around.begin()
    around.episode(state=5)  # FAILED
    sequence = iter(range(1, 10_000))  # topics have no order among each other

    def until(authority):
        def decided():
            number = next(sequence)
            around.tick(number)
            around.answer(number)
            decision = around.decided(number)
            return decision if decision.authority == authority else None

        return wait_for(decided)

    stopped = until(Authority.HOLD)
    assert stopped.reason == Reason.RECORDING_ENDED and not any(stopped.action[:6])
    around.device(0.0)
    wait_for(lambda: around.status[-1].device_armed)
    around.device(0.7)
    assert until(Authority.HUMAN).action[0] == pytest.approx(0.7)


def test_the_arbiter_takes_old_repeated_and_foreign_messages_for_what_they_are(around):
    around.begin()
    decided = [around.policy_step(sequence, x=0.1 * sequence) for sequence in range(1, 6)]
    assert [m.action[0] for m in decided] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    heard = len(around.executed)
    around.tick(3)  # old
    around.tick(0)
    around.answer(3, x=1.0)
    around.tick(7, episode_id="another")
    around.tick(5)  # repeated: the same answer again
    wait_for(lambda: len(around.executed) > heard)
    assert around.executed[-1] == decided[-1]
    around.tick(6)
    around.answer(4, x=1.0)  # the answer to another tick
    around.answer(6, epoch=9)  # of another epoch
    late = around.decided(6)  # at the deadline
    assert late.label == labels.NONE and late.reason == Reason.POLICY_LATE
    assert not np.any(late.action[:6]) and late.action[6] == -1 and not len(late.requested)
    assert around.policy_step(7).label == labels.POLICY
    ticks = [(m.episode_id, m.sequence) for m in around.executed if m.tick]
    assert ticks == [("ep", s) for s in (0, 1, 2, 3, 4, 5, 5, 6, 7)]


def test_an_action_that_cannot_be_executed_is_refused_whole_and_one_too_large_is_scaled(around):
    around.begin()
    for sequence, wrong in ((1, {"x": np.nan}), (2, {"x": np.inf}), (3, {"length": 6})):
        around.tick(sequence)
        around.answer(sequence, **wrong)
        refused = around.decided(sequence)
        assert refused.label == labels.NONE and refused.reason == Reason.POLICY_INVALID
        assert not np.any(refused.action[:6])
    large = around.policy_step(4, x=3.0)
    assert large.limited and large.action[0] == 1.0 and large.requested[0] == 3.0
    assert large.label == labels.POLICY


def test_an_episode_begins_with_its_first_tick_however_late_the_recorders_word_is(around):
    around.tick(0)
    around.tick(1)  # the robot goes on; still nobody told the arbiter that an episode runs
    around.answer(0)
    around.episode()
    first = around.decided(0)
    assert first.label == labels.POLICY and first.authority == Authority.POLICY
    around.tick(2)
    around.answer(2)
    assert around.decided(2).reason == Reason.POLICY_ACTS


def test_an_episode_that_follows_at_once_is_not_mixed_up_with_the_last_tick_of_the_other(around):
    around.begin()
    around.episode(state=4)
    around.tick(1)  # sent before the robot heard of the end
    around.episode("next")
    around.tick(0, "next")
    around.answer(0, episode_id="next")
    assert around.decided(0, "next").reason == Reason.POLICY_ACTS
    around.tick(1, "next")
    around.answer(1, episode_id="next")
    assert around.decided(1, "next").reason == Reason.POLICY_ACTS
    assert not [m for m in around.executed if m.tick and (m.episode_id, m.sequence) == ("ep", 1)]


def test_an_arbiter_that_joins_a_running_episode_holds_until_a_human_resumes(around):
    around.episode()
    around.tick(40, epoch=3)
    around.answer(40, epoch=3)
    joined = around.decided(40)
    assert (joined.authority, joined.reason) == (Authority.HOLD, Reason.RESTARTED)
    assert around.request(Event.RESUME).ok
    around.tick(41, epoch=joined.epoch)
    resumed = around.decided(41)
    assert resumed.authority == Authority.POLICY and resumed.label == labels.NONE
    around.tick(42, epoch=resumed.epoch)
    around.answer(42, epoch=resumed.epoch)
    assert around.decided(42).label == labels.POLICY


def test_an_arbiter_that_was_restarted_before_the_first_decision_holds_too(start, probe):
    """It died between the start of the episode and its first tick."""
    info = EpisodeInfo("ep", "Lift", "lift the cube", "deployment", seed=1)
    recorder = probe.publisher(topics.EPISODE_STATE)
    types = import_module("hapo_ros.nodes.common").ros_types()
    recorder.publish(messages.episode_state_message(types, time.time_ns(), 2, info))
    start("arbiter", on_device_lost="continue", **(PATIENT | {"tick_timeout_s": 5.0}))
    around = Around(probe)
    around.tick(0)
    around.answer(0)
    first = around.decided(0)
    assert (first.authority, first.reason) == (Authority.HOLD, Reason.RESTARTED)
    assert first.label == labels.NONE and not np.any(first.action[:6])
    assert around.request(Event.RESUME).ok
    around.tick(1, epoch=first.epoch)
    assert around.decided(1).authority == Authority.POLICY


SET_BACK = """
import sys
from pathlib import Path

from hapo_ros.nodes.common import HapoNode

real, is_set = HapoNode.ros_now_ns, Path(__file__).with_name("clock is set")
HapoNode.ros_now_ns = lambda self: real(self) - is_set.exists() * 1000 * 10**9

from hapo_ros.nodes.arbiter import main

sys.exit(main())
"""


def test_a_wall_clock_that_is_set_back_makes_no_episode_one_that_was_joined(
    start, probe, tmp_path, monkeypatch
):
    script = tmp_path / "arbiter_with_a_clock.py"
    script.write_text(SET_BACK)
    start(str(script), on_device_lost="continue", **PATIENT)
    around = Around(probe)
    (tmp_path / "clock is set").touch()
    monkeypatch.setattr(time, "time_ns", lambda real=time.time_ns: real() - 1000 * 10**9)
    around.begin()


def test_a_fault_is_still_latched_after_the_arbiter_was_restarted(around):
    around.episode()
    around.tick(40, epoch=3, authority=Authority.FAULT)
    joined = around.decided(40)
    assert (joined.authority, joined.reason) == (Authority.FAULT, Reason.RESTARTED_IN_FAULT)
    refused = around.request(Event.RESUME)
    assert not refused.ok and "a fault is latched" in refused.text
    assert around.request(Event.CLEAR_FAULT).ok  # here no device is needed
    assert around.request(Event.RESUME).ok  # after what is queued
    around.tick(41, epoch=joined.epoch)
    assert around.decided(41).authority == Authority.POLICY


@pytest.mark.parametrize("around", [{"on_device_lost": "hold"}], indirect=True)
def test_a_request_that_would_be_refused_is_answered_so_and_why(around):
    around.episode()
    around.tick(0)
    assert around.decided(0).reason == Reason.DEVICE_LOST_POLICY  # there never was a device
    refused = around.request(Event.RESUME)
    assert not refused.ok and "Reconnect it, let go of the cap, then resume" in refused.text
    assert around.request(Event.ESTOP).ok
    around.device(x=0.6)
    around.tick(1)
    stopped = around.decided(1)
    assert stopped.authority == Authority.FAULT
    refused = around.request(Event.CLEAR_FAULT)
    assert not refused.ok and "with its cap at rest" in refused.text

    ticks = iter(range(2, 10_000))

    def cleared():
        """Once the report of a cap at rest has come, whichever tick that is before."""
        around.device()
        at = next(ticks)
        around.tick(at)
        around.decided(at)
        return around.request(Event.CLEAR_FAULT).ok

    wait_for(cleared)
    around.tick(20_000)
    assert around.decided(20_000).reason == Reason.FAULT_CLEARED


def test_an_answer_to_a_tick_that_is_nowhere_near_does_not_keep_the_others_out(around):
    around.begin()
    around.answer(2**32 - 1, x=1.0)
    around.answer(3, x=1.0)
    for sequence in (1, 2):
        decided = around.policy_step(sequence, x=0.25)
        assert decided.label == labels.POLICY and decided.action[0] == pytest.approx(0.25)
    around.answer(3, x=0.75)  # topics have no order: it may be here before its tick
    around.tick(3)
    assert around.decided(3).action[0] == pytest.approx(0.75)


@pytest.mark.parametrize("around", [{"tick_timeout_s": 0.6}], indirect=True)
def test_a_human_moves_the_arm_though_the_ticks_have_stopped_and_that_is_no_data(around):
    around.begin()
    around.device()
    assert around.policy_step(1).label == labels.POLICY
    around.device(x=0.6)
    around.tick(2)
    taken = around.decided(2)
    assert (taken.authority, taken.label) == (Authority.HUMAN, labels.HUMAN)
    assert taken.action[0] == pytest.approx(0.6)

    # The cameras died; nobody sends a tick of this episode any more.
    def moved(x):
        around.device(x)
        around.tick(99, episode_id="")
        last = around.executed[-1]
        return not last.tick and last.action[0] == pytest.approx(x)

    wait_for(lambda: moved(0.4))
    last = around.executed[-1]
    assert (last.authority, last.label) == (Authority.HUMAN, labels.NONE)
    wait_for(lambda: moved(-0.3))
    around.device(x=0.0, buttons=(0, 1))
    wait_for(lambda: around.executed[-1].authority != Authority.HUMAN)
    wait_for(lambda: not np.any(around.executed[-1].action[:6]))


def test_without_ticks_and_poses_a_human_is_not_granted_the_same_way_twice(start, probe):
    """Of 12.5 cm to the wall, in steps of 5 cm, for however many steps an old pose is good."""
    wall = {"workspace_max_m": [0.125, 9.0, 9.0]}
    start("arbiter", on_device_lost="continue", **(PATIENT | wall | {"tick_timeout_s": 1.0}))
    around = Around(probe)
    poses = probe.publisher(topics.EEF_POSE)
    wait_for(poses.get_subscription_count)
    around.episode()
    around.device()

    def pose():
        at = messages.pose_message(around.types, [0, 0, 1, 0, 0, 0, 1], time.time_ns())
        poses.publish(at)

    def moves():
        return [m.action[0] for m in around.executed if m.action[0]]

    def unknown():
        around.device(x=1.0)
        return around.executed[-1].reason == Reason.POSE_UNKNOWN

    wait_for(lambda: moves() and unknown(), meanwhile=lambda: moves() or pose() or unknown())
    begun = len(moves())
    pose()
    wait_for(lambda: len(moves()) > begun and unknown(), meanwhile=unknown)
    granted = moves()[begun:]
    assert sum(granted) * 0.05 == pytest.approx(0.125)
    assert granted == sorted(granted, reverse=True)


def test_without_ticks_the_run_ends_but_not_while_a_human_has_the_arm(start, probe):
    limits = {"tick_timeout_s": 0.05, "give_up_ticks_s": 0.5}
    arbiter = start("arbiter", **(PATIENT | limits | {"on_device_lost": "continue"}))
    around = Around(probe)
    around.device()
    around.device(x=0.5)
    wait_for(lambda: around.executed[-1].authority == Authority.HUMAN)
    around.episode()
    begun = len(around.executed)
    # On the arbiter's own timer, four times as long as it would wait without the human.
    wait_for(lambda: len(around.executed) > begun + 40, meanwhile=lambda: around.device(x=0.5))
    assert arbiter.poll() is None
    around.device(buttons=(0, 1))
    assert arbiter.wait(60) == RUN_ENDS
    assert "Episode ep has had no tick for" in log(arbiter) and "The run ends" in log(arbiter)
    assert not np.any(around.executed[-1].action[:6])


def test_the_last_word_of_an_arbiter_is_a_hold(start, probe):
    process = start("arbiter", on_device_lost="continue", policy_deadline_s=0.5)
    around = Around(probe)
    around.begin()
    assert np.any(around.executed[-1].action[:6])
    process.terminate()
    assert process.wait(10) == 0
    wait_for(lambda: not around.executed[-1].tick)
    last = around.executed[-1]
    assert last.authority == Authority.HOLD and not np.any(last.action[:6])
    assert last.action[6] == -1.0
    wait_for(lambda: around.status[-1].reason == Reason.NO_EPISODE)


@pytest.mark.parametrize("around", [{"tick_timeout_s": 10.0}], indirect=True)
def test_the_end_of_an_episode_is_told_and_stops_the_arm_at_once(around):
    around.begin()
    wait_for(lambda: around.status[-1].authority == Authority.POLICY)
    assert np.any(around.executed[-1].action[:6])
    around.episode(state=3)
    wait_for(lambda: around.status[-1].reason == Reason.NO_EPISODE)
    # Before the timer sends one.
    wait_for(lambda: not around.executed[-1].tick, timeout_s=5.0)
    assert not np.any(around.executed[-1].action[:6])
    assert around.status[-1].authority == Authority.HOLD and around.status[-1].episode_id == ""
