"""What holds for every node; the simulated operator, simulation and gateway as processes."""

import ast
import json
import os
import signal
import subprocess
import tempfile
import time
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from ros_graph import (
    Probe,
    called,
    save_untrained,
    wait_for,
)

import hapo_ros
from hapo_ros import labels, topics
from hapo_ros.arbitration import Applied, Authority, PolicyCommand, Reason, Tick
from hapo_ros.episodes import (
    EpisodeInfo,
    messages,
)
from hapo_ros.episodes.interfaces import OWN_PACKAGE, bag_types, from_cdr, interface_folder, to_cdr
from hapo_ros.parameters import PARAMETERS

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("no_node_is_left")
CHECKOUT = Path(__file__).resolve().parents[1]
NODES = sorted(path.name for path in (CHECKOUT / "scripts" / "nodes").iterdir())

VERSION = "1234"
OF_POLICY = {"version": VERSION, "normalisation": {"proprio_mean": [0.5]}}


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


def test_the_word_of_a_process_that_crashed_outlasts_a_second_crash(tmp_path, monkeypatch):
    from hapo_ros.nodes import common

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def started():
        stream, *left = common._lock_name("/arbiter", 7)
        return stream, tuple(left)

    stream, left = started()
    assert left == (False, "")
    common._write(stream, "fault")
    stream.close()
    for _ in range(2):  # the first of them has not come to its word when it is killed
        stream, left = started()
        assert left == (True, "fault")
        stream.close()
    monkeypatch.setattr(os, "getppid", lambda: 1)  # another deployment
    stream, left = started()
    assert left == (True, "")
    stream.close()


def test_readers_of_the_status_hear_of_a_publisher_that_lives_and_says_nothing(probe):
    """As of an arbiter whose process hangs, while DDS's own threads go on."""
    from rclpy.event_handler import SubscriptionEventCallbacks

    from hapo_ros.msg import AuthorityStatus
    from hapo_ros.nodes.common import STATUS

    alive = []
    events = SubscriptionEventCallbacks(liveliness=lambda event: alive.append(event.alive_count))
    probe.node.create_subscription(
        AuthorityStatus, topics.AUTHORITY_STATUS, lambda _: None, STATUS, event_callbacks=events
    )
    publisher = probe.publisher(topics.AUTHORITY_STATUS)
    wait_for(publisher.get_subscription_count)
    publisher.publish(AuthorityStatus())
    wait_for(lambda: 1 in alive)
    wait_for(lambda: alive[-1] == 0)


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
        json.dumps({"id": [7], "call": "end_episode"}),
        json.dumps({"id": 8, "call": "end_episode", "note": "half \ud800"}),
        '{"id": 9, "call": "end_episode", "note": "caf\udce9"}',  # latin-1
        json.dumps({"id": 10, "call": "optimize", "bags": ["b"]}),
        json.dumps({"id": 11, "cancel": 10}),
    ]
    run = subprocess.run(
        arguments,
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
        encoding="utf8",
        errors="surrogateescape",
    )
    assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr
    said = [json.loads(line) for line in run.stdout.splitlines()]
    answers = {line.get("id"): line["error"] for line in said if "error" in line}
    assert set(answers) == {None, 1, 2, 3, 4, 5, 8, 9, 10}
    assert (
        answers[10] == "Cancelled before it began." and {"id": 11, "result": {"ok": True}} in said
    )
    assert all("understood" in answers[i] for i in (None, 1, 2, 3, 8)), answers
    assert "No goal 1" in answers[4]
    assert all("No such server" in answers[i] for i in (5, 9))


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
        assert "ready" in told
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


def test_a_training_that_cannot_be_started_says_why(start, probe, tmp_path, monkeypatch):
    from rclpy.action import ActionClient

    from hapo_ros.action import Optimize

    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    start("optimizer")
    monkeypatch.chdir(tmp_path)
    client = ActionClient(probe.node, Optimize, topics.OPTIMIZE)
    wait_for(client.server_is_ready)
    (tmp_path / "gone").rmdir()
    sent = client.send_goal_async(Optimize.Goal(bags=["bags"], base_checkpoint="base"))
    wait_for(sent.done)
    result = sent.result().get_result_async()
    wait_for(result.done)
    assert not result.result().result.ok
    assert "The training could not be started: [Errno 2]" in result.result().result.text


def test_a_training_whose_words_cannot_be_read_any_more_has_ended():
    from queue import SimpleQueue

    from hapo_ros.nodes.optimizer import _read_lines

    def breaking():
        yield "{}\n"
        raise OSError("gone")

    lines = SimpleQueue()
    with pytest.raises(OSError, match="gone"):
        _read_lines(breaking(), lines)
    assert [lines.get(timeout=5), lines.get(timeout=5)] == ["{}\n", None]
