"""Whatever comes in, in whatever order: what always holds for the arbiter's decisions.

Policy answers of every quality, a device that is moved, pressed, delayed, broken and silent,
requests, episodes that begin and end, ticks and poses that are lost, clocks that jump: 24 000
random steps, and short runs by hypothesis, which makes a failing one as short as it can be.
"""

import random
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hapo_ros.arbitration import (
    Applied,
    Arbiter,
    ArbiterConfig,
    Authority,
    Decision,
    Event,
    HumanSample,
    PolicyCommand,
    Reason,
    Tick,
)
from hapo_ros.arbitration.limits import GRIPPER
from hapo_ros.labels import HUMAN, NONE, POLICY

PERIOD_S = 0.05
GRIP, AUTHORITY = 1, 2  # bits of a report's buttons

# What may come in a step; what is listed more often comes more often.

ANSWERS = [
    *["one"] * 6,
    *["chunk"] * 4,
    *["late"] * 2,
    *["NaN", "huge", "overflow", "short", "empty", "flat", "old epoch", "old tick", "elsewhere"],
]
REPORTS = [  # (deflection, buttons) of each report since the last step; "NaN" is one of its own
    *[[(0.0, 0)]] * 6,
    *[[(0.5, 0)]] * 4,
    [(1.0, 0)],
    [(-0.3, 0)],
    [(0.1, 0)],
    [(0.14, 0)],
    [(0.0, AUTHORITY)],
    [(0.0, AUTHORITY)],
    [(0.0, GRIP)],
    [(0.5, GRIP)],
    [(0.5, GRIP | AUTHORITY)],
    [(0.0, AUTHORITY), (0.0, 0), (0.0, AUTHORITY)],
    [(0.0, GRIP), (0.0, 0), (0.0, GRIP), (0.0, 0)],
    [(0.5, 0), (0.0, 0)],
    [(0.0, 0), (0.9, 0)],
    ["NaN"],
    ["NaN", (0.5, 0)],
    [(0.5, 0), "NaN"],
    [],
    [],
]
DEPLOY, DEMONSTRATE = Event.START_DEPLOYMENT, Event.START_DEMONSTRATION
REQUESTS = [
    *[()] * 100,
    *[(event,) for event in Event],
    *[(DEPLOY,), (Event.RESUME,), (Event.CLEAR_FAULT,)] * 8,
    (Event.HOLD, Event.RESUME),
    (Event.RESUME, Event.HOLD),
    (Event.END_EPISODE, DEPLOY),
    (Event.ESTOP, Event.CLEAR_FAULT, Event.RESUME),
    (DEPLOY, Event.JOIN),
]
TICKS = [*["tick"] * 40, *["late"] * 4]
TICKS += ["none", "none but a pose", "skip", "silence", "foreign", "blind", "bad pose"]
DELAYS_S = (0.0, 0.0, 0.01, 0.15)  # of a report, from its receipt to the step
CLOCK_JUMPS_S = (0.0, 0.0, 0.0, 3600.0, -3600.0)  # of the senders' clock

KINDS = (ANSWERS, REPORTS, REQUESTS, TICKS)
STEP = st.tuples(*map(st.sampled_from, KINDS))
CONFIG = {
    "handback": ["button", "release", "deadman"],
    "on_device_lost": ["hold", "continue"],
    "lock_step": [False, True],
    "max_speed_m_s": [(1.0, 1.0, 1.0), (0.3, 0.1, 0.2)],
    "max_rate_rad_s": [(10.0, 10.0, 10.0), (0.5, 0.5, 2.0)],
    "max_step_m": [0.1, 0.004],
    "max_acceleration_m_s2": [0.0, 0.0, 2.0],
    "workspace_min_m": [(-np.inf,) * 3, (-np.inf,) * 3, (-0.3, -0.3, -0.3)],
    "operator_frame": ["base", "base", "camera", "tool"],
    "camera_rotation": [(0.0, 0.6, 0.0, 0.8)],
    "gripper_mode": ["toggle", "hold"],
    "linear_scale_m_s": [1.0, 0.25],
    "min_dwell_s": [0.0, 0.25, 1.0],
    "release_after_s": [0.1, 0.5],
    "max_policy_failures": [1, 3],
}
CONFIGS = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CONFIG.items()})


class World:
    """Feeds an arbiter and knows, on its own, what a decision may have come from."""

    def __init__(self, config: ArbiterConfig):
        self.config, self.arbiter = config, Arbiter(config)
        self.now_s, self.episodes = 50.0, 0
        self.episode_id = ""  # of the episode that the arbiter was told to act in
        self.waiting: list[Event] = []  # starts that wait for their first tick
        self.demonstration = False
        self.sequence = -1
        self.last: Decision | None = None
        self.plan: PolicyCommand | None = None  # the answer that steps may come from
        self.valid: HumanSample | None = None  # the last report that could be executed
        self.before: HumanSample | None = None  # the same, when this step began
        self.broken = False  # a later one could not
        self.trusted = False  # seen at rest since it was silent or broken
        self.could_take_over = False  # it was, at some report of this step
        self.handed_back_s = -np.inf
        self.gripper = -1.0  # of the robot
        self.pose: np.ndarray | None = None  # of the hand, as this step is told

    # What goes in

    def step(self, answer, reports, requests, kind) -> None:
        self.now_s += 0.3 if kind == "silence" else PERIOD_S
        starts = [e for e in requests if e in (DEPLOY, DEMONSTRATE)]
        tick = None if kind.startswith("none") else self._tick(kind, bool(starts))
        self.pose = tick.eef_pose if tick else self._pose("blind" if kind == "none" else kind)
        policy = self._policy(answer, tick)
        samples = [self._sample(report) for report in reports if kind != "silence"]
        before = self._before()
        # The last decision was not executed: the gripper stands where it stood.
        lags = kind == "late" and self._belongs(tick) and before[0] is not Authority.HUMAN

        ready = tick is None or self.arbiter.ready(self.now_s, tick, policy, samples, requests)
        assert self._before() == before, "ready() changed something"
        decision = self.arbiter.step(
            self.now_s, tick, policy, samples, requests, None if tick else self.pose
        )

        began = self._episode(tick, requests)
        self.before = self.valid
        self.gripper = self.gripper if tick is None else float(tick.applied_action[GRIPPER])
        self._device(samples)
        if policy is not None and self._belongs(tick):
            asked = (tick.episode_id, tick.sequence, decision.epoch)
            if (policy.episode_id, policy.sequence, policy.epoch) == asked:
                self.plan = policy
        self._check(decision, tick, samples, requests, before, began, lags)
        waited = decision.reason in (Reason.POLICY_LATE, Reason.POLICY_GONE)
        assert waited or ready, "ready() waits for an answer that nobody needs"
        assert not (ready and decision.reason is Reason.POLICY_LATE)
        if self._belongs(tick) and decision.label != POLICY:
            self.plan = None  # late, refused or flushed: nothing of it may come later
        self.last = decision

    def _before(self):
        arbiter = self.arbiter
        known = arbiter.authority, arbiter.reason, arbiter.epoch, arbiter.armed, arbiter.sequence
        return *known, sum(arbiter.counts.values()), arbiter.device_live(self.now_s)

    def _tick(self, kind, starts) -> Tick:
        executed = self.last is not None and kind != "late"
        gripper = float(self.last.action[GRIPPER]) if executed else self.gripper
        if kind == "foreign" and not starts and not self.waiting:
            stands = np.array([0, 0, 0, 0, 0, 0, self.gripper], np.float32)
            return Tick("another episode", 3, 0, applied_action=stands, policy_due=True)
        if starts or self.waiting:
            self.episodes += 1
            # Now and then the arbiter meets an episode that runs already.
            self.sequence = 20 if self.episodes % 7 == 0 else -1
            gripper = -1 + self.episodes % 3
        self.sequence += 2 if kind == "skip" and self.sequence >= 0 else 1
        echo = {} if self.last is None else {"epoch": self.last.epoch}
        echo["eef_pose"] = self._pose(kind)
        if self.episodes % 14 == 0:
            echo["authority"] = Authority.FAULT
        return Tick(
            f"ep{self.episodes}",
            self.sequence,
            self._stamp_ns(),
            applied=Applied.APPLIED if executed else Applied.LATE_HELD,
            applied_action=np.array([0, 0, 0, 0, 0, 0, gripper], np.float32),
            policy_due=True,
            **(echo if self.sequence else {"eef_pose": echo["eef_pose"]}),
        )

    def _rng(self, what: int):
        return np.random.default_rng([round(self.now_s * 1000), what])

    def _stamp_ns(self) -> int:
        return round((self.now_s + self._rng(1).choice(CLOCK_JUMPS_S)) * 1e9)

    def _pose(self, kind) -> np.ndarray | None:
        rng = self._rng(2)
        pose = np.r_[rng.uniform(-0.4, 0.4, 3), rng.normal(size=4)]
        if kind == "bad pose":
            pose[rng.integers(7)] = np.nan
        return None if kind == "blind" else pose

    def _policy(self, kind, tick) -> PolicyCommand | None:
        if kind == "late" or tick is None:
            return None
        rng = np.random.default_rng(round(self.now_s * 1000))
        actions = rng.uniform(-1.5, 1.5, (4 if kind == "chunk" else 1, 7)).astype(np.float32)
        if kind == "NaN":
            actions[0, rng.integers(7)] = rng.choice([np.nan, np.inf, -np.inf])
        elif kind == "huge":
            actions *= 1e38
        elif kind == "overflow":
            actions = actions.astype(np.float64) * 1e200
        elif kind == "short":
            actions = actions[:, :6]
        elif kind == "empty":
            actions = actions[:0]
        elif kind == "flat":
            actions = actions[0]
        command = PolicyCommand(tick.episode_id, tick.sequence, tick.epoch, "v1", actions)
        if kind == "old epoch":
            return replace(command, epoch=tick.epoch - 1)
        if kind == "old tick":
            return replace(command, sequence=tick.sequence - 1)
        return replace(command, episode_id="elsewhere") if kind == "elsewhere" else command

    def _sample(self, report) -> HumanSample:
        deflection, buttons = (np.nan, 0) if report == "NaN" else report
        axes = np.array([deflection, 0, 0, 0, 0, deflection / 2], np.float32)
        pressed = int(bool(buttons & GRIP)), int(bool(buttons & AUTHORITY))
        twist = axes.astype(np.float64) * [1, 1, 1, 10, 10, 10]
        received_s = self.now_s - self._rng(3).choice(DELAYS_S)
        return HumanSample(axes, pressed, twist, received_s, self._stamp_ns())

    # What is known about it

    def _episode(self, tick, requests) -> bool:
        """Follow the requests; returns whether an episode began in this step."""
        began = False
        if tick is not None:
            requests, self.waiting = [*self.waiting, *requests], []
        for event in requests:
            if event in (Event.END_EPISODE, Event.TIME_RESET):
                self.episode_id, self.waiting = "", []
            elif event in (DEPLOY, DEMONSTRATE) and tick is None:
                self.waiting.append(event)
            elif event in (DEPLOY, DEMONSTRATE):
                began = True
                self.episode_id, self.demonstration = tick.episode_id, event is DEMONSTRATE
                self.handed_back_s, self.plan = -np.inf, None
        return began

    def _device(self, samples) -> None:
        self.could_take_over = False
        for sample in samples:
            if not np.isfinite(sample.axes).all():
                self.broken, self.trusted = True, False
                continue
            if self.valid is None or self._silent(self.valid, sample.received_s):
                self.trusted = False
            self.valid, self.broken = sample, False
            if np.abs(sample.axes).max() < self.config.release_threshold:
                self.trusted = True
            self.could_take_over |= self.trusted

    def _silent(self, sample, at_s=None) -> bool:
        silence_s = (self.now_s if at_s is None else at_s) - sample.received_s
        return not self.config.lock_step and silence_s > self.config.device_timeout_s

    # What always holds

    def _check(self, decision, tick, samples, requests, before, began, lags) -> None:
        was, _, epoch, armed, _, _, live = before
        self._check_numbers(decision, tick)
        self._check_label(decision, tick)
        self._check_source_of_motion(decision, tick)
        self._check_gripper(decision, samples, began, lags)
        self._check_latch(decision, was, requests)
        self._check_hands(decision, was, epoch, began)
        deflected = [s for s in samples if not any(s.buttons) and np.abs(s.axes).max() >= 0.2]
        alone = len(samples) == len(deflected) == 1 and not requests and not began
        if alone and armed and live and was is not Authority.FAULT:
            assert decision.authority is Authority.HUMAN, "a human was not let at the arm"
            acts = self._pose_is_usable()
            assert decision.requested.size == (7 if acts else 0)
            assert decision.label == (HUMAN if self._belongs(tick) and acts else NONE)

    def _belongs(self, tick) -> bool:
        return tick is not None and tick.episode_id == self.episode_id

    def _pose_is_usable(self) -> bool:
        """Whether nothing needs a pose, or there is one."""
        needed = np.isfinite(self.config.workspace_min_m).any()
        needed |= self.arbiter.authority is Authority.HUMAN and self.config.operator_frame == "tool"
        pose = self.pose
        return not needed or (pose is not None and bool(np.isfinite(pose).all()))

    def _check_numbers(self, decision, tick) -> None:
        action, config = decision.action.astype(np.float64), self.config
        assert action.shape == (7,) and decision.action.dtype == np.float32
        assert np.isfinite(action).all() and abs(action[GRIPPER]) <= 1
        scale, near = config.linear_scale_m_s, 1 + 1e-6
        assert np.all(np.abs(action[:3]) * scale <= np.array(config.max_speed_m_s) * near)
        assert np.all(np.abs(action[3:6]) * 10 <= np.array(config.max_rate_rad_s) * near)
        assert np.abs(action).max() <= near
        assert np.linalg.norm(action[:3]) * scale * PERIOD_S <= config.max_step_m * near
        low = np.array(config.workspace_min_m)
        if action[:3].any() and np.isfinite(low).any():
            at = self.pose[:3]
            reached = at + action[:3] * scale * PERIOD_S
            assert np.all((reached >= low - 1e-6) | (reached >= at))
        elif action[:3].any() and config.max_acceleration_m_s2:  # the wall bends the direction
            before = np.zeros(6) if self.last is None else self.last.action[:6].astype(np.float64)
            speed = np.linalg.norm(action[:3])
            had = max(np.dot(action[:3], before[:3]) / speed, 0.0)
            assert (speed - had) * scale <= config.max_acceleration_m_s2 * PERIOD_S + 1e-5
        assert np.isfinite(decision.requested).all()
        if decision.requested.size and not decision.limited:
            assert decision.action.tobytes() == decision.requested.tobytes()

    def _check_label(self, decision, tick) -> None:
        """One label and one reason, and they say the same."""
        acting = {
            POLICY: (Authority.POLICY, {Reason.POLICY_ACTS}),
            HUMAN: (
                Authority.HUMAN,
                {Reason.CAP_MOVED, Reason.BUTTON_TAKEOVER, Reason.HUMAN_ACTS},
            ),
        }
        assert decision.label in (POLICY, HUMAN, NONE)
        assert decision.reason.sentence
        if decision.label == NONE:
            assert decision.reason is not Reason.POLICY_ACTS
            assert decision.reason not in acting[HUMAN][1] or not self._belongs(tick)
        else:
            authority, reasons = acting[decision.label]
            assert decision.authority is authority and decision.reason in reasons
            assert self._belongs(tick)
        assert bool(decision.policy_version) == (decision.label == POLICY)
        if tick is not None:
            assert (decision.episode_id, decision.sequence) == (tick.episode_id, tick.sequence)
        if decision.authority is Authority.POLICY:
            assert self.episode_id and not self.demonstration
        else:
            assert not decision.policy_due

    def _check_source_of_motion(self, decision, tick) -> None:
        """What moves the arm is this tick's policy action, or a live human's last report."""
        if decision.authority is Authority.HUMAN:
            if not decision.requested.size and self.broken:
                assert decision.reason is Reason.DEVICE_INVALID
            elif not decision.requested.size:
                assert decision.reason is Reason.POSE_UNKNOWN and not self._pose_is_usable()
            else:
                assert not self.broken and not self._silent(self.valid)
                scale = [self.config.linear_scale_m_s] * 3 + [self.config.angular_scale_rad_s] * 3
                asked = self._in_base(self.valid.twist) / scale
                assert np.allclose(decision.requested[:6], asked, atol=1e-6)
        elif decision.label == POLICY:
            plan = self.plan
            assert plan is not None and plan.epoch == decision.epoch
            assert plan.episode_id == tick.episode_id
            planned = np.asarray(plan.actions[tick.sequence - plan.sequence], np.float32)
            assert decision.requested.tobytes() == planned.tobytes()
        else:
            assert not decision.requested.size
        if decision.reason is Reason.POSE_UNKNOWN:
            assert not self._pose_is_usable()
        if not decision.requested.size:
            assert not decision.action[:GRIPPER].any() and decision.label == NONE

    def _in_base(self, twist) -> np.ndarray:
        """The operator's twist as scipy turns it."""
        frames = {"camera": self.config.camera_rotation}
        if self.config.operator_frame == "tool":
            frames["tool"] = self.pose[3:]
        if self.config.operator_frame not in frames:
            return twist
        turn = Rotation.from_quat(frames[self.config.operator_frame])
        return np.r_[turn.apply(twist[:3]), turn.apply(twist[3:])]

    def _check_gripper(self, decision, samples, began, lags) -> None:
        """It stays where it is unless the policy moves it or the human moves its button."""
        known = [*samples, self.before] if self.config.gripper_mode == "hold" else samples
        moved = any(sample.buttons[0] for sample in known if sample is not None)
        if self.last is None or decision.label == POLICY or moved or began:
            return
        stood = self.gripper if lags else self.last.action[GRIPPER]
        assert decision.action[GRIPPER] == stood

    def _check_latch(self, decision, was, requests) -> None:
        if was is Authority.FAULT and Event.CLEAR_FAULT not in requests:
            assert decision.authority is Authority.FAULT
        if requests and requests[-1] in (Event.ESTOP, Event.SECOND_ARBITER):
            assert decision.authority is Authority.FAULT

    def _check_hands(self, decision, was, epoch, began) -> None:
        if not began:
            assert decision.epoch >= epoch
            assert decision.epoch > epoch or decision.authority is was
        if decision.authority is Authority.HUMAN and was is not Authority.HUMAN:
            assert self.could_take_over, "a device that was not seen at rest took over"
        if decision.reason in (Reason.HANDED_BACK, Reason.LET_GO) and decision.epoch > epoch:
            assert self.now_s - self.handed_back_s >= self.config.min_dwell_s - 1e-9
        if was is Authority.HUMAN and decision.authority is not Authority.HUMAN and not began:
            self.handed_back_s = self.now_s


def run(config, steps) -> set:
    """Labels, authorities and reasons of the decisions."""
    world, seen = World(ArbiterConfig(**config)), set()
    world.step("late", [(0.0, 0)], (DEPLOY,), "tick")
    for step in steps:
        world.step(*step)
        seen |= {world.last.label, world.last.authority.name, world.last.reason}
    return seen


def drawn(draw: random.Random, steps: int):
    """Steps in which the device often goes on as it was: a hand is slower than a tick."""
    reports = REPORTS[0]
    for _ in range(steps):
        answer, drawn_reports, requests, tick = (draw.choice(kinds) for kinds in KINDS)
        reports = drawn_reports if draw.random() < 0.4 else reports
        yield answer, reports, requests, tick


def test_whatever_comes_in_for_long_every_decision_keeps_the_promises():
    seen = set()
    for seed in range(60):
        draw = random.Random(seed)
        config = {name: draw.choice(values) for name, values in CONFIG.items()}
        seen |= run(config, drawn(draw, 400))
    everything = {POLICY, HUMAN, NONE, *(authority.name for authority in Authority), *Reason}
    assert everything - seen == set(), "the steps above do not try everything any more"


@settings(max_examples=300, deadline=None)
@given(CONFIGS, st.lists(STEP, max_size=40))
def test_whatever_comes_in_every_decision_keeps_the_promises(config, steps):
    run(config, steps)
