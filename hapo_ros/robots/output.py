"""What a robot is told: decisions in, commands out, and a stop where no decision comes.

Pure: time comes in (``now_s``: steady receipt clock). A command is given once; no motion outlives
``command_timeout_s``. The servo has a time-out of its own, which stops the arm where this process
is what has died.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from hapo_ros import labels
from hapo_ros.arbitration.limits import hold, valid_action
from hapo_ros.arbitration.types import Applied, Decision, Tick
from hapo_ros.robots.commands import NO_MOTION, closes, twist_from, within_limits
from hapo_ros.robots.config import RobotConfig


@dataclass(frozen=True)
class Command:
    """The answer to one decision.

    applied: what became of it. action: (7,) float32 that drives the robot now; None for a hold as
    long as it is not known how the gripper stands: no word is given on it. twist: (6,) in the
    servo's units; None: nothing is sent. closed: what the gripper is told; None: nothing. text: why
    the decision was not executed, as a sentence; empty if it was.
    """

    applied: Applied
    action: np.ndarray | None
    twist: np.ndarray | None
    closed: bool | None = None
    text: str = ""


class RobotOutput:
    """Turns decisions into commands.

    The gripper is told only of changes, and by no hold: whoever takes over, it stays as it is. How
    it stands is learned from the ticks. Where this was started in the middle of an episode, the
    policy moves the arm only after a change of authority: nothing starts to move by itself.
    """

    def __init__(self, robot: RobotConfig):
        self.robot = robot
        self.counts: Counter[str] = Counter()
        self._started = False  # something was heard
        self._barred: tuple[str, int] | None = None  # episode and epoch joined in the middle
        self._tick: tuple[str, int, float] | None = None  # the newest: episode, sequence, receipt
        self._handled = ("", -1)  # the last tick that was decided
        self._episodes = ("", "")  # the one before, the present one
        self._closed: bool | None = None  # the gripper; None: nothing has told yet
        self._commanded_s = -np.inf  # when decide last gave a twist
        self._moved_s = -np.inf  # when the arm may last have been set in motion

    def see_tick(self, tick: Tick, now_s: float) -> None:
        """A tick: from now on its decision is waited for."""
        self._meet(tick.episode_id)
        self._tick = (tick.episode_id, tick.sequence, now_s)
        if (self._closed is None or tick.sequence == 0) and valid_action(tick.applied_action):
            self._closed = closes(tick.applied_action)

    def decide(
        self,
        decision: Decision,
        stamp_ns: int,
        tick: bool,
        now_s: float,
        ros_now_ns: int,
        gripper_listens: bool = True,
    ) -> Command | None:
        """The command for a decision; None for one that was answered already or is out of order.

        stamp_ns, tick: of its ExecutedAction. What is late or cannot be executed is answered with a
        hold; so is a change of the gripper that nobody would hear of.
        """
        self._join(decision)
        if tick and not self._is_next(decision):
            self.counts["decisions repeated or out of order"] += 1
            return None
        if applied_text := self._objection(decision, stamp_ns, tick, now_s, ros_now_ns):
            applied, text = applied_text
            return self._hold(applied, text, now_s)
        # Outside an episode the arm is left alone, also by a human who has it and is at rest.
        idle = not decision.episode_id and not self._stopping(now_s)
        if not decision.requested.size:
            return self._hold(Applied.APPLIED, "", now_s, silent=idle)
        wanted, before = closes(decision.action), self._closed
        changed = wanted if before is not None and wanted != before else None
        if changed is not None and not gripper_listens:
            self.counts["decisions for a gripper that does not listen"] += 1
            text = (
                f"Decision {decision.sequence} {'closes' if wanted else 'opens'} the gripper, and "
                f"no one takes commands on {self.robot.gripper.topic}. Holding. Start its "
                "controller, or want the gripper as it was."
            )
            return self._hold(Applied.REFUSED, text, now_s, silent=idle)
        self._closed, twist = wanted, twist_from(decision.action, self.robot)
        if idle and not twist.any():
            return Command(Applied.APPLIED, decision.action, None, closed=changed)
        self._commanded_s = now_s
        if twist.any():
            self._moved_s = now_s
        return Command(Applied.APPLIED, decision.action, twist, closed=changed)

    def stop(self, now_s: float) -> None:
        """The servo begins to listen: whatever moves the arm, it is to be told to stop."""
        self._moved_s, self._commanded_s = now_s, -np.inf

    def stop_due(self, now_s: float) -> bool:
        """Whether the arm has to be told to stop now, because no decision came. Ask often."""
        silent = now_s - self._commanded_s > self.robot.command_timeout_s
        return silent and self._stopping(now_s)

    def hold(self) -> np.ndarray | None:
        """(7,) float32 action of the robot at rest, its gripper as it stands.

        None until that is known: said to be open, a gripper that holds something would be opened
        by the next human action.
        """
        return None if self._closed is None else hold(1.0 if self._closed else -1.0)

    def _stopping(self, now_s: float) -> bool:
        """Whether the last motion is so recent that the arm is still told to be still."""
        return now_s - self._moved_s <= self.robot.command_timeout_s + self.robot.stop_s

    def _hold(self, applied: Applied, text: str, now_s: float, silent: bool = False) -> Command:
        if silent:
            return Command(applied, self.hold(), None, text=text)
        self._commanded_s = now_s
        return Command(applied, self.hold(), NO_MOTION, text=text)

    def _join(self, decision: Decision) -> None:
        if not self._started and decision.episode_id and decision.sequence > 0:
            self._barred = decision.episode_id, decision.epoch
        self._started = True

    def _is_next(self, decision: Decision) -> bool:
        """Whether a tick's decision is newer than all before; remembers it."""
        key = (decision.episode_id, decision.sequence)
        self._meet(key[0])
        same_episode = key[0] == self._handled[0]
        if key[0] != self._episodes[1] or (same_episode and key[1] <= self._handled[1]):
            return False
        self._handled = key
        return True

    def _meet(self, episode_id: str) -> None:
        """Note an episode that is new; the one before does not come back."""
        if episode_id not in self._episodes:
            self._episodes = self._episodes[1], episode_id

    def _objection(
        self, decision: Decision, stamp_ns: int, tick: bool, now_s: float, ros_now_ns: int
    ) -> tuple[Applied, str] | None:
        """Why a decision is not executed, or None."""
        robot, what = self.robot, f"Decision {decision.sequence}"
        off_s = (stamp_ns - ros_now_ns) / 1e9
        if abs(off_s) > robot.stamp_tolerance_s:
            self.counts["decisions with an absurd stamp"] += 1
            text = f"{what} is stamped {off_s:+.3g} s from this machine's clock."
            return Applied.REFUSED, f"{text} Holding. Synchronise the clocks."
        if tick and (late_s := self._late_s(decision, now_s)) > robot.decision_timeout_s:
            self.counts["decisions late"] += 1
            text = f"{what} came {late_s:.3f} s after its tick, later than"
            return Applied.LATE_HELD, f"{text} {robot.decision_timeout_s:.3f} s. Holding."
        if not valid_action(decision.action):
            self.counts["decisions not executable"] += 1
            return Applied.REFUSED, f"{what} is not 7 finite numbers. Holding. See the arbiter."
        if not within_limits(decision.action, robot):
            self.counts["decisions beyond the limits"] += 1
            text = f"{what} is faster than {robot.max_linear_m_s:g} m/s or"
            text = f"{text} {robot.max_angular_rad_s:g} rad/s. Holding."
            return Applied.REFUSED, f"{text} Set the arbiter's limits to the robot's."
        joined = self._barred == (decision.episode_id, decision.epoch)
        if joined and decision.label == labels.POLICY:
            self.counts["decisions of an episode that was joined"] += 1
            text = "The robot's output was started while the policy had the arm."
            return Applied.REFUSED, f"{text} Holding. Take over, then hand back."
        return None

    def _late_s(self, decision: Decision, now_s: float) -> float:
        """Time since a decision's tick came; infinite where a newer tick has come."""
        if self._tick is None or self._tick[0] != decision.episode_id:
            return 0.0  # its tick is still on the way
        _, sequence, received_s = self._tick
        if decision.sequence > sequence:
            return 0.0
        return now_s - received_s if decision.sequence == sequence else np.inf
