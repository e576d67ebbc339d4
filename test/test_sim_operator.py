"""The simulated operator: when it takes over, what its hand does, how an episode ends."""

import numpy as np
import pytest

from hapo_ros import labels
from hapo_ros.arbitration import (
    Applied,
    Arbiter,
    ArbiterConfig,
    Authority,
    Event,
    HumanSample,
    PolicyCommand,
    Tick,
)
from hapo_ros.sim.operator import (
    FULL_SCALE,
    EndEpisode,
    OperatorConfig,
    OperatorOutput,
    ProgressWatch,
    SimulatedOperator,
)
from hapo_ros.sim.tasks import Progress, get_task

LIFT = get_task("Lift")
STEADY = OperatorConfig(patience_steps=10, reaction_steps=0, noise=0.0)


def scene(away=(0.1, 0.0, -0.1), grasped=False, height=0.021, gripper=-1.0) -> dict[str, float]:
    """Privileged state of a hand that points down, with the cube ``away`` from it (m)."""
    hand = np.array([-0.1, 0.0, 0.8 + height - away[2]])
    cube = hand + away
    return {
        **dict(zip(("eef_x", "eef_y", "eef_z"), hand, strict=True)),
        "eef_qx": 0.5**0.5,
        "eef_qy": 0.5**0.5,
        "eef_qz": 0.0,
        "eef_qw": 0.0,
        "elbow": -2.2,
        "finger_opening": 0.04 if grasped else 0.08,
        "gripper_command": gripper,
        **dict(zip(("cube_x", "cube_y", "cube_z"), cube, strict=True)),
        "cube_qx": 0.0,
        "cube_qy": 0.0,
        "cube_qz": 0.0,
        "cube_qw": 1.0,
        **dict(zip((f"gripper_to_cube_{a}" for a in "xyz"), away, strict=True)),
        "cube_height": height,
        "grasped": float(grasped),
        "success": float(height > 0.04),
    }


def tick(sequence, authority=Authority.POLICY, success=False) -> Tick:
    return Tick("e", sequence, sequence * 50_000_000, authority=authority, success=success)


def size(output) -> float:
    return float(np.abs(output.axes).max())


class Desk:
    """Operator and arbiter, without a simulation: what is seen is set by the test."""

    def __init__(self, config=STEADY, source="deployment", seed=0):
        self.operator = SimulatedOperator(LIFT, config, seed, source)
        self.arbiter = Arbiter(ArbiterConfig(lock_step=True))
        demonstration = source == "demonstration"
        self.events = [Event.START_DEMONSTRATION if demonstration else Event.START_DEPLOYMENT]
        self.tick = Tick("e", 0, 0, applied_action=np.array([0] * 6 + [-1], np.float32))
        self.outputs, self.decisions = [], []

    def step(self, privileged):
        """One tick; returns the arbiter's decision, or how the operator ended the episode."""
        output = self.operator.act(self.tick, privileged)
        if isinstance(output, EndEpisode):
            return output
        self.outputs.append(output)
        now_s = self.tick.stamp_ns / 1e9
        sample = HumanSample(output.axes, output.buttons, output.twist, now_s, self.tick.stamp_ns)
        still = np.array([[0, 0, 0, 0, 0, 0, privileged["gripper_command"]]], np.float32)
        command = PolicyCommand("e", self.tick.sequence, self.tick.epoch, "v", still)
        decision = self.arbiter.step(now_s, self.tick, command, [sample], self.events)
        self.events = []
        self.decisions.append(decision)
        self.tick = Tick(
            "e",
            self.tick.sequence + 1,
            self.tick.stamp_ns + 50_000_000,
            self.tick.sequence,
            Applied.APPLIED,
            decision.action,
            decision.authority,
            decision.epoch,
            decision.policy_due,
            privileged["cube_height"] > 0.04,
        )
        return decision

    @property
    def live(self):
        return [decision.label for decision in self.decisions]


def test_the_first_tick_is_neutral_whatever_the_source():
    for source in ("deployment", "demonstration"):
        output = SimulatedOperator(LIFT, STEADY, 0, source).act(tick(0), scene())
        assert size(output) == 0
        assert output.buttons == (0, 0)
        assert not output.twist.any()


def test_a_demonstration_is_the_operators_from_the_second_tick_on():
    desk = Desk(source="demonstration")
    for _ in range(20):
        desk.step(scene())
    assert desk.live == [labels.NONE] + [labels.HUMAN] * 19


def test_the_operator_takes_over_when_there_was_no_progress_for_its_patience():
    desk = Desk()
    for _ in range(15):
        desk.step(scene())
    # The best was seen at tick 1; ten ticks later it is the operator's turn, and stays so.
    assert desk.live == [labels.POLICY] * 11 + [labels.HUMAN] * 4
    assert desk.arbiter.takeovers == 1


def test_the_operator_leaves_a_policy_alone_that_gets_nearer():
    desk = Desk()
    for step in range(40):
        desk.step(scene(away=(0.3 - 0.006 * step, 0, -0.1)))
    assert set(desk.live) == {labels.POLICY}


def test_a_dropped_cube_is_forgiven_once_and_only_once():
    held, dropped = scene(away=(0, 0, 0), grasped=True, height=0.025), scene(away=(0, 0, -0.05))
    watch = ProgressWatch(progress_m=0.005, second_chances=1)
    for state, idle in [(held, 0), (held, 1), (dropped, 0), (dropped, 1), (held, 0), (dropped, 1)]:
        assert watch.update(LIFT.progress(state)) == idle


def test_progress_within_a_phase_has_to_exceed_the_best_by_a_margin():
    watch = ProgressWatch(progress_m=0.005, second_chances=0)
    idle = [watch.update(Progress(0, v)) for v in (-0.1, -0.097, -0.094, -0.2, -0.0885)]
    assert idle == [0, 1, 0, 1, 0]


def test_the_takeover_pushes_the_cap_past_the_threshold_even_where_nothing_is_to_be_moved():
    at_cube = scene(away=(0, 0, 0.0001))  # the expert wants to close, and hardly to move
    operator = SimulatedOperator(LIFT, STEADY, 0, "demonstration")
    operator.act(tick(0, Authority.HOLD), at_cube)
    taking = operator.act(tick(1, Authority.HOLD), at_cube)
    assert size(taking) == pytest.approx(0.3)
    assert size(operator.act(tick(2, Authority.HUMAN), at_cube)) < 0.05


def test_in_a_fault_the_cap_is_let_go_so_that_it_can_be_cleared():
    operator = SimulatedOperator(LIFT, STEADY, 0, "demonstration")
    for sequence, authority in enumerate([Authority.HOLD, Authority.HUMAN, Authority.FAULT]):
        output = operator.act(tick(sequence, authority), scene())
    assert size(output) == 0.0 and output.buttons == (0, 0)
    assert size(operator.act(tick(3, Authority.HOLD), scene())) > 0.1


def test_the_twist_is_the_cap_in_si_units_and_makes_the_experts_action():
    operator = SimulatedOperator(LIFT, STEADY, 0, "demonstration")
    state = scene(away=(0.02, -0.01, -0.07))
    operator.act(tick(0, Authority.HOLD), state)
    operator.act(tick(1, Authority.HOLD), state)
    output = operator.act(tick(2, Authority.HUMAN), state)
    assert isinstance(output, OperatorOutput)
    assert output.axes.dtype == np.float32
    assert output.twist.dtype == np.float64
    assert output.axes.tolist() == LIFT.expert().act(state)[:6].tolist()
    assert output.twist.tolist() == (output.axes.astype(np.float64) * FULL_SCALE).tolist()


def test_the_arbiter_executes_what_the_expert_wants_unlimited():
    desk = Desk(source="demonstration")
    for _ in range(3):
        decision = desk.step(scene())
    assert decision.action.tolist() == LIFT.expert().act(scene()).tolist()
    assert not decision.limited


def test_the_gripper_is_closed_by_one_press_and_not_toggled_again():
    desk, gripper = Desk(source="demonstration"), -1.0
    for _ in range(12):
        decision = desk.step(scene(away=(0, 0, 0), gripper=gripper))
        gripper = float(decision.action[6])
    presses = [output.buttons[0] for output in desk.outputs]
    assert sum(presses) == 1
    assert gripper == 1.0


def test_the_gripper_is_opened_where_the_policy_had_closed_it():
    desk, gripper = Desk(), 1.0
    for _ in range(16):
        decision = desk.step(scene(gripper=gripper))
        gripper = float(decision.action[6])
    assert desk.live[-1] == labels.HUMAN
    assert gripper == -1.0


def test_the_operator_hands_back_when_the_cube_is_held_and_off_the_table():
    desk = Desk()
    for _ in range(13):
        desk.step(scene())
    held = scene(away=(0, 0, 0), grasped=True, height=0.03, gripper=1.0)
    handed_back = desk.step(held)
    assert desk.outputs[-1].buttons == (0, 1)
    assert size(desk.outputs[-1]) == 0
    assert handed_back.label == labels.NONE
    after = [desk.step(held).label for _ in range(5)]
    assert after == [labels.POLICY] * 5
    assert sum(output.buttons[1] for output in desk.outputs) == 1


def test_the_operator_takes_over_again_where_its_help_was_in_vain():
    desk = Desk()
    for _ in range(13):
        desk.step(scene())
    desk.step(scene(away=(0, 0, 0), grasped=True, height=0.03, gripper=1.0))
    for _ in range(14):
        desk.step(scene())
    assert desk.arbiter.takeovers == 2
    assert labels.takeovers(desk.live) == 2


def test_an_operator_that_finishes_does_not_hand_back():
    desk = Desk(OperatorConfig(patience_steps=10, reaction_steps=0, noise=0.0, finish=True))
    for _ in range(13):
        desk.step(scene())
    for _ in range(5):
        desk.step(scene(away=(0, 0, 0), grasped=True, height=0.03, gripper=1.0))
    assert desk.live[-5:] == [labels.HUMAN] * 5


def test_success_ends_the_episode_and_nothing_more_is_asked_of_the_arm():
    desk = Desk()
    desk.step(scene())
    desk.step(scene(away=(0, 0, 0), grasped=True, height=0.05))
    assert desk.step(scene(away=(0, 0, 0), grasped=True, height=0.05)) == EndEpisode(
        "success", False, "The task is done."
    )


def test_success_has_to_hold_as_long_as_asked():
    operator = SimulatedOperator(LIFT, OperatorConfig(success_steps=3))
    shown = [False, True, True, False, True, True, True]
    ends = [
        isinstance(operator.act(tick(i, success=done), scene()), EndEpisode)
        for i, done in enumerate(shown)
    ]
    assert ends == [False] * 6 + [True]


@pytest.mark.parametrize(
    ("source", "authority", "unresolved"),
    [
        ("deployment", Authority.POLICY, False),
        ("deployment", Authority.HUMAN, True),
        ("demonstration", Authority.HUMAN, False),
    ],
)
def test_the_horizon_ends_the_episode_as_a_failure(source, authority, unresolved):
    operator = SimulatedOperator(LIFT, STEADY, 0, source)
    end = operator.act(tick(LIFT.horizon, authority), scene())
    assert (end.outcome, end.unresolved) == ("failure", unresolved)
    assert ("still correcting" in end.note) == unresolved


def test_a_tick_sent_again_gets_the_same_answer():
    operator = SimulatedOperator(LIFT, OperatorConfig(noise=0.2), 0, "demonstration")
    operator.act(tick(0), scene())
    first = operator.act(tick(1), scene())
    assert operator.act(tick(1), scene()) is first


def test_the_same_seed_makes_the_same_operator():
    shaky = OperatorConfig(patience_steps=10, reaction_steps=8, noise=0.1)
    runs = []
    for seed in (1, 1, 2):
        desk = Desk(shaky, seed=seed)
        for _ in range(25):
            desk.step(scene())
        runs.append([output.axes.tolist() for output in desk.outputs])
    assert runs[0] == runs[1] != runs[2]


def test_the_reaction_delays_a_takeover_within_its_bounds():
    delays = set()
    for seed in range(30):
        desk = Desk(OperatorConfig(patience_steps=10, reaction_steps=4, noise=0.0), seed=seed)
        for _ in range(18):
            desk.step(scene())
        delays.add(desk.live.index(labels.HUMAN) - 11)
    assert delays == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "wrong",
    [
        {"patience_steps": 0},
        {"success_steps": 0},
        {"noise": -0.1},
        {"takeover_push": 0.0},
        {"gripper_button": 1, "authority_button": 1},
    ],
)
def test_an_impossible_operator_is_refused(wrong):
    with pytest.raises(ValueError, match="operator: "):
        OperatorConfig(**wrong)


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="demonstration, deployment"):
        SimulatedOperator(LIFT, source="play")
