"""What the operator asks at the console, and what became of it.

No request waits for another's answer but those about the episode; an emergency stop for nothing.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hapo_ros.arbitration import Authority, Event
from hapo_ros.gateway_client import GatewayError

if TYPE_CHECKING:
    from hapo_ros.console.model import Console

ANSWER_S = 10.0  # for an answer; longer than the gateway waits for a server
CONFIRM_S = 10.0  # for the second x
REPEAT_S = 0.7  # an x that follows an x sooner may be the same key, held: they repeat by then
NOTES = 50

ESTOP = "emergency stop"
OF_AUTHORITY = {
    "hold": Event.HOLD,
    "resume": Event.RESUME,
    ESTOP: Event.ESTOP,
    "clear fault": Event.CLEAR_FAULT,
}
STARTS = {"start": "deployment", "demonstration": "demonstration"}  # with the episode's source
OF_EPISODE = (*STARTS, "success", "failure", "discard")


@dataclass
class Note:
    """A request and what became of it. mark: waiting | accepted | refused."""

    name: str
    mark: str
    text: str
    deadline_s: float = float("inf")


class Requests:
    """Turns keys into requests, one answer at a time into words. Times are ``now_s``, as in model.

    send: ``send(call, **fields)`` sends a request and returns its id, or raises GatewayError.
    seen: the console's picture of the deployment. task, instruction, seed: see Console.
    """

    def __init__(
        self,
        send: Callable[..., int],
        seen: "Console",
        task: str,
        instruction: str,
        seed: int | None,
    ):
        self._send, self._seen = send, seen
        self._task, self._instruction, self._seed = task, instruction, seed
        self.notes: deque[Note] = deque(maxlen=NOTES)  # newest first
        self._sent: dict[int, Note] = {}  # not answered, by id
        self._estop: Note | None = None  # the last one, until it is seen to be followed
        self._unsent: Note | None = None  # an emergency stop that waits for the gateway
        self._confirm = ("", -float("inf"))  # episode that a second x discards, until when
        self._discard_s = -float("inf")  # of the last x, where no other key came after it

    # Keys

    def press(self, name: str, now_s: float) -> None:
        """Ask for what a key stands for: a name in OF_AUTHORITY or OF_EPISODE.

        A ``discard`` that follows one within REPEAT_S, without a key between them, does nothing.
        """
        before_s, self._discard_s = self._discard_s, now_s if name == "discard" else -float("inf")
        if now_s - before_s < REPEAT_S and name == "discard":
            return
        if self._estop is not None and self._estop.mark == "refused":
            self._estop = None  # its alarm was seen, and this is what the operator does about it
        asked = self.question(now_s)
        confirmed = asked and name == "discard"
        if not confirmed:
            self._keep(now_s)
        if name in OF_EPISODE:
            if asked and not confirmed:
                return  # that key was the answer
            if other := next((n for n in self._open() if n in OF_EPISODE), ""):
                self._note(name, "refused", f"Not sent: {other} is not answered yet.")
                return
            if name == "discard" and self._seen.running and not confirmed:
                self._confirm = (self._seen.episode["episode_id"], now_s + CONFIRM_S)
                return
        elif name != ESTOP and name in self._open():
            return
        self._confirm = ("", -float("inf"))
        note = self._note(name, "waiting", "Waiting for the answer.")
        note.deadline_s = now_s + ANSWER_S
        if name == ESTOP:
            self._estop = note
        self._transmit(note)

    def press_other(self, now_s: float) -> None:
        """A key that stands for nothing keeps what was to be discarded."""
        self._discard_s = -float("inf")
        self._keep(now_s)

    def _keep(self, now_s: float) -> None:
        """The answer to the question, if there is one, is no."""
        if self.question(now_s):
            self._note("discard", "refused", "Not discarded; the episode goes on.")
        self._confirm = ("", -float("inf"))

    def question(self, now_s: float) -> str:
        """What the operator has to confirm now; empty: nothing."""
        episode_id, until_s = self._confirm
        same = self._seen.running and self._seen.episode["episode_id"] == episode_id
        if now_s >= until_s or not same:
            return ""
        return (
            f"Discard {episode_id}? x again, after a second, discards it; any other key keeps it."
        )

    def _transmit(self, note: Note) -> None:
        call, fields = self._request(note.name)
        try:
            self._sent[self._send(call, **fields)] = note
        except GatewayError as error:
            if note.name == ESTOP:  # never too late to be sent
                note.text = f"{error} It is sent as soon as there is another."
                self._send_later(note)
            else:
                note.mark, note.text = "refused", f"Not sent. {error}"

    def _send_later(self, note: Note) -> None:
        """Keep an emergency stop for the next gateway: one of them, the newest."""
        if self._unsent is not None:
            self._unsent.mark, self._unsent.text = "refused", "A newer one takes its place."
        self._unsent = note

    def _request(self, name: str) -> tuple[str, dict]:
        seen = self._seen
        if name in OF_AUTHORITY:
            return "request_authority", {"event": int(OF_AUTHORITY[name])}
        if name in STARTS:
            return "start_episode", {
                "task": self._task,
                "instruction": self._instruction,
                "source": STARTS[name],
                "seed": self.next_seed,
            }
        # Without an episode too: that there is none is the recorder's to say.
        episode_id = seen.episode.get("episode_id", "") if seen.running else ""
        if name == "discard":
            return "discard_episode", {"episode_id": episode_id, "reason": "At the console."}
        correcting = seen.status.get("authority") == Authority.HUMAN
        deployment = seen.episode.get("source") == "deployment"
        return "end_episode", {
            "episode_id": episode_id,
            "outcome": name,
            "unresolved": name == "failure" and correcting and deployment,
            "last_sequence": -1,
        }

    @property
    def next_seed(self) -> int:
        """Seed of the next episode."""
        return self._seed if self._seed is not None else self._seen.episode.get("seed", 0) + 1

    # Answers

    def answer(self, said: dict) -> None:
        """Take what the gateway answers to a request."""
        note = self._sent.pop(said["id"], None)
        if note is None:
            return
        result = said.get("result", {})
        note.mark = "accepted" if result.get("ok") else "refused"
        note.text = said.get("error") or result.get("text", "")
        note.deadline_s = float("inf")
        if note.name in STARTS and note.mark == "accepted" and self._seed is not None:
            self._seed += 1

    def lost(self) -> None:
        """The gateway has ended, and took with it what was not answered."""
        for note in self._sent.values():
            if note.name == ESTOP and note.mark == "waiting":
                self._send_later(note)
            elif note.mark == "waiting":
                note.mark = "refused"
                note.text = "The connection was lost before the answer came. It may have been done."
        self._sent.clear()

    def regained(self) -> None:
        """There is a gateway again."""
        note, self._unsent = self._unsent, None
        if note is not None:
            self._transmit(note)

    def followed(self) -> None:
        """A fault is on: an emergency stop has no more to do."""
        self._estop = None

    def pass_time(self, now_s: float) -> None:
        """Look at the deadlines. A late answer still counts, but nothing waits for it any more."""
        for note in [*self._sent.values(), *filter(None, [self._unsent])]:
            if now_s > note.deadline_s:
                note.mark, note.deadline_s = "refused", float("inf")
                note.text = f"No answer for {ANSWER_S:g} s. It may still be done."
        if self._unsent is not None and self._unsent.mark == "refused":
            self._unsent = None

    @property
    def alarm(self) -> str:
        """About an emergency stop that is not seen to be followed; empty: nothing."""
        if self._estop is None:
            return ""
        if self._estop.mark == "refused":
            return "EMERGENCY STOP NOT DELIVERED. Use the hardware e-stop."
        return "EMERGENCY STOP sent; not followed yet."

    def _open(self) -> list[str]:
        """What is not answered yet and may still be in time."""
        return [note.name for note in self._sent.values() if note.mark == "waiting"]

    def _note(self, name: str, mark: str, text: str) -> Note:
        self.notes.appendleft(Note(name, mark, text))
        return self.notes[0]
