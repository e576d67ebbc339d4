"""What one asks of a running deployment: episodes, another policy, a training, and clear refusals.

One deployment on the state alone, in real time and without an operator, for all tests here.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from ros_graph import (
    RUNNING,
    Graph,
    is_alive,
    nothing_left_running,
    save_untrained,
    start_node,
)

from hapo_ros import processes, topics
from hapo_ros.arbitration import Authority, Event, Reason
from hapo_ros.episodes import EpisodeReader, open_episodes
from hapo_ros.gateway_client import GatewayClient, GatewayError
from hapo_ros.policies.checkpoint import version_of

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)
pytest.importorskip("robosuite")

pytestmark = pytest.mark.timeout(240)

OBJECT_STATE = 10
PROMPT_S = 1.0  # within which every service answers, whatever runs besides


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Name -> checkpoint: the one served, another, and some that cannot be served."""
    root = tmp_path_factory.mktemp("policies")
    made = {
        name: save_untrained(root / name, object_state=OBJECT_STATE, seed=seed)
        for seed, name in enumerate(("served", "other", "third"))
    }
    made["other_state"] = save_untrained(root / "other_state", object_state=3)
    made["cameras"] = save_untrained(root / "cameras", cameras=("agentview",))
    made["truncated"] = shutil.copytree(made["other"], root / "truncated")
    weights = made["truncated"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    made["no_json"] = shutil.copytree(made["other"], root / "no_json")
    (made["no_json"] / "config.json").write_text("{")
    made["nowhere"] = root / "nowhere"
    return made


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, policies, module_ros_domain):
    folder = tmp_path_factory.mktemp("services")
    # However busy the machine is.
    parameters = {
        "arbiter": {"max_policy_failures": 1000, "tick_timeout_s": 5.0},
        "optimizer": {"niceness": 0},  # nor is a training to give way to other tests
    }
    with (
        nothing_left_running(),
        Graph(folder, policies["served"], parameters, optimizer="true") as graph,
    ):
        # As soon as all nodes have found each other.
        graph.gateway.call("discard_episode", episode_id=graph.start_episode(), reason="A test.")
        yield graph


@pytest.fixture
def graph(deployment):
    """The deployment, with no episode running before and after."""
    yield deployment
    deployment.discard_running()


def until_policy_acts(graph):
    acting = (int(Authority.POLICY), int(Reason.POLICY_ACTS))
    begin = len(graph.authorities)
    graph.until(
        lambda: any(
            (event["authority"], event["reason"]) == acting and event["sequence"] > 0
            for event in graph.authorities[begin:]
        )
    )


# Episodes


def test_an_episode_is_recorded_without_an_operator(graph):
    episode_id = graph.start_episode(seed=7)
    until_policy_acts(graph)
    ended = graph.end_episode(episode_id, outcome="failure", note="Seen enough.")
    assert ended["ok"] and ended["text"] == f"Recorded in {ended['bag']}."
    reader = EpisodeReader(ended["bag"])
    assert (reader.info.episode_id, reader.info.seed) == (episode_id, 7)
    assert (reader.result.outcome, reader.result.note) == ("failure", "Seen enough.")
    assert reader.result.lost == {} and reader.result.complete
    assert reader.info.object_state and topics.JOY not in reader.counts


def test_a_second_episode_is_refused_and_the_running_one_is_named(graph):
    episode_id = graph.start_episode()
    again = graph.gateway.call("start_episode", task="Lift", source="deployment", seed=2)
    assert not again["ok"] and episode_id in again["text"]
    assert graph.end_episode(episode_id)["ok"]
    assert "No episode is running" in graph.end_episode(episode_id)["text"]


def test_an_end_that_does_not_fit_is_refused_and_the_episode_goes_on(graph):
    episode_id = graph.start_episode()
    for wrong, said in (
        ({"episode_id": "another"}, episode_id),
        ({"outcome": "discarded"}, "outcome must be success or failure"),
        ({"outcome": "splendid"}, "outcome must be success or failure"),
    ):
        refused = graph.end_episode(**({"episode_id": episode_id} | wrong))
        assert not refused["ok"] and not refused["bag"] and said in refused["text"]
    wrong = graph.gateway.call("discard_episode", episode_id="another", reason="")
    assert not wrong["ok"] and episode_id in wrong["text"]
    until_policy_acts(graph)
    assert graph.end_episode(episode_id)["ok"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"task": "Juggle"}, "task:=Juggle"),
        ({"source": "hearsay"}, "source must be demonstration or deployment"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"episode_id": "../elsewhere"}, "must be 1 to 100 letters"),
    ],
)
def test_an_episode_that_cannot_be_is_refused_with_a_sentence(graph, wrong, said):
    before = sorted(graph.bags.parent.rglob("*.mcap"))
    request = {"task": "Lift", "source": "deployment", "seed": 1} | wrong
    refused = graph.gateway.call("start_episode", **request)
    assert not refused["ok"] and not refused["episode_id"] and said in refused["text"]
    assert sorted(graph.bags.parent.rglob("*.mcap")) == before
    assert graph.state.get("state") != RUNNING


def test_an_episode_of_a_name_on_disk_is_refused_and_nothing_is_overwritten(graph):
    episode_id = graph.start_episode(episode_id="twice")
    until_policy_acts(graph)
    bag = graph.end_episode(episode_id)["bag"]
    before = EpisodeReader(bag).bag_hash
    again = graph.gateway.call(
        "start_episode", task="Lift", source="deployment", seed=2, episode_id=episode_id
    )
    assert not again["ok"] and "exists already" in again["text"]
    assert EpisodeReader(bag).bag_hash == before


def test_a_discarded_episode_is_kept_and_never_used(graph):
    episode_id = graph.start_episode(episode_id="discarded")
    until_policy_acts(graph)
    discarded = graph.gateway.call("discard_episode", episode_id=episode_id, reason="A cable.")
    assert discarded["ok"] and "never used" in discarded["text"]
    bag = graph.bags / episode_id
    assert EpisodeReader(bag).result.outcome == "discarded"
    assert EpisodeReader(bag).result.note == "A cable."
    used, skipped = open_episodes(bag)
    assert not used and [each.name for each in skipped] == ["discarded"]


# The policy


def load(graph, checkpoint):
    return graph.gateway.call("load_policy", 60.0, checkpoint=str(checkpoint))


def test_another_policy_is_loaded_while_serving_and_the_next_steps_are_its(graph, policies):
    pid, before = graph.supervisor.pid("policy"), graph.served["version"]
    first = graph.start_episode()
    until_policy_acts(graph)
    bag_before = graph.end_episode(first)["bag"]
    stages, result = [], None
    request = graph.gateway.begin("load_policy", checkpoint=str(policies["other"]))
    for said in graph.gateway.replies(request, 150.0):
        stages += [said["feedback"]["stage"]] if said and "feedback" in said else []
        result = said["result"] if said and "result" in said else result
    # Feedback and result are not in order: what came after the result is not heard.
    assert stages
    assert stages == ["loading", "checking", "warming_up", "swapping"][: len(stages)]
    assert result["ok"] and result["policy_version"] != before
    second = graph.start_episode()  # at once: whoever records knows of it already
    until_policy_acts(graph)
    bag_after = graph.end_episode(second)["bag"]
    for bag, version in ((bag_before, before), (bag_after, result["policy_version"])):
        assert EpisodeReader(bag).info.policy_version == version
        made_by = {step.policy_version for step in EpisodeReader(bag).steps(images=False)}
        assert made_by <= {version, ""} and version in made_by
    assert graph.supervisor.pid("policy") == pid


def test_a_policy_node_that_crashed_serves_what_it_served(graph, policies):
    """Another one would act in the middle of an episode."""
    version = load(graph, policies["other"])["policy_version"]
    assert version == version_of(policies["other"])
    graph.until(lambda: graph.served["version"] == version)
    pid, told = graph.kill("policy"), len(graph.events)
    graph.until(lambda: graph.supervisor.pid("policy") not in (None, pid))
    graph.until(lambda: any(event["event"] == "policy" for event in graph.events[told:]))
    assert graph.served["version"] == version


def test_a_policy_is_not_loaded_during_an_episode_which_is_named(graph, policies):
    before = graph.served["version"]
    episode_id = graph.start_episode()
    until_policy_acts(graph)
    refused = load(graph, policies["third"])
    assert not refused["ok"] and episode_id in refused["text"]
    assert refused["policy_version"] == before == graph.served["version"]
    until_policy_acts(graph)
    graph.end_episode(episode_id)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("truncated", "was not loaded"),
        ("no_json", "is damaged"),
        ("nowhere", "does not exist"),
        ("cameras", "camera agentview 84 x 84"),
        ("other_state", "an object state of 3 numbers"),
    ],
)
def test_what_cannot_be_served_is_refused_and_the_old_policy_goes_on(graph, policies, name, said):
    pid, before = graph.supervisor.pid("policy"), graph.served["version"]
    refused = load(graph, policies[name])
    assert not refused["ok"] and said in refused["text"], refused["text"]
    assert refused["policy_version"] == before
    episode_id = graph.start_episode()
    until_policy_acts(graph)
    bag = graph.end_episode(episode_id)["bag"]
    made_by = {step.policy_version for step in EpisodeReader(bag).steps(images=False)}
    assert before in made_by and made_by <= {before, ""}
    assert graph.supervisor.pid("policy") == pid


def test_promote_serves_a_checkpoint_now_and_after_a_restart(graph, policies):
    from hapo_ros.cli import main

    version, pid = version_of(policies["third"]), graph.supervisor.pid("policy")
    arguments = [str(policies["third"]), "--checkpoints", str(graph.checkpoints)]
    assert main(["promote", *arguments]) == 0
    graph.until(lambda: graph.served["version"] == version)
    assert graph.supervisor.pid("policy") == pid
    current = json.loads((graph.checkpoints / "current.json").read_text())
    assert current == {"checkpoint": str(policies["third"]), "version": version}

    graph.kill("policy")
    told = len(graph.events)
    graph.until(lambda: any(event["event"] == "policy" for event in graph.events[told:]))
    assert graph.served["version"] == version and graph.supervisor.pid("policy") != pid


def test_a_promotion_that_is_refused_changes_nothing(graph, policies):
    from hapo_ros.promotion import promote

    before = graph.served
    current = graph.checkpoints / "current.json"
    text = current.read_text() if current.exists() else ""
    for name, said in (("truncated", "was not loaded"), ("other_state", "The policy stays")):
        with pytest.raises(ValueError, match=f"was not promoted.*{said}"):
            promote(policies[name], graph.checkpoints, graph.gateway)
    with pytest.raises(ValueError, match=r"was not promoted.*current\.json cannot be written"):
        promote(policies["other"], policies["other"] / "config.json", graph.gateway)
    assert (current.read_text() if current.exists() else "") == text
    graph.gateway.news()
    assert graph.served == before


def test_nothing_is_promoted_while_an_episode_runs_though_the_policy_is_dead(
    graph, policies, capfd
):
    """It would be served from the middle of the episode on, by the node that is started again."""
    from hapo_ros.cli import main

    current = graph.checkpoints / "current.json"
    text = current.read_text() if current.exists() else ""
    episode_id = graph.start_episode()
    pid = graph.kill("policy")  # nobody watches meanwhile, so it stays dead
    promote = ["promote", str(policies["other"]), "--checkpoints", str(graph.checkpoints)]
    assert main(promote) == 1
    assert f"Episode {episode_id} is running" in capfd.readouterr().err
    assert graph.supervisor.pid("policy") is None
    graph.until(lambda: graph.supervisor.pid("policy") not in (None, pid))
    assert (current.read_text() if current.exists() else "") == text
    assert graph.gateway.running_episode == episode_id


# The optimizer


@pytest.fixture(scope="module")
def recordings(tmp_path_factory, policies):
    """Folders of a demonstration and of a deployment with takeovers, state only."""
    from hapo_ros.sim.operator import OperatorConfig
    from hapo_ros.sim.rollout import collect

    root = tmp_path_factory.mktemp("recordings")
    seen = {"cameras": {}, "object_state": True}
    collect(root / "demonstrations", "Lift", [1], workers=0, **seen)
    operator = OperatorConfig(patience_steps=5, finish=True)
    collect(
        root / "deployments",
        "Lift",
        [2],
        checkpoint=policies["served"],
        operator=operator,
        workers=0,
    )
    return [str(root / "demonstrations"), str(root / "deployments")]


def goal(graph, policies, bags, name, method="hapo_anchored", **settings):
    settings = {"steps": 4, "batch_size": 8, **settings}
    return {
        "bags": [str(bag) for bag in bags],
        "base_checkpoint": str(policies["served"]),
        "method": method,
        "output": str(graph.folder / "trained" / name),
        "settings_json": json.dumps(settings),
    }


def feedback_and_result(graph, request):
    feedback, result = [], None
    for said in graph.gateway.replies(request, 150.0):
        graph.supervisor.watch()
        if said and "feedback" in said:
            feedback.append(said["feedback"])
        elif said:
            result = said["result"]
    return feedback, result


def children_of_the_optimizer(graph) -> list[int]:
    pid = graph.supervisor.pid("optimizer")
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


def end_the_optimizer(graph) -> None:
    """That of the deployment, where it still runs; a test starts its own."""
    if pid := graph.supervisor.pid("optimizer"):
        os.kill(pid, signal.SIGTERM)
        graph.until(lambda: graph.supervisor.pid("optimizer") is None)


def test_a_training_tells_how_far_it_is_and_names_its_checkpoint(graph, policies, recordings):
    from hapo_ros.policies import checkpoint

    wanted = goal(graph, policies, recordings, "told")
    feedback, result = feedback_and_result(graph, graph.gateway.begin("optimize", **wanted))
    assert [told["step"] for told in feedback] == [1, 2, 3, 4][: len(feedback)] and feedback
    for told in feedback:
        assert told["total"] == 4 and told["loss"] > 0 and told["time_left_s"] >= 0
        assert None not in (told["reward_desirable"], told["reward_undesirable"])
    assert result["ok"] and result["checkpoint"] == wanted["output"]
    policy = checkpoint.load(result["checkpoint"])
    assert policy.version == result["policy_version"]
    assert checkpoint.read_provenance(result["checkpoint"])["method"] == "hapo_anchored"
    assert graph.served["version"] != policy.version  # it is not served by itself
    assert not children_of_the_optimizer(graph)


def test_the_review_page_starts_a_training_and_follows_it(graph, policies, recordings, tmp_path):
    from hapo_ros.policies import checkpoint
    from hapo_ros.review.training import Training

    shutil.copytree(policies["served"], tmp_path / "served")
    training, told = Training(tmp_path), []

    def ended():
        told.append(training.status())
        return told[-1]["state"] != "running"

    settings = {"steps": 4, "batch_size": 8}
    training.start(recordings, "served", "hapo_anchored", "better", settings)
    graph.until(ended)
    assert told[-1]["state"] == "done", told[-1]["text"]
    assert told[-1]["checkpoint"] == str(tmp_path / "better")
    assert any(each.get("step") for each in told)
    provenance = checkpoint.read_provenance(tmp_path / "better")
    assert len(provenance["bags"]) == len(recordings)
    assert "better" in training.bases()


def test_a_goal_that_is_not_answered_is_asked_for_again_and_begun_once(graph, policies, recordings):
    from hapo_ros.nodes.gateway import ANSWER_S

    pid = graph.until(lambda: graph.supervisor.pid("optimizer"))
    os.kill(pid, signal.SIGSTOP)
    try:
        wanted = goal(graph, policies, recordings, "asked_again", "bc_continue", steps=1)
        request = graph.gateway.begin("optimize", **wanted)
        asked_again_s = time.monotonic() + ANSWER_S + 1.0
        graph.until(lambda: time.monotonic() > asked_again_s)
    finally:
        os.kill(pid, signal.SIGCONT)
    feedback, result = feedback_and_result(graph, request)
    assert result["ok"], result["text"]
    for told in feedback:  # its method has no rewards
        assert told["reward_desirable"] is told["reward_undesirable"] is None
    assert "a second goal is refused" in graph.log("optimizer")


def test_while_a_training_runs_services_answer_and_a_second_is_refused_until_it_is_cancelled(
    graph, policies, recordings
):
    wanted = goal(graph, policies, recordings, "cancelled", steps=1_000_000)
    request = graph.gateway.begin("optimize", **wanted)
    replies = graph.gateway.replies(request, 150.0)
    next(said for said in replies if said and "feedback" in said)
    took_s = {}
    try:
        with GatewayClient(30.0) as other:
            with pytest.raises(GatewayError, match="refused"):
                other.call("optimize", **goal(graph, policies, recordings, "second"))
            asked = [
                ("end_episode", {"episode_id": "none", "outcome": "success"}),
                ("discard_episode", {"episode_id": "none"}),
                ("start_episode", {"task": "Juggle", "source": "deployment"}),
                ("request_authority", {"event": 99}),
                ("load_policy", {"checkpoint": str(policies["nowhere"])}),
            ]
            # First, what is called has to be found on the graph; later, the machine may be busy.
            for call, fields in asked * 5:
                began_s = time.monotonic()
                assert not other.call(call, **fields)["ok"]
                took_s[call] = min(took_s.get(call, np.inf), time.monotonic() - began_s)
            episode_id = other.call("start_episode", task="Lift", source="deployment")["episode_id"]
            until_policy_acts(graph)
            assert graph.end_episode(episode_id)["ok"]
            assert children_of_the_optimizer(graph)
    finally:
        graph.gateway.cancel(request)
        *_, last = replies
    assert max(took_s.values()) < PROMPT_S, took_s
    assert not last["result"]["ok"] and last["result"]["text"].startswith("Cancelled")
    assert not last["result"]["checkpoint"]
    assert not children_of_the_optimizer(graph)
    left = [path.name for path in (graph.folder / "trained").iterdir()]
    assert not [name for name in left if "second" in name]
    assert [name for name in left if "cancelled" in name] in ([], ["cancelled.run"])


@pytest.mark.parametrize(
    ("bags", "settings", "said"),
    [
        ("missing", {}, "nothing was trained"),
        ("truncated", {}, "nothing was trained"),
        ("good", {"steps": 0}, "Setting steps must be"),
        ("good", {"speed": 3}, "no setting 'speed'"),
    ],
)
def test_a_training_that_cannot_be_ends_with_a_sentence_and_no_checkpoint(
    graph, policies, recordings, bags, settings, said, tmp_path
):
    given = {"good": recordings, "missing": [tmp_path / "nothing"], "truncated": [tmp_path / "bag"]}
    if bags == "truncated":
        (source,) = Path(recordings[0]).iterdir()
        shutil.copytree(source, tmp_path / "bag")
        file = next((tmp_path / "bag").glob("*.mcap"))
        file.write_bytes(file.read_bytes()[:2000])
    wanted = goal(graph, policies, given[bags], f"bad-{bags}-{len(settings)}", **settings)
    _, result = feedback_and_result(graph, graph.gateway.begin("optimize", **wanted))
    assert not result["ok"] and not result["checkpoint"]
    assert said in result["text"] and "Traceback" not in result["text"], result["text"]
    assert not (graph.folder / "trained" / f"bad-{bags}-{len(settings)}").exists()


def test_a_training_that_was_killed_is_aborted_with_the_reason_and_the_next_one_is_accepted(
    graph, policies, recordings
):
    wanted = goal(graph, policies, recordings, "killed", steps=1_000_000)
    replies = graph.gateway.replies(graph.gateway.begin("optimize", **wanted), 60.0)
    next(said for said in replies if said and "feedback" in said)
    (child,) = children_of_the_optimizer(graph)
    os.kill(child, signal.SIGKILL)
    *_, last = replies
    assert not last["result"]["ok"] and not last["result"]["checkpoint"]
    assert "signal 9" in last["result"]["text"] and "memory" in last["result"]["text"]
    assert not (graph.folder / "trained" / "killed").exists()
    wanted = goal(graph, policies, recordings, "after", steps=1)
    _, result = feedback_and_result(graph, graph.gateway.begin("optimize", **wanted))
    assert result["ok"], result["text"]


def test_the_result_of_a_training_says_which_bags_were_skipped(graph, policies, recordings):
    wanted = goal(graph, policies, [*recordings, recordings[0]], "skipped", steps=1)
    _, result = feedback_and_result(graph, graph.gateway.begin("optimize", **wanted))
    assert result["ok"] and "1 bag was skipped: " in result["text"]
    assert "given before" in result["text"]


# The authority


def test_a_hold_is_asked_for_and_ended(graph):
    episode_id = graph.start_episode()
    until_policy_acts(graph)
    assert graph.request(Event.HOLD)["ok"]
    graph.until(lambda: graph.authorities[-1]["reason"] == Reason.OPERATOR_HOLD)
    assert graph.authorities[-1]["authority"] == Authority.HOLD
    assert graph.request(Event.RESUME)["ok"]
    until_policy_acts(graph)
    bag = graph.end_episode(episode_id)["bag"]
    steps = EpisodeReader(bag).steps(images=False)
    held = [step for step in steps if step.reason == Reason.OPERATOR_HOLD]
    assert held and not any(step.action[:6].any() or step.live != 3 for step in held)
    refused = graph.request(Event.START_DEPLOYMENT)
    assert not refused["ok"]


def test_no_episode_starts_in_a_fault_and_the_next_one_after_it_was_cleared_acts(graph):
    assert graph.request(Event.ESTOP)["ok"]
    graph.until(lambda: graph.authorities[-1]["authority"] == Authority.FAULT)
    resumed = graph.request(Event.RESUME)
    assert not resumed["ok"] and "a fault is latched" in resumed["text"]
    refused = graph.gateway.call("start_episode", task="Lift", source="deployment", seed=1)
    assert not refused["ok"] and "The arbiter is in FAULT" in refused["text"]
    assert graph.request(Event.CLEAR_FAULT)["ok"]
    graph.until(lambda: graph.authorities[-1]["reason"] == Reason.FAULT_CLEARED)
    episode_id = graph.start_episode()
    until_policy_acts(graph)
    assert graph.end_episode(episode_id)["ok"]


def test_every_parameter_of_every_node_is_described_and_typed(graph, module_ros_domain):
    from rcl_interfaces.srv import DescribeParameters, ListParameters
    from ros_graph import Probe

    with Probe(module_ros_domain) as probe:

        def call(node, type_, name, request):
            client = probe.node.create_client(type_, f"/{node}/{name}")
            graph.until(client.service_is_ready)
            future = client.call_async(request)
            graph.until(future.done)
            return future.result()

        for spec in graph.deployment.nodes:
            names = call(spec.name, ListParameters, "list_parameters", ListParameters.Request())
            own = [
                name
                for name in names.result.names
                if name not in ("use_sim_time", "start_type_description_service")
            ]
            request = DescribeParameters.Request(names=own)
            told = call(spec.name, DescribeParameters, "describe_parameters", request)
            assert len(told.descriptors) == len(own) > 0, spec.name
            for descriptor in told.descriptors:
                where = (spec.name, descriptor.name)
                assert descriptor.description and descriptor.type, where
                assert descriptor.read_only and not descriptor.dynamic_typing, where
                ranges = {2: descriptor.integer_range, 3: descriptor.floating_point_range}
                assert len(ranges.get(descriptor.type, [None])) == 1, where
            assert set(spec.parameters) <= set(own)


def test_an_optimizer_that_is_stopped_takes_its_training_with_it(graph, policies, recordings):
    """Those that follow start their own: an optimizer that ended is not started again."""
    wanted = goal(graph, policies, recordings, "stopped", steps=1_000_000)
    replies = graph.gateway.replies(graph.gateway.begin("optimize", **wanted), 60.0)
    next(said for said in replies if said and "feedback" in said)
    children = children_of_the_optimizer(graph)
    assert children and all(map(is_alive, children))
    end_the_optimizer(graph)
    graph.until(lambda: not any(map(is_alive, children)))
    told = "optimizer ended with exit code 0. The run goes on without it"
    graph.until(lambda: any(said.startswith(told) for said in graph.said))
    assert "Traceback" not in graph.log("optimizer"), graph.log("optimizer")
    assert not (graph.folder / "trained" / "stopped").exists()
    episode_id = graph.start_episode()
    until_policy_acts(graph)
    assert graph.end_episode(episode_id)["ok"]


def test_the_training_of_an_optimizer_that_was_killed_ends_with_it(graph, policies, recordings):
    end_the_optimizer(graph)
    log = graph.logs / "killed_optimizer.log"
    with nothing_left_running() as running:
        optimizer = start_node("optimizer", log)
        wanted = goal(graph, policies, recordings, "killed", steps=1_000_000)
        replies = graph.gateway.replies(graph.gateway.begin("optimize", **wanted), 60.0)
        next(said for said in replies if said and "feedback" in said)
        assert len(running()) > 1  # it and the training
        optimizer.kill()
        optimizer.wait(10.0)
    assert not (graph.folder / "trained" / "killed").exists()


def test_what_libraries_print_is_not_taken_for_the_trainings_words(
    graph, policies, recordings, monkeypatch
):
    """MKL tells on stdout of every product that it computes, where that is asked for."""
    end_the_optimizer(graph)
    monkeypatch.setenv("MKL_VERBOSE", "1")
    log = graph.logs / "talkative_optimizer.log"
    optimizer = start_node("optimizer", log)
    try:
        wanted = goal(graph, policies, recordings, "talkative", steps=2)
        _, result = feedback_and_result(graph, graph.gateway.begin("optimize", **wanted))
    finally:
        processes.stop(optimizer, 20.0)
    assert result["ok"], result["text"]
    assert "Traceback" not in log.read_text(), log.read_text()
