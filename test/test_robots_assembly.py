"""One observation out of inputs that come when they like, and the ticks of an episode. Pure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hapo_ros.arbitration import Applied, Authority, Decision, Reason
from hapo_ros.arbitration.limits import hold
from hapo_ros.robots import config
from hapo_ros.robots.assembly import Assembler, EpisodeTicks, Fault, Input
from hapo_ros.robots.standstill import Standstill

SECOND = 1_000_000_000
INPUTS = {"camera": Input("camera front (/front)", 0.1, frozen_after=3), "pose": Input("pose", 0.2)}


def ns(seconds: float) -> int:
    return round(seconds * SECOND)


class Feed:
    """An assembler whose steady clock and ROS time go together, unless ROS time is set."""

    def __init__(self):
        self.assembler = Assembler(INPUTS, stamp_tolerance_s=0.5)
        self.now_s, self.ros_offset_s = 100.0, 0.0
        self.frames = 0

    @property
    def ros_now_ns(self) -> int:
        return ns(self.now_s + self.ros_offset_s)

    def later(self, seconds: float) -> None:
        self.now_s += seconds

    def add(self, key: str, age_s: float = 0.01, digest: int | None = None, value=None) -> bool:
        """A message that was stamped so long ago; of new content unless ``digest`` says."""
        self.frames += 1
        digest = self.frames if digest is None else digest
        stamp_ns = self.ros_now_ns - ns(age_s)
        return self.assembler.add(key, value, stamp_ns, self.now_s, self.ros_now_ns, digest)

    def both(self) -> None:
        assert self.add("camera") and self.add("pose")

    @property
    def faults(self) -> dict:
        return {key: p.fault for key, p in self.assembler.problems(self.now_s).items()}

    def text(self, key: str) -> str:
        return self.assembler.problems(self.now_s)[key].text


@pytest.fixture
def feed():
    return Feed()


def test_an_observation_is_complete_once_everything_has_come(feed):
    assert feed.faults == {"camera": Fault.MISSING, "pose": Fault.MISSING}
    assert feed.assembler.value("camera") == (None, None)
    assert feed.text("camera") == "camera front (/front) has not come yet"
    feed.add("camera")
    assert feed.faults == {"pose": Fault.MISSING}
    feed.add("pose", value="there")
    assert feed.faults == {}
    assert feed.assembler.value("pose") == ("there", feed.ros_now_ns - ns(0.01))


def test_each_input_is_late_by_its_own_tolerance(feed):
    feed.both()
    feed.later(0.15)
    assert feed.faults == {"camera": Fault.LATE}
    assert "has not come for more than 0.1 s" in feed.text("camera")
    feed.later(0.1)
    assert feed.faults == {"camera": Fault.LATE, "pose": Fault.LATE}
    feed.both()
    assert feed.faults == {}


def test_a_camera_that_sends_the_same_image_again_and_again_is_frozen(feed):
    for _ in range(2):
        feed.both()
        feed.add("camera", 0.0, digest=7)
        feed.later(0.05)
        assert feed.faults == {}
    for sent in range(1, 5):
        feed.add("camera", digest=8)
        feed.add("pose")
        assert feed.faults == ({"camera": Fault.FROZEN} if sent >= 3 else {})
        feed.later(0.05)
    assert "shows the same for 3 messages" in feed.text("camera")
    feed.add("camera", digest=9)
    assert feed.faults == {}


def test_an_input_whose_stamps_stand_still_is_frozen_though_messages_arrive(feed):
    feed.both()
    began_ns = feed.ros_now_ns - ns(0.01)
    for _ in range(4):
        feed.later(0.08)
        feed.add("camera")
        repeated = feed.assembler.add("pose", None, began_ns, feed.now_s, feed.ros_now_ns)
        assert not repeated
    assert feed.faults == {"pose": Fault.FROZEN}
    assert "its stamps do not advance" in feed.text("pose")
    assert feed.assembler.counts["pose: repeated or old"] == 4


def test_what_is_older_than_the_newest_is_ignored(feed):
    feed.both()
    feed.later(0.05)
    assert feed.add("camera", value="new")
    assert not feed.add("camera", age_s=0.03, value="overtaken")
    assert feed.assembler.value("camera")[0] == "new"
    assert feed.assembler.counts["camera front (/front): repeated or old"] == 1


@pytest.mark.parametrize("age_s", [3600.0, 0.6, -0.6, -3600.0])
def test_a_stamp_far_in_the_past_or_future_is_refused_and_counted(feed, age_s):
    feed.both()
    for _ in range(3):
        feed.later(0.08)
        feed.add("camera")
        assert not feed.add("pose", age_s=age_s)
    assert feed.faults == {"pose": Fault.REFUSED}
    assert ("in the past" if age_s > 0 else "in the future") in feed.text("pose")
    assert feed.assembler.counts["pose: refused"] == 3
    feed.add("pose")
    assert feed.faults == {}


def test_what_cannot_be_used_is_told_with_its_reason(feed):
    feed.both()
    feed.later(0.15)
    feed.assembler.refuse("camera", "its encoding is unknown", feed.now_s)
    assert feed.faults == {"camera": Fault.REFUSED}
    assert feed.text("camera") == "camera front (/front) is refused: its encoding is unknown"
    assert feed.assembler.counts["camera front (/front): refused"] == 1


@pytest.mark.parametrize("jump_s", [3600.0, 0.7, 0.4, 0.2, 0.05])
@pytest.mark.parametrize("on_their_way", [0, 1])
def test_a_wall_clock_that_is_set_ages_nothing_and_is_followed(feed, jump_s, on_their_way):
    feed.both()
    for sign in (-1, 1, 1, -1, -1):  # back and forth
        feed.later(0.04)
        feed.ros_offset_s += sign * jump_s
        for _ in range(on_their_way):  # stamped before the clock was set
            feed.later(0.004)
            taken = [feed.add(key, age_s=0.005 + sign * jump_s) for key in INPUTS]
            assert taken == [jump_s < 0.5] * 2
        assert feed.faults == {}
        for _ in range(12):
            feed.later(0.05)
            feed.both()
            assert feed.faults == {}
        refused = dict(feed.assembler.counts)
        assert not feed.add("camera", age_s=0.03)  # overtaken
        assert sum(feed.assembler.counts.values()) == sum(refused.values()) + 1


def test_a_clock_that_was_set_back_lets_no_message_through_twice(feed):
    feed.both()
    stamp_ns = feed.ros_now_ns - ns(0.01)
    feed.later(0.02)
    feed.ros_offset_s -= 0.2
    for _ in range(5):
        feed.later(0.02)
        assert not feed.assembler.add("camera", None, stamp_ns, feed.now_s, feed.ros_now_ns)


def test_clocks_that_are_read_one_after_the_other_let_nothing_old_through(feed):
    feed.both()
    for jitter_s in (-0.004, 0.004, -0.004):  # a process that was interrupted in between
        feed.later(0.02)
        feed.ros_offset_s += jitter_s
        assert not feed.add("camera", age_s=0.2)


steps = st.lists(
    st.tuples(
        st.sampled_from(["camera", "pose"]),
        st.floats(-2, 2),  # age of the stamp
        st.floats(0, 0.3),  # time that passes
        st.integers(0, 3),  # content
        st.sampled_from([0.0, 0.0, 0.0, -5.0, 5.0]),  # the wall clock is set
    ),
    max_size=60,
)


@settings(deadline=None)
@given(steps)
def test_whatever_comes_a_complete_observation_is_recent_and_its_stamps_advance(messages):
    feed, stamps, arrived, set_back = Feed(), {}, {}, set()
    for key, age_s, passes_s, content, jump_s in messages:
        feed.ros_offset_s += jump_s
        set_back |= INPUTS.keys() if jump_s < 0 else set()
        if feed.add(key, age_s, digest=content):
            assert abs(age_s) <= 0.5 + 1e-6
            stamp_ns = feed.assembler.value(key)[1]
            if key in stamps and stamp_ns <= stamps[key]:
                set_back.remove(key)  # once
            stamps[key], arrived[key] = stamp_ns, feed.now_s
        feed.later(passes_s)
        for name, known in INPUTS.items():
            fresh = feed.now_s - arrived.get(name, -np.inf) <= known.tolerance_s
            if not fresh:
                assert name in feed.faults
        if not feed.faults:
            assert arrived.keys() == INPUTS.keys()


# The ticks of an episode


def decision(sequence, episode="ep", authority=Authority.POLICY, epoch=0, due=False) -> Decision:
    action = np.array([0.5, 0, 0, 0, 0, 0, 1], np.float32)
    return Decision(
        episode, sequence, action, action, 1, authority, Reason.POLICY_ACTS, epoch, policy_due=due
    )


MOTION = decision(0).action


def test_ticks_count_from_0_in_each_episode_and_begin_with_no_decision():
    ticks = EpisodeTicks()
    assert not ticks.begins
    for episode in ("a", "b"):
        ticks.start(episode)
        assert ticks.begins
        first = ticks.next(5)
        assert (first.episode_id, first.sequence, first.stamp_ns) == (episode, 0, 5)
        assert (first.applied_sequence, first.applied) == (-1, Applied.NO_DECISION)
        assert (first.authority, first.epoch, first.policy_due) == (Authority.HOLD, 0, True)
        assert not first.success
        assert not ticks.begins and ticks.next(6).sequence == 1
    ticks.stop()
    assert ticks.episode_id == "" and not ticks.begins


def test_a_tick_says_what_became_of_the_decision_before():
    ticks = EpisodeTicks()
    ticks.start("ep")
    ticks.next(0)
    ticks.see_applied("ep", 0, Applied.APPLIED, MOTION, tick=True)
    second = ticks.next(1)
    assert (second.applied_sequence, second.applied) == (0, Applied.APPLIED)
    np.testing.assert_array_equal(second.applied_action, MOTION)
    third = ticks.next(2)  # no word
    assert (third.applied_sequence, third.applied) == (1, Applied.LATE_HELD)
    np.testing.assert_array_equal(third.applied_action, hold(1.0))  # the gripper as it was
    ticks.see_applied("ep", 1, Applied.APPLIED, MOTION, tick=True)
    assert ticks.counts["words on a decision that came too late"] == 1
    ticks.see_applied("ep", 2, Applied.REFUSED, hold(1.0), tick=True)
    assert ticks.next(3).applied is Applied.REFUSED


def test_a_tick_waits_for_the_word_on_a_decision_that_was_seen_and_on_no_other():
    ticks = EpisodeTicks()
    ticks.start("ep")
    ticks.see_decision(decision(0), tick=False)  # by the arbiter's timer
    assert not ticks.awaits_word
    ticks.next(0)
    ticks.see_decision(decision(0), tick=False)
    ticks.see_decision(decision(0, "before"), tick=True)
    assert not ticks.awaits_word
    ticks.see_decision(decision(0), tick=True)
    assert ticks.awaits_word
    ticks.see_decision(decision(0, epoch=3), tick=False)  # the newest; the tick's is still open
    assert ticks.awaits_word
    ticks.see_applied("ep", 0, Applied.APPLIED, MOTION, tick=True)
    assert not ticks.awaits_word
    assert ticks.next(1).applied is Applied.APPLIED and not ticks.awaits_word
    ticks.see_applied("ep", 1, Applied.APPLIED, MOTION, tick=True)
    ticks.see_decision(decision(1), tick=True)  # overtaken by its word
    assert not ticks.awaits_word
    ticks.next(2)
    ticks.see_decision(decision(2), tick=True)
    ticks.next(3)  # no word came: it goes on
    assert not ticks.awaits_word
    ticks.see_decision(decision(3), tick=True)
    ticks.stop()
    assert not ticks.awaits_word


def test_the_word_on_another_episode_or_on_no_tick_is_of_the_gripper_only():
    ticks = EpisodeTicks()
    ticks.start("ep")
    ticks.next(0)
    ticks.see_applied("before", 0, Applied.APPLIED, MOTION, tick=True)
    ticks.see_applied("ep", 0, Applied.APPLIED, MOTION, tick=False)
    tick = ticks.next(1)
    assert tick.applied is Applied.LATE_HELD
    np.testing.assert_array_equal(tick.applied_action, hold(1.0))


def test_an_episode_begins_in_the_hold_that_the_gripper_stands_in():
    ticks = EpisodeTicks()
    ticks.start("ep")
    ticks.meet_gripper(None)
    np.testing.assert_array_equal(ticks.next(0).applied_action, hold(-1.0))  # open, for all we know
    ticks.see_applied("ep", 0, Applied.APPLIED, MOTION, tick=True)
    ticks.start("next")
    ticks.meet_gripper(None)
    np.testing.assert_array_equal(ticks.next(0).applied_action, hold(1.0))
    ticks.start("another")
    ticks.meet_gripper(-1.0)  # someone opened it
    np.testing.assert_array_equal(ticks.next(0).applied_action, hold(-1.0))


def test_a_tick_echoes_the_newest_decision_of_its_episode():
    ticks = EpisodeTicks()
    ticks.start("ep")
    ticks.next(0)
    ticks.see_decision(decision(0, epoch=2, due=True), tick=True)
    ticks.see_decision(decision(9, "before", Authority.HUMAN, epoch=7), tick=True)
    ticks.see_decision(decision(0, authority=Authority.HOLD, epoch=1), tick=True)  # overtaken
    tick = ticks.next(1)
    assert (tick.authority, tick.epoch, tick.policy_due) == (Authority.POLICY, 2, True)
    assert not ticks.human
    by_timer = decision(0, authority=Authority.HUMAN, epoch=3)
    ticks.see_decision(by_timer, tick=False)
    assert ticks.human and ticks.next(2).authority is Authority.HUMAN
    ticks.start("next")
    assert not ticks.human and ticks.next(0).epoch == 0


# A robot that stands still

FRANKA = config.load("franka")  # 0.25 m/s, 0.8 rad/s, 20 Hz: action 1 is 12.5 mm, 0.04 rad


class Arm:
    """An arm that follows what is applied, late and in part; its pose at every tick."""

    def __init__(self, follows=1.0, delay=0):
        self.standstill, self.follows = Standstill(FRANKA), follows
        self.way, self.turn = np.zeros(3), 0.0
        self.asked = [np.zeros(7)] * delay

    def step(self, x=0.0, yaw=0.0, applied=Applied.APPLIED) -> bool:
        """A tick; whether it seems to stand still after it."""
        action = np.array([x, 0, 0, 0, 0, yaw, 1], np.float32)
        self.asked.append(action)
        done = self.asked.pop(0)
        self.way = self.way + self.follows * done[:3] * 0.25 * 0.05
        self.turn += self.follows * float(done[5]) * 0.8 * 0.05
        pose = [*self.way, 0, 0, np.sin(self.turn / 2), np.cos(self.turn / 2)]
        self.standstill.see(applied, action, np.array(pose))
        return bool(self.standstill.text)

    def steps(self, count, **known) -> list[bool]:
        return [self.step(**known) for _ in range(count)]


@pytest.mark.parametrize("motion", [{"x": 0.1}, {"yaw": 0.3}, {"x": -1.0, "yaw": 1.0}])
def test_an_arm_that_is_told_to_move_and_does_not_is_noticed_within_two_seconds(motion):
    stuck = Arm(follows=0.0)
    told = stuck.steps(40, **motion)
    assert told[-1] and not any(told[:20])
    assert "is its servo paused, without a command type" in stuck.standstill.text
    stuck.follows = 1.0
    assert not any(stuck.steps(10, **motion)[3:])  # it goes


@pytest.mark.parametrize("delay", [0, 2, 5])
def test_an_arm_that_moves_late_slowly_or_back_and_forth_is_not_said_to_stand_still(delay):
    arm = Arm(follows=0.2, delay=delay)
    told = arm.steps(30) + arm.steps(30, x=1.0) + arm.steps(30, x=-1.0) + arm.steps(30, yaw=1.0)
    for x in (1.0, -1.0) * 3:
        told += arm.steps(7, x=x)
    assert not any(told)


def test_nothing_is_said_where_little_was_asked_or_not_all_of_it_was_applied():
    arm = Arm(follows=0.0)
    assert not any(arm.steps(60, x=0.04))  # 7 mm in the part of the window that counts
    assert not any(arm.steps(30))  # held
    refused = [arm.step(x=1.0, applied=Applied.REFUSED) for _ in range(60)]
    late = []
    for _ in range(6):
        late += [*arm.steps(15, x=1.0), arm.step(applied=Applied.LATE_HELD)]
    assert not any(refused + late)
