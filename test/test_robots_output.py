"""What a robot is told: actions as twists, decisions as commands, and a stop. Pure."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hapo_ros import labels
from hapo_ros.arbitration import Applied, Authority, Decision, Reason, Tick
from hapo_ros.arbitration.limits import hold
from hapo_ros.robots import config
from hapo_ros.robots.commands import (
    action_from,
    closes,
    gripper_closed,
    gripper_value,
    twist_from,
    within_limits,
)
from hapo_ros.robots.output import RobotOutput

FRANKA = config.load("franka")  # 0.25 m/s, 0.8 rad/s; 0.045, 0.1 and 0.3 s
OPEN, CLOSED = -1.0, 1.0
numbers = st.floats(-1, 1, width=32)
actions = st.lists(numbers, min_size=7, max_size=7).map(lambda n: np.array(n, np.float32))


# Actions as twists


@settings(deadline=None)
@given(actions, st.booleans(), st.floats(1e-3, 10), st.floats(1e-3, 50))
def test_an_action_goes_to_a_twist_and_back(action, unitless, linear, angular):
    robot = replace(FRANKA, unitless=unitless, linear_scale_m_s=linear, angular_scale_rad_s=angular)
    twist = twist_from(action, robot)
    if unitless:
        np.testing.assert_array_equal(twist, action[:6].astype(np.float64))
    back = action_from(twist, closes(action), robot)
    np.testing.assert_allclose(back[:6], action[:6], rtol=1e-6, atol=1e-30)
    assert back[6] == (CLOSED if action[6] > 0 else OPEN) and back.dtype == np.float32


def test_action_1_is_the_speed_that_the_robots_file_says():
    np.testing.assert_allclose(twist_from(np.ones(7), FRANKA), [0.25] * 3 + [0.8] * 3)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(7))
def test_what_is_not_finite_is_refused_and_never_made_a_number(wrong, place):
    action = np.zeros(7, np.float32)
    action[place] = wrong
    with pytest.raises(ValueError, match="7 finite numbers"):
        twist_from(action, FRANKA)
    with pytest.raises(ValueError, match="7 finite numbers"):
        twist_from(np.zeros(6), FRANKA)
    twist = np.zeros(6)
    twist[min(place, 5)] = wrong
    with pytest.raises(ValueError, match="6 finite numbers"):
        action_from(twist, False, FRANKA)


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_a_gripper_command_goes_to_its_value_and_back(open_value, closed_value):
    if open_value == closed_value:
        return
    gripper = replace(FRANKA.gripper, open=open_value, closed=closed_value)
    for closed in (True, False):
        assert gripper_closed(gripper_value(closed, gripper), gripper) is closed


def test_limits_below_the_scale_are_kept():
    slow = replace(FRANKA, max_linear_m_s=0.1, max_angular_rad_s=0.4)
    assert slow.max_linear == pytest.approx(0.4) and slow.max_angular == pytest.approx(0.5)
    assert within_limits(np.array([0.4, -0.4, 0.4, 0.5, -0.5, 0.5, 1], np.float32), slow)
    assert not within_limits(np.array([0.41, 0, 0, 0, 0, 0, 1], np.float32), slow)
    assert not within_limits(np.array([0, 0, 0, 0, 0, -0.51, 1], np.float32), slow)
    fast = replace(FRANKA, max_linear_m_s=9.0)
    assert fast.max_linear == 1.0


# Decisions as commands


class Robot:
    """A robot's output, its clocks, and the arbiter's decisions."""

    def __init__(self, began_s: float = 100.0):
        self.now_s = began_s
        self.output = RobotOutput(FRANKA)
        self.output.stop(began_s)
        self.twists = []  # all that was sent
        self.sequence = -1

    def settle(self) -> "Robot":
        """Until nothing is sent: the arbiter decides holds by its own timer, no episode runs."""
        for _ in range(20):
            self.decide(episode="", sequence=0, tick=False, motion=None)
            self.later(0.05)
        self.twists.clear()
        return self

    def later(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.01)):
            self.now_s += 0.01
            if self.output.stop_due(self.now_s):
                self.twists.append(np.zeros(6))

    def tick(self, sequence=None, episode="ep", gripper=OPEN) -> None:
        self.sequence = self.sequence + 1 if sequence is None else sequence
        tick = Tick(episode, self.sequence, 0, applied_action=hold(gripper))
        self.output.see_tick(tick, self.now_s)

    def decide(
        self,
        sequence=None,
        episode="ep",
        motion=0.5,
        gripper=OPEN,
        label=labels.POLICY,
        epoch=0,
        tick=True,
        stamp_off_s=0.0,
        action=None,
        gripper_listens=True,
    ):
        """motion: x of the action; None is a hold."""
        if action is None:
            action = hold(gripper)
            action[0] = motion or 0.0
        requested = np.zeros(0, np.float32) if motion is None else action
        decision = Decision(
            episode,
            self.sequence if sequence is None else sequence,
            action,
            requested,
            labels.NONE if motion is None else label,
            Authority.HUMAN if label == labels.HUMAN else Authority.POLICY,
            Reason.POLICY_ACTS,
            epoch,
        )
        ros_now_ns = round(self.now_s * 1e9)
        stamp_ns = round((self.now_s + stamp_off_s) * 1e9)
        command = self.output.decide(
            decision, stamp_ns, tick, self.now_s, ros_now_ns, gripper_listens
        )
        if command is not None and command.twist is not None:
            self.twists.append(command.twist)
        return command

    def step(self, **known):
        self.tick()
        return self.decide(**known)


@pytest.fixture
def robot():
    return Robot().settle()


def is_held(command, gripper=OPEN) -> bool:
    return not command.twist.any() and np.array_equal(command.action, hold(gripper))


def test_a_decision_in_time_is_executed_once(robot):
    command = robot.step(motion=0.5)
    assert command.applied is Applied.APPLIED and command.text == "" and command.closed is None
    np.testing.assert_allclose(command.twist, [0.125, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(command.action, [0.5, 0, 0, 0, 0, 0, -1])
    assert robot.decide() is None  # sent again
    robot.tick()
    robot.tick()
    robot.decide()
    assert robot.decide(sequence=1) is None  # overtaken
    assert robot.output.counts["decisions repeated or out of order"] == 2
    assert len(robot.twists) == 2


def test_a_decision_that_comes_later_than_its_deadline_is_not_executed(robot):
    robot.tick()
    robot.later(0.04)
    assert robot.decide().applied is Applied.APPLIED
    robot.tick()
    robot.later(0.06)
    late = robot.decide()
    assert late.applied is Applied.LATE_HELD and is_held(late) and "later than 0.045 s" in late.text
    robot.tick()
    robot.tick()
    overtaken = robot.decide(sequence=robot.sequence - 1)
    assert overtaken.applied is Applied.LATE_HELD and is_held(overtaken)
    assert robot.output.counts["decisions late"] == 2
    assert robot.decide().applied is Applied.APPLIED


def test_a_decision_that_overtakes_its_tick_is_executed(robot):
    robot.step()
    assert robot.decide(sequence=robot.sequence + 1).applied is Applied.APPLIED
    robot.tick()
    assert robot.decide() is None


def test_the_last_of_one_episode_never_moves_the_arm_in_the_next(robot):
    robot.step()
    robot.tick()
    robot.tick(0, "next")
    assert robot.decide(sequence=1) is None
    assert robot.decide(episode="next").applied is Applied.APPLIED
    assert robot.decide(sequence=2) is None  # before the tick of its own episode or after it
    robot.decide(sequence=0, episode="third")
    assert robot.decide(sequence=1, episode="next") is None


def test_without_a_decision_the_arm_is_told_to_stop_for_a_while_and_then_nothing(robot):
    robot.step()
    robot.twists.clear()
    robot.later(0.09)
    assert robot.twists == []  # the motion's own time
    robot.later(0.06)
    assert robot.twists and not np.any(robot.twists)
    robot.later(1.0)
    stopped = len(robot.twists)
    assert 25 <= stopped <= 35 and not np.any(robot.twists)  # 0.3 s at 100 Hz, never a motion
    robot.later(10.0)
    assert len(robot.twists) == stopped


def test_the_arm_is_stopped_as_the_output_or_its_servo_comes_up(robot):
    for _ in range(2):
        robot.output.stop(robot.now_s)
        robot.later(0.2)
        assert robot.twists and not np.any(robot.twists)
        robot.later(10.0)
        assert len(robot.twists) < 45
        robot.step()
        robot.twists.clear()


def test_holds_are_sent_all_the_time_in_an_episode_and_not_outside_one(robot):
    for _ in range(40):
        assert is_held(robot.step(motion=None))
        robot.later(0.05)
    assert len(robot.twists) == 40
    robot.step()
    robot.twists.clear()
    for _ in range(40):
        robot.later(0.05)
        command = robot.decide(episode="", sequence=0, tick=False, motion=None)
        assert command.applied is Applied.APPLIED
    assert 5 <= len(robot.twists) <= 10 and not np.any(robot.twists)  # another planner may move it


def test_a_human_moves_the_arm_without_ticks_and_without_an_episode(robot):
    human = {"label": labels.HUMAN, "tick": False, "sequence": 0}
    for motion in (0.2, 0.4):
        command = robot.decide(episode="", motion=motion, **human)
        assert command.applied is Applied.APPLIED and command.twist[0] == pytest.approx(motion / 4)
    robot.step()
    robot.later(0.3)  # a camera died
    assert robot.decide(motion=0.3, **(human | {"sequence": robot.sequence})).twist[0] > 0


def test_a_human_at_rest_outside_an_episode_leaves_the_arm_alone_and_not_the_gripper(robot):
    still = {"episode": "", "motion": 0.0, "label": labels.HUMAN, "tick": False, "sequence": 0}
    robot.decide(**(still | {"motion": 0.5}))
    assert not robot.decide(**still).twist.any()  # the stop after the motion
    robot.later(1.0)
    robot.twists.clear()
    told = []
    for gripper in (OPEN, CLOSED, CLOSED, OPEN):
        command = robot.decide(gripper=gripper, **still)
        assert command.applied is Applied.APPLIED
        told.append(command.closed)
        robot.later(0.05)
    assert told == [None, True, None, False] and robot.twists == []


@pytest.mark.parametrize("off_s", [-3600.0, -0.6, 0.6, 3600.0])
@pytest.mark.parametrize("tick", [True, False])
def test_a_decision_with_an_absurd_stamp_is_refused_and_counted(robot, off_s, tick):
    robot.tick()
    refused = robot.decide(stamp_off_s=off_s, tick=tick)
    assert refused.applied is Applied.REFUSED and is_held(refused)
    assert "from this machine's clock" in refused.text
    assert robot.output.counts["decisions with an absurd stamp"] == 1


@pytest.mark.parametrize(
    "action",
    [
        np.full(7, np.nan, np.float32),
        np.array([0, 0, np.inf, 0, 0, 0, 1], np.float32),
        np.zeros(6, np.float32),
        np.array([1.1, 0, 0, 0, 0, 0, 1], np.float32),
        np.array([0, 0, 0, 0, 0, -2, 1], np.float32),
    ],
    ids=["nan", "inf", "short", "too fast", "turns too fast"],
)
def test_what_cannot_be_executed_or_is_too_fast_is_refused_whole(robot, action):
    robot.step(gripper=CLOSED)
    robot.tick()
    refused = robot.decide(action=action)
    assert refused.applied is Applied.REFUSED and is_held(refused, CLOSED) and refused.text
    assert refused.closed is None
    assert robot.step(gripper=CLOSED).applied is Applied.APPLIED


def test_the_gripper_is_told_of_changes_only_and_by_no_hold(robot):
    assert robot.step(gripper=OPEN).closed is None
    assert robot.step(gripper=CLOSED).closed is True
    assert robot.step(gripper=CLOSED).closed is None
    held = robot.step(motion=None, gripper=OPEN)  # an arbiter that was restarted knows no better
    assert held.closed is None and is_held(held, CLOSED)
    assert robot.step(gripper=CLOSED).closed is None
    assert robot.step(motion=0.0, gripper=OPEN).closed is False


def test_how_the_gripper_stands_is_learned_from_the_ticks_and_never_commanded(robot):
    fresh = Robot()
    fresh.tick(gripper=CLOSED)
    assert fresh.decide(gripper=CLOSED).closed is None
    assert fresh.step(gripper=OPEN).closed is False
    robot.step(gripper=CLOSED)
    robot.tick(0, "next", gripper=OPEN)  # someone opened it by hand
    assert robot.decide(sequence=0, episode="next", gripper=OPEN).closed is None


def test_a_change_of_the_gripper_that_no_one_hears_of_is_refused_and_not_believed(robot):
    robot.step(gripper=OPEN)
    for _ in range(2):
        refused = robot.step(gripper=CLOSED, gripper_listens=False)
        assert refused.applied is Applied.REFUSED and is_held(refused, OPEN)
        assert refused.closed is None
        assert f"no one takes commands on {FRANKA.gripper.topic}. Holding" in refused.text
    moved = robot.step(gripper=OPEN, gripper_listens=False)  # without a change
    assert moved.applied is Applied.APPLIED and moved.twist.any()
    assert robot.step(gripper=CLOSED).closed is True
    assert robot.output.counts["decisions for a gripper that does not listen"] == 2


def test_nothing_is_known_of_the_gripper_until_a_change_is_asked_for():
    robot = Robot()
    human = {"label": labels.HUMAN, "tick": False, "sequence": 0, "episode": ""}
    assert robot.decide(gripper=OPEN, **human).closed is None
    assert robot.decide(gripper=CLOSED, **human).closed is True


def test_an_output_that_does_not_know_how_the_gripper_stands_says_nothing_of_it():
    robot = Robot()
    robot.sequence = 40
    barred = robot.decide(epoch=3)  # before any tick
    assert barred.applied is Applied.REFUSED and barred.action is None
    assert not barred.twist.any() and barred.closed is None
    assert robot.decide(41, motion=None).action is None
    robot.tick(42, gripper=CLOSED)  # as the assembler knew it
    assert is_held(robot.decide(epoch=3), CLOSED)
    assert robot.step(label=labels.HUMAN, gripper=OPEN).closed is False


def test_started_in_the_middle_the_policy_moves_the_arm_only_after_a_change_of_authority():
    robot = Robot()
    for sequence in (40, 41):
        robot.tick(sequence)
        barred = robot.decide(epoch=3)
        assert barred.applied is Applied.REFUSED and is_held(barred)
        assert "Take over, then hand back" in barred.text
    robot.tick()
    assert robot.decide(epoch=3, label=labels.HUMAN).applied is Applied.APPLIED  # at once
    robot.tick()
    assert robot.decide(epoch=5).applied is Applied.APPLIED
    other = Robot()
    other.tick(40)
    other.decide(epoch=3)
    other.tick(0, "next")
    assert other.decide(episode="next").applied is Applied.APPLIED


events = st.lists(
    st.one_of(
        st.tuples(st.just("later"), st.integers(0, 30)),
        st.tuples(st.just("tick"), st.integers(-1, 2)),
        st.tuples(
            st.just("decide"),
            st.integers(-2, 1),  # sequence, from the last tick's
            st.sampled_from([None, 0.0, 0.5, -1.0, 1.5, float("nan")]),
            st.sampled_from([labels.POLICY, labels.HUMAN]),
            st.booleans(),
            st.sampled_from([0.0, 0.0, 0.0, 5.0, -5.0]),
        ),
        st.tuples(st.just("episode"), st.integers(0, 2)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(events)
def test_whatever_comes_no_motion_is_sent_without_a_fresh_decision_nor_beyond_the_limits(steps):
    robot, episode = Robot(), "e0"
    moved_s = robot.now_s  # or before it was started
    for kind, *known in steps:
        before = len(robot.twists)
        if kind == "later":
            robot.later(known[0] / 100)
            assert not np.any(robot.twists[before:])  # time alone moves nothing
            recent = robot.now_s - moved_s
            if recent > FRANKA.command_timeout_s + FRANKA.stop_s + 0.02 and known[0] > 15:
                assert not robot.output.stop_due(robot.now_s)  # and is silent in the end
        elif kind == "tick":
            robot.tick(max(robot.sequence + known[0], 0), episode)
        elif kind == "episode":
            episode = f"e{known[0]}"
        else:
            offset, motion, label, tick, off_s = known
            sequence = max(robot.sequence + offset, 0)
            command = robot.decide(
                sequence, episode, motion, label=label, tick=tick, stamp_off_s=off_s
            )
            if command is None:
                continue
            assert command.twist is None or np.isfinite(command.twist).all()
            assert command.action is None or np.isfinite(command.action).all()
            if command.twist is not None and command.twist.any():
                moved_s = robot.now_s
                assert command.applied is Applied.APPLIED
                assert abs(motion) <= 1 and off_s == 0
                assert np.abs(command.twist[:3]).max() <= FRANKA.max_linear_m_s * 1.001
            if command.applied is not Applied.APPLIED:
                assert not command.twist.any() and command.text and command.closed is None
