"""Episodes on disk: written once, never overwritten, saved after a crash, read as they happened."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ruamel.yaml import YAML

import hapo_ros
from hapo_ros import labels, topics
from hapo_ros.arbitration.types import (
    Applied,
    Authority,
    Decision,
    PolicyCommand,
    Reason,
    Tick,
)
from hapo_ros.episodes import (
    BadEpisode,
    EpisodeInfo,
    EpisodeReader,
    EpisodeResult,
    EpisodeWriteError,
    EpisodeWriter,
    Observation,
    RecoveryError,
    describe,
    open_episodes,
    recover,
    summary,
    unfinished,
)
from hapo_ros.episodes import messages as m
from hapo_ros.episodes.bag import BagFile
from hapo_ros.episodes.clocks import ClockWatch
from hapo_ros.episodes.contents import checked_info, checked_result
from hapo_ros.episodes.contents import messages as messages_of
from hapo_ros.episodes.tally import Tally
from hapo_ros.episodes.writer import finish_bag, free_episode_id

TYPES = m.bag_types()
START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 50_000_000
NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
P, H, N = labels.POLICY, labels.HUMAN, labels.NONE


def an_info(episode_id="ep1", source="deployment", **changes):
    return EpisodeInfo(
        **{
            "episode_id": episode_id,
            "task": "lift",
            "instruction": "lift the cube",
            "source": source,
            "seed": 7,
            "policy_version": "v1",
            "cameras": {"front": [4, 6]},
            "object_state": ["cube z"],
            "action_space": {"names": NAMES, "control_hz": 20.0},
        }
        | changes
    )


def an_observation(sequence):
    rng = np.random.default_rng(sequence)
    return Observation(
        images={"front": rng.integers(0, 256, (4, 6, 3), np.uint8)},
        joint_positions=rng.normal(size=9),
        eef_pose=rng.normal(size=7),
        object_state=rng.normal(size=1),
    )


def an_action(sequence):
    return np.array([sequence, 0, 0, 0, 0, 0, (-1) ** sequence], np.float32)


def a_decision(episode_id, sequence, label):
    return Decision(
        episode_id=episode_id,
        sequence=sequence,
        action=an_action(sequence),
        requested=an_action(sequence) * 2,
        label=label,
        authority=Authority.POLICY,
        reason=Reason.POLICY_ACTS,
        epoch=1,
        policy_version="v1" if label == P else "",
        limited=True,
    )


def one_tick(info, sequence, applied):
    """(topic, message) of the observation of a tick; applied: of the decision before it."""
    tick = Tick(
        info.episode_id,
        sequence,
        START_NS + sequence * PERIOD_NS,
        applied_sequence=sequence - 1,
        applied=applied if sequence else Applied.NO_DECISION,
        success=sequence > 2,
    )
    observed = m.observation_messages(TYPES, an_observation(sequence), tick, info.object_state)
    return tick.stamp_ns, list(observed.items())


def an_episode(info, live, outcomes=None):
    """(stamp, topic, message) of a whole episode; outcomes: sequence -> Applied, if not applied."""
    for sequence in range(len(live) + 1):
        before = (outcomes or {}).get(sequence - 1, Applied.APPLIED)
        stamp_ns, messages = one_tick(info, sequence, before)
        for topic, message in messages:
            yield stamp_ns, topic, message
        if sequence == len(live):
            return
        if live[sequence] == P and sequence % 2 == 0:
            command = PolicyCommand(
                info.episode_id, sequence, 1, "v1", np.zeros((2, 7)), sequence / 16
            )
            yield stamp_ns, topics.POLICY_ACTION, m.policy_action_message(TYPES, command, stamp_ns)
        decision = a_decision(info.episode_id, sequence, live[sequence])
        message = m.executed_action_message(TYPES, decision, stamp_ns)
        yield stamp_ns, topics.EXECUTED_ACTION, message


def a_writer(root, info, **options):
    recorded = topics.recorded(info.cameras, bool(info.object_state))
    return EpisodeWriter(root, info, recorded, start_ns=START_NS, **options)


def record(root, info=None, live=(P,) * 6, outcomes=None, outcome="success", skip=(), extra=()):
    """Record an episode; skip: (topic, sequence) left out; extra: messages added at its end."""
    info = info or an_info()
    writer = a_writer(root, info)
    for stamp_ns, topic, message in [*an_episode(info, live, outcomes), *extra]:
        if (topic, (stamp_ns - START_NS) // PERIOD_NS) not in skip:
            writer.write_message(topic, message, stamp_ns)
    return writer.finish(writer.result(outcome))


def add_unchecked(path, topic, message):
    """Write the bag anew with one message more, which the writer would not take."""
    reader, kept = EpisodeReader(path), list(messages_of(next(path.glob("*.mcap"))))
    shutil.rmtree(path)
    path.mkdir()
    bag = BagFile(path, path.name)
    for each in dict.fromkeys(message.topic for message in kept):
        bag.add_topic(*each)
    for each in kept[:-1]:
        bag.write(each.topic.name, each.cdr, each.log_ns, each.publish_ns)
    bag.write(topic, m.to_cdr(message, topics.TYPES[topic]), START_NS, START_NS)
    finish_bag(bag, reader.info, reader.result)


def executed(decision, tick=True):
    message = m.executed_action_message(TYPES, decision, START_NS, tick=tick)
    return START_NS, topics.EXECUTED_ACTION, message


def bad(path, **options):
    with pytest.raises(BadEpisode) as caught:
        EpisodeReader(path, **options)
    return caught.value


# Reading what was written


def test_every_step_comes_back_as_it_was_seen_decided_and_applied(tmp_path):
    live = (P, P, N, H, H, P)
    reader = EpisodeReader(record(tmp_path, live=live))
    steps = reader.steps(k=2)
    assert [step.sequence for step in steps] == reader.sequences.tolist() == list(range(6))
    assert [step.live for step in steps] == reader.live.tolist() == list(live)
    assert [step.label for step in steps] == reader.labels(2).tolist() == [1, 0, 3, 2, 2, 1]
    for step in steps:
        seen = an_observation(step.sequence)
        assert step.observation.images.keys() == {"front"}
        assert np.array_equal(step.observation.images["front"], seen.images["front"])
        for name in ("joint_positions", "eef_pose", "object_state"):
            assert getattr(step.observation, name).tobytes() == getattr(seen, name).tobytes()
        assert np.array_equal(step.action, an_action(step.sequence))
        assert step.action.dtype == np.float32
        assert np.array_equal(step.requested, an_action(step.sequence) * 2)
        assert step.stamp_ns == START_NS + step.sequence * PERIOD_NS
        assert step.limited and step.reason == Reason.POLICY_ACTS
    assert [step.policy_version for step in steps] == ["v1", "v1", "", "", "", "v1"]
    confidence = [step.confidence for step in steps]
    assert confidence[:2] == [0, 0] and np.isnan(confidence[2:]).all()
    assert reader.info == an_info()
    assert reader.result == EpisodeResult("success", 6, labels.counts(live))
    assert all(step.observation.images == {} for step in reader.steps(images=False))


def test_changing_k_needs_no_new_bag_and_the_relabelling_stays_in_the_episode(tmp_path):
    reader = EpisodeReader(record(tmp_path, live=(P, P, P, H)))
    assert [reader.labels(k).tolist()[:3] for k in (0, 1, 10)] == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]


def test_a_demonstration_has_label_1_whoever_executed_it(tmp_path):
    reader = EpisodeReader(record(tmp_path, an_info(source="demonstration"), live=(P, H, N, H)))
    assert reader.labels().tolist() == [1, 1, 3, 1]
    about = describe(reader)
    assert (about["intervention_ratio"], about["takeovers"]) == (None, 0)


@pytest.mark.parametrize("outcome", [Applied.LATE_HELD, Applied.REFUSED])
def test_a_decision_that_was_not_applied_never_appears_as_executed(tmp_path, outcome):
    reader = EpisodeReader(record(tmp_path, live=(P, P, P, P), outcomes={2: outcome}))
    step = reader.steps()[2]
    assert (step.live, step.label) == (N, N)
    assert step.action.tolist() == [0, 0, 0, 0, 0, 0, -1]  # the gripper as step 1 left it
    assert reader.result.labels["none"] == 1


def test_the_gripper_of_a_step_that_was_not_applied_is_as_the_ticks_say_or_else_as_before(tmp_path):
    said = {0: 0.5, 4: 0.25, 5: float("nan")}  # tick -> gripper of what drove the robot until it
    held = dict.fromkeys((0, 2, 3, 4), Applied.LATE_HELD)
    with a_writer(tmp_path, an_info()) as writer:
        for stamp_ns, topic, message in an_episode(writer.info, [P] * 6, held):
            sequence = (stamp_ns - START_NS) // PERIOD_NS
            if topic == topics.OBSERVATION_TICK and sequence in said:
                message.applied_action = np.r_[np.zeros(6), said[sequence]].astype(np.float32)
            writer.write_message(topic, message, stamp_ns)
        reader = EpisodeReader(writer.finish(writer.result("success")))
    # Of step 0 and 2 the next tick says nothing, of step 4 no number; 1 and 5 were applied.
    assert [step.action[-1] for step in reader.steps()] == [0.5, -1, -1, 0.25, 0.25, -1]


def test_the_last_decision_counts_only_if_a_tick_says_that_it_was_applied(tmp_path):
    reader = EpisodeReader(record(tmp_path, skip={(topics.OBSERVATION_TICK, 6)}))
    assert reader.live.tolist() == [P] * 5 + [N]


def test_what_the_arbiter_sent_by_its_own_timer_is_no_step(tmp_path):
    late = executed(a_decision("ep1", 6, H), tick=False)
    reader = EpisodeReader(record(tmp_path, extra=[late]))
    assert reader.sequences.tolist() == list(range(6)) and reader.result.steps == 6


def test_two_different_decisions_for_a_step_make_it_nobodys(tmp_path):
    extra = [executed(a_decision("ep1", 2, H)), executed(a_decision("ep1", 4, P))]
    reader = EpisodeReader(record(tmp_path, extra=extra))
    assert reader.live.tolist() == [P, P, N, P, P, P]


def test_messages_of_another_episode_are_not_joined(tmp_path):
    reader = EpisodeReader(record(tmp_path, extra=[executed(a_decision("other", 2, H))]))
    assert reader.live.tolist() == [P] * 6


@pytest.mark.parametrize(
    "topic", [topics.JOINT_STATE, topics.EEF_POSE, topics.OBJECT_STATE, topics.image("front")]
)
def test_a_step_whose_observation_was_lost_is_left_out_but_counts_for_k(tmp_path, topic):
    path = record(tmp_path, live=(P, P, P, H), skip={(topic, 2)})
    reader = EpisodeReader(path)
    assert reader.sequences.tolist() == [0, 1, 3] and reader.lost_steps == 1
    assert reader.result.lost == {topic: 1}
    assert reader.labels(2).tolist() == [1, 0, 2]
    assert len(reader.steps()) == 3


def test_a_lost_decision_makes_a_step_that_nobody_executed(tmp_path):
    reader = EpisodeReader(record(tmp_path, skip={(topics.EXECUTED_ACTION, 2)}))
    assert reader.live.tolist() == [P, P, N, P, P, P]
    assert not reader.steps()[2].requested.size
    assert reader.result.lost == {topics.EXECUTED_ACTION: 1}


# What was lost


def lost_of(messages, info=None):
    """What a tally says is lost, after the messages, whatever their order."""
    info = info or an_info()
    tally = Tally(info)
    for topic, message in messages:
        types = topics.recorded(info.cameras, bool(info.object_state))
        tally.see(topic, m.to_cdr(message, types[topic]))
    return tally.lost()


def test_where_nobody_decided_no_decision_is_lost():
    """The arbiter stopped, was killed or frozen: the robot side held, and says so."""
    late = dict.fromkeys(range(3, 9), Applied.LATE_HELD)
    info, gone = an_info(), {(topics.EXECUTED_ACTION, sequence) for sequence in late}
    kept = [
        (topic, message)
        for stamp_ns, topic, message in an_episode(info, [P] * 9, late)
        if (topic, (stamp_ns - START_NS) // PERIOD_NS) not in gone
    ]
    assert lost_of(kept) == {}
    refused = late | {5: Applied.REFUSED}  # that one did reach the robot side
    ticks = [
        (topic, message)
        for _, topic, message in an_episode(info, [P] * 9, refused)
        if topic != topics.EXECUTED_ACTION
    ]
    decisions = [(t, message) for t, message in kept if t == topics.EXECUTED_ACTION]
    assert lost_of(ticks + decisions) == {topics.EXECUTED_ACTION: 1}


def test_what_is_lost_does_not_depend_on_the_order_of_arrival():
    whole = [(topic, message) for _, topic, message in an_episode(an_info(), [P] * 12)]
    image, decision = topics.image("front"), topics.EXECUTED_ACTION
    without = {(image, 2), (image, 7), (decision, 4), (topics.OBSERVATION_TICK, 9)}
    kept = [
        (topic, message)
        for stamp_ns, topic, message in an_episode(an_info(), [P] * 12)
        if (topic, (stamp_ns - START_NS) // PERIOD_NS) not in without
    ]
    for seed in range(20):
        shuffled = random.Random(seed).sample(kept, len(kept))
        assert lost_of(shuffled) == {image: 2, decision: 1, topics.OBSERVATION_TICK: 1}
        assert lost_of(random.Random(seed).sample(whole * 2, 2 * len(whole))) == {}


def test_a_message_that_two_ticks_name_is_lost_once_or_not_at_all():
    """A camera that is slower than the ticks."""
    info, image = an_info(object_state=[]), topics.image("front")
    picture = m.image_message(TYPES, an_observation(0).images["front"], 5, "camera")
    ticks = [
        (topics.OBSERVATION_TICK, m.tick_message(TYPES, Tick("ep1", s, 10 + s), {image: 5}))
        for s in range(3)
    ]
    assert lost_of(ticks, info) == {image: 1}
    for place in range(4):
        assert lost_of(ticks[:place] + [(image, picture)] + ticks[place:], info) == {}


def test_an_episode_is_whole_when_its_last_tick_is_there_and_nothing_before_it_is_missing():
    tally = Tally(an_info())
    types = topics.recorded({"front": []}, True)
    for _, topic, message in an_episode(an_info(), [P] * 3):
        assert not tally.is_whole(3)
        tally.see(topic, m.to_cdr(message, types[topic]))
    assert tally.is_whole(3) and tally.is_whole(-1) and not tally.is_whole(4)


def test_counting_what_is_lost_takes_little_memory_however_long_the_episode():
    """Of a tick's messages only a few numbers are kept."""
    tally, info = Tally(an_info()), an_info()
    types = topics.recorded(info.cameras, True)
    tracemalloc.start()
    try:
        for _, topic, message in an_episode(info, [P] * 3000):
            tally.see(topic, m.to_cdr(message, types[topic]))
        assert tracemalloc.get_traced_memory()[0] / 3000 < 500  # bytes a tick
    finally:
        tracemalloc.stop()


# The bag itself


def test_the_bag_is_read_by_rosbags_and_by_mcap_with_every_message_counted(tmp_path):
    from mcap.reader import make_reader
    from rosbags.highlevel import AnyReader

    path = record(tmp_path)
    reader = EpisodeReader(path)
    with AnyReader([path]) as bag:
        counts = {each.topic: each.msgcount for each in bag.connections}
        assert counts == reader.counts
        types = {each.topic: each.msgtype for each in bag.connections}
        assert types == topics.recorded(["front"], True) | {"episode/info": "std_msgs/msg/String"}
        decisions = [each for each in bag.connections if each.topic == topics.EXECUTED_ACTION]
        sequences = [
            bag.deserialize(raw, c.msgtype).sequence for c, _, raw in bag.messages(decisions)
        ]
        assert sequences == list(range(6))
    with (path / "ep1_0.mcap").open("rb") as file:
        summary = make_reader(file).get_summary()
        found = {
            channel.topic: summary.statistics.channel_message_counts.get(number, 0)
            for number, channel in summary.channels.items()
        }
        assert found == reader.counts and reader.counts[topics.OBSERVATION_TICK] == 7
        texts = {schema.name: schema.data.decode() for schema in summary.schemas.values()}
    assert "MSG: std_msgs/Header" in texts["hapo_ros/msg/ObservationTick"]
    assert "uint8 LATE_HELD=2" in texts["hapo_ros/msg/ObservationTick"]


def test_metadata_is_that_of_rosbag2_in_jazzy(tmp_path):
    path = record(tmp_path)
    data = YAML(typ="safe").load(path / "metadata.yaml")["rosbag2_bagfile_information"]
    assert (data["version"], data["storage_identifier"]) == (9, "mcap")
    assert data["relative_file_paths"] == ["ep1_0.mcap"] == [data["files"][0]["path"]]
    assert data["starting_time"] == {"nanoseconds_since_epoch": START_NS}
    assert data["duration"] == {"nanoseconds": 6 * PERIOD_NS}
    by_topic = {each["topic_metadata"]["name"]: each for each in data["topics_with_message_count"]}
    assert data["message_count"] == sum(each["message_count"] for each in by_topic.values())
    known = by_topic[topics.EPISODE_INFO]["topic_metadata"]
    assert known["type_description_hash"] == (
        "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"  # ROS 2's own
    )
    assert known["serialization_format"] == "cdr" and known["offered_qos_profiles"] == []
    custom = data["custom_data"]
    assert json.loads(custom["episode_info"]) == an_info().as_dict()
    assert json.loads(custom["episode_result"])["outcome"] == "success"


def test_the_same_episode_gives_the_same_bytes(tmp_path):
    one, two = (EpisodeReader(record(tmp_path / name)) for name in "ab")
    assert one.bag_hash == two.bag_hash and len(one.bag_hash) == 64


@pytest.mark.parametrize("name", ["1e5", "007", "true", "a.b-c_d"])
def test_names_and_settings_that_yaml_or_json_may_twist_stay_what_they_are(tmp_path, name):
    settings = {"limit": float("inf"), "unset": float("nan"), "who": "Zoë: 'x'\n", "n": np.int64(3)}
    path = record(tmp_path, an_info(name, settings=settings, task=name))
    info = EpisodeReader(path).info
    assert (info.episode_id, info.task, path.name) == (name, name, name)
    assert info.settings["who"] == settings["who"] and info.settings["n"] == 3
    data = YAML(typ="safe").load(path / "metadata.yaml")["rosbag2_bagfile_information"]
    assert data["custom_data"]["episode_id"] == name


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\r\n", "\0", "\ufeff"])
def test_words_with_what_ends_a_line_in_yaml_stay_what_they_are(tmp_path, end):
    path = record(tmp_path, an_info(instruction=f"lift{end}it"))
    assert EpisodeReader(path).info.instruction == f"lift{end}it"


def test_a_bag_from_before_metadata_was_ascii_is_read_as_it_was(tmp_path):
    path = record(tmp_path, an_info(instruction="Zoë lifts"))
    edit(path, "\\xEB", "ë")
    assert EpisodeReader(path).info.instruction == "Zoë lifts"


# Refusals and faults while writing


@pytest.mark.parametrize(
    "episode_id", ["", "../up", "a/b", ".hidden", "a b", "a\0b", "-x", "é", "a" * 101, "a\n"]
)
def test_a_hostile_episode_id_is_refused_and_nothing_is_written(tmp_path, episode_id):
    with pytest.raises(EpisodeWriteError, match="episode id"):
        a_writer(tmp_path / "root", an_info(episode_id))
    assert not (tmp_path / "root").exists()


def test_an_existing_episode_is_refused_by_name_and_kept(tmp_path):
    path = record(tmp_path)
    before = EpisodeReader(path).bag_hash
    with pytest.raises(EpisodeWriteError, match=r"ep1 exists already.*nothing was overwritten"):
        a_writer(tmp_path, an_info())
    assert EpisodeReader(path).bag_hash == before


def test_a_running_or_unfinished_episode_is_refused_by_name(tmp_path):
    writer = a_writer(tmp_path, an_info())
    with pytest.raises(EpisodeWriteError, match=r"\.ep1\.partial.*recover"):
        a_writer(tmp_path, an_info())
    assert unfinished(tmp_path) == []
    with pytest.raises(RecoveryError, match="still being written"):
        recover(tmp_path / ".ep1.partial")
    writer.close()
    assert unfinished(tmp_path) == [tmp_path / ".ep1.partial"]
    with pytest.raises(EpisodeWriteError, match="recover"):
        a_writer(tmp_path, an_info())


def test_a_full_or_unwritable_folder_is_refused_before_the_episode(tmp_path):
    with pytest.raises(EpisodeWriteError, match="MiB are needed"):
        a_writer(tmp_path, an_info(), min_free_bytes=1 << 60)
    (tmp_path / "file").touch()
    with pytest.raises(EpisodeWriteError, match="Choose another folder"):
        a_writer(tmp_path / "file", an_info())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_message_type_is_refused_before_the_episode(tmp_path):
    with pytest.raises(EpisodeWriteError, match="nobody/msg/Knows is unknown"):
        EpisodeWriter(tmp_path, an_info(), {"a": "nobody/msg/Knows"}, start_ns=0)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_closes_the_bag_marked_incomplete(tmp_path, monkeypatch):
    info = an_info()
    writer = a_writer(tmp_path, info)
    with pytest.raises(EpisodeWriteError, match="marked incomplete") as caught:
        for stamp_ns, topic, message in an_episode(info, [P] * 60):
            if stamp_ns > START_NS + 1_500_000_000:
                monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
            writer.write_message(topic, message, stamp_ns)
    assert str(tmp_path / "ep1") in str(caught.value) and writer.closed
    error = bad(tmp_path / "ep1")
    assert error.name == "incomplete" and "disk is full" in str(error)
    reader = EpisodeReader(tmp_path / "ep1", accept_recovered=True)
    assert 30 < len(reader.steps()) <= reader.result.steps < 60
    with pytest.raises(EpisodeWriteError, match="is closed"):
        writer.write_message(topic, message, stamp_ns)


def test_a_write_error_keeps_whole_chunks_for_recovery(tmp_path):
    info = an_info()
    writer = a_writer(tmp_path, info)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
        with pytest.raises(EpisodeWriteError, match=r"File too large.*hapo recover"):
            for stamp_ns, topic, message in an_episode(info, [P] * 400):
                writer.write_message(topic, message, stamp_ns)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert writer.closed and not (tmp_path / "ep1").exists()
    reader = EpisodeReader(recover(tmp_path / ".ep1.partial"), accept_recovered=True)
    assert 20 < len(reader.steps()) < 400 and reader.result.recovered


def test_a_discarded_episode_is_kept_and_never_used(tmp_path):
    info = an_info()
    writer = a_writer(tmp_path, info)
    for stamp_ns, topic, message in an_episode(info, [P] * 3):
        writer.write_message(topic, message, stamp_ns)
    path = writer.discard(writer.result("success", note="the cable was loose"))
    readers, skipped = open_episodes(tmp_path)
    assert not readers and skipped[0].name == "discarded" and "cable" in skipped[0].reason
    assert EpisodeReader(path).result.outcome == "discarded"
    assert open_episodes(tmp_path, accept_discarded=True)[0]


# Crashes

CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
import importlib.util
spec = importlib.util.spec_from_file_location("episodes_test", sys.argv[3])
test = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test)
info = test.an_info()
writer = test.a_writer(sys.argv[1], info)
for stamp_ns, topic, message in test.an_episode(info, [test.P] * 100_000):
    writer.write_message(topic, message, stamp_ns)
    if topic == test.topics.EXECUTED_ACTION:
        print(writer.counts[topic], flush=True)
"""


def killed_while_writing(root, steps=47):
    """Start a process that records, SIGKILL it in the midst; returns the steps it had written."""
    package = str(Path(hapo_ros.__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), package, __file__],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in child.stdout:
            if int(line) >= steps:
                break
    finally:
        os.kill(child.pid, signal.SIGKILL)
        written = [int(line) for line in child.stdout]
        child.wait(10)
        child.stdout.close()
    return written[-1] if written else steps


def test_a_killed_recorder_loses_at_most_the_last_chunk(tmp_path):
    written = killed_while_writing(tmp_path)
    partial = tmp_path / ".ep1.partial"
    assert unfinished(tmp_path) == [partial] and not (tmp_path / "ep1").exists()
    before = {path.name: path.read_bytes() for path in partial.iterdir()}
    readers, skipped = open_episodes(tmp_path)
    assert not readers and [each.name for each in skipped] == ["unfinished"]
    path = recover(partial)
    assert path == tmp_path / "ep1" and unfinished(tmp_path) == []
    assert {path.name: path.read_bytes() for path in partial.iterdir()} == before
    assert bad(path).name == "recovered"
    reader = EpisodeReader(path, accept_recovered=True)
    assert reader.info == an_info()
    chunk = 11  # steps in 0.5 s, and the one that ends it
    assert written - chunk <= len(reader.steps()) <= written + chunk
    assert not reader.result.complete and "Recovered from .ep1.partial" in reader.result.note
    assert reader.result.labels == labels.counts(reader.live) and reader.result.lost == {}
    readers, skipped = open_episodes([tmp_path], accept_recovered=True)
    assert len(readers) == 1 and not skipped
    with pytest.raises(RecoveryError, match="exists already"):
        recover(partial)


def left_unfinished(root, skip=()):
    """What a recorder leaves that was killed after 20 steps, all of them flushed."""
    with a_writer(root, an_info()) as writer:
        for stamp_ns, topic, message in an_episode(writer.info, [P] * 20):
            if (topic, (stamp_ns - START_NS) // PERIOD_NS) not in skip:
                writer.write_message(topic, message, stamp_ns)
        # The same once more, of a later time: it flushes what came before.
        writer.write_message(topic, message, stamp_ns + 10 * PERIOD_NS)
    return root / ".ep1.partial"


def test_a_recovered_bag_says_what_was_lost_before_the_crash(tmp_path):
    image = topics.image("front")
    skip = {(image, 3), (image, 5), (topics.EXECUTED_ACTION, 4)}
    reader = EpisodeReader(recover(left_unfinished(tmp_path, skip)), accept_recovered=True)
    assert reader.result.lost == {image: 2, topics.EXECUTED_ACTION: 1}


@pytest.mark.parametrize(("limit", "lossy"), [(0.1, False), (0.09, True), (0.0, True)])
def test_more_lost_than_the_limit_makes_a_bag_lossy_finished_or_recovered(tmp_path, limit, lossy):
    """2 of 20 images, the worst topic; and 1 decision."""
    info, image = an_info(max_lost_fraction=limit), topics.image("front")
    skip = {(image, 3), (image, 5), (topics.EXECUTED_ACTION, 4)}
    finished = record(tmp_path / "finished", info, [P] * 19, skip=skip)
    partial = record(tmp_path / "crashed", info, [P] * 19, skip=skip)
    recovered = recover(partial.rename(tmp_path / "crashed" / ".ep1.partial"))
    for path in (finished, recovered):
        assert EpisodeReader(path, accept_recovered=True).result.lossy == lossy
    assert bad(recovered).name == "recovered"
    readers, skipped = open_episodes(finished)
    assert [each.name for each in skipped] == ["lossy"] * lossy
    if lossy:
        assert f"2 of {image}, 1 of {topics.EXECUTED_ACTION}" in skipped[0].reason
        readers, _ = open_episodes(finished, accept_recovered=True)
    assert describe(readers[0])["lossy"] == lossy
    discarded = record(tmp_path / "discarded", info, [P] * 19, skip=skip, outcome="discarded")
    assert [each.name for each in open_episodes(discarded)[1]] == ["discarded"]


def test_the_wall_clock_was_set_where_it_went_another_way_than_the_steady_one():
    watch = ClockWatch(wall_s=1e9, steady_s=50.0)
    ahead_s = 0.0
    for second in range(1, 200):
        ahead_s += 0.01  # NTP brings it closer: nothing is set
        if second in (60, 120):
            ahead_s += {60: 3600.0, 120: -0.75}[second]
        jump = watch.look(1e9 + second + ahead_s, 50.0 + second)
        assert (jump is not None) == (second in (60, 120))
        if jump:
            assert jump == pytest.approx((second, {60: 3600.01, 120: -0.74}[second]))


def test_a_bag_says_that_the_wall_clock_was_set_and_is_used(tmp_path):
    info = an_info()
    writer = a_writer(tmp_path, info)
    for stamp_ns, topic, message in an_episode(info, [P] * 3):
        writer.write_message(topic, message, stamp_ns)
    writer.note_clock_jump(0.1, -3600.25)
    reader = EpisodeReader(writer.finish(writer.result("success")))
    assert reader.result.clock_jumps == describe(reader)["clock_jumps"] == [[0.1, -3600.25]]


@pytest.mark.parametrize("times", [(-1, 5), (5, -1)])
def test_a_message_that_is_stamped_before_1970_is_refused_and_the_bag_goes_on(tmp_path, times):
    info = an_info()
    writer = a_writer(tmp_path, info)
    for stamp_ns, topic, message in an_episode(info, [P] * 3):
        cdr = m.to_cdr(message, topics.recorded(["front"], True)[topic])
        with pytest.raises(ValueError, match="before 1970"):
            writer.write(topic, cdr, *times)
        writer.write_message(topic, message, stamp_ns)
    reader = EpisodeReader(writer.finish(writer.result("success")))
    assert len(reader.live) == 3 and reader.result.lost == {}


def test_what_the_newest_ticks_name_may_be_under_way():
    image = topics.image("front")
    tally = Tally(an_info())
    for stamp_ns, topic, message in an_episode(an_info(), [P] * 12):
        sequence = (stamp_ns - START_NS) // PERIOD_NS
        if (topic, sequence) not in {(image, 3), (image, 11), (topics.EXECUTED_ACTION, 10)}:
            tally.see(topic, m.to_cdr(message, topics.recorded(["front"], True)[topic]))
    assert tally.lost() == {image: 2, topics.EXECUTED_ACTION: 1}
    assert tally.lost(but_newest=5) == {image: 1} and tally.lost(but_newest=99) == {}


def test_an_episode_gets_a_name_that_is_free(tmp_path):
    assert free_episode_id(tmp_path, "ep1") == "ep1"
    record(tmp_path, an_info("ep1"))
    a_writer(tmp_path, an_info("ep1_2")).close()
    assert free_episode_id(tmp_path, "ep1") == "ep1_3"


def test_a_bag_from_before_there_was_a_limit_is_read_as_it_was(tmp_path):
    path = record(tmp_path, skip={(topics.image("front"), 3)})
    info = {k: v for k, v in an_info().as_dict().items() if k != "max_lost_fraction"}
    result = EpisodeReader(path).result.as_dict()
    del result["lossy"], result["clock_jumps"]
    assert checked_info({"info": info}) == an_info()
    assert checked_result({"result": result}) == EpisodeReader(path).result


def test_a_recovery_that_was_killed_is_begun_anew(tmp_path):
    partial = left_unfinished(tmp_path)
    working = tmp_path / ".ep1.recovering"
    working.mkdir()
    (working / "ep1_0.mcap").write_bytes(b"half of it")
    assert unfinished(tmp_path) == [partial]
    path = recover(partial)
    assert path == tmp_path / "ep1" and not working.exists()
    assert len(EpisodeReader(path, accept_recovered=True).live) == 20


def test_a_recovery_that_still_runs_is_left_alone(tmp_path):
    partial = left_unfinished(tmp_path)
    working = tmp_path / ".ep1.recovering"
    working.mkdir()
    other = BagFile(working, "ep1")
    with pytest.raises(RecoveryError, match="is being recovered already"):
        recover(partial)
    other.abandon()
    assert (working / "ep1_0.mcap").exists() and not (tmp_path / "ep1").exists()
    assert recover(partial).exists()


def test_recovery_of_nothing_says_so_and_leaves_nothing(tmp_path):
    with pytest.raises(RecoveryError, match="holds no MCAP file"):
        recover(tmp_path)
    partial = tmp_path / ".ep2.partial"
    partial.mkdir()
    (partial / "ep2_0.mcap").write_bytes(b"\x89MCAP0\r\n and then nothing")
    with pytest.raises(RecoveryError, match="not even its first episode/info"):
        recover(partial)
    assert [path.name for path in tmp_path.iterdir()] == [".ep2.partial"]


def test_a_truncated_bag_is_recovered_under_another_name(tmp_path):
    path = record(tmp_path, live=(P,) * 40)
    file = path / "ep1_0.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    assert bad(path).name == "truncated"
    rescued = recover(path, outcome="failure")
    assert rescued == tmp_path / "ep1_recovered"
    reader = EpisodeReader(rescued, accept_recovered=True)
    assert 0 < len(reader.steps()) < 40 and reader.result.outcome == "failure"


def damage_chunk(path, number):
    """Flip a bit in the midst of one chunk of the bag; metadata.yaml stays as it is."""
    from mcap.reader import make_reader

    file = next(path.glob("*.mcap"))
    with file.open("rb") as stream:
        chunk = make_reader(stream).get_summary().chunk_indexes[number]
    data = bytearray(file.read_bytes())
    data[chunk.chunk_start_offset + chunk.chunk_length // 2] ^= 4
    file.write_bytes(data)


def record_told(root, outcome):
    """A bag that ended unresolved after the clock was set, with a note."""
    writer = a_writer(root, an_info())
    for stamp_ns, topic, message in an_episode(writer.info, [P] * 30):
        writer.write_message(topic, message, stamp_ns)
    writer.note_clock_jump(0.1, 3.0)
    return writer.finish(writer.result(outcome, unresolved=True, note="The cable was loose."))


def test_recovery_loses_of_damaged_chunks_only_those_and_says_so(tmp_path):
    path = record(tmp_path, live=(P,) * 60)
    for number in (2, 4):  # the first has the first episode/info alone; 10 steps or 11 each
        damage_chunk(path, number)
    assert bad(path).name == "truncated"
    reader = EpisodeReader(recover(path), accept_recovered=True)
    kept = reader.sequences.tolist()
    gaps = np.flatnonzero(np.diff(kept) > 1)
    assert (kept[0], kept[-1], len(gaps)) == (0, 59, 2) and 36 <= len(reader.steps()) <= 40
    assert "2 damaged chunk(s) of it are lost" in reader.result.note
    lost = reader.result.lost[topics.OBSERVATION_TICK]
    assert lost == 61 - reader.counts[topics.OBSERVATION_TICK] >= 20
    assert reader.result.outcome == "success" and not reader.result.complete


def test_recovery_of_a_damaged_chunk_and_a_cut_says_both(tmp_path):
    path = record(tmp_path, live=(P,) * 60)
    damage_chunk(path, 2)
    file = path / "ep1_0.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    result = EpisodeReader(recover(path), accept_recovered=True).result
    assert "1 damaged chunk(s) of it are lost and what followed the last whole" in result.note


def test_without_its_first_chunk_nothing_of_a_bag_can_be_recovered(tmp_path):
    path = record(tmp_path)
    damage_chunk(path, 0)
    with pytest.raises(RecoveryError, match="not even its first episode/info can be read"):
        recover(path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["ep1"]


@pytest.mark.parametrize("said_in", ["the bag", "metadata.yaml"])
def test_recovery_keeps_what_was_said_of_the_episode(tmp_path, said_in):
    """The last tick says success, and neither the bag nor a person does."""
    path = record_told(tmp_path, "discarded")
    if said_in == "the bag":
        without_metadata(path)
    else:
        damage_chunk(path, -1)  # the one that ends with the result
    rescued = recover(path)
    result = EpisodeReader(rescued, accept_recovered=True).result
    assert result.outcome == "discarded" and result.unresolved
    assert result.clock_jumps == [[0.1, 3.0]] and result.note.endswith("The cable was loose.")
    assert [each.name for each in open_episodes(rescued, accept_recovered=True)[1]] == ["discarded"]
    asked = recover(path, tmp_path / "asked", outcome="failure")
    assert EpisodeReader(asked, accept_recovered=True).result.outcome == "failure"


@pytest.mark.parametrize(
    ("old", "new"),
    [("episode_id: ep1", "episode_id: ep2"), ('"discarded"', '"gone"'), ("version: 9", "[")],
)
def test_recovery_believes_no_metadata_that_is_damaged_or_of_another_episode(tmp_path, old, new):
    path = record_told(tmp_path, "discarded")
    damage_chunk(path, -1)
    edit(path, old, new)
    assert EpisodeReader(recover(path), accept_recovered=True).result.outcome == "success"


# Bags that are not what they seem


def edit(path, old, new):
    file = path / "metadata.yaml"
    text = file.read_text("utf8")
    assert old in text
    file.write_text(text.replace(old, new, 1), "utf8")


def as_sqlite(path):
    edit(path, "storage_identifier: mcap", "storage_identifier: sqlite3")


def without_metadata(path):
    (path / "metadata.yaml").unlink()


def without_mcap(path):
    (path / "ep1_0.mcap").unlink()


def flip_a_bit(path):
    data = bytearray((path / "ep1_0.mcap").read_bytes())
    data[len(data) // 8] ^= 4
    (path / "ep1_0.mcap").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (as_sqlite, "format"),
        (without_metadata, "truncated"),
        (without_mcap, "truncated"),
        (flip_a_bit, "truncated"),
        (lambda path: edit(path, "message_count: 7", "message_count: 8"), "edited"),
        (lambda path: edit(path, '"success"', '"failure"'), "edited"),
        (lambda path: edit(path, "custom_data:", "other_data:"), "foreign"),
        (lambda path: edit(path, "version: 9", "version: [9"), "edited"),
        (lambda path: (path / "metadata.yaml").write_text("- 1"), "edited"),
        (shutil.rmtree, "missing"),
    ],
)
def test_a_bag_that_cannot_be_trusted_is_skipped_with_a_named_reason(tmp_path, damage, name):
    good, path = record(tmp_path / "good", an_info("ep2")), record(tmp_path)
    damage(path)
    readers, skipped = open_episodes([good, path])
    assert [reader.path for reader in readers] == [good]
    assert [(each.path, each.name) for each in skipped] == [(path, name)]
    assert str(path) in skipped[0].reason


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ((m.tick_message(TYPES, Tick("ep1", 99, 0), {"a": 1}), "topics", []), "0 topics but 1"),
        (
            (m.state_vector_message(TYPES, ["a", "b"], np.zeros(2), 0), "values", np.zeros(1)),
            "values must be 2 numbers",
        ),
        ((executed(a_decision("ep1", 2**31, P))[2], "limited", False), "beyond any episode"),
        (
            (executed(a_decision("ep1", 99, P))[2], "action", np.full(7, np.nan, np.float32)),
            "is not finite",
        ),
        ((executed(a_decision("ep1", 99, P))[2], "action", np.zeros(3, np.float32)), "in one"),
        (
            (
                m.policy_action_message(
                    TYPES, PolicyCommand("ep1", 99, 0, "v1", np.zeros((2, 7))), 0
                ),
                "horizon",
                3,
            ),
            "14 numbers for a chunk of 3 x 7",
        ),
    ],
)
def test_a_malformed_message_is_not_recorded_and_a_bag_that_has_one_is_refused_as_a_whole(
    tmp_path, extra, sentence
):
    message, name, value = extra
    setattr(message, name, value)
    topic = next(name for name, type_ in topics.TYPES.items() if type_ == message.__msgtype__)
    writer = a_writer(tmp_path / "refused", an_info())
    for stamp_ns, each, sound in an_episode(writer.info, [P] * 6):
        writer.write_message(each, sound, stamp_ns)
    with pytest.raises(ValueError, match=sentence):
        writer.write_message(topic, message, START_NS)
    assert EpisodeReader(writer.finish(writer.result("success"))).live.tolist() == [P] * 6

    path = record(tmp_path)
    add_unchecked(path, topic, message)
    error = bad(path)
    assert error.name == "malformed" and sentence in str(error)


def test_a_bag_whose_observations_differ_in_size_is_malformed(tmp_path):
    """And not an error of whoever stacks them; what no tick names does not matter."""

    def recorded(name, late_ns):
        at_ns = START_NS + 2 * PERIOD_NS + late_ns
        joints = m.joint_state_message(TYPES, np.zeros(3), at_ns)
        state = m.state_vector_message(TYPES, ["cube z", "cube y"], np.zeros(2), at_ns)
        image = m.image_message(TYPES, np.zeros((5, 6, 3), np.uint8), at_ns, "front")
        extra = {topics.JOINT_STATE: joints, topics.OBJECT_STATE: state}
        extra[topics.image("front")] = image
        for i, (topic, message) in enumerate(extra.items()):
            yield topic, record(tmp_path / f"{name}{i}", extra=[(START_NS, topic, message)])

    for _, path in recorded("stray", late_ns=1):
        assert len(EpisodeReader(path).steps()) == 6
    for topic, path in recorded("named", late_ns=0):
        with pytest.raises(BadEpisode, match=f"{topic} differ in") as caught:
            EpisodeReader(path).steps()
        assert caught.value.name == "malformed"


def test_a_bag_without_decisions_or_without_observations_has_no_labels(tmp_path):
    no_decision = {(topics.EXECUTED_ACTION, i) for i in range(9)}
    assert bad(record(tmp_path / "a", skip=no_decision)).name == "no labels"
    no_image = {(topics.image("front"), i) for i in range(9)}
    assert bad(record(tmp_path / "b", skip=no_image)).name == "no labels"


def test_a_bag_of_another_recorder_is_foreign(tmp_path):
    from rosbags.rosbag2 import StoragePlugin, Writer

    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        connection = bag.add_connection("/a", "std_msgs/msg/String", typestore=m.typestore())
        message = m.to_cdr(TYPES.String(data="hello"), "std_msgs/msg/String")
        bag.write(connection, 1, message)
    assert bad(tmp_path / "bag").name == "foreign"


def test_no_damage_to_the_file_gets_past_the_reader_or_crashes_it(tmp_path):
    path = record(tmp_path, live=(P, P, H, P) * 8)
    file, dice = path / "ep1_0.mcap", random.Random(0)
    whole = file.read_bytes()
    before = EpisodeReader(path)
    for _ in range(80):
        data = bytearray(whole)
        if dice.random() < 0.3:
            del data[dice.randrange(len(data)) :]
        for _ in range(dice.randint(1, 4)):
            if data:
                data[dice.randrange(len(data))] = dice.randrange(256)
        file.write_bytes(data)
        try:
            reader = EpisodeReader(path)
        except BadEpisode:
            continue
        assert np.array_equal(reader.labels(), before.labels())
        assert len(reader.steps()) == len(before.live)


# Many bags


def test_the_same_bag_given_twice_is_used_once_and_said(tmp_path):
    path = record(tmp_path / "one")
    shutil.copytree(path, tmp_path / "two" / "copy")
    readers, skipped = open_episodes([tmp_path / "one", tmp_path / "two", path])
    assert [reader.path for reader in readers] == [path]
    assert [each.name for each in skipped] == ["repeated", "repeated"]
    assert str(path) in skipped[0].reason


def test_folders_are_searched_one_level_deep_and_nothing_is_passed_over(tmp_path):
    for number in (2, 1):
        record(tmp_path / "round", an_info(f"ep{number}"))
    (tmp_path / "round" / "notes").mkdir()
    (tmp_path / "empty").mkdir()
    readers, skipped = open_episodes([tmp_path / "round", tmp_path / "empty", tmp_path / "none"])
    assert [reader.info.episode_id for reader in readers] == ["ep1", "ep2"]
    assert [each.name for each in skipped] == ["no bag", "missing"]


def test_describe_and_summary_count_what_is_there(tmp_path):
    record(tmp_path, an_info("ep1"), live=(P, P, H, H, P, N), outcome="failure")
    record(tmp_path, an_info("ep2", "demonstration"), live=(H,) * 5)
    readers, _ = open_episodes(tmp_path)
    about = describe(readers[0], k=1)
    assert about["labels"] == {"undesirable": 1, "policy": 2, "human": 2, "none": 1}
    assert (about["intervention_ratio"], about["takeovers"]) == (0.4, 1)
    assert (about["outcome"], about["steps"], about["duration_s"]) == ("failure", 6, 0.25)
    assert about["policy_versions"] == ["v1"] and about["lost_steps"] == 0
    assert about["messages"][topics.OBSERVATION_TICK] == 7
    whole = summary(readers, k=1)
    assert whole["labels"] == {"undesirable": 1, "policy": 7, "human": 2, "none": 1}
    assert (whole["episodes"], whole["steps"], whole["intervention_ratio"]) == (2, 11, 0.4)
    assert whole["sources"] == {"deployment": 1, "demonstration": 1}
    json.dumps([about, whole])


def test_importing_the_package_loads_no_bag_library():
    code = (
        "import sys, hapo_ros.episodes; "
        "print([name for name in ('rosbags', 'mcap', 'ruamel', 'rclpy') if name in sys.modules])"
    )
    package = str(Path(hapo_ros.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert found.stdout.strip() == "[]"
