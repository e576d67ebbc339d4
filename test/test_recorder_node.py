"""The recorder as a process: what it refuses, records, survives and recovers."""

import json
import os
import random
import signal
import subprocess

import numpy as np
import pytest
from ros_graph import Probe, called, diagnosed, fill, log, wait_for

from hapo_ros import labels, topics
from hapo_ros.arbitration import Applied, Authority, Reason, Tick
from hapo_ros.episodes import (
    BadEpisode,
    EpisodeReader,
    Observation,
    messages,
    open_episodes,
    recover,
)
from hapo_ros.episodes.contents import Damaged, load
from hapo_ros.episodes.contents import messages as messages_of
from hapo_ros.episodes.interfaces import from_cdr

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("no_node_is_left")
VERSION = "1234"
OF_POLICY = {"version": VERSION, "normalisation": {"proprio_mean": [0.5]}}
POSE = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])


class Deployed:
    """What a deployment publishes, by hand, without the topics in ``but``; and its recorder."""

    def __init__(self, probe, cameras=(), but=()):
        from hapo_ros.nodes.common import ros_types

        self.probe, self.types, self.cameras = probe, ros_types(), cameras
        told = {
            topics.OBSERVATION_INFO: {
                "task": "Lift",
                "instruction": "lift the cube",
                "cameras": {camera: [84, 84] for camera in cameras},
                "object_state": [],
                "action_space": {},
            },
            topics.POLICY_INFO: OF_POLICY,
        }
        types = topics.recorded(cameras, False) | {name: topics.TYPES[name] for name in told}
        self.publishers = {
            name: probe.publisher(name, type_) for name, type_ in types.items() if name not in but
        }
        for name in told.keys() - set(but):
            self.publishers[name].publish(self.types.String(data=json.dumps(told[name])))
        wait_for(lambda: all(p.get_subscription_count() for p in self.publishers.values()))

    def start(self, **fields):
        from hapo_ros.srv import StartEpisode

        fields = {"task": "Lift", "source": "deployment"} | fields
        return called(self.probe, StartEpisode, topics.START_EPISODE, **fields)

    def started(self, episode_id="ep", **fields):
        """Start an episode as soon as the recorder knows enough."""
        wait_for(lambda: self.start(episode_id=episode_id, **fields).ok)

    def observe(self, sequence, applied=Applied.APPLIED, without=(), episode_id="ep"):
        """A tick, what belongs to it but ``without``, and what became of the decision before."""
        images = {camera: np.zeros((84, 84, 3), np.uint8) for camera in self.cameras}
        applied = applied if sequence else Applied.NO_DECISION
        stamp_ns = (sequence + 1) * 50_000_000
        tick = Tick(episode_id, sequence, stamp_ns, sequence - 1, applied)
        observation = Observation(images, np.zeros(9), POSE)
        for name, message in messages.observation_messages(self.types, observation, tick).items():
            if name not in without:
                self.publishers[name].publish(message)

    def decide(self, sequence, **known):
        self.publishers[topics.EXECUTED_ACTION].publish(decision_message(sequence, **known))

    def report(self, authority, reason, **known):
        """The arbiter's status."""
        message = messages.authority_status_message(self.types, 0, authority, reason, **known)
        self.publishers[topics.AUTHORITY_STATUS].publish(message)

    def end(self, last_sequence=-1, episode_id="ep"):
        from hapo_ros.srv import EndEpisode

        ended = called(
            self.probe,
            EndEpisode,
            topics.END_EPISODE,
            episode_id=episode_id,
            outcome="success",
            last_sequence=last_sequence,
        )
        assert ended.ok, ended.text
        return ended.bag

    def discard(self, episode_id="ep"):
        from hapo_ros.srv import DiscardEpisode

        assert called(self.probe, DiscardEpisode, topics.DISCARD_EPISODE, episode_id=episode_id).ok


@pytest.fixture
def recorder(start, tmp_path):
    """A recorder without cameras, in real time."""
    return start("recorder", root=tmp_path / "bags", cameras="['']", lock_step="false")


def test_an_episode_without_one_of_its_cameras_is_refused_and_the_topic_named(
    start, probe, tmp_path
):
    start("recorder", root=tmp_path / "bags", cameras="[agentview,wrist]")
    silent = topics.image("wrist")
    deployed = Deployed(probe, ("agentview", "wrist"), but=[silent])
    replies = []

    def only_one_is_missing():
        replies.append(deployed.start())
        return replies[-1].text.count("observation/") == 1

    wait_for(only_one_is_missing)
    assert not replies[-1].ok and f"No one publishes {silent}." in replies[-1].text
    assert not list((tmp_path / "bags").iterdir())
    probe.publisher(silent, "sensor_msgs/msg/Image")
    deployed.started()


def test_a_subscription_asks_for_what_all_publishers_offer_and_for_no_more():
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

    from hapo_ros.nodes.offered import adapted

    best_effort, reliable = ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE
    volatile, latched = DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL

    def chosen(wanted, *offered):
        profiles = [QoSProfile(depth=1, reliability=r, durability=d) for r, d in offered]
        qos = adapted(QoSProfile(depth=7, reliability=wanted[0], durability=wanted[1]), profiles)
        assert qos.depth == 7
        return qos.reliability, qos.durability

    most = (reliable, latched)
    assert chosen(most) == chosen(most, most) == chosen(most, most, most) == most
    assert chosen(most, most, (best_effort, latched)) == (best_effort, latched)
    assert chosen(most, (reliable, volatile), most) == (reliable, volatile)
    assert chosen(most, (reliable, volatile), (best_effort, latched)) == (best_effort, volatile)
    assert chosen((best_effort, volatile), most) == (best_effort, volatile)  # no more than wanted


def test_topics_offered_with_less_than_was_asked_for_are_recorded_and_of_another_type_refused(
    start, probe, tmp_path
):
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image
    from std_msgs.msg import String

    start("recorder", root=tmp_path / "bags", cameras="[agentview]", max_lost_fraction=1.0)
    image, status = topics.image("agentview"), topics.AUTHORITY_STATUS
    deployed = Deployed(probe, ("agentview",), but=[image, status])
    with Probe(probe.context.get_domain_id(), "stranger") as stranger:
        stranger.node.create_publisher(String, image, 10)
        refusal = f"/stranger publishes {image} as std_msgs/msg/String, not as sensor_msgs/msg/"
        wait_for(lambda: refusal in deployed.start().text)
    assert not list((tmp_path / "bags").iterdir())

    of_a_driver = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    offered = {image: (Image, of_a_driver), status: (deployed.types.AuthorityStatus, 10)}
    for topic, (type_, qos) in offered.items():
        deployed.publishers[topic] = probe.node.create_publisher(type_, topic, qos)
    wait_for(lambda: all(deployed.publishers[name].get_subscription_count() for name in offered))
    deployed.started()
    for sequence in range(20):
        deployed.observe(sequence)
        deployed.decide(sequence)
        deployed.report(Authority.POLICY, Reason.POLICY_ACTS)
    counts = load(deployed.end()).counts
    assert counts[image] and counts[status] and counts[topics.OBSERVATION_TICK]


def test_a_full_disk_refuses_an_episode(start, probe, tmp_path):
    start("recorder", root=tmp_path / "bags", cameras="['']", min_free_mib=1 << 20)
    deployed = Deployed(probe)
    wait_for(lambda: "MiB are needed" in deployed.start().text)
    assert not list((tmp_path / "bags").iterdir())


def test_a_deployment_is_recorded_once_its_policy_has_said_which_it_is(recorder, probe, tmp_path):
    deployed = Deployed(probe, but=[topics.POLICY_INFO])
    wait_for(lambda: "No one publishes policy/info." in deployed.start().text)
    deployed.started("shown", source="demonstration")  # which needs none
    deployed.discard("shown")
    told = deployed.types.String(data=json.dumps(OF_POLICY))
    probe.publisher(topics.POLICY_INFO).publish(told)
    deployed.started("acted")
    deployed.discard("acted")
    shown, acted = (load(tmp_path / "bags" / name).info for name in ("shown", "acted"))
    assert (shown.policy_version, shown.normalisation) == ("", {})
    assert acted.policy_version == VERSION
    assert acted.normalisation == OF_POLICY["normalisation"]


def test_a_seed_that_no_simulation_takes_is_refused(recorder, probe, tmp_path):
    deployed = Deployed(probe)
    wait_for(lambda: "seed must be 0 or more, not -1" in deployed.start(seed=-1).text)
    assert not list((tmp_path / "bags").iterdir())
    deployed.started(seed=0)


def test_an_episode_is_of_the_deployments_task_and_of_no_other(recorder, probe, tmp_path):
    deployed = Deployed(probe)
    deployed.started("own", task="")
    deployed.discard("own")
    assert load(tmp_path / "bags" / "own").info.task == "Lift"
    text = deployed.start(task="Juggle").text
    assert "is of task Lift, not Juggle" in text and "Nothing is recorded" in text
    assert [bag.name for bag in (tmp_path / "bags").iterdir()] == ["own"]


def test_no_episode_is_recorded_in_which_a_fault_would_keep_everyone_from_acting(recorder, probe):
    deployed = Deployed(probe)
    deployed.started()
    deployed.discard()
    deployed.report(Authority.FAULT, Reason.ESTOPPED)
    replies = []

    def refused():
        """Until the status has come; one that is sooner is taken back."""
        replies.append(deployed.start(episode_id=f"ep{len(replies)}"))
        if replies[-1].ok:
            deployed.discard(replies[-1].episode_id)
        return not replies[-1].ok

    wait_for(refused)
    text = replies[-1].text
    assert "The arbiter is in FAULT" in text and Reason.ESTOPPED.sentence in text
    assert "Clear the fault" in text
    deployed.report(Authority.HOLD, Reason.FAULT_CLEARED)
    deployed.started("after")


def test_a_malformed_message_ends_neither_the_recorder_nor_the_episode_nor_is_it_recorded(
    recorder, probe
):
    deployed = Deployed(probe)
    deployed.started("before")  # the recorder knows robot side and policy
    deployed.discard("before")
    for topic in (topics.OBSERVATION_INFO, topics.POLICY_INFO):
        stranger = probe.publisher(topic)
        wait_for(stranger.get_subscription_count)
        for text in ("{", "[1]", '{"task": "Lift", "version": 3}'):
            stranger.publish(deployed.types.String(data=text))
        wait_for(lambda topic=topic: f"A message on {topic} is malformed" in log(recorder))
    deployed.started()
    deployed.observe(0)
    for sequence, name in ((1, "topics"), (1, "applied"), (2**32 - 1, "topics")):
        tick = messages.tick_message(deployed.types, Tick("ep", sequence, 2**62), {"a": 1})
        setattr(tick, name, [] if name == "topics" else 9)
        deployed.publishers[topics.OBSERVATION_TICK].publish(tick)
    joints = messages.joint_state_message(deployed.types, np.zeros(9), -1_000_000_000)
    deployed.publishers[topics.JOINT_STATE].publish(joints)
    deployed.decide(0, x=float("nan"))
    deployed.decide(0)
    deployed.observe(1)
    reader = EpisodeReader(deployed.end(last_sequence=1))
    assert reader.live.tolist() == [labels.POLICY] and reader.result.lost == {}
    assert reader.info.task == "Lift" and reader.info.policy_version == VERSION
    for topic in (topics.OBSERVATION_TICK, topics.JOINT_STATE):
        assert f"A message on {topic} is malformed" in log(recorder)


def test_where_nobody_decides_any_more_nothing_is_lost_and_the_end_does_not_wait(recorder, probe):
    deployed = Deployed(probe)
    deployed.started()
    for sequence in range(20):  # the arbiter decides up to 4, then it is gone
        deployed.observe(sequence, Applied.APPLIED if sequence <= 5 else Applied.LATE_HELD)
        if sequence < 5:
            deployed.decide(sequence)
    deployed.decide(7)  # this one came too late
    assert EpisodeReader(deployed.end(last_sequence=19)).result.lost == {}


def test_an_episode_that_misses_an_image_counts_it_is_marked_lossy_and_closes_in_time(
    start, probe, tmp_path
):
    options = {"cameras": "[agentview]", "lock_step": "false"}
    recorder = start("recorder", root=tmp_path / "bags", **options)
    deployed, image = Deployed(probe, ("agentview",)), topics.image("agentview")
    deployed.started()
    deployed.observe(150, episode_id="the one before")  # its last, late: not of this episode
    for sequence in range(4):
        deployed.observe(sequence, without=[image] if sequence == 2 else [])
        if sequence < 3:
            deployed.decide(sequence)
            deployed.decide(sequence)  # sent again
    deployed.decide(1, x=-0.5)  # two arbiters, of two minds
    bag = deployed.end(last_sequence=3)
    with pytest.raises(BadEpisode, match="Too much was lost") as refused:
        EpisodeReader(bag)
    assert refused.value.name == "lossy" and f"(1 of {image})" in str(refused.value)
    assert f"Recorded in {bag}. It is marked lossy" in log(recorder)
    reader = EpisodeReader(bag, accept_recovered=True)
    assert reader.result.lost == {image: 1} and reader.lost_steps == 1
    assert reader.counts[topics.EXECUTED_ACTION] == 4
    assert reader.counts[topics.OBSERVATION_TICK] == 4
    assert dict(zip(reader.sequences.tolist(), reader.live.tolist(), strict=True)) == {
        0: labels.POLICY,
        1: labels.NONE,  # ambiguous
    }


def test_a_recorder_says_on_diagnostics_how_it_is(recorder, probe):
    from diagnostic_msgs.msg import DiagnosticStatus

    def says(level, **known):
        status = diagnosed(probe)
        values = {value.key: value.value for value in status.values}
        return status.level == level and known.items() <= values.items()

    deployed = Deployed(probe)
    wait_for(lambda: says(DiagnosticStatus.OK, state="IDLE", episode="", messages="0"))
    assert int({value.key: value.value for value in diagnosed(probe).values}["free_mib"]) > 0
    deployed.started()
    deployed.report(Authority.POLICY, Reason.POLICY_ACTS, episode_id="ep")
    deployed.decide(0, x=float("nan"))
    for sequence in range(40):
        deployed.observe(sequence, without=[topics.JOINT_STATE] if sequence == 3 else [])
        deployed.decide(sequence)
    lost = f"1 of {topics.JOINT_STATE}"
    wait_for(lambda: says(DiagnosticStatus.WARN, episode="ep", lost=lost, malformed="1"))
    deployed.end(last_sequence=39)
    deployed.started("next")
    wait_for(lambda: says(DiagnosticStatus.OK, state="RUNNING", episode="next", lost=""))


def test_an_arbiter_that_takes_no_part_in_the_episode_is_told(recorder, probe):
    """It may not hear: a message that got lost, a topic that was remapped for it alone."""
    from diagnostic_msgs.msg import DiagnosticStatus

    deployed = Deployed(probe)
    deployed.report(Authority.HOLD, Reason.NO_EPISODE)
    deployed.started()
    wait_for(lambda: diagnosed(probe).level == DiagnosticStatus.ERROR)
    assert "The arbiter takes no part in episode ep" in diagnosed(probe).message
    deployed.report(Authority.POLICY, Reason.POLICY_ACTS, episode_id="ep")
    wait_for(lambda: diagnosed(probe).level == DiagnosticStatus.OK)


def test_signals_that_come_while_a_bag_is_closed_leave_it_closed_and_incomplete(
    recorder, probe, tmp_path
):
    deployed = Deployed(probe)
    deployed.started()
    bags, sequence = tmp_path / "bags", iter(range(100_000))

    def go_on():
        number = next(sequence)
        deployed.observe(number)
        deployed.decide(number)

    def again():
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            recorder.send_signal(number)

    wait_for(lambda: newest(topics.EXECUTED_ACTION, bags / ".ep.partial") > 0, go_on)
    wait_for(lambda: recorder.poll() is not None, again)  # before, during and after
    assert recorder.returncode == 0
    reader = EpisodeReader(bags / "ep", accept_recovered=True)
    assert not reader.result.complete and len(reader.live) > 0


def test_a_recorder_that_was_killed_says_that_nothing_is_recorded_while_it_recovers(
    start, probe, tmp_path
):
    from hapo_ros.msg import EpisodeState
    from hapo_ros.srv import StartEpisode

    states = probe.listen(topics.EPISODE_STATE)
    partial = tmp_path / "bags" / ".ep.partial"
    partial.mkdir(parents=True)
    waiting = partial / "ep_0.mcap"
    os.mkfifo(waiting)  # who opens it to read waits for who opens it to write
    recorder = start("recorder", root=tmp_path / "bags", cameras="['']")
    wait_for(lambda: [state for state in states if state.state == EpisodeState.IDLE])
    refused = called(probe, StartEpisode, topics.START_EPISODE, source="deployment")
    assert not refused.ok and "being recovered" in refused.text
    waiting = waiting.rename(tmp_path / "pipe")
    end = os.open(waiting, os.O_RDWR)
    wait_for(lambda: "holds no MCAP file" in log(recorder))
    os.close(end)


JUMPING = """
import sys, time
from pathlib import Path

real, is_set = time.time, Path(__file__).with_name("clock is set")
time.time = lambda: real() + 3600.0 * is_set.exists()

from hapo_ros.nodes.recorder import main

sys.exit(main())
"""


def test_a_wall_clock_that_is_set_is_noted_in_the_bag_and_changes_nothing_else(
    start, probe, tmp_path
):
    script = tmp_path / "recorder_with_a_clock.py"
    script.write_text(JUMPING)
    recorder = start(script, root=tmp_path / "bags", cameras="['']", lock_step="false")
    deployed = Deployed(probe)
    deployed.started()
    deployed.observe(0)
    deployed.decide(0)
    (tmp_path / "clock is set").touch()
    wait_for(lambda: "The wall clock was set by +3600.0 s" in log(recorder))
    deployed.observe(1)
    reader = EpisodeReader(deployed.end(last_sequence=1))
    ((after_s, jump_s),) = reader.result.clock_jumps
    assert after_s > 0 and jump_s == pytest.approx(3600.0, abs=1.0)
    assert reader.result.complete and reader.live.tolist() == [labels.POLICY]


def newest(topic, bag) -> int:
    """Sequence of the last message of a topic that is on the disk, -1 if there is none."""
    sequence = -1
    try:
        for message in messages_of(next(bag.glob("*.mcap"))):
            if message.topic.name == topic:
                sequence = from_cdr(message.cdr, message.topic.type_name).sequence
    except Damaged:
        return sequence  # it is being written
    return sequence


def contents_of(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_recorders_killed_at_20_moments_lose_a_second_at_most_and_harm_nothing_finished(
    start, tmp_path, ros_domain, monkeypatch
):
    """Two at a time, each restarted on its folder: one starts while the other one records.

    Every restart has a namespace of its own: a killed node stays in the graph for a while.
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # for the locks of the nodes' names
    dice, second = random.Random(21), 20

    def begin(lane, number):
        return start(
            "recorder", "-r", f"__ns:=/{lane}{number}", root=tmp_path / lane, cameras="['']"
        )

    def check_recovered(bag, sent):
        contents = load(bag)
        assert contents.result.recovered and not contents.result.complete
        ticks = sorted(contents.ticks)
        assert ticks == list(range(len(ticks))) and sent - len(ticks) <= second

    running = {lane: begin(lane, 0) for lane in "ab"}
    finished, sent = {"a": {}, "b": {}}, {}
    for number in range(11):
        for lane in "ab":
            root, name = tmp_path / lane, f"ep{number}"
            with Probe(ros_domain, namespace=f"{lane}{number}") as probe:
                deployed = Deployed(probe)  # the recorder is there
                if number == 0:
                    deployed.started("whole")
                    record(deployed, root / ".whole.partial", "whole", 3, ahead=second)
                    deployed.end(2, "whole")
                else:
                    left = root / f"ep{number - 1}"
                    wait_for(left.exists)
                    check_recovered(left, sent[lane])
                    assert finished[lane].items() <= contents_of(root).items()
                if number == 10:
                    continue
                finished[lane] = contents_of(root)
                deployed.started(name)
                sent[lane] = dice.randrange(second, 3 * second)
                record(deployed, root / f".{name}.partial", name, sent[lane], ahead=second)
                running[lane].kill()
                running[lane].wait(10)
            running[lane] = begin(lane, number + 1)
    for lane in "ab":
        used, skipped = open_episodes(tmp_path / lane)
        assert [reader.path.name for reader in used] == ["whole"]
        assert [each.name for each in skipped] == ["recovered"] * 10


def record(deployed, partial, episode_id, count, ahead):
    """Send ticks and decisions, never more than ``ahead`` ticks before what is on the disk."""
    written = -1

    def kept_up():
        nonlocal written
        if written < sequence - ahead:
            written = newest(topics.OBSERVATION_TICK, partial)
        return written >= sequence - ahead

    for sequence in range(count):
        wait_for(kept_up)
        deployed.observe(sequence, episode_id=episode_id)
        deployed.decide(sequence, episode_id=episode_id)


def test_a_disk_that_fills_up_or_is_read_only_ends_a_recording_and_room_allows_the_next(
    small_disk, start, probe
):
    from diagnostic_msgs.msg import DiagnosticStatus

    from hapo_ros.msg import EpisodeState

    start("recorder", root=small_disk / "bags", cameras="['']", min_free_mib=32)
    deployed, states = Deployed(probe), probe.listen(topics.EPISODE_STATE)

    def record_until_failed(name, **left) -> str:
        sequence = iter(range(100_000))

        def go_on():
            number = next(sequence)
            deployed.observe(number, episode_id=name)
            deployed.decide(number, episode_id=name)

        deployed.started(name)
        partial = small_disk / "bags" / f".{name}.partial"
        wait_for(lambda: newest(topics.EXECUTED_ACTION, partial) > 10, go_on)
        fill(small_disk, **left)
        told = (EpisodeState.FAILED, name)
        wait_for(lambda: (states[-1].state, states[-1].episode_id) == told, go_on)
        return states[-1].text

    def refused(name) -> str:
        reply = deployed.start(episode_id=name)
        assert not reply.ok and not list((small_disk / "bags").glob(f"*{name}*"))
        return reply.text

    # Almost full: there is room to close the bag.
    said = record_until_failed("closed", left_mib=8)
    assert "the disk is full" in said and "Closed as far as it got, marked incomplete" in said
    with pytest.raises(BadEpisode, match="Recording ended early") as error:
        EpisodeReader(small_disk / "bags" / "closed")
    assert error.value.name == "incomplete"
    assert len(EpisodeReader(small_disk / "bags" / "closed", accept_recovered=True).live) > 10
    wait_for(lambda: diagnosed(probe).level == DiagnosticStatus.ERROR)
    assert "the disk is full" in diagnosed(probe).message
    assert "MiB free and 32 MiB are needed. Not recorded. Free some space" in refused("never")
    (small_disk / "full").unlink()

    # Full to the last byte: what is there is left for `hapo recover`.
    said = record_until_failed("left")
    assert "No space left on device" in said and "Make room, then run `hapo recover`" in said
    assert "MiB are needed" in refused("never")
    (small_disk / "full").unlink()
    recovered = recover(small_disk / "bags" / ".left.partial")
    assert len(EpisodeReader(recovered, accept_recovered=True).live) > 5

    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "Read-only file system. Not recorded. Choose another folder." in refused("never")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)

    deployed.started()
    deployed.observe(0)
    deployed.decide(0)
    deployed.observe(1)
    assert EpisodeReader(deployed.end(last_sequence=1)).result.complete
    wait_for(lambda: diagnosed(probe).level == DiagnosticStatus.OK)


def decision_message(sequence: int, x: float = 0.5, episode_id: str = "ep"):
    from hapo_ros.arbitration import Decision
    from hapo_ros.nodes.common import ros_types

    action = np.array([x, 0, 0, 0, 0, 0, -1], np.float32)
    policy = (labels.POLICY, Authority.POLICY, Reason.POLICY_ACTS)
    decision = Decision(
        episode_id, sequence, action, action, *policy, epoch=0, policy_version=VERSION
    )
    return messages.executed_action_message(ros_types(), decision, (sequence + 1) * 50_000_000)
