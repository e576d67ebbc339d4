"""What every node shares: parameters, QoS, message classes, clocks, and a clean way to end."""

import fcntl
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.executors import (
    ExternalShutdownException,
    MultiThreadedExecutor,
    SingleThreadedExecutor,
)
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    LivelinessPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
)
from rclpy.signals import SignalHandlerOptions

from hapo_ros.episodes import messages
from hapo_ros.episodes.interfaces import CLASSES, ros_sequence
from hapo_ros.parameters import Parameter
from hapo_ros.restarts import RUN_ENDS

RECORD = QoSProfile(depth=200, reliability=ReliabilityPolicy.RELIABLE)
SENSOR = qos_profile_sensor_data  # whatever is offered is received; only the newest counts
IMAGES = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1,
    history=HistoryPolicy.KEEP_LAST,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
# What moves the robot. It is the record too, so it lives longer than it is of use to the robot, who
# tells what is too late by its sequence; who asks for the deadline hears when nothing comes.
COMMAND = QoSProfile(
    depth=200,
    reliability=ReliabilityPolicy.RELIABLE,
    deadline=Duration(seconds=1.0),
    lifespan=Duration(seconds=5.0),
)
# A reader whose arbiter died or hangs hears of it: it says nothing within the lease. (AUTOMATIC
# would be kept up by DDS's own threads, however the node hangs.)
STATUS = QoSProfile(
    depth=1,
    history=HistoryPolicy.KEEP_LAST,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
    liveliness=LivelinessPolicy.MANUAL_BY_TOPIC,
    liveliness_lease_duration=Duration(seconds=1.0),
)


ENDS = [signal.SIGINT, signal.SIGTERM]
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
    ENDS.append(signal.SIGHUP)  # the terminal was closed, which ros2 launch leaves to its nodes


class FatalError(Exception):
    """The node cannot go on; the message is a sentence for the operator. It ends with exit 1."""

    code = 1


class RunOver(FatalError):
    """Nor would it help to start it again: the deployment ends."""

    code = RUN_ENDS


def _lock_name(node: str, domain: int):
    """Hold a node's name on this machine until the process ends, however it ends.

    The graph cannot tell: a killed node stays in it for seconds, and its successor must start. Two
    nodes of one name would both record, both decide. Raises FatalError where one is running.
    Returns the locked file; whether the process that had the name last did not end well, or it
    would have emptied the file; and the word that it left (HapoNode.leave_word), which stays in it.
    A word of another deployment, that is of another parent's child, is over with that.
    """
    name = f"hapo_ros_{os.getuid()}_{domain}{node.replace('/', '_')}.lock"
    path = Path(tempfile.gettempdir()) / name
    path.touch()
    stream = path.open("r+")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.seek(0)
        pid = stream.readline().partition(" ")[0] or "unknown"
        raise FatalError(
            f"A node {node} is already running in ROS domain {domain} (process {pid}). This one "
            "ends and has changed nothing. End the other one, or choose another ROS_DOMAIN_ID."
        ) from None
    stream.seek(0)
    left = stream.read()
    who, _, word = left.partition("\n")
    word = word if who.endswith(f" {os.getppid()}") else ""
    with suppress(OSError):  # a full disk: the lock is what counts
        _write(stream, word)
    return stream, bool(left), word


def _write(stream, word: str) -> None:
    """Make this process, its parent and a word the file's content, over the old: takes no room."""
    data = f"{os.getpid()} {os.getppid()}\n{word}".encode()
    os.pwrite(stream.fileno(), data, 0)
    os.ftruncate(stream.fileno(), len(data))


@cache
def ros_types() -> SimpleNamespace:
    """rclpy's message classes, as ``hapo_ros.episodes.interfaces.MessageTypes`` describes them."""
    classes = {
        name: getattr(import_module(f"{package}.msg"), name)
        for package, names in CLASSES.items()
        for name in names
    }
    return SimpleNamespace(sequence=ros_sequence, **classes)


def message_class(type_name: str):
    """The rclpy class of a type such as ``sensor_msgs/msg/Image``."""
    package, _, name = type_name.split("/")
    return getattr(import_module(f"{package}.msg"), name)


class HapoNode(Node):
    """A node with declared, checked, read-only parameters and timers on the steady clock."""

    def __init__(self, name: str, parameters: Sequence[Parameter]):
        super().__init__(name)
        # Whether the process before this one, of the same name, did not end well; its last word.
        self._name_lock, self.after_crash, self.word_left = _lock_name(
            self.get_fully_qualified_name(), self.context.get_domain_id()
        )
        self._word = self.word_left
        self.started_s = self.now_s()
        self.parameters = self._declare(parameters)
        self.types = ros_types()
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.finished = False  # set to end the node with exit code 0

    def _declare(self, parameters: Sequence[Parameter]) -> SimpleNamespace:
        values = {}
        for parameter in parameters:
            descriptor = ParameterDescriptor(
                description=parameter.description, read_only=True, dynamic_typing=False
            )
            bounds = {"from_value": parameter.minimum, "to_value": parameter.maximum}
            if None not in bounds.values():
                if isinstance(parameter.default, float):
                    bounds = {key: float(value) for key, value in bounds.items()}
                    descriptor.floating_point_range = [FloatingPointRange(**bounds)]
                elif isinstance(parameter.default, int):
                    descriptor.integer_range = [IntegerRange(**bounds)]
            try:
                value = self.declare_parameter(parameter.name, parameter.default, descriptor).value
            except Exception as error:
                # rclpy raises several unrelated types here; all mean that the value is unusable.
                raise FatalError(f"Parameter {parameter.name} cannot be used: {error}") from error
            if problem := parameter.problem(value):
                raise FatalError(f"{problem} The node does not start. Mend the configuration.")
            values[parameter.name] = value
        self.add_on_set_parameters_callback(
            lambda _: SetParametersResult(
                successful=False,
                reason="Set in config/, at start: a running robot keeps its limits.",
            )
        )
        return SimpleNamespace(**values)

    def diagnose(self, look: Callable[[], tuple[bytes, str, Mapping[str, object]]]) -> None:
        """Publish what ``look`` gives on /diagnostics at 1 Hz: level, sentence, values by name."""
        publisher = self.create_publisher(DiagnosticArray, "/diagnostics", 10)

        def publish():
            level, text, values = look()
            status = DiagnosticStatus(
                level=level,
                name=f"{self.get_fully_qualified_name()[1:]}: {self.get_name()}",
                message=text,
                hardware_id="hapo_ros",
                values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
            )
            array_ = DiagnosticArray(status=[status])
            array_.header.stamp = self.get_clock().now().to_msg()
            publisher.publish(array_)

        self.every(1.0, publish)

    def every(self, period_s: float, callback: Callable[[], None]):
        """A timer on the steady clock, whatever ROS time does."""
        return self.create_timer(period_s, callback, clock=self._steady)

    def now_s(self) -> float:
        """Steady receipt clock in seconds."""
        return time.monotonic()

    def ros_now_ns(self) -> int:
        """ROS time in ns, for stamps."""
        return self.get_clock().now().nanoseconds

    def age_s(self, message) -> float:
        """Time since a message was stamped, by the clocks of both sides."""
        return (self.ros_now_ns() - messages.message_stamp_ns(message)) / 1e9

    def is_from_before(self, message) -> bool:
        """Whether a message was stamped before this process began; by ages, as clocks are set."""
        return self.age_s(message) > self.now_s() - self.started_s

    def publish_info(self, publisher, data: dict) -> None:
        """Publish a latched JSON String."""
        publisher.publish(self.types.String(data=json.dumps(data)))

    def is_read_by(self, publisher, nodes: Sequence[str]) -> bool:
        """Whether every one of ``nodes``, by name, reads what is published, whoever else does."""
        wanted = set(nodes) - {""}
        known = self.get_subscriptions_info_by_topic(publisher.topic_name)
        # Known to the graph is not yet matched with this publisher.
        matched = publisher.get_subscription_count() >= len(wanted)
        return matched and wanted <= {reader.node_name for reader in known}

    def until_heard(self, *publishers) -> None:
        """Wait until what was published has arrived: it is lost with this process. Not for long."""
        for publisher in publishers:
            publisher.wait_for_all_acked(Duration(seconds=0.5))

    def leave_word(self, word: str) -> None:
        """Of a line; who follows a crash of this one in its deployment has it in ``word_left``.

        Say it as often as you like: it is written where it is another one.
        """
        if word == self._word:
            return
        self._word = word
        try:
            _write(self._name_lock, word)
        except OSError as error:
            self.get_logger().error(
                f"{self._name_lock.name} cannot be written ({error.strerror}). This node goes on; "
                f"one that is started after a crash of it will not know: {word or 'all is well'}."
            )

    def ended_well(self) -> None:
        """Leave nothing for the next process of this name, see ``after_crash``."""
        os.ftruncate(self._name_lock.fileno(), 0)

    def shut_down(self) -> None:
        """Called once before the context ends: the last messages, closing files."""


def run(
    make_node: Callable[[], HapoNode], argv: Sequence[str] | None = None, threads: int = 1
) -> int:
    """Run one node in this process until one of ``ENDS`` or its own end; returns the exit code.

    One shared handler sets a flag, so that ``shut_down`` can still publish; rclpy's own handler
    would end the context first. A second signal changes nothing. While the node is still being
    made, which takes seconds where much is loaded, a signal ends that at once.
    """
    stop, node, executor, code = SimpleNamespace(asked=False), None, None, 0

    def ask(_signal, _frame):
        first, stop.asked = not stop.asked, True
        if first and node is None:
            raise SystemExit

    for number in ENDS:
        signal.signal(number, ask)

    try:
        _join_ros(argv)
        node = make_node()
        executor = SingleThreadedExecutor() if threads == 1 else MultiThreadedExecutor(threads)
        executor.add_node(node)
        while rclpy.ok() and not stop.asked and not node.finished:
            executor.spin_once(timeout_sec=0.1)
    except BaseException as error:
        code = 1
        if node is None and stop.asked:
            code = 0  # that signal, whatever a library that was being loaded has made of it
        elif isinstance(error, FatalError):
            code = error.code
            _complain(node, str(error))
        elif not isinstance(error, ExternalShutdownException):
            raise
    finally:
        if node is not None:
            node.shut_down()
            node.destroy_node()
            # Before the context: destroyed by chance after it, its guard condition complains.
            if executor is not None:
                executor.shutdown(timeout_sec=1.0)
            if code == 0:
                node.ended_well()
        rclpy.try_shutdown()
    # Python takes its handlers back as it ends: one more signal would be the process's end.
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)
    return code


def _join_ros(argv: Sequence[str] | None) -> None:
    try:
        rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:
        # rclpy raises several unrelated types here; a bad file or argument is the usual reason.
        what = str(error).partition("\n")[0]
        raise FatalError(f"{what}. The node does not start. Mend its arguments.") from error


def _complain(node: Node | None, sentence: str) -> None:
    if node is None:
        print(f"[FATAL] {sentence}", file=sys.stderr, flush=True)
    else:
        node.get_logger().fatal(sentence)
