"""What the console shows of a deployment: the gateway's events go in, words and numbers come out.

Needs no terminal and reads no clock: ``now_s`` is a steady clock in seconds.
"""

from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum

from hapo_ros import labels
from hapo_ros.arbitration import Authority
from hapo_ros.console.requests import ESTOP, OF_EPISODE, STARTS, Requests

SILENCE_S = 3.0  # without a status, of which five a second come, nobody is known to have control
DEVICE_S = 1.0  # axes that are older are not shown
DIAGNOSTICS_S = 5.0  # they come once a second
STRIP_STEPS = 4000
START = "hapo deploy, or ros2 launch hapo_ros deploy.launch.py"
LOST = "LOST"
_WHEN = {"hold": ("POLICY", "HUMAN"), "resume": ("HUMAN", "HOLD"), "clear fault": ("FAULT",)}


class State(IntEnum):
    """EpisodeState's constants."""

    IDLE = 0
    OPENING = 1
    RUNNING = 2
    CLOSING = 3
    FINISHED = 4
    FAILED = 5


class Console:
    """The picture of a deployment, and the operator's requests to it.

    send: see Requests. task, instruction: of the episodes; empty: the deployment's own. seed: of
    the first one, they count up; None: on from the last one seen. domain: ROS_DOMAIN_ID, as shown.
    """

    def __init__(
        self,
        send: Callable[..., int],
        task: str = "",
        instruction: str = "",
        seed: int | None = None,
        domain: str = "0",
    ):
        self.requests = Requests(send, self, task, instruction, seed)
        self.domain = domain
        self.status: dict = {}  # the arbiter's last word
        self.episode: dict = {}  # the recorder's last word on one
        self.policy: dict = {}
        self._gateway_lost = ""  # why nothing can be heard
        self._arbiter_lost = ""
        self._heard_s = -float("inf")  # of the last status
        self._since_s = 0.0  # of the authority
        self._device: tuple[float, Sequence] = (-float("inf"), ())
        self._diagnostics: dict[str, tuple[float, str]] = {}
        self._recorder_problem = ""
        self._began_s = self._ended_s = 0.0  # of the episode
        self._episode_s = -float("inf")  # of the recorder's last word
        self._counted = ""  # the episode that is counted
        self._before = [0] * 5  # labels and takeovers, from before a restart of the arbiter
        self._now = [0] * 5
        self._strip: deque[int] = deque(maxlen=STRIP_STEPS)
        self._events = {
            "authority": self._on_authority,
            "authority_lost": self._on_authority_lost,
            "episode": self._on_episode,
            "policy": self._on_policy,
            "device": self._on_device,
            "diagnostics": self._on_diagnostics,
            "gateway_lost": self._on_gateway_lost,
            "gateway_started": self._on_gateway_started,
        }

    # What is heard

    def hear(self, said: dict, now_s: float) -> None:
        """Take an event or an answer of the gateway; unknown ones mean nothing."""
        if said.get("event") in self._events:
            self._events[said["event"]](said, now_s)
        elif "id" in said:
            self.requests.answer(said)

    def _on_authority(self, said: dict, now_s: float) -> None:
        if self.authority(now_s)[0] != Authority(said["authority"]).name:
            self._since_s = now_s
        self.status, self._heard_s, self._arbiter_lost = said, now_s, ""
        if said["authority"] == Authority.FAULT:
            self.requests.followed()
        self._count(said)

    def _count(self, said: dict) -> None:
        """Steps by label, and the strip, from the sums that the arbiter tells."""
        joined = not self._counted
        if said["episode_id"] not in ("", self._counted):
            self._counted = said["episode_id"]
            self._before, self._now = [0] * 5, [0] * 5
            self._strip.clear()
        now = [*said["labels"], said["takeovers"]]
        if sum(now[:4]) < sum(self._now[:4]):
            self._before, self._now = self.counts, [0] * 5  # a restarted arbiter begins at 0
        if not joined:  # the order of what came before is not known
            new = {label: now[label] - self._now[label] for label in labels.NAMES}
            last = self._strip[-1] if self._strip else labels.NONE
            for label in sorted(new, key=lambda label: label != last):
                self._strip.extend([label] * new[label])
        self._now = now

    def _on_authority_lost(self, said: dict, now_s: float) -> None:
        self._arbiter_lost = (
            f"{said['text']} If it does not come back, start the deployment again: {START}."
        )

    def _on_episode(self, said: dict, now_s: float) -> None:
        last, state, was_running = self.episode, State(said["state"]), self.running
        self._episode_s = now_s
        if state == State.RUNNING:
            self._recorder_problem = ""
            if not was_running or said["episode_id"] != last["episode_id"]:
                self._began_s = now_s - max(said["age_s"], 0.0)
        elif was_running:
            self._ended_s = now_s
        if state == State.FAILED:
            self._recorder_problem = said["text"] or "The recorder failed. Its log says why."
        elif state == State.IDLE and was_running:
            self._recorder_problem = (
                f"The recorder was restarted while {last['episode_id']} ran. What it had written "
                "is recovered and marked so. Start the next episode."
            )
        # A restarted recorder knows no episode; the one that was is still of interest.
        self.episode = said if said["episode_id"] else last | {"state": state}

    def _on_policy(self, said: dict, now_s: float) -> None:
        self.policy = said

    def _on_device(self, said: dict, now_s: float) -> None:
        self._device = (now_s, said["axes"])

    def _on_diagnostics(self, said: dict, now_s: float) -> None:
        if said["name"].endswith(": arbiter"):
            return  # what it says is the status, and that is shown already
        self._diagnostics.pop(said["name"], None)
        if said["level"]:
            word = {1: "warning", 2: "error"}.get(said["level"], "stale")
            self._diagnostics[said["name"]] = (now_s, f"{said['name']}: {word}: {said['message']}")

    def _on_gateway_lost(self, said: dict, now_s: float) -> None:
        self._gateway_lost = said["text"]
        self.requests.lost()

    def _on_gateway_started(self, said: dict, now_s: float) -> None:
        self._gateway_lost, self._arbiter_lost, self.status = "", "", {}
        self.requests.regained()

    # What is shown

    def authority(self, now_s: float) -> tuple[str, str]:
        """POLICY, HUMAN, HOLD, FAULT or LOST, and why, as a sentence."""
        if self._gateway_lost or self._arbiter_lost:
            return LOST, self._gateway_lost or self._arbiter_lost
        if not self.status:
            return LOST, (
                f"No deployment is heard in ROS domain {self.domain}. Waiting for one. Start it in "
                f"another terminal: {START}."
            )
        silence_s = now_s - self._heard_s
        if silence_s > SILENCE_S:
            return LOST, (
                f"The arbiter has said nothing for {silence_s:.0f} s. Nobody is known to have "
                "control. Look at its log; start the deployment again."
            )
        return Authority(self.status["authority"]).name, self.status["text"]

    def lost(self, now_s: float) -> bool:
        """Whether nothing is known of the deployment but what was last heard."""
        return self.authority(now_s)[0] == LOST

    def since_s(self, now_s: float) -> float:
        """Seconds for which the authority has been the same."""
        return now_s - self._since_s

    @property
    def running(self) -> bool:
        """Whether an episode is running."""
        return self.episode.get("state") == State.RUNNING

    def device(self, now_s: float) -> tuple[str, str]:
        """State of the operator's device, and what that means, as a sentence."""
        if self.lost(now_s):
            return "UNKNOWN", "The arbiter would say."
        if not self.status["device_live"]:
            return "SILENT", "No one can take over with it."
        if not self.status["device_armed"]:
            return "LIVE, NOT ARMED", "Let go of the cap."
        if self.status["authority"] == Authority.HUMAN:
            return "LIVE, ARMED", "It moves the arm."
        return "LIVE, ARMED", "Moving the cap takes over."

    def axes(self, now_s: float) -> Sequence[float | None]:
        """x y z roll pitch yaw, -1..1, as the device last reported them; () where it does not."""
        heard_s, axes = self._device
        return axes if now_s - heard_s < DEVICE_S else ()

    def episode_words(self) -> str:
        """State of the episode: RUNNING, RECORDED: success, ..."""
        state = self.episode.get("state", State.IDLE)
        if state == State.FINISHED:
            outcome = self.episode["outcome"]
            return "DISCARDED" if outcome == "discarded" else f"RECORDED: {outcome}"
        return "NONE" if state == State.IDLE else State(state).name

    def clock_s(self, now_s: float) -> float:
        """Seconds since the episode began; of one that has ended, how long it took; of one that is
        lost, up to the last that was heard."""
        if not self.running:
            return self._ended_s - self._began_s
        if self.lost(now_s):
            now_s = max(self._heard_s, self._episode_s)
        return now_s - self._began_s

    @property
    def counts(self) -> list[int]:
        """Steps of the episode by live label, index c_t, and the takeovers behind them: (5,)."""
        return [a + b for a, b in zip(self._before, self._now, strict=True)]

    @property
    def steps(self) -> int:
        """Decided steps of the episode."""
        return sum(self.counts[:4])

    @property
    def takeovers(self) -> int:
        """Takeovers in the episode."""
        return self.counts[4]

    @property
    def intervention_ratio(self) -> float | None:
        """Human steps over executed ones; None before the first."""
        human = self.counts[labels.HUMAN]
        executed = human + self.counts[labels.POLICY]
        return human / executed if executed else None

    def strip(self, width: int, together: int) -> list[int]:
        """Live labels of the newest steps, oldest first, for ``width`` characters, each of
        ``together`` steps: HUMAN where one of them is, or else NONE where one is.
        """
        # Groups begin at multiples of ``together``, so that characters move on and do not change.
        steps = list(self._strip)[(len(self._strip) - self.steps) % together :]
        groups = [steps[i : i + together] for i in range(0, len(steps), together)]
        order = (labels.HUMAN, labels.NONE, labels.POLICY)
        return [next(c for c in order if c in group) for group in groups[-width:]]

    def problems(self, now_s: float) -> list[str]:
        """What is wrong beside the authority: of the recorder, and what the nodes diagnose."""
        recent = [t for at_s, t in self._diagnostics.values() if now_s - at_s < DIAGNOSTICS_S]
        return [self._recorder_problem] * bool(self._recorder_problem) + sorted(recent)

    def offers(self, name: str, now_s: float) -> bool:
        """Whether a key makes sense now. It is sent all the same: the services have the say."""
        who, _ = self.authority(now_s)
        if who == LOST or name == ESTOP:
            return name == ESTOP
        if name in OF_EPISODE:
            return self.running != (name in STARTS)
        return who in _WHEN[name] and (self.running or name != "resume")

    def farewell(self, now_s: float) -> str:
        """What the operator has to know on leaving."""
        if self.lost(now_s):
            text = (
                "The console has ended; the deployment was not heard any more. See whether it runs."
            )
            running = f" {self.episode['episode_id']} was being recorded." if self.running else ""
            return text + running
        if not self.running:
            return "The console has ended; the deployment goes on."
        return (
            f"The console has ended; the deployment goes on, and {self.episode['episode_id']} is "
            "still being recorded. hapo console shows it again."
        )
