"""The simulated operator: a stand-in for a human with a SpaceMouse, pure and seeded.

It sees what a human would see (the scene, as ``privileged`` numbers, and the authority that the
tick echoes) and answers with what a human would do: move the cap, press a button, end the episode.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hapo_ros.arbitration.types import Authority, Tick
from hapo_ros.episodes.types import SOURCES
from hapo_ros.sim.environment import ANGULAR_SCALE_RAD_S, LINEAR_SCALE_M_S
from hapo_ros.sim.tasks import Progress, Task

# Full deflection of the cap asks for action 1.
FULL_SCALE = np.array([LINEAR_SCALE_M_S] * 3 + [ANGULAR_SCALE_RAD_S] * 3)
NUDGE = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])  # up: what is pushed where nothing is to be moved


@dataclass(frozen=True)
class OperatorConfig:
    """How the operator behaves.

    patience_steps: steps without progress after which it takes over. progress_m: what counts as
    progress. second_chances: how often in an episode it watches the task fall back (the cube
    dropped) without counting that against the patience. reaction_steps: a takeover comes up to so
    many steps later, at random. noise: standard deviation of its hand, per axis, 1 being full
    deflection. finish: it completes the task instead of handing back, as it always does where it
    took over with nothing in the way. success_steps: ticks in a row that show success before it
    ends the episode. takeover_push: deflection with which it takes over at least; above the
    arbiter's takeover_threshold. Buttons: the arbiter's, whose handback has to be ``button``: a
    hand that waits for the fingers to close is still.
    """

    patience_steps: int = 30
    progress_m: float = 0.005
    second_chances: int = 1
    reaction_steps: int = 4
    noise: float = 0.02
    finish: bool = False
    success_steps: int = 1
    takeover_push: float = 0.3
    gripper_button: int = 0
    authority_button: int = 1

    def __post_init__(self):
        for name in ("patience_steps", "success_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"operator: {name} must be at least 1, not {getattr(self, name)}")
        for name in ("progress_m", "second_chances", "reaction_steps", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"operator: {name} must not be negative: {getattr(self, name)}")
        if not 0 < self.takeover_push <= 1:
            raise ValueError(f"operator: takeover_push must be in 0..1, not {self.takeover_push}")
        if {self.gripper_button, self.authority_button} != {0, 1}:
            raise ValueError("operator: the gripper and authority buttons are 0 and 1")


@dataclass(frozen=True)
class OperatorOutput:
    """The device at one tick. axes: (6,) float32, -1..1, x y z roll pitch yaw. buttons: 0 or 1
    each. twist: (6,) float64, the motion asked for, world frame, m/s and rad/s."""

    axes: np.ndarray
    buttons: tuple[int, int]
    twist: np.ndarray


@dataclass(frozen=True)
class EndEpisode:
    """The operator ends the episode. outcome: success | failure. unresolved: it had the arm and had
    not overcome the difficulty; its correction may not be worth learning from. note: a sentence."""

    outcome: str
    unresolved: bool
    note: str


class ProgressWatch:
    """Counts the steps in which a task has not come further than it ever had."""

    def __init__(self, progress_m: float, second_chances: int):
        self.progress_m, self.chances = progress_m, second_chances
        self.restart()

    def restart(self) -> None:
        """Count from now on; chances that were used stay used."""
        self._best: Progress | None = None
        self.idle_steps = 0

    def update(self, progress: Progress) -> int:
        """Steps without progress, this one included."""
        best = self._best
        fell_back = best is not None and progress.phase < best.phase and self.chances > 0
        further = (
            best is None
            or progress.phase > best.phase
            or (progress.phase == best.phase and progress.value >= best.value + self.progress_m)
        )
        if fell_back:
            self.chances -= 1
        if fell_back or further:
            self._best, self.idle_steps = progress, 0
        else:
            self.idle_steps += 1
        return self.idle_steps


class SimulatedOperator:
    """One episode's operator: make a new one for the next.

    source ``demonstration``: takes the arm after the first tick and does all of the task.
    ``deployment``: takes it when the policy does not come further. Raises ValueError for any other.
    """

    def __init__(
        self,
        task: Task,
        config: OperatorConfig | None = None,
        seed: int = 0,
        source: str = "deployment",
    ):
        if source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}, not {source!r}")
        self.task, self.config, self.source = task, config or OperatorConfig(), source
        self._expert = task.expert()
        self._rng = np.random.default_rng([int(seed), 2])
        self._watch = ProgressWatch(self.config.progress_m, self.config.second_chances)
        self._allowed_steps = self._draw_patience()
        self._wants_arm = self._finishes = False
        self._successes = 0
        self._pressed = (0, 0)
        self._answered: tuple[int, OperatorOutput | EndEpisode] | None = None

    def act(self, tick: Tick, privileged: Mapping[str, float]) -> OperatorOutput | EndEpisode:
        """What the operator does at this tick; ``privileged`` is the simulation's, at this tick.

        A tick sent again gets the same answer. After :class:`EndEpisode` there is nothing to ask.
        """
        if self._answered is None or self._answered[0] != tick.sequence:
            self._answered = tick.sequence, self._decide(tick, privileged)
        return self._answered[1]

    def _decide(self, tick: Tick, privileged) -> OperatorOutput | EndEpisode:
        has_arm = tick.authority is Authority.HUMAN
        self._successes = self._successes + 1 if tick.success else 0
        if self._successes >= self.config.success_steps:
            return EndEpisode("success", False, "The task is done.")
        if tick.sequence >= self.task.horizon:
            unresolved = has_arm and self.source == "deployment"
            note = f"Not done after {self.task.horizon} steps."
            if unresolved:
                note += " The operator was still correcting."
            return EndEpisode("failure", unresolved, note)
        if tick.sequence == 0:
            return self._neutral()  # the arbiter arms a device that it has seen neutral
        if tick.authority is Authority.FAULT:
            return self._neutral()  # nothing can be moved, and a fault is cleared with it at rest
        self._wants_arm = self._consider(has_arm, privileged)
        if self._wants_arm:
            return self._move(has_arm, privileged)
        return self._neutral(press=self.config.authority_button if has_arm else None)

    def _consider(self, has_arm: bool, privileged) -> bool:
        """Whether the operator wants the arm, now."""
        if self.source == "demonstration":
            return True
        if self._wants_arm:
            if not has_arm or self._finishes or not self.task.resolved(privileged):
                return True
            self._watch.restart()
            self._allowed_steps = self._draw_patience()
            return False
        impatient = self._watch.update(self.task.progress(privileged)) >= self._allowed_steps
        if impatient:
            # Stuck where nothing is in the way: handing back at once would change nothing.
            self._finishes = self.config.finish or self.task.resolved(privileged)
        return impatient

    def _draw_patience(self) -> int:
        return self.config.patience_steps + int(self._rng.integers(self.config.reaction_steps + 1))

    def _move(self, has_arm: bool, privileged) -> OperatorOutput:
        action = np.asarray(self._expert.act(privileged), np.float64)
        motion = np.clip(action[:6] + self._rng.normal(0.0, self.config.noise, 6), -1, 1)
        if not has_arm:
            motion = self._pushed(motion)
        present, wanted = privileged["gripper_command"] > 0, action[6] > 0
        press = self.config.gripper_button if has_arm and present != wanted else None
        return self._output(motion, press)

    def _pushed(self, motion: np.ndarray) -> np.ndarray:
        """The motion, large enough to take over with."""
        size = np.abs(motion).max()
        if size >= self.config.takeover_push:
            return motion
        direction = motion / size if size > 0.05 else NUDGE
        return direction * self.config.takeover_push

    def _neutral(self, press: int | None = None) -> OperatorOutput:
        return self._output(np.zeros(6), press)

    def _output(self, motion: np.ndarray, press: int | None) -> OperatorOutput:
        """press: the button wanted down. One that is down is let go first: presses are edges."""
        buttons = tuple(int(i == press and not down) for i, down in enumerate(self._pressed))
        self._pressed = buttons
        axes = motion.astype(np.float32)
        return OperatorOutput(axes, buttons, axes.astype(np.float64) * FULL_SCALE)
