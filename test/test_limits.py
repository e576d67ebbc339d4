"""Limits of what is executed, and frames of what an operator asks for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hapo_ros.arbitration import ArbiterConfig
from hapo_ros.arbitration.frames import turned
from hapo_ros.arbitration.limits import GRIPPER, Limits

STILL = (0.0,) * 6
HALF_TURN_ABOUT_Z = (0.0, 0.0, 1.0, 0.0)
QUARTER_TURN_ABOUT_Z = (0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5))
QUARTER_TURN_ABOUT_Y = (0.0, math.sqrt(0.5), 0.0, math.sqrt(0.5))
numbers = st.floats(-3.0, 3.0)
actions = st.lists(numbers, min_size=7, max_size=7).map(np.array)
motions = st.lists(st.floats(-1.0, 1.0), min_size=6, max_size=6)


def limits(**config) -> Limits:
    return Limits(ArbiterConfig(**config))


def translation(*xyz, gripper=1.0):
    return np.array([*xyz, 0, 0, 0, gripper])


def test_what_is_within_the_limits_is_executed_as_it_is():
    action = np.array([0.5, -1.0, 0.25, 1.0, 0.0, -0.5, -1.0])
    executed, limited = limits().apply(action, STILL)
    assert np.array_equal(executed, action.astype(np.float32)) and not limited


def test_each_axis_has_a_speed_of_its_own_and_the_direction_is_kept():
    made = limits(max_speed_m_s=(0.5, 0.2, 0.1))
    for action, factor in (((1, 0, 0), 0.5), ((0, 1, 0), 0.2), ((1, 1, 0), 0.2), ((1, 1, 1), 0.1)):
        executed, limited = made.apply(translation(*action), STILL)
        assert executed[:3] == pytest.approx(np.array(action) * factor, rel=1e-6) and limited


def test_rates_are_limited_apart_from_speeds():
    action = np.array([1.0, 0, 0, 0, 0, 1.0, 1.0])
    executed, _ = limits(max_rate_rad_s=(10, 10, 2.0)).apply(action, STILL)
    assert executed.tolist() == pytest.approx([1, 0, 0, 0, 0, 0.2, 1])


def test_a_speed_above_that_of_action_1_is_action_1():
    executed, limited = limits(max_speed_m_s=(9.0,) * 3).apply(translation(2.0, 0, 0), STILL)
    assert executed[0] == 1.0 and limited


def test_the_length_of_a_step_is_limited():
    made = limits(linear_scale_m_s=1.0, control_period_s=0.05, max_step_m=0.01)
    executed, limited = made.apply(translation(0.6, 0.8, 0), STILL)
    assert executed[:3] * 0.05 == pytest.approx([0.006, 0.008, 0]) and limited


def test_speed_grows_no_faster_than_the_acceleration():
    made = limits(max_acceleration_m_s2=4.0)  # 0.2 of action 1 a step
    motion, speeds = STILL, []
    for _ in range(6):
        executed, _ = made.apply(translation(0, 0, 0.9), motion)
        motion = executed[:6].tolist()
        speeds.append(float(executed[2]))
    assert speeds == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.9, 0.9])


@given(actions, motions, st.floats(0.1, 50.0))
def test_a_stop_is_never_delayed(action, motion, acceleration):
    made = limits(max_acceleration_m_s2=acceleration, max_acceleration_rad_s2=acceleration)
    stop = np.r_[np.zeros(6), 1.0]
    executed, limited = made.apply(stop, motion)
    assert not executed[:6].any() and not limited
    executed, _ = made.apply(action, motion)
    for part in (slice(0, 3), slice(3, 6)):
        wanted, before = action[part], np.array(motion[part])
        if not wanted.any():
            assert not executed[part].any()
            continue
        # Along what is asked for, and nothing of what was executed before lingers.
        assert np.allclose(np.cross(executed[part], wanted), 0.0, atol=1e-5)
        assert np.dot(executed[part], wanted) >= 0
        if np.dot(before, wanted) <= 0:  # it turns round: the old motion ends at once
            slow = acceleration * 0.05 / (1.0 if part.start == 0 else 10.0)
            assert np.linalg.norm(executed[part]) <= slow + 1e-5


@given(actions, motions, st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3))
def test_whatever_is_asked_for_the_limits_hold(action, motion, speeds):
    made = limits(
        max_speed_m_s=tuple(speeds), max_step_m=0.03, max_step_rad=0.2, max_acceleration_m_s2=5.0
    )
    executed, limited = made.apply(action, motion)
    assert np.all(np.abs(executed[:3]) <= np.array(speeds) * (1 + 1e-6))
    assert np.linalg.norm(executed[:3]) * 0.05 <= 0.03 * (1 + 1e-6)
    assert np.linalg.norm(executed[3:6]) * 0.5 <= 0.2 * (1 + 1e-6)
    assert -1 <= executed[GRIPPER] <= 1
    if not limited:
        assert np.array_equal(executed, action.astype(np.float32))


def test_the_arm_slides_along_the_wall_of_its_workspace_and_stays_inside():
    made = limits(workspace_min_m=(-1, -1, 0.8), workspace_max_m=(1, 1, 2))
    executed, limited = made.apply(translation(0.4, 0, -1), STILL, [0, 0, 0.82, 0, 0, 0, 1])
    assert executed[:3] == pytest.approx([0.4, 0, -0.4]) and limited  # 0.02 m are left
    executed, _ = made.apply(translation(0.4, 0, -1), STILL, [0, 0, 0.8, 0, 0, 0, 1])
    assert executed[:3] == pytest.approx([0.4, 0, 0])


def test_an_arm_that_is_outside_can_only_come_back_in():
    made = limits(workspace_min_m=(-math.inf, -math.inf, 0.8))
    outside = [0, 0, 0.7, 0, 0, 0, 1]
    assert made.needs_pose and not limits().needs_pose
    assert made.apply(translation(0, 0, -1), STILL, outside)[0][2] == 0
    assert made.apply(translation(0, 0, 1), STILL, outside)[0][2] == 1


@given(actions, st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=3))
def test_no_step_leads_out_of_the_workspace(action, at):
    made = limits(workspace_min_m=(-0.5,) * 3, workspace_max_m=(0.5,) * 3)
    executed, _ = made.apply(action, STILL, at)
    reached = np.array(at) + executed[:3] * 0.05
    assert np.all(np.abs(reached) <= 0.5 + 1e-6)


def test_a_turned_twist_is_that_of_the_known_rotation():
    twist = [1, 2, 3, 4, 5, 6]
    assert turned(twist, (0, 0, 0, 1)) == pytest.approx(twist)
    assert turned(twist, HALF_TURN_ABOUT_Z) == pytest.approx([-1, -2, 3, -4, -5, 6])
    # The frame's x points along the base's y: what is forward there goes left here.
    assert turned(twist, QUARTER_TURN_ABOUT_Z) == pytest.approx([-2, 1, 3, -5, 4, 6])
    # The frame's x points down: what is forward there goes down here.
    assert turned([1, 0, 0, 0, 0, 0], QUARTER_TURN_ABOUT_Y) == pytest.approx([0, 0, -1, 0, 0, 0])


quaternions = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(
    lambda q: np.linalg.norm(q) > 0.1
)


@given(quaternions)
def test_a_rotation_keeps_lengths_angles_and_handedness(quaternion):
    x, y, z = (np.array(turned([*axis, 0, 0, 0], quaternion)[:3]) for axis in np.eye(3))
    matrix = np.stack([x, y, z])
    assert matrix @ matrix.T == pytest.approx(np.eye(3), abs=1e-9)
    assert np.cross(x, y) == pytest.approx(z, abs=1e-9)


@pytest.mark.parametrize("wrong", [(0, 0, 0, 0), (0, 0, 1), (math.nan, 0, 0, 1)])
def test_what_is_no_quaternion_is_refused(wrong):
    with pytest.raises(ValueError, match="no quaternion"):
        turned([1, 0, 0, 0, 0, 0], wrong)
