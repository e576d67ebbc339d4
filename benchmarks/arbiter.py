"""What arbitration adds to the way of a command, beside a relay that decides nothing.

    python benchmarks/arbiter.py                # on an idle machine
    python benchmarks/arbiter.py --busy 2       # with two cores kept busy
    python benchmarks/arbiter.py --record docs/arbiter.json

At every rate the real arbiter node, in a process of its own, gets ticks and policy answers from
this process, and another process receives its ExecutedAction. Added latency: from before the last
input that the decision needs is published (the policy's answer, or the tick while the human has the
arm) to the receipt of the ExecutedAction; so it contains the transport of both messages. A relay, a
node that answers the same input with the same message, gets the same work in the same run. Operator
to command: from before a new deflection is published, at a random moment, to the receipt of the
first command that has it; it contains the wait for the next tick.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np

from hapo_ros import processes, topics
from hapo_ros.arbitration import Arbiter, ArbiterConfig, Event, HumanSample, PolicyCommand, Tick
from hapo_ros.episodes import messages
from hapo_ros.episodes.types import EpisodeInfo
from hapo_ros.supervisor import executable

EPISODE = "benchmark"
MODES = {"policy": "the policy acts", "human": "the human acts"}


@contextmanager
def ros_node(name: str):
    """A node and a function that spins it for at most so many seconds."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node(name, context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        yield node, lambda timeout_s: executor.spin_once(timeout_sec=timeout_s)
    finally:
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()


def receive(results, ready, stop) -> None:
    """Process: (monotonic ns, sequence, x of the action) of every decision on a tick."""
    from hapo_ros.msg import ExecutedAction
    from hapo_ros.nodes.common import RECORD

    heard = []

    def on_decision(message):
        now_ns = time.monotonic_ns()
        if message.tick and message.episode_id == EPISODE:
            heard.append((now_ns, message.sequence, message.action[0]))

    with ros_node("benchmark_receiver") as (node, spin):
        node.create_subscription(ExecutedAction, topics.EXECUTED_ACTION, on_decision, RECORD)
        ready.set()
        while not stop.is_set():
            spin(0.05)
    results.put(heard)


def relay(mode: str, ready, stop) -> None:
    """Process: answers the same input with the same message, and decides nothing."""
    from hapo_ros.msg import ExecutedAction, ObservationTick, PolicyAction
    from hapo_ros.nodes.common import RECORD

    with ros_node("benchmark_relay") as (node, spin):
        output = node.create_publisher(ExecutedAction, topics.EXECUTED_ACTION, RECORD)
        answer = ExecutedAction(episode_id=EPISODE, tick=True, action=[0.0] * 7)
        answer.requested = answer.action

        def on_input(message):
            answer.sequence = message.sequence
            output.publish(answer)

        source, type_ = topics.OBSERVATION_TICK, ObservationTick
        if mode == "policy":
            source, type_ = topics.POLICY_ACTION, PolicyAction
        node.create_subscription(type_, source, on_input, RECORD)
        ready.set()
        while not stop.is_set():
            spin(0.05)


class Driver:
    """The robot side, the policy and the device: publishes a decision's inputs, and when."""

    def __init__(self, node):
        from hapo_ros.msg import EpisodeState, ObservationTick, PolicyAction
        from hapo_ros.nodes.common import LATCHED, RECORD, ros_types

        self.types = types = ros_types()
        self.node = node
        self.ticks = node.create_publisher(ObservationTick, topics.OBSERVATION_TICK, RECORD)
        self.answers = node.create_publisher(PolicyAction, topics.POLICY_ACTION, RECORD)
        self.device = {
            topics.JOY: node.create_publisher(types.Joy, topics.JOY, RECORD),
            topics.TWIST: node.create_publisher(types.TwistStamped, topics.TWIST, RECORD),
        }
        self.states = node.create_publisher(EpisodeState, topics.EPISODE_STATE, LATCHED)
        self.sequence, self.epoch = 0, 0
        self._stamp_ns = 0

    def _now_ns(self) -> int:
        return self.node.get_clock().now().nanoseconds

    def matched(self) -> bool:
        heard = (self.ticks, self.answers, self.states, *self.device.values())
        return all(publisher.get_subscription_count() for publisher in heard)

    def begin(self) -> None:
        """The episode; an arbiter that finds it begun holds."""
        info = EpisodeInfo(EPISODE, "none", "", "deployment", 0)
        state = messages.episode_state_message(
            self.types, self._now_ns(), self.states.msg_type.RUNNING, info
        )
        self.states.publish(state)

    def report(self, deflection: float, button: int = 0) -> int:
        """One report of the device; returns when, monotonic ns."""
        axes = np.array([deflection, 0, 0, 0, 0, 0], np.float32)
        self._stamp_ns = max(self._now_ns(), self._stamp_ns + 1)
        built = messages.operator_messages(
            self.types, axes, (0, button), axes.astype(np.float64), self._stamp_ns
        )
        at_ns = time.monotonic_ns()
        for topic, message in built.items():
            self.device[topic].publish(message)
        return at_ns

    def tick(self) -> int:
        tick = Tick(EPISODE, self.sequence, self._now_ns(), epoch=self.epoch)
        message = messages.tick_message(self.types, tick, {})
        at_ns = time.monotonic_ns()
        self.ticks.publish(message)
        return at_ns

    def answer(self) -> int:
        command = PolicyCommand(
            EPISODE, self.sequence, self.epoch, "benchmark", np.zeros((1, 7), np.float32)
        )
        message = messages.policy_action_message(self.types, command, self._now_ns())
        at_ns = time.monotonic_ns()
        self.answers.publish(message)
        return at_ns


def drive(driver: Driver, mode: str, rate_hz: float, seconds: float) -> tuple[dict, list]:
    """Publish at a rate; returns {sequence: time of its last input} and [(time, deflection)]."""
    period_s = 1.0 / rate_hz
    sent, moves = {}, []
    rng = random.Random(0)
    begin_s = time.monotonic()
    deflection, next_report_s = 0.5, begin_s
    next_move_s = begin_s + 0.5
    for n in range(round(rate_hz * seconds)):
        due_s = begin_s + n * period_s
        while (now_s := time.monotonic()) < due_s:
            if mode == "human" and now_s >= next_move_s:
                deflection = 0.3 + 0.4 * (len(moves) % 1000) / 1000
                moves.append((driver.report(deflection), deflection))
                next_move_s = now_s + rng.uniform(1.1, 1.9) * max(period_s, 0.01)
                next_report_s = now_s + 0.01
            elif now_s >= next_report_s:
                driver.report(deflection if mode == "human" else 0.0)
                next_report_s = now_s + 0.01
            time.sleep(min(max(due_s - now_s, 0.0), 0.0005))
        sent[driver.sequence] = driver.tick()
        if mode == "policy":
            time.sleep(period_s * 0.2)
            sent[driver.sequence] = driver.answer()
        driver.sequence += 1
    return sent, moves


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def receiving(results, context) -> Iterator[None]:
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=receive, args=(results, ready, stop), daemon=True)
    process.start()
    if not ready.wait(30):
        raise RuntimeError("The receiver did not start.")
    try:
        yield
    finally:
        stop.set()


def wait_until(condition, timeout_s: float, what: str) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            raise RuntimeError(f"{what} within {timeout_s:g} s.")
        time.sleep(0.01)


def measure(what: str, mode: str, rate_hz: float, seconds: float, context) -> dict:
    """One run of the arbiter or the relay; latencies in ms."""
    results = context.Queue()
    ready, stop = context.Event(), context.Event()
    period_s = 1.0 / rate_hz
    if what == "arbiter":
        values = {
            "control_period_s": period_s,
            "policy_deadline_s": 0.9 * period_s,
            "tick_timeout_s": 5.0,
            "device_timeout_s": 5.0,
        }
        given = [word for name, value in values.items() for word in ("-p", f"{name}:={value}")]
        started = processes.start(
            [executable("arbiter").parent / "arbiter", "--ros-args", "--log-level", "ERROR", *given]
        )
        pid = started.pid
    else:
        started = context.Process(target=relay, args=(mode, ready, stop), daemon=True)
        started.start()
        pid = started.pid
    try:
        with receiving(results, context), ros_node("benchmark_driver") as (node, _):
            driver = Driver(node)
            condition = ready.is_set
            if what == "arbiter":
                condition = driver.matched
            wait_until(condition, 30, f"The {what} did not start")
            time.sleep(0.5)  # for what matches with the other process; nothing is measured yet
            for _ in range(30):  # the device is seen at rest, then takes over where it has to
                driver.report(0.0)
                time.sleep(0.01)
            driver.begin()
            before_s, began_s = cpu_s(pid), time.monotonic()
            sent, moves = drive(driver, mode, rate_hz, seconds)
            share = (cpu_s(pid) - before_s) / (time.monotonic() - began_s)
            time.sleep(0.3)
        heard = results.get(timeout=30)
    finally:
        stop.set()
        if what == "arbiter":
            processes.stop(started, 5.0)
        else:
            started.join(10)
    return summary(sent, moves, heard, rate_hz) | {"cpu_share": round(share, 4)}


def summary(sent: dict, moves: list, heard: list, rate_hz: float) -> dict:
    skip = round(rate_hz)  # the first second: the takeover, and what is not warm yet
    arrived = {sequence: at_ns for at_ns, sequence, _ in reversed(heard)}
    added = [(arrived[s] - at_ns) / 1e6 for s, at_ns in sent.items() if s >= skip and s in arrived]
    found = {
        "decisions": len(added),
        "missing": sum(s not in arrived for s in sent if s >= skip),
        "added_ms": percentiles(added),
    }
    delays = []
    for at_ns, deflection in moves:
        first = next((t for t, _, x in heard if t > at_ns and abs(x - deflection) < 1e-4), None)
        if first is not None:
            delays.append((first - at_ns) / 1e6)
    if delays:
        found["operator_to_command_ms"] = percentiles(delays)
    return found


def percentiles(values) -> dict:
    if not values:
        return {"p50": None, "p99": None}
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 99)}


def pure_step(steps: int = 20_000) -> dict:
    """Time of ``Arbiter.step`` alone, half of the ticks with the human in control; us."""
    arbiter, took = Arbiter(ArbiterConfig()), []
    zeros, moved = np.zeros(6, np.float32), np.full(6, 0.5, np.float32)
    for n in range(steps):
        tick = Tick(EPISODE, n, n * 50_000_000, epoch=arbiter.epoch)
        axes = moved if n % 100 < 50 else zeros
        button = int(n % 100 == 60)
        human = [HumanSample(axes, (0, button), axes.astype(np.float64), n * 0.05, n)]
        policy = PolicyCommand(EPISODE, n, arbiter.epoch, "v", np.zeros((1, 7), np.float32))
        events = [Event.START_DEPLOYMENT] if n == 0 else []
        began = time.perf_counter()
        arbiter.step(n * 0.05, tick, policy, human, events)
        took.append((time.perf_counter() - began) * 1e6)
    return percentiles(took)


def burn() -> None:
    while True:
        pass


@contextmanager
def busy(cores: int, context) -> Iterator[None]:
    burners = [context.Process(target=burn, daemon=True) for _ in range(cores)]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", default="20,100,500", help="Hz, with commas")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each run")
    parser.add_argument("--busy", type=int, default=0, help="cores kept busy meanwhile")
    parser.add_argument("--record", help="JSON file of the results")
    arguments = parser.parse_args()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["ROS_DOMAIN_ID"] = str(random.randint(1, 100))
    context = multiprocessing.get_context("spawn")
    rows = []
    print(f"{'rate':>6} {'who acts':10} {'':10} {'added p50':>10} {'p99 ms':>8} {'CPU':>6}")
    with busy(arguments.busy, context):
        step = pure_step()
        for rate in map(float, arguments.rates.split(",")):
            for mode in MODES:
                row = {"rate_hz": rate, "mode": mode}
                for what in ("relay", "arbiter"):
                    row[what] = found = measure(what, mode, rate, arguments.seconds, context)
                    added = found["added_ms"]
                    print(
                        f"{rate:6g} {mode:10} {what:10} {added['p50']:10} {added['p99']:8} "
                        f"{found['cpu_share']:6.1%}",
                        flush=True,
                    )
                ratio = row["arbiter"]["added_ms"]["p99"] / row["relay"]["added_ms"]["p99"]
                row["p99_ratio"] = round(ratio, 2)
                operator = row["arbiter"].get("operator_to_command_ms")
                if operator:
                    print(
                        f"{'':6} operator to command, of which up to {1000 / rate:g} ms are the "
                        f"wait for a tick: p50 {operator['p50']}, p99 {operator['p99']} ms"
                    )
                print(f"{'':6} arbiter / relay, p99: {ratio:.2f}")
                rows.append(row)
    print(f"Arbiter.step alone: p50 {step['p50']} us, p99 {step['p99']} us")
    result = {
        "command": "python benchmarks/arbiter.py",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python "
        f"{platform.python_version()}",
        "busy_cores": arguments.busy,
        "step_us": step,
        "rows": rows,
    }
    if arguments.record:
        Path(arguments.record).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
