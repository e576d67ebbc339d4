"""What breaks while a deployment runs, and what becomes of the robot, the run and the recording."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_spacemouse import AT_REST, AWAY, Mouse, install
from ros_graph import (
    DEADLINE_S,
    RUNNING,
    Graph,
    Probe,
    configuration,
    nothing_left_running,
    save_untrained,
    wait_for,
)

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


def policy_acts(graph, episode_id, steps: int = 10):
    """The policy has control in this episode, and has decided so many steps."""
    graph.until(lambda: graph.authorities and graph.authorities[-1]["episode_id"] == episode_id)
    resume(graph, steps)


def resume(graph, steps: int = 10):
    """A human's resume, again where the machine was so busy that it held again."""
    first = graph.authorities[-1]["labels"][labels.POLICY]

    def going():
        status = graph.authorities[-1]
        if status["authority"] == Authority.HOLD:
            assert graph.request(Event.RESUME)["ok"]
        return status["labels"][labels.POLICY] > first + steps

    graph.until(going)


def decided_for(bag, after: int, reason: Reason) -> list[int]:
    """Sequences of the decisions of a bag for this reason, after a step; applied in time or not."""
    decisions = load(bag).decisions
    return sorted(s for s, decision in decisions.items() if s > after and decision.reason is reason)


def end(graph, episode_id) -> Path:
    ended = graph.end_episode(episode_id)
    assert ended["ok"], ended["text"]
    return Path(ended["bag"])


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, policy, module_ros_domain):
    folder = tmp_path_factory.mktemp("faults")
    patient = {"arbiter": {"tick_timeout_s": 5.0}}  # however busy the machine is
    with nothing_left_running(), Graph(folder, policy, patient) as graph:
        yield graph


@pytest.fixture
def graph(deployment):
    """The deployment, with no episode running before and after."""
    yield deployment
    deployment.discard_running()


def test_a_killed_policy_is_late_then_gone_comes_back_and_a_human_resumes(graph):
    episode_id = graph.start_episode()
    policy_acts(graph, episode_id)
    killed_at, killed = graph.authorities[-1]["sequence"], graph.kill("policy")
    authority_of(graph, Authority.HOLD, Reason.POLICY_GONE)
    told = len(graph.events)
    graph.until(lambda: any(event["event"] == "policy" for event in graph.events[told:]))
    assert graph.supervisor.pid("policy") != killed
    assert graph.said[-1] == "policy ended with signal 9. It is started again."
    assert graph.authorities[-1]["authority"] == Authority.HOLD
    resume(graph)
    reader = EpisodeReader(end(graph, episode_id))
    steps = reader.steps(images=False)
    gone = min(decided_for(reader.path, killed_at, Reason.POLICY_GONE))
    late = [s for s in decided_for(reader.path, killed_at, Reason.POLICY_LATE) if s < gone]
    assert len(late) >= 4
    for step in steps:
        if step.reason in (Reason.POLICY_GONE, Reason.POLICY_LATE):
            assert step.live == labels.NONE and not step.action[:6].any()
    assert decided_for(reader.path, gone, Reason.POLICY_ACTS)
    assert reader.result.lost == {}


def test_a_stopped_policy_is_gone_and_answers_nothing_that_is_over_when_it_goes_on(graph):
    episode_id = graph.start_episode()
    policy_acts(graph, episode_id)
    pid = graph.supervisor.pid("policy")
    os.kill(pid, signal.SIGSTOP)
    try:
        stopped_at = graph.authorities[-1]["sequence"]
        authority_of(graph, Authority.HOLD, Reason.POLICY_GONE)
        graph.until(lambda: graph.authorities[-1]["sequence"] > stopped_at + 20)
        assert graph.authorities[-1]["authority"] == Authority.HOLD
    finally:
        os.kill(pid, signal.SIGCONT)
    over = graph.authorities[-1]["sequence"]
    resume(graph)
    assert graph.supervisor.pid("policy") == pid
    bag = end(graph, episode_id)
    answered = {command.sequence for command in load(bag).commands}
    # The one that it was at when it was stopped, and one that it began with when it went on.
    assert len(answered & set(range(stopped_at + 5, over))) <= 1
    held = [s for s in EpisodeReader(bag).steps(images=False) if stopped_at + 5 < s.sequence < over]
    assert held and all(s.live == labels.NONE and not s.action[:6].any() for s in held)


def test_a_killed_arbiter_comes_back_holding_and_a_human_resumes_the_same_episode(graph):
    episode_id = graph.start_episode()
    policy_acts(graph, episode_id)
    graph.kill("arbiter")
    authority_of(graph, Authority.HOLD, Reason.RESTARTED)
    assert graph.said[-1] == "arbiter ended with signal 9. It is started again."
    resume(graph)
    bag = end(graph, episode_id)
    steps = EpisodeReader(bag).steps(images=False)
    assert EpisodeReader(bag).result.lost == {}  # nobody decided meanwhile: nothing was lost
    restarted = [s for s in steps if s.reason == Reason.RESTARTED]
    assert all(s.live == labels.NONE and not s.action[:6].any() for s in restarted)
    first, last = restarted[0].sequence, restarted[-1].sequence
    before = [s for s in decided_for(bag, 0, Reason.POLICY_ACTS) if s < first]
    assert before and decided_for(bag, last, Reason.POLICY_ACTS)
    # In between nobody decided, and the simulation held.
    undecided = [s for s in steps if before[-1] < s.sequence < first]
    assert any(s.reason == Reason.NO_EPISODE for s in undecided)
    assert all(s.live == labels.NONE and not s.action[:6].any() for s in undecided)


def test_a_frozen_arbiter_is_told_of_and_the_robot_holds_meanwhile(graph):
    episode_id = graph.start_episode()
    policy_acts(graph, episode_id)
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
    outcomes, steps = load(bag).outcomes, EpisodeReader(bag).steps(images=False)
    held = [step for step in steps if outcomes.get(step.sequence) == Applied.LATE_HELD]
    assert len(held) >= 5  # some 20, if the machine keeps up
    assert all(step.live == labels.NONE and not step.action[:6].any() for step in held)
    assert EpisodeReader(bag).result.lost == {}


def test_a_killed_recorder_ends_the_episode_and_what_it_had_is_recovered(graph):
    episode_id = graph.start_episode()
    policy_acts(graph, episode_id)
    # The last second is lost: of an episode of 3 s there is something left.
    graph.until(lambda: graph.authorities[-1]["sequence"] > 60)
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
    policy_acts(graph, episode_id)
    assert EpisodeReader(end(graph, episode_id)).result.complete


def test_a_killed_simulated_operator_goes_on_with_the_seeds_that_were_not_used(
    tmp_path, policy, ros_domain
):
    """It was killed in the second episode: what it knew of that is lost, so it is discarded."""
    operator = {"patience_steps": 8, "success_steps": 50}
    arguments = {"operator": "simulated", "episodes": 3, "first_seed": 11}
    parameters = {"simulated_operator": operator}
    with nothing_left_running(), Graph(tmp_path, policy, parameters, **arguments) as graph:
        graph.until(lambda: graph.state.get("seed") == 12 and graph.state["state"] == RUNNING)
        second = graph.state["episode_id"]
        graph.until(
            lambda: any(
                event["episode_id"] == second and event["sequence"] > 3
                for event in graph.authorities[-3:]
            )
        )
        graph.kill("simulated_operator")
        bags = graph.until_done()
        assert graph.said == ["simulated_operator ended with signal 9. It is started again."]
    found = [(reader.info.seed, reader.result.outcome) for reader in map(EpisodeReader, bags)]
    assert [seed for seed, _ in found] == [11, 12, 13]
    assert [seed for seed, outcome in found if outcome == "discarded"] == [12]


def test_a_spacemouse_that_falls_silent_or_whose_node_is_killed_is_a_lost_device_and_comes_back(
    tmp_path, policy, ros_domain, monkeypatch
):
    pytest.importorskip("pyspacemouse")
    mouse = Mouse(tmp_path / "hid")
    monkeypatch.setenv("AMENT_PREFIX_PATH", install(tmp_path / "prefix", mouse.path))
    parameters = {"arbiter": {"device_timeout_s": 0.5}}  # a busy machine is not to look like it
    folder, given = tmp_path / "graph", {"operator": "spacemouse"}
    with nothing_left_running(), Graph(folder, policy, parameters, **given) as graph:

        def until(authority, reason, pushing=False):
            """With the cap pushed or let go, by whichever process reads it."""

            def found():
                if mouse.wanted():
                    mouse.opened()
                mouse.cable.send(AWAY if pushing else AT_REST)
                status = graph.authorities[-1] if graph.authorities else {}
                return (status.get("authority"), status.get("reason")) == (authority, reason)

            graph.until(found)

        mouse.opened()
        graph.start_episode()
        graph.until(lambda: graph.authorities and graph.authorities[-1]["device_armed"])
        until(Authority.HUMAN, Reason.HUMAN_ACTS, pushing=True)
        # The reports stop while the cap is deflected.
        graph.until(lambda: graph.authorities[-1]["reason"] == Reason.DEVICE_LOST)
        assert graph.authorities[-1]["authority"] == Authority.HOLD
        until(Authority.HOLD, Reason.DEVICE_LOST)
        graph.until(lambda: graph.authorities[-1]["device_armed"])  # it has been seen neutral
        until(Authority.HUMAN, Reason.HUMAN_ACTS, pushing=True)
        killed = graph.kill("spacemouse")
        graph.until(lambda: graph.authorities[-1]["reason"] == Reason.DEVICE_LOST)
        assert graph.authorities[-1]["authority"] == Authority.HOLD
        graph.until(mouse.wanted)
        mouse.opened()
        assert graph.supervisor.pid("spacemouse") not in (killed, None)
        assert graph.said == ["spacemouse ended with signal 9. It is started again."]
        graph.until(lambda: graph.authorities[-1]["device_armed"])  # it has been seen neutral
        assert graph.authorities[-1]["authority"] == Authority.HOLD
        until(Authority.HUMAN, Reason.HUMAN_ACTS, pushing=True)


def test_an_arbiter_whose_decisions_go_elsewhere_is_found_before_anything_is_recorded(
    tmp_path, policy, ros_domain
):
    elsewhere = {"arbiter": ["-r", f"{topics.EXECUTED_ACTION}:=elsewhere"]}
    with nothing_left_running(), Graph(tmp_path, policy, by_hand=elsewhere) as graph:
        graph.until(lambda: graph.served and graph.authorities)
        request = {"task": "Lift", "source": "deployment", "seed": 1}
        missing = f"No one publishes {topics.EXECUTED_ACTION}. Nothing is recorded."

        def named():
            return missing in graph.gateway.call("start_episode", 30.0, **request)["text"]

        graph.until(named)
        assert not list(graph.bags.iterdir())


def test_the_end_of_the_simulation_ends_the_run_with_a_sentence(tmp_path, policy, ros_domain):
    with nothing_left_running():
        with Graph(tmp_path, policy) as graph:
            episode_id = graph.start_episode()
            policy_acts(graph, episode_id)
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


def test_a_simulation_that_hangs_ends_the_run_too(tmp_path, policy, ros_domain):
    parameters = {"arbiter": {"give_up_ticks_s": 1.0}}
    with nothing_left_running(), Graph(tmp_path, policy, parameters) as graph:
        graph.start_episode()
        hung = graph.supervisor.pid("robosuite_bridge")
        os.kill(hung, signal.SIGSTOP)
        try:
            with pytest.raises(DeploymentError, match="arbiter has given up") as ended:
                graph.until(lambda: False)
        finally:
            os.kill(hung, signal.SIGCONT)
    assert "has had no tick for" in str(ended.value) and "The run ends" in str(ended.value)


def unhurried(folder) -> list[str]:
    """Arguments of a deployment whose episodes last 7.5 s: in real time, on after the task is done.

    So one that runs still does when a busy test has come to act on it.
    """
    config = configuration(folder, {"simulated_operator": {"success_steps": 100}})
    return ["operator:=simulated", "lock_step:=false", f"config:={config}"]


def under_way(ticks, but: str = "") -> bool:
    """Whether an episode, but for this one, has begun, and decisions are executed in it."""
    last = ticks[-1] if ticks else None
    begun = last is not None and last.episode_id != but and last.sequence > 15
    return begun and last.applied == Applied.APPLIED


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
        wait_for(lambda: under_way(ticks))
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
        process = deploy(tmp_path, policy, *unhurried(tmp_path))
        try:
            client = probe.node.create_client(DiscardEpisode, topics.DISCARD_EPISODE)
            wait_for(client.service_is_ready)
            # Someone else ends an episode of the simulated operator: it starts the next one.
            discarded = discard_running(client, ticks)
            wait_for(lambda: under_way(ticks, but=discarded))
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
        process = deploy(tmp_path, policy, *unhurried(tmp_path))
        try:
            wait_for(lambda: under_way(ticks))
            lost = ticks[-1].episode_id
            (recorder,) = [pid for pid, line in running().items() if "__node:=recorder" in line]
            os.kill(recorder, signal.SIGKILL)
            wait_for(lambda: under_way(ticks, but=lost))
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
    took_s = []
    with nothing_left_running():
        # The promise is 5 s; nothing is started, so it takes a fraction of that on a quiet machine.
        while not took_s or (min(took_s) >= 5.0 and len(took_s) < 5):
            began_s = time.monotonic()
            process = deploy(tmp_path, policy, "operator:=spacemouse")
            try:
                assert process.wait(DEADLINE_S) == 1
                took_s.append(time.monotonic() - began_s)
            finally:
                process.kill()
                process.wait()
    log = (tmp_path / "deploy.log").read_text()
    assert min(took_s) < 5.0, log
    assert "operator:=keyboard" in log and "operator:=simulated" in log and "Traceback" not in log
    assert "No SpaceMouse is plugged in. Nothing is started." in log and "Running" not in log


def test_a_deployment_of_no_checkpoint_ends_before_anything_starts(tmp_path, ros_domain):
    with nothing_left_running():
        process = deploy(tmp_path, tmp_path / "nowhere", "operator:=simulated")
        assert process.wait(DEADLINE_S) == 1
    log = (tmp_path / "deploy.log").read_text()
    assert "nowhere does not exist" in log and "Running" not in log and "Traceback" not in log


def test_a_fault_in_lock_step_is_cleared_though_the_last_report_was_of_a_deflected_cap(
    tmp_path, policy, ros_domain
):
    parameters = {"simulated_operator": {"patience_steps": 8, "finish": True}}
    arguments = {"operator": "simulated", "lock_step": "true", "episodes": 2}
    with nothing_left_running(), Graph(tmp_path, policy, parameters, **arguments) as graph:

        def authority():
            return graph.authorities[-1]["authority"] if graph.authorities else None

        graph.until(lambda: authority() == Authority.HUMAN)
        bridge = graph.supervisor.pid("robosuite_bridge")
        os.kill(bridge, signal.SIGSTOP)  # no tick comes any more, so no report either
        try:
            assert graph.request(Event.ESTOP)["ok"]
            first = graph.state["episode_id"]
            assert graph.gateway.call("discard_episode", episode_id=first, reason="A test.")["ok"]
            graph.until(lambda: graph.request(Event.CLEAR_FAULT)["ok"])
        finally:
            os.kill(bridge, signal.SIGCONT)
        graph.until(lambda: graph.state.get("state") == RUNNING)
        assert graph.state["episode_id"] != first
