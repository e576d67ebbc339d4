"""The arbiter node: one decision a tick, from ticks, policy answers and the operator's device.

The decision itself is ``hapo_ros.arbitration``; this file only says when there is enough to decide.
"""

import time
from collections import OrderedDict
from dataclasses import replace

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from sensor_msgs.msg import Joy
from std_msgs.msg import Bool

from hapo_ros import topics
from hapo_ros.arbitration import (
    Arbiter,
    ArbiterConfig,
    Authority,
    Event,
    HumanSample,
    Reason,
)
from hapo_ros.arbitration.answers import Answers
from hapo_ros.episodes import messages
from hapo_ros.msg import (
    AuthorityStatus,
    EpisodeState,
    ExecutedAction,
    ObservationTick,
    PolicyAction,
)
from hapo_ros.nodes.common import (
    COMMAND,
    LATCHED,
    RECORD,
    SENSOR,
    STATUS,
    FatalError,
    HapoNode,
    RunOver,
    run,
)
from hapo_ros.nodes.polling import OnlySpeaker, WatchedWhile, received
from hapo_ros.parameters import PARAMETERS
from hapo_ros.srv import RequestAuthority

_LATCHED, _PRESSED = "fault", "estop"  # words that outlast a crash
_UNREADABLE = np.zeros(0)
_STATES_WITHOUT_EPISODE = (
    EpisodeState.IDLE,
    EpisodeState.CLOSING,
    EpisodeState.FINISHED,
)


class ArbiterNode(HapoNode):
    """Collects the inputs of a tick, asks the core, publishes the decision."""

    def __init__(self):
        super().__init__("arbiter", PARAMETERS["arbiter"])
        own = vars(self.parameters)
        try:
            self.core = Arbiter(
                ArbiterConfig(**{k: v for k, v in own.items() if hasattr(ArbiterConfig, k)})
            )
        except ValueError as error:
            raise FatalError(f"{error}. The arbiter does not start. Mend config/.") from error
        self._episode = None  # EpisodeState RUNNING, or None
        self._tick = None  # the tick to decide
        self._decided = ("", -1)  # episode and sequence of the last tick that was decided
        self._tick_received_s = self._awaited_since_s = self._device_taken_s = self.now_s()
        self._answers = Answers()
        self._samples = []
        self._devices: OrderedDict[int, dict] = OrderedDict()  # stamp -> Joy and Twist
        self._events = []
        self._labels = [0, 0, 0, 0]
        self._announced = None  # authority and reason last logged
        self._poses: OrderedDict[int, object] = OrderedDict()  # stamp -> PoseStamped
        self._pose_received_s = -float("inf")  # of the newest
        self._sent_m = np.zeros(3)  # how far the hand was sent since then
        self._newest_stamp_ns = 0  # of the ticks
        self._estop_is_pressed = False
        self._other_commanders = ""

        self._executed = self.create_publisher(ExecutedAction, topics.EXECUTED_ACTION, COMMAND)
        self._commander = OnlySpeaker(self, self._executed, _key)
        self._status = self.create_publisher(AuthorityStatus, topics.AUTHORITY_STATUS, STATUS)
        self.create_subscription(ObservationTick, topics.OBSERVATION_TICK, self._on_tick, RECORD)
        self.create_subscription(PolicyAction, topics.POLICY_ACTION, self._on_policy, RECORD)
        # A report that comes while no tick waits for a decision is in time for the next one.
        while_a_tick_waits = WatchedWhile(lambda: self._tick is not None)
        self._device = {
            topic: self.create_subscription(
                type_,
                topic,
                lambda message, topic=topic: self._on_device(topic, message, self.now_s()),
                RECORD,
                callback_group=while_a_tick_waits,
            )
            for topic, type_ in ((topics.JOY, Joy), (topics.TWIST, TwistStamped))
        }
        self.create_subscription(EpisodeState, topics.EPISODE_STATE, self._on_episode, LATCHED)
        if self.core.needs_pose:
            self.create_subscription(PoseStamped, topics.EEF_POSE, self._on_pose, RECORD)
        # An e-stop that is latched, one that is not, and one that is not even reliable.
        for qos in (LATCHED, 10, SENSOR):
            self.create_subscription(Bool, topics.ESTOP, self._on_estop, qos)
        self.create_service(RequestAuthority, topics.REQUEST_AUTHORITY, self._on_request)

        self.every(1.0 / self.parameters.status_hz, self._publish_status)
        self.every(self.parameters.control_period_s, self._watch)
        self.diagnose(self._diagnosis)
        self._go_on_from(self.word_left.split())
        if not self.parameters.lock_step:
            self._deadline = self.every(self.parameters.policy_deadline_s, self._on_deadline)
            self._deadline.cancel()

    def _go_on_from(self, words: list[str]) -> None:
        """Latch what the process before this one had latched when it was killed."""
        self._estop_is_pressed = _PRESSED in words
        if words:
            self._events.append(Event.ESTOP if words == [_PRESSED] else Event.JOIN_IN_FAULT)
            self._ask_core(None, None)

    def _remember(self) -> None:
        """Leave word of what has to outlast this process, however it ends."""
        words = [_LATCHED] * (self.core.authority is Authority.FAULT)
        words += [_PRESSED] * self._estop_is_pressed
        self.leave_word(" ".join(words))

    # Inputs

    def _on_episode(self, message: EpisodeState) -> None:
        if message.state == EpisodeState.RUNNING:
            if self._episode is None or self._episode.episode_id != message.episode_id:
                self._episode, self._labels = message, [0, 0, 0, 0]
                # Its first tick is due from now on.
                self._tick_received_s = self._awaited_since_s = self.now_s()
                start = message.source == "demonstration"
                self._events.append(Event.START_DEMONSTRATION if start else Event.START_DEPLOYMENT)
                if self.is_from_before(message):
                    self._events.append(Event.JOIN)  # it has begun without this arbiter
                self._decide_or_wait()
        elif message.state in _STATES_WITHOUT_EPISODE and self._episode is not None:
            self._episode, self._tick = None, None
            self._answers.clear()
            self._events.append(Event.END_EPISODE)
            if self.parameters.lock_step:  # the simulation waits, and its bag ends with its ticks
                self._ask_core(None, None)
                self._announce()
            else:
                self._step(None, None)  # the arm stops now, not when it is no longer told to go on
        elif message.state == EpisodeState.FAILED and self._episode is not None:
            # The robot goes on: a human who has the arm keeps it.
            self._events.append(Event.RECORDING_ENDED)
            self._decide_if_ready()

    def _on_estop(self, message: Bool) -> None:
        if message.data and not self._estop_is_pressed:
            self._events.append(Event.ESTOP)
        self._estop_is_pressed = message.data
        self._remember()
        self._decide_if_ready()  # a tick that waits for the policy does so no longer

    def _on_request(self, request, response):
        self._take_device()
        try:
            event = Event(request.event)
        except ValueError:
            event = None
        response.text = self._refusal(request.event, event)
        response.ok = not response.text
        if response.ok:
            self._events.append(event)
            response.text = f"{event.name.lower()} will be handled with the next tick."
            self._decide_if_ready()
        else:
            self.get_logger().warning(response.text)
        return response

    def _refusal(self, number: int, event: Event | None) -> str:
        """Why a request is not queued, as a sentence; empty if it is."""
        if event not in (Event.RESUME, Event.HOLD, Event.ESTOP, Event.CLEAR_FAULT):
            return f"{number} is no request of an operator."
        if event is Event.CLEAR_FAULT and self._estop_is_pressed:
            return f"{topics.ESTOP} is still pressed, as far as is known. Release it first."
        refusal = self.core.refusal(self._time_s(), event, self._events)
        return refusal.value if refusal else ""

    def _on_tick(self, message: ObservationTick) -> None:
        self._take_device()
        try:
            tick = messages.tick_from(message)
        except ValueError as error:
            self._refuse("ticks_refused", f"A tick was refused: {error}.")
            return
        if decision := self.core.decided(tick):
            self._publish(decision, tick.stamp_ns)  # it was sent again: so is the decision
            return
        if not self._is_timely("tick", tick.stamp_ns):
            return
        if tick.episode_id == self._decided[0] and tick.sequence <= self._decided[1]:
            self.core.counts["old_ticks"] += 1
            return
        waiting = self._tick
        if waiting is not None and waiting.episode_id == tick.episode_id:
            if tick.sequence < waiting.sequence:
                self.core.counts["old_ticks"] += 1
                return
            if tick.sequence > waiting.sequence:
                if not self._is_running(waiting):
                    return  # an episode begins with its first tick, once the recorder says so
                self._step(waiting, None)
        if tick.episode_id == self._decided[0]:
            self.core.counts["ticks_skipped"] += tick.sequence - self._decided[1] - 1
        self._tick = tick
        if self._is_running(tick):  # ticks of no episode are none: the human can go on
            self._tick_received_s = self._awaited_since_s = self.now_s()
        self._decide_or_wait()

    def _on_policy(self, message: PolicyAction) -> None:
        try:
            known = [self._decided]
            known += [(self._tick.episode_id, self._tick.sequence)] if self._tick else []
            kept = self._answers.add(messages.policy_command_from(message), known)
        except ValueError as error:
            self._refuse("policy_refused", f"A policy answer was refused: {error}.")
            return
        if not kept:
            self.core.counts["policy_answers_discarded"] += 1
        self._decide_if_ready()

    def _take_device(self) -> None:
        """Reports that have come while no tick waited, each received when it came."""
        now_s, before_s = self.now_s(), self._device_taken_s
        for topic, subscription in self._device.items():
            for message, at_ns in received(subscription):
                age_s = (time.time_ns() - at_ns) / 1e9
                # Whatever was done to the system's clock, it came after the last ones were taken.
                self._on_device(topic, message, min(max(now_s - age_s, before_s), now_s))
        self._device_taken_s = now_s

    def _on_device(self, topic: str, message, received_s: float) -> None:
        at = messages.message_stamp_ns(message)
        if not self._is_timely("device report", at):
            return
        pair = self._devices.setdefault(at, {})
        pair[topic] = message
        if len(pair) < 2:
            while len(self._devices) > RECORD.depth:  # one topic's are taken before the other's
                self._devices.popitem(last=False)
            return
        del self._devices[at]
        try:
            sample = messages.human_sample_from(pair[topics.JOY], pair[topics.TWIST], received_s)
            self._require_frame(pair[topics.TWIST])
        except ValueError as error:
            self.get_logger().warning(
                f"A device report was refused: {error}.", throttle_duration_sec=1.0
            )
            # The core counts it, and holds: the newest report cannot be executed.
            sample = HumanSample(_UNREADABLE, (), _UNREADABLE, received_s, at)
        self._samples.append(sample)
        self._decide_if_ready()

    def _require_frame(self, twist: TwistStamped) -> None:
        found, wanted = twist.header.frame_id, self.parameters.operator_frame_id
        if found != wanted:
            raise ValueError(
                f"its twist is in frame {found!r} and not in {wanted!r} (operator_frame_id)"
            )

    def _on_pose(self, message: PoseStamped) -> None:
        self._poses[messages.message_stamp_ns(message)] = message
        self._pose_received_s, self._sent_m = self.now_s(), np.zeros(3)
        while len(self._poses) > 20:
            self._poses.popitem(last=False)
        self._decide_if_ready()

    def _is_timely(self, what: str, stamp_ns: int) -> bool:
        """Whether a stamp can be true. In lock-step time is the ticks': it must not go back."""
        if self.parameters.lock_step:
            if what == "tick" and stamp_ns < self._newest_stamp_ns:
                self._events.append(Event.TIME_RESET)
            if what == "tick":
                self._newest_stamp_ns = stamp_ns
            return True
        away_s = (stamp_ns - self.ros_now_ns()) / 1e9
        if abs(away_s) <= self.parameters.stamp_tolerance_s:
            return True
        self._refuse(
            "stamps_refused",
            f"A {what} is stamped {away_s:+.1f} s from now (more than stamp_tolerance_s). It was "
            "refused. Synchronise the clocks of the machines.",
        )
        return False

    def _refuse(self, what: str, sentence: str) -> None:
        self.core.counts[what] += 1
        self.get_logger().warning(sentence, throttle_duration_sec=1.0)

    # Decisions

    def _time_s(self) -> float:
        """In lock-step, time is the tick: the same run has the same times."""
        if self.parameters.lock_step and self._tick is not None:
            return self._tick.sequence * self.parameters.control_period_s
        return self.now_s()

    def _is_running(self, tick) -> bool:
        """Whether a tick is of the running episode."""
        return self._episode is not None and tick.episode_id == self._episode.episode_id

    def _decide_or_wait(self) -> None:
        """Decide; in real time, at the policy's deadline at the latest."""
        if self._tick is None or not self._is_running(self._tick):
            return
        if not self._decide_if_ready() and not self.parameters.lock_step:
            self._deadline.reset()

    def _decide_if_ready(self) -> bool:
        tick = self._tick
        if tick is None or not self._is_running(tick):
            return False
        if self._executed.get_subscription_count() < self.parameters.readers:
            return False  # the first decision would be lost; the tick comes again
        if self.parameters.lock_step and not any(
            sample.stamp_ns == tick.stamp_ns for sample in self._samples
        ):
            return False
        policy = self._answers.to(tick)
        if self.core.needs_pose and self._with_pose(tick).eef_pose is None:
            return False
        arguments = (self._time_s(), self._with_pose(tick), policy, self._samples, self._events)
        if not self.core.ready(*arguments):
            return False
        self._step(tick, policy)
        return True

    def _with_pose(self, tick):
        """The tick with the hand's pose of its stamp, where it is needed and there."""
        message = self._poses.get(tick.stamp_ns)
        return tick if message is None else replace(tick, eef_pose=messages.pose_from(message))

    def _present_pose(self):
        """The hand's pose now, for a human who moves the arm without ticks; None if it is old.

        Where none has come since, as far on as it was sent: the workspace is not granted twice.
        """
        if self.now_s() - self._pose_received_s > self.parameters.tick_timeout_s:
            return None
        pose = messages.pose_from(next(reversed(self._poses.values())))
        pose[:3] += self._sent_m
        return pose

    def _on_deadline(self) -> None:
        self._deadline.cancel()
        tick = self._tick
        if tick is not None and self._is_running(tick) and not self._decide_if_ready():
            self._step(tick, self._answers.to(tick))

    def _watch(self) -> None:
        self._take_device()
        self._watch_commander()
        # In lock-step every step is a tick's. A fault has to be cleared where none come, too.
        between_episodes = self._episode is None and self.core.authority is Authority.FAULT
        if not self.parameters.lock_step or between_episodes:
            self._watch_ticks()
        self._watch_robot()

    def _watch_ticks(self) -> None:
        silence = self.now_s() - self._tick_received_s
        if silence > self.parameters.tick_timeout_s:
            self._step(None, None)

    def _watch_robot(self) -> None:
        """The robot's side does not come back by itself; a human who has the arm is left to it."""
        now = self.now_s()
        if self._episode is None or self.core.authority is Authority.HUMAN:
            self._awaited_since_s = now
        silence = now - self._awaited_since_s
        if silence > self.parameters.give_up_ticks_s:
            raise RunOver(
                f"Episode {self._episode.episode_id} has had no tick for {silence:.0f} s. The run "
                "ends, and what was recorded is kept. The robot's side hangs or was lost: look at "
                "the log of robosuite_bridge or observation_assembler, then start the deployment "
                "again."
            )

    def _stamp_ns(self) -> int:
        """Time of what is published now; in lock-step that of the newest tick."""
        return self._newest_stamp_ns if self.parameters.lock_step else self.ros_now_ns()

    def _ask_core(self, tick, policy):
        """The core's decision on everything that has come; what it refuses is told."""
        seen, pose = (None, self._present_pose()) if tick is None else (self._with_pose(tick), None)
        decision = self.core.step(self._time_s(), seen, policy, self._samples, self._events, pose)
        self._samples, self._events = [], []
        self._remember()
        for refusal in decision.refusals:
            self.get_logger().warning(refusal.value)
        return decision

    def _step(self, tick, policy) -> None:
        decision = self._ask_core(tick, policy)
        if tick is not None:
            self._tick, self._decided = None, (tick.episode_id, tick.sequence)
            self._labels[decision.label] += 1
            self._answers.decided(tick.sequence)
        if self.core.needs_pose:
            self._sent_m = self._sent_m + decision.action[:3] * self.core.config.step_m
        self._publish(decision, tick.stamp_ns if tick else self._stamp_ns(), tick is not None)
        self._announce()

    def _announce(self) -> None:
        """Tell of a new authority or reason."""
        authority, reason = self.core.authority, self.core.reason
        if (authority, reason) == self._announced:
            return
        self._announced = (authority, reason)
        self._publish_status()
        if reason not in (Reason.POLICY_ACTS, Reason.HUMAN_ACTS):
            sentence = f"[{authority.name}] {self._text()}"
            # rclpy ends a node that logs at two severities from one line.
            if authority in (Authority.POLICY, Authority.HUMAN):
                self.get_logger().info(sentence)
            else:
                self.get_logger().warning(sentence)

    def _publish(self, decision, stamp_ns: int, tick: bool = True) -> None:
        self._commander.publish(
            messages.executed_action_message(self.types, decision, stamp_ns, tick=tick)
        )

    def _watch_commander(self) -> None:
        if others := self._commander.others():
            self._events.append(Event.SECOND_ARBITER)
            self._other_commanders = others

    def _text(self) -> str:
        """The reason, as a sentence."""
        sentence = self.core.reason.sentence
        if self.core.reason is Reason.SECOND_ARBITER_SEEN:
            sentence += f" It is {self._other_commanders}."
        return sentence

    def _diagnosis(self):
        core = self.core
        levels = {Authority.FAULT: DiagnosticStatus.ERROR, Authority.HOLD: DiagnosticStatus.WARN}
        known = {
            "authority": core.authority.name,
            "episode": self._episode.episode_id if self._episode else "",
            "device_live": core.device_live(self._time_s()),
            "device_armed": core.armed,
            "estop_pressed": self._estop_is_pressed,
            "takeovers": core.takeovers,
        }
        level = levels.get(core.authority, DiagnosticStatus.OK)
        return level, self._text(), known | dict(core.counts)

    def _publish_status(self) -> None:
        core = self.core
        if core.authority is Authority.POLICY and not core.device_live(self._time_s()):
            self.get_logger().warning(
                "No device reports, so no one can take over from the policy.",
                throttle_duration_sec=10.0,
            )
        self._status.publish(
            messages.authority_status_message(
                self.types,
                self._stamp_ns(),
                core.authority,
                core.reason,
                episode_id=self._episode.episode_id if self._episode else "",
                sequence=max(core.sequence, 0),
                epoch=core.epoch,
                device_live=core.device_live(self._time_s()),
                device_armed=core.armed,
                takeovers=core.takeovers,
                labels=self._labels,
                text=self._text(),
            )
        )

    def shut_down(self) -> None:
        """Leave the robot with a last hold, whatever was asked for."""
        decision = self.core.step(self.now_s(), None, events=[Event.END_EPISODE])
        self._publish(decision, self._stamp_ns(), tick=False)
        self._publish_status()
        self.until_heard(self._executed, self._status)


def _key(message: ExecutedAction):
    """What tells one decision from another."""
    stamp = messages.message_stamp_ns(message)
    return stamp, message.sequence, message.tick, message.authority, message.action.tobytes()


def main(argv=None) -> int:
    return run(ArbiterNode, argv)
