"""Episodes at 20 Hz: nothing is lost, and what comes too late is neither executed nor learned."""

import threading
from pathlib import Path

import numpy as np
import pytest
from ros_graph import Graph, Probe, nothing_left_running, save_untrained, wait_for

from hapo_ros import labels, topics
from hapo_ros.arbitration import Applied, Reason
from hapo_ros.episodes import EpisodeReader
from hapo_ros.episodes.contents import load

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)
pytest.importorskip("robosuite")

CAMERAS = ("agentview", "wrist")
LATE_S = 0.08
# Which of the answers and decisions to ticks a relay delays.
LATE_ANSWERS, LATE_DECISIONS = range(5, 25), range(60, 80)
ARGUMENTS = {"operator": "simulated", "lock_step": "false", "episodes": 1}


def run(folder, policy, operator, **options):
    parameters = {"simulated_operator": operator} | options.pop("parameters", {})
    with nothing_left_running(), Graph(folder, policy, parameters, **ARGUMENTS, **options) as graph:
        return graph.until_done()[0]


def test_in_real_time_with_two_cameras_nothing_is_lost(tmp_path, ros_domain):
    policy = save_untrained(tmp_path / "policy", cameras=CAMERAS)
    # It goes on after the task is done, up to the task's horizon: 150 steps, 7.5 s.
    # Neither device nor ticks are ever lost: how punctual the machine is is not what this shows.
    bag = run(
        tmp_path,
        policy,
        {"patience_steps": 20, "success_steps": 100},
        parameters={"arbiter": {"device_timeout_s": 5.0, "tick_timeout_s": 5.0}},
    )
    reader, recorded = EpisodeReader(bag), load(bag)
    assert reader.result.lost == {} and reader.result.complete and reader.lost_steps == 0
    assert len(reader.sequences) >= 149
    assert sorted(recorded.ticks) == list(range(len(recorded.ticks)))  # no gap
    for sequence, stamps in recorded.stamps.items():
        assert set(map(topics.image, CAMERAS)) < stamps.keys()
        for topic, stamp_ns in stamps.items():
            have = (topic, stamp_ns) in recorded.states.keys() | recorded.image_stamps
            assert have, (sequence, topic)
    stamps_ns = [recorded.ticks[sequence].stamp_ns for sequence in sorted(recorded.ticks)]
    assert np.all(np.diff(stamps_ns) > 0)
    # The device reported from before the first tick on, at rest too.
    assert decided_for(recorded, Reason.DEVICE_LOST_POLICY, Reason.DEVICE_LOST) == 0
    # How many of the policy's answers were in time, so how many there are, is the machine's.
    assert labels.HUMAN in {d.label for d in recorded.decisions.values()}


def decided_for(recorded, *reasons) -> int:
    return sum(decision.reason in reasons for decision in recorded.decisions.values())


class Relay:
    """Passes messages on from one topic to another, some of them ``LATE_S`` later.

    And not before the next tick, which may be late itself on a busy machine. late: which of the
    messages that answer a tick, by their count. delayed: the sequences of those, in order.
    """

    def __init__(self, probe, topic, source, late, ticks):
        self.late, self.output, self.ticks = late, probe.publisher(topic), ticks
        self.passed, self.delayed = 0, []
        type_ = self.output.msg_type
        self.input = probe.node.create_subscription(type_, source, self.pass_on, 200)

    def is_fed(self) -> bool:
        return self.input.get_publisher_count() > 0

    def pass_on(self, message):
        answers = getattr(message, "tick", True)  # the arbiter's own timer does not
        self.passed += answers
        if answers and self.passed in self.late:
            self.delayed.append(message.sequence)
            threading.Timer(LATE_S, self.pass_on_late, [message]).start()
        else:
            self.output.publish(message)

    def pass_on_late(self, message):
        wait_for(lambda: self.ticks[-1].sequence > message.sequence)
        self.output.publish(message)


def test_an_action_that_is_80_ms_late_is_never_executed_and_never_learned(tmp_path, ros_domain):
    from hapo_ros.learning.data import from_readers

    policy = save_untrained(tmp_path / "policy", object_state=10)
    by_hand = {
        # It answers however busy the machine is: it is the relay that makes answers late.
        "policy": ["-r", f"{topics.POLICY_ACTION}:=undelayed/policy", "-p", "deadline_s:=0.0"],
        "arbiter": ["-r", f"{topics.EXECUTED_ACTION}:=undelayed/decision"],
    }
    # Only what is late holds the robot here; nobody has a device.
    unhurried = {"max_policy_failures": 1000, "tick_timeout_s": 5.0}
    parameters = {"arbiter": unhurried | {"on_device_lost": "continue"}}
    graph = Graph(tmp_path, policy, parameters, by_hand, lock_step="false")
    with nothing_left_running(), Probe(ros_domain) as probe, graph:
        heard = probe.listen(topics.OBSERVATION_TICK)
        answers = Relay(probe, topics.POLICY_ACTION, "undelayed/policy", LATE_ANSWERS, heard)
        passed_on = Relay(
            probe, topics.EXECUTED_ACTION, "undelayed/decision", LATE_DECISIONS, heard
        )
        graph.until(lambda: answers.is_fed() and passed_on.is_fed())
        episode_id = graph.start_episode()

        def all_was_late():
            delayed = answers.delayed, passed_on.delayed
            last = max((sequence for each in delayed for sequence in each), default=0)
            enough = list(map(len, delayed)) == [len(LATE_ANSWERS), len(LATE_DECISIONS)]
            return enough and heard[-1].sequence > last + 5

        graph.until(all_was_late)
        ended = graph.end_episode(episode_id, outcome="failure")
    bag = Path(ended["bag"])

    recorded = load(bag)
    ticks, decisions, outcomes = recorded.ticks, recorded.decisions, recorded.outcomes
    steps = {step.sequence: step for step in EpisodeReader(bag).steps()}

    late_answers, late_decisions = answers.delayed, passed_on.delayed
    for sequence in late_answers:
        # Where the arbiter saw the tick late too, the answer is in time for it, not for the robot.
        decided = decisions[sequence]
        refused = decided.reason is Reason.POLICY_LATE and decided.requested.size == 0
        assert refused or outcomes[sequence] == Applied.LATE_HELD
    assert any(decisions[sequence].reason is Reason.POLICY_LATE for sequence in late_answers)
    for sequence in late_decisions:
        assert outcomes[sequence] == Applied.LATE_HELD
        before, after = ticks[sequence].applied_action, ticks[sequence + 1].applied_action
        assert after[6] == before[6]
    # They were the policy's actions, and the robot held.
    assert any(decisions[sequence].label == labels.POLICY for sequence in late_decisions)
    late = {*late_answers, *late_decisions}
    for sequence in late:
        assert steps[sequence].live == steps[sequence].label == labels.NONE
        assert not steps[sequence].action[:6].any()
        assert not ticks[sequence + 1].applied_action[:6].any()  # nor did the robot move

    in_time = {sequence for sequence, step in steps.items() if step.live != labels.NONE}
    try:
        table = from_readers([EpisodeReader(bag)], drop_unresolved=False)
    except ValueError as nothing_left:
        # On a machine so busy that no action at all came in time there is nothing to learn.
        assert "No step to learn from" in str(nothing_left) and not in_time
    else:
        assert set(table.sequence.tolist()) == in_time and not in_time & late
