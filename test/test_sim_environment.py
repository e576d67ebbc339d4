"""The simulated robot: deterministic, upright, and strict about its actions."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from hapo_ros.doctor import GL_PACKAGES
from hapo_ros.episodes.formats.robomimic import HAND_TO_SITE, product
from hapo_ros.sim.environment import Disturbance, Simulation, action_space
from hapo_ros.sim.rendering import _View
from hapo_ros.sim.tasks import get_task

LIFT = get_task("Lift")
STILL_OPEN = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)


@pytest.fixture(scope="module")
def seen():
    simulation = Simulation(LIFT, image_size=48)
    yield simulation
    simulation.close()


@pytest.fixture(scope="module")
def unseen():
    simulation = Simulation(LIFT, cameras=())
    yield simulation
    simulation.close()


def actions(seed: int, steps: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, 7)).astype(np.float32)


def fingerprint(simulation, seed: int, steps: int = 8) -> str:
    """Hash of everything that a rollout shows."""
    digest = hashlib.sha256()
    observation = simulation.reset(seed)
    for action in actions(seed, steps):
        for image in observation.images.values():
            digest.update(image.tobytes())
        digest.update(observation.joint_positions.tobytes())
        digest.update(observation.eef_pose.tobytes())
        digest.update(observation.object_state.tobytes())
        digest.update(np.array(list(simulation.privileged().values())).tobytes())
        digest.update(simulation.applied_action.tobytes())
        observation = simulation.step(action)
    return digest.hexdigest()


def test_the_same_seed_gives_the_same_rollout_after_other_episodes(seen):
    first = fingerprint(seen, 7)
    assert fingerprint(seen, 8, steps=15) != first
    assert fingerprint(seen, 7) == first


def test_the_same_seed_gives_the_same_rollout_in_a_fresh_process(seen):
    program = (
        "import runpy, sys;"
        "names = runpy.run_path(sys.argv[1]);"
        "print(names['fingerprint'](names['Simulation'](names['LIFT'], image_size=48), 7))"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONHASHSEED": "1",
    }
    fresh = subprocess.run(
        [sys.executable, "-c", program, __file__],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert fresh.stdout.strip() == fingerprint(seen, 7)


def test_another_simulation_in_the_process_changes_nothing(seen):
    before = fingerprint(seen, 7)
    other = Simulation(LIFT, image_size=32, cameras=("wrist",))
    fingerprint(other, 3)
    assert fingerprint(seen, 7) == before
    other.close()
    assert fingerprint(seen, 7) == before


def test_rendering_does_not_change_the_physics(seen, unseen):
    for simulation in (seen, unseen):
        simulation.reset(5)
        for action in actions(5, 6):
            simulation.step(action)
    assert seen.privileged() == unseen.privileged()


def test_different_seeds_put_the_cube_elsewhere(unseen):
    places = set()
    for seed in range(5):
        unseen.reset(seed)
        state = unseen.privileged()
        places.add((state["cube_x"], state["cube_y"]))
    assert len(places) == 5


def test_images_are_upright_rgb(seen):
    observation = seen.reset(0)
    for image in observation.images.values():
        assert image.shape == (48, 48, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
    view = observation.images["agentview"].astype(int)
    table, robot = view[36:], view[:8, 18:30]
    assert table.mean() > robot.mean() + 30  # the white table is at the bottom, the arm on top
    cube = (view[..., 0] > 90) & (view[..., 0] > 2 * view[..., 2])
    assert 5 < cube.sum() < 200, "the cube is red, not blue"


def test_an_observation_has_the_shapes_it_promises(unseen):
    observation = unseen.reset(0)
    assert observation.images == {}
    assert observation.joint_positions.shape == (9,)
    assert observation.eef_pose.shape == (7,)
    assert observation.object_state.shape == (len(LIFT.object_state),) == (10,)
    state = unseen.privileged()
    assert observation.eef_pose[:3].tolist() == [state[f"eef_{axis}"] for axis in "xyz"]
    assert np.linalg.norm(observation.eef_pose[3:]) == pytest.approx(1.0)
    assert observation.object_state[7:].tolist() == pytest.approx(
        [state[f"cube_{axis}"] - state[f"eef_{axis}"] for axis in "xyz"]
    )
    assert all(type(value) is float for value in state.values())


def test_no_motion_holds_the_arm(unseen):
    start = unseen.reset(0)
    for _ in range(20):
        now = unseen.step(STILL_OPEN)
    assert np.abs(now.eef_pose[:3] - start.eef_pose[:3]).max() < 2e-3
    assert unseen.applied_action.tolist() == STILL_OPEN.tolist()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_action_moves_the_hand_along_its_axis_of_the_world(unseen, axis):
    start = unseen.reset(0).eef_pose
    action = STILL_OPEN.copy()
    action[axis] = 1.0
    for _ in range(4):
        now = unseen.step(action).eef_pose
    moved = now[:3] - start[:3]
    assert moved[axis] > 0.02
    assert np.delete(np.abs(moved), axis).max() < 0.4 * moved[axis]


def test_the_gripper_closes_at_plus_one_and_opens_at_minus_one(unseen):
    unseen.reset(0)
    for command, opening in ((1.0, 0.0), (-1.0, 0.08)):
        for _ in range(15):
            unseen.step([0, 0, 0, 0, 0, 0, command])
        state = unseen.privileged()
        assert state["finger_opening"] == pytest.approx(opening, abs=0.005)
        assert state["gripper_command"] == command


@pytest.mark.parametrize(
    "action", [np.zeros(6), np.zeros((1, 7)), [np.nan] + [0] * 6, [0] * 6 + [np.inf]]
)
def test_an_action_that_is_none_is_refused_and_nothing_moves(unseen, action):
    unseen.reset(0)
    before = unseen.privileged()
    with pytest.raises(ValueError, match="action"):
        unseen.step(action)
    assert unseen.privileged() == before


def test_an_action_beyond_its_range_is_applied_at_its_range(unseen):
    unseen.reset(0)
    unseen.step([5, -5, 0, 0, 0, 0, -1])
    assert unseen.applied_action.tolist() == [1, -1, 0, 0, 0, 0, -1]


def test_a_disturbance_comes_in_constant_bursts_of_the_arm_only():
    often = Disturbance(probability=0.2, sigma=0.3, min_steps=3, max_steps=5)
    disturbed = Simulation(LIFT, cameras=(), disturbance=often)
    applied = []
    for _ in range(2):
        disturbed.reset(4)
        applied.append([])
        for _ in range(60):
            disturbed.step(STILL_OPEN)
            applied[-1].append(disturbed.applied_action)
    disturbed.close()
    assert np.array_equal(*applied), "bursts are the seed's"
    offsets = np.array(applied[0])[:, :6]
    assert (np.array(applied[0])[:, 6] == -1).all()
    moves = np.abs(offsets).max(1) > 0
    assert 0.2 < moves.mean() < 0.8
    first = int(np.flatnonzero(moves)[0])
    assert (offsets[first : first + 3] == offsets[first]).all()


@pytest.mark.parametrize(
    "wrong", [{"probability": 1.5}, {"sigma": -1.0}, {"min_steps": 0}, {"max_steps": 2}]
)
def test_an_impossible_disturbance_is_refused(wrong):
    with pytest.raises(ValueError, match="disturbance needs"):
        Disturbance(**wrong)


def test_an_unknown_camera_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"no camera side.*agentview, wrist"):
        Simulation(LIFT, cameras=("side",))


def test_an_unknown_task_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"no task 'Juggle'.*Lift"):
        get_task("Juggle")


def test_the_action_space_says_what_an_action_of_one_means():
    space = action_space()
    assert len(space["names"]) == 7
    assert (space["linear_scale_m_s"], space["angular_scale_rad_s"]) == (1.0, 10.0)


def test_the_controller_has_the_scale_that_the_action_space_claims(unseen):
    controller = unseen._env.robots[0].part_controllers["right"]
    per_step = np.array([0.05] * 3 + [0.5] * 3)
    assert controller.output_max.tolist() == per_step.tolist()
    assert controller.input_max.tolist() == [1] * 6


def test_images_without_a_gl_library_fail_with_what_to_install():
    program = (
        "from hapo_ros.sim.environment import Simulation;"
        "from hapo_ros.sim.tasks import get_task;"
        "Simulation(get_task('Lift'))"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "MUJOCO_GL": "osmesa",
        "PYOPENGL_PLATFORM": "egl",  # so that OSMesa is refused where it is installed, too
    }
    failed = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert failed.returncode == 1
    assert "RuntimeError: Images cannot be rendered" in failed.stderr
    assert f"`apt install {GL_PACKAGES}`" in failed.stderr


def test_importing_the_simulation_loads_nothing_heavy():
    program = (
        "import sys, hapo_ros.sim.rollout;"
        "print([n for n in ('robosuite', 'mujoco', 'torch', 'rclpy') if n in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_what_is_left_out_of_an_image_changes_no_pixel_of_it(seen, monkeypatch):
    """The culled image against everything drawn, all over the workspace."""
    hidden = 0

    seen.reset(3)
    for action in actions(5, 60):
        seen.step(action, images=False)
        culled = {name: seen.render(name) for name in seen.cameras}
        hidden += sum(len(view._outside) for view in seen._renderer._views.values())
        with monkeypatch.context() as patched:
            patched.setattr(_View, "_is_outside", lambda view: slice(0))
            for name, image in culled.items():
                assert np.array_equal(seen.render(name), image)
    assert hidden > 60 * 50


def test_a_simulation_that_nobody_closed_ends_without_a_word():
    program = (
        "from hapo_ros.sim.environment import Simulation\n"
        "from hapo_ros.sim.tasks import get_task\n"
        "kept = Simulation(get_task('Lift'), 48)\n"
        "dropped = Simulation(get_task('Lift'), 48)\n"
        "del dropped\n"
        "kept.render('wrist')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_the_hand_of_robosuite_turned_as_on_import_is_the_pose_that_is_observed(unseen):
    """robomimic's files have the body's orientation; here it is the grip site's."""
    pose = unseen.reset(3).eef_pose
    env = unseen._env
    wxyz = env.sim.data.get_body_xquat(env.robots[0].robot_model.eef_name["right"])
    site = product(np.array(wxyz)[[1, 2, 3, 0]], HAND_TO_SITE)
    assert abs(site @ pose[3:]) == pytest.approx(1.0, abs=1e-9)
