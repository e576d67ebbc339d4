"""Lock-step episodes through the ROS graph: the same as without ROS, and the same again."""

import os
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ros_graph import Graph, Probe, nothing_left_running, save_untrained
from ruamel.yaml import YAML

from hapo_ros import labels, topics
from hapo_ros.arbitration import Authority
from hapo_ros.episodes import EpisodeReader
from hapo_ros.episodes.contents import messages
from hapo_ros.episodes.interfaces import from_cdr
from hapo_ros.episodes.parsers import info_from

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)
pytest.importorskip("robosuite")

CAMERAS = ("agentview", "wrist")
SEED = 3
# Patient: the policy is killed after its 5th step and while it still has the arm.
OPERATOR = {"patience_steps": 20, "second_chances": 0}
# What cannot be equal: names that are made from the time of day, and how long inference took.
DIFFERS = {"episode_id", "inference_s"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("policy") / "cameras", cameras=CAMERAS)


@pytest.fixture(scope="module")
def run(tmp_path_factory, policy, module_ros_domain):
    """One run of the graph: SEED, and SEED again with the policy's process killed in it.

    bags. privileged: who reads the simulation's true state, by name. waiting: the arbiter's last
    status before a new policy was there.
    """
    folder = tmp_path_factory.mktemp("graph")
    arguments = {"operator": "simulated", "episodes": 1, "first_seed": SEED}
    parameters = {"simulated_operator": OPERATOR}
    with (
        nothing_left_running(),
        Graph(folder, policy, parameters, **arguments) as graph,
        Probe(module_ros_domain) as probe,
    ):
        first = graph.until_done()[0].name
        spec = next(n for n in graph.deployment.nodes if n.name == "simulated_operator")
        graph.supervisor.run_again(spec)

        def policy_acts_again():
            last = graph.authorities[-1]
            return last["episode_id"] not in ("", first) and last["sequence"] >= 4

        graph.until(policy_acts_again)
        killed = graph.kill("policy")
        told = len(graph.events)
        graph.until(lambda: any(event["event"] == "policy" for event in graph.events[told:]))
        since = [event["event"] for event in graph.events[told:]].index("policy")
        before = [e for e in graph.events[: told + since] if e["event"] == "authority"]
        readers = {
            topic: {info.node_name for info in probe.node.get_subscriptions_info_by_topic(topic)}
            for topic in ("/" + topics.OBSERVATION_TICK, "/" + topics.PRIVILEGED_STATE)
        }
        bags = graph.until_done()
        assert graph.supervisor.pid("policy") not in (killed, None)
        assert graph.said == ["policy ended with signal 9. It is started again."]
    ticks, privileged = readers.values()
    assert ticks >= {"policy", "arbiter", "recorder", "simulated_operator"}
    return SimpleNamespace(bags=bags, privileged=privileged, waiting=before[-1])


@pytest.fixture(scope="module")
def recorded(run):
    """The bags of the run, in order."""
    return run.bags


@pytest.fixture(scope="module")
def collected(tmp_path_factory, policy):
    """The bag of the same episode, without ROS."""
    from hapo_ros.sim.operator import OperatorConfig
    from hapo_ros.sim.rollout import collect

    root = tmp_path_factory.mktemp("collected")
    operator = OperatorConfig(**OPERATOR)
    return collect(root, "Lift", [SEED], checkpoint=policy, operator=operator)[0].path


def plain(value):
    """A message as comparable data, without what differs and without stamps."""
    if is_dataclass(value):
        names = {field.name for field in fields(value)} - DIFFERS - {"stamp", "stamps"}
        return {name: plain(getattr(value, name)) for name in sorted(names - {"__msgtype__"})}
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def contents(bag: Path) -> dict[str, list]:
    """Topic -> messages of a bag, as comparable data."""
    found: dict[str, list] = {}
    for message in messages(next(bag.glob("*.mcap"))):
        parsed = from_cdr(message.cdr, message.topic.type_name)
        found.setdefault(message.topic.name, []).append(plain(parsed))
    return found


def assert_same_steps(one: Path, other: Path) -> None:
    first, second = EpisodeReader(one).steps(), EpisodeReader(other).steps()
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for name in ("sequence", "live", "label", "policy_version", "limited", "reason"):
            assert getattr(a, name) == getattr(b, name), (a.sequence, name)
        for name in ("action", "requested", "confidence"):
            assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True), (
                a.sequence,
                name,
            )
        for name in ("joint_positions", "eef_pose"):
            ours, theirs = getattr(a.observation, name), getattr(b.observation, name)
            assert ours.tobytes() == theirs.tobytes(), (a.sequence, name)
        assert a.observation.images.keys() == b.observation.images.keys() == set(CAMERAS)
        for name, image in a.observation.images.items():
            assert image.tobytes() == b.observation.images[name].tobytes(), (a.sequence, name)


def infos(bag: Path) -> list[dict]:
    """What episode/info says of an episode, first and last, without its id."""
    found = [
        info_from(from_cdr(message.cdr, message.topic.type_name))
        for message in messages(next(bag.glob("*.mcap")))
        if message.topic.name == topics.EPISODE_INFO
    ]
    assert found[0]["info"].pop("episode_id") == bag.name
    return found


def assert_same_messages(one: Path, other: Path) -> None:
    """All but the status, which the node also sends by its own timer, and the policy's answer to
    the last tick, which no one decides: there is one if it was faster than the end."""
    first, second = contents(one), contents(other)
    assert infos(one) == infos(other)
    left_out = {topics.AUTHORITY_STATUS, topics.EPISODE_INFO}
    assert first.keys() - left_out == second.keys() - left_out
    for found in (first, second):
        decided = len(found[topics.EXECUTED_ACTION])
        answers = found[topics.POLICY_ACTION]
        found[topics.POLICY_ACTION] = [a for a in answers if a["sequence"] < decided]
    for topic in first.keys() - left_out:
        assert first[topic] == second[topic], topic


def test_the_episodes_hold_what_they_are_meant_to_test(recorded):
    for bag in recorded:
        live = EpisodeReader(bag).live
        assert labels.takeovers(live) >= 1
        assert np.count_nonzero(live == labels.POLICY) > 5
    handed_back = [
        np.any((live[:-1] == labels.NONE) & (live[1:] == labels.POLICY))
        for live in (EpisodeReader(bag).live for bag in recorded)
    ]
    assert all(handed_back)


def test_an_episode_through_the_graph_is_the_one_collected_without_ros(recorded, collected):
    assert_same_steps(recorded[0], collected)
    assert_same_messages(recorded[0], collected)


def test_the_first_episode_of_a_run_has_the_stamps_of_the_one_collected_without_ros(
    recorded, collected
):
    ours, theirs = (
        [step.stamp_ns for step in EpisodeReader(bag).steps(images=False)]
        for bag in (recorded[0], collected)
    )
    assert ours == theirs


def test_the_status_of_the_graph_is_the_one_recorded_without_ros_and_as_often_again(
    recorded, collected
):
    ours, theirs = (contents(bag)[topics.AUTHORITY_STATUS] for bag in (recorded[0], collected))
    without_id = [{k: v for k, v in status.items() if k != "episode_id"} for status in ours]
    for status in theirs:
        status.pop("episode_id", None)
        assert status in without_id


def test_a_lock_step_bag_knows_only_the_time_of_its_ticks(recorded, collected):
    """Of the message and of the bag: start, end and duration are those of the episode."""
    ended_ns = 0
    for bag in (*recorded, collected):
        ended_ns = 0 if bag is collected else ended_ns
        found = list(messages(next(bag.glob("*.mcap"))))
        ticks = sorted({m.publish_ns for m in found if m.topic.name == topics.OBSERVATION_TICK})
        assert np.all(np.diff(ticks) == 50_000_000)
        told = YAML(typ="safe").load(bag / "metadata.yaml")["rosbag2_bagfile_information"]
        start_ns = told["starting_time"]["nanoseconds_since_epoch"]
        # It is opened at the time of the last tick of the episode before.
        assert start_ns == ended_ns and ticks[0] - start_ns in (0, 50_000_000)
        assert start_ns + told["duration"]["nanoseconds"] == ticks[-1]
        for times in ({m.publish_ns for m in found}, {m.log_ns for m in found}):
            assert times <= {start_ns, *ticks}
        ended_ns = ticks[-1]


def test_the_second_policy_took_over_where_the_first_was_killed(run):
    waiting, steps = run.waiting, EpisodeReader(run.bags[1]).steps(images=False)
    assert waiting["episode_id"] == run.bags[1].name
    assert waiting["authority"] == Authority.POLICY
    after = [step for step in steps if step.sequence > waiting["sequence"]]
    assert after and any(step.live == labels.POLICY for step in after)


def test_only_the_simulated_operator_sees_the_true_state_of_the_simulation(run):
    assert run.privileged == {"simulated_operator"}


def test_the_same_seed_again_is_the_same_episode_though_the_policy_was_killed_in_it(recorded):
    first, again = recorded
    assert EpisodeReader(first).info.seed == EpisodeReader(again).info.seed == SEED
    assert_same_steps(first, again)
    assert_same_messages(first, again)


def test_a_bag_holds_one_message_of_everything_a_step(recorded):
    for bag in recorded:
        counts, steps = EpisodeReader(bag).counts, len(EpisodeReader(bag).live)
        for topic in (topics.EXECUTED_ACTION, topics.JOY, topics.TWIST):
            assert counts[topic] == steps, topic
        observed = [topics.OBSERVATION_TICK, topics.JOINT_STATE, topics.EEF_POSE]
        for topic in observed + [topics.image(camera) for camera in CAMERAS]:
            assert counts[topic] == steps + 1, topic
        assert counts[topics.EPISODE_INFO] == 2
        assert 0 < counts[topics.POLICY_ACTION] <= steps + 1
        assert counts[topics.AUTHORITY_STATUS] > 0
        result = EpisodeReader(bag).result
        assert (result.steps, result.lost, result.complete) == (steps, {}, True)
        assert not result.recovered


def test_the_info_of_a_bag_says_what_it_was_made_with(recorded, policy):
    from hapo_ros.policies import checkpoint

    bag = recorded[0]
    info, result = EpisodeReader(bag).info, EpisodeReader(bag).result
    assert info.episode_id == bag.name and info.task == "Lift"
    assert info.instruction == "lift the cube" and info.source == "deployment"
    assert info.policy_version == checkpoint.version_of(policy)
    assert info.cameras == {name: [84, 84] for name in CAMERAS} and info.object_state == []
    assert info.action_space["names"][-1] == "gripper" and info.action_space["control_hz"] == 20
    assert info.normalisation.keys() == checkpoint.read_config(policy)["normalisation"].keys()
    assert info.settings["robot"] == "simulation" and info.settings["arbiter"]["lock_step"]
    operator = info.settings["operator"]
    assert operator["kind"] == "simulated" and operator["patience_steps"] == 20
    assert {"hapo_ros", "python", "robosuite", "mujoco", "numpy", "torch"} <= set(info.versions)
    assert result.outcome in ("success", "failure") and result.note
    steps = EpisodeReader(bag).steps(images=False)
    live = labels.counts([step.live for step in steps])
    assert result.labels == live


def test_a_bag_of_the_graph_is_read_by_rosbags_and_by_mcap(recorded):
    from mcap.reader import make_reader
    from rosbags.highlevel import AnyReader

    bag = recorded[0]
    counts = EpisodeReader(bag).counts
    with AnyReader([bag]) as reader:
        assert {topic: found.msgcount for topic, found in reader.topics.items()} == counts
        seen = dict.fromkeys(counts, 0)
        for connection, _, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            seen[connection.topic] += 1
            if connection.topic == topics.EPISODE_INFO:
                assert info_from(message)
        assert seen == counts
    with next(bag.glob("*.mcap")).open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        summary = reader.get_summary()
        by_topic = {
            summary.channels[channel].topic: count
            for channel, count in summary.statistics.channel_message_counts.items()
        }
        assert by_topic == {topic: count for topic, count in counts.items() if count}
        assert sum(1 for _ in reader.iter_messages()) == sum(counts.values())
        assert {schema.encoding for schema in summary.schemas.values()} == {"ros2msg"}


def test_a_bag_can_be_moved_and_read_elsewhere(recorded, tmp_path):
    copied = shutil.copytree(recorded[0], tmp_path / "elsewhere")
    assert EpisodeReader(copied).bag_hash == EpisodeReader(recorded[0]).bag_hash
    assert os.listdir(copied).count("metadata.yaml") == 1
