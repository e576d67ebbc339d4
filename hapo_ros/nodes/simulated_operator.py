"""The simulated operator: runs episodes as a person would, through the device's two topics.

It alone sees the simulator's privileged state. What it does is ``hapo_ros.sim.operator``. Started
again after a crash it goes on with the seeds that were not used; only takeovers are counted anew.
"""

from dataclasses import fields, replace

import numpy as np
from geometry_msgs.msg import TwistStamped
from sensor_msgs.msg import Joy

from hapo_ros import topics
from hapo_ros.arbitration import Authority
from hapo_ros.episodes import messages
from hapo_ros.msg import EpisodeState, ObservationTick, StateVector
from hapo_ros.nodes.common import COMMAND, LATCHED, RECORD, FatalError, HapoNode, run
from hapo_ros.nodes.joining import TickJoiner
from hapo_ros.parameters import PARAMETERS
from hapo_ros.sim.operator import EndEpisode as End
from hapo_ros.sim.operator import OperatorConfig, OperatorOutput, SimulatedOperator
from hapo_ros.sim.tasks import get_task
from hapo_ros.srv import DiscardEpisode, EndEpisode, StartEpisode

_AT_REST = OperatorOutput(np.zeros(6, np.float32), (0, 0), np.zeros(6))
_REPORT_S = 0.05  # in real time a device reports all the time, at rest too
_RETRY_S = 0.5
_REPLY_S = 10.0


class SimulatedOperatorNode(HapoNode):
    """Starts an episode, watches, takes over, ends it, starts the next."""

    def __init__(self):
        super().__init__("simulated_operator", PARAMETERS["simulated_operator"])
        own = self.parameters
        try:
            self._task = get_task(own.task)
            names = {field.name for field in fields(OperatorConfig)} & set(vars(own))
            self._config = OperatorConfig(**{name: getattr(own, name) for name in names})
        except ValueError as error:
            raise FatalError(f"{error} The operator does not start.") from error
        self._done = 0  # episodes
        self._takeovers = 0
        self._resuming = self.after_crash  # until the recorder has said how far it had come
        self._orphan = ""  # id of the episode in which it crashed
        self._had_arm = False
        self._operator: SimulatedOperator | None = None
        self._episode_id = ""
        self._seen_running = ""  # id of the episode that the recorder last said is running
        self._report = _AT_REST  # what the device is to show
        self._shown, self._shown_ns = _AT_REST, 0  # what it last showed, and its stamp
        self._request = None  # (future, deadline)
        self._next_start_s = 0.0
        self._start_deadline_s = self.now_s() + own.start_timeout_s

        # In real time it may see a little late; it must not stop seeing where the machine is busy.
        self._joiner = TickJoiner([topics.PRIVILEGED_STATE], ticks=1 if own.lock_step else 30)
        self._device = {
            topics.JOY: self.create_publisher(Joy, topics.JOY, COMMAND),
            topics.TWIST: self.create_publisher(TwistStamped, topics.TWIST, COMMAND),
        }
        self.create_subscription(StateVector, topics.PRIVILEGED_STATE, self._on_privileged, RECORD)
        self.create_subscription(ObservationTick, topics.OBSERVATION_TICK, self._on_tick, RECORD)
        self.create_subscription(EpisodeState, topics.EPISODE_STATE, self._on_episode, LATCHED)
        self._start = self.create_client(StartEpisode, topics.START_EPISODE)
        self._end = self.create_client(EndEpisode, topics.END_EPISODE)
        self._discard = self.create_client(DiscardEpisode, topics.DISCARD_EPISODE)
        self.every(0.05, self._go_on)
        if not own.lock_step:
            self.every(_REPORT_S, lambda: self._publish_report(self.ros_now_ns()))

    def _seed(self) -> int:
        return self.parameters.first_seed + self._done

    # Episodes

    def _go_on(self) -> None:
        """Start the next episode when none runs; give up when that takes too long."""
        now = self.now_s()
        if self._request is not None:
            if now > self._request[1]:
                raise FatalError("The recorder does not answer. The operator stops. See its log.")
            return
        if self._operator is not None or now < self._next_start_s:
            return
        if now > self._start_deadline_s:
            raise FatalError(
                f"No episode could be started for {self.parameters.start_timeout_s:g} s. The "
                "operator stops. The log of recorder and operator says what was missing."
            )
        self._next_start_s = now + _RETRY_S
        if self._resuming:
            return
        if self._orphan:
            self._discard_orphan()
            return
        matched = all(
            publisher.get_subscription_count() >= self.parameters.readers
            for publisher in self._device.values()
        )
        if not matched or not self._start.service_is_ready():
            return
        request = StartEpisode.Request(
            task=self._task.name, source=self.parameters.source, seed=self._seed()
        )
        self._call(self._start, request, self._on_started)

    def _call(self, client, request, on_reply) -> None:
        future = client.call_async(request)
        self._request = (future, self.now_s() + _REPLY_S)
        future.add_done_callback(lambda done: self._on_reply(done, on_reply))

    def _on_reply(self, future, on_reply) -> None:
        if self._request is not None and self._request[0] is future:
            self._request = None
            on_reply(future.result())

    def _on_started(self, reply) -> None:
        if not reply.ok:
            self.get_logger().warning(reply.text, throttle_duration_sec=5.0)
            # In lock-step it reports once a tick, and its last report may be of a deflected cap:
            # where a fault is why nothing starts, that could never be cleared.
            if self._shown.axes.any():
                self._publish_report(self._shown_ns + 1)  # time stands still without ticks
            return
        self._episode_id, self._had_arm = reply.episode_id, False
        self._operator = SimulatedOperator(
            self._task, self._config, self._seed(), self.parameters.source
        )
        self._answer_if_complete()

    def _resume(self, last: EpisodeState) -> None:
        """Go on after the one that crashed: what it knew of its episode is lost."""
        self._resuming = False
        used = last.seed - self.parameters.first_seed + 1
        if not last.episode_id or not 0 < used <= self.parameters.episodes:
            return  # no episode of its
        self.get_logger().warning(
            f"Started again after a crash in or after episode {last.episode_id}. Going on with the "
            "next seed; takeovers are counted from here."
        )
        self._done = used
        if last.state == EpisodeState.RUNNING:
            self._orphan = last.episode_id
        else:
            self._finish_if_done()

    def _discard_orphan(self) -> None:
        if self._discard.service_is_ready():
            request = DiscardEpisode.Request(
                episode_id=self._orphan, reason="The simulated operator crashed in it."
            )
            self._call(self._discard, request, self._on_discarded)

    def _on_discarded(self, reply) -> None:
        self.get_logger().info(reply.text)
        self._orphan, self._next_start_s = "", 0.0
        self._finish_if_done()

    def _on_episode(self, message: EpisodeState) -> None:
        if self._resuming:
            self._resume(message)
        if message.state == EpisodeState.RUNNING:
            self._seen_running = message.episode_id
            return
        if self._operator is None:
            return
        if message.state == EpisodeState.IDLE:  # a restarted recorder knows no episode
            lost = self._seen_running == self._episode_id
        else:  # while we wait for the reply to our own request, that tells more
            lost = message.episode_id == self._episode_id and self._request is None
        if lost and message.state != EpisodeState.CLOSING:
            self._request = None
            self.get_logger().error(
                f"Episode {self._episode_id} was ended by someone else. {message.text}".rstrip()
            )
            self._close_episode()

    def _on_ended(self, reply) -> None:
        if reply.ok:
            self.get_logger().info(reply.text)
        else:
            self.get_logger().error(reply.text)
        self._close_episode()

    def _close_episode(self) -> None:
        self._operator, self._episode_id, self._report = None, "", _AT_REST
        self._done += 1
        self._next_start_s = 0.0
        self._start_deadline_s = self.now_s() + self.parameters.start_timeout_s
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        wanted = self.parameters.takeovers
        if self._done >= self.parameters.episodes or 0 < wanted <= self._takeovers:
            self.get_logger().info(
                f"{self._done} episodes with {self._takeovers} takeovers are done."
            )
            self.finished = True

    # The device

    def _on_privileged(self, message: StateVector) -> None:
        self._joiner.add(topics.PRIVILEGED_STATE, message)
        self._answer_if_complete()

    def _on_tick(self, message: ObservationTick) -> None:
        try:
            self._joiner.add_tick(message)
        except ValueError as error:
            self.get_logger().error(f"Tick {message.sequence} cannot be answered: {error}.")
            return
        self._answer_if_complete()

    def _answer_if_complete(self) -> None:
        if self._operator is None or self._joiner.tick_episode_id != self._episode_id:
            return
        complete = self._joiner.take()
        if complete is None or self._request is not None:
            return
        message, parts = complete
        if message.episode_id != self._episode_id:
            return
        tick = messages.tick_from(message)
        has_arm = tick.authority is Authority.HUMAN
        self._takeovers += has_arm and not self._had_arm
        self._had_arm = has_arm
        scene = messages.state_vector_from(parts[topics.PRIVILEGED_STATE])
        # It judges by what it sees: a robot's ticks know no success.
        answer = self._operator.act(replace(tick, success=scene["success"] > 0), scene)
        if isinstance(answer, End):
            self._report = _AT_REST
            request = EndEpisode.Request(
                episode_id=self._episode_id,
                outcome=answer.outcome,
                note=answer.note,
                unresolved=answer.unresolved,
                last_sequence=tick.sequence,
            )
            self._call(self._end, request, self._on_ended)
            return
        self._report = answer
        self._publish_report(tick.stamp_ns if self.parameters.lock_step else self.ros_now_ns())

    def _publish_report(self, stamp_ns: int) -> None:
        report = self._report
        self._shown, self._shown_ns = report, stamp_ns
        built = messages.operator_messages(
            self.types, report.axes, report.buttons, report.twist, stamp_ns
        )
        for topic, message in built.items():
            self._device[topic].publish(message)


def main(argv=None) -> int:
    return run(SimulatedOperatorNode, argv)
