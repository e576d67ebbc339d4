"""Episodes without ROS: who decided what, what the bag holds, and the same again from a seed."""

import pickle
from itertools import groupby

import numpy as np
import pytest

from hapo_ros import labels, topics
from hapo_ros.arbitration import Applied, Arbiter, ArbiterConfig, Authority
from hapo_ros.episodes.contents import load
from hapo_ros.episodes.reader import EpisodeReader
from hapo_ros.episodes.types import EpisodeInfo
from hapo_ros.sim.environment import Disturbance, Simulation, action_space
from hapo_ros.sim.operator import OperatorConfig, SimulatedOperator
from hapo_ros.sim.rollout import Campaign, collect, evaluate, run_episode
from hapo_ros.sim.tasks import get_task

LIFT = get_task("Lift")
ALONE = ArbiterConfig(lock_step=True, on_device_lost="continue")
WATCHED = ArbiterConfig(lock_step=True)


class Scripted:
    """A policy in name only: the expert, aiming beside the cube by ``miss_m`` until it holds it."""

    version, confidence = "scripted", 0.75

    def __init__(self, simulation, miss_m=0.0, chunk=1):
        self.simulation, self.miss_m, self.chunk, self.asked = simulation, miss_m, chunk, 0

    def act(self, observation, instruction):
        assert instruction == LIFT.instruction
        self.asked += 1
        state = self.simulation.privileged()
        if not state["grasped"]:
            state["cube_y"] += self.miss_m
        return np.repeat(LIFT.expert().act(state)[None], self.chunk, axis=0)


def info(source="deployment", seed=0, **known) -> EpisodeInfo:
    return EpisodeInfo("an-episode", LIFT.name, LIFT.instruction, source, seed, **known)


@pytest.fixture(scope="module")
def simulation():
    simulation = Simulation(LIFT, cameras=())
    yield simulation
    simulation.close()


def save_untrained(policy_class, folder):
    """A small untrained policy on the object state; returns its folder."""
    torch = pytest.importorskip("torch")
    from hapo_ros.policies import checkpoint
    from hapo_ros.policies.small import Normalisation
    from hapo_ros.policies.tokenizers import Words

    torch.manual_seed(0)
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    config = policy_class.Config({}, len(LIFT.object_state), names, width=32, blocks=1)
    statistics = Normalisation.fit(7, np.zeros((2, 11)), np.zeros((2, len(LIFT.object_state))))
    checkpoint.save(policy_class(config, statistics, Words.fit([LIFT.instruction])), folder, {})
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained policy on the object state."""
    pytest.importorskip("torch")
    from hapo_ros.policies.tiny_vla import TinyVla

    return save_untrained(TinyVla, tmp_path_factory.mktemp("checkpoints") / "untrained")


def test_a_good_policy_succeeds_alone(simulation):
    summary = run_episode(simulation, Arbiter(ALONE), info(), policy=Scripted(simulation))
    assert summary.success
    assert set(summary.live) == {labels.POLICY}
    assert summary.steps == len(summary.live) <= 40
    assert (summary.takeovers, summary.intervention_ratio, summary.path) == (0, 0.0, None)


def test_a_policy_that_never_succeeds_fails_at_the_horizon(simulation):
    policy = Scripted(simulation, miss_m=0.05)
    summary = run_episode(simulation, Arbiter(ALONE), info(), policy=policy)
    assert (summary.outcome, summary.steps) == ("failure", LIFT.horizon)


def test_an_operator_rescues_a_policy_that_misses_and_hands_back(simulation):
    operator = SimulatedOperator(LIFT, OperatorConfig(), seed=0)
    policy = Scripted(simulation, miss_m=0.05)
    summary = run_episode(simulation, Arbiter(WATCHED), info(), policy=policy, operator=operator)
    assert summary.success
    assert summary.takeovers == 1
    assert not summary.unresolved
    onset = summary.live.index(labels.HUMAN)
    assert set(summary.live[:onset]) == {labels.POLICY}
    assert summary.live[-1] == labels.POLICY, "the policy finishes"
    assert summary.live.count(labels.NONE) == 1, "the hold of the hand-over"
    assert (labels.relabel(summary.live)[onset - 10 : onset] == labels.UNDESIRABLE).all()


def test_a_chunk_is_asked_for_only_when_it_is_used_up(simulation):
    policy = Scripted(simulation, chunk=5)
    summary = run_episode(simulation, Arbiter(ALONE), info(), policy=policy)
    assert policy.asked == -(-summary.steps // 5)


@pytest.mark.parametrize(
    ("source", "policy"), [("deployment", False), ("demonstration", False), ("demonstration", True)]
)
def test_an_episode_in_which_nobody_could_act_is_refused(simulation, source, policy):
    acting = Scripted(simulation) if policy else None
    with pytest.raises(ValueError, match="Nobody acts"):
        run_episode(simulation, Arbiter(ALONE), info(source), policy=acting)


def test_a_deployment_without_a_policy_is_refused(simulation):
    operator = SimulatedOperator(LIFT)
    with pytest.raises(ValueError, match="needs a policy"):
        run_episode(simulation, Arbiter(WATCHED), info(), operator=operator)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    """Two demonstrations with both cameras, recorded twice."""
    root = tmp_path_factory.mktemp("bags")
    cameras = {"agentview": [32, 32], "wrist": [32, 32]}
    runs = [
        collect(
            root,
            "Lift",
            [3, 2],
            disturbance=Disturbance(),
            cameras=cameras,
            object_state=True,
            prefix=prefix,
            workers=0,
        )
        for prefix in ("first", "again")
    ]
    return root, runs


def test_demonstrations_come_back_in_the_order_of_the_seeds(demonstrations):
    _, (first, _) = demonstrations
    assert [summary.seed for summary in first] == [3, 2]
    assert [summary.path.name for summary in first] == ["first-000003", "first-000002"]
    assert all(summary.success for summary in first)


def test_a_demonstration_can_be_read_as_one(demonstrations):
    _, (first, _) = demonstrations
    reader = EpisodeReader(first[0].path)
    assert reader.info.source == "demonstration"
    assert reader.info.settings["disturbance"]["sigma"] == 0.45
    assert reader.info.action_space["control_hz"] == 20.0
    assert reader.info.versions["robosuite"]
    assert (reader.result.outcome, reader.result.steps) == ("success", first[0].steps)
    assert reader.lost_steps == 0
    assert reader.live.tolist() == list(first[0].live)
    assert set(reader.labels()[1:]) == {labels.POLICY}
    step = reader.steps()[5]
    assert {name: image.shape for name, image in step.observation.images.items()} == {
        "agentview": (32, 32, 3),
        "wrist": (32, 32, 3),
    }
    assert step.observation.object_state.shape == (10,)


def test_the_last_tick_tells_of_the_last_decision_and_of_the_success(demonstrations):
    _, (first, _) = demonstrations
    contents = load(first[0].path)
    last = contents.ticks[max(contents.ticks)]
    assert last.sequence == first[0].steps
    assert (last.applied, last.applied_sequence) == (Applied.APPLIED, last.sequence - 1)
    assert last.success
    assert last.stamp_ns == last.sequence * 50_000_000
    assert max(contents.decisions) == last.sequence - 1


def test_the_label_is_the_clean_action_and_the_tick_shows_the_disturbed_one(demonstrations):
    _, (first, _) = demonstrations
    contents = load(first[0].path)
    clean = np.array([contents.decisions[i].action for i in range(first[0].steps)])
    applied = np.array([contents.ticks[i + 1].applied_action for i in range(first[0].steps)])
    disturbed = np.abs(clean - applied).max(1) > 1e-6
    assert 0 < disturbed.mean() < 0.7
    assert (clean[:, 6] == applied[:, 6]).all()


def test_the_same_seed_gives_the_same_bag(demonstrations):
    _, (first, again) = demonstrations
    for one, other in zip(first, again, strict=True):
        assert one.live == other.live
        steps = EpisodeReader(one.path).steps(), EpisodeReader(other.path).steps()
        for a, b in zip(*steps, strict=True):
            assert a.stamp_ns == b.stamp_ns
            assert a.action.tobytes() == b.action.tobytes()
            assert a.observation.eef_pose.tobytes() == b.observation.eef_pose.tobytes()
            for camera, image in a.observation.images.items():
                assert image.tobytes() == b.observation.images[camera].tobytes()


def test_an_episode_is_never_recorded_over_another(demonstrations):
    root, _ = demonstrations
    with pytest.raises(Exception, match="exists already"):
        collect(root, "Lift", [3], cameras={}, object_state=True, prefix="first", workers=0)


def test_a_deployment_is_recorded_with_the_policys_answers(checkpoint, tmp_path):
    (summary,) = collect(
        tmp_path,
        "Lift",
        [0],
        checkpoint=checkpoint,
        workers=0,
        operator=OperatorConfig(patience_steps=10),
    )
    reader = EpisodeReader(summary.path)
    assert reader.info.cameras == {}
    assert reader.info.object_state == list(LIFT.object_state)
    assert summary.takeovers >= 1
    steps = reader.steps()
    acted = [step for step in steps if step.live == labels.POLICY]
    assert {step.policy_version for step in acted} == {reader.info.policy_version} != {""}
    assert all(0 < step.confidence <= 1 for step in acted)
    assert labels.UNDESIRABLE in reader.labels()
    assert reader.counts[topics.POLICY_ACTION] >= len(acted)
    assert reader.counts[topics.JOY] == summary.steps
    statuses = reader.counts[topics.AUTHORITY_STATUS]
    assert 2 <= statuses < summary.steps


def test_answers_that_are_no_action_are_holds_that_are_counted_until_a_human_takes_over(tmp_path):
    pytest.importorskip("torch")
    from toy_episodes import save_mute

    mute = save_mute(tmp_path / "mute", action_space()["names"], len(LIFT.object_state))
    (summary,) = collect(
        tmp_path / "bags",
        "Lift",
        [0],
        checkpoint=mute,
        workers=0,
        operator=OperatorConfig(patience_steps=10),
    )
    assert summary.takeovers >= 1
    assert summary.undecodable >= ArbiterConfig().max_policy_failures
    reader = EpisodeReader(summary.path)
    steps = reader.steps()
    onset = summary.live.index(labels.HUMAN)
    assert set(summary.live[:onset]) == {labels.NONE}
    assert all((step.action[:6] == 0).all() and step.action[6] == -1 for step in steps[:onset])
    assert reader.counts[topics.POLICY_ACTION] == summary.undecodable


def test_evaluation_lets_the_policy_act_alone_and_is_repeatable(checkpoint):
    told = []
    results = evaluate(
        checkpoint, "Lift", [5, 2], workers=0, progress=lambda *news: told.append(news)
    )
    assert [result.seed for result in results] == [5, 2]
    assert all(set(result.live) == {labels.POLICY} for result in results)
    assert [(done, total, result.seed) for done, total, result in told] == [(1, 2, 5), (2, 2, 2)]
    assert evaluate(checkpoint, "Lift", [2], workers=0) == results[1:]


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """An untrained flow policy: chunks of 50 actions, of which 25 are executed."""
    from hapo_ros.policies.flow import Flow

    return save_untrained(Flow, tmp_path_factory.mktemp("checkpoints") / "flow")


def test_a_flow_policy_is_asked_once_a_chunk_and_anew_after_each_takeover(flow, tmp_path):
    recorded = []
    for prefix in ("first", "again"):
        (summary,) = collect(
            tmp_path, "Lift", [0], checkpoint=flow, workers=0, prefix=prefix,
            operator=OperatorConfig(patience_steps=10),
        )  # fmt: skip
        recorded.append(EpisodeReader(summary.path))
    assert summary.takeovers >= 1
    runs = [len(list(run)) for live, run in groupby(summary.live) if live == labels.POLICY]
    asked = sum(-(-steps // 25) for steps in runs)
    assert recorded[0].counts[topics.POLICY_ACTION] == asked
    for a, b in zip(*(reader.steps() for reader in recorded), strict=True):
        assert a.action.tobytes() == b.action.tobytes() and a.live == b.live
        if a.live == labels.POLICY:
            assert 0 <= a.confidence == b.confidence <= 1


def test_a_flow_policy_is_evaluated_as_any_other(flow):
    (result,) = evaluate(flow, "Lift", [0], workers=0)
    assert set(result.live) == {labels.POLICY}


def test_a_missing_checkpoint_is_said_before_any_worker_starts(tmp_path):
    with pytest.raises(FileNotFoundError):
        evaluate(tmp_path / "nothing", "Lift", [0], workers=2)


def test_an_unknown_task_is_said_before_any_worker_starts(tmp_path):
    with pytest.raises(ValueError, match="Known tasks: Lift"):
        collect(tmp_path, "Juggle", [0], workers=2)


def test_cameras_of_different_sizes_are_refused(tmp_path):
    cameras = {"agentview": [32, 32], "wrist": [48, 48]}
    with pytest.raises(ValueError, match="one size"):
        collect(tmp_path, "Lift", [0], cameras=cameras, workers=0)


def test_a_campaign_travels_to_another_process():
    campaign = Campaign("Lift", "demonstration", operator=OperatorConfig(), cameras={})
    assert pickle.loads(pickle.dumps(campaign)) == campaign


def test_every_tick_echoes_the_decision_before_it(demonstrations):
    _, (first, _) = demonstrations
    contents = load(first[0].path)
    assert contents.ticks[0].authority is Authority.HOLD
    for sequence, decision in contents.decisions.items():
        following = contents.ticks[sequence + 1]
        assert following.authority is decision.authority
        assert following.epoch == decision.epoch
        assert following.policy_due == decision.policy_due
