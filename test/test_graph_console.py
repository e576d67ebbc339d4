"""``hapo console`` in a terminal, on a deployment: what an operator sees, and what it does."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pyte
import pytest
from ros_graph import Graph, is_alive, nothing_left_running, save_untrained, wait_for

from hapo_ros import processes
from hapo_ros.console.letters import small
from hapo_ros.episodes import EpisodeReader
from hapo_ros.gateway_client import GatewayError

pytest.importorskip("rclpy")
pytest.importorskip("hapo_ros.msg", exc_type=ImportError)
pytest.importorskip("robosuite")

SEED = 5
# How punctual the machine is is not what this shows.
UNHURRIED = {"policy_deadline_s": 0.5, "tick_timeout_s": 10.0, "max_policy_failures": 1000}


class Terminal:
    """``hapo console`` on a terminal of 80 x 24."""

    def __init__(self, *words):
        self._screen = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self._screen)
        self._fd, other = pty.openpty()
        self._before = termios.tcgetattr(other)
        self._wrote = b""
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = processes.start(
            [str(Path(sys.prefix) / "bin" / "hapo"), "console", *words],
            stdin=other,
            stdout=other,
            stderr=other,
            env=os.environ | {"TERM": "xterm-256color"},
        )
        os.close(other)

    def lines(self) -> list[str]:
        """What stands on the screen now."""
        while select.select([self._fd], [], [], 0)[0]:
            try:
                wrote = os.read(self._fd, 65536)
            except OSError:  # the console has ended
                break
            self._wrote += wrote
            self._stream.feed(wrote)
        return self._screen.display

    def shows(self, *texts: str) -> bool:
        """Whether all this is on the screen now, wherever its lines break."""
        words = " ".join(" ".join(self.lines()).split())
        return all(text in words for text in texts)

    def names(self, authority: str) -> bool:
        """Whether the authority in large letters is this one."""
        letters = [row.rstrip() for row in small(authority)]
        rows = [line[2:].rstrip() for line in self.lines()[1:4]]
        return all(row.startswith(letter) for row, letter in zip(rows, letters, strict=True))

    def is_given_back(self) -> bool:
        """Whether the terminal echoes lines again, on its own screen."""
        own = self._wrote.rfind(b"\x1b[?1049l") > self._wrote.rfind(b"\x1b[?1049h")
        return own and termios.tcgetattr(self._fd) == self._before

    def press(self, key: str) -> None:
        os.write(self._fd, key.encode())

    def gateway(self) -> int | None:
        """Process id of its gateway."""
        for task in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in task.read_text().split():
                if "gateway" in Path(f"/proc/{pid}/cmdline").read_text() and is_alive(int(pid)):
                    return int(pid)
        return None

    def close(self) -> None:
        processes.stop(self.process, 10.0)
        os.close(self._fd)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, failed, *_) -> None:
        if failed:
            print(*self.lines(), sep="\n")
        self.close()


def ready(graph) -> bool:
    """Whether the recorder refuses an episode for nothing but what is wrong with it."""
    try:
        asked = {"task": "Juggle", "source": "deployment", "seed": 1}
        return "task:=Juggle" in graph.gateway.call("start_episode", 5.0, **asked)["text"]
    except GatewayError:
        return False


def started(terminal) -> bool:
    """Press s until it is followed: the console may not have heard all yet that ``ready`` has."""
    terminal.press("s")
    wait_for(lambda: terminal.shows("start:") and not terminal.shows("Waiting for the answer"))
    return terminal.shows("✓ start: Recording")


@pytest.mark.timeout(240)
def test_an_operator_sees_and_steers_a_deployment_from_the_console(tmp_path, ros_domain):
    policy = save_untrained(tmp_path / "policy", object_state=10)
    with nothing_left_running(), Terminal("--seed", str(SEED)) as terminal:
        wait_for(lambda: terminal.shows(f"No deployment is heard in ROS domain {ros_domain}"))
        assert terminal.names("LOST")
        with Graph(tmp_path, policy, {"arbiter": UNHURRIED}) as graph:
            graph.until(lambda: terminal.names("HOLD") and graph.served)
            graph.until(lambda: terminal.shows(graph.served["version"], "SILENT"))
            graph.until(lambda: ready(graph))
            graph.until(lambda: started(terminal))
            graph.until(lambda: terminal.names("POLICY") and terminal.shows("RUNNING", "▄ policy"))
            terminal.press("s")
            graph.until(lambda: terminal.shows("✗ start:", "No second one is started"))

            terminal.press("h")
            graph.until(lambda: terminal.names("HOLD"))
            assert terminal.shows("The operator asked for a hold.")
            terminal.press("r")
            graph.until(lambda: terminal.names("POLICY"))

            lose_and_regain_the_arbiter(graph, terminal)
            restart_the_gateway(graph, terminal)

            terminal.press("y")
            graph.until(lambda: terminal.shows("RECORDED: success", "✓ success: Recorded in"))
            (bag,) = graph.bags.iterdir()
            reader = EpisodeReader(bag)
            assert (reader.result.outcome, reader.info.seed) == ("success", SEED)
            assert terminal.shows(bag.name)

            terminal.press("E")  # with caps lock
            graph.until(lambda: terminal.names("FAULT"))
            graph.until(lambda: graph.authorities[-1]["authority"] == 4)

            terminal.press("q")
            wait_for(lambda: terminal.lines() and terminal.process.poll() is not None)
            assert terminal.process.returncode == 0
            assert terminal.shows("The console has ended; the deployment goes on.")
            assert terminal.is_given_back()
            graph.supervisor.watch()
            for node in graph.deployment.nodes:
                assert graph.supervisor.pid(node.name), node.name


def lose_and_regain_the_arbiter(graph, terminal) -> None:
    pid = graph.supervisor.pid("arbiter")
    os.kill(pid, signal.SIGSTOP)
    try:
        graph.until(lambda: terminal.names("LOST"))
        assert terminal.shows("The arbiter is gone. Nobody has control.")
    finally:
        os.kill(pid, signal.SIGCONT)
    graph.until(lambda: terminal.names("POLICY") or terminal.names("HOLD"))


def restart_the_gateway(graph, terminal) -> None:
    killed = terminal.gateway()
    os.kill(killed, signal.SIGKILL)
    graph.until(lambda: terminal.gateway() not in (killed, None))
    # What is latched is heard again, and what is asked is answered.
    graph.until(lambda: terminal.names("POLICY") or terminal.names("HOLD"))
    terminal.press("h")
    graph.until(lambda: terminal.names("HOLD") and terminal.shows("✓ hold:"))


def test_a_console_that_is_terminated_leaves_the_terminal_as_it_was(ros_domain):
    with nothing_left_running(), Terminal() as terminal:
        wait_for(lambda: terminal.shows("No deployment is heard"))
        terminal.process.terminate()
        wait_for(lambda: terminal.lines() and terminal.process.poll() is not None)
        assert terminal.process.returncode == 0
        assert terminal.shows("The console has ended") and terminal.is_given_back()


def test_without_a_terminal_the_console_says_so(ros_domain):
    command = [str(Path(sys.prefix) / "bin" / "hapo"), "console"]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1 and "It needs a terminal" in ended.stderr
