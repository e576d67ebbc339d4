"""Deployments for tests: the installed nodes as processes, watched, spoken to, gone at the end."""

import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hapo_ros import processes
from hapo_ros.deployment import describe
from hapo_ros.gateway_client import GatewayClient, GatewayError
from hapo_ros.resources import resource
from hapo_ros.supervisor import Supervisor, executable

DEADLINE_S = 60.0
RUNNING = 2  # EpisodeState.RUNNING
ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def wait_for(condition: Callable, meanwhile=lambda: None, timeout_s: float = DEADLINE_S):
    """Until ``condition`` holds, or the deadline; returns its value."""
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end_s, f"the deadline passed: {condition}"
        meanwhile()
        time.sleep(0.005)
    return value


def save_untrained(folder: Path, *, cameras=(), object_state: int = 0, seed: int = 0, **config):
    """A small untrained checkpoint; cameras are seen at 84 x 84. Returns its folder."""
    import numpy as np
    import torch

    from hapo_ros.policies import checkpoint
    from hapo_ros.policies.small import Normalisation
    from hapo_ros.policies.tiny_vla import TinyVla, TinyVlaConfig
    from hapo_ros.policies.tokenizers import Words

    # Never the global random state: other tests draw from it.
    rng = np.random.default_rng(seed)
    proprio = rng.normal(size=(50, 11)).astype(np.float32)
    state = rng.normal(size=(50, object_state)).astype(np.float32) if object_state else None
    shape = {"width": 32, "blocks": 1, **config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = TinyVla(
            TinyVlaConfig(
                cameras={name: (84, 84) for name in cameras},
                object_state=object_state,
                action_names=ACTION_NAMES,
                **shape,
            ),
            Normalisation.fit(len(ACTION_NAMES), proprio, state),
            Words.fit(["lift the cube"]),
        )
    checkpoint.save(policy, folder, {"method": "none"})
    return folder


@contextmanager
def nothing_left_running() -> Iterator[Callable[[], dict[int, str]]]:
    """Fails where a process that was started inside is still there at the end.

    Processes are known by a mark in their environment, whoever their parent is by then. Yields the
    function that gives those there are: pid -> command line.
    """
    mark = f"HAPO_ROS_TEST_{uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(mark, "1")
        yield lambda: marked(mark)
    try:
        wait_for(lambda: not marked(mark))
    finally:
        left = marked(mark)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"left running: {left}"


def marked(mark: str) -> dict[int, str]:
    """pid -> command line of the living processes whose environment has ``mark``."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(folder.name)] = line
    return found


def is_alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def start_node(name: str, log: Path, *ros_arguments: str, **parameters):
    """One installed node as a process, its output in ``log``; a subprocess.Popen."""
    import sys

    given = [word for key, value in parameters.items() for word in ("-p", f"{key}:={value}")]
    with log.open("ab") as output:
        return processes.start(
            [sys.executable, str(executable(name)), "--ros-args", *ros_arguments, *given],
            stdin=-3,  # DEVNULL
            stdout=output,
            stderr=output,
        )


def fill(disk: Path, *, left_mib: int = 0) -> None:
    """Another process fills the disk, all but ``left_mib``."""
    free = shutil.disk_usage(disk).free
    size = free - (left_mib << 20) if left_mib else 2 * free
    command = ["dd", "if=/dev/zero", f"of={disk / 'full'}", "bs=64K", f"count={size >> 16}"]
    full = subprocess.run(command, capture_output=True)
    assert (full.returncode == 0) == bool(left_mib)


def log(process) -> str:
    """What a node of the fixture ``start`` has written so far."""
    return process.log.read_text()


def configuration(folder: Path, parameters: dict) -> Path:
    """The configuration that ships, with parameters (node -> name -> value) over it, as a file."""
    yaml = YAML(typ="safe")
    config = yaml.load(Path(resource("config/deployment.yaml")))
    for node, values in parameters.items():
        config.setdefault(node, {"ros__parameters": {}})["ros__parameters"].update(values)
    path = folder / "deployment.yaml"
    yaml.dump(config, path)
    return path


class Graph:
    """A running deployment and a gateway to it.

    parameters: node -> parameters, over those that ship. arguments: of the deployment.
    by_hand: node -> further ROS arguments of a node that the supervisor does not start.
    """

    def __init__(self, folder: Path, policy: Path, parameters=None, by_hand=None, **arguments):
        self.folder, self.bags = folder, folder / "bags"
        self.logs, self.checkpoints = folder / "logs", folder / "checkpoints"
        self.said: list[str] = []
        self.events: list[dict] = []
        self.authorities: list[dict] = []
        folder.mkdir(parents=True, exist_ok=True)
        given = {
            "operator": "none",
            "optimizer": "false",
            "policy": str(policy),
            "bags": str(self.bags),
            "checkpoints": str(self.checkpoints),
            "config": str(configuration(folder, parameters or {})),
        }
        self.deployment = describe(given | {key: str(value) for key, value in arguments.items()})
        self._by_hand = by_hand or {}
        self._environment = pytest.MonkeyPatch()
        self._others = []

    def __enter__(self) -> "Graph":
        from dataclasses import replace

        self._environment.setenv("ROS_LOG_DIR", str(self.logs / "ros"))
        nodes = self.deployment.nodes
        kept = tuple(node for node in nodes if node.name not in self._by_hand)
        self.supervisor = Supervisor(
            replace(self.deployment, nodes=kept), self.logs, self.said.append
        )
        self.gateway = None
        try:
            self.supervisor.start()
            for node in nodes:
                if node.name in self._by_hand:
                    self._start_by_hand(node)
            with (self.logs / "gateway.log").open("ab") as log:
                self.gateway = GatewayClient(30.0, self._hear, log=log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_by_hand(self, node) -> None:
        arguments = ["-r", f"__node:={node.name}"]
        arguments += ["--params-file", str(self.deployment.parameter_file)]
        for name, value in node.parameters.items():
            value = str(value).lower() if isinstance(value, bool) else value
            arguments += ["-p", f"{name}:={value}"]
        arguments += self._by_hand[node.name]  # the last word counts
        log = self.logs / f"{node.name}.log"
        self._others.append(start_node(node.executable, log, *arguments))

    def __exit__(self, *_) -> None:
        for process in self._others:
            processes.stop(process, 5.0)
        self.supervisor.stop()
        if self.gateway is not None:
            self.gateway.close()
        self._environment.undo()

    def _hear(self, event: dict) -> None:
        self.events.append(event)
        if event["event"] == "authority":
            self.authorities.append(event)

    @property
    def served(self) -> dict:
        """What the policy node last said that it serves."""
        return next((e for e in reversed(self.events) if e["event"] == "policy"), {})

    @property
    def state(self) -> dict:
        """The recorder's last word."""
        return next((e for e in reversed(self.events) if e["event"] == "episode"), {})

    def until(self, condition: Callable, timeout_s: float = DEADLINE_S):
        """Look after the deployment until ``condition`` holds; returns its value."""

        def meanwhile():
            self.supervisor.watch()
            self.gateway.news()

        try:
            return wait_for(condition, meanwhile, timeout_s)
        except AssertionError:
            logs = {path.name: path.read_text()[-1500:] for path in self.logs.glob("*.log")}
            raise AssertionError(f"the deadline passed; logs: {logs}") from None

    def until_done(self, timeout_s: float = 100.0) -> list[Path]:
        """Until the simulated operator has done its work; returns all bags in order of time."""
        self.until(lambda: "simulated_operator" in self.supervisor.done, timeout_s)
        return sorted(self.bags.iterdir(), key=lambda bag: (bag / "metadata.yaml").stat().st_mtime)

    def log(self, node: str) -> str:
        """What a node has written so far."""
        return (self.logs / f"{node}.log").read_text()

    def start_episode(self, timeout_s: float = 40.0, **fields) -> str:
        """Start an episode, as soon as the nodes are there and the policy serves; returns its id.

        timeout_s: for an answer; then it is asked again.
        """
        self.until(lambda: self.served)
        request = {"task": "Lift", "source": "deployment", "seed": 1} | fields
        replies = []

        def started():
            try:
                replies.append(self.gateway.call("start_episode", timeout_s, **request))
            except GatewayError:
                return False
            reply = replies[-1]
            # The robot's sensors; what a killed recorder has left.
            early = ("No one publishes", "has not come", "is being recovered")
            return reply["ok"] or not any(text in reply["text"] for text in early)

        self.until(started)
        assert replies[-1]["ok"], replies[-1]["text"]
        return replies[-1]["episode_id"]

    def end_episode(self, episode_id: str, **fields) -> dict:
        """End an episode after its last step, as a success unless ``fields`` say other."""
        request = {"episode_id": episode_id, "outcome": "success", "last_sequence": -1} | fields
        return self.gateway.call("end_episode", **request)

    def request(self, event) -> dict:
        """Ask the arbiter for an Event; the reply."""
        return self.gateway.call("request_authority", event=int(event))

    def discard_running(self) -> None:
        """Discard the running episode, if there is one."""
        self.gateway.news()
        if self.state.get("state") == RUNNING:
            self.gateway.call("discard_episode", episode_id=self.state["episode_id"])
        self.until(lambda: self.state.get("state") != RUNNING)

    def kill(self, node: str) -> int:
        """SIGKILL a node; returns its process id."""
        pid = self.supervisor.pid(node)
        os.kill(pid, signal.SIGKILL)
        return pid


class Probe:
    """A node in the test's own process, spun in a thread: what it hears is kept, by topic."""

    def __init__(self, domain: int, name: str = "probe", namespace: str = ""):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node(name, context=self.context, namespace=namespace)
        self.heard: dict[str, list] = {}
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._ended.is_set():
            self._executor.spin_once(timeout_sec=0.05)

    def listen(self, topic: str, raw: bool = False, callback=None) -> list:
        """Subscribe; returns the list that its messages go into."""
        from hapo_ros import topics
        from hapo_ros.nodes.common import LATCHED, RECORD, message_class

        latched = topic in (topics.EPISODE_STATE, topics.AUTHORITY_STATUS, topics.POLICY_INFO)
        messages = self.heard.setdefault(topic, [])
        self.node.create_subscription(
            message_class(topics.TYPES[topic]),
            topic,
            callback or messages.append,
            LATCHED if latched else RECORD,
            raw=raw,
        )
        return messages

    def publisher(self, topic: str, type_name: str = ""):
        """A publisher with the QoS of the graph; type_name: of an image's topic."""
        from hapo_ros import topics
        from hapo_ros.nodes.common import LATCHED, RECORD, STATUS, message_class

        latched = topic in (topics.EPISODE_STATE, topics.OBSERVATION_INFO, topics.POLICY_INFO)
        qos = STATUS if topic == topics.AUTHORITY_STATUS else LATCHED if latched else RECORD
        type_ = message_class(type_name or topics.TYPES[topic])
        return self.node.create_publisher(type_, topic, qos)

    def close(self) -> None:
        self._ended.set()
        self._thread.join(10)
        self._executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def publish_report(types, publishers, x=0.0, buttons=(0, 0), *, stamp_ns=None, frame="base_link"):
    """A report of the operator's device, whose cap is deflected along x; of now unless stamped."""
    import numpy as np

    from hapo_ros.episodes import messages

    axes = np.array([x, 0, 0, 0, 0, 0], np.float32)
    at = time.time_ns() if stamp_ns is None else stamp_ns
    built = messages.operator_messages(types, axes, buttons, axes.astype(np.float64), at, frame)
    for name, message in built.items():
        publishers[name].publish(message)


def called(probe, type_, name, **fields):
    client = probe.node.create_client(type_, name)
    wait_for(client.service_is_ready)
    future = client.call_async(type_.Request(**fields))
    wait_for(future.done)
    return future.result()


def diagnosed(probe):
    """What was last said on /diagnostics: DiagnosticStatus."""
    from diagnostic_msgs.msg import DiagnosticArray

    if "/diagnostics" not in probe.heard:
        heard = probe.heard["/diagnostics"] = []
        probe.node.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 10)
    wait_for(lambda: probe.heard["/diagnostics"])
    (status,) = probe.heard["/diagnostics"][-1].status
    return status
