"""The recorder: owns the episode, one bag each. Messages are written as they came, undecoded."""

import json
import platform
import struct
import time
from datetime import datetime, timezone
from pathlib import Path

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.task import Future
from std_msgs.msg import String

from hapo_ros import __version__, topics
from hapo_ros.episodes import EpisodeInfo, EpisodeWriteError, EpisodeWriter, messages
from hapo_ros.episodes.recovery import RecoveryError, recover, unfinished
from hapo_ros.episodes.writer import partial_folder
from hapo_ros.msg import EpisodeState
from hapo_ros.nodes.common import (
    IMAGES,
    LATCHED,
    RECORD,
    STATUS,
    FatalError,
    HapoNode,
    Parameter,
    message_class,
    run,
)
from hapo_ros.nodes.polling import UNWATCHED, never, taken
from hapo_ros.srv import DiscardEpisode, EndEpisode, StartEpisode

PARAMETERS = (
    Parameter("root", "runs/bags", "Folder of the episodes"),
    Parameter("cameras", ["agentview", "wrist"], "Cameras to record; [''] for none"),
    Parameter("object_state", False, "Record the object state too"),
    Parameter("operator", True, "Record the operator's device; false: there is none"),
    Parameter("lock_step", True, "Log time is the time of the tick (simulation)"),
    Parameter("close_timeout_s", 0.8, "Longest wait for the last messages", "s", 0.0, 30.0),
    Parameter("min_free_mib", 500, "Free space an episode needs to start", "MiB", 0, 1 << 20),
    Parameter("settings_json", "{}", "Settings of the deployment, for episode/info"),
)
_CDR_STAMP = struct.Struct("<iI")  # after 4 bytes of encapsulation, in every header-first message
# Sent again as they are when a tick is sent again; recorded once.
_REPEATED = (topics.AUTHORITY_STATUS,)
POLL_S = 0.03
# Deeper than a reader of the present status needs: every one is recorded.
EVERY_STATUS = QoSProfile(
    depth=50, reliability=STATUS.reliability, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


class Recorder(HapoNode):
    """Services of the episode, and its bag."""

    def __init__(self):
        super().__init__("recorder", PARAMETERS)
        own = self.parameters
        self._root = Path(own.root)
        cameras = [camera for camera in own.cameras if camera]
        self._topics = topics.recorded(cameras, own.object_state, own.operator)
        self._settings = _json(own.settings_json, "settings_json")
        self._observation_info: dict | None = None
        self._policy_info: dict = {}
        self._writer: EpisodeWriter | None = None
        self._seen: dict[str, set] = {}  # topic -> stamps of what is in the bag
        self._progress = _Progress()
        self._closing: Future | None = None
        self._wanted_sequence, self._closing_since_s = -1, 0.0
        self._recover()

        self._subscriptions_by_topic = {
            topic: self.create_subscription(
                message_class(type_name),
                topic,
                never,
                self._qos(topic, type_name),
                callback_group=UNWATCHED,
                raw=True,
            )
            for topic, type_name in self._topics.items()
        }
        self.create_subscription(
            String, topics.OBSERVATION_INFO, self._on_observation_info, LATCHED
        )
        self.create_subscription(String, topics.POLICY_INFO, self._on_policy_info, LATCHED)
        self._states = self.create_publisher(EpisodeState, topics.EPISODE_STATE, LATCHED)
        self.create_service(StartEpisode, topics.START_EPISODE, self._on_start)
        # In a group of its own: while it waits, the messages it waits for have to come in.
        self.create_service(
            EndEpisode, topics.END_EPISODE, self._on_end, callback_group=ReentrantCallbackGroup()
        )
        self.create_service(DiscardEpisode, topics.DISCARD_EPISODE, self._on_discard)
        self.every(POLL_S, self._poll)
        self._publish_state(EpisodeState.IDLE)

    @staticmethod
    def _qos(topic: str, type_name: str):
        if topic == topics.AUTHORITY_STATUS:
            return EVERY_STATUS
        return IMAGES if type_name == "sensor_msgs/msg/Image" else RECORD

    def _recover(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            left = unfinished(self._root)
        except OSError as error:
            raise FatalError(
                f"{self._root} cannot be used for episodes ({error}). The recorder does not start. "
                "Give another folder with bags:=FOLDER."
            ) from error
        for folder in left:
            try:
                bag = recover(folder)
            except RecoveryError as error:
                self.get_logger().error(str(error))
            else:
                self.get_logger().warning(
                    f"{bag} was recovered from a crash. It is marked so, and not learned from "
                    "until it is accepted."
                )

    def _on_observation_info(self, message: String) -> None:
        self._observation_info = _json(message.data, topics.OBSERVATION_INFO)

    def _on_policy_info(self, message: String) -> None:
        self._policy_info = _json(message.data, topics.POLICY_INFO)

    # Messages

    def _now_ns(self) -> int:
        if self.parameters.lock_step:
            return self._progress.tick_stamp_ns
        return self.ros_now_ns()

    def _poll(self) -> None:
        """Take what has come, of every topic."""
        for topic, subscription in self._subscriptions_by_topic.items():
            for data in taken(subscription):
                self._on_message(topic, data)
        self._watch_closing()

    def _on_message(self, topic: str, data: bytes) -> None:
        if self._writer is None or self._writer.closed:
            return
        key = stamp_ns = _stamp_ns(data)
        if topic in (topics.OBSERVATION_TICK, topics.EXECUTED_ACTION):
            message = messages.from_cdr(data, self._topics[topic])
            if message.episode_id not in ("", self._writer.info.episode_id):
                return  # the last of the episode before
            self._progress.see(topic, message)
            if topic == topics.EXECUTED_ACTION:
                # Two that differ come from two arbiters: the reader has to know of both.
                key = stamp_ns, message.label, message.action.tobytes()
        if topic not in _REPEATED:
            if key in self._seen[topic]:
                return
            self._seen[topic].add(key)
        try:
            self._writer.write(topic, data, self._now_ns(), stamp_ns)
        except EpisodeWriteError as error:
            self._fail(str(error))

    def _fail(self, sentence: str) -> None:
        self.get_logger().error(sentence)
        self._publish_state(EpisodeState.FAILED, text=sentence)
        self._writer.close()
        self._writer = None
        if self._closing is not None:
            self._closing.set_result(False)

    def _missing(self) -> dict[str, int]:
        """Messages that the recorded ticks name and the bag lacks, by topic."""
        return self._progress.missing(self._seen)

    # Services

    def _on_start(self, request, response):
        response.ok = False
        if problem := self._start_problem(request):
            response.text = problem
            return response
        known = self._observation_info
        info = EpisodeInfo(
            episode_id=request.episode_id or self._new_id(request.task, request.seed),
            task=request.task,
            instruction=request.instruction or known["instruction"],
            source=request.source,
            seed=request.seed,
            policy_version=self._policy_info.get("version", ""),
            cameras=known["cameras"],
            object_state=known["object_state"],
            action_space=known["action_space"],
            settings=self._settings,
            versions={"hapo_ros": __version__, "python": platform.python_version()},
        )
        self._seen, self._progress = {topic: set() for topic in self._topics}, _Progress()
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
        if request.source not in ("demonstration", "deployment"):
            return f"source must be demonstration or deployment, not {request.source!r}."
        silent = [
            topic
            for topic, subscription in self._subscriptions_by_topic.items()
            if subscription.get_publisher_count() == 0
        ]
        if silent or self._observation_info is None:
            missing = ", ".join(silent or [topics.OBSERVATION_INFO])
            return (
                f"No one publishes {missing}. Nothing is recorded. Start the nodes that publish "
                "it, or check its QoS."
            )
        if request.task != self._observation_info["task"]:
            return (
                f"This deployment is of task {self._observation_info['task']}, not {request.task}. "
                f"Nothing is recorded. Start the deployment with task:={request.task}."
            )
        return ""

    def _new_id(self, task: str, seed: int) -> str:
        """A name that is not taken: two episodes may begin within a second."""
        now = datetime.fromtimestamp(time.time(), timezone.utc)
        first = name = f"{now:%Y%m%dT%H%M%S}_{task}_s{seed}"
        number = 1
        while (self._root / name).exists() or partial_folder(self._root, name).exists():
            number += 1
            name = f"{first}_{number}"
        return name

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
        self._watch_closing()
        await self._closing
        self._closing = None
        if self._writer is not None:
            response.bag = self._finish(
                request.outcome, note=request.note, unresolved=request.unresolved
            )
        response.ok = bool(response.bag)
        response.text = (
            f"Recorded in {response.bag}." if response.ok else "Not recorded; see the log."
        )
        return response

    def _on_discard(self, request, response):
        response.text = self._end_problem(request.episode_id)
        response.ok = not response.text
        if response.ok:
            self._publish_state(EpisodeState.CLOSING)
            bag = self._finish("discarded", note=request.reason)
            response.text = f"Discarded; kept in {bag}, never used for learning."
        return response

    def _end_problem(self, episode_id: str) -> str:
        if self._writer is None or self._closing is not None:
            return "No episode is running that could be ended."
        running = self._writer.info.episode_id
        if episode_id != running:
            return f"The running episode is {running}, not {episode_id!r}. It goes on."
        return ""

    def _watch_closing(self) -> None:
        """End the wait of EndEpisode: everything is there, or the time is over."""
        if self._closing is None or self._closing.done():
            return
        progress = self._progress
        complete = progress.settled(self._wanted_sequence) and not self._missing()
        late = self.now_s() - self._closing_since_s > self.parameters.close_timeout_s
        if complete or late:
            self._closing.set_result(complete)

    def _finish(self, outcome: str | None, **known) -> str:
        """Close the bag; returns its folder, or "" where that failed."""
        writer, self._writer = self._writer, None
        result = writer.result(outcome, lost=self._missing(), **known)
        try:
            bag = str(writer.finish(result).resolve())
        except EpisodeWriteError as error:
            self.get_logger().error(str(error))
            self._publish_state(EpisodeState.FAILED, info=writer.info, text=str(error))
            return ""
        self._publish_state(
            EpisodeState.FINISHED, info=writer.info, outcome=result.outcome, bag=bag
        )
        return bag

    def _publish_state(self, state: int, info: EpisodeInfo | None = None, **known) -> None:
        info = info or (self._writer.info if self._writer is not None else None)
        self._states.publish(
            messages.episode_state_message(self.types, self.ros_now_ns(), state, info, **known)
        )

    def shut_down(self) -> None:
        """Close the bag of an episode that was cut short; it is kept and marked incomplete."""
        if self._writer is not None:
            note = "The recorder was stopped while the episode ran."
            self._finish(None, complete=False, note=note)
            self.until_heard(self._states)


class _Progress:
    """What the ticks and decisions of the episode say must be in the bag."""

    def __init__(self):
        self.tick_stamp_ns = 0
        self._ticks: dict[int, dict[str, int]] = {}  # sequence -> topic -> stamp
        self._applied = -1
        self._decisions: set[int] = set()

    def see(self, topic: str, message) -> None:
        if topic == topics.EXECUTED_ACTION:
            if message.tick:
                self._decisions.add(message.sequence)
            return
        self._ticks[message.sequence] = messages.tick_stamps(message)
        self.tick_stamp_ns = max(self.tick_stamp_ns, messages.message_stamp_ns(message))
        self._applied = max(self._applied, message.applied_sequence)

    def settled(self, wanted_sequence: int) -> bool:
        """Whether the wanted tick is there, and every decision that was executed."""
        last = max(self._ticks, default=-1)
        return last >= wanted_sequence and (self._applied < 0 or self._applied in self._decisions)

    def missing(self, seen: dict[str, set]) -> dict[str, int]:
        lost: dict[str, int] = {}
        for stamps in self._ticks.values():
            for topic, stamp_ns in stamps.items():
                if topic in seen and stamp_ns not in seen[topic]:
                    lost[topic] = lost.get(topic, 0) + 1
        gaps = max(self._ticks, default=-1) + 1 - len(self._ticks)
        undecided = self._applied + 1 - len([s for s in self._decisions if s <= self._applied])
        for topic, count in ((topics.OBSERVATION_TICK, gaps), (topics.EXECUTED_ACTION, undecided)):
            if count > 0:
                lost[topic] = count
        return lost


def _stamp_ns(cdr: bytes) -> int:
    seconds, nanoseconds = _CDR_STAMP.unpack_from(cdr, 4)
    return seconds * 1_000_000_000 + nanoseconds


def _json(text: str, what: str) -> dict:
    try:
        return json.loads(text)
    except ValueError as error:
        raise FatalError(f"{what} is not JSON ({error}). The recorder does not go on.") from error


def main(argv=None) -> int:
    return run(Recorder, argv)
