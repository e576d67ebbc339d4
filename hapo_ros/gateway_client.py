"""Speaks to the graph without rclpy: the gateway node as a subprocess, JSON lines both ways."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from hapo_ros import jsonlines, processes
from hapo_ros.supervisor import executable

EPISODE_RUNNING = 2  # EpisodeState.RUNNING, which only the nodes can import


class GatewayError(RuntimeError):
    """A call to the graph failed; the message is a sentence."""


class NoServer(GatewayError):
    """Nobody on the graph offers what was called."""


class GatewayClient:
    """One running gateway. Raises DeploymentError where the nodes are not installed.

    server_timeout_s: longest wait for a server to appear on the graph. on_event: called with every
    ``{"event": ...}`` the gateway tells, in the thread that calls :meth:`call` or :meth:`news`.
    console: tell of the operator's device and of diagnostics too.

    ``running_episode`` is the id of the episode that the recorder last said is running, or "".
    """

    def __init__(
        self,
        server_timeout_s: float = 10.0,
        on_event: Callable[[dict], None] = lambda event: None,
        log=subprocess.DEVNULL,
        console: bool = False,
    ):
        arguments = [sys.executable, str(executable("gateway")), "--ros-args"]
        arguments += ["-p", f"server_timeout_s:={float(server_timeout_s)}"]
        arguments += ["-p", "console:=true"] if console else []
        self._process = processes.start(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        self._on_event = on_event
        self.running_episode = ""
        self._lines: queue.Queue[dict | None] = queue.Queue()
        self._last_id = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            if (said := jsonlines.read(line)) is not None:
                self._lines.put(said)
        self._lines.put(None)

    def heard(self, timeout_s: float = 0.0) -> dict | None:
        """The next thing that the gateway says, an event or an answer; None if none comes in time.

        Raises GatewayError where the gateway has ended.
        """
        try:
            said = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if said is None:
            self._lines.put(None)  # for whoever asks next
            raise GatewayError("The gateway to the ROS graph ended.")
        return said

    def news(self) -> None:
        """Pass on the events that have come; waits for nothing."""
        while (said := self.heard()) is not None:
            if "event" in said:
                self._hear(said)

    def _hear(self, event: dict) -> None:
        if event["event"] == "episode":
            running = event["state"] == EPISODE_RUNNING
            self.running_episode = event["episode_id"] if running else ""
        self._on_event(event)

    def begin(self, call: str, **fields) -> int:
        """Send a request; returns its id."""
        self._last_id += 1
        self._send({"id": self._last_id, "call": call, **fields})
        return self._last_id

    def cancel(self, request_id: int) -> None:
        """Ask for the end of an action's goal."""
        self._last_id += 1
        self._send({"id": self._last_id, "cancel": request_id})

    def _send(self, data: dict) -> None:
        try:
            self._process.stdin.write(json.dumps(data) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise GatewayError("The gateway to the ROS graph ended.") from error

    def replies(self, request_id: int, timeout_s: float) -> Iterator[dict | None]:
        """What the graph says to a request, up to its result; None now and then meanwhile.

        Raises GatewayError on an error, or where nothing is said to it for ``timeout_s``, whatever
        else is heard.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            said = self.heard(0.1) or {}
            if "event" in said:
                self._hear(said)
            if said.get("id") == request_id:
                if "error" in said:
                    raise (NoServer if said.get("no_server") else GatewayError)(said["error"])
                deadline = time.monotonic() + timeout_s
                yield said
                if "result" in said:
                    return
            elif time.monotonic() > deadline:
                raise GatewayError(f"No answer from the graph for {timeout_s:g} s.")
            else:
                yield None

    def call(self, call: str, timeout_s: float = 30.0, **fields) -> dict:
        """Send a request and wait for its result."""
        for said in self.replies(self.begin(call, **fields), timeout_s):
            if said and "result" in said:
                return said["result"]
        raise GatewayError("The graph gave no result.")

    def close(self) -> None:
        """End the gateway."""
        processes.stop(self._process, 5.0)

    def __enter__(self) -> "GatewayClient":
        return self

    def __exit__(self, *_) -> None:
        self.close()
