"""Lock-step episodes through the ROS graph: the same as without ROS, and the same again."""

import os
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
from ros_graph import Graph, nothing_left_running, save_untrained

from hapo_ros import labels, topics
from hapo_ros.episodes import EpisodeReader
from hapo_ros.episodes.contents import messages
from hapo_ros.episodes.interfaces import from_cdr
from hapo_ros.episodes.parsers import info_from

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)
pytest.importorskip("robosuite")

CAMERAS = ("agentview", "wrist")
SEED = 3
OPERATOR = {"patience_steps": 8, "second_chances": 0}
# What cannot be equal: names that are made from the time of day, and how long inference took.
DIFFERS = {"episode_id", "inference_s"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("policy") / "cameras", cameras=CAMERAS)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, policy, module_ros_domain):
    """Bags of one run of the graph: SEED, and SEED again with the policy's process killed in it."""
    folder = tmp_path_factory.mktemp("graph")
    arguments = {"operator": "simulated", "episodes": 1, "first_seed": SEED}
    parameters = {"simulated_operator": OPERATOR}
    with nothing_left_running(), Graph(folder, policy, parameters, **arguments) as graph:
        first = graph.until_done()[0].name
        spec = next(n for n in graph.deployment.nodes if n.name == "simulated_operator")
        graph.supervisor.run_again(spec)
        graph.until(
            lambda: any(
                event["sequence"] >= 4 and event["episode_id"] not in ("", first)
                for event in graph.authorities
            )
        )
        killed = graph.kill("policy")
        bags = graph.until_done()
        assert graph.supervisor.pid("policy") not in (killed, None)
        assert graph.said == ["policy ended with signal 9. It is started again."]
    return bags


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


def assert_same_messages(one: Path, other: Path) -> None:
    """All but the status, which the node also sends by its own timer, and the policy's answer to
    the last tick, which no one decides: there is one if it was faster than the end."""
    first, second = contents(one), contents(other)
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
    from hapo_ros.policies.checkpoint import version_of

    bag = recorded[0]
    info, result = EpisodeReader(bag).info, EpisodeReader(bag).result
    assert info.episode_id == bag.name and info.task == "Lift"
    assert info.instruction == "lift the cube" and info.source == "deployment"
    assert info.policy_version == version_of(policy)
    assert info.cameras == {name: [84, 84] for name in CAMERAS} and info.object_state == []
    assert info.action_space["names"][-1] == "gripper" and info.action_space["control_hz"] == 20
    assert info.settings["operator"] == "simulated"
    assert info.versions["hapo_ros"] and info.versions["python"]
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
