"""Who commands the robot: a pure state machine, one decision a tick.

Time comes in as ``now_s`` (steady receipt clock, seconds). The label is made here, with the
decision. ``transitions.TRANSITIONS`` is the whole of what can change the authority.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import truediv

import numpy as np

from hapo_ros import labels
from hapo_ros.arbitration.frames import turned
from hapo_ros.arbitration.limits import GRIPPER, Limits, hold, valid_action
from hapo_ros.arbitration.transitions import TRANSITIONS, Trigger
from hapo_ros.arbitration.types import (
    Applied,
    ArbiterConfig,
    Authority,
    Decision,
    Event,
    HumanSample,
    PolicyCommand,
    Reason,
    Refusal,
    Tick,
    finite,
)

_EVENT_TRIGGERS = {event: Trigger[event.name] for event in Event}
_STARTS = (Trigger.START_DEPLOYMENT, Trigger.START_DEMONSTRATION)
_AFTER_START = (Trigger.JOIN, Trigger.HOLD)  # wait with the start they follow
_ENDS = (Trigger.END_EPISODE, Trigger.TIME_RESET)
_LOSSES = (Reason.DEVICE_LOST, Reason.DEVICE_LOST_POLICY)
_NOTHING = np.zeros(0, np.float32)
_NOTHING.setflags(write=False)


@dataclass
class _State:
    episode_id: str = ""
    sequence: int = -1
    waiting: tuple[Event, ...] = ()  # a start, and what follows it, until the first tick
    demonstration: bool = False
    authority: Authority = Authority.HOLD
    reason: Reason = Reason.NO_EPISODE
    epoch: int = 0
    gripper: float = -1.0  # last executed gripper command; -1 is open
    motion: tuple[float, ...] = (0.0,) * 6  # last executed
    chunk: PolicyCommand | None = None
    failures: int = 0  # policy decisions late or refused, in a row
    sample: HumanSample | None = None  # last valid report
    invalid: bool = False  # the newest report was not executable
    armed: bool = False  # seen neutral since it was last live, handed back or lost
    neutral_since_s: float | None = None
    taken_over_s: float = -np.inf
    handed_back_s: float = -np.inf
    takeovers: int = 0
    gap: bool = False  # steps without a tick since the last one
    changed: bool = False  # authority changed hands in this step
    awaits_policy: bool = False  # the decision is a hold only because no answer is there
    refusals: tuple[Refusal, ...] = ()  # of this step's requests

    def copy(self) -> "_State":
        """A state of its own; what the fields hold is never changed in place."""
        copied = object.__new__(_State)
        copied.__dict__.update(self.__dict__)
        return copied


class Arbiter:
    """Decides, once a tick, whose action is executed. See the module's docstring."""

    def __init__(self, config: ArbiterConfig | None = None):
        self.config = config or ArbiterConfig()
        self.counts: Counter[str] = Counter()  # refusals and the like, for diagnostics
        self._limits = Limits(self.config)
        scales = self.config.linear_scale_m_s, self.config.angular_scale_rad_s
        self._scale = np.repeat(scales, 3).tolist()
        self._state = _State()
        self._last: Decision | None = None

    authority = property(lambda self: self._state.authority)
    reason = property(lambda self: self._state.reason)
    epoch = property(lambda self: self._state.epoch)
    sequence = property(lambda self: self._state.sequence)
    armed = property(lambda self: self._state.armed)
    takeovers = property(lambda self: self._state.takeovers)

    def device_live(self, now_s: float) -> bool:
        """Whether the operator's device has reported within its time-out (ever, in lock-step)."""
        return self._live(self._state, now_s)

    @property
    def needs_pose(self) -> bool:
        """Whether a tick's ``eef_pose`` is needed: for the workspace, or the tool's frame."""
        return self._limits.needs_pose or self.config.operator_frame == "tool"

    def decided(self, tick: Tick) -> Decision | None:
        """The decision already made for this very tick (it was sent again), else None."""
        last = self._last
        same = last and (last.episode_id, last.sequence) == (tick.episode_id, tick.sequence)
        return last if same else None

    def refusal(self, now_s: float, event: Event, events: Sequence[Event] = ()) -> Refusal | None:
        """Why ``event`` would be refused, came it now after ``events``; None if it would not be."""
        state = self._state.copy()
        for before in events:
            self._handle_event(state, Event(before), None, now_s, Counter())
        return self._refusal(state, _EVENT_TRIGGERS[event], now_s)

    def ready(
        self,
        now_s: float,
        tick: Tick,
        policy: PolicyCommand | None,
        human: Sequence[HumanSample] = (),
        events: Sequence[Event] = (),
    ) -> bool:
        """Whether :meth:`step` would decide without waiting for the policy. Changes nothing."""
        state, _, _ = self._evaluate(now_s, tick, policy, human, events)
        return not state.awaits_policy

    def step(
        self,
        now_s: float,
        tick: Tick | None,
        policy: PolicyCommand | None = None,
        human: Sequence[HumanSample] = (),
        events: Sequence[Event] = (),
        pose: np.ndarray | None = None,
    ) -> Decision:
        """Decide one tick.

        now_s: steady clock. tick: the tick, or None when the arbiter's own timer runs because ticks
        stopped (then nobody's step is data: label NONE). policy: the answer to this tick, None if
        it is late. human: every report since the last step, in order. events: likewise. pose: the
        hand's where there is no tick to have it, see ``Tick.eef_pose``. Raises ValueError for a
        tick that was decided already or is older than the last one. A start that comes without a
        tick waits for the next one.
        """
        state = self._state
        same_episode = tick is not None and tick.episode_id == state.episode_id
        requests = (*state.waiting, *events)
        restarts = any(_EVENT_TRIGGERS[Event(event)] in _STARTS for event in requests)
        if same_episode and tick.sequence <= state.sequence and not restarts:
            raise ValueError(
                f"tick {tick.sequence} of {tick.episode_id} is not newer than {state.sequence}"
            )
        self._state, decision, counts = self._evaluate(now_s, tick, policy, human, events, pose)
        if counts:
            self.counts.update(counts)
        if tick is not None:
            self._last = decision
        return decision

    def _evaluate(self, now_s, tick, policy, human, events, pose=None):
        state = self._state.copy()
        state.changed, state.awaits_policy, state.refusals = False, False, ()
        counts: Counter[str] = Counter()
        if tick is not None:
            events, state.waiting = (*state.waiting, *events), ()
            self._sync(state, tick)
        state.gap = tick is None
        for event in events:
            self._handle_event(state, Event(event), tick, now_s, counts)
        for sample in human:
            self._handle_sample(state, sample, now_s, counts)
        self._watch_device(state, now_s)
        if tick is None:
            self._apply(state, Trigger.TICKS_LOST, now_s)
        pose = self._pose(pose if tick is None else tick.eef_pose)
        decision = self._decide(state, tick, policy, pose, now_s, counts)
        *state.motion, state.gripper = decision.action.tolist()
        return state, decision, counts

    def _apply(self, state: _State, trigger: Trigger, now_s: float) -> bool:
        """Follow the table. Every change of hands flushes the chunk and starts a new epoch."""
        target = TRANSITIONS.get((state.authority, trigger))
        if target is None:
            return False
        authority, reason = target
        if authority is Authority.POLICY and (state.demonstration or not state.episode_id):
            # No policy acts in a demonstration, nor before an episode has started.
            reason = Reason.AWAITING_HUMAN if state.episode_id else Reason.NO_EPISODE
            authority = Authority.HOLD
        if authority is not state.authority:
            if authority is Authority.HUMAN:
                state.taken_over_s, state.neutral_since_s = now_s, None
                state.takeovers += 1
            elif state.authority is Authority.HUMAN:
                state.handed_back_s, state.armed = now_s, False
            state.epoch += 1
            state.changed = True
        state.authority, state.reason = authority, reason
        state.chunk, state.failures = None, 0
        return True

    def _sync(self, state: _State, tick: Tick) -> None:
        """Where the last decision was not executed, the robot does not do what it would have done.

        Its speed grows from what it has, and no hold or takeover moves the gripper to where that
        decision wanted it. What a human asked of the gripper still counts. In a hold the robot has
        the last word on its gripper: one that was late to say that it had moved is believed then.
        """
        executed = tick.applied not in (Applied.LATE_HELD, Applied.REFUSED)
        known = tick.episode_id == state.episode_id and valid_action(tick.applied_action)
        # After steps without ticks what was executed of the last tick's decision is long over.
        acting = state.gap or state.authority in (Authority.POLICY, Authority.HUMAN)
        if not known or (executed and acting):
            return
        *state.motion, gripper = tick.applied_action.tolist()
        if state.authority is not Authority.HUMAN:
            state.gripper = gripper

    def _refusal(self, state: _State, trigger: Trigger, now_s: float) -> Refusal | None:
        if state.authority is Authority.FAULT:
            if trigger in _STARTS:
                return Refusal.START_IN_FAULT
            if trigger is Trigger.RESUME:
                return Refusal.RESUME_IN_FAULT
            # In lock-step a device reports once a tick: there may be none before the first one.
            must_be = self.config.on_device_lost == "hold" and not self.config.lock_step
            needed = state.sample is not None or must_be
            at_rest = state.armed and state.neutral_since_s is not None
            ready = at_rest and self._live(state, now_s)
            if trigger is Trigger.CLEAR_FAULT and needed and not ready:
                return Refusal.CLEAR_WITHOUT_DEVICE
        if trigger is Trigger.RESUME and self._is_lost(state):
            return Refusal.RESUME_WITHOUT_DEVICE
        return None

    def _handle_event(self, state: _State, event: Event, tick, now_s: float, counts) -> None:
        trigger = _EVENT_TRIGGERS[event]
        if tick is None and (trigger in _STARTS or (state.waiting and trigger in _AFTER_START)):
            state.waiting += (event,)
            return
        if refusal := self._refusal(state, trigger, now_s):
            state.refusals += (refusal,)
            counts[refusal.name.lower()] += 1
            if trigger not in _STARTS:
                return
        if trigger in _STARTS:
            self._begin(state, trigger, tick, now_s)
            return
        if not self._apply(state, trigger, now_s):
            counts["requests_without_effect"] += 1
        if trigger in _ENDS:
            state.episode_id, state.sequence, state.waiting = "", -1, ()
        if trigger is Trigger.TIME_RESET:
            state.armed = False

    def _begin(self, state: _State, trigger: Trigger, tick: Tick, now_s: float) -> None:
        """Take part in the episode of a first tick; in a fault too, to go on once it is cleared."""
        self._apply(state, Trigger.END_EPISODE, now_s)  # whatever ran before
        state.episode_id, state.sequence = tick.episode_id, tick.sequence - 1
        state.demonstration = trigger is Trigger.START_DEMONSTRATION
        state.takeovers = 0
        state.taken_over_s = state.handed_back_s = -np.inf
        if valid_action(tick.applied_action):  # where the gripper stands now
            state.gripper = float(tick.applied_action[GRIPPER])
        if tick.sequence > 0:
            latched = tick.authority is Authority.FAULT
            self._apply(state, Trigger.JOIN_IN_FAULT if latched else Trigger.JOIN, now_s)
            state.epoch = tick.epoch + 1
            return
        self._apply(state, trigger, now_s)
        # The first tick is answered under epoch 0, so that its inference counts.
        state.epoch, state.changed = 0, False

    def _handle_sample(self, state: _State, sample: HumanSample, now_s: float, counts) -> None:
        if not sample.executable:
            counts["device_reports_refused"] += 1
            state.invalid, state.armed = True, False
            return
        previous, state.sample, state.invalid = state.sample, sample, False
        if previous is not None and not self._live_at(previous, sample.received_s):
            previous, state.armed = None, False  # it was lost, and is back
        size = max(map(abs, np.asarray(sample.axes).tolist()))
        if size < self.config.release_threshold:
            state.armed = True
            if state.neutral_since_s is None:
                state.neutral_since_s = now_s
        else:
            state.neutral_since_s = None

        human_before = state.authority is Authority.HUMAN
        if state.armed and size >= self.config.takeover_threshold:
            self._apply(state, Trigger.CAP, now_s)
        if state.armed and _edge(previous, sample, self.config.authority_button) > 0:
            by_cap = state.authority is Authority.HUMAN and not human_before
            too_soon = human_before and now_s - state.handed_back_s < self.config.min_dwell_s
            if not by_cap and not too_soon:
                self._apply(state, Trigger.AUTHORITY_BUTTON, now_s)
        if state.authority is Authority.HUMAN:
            self._move_gripper(state, previous, sample)

        if (
            state.authority is Authority.HUMAN
            and self.config.handback != "button"
            and state.neutral_since_s is not None
            and now_s - state.neutral_since_s >= self.config.release_after_s
            and now_s - max(state.taken_over_s, state.handed_back_s) >= self.config.min_dwell_s
        ):
            released = self.config.handback == "release"
            self._apply(state, Trigger.LET_GO if released else Trigger.DEADMAN, now_s)

    def _move_gripper(self, state: _State, previous, sample: HumanSample) -> None:
        """By edges of its button only, so that a change of authority by itself moves nothing."""
        edge = _edge(previous, sample, self.config.gripper_button)
        if self.config.gripper_mode == "hold":
            state.gripper = float(edge) if edge else state.gripper
        elif edge > 0:
            state.gripper = -1.0 if state.gripper > 0 else 1.0

    def _live(self, state: _State, now_s: float) -> bool:
        return state.sample is not None and self._live_at(state.sample, now_s)

    def _live_at(self, sample: HumanSample, now_s: float) -> bool:
        silent = now_s - sample.received_s > self.config.device_timeout_s
        return self.config.lock_step or not silent

    def _is_lost(self, state: _State) -> bool:
        """Whether the device was lost in a hold that is still on, and not seen neutral since."""
        needed = self.config.on_device_lost == "hold"
        return needed and state.reason in _LOSSES and not state.armed

    def _watch_device(self, state: _State, now_s: float) -> None:
        if self._live(state, now_s):
            return
        state.armed, state.neutral_since_s = False, None
        if state.authority is Authority.POLICY and self.config.on_device_lost == "continue":
            return
        self._apply(state, Trigger.DEVICE_LOST, now_s)

    def _decide(self, state: _State, tick, policy, pose, now_s: float, counts) -> Decision:
        requested, label, version = _NOTHING, labels.NONE, ""
        belongs = tick is not None and tick.episode_id == state.episode_id != ""
        # A hand-over to the policy holds one tick: its answer was made before the change.
        asked = state.authority is Authority.POLICY and belongs and not state.changed
        if policy is not None and not asked:
            counts["policy_answers_discarded"] += 1
        if asked:
            requested, version = self._policy_action(state, tick, policy, now_s, counts)
            label = labels.POLICY if requested.size else labels.NONE
        elif state.authority is Authority.HUMAN:
            requested, reason = self._human_action(state, pose)
            label = labels.HUMAN if requested.size and belongs else labels.NONE
            if not state.changed or not requested.size:
                state.reason = reason
        elif state.authority is Authority.POLICY and tick is not None and not belongs:
            state.reason = Reason.NO_EPISODE
        if requested.size and pose is None and self._limits.needs_pose:
            requested, label, state.reason = _NOTHING, labels.NONE, Reason.POSE_UNKNOWN
            state.chunk = None  # what follows in it was planned from where the arm is not
        if requested.size:
            action, limited = self._limits.apply(requested, state.motion, pose)
            if limited:
                counts["limited"] += 1
        else:
            action, limited = hold(state.gripper), False
        if state.reason is Reason.POSE_UNKNOWN:
            counts["pose_unknown"] += 1
        if belongs:
            state.sequence = tick.sequence
        following = state.sequence + 1
        due = state.authority is Authority.POLICY and _from_chunk(state.chunk, following) is None
        return Decision(
            episode_id=tick.episode_id if tick else state.episode_id,
            sequence=tick.sequence if tick else max(state.sequence, 0),
            action=action,
            requested=requested,
            label=label,
            authority=state.authority,
            reason=state.reason,
            epoch=state.epoch,
            policy_version=version if label == labels.POLICY else "",
            limited=limited,
            policy_due=due,
            refusals=state.refusals,
        )

    def _policy_action(self, state: _State, tick: Tick, policy, now_s: float, counts):
        """The policy's action for this tick, or (0,) and a reason in ``state``."""
        answer = None
        if policy is not None:
            key = (policy.episode_id, policy.sequence, policy.epoch)
            if key == (tick.episode_id, tick.sequence, state.epoch):
                state.chunk = answer = policy
            else:
                counts["policy_answers_discarded"] += 1
        action = _as_float32(_from_chunk(state.chunk, tick.sequence))
        if valid_action(action):
            state.failures, state.reason = 0, Reason.POLICY_ACTS
            return action, state.chunk.version
        late = answer is None and not action.size
        state.awaits_policy = late
        counts["policy_late" if late else "policy_refused"] += 1
        failures = state.failures + 1
        state.chunk, state.failures = None, failures
        state.reason = Reason.POLICY_LATE if late else Reason.POLICY_INVALID
        if failures >= self.config.max_policy_failures:
            self._apply(state, Trigger.POLICY_GONE, now_s)
        return _NOTHING, ""

    def _human_action(self, state: _State, pose) -> tuple[np.ndarray, Reason]:
        """What the operator asks for, in the robot's base frame; (0,) where there is nothing."""
        if state.invalid:
            return _NOTHING, Reason.DEVICE_INVALID
        twist = np.asarray(state.sample.twist).tolist()
        if self.config.operator_frame == "camera":
            twist = turned(twist, self.config.camera_rotation)
        elif self.config.operator_frame == "tool":
            if pose is None:
                return _NOTHING, Reason.POSE_UNKNOWN
            twist = turned(twist, pose[3:])
        motion = map(truediv, twist, self._scale)
        action = _as_float32(np.array([*motion, state.gripper]))
        if not valid_action(action):
            return _NOTHING, Reason.DEVICE_INVALID
        return action, Reason.HUMAN_ACTS

    def _pose(self, pose) -> list[float] | None:
        """The hand's pose, where it is needed and can be used."""
        if not self.needs_pose or pose is None:
            return None
        pose = np.asarray(pose, np.float64)
        return pose.tolist() if finite(pose, 7) and np.any(pose[3:]) else None


def _from_chunk(chunk: PolicyCommand | None, sequence: int):
    """The chunk's action for a tick, or None where the chunk does not reach it."""
    if chunk is None or not 0 <= sequence - chunk.sequence < len(chunk.actions):
        return None
    return chunk.actions[sequence - chunk.sequence]


def _as_float32(action) -> np.ndarray:
    """As float32, where what is too large is infinite and so refused; (0,) for None."""
    action = _NOTHING if action is None else np.asarray(action)
    if action.dtype == np.float32:
        return action
    with np.errstate(over="ignore"):
        return action.astype(np.float32)


def _edge(previous: HumanSample | None, sample: HumanSample, button: int) -> int:
    """1 where ``button`` went down between two reports, -1 where it went up, else 0.

    A device's first report has no edges.
    """
    if previous is None or button >= len(sample.buttons):
        return 0
    was = button < len(previous.buttons) and bool(previous.buttons[button])
    return bool(sample.buttons[button]) - was
