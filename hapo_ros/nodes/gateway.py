"""JSON lines to and from the graph, for those who must not import rclpy.

In, one object a line:
    {"id": 1, "call": "load_policy", "checkpoint": "..."}
    {"id": 2, "call": "optimize", "bags": ["..."], "base_checkpoint": "...", "method": "...", ...}
    {"id": 3, "call": "start_episode", ...}    and end_episode, discard_episode, request_authority
    {"id": 4, "cancel": 2}
The other fields are those of the action's goal or the service's request. Out:
    {"id": 2, "feedback": {...}}    {"id": 2, "result": {...}}    {"id": 2, "error": "a sentence"}
    {"event": "episode" | "authority" | "authority_lost" | "policy", ...}
and for a console also
    {"event": "ready"}    first of all
    {"event": "device", "axes": [...], "buttons": [...]}    now and then, while it reports
    {"event": "diagnostics", "name": ..., "level": 0..3, "message": ..., "values": {...}}
``age_s`` of an episode's event is the time since it was said, by the clocks of both sides.
It ends when its input has ended and everything was answered.
"""

import json
import os
import queue
import sys
import threading
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.action import ActionClient
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Joy
from std_msgs.msg import String

from hapo_ros import jsonlines, topics
from hapo_ros.action import LoadPolicy, Optimize
from hapo_ros.episodes import messages
from hapo_ros.msg import AuthorityStatus, EpisodeState
from hapo_ros.nodes.common import LATCHED, STATUS, HapoNode, run
from hapo_ros.nodes.polling import UNWATCHED, never, taken
from hapo_ros.parameters import PARAMETERS
from hapo_ros.srv import DiscardEpisode, EndEpisode, RequestAuthority, StartEpisode

ANSWER_S = 5.0  # for a server to accept or refuse a goal, before it is asked again
DEVICE_S = 0.1  # between two events of the device, which reports at up to 500 Hz
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
_SERVICES = {
    "start_episode": (StartEpisode, topics.START_EPISODE),
    "end_episode": (EndEpisode, topics.END_EPISODE),
    "discard_episode": (DiscardEpisode, topics.DISCARD_EPISODE),
    "request_authority": (RequestAuthority, topics.REQUEST_AUTHORITY),
}
_ACTIONS = {
    "load_policy": (LoadPolicy, topics.LOAD_POLICY),
    "optimize": (Optimize, topics.OPTIMIZE),
}


@dataclass
class _Asked:
    """A goal that was sent, once or more often, and neither accepted nor refused.

    unanswered: how often it was sent without an answer. refused: one of them was, perhaps because
    another one had been accepted.
    """

    client: ActionClient
    goal: object
    again_s: float = 0.0
    unanswered: int = 0
    refused: bool = False


class Gateway(HapoNode):
    """Relays calls from stdin to the graph, and news from the graph to stdout."""

    def __init__(self):
        super().__init__(f"gateway_{os.getpid()}", PARAMETERS["gateway"])  # one for each who asks
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._waiting = []  # (deadline, client, start) of calls whose server is not there yet
        self._asked = {}  # id -> goal that the server has not answered yet
        self._goals = {}  # id -> goal handle, for cancel
        self._cancelled = set()  # ids of goals that were cancelled before they were accepted
        self._open = set()  # ids that have had no result yet; it ends when its input has and they
        self._input_ended = False
        self._service_clients = {
            call: self.create_client(type_, name) for call, (type_, name) in _SERVICES.items()
        }
        self._action_clients = {
            call: ActionClient(self, type_, name) for call, (type_, name) in _ACTIONS.items()
        }
        self.create_subscription(EpisodeState, topics.EPISODE_STATE, self._on_episode, LATCHED)
        self.create_subscription(
            AuthorityStatus,
            topics.AUTHORITY_STATUS,
            lambda m: _tell({"event": "authority", **_plain(m)}),
            STATUS,
            event_callbacks=SubscriptionEventCallbacks(liveliness=self._on_liveliness),
        )
        self.create_subscription(String, topics.POLICY_INFO, self._on_policy, LATCHED)
        if self.parameters.console:
            _tell({"event": "ready"})
            self._tell_a_console()
        # A request goes out when its line is read, not with the next round of the timer.
        self._line_read = self.create_guard_condition(self._go_on)
        threading.Thread(target=self._read, daemon=True).start()
        self.every(0.05, self._go_on)

    def _tell_a_console(self) -> None:
        self._device = self.create_subscription(
            Joy, topics.JOY, never, NEWEST, callback_group=UNWATCHED
        )
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.every(DEVICE_S, self._tell_device)

    def _read(self) -> None:
        sys.stdin.reconfigure(errors="replace")  # one bad byte is one bad request
        for line in sys.stdin:
            self._lines.put(line)
            self._line_read.trigger()
        self._lines.put(None)

    def _on_liveliness(self, event) -> None:
        if event.alive_count == 0:
            _tell({"event": "authority_lost", "text": "The arbiter is gone. Nobody has control."})

    def _on_episode(self, message: EpisodeState) -> None:
        _tell({"event": "episode", **_plain(message), "age_s": self.age_s(message)})

    def _on_policy(self, message: String) -> None:
        try:
            info = messages.info_from(message, topics.POLICY_INFO)
        except ValueError as error:  # a stranger's: nobody is to lose their connection for it
            self.get_logger().warning(f"A message on {topics.POLICY_INFO} is malformed: {error}.")
            return
        _tell({"event": "policy", **info})

    def _tell_device(self) -> None:
        for message in taken(self._device):
            _tell({"event": "device", **_plain(message)})

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {each.key: each.value for each in status.values}
            told = {"name": status.name, "level": status.level[0], "message": status.message}
            _tell({"event": "diagnostics", **told, "values": values})

    def _go_on(self) -> None:
        while not self._lines.empty():
            line = self._lines.get()
            if line is None:
                self._input_ended = True
            elif line.strip():
                self._handle(line)
        self.finished = self._input_ended and not self._open
        now = self.now_s()
        for request_id in [id_ for id_, asked in self._asked.items() if now > asked.again_s]:
            self._send_goal(request_id)
        for waiting in list(self._waiting):
            deadline, client, request_id, begin = waiting
            ready = getattr(client, "server_is_ready", None) or client.service_is_ready
            if request_id in self._cancelled:
                self._waiting.remove(waiting)
                self._fail(request_id, "Cancelled before it began.")
            elif ready():
                self._waiting.remove(waiting)
                begin()
            elif now > deadline:
                self._waiting.remove(waiting)
                sentence = "No such server on the graph. Start the deployment first."
                self._end(request_id, error=sentence, no_server=True)

    def _handle(self, line: str) -> None:
        request_id = None
        try:
            said = json.loads(line)
            request_id = _plain_id(said.pop("id", None))
            self._open.add(request_id)
            json.dumps(said, ensure_ascii=False).encode()  # half a character is an error here
            if "cancel" in said:
                self._cancel(request_id, said["cancel"])
                return
            call = said.pop("call")
            if call in self._service_clients:
                request = _SERVICES[call][0].Request(check_fields=True, **said)
                client, begin = self._service_clients[call], self._begin_service
            else:
                request = _ACTIONS[call][0].Goal(check_fields=True, **said)
                client, begin = self._action_clients[call], self._begin_action
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            self._fail(request_id, f"This request cannot be understood: {error!r}.")
            return
        deadline = self.now_s() + self.parameters.server_timeout_s
        self._waiting.append(
            (deadline, client, request_id, lambda: begin(client, request_id, request))
        )

    def _begin_service(self, client, request_id, request) -> None:
        client.call_async(request).add_done_callback(
            lambda future: self._end(request_id, result=_plain(future.result()))
        )

    def _begin_action(self, client, request_id, goal) -> None:
        self._asked[request_id] = _Asked(client, goal)
        self._send_goal(request_id)

    def _send_goal(self, request_id) -> None:
        """Ask for a goal, again where nothing was answered.

        A server that has just come may have found the request before it found who made it. Then its
        answer is lost, and it does not begin with the goal.
        """
        asked = self._asked[request_id]
        if asked.refused:
            self._refuse(request_id)
            return
        asked.again_s = self.now_s() + ANSWER_S
        asked.unanswered += 1

        def feedback(message):
            _tell({"id": request_id, "feedback": _plain(message.feedback)})

        def answered(future):
            if request_id not in self._asked:
                return  # another answer has settled it
            handle = future.result()
            asked.unanswered -= 1
            if not handle.accepted:
                asked.refused, asked.again_s = True, self.now_s() + ANSWER_S
                if not asked.unanswered:
                    self._refuse(request_id)
                return
            del self._asked[request_id]
            self._goals[request_id] = handle
            if request_id in self._cancelled:
                handle.cancel_goal_async()
            handle.get_result_async().add_done_callback(finished)

        def finished(future):
            self._goals.pop(request_id, None)
            self._end(request_id, result=_plain(future.result().result))

        sent = asked.client.send_goal_async(asked.goal, feedback_callback=feedback)
        sent.add_done_callback(answered)

    def _refuse(self, request_id) -> None:
        del self._asked[request_id]
        self._fail(request_id, "The goal was refused: another one is being worked on.")

    def _end(self, request_id, **last) -> None:
        self._open.discard(request_id)
        _tell({"id": request_id, **last})

    def _fail(self, request_id, sentence: str) -> None:
        self._end(request_id, error=sentence)

    def _cancel(self, request_id, goal_id) -> None:
        goal_id = _plain_id(goal_id)
        if goal_id in self._asked or any(goal_id == waiting[2] for waiting in self._waiting):
            self._cancelled.add(goal_id)
            self._end(request_id, result={"ok": True})
            return
        if goal_id not in self._goals:
            self._fail(request_id, f"No goal {goal_id} is being worked on.")
            return
        self._goals[goal_id].cancel_goal_async().add_done_callback(
            lambda _: self._end(request_id, result={"ok": True})
        )


def _plain_id(request_id):
    """A request's id; ValueError for one that is no word or number."""
    if isinstance(request_id, list | dict):
        raise ValueError(f"an id is a word or a number, not {request_id!r}")
    return request_id


def _plain(message) -> dict:
    """The plain fields of a message; headers are left out."""
    data = {}
    for name in message.get_fields_and_field_types():
        value = getattr(message, name)
        if hasattr(value, "get_fields_and_field_types"):
            continue
        data[name] = value.tolist() if hasattr(value, "tolist") else value
    return data


def _tell(data: dict) -> None:
    sys.stdout.write(jsonlines.line(data) + "\n")
    sys.stdout.flush()


def main(argv=None) -> int:
    return run(Gateway, argv)
