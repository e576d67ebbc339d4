"""Runs the nodes of a deployment where ROS 2's launch is not installed: the same data, by hand."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hapo_ros import processes
from hapo_ros.deployment import PACKAGE, Deployment, NodeSpec
from hapo_ros.restarts import Reaction, Restarts


class DeploymentError(Exception):
    """The deployment cannot run, or not go on; the message is a sentence."""


def _print(sentence: str) -> None:
    """At once, into a pipe too. No run ends because nobody reads what it says any more."""
    with suppress(OSError):
        print(sentence, flush=True)


class Supervisor:
    """Starts, watches, restarts and stops the nodes of one deployment.

    log_folder: where each node's output goes, one file a node; None: to this terminal. say: called
    with a sentence when something happens. Ctrl-C reaches none of the children; they die with this
    process.
    """

    def __init__(
        self,
        deployment: Deployment,
        log_folder: Path | None = None,
        say: Callable[[str], None] = _print,
    ):
        self.deployment = deployment
        self._log_folder = log_folder
        self._say = say
        self._children: dict[str, subprocess.Popen] = {}
        self._restarts = Restarts(time.monotonic())
        self._restart_at: dict[str, float] = {}
        self.done: set[str] = set()  # nodes that ended because their work is done

    def start(self) -> None:
        """Start every node."""
        if self._log_folder is not None:
            self._log_folder.mkdir(parents=True, exist_ok=True)
        for spec in self.deployment.nodes:
            executable(spec.executable)  # all of them, or none is started
        for spec in self.deployment.nodes:
            self._start(spec)

    def _start(self, spec: NodeSpec) -> None:
        arguments = [sys.executable, str(executable(spec.executable)), "--ros-args"]
        arguments += ["-r", f"__node:={spec.name}"]
        arguments += ["--params-file", str(self.deployment.parameter_file)]
        for name, value in spec.parameters.items():
            arguments += ["-p", f"{name}:={_yaml(value)}"]
        output = None
        if self._log_folder is not None:
            output = (self._log_folder / f"{spec.name}.log").open("ab")
        try:
            self._children[spec.name] = processes.start(
                arguments,
                terminal=spec.terminal,
                stdin=None if spec.terminal else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        finally:
            if output is not None:
                output.close()

    def watch(self) -> None:
        """Look after the nodes once; call it often. Raises DeploymentError where the run ends."""
        now = time.monotonic()
        for spec in self.deployment.nodes:
            child = self._children.get(spec.name)
            if spec.name in self._restart_at:
                if now >= self._restart_at[spec.name]:
                    del self._restart_at[spec.name]
                    self._start(spec)
                continue
            if child is None or child.poll() is None:
                continue
            del self._children[spec.name]
            self._react(spec, child.returncode, now)

    def _react(self, spec: NodeSpec, code: int, now: float) -> None:
        verdict = self._restarts.ended(spec, code, now)
        if verdict.reaction is Reaction.END:
            raise DeploymentError(verdict.sentence + self.last_words(spec.name))
        if verdict.reaction is Reaction.DONE:
            self.done.add(spec.name)
        elif verdict.reaction is Reaction.RESTART:
            self._restart_at[spec.name] = now + spec.restart.delay_s
            self._say(verdict.sentence)
        else:
            self._say(verdict.sentence + self.last_words(spec.name))

    def run_again(self, spec: NodeSpec) -> None:
        """Start a node anew whose work was done, with what ``spec`` says now."""
        self.done.discard(spec.name)
        nodes = tuple(spec if node.name == spec.name else node for node in self.deployment.nodes)
        self.deployment = replace(self.deployment, nodes=nodes)
        self._start(spec)

    def pid(self, name: str) -> int | None:
        """Process id of a running node."""
        child = self._children.get(name)
        return child.pid if child is not None and child.poll() is None else None

    def last_words(self, name: str) -> str:
        """The end of a node's log, on new lines; empty where it wrote to the terminal."""
        if self._log_folder is None:
            return ""
        path = self._log_folder / f"{name}.log"
        lines = path.read_text(errors="replace").splitlines()[-8:] if path.exists() else []
        return "\n" + "\n".join(lines) + f"\n(all of it: {path})"

    def stop(self) -> None:
        """Stop every node, in order, each with its deadline. A second call does nothing."""
        self._restart_at.clear()
        specs = [spec for spec in self.deployment.nodes if spec.name in self._children]
        for order in sorted({spec.stop_order for spec in specs}):
            together = [spec for spec in specs if spec.stop_order == order]
            for spec in together:
                if self._children[spec.name].poll() is None:
                    self._children[spec.name].terminate()
            for spec in together:
                processes.stop(self._children.pop(spec.name), spec.stop_timeout_s)

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *_) -> None:
        self.stop()


def executable(name: str) -> Path:
    """The installed wrapper of a node, as ``ros2 run`` finds it."""
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    for prefix in filter(None, prefixes):
        candidate = Path(prefix) / "lib" / PACKAGE / name
        if candidate.is_file():
            return candidate
    raise DeploymentError(
        f"The node {name} is not installed. Nothing is started. Run `make setup` (or, on a ROS 2 "
        "machine, `colcon build`)."
    )


def _yaml(value) -> str:
    """A parameter value as the command line of a node takes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_yaml(item) for item in value) + "]"
    return str(value)
