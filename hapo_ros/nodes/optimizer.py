"""The optimizer: learns from bags in a child process, relays its progress, never changes what is
served."""

import os
import queue
import subprocess
import sys
import tempfile
import threading

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup

from hapo_ros import jsonlines, processes, topics
from hapo_ros.action import Optimize
from hapo_ros.nodes.common import HapoNode, run
from hapo_ros.parameters import PARAMETERS
from hapo_ros.supervisor import DeploymentError, executable

_SECOND = "A training is running; a second goal is refused."
PROMISE_S = 3.0  # for a goal that was accepted to begin; one whose acceptance was lost never does


class Optimizer(HapoNode):
    """The Optimize action; one goal at a time."""

    def __init__(self):
        super().__init__("optimizer", PARAMETERS["optimizer"])
        self._lock = threading.Lock()
        self._child: subprocess.Popen | None = None
        self._busy = False
        self._promised_until_s = 0.0  # to a goal that was accepted and has not begun
        self._server = ActionServer(
            self,
            Optimize,
            topics.OPTIMIZE,
            execute_callback=self._execute,
            goal_callback=self._on_goal,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            callback_group=ReentrantCallbackGroup(),
        )

    def _on_goal(self, goal) -> GoalResponse:
        with self._lock:
            if self._busy or self.now_s() < self._promised_until_s:
                self.get_logger().warning(_SECOND)
                return GoalResponse.REJECT
            self._promised_until_s = self.now_s() + PROMISE_S
        return GoalResponse.ACCEPT

    def _execute(self, handle) -> Optimize.Result:
        with self._lock:
            # Not before: a goal whose acceptance does not reach who asked is never executed.
            if self._busy:
                self.get_logger().warning(_SECOND)
                handle.abort()
                return Optimize.Result(text=_SECOND)
            self._busy, self._promised_until_s = True, 0.0
        last, code, complaint = {}, 0, ""
        try:
            with tempfile.TemporaryFile("w+", errors="replace") as errors:
                last, code = self._train(handle, errors)
                errors.seek(0)
                complaint = errors.read().strip()
        except (OSError, DeploymentError) as error:
            complaint = f"The training could not be started: {error}."
        finally:
            with self._lock:
                self._busy, self._child = False, None
        text = last.get("text") or _killed(code) or complaint[-2000:]
        result = Optimize.Result(
            ok="checkpoint" in last,
            checkpoint=last.get("checkpoint", ""),
            policy_version=last.get("version", ""),
            text=text or "The training ended without a word.",
        )
        if result.ok:
            handle.succeed()
        elif handle.is_cancel_requested:
            result.text = "Cancelled. No checkpoint was written."
            handle.canceled()
        else:
            handle.abort()
        self.get_logger().info(result.text)
        return result

    def _train(self, handle, errors) -> tuple[dict, int]:
        """Run ``hapo optimize`` to its end; returns the last it said but for its progress, and its
        exit code. Whatever happens here, the child has ended then."""
        goal = handle.request
        # Not `python -m`: that would prefer a hapo_ros/ in the folder this was started in.
        arguments = [sys.executable, str(executable("hapo")), "optimize", *goal.bags, "--json"]
        arguments += ["--base", goal.base_checkpoint, "--method", goal.method]
        arguments += ["--output", goal.output, "--settings", goal.settings_json or "{}"]
        self._child = child = processes.start(
            arguments,
            niceness=self.parameters.niceness,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",  # libraries chatter in whatever bytes they like
            cwd=os.getcwd(),
        )
        try:
            return self._relay(handle, child), child.wait()
        finally:
            processes.stop(child, self.parameters.cancel_grace_s)

    def _relay(self, handle, child) -> dict:
        """Pass on the child's progress until it ends, or stop it where that is asked for."""
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read_lines, args=(child.stdout, lines), daemon=True).start()
        last: dict = {}
        while True:
            if handle.is_cancel_requested:
                processes.stop(child, self.parameters.cancel_grace_s)
            try:
                line = lines.get(timeout=0.1)
            except queue.Empty:
                continue
            if line is None:
                return last
            said = jsonlines.read(line)
            if said is None:
                continue
            if "step" in said:
                handle.publish_feedback(_feedback(said))
            else:
                last = said

    def shut_down(self) -> None:
        child = self._child
        if child is not None:
            processes.stop(child, self.parameters.cancel_grace_s)


def _read_lines(stream, lines: queue.Queue) -> None:
    try:
        for line in stream:
            lines.put(line)
    finally:
        lines.put(None)


def _killed(code: int) -> str:
    """What to think of a child that a signal ended; empty where none did."""
    if code >= 0:
        return ""
    return (
        f"The training was ended by signal {-code}. No checkpoint was written. Signal 9 usually "
        "means that the machine ran out of memory (`journalctl -k | grep -i oom` tells): use a "
        "smaller batch_size or micro_batch, or fewer bags."
    )


def _feedback(said: dict) -> Optimize.Feedback:
    def number(name: str) -> float:
        value = said.get(name)
        return float("nan") if value is None else float(value)

    return Optimize.Feedback(
        step=int(said["step"]),
        total=int(said["total"]),
        loss=number("loss"),
        reward_desirable=number("reward_desirable"),
        reward_undesirable=number("reward_undesirable"),
        time_left_s=number("time_left_s"),
    )


def main(argv=None) -> int:
    return run(Optimizer, argv, threads=3)
