"""One observation a control period, from inputs that come when they like; and the episode's ticks.

Pure: time comes in. Receipt is on the steady clock, so a wall clock that is set changes no age;
stamps are the senders' ROS time, compared with this machine's only to find those that are absurd.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from hapo_ros.arbitration.limits import GRIPPER, hold
from hapo_ros.arbitration.types import Applied, Authority, Decision, Tick

_CLOCK_STEP_NS = 10_000_000  # two clocks are not read in one moment: less is no setting of one


class Fault(Enum):
    """What is wrong with an input."""

    MISSING = "missing"  # it never came
    LATE = "late"  # it comes no more
    FROZEN = "frozen"  # it comes, but nothing new
    REFUSED = "refused"  # it comes, but cannot be used
    FORGOTTEN = "forgotten"  # who numbered the ticks was started again


@dataclass(frozen=True)
class Input:
    """Something an observation needs. name: for sentences. The rest: see ``CameraConfig``."""

    name: str
    tolerance_s: float
    frozen_after: int = 0


@dataclass(frozen=True)
class Problem:
    """Why an input cannot be used now."""

    fault: Fault
    text: str


@dataclass
class _Kept:
    """The newest message of an input that was accepted, and what came since."""

    value: object = None
    stamp_ns: int | None = None
    received_s: float = -np.inf
    clock_ns: int | None = None  # ROS time ahead of the steady clock, when it was taken in
    begins_anew_s: float = -np.inf  # until then, one stamp may be before the last
    arrived_s: float = -np.inf  # the last message at all
    refusal: str = ""  # why that one was refused
    digest: int | None = None
    same: int = 1  # messages in a row with this digest


class Assembler:
    """Keeps the newest of each input, and says what is missing, late, frozen or refused.

    inputs: by a key of the caller's. stamp_tolerance_s: between a stamp and ROS time. ``counts``
    says how many messages were refused and why.
    """

    def __init__(self, inputs: Mapping[str, Input], stamp_tolerance_s: float):
        self.counts: Counter[str] = Counter()
        self._inputs = dict(inputs)
        self._tolerance_ns = round(stamp_tolerance_s * 1e9)
        self._kept = {key: _Kept() for key in self._inputs}

    def add(
        self,
        key: str,
        value,
        stamp_ns: int,
        now_s: float,
        ros_now_ns: int,
        digest: int | None = None,
        received_s: float | None = None,
    ) -> bool:
        """Take in a message; whether it is the newest now.

        Refused: a stamp too far from ``ros_now_ns``, or not after the last one's (repeated, out of
        order), but for the first after ROS time was set back. digest: a hash of its content, for
        inputs that may freeze. received_s: when it came, if that was before ``now_s``.
        """
        kept, ahead_ns = self._kept[key], stamp_ns - ros_now_ns
        if abs(ahead_ns) > self._tolerance_ns:
            way = "in the future" if ahead_ns > 0 else "in the past"
            self.refuse(
                key, f"its stamps are {abs(ahead_ns) / 1e9:.3g} s {way} of this machine's", now_s
            )
            return False
        received_s = now_s if received_s is None else received_s
        kept.arrived_s, kept.refusal = received_s, ""
        clock_ns = ros_now_ns - round(now_s * 1e9)
        if kept.clock_ns is not None and clock_ns < kept.clock_ns - _CLOCK_STEP_NS:
            # The next ones may still be stamped by the clock as it was: they were on their way.
            kept.begins_anew_s = now_s + self._tolerance_ns / 1e9
        if kept.stamp_ns is not None and stamp_ns <= kept.stamp_ns:
            if stamp_ns == kept.stamp_ns or now_s > kept.begins_anew_s:
                self.counts[f"{self._inputs[key].name}: repeated or old"] += 1
                return False
            kept.begins_anew_s = -np.inf
        kept.same = kept.same + 1 if digest is not None and digest == kept.digest else 1
        kept.value, kept.stamp_ns, kept.digest = value, stamp_ns, digest
        kept.received_s, kept.clock_ns = received_s, clock_ns
        return True

    def refuse(self, key: str, why: str, now_s: float) -> None:
        """Count a message that cannot be used; what was newest before stays so."""
        kept = self._kept[key]
        kept.arrived_s, kept.refusal = now_s, why
        self.counts[f"{self._inputs[key].name}: refused"] += 1

    def value(self, key: str):
        """The newest value of an input and its stamp in ns; (None, None) where none came."""
        kept = self._kept[key]
        return kept.value, kept.stamp_ns

    def problems(self, now_s: float) -> dict[str, Problem]:
        """What keeps an observation from being complete, by input; empty where nothing does."""
        found = {key: self._problem(key, now_s) for key in self._inputs}
        return {key: problem for key, problem in found.items() if problem is not None}

    def _problem(self, key: str, now_s: float) -> Problem | None:
        known, kept = self._inputs[key], self._kept[key]
        fresh = now_s - kept.received_s <= known.tolerance_s
        if fresh and not 0 < known.frozen_after <= kept.same:
            return None
        if fresh:
            return Problem(
                Fault.FROZEN, f"{known.name} shows the same for {known.frozen_after} messages"
            )
        if now_s - kept.arrived_s <= known.tolerance_s:
            if kept.refusal:
                return Problem(Fault.REFUSED, f"{known.name} is refused: {kept.refusal}")
            return Problem(Fault.FROZEN, f"{known.name} is frozen: its stamps do not advance")
        if kept.arrived_s == -np.inf:
            return Problem(Fault.MISSING, f"{known.name} has not come yet")
        return Problem(
            Fault.LATE, f"{known.name} has not come for more than {known.tolerance_s:.3g} s"
        )


@dataclass
class EpisodeTicks:
    """The ticks of the running episode: their numbers, and what became of each decision.

    gripper: what was last applied to it, -1 open; None while nobody knows. joined: the episode ran
    before this did, and nobody knows how far its ticks have come: no more of them can be made.
    """

    gripper: float | None = None
    episode_id: str = ""  # empty: no episode
    joined: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    _sequence: int = -1
    _decision: Decision | None = None  # the last of this episode
    _decided: int = -1  # the last tick that was answered
    _applied: tuple[int, Applied, np.ndarray] | None = None  # the last word of the robot's output

    def start(self, episode_id: str, joined: bool = False) -> None:
        """Begin an episode; its first tick is number 0, unless it was joined."""
        self.episode_id, self.joined = episode_id, joined
        self._sequence = self._decided = -1
        self._decision = self._applied = None

    def stop(self) -> None:
        """No episode runs."""
        self.episode_id, self.joined = "", False

    @property
    def begins(self) -> bool:
        """Whether an episode runs of which no tick was made yet."""
        return bool(self.episode_id) and self._sequence < 0

    @property
    def human(self) -> bool | None:
        """Whether the last decision of this episode left the arm with the human; None: unheard."""
        return None if self._decision is None else self._decision.authority is Authority.HUMAN

    @property
    def awaits_word(self) -> bool:
        """Whether the last tick was answered, and no word has come on what became of the answer.

        Where it comes just after the next tick, that says LATE_HELD of a decision that was executed
        (a gripper that closed): better to put that tick off a little.
        """
        told = self._applied is not None and self._applied[0] == self._sequence
        return bool(self.episode_id) and 0 <= self._sequence == self._decided and not told

    def meet_gripper(self, measured: float | None) -> None:
        """Take in how the gripper stands, if it can be measured, before the first tick."""
        if measured is not None:
            self.gripper = measured

    def see_decision(self, decision: Decision, tick: bool) -> None:
        """Take in an ExecutedAction; tick: whether it answers one, or is of the arbiter's timer."""
        if decision.episode_id != self.episode_id:
            return
        if tick:
            self._decided = max(self._decided, decision.sequence)
        if self._decision is None or decision.epoch >= self._decision.epoch:
            self._decision = decision

    def see_applied(
        self, episode_id: str, sequence: int, applied: Applied, action: np.ndarray, tick: bool
    ) -> None:
        """Take in the robot output's word on a decision; tick: as in ExecutedAction."""
        self.gripper = float(action[GRIPPER])
        if not tick or episode_id != self.episode_id:
            return
        if sequence < self._sequence:
            self.counts["words on a decision that came too late"] += 1
        elif self._applied is None or sequence > self._applied[0]:
            self._applied = sequence, applied, action

    def next(self, stamp_ns: int) -> Tick:
        """The next tick. Without a word on the last decision, the robot was held: LATE_HELD."""
        gripper = -1.0 if self.gripper is None else self.gripper
        previous, self._sequence = self._sequence, self._sequence + 1
        outcome, action = Applied.NO_DECISION, hold(gripper)
        if previous >= 0:
            outcome = Applied.LATE_HELD
            if self._applied is not None and self._applied[0] == previous:
                _, outcome, action = self._applied
        echo = {}
        if self._decision is not None:
            echo = {
                "authority": self._decision.authority,
                "epoch": self._decision.epoch,
                "policy_due": self._decision.policy_due,
            }
        return Tick(
            episode_id=self.episode_id,
            sequence=self._sequence,
            stamp_ns=stamp_ns,
            applied_sequence=previous,
            applied=outcome,
            applied_action=action,
            **echo,
        )
