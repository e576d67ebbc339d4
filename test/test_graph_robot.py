"""The whole robot path: cameras that run free, a servo to command, and an episode out of it."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from ros_graph import (
    RUNNING,
    Graph,
    Probe,
    nothing_left_running,
    publish_report,
    save_untrained,
    wait_for,
)
from ruamel.yaml import YAML

from hapo_ros import labels, topics
from hapo_ros.arbitration import Applied, Authority, Reason
from hapo_ros.episodes import BadEpisode, EpisodeReader
from hapo_ros.episodes.contents import load
from hapo_ros.resources import resource

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)
pytest.importorskip("robosuite")

CAMERAS = ("agentview", "wrist")
FINISHED = 4  # EpisodeState.FINISHED
# How punctual the machine is is not what these show.
PATIENT = {
    "arbiter": {"device_timeout_s": 5.0, "tick_timeout_s": 5.0, "max_policy_failures": 1000},
}


def robot_file(folder: Path) -> Path:
    """The simulated robot, slow and patient with a busy machine: 5 ticks a second."""
    yaml = YAML(typ="safe")
    robot = yaml.load(resource("config/robots/simulated.yaml").read_text())
    for camera, rate_hz in zip(CAMERAS, (4, 3), strict=True):
        own = {"rate_hz": rate_hz, "tolerance_s": 2.0, "source": [128, 128]}
        robot["cameras"][camera] |= own
    for source in (*robot["joint_states"], robot["pose"]):
        source["tolerance_s"] = 2.0
    timeouts = {"decision_s": 0.2, "command_s": 0.6, "servo_s": 0.6}
    robot |= {"control_period_s": 0.2, "timeouts": timeouts}
    robot["stamp_tolerance_s"] = 5.0
    folder.mkdir(parents=True, exist_ok=True)
    yaml.dump(robot, folder / "robot.yaml")
    return folder / "robot.yaml"


@pytest.fixture
def policy(tmp_path):
    return save_untrained(tmp_path / "policy", cameras=CAMERAS)


def graph(folder, policy, parameters=None, **arguments):
    given = PATIENT | (parameters or {})
    return Graph(folder, policy, given, robot=robot_file(folder), **arguments)


def test_an_episode_with_a_human_is_recorded_as_the_policy_saw_it(tmp_path, policy, ros_domain):
    operator = {"simulated_operator": {"patience_steps": 12, "success_steps": 100}}

    def both_have_acted():
        counts = running.authorities[-1]["labels"] if running.authorities else [0] * 4
        return counts[labels.POLICY] > 5 and counts[labels.HUMAN] > 15

    with nothing_left_running(), Probe(ros_domain) as probe:
        answers = probe.listen(topics.POLICY_ACTION)
        with graph(tmp_path, policy, operator, operator="simulated", episodes=1) as running:
            assert not running.deployment.lock_step
            running.until(both_have_acted, timeout_s=90.0)
            ended = running.end_episode(running.state["episode_id"])
    logs = {path.stem: path.read_text() for path in (tmp_path / "logs").glob("*.log")}
    assert "Traceback" not in "".join(logs.values())

    bag = Path(ended["bag"])
    reader, recorded = EpisodeReader(bag), load(bag)
    assert reader.result.lost == {} and reader.result.complete and reader.lost_steps == 0
    assert sorted(recorded.ticks) == list(range(len(recorded.ticks))) and len(recorded.ticks) > 20
    assert reader.info.action_space["controller"].startswith("robot: twists on")
    assert reader.info.settings["robot_dry_run"] == "false"

    # Cameras ran free: their images keep their own stamps, and several ticks saw the same one.
    for camera in CAMERAS:
        stamps = [recorded.stamps[s][topics.image(camera)] for s in sorted(recorded.ticks)]
        assert stamps == sorted(stamps) and len(set(stamps)) < len(stamps)
        assert reader.counts[topics.image(camera)] < len(stamps)
    assert len({reader.counts[topics.image(camera)] for camera in CAMERAS}) == 2

    # A human took over, what was applied is what was decided, and the arm moved by it.
    outcomes = list(recorded.outcomes.values())
    assert outcomes.count(Applied.APPLIED) > len(outcomes) / 2
    live = reader.live
    assert {labels.POLICY, labels.HUMAN} <= set(live.tolist())
    for sequence, tick in recorded.ticks.items():
        if recorded.outcomes.get(sequence - 1) is Applied.APPLIED and sequence:
            decision = recorded.decisions[sequence - 1]
            if decision.requested.size:
                np.testing.assert_array_equal(tick.applied_action, decision.action)
    steps = {step.sequence: step for step in reader.steps()}
    hands = np.array([steps[s].observation.eef_pose[:3] for s in sorted(steps)])
    assert np.ptp(hands, axis=0).max() > 0.02

    # What the policy saw is what is in the bag: it gives the same answer again.
    from hapo_ros.policies import checkpoint

    served = checkpoint.load(policy)
    answered = {(a.episode_id, a.sequence): a for a in answers}
    compared = 0
    for command in recorded.commands:
        heard = answered.get((reader.info.episode_id, command.sequence))
        if heard is None or command.sequence not in steps:
            continue
        again = served.act(steps[command.sequence].observation, reader.info.instruction)
        np.testing.assert_allclose(again, command.actions, atol=1e-6)
        compared += 1
    assert compared > 5


def test_a_robot_that_falls_silent_ends_the_recording_and_not_the_run(tmp_path, policy, ros_domain):
    with nothing_left_running(), graph(tmp_path, policy, operator="none") as running:
        episode = running.start_episode()
        running.until(lambda: [e for e in running.authorities if e["sequence"] > 5])
        pid = running.supervisor.pid("simulated_robot")
        os.kill(pid, signal.SIGSTOP)
        try:
            running.until(lambda: running.state.get("state") == FINISHED)
        finally:
            os.kill(pid, signal.SIGCONT)
        state = running.state
        assert state["episode_id"] == episode
        running.start_episode()  # it is back, and all nodes are there
    contents = load(Path(state["bag"]))
    assert not contents.result.complete
    assert "The observation was lost: camera agentview" in contents.result.note


def test_while_the_assembler_is_dead_a_human_keeps_the_arm_and_then_the_recording_ends(
    tmp_path, policy, ros_domain
):
    from geometry_msgs.msg import TwistStamped

    from hapo_ros.nodes.common import ros_types

    types, twists = ros_types(), []

    with nothing_left_running(), Probe(ros_domain) as probe:
        probe.node.create_subscription(
            TwistStamped, "/simulated_robot/delta_twist_cmds", twists.append, 100
        )
        device = {name: probe.publisher(name) for name in (topics.JOY, topics.TWIST)}

        def report(x, buttons=(0, 0)):
            publish_report(types, device, x, buttons)

        def moves(x):
            """Whether the arm is told to move as the cap does, which is held so meanwhile."""
            report(x)
            return twists and twists[-1].twist.linear.x == pytest.approx(x)

        def is_back():
            report(0.1)
            return "does not know its ticks" in running.log("observation_assembler")

        with graph(tmp_path, policy, operator="none") as running:
            episode = running.start_episode()
            wait_for(lambda: all(p.get_subscription_count() for p in device.values()))
            report(0.0)
            running.until(lambda: moves(0.3))
            running.kill("observation_assembler")
            wait_for(lambda: moves(0.1))  # nobody watches, so it is dead
            running.until(is_back)
            for x in (0.2, -0.1):
                running.until(lambda x=x: moves(x))
            assert running.state["state"] == RUNNING
            report(0.0, (0, 1))  # hands back
            running.until(lambda: running.state["state"] == FINISHED)
            assert running.authorities[-1]["authority"] == Authority.HOLD
            # As soon as the assembler has heard of the end.
            request = {"task": "Lift", "source": "deployment", "seed": 2}
            running.until(lambda: running.gateway.call("start_episode", 30.0, **request)["ok"])
    with pytest.raises(BadEpisode, match="Recording ended early"):
        EpisodeReader(tmp_path / "bags" / episode)
    note = load(tmp_path / "bags" / episode).result.note
    assert "The observation was lost" in note and "does not know its ticks" in note


def test_an_arbiter_that_dies_leaves_the_arm_stopped_and_holds_when_it_is_back(
    tmp_path, policy, ros_domain
):
    from geometry_msgs.msg import TwistStamped

    twists = []

    def moving():
        return [i for i, m in enumerate(twists) if m.twist.linear.x or m.twist.angular.x]

    operator = {"simulated_operator": {"patience_steps": 10_000}}
    with nothing_left_running(), Probe(ros_domain) as probe:
        probe.node.create_subscription(
            TwistStamped, "/simulated_robot/delta_twist_cmds", twists.append, 100
        )
        with graph(tmp_path, policy, operator, operator="simulated", episodes=1) as running:
            running.until(lambda: len(moving()) > 20)
            running.kill("arbiter")
            # The robot's output stops it: nobody watches here, so no arbiter is started again.
            wait_for(lambda: moving()[-1] < len(twists) - 3)
            running.until(
                lambda: running.authorities[-1]["reason"] in (Reason.RESTARTED, Reason.NO_EPISODE)
            )
            moved = moving()[-1]
            heard = len(twists)
            running.until(lambda: len(twists) > heard + 20)
            assert running.authorities[-1]["authority"] == Authority.HOLD
        assert moving()[-1] == moved


def test_a_dry_run_of_the_whole_path_moves_nothing_and_is_never_learned_from(
    tmp_path, policy, ros_domain
):
    operator = {"simulated_operator": {"patience_steps": 5}}
    arguments = {"operator": "simulated", "episodes": 1, "robot_dry_run": "true"}
    with (
        nothing_left_running(),
        Probe(ros_domain) as probe,
        graph(tmp_path, policy, operator, **arguments) as running,
    ):
        running.until(lambda: [e for e in running.authorities if e["sequence"] > 30])
        assert probe.node.count_publishers("/simulated_robot/delta_twist_cmds") == 0
        running.discard_running()
        bag = running.state["bag"]
    recorded = load(Path(bag))
    assert set(recorded.outcomes.values()) <= {
        Applied.NO_DECISION, Applied.REFUSED, Applied.LATE_HELD
    }  # fmt: skip
    assert Applied.REFUSED in recorded.outcomes.values()
    at = [key for key in recorded.states if key[0] == topics.EEF_POSE]
    heights = [recorded.states[key].pose.position.z for key in at]
    assert np.ptp(heights[-20:]) < 0.005  # the first may be from before the reset
