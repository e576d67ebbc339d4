"""Starts the optimizer where ROS runs, and follows it: through the gateway, as everyone does."""

import json
import re
import shlex
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from hapo_ros.gateway_client import GatewayClient, GatewayError
from hapo_ros.resources import resource
from hapo_ros.supervisor import DeploymentError

SERVER_S = 6.0  # for an optimizer to be found on the graph
SILENCE_S = 600.0  # without a word from a training: reading many bags takes a while
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")


class TrainingError(Exception):
    """A training that cannot be started; the message is a sentence."""


class Training:
    """One training at a time. checkpoints: folder that bases are taken from and results go into.

    gateway: makes the GatewayClient; by default a real one.
    """

    def __init__(self, checkpoints: Path, gateway: Callable[..., GatewayClient] = GatewayClient):
        self.checkpoints = Path(checkpoints).resolve()
        self._gateway = gateway
        self._lock = threading.Lock()
        self._state: dict = {"state": "idle"}
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None

    def bases(self) -> dict[str, Path]:
        """Checkpoints to start from, by name: the ones made here, newest first, and shipped."""
        made = sorted(
            (file.parent for file in self.checkpoints.glob("*/config.json")),
            key=lambda folder: folder.stat().st_mtime,
            reverse=True,
        )
        shipped = sorted(file.parent for file in resource("models").glob("*/config.json"))
        return {f.name: f for f in made} | {f"{f.name} (shipped)": f for f in shipped}

    def status(self) -> dict:
        """state: idle | running | done | failed | cancelled, and by state: step, total, loss,
        time_left_s, text, checkpoint, command (the same in a shell)."""
        with self._lock:
            return dict(self._state)

    def command(
        self, bags: Sequence[Path], base: str, method: str, name: str, settings: dict
    ) -> str:
        """The shell's command for the same. Raises TrainingError for a name that is none."""
        goal = self._goal(bags, base, method, name, settings)
        words = ["hapo", "optimize", *goal["bags"], "--base", goal["base_checkpoint"]]
        words += ["--method", method, "--output", goal["output"]]
        words += ["--settings", goal["settings_json"]] if settings else []
        return shlex.join(words)

    def start(
        self, bags: Sequence[Path], base: str, method: str, name: str, settings: dict
    ) -> None:
        """Begin; :meth:`status` tells how it goes. Raises TrainingError."""
        goal = self._goal(bags, base, method, name, settings)
        with self._lock:
            if self._state["state"] == "running":
                raise TrainingError("A training is running. Wait for it, or cancel it.")
            self._cancel.clear()
            told = {"method": method, "base": base, "name": name, "bags": len(bags)}
            self._told = told | {"command": self.command(bags, base, method, name, settings)}
            self._state = {"state": "running", "text": "Asking the optimizer.", **self._told}
        self._thread = threading.Thread(target=self._run, args=(goal,), daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Ask for its end; the optimizer ends it within seconds."""
        self._cancel.set()

    def close(self) -> None:
        """End what runs. A training that was begun is cancelled."""
        self._cancel.set()
        if self._thread is not None:
            self._thread.join(30.0)

    def _goal(self, bags, base: str, method: str, name: str, settings: dict) -> dict:
        from hapo_ros.learning.methods import METHODS

        bases = self.bases()
        if not bags:
            raise TrainingError("There is no episode to learn from: all are broken or excluded.")
        if base not in bases:
            raise TrainingError(f"There is no checkpoint {base!r}. Choose one of the list.")
        if method not in METHODS or method == "bc":
            raise TrainingError(f"There is no method {method!r}. Choose one of the list.")
        if not NAME.fullmatch(name):
            raise TrainingError(
                "Name the new checkpoint with letters, digits, '_', '-' and '.', 80 at most, a "
                "letter or digit first."
            )
        if (self.checkpoints / name).exists():
            raise TrainingError(f"A checkpoint {name!r} exists already. Give another name.")
        return {
            "bags": [str(bag) for bag in bags],
            "base_checkpoint": str(bases[base]),
            "method": method,
            "output": str(self.checkpoints / name),
            "settings_json": json.dumps(settings),
        }

    def _say(self, state: str, **told) -> None:
        with self._lock:
            self._state = {**self._told, "state": state, **told}

    def _run(self, goal: dict) -> None:
        try:
            with self._gateway(server_timeout_s=SERVER_S) as gateway:
                self._follow(gateway, gateway.begin("optimize", **goal))
        except (GatewayError, DeploymentError, OSError) as error:
            self._say("failed", text=str(error))

    def _follow(self, gateway: GatewayClient, request: int) -> None:
        asked_to_end = False
        for said in gateway.replies(request, SILENCE_S):
            if self._cancel.is_set() and not asked_to_end:
                gateway.cancel(request)
                asked_to_end = True
            if said and "feedback" in said:
                self._say("running", text="", **said["feedback"])
            elif said and "result" in said:
                result = said["result"]
                end = "done" if result["ok"] else "cancelled" if asked_to_end else "failed"
                self._say(end, text=result["text"], checkpoint=result["checkpoint"])
