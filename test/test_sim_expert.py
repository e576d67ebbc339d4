"""The scripted expert does the task, from wherever it is put."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hapo_ros.sim.environment import Disturbance, Simulation
from hapo_ros.sim.expert import LiftExpert, grasp_rotation, turn_between
from hapo_ros.sim.tasks import get_task

LIFT = get_task("Lift")


@pytest.fixture(scope="module")
def simulation():
    simulation = Simulation(LIFT, cameras=())
    yield simulation
    simulation.close()


def steps_to_lift(simulation) -> int:
    """Steps that the expert needs from here; one more than the horizon where it does not."""
    expert = LIFT.expert()
    for step in range(LIFT.horizon):
        simulation.step(expert.act(simulation.privileged()))
        if simulation.success:
            return step + 1
    return LIFT.horizon + 1


def test_the_expert_lifts_the_cube_on_twenty_seeds_of_twenty(simulation):
    needed = []
    for seed in range(20):
        simulation.reset(seed)
        needed.append(steps_to_lift(simulation))
    assert max(needed) <= 40


def test_the_expert_lifts_the_cube_under_disturbance():
    simulation = Simulation(LIFT, cameras=(), disturbance=Disturbance())
    done = 0
    for seed in range(12):
        simulation.reset(seed)
        done += steps_to_lift(simulation) <= LIFT.horizon
    simulation.close()
    assert done >= 11


def prepare(simulation, seed, program) -> None:
    """Leave the state that a bad policy would: ``program`` yields (motion, gripper, steps)."""
    simulation.reset(seed)
    for motion, gripper, steps in program:
        for _ in range(steps):
            simulation.step(np.r_[motion, gripper])


def test_the_expert_opens_a_gripper_that_was_closed_above_the_cube(simulation):
    prepare(simulation, 1, [([0, 0, 0, 0, 0, 0], 1, 10), ([0.5, 0, -0.3, 0, 0, 0], 1, 12)])
    assert simulation.privileged()["finger_opening"] < 0.01
    assert steps_to_lift(simulation) <= 60


def test_the_expert_follows_a_cube_that_was_pushed_away(simulation):
    simulation.reset(2)
    start = simulation.privileged()
    for _ in range(60):  # down behind the cube, then sweep it away
        state = simulation.privileged()
        behind = np.array([state["gripper_to_cube_x"], state["gripper_to_cube_y"] - 0.05])
        low = state["eef_z"] < 0.84
        motion = [0, 0.4, 0] if low else [*np.clip(20 * behind, -1, 1), -0.5]
        simulation.step([*motion, 0, 0, 0, 1])
    pushed = simulation.privileged()
    assert np.hypot(pushed["cube_x"] - start["cube_x"], pushed["cube_y"] - start["cube_y"]) > 0.05
    assert steps_to_lift(simulation) <= 100


def test_the_expert_recovers_from_a_turned_and_tilted_hand(simulation):
    prepare(simulation, 3, [([0, 0.3, 0, 0.3, -0.3, 1.0], -1, 10)])
    assert steps_to_lift(simulation) <= 80


def test_the_expert_goes_on_lifting_a_cube_that_it_finds_in_the_hand(simulation):
    simulation.reset(4)
    expert = LIFT.expert()
    while not simulation.privileged()["grasped"]:
        simulation.step(expert.act(simulation.privileged()))
    assert steps_to_lift(simulation) <= 6


def test_the_expert_has_no_memory(simulation):
    simulation.reset(5)
    used = LiftExpert()
    for _ in range(15):
        simulation.step(used.act(simulation.privileged()))
    state = simulation.privileged()
    assert used.act(state).tolist() == LiftExpert().act(state).tolist()


def test_an_experts_action_is_within_its_range(simulation):
    simulation.reset(6)
    action = LiftExpert().act(simulation.privileged())
    assert action.shape == (7,)
    assert action.dtype == np.float32
    assert np.abs(action).max() <= 1


def about(axis, angle) -> np.ndarray:
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@given(
    st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda axis: np.linalg.norm(axis) > 0.1),
    st.floats(0, 3.1),
    st.floats(0, 3.1),
)
def test_a_turn_takes_one_orientation_to_the_other(axis, start, angle):
    current = about([0.3, -0.5, 0.8], start)
    target = about(axis, angle) @ current
    expected = np.asarray(axis) / np.linalg.norm(axis) * angle
    assert turn_between(current, target) == pytest.approx(expected, abs=1e-6)


@given(st.floats(-3.1, 3.1), st.floats(-3.1, 3.1))
def test_a_grasp_points_down_and_closes_along_a_side_of_the_cube(cube_yaw, hand_yaw):
    cube = about([0, 0, 1], cube_yaw)
    hand = about([0, 0, 1], hand_yaw) @ np.diag([1.0, -1.0, -1.0])
    grasp = grasp_rotation(hand, cube)
    assert grasp @ grasp.T == pytest.approx(np.eye(3))
    assert np.linalg.det(grasp) == pytest.approx(1.0)
    assert grasp[:, 2].tolist() == [0, 0, -1]
    assert np.abs(grasp[:, 0] @ cube).max() == pytest.approx(1.0)
