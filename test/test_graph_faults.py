"""What breaks while a deployment runs, and what becomes of the robot, the run and the recording."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ros_graph import DEADLINE_S, Graph, Probe, nothing_left_running, save_untrained, wait_for

from hapo_ros import labels, topics
from hapo_ros.arbitration import Applied, Authority, Event, Reason
from hapo_ros.episodes import BadEpisode, EpisodeReader, open_episodes
from hapo_ros.episodes.contents import load
from hapo_ros.supervisor import DeploymentError

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)
pytest.importorskip("robosuite")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("policy") / "state", object_state=10)


def authority_of(graph, authority, *reasons):
    """A status of this authority, and one of the reasons, that has come since the call."""
    begin = len(graph.authorities)

    def found():
        return any(
            event["authority"] == authority and event["reason"] in reasons
            for event in graph.authorities[begin:]
        )

    graph.until(found)


def policy_acts(graph, steps: int = 10):
    """The policy has control, and has decided so many steps."""
    authority_of(graph, Authority.POLICY, Reason.POLICY_ACTS)
    graph.until(lambda: graph.authorities[-1]["labels"][labels.POLICY] > steps)


def resume(graph, steps: int = 10):
    """A human's resume, again where the nodes had not found each other yet and it held again."""
    first = graph.authorities[-1]["labels"][labels.POLICY]

    def going():
        status = graph.authorities[-1]
        if status["authority"] == Authority.HOLD:
            assert graph.gateway.call("request_authority", event=int(Event.RESUME))["ok"]
        return status["labels"][labels.POLICY] > first + steps

    graph.until(going)


def end(graph, episode_id) -> Path:
    ended = graph.gateway.call(
        "end_episode", episode_id=episode_id, outcome="success", last_sequence=-1
    )
    assert ended["ok"], ended["text"]
    return Path(ended["bag"])


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, policy, module_ros_domain):
    folder = tmp_path_factory.mktemp("faults")
    with nothing_left_running(), Graph(folder, policy) as graph:
        yield graph


@pytest.fixture
def graph(deployment):
    """The deployment, with no episode running before and after."""
    yield deployment
    deployment.discard_running()


def test_a_killed_policy_is_late_then_gone_comes_back_and_a_human_resumes(graph):
    episode_id = graph.start_episode()
    policy_acts(graph)
    killed = graph.kill("policy")
    authority_of(graph, Authority.HOLD, Reason.POLICY_GONE)
    told = len(graph.events)
    graph.until(lambda: any(event["event"] == "policy" for event in graph.events[told:]))
    assert graph.supervisor.pid("policy") != killed
    assert graph.said[-1] == "policy ended with signal 9. It is started again."
    assert graph.authorities[-1]["authority"] == Authority.HOLD
    resume(graph)
    reader = EpisodeReader(end(graph, episode_id))
    steps = reader.steps(images=False)
    gone = [s.sequence for s in steps if s.reason == Reason.POLICY_GONE]
    late = [s.sequence for s in steps if s.reason == Reason.POLICY_LATE]
    assert len(late) >= 4 and gone and min(gone) > min(late)
    for step in steps:
        if step.reason in (Reason.POLICY_GONE, Reason.POLICY_LATE):
            assert step.live == labels.NONE and not step.action[:6].any()
    assert any(step.live == labels.POLICY for step in steps[gone[-1] :])
    assert reader.result.lost == {}


def test_a_killed_arbiter_comes_back_holding_and_a_human_resumes_the_same_episode(graph):
    episode_id = graph.start_episode()
    policy_acts(graph)
    graph.kill("arbiter")
    authority_of(graph, Authority.HOLD, Reason.RESTARTED)
    assert graph.said[-1] == "arbiter ended with signal 9. It is started again."
    resume(graph)
    steps = EpisodeReader(end(graph, episode_id)).steps(images=False)
    restarted = [s for s in steps if s.reason == Reason.RESTARTED]
    assert restarted
    assert all(s.live == labels.NONE and not s.action[:6].any() for s in restarted)
    for acted in (steps[: restarted[0].sequence], steps[restarted[-1].sequence :]):
        assert any(step.live == labels.POLICY for step in acted)
    # Nobody decided in between: the simulation held.
    undecided = [s for s in steps if s.reason == Reason.NO_EPISODE]
    assert all(s.live == labels.NONE and not s.action[:6].any() for s in undecided)


def test_a_frozen_arbiter_is_told_of_and_the_robot_holds_meanwhile(graph):
    episode_id = graph.start_episode()
    policy_acts(graph)
    told = len(graph.events)
    pid = graph.supervisor.pid("arbiter")
    os.kill(pid, signal.SIGSTOP)
    try:
        lost = {"event": "authority_lost", "text": "The arbiter is gone. Nobody has control."}
        graph.until(lambda: lost in graph.events[told:])
    finally:
        os.kill(pid, signal.SIGCONT)
    resume(graph)
    assert graph.supervisor.pid("arbiter") == pid
    bag = end(graph, episode_id)
    outcomes = load(bag).outcomes
    held = [sequence for sequence, what in outcomes.items() if what != Applied.APPLIED]
    assert len(held) >= 15
    frozen = max(s for s in held if s - 1 in held)  # a single late decision is the machine's
    assert any(what == Applied.APPLIED for s, what in outcomes.items() if s > frozen)
    steps = {step.sequence: step for step in EpisodeReader(bag).steps(images=False)}
    for sequence in set(held) & set(steps):
        assert steps[sequence].live == labels.NONE and not steps[sequence].action[:6].any()


def test_a_killed_recorder_ends_the_episode_and_what_it_had_is_recovered(graph):
    episode_id = graph.start_episode()
    policy_acts(graph)
    graph.kill("recorder")
    authority_of(graph, Authority.HOLD, Reason.NO_EPISODE)
    graph.until(lambda: (graph.bags / episode_id).exists())
    assert graph.said[-1] == "recorder ended with signal 9. It is started again."
    used, skipped = open_episodes(graph.bags / episode_id)
    assert not used and [each.name for each in skipped] == ["recovered"]
    recovered = EpisodeReader(graph.bags / episode_id, accept_recovered=True)
    assert recovered.result.recovered and not recovered.result.complete
    assert len(recovered.live) > 5
    episode_id = graph.start_episode(timeout_s=3.0)  # it may go to the one that was killed
    policy_acts(graph)
    assert EpisodeReader(end(graph, episode_id)).result.complete


def test_the_end_of_the_simulation_ends_the_run_with_a_sentence(tmp_path, policy, ros_domain):
    with nothing_left_running():
        with Graph(tmp_path, policy) as graph:
            episode_id = graph.start_episode()
            policy_acts(graph)
            graph.kill("robosuite_bridge")
            # The arbiter holds by its own timer.
            with Probe(ros_domain) as probe:
                executed = probe.listen(topics.EXECUTED_ACTION)
                wait_for(lambda: executed and not executed[-1].tick)
                assert executed[-1].authority == Authority.HOLD
                assert not np.any(executed[-1].action[:6])
            with pytest.raises(DeploymentError, match="robosuite_bridge ended with signal 9"):
                graph.until(lambda: False)
        bag = graph.bags / episode_id
        with pytest.raises(BadEpisode, match="Recording ended early"):
            EpisodeReader(bag)
        assert not EpisodeReader(bag, accept_recovered=True).result.complete


# Real time: an episode lasts 7.5 s, so that it runs on while a busy test is acting.
UNHURRIED = ("operator:=simulated", "lock_step:=false")


def deploy(folder, policy, *arguments):
    """``hapo deploy`` in a terminal's session."""
    words = [f"policy:={policy}", f"bags:={folder / 'bags'}", "optimizer:=false", *arguments]
    words.append(f"checkpoints:={folder / 'checkpoints'}")
    with (folder / "deploy.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "hapo_ros.cli", "deploy", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,
        )


def discard_running(client, ticks) -> str:
    """Discard an episode while it runs, whichever one the request meets; returns its id."""
    from hapo_ros.srv import DiscardEpisode

    while True:
        wait_for(lambda: ticks and ticks[-1].sequence > 5)
        episode_id = ticks[-1].episode_id
        reply = client.call_async(DiscardEpisode.Request(episode_id=episode_id, reason="A test."))
        wait_for(reply.done)
        if reply.result().ok:
            return episode_id
        wait_for(lambda ended=episode_id: ticks[-1].episode_id != ended)


def test_ctrl_c_twice_ends_everything_and_closes_the_bag(tmp_path, policy, ros_domain):
    from hapo_ros.srv import DiscardEpisode

    with nothing_left_running(), Probe(ros_domain) as probe:
        ticks = probe.listen(topics.OBSERVATION_TICK)
        process = deploy(tmp_path, policy, *UNHURRIED)
        try:
            client = probe.node.create_client(DiscardEpisode, topics.DISCARD_EPISODE)
            wait_for(client.service_is_ready)
            # Someone else ends an episode of the simulated operator: it starts the next one.
            discarded = discard_running(client, ticks)
            wait_for(lambda: ticks[-1].episode_id != discarded and ticks[-1].sequence > 5)
            for _ in range(2):
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(0.05)  # the fault that is injected: pressed twice
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
            process.wait()
    log = (tmp_path / "deploy.log").read_text()
    assert "Traceback" not in log, log
    assert EpisodeReader(tmp_path / "bags" / discarded).result.outcome == "discarded"
    bag = tmp_path / "bags" / ticks[-1].episode_id
    with pytest.raises(BadEpisode, match="Recording ended early"):
        EpisodeReader(bag)
    reader = EpisodeReader(bag, accept_recovered=True)
    assert not reader.result.complete and not reader.result.recovered
    assert reader.result.lost == {} and len(reader.live) >= 5


def test_the_simulated_operator_goes_on_after_a_killed_recorder_and_nodes_end_with_hapo_deploy(
    tmp_path, policy, ros_domain
):
    with nothing_left_running() as running, Probe(ros_domain) as probe:
        ticks = probe.listen(topics.OBSERVATION_TICK)
        process = deploy(tmp_path, policy, *UNHURRIED)
        try:
            wait_for(lambda: ticks and ticks[-1].sequence > 60)
            lost = ticks[-1].episode_id
            (recorder,) = [pid for pid, line in running().items() if "__node:=recorder" in line]
            os.kill(recorder, signal.SIGKILL)
            wait_for(lambda: ticks[-1].episode_id != lost and ticks[-1].sequence > 5)
        finally:
            process.kill()
            process.wait()
    bags = {path.name: path for path in (tmp_path / "bags").iterdir()}
    assert EpisodeReader(bags[lost], accept_recovered=True).result.recovered
    cut_short = EpisodeReader(bags[ticks[-1].episode_id], accept_recovered=True)
    assert not cut_short.result.complete and not cut_short.result.recovered


def test_a_deployment_without_its_spacemouse_ends_within_5_s_and_says_what_else_there_is(
    tmp_path, policy, ros_domain
):
    from hapo_ros.devices.spacemouse import list_devices

    if list_devices():
        pytest.skip("a SpaceMouse is plugged in")
    with nothing_left_running():
        began_s = time.monotonic()
        process = deploy(tmp_path, policy, "operator:=spacemouse")
        try:
            assert process.wait(DEADLINE_S) == 1
            took_s = time.monotonic() - began_s
        finally:
            process.kill()
            process.wait()
    log = (tmp_path / "deploy.log").read_text()
    assert took_s < 5.0, log  # the promise; nothing was started, so it takes a fraction of that
    assert "operator:=keyboard" in log and "operator:=simulated" in log and "Traceback" not in log
    assert "No SpaceMouse is plugged in. Nothing is started." in log and "Running" not in log


def test_a_deployment_of_no_checkpoint_ends_before_anything_starts(tmp_path, ros_domain):
    with nothing_left_running():
        process = deploy(tmp_path, tmp_path / "nowhere", "operator:=simulated")
        assert process.wait(DEADLINE_S) == 1
    log = (tmp_path / "deploy.log").read_text()
    assert "nowhere does not exist" in log and "Running" not in log and "Traceback" not in log
