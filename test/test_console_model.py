"""What the console shows and asks, without a terminal and without a clock."""

from itertools import pairwise

import pytest

from hapo_ros import labels
from hapo_ros.arbitration import Authority, Event, Reason
from hapo_ros.console.model import LOST, SILENCE_S, Console, State
from hapo_ros.console.requests import (
    ANSWER_S,
    CONFIRM_S,
    ESTOP,
    OF_AUTHORITY,
    OF_EPISODE,
    REPEAT_S,
)
from hapo_ros.gateway_client import GatewayError

P, H, N = labels.POLICY, labels.HUMAN, labels.NONE
EPISODE = "20261125T160101_Lift_s7"


def status(authority=Authority.POLICY, reason=Reason.POLICY_ACTS, *, counts=(0, 0, 0, 0), **known):
    """What the gateway tells of an AuthorityStatus."""
    return {
        "event": "authority",
        "authority": int(authority),
        "reason": int(reason),
        "text": reason.sentence,
        "episode_id": EPISODE,
        "sequence": sum(counts),
        "epoch": 1,
        "device_live": True,
        "device_armed": True,
        "takeovers": 0,
        "labels": list(counts),
    } | known


def episode(state=State.RUNNING, **known):
    """What the gateway tells of an EpisodeState."""
    return {
        "event": "episode",
        "state": int(state),
        "episode_id": EPISODE,
        "task": "Lift",
        "instruction": "lift the cube",
        "source": "deployment",
        "seed": 7,
        "outcome": "",
        "bag": "",
        "text": "",
        "age_s": 0.0,
    } | known


IDLE = episode(
    State.IDLE, episode_id="", task="", instruction="", source="", seed=0
)  # a recorder that has just started


class Desk:
    """A console whose requests are kept; they get ids from 1 on."""

    def __init__(self, **options):
        self.sent: list[tuple[str, dict]] = []
        self.connected = True
        self.console = Console(self._send, **options)
        self.requests = self.console.requests

    def _send(self, call, **fields):
        if not self.connected:
            raise GatewayError("The gateway to the ROS graph ended.")
        self.sent.append((call, fields))
        return len(self.sent)

    def hear(self, *events, now_s=0.0):
        for event in events:
            self.console.hear(event, now_s)

    def answer(self, text="Done.", ok=True, number=None):
        """The graph's answer to a request, by default to the last one."""
        self.hear({"id": number or len(self.sent), "result": {"ok": ok, "text": text}})

    def press(self, *names, now_s=0.0):
        for name in names:
            self.requests.press(name, now_s)

    @property
    def last(self):
        note = self.requests.notes[0]
        return note.name, note.mark, note.text


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def running(desk):
    """A deployment episode in which the policy acts."""
    desk.hear(episode(), status())
    return desk


# Authority


@pytest.mark.parametrize(
    ("authority", "reason"),
    [
        (Authority.POLICY, Reason.POLICY_ACTS),
        (Authority.HUMAN, Reason.CAP_MOVED),
        (Authority.HOLD, Reason.DEVICE_LOST),
        (Authority.FAULT, Reason.ESTOPPED),
    ],
)
def test_the_authority_is_shown_with_the_sentence_of_its_reason(desk, authority, reason):
    desk.hear(status(authority, reason))
    assert desk.console.authority(1.0) == (authority.name, reason.sentence)


def test_without_a_deployment_it_says_so_and_how_to_start_one():
    who, why = Desk(domain="42").console.authority(1e6)
    assert who == LOST
    assert "No deployment is heard in ROS domain 42" in why and "hapo deploy" in why


def test_it_is_lost_when_the_arbiter_is_gone_until_it_is_heard_again(running):
    running.hear({"event": "authority_lost", "text": "The arbiter is gone. Nobody has control."})
    who, why = running.console.authority(0.1)
    assert who == LOST and why.startswith("The arbiter is gone. Nobody has control.")
    running.hear(status(Authority.HOLD, Reason.RESTARTED), now_s=2.0)
    assert running.console.authority(2.0) == ("HOLD", Reason.RESTARTED.sentence)


def test_it_is_lost_when_the_arbiter_says_nothing_though_it_lives(running):
    assert running.console.authority(SILENCE_S)[0] == "POLICY"
    who, why = running.console.authority(SILENCE_S + 1.0)
    assert who == LOST and f"said nothing for {SILENCE_S + 1:.0f} s" in why


def test_it_is_lost_with_the_gateway_and_believes_nothing_older_afterwards(running):
    running.hear({"event": "gateway_lost", "text": "The gateway ended. It is started again."})
    assert running.console.authority(0.1) == (LOST, "The gateway ended. It is started again.")
    running.hear({"event": "gateway_started"})
    assert running.console.authority(0.1)[0] == LOST
    running.hear(status())
    assert running.console.authority(0.1)[0] == "POLICY"


def test_the_time_in_an_authority_runs_through_new_reasons_and_begins_anew_after_a_loss(desk):
    desk.hear(status(Authority.HUMAN, Reason.CAP_MOVED), now_s=10.0)
    desk.hear(status(Authority.HUMAN, Reason.HUMAN_ACTS), now_s=11.0)
    assert desk.console.since_s(12.0) == 2.0
    desk.hear({"event": "authority_lost", "text": ""}, now_s=12.0)
    desk.hear(status(Authority.HUMAN, Reason.HUMAN_ACTS), now_s=15.0)
    assert desk.console.since_s(15.0) == 0.0


def test_an_event_that_is_not_known_means_nothing(desk):
    desk.hear({"event": "weather", "text": "sunny"}, {"id": 99, "result": {"ok": True}})
    assert not desk.requests.notes


# The device


@pytest.mark.parametrize(
    ("said", "word", "meaning"),
    [
        (status(), "LIVE, ARMED", "takes over"),
        (status(Authority.HUMAN, Reason.HUMAN_ACTS), "LIVE, ARMED", "moves the arm"),
        (status(device_armed=False), "LIVE, NOT ARMED", "Let go"),
        (status(device_live=False, device_armed=False), "SILENT", "No one can take over"),
    ],
)
def test_the_state_of_the_device_says_what_it_means(desk, said, word, meaning):
    desk.hear(said)
    assert desk.console.device(0.0)[0] == word
    assert meaning in desk.console.device(0.0)[1]


def test_the_state_of_the_device_is_not_known_without_the_arbiter(desk):
    assert desk.console.device(0.0)[0] == "UNKNOWN"


def test_axes_are_shown_while_they_are_fresh(desk):
    axes = [0.5, 0.0, 0.0, None, 0.0, -1.0]
    desk.hear({"event": "device", "axes": axes, "buttons": [0, 1]}, now_s=5.0)
    assert desk.console.axes(5.5) == axes
    assert not desk.console.axes(7.0)


# The episode


def test_the_states_are_those_of_the_message():
    EpisodeState = pytest.importorskip("hapo_ros.msg", exc_type=ImportError).EpisodeState
    assert all(getattr(EpisodeState, state.name) == state for state in State)


def test_the_clock_of_an_episode_runs_and_stands_still_after_it(desk):
    desk.hear(episode(), now_s=100.0)
    desk.hear(status(), now_s=112.0)
    assert desk.console.clock_s(112.0) == 12.0
    desk.hear(episode(State.CLOSING), now_s=120.0)
    desk.hear(episode(State.FINISHED, outcome="success", bag="/b"), now_s=121.0)
    assert desk.console.clock_s(500.0) == 20.0
    assert desk.console.episode_words() == "RECORDED: success"


def test_a_console_that_comes_late_knows_how_long_the_episode_runs(desk):
    desk.hear(episode(age_s=30.0), status(), now_s=100.0)
    assert desk.console.clock_s(101.0) == 31.0


def test_another_clock_that_is_ahead_makes_no_negative_time(desk):
    desk.hear(episode(age_s=-5.0), now_s=100.0)
    assert desk.console.clock_s(100.0) == 0.0


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (IDLE, "NONE"),
        (episode(), "RUNNING"),
        (episode(State.CLOSING), "CLOSING"),
        (episode(State.FINISHED, outcome="failure", bag="/b"), "RECORDED: failure"),
        (episode(State.FINISHED, outcome="discarded", bag="/b"), "DISCARDED"),
        (episode(State.FAILED, text="The disk is full."), "FAILED"),
    ],
)
def test_the_episode_has_a_word_for_every_state(desk, said, words):
    desk.hear(said)
    assert desk.console.episode_words() == words


def test_a_failed_recording_is_a_problem_until_the_next_episode(running):
    running.hear(episode(State.FAILED, text="The disk is full."))
    assert running.console.problems(0.0) == ["The disk is full."]
    running.hear(episode(episode_id="next"))
    assert running.console.problems(0.0) == []


def test_a_recorder_that_was_restarted_during_an_episode_is_a_problem(running):
    running.hear(IDLE)
    (problem,) = running.console.problems(0.0)
    assert f"restarted while {EPISODE} ran" in problem
    assert not running.console.running and running.console.episode["seed"] == 7


def told(level, message, name="recorder: recorder"):
    """What the gateway tells of a DiagnosticStatus."""
    return {"event": "diagnostics", "name": name, "level": level, "message": message}


def test_what_the_nodes_diagnose_is_shown_while_it_lasts(desk):
    desk.hear(told(1, "3 messages lost."))
    assert desk.console.problems(1.0) == ["recorder: recorder: warning: 3 messages lost."]
    desk.hear(told(2, "The disk is full."), now_s=1.0)
    assert desk.console.problems(1.0) == ["recorder: recorder: error: The disk is full."]
    assert desk.console.problems(60.0) == []  # no one says so any more
    desk.hear(told(0, "Recording."), now_s=60.0)
    assert desk.console.problems(60.0) == []


def test_what_the_arbiter_diagnoses_is_what_its_status_says_and_is_not_shown_twice(desk):
    desk.hear(told(1, "No episode is running.", "lab/arbiter: arbiter"))
    assert desk.console.problems(0.0) == []


# Steps


def test_steps_are_counted_by_label_and_the_ratio_leaves_nobodys_out(running):
    running.hear(status(counts=(0, 6, 2, 4), takeovers=1))
    console = running.console
    assert (console.counts[:4], console.steps, console.takeovers) == ([0, 6, 2, 4], 12, 1)
    assert console.intervention_ratio == 0.25


def test_there_is_no_ratio_before_the_first_executed_step(running):
    running.hear(status(counts=(0, 0, 0, 3)))
    assert running.console.intervention_ratio is None


def test_the_strip_has_the_recent_steps_in_order(running):
    for counts in ((0, 2, 0, 0), (0, 4, 0, 0), (0, 4, 3, 0), (0, 4, 3, 1), (0, 6, 3, 1)):
        running.hear(status(counts=counts))
    assert running.console.strip(100, 1) == [P] * 4 + [H] * 3 + [N] + [P] * 2
    assert running.console.strip(3, 1) == [N, P, P]


def test_between_two_words_of_the_arbiter_the_label_that_went_on_comes_first(running):
    running.hear(status(counts=(0, 0, 2, 0)), status(counts=(0, 3, 4, 0)))
    assert running.console.strip(100, 1) == [H] * 4 + [P] * 3


def test_a_sign_of_several_steps_shows_that_a_human_acted_in_it(running):
    for counts in ((0, 4, 0, 0), (0, 6, 0, 0), (0, 6, 1, 0), (0, 6, 1, 2), (0, 8, 1, 2)):
        running.hear(status(counts=counts))
    # P P P P | P P H N | N P P
    assert running.console.strip(100, 4) == [P, H, N]


def test_a_sign_once_complete_does_not_change_when_steps_are_added(running):
    shown = []
    for steps in range(1, 30):
        running.hear(status(counts=(0, steps - steps // 5, steps // 5, 0)))
        shown.append(running.console.strip(100, 4))
    for before, after in pairwise(shown):
        assert after[: len(before) - 1] == before[:-1]


def test_a_console_that_comes_late_counts_all_and_draws_what_it_has_seen(desk):
    desk.hear(episode(), status(counts=(0, 50, 11, 0)))
    assert desk.console.steps == 61 and desk.console.strip(100, 1) == []
    desk.hear(status(counts=(0, 53, 11, 0)))
    assert desk.console.steps == 64 and desk.console.strip(100, 1) == [P] * 3


def test_counts_outlast_the_episode_and_begin_anew_with_the_next(running):
    running.hear(status(counts=(0, 5, 2, 0), takeovers=1))
    ended = status(Authority.HOLD, Reason.NO_EPISODE, counts=(0, 5, 2, 0), episode_id="")
    running.hear(ended)
    assert running.console.steps == 7
    running.hear(status(counts=(0, 0, 0, 0), episode_id="next", takeovers=1))
    # The arbiter counts takeovers anew with the first tick.
    running.hear(status(counts=(0, 1, 0, 0), episode_id="next", takeovers=0))
    assert (running.console.steps, running.console.takeovers) == (1, 0)
    assert running.console.strip(100, 1) == [P]


def test_counts_go_on_after_a_restart_of_the_arbiter(running):
    running.hear(status(counts=(0, 5, 2, 0), takeovers=1))
    running.hear(status(Authority.HOLD, Reason.NO_EPISODE, episode_id=""))
    running.hear(status(Authority.HOLD, Reason.RESTARTED, counts=(0, 0, 0, 3)))
    running.hear(status(counts=(0, 4, 1, 3), takeovers=1))
    assert running.console.counts == [0, 9, 3, 3, 2]


# Requests


def test_start_asks_for_a_deployment_of_its_own_task_with_seeds_that_count_up(desk):
    asked = []
    for seed in (1, 2):
        desk.press("start")
        asked.append(desk.sent[-1])
        desk.answer("Recording.")
        desk.hear(episode(seed=seed, episode_id=str(seed)))
        desk.hear(episode(State.FINISHED, seed=seed, episode_id=str(seed), outcome="success"))
    fields = {"task": "", "instruction": "", "source": "deployment"}
    assert asked == [("start_episode", fields | {"seed": seed}) for seed in (1, 2)]
    desk.press("demonstration")
    assert desk.sent[-1] == (
        "start_episode",
        fields | {"source": "demonstration", "seed": 3},
    )


def test_what_was_given_is_asked_for_and_a_refused_start_uses_no_seed():
    desk = Desk(task="Stack", instruction="stack them", seed=100)
    desk.hear(episode(State.FINISHED, outcome="success"))
    for ok, seed in ((False, 100), (True, 100), (True, 101)):
        desk.press("start")
        assert desk.sent[-1][1] == {
            "task": "Stack",
            "instruction": "stack them",
            "source": "deployment",
            "seed": seed,
        }
        desk.answer(ok=ok)


@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_an_end_names_the_running_episode(running, outcome):
    running.press(outcome)
    assert running.sent == [
        (
            "end_episode",
            {
                "episode_id": EPISODE,
                "outcome": outcome,
                "unresolved": False,
                "last_sequence": -1,
            },
        )
    ]


@pytest.mark.parametrize(
    ("source", "authority", "outcome", "unresolved"),
    [
        ("deployment", Authority.HUMAN, "failure", True),
        ("deployment", Authority.HUMAN, "success", False),
        ("deployment", Authority.POLICY, "failure", False),
        ("demonstration", Authority.HUMAN, "failure", False),
    ],
)
def test_a_failure_while_the_human_corrects_is_unresolved(
    desk, source, authority, outcome, unresolved
):
    desk.hear(episode(source=source), status(authority))
    desk.press(outcome)
    assert desk.sent[0][1]["unresolved"] is unresolved


def test_an_end_without_an_episode_is_refused_by_the_recorder_not_by_the_console(desk):
    desk.hear(IDLE)
    desk.press("success")
    assert desk.sent[0][1]["episode_id"] == ""
    desk.answer("No episode is running that could be ended.", ok=False)
    assert desk.last == ("success", "refused", "No episode is running that could be ended.")


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("hold", Event.HOLD),
        ("resume", Event.RESUME),
        (ESTOP, Event.ESTOP),
        ("clear fault", Event.CLEAR_FAULT),
    ],
)
def test_a_request_to_the_arbiter_is_its_event(desk, name, event):
    desk.press(name)
    assert desk.sent == [("request_authority", {"event": int(event)})]


def test_the_answer_of_a_service_is_shown_as_it_is(running):
    running.press("hold")
    assert running.last[:2] == ("hold", "waiting")
    running.answer("hold will be handled with the next tick.")
    assert running.last == ("hold", "accepted", "hold will be handled with the next tick.")
    running.press("resume")
    running.hear({"id": 2, "error": "No such server on the graph.", "no_server": True})
    assert running.last == ("resume", "refused", "No such server on the graph.")


def test_discarding_takes_a_second_x(running):
    running.press("discard")
    assert not running.sent and EPISODE in running.requests.question(0.0)
    running.press("discard", now_s=REPEAT_S)
    assert running.sent == [
        ("discard_episode", {"episode_id": EPISODE, "reason": "At the console."})
    ]
    assert not running.requests.question(REPEAT_S)


def test_an_x_that_is_held_confirms_nothing_and_one_after_it_does(running):
    running.press("discard")
    held_s = [REPEAT_S - 0.01 + 0.03 * number for number in range(100)]
    for now_s in held_s:
        running.press("discard", now_s=now_s)
        assert not running.sent and running.requests.question(now_s)
    for now_s in (held_s[-1] + 1.0, held_s[-1] + 1.5):  # and held again
        running.press("discard", now_s=now_s)
        assert [call for call, _ in running.sent] == ["discard_episode"]
    assert running.last[1] == "waiting"


@pytest.mark.parametrize("other", sorted(set(OF_EPISODE) - {"discard"}))
def test_another_key_about_the_episode_keeps_it_and_is_not_carried_out(running, other):
    running.press("discard", other)
    assert not running.sent and not running.requests.question(0.0)
    assert running.last == ("discard", "refused", "Not discarded; the episode goes on.")
    running.press("discard")
    assert not running.sent and running.requests.question(0.0)


@pytest.mark.parametrize("other", sorted(OF_AUTHORITY))
def test_a_request_to_the_arbiter_keeps_the_episode_and_is_carried_out(running, other):
    running.press("discard", other, "discard")
    assert [call for call, _ in running.sent] == ["request_authority"]


def test_a_key_that_stands_for_nothing_keeps_the_episode(running):
    running.press("discard")
    running.requests.press_other(0.0)
    running.press("discard")
    assert not running.sent


def test_a_confirmation_is_not_waited_for_for_ever_nor_for_another_episode(running):
    running.press("discard")
    assert not running.requests.question(CONFIRM_S)
    running.press("discard", now_s=CONFIRM_S)
    assert not running.sent
    running.hear(episode(episode_id="next"))
    running.press("discard", now_s=CONFIRM_S + 1.0)
    assert not running.sent and "next" in running.requests.question(CONFIRM_S + 1.0)


def test_requests_about_the_episode_wait_for_each_other_and_say_so(desk):
    desk.press("start", "start")
    assert len(desk.sent) == 1
    assert desk.last == ("start", "refused", "Not sent: start is not answered yet.")
    desk.answer(number=1)
    desk.press("success")
    assert len(desk.sent) == 2


def test_an_emergency_stop_waits_for_nothing_and_is_sent_with_every_press(running):
    running.press("success", "hold", "resume", ESTOP, ESTOP)
    events = [fields.get("event") for _, fields in running.sent]
    assert events == [None, Event.HOLD, Event.RESUME, Event.ESTOP, Event.ESTOP]


def test_a_request_that_waits_is_not_sent_twice(running):
    running.press("hold", "hold")
    assert len(running.sent) == 1
    running.answer()
    running.press("hold")
    assert len(running.sent) == 2


def test_a_request_has_a_deadline_and_a_late_answer_is_still_shown(running):
    running.press("success")
    running.requests.pass_time(ANSWER_S)
    assert running.last[1] == "waiting"
    running.requests.pass_time(ANSWER_S + 0.1)
    assert running.last[1] == "refused" and "It may still be done" in running.last[2]
    running.press("failure", now_s=ANSWER_S + 0.1)  # it is not waited for any more
    assert len(running.sent) == 2
    running.answer("Recorded in /b.", number=1)
    assert running.requests.notes[1].text == "Recorded in /b."


def test_what_was_asked_of_a_gateway_that_died_may_have_been_done(running):
    running.press("success", "hold")
    running.hear({"event": "gateway_lost", "text": "The gateway ended."})
    assert {note.mark for note in running.requests.notes} == {"refused"}
    assert "It may have been done" in running.last[2]
    running.hear({"event": "gateway_started"})
    assert len(running.sent) == 2


def test_without_a_gateway_a_request_is_refused_at_once(running):
    running.connected = False
    running.press("hold")
    assert running.last == ("hold", "refused", "Not sent. The gateway to the ROS graph ended.")


def test_an_emergency_stop_alarms_until_a_fault_is_seen(running):
    running.press(ESTOP)
    running.answer("estop will be handled with the next tick.")
    running.hear(status())
    assert running.requests.alarm == "EMERGENCY STOP sent; not followed yet."
    running.hear(status(Authority.FAULT, Reason.ESTOPPED))
    assert not running.requests.alarm


@pytest.mark.parametrize("how", ["error", "refused", "deadline"])
def test_an_emergency_stop_that_was_not_delivered_says_what_to_use(running, how):
    running.press(ESTOP)
    if how == "error":
        running.hear({"id": 1, "error": "No such server on the graph."})
    elif how == "refused":
        running.answer("Refused.", ok=False)
    else:
        running.requests.pass_time(ANSWER_S + 0.1)
    assert "NOT DELIVERED" in running.requests.alarm
    assert "hardware e-stop" in running.requests.alarm
    running.press("hold")  # the operator has seen it
    assert not running.requests.alarm


@pytest.mark.parametrize("pressed", ["before", "after"])
def test_an_emergency_stop_outlasts_the_gateway(running, pressed):
    if pressed == "before":
        running.press(ESTOP)
    running.connected = False
    running.hear({"event": "gateway_lost", "text": "The gateway ended."})
    if pressed == "after":
        running.press(ESTOP)
    sent = len(running.sent)
    running.connected = True
    running.hear({"event": "gateway_started"})
    assert running.sent[sent:] == [("request_authority", {"event": int(Event.ESTOP)})]
    assert running.last[1] == "waiting" and "not followed yet" in running.requests.alarm


@pytest.mark.parametrize("pressed", ["before", "after", "both"])
def test_of_several_emergency_stops_without_a_gateway_the_newest_is_sent_and_the_others_say_so(
    running, pressed
):
    if pressed != "after":
        running.press(ESTOP, ESTOP)
    running.connected = False
    running.hear({"event": "gateway_lost", "text": "The gateway ended."})
    if pressed != "before":
        running.press(ESTOP, ESTOP)
    sent = len(running.sent)
    newest, *older = running.requests.notes
    assert newest.mark == "waiting"
    assert {(note.mark, note.text) for note in older} == {
        ("refused", "A newer one takes its place.")
    }
    running.connected = True
    running.hear({"event": "gateway_started"})
    assert len(running.sent) == sent + 1 and "not followed yet" in running.requests.alarm


def test_an_emergency_stop_is_not_sent_long_after_it_was_pressed(running):
    running.connected = False
    running.press(ESTOP)
    running.requests.pass_time(ANSWER_S + 0.1)
    assert "NOT DELIVERED" in running.requests.alarm
    running.connected = True
    running.hear({"event": "gateway_started"})
    assert not running.sent


# Keys and leaving


def offered(desk):
    return {name for name in (*OF_EPISODE, *OF_AUTHORITY) if desk.console.offers(name, 0.0)}


def test_the_keys_that_make_sense_are_those_of_the_situation(desk):
    assert offered(desk) == {ESTOP}
    desk.hear(IDLE, status(Authority.HOLD, Reason.NO_EPISODE, episode_id=""))
    assert offered(desk) == {ESTOP, "start", "demonstration"}
    desk.hear(episode(), status())
    assert offered(desk) == {ESTOP, "success", "failure", "discard", "hold"}
    desk.hear(status(Authority.HUMAN, Reason.HUMAN_ACTS))
    assert offered(desk) == {ESTOP, "success", "failure", "discard", "hold", "resume"}
    desk.hear(status(Authority.FAULT, Reason.ESTOPPED))
    assert offered(desk) == {ESTOP, "success", "failure", "discard", "clear fault"}


def test_on_leaving_it_says_what_goes_on(running):
    assert EPISODE in running.console.farewell(0.0)
    running.hear(episode(State.FINISHED, outcome="success", bag="/b"))
    assert EPISODE not in running.console.farewell(0.0)
    assert "the deployment goes on" in running.console.farewell(0.0)


def test_of_a_deployment_that_is_lost_it_tells_what_was_last_heard(running):
    running.hear(status(), now_s=5.0)
    lost_s = 5.0 + SILENCE_S + 1.0
    assert running.console.clock_s(lost_s - 1.5) == lost_s - 1.5
    assert running.console.clock_s(lost_s) == running.console.clock_s(lost_s + 9.0) == 5.0
    said = running.console.farewell(lost_s)
    assert "was not heard any more" in said and f"{EPISODE} was being recorded" in said
    assert "goes on" not in said


def test_on_leaving_where_nothing_was_heard_it_does_not_say_that_a_deployment_goes_on(desk):
    assert desk.console.farewell(0.0) == (
        "The console has ended; the deployment was not heard any more. See whether it runs."
    )
