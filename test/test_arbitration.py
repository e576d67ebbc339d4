"""Who commands the robot: every row of the table, and every promise of the fault list about it."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from hapo_ros.arbitration import (
    TRANSITIONS,
    Applied,
    Arbiter,
    ArbiterConfig,
    Authority,
    Event,
    HumanSample,
    PolicyCommand,
    Reason,
    Refusal,
    Tick,
    Trigger,
)
from hapo_ros.arbitration.answers import Answers
from hapo_ros.arbitration.limits import GRIPPER, Limits, hold, valid_action
from hapo_ros.labels import HUMAN, NONE, POLICY

PERIOD_S = 1 / 16  # exact in binary, so that sums of it are
GRIP, AUTHORITY = 0, 1  # buttons
OPEN, CLOSED = -1.0, 1.0
FORWARD = np.array([0.5, 0.0, 0.0, 0.0, 0.0, 0.0, OPEN], np.float32)
AS_PLANNED = object()  # the policy answers what it was asked


class Rig:
    """An arbiter on a bench: a robot side that sends ticks, a policy and an operator's device.

    Each :meth:`tick` is one control period, in which by default the policy answers where it has to
    and the device reports a cap at rest.
    """

    def __init__(self, **config):
        self.arbiter = Arbiter(ArbiterConfig(**config))
        self.now_s = 1000.0
        self.episode_id, self.sequence = "", -1
        self.last = None  # the last decision
        self.counts = self.arbiter.counts
        self.pose = None  # of the hand, at the next ticks

    # What goes in

    def report(self, cap=0.0, press=(), at_s=None, axis=0, twist=None):
        """A device report: one axis deflected by ``cap``, some buttons down."""
        axes = np.zeros(6, np.float32)
        axes[axis] = cap
        buttons = tuple(int(button in press) for button in (GRIP, AUTHORITY))
        at_s = self.now_s if at_s is None else at_s
        twist = axes.astype(np.float64) if twist is None else np.array(twist, np.float64)
        return HumanSample(axes, buttons, twist, at_s, round(at_s * 1e9))

    def next_tick(self, sequence=None, episode_id=None) -> Tick:
        """The tick that follows, with the echo of the last decision, as a robot side makes it."""
        sequence = self.sequence + 1 if sequence is None else sequence
        echo = {}
        if self.last is not None and sequence > 0:
            last = self.last
            echo = {
                "authority": last.authority,
                "epoch": last.epoch,
                "policy_due": last.policy_due,
                "applied_action": last.action,
            }
        echo["eef_pose"] = self.pose
        return Tick(episode_id or self.episode_id, sequence, round(self.now_s * 1e9), **echo)

    def answer(self, tick: Tick, *actions, epoch=None, sequence=None) -> PolicyCommand:
        actions = np.stack([np.asarray(a, np.float32) for a in actions or (FORWARD,)])
        return PolicyCommand(
            tick.episode_id,
            tick.sequence if sequence is None else sequence,
            tick.epoch if epoch is None else epoch,
            "v1",
            actions,
        )

    # What happens

    def tick(self, *reports, policy=AS_PLANNED, events=(), silent=False, sequence=None, **told):
        """One control period; policy: a command, None for a late one, or actions to answer with.

        told: what the tick says otherwise than that the last decision was applied.
        """
        self.now_s += PERIOD_S
        tick = replace(self.next_tick(sequence), **told)
        if policy is AS_PLANNED:
            policy = self.answer(tick) if tick.policy_due else None
        elif callable(policy):
            policy = policy(tick)
        human = [replace(report, received_s=self.now_s) for report in reports]
        if not reports and not silent:
            human = [self.report()]
        self.last = self.arbiter.step(self.now_s, tick, policy, human, events)
        self.sequence = tick.sequence
        return self.last

    def start(self, *reports, demonstration=False, episode_id="ep1", sequence=0, **options):
        """The first tick of an episode."""
        self.episode_id, self.sequence = episode_id, sequence - 1
        event = Event.START_DEMONSTRATION if demonstration else Event.START_DEPLOYMENT
        events = [*options.pop("events", ()), event]
        return self.tick(*reports, events=events, **options)

    def move(self, cap=0.5, press=(), axis=0, twist=None, **told):
        return self.tick(self.report(cap, press=press, axis=axis, twist=twist), **told)

    def press(self, button, cap=0.0):
        return self.tick(self.report(cap, press=[button]))

    def send(self, *events, **options):
        return self.tick(events=events, **options)

    def timer(self, *reports, events=(), pose=None):
        """No tick came: the arbiter's own timer."""
        self.now_s += PERIOD_S
        human = [replace(report, received_s=self.now_s) for report in reports]
        return self.arbiter.step(self.now_s, None, None, human, events, pose)


def rig(authority=Authority.POLICY, **config) -> Rig:
    """A rig that has been a while under an authority in a deployment, with a live, armed device."""
    made = Rig(**config)
    made.tick(policy=None)  # the device is seen at rest
    made.start()
    made.tick()
    if authority is Authority.HUMAN:
        made.move()
        made.tick(made.report(0.01))
    elif authority is Authority.HOLD:
        made.send(Event.HOLD)
    elif authority is Authority.FAULT:
        made.send(Event.ESTOP)
    assert made.tick().authority is authority
    return made


def holds(decision) -> bool:
    """Nobody's action: no motion, label NONE, nothing that was asked for."""
    still = not decision.action[:GRIPPER].any() and decision.requested.size == 0
    return still and decision.label == NONE and decision.policy_version == ""


# The table


def stay_silent(made: Rig):
    made.now_s += 0.3
    return made.tick(silent=True)


def stay_neutral(made: Rig):
    for _ in range(12):
        decision = made.tick()
        if made.arbiter.authority is not Authority.HUMAN:
            break
    return decision


STIMULI = {
    Trigger.START_DEPLOYMENT: lambda made: made.start(episode_id="ep2"),
    Trigger.START_DEMONSTRATION: lambda made: made.start(episode_id="ep2", demonstration=True),
    Trigger.JOIN: lambda made: made.start(
        episode_id="ep2", sequence=40, authority=Authority.POLICY
    ),
    Trigger.JOIN_IN_FAULT: lambda made: made.start(
        episode_id="ep2", sequence=40, authority=Authority.FAULT
    ),
    Trigger.CAP: lambda made: made.move(),
    Trigger.AUTHORITY_BUTTON: lambda made: made.press(AUTHORITY),
    Trigger.LET_GO: stay_neutral,
    Trigger.DEADMAN: stay_neutral,
    Trigger.DEVICE_LOST: stay_silent,
    Trigger.POLICY_GONE: lambda made: made.tick(policy=None),
    Trigger.TICKS_LOST: lambda made: made.timer(made.report()),
} | {
    Trigger[event.name]: lambda made, event=event: made.send(event)
    for event in Event
    if not event.name.startswith(("START", "JOIN"))
}
CONFIGURED = {
    Trigger.LET_GO: {"handback": "release"},
    Trigger.DEADMAN: {"handback": "deadman"},
    Trigger.POLICY_GONE: {"max_policy_failures": 1},
}
JOINS = (Trigger.JOIN, Trigger.JOIN_IN_FAULT)
STARTS = (Trigger.START_DEPLOYMENT, Trigger.START_DEMONSTRATION, *JOINS)


def expected_of(authority, trigger):
    """(authority, reason) by the table; a start ends the episode that runs, then begins its own."""
    if trigger in STARTS and authority is not Authority.FAULT:
        return TRANSITIONS[TRANSITIONS[authority, Trigger.END_EPISODE][0], trigger]
    return TRANSITIONS.get((authority, trigger))


@pytest.mark.parametrize(
    ("authority", "trigger"),
    list(itertools.product(Authority, Trigger)),
    ids=lambda member: member.name,
)
def test_the_table_says_what_every_trigger_does_under_every_authority(authority, trigger):
    made = rig(authority, **CONFIGURED.get(trigger, {}))
    before = made.arbiter.authority, made.arbiter.reason
    epoch = made.arbiter.epoch

    decision = STIMULI[trigger](made)

    expected = expected_of(authority, trigger)
    assert (decision.authority, decision.reason) == (expected or before)
    assert (made.arbiter.authority, made.arbiter.reason) == (expected or before)
    if trigger not in STARTS:
        assert (decision.epoch > epoch) == (decision.authority is not authority)


def test_every_trigger_and_every_reason_has_its_use_and_its_sentence():
    assert {trigger for _, trigger in TRANSITIONS} == set(Trigger) == set(STIMULI)
    for reason in Reason:
        assert reason.sentence.endswith(".") and reason.sentence[0].isupper()


def test_only_clearing_leads_out_of_a_fault_and_never_to_motion():
    out = {trigger: row for (a, trigger), row in TRANSITIONS.items() if a is Authority.FAULT}
    assert {trigger: row[0] for trigger, row in out.items()} == {
        Trigger.CLEAR_FAULT: Authority.HOLD
    }


# Before, between and after episodes


def test_a_new_arbiter_holds_and_says_that_there_is_no_episode():
    decision = Rig().tick()
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.HOLD, Reason.NO_EPISODE)
    assert not decision.policy_due


def test_without_an_episode_no_request_gives_the_policy_the_arm():
    made = Rig()
    for events in ([Event.RESUME], [Event.END_EPISODE, Event.RESUME]):
        decision = made.send(*events)
        assert holds(decision)
        assert (decision.authority, decision.reason) == (Authority.HOLD, Reason.NO_EPISODE)
    assert made.press(AUTHORITY).reason is Reason.NO_EPISODE


def test_without_an_episode_a_human_can_move_the_arm_and_it_is_no_data():
    made = Rig()
    made.tick()
    decision = made.move(0.5)
    assert decision.authority is Authority.HUMAN
    assert decision.action[0] == pytest.approx(0.5)
    assert decision.label == NONE


def test_after_the_end_of_an_episode_everything_holds_and_nothing_resumes():
    made = rig()
    decision = made.send(Event.END_EPISODE)
    assert holds(decision) and decision.reason is Reason.NO_EPISODE
    assert made.send(Event.RESUME).authority is Authority.HOLD


def test_a_tick_of_another_episode_is_held_with_a_reason_of_its_own():
    made = rig()
    made.episode_id = "another"
    decision = made.tick()
    assert holds(decision) and decision.reason is Reason.NO_EPISODE
    assert decision.episode_id == "another"


def test_the_first_tick_of_a_deployment_is_the_policys():
    made = Rig()
    made.tick()
    decision = made.start()
    assert (decision.label, decision.authority) == (POLICY, Authority.POLICY)
    assert (decision.sequence, decision.epoch, decision.policy_version) == (0, 0, "v1")
    assert decision.action.tolist() == FORWARD.tolist()


def test_the_epoch_begins_anew_with_each_episode_so_that_the_first_answer_counts():
    made = rig()
    made.move()
    made.tick()
    assert made.arbiter.epoch > 0
    made.send(Event.END_EPISODE)
    assert made.start(episode_id="ep2").label == POLICY
    assert made.arbiter.epoch == 0 and made.arbiter.takeovers == 0


def test_in_a_demonstration_the_arm_waits_for_the_human_and_no_policy_ever_gets_it():
    made = Rig()
    made.tick()
    decision = made.start(demonstration=True)
    assert holds(decision) and decision.reason is Reason.AWAITING_HUMAN
    assert not decision.policy_due
    assert made.move().label == HUMAN
    made.tick()
    decision = made.press(AUTHORITY)
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.HOLD, Reason.AWAITING_HUMAN)
    assert made.send(Event.RESUME).authority is Authority.HOLD


def test_a_start_in_the_middle_of_an_episode_means_that_the_arbiter_was_restarted():
    made = Rig()
    made.tick()
    made.last = replace(made.tick(), epoch=5)  # what the robot side echoes
    decision = made.start(sequence=40)
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.HOLD, Reason.RESTARTED)
    assert decision.epoch > 5  # answers to the arbiter that died are stale
    assert holds(made.send(Event.RESUME))
    assert made.tick().label == POLICY


def test_an_arbiter_that_was_restarted_before_the_first_tick_was_decided_holds_too():
    made = Rig()
    made.tick()
    made.timer(made.report(), events=[Event.START_DEPLOYMENT, Event.JOIN])
    made.episode_id, made.sequence = "ep1", -1
    decision = made.tick()
    assert holds(decision) and decision.sequence == 0
    assert (decision.authority, decision.reason) == (Authority.HOLD, Reason.RESTARTED)
    assert holds(made.send(Event.RESUME))
    assert made.tick().label == POLICY


def test_a_fault_outlasts_a_restart_of_the_arbiter():
    made = Rig()
    made.tick()
    decision = made.start(sequence=40, authority=Authority.FAULT)
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.FAULT, Reason.RESTARTED_IN_FAULT)
    assert holds(made.send(Event.RESUME)) and made.arbiter.authority is Authority.FAULT
    assert made.send(Event.CLEAR_FAULT).reason is Reason.FAULT_CLEARED
    made.send(Event.RESUME)
    assert made.tick().label == POLICY


def test_a_start_before_the_first_tick_waits_for_it():
    """Between episodes ticks have stopped and the arbiter runs by its own timer."""
    made = Rig()
    made.tick()
    assert made.timer(made.report(), events=[Event.START_DEPLOYMENT]).authority is Authority.HOLD
    assert made.timer(made.report()).reason is Reason.NO_EPISODE
    made.episode_id, made.sequence = "ep1", -1
    decision = made.tick()
    assert (decision.label, decision.sequence) == (POLICY, 0)


@pytest.mark.parametrize("event", [Event.HOLD, Event.ESTOP, Event.END_EPISODE, Event.TIME_RESET])
def test_what_stops_an_episode_before_its_first_tick_is_not_forgotten(event):
    made = Rig()
    made.tick()
    made.timer(made.report(), events=[Event.START_DEPLOYMENT])
    made.timer(made.report(), events=[event])
    made.episode_id, made.sequence = "ep1", -1
    assert holds(made.tick())
    assert holds(made.tick())


@pytest.mark.parametrize("sequence", [0, 40])
def test_an_episode_that_starts_or_is_joined_in_a_fault_goes_on_once_that_is_cleared(sequence):
    made = rig(Authority.FAULT)
    decision = made.start(episode_id="ep2", sequence=sequence)
    assert holds(decision) and decision.authority is Authority.FAULT
    assert decision.refusals == (Refusal.START_IN_FAULT,)
    assert made.counts["start_in_fault"] == 1
    assert holds(made.tick()) and made.arbiter.authority is Authority.FAULT
    assert made.send(Event.CLEAR_FAULT).reason is Reason.FAULT_CLEARED
    assert holds(made.send(Event.RESUME))
    decision = made.tick()
    assert (decision.label, decision.episode_id) == (POLICY, "ep2")
    assert made.move().label == HUMAN


def test_in_lock_step_a_fault_is_cleared_before_any_report_of_the_device():
    """It reports once a tick, and no episode starts in a fault."""
    made = Rig(lock_step=True)
    made.timer(events=[Event.JOIN_IN_FAULT])
    assert made.timer(events=[Event.CLEAR_FAULT]).reason is Reason.FAULT_CLEARED
    made = Rig()
    made.timer(events=[Event.JOIN_IN_FAULT])
    assert made.timer(events=[Event.CLEAR_FAULT]).authority is Authority.FAULT


def test_what_an_arbiter_had_latched_is_latched_again_at_the_start_of_the_next_one():
    made = Rig()
    decision = made.timer(events=[Event.JOIN_IN_FAULT])
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.FAULT, Reason.RESTARTED_IN_FAULT)
    assert made.start().authority is Authority.FAULT


def test_a_start_leaves_the_gripper_where_the_robot_says_it_stands():
    made = Rig()
    made.tick()
    tick = Tick("ep1", 0, 0, applied_action=hold(CLOSED))
    decision = made.arbiter.step(made.now_s, tick, None, [made.report()], [Event.START_DEPLOYMENT])
    assert holds(decision) and decision.action[GRIPPER] == CLOSED


# Takeover


def test_a_takeover_acts_in_the_tick_that_first_sees_it():
    made = rig()
    assert made.tick().label == POLICY
    decision = made.move(0.4)
    assert (decision.authority, decision.reason) == (Authority.HUMAN, Reason.CAP_MOVED)
    assert decision.label == HUMAN
    assert decision.action[0] == pytest.approx(0.4)


def test_the_first_human_label_is_on_the_first_step_that_the_human_executed():
    made = rig()
    decisions = [made.tick(), made.tick(), made.move(-0.3), made.move(-0.3), made.tick()]
    assert [d.label for d in decisions] == [POLICY, POLICY, HUMAN, HUMAN, HUMAN]
    assert [d.action[0] for d in decisions] == pytest.approx([0.5, 0.5, -0.3, -0.3, 0.0])
    assert [d.policy_version for d in decisions] == ["v1", "v1", "", "", ""]


def test_the_human_wins_over_a_policy_answer_to_the_same_tick():
    made = rig()
    tick = made.next_tick()
    decision = made.tick(made.report(0.3), policy=made.answer(tick))
    assert decision.label == HUMAN and decision.action[0] == pytest.approx(0.3)
    assert made.counts["policy_answers_discarded"] == 1


def test_the_button_takes_over_with_the_cap_at_rest():
    made = rig()
    decision = made.press(AUTHORITY)
    assert (decision.authority, decision.reason) == (Authority.HUMAN, Reason.BUTTON_TAKEOVER)
    assert decision.label == HUMAN and not decision.action[:GRIPPER].any()
    assert made.tick().reason is Reason.HUMAN_ACTS


def test_a_takeover_flushes_the_chunk_and_the_old_chunk_never_resumes():
    made = rig()
    plan = [FORWARD * scale for scale in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    made.tick(policy=lambda tick: made.answer(tick, *plan))
    second = made.tick()
    assert second.label == POLICY and second.action[0] == plan[1][0]
    assert not second.policy_due  # the chunk goes on
    assert made.move(-0.5).label == HUMAN
    made.tick()
    handed_back = made.press(AUTHORITY)
    assert holds(handed_back) and handed_back.policy_due
    decision = made.tick(policy=None)  # nothing new: the old chunk would reach this tick
    assert holds(decision) and decision.reason is Reason.POLICY_LATE


def test_a_late_answer_of_the_old_epoch_is_discarded_and_counted():
    made = rig()
    old = made.answer(made.next_tick())
    made.move()
    made.tick()
    made.press(AUTHORITY)
    discarded = made.counts["policy_answers_discarded"]
    late = replace(old, sequence=made.sequence + 1)  # even if it claimed to be for this tick
    decision = made.tick(policy=late)
    assert holds(decision) and decision.reason is Reason.POLICY_LATE
    assert made.counts["policy_answers_discarded"] == discarded + 1
    assert made.tick().label == POLICY


@pytest.mark.parametrize(
    "changes", [{"sequence": 0}, {"episode_id": "another"}, {"epoch": 99}], ids=str
)
def test_an_answer_to_another_question_is_no_answer(changes):
    made = rig()
    wrong = replace(made.answer(made.next_tick()), **changes)
    decision = made.tick(policy=wrong)
    assert holds(decision) and decision.reason is Reason.POLICY_LATE
    assert made.counts["policy_answers_discarded"] == 1


def test_a_takeover_is_counted_once():
    made = rig()
    for _ in range(5):
        made.move()
    assert made.arbiter.takeovers == 1
    made.tick()
    made.press(AUTHORITY)
    made.tick()
    made.move()
    assert made.arbiter.takeovers == 2


# Hand-back


def test_a_hand_back_holds_one_tick_and_asks_the_policy_anew():
    made = rig(Authority.HUMAN)
    decision = made.press(AUTHORITY)
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.POLICY, Reason.HANDED_BACK)
    assert decision.policy_due
    following = made.tick()
    assert following.label == POLICY and following.epoch == decision.epoch


def test_an_answer_that_comes_with_the_hand_back_was_made_before_it_and_is_not_executed():
    made = rig(Authority.HUMAN)
    tick = made.next_tick()
    eager = made.answer(tick, epoch=tick.epoch + 1)
    assert holds(made.tick(made.report(press=[AUTHORITY]), policy=eager))


def test_a_cap_that_is_still_deflected_at_the_hand_back_takes_nothing_over_until_it_was_let_go():
    made = rig(Authority.HUMAN)
    made.move(0.5)
    assert made.press(AUTHORITY, cap=0.5).authority is Authority.POLICY
    assert made.move(0.5).label == POLICY
    made.tick()
    assert made.move(0.5).label == HUMAN


def test_a_released_cap_hands_back_after_its_time_and_not_before():
    made = rig(handback="release", release_after_s=0.5, min_dwell_s=0.25)
    made.move()
    decisions = [made.tick() for _ in range(9)]
    assert [d.label for d in decisions[:8]] == [HUMAN] * 8  # neutral from the first of them on
    assert holds(decisions[8]) and decisions[8].reason is Reason.LET_GO
    assert made.tick().label == POLICY


def test_moving_again_in_time_keeps_the_arm():
    made = rig(handback="release", release_after_s=0.3)
    made.move()
    for _ in range(4):
        for _ in range(5):
            assert made.tick().label == HUMAN
        assert made.move().label == HUMAN


def test_with_a_deadman_letting_go_holds_instead_of_handing_back():
    made = rig(handback="deadman", release_after_s=0.1, min_dwell_s=0.1)
    made.move()
    for _ in range(3):
        decision = made.tick()
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.HOLD, Reason.DEADMAN_RELEASED)
    assert made.tick().authority is Authority.HOLD
    assert made.move().label == HUMAN


def test_a_button_press_does_not_hand_back_again_within_the_dwell():
    made = rig(min_dwell_s=0.5)
    made.press(AUTHORITY)
    made.tick()
    assert made.press(AUTHORITY).authority is Authority.POLICY
    made.tick()
    assert made.press(AUTHORITY).authority is Authority.HUMAN
    made.tick()
    assert made.press(AUTHORITY).authority is Authority.HUMAN  # too soon
    for _ in range(10):
        made.tick()
    assert made.press(AUTHORITY).authority is Authority.POLICY


def test_a_takeover_lasts_at_least_the_dwell_however_soon_the_cap_is_released():
    made = rig(handback="release", release_after_s=0.1, min_dwell_s=0.5)
    made.move()
    assert [made.tick().label for _ in range(7)] == [HUMAN] * 7
    assert made.tick().reason is Reason.LET_GO


def test_a_takeover_by_button_gives_time_to_move_the_cap():
    made = rig(handback="release", release_after_s=0.5, min_dwell_s=0.0)
    for _ in range(20):
        made.tick()  # at rest, for long
    assert made.press(AUTHORITY).label == HUMAN
    assert [made.tick().label for _ in range(8)] == [HUMAN] * 8
    assert made.tick().reason is Reason.LET_GO


def test_the_dwell_does_not_reach_into_the_next_episode():
    made = rig(Authority.HUMAN, min_dwell_s=5.0)
    assert made.press(AUTHORITY).authority is Authority.POLICY
    made.send(Event.END_EPISODE)
    made.start(episode_id="ep2")
    assert made.move().authority is Authority.HUMAN
    made.tick()
    assert made.press(AUTHORITY).authority is Authority.POLICY


# The device


def test_jitter_at_the_threshold_does_not_flicker():
    made = rig(handback="release", takeover_threshold=0.15, release_threshold=0.08)
    below = [made.move(0.149), made.move(0.1), made.move(0.149)]
    assert [d.label for d in below] == [POLICY] * 3
    between = [made.move(cap) for cap in [0.151, 0.149, 0.1, 0.151] + [0.1, 0.14] * 10]
    assert [d.label for d in between] == [HUMAN] * len(between)


@pytest.mark.parametrize("axis", range(6))
@pytest.mark.parametrize("sign", [-1, 1])
def test_every_axis_takes_over_in_both_directions(axis, sign):
    decision = rig().move(sign * 0.5, axis=axis, twist=np.zeros(6))
    assert decision.label == HUMAN


@pytest.mark.parametrize("sequence", [(), (0.0,)], ids=["never seen", "seen"])
def test_a_device_that_is_deflected_at_the_start_has_no_authority_until_it_was_neutral(sequence):
    made = Rig()
    decision = made.start(made.report(0.6))
    assert decision.label == POLICY and not made.arbiter.armed
    assert made.move(0.6).label == POLICY
    assert made.press(AUTHORITY, cap=0.6).label == POLICY
    for cap in sequence:
        assert made.move(cap).label == POLICY
    assert made.move(0.6).label == (HUMAN if sequence else POLICY)


def test_two_presses_between_ticks_are_both_handled_in_order():
    made = rig()
    down, up = made.report(press=[AUTHORITY]), made.report()
    decision = made.tick(down, up, down, up)
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.POLICY, Reason.HANDED_BACK)
    assert made.arbiter.takeovers == 1 and decision.epoch == made.arbiter.epoch == 2


def test_two_gripper_presses_between_ticks_cancel_and_three_toggle():
    made = rig(Authority.HUMAN)
    before = made.last.action[GRIPPER]
    down, up = made.report(press=[GRIP]), made.report()
    assert made.tick(down, up, down, up).action[GRIPPER] == before
    assert made.tick(down, up, down, up, down, up).action[GRIPPER] == -before


def test_a_button_that_is_held_down_is_pressed_once():
    made = rig(Authority.HUMAN)
    before = made.last.action[GRIPPER]
    actions = [made.press(GRIP).action[GRIPPER] for _ in range(5)]
    assert actions == [-before] * 5


def test_a_press_in_the_report_that_also_moves_the_cap_does_not_hand_back_at_once():
    made = rig()
    decision = made.press(AUTHORITY, cap=0.5)
    assert (decision.label, decision.reason) == (HUMAN, Reason.CAP_MOVED)


def test_a_button_that_is_down_in_the_first_report_was_not_pressed():
    made = Rig()
    made.start(made.report(press=[AUTHORITY]))
    assert made.arbiter.authority is Authority.POLICY


def test_a_device_without_the_button_is_no_error():
    made = rig()
    bare = replace(made.report(0.5), buttons=())
    assert made.tick(bare).label == HUMAN


@pytest.mark.parametrize("authority", [Authority.POLICY, Authority.HUMAN])
def test_a_silent_device_holds_and_has_to_be_neutral_before_anything_goes_on(authority):
    made = rig(authority)
    made.move() if authority is Authority.HUMAN else made.tick()
    for _ in range(3):
        assert not holds(made.tick(silent=True))  # 0.19 s: still live
    made.now_s += 0.1
    decision = made.tick(silent=True)
    assert holds(decision) and decision.authority is Authority.HOLD
    lost = {
        Authority.POLICY: Reason.DEVICE_LOST_POLICY,
        Authority.HUMAN: Reason.DEVICE_LOST,
    }[authority]
    assert decision.reason is lost and not made.arbiter.armed

    # Silent still: nothing goes on.
    assert holds(made.send(Event.RESUME, silent=True)) and made.arbiter.reason is lost
    # Back, but deflected: stuck, perhaps. Neither it nor the policy gets the arm.
    assert holds(made.move(0.5))
    assert holds(made.tick(made.report(0.5), events=[Event.RESUME])) and made.arbiter.reason is lost
    assert made.counts["resume_without_device"] == 2
    # Neutral: it is armed, and still holds until someone asks.
    assert holds(made.tick()) and made.arbiter.armed
    assert made.tick().authority is Authority.HOLD


def test_after_a_loss_a_neutral_device_can_take_over():
    made = rig(Authority.HUMAN)
    stay_silent(made)
    made.tick()
    assert made.move().label == HUMAN


@pytest.mark.parametrize("how", ["resume", "button"])
def test_after_a_loss_a_neutral_device_can_resume(how):
    made = rig(Authority.HUMAN)
    stay_silent(made)
    made.tick()
    decision = made.send(Event.RESUME) if how == "resume" else made.press(AUTHORITY)
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.POLICY, Reason.RESUMED)
    assert made.tick().label == POLICY


def test_a_device_that_comes_back_with_a_button_down_has_not_pressed_it():
    made = rig(Authority.HUMAN)
    stay_silent(made)
    assert holds(made.press(AUTHORITY)) and made.arbiter.authority is Authority.HOLD
    assert holds(made.press(AUTHORITY))
    made.tick()
    assert made.press(AUTHORITY).authority is Authority.POLICY


def test_a_loss_between_two_ticks_is_noticed_by_the_times_of_the_reports():
    made = rig()
    made.tick()
    later = made.now_s + 0.24
    tick = made.next_tick()
    stuck = made.report(0.5, at_s=later)
    made.last = made.arbiter.step(later + 0.01, tick, made.answer(tick), [stuck])
    assert made.last.label == POLICY and not made.arbiter.armed


def test_with_continue_the_policy_goes_on_without_a_device_and_a_human_never_does():
    made = rig(on_device_lost="continue")
    made.now_s += 1.0
    assert made.tick(silent=True).label == POLICY
    made.tick()
    assert made.move().label == HUMAN
    made.now_s += 1.0
    decision = made.tick(silent=True)
    assert holds(decision) and decision.reason is Reason.DEVICE_LOST
    # An explicit request: with `continue` the policy needs no one who could take over.
    assert made.send(Event.RESUME, silent=True).authority is Authority.POLICY
    assert made.tick(silent=True).label == POLICY


def test_without_any_device_the_policy_does_not_begin():
    made = Rig()
    decision = made.start(silent=True)
    assert holds(decision) and decision.reason is Reason.DEVICE_LOST_POLICY
    assert Rig(on_device_lost="continue").start(silent=True).label == POLICY


BAD_REPORTS = {
    "NaN axis": lambda r: replace(r, axes=np.array([0.5, np.nan, 0, 0, 0, 0], np.float32)),
    "infinite axis": lambda r: replace(r, axes=np.array([np.inf, 0, 0, 0, 0, 0], np.float32)),
    "NaN twist": lambda r: replace(r, twist=np.array([np.nan] * 6)),
    "five axes": lambda r: replace(r, axes=np.zeros(5, np.float32)),
    "seven numbers of twist": lambda r: replace(r, twist=np.zeros(7)),
    "no axes": lambda r: replace(r, axes=None),
}


@pytest.mark.parametrize("spoil", BAD_REPORTS.values(), ids=BAD_REPORTS)
def test_a_report_that_is_not_executable_is_refused_whole(spoil):
    made = rig(Authority.HUMAN)
    made.move(0.5)
    decision = made.tick(spoil(made.report(0.5)))
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.HUMAN, Reason.DEVICE_INVALID)
    assert made.counts["device_reports_refused"] == 1
    assert made.move(0.5).label == HUMAN


@pytest.mark.parametrize("spoil", BAD_REPORTS.values(), ids=BAD_REPORTS)
def test_a_report_that_is_not_executable_takes_nothing_over_and_disarms(spoil):
    made = rig()
    assert made.tick(spoil(made.report(0.5))).label == POLICY
    assert made.move(0.5).label == POLICY
    made.tick()
    assert made.move(0.5).label == HUMAN


def test_the_motion_of_before_a_bad_report_is_not_executed_again_after_it():
    made = rig(Authority.HUMAN)
    made.move(0.5)
    assert holds(made.tick(BAD_REPORTS["NaN axis"](made.report(0.5))))
    assert holds(made.tick(silent=True))  # nothing newer than what was refused


def test_bad_reports_do_not_keep_a_device_alive():
    made = rig(Authority.HUMAN)
    for _ in range(5):
        decision = made.tick(BAD_REPORTS["NaN axis"](made.report()))
    assert (decision.authority, decision.reason) == (Authority.HOLD, Reason.DEVICE_LOST)


def test_a_twist_too_large_for_a_number_is_refused_rather_than_turned_into_nan():
    made = rig(Authority.HUMAN)
    decision = made.move(0.5, twist=[1e300, 0, 0, 0, 0, 0])
    assert holds(decision) and decision.reason is Reason.DEVICE_INVALID


# The gripper


def test_the_gripper_toggles_only_by_its_button_and_only_for_the_human():
    made = rig()
    assert made.press(GRIP).action[GRIPPER] == OPEN  # the policy has it
    made.move()
    assert made.last.action[GRIPPER] == OPEN
    assert made.press(GRIP).action[GRIPPER] == CLOSED
    assert made.move().action[GRIPPER] == CLOSED
    made.tick()
    assert made.press(GRIP).action[GRIPPER] == OPEN
    made.send(Event.HOLD)
    assert made.press(GRIP).action[GRIPPER] == OPEN


@pytest.mark.parametrize("command", [OPEN, CLOSED, 0.25])
def test_the_gripper_never_changes_at_a_change_of_authority(command):
    made = rig()
    action = FORWARD.copy()
    action[GRIPPER] = command
    made.tick(policy=lambda tick: made.answer(tick, action))
    steps = [
        lambda: made.move(),  # takeover
        lambda: made.tick(),
        lambda: made.press(AUTHORITY),  # hand-back
        lambda: made.tick(policy=None),  # late
        lambda: made.send(Event.HOLD),
        lambda: made.send(Event.RESUME),
        lambda: made.move(),
        lambda: stay_silent(made),  # lost
        lambda: made.tick(),
        lambda: made.send(Event.ESTOP),
        lambda: made.send(Event.CLEAR_FAULT),
        lambda: made.timer(made.report()),
        lambda: made.send(Event.END_EPISODE),
    ]
    for step in steps:
        assert step().action[GRIPPER] == pytest.approx(command)


@pytest.mark.parametrize("told", [Applied.LATE_HELD, Applied.REFUSED])
def test_a_gripper_command_that_was_not_executed_is_not_executed_by_a_takeover_or_a_hold(told):
    closing = FORWARD.copy()
    closing[GRIPPER] = CLOSED
    for act in (
        lambda made, **known: made.tick(made.report(0.5), **known),
        lambda made, **known: made.send(Event.HOLD, **known),
        lambda made, **known: made.tick(policy=None, **known),
    ):
        made = rig()
        made.tick(policy=lambda tick, made=made: made.answer(tick, closing))
        decision = act(made, applied=told, applied_action=hold(OPEN))
        assert decision.action[GRIPPER] == OPEN
        assert made.send(Event.HOLD).action[GRIPPER] == OPEN


def test_the_speed_grows_from_a_stand_where_the_last_decision_was_not_executed():
    config = {"max_acceleration_m_s2": 0.1 / 0.05}  # of action 0.1 a step
    for told, expected in ({}, 0.2), ({"applied": Applied.LATE_HELD}, 0.1):
        made = Rig(**config)
        made.tick(policy=None)
        assert made.start().action[0] == pytest.approx(0.1)
        decision = made.tick(**told, **({"applied_action": hold(OPEN)} if told else {}))
        assert decision.action[0] == pytest.approx(expected)


def test_a_gripper_command_that_was_executed_is_kept_by_a_takeover():
    made = rig()
    closing = FORWARD.copy()
    closing[GRIPPER] = CLOSED
    made.tick(policy=lambda tick: made.answer(tick, closing))
    decision = made.tick(made.report(0.5), applied=Applied.APPLIED, applied_action=hold(OPEN))
    assert decision.action[GRIPPER] == CLOSED  # a disturbance moved the robot's


def test_a_gripper_that_is_said_to_have_moved_only_in_a_hold_is_left_so_by_the_takeover_after_it():
    """The robot's word that it had executed the closing came after the next tick."""
    made = rig()
    closing = FORWARD.copy()
    closing[GRIPPER] = CLOSED
    made.tick(policy=lambda tick: made.answer(tick, closing))
    late = {"applied": Applied.LATE_HELD, "applied_action": hold(OPEN)}
    assert made.send(Event.HOLD, **late).action[GRIPPER] == OPEN
    decision = made.move(applied=Applied.APPLIED, applied_action=hold(CLOSED))
    assert decision.authority is Authority.HUMAN and decision.action[GRIPPER] == CLOSED


def test_after_steps_without_ticks_what_is_said_of_the_last_tick_is_over():
    made = rig(max_acceleration_m_s2=4.0)  # 0.2 of action 1 a step
    for _ in range(4):
        assert made.tick().label == POLICY
    made.move(0.0)
    made.timer(made.report(0.5))  # no camera, and the human takes the arm
    closed = made.timer(made.report(0.5, press=[GRIP]))
    assert closed.action[GRIPPER] == CLOSED
    made.timer(made.report(), events=[Event.HOLD])
    made.timer(made.report())
    told = FORWARD.copy()
    told[GRIPPER] = OPEN
    back = made.move(0.9, applied=Applied.APPLIED, applied_action=told)
    assert back.authority is Authority.HUMAN and back.action[GRIPPER] == CLOSED
    assert back.action[0] == pytest.approx(0.2)


def test_a_humans_gripper_press_counts_though_the_decision_came_too_late():
    made = rig(Authority.HUMAN)
    assert made.press(GRIP).action[GRIPPER] == CLOSED
    decision = made.tick(applied=Applied.LATE_HELD, applied_action=hold(OPEN))
    assert decision.authority is Authority.HUMAN and decision.action[GRIPPER] == CLOSED


# The policy's numbers


BAD_ACTIONS = {
    "NaN": lambda a: np.where(np.arange(7) == 3, np.nan, a),
    "infinity": lambda a: np.where(np.arange(7) == 0, np.inf, a),
    "a NaN gripper": lambda a: np.where(np.arange(7) == GRIPPER, np.nan, a),
    "six numbers": lambda a: a[:6],
    "eight numbers": lambda a: np.r_[a, 0],
    "too large for float32": lambda a: a.astype(np.float64) * 1e300,
}


@pytest.mark.parametrize("spoil", BAD_ACTIONS.values(), ids=BAD_ACTIONS)
def test_an_action_that_is_not_executable_is_refused_whole_and_never_clamped(spoil):
    made = rig()
    made.tick()

    def answer(tick):
        return replace(made.answer(tick), actions=spoil(FORWARD)[None])

    decision = made.tick(policy=answer)
    assert holds(decision) and decision.reason is Reason.POLICY_INVALID
    assert decision.authority is Authority.POLICY and decision.policy_due
    assert made.counts["policy_refused"] == 1
    assert made.tick().label == POLICY


@pytest.mark.parametrize(
    "actions", [np.zeros((0, 7)), np.zeros(7), np.zeros((1, 1, 7))], ids=lambda a: str(a.shape)
)
def test_an_answer_of_the_wrong_shape_is_refused_and_not_waited_for(actions):
    made = rig(lock_step=True)
    made.now_s += PERIOD_S
    tick = made.next_tick()
    answer = replace(made.answer(tick), actions=actions)
    arguments = (made.now_s, tick, answer, [made.report()])
    assert made.arbiter.ready(*arguments)
    decision = made.arbiter.step(*arguments)
    assert holds(decision) and decision.reason is Reason.POLICY_INVALID


def test_a_bad_action_in_a_chunk_ends_the_chunk():
    made = rig()
    bad = FORWARD * np.nan
    assert made.tick(policy=lambda tick: made.answer(tick, FORWARD, bad, FORWARD)).label == POLICY
    decision = made.tick(policy=None)
    assert holds(decision) and decision.reason is Reason.POLICY_INVALID and decision.policy_due
    assert made.tick(policy=None).reason is Reason.POLICY_LATE


def test_a_chunk_is_executed_action_by_action_and_asked_for_again_when_it_ends():
    made = rig()
    plan = [FORWARD * scale for scale in (0.2, 0.4, 0.6)]
    first = made.tick(policy=lambda tick: made.answer(tick, *plan))
    rest = [made.tick(policy=None), made.tick(policy=None)]
    decisions = [first, *rest]
    assert [d.action[0] for d in decisions] == [a[0] for a in plan]
    assert [d.policy_due for d in decisions] == [False, False, True]


def test_a_chunk_is_not_shifted_by_a_tick_that_was_lost():
    made = rig()
    plan = [FORWARD * scale for scale in (0.2, 0.4, 0.6)]
    made.tick(policy=lambda tick: made.answer(tick, *plan))
    decision = made.tick(policy=None, sequence=made.sequence + 2)
    assert decision.action[0] == plan[2][0]


def test_a_late_policy_holds_that_step_and_its_action_is_never_repeated():
    made = rig()
    made.tick()
    decision = made.tick(policy=None)
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.POLICY, Reason.POLICY_LATE)
    assert decision.policy_due and made.counts["policy_late"] == 1


def test_policy_failures_in_a_row_end_in_a_hold_that_waits_for_a_human():
    made = rig(max_policy_failures=3)
    for _ in range(2):
        assert made.tick(policy=None).authority is Authority.POLICY
    made.tick()  # an answer in between: counting begins again
    for _ in range(2):
        assert made.tick(policy=None).authority is Authority.POLICY
    bad = made.tick(policy=lambda tick: made.answer(tick, FORWARD * np.nan))
    assert holds(bad)
    assert (bad.authority, bad.reason) == (Authority.HOLD, Reason.POLICY_GONE)
    assert holds(made.tick(policy=lambda tick: made.answer(tick)))  # back, but not asked
    made.send(Event.RESUME)
    assert made.tick().label == POLICY


def test_an_action_over_the_limit_is_scaled_with_its_direction_kept_and_flagged():
    made = rig(max_speed_m_s=(0.5,) * 3, max_rate_rad_s=(1.0,) * 3)
    asked = np.array([3.0, -1.5, 0.75, 0.05, -0.2, 0.0, 7.0], np.float32)
    decision = made.tick(policy=lambda tick: made.answer(tick, asked))
    assert decision.limited and decision.label == POLICY
    assert np.allclose(decision.action, [0.5, -0.25, 0.125, 0.025, -0.1, 0.0, 1.0])
    assert decision.requested.tolist() == asked.tolist()
    assert made.counts["limited"] == 1


def test_the_human_is_limited_too():
    made = rig(max_speed_m_s=(0.2,) * 3)
    decision = made.move(0.5, twist=[0.4, 0.2, 0, 0, 0, 0])
    assert decision.limited and decision.label == HUMAN
    assert np.allclose(decision.action[:3], [0.2, 0.1, 0.0])
    assert np.allclose(decision.requested[:3], [0.4, 0.2, 0.0])


def test_the_humans_speed_becomes_an_action_by_the_scales():
    made = rig(linear_scale_m_s=2.0, angular_scale_rad_s=5.0)
    decision = made.move(0.5, twist=[1.0, 0, 0, 0, 0, -2.5])
    assert np.allclose(decision.action[:6], [0.5, 0, 0, 0, 0, -0.5])


def test_an_action_within_the_limits_is_executed_bit_by_bit():
    action = np.array([0.1, -0.2, 0.3, 1.0, -1.0, 1e-30, 0.7], np.float32)
    limited, changed = Limits(ArbiterConfig(max_step_rad=9.0)).apply(action, (0.0,) * 6)
    assert not changed and limited.tobytes() == action.tobytes()


def test_the_largest_float_is_scaled_without_overflow():
    action = np.full(7, np.finfo(np.float32).max, np.float32)
    config = ArbiterConfig(max_rate_rad_s=(5.0,) * 3)
    limited, changed = Limits(config).apply(action, (0.0,) * 6)
    assert changed and np.allclose(limited, [1, 1, 1, 0.5, 0.5, 0.5, 1])


FORWARD_AND_TURN = np.array([0.4, 0, 0, 0, 0, 2.0])  # m/s and rad/s, as the operator sees it
FROM_THE_LEFT = (0.0, 0.0, -math.sqrt(0.5), math.sqrt(0.5))  # looks along the base's -y
HAND_DOWN = (1.0, 0.0, 0.0, 0.0)  # the tool's z points down


@pytest.mark.parametrize(
    ("config", "pose", "expected"),
    [
        ({}, None, [0.4, 0, 0, 0, 0, 0.2]),
        (
            {"operator_frame": "camera", "camera_rotation": FROM_THE_LEFT},
            None,
            [0, -0.4, 0, 0, 0, 0.2],
        ),
        ({"operator_frame": "tool"}, HAND_DOWN, [0.4, 0, 0, 0, 0, -0.2]),
    ],
)
def test_what_the_operator_asks_for_is_turned_into_the_base(config, pose, expected):
    made = rig(**config)
    made.pose = None if pose is None else np.array([0.3, 0.1, 0.9, *pose])
    decision = made.move(0.5, twist=FORWARD_AND_TURN)
    assert decision.label == HUMAN
    assert np.allclose(decision.action[:6], expected, atol=1e-6)


@pytest.mark.parametrize(
    "config", [{"operator_frame": "tool"}, {"workspace_min_m": (-1.0, -1.0, 0.8)}]
)
@pytest.mark.parametrize("pose", [None, np.full(7, np.nan), np.zeros(7), np.zeros(3)])
def test_without_a_pose_that_is_needed_nothing_moves(config, pose):
    made = rig(**config)
    made.pose = pose
    decision = made.move(0.5, twist=FORWARD_AND_TURN)
    assert holds(decision) and decision.authority is Authority.HUMAN
    assert decision.reason is Reason.POSE_UNKNOWN and made.counts["pose_unknown"]
    made.pose = np.array([0.3, 0.1, 0.9, *HAND_DOWN])
    assert made.move(0.5, twist=FORWARD_AND_TURN).label == HUMAN


@pytest.mark.parametrize(
    "config", [{"operator_frame": "tool"}, {"workspace_min_m": (-1.0, -1.0, 0.8)}]
)
def test_a_human_moves_the_arm_without_ticks_as_long_as_the_pose_is_known(config):
    """A camera has died; the limits hold all the same."""
    made = rig(**config)
    made.pose = np.array([0.3, 0.1, 0.8, *HAND_DOWN])
    assert made.move(0.5, twist=[0, 0, -0.5, 0, 0, 0]).authority is Authority.HUMAN
    report = made.report(0.5, twist=[0.25, 0, 0, 0, 0, 0])
    decision = made.timer(report, pose=made.pose)
    assert (decision.authority, decision.label) == (Authority.HUMAN, NONE)
    assert abs(decision.action[0]) == pytest.approx(0.25)
    down = made.timer(made.report(0.5, twist=[0, 0, -0.5, 0, 0, 0]), pose=made.pose)
    assert down.action[2] == pytest.approx(0.0 if "workspace_min_m" in config else 0.5, abs=1e-6)
    assert not made.timer(report).action[:6].any()


def test_the_policy_too_is_kept_in_the_workspace():
    made = rig(workspace_min_m=(-1.0, -1.0, 0.8))
    made.pose = np.array([0.0, 0.0, 0.8, 0, 0, 0, 1])
    down = np.array([0.5, 0, -1, 0, 0, 0, 1], np.float32)
    decision = made.tick(policy=lambda tick: made.answer(tick, down))
    assert decision.action[:3].tolist() == [0.5, 0, 0] and decision.limited
    assert decision.label == POLICY and decision.requested.tolist() == down.tolist()
    made.pose = None
    assert holds(made.tick(policy=lambda tick: made.answer(tick, down)))


def test_acceleration_is_limited_from_what_was_executed_and_a_stop_is_at_once():
    made = rig(Authority.HUMAN, max_acceleration_m_s2=4.0)  # 0.2 of action 1 a step
    speeds = [made.move(0.5, twist=[0.5, 0, 0, 0, 0, 0]).action[0] for _ in range(4)]
    assert speeds == pytest.approx([0.2, 0.4, 0.5, 0.5])
    assert not made.move(0.0).action[:6].any()
    assert made.move(0.5, twist=[0.5, 0, 0, 0, 0, 0]).action[0] == pytest.approx(0.2)


def test_a_gripper_that_is_held_closes_with_the_button_and_opens_without_it():
    made = rig(gripper_mode="hold")
    assert made.move(0.5).action[GRIPPER] == -1
    for down in (1, 1, 0, 0, 1):
        pressed = [GRIP] if down else []
        assert made.move(0.5, press=pressed).action[GRIPPER] == (CLOSED if down else OPEN)


def test_a_held_gripper_stays_as_the_policy_left_it_until_the_button_moves():
    made = rig(gripper_mode="hold")
    closed = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    assert made.tick(policy=lambda tick: made.answer(tick, closed)).action[GRIPPER] == 1
    assert made.move(0.5).label == HUMAN
    assert made.move(0.5).action[GRIPPER] == 1  # not pressed, but never let go either
    made.move(0.5, press=[GRIP])
    assert made.move(0.5).action[GRIPPER] == -1


def test_when_the_recording_ends_the_policy_stops_and_a_human_goes_on():
    made = rig()
    assert made.tick().label == POLICY
    decision = made.send(Event.RECORDING_ENDED)
    assert holds(decision) and decision.reason is Reason.RECORDING_ENDED
    made = rig(Authority.HUMAN)
    assert made.send(Event.RECORDING_ENDED).authority is Authority.HUMAN
    assert made.move(0.5).label == HUMAN


@pytest.mark.parametrize("action", [np.zeros(6), np.zeros((1, 7)), np.full(7, np.nan), 3.0])
def test_what_is_no_action_is_not_valid(action):
    assert not valid_action(action)


# Faults


@pytest.mark.parametrize("authority", [Authority.POLICY, Authority.HUMAN, Authority.HOLD])
def test_an_emergency_stop_is_latched(authority):
    made = rig(authority)
    assert holds(made.send(Event.ESTOP))
    tries = [
        lambda: made.send(Event.RESUME),
        lambda: made.move(),
        lambda: made.tick(),
        lambda: made.press(AUTHORITY),
        lambda: made.send(Event.HOLD),
        lambda: made.send(Event.END_EPISODE),
        lambda: made.start(episode_id="ep2"),
        lambda: stay_silent(made),
    ]
    for each in tries:
        decision = each()
        assert holds(decision)
        assert (decision.authority, decision.reason) == (Authority.FAULT, Reason.ESTOPPED)


def test_clearing_a_fault_needs_a_neutral_device():
    made = rig(Authority.FAULT)
    made.move(0.5)  # armed before, deflected now
    decision = made.tick(made.report(0.5), events=[Event.CLEAR_FAULT])
    assert holds(decision) and decision.authority is Authority.FAULT
    assert decision.refusals == (Refusal.CLEAR_WITHOUT_DEVICE,)
    assert made.counts["clear_without_device"] == 1
    stay_silent(made)
    assert made.send(Event.CLEAR_FAULT, silent=True).authority is Authority.FAULT
    made.tick()
    decision = made.send(Event.CLEAR_FAULT)
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.HOLD, Reason.FAULT_CLEARED)
    assert holds(made.tick())
    made.send(Event.RESUME)
    assert made.tick().label == POLICY


def test_clearing_a_fault_needs_a_device_that_reports():
    made = rig(Authority.FAULT)
    made.tick()  # seen at rest; and then it falls silent
    made.now_s += made.arbiter.config.device_timeout_s
    decision = made.send(Event.CLEAR_FAULT, silent=True)
    assert decision.authority is Authority.FAULT
    assert decision.refusals == (Refusal.CLEAR_WITHOUT_DEVICE,)


def test_clearing_a_fault_waits_for_a_device_that_has_not_reported_yet():
    made = Rig()
    made.start(silent=True, sequence=40, authority=Authority.FAULT)
    assert made.send(Event.CLEAR_FAULT, silent=True).authority is Authority.FAULT
    made.tick()
    assert made.send(Event.CLEAR_FAULT).authority is Authority.HOLD


def test_where_there_is_no_device_a_fault_is_cleared_by_the_request_alone():
    made = Rig(on_device_lost="continue")
    made.start(silent=True)
    made.send(Event.ESTOP, silent=True)
    assert made.send(Event.CLEAR_FAULT, silent=True).authority is Authority.HOLD


def test_a_second_arbiter_is_a_fault():
    decision = rig().send(Event.SECOND_ARBITER)
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.FAULT, Reason.SECOND_ARBITER_SEEN)


@pytest.mark.parametrize("authority", [Authority.POLICY, Authority.HUMAN, Authority.HOLD])
def test_after_time_was_reset_only_a_new_episode_gives_the_policy_the_arm(authority):
    made = rig(authority)
    decision = made.send(Event.TIME_RESET)
    assert holds(decision) and decision.reason is Reason.TIME_WAS_RESET
    assert holds(made.send(Event.RESUME)) and made.arbiter.authority is Authority.HOLD
    made.start(episode_id="ep2")
    assert made.tick().label == POLICY


def test_time_that_was_reset_disarms_the_device():
    made = rig(Authority.HUMAN)
    decision = made.tick(made.report(0.5), events=[Event.TIME_RESET])
    assert holds(decision)
    assert holds(made.move(0.5))


def test_requests_are_handled_in_order():
    made = rig()
    assert made.send(Event.HOLD, Event.RESUME).reason is Reason.RESUMED
    assert made.send(Event.RESUME, Event.HOLD).reason is Reason.OPERATOR_HOLD
    assert made.send(Event.ESTOP, Event.CLEAR_FAULT, Event.RESUME).reason is Reason.RESUMED


def test_what_would_be_refused_is_known_before_and_nothing_changes_by_asking():
    made = rig(Authority.FAULT)
    made.move(0.5)

    def refusal(event, *events):
        return made.arbiter.refusal(made.now_s, event, events)

    assert refusal(Event.CLEAR_FAULT) is Refusal.CLEAR_WITHOUT_DEVICE
    assert refusal(Event.RESUME) is Refusal.RESUME_IN_FAULT
    made.tick()
    assert refusal(Event.CLEAR_FAULT) is None
    assert refusal(Event.RESUME) is Refusal.RESUME_IN_FAULT
    assert refusal(Event.RESUME, Event.CLEAR_FAULT) is None  # which is queued before it
    assert refusal(Event.RESUME, Event.CLEAR_FAULT, Event.ESTOP) is Refusal.RESUME_IN_FAULT
    assert made.arbiter.authority is Authority.FAULT and not made.counts["resume_in_fault"]
    assert made.send(Event.RESUME).refusals == (Refusal.RESUME_IN_FAULT,)
    assert made.tick().refusals == ()
    for event in (Event.HOLD, Event.ESTOP):
        assert refusal(event) is None


def test_resuming_without_the_device_that_was_lost_is_refused():
    made = rig()
    stay_silent(made)
    assert made.arbiter.refusal(made.now_s, Event.RESUME) is Refusal.RESUME_WITHOUT_DEVICE
    assert made.send(Event.RESUME).refusals == (Refusal.RESUME_WITHOUT_DEVICE,)
    assert made.arbiter.refusal(made.now_s, Event.RESUME) is None  # it is back, at rest


def test_every_refusal_is_a_sentence_that_says_what_to_do():
    for refusal in Refusal:
        assert refusal.value.endswith(".") and ", " in refusal.value and ":" in refusal.value


def test_an_unknown_request_is_an_error_and_changes_nothing():
    made = rig()
    before = made.arbiter.authority, made.arbiter.epoch, made.arbiter.sequence
    with pytest.raises(ValueError, match="99"):
        made.send(Event.HOLD, 99)
    assert (made.arbiter.authority, made.arbiter.epoch, made.arbiter.sequence) == before


# Ticks


def test_an_older_tick_and_one_that_was_decided_are_refused():
    made = rig()
    for sequence in (made.sequence, made.sequence - 1):
        with pytest.raises(ValueError, match=f"tick {sequence} of ep1 is not newer"):
            made.arbiter.step(made.now_s, made.next_tick(sequence))


def test_the_decision_of_a_tick_that_comes_again_is_kept():
    made = rig()
    decision = made.tick()
    assert made.arbiter.decided(made.next_tick(made.sequence)) is decision
    assert made.arbiter.decided(made.next_tick()) is None
    made.timer(made.report())  # not a decision of that tick
    assert made.arbiter.decided(made.next_tick(made.sequence)) is decision


def test_when_ticks_stop_the_policy_loses_its_authority():
    made = rig()
    decision = made.timer(made.report())
    assert holds(decision)
    assert (decision.authority, decision.reason) == (Authority.HOLD, Reason.TICKS_LOST)
    assert (decision.episode_id, decision.sequence) == ("ep1", made.sequence)
    made.tick()
    assert made.arbiter.authority is Authority.HOLD  # until someone resumes
    made.send(Event.RESUME)
    assert made.tick().label == POLICY


def test_when_ticks_stop_the_human_goes_on_moving_the_arm_and_it_is_no_data():
    made = rig(Authority.HUMAN)
    decision = made.timer(made.report(0.5))
    assert decision.authority is Authority.HUMAN and decision.label == NONE
    assert decision.action[0] == pytest.approx(0.5)
    lost = [made.timer() for _ in range(5)][-1]  # and the device fell silent
    assert holds(lost) and lost.reason is Reason.DEVICE_LOST


def test_when_ticks_stop_a_human_can_take_over():
    made = rig()
    assert made.timer(made.report(0.5)).authority is Authority.HUMAN


def test_a_jump_of_the_senders_clock_changes_nothing():
    made = rig()
    for stamp_ns in (0, 1 << 62):
        jumped = replace(made.report(), stamp_ns=stamp_ns)
        assert made.tick(jumped).label == POLICY


# Asking before deciding


def test_ready_changes_nothing():
    made = rig()
    made.now_s += PERIOD_S
    tick = made.next_tick()
    before = vars(made.arbiter._state).copy(), made.counts.copy(), made.arbiter._last
    everything = [made.report(0.5, press=[GRIP, AUTHORITY]), made.report()]
    for policy in (None, made.answer(tick), made.answer(tick, FORWARD * np.nan)):
        for events in ((), (Event.ESTOP,), (Event.END_EPISODE, Event.START_DEPLOYMENT)):
            made.arbiter.ready(made.now_s, tick, policy, everything, events)
    assert before == (vars(made.arbiter._state), made.counts, made.arbiter._last)


WAITS = {
    "the policy is due and late": (dict(policy=None), False),
    "it has answered": (dict(), True),
    "its answer is for another tick": (dict(sequence=0), False),
    "its answer is of an old epoch": (dict(epoch=99), False),
    "its answer is bad": (dict(actions=np.full((1, 7), np.nan)), True),
    "the human takes over": (dict(policy=None, cap=0.5), True),
    "someone asks for a hold": (dict(policy=None, events=[Event.HOLD]), True),
    "the episode ends": (dict(policy=None, events=[Event.END_EPISODE]), True),
}


@pytest.mark.parametrize(("known", "ready"), WAITS.values(), ids=WAITS)
@pytest.mark.parametrize("lock_step", [False, True])
def test_ready_says_whether_the_decision_only_waits_for_the_policy(known, ready, lock_step):
    made, known = rig(lock_step=lock_step), dict(known)
    made.now_s += PERIOD_S
    tick = made.next_tick()
    human, events = [made.report(known.pop("cap", 0.0))], known.pop("events", [])
    policy = None if "policy" in known else replace(made.answer(tick), **known)
    arguments = (made.now_s, tick, policy, human, events)
    assert made.arbiter.ready(*arguments) is ready
    decision = made.arbiter.step(*arguments)
    assert (decision.reason is Reason.POLICY_LATE) is not ready


def test_ready_does_not_wait_for_a_chunk_that_goes_on():
    made = rig()
    made.tick(policy=lambda tick: made.answer(tick, FORWARD, FORWARD))
    assert made.arbiter.ready(made.now_s + PERIOD_S, made.next_tick(), None, [made.report()])


# Lock-step


def test_in_lock_step_silence_of_the_device_is_no_loss():
    made = rig(lock_step=True)
    made.now_s += 1000.0
    assert made.tick(silent=True).label == POLICY
    made.move()
    made.now_s += 1000.0
    assert made.tick(silent=True).label == HUMAN
    assert made.arbiter.device_live(made.now_s + 1000.0)


def test_in_lock_step_a_device_that_never_reported_is_no_device():
    made = Rig(lock_step=True)
    assert holds(made.start(silent=True)) and made.arbiter.reason is Reason.DEVICE_LOST_POLICY
    assert not made.arbiter.device_live(made.now_s)


def test_in_lock_step_release_counts_the_time_of_the_ticks():
    """There the receipt clock is another clock than the one of the ticks."""
    made = rig(lock_step=True, handback="release", release_after_s=0.2)
    made.move()
    labels = []
    for _ in range(6):
        made.now_s += PERIOD_S
        tick = made.next_tick()
        far_away = made.report(at_s=123_456.0)
        made.last = made.arbiter.step(made.now_s, tick, None, [far_away])
        made.sequence += 1
        labels.append(made.last.label)
    assert labels[:4] == [HUMAN] * 4 and NONE in labels


def test_the_same_inputs_give_the_same_decisions():
    def run():
        made = rig(lock_step=True)
        decisions = [made.tick(), made.move(0.3), made.press(GRIP), made.press(AUTHORITY)]
        return [*decisions, made.tick(), made.tick(policy=None)]

    for one, other in zip(run(), run(), strict=True):
        assert one.action.tobytes() == other.action.tobytes()
        assert (one.label, one.authority, one.reason, one.epoch) == (
            other.label,
            other.authority,
            other.reason,
            other.epoch,
        )


# Configuration


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"linear_scale_m_s": 0.0}, "linear_scale_m_s must be above 0, not 0"),
        ({"angular_scale_rad_s": -1.0}, "angular_scale_rad_s must be above 0"),
        ({"max_speed_m_s": (1.0, math.nan, 1.0)}, "max_speed_m_s must be above 0, not [ 1. nan"),
        ({"max_rate_rad_s": (1.0, 0.0, 1.0)}, "max_rate_rad_s must be above 0"),
        ({"max_rate_rad_s": (1.0, 1.0)}, "max_rate_rad_s must be 3 numbers, not [1.0, 1.0]"),
        ({"max_step_m": math.inf}, "max_step_m must be above 0, not inf"),
        ({"max_acceleration_m_s2": -1.0}, "max_acceleration_m_s2 must be at least 0, not -1"),
        ({"workspace_min_m": (0, 0, 3), "workspace_max_m": (1, 1, 2)}, "workspace has no room"),
        ({"operator_frame": "world"}, "operator_frame must be one of base, tool, camera"),
        ({"camera_rotation": (0, 0, 0, 2)}, "camera_rotation has length 2, not 1"),
        ({"gripper_mode": "squeeze"}, "gripper_mode must be one of toggle, hold, not 'squeeze'"),
        ({"release_after_s": 0.0}, "release_after_s must be above 0"),
        ({"device_timeout_s": -0.1}, "device_timeout_s must be above 0"),
        ({"takeover_threshold": 1.0}, "0 < release_threshold < takeover_threshold < 1"),
        ({"takeover_threshold": 0.05}, "not 0.08 and 0.05"),
        ({"release_threshold": 0.0}, "0 < release_threshold"),
        ({"min_dwell_s": -1.0}, "min_dwell_s must not be negative"),
        ({"handback": "never"}, "handback must be button, release or deadman, not 'never'"),
        ({"on_device_lost": "stop"}, "on_device_lost must be hold or continue, not 'stop'"),
        ({"max_policy_failures": 0}, "max_policy_failures must be at least 1"),
        ({"gripper_button": 1}, "two buttons have the same number"),
        ({"gripper_button": -1}, "buttons are numbered from 0"),
    ],
)
def test_a_bad_configuration_is_refused_with_a_sentence(changes, says):
    with pytest.raises(ValueError, match="arbiter configuration: ") as caught:
        ArbiterConfig(**changes)
    assert says in str(caught.value)


# Answers on their way


def command(sequence, episode_id="ep1"):
    return PolicyCommand(episode_id, sequence, 0, "v1", FORWARD[None])


def test_an_answer_is_given_to_its_own_tick_and_forgotten_when_that_is_decided():
    answers, answer = Answers(), command(4)
    assert answers.add(answer, [("ep1", 4)])
    assert answers.to(Tick("ep1", 4, 0)) is answer
    assert answers.to(Tick("ep1", 3, 0)) is answers.to(Tick("ep2", 4, 0)) is None
    answers.decided(3)
    assert answers.to(Tick("ep1", 4, 0))
    answers.decided(4)
    assert answers.to(Tick("ep1", 4, 0)) is None


def test_an_answer_may_be_there_before_its_tick_but_never_from_further_ahead():
    answers, known = Answers(), [("ep1", 7), ("", -1)]
    assert answers.add(command(8), known)
    for sequence in (9, 2**32 - 1):
        with pytest.raises(ValueError, match=f"to tick {sequence} of ep1, and the newest is 7"):
            answers.add(command(sequence), known)
    assert answers.to(Tick("ep1", 8, 0))
    with pytest.raises(ValueError, match="to tick 8 of ep2, and the newest is -1"):
        answers.add(command(8, "ep2"), known)
    assert answers.add(command(0, "ep2"), known)  # its first tick is under way
    assert answers.to(Tick("ep2", 0, 0))


def test_an_older_answer_does_not_replace_a_newer_one():
    answers = Answers()
    answers.add(command(5), [("ep1", 5)])
    assert not answers.add(command(4), [("ep1", 5)])
    assert answers.to(Tick("ep1", 5, 0))
    answers.clear()
    assert answers.add(command(4), [("ep1", 5)])
