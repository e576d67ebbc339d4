"""The nodes one at a time, as processes: how they start, refuse, decide and end."""

import ast
import json
import os
import random
import shutil
import signal
import subprocess
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ros_graph import Probe, nothing_left_running, save_untrained, start_node, wait_for

import hapo_ros
from hapo_ros import labels, topics
from hapo_ros.arbitration import Applied, Authority, Event, PolicyCommand, Reason, Tick
from hapo_ros.episodes import (
    BadEpisode,
    EpisodeInfo,
    EpisodeReader,
    Observation,
    messages,
    open_episodes,
    recover,
)
from hapo_ros.episodes.contents import Damaged, load
from hapo_ros.episodes.contents import messages as messages_of
from hapo_ros.episodes.interfaces import OWN_PACKAGE, bag_types, from_cdr, interface_folder, to_cdr
from hapo_ros.parameters import PARAMETERS
from hapo_ros.restarts import RUN_ENDS

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)

CHECKOUT = Path(__file__).resolve().parents[1]
NODES = sorted(path.name for path in (CHECKOUT / "scripts" / "nodes").iterdir())
VERSION = "1234"


@pytest.fixture(autouse=True)
def no_node_is_left():
    with nothing_left_running():
        yield


@pytest.fixture
def probe(ros_domain):
    with Probe(ros_domain) as probe:
        yield probe


@pytest.fixture
def start(tmp_path, ros_domain):
    """Starts nodes; they have ended well when the test ends, unless it ended them itself."""
    started = []

    def start(name, *ros_arguments, **parameters):
        log = tmp_path / f"{name}-{len(started)}.log"
        process = start_node(name, log, *ros_arguments, **parameters)
        process.log = log
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(20)
            assert process.returncode == 0, process.log.read_text()
        assert "Traceback" not in process.log.read_text(), process.log.read_text()


def log(process) -> str:
    """What a node has written so far."""
    return process.log.read_text()


# Starting and ending


@pytest.mark.parametrize(
    ("node", "parameters", "said"),
    [
        ("arbiter", {"policy_deadline_s": 9.0}, "policy_deadline_s"),
        ("arbiter", {"policy_deadline_s": 1}, "policy_deadline_s"),
        ("arbiter", {"handback": "sometimes"}, "handback must be one of button, release, deadman"),
        ("arbiter", {"release_threshold": 0.5}, "release_threshold < takeover_threshold"),
        ("arbiter", {"gripper_button": 1}, "two buttons have the same number"),
        ("recorder", {"min_free_mib": -1}, "min_free_mib"),
        ("recorder", {"settings_json": "'{'"}, "settings_json is not JSON"),
        ("recorder", {"root": "/proc/nowhere"}, "cannot be used for episodes"),
        ("robosuite_bridge", {"task": "Juggle"}, "There is no task 'Juggle'"),
        ("robosuite_bridge", {"cameras": "[behind]"}, "has no camera behind"),
        ("simulated_operator", {"source": "hearsay"}, "source must be one of"),
        ("policy", {"checkpoint": "/nowhere"}, "/nowhere does not exist"),
        ("policy", {}, "The policy does not start"),
        ("optimizer", {"niceness": 99}, "niceness"),
    ],
)
def test_what_cannot_be_used_stops_a_node_at_its_start_with_a_sentence(
    start, tmp_path, monkeypatch, node, parameters, said
):
    if node == "robosuite_bridge":
        pytest.importorskip("robosuite")
    monkeypatch.chdir(tmp_path)
    process = start(node, **parameters)
    assert process.wait(60) == 1
    log = process.log.read_text()
    assert said in log and log.count("\n") <= 3, log


def test_a_parameter_file_that_is_no_yaml_stops_a_node_at_its_start_with_a_sentence(
    start, tmp_path
):
    file = tmp_path / "mine.yaml"
    file.write_text("arbiter: [")
    process = start("arbiter", "--params-file", str(file))
    assert process.wait(60) == 1
    log = process.log.read_text()
    assert "[FATAL]" in log and str(file) in log and "The node does not start." in log


def test_a_second_node_of_the_same_name_ends_at_once_and_names_the_first(start, probe):
    first = start("arbiter")
    executed = probe.listen(topics.EXECUTED_ACTION)
    wait_for(lambda: executed)
    second = start("arbiter")
    assert second.wait(20) == 1
    log = second.log.read_text()
    assert "/arbiter is already running" in log and f"process {first.pid}" in log
    heard = len(executed)
    wait_for(lambda: len(executed) > heard + 5)
    assert first.poll() is None


def test_a_node_whose_predecessor_was_killed_starts(start, probe):
    executed = probe.listen(topics.EXECUTED_ACTION)
    first = start("arbiter")
    wait_for(lambda: executed)
    first.kill()
    first.wait()
    heard = len(executed)
    start("arbiter")
    wait_for(lambda: len(executed) > heard + 5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_that_is_still_loading_ends_on_a_signal(start, tmp_path, number):
    policy = save_untrained(tmp_path / "policy", object_state=10)
    process = start("policy", checkpoint=policy)

    def handles() -> bool:
        """Whether the signal is caught by now: bit number - 1 of SigCgt."""
        status = Path(f"/proc/{process.pid}/status").read_text()
        mask = int(next(line for line in status.splitlines() if "SigCgt" in line).split()[1], 16)
        return mask >> (signal.SIGTERM - 1) & 1

    wait_for(handles)
    process.send_signal(number)
    process.send_signal(number)
    assert process.wait(10) == 0
    assert "Serving" not in process.log.read_text()


# Code and descriptions


def test_no_node_takes_a_name_that_rclpys_node_has_for_something_else(ros_domain):
    with Probe(ros_domain) as probe:
        taken = {name for name in {*vars(probe.node), *dir(type(probe.node))} if name != "__init__"}
    for path in sorted(Path(hapo_ros.__file__).parent.joinpath("nodes").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and any("Node" in ast.dump(b) for b in node.bases):
                used = {n.name for n in ast.walk(node) if isinstance(n, ast.FunctionDef)}
                used |= {
                    n.attr
                    for n in ast.walk(node)
                    if isinstance(n, ast.Attribute)
                    and isinstance(n.ctx, ast.Store)
                    and isinstance(n.value, ast.Name)
                    and n.value.id == "self"
                }
                assert not used & taken, (path.name, used & taken)


UNITS = {
    "_s": "s",
    "_ns": "ns",
    "_hz": "Hz",
    "_m": "m",
    "_m_s": "m/s",
    "_rad_s": "rad/s",
    "_mib": "MiB",
    "_rad": "rad",
    "_m_s2": "m/s2",
    "_rad_s2": "rad/s2",
}


@pytest.mark.parametrize("name", NODES)
def test_every_parameter_says_what_it_is_in_which_unit_and_range(name):
    for parameter in PARAMETERS[name]:
        assert parameter.text and parameter.text[0].isupper(), parameter
        assert not parameter.problem(parameter.default), parameter
        number = isinstance(parameter.default, int | float)
        if number and not isinstance(parameter.default, bool):
            assert parameter.minimum is not None and parameter.maximum is not None, parameter
        suffixes = [suffix for suffix in UNITS if parameter.name.endswith(suffix)]
        unit = UNITS[max(suffixes, key=len)] if suffixes else parameter.unit
        assert parameter.unit == unit, parameter
        assert suffixes or parameter.unit in ("", "px"), f"the name of {parameter} has no unit"


# Messages


def plain(value):
    """A message of either kind, as comparable data."""
    names = getattr(value, "__dataclass_fields__", None)
    if names is None and hasattr(value, "get_fields_and_field_types"):
        names = value.get_fields_and_field_types()
    if names is not None:  # fields are lower case, constants are not
        return {name: plain(getattr(value, name)) for name in names if name[0].islower()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def example(types, type_name: str):
    """A message with something in every field, of the classes in ``types``."""
    rng = np.random.default_rng(0)
    info = EpisodeInfo("ep", "Lift", "lift the cube", "deployment", seed=7)
    action = rng.normal(size=7).astype(np.float32)
    tick = Tick("ep", 3, 5_000_000_007, 2, Applied.APPLIED, action, Authority.HUMAN, 4, False, True)
    command = PolicyCommand("ep", 3, 4, VERSION, rng.normal(size=(2, 7)), 0.5, 0.25)
    from hapo_ros.arbitration import Decision

    decision = Decision(
        "ep", 3, action, action[:0], labels.NONE, Authority.HOLD, Reason.POLICY_LATE, 4
    )
    status = {"episode_id": "ep", "sequence": 3, "labels": (0, 1, 2, 2**32 - 1)}
    build = {
        "ObservationTick": partial(messages.tick_message, tick=tick, stamps={"a": 5, "b": 6}),
        "PolicyAction": partial(messages.policy_action_message, command=command, stamp_ns=7),
        "ExecutedAction": partial(messages.executed_action_message, decision=decision, stamp_ns=7),
        "AuthorityStatus": partial(
            messages.authority_status_message,
            stamp_ns=7,
            authority=Authority.HOLD,
            reason=Reason.POLICY_LATE,
            **status,
        ),
        "EpisodeState": partial(
            messages.episode_state_message, stamp_ns=7, state=2, info=info, text="Wörter, 語"
        ),
        "AppliedAction": lambda types: types.AppliedAction(
            header=messages.header(types, 7),
            episode_id="ep",
            sequence=3,
            tick=True,
            applied=int(Applied.REFUSED),
            action=types.sequence(action),
        ),
        "StateVector": partial(
            messages.state_vector_message, names=["a", "bc"], values=[1.5, -0.0], stamp_ns=7
        ),
    }
    return build[type_name.rsplit("/", 1)[1]](types)


OWN = [f"{OWN_PACKAGE}/msg/{p.stem}" for p in sorted(interface_folder("msg").glob("*.msg"))]


@pytest.mark.parametrize("type_name", OWN)
def test_own_messages_are_the_same_to_ros_and_to_the_bags(type_name):
    from rclpy.serialization import deserialize_message, serialize_message

    from hapo_ros.nodes.common import message_class, ros_types

    ours, theirs = example(bag_types(), type_name), example(ros_types(), type_name)
    assert plain(ours) == plain(theirs)
    by_ros, by_us = serialize_message(theirs), to_cdr(ours, type_name)
    assert plain(from_cdr(by_ros, type_name)) == plain(ours)
    assert plain(deserialize_message(by_us, message_class(type_name))) == plain(theirs)
    assert 0 <= len(by_ros) - len(by_us) < 8  # ROS pads the end, to whole words


def test_own_messages_arrive_raw_as_they_are_read_from_a_bag(probe):
    from hapo_ros.nodes.common import ros_types

    names = {type_name: name for name, type_name in topics.TYPES.items() if type_name in OWN}
    assert set(names) == set(OWN)
    heard = {type_name: probe.listen(name, raw=True) for type_name, name in names.items()}
    publishers = {type_name: probe.publisher(name) for type_name, name in names.items()}
    wait_for(lambda: all(p.get_subscription_count() for p in publishers.values()))
    for type_name, publisher in publishers.items():
        publisher.publish(example(ros_types(), type_name))
    wait_for(lambda: all(heard.values()))
    for type_name, (data, *_) in heard.items():
        assert plain(from_cdr(data, type_name)) == plain(example(bag_types(), type_name))


# The recorder


def called(probe, type_, name, **fields):
    client = probe.node.create_client(type_, name)
    wait_for(client.service_is_ready)
    future = client.call_async(type_.Request(**fields))
    wait_for(future.done)
    return future.result()


def diagnosed(probe):
    """What was last said on /diagnostics: DiagnosticStatus."""
    from diagnostic_msgs.msg import DiagnosticArray

    if "/diagnostics" not in probe.heard:
        heard = probe.heard["/diagnostics"] = []
        probe.node.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 10)
    wait_for(lambda: probe.heard["/diagnostics"])
    (status,) = probe.heard["/diagnostics"][-1].status
    return status


OF_POLICY = {"version": VERSION, "normalisation": {"proprio_mean": [0.5]}}


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

    def report(self, authority, reason):
        """The arbiter's status."""
        message = messages.authority_status_message(self.types, 0, authority, reason)
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
    deployed.decide(0, x=float("nan"))
    deployed.decide(0)
    deployed.observe(1)
    reader = EpisodeReader(deployed.end(last_sequence=1))
    assert reader.live.tolist() == [labels.POLICY] and reader.result.lost == {}
    assert reader.info.task == "Lift" and reader.info.policy_version == VERSION
    assert f"A message on {topics.OBSERVATION_TICK} is malformed" in log(recorder)


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
    deployed.decide(0, x=float("nan"))
    for sequence in range(40):
        deployed.observe(sequence, without=[topics.JOINT_STATE] if sequence == 3 else [])
        deployed.decide(sequence)
    lost = f"1 of {topics.JOINT_STATE}"
    wait_for(lambda: says(DiagnosticStatus.WARN, episode="ep", lost=lost, malformed="1"))
    deployed.end(last_sequence=39)
    deployed.started("next")
    wait_for(lambda: says(DiagnosticStatus.OK, state="RUNNING", episode="next", lost=""))


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


def newest_tick(bag) -> int:
    """Sequence of the last tick that is on the disk, -1 if there is none."""
    newest = -1
    try:
        for message in messages_of(next(bag.glob("*.mcap"))):
            if message.topic.name == topics.OBSERVATION_TICK:
                newest = from_cdr(message.cdr, message.topic.type_name).sequence
    except Damaged:
        return newest  # it is being written
    return newest


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
                deployed = Deployed(probe)  # the recorder is there, and has recovered what was left
                if number == 0:
                    deployed.started("whole")
                    record(deployed, root / ".whole.partial", "whole", 3, ahead=second)
                    deployed.end(2, "whole")
                else:
                    check_recovered(root / f"ep{number - 1}", sent[lane])
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
    newest = -1

    def kept_up():
        nonlocal newest
        newest = newest if newest >= sequence - ahead else newest_tick(partial)
        return newest >= sequence - ahead

    for sequence in range(count):
        wait_for(kept_up)
        deployed.observe(sequence, episode_id=episode_id)
        deployed.decide(sequence, episode_id=episode_id)


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a disk of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk, *, left_mib=0):
    """Another process fills the disk."""
    free = shutil.disk_usage(disk).free
    size = free - (left_mib << 20) if left_mib else 2 * free
    command = ["dd", "if=/dev/zero", f"of={disk / 'full'}", "bs=64K", f"count={size >> 16}"]
    full = subprocess.run(command, capture_output=True)
    assert (full.returncode == 0) == bool(left_mib)


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
        wait_for(lambda: newest_tick(small_disk / "bags" / f".{name}.partial") > 10, go_on)
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


POSE = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])


def decision_message(sequence: int, x: float = 0.5, episode_id: str = "ep"):
    from hapo_ros.arbitration import Decision
    from hapo_ros.nodes.common import ros_types

    action = np.array([x, 0, 0, 0, 0, 0, -1], np.float32)
    policy = (labels.POLICY, Authority.POLICY, Reason.POLICY_ACTS)
    decision = Decision(
        episode_id, sequence, action, action, *policy, epoch=0, policy_version=VERSION
    )
    return messages.executed_action_message(ros_types(), decision, (sequence + 1) * 50_000_000)


# The simulated operator


def test_a_simulated_operator_counts_on_after_a_crash_and_begins_anew_after_an_end(start, probe):
    """It crashed between two episodes, where the recorder has nothing to discard."""
    from hapo_ros.msg import EpisodeState
    from hapo_ros.nodes.common import ros_types
    from hapo_ros.srv import StartEpisode

    asked = []

    def refuse(request, response):
        asked.append(request.seed)
        response.text = "A test."
        return response

    probe.node.create_service(StartEpisode, topics.START_EPISODE, refuse)
    states = probe.publisher(topics.EPISODE_STATE)

    def said(state, seed=None):
        info = seed and EpisodeInfo("ep", "Lift", "lift the cube", "deployment", seed=seed)
        states.publish(messages.episode_state_message(ros_types(), 0, state, info))

    def first_asked():
        asked.clear()
        process = start("simulated_operator", first_seed=11, episodes=5, readers=0)
        wait_for(lambda: asked)
        return process, asked[0]

    said(EpisodeState.IDLE)
    crashing, seed = first_asked()
    assert seed == 11
    crashing.kill()
    crashing.wait()
    said(EpisodeState.FINISHED, seed=12)
    again, seed = first_asked()
    assert seed == 13
    again.terminate()
    assert again.wait(20) == 0
    ending, seed = first_asked()
    assert seed == 11
    ending.kill()
    ending.wait()
    said(EpisodeState.FINISHED, seed=15)  # there is nothing left to do
    assert start("simulated_operator", first_seed=11, episodes=5, readers=0).wait(60) == 0


# The arbiter


class Around:
    """What is around an arbiter, by hand: recorder, robot, policy and device."""

    PERIOD_NS = 50_000_000

    def __init__(self, probe, lock_step=False):
        from hapo_ros.nodes.common import ros_types

        self.types, self.probe = ros_types(), probe
        self.began_ns = time.time_ns()
        names = (topics.EPISODE_STATE, topics.OBSERVATION_TICK, topics.POLICY_ACTION)
        self.publishers = {
            name: probe.publisher(name) for name in (*names, topics.JOY, topics.TWIST)
        }
        self.executed = probe.listen(topics.EXECUTED_ACTION)
        self.status = probe.listen(topics.AUTHORITY_STATUS)
        wait_for(lambda: self.status and (lock_step or self.executed))
        wait_for(lambda: all(p.get_subscription_count() for p in self.publishers.values()))

    def episode(self, episode_id="ep", state=2):
        info = EpisodeInfo(episode_id, "Lift", "lift the cube", "deployment", seed=1)
        message = messages.episode_state_message(self.types, time.time_ns(), state, info)
        self.publishers[topics.EPISODE_STATE].publish(message)

    def tick(self, sequence, episode_id="ep", epoch=0, **told):
        tick = Tick(episode_id, sequence, self.stamp_ns(sequence), epoch=epoch, **told)
        message = messages.tick_message(self.types, tick, {})
        self.publishers[topics.OBSERVATION_TICK].publish(message)

    def stamp_ns(self, sequence) -> int:
        return self.began_ns + sequence * self.PERIOD_NS

    def answer(self, sequence, x=0.5, episode_id="ep", epoch=0, length=7):
        actions = np.array([[x, 0, 0, 0, 0, 0, -1]], np.float32)[:, :length]
        command = PolicyCommand(episode_id, sequence, epoch, VERSION, actions)
        message = messages.policy_action_message(self.types, command, 0)
        self.publishers[topics.POLICY_ACTION].publish(message)

    def device(self, x=0.0, buttons=(0, 0)):
        axes = np.array([x, 0, 0, 0, 0, 0], np.float32)
        built = messages.operator_messages(
            self.types, axes, buttons, axes.astype(np.float64), time.time_ns()
        )
        for name, message in built.items():
            self.publishers[name].publish(message)

    def decided(self, sequence, episode_id="ep"):
        """Wait for the decision of a tick; returns it."""

        def found():
            return [
                m
                for m in self.executed
                if m.tick and (m.episode_id, m.sequence) == (episode_id, sequence)
            ]

        return wait_for(found)[0]

    def policy_step(self, sequence, x=0.5):
        self.tick(sequence)
        self.answer(sequence, x)
        return self.decided(sequence)

    def request(self, event):
        from hapo_ros.srv import RequestAuthority

        return called(self.probe, RequestAuthority, topics.REQUEST_AUTHORITY, event=int(event))

    def begin(self, **known):
        self.episode(**known)
        first = self.policy_step(0)
        assert first.label == labels.POLICY and first.policy_version == VERSION


# Of an arbiter that a busy machine does not make hold.
PATIENT = {
    "policy_deadline_s": 0.5,
    "tick_timeout_s": 2.0,
    "device_timeout_s": 5.0,
    "stamp_tolerance_s": 3000.0,
}


@pytest.fixture
def around(start, probe, request):
    """An arbiter that waits long enough for this test, and its surroundings."""
    given = {"on_device_lost": "continue"} | getattr(request, "param", {})
    start("arbiter", **(PATIENT | given))
    return Around(probe)


def test_without_the_hands_pose_the_tools_frame_is_unknown_and_with_it_the_motion_is_turned(
    start, probe
):
    start("arbiter", on_device_lost="continue", operator_frame="tool", **PATIENT)
    around = Around(probe)
    poses = probe.publisher(topics.EEF_POSE)
    wait_for(poses.get_subscription_count)
    around.begin()
    around.device(0.0)
    around.device(0.5)
    around.tick(1)
    blind = around.decided(1)
    assert (blind.authority, blind.label) == (Authority.HUMAN, labels.NONE)
    assert blind.reason == Reason.POSE_UNKNOWN and not any(blind.action[:6])
    # The tool's x points along the base's y.
    turn = [0, 0, np.sqrt(0.5), np.sqrt(0.5)]
    pose = messages.pose_message(around.types, [0, 0, 1, *turn], around.stamp_ns(2))
    poses.publish(pose)
    around.tick(2)
    around.device(0.5)
    moved = around.decided(2)
    assert moved.label == labels.HUMAN
    assert moved.action[:3].tolist() == pytest.approx([0, 0.5, 0], abs=1e-6)


@pytest.mark.parametrize("durability", ["TRANSIENT_LOCAL", "VOLATILE"])
def test_an_estop_is_latched_and_cleared_only_when_it_is_released(around, durability):
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from std_msgs.msg import Bool

    from hapo_ros.srv import RequestAuthority

    node = around.probe.node
    qos = QoSProfile(depth=1, durability=DurabilityPolicy[durability])
    estop = node.create_publisher(Bool, topics.ESTOP, qos)
    client = node.create_client(RequestAuthority, topics.REQUEST_AUTHORITY)
    wait_for(lambda: estop.get_subscription_count() >= 1 and client.service_is_ready())

    def clear():
        reply = client.call_async(RequestAuthority.Request(event=int(Event.CLEAR_FAULT)))
        wait_for(reply.done)
        return reply.result()

    around.begin()
    estop.publish(Bool(data=True))
    sequence = iter(range(1, 10_000))

    def step(until):
        """Ticks, with a device at rest, until a decision is as it is to be."""

        def decided():
            number = next(sequence)
            around.device(0.0)
            around.tick(number)
            around.answer(number, epoch=around.executed[-1].epoch)
            return until(around.decided(number))

        wait_for(decided)

    step(lambda d: d.authority == Authority.FAULT and d.reason == Reason.ESTOPPED)
    refused = clear()
    assert not refused.ok and "still pressed" in refused.text
    step(lambda d: d.authority == Authority.FAULT)
    estop.publish(Bool(data=False))
    step(lambda d: d.authority == Authority.FAULT)  # released is not cleared
    wait_for(lambda: clear().ok)
    step(lambda d: d.authority == Authority.HOLD and d.reason == Reason.FAULT_CLEARED)


def test_an_arbiter_that_is_started_under_a_pressed_estop_is_in_fault(start, probe):
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from std_msgs.msg import Bool

    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    probe.node.create_publisher(Bool, topics.ESTOP, qos).publish(Bool(data=True))
    start("arbiter", on_device_lost="continue")
    executed = probe.listen(topics.EXECUTED_ACTION)
    wait_for(lambda: executed and executed[-1].authority == Authority.FAULT)
    assert executed[-1].reason == Reason.ESTOPPED and not any(executed[-1].action[:6])


def test_a_second_arbiter_is_a_fault_of_both_which_name_each_other(around, start):
    around.begin()
    assert around.executed[-1].authority == Authority.POLICY
    start("arbiter", "-r", "__node:=another_arbiter", on_device_lost="continue")
    seen = Reason.SECOND_ARBITER_SEEN

    def both_know():
        texts = " ".join(m.text for m in around.status if m.reason == seen)
        return "/another_arbiter" in texts and "/arbiter" in texts.replace("/another_arbiter", "")

    wait_for(both_know)
    known = len(around.executed)
    wait_for(lambda: len(around.executed) > known + 20)
    for message in around.executed[known:]:
        assert message.authority == Authority.FAULT and not any(message.action[:6])


def test_a_stray_script_that_commands_the_robot_is_a_fault_that_names_it(around):
    from hapo_ros.msg import ExecutedAction

    around.begin()
    stray = around.probe.node.create_publisher(ExecutedAction, topics.EXECUTED_ACTION, 10)
    wait_for(lambda: stray.get_subscription_count() >= 2)
    assert around.executed[-1].authority == Authority.POLICY  # it has said nothing yet
    command = ExecutedAction(episode_id="ep", sequence=1, action=[1.0] * 7, tick=True)
    wait_for(lambda: around.status[-1].authority == Authority.FAULT, lambda: stray.publish(command))
    assert "/probe" in around.status[-1].text


def test_time_that_goes_back_ends_the_episode_and_disarms(start, probe):
    start("arbiter", lock_step="true", on_device_lost="continue")
    around = Around(probe, lock_step=True)

    def step(sequence, stamp_ns, x=0.0):
        tick = Tick("ep", sequence, stamp_ns)
        axes = np.array([x, 0, 0, 0, 0, 0], np.float32)
        message = messages.tick_message(around.types, tick, {})
        around.publishers[topics.OBSERVATION_TICK].publish(message)
        built = messages.operator_messages(
            around.types, axes, (0, 0), axes.astype(np.float64), stamp_ns
        )
        for name, report in built.items():
            around.publishers[name].publish(report)
        around.answer(sequence)
        return around.decided(sequence)

    around.episode()
    for sequence in range(5):
        assert step(sequence, (100 + sequence) * around.PERIOD_NS).label == labels.POLICY
    reset = step(5, 3 * around.PERIOD_NS, x=0.9)
    assert (reset.authority, reset.label) == (Authority.HOLD, labels.NONE)
    assert reset.reason == Reason.TIME_WAS_RESET and not any(reset.action[:6])
    moved = step(6, 4 * around.PERIOD_NS, x=0.9)  # a cap that is not at rest takes nothing over
    assert moved.authority == Authority.HOLD and not any(moved.action[:6])


def test_a_stamp_far_from_now_is_refused_and_counted(around):
    around.begin()
    around.device(0.0)
    hours_ns = 3_600_000_000_000
    axes = np.array([0.9, 0, 0, 0, 0, 0], np.float32)
    for offset_ns in (-hours_ns, hours_ns):
        built = messages.operator_messages(
            around.types, axes, (0, 0), axes.astype(np.float64), time.time_ns() + offset_ns
        )
        for name, message in built.items():
            around.publishers[name].publish(message)
    assert around.policy_step(1).label == labels.POLICY  # no one took over
    wait_for(lambda: int(diagnosis(around).get("stamps_refused", 0)) >= 2)


def test_a_twist_of_another_frame_is_refused_and_counted(around):
    around.begin()
    around.device(0.0)
    axes = np.array([0.9, 0, 0, 0, 0, 0], np.float32)
    built = messages.operator_messages(
        around.types, axes, (0, 0), axes.astype(np.float64), time.time_ns(), "some_camera"
    )
    for name, message in built.items():
        around.publishers[name].publish(message)
    assert around.policy_step(1).label == labels.POLICY
    wait_for(lambda: int(diagnosis(around).get("device_reports_refused", 0)) >= 1)


def diagnosis(around) -> dict:
    """What the arbiter last said on /diagnostics, by name."""
    return {value.key: value.value for value in diagnosed(around.probe).values}


def test_when_the_recording_fails_the_policy_stops_and_a_human_moves_on(around):
    around.begin()
    around.episode(state=5)  # FAILED
    sequence = iter(range(1, 10_000))  # topics have no order among each other

    def until(authority):
        def decided():
            number = next(sequence)
            around.tick(number)
            around.answer(number)
            decision = around.decided(number)
            return decision if decision.authority == authority else None

        return wait_for(decided)

    stopped = until(Authority.HOLD)
    assert stopped.reason == Reason.RECORDING_ENDED and not any(stopped.action[:6])
    around.device(0.0)
    wait_for(lambda: around.status[-1].device_armed)
    around.device(0.7)
    assert until(Authority.HUMAN).action[0] == pytest.approx(0.7)


def test_the_arbiter_takes_old_repeated_and_foreign_messages_for_what_they_are(around):
    around.begin()
    decided = [around.policy_step(sequence, x=0.1 * sequence) for sequence in range(1, 6)]
    assert [m.action[0] for m in decided] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    heard = len(around.executed)
    around.tick(3)  # old
    around.tick(0)
    around.answer(3, x=1.0)
    around.tick(7, episode_id="another")
    around.tick(5)  # repeated: the same answer again
    wait_for(lambda: len(around.executed) > heard)
    assert around.executed[-1] == decided[-1]
    around.tick(6)
    around.answer(4, x=1.0)  # the answer to another tick
    around.answer(6, epoch=9)  # of another epoch
    late = around.decided(6)  # at the deadline
    assert late.label == labels.NONE and late.reason == Reason.POLICY_LATE
    assert not np.any(late.action[:6]) and late.action[6] == -1 and not len(late.requested)
    assert around.policy_step(7).label == labels.POLICY
    ticks = [(m.episode_id, m.sequence) for m in around.executed if m.tick]
    assert ticks == [("ep", s) for s in (0, 1, 2, 3, 4, 5, 5, 6, 7)]


def test_an_action_that_cannot_be_executed_is_refused_whole_and_one_too_large_is_scaled(around):
    around.begin()
    for sequence, wrong in ((1, {"x": np.nan}), (2, {"x": np.inf}), (3, {"length": 6})):
        around.tick(sequence)
        around.answer(sequence, **wrong)
        refused = around.decided(sequence)
        assert refused.label == labels.NONE and refused.reason == Reason.POLICY_INVALID
        assert not np.any(refused.action[:6])
    large = around.policy_step(4, x=3.0)
    assert large.limited and large.action[0] == 1.0 and large.requested[0] == 3.0
    assert large.label == labels.POLICY


def test_an_episode_begins_with_its_first_tick_however_late_the_recorders_word_is(around):
    around.tick(0)
    around.tick(1)  # the robot goes on; still nobody told the arbiter that an episode runs
    around.answer(0)
    around.episode()
    first = around.decided(0)
    assert first.label == labels.POLICY and first.authority == Authority.POLICY
    around.tick(2)
    around.answer(2)
    assert around.decided(2).reason == Reason.POLICY_ACTS


def test_an_episode_that_follows_at_once_is_not_mixed_up_with_the_last_tick_of_the_other(around):
    around.begin()
    around.episode(state=4)
    around.tick(1)  # sent before the robot heard of the end
    around.episode("next")
    around.tick(0, "next")
    around.answer(0, episode_id="next")
    assert around.decided(0, "next").reason == Reason.POLICY_ACTS
    around.tick(1, "next")
    around.answer(1, episode_id="next")
    assert around.decided(1, "next").reason == Reason.POLICY_ACTS
    assert not [m for m in around.executed if m.tick and (m.episode_id, m.sequence) == ("ep", 1)]


def test_an_arbiter_that_joins_a_running_episode_holds_until_a_human_resumes(around):
    around.episode()
    around.tick(40, epoch=3)
    around.answer(40, epoch=3)
    joined = around.decided(40)
    assert (joined.authority, joined.reason) == (Authority.HOLD, Reason.RESTARTED)
    assert around.request(Event.RESUME).ok
    around.tick(41, epoch=joined.epoch)
    resumed = around.decided(41)
    assert resumed.authority == Authority.POLICY and resumed.label == labels.NONE
    around.tick(42, epoch=resumed.epoch)
    around.answer(42, epoch=resumed.epoch)
    assert around.decided(42).label == labels.POLICY


def test_an_arbiter_that_was_restarted_before_the_first_decision_holds_too(start, probe):
    """It died between the start of the episode and its first tick."""
    info = EpisodeInfo("ep", "Lift", "lift the cube", "deployment", seed=1)
    recorder = probe.publisher(topics.EPISODE_STATE)
    types = import_module("hapo_ros.nodes.common").ros_types()
    recorder.publish(messages.episode_state_message(types, time.time_ns(), 2, info))
    start("arbiter", on_device_lost="continue", **(PATIENT | {"tick_timeout_s": 5.0}))
    around = Around(probe)
    around.tick(0)
    around.answer(0)
    first = around.decided(0)
    assert (first.authority, first.reason) == (Authority.HOLD, Reason.RESTARTED)
    assert first.label == labels.NONE and not np.any(first.action[:6])
    assert around.request(Event.RESUME).ok
    around.tick(1, epoch=first.epoch)
    assert around.decided(1).authority == Authority.POLICY


def test_a_fault_is_still_latched_after_the_arbiter_was_restarted(around):
    around.episode()
    around.tick(40, epoch=3, authority=Authority.FAULT)
    joined = around.decided(40)
    assert (joined.authority, joined.reason) == (Authority.FAULT, Reason.RESTARTED_IN_FAULT)
    refused = around.request(Event.RESUME)
    assert not refused.ok and "a fault is latched" in refused.text
    assert around.request(Event.CLEAR_FAULT).ok  # here no device is needed
    assert around.request(Event.RESUME).ok  # after what is queued
    around.tick(41, epoch=joined.epoch)
    assert around.decided(41).authority == Authority.POLICY


@pytest.mark.parametrize("around", [{"on_device_lost": "hold"}], indirect=True)
def test_a_request_that_would_be_refused_is_answered_so_and_why(around):
    around.episode()
    around.tick(0)
    assert around.decided(0).reason == Reason.DEVICE_LOST_POLICY  # there never was a device
    refused = around.request(Event.RESUME)
    assert not refused.ok and "Reconnect it, let go of the cap, then resume" in refused.text
    assert around.request(Event.ESTOP).ok
    around.device(x=0.6)
    around.tick(1)
    stopped = around.decided(1)
    assert stopped.authority == Authority.FAULT
    refused = around.request(Event.CLEAR_FAULT)
    assert not refused.ok and "with its cap at rest" in refused.text

    ticks = iter(range(2, 10_000))

    def cleared():
        """Once the report of a cap at rest has come, whichever tick that is before."""
        around.device()
        at = next(ticks)
        around.tick(at)
        around.decided(at)
        return around.request(Event.CLEAR_FAULT).ok

    wait_for(cleared)
    around.tick(20_000)
    assert around.decided(20_000).reason == Reason.FAULT_CLEARED


def test_an_answer_to_a_tick_that_is_nowhere_near_does_not_keep_the_others_out(around):
    around.begin()
    around.answer(2**32 - 1, x=1.0)
    around.answer(3, x=1.0)
    for sequence in (1, 2):
        decided = around.policy_step(sequence, x=0.25)
        assert decided.label == labels.POLICY and decided.action[0] == pytest.approx(0.25)
    around.answer(3, x=0.75)  # topics have no order: it may be here before its tick
    around.tick(3)
    assert around.decided(3).action[0] == pytest.approx(0.75)


@pytest.mark.parametrize("around", [{"tick_timeout_s": 0.6}], indirect=True)
def test_a_human_moves_the_arm_though_the_ticks_have_stopped_and_that_is_no_data(around):
    around.begin()
    around.device()
    assert around.policy_step(1).label == labels.POLICY
    around.device(x=0.6)
    around.tick(2)
    taken = around.decided(2)
    assert (taken.authority, taken.label) == (Authority.HUMAN, labels.HUMAN)
    assert taken.action[0] == pytest.approx(0.6)

    # The cameras died; nobody sends a tick of this episode any more.
    def moved(x):
        around.device(x)
        around.tick(99, episode_id="")
        last = around.executed[-1]
        return not last.tick and last.action[0] == pytest.approx(x)

    wait_for(lambda: moved(0.4))
    last = around.executed[-1]
    assert (last.authority, last.label) == (Authority.HUMAN, labels.NONE)
    wait_for(lambda: moved(-0.3))
    around.device(x=0.0, buttons=(0, 1))
    wait_for(lambda: around.executed[-1].authority != Authority.HUMAN)
    wait_for(lambda: not np.any(around.executed[-1].action[:6]))


def test_without_ticks_the_run_ends_but_not_while_a_human_has_the_arm(start, probe):
    limits = {"tick_timeout_s": 0.05, "give_up_ticks_s": 0.5}
    arbiter = start("arbiter", **(PATIENT | limits | {"on_device_lost": "continue"}))
    around = Around(probe)
    around.device()
    around.device(x=0.5)
    wait_for(lambda: around.executed[-1].authority == Authority.HUMAN)
    around.episode()
    begun = len(around.executed)
    # On the arbiter's own timer, four times as long as it would wait without the human.
    wait_for(lambda: len(around.executed) > begun + 40, meanwhile=lambda: around.device(x=0.5))
    assert arbiter.poll() is None
    around.device(buttons=(0, 1))
    assert arbiter.wait(60) == RUN_ENDS
    assert "Episode ep has had no tick for" in log(arbiter) and "The run ends" in log(arbiter)
    assert not np.any(around.executed[-1].action[:6])


def test_the_last_word_of_an_arbiter_is_a_hold(start, probe):
    process = start("arbiter", on_device_lost="continue", policy_deadline_s=0.5)
    around = Around(probe)
    around.begin()
    assert np.any(around.executed[-1].action[:6])
    process.terminate()
    assert process.wait(10) == 0
    wait_for(lambda: not around.executed[-1].tick)
    last = around.executed[-1]
    assert last.authority == Authority.HOLD and not np.any(last.action[:6])
    assert last.action[6] == -1.0
    wait_for(lambda: around.status[-1].reason == Reason.NO_EPISODE)


def test_status_tells_the_end_of_an_episode_at_once(around):
    around.begin()
    wait_for(lambda: around.status[-1].authority == Authority.POLICY)
    around.episode(state=3)
    wait_for(lambda: around.status[-1].reason == Reason.NO_EPISODE)
    assert around.status[-1].authority == Authority.HOLD and around.status[-1].episode_id == ""


# The policy


@pytest.fixture
def served(start, probe, tmp_path):
    """A policy node, ``observe(sequence, **changed)`` to show it a tick, and its ``answers``."""
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

    def serve(**parameters):
        policy = start("policy", checkpoint=checkpoint, **parameters)
        wait_for(lambda: all(p.get_subscription_count() for p in publishers.values()))
        wait_for(lambda: probe.node.count_publishers(topics.POLICY_ACTION))
        running = messages.episode_state_message(types, time.time_ns(), 2, info)
        publishers[topics.EPISODE_STATE].publish(running)
        return policy

    return SimpleNamespace(serve=serve, observe=observe, answers=answers)


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


def test_a_policy_that_was_stopped_answers_the_newest_tick_and_none_that_is_over(served, probe):
    policy, observe, answers = served.serve(deadline_s=10.0), served.observe, served.answers
    diagnosed = probe.listen("/diagnostics", type_name="diagnostic_msgs/msg/DiagnosticArray")
    wait_for(lambda: answers, meanwhile=lambda: observe(0))
    policy.send_signal(signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{policy.pid}/stat").read_text().rsplit(")", 1)[1][1] == "T")
    for sequence in range(1, 21):
        observe(sequence)
    policy.send_signal(signal.SIGCONT)
    wait_for(lambda: answers[-1].sequence == 20)
    # One at most was begun with before the others had come in.
    assert len({answer.sequence for answer in answers}) <= 3
    wait_for(lambda: any("inference_s" in str(array.status) for array in diagnosed))


def test_a_policy_does_not_send_what_comes_after_its_deadline(served):
    policy, observe, answers = served.serve(deadline_s=1e-6), served.observe, served.answers
    for sequence in (0, 1):  # it is told of once a second
        said = f"The answer to tick {sequence} of ep is too late: it took"
        wait_for(lambda said=said: said in log(policy), meanwhile=partial(observe, sequence))
    assert not answers


# The simulated robot


def test_an_episode_waits_for_the_nodes_that_need_its_ticks_whoever_else_listens(start, probe):
    """In real time, where a first tick that was missed does not come again."""
    pytest.importorskip("robosuite")
    from rcl_interfaces.srv import GetParameters

    readers = ("policy", "arbiter")
    options = {"cameras": "['']", "lock_step": "false"}
    start("robosuite_bridge", tick_readers=f"[{','.join(readers)}]", **options)
    recorder = probe.publisher(topics.EPISODE_STATE)
    domain = probe.context.get_domain_id()
    with Probe(domain, "somebody") as one, Probe(domain, "anybody") as other:
        anyone = [each.listen(topics.OBSERVATION_TICK) for each in (probe, one, other)]
        wait_for(lambda: probe.node.count_publishers(topics.OBSERVATION_TICK))
        wait_for(recorder.get_subscription_count)
        info = EpisodeInfo("ep", "Lift", "lift the cube", "deployment", seed=1)
        types = import_module("hapo_ros.nodes.common").ros_types()
        recorder.publish(messages.episode_state_message(types, time.time_ns(), 2, info))
        for _ in range(20):  # each is answered between two of its periods
            called(probe, GetParameters, "/robosuite_bridge/get_parameters", names=["task"])
        assert not any(anyone)
        with Probe(domain, readers[0]) as policy, Probe(domain, readers[1]) as arbiter:
            heard = [each.listen(topics.OBSERVATION_TICK) for each in (policy, arbiter)]
            wait_for(lambda: all(heard) and all(anyone))
            assert [ticks[0].sequence for ticks in (*heard, *anyone)] == [0] * 5


# The gateway


def test_the_gateway_answers_every_line_and_ends_with_its_input(ros_domain):
    import sys

    from hapo_ros.supervisor import executable

    arguments = [sys.executable, str(executable("gateway")), "--ros-args"]
    arguments += ["-p", "server_timeout_s:=0.1"]
    lines = [
        "no json",
        json.dumps({"id": 1, "call": "dance"}),
        json.dumps({"id": 2, "call": "start_episode", "speed": 3}),
        json.dumps({"id": 3, "call": "start_episode", "seed": "one"}),
        json.dumps({"id": 4, "cancel": 1}),
        json.dumps({"id": 5, "call": "end_episode", "episode_id": "ep"}),
        json.dumps([6]),
    ]
    run = subprocess.run(
        arguments, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr
    said = [json.loads(line) for line in run.stdout.splitlines()]
    answers = {line.get("id"): line["error"] for line in said if "error" in line}
    assert set(answers) == {None, 1, 2, 3, 4, 5}
    assert all("understood" in answers[i] for i in (None, 1, 2, 3)), answers
    assert "No goal 1" in answers[4] and "No such server" in answers[5]


def test_the_gateway_tells_a_console_of_device_and_diagnostics(probe):
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
    from sensor_msgs.msg import Joy

    from hapo_ros.gateway_client import GatewayClient, NoServer

    device = probe.publisher(topics.JOY)
    diagnostics = probe.publisher("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray")
    status = DiagnosticStatus(
        level=DiagnosticStatus.WARN,
        name="recorder: recorder",
        message="Late.",
        values=[KeyValue(key="lost", value="3")],
    )
    told, others = {}, []

    def say():
        device.publish(Joy(axes=[0.5, float("nan"), 0.0, 0.0, 0.0, -1.0], buttons=[0, 1]))
        diagnostics.publish(DiagnosticArray(status=[status]))
        console.news()
        other.news()

    with (
        GatewayClient(on_event=lambda e: told.update({e["event"]: e}), console=True) as console,
        GatewayClient(0.1, others.append) as other,
    ):
        wait_for(lambda: {"device", "diagnostics"} <= told.keys(), say)
        assert told["device"]["axes"] == [0.5, None, 0.0, 0.0, 0.0, -1.0]
        assert told["device"]["buttons"] == [0, 1]
        assert told["diagnostics"] == {
            "event": "diagnostics",
            "name": "recorder: recorder",
            "level": 1,
            "message": "Late.",
            "values": {"lost": "3"},
        }
        with pytest.raises(NoServer):  # so it hears; but it is told of none of that
            other.call("end_episode", episode_id="ep")
        assert not others


def test_a_malformed_word_of_a_policy_does_not_end_the_gateway(probe, tmp_path):
    from std_msgs.msg import String

    from hapo_ros.gateway_client import GatewayClient

    policy, told, path = probe.publisher(topics.POLICY_INFO), [], tmp_path / "log"
    with path.open("wb") as log, GatewayClient(on_event=told.append, log=log) as client:
        wait_for(policy.get_subscription_count)
        for number, text in enumerate(("{", "[1]"), start=1):
            policy.publish(String(data=text))
            wait_for(lambda number=number: path.read_text().count("is malformed") == number)
        policy.publish(String(data=json.dumps(OF_POLICY)))
        wait_for(lambda: told, client.news)
    assert [event["version"] for event in told] == [VERSION]


def test_the_gateway_tells_how_old_its_word_of_an_episode_is(probe):
    from hapo_ros.gateway_client import GatewayClient
    from hapo_ros.msg import EpisodeState

    states = probe.publisher(topics.EPISODE_STATE)
    said = EpisodeState(state=EpisodeState.RUNNING, episode_id="ep")
    stamp_s = time.time() - 3600
    said.header.stamp.sec = int(stamp_s)
    states.publish(said)
    told = []
    with GatewayClient(on_event=told.append) as gateway:
        wait_for(lambda: told, gateway.news)
    assert told[0]["episode_id"] == "ep" and 3600 <= told[0]["age_s"] < 3600 + 120
