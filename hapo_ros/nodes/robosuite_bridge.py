"""The simulated robot: ticks with images and states out, executed actions in.

Lock-step: time is tick x control period on /clock; the next tick follows the decision. Real time:
a tick every period; a decision that is not there by the next one is too late and the robot holds.
"""

from collections import Counter

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from hapo_ros import topics
from hapo_ros.arbitration import Applied, Tick
from hapo_ros.arbitration.limits import hold, valid_action
from hapo_ros.episodes import messages
from hapo_ros.msg import EpisodeState, ExecutedAction, ObservationTick, StateVector
from hapo_ros.nodes.common import IMAGES, LATCHED, RECORD, FatalError, HapoNode, run
from hapo_ros.parameters import PARAMETERS
from hapo_ros.sim.environment import Simulation, action_space
from hapo_ros.sim.tasks import get_task

RESEND_S = 1.0


class RobosuiteBridge(HapoNode):
    """One robosuite task on the graph."""

    def __init__(self):
        super().__init__("robosuite_bridge", PARAMETERS["robosuite_bridge"])
        own = self.parameters
        cameras = tuple(camera for camera in own.cameras if camera)
        try:
            self._task = get_task(own.task)
            self._simulation = Simulation(self._task, own.image_size, cameras)
        except (ValueError, RuntimeError) as error:
            raise FatalError(f"{error} The simulation does not start.") from error
        self._state_names = self._task.object_state if own.object_state else ()
        self._episode_id = ""  # of the running episode
        self._tick = None  # the tick that waits for its decision
        self._decision = None  # the decision for that tick
        self._known = None  # the last decision that arrived in this episode, even if too late
        self._outgoing = []  # (publisher, message) of that tick, to send again
        self._sent_s = self._tick_began_s = self.now_s()
        self._ticks_done = 0  # over all episodes, for /clock
        self._outcomes = Counter({each: 0 for each in Applied})  # of all decisions
        self._held = 0  # late and refused ones, when last diagnosed

        self._image_publishers = {
            topics.image(camera): self.create_publisher(Image, topics.image(camera), IMAGES)
            for camera in cameras
        }
        self._publishers_by_topic = self._image_publishers | {
            topics.JOINT_STATE: self.create_publisher(JointState, topics.JOINT_STATE, RECORD),
            topics.EEF_POSE: self.create_publisher(PoseStamped, topics.EEF_POSE, RECORD),
            topics.OBSERVATION_TICK: self.create_publisher(
                ObservationTick, topics.OBSERVATION_TICK, RECORD
            ),
        }
        if self._state_names:
            self._publishers_by_topic[topics.OBJECT_STATE] = self.create_publisher(
                StateVector, topics.OBJECT_STATE, RECORD
            )
        self._privileged = self.create_publisher(StateVector, topics.PRIVILEGED_STATE, RECORD)
        self._clock_publisher = self.create_publisher(ClockMessage, "/clock", RECORD)
        self._info = self.create_publisher(String, topics.OBSERVATION_INFO, LATCHED)
        self.publish_info(
            self._info,
            {
                "task": self._task.name,
                "instruction": self._task.instruction,
                "cameras": {camera: [own.image_size, own.image_size] for camera in cameras},
                "object_state": list(self._state_names),
                "action_space": action_space(),
            },
        )
        self.create_subscription(ExecutedAction, topics.EXECUTED_ACTION, self._on_decision, RECORD)
        self.create_subscription(EpisodeState, topics.EPISODE_STATE, self._on_episode, LATCHED)
        period = 0.05 if own.lock_step else own.control_period_s
        self.every(period, self._watch if own.lock_step else self._on_period)
        # The executor serves timers before messages: a decision that is there already must count.
        self._after_messages = self.every(0.001, self._on_period_over)
        self._after_messages.cancel()
        self.diagnose(self._diagnosis)

    # Episodes

    def _on_episode(self, message: EpisodeState) -> None:
        if message.state == EpisodeState.FAILED:
            return  # what ended is the recording: a human who has the arm goes on
        if message.state != EpisodeState.RUNNING:
            # IDLE: a restarted recorder, whatever was running when it was killed.
            if message.state == EpisodeState.IDLE or message.episode_id == self._episode_id:
                self._episode_id, self._tick, self._decision = "", None, None
            return
        if message.episode_id == self._episode_id:
            return
        if message.task != self._task.name:
            raise FatalError(
                f"Episode {message.episode_id} is of task {message.task}, this simulation of "
                f"{self._task.name}. The run ends. Start the deployment with task:={message.task}."
            )
        self._episode_id = message.episode_id
        self._tick, self._known = None, None
        self._next_tick(self._simulation.reset(message.seed), Applied.NO_DECISION)

    def _next_tick(self, observation, applied: Applied) -> None:
        previous = self._tick
        own = self.parameters
        if own.lock_step:
            stamp_ns = round(self._ticks_done * own.control_period_s * 1e9)
        else:
            stamp_ns = self.ros_now_ns()
        self._ticks_done += 1
        echo = {}
        if self._known is not None:
            echo = {
                "authority": self._known.authority,
                "epoch": self._known.epoch,
                "policy_due": self._known.policy_due,
            }
        self._tick = Tick(
            episode_id=self._episode_id,
            sequence=0 if previous is None else previous.sequence + 1,
            stamp_ns=stamp_ns,
            applied_sequence=-1 if previous is None else previous.sequence,
            applied=applied,
            applied_action=self._simulation.applied_action,
            success=self._simulation.success,
            **echo,
        )
        self._decision = None
        if not self._state_names:
            observation.object_state = None
        built = messages.observation_messages(
            self.types, observation, self._tick, self._state_names
        )
        self._outgoing = [(self._publishers_by_topic[name], m) for name, m in built.items()]
        privileged = messages.privileged_message(
            self.types, self._simulation.privileged(), stamp_ns
        )
        self._outgoing.insert(-1, (self._privileged, privileged))
        self._tick_began_s = self.now_s()
        self._send()

    def _send(self) -> None:
        if self._tick.sequence == 0 and not self._matched():
            self._sent_s = -1.0  # so that the timer tries again soon
            return
        if self.parameters.lock_step:
            seconds, nanoseconds = divmod(self._tick.stamp_ns, 1_000_000_000)
            time = Time(sec=seconds, nanosec=nanoseconds)
            self._clock_publisher.publish(ClockMessage(clock=time))
        for publisher, message in self._outgoing:
            publisher.publish(message)
        self._sent_s = self.now_s()

    def _matched(self) -> bool:
        """Whether everyone who needs the first tick would get it."""
        own = self.parameters
        tick = self._publishers_by_topic[topics.OBSERVATION_TICK]
        return self.is_read_by(tick, own.tick_readers) and all(
            self.is_read_by(image, own.image_readers) for image in self._image_publishers.values()
        )

    # Decisions

    def _on_decision(self, message: ExecutedAction) -> None:
        tick = self._tick
        if tick is None or not message.tick or message.episode_id != tick.episode_id:
            return
        try:
            decision = messages.decision_from(message)
        except ValueError as error:
            self.get_logger().error(f"A decision was refused: {error}. Holding this step.")
            return
        if self._known is None or decision.sequence > self._known.sequence:
            self._known = decision
        if decision.sequence != tick.sequence:
            return  # the answer to a tick that was sent twice, or a decision that came too late
        self._decision = decision
        if self.parameters.lock_step:
            self._advance()

    def _advance(self) -> None:
        decision = self._decision
        gripper = float(self._simulation.applied_action[6])
        if decision is None:
            action, applied = hold(gripper), Applied.LATE_HELD
        elif not valid_action(decision.action):
            action, applied = hold(gripper), Applied.REFUSED
        else:
            action, applied = decision.action, Applied.APPLIED
        self._outcomes[applied] += 1
        self._next_tick(self._simulation.step(action), applied)

    def _on_period(self) -> None:
        """Real time: the period is over, whatever came is what counts."""
        if self._tick is None:
            return
        if self._sent_s < 0:
            self._send()
        else:
            self._after_messages.reset()

    def _on_period_over(self) -> None:
        self._after_messages.cancel()
        if self._tick is not None:
            self._advance()

    def _watch(self) -> None:
        """Lock-step: send again what may have been missed; give up when nobody decides."""
        if self._tick is None:
            return
        if self.now_s() - self._tick_began_s > self.parameters.decision_timeout_s:
            waiting = "" if self._sent_s > 0 else " Not every node of the deployment is there."
            raise FatalError(
                f"No decision for tick {self._tick.sequence} of {self._tick.episode_id} within "
                f"{self.parameters.decision_timeout_s:g} s.{waiting} The run ends. Look at the log "
                "of arbiter, policy and operator."
            )
        if self.now_s() - self._sent_s > RESEND_S:
            self._send()

    def _diagnosis(self):
        held = self._outcomes[Applied.LATE_HELD] + self._outcomes[Applied.REFUSED]
        new, self._held = held - self._held, held
        level, text = DiagnosticStatus.OK, f"{self._task.name} is simulated."
        if new:
            level = DiagnosticStatus.WARN
            text = f"{new} decisions were late or refused; the arm held these steps."
        elif self._sent_s < 0:
            level, text = DiagnosticStatus.WARN, "An episode waits for the readers of its ticks."
        counts = {outcome.name.lower(): n for outcome, n in self._outcomes.items()}
        return level, text, {"episode": self._episode_id, "ticks": self._ticks_done} | counts

    def shut_down(self) -> None:
        self._simulation.close()


def main(argv=None) -> int:
    return run(RobosuiteBridge, argv)
