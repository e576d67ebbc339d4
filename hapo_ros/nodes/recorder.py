"""The recorder: owns the episode, one bag each. Messages are written as they came, undecoded."""

import json
import shutil
import threading
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.task import Future
from std_msgs.msg import String

from hapo_ros import topics
from hapo_ros.episodes import EpisodeInfo, EpisodeWriteError, EpisodeWriter, messages
from hapo_ros.episodes.clocks import ClockWatch
from hapo_ros.episodes.contents import cdr_stamp_ns
from hapo_ros.episodes.recovery import RecoveryError, recover, unfinished
from hapo_ros.episodes.software import software_versions
from hapo_ros.episodes.types import in_words
from hapo_ros.episodes.writer import free_episode_id
from hapo_ros.msg import AuthorityStatus, EpisodeState
from hapo_ros.nodes.common import (
    IMAGES,
    LATCHED,
    RECORD,
    STATUS,
    FatalError,
    HapoNode,
    run,
)
from hapo_ros.nodes.offered import Listener
from hapo_ros.parameters import PARAMETERS
from hapo_ros.srv import DiscardEpisode, EndEpisode, StartEpisode

POLL_S, CLOSING_POLL_S = 0.1, 0.01  # between two looks; every one costs about a millisecond
BUSY_S = 0.02  # two clocks that were read further apart say nothing of each other
ADAPT_S = 1.0
JOIN_S = 3.0  # within which an arbiter, also one that was started again, follows an episode
# Deeper than a reader of the present status needs: every one is recorded.
EVERY_STATUS = QoSProfile(
    depth=50, reliability=STATUS.reliability, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
# What is sent again when its tick is sent again is recorded once: the last so many of a topic are
# known. The status is none of that.
_REMEMBERED = 200
_UNDER_WAY = 20  # ticks, of which a message may still come
_STATES = {
    getattr(EpisodeState, name): name
    for name in ("IDLE", "OPENING", "RUNNING", "CLOSING", "FINISHED", "FAILED")
}


class Recorder(HapoNode):
    """Services of the episode, and its bag."""

    def __init__(self):
        super().__init__("recorder", PARAMETERS["recorder"])
        own = self.parameters
        self._root = Path(own.root)
        cameras = [camera for camera in own.cameras if camera]
        self._topics = topics.recorded(cameras, own.object_state, own.operator)
        self._settings = _json(own.settings_json, "settings_json")
        self._versions = software_versions()
        self._infos: dict[str, dict] = {}  # what robot side and policy last said of themselves
        self._status: AuthorityStatus | None = None
        self._writer: EpisodeWriter | None = None
        self._seen: dict[str, dict] = {}  # topic -> what tells its last messages from each other
        self._malformed: Counter[str] = Counter()  # by topic
        self._tick_stamp_ns = 0  # of the newest tick, over all episodes
        self._clock_watch: ClockWatch | None = None  # of the running episode
        self._followed_s = 0.0  # when the arbiter was last known to take part in it
        self._lost: dict[str, int] = {}  # of the last episode
        self._failure = ""  # of the last recording: why there is no whole bag of it
        self._closing: Future | None = None
        self._wanted_sequence, self._closing_since_s = -1, 0.0
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FatalError(
                f"{self._root} cannot be used for episodes ({error}). The recorder does not start. "
                "Give another folder with bags:=FOLDER."
            ) from error
        # It may take a minute, and everyone has to know at once that nothing is recorded any more.
        self._recovery = threading.Thread(target=self._recover, daemon=True)
        self._recovery.start()

        self._listeners = {
            topic: Listener(self, topic, type_name, self._qos(topic, type_name))
            for topic, type_name in self._topics.items()
        }
        for topic in (topics.OBSERVATION_INFO, topics.POLICY_INFO):
            self.create_subscription(
                String, topic, lambda message, topic=topic: self._on_info(topic, message), LATCHED
            )
        self._states = self.create_publisher(EpisodeState, topics.EPISODE_STATE, LATCHED)
        self.create_service(StartEpisode, topics.START_EPISODE, self._on_start)
        # In a group of its own: while it waits, the messages it waits for have to come in.
        self.create_service(
            EndEpisode, topics.END_EPISODE, self._on_end, callback_group=ReentrantCallbackGroup()
        )
        self.create_service(DiscardEpisode, topics.DISCARD_EPISODE, self._on_discard)
        self.every(POLL_S, self._poll)
        self._closing_poll = self.every(CLOSING_POLL_S, self._poll)
        self._closing_poll.cancel()
        self.every(ADAPT_S, self._adapt)
        self.diagnose(self._diagnosis)
        self._publish_state(EpisodeState.IDLE)

    @staticmethod
    def _qos(topic: str, type_name: str):
        if topic == topics.AUTHORITY_STATUS:
            return EVERY_STATUS
        return IMAGES if type_name == "sensor_msgs/msg/Image" else RECORD

    def _recover(self) -> None:
        """Save what a crash left, in a thread: services answer meanwhile."""
        try:
            left = unfinished(self._root)
        except OSError as error:
            self.get_logger().error(f"What crashes left in {self._root} is not seen: {error}.")
            return
        for folder in left:
            try:
                bag = recover(folder)
            except (RecoveryError, OSError) as error:
                self.get_logger().error(str(error))
            else:
                self.get_logger().warning(
                    f"{bag} was recovered from a crash. It is marked so, and learned from only "
                    "with accept_recovered."
                )

    def _on_info(self, topic: str, message: String) -> None:
        try:
            info = self._infos[topic] = messages.info_from(message, topic)
        except ValueError as error:
            self._refuse(topic, error)
            return
        if info.get("lost") and self._writer is not None and self._closing is None:
            note = f"The observation was lost: {'; '.join(info['problems'])}."
            self.get_logger().error(f"{note} The recording ends and is marked incomplete.")
            self._finish(None, complete=False, note=note)

    # Messages

    def _now_ns(self) -> int:
        return self._tick_stamp_ns if self.parameters.lock_step else self.ros_now_ns()

    def _poll(self) -> None:
        """Take what has come, of every topic."""
        for topic, listener in self._listeners.items():
            for data, received_ns in listener.received():
                self._on_message(topic, data, received_ns)
        self._watch_clock()
        self._watch_closing()

    def _adapt(self) -> None:
        """Hear every publisher there is. Not while recording: it would lose messages of others."""
        if self._writer is None:
            for listener in self._listeners.values():
                listener.adapt()

    def _on_message(self, topic: str, data: bytes, received_ns: int) -> None:
        try:
            if topic == topics.AUTHORITY_STATUS:
                self._status = messages.from_cdr(data, self._topics[topic])
            if self._writer is not None and not self._writer.closed:
                self._record(topic, data, received_ns)
        except ValueError as error:
            self._refuse(topic, error)
        except EpisodeWriteError as error:
            self._fail(str(error))

    def _record(self, topic: str, data: bytes, received_ns: int) -> None:
        """Write a message unless it is of another episode or was written before."""
        key = stamp_ns = cdr_stamp_ns(data)
        if topic in (topics.OBSERVATION_TICK, topics.EXECUTED_ACTION):
            message = messages.from_cdr(data, self._topics[topic])
            if message.episode_id not in ("", self._writer.info.episode_id):
                return  # the last of the episode before
            if topic == topics.EXECUTED_ACTION:
                # Two that differ come from two arbiters: the reader has to know of both.
                key = stamp_ns, message.label, message.action.tobytes()
            else:
                messages.tick_from(message)  # or ValueError: it tells the time
                self._tick_stamp_ns = max(self._tick_stamp_ns, stamp_ns)
        seen = self._seen[topic]
        if topic != topics.AUTHORITY_STATUS and key in seen:
            return
        seen[key] = None
        if len(seen) > _REMEMBERED:
            del seen[next(iter(seen))]
        at_ns = self._tick_stamp_ns if self.parameters.lock_step else received_ns
        self._writer.write(topic, data, at_ns, stamp_ns)

    def _refuse(self, topic: str, error: ValueError) -> None:
        """A stranger's message must not end an episode, nor spoil its bag."""
        self._malformed[topic] += 1
        count = self._malformed[topic]
        if count & (count - 1) == 0:  # the 1st, 2nd, 4th ...: at once, and never a flood
            self.get_logger().error(
                f"A message on {topic} is malformed: {error}. It is left out, the recorder goes "
                f"on. {count} so far. Find out who publishes it."
            )

    def _fail(self, sentence: str) -> None:
        self._failure = sentence
        self.get_logger().error(sentence)
        self._publish_state(EpisodeState.FAILED, text=sentence)
        self._writer.close()
        self._writer = None
        if self._closing is not None:
            self._closing.set_result(False)

    # Services

    def _on_start(self, request, response):
        self._poll()  # what has come already counts, such as a fault
        self._adapt()
        response.ok = False
        if problem := self._start_problem(request):
            response.text = problem
            return response
        known = self._infos[topics.OBSERVATION_INFO]
        task = request.task or known["task"]
        policy = self._infos[topics.POLICY_INFO] if request.source == "deployment" else {}
        info = EpisodeInfo(
            episode_id=request.episode_id or self._new_id(task, request.seed),
            task=task,
            instruction=request.instruction or known["instruction"],
            source=request.source,
            seed=request.seed,
            policy_version=policy.get("version", ""),
            cameras=known["cameras"],
            object_state=known["object_state"],
            action_space=known["action_space"],
            normalisation=policy.get("normalisation", {}),
            settings=self._settings,
            versions=self._versions,
            max_lost_fraction=self.parameters.max_lost_fraction,
        )
        self._seen = {topic: {} for topic in self._topics}
        try:
            self._writer = EpisodeWriter(
                self._root,
                info,
                self._topics,
                start_ns=self._now_ns(),
                min_free_bytes=self.parameters.min_free_mib << 20,
            )
        except EpisodeWriteError as error:
            response.text = str(error)
            return response
        self._clock_watch = ClockWatch(time.time(), self.now_s())
        self._followed_s = self.now_s()
        self._lost, self._failure = {}, ""
        self._publish_state(EpisodeState.RUNNING)
        response.ok, response.episode_id = True, info.episode_id
        response.text = f"Recording {info.episode_id}."
        return response

    def _start_problem(self, request) -> str:
        if self._writer is not None:
            return (
                f"Episode {self._writer.info.episode_id} is running. No second one is started. End "
                "or discard it first."
            )
        if self._recovery.is_alive():
            return (
                "What a crash has left is being recovered. Nothing is recorded yet. Start again in "
                "a moment."
            )
        if request.source not in ("demonstration", "deployment"):
            return f"source must be demonstration or deployment, not {request.source!r}."
        if request.seed < 0:
            return f"seed must be 0 or more, not {request.seed}. Nothing is recorded."
        silent = {
            topic: listener.misfit()
            for topic, listener in self._listeners.items()
            if not listener.is_heard()
        }
        if misfits := [misfit for misfit in silent.values() if misfit]:
            return f"{'; '.join(misfits)}. Nothing is recorded. Mend or stop that publisher."
        told = [topics.OBSERVATION_INFO]
        told += [topics.POLICY_INFO] if request.source == "deployment" else []
        if missing := [*silent, *(topic for topic in told if topic not in self._infos)]:
            return (
                f"No one publishes {', '.join(missing)}. Nothing is recorded. Start the nodes that "
                "publish it; those that have just come are heard in a moment."
            )
        known = self._infos[topics.OBSERVATION_INFO]
        if problems := known.get("problems"):
            return f"{'; '.join(problems)}. Nothing is recorded. Look at that input, start again."
        task = known["task"]
        if request.task not in ("", task):
            return (
                f"This deployment is of task {task}, not {request.task}. Nothing is recorded. "
                f"Start the deployment with task:={request.task}."
            )
        if self._status is not None and self._status.authority == AuthorityStatus.FAULT:
            return (
                f"The arbiter is in FAULT and would not act: {self._status.text} Nothing is "
                "recorded. Clear the fault (request 7 on arbiter/request), then start."
            )
        return ""

    def _new_id(self, task: str, seed: int) -> str:
        """A name that is not taken: two episodes may begin within a second."""
        now = datetime.fromtimestamp(time.time(), timezone.utc)
        return free_episode_id(self._root, f"{now:%Y%m%dT%H%M%S}_{task}_s{seed}")

    async def _on_end(self, request, response):
        response.ok = False
        if problem := self._end_problem(request.episode_id):
            response.text = problem
            return response
        if request.outcome not in ("success", "failure"):
            response.text = f"outcome must be success or failure, not {request.outcome!r}."
            return response
        self._publish_state(EpisodeState.CLOSING)
        self._wanted_sequence, self._closing_since_s = request.last_sequence, self.now_s()
        self._closing = Future()
        self._closing_poll.reset()
        self._watch_closing()
        await self._closing
        self._closing_poll.cancel()
        self._closing = None
        response.bag, response.text = self._finish(
            request.outcome, note=request.note, unresolved=request.unresolved
        )
        response.ok = bool(response.bag)
        return response

    def _on_discard(self, request, response):
        response.text = self._end_problem(request.episode_id)
        if not response.text:
            self._publish_state(EpisodeState.CLOSING)
            bag, response.text = self._finish("discarded", note=request.reason)
            response.ok = bool(bag)
            if response.ok:
                response.text = f"Discarded; kept in {bag}, never used for learning."
        return response

    def _end_problem(self, episode_id: str) -> str:
        if self._writer is None or self._closing is not None:
            return "No episode is running that could be ended."
        running = self._writer.info.episode_id
        if episode_id != running:
            return f"The running episode is {running}, not {episode_id!r}. It goes on."
        return ""

    def _watch_clock(self) -> None:
        """Nothing here depends on the wall clock; who reads the bag has to know that it was set."""
        if self._writer is None:
            return
        before_s, wall_s, now_s = self.now_s(), time.time(), self.now_s()
        if now_s - before_s > BUSY_S:
            return
        if jump := self._clock_watch.look(wall_s, now_s):
            self._writer.note_clock_jump(*jump)
            self.get_logger().warning(
                f"The wall clock was set by {jump[1]:+.1f} s. The recording goes on, and its bag "
                "says so. Set clocks between episodes."
            )

    def _watch_closing(self) -> None:
        """End the wait of EndEpisode: everything is there, or the time is over."""
        if self._closing is None or self._closing.done():
            return
        complete = self._writer.is_whole(self._wanted_sequence)
        late = self.now_s() - self._closing_since_s > self.parameters.close_timeout_s
        if complete or late:
            self._closing.set_result(complete)

    def _finish(self, outcome: str | None, **known) -> tuple[str, str]:
        """Close the bag; returns its folder, "" where there is none, and a sentence."""
        self._poll()  # what has come belongs to it
        writer, self._writer = self._writer, None
        if writer is None:
            return "", self._failure
        result = writer.result(outcome, **known)
        self._lost = result.lost
        try:
            bag = str(writer.finish(result).resolve())
        except EpisodeWriteError as error:
            self._failure = str(error)
            self.get_logger().error(self._failure)
            self._publish_state(EpisodeState.FAILED, info=writer.info, text=self._failure)
            return "", self._failure
        text = f"Recorded in {bag}."
        if result.lossy:
            text += (
                f" It is marked lossy ({in_words(result.lost)} lost), and learned from only with "
                "accept_recovered. Relieve the machine, or record fewer cameras."
            )
            self.get_logger().warning(text)
        self._publish_state(
            EpisodeState.FINISHED, info=writer.info, outcome=result.outcome, bag=bag, text=text
        )
        return bag, text

    def _publish_state(self, state: int, info: EpisodeInfo | None = None, **known) -> None:
        info = info or (self._writer.info if self._writer is not None else None)
        self._state = state
        self._states.publish(
            messages.episode_state_message(self.types, self.ros_now_ns(), state, info, **known)
        )

    def _diagnosis(self):
        free_mib, needed_mib = self._free_mib(), self.parameters.min_free_mib
        writer, lost = self._writer, self._lost
        if writer is not None:
            lost = writer.lost(but_newest=_UNDER_WAY)
        level, text = DiagnosticStatus.OK, "Recording." if writer else "Ready."
        if self._failure:
            level, text = DiagnosticStatus.ERROR, self._failure
        elif writer is not None and self._is_alone():
            level = DiagnosticStatus.ERROR
            text = (
                f"The arbiter takes no part in episode {writer.info.episode_id}: nothing is "
                "decided, and nothing of it can be learned from. End it and start the deployment "
                "again; hapo doctor looks for what keeps nodes from hearing each other."
            )
        elif free_mib < needed_mib:
            level = DiagnosticStatus.WARN
            text = f"{free_mib} MiB are free and an episode needs {needed_mib}. Free some space."
        elif lost:
            level, text = DiagnosticStatus.WARN, "Messages are lost on their way to the recorder."
        known = {
            "state": _STATES[self._state],
            "episode": writer.info.episode_id if writer else "",
            "messages": sum(writer.counts.values()) if writer else 0,
            "lost": in_words(lost),
            "malformed": self._malformed.total(),
            "free_mib": free_mib,
        }
        return level, text, known

    def _is_alone(self) -> bool:
        """Whether the arbiter has known of another episode, or none, for longer than it takes."""
        now_s, status = self.now_s(), self._status
        if status is not None and status.episode_id == self._writer.info.episode_id:
            self._followed_s = now_s
        return now_s - self._followed_s > JOIN_S

    def _free_mib(self) -> int:
        try:
            return shutil.disk_usage(self._root).free >> 20
        except OSError:
            return 0  # its disk is gone

    def shut_down(self) -> None:
        """Close the bag of an episode that was cut short; it is kept and marked incomplete."""
        self._poll()
        if self._writer is not None:
            note = "The recorder was stopped while the episode ran."
            self._finish(None, complete=False, note=note)
            self.until_heard(self._states)


def _json(text: str, what: str) -> dict:
    try:
        return json.loads(text)
    except ValueError as error:
        raise FatalError(f"{what} is not JSON ({error}). The recorder does not go on.") from error


def main(argv=None) -> int:
    return run(Recorder, argv)
