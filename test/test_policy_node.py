"""The policy as a process: what it answers, and what it does not."""

import itertools
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ros_graph import ACTION_NAMES, diagnosed, log, save_untrained, wait_for

from hapo_ros import topics
from hapo_ros.arbitration import Tick
from hapo_ros.episodes import (
    EpisodeInfo,
    Observation,
    messages,
)
from hapo_ros.policies.checkpoint import version_of
from hapo_ros.policies.promoted import becoming_current

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("no_node_is_left")
POSE = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])


@pytest.fixture
def served(start, probe, tmp_path):
    """A policy node in an episode that runs, or ``idle`` until ``begin``; ``observe(sequence,
    **changed)`` to show it a tick; its ``answers``."""
    from hapo_ros.nodes.common import ros_types

    checkpoint = save_untrained(tmp_path / "policy", object_state=3)
    types, info = ros_types(), EpisodeInfo("ep", "Lift", "lift the cube", "deployment", seed=1)
    answers = probe.listen(topics.POLICY_ACTION)
    names = (topics.JOINT_STATE, topics.EEF_POSE, topics.OBJECT_STATE, topics.OBSERVATION_TICK)
    publishers = {name: probe.publisher(name) for name in (*names, topics.EPISODE_STATE)}

    def observe(sequence, **spoiled):
        sound = {"joint_positions": np.zeros(9), "eef_pose": POSE, "object_state": np.ones(3)}
        observation = Observation({}, **sound | spoiled)
        tick = Tick("ep", sequence, (sequence + 1) * 50_000_000)
        built = messages.observation_messages(types, observation, tick, ["x", "y", "z"])
        for name, message in built.items():
            publishers[name].publish(message)

    def begin():
        running = messages.episode_state_message(types, time.time_ns(), 2, info)
        publishers[topics.EPISODE_STATE].publish(running)

    def idle(**parameters):
        policy = start("policy", **{"checkpoint": checkpoint} | parameters)
        wait_for(lambda: all(p.get_subscription_count() for p in publishers.values()))
        wait_for(lambda: probe.node.count_publishers(topics.POLICY_ACTION))
        return policy

    def serve(**parameters):
        policy = idle(**parameters)
        begin()
        return policy

    return SimpleNamespace(idle=idle, begin=begin, serve=serve, observe=observe, answers=answers)


def test_a_policy_does_not_answer_an_observation_that_is_not_finite(served):
    policy, observe, answers = served.serve(), served.observe, served.answers
    wait_for(lambda: answers, meanwhile=lambda: observe(0))
    said = (
        ("joint_positions", np.full(9, np.nan), "the joint state is not finite"),
        ("eef_pose", np.where(np.arange(7) == 3, np.inf, POSE), "the end-effector pose is not fin"),
        ("object_state", np.array([0.0, np.nan, 0.0]), "the object state is not finite"),
    )
    for sequence, (name, values, sentence) in enumerate(said, start=1):
        spoiled = partial(observe, sequence, **{name: values})  # it is told of once a second
        wait_for(lambda sentence=sentence: sentence in log(policy), meanwhile=spoiled)
    observe(4)
    wait_for(lambda: answers[-1].sequence == 4)
    assert {answer.sequence for answer in answers} == {0, 4}


def test_an_answer_that_is_no_action_is_sent_to_be_refused_and_counted(served, probe, tmp_path):
    pytest.importorskip("torch")
    from toy_episodes import save_mute

    mute = save_mute(tmp_path / "mute", ACTION_NAMES, object_state=3)
    policy, observe, answers = served.serve(checkpoint=mute), served.observe, served.answers
    wait_for(lambda: answers, meanwhile=lambda: observe(0))
    assert (answers[0].horizon, answers[0].action_dim) == (5, 7)
    assert np.isnan(answers[0].actions).all() and 0 < answers[0].confidence <= 1
    wait_for(lambda: "The answer to tick 0 of ep is no action" in log(policy))
    known = {value.key: value.value for value in diagnosed(probe).values}
    assert int(known["undecodable"]) >= 1 and known["answered"] == "0"


def test_a_policy_that_was_stopped_answers_the_newest_tick_and_none_that_is_over(served, probe):
    policy, observe, answers = served.serve(deadline_s=10.0), served.observe, served.answers
    wait_for(lambda: answers, meanwhile=lambda: observe(0))
    policy.send_signal(signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{policy.pid}/stat").read_text().rsplit(")", 1)[1][1] == "T")
    for sequence in range(1, 21):
        observe(sequence)
    policy.send_signal(signal.SIGCONT)
    wait_for(lambda: answers[-1].sequence == 20)
    # One at most was begun with before the others had come in.
    assert len({answer.sequence for answer in answers}) <= 3
    known = {value.key: value.value for value in diagnosed(probe).values}
    assert int(known["answered"]) >= 2 and float(known["inference_s"]) > 0.0


@pytest.fixture
def slow(tmp_path):
    """A checkpoint that takes much longer to answer than a tick to be published."""
    return save_untrained(tmp_path / "slow", object_state=3, horizon=8, blocks=4, width=128)


def test_a_policy_that_is_overtaken_every_time_hears_everything_else(served, probe, slow):
    policy, observe = served.serve(checkpoint=slow, deadline_s=10.0), served.observe
    sequences = itertools.count()

    def late():
        return int({value.key: value.value for value in diagnosed(probe).values}["late"])

    assert late() == 0
    wait_for(lambda: late() > 1, meanwhile=lambda: observe(next(sequences)))
    policy.send_signal(signal.SIGINT)
    wait_for(lambda: policy.poll() is not None, meanwhile=lambda: observe(next(sequences)))
    assert policy.returncode == 0


def test_a_tick_that_comes_again_while_it_is_answered_overtakes_nothing(served, slow):
    policy = served.serve(checkpoint=slow, deadline_s=10.0)
    wait_for(lambda: served.answers, meanwhile=lambda: served.observe(0))
    assert {answer.sequence for answer in served.answers} == {0}
    assert "too late" not in log(policy)


def test_a_policy_does_not_send_what_comes_after_its_deadline(served):
    policy, observe, answers = served.serve(deadline_s=1e-6), served.observe, served.answers
    for sequence in (0, 1):  # it is told of once a second
        said = f"The answer to tick {sequence} of ep is too late: it took"
        wait_for(lambda said=said: said in log(policy), meanwhile=partial(observe, sequence))
    assert not answers


def test_a_tick_without_what_the_policy_needs_is_not_answered_and_told_of(served):
    policy, observe, answers = served.serve(), served.observe, served.answers
    wait_for(lambda: answers, meanwhile=lambda: observe(0))
    said = "Tick 1 of ep is not answered: it has no observation/object_state for the policy"
    wait_for(lambda: said in log(policy), meanwhile=partial(observe, 1, object_state=None))
    wait_for(lambda: answers[-1].sequence == 2, meanwhile=lambda: observe(2))
    assert {answer.sequence for answer in answers} == {0, 2}


def test_what_was_promoted_and_does_not_fit_the_deployment_is_not_served(served, tmp_path):
    """It was promoted where the deployment was not seen, and the policy node is started again."""
    other = save_untrained(tmp_path / "other", cameras=("agentview",))
    with becoming_current(tmp_path / "checkpoints", other, "a version"):
        pass
    policy = served.serve(promoted=tmp_path / "checkpoints")
    said = f"{other} was promoted and is not served: {other} needs camera agentview 84 x 84"
    assert said in log(policy)
    assert f"Serving {version_of(tmp_path / 'policy')}" in log(policy)
    wait_for(lambda: served.answers, meanwhile=lambda: served.observe(0))


def load(probe, checkpoint):
    """A goal of LoadPolicy that was accepted: its handle."""
    from rclpy.action import ActionClient

    from hapo_ros.action import LoadPolicy

    client = ActionClient(probe.node, LoadPolicy, topics.LOAD_POLICY)
    wait_for(client.server_is_ready)
    sent = client.send_goal_async(LoadPolicy.Goal(checkpoint=str(checkpoint)))
    wait_for(sent.done)
    assert sent.result().accepted
    return sent.result()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_policy_that_is_ended_while_it_loads_another_ends_well(start, probe, slow, how):
    policy = start("policy", checkpoint=slow)
    load(probe, slow)
    policy.send_signal(how)
    assert policy.wait(20) == 0, log(policy)
    assert "terminate" not in log(policy)


def test_a_load_is_given_up_when_an_episode_begins(served, probe, slow):
    from hapo_ros.nodes.policy import _Loading

    policy = served.idle()
    goal = load(probe, slow)
    served.begin()
    result = goal.get_result_async()
    wait_for(result.done)
    assert not result.result().result.ok
    assert "Episode ep is running" in result.result().result.text
    assert log(policy).count("Serving") == 1
    # It ends at its next stage, and is not carried to its end first.
    loading = _Loading(SimpleNamespace(request=SimpleNamespace(checkpoint=str(slow))), "")
    loading._tell("loading")
    loading.give_up("An episode runs.")
    loading.run()
    assert (loading.policy, loading.stages) == (None, ["loading"])
    assert loading.problem == "An episode runs."
