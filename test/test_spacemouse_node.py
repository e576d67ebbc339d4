"""The spacemouse and keyboard nodes as processes: what they publish, and how they end."""

import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
from fake_spacemouse import AT_REST, AWAY, DEADLINE_S, Mouse
from fake_spacemouse import NODE as SPACEMOUSE

from hapo_ros import topics

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)
pytest.importorskip("pyspacemouse")

KEYBOARD = "import sys; from hapo_ros.nodes.keyboard import main; sys.exit(main())"


def wait_for(condition, meanwhile=lambda: None):
    """Until ``condition`` holds, or the deadline; returns its value."""
    end_s = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end_s, "the deadline passed"
        meanwhile()
    return value


class Operator:
    """Reads the operator's topics, and starts nodes."""

    def __init__(self, folder, domain):
        from geometry_msgs.msg import TwistStamped
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import Joy

        self.folder = folder
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("operator_test", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.joys, self.twists, self.processes = [], [], []
        self.node.create_subscription(Joy, topics.JOY, self.joys.append, 200)
        self.node.create_subscription(TwistStamped, topics.TWIST, self.twists.append, 200)

    def spin(self):
        self.executor.spin_once(timeout_sec=0.005)

    def start(self, code, *arguments, **settings):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=self.folder,
            stderr=subprocess.PIPE,
            text=True,
            **{"stdin": subprocess.DEVNULL, **settings},
        )
        self.processes.append(process)
        log = []
        reader = threading.Thread(target=lambda: log.extend(process.stderr), daemon=True)
        reader.start()
        return SimpleNamespace(process=process, log=log, reader=reader)

    def ended(self, started):
        code = started.process.wait(DEADLINE_S)
        started.reader.join(DEADLINE_S)
        return code, "".join(started.log)

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)


@pytest.fixture
def operator(tmp_path, ros_domain):
    operator = Operator(tmp_path, ros_domain)
    yield operator
    operator.close()


def parameters(**values):
    return ["--ros-args"] + [a for k, v in values.items() for a in ("-p", f"{k}:={v}")]


def stamp_s(message):
    return message.header.stamp.sec + message.header.stamp.nanosec * 1e-9


def test_the_spacemouse_node_publishes_rest_motion_silence_and_a_reconnected_device(operator):
    mouse = Mouse(operator.folder / "hid")
    settings = parameters(
        linear_scale_m_s=0.2, deadband=0.0, reopen_every_s=0.1, frame_id="tool_base"
    )
    started = operator.start(SPACEMOUSE, str(mouse.path), *settings)
    mouse.opened()

    # At rest, with no report ever: neutral, at the fixed rate, as soon as the machine lets it.
    def at_its_rate():
        last = operator.joys[-21:]
        spacing_s = sorted(stamp_s(b) - stamp_s(a) for a, b in pairwise(last))
        return len(spacing_s) == 20 and spacing_s[10] == pytest.approx(0.01, rel=0.5)

    wait_for(at_its_rate, operator.spin)
    assert not any(any(joy.axes) for joy in operator.joys)

    # A deflected cap reports all the time; Joy and twist share a stamp and the scale holds.
    def push():
        mouse.cable.send(AWAY)
        operator.spin()

    wait_for(lambda: any(joy.axes[0] == 1 for joy in operator.joys), push)
    wait_for(lambda: any(t.twist.linear.x for t in operator.twists), push)
    twist = next(t for t in operator.twists if t.twist.linear.x)
    joy = wait_for(
        lambda: [j for j in operator.joys if j.header.stamp == twist.header.stamp], push
    )[0]
    assert joy.axes[0] == 1 and list(joy.buttons) == [0, 0]
    assert twist.twist.linear.x == pytest.approx(0.2) and twist.header.frame_id == "tool_base"

    # Deflected and no reports: silence. The sentinel is the neutral state after a report.
    wait_for(lambda: any("SpaceMouse silent" in line for line in started.log), operator.spin)
    mouse.cable.send(AT_REST)
    wait_for(lambda: operator.joys[-1].axes[0] == 0, operator.spin)
    last = max(i for i, joy in enumerate(operator.joys) if joy.axes[0])
    assert stamp_s(operator.joys[last + 1]) - stamp_s(operator.joys[last]) > 0.25

    # Unplugged and plugged in again.
    mouse.unplug()
    wait_for(lambda: any("SpaceMouse lost" in line for line in started.log), operator.spin)
    mouse = Mouse(mouse.path)
    mouse.opened()
    mouse.cable.send(b"\x03\x01")
    wait_for(lambda: operator.joys[-1].buttons[0] == 1, operator.spin)

    started.process.send_signal(signal.SIGTERM)
    code, log = operator.ended(started)
    assert code == 0 and "Traceback" not in log
    stamps = [(joy.header.stamp.sec, joy.header.stamp.nanosec) for joy in operator.joys]
    assert len(set(stamps)) == len(stamps)


def test_one_of_two_mice_that_is_lost_is_not_replaced_by_the_other_and_that_is_said(operator):
    mouse, other = (Mouse(operator.folder / name) for name in ("hid", "hid2"))
    started = operator.start(SPACEMOUSE, str(mouse.path), *parameters(reopen_every_s=0.1))
    mouse.opened()
    mouse.unplug()
    said = f"there is only SpaceNavigator at {other.path}. None is opened"
    wait_for(lambda: any(said in line for line in started.log), operator.spin)
    assert not other.wanted()
    mouse = Mouse(mouse.path)
    mouse.opened()
    mouse.cable.send(b"\x03\x01")
    wait_for(lambda: operator.joys and operator.joys[-1].buttons[0] == 1, operator.spin)
    started.process.send_signal(signal.SIGTERM)
    assert operator.ended(started)[0] == 0


def test_a_cap_held_at_start_is_published_deflected_from_the_first_message(operator):
    mouse = Mouse(operator.folder / "hid")
    started = operator.start(SPACEMOUSE, str(mouse.path))
    mouse.opened()

    def push():
        mouse.cable.send(AWAY)
        operator.spin()

    wait_for(lambda: operator.joys, push)
    assert operator.joys[0].axes[0] == 1
    started.process.send_signal(signal.SIGINT)
    code, log = operator.ended(started)
    assert code == 0 and "Traceback" not in log


def test_the_spacemouse_node_without_a_device_ends_and_names_the_alternatives(operator):
    code, log = operator.ended(operator.start(SPACEMOUSE, str(operator.folder / "nothing")))
    assert code == 1
    for part in ("No SpaceMouse", "operator:=keyboard", "operator:=simulated", "hapo doctor"):
        assert part in log
    assert "Traceback" not in log


def test_a_parameter_out_of_range_stops_the_node_with_a_sentence(operator):
    mouse = Mouse(operator.folder / "hid")
    too_fast = parameters(rate_hz=1e6)
    code, log = operator.ended(operator.start(SPACEMOUSE, str(mouse.path), *too_fast))
    assert code == 1 and "rate_hz" in log and "Traceback" not in log


def test_the_keyboard_node_publishes_keys_and_quits(operator):
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    started = operator.start(KEYBOARD, *parameters(deflection=0.25), stdin=theirs)
    wait_for(lambda: operator.joys, operator.spin)
    assert termios.tcgetattr(theirs) != before
    os.write(ours, b"a ")
    wait_for(lambda: any(joy.axes[1] for joy in operator.joys), operator.spin)
    joy = next(joy for joy in operator.joys if joy.axes[1])
    assert joy.axes[1] == 0.25 and list(joy.buttons) == [1, 0]
    wait_for(lambda: not operator.joys[-1].axes[1], operator.spin)  # let go by itself
    os.write(ours, b"q")
    code, log = operator.ended(started)
    assert code == 0 and "Traceback" not in log
    assert termios.tcgetattr(theirs) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_gives_the_keyboards_terminal_back(operator, number):
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    started = operator.start(KEYBOARD, stdin=theirs)
    wait_for(lambda: operator.joys, operator.spin)
    started.process.send_signal(number)
    started.process.send_signal(number)
    code, log = operator.ended(started)
    assert code == 0 and "Traceback" not in log
    assert termios.tcgetattr(theirs) == before
    os.close(ours)


def test_the_keyboard_node_without_a_terminal_ends_with_a_sentence(operator):
    code, log = operator.ended(operator.start(KEYBOARD))
    assert code == 1 and "needs a terminal" in log and "Traceback" not in log
