"""The supervisor against processes that crash, hang, end early and never end.

The nodes here are doubles: small scripts that do one thing, installed as nodes are.
"""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from hapo_ros import cli, deployment, processes
from hapo_ros.deployment import Deployment, NodeSpec, Restart
from hapo_ros.supervisor import DeploymentError, Supervisor, executable

DEADLINE_S = 20.0
AT_ONCE = Restart(times=3, within_s=60.0, delay_s=0.0)

# What a double may do. NAME is its node name; note(TEXT) adds a line to the journal.
BEGIN = """
import os, signal, subprocess, sys, time
from pathlib import Path
HERE = Path(__file__).parent
NAME = next(word for word in sys.argv if word.startswith("__node:=")).removeprefix("__node:=")
def note(text):
    with (HERE / "journal").open("a") as journal:
        journal.write(f"{NAME} {text}\\n")
def stop(*_):
    note("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
"""
DOUBLES = {
    "steady": "note('ready')\nwhile True: signal.pause()",
    "crash": "print('the last thing', NAME, 'said', flush=True)\nnote('ran')\nsys.exit(5)",
    "finish": "note('ran')\nsys.exit(0)",
    "deaf": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote('ready')\n"
    "while True: time.sleep(60)",
    "parent": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', "
    "'import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()'])\n"
    "note(f'child {child.pid}')\nwhile True: time.sleep(60)",
    "told": "import json\nnote(json.dumps(sys.argv[1:]))\n"
    "note('stdin ' + os.readlink('/proc/self/fd/0'))\nwhile True: signal.pause()",
}


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The prefix in which the doubles are installed as nodes."""
    folder = tmp_path / "lib" / "hapo_ros"
    folder.mkdir(parents=True)
    for name, text in DOUBLES.items():
        (folder / name).write_text(BEGIN + text + "\n")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def journal(installed) -> Callable[[], list[str]]:
    path = installed / "lib" / "hapo_ros" / "journal"
    return lambda: path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def supervise(installed):
    """Makes supervisors of some nodes; whatever is left is killed at the end."""
    made = []

    def make(*specs: NodeSpec, logs: bool = True, say=lambda sentence: None) -> Supervisor:
        deployment = Deployment(specs, installed / "parameters.yaml", False, {})
        supervisor = Supervisor(deployment, installed / "log" if logs else None, say)
        made.append(supervisor)
        return supervisor

    yield make
    for supervisor in made:
        for child in supervisor._children.values():
            processes.kill_group(child)
            child.wait(DEADLINE_S)


def wait_until(true: Callable[[], object], what: str, meanwhile=lambda: None):
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        meanwhile()
        if result := true():
            return result
        time.sleep(0.01)
    pytest.fail(f"{what} did not come to pass within {DEADLINE_S:g} s")


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for someone to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def watched_until_the_run_ends(supervisor: Supervisor) -> str:
    """The sentence with which it ends."""
    with pytest.raises(DeploymentError) as caught:
        wait_until(lambda: False, "the end of the run", supervisor.watch)
    return str(caught.value)


def count(journal, line: str) -> Callable[[], int]:
    return lambda: journal().count(line)


# Starting


def test_a_node_is_started_under_its_name_with_its_file_and_its_parameters(supervise, journal):
    parameters = {"root": "/a b/it's", "lock_step": True, "cameras": ["left", ""], "rate_hz": 0.05}
    with supervise(NodeSpec("a_node", "told", parameters)) as supervisor:
        supervisor.start()
        told, stdin = wait_until(lambda: len(journal()) == 2 and journal(), "its arguments")
        assert json.loads(told.removeprefix("a_node ")) == [
            *["--ros-args", "-r", "__node:=a_node"],
            *["--params-file", str(supervisor.deployment.parameter_file)],
            *["-p", "root:='/a b/it''s'", "-p", "lock_step:=true"],
            *["-p", "cameras:=['left','']", "-p", "rate_hz:=0.05"],
        ]
        assert stdin == "a_node stdin /dev/null"


def test_a_node_shares_the_session_unless_it_reads_the_terminal_and_has_a_group_of_its_own(
    supervise, journal
):
    nodes = NodeSpec("one", "steady"), NodeSpec("two", "steady", terminal=True)
    with supervise(*nodes) as supervisor:
        supervisor.start()
        one, two = supervisor.pid("one"), supervisor.pid("two")
        assert [os.getpgid(one), os.getpgid(two)] == [one, two]
        assert [os.getsid(one), os.getsid(two)] == [os.getsid(0), two]


def test_a_node_that_is_not_installed_is_a_sentence_and_nothing_is_left_running(supervise, journal):
    supervisor = supervise(NodeSpec("one", "steady"), NodeSpec("two", "nowhere"))
    with pytest.raises(DeploymentError, match="The node nowhere is not installed"), supervisor:
        supervisor.start()
    assert supervisor.pid("one") is None and supervisor.pid("two") is None


def test_the_first_prefix_that_has_a_node_is_used_and_this_pythons_own_comes_last(
    installed, tmp_path, monkeypatch
):
    other = tmp_path / "other"
    (other / "lib/hapo_ros").mkdir(parents=True)
    (other / "lib/hapo_ros/steady").touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{other}{os.pathsep}{installed}")
    assert executable("steady") == other / "lib/hapo_ros/steady"
    assert executable("crash") == installed / "lib/hapo_ros/crash"
    monkeypatch.setenv("AMENT_PREFIX_PATH", "")
    monkeypatch.setattr(sys, "prefix", str(other))
    assert executable("steady") == other / "lib/hapo_ros/steady"
    with pytest.raises(DeploymentError, match="colcon build"):
        executable("crash")


# Restarting


def test_a_node_is_restarted_three_times_and_then_the_run_ends_with_what_it_said(
    supervise, journal
):
    said = []
    spec = NodeSpec("arbiter", "crash", restart=AT_ONCE)
    with supervise(spec, say=said.append) as supervisor:
        supervisor.start()
        sentence = watched_until_the_run_ends(supervisor)
    assert journal() == ["arbiter ran"] * 4
    assert said == ["arbiter ended with exit code 5. It is started again."] * 3
    first, *rest = sentence.splitlines()
    assert first == "arbiter ended with exit code 5, for the 4th time within 60 s. The run ends."
    assert "the last thing arbiter said" in rest and rest[-1].startswith("(all of it: ")


def test_ends_that_are_long_past_do_not_count(supervise, journal):
    spec = NodeSpec("arbiter", "crash", restart=Restart(times=1, within_s=0.0, delay_s=0.0))
    with supervise(spec) as supervisor:
        supervisor.start()
        wait_until(lambda: len(journal()) >= 4, "a fourth start", supervisor.watch)


def test_a_restart_waits_its_delay(supervise, journal):
    spec = NodeSpec("arbiter", "crash", restart=Restart(times=3, within_s=60.0, delay_s=1000.0))
    said = []
    with supervise(spec, NodeSpec("other", "steady"), say=said.append) as supervisor:
        supervisor.start()
        wait_until(lambda: said, "the end of arbiter", supervisor.watch)
        for _ in range(10):
            supervisor.watch()
        assert supervisor.pid("arbiter") is None and supervisor.pid("other") is not None
    assert count(journal, "arbiter ran")() == 1  # stopping forgets it


def test_the_restart_of_one_node_leaves_the_others_alone(supervise, journal):
    with supervise(
        NodeSpec("policy", "crash", restart=AT_ONCE), NodeSpec("arbiter", "steady")
    ) as supervisor:
        supervisor.start()
        pid = supervisor.pid("arbiter")
        wait_until(lambda: count(journal, "policy ran")() >= 2, "a restart", supervisor.watch)
        assert supervisor.pid("arbiter") == pid


def test_a_node_that_is_killed_is_restarted_as_well(supervise, journal):
    said = []
    with supervise(NodeSpec("policy", "steady", restart=AT_ONCE), say=said.append) as supervisor:
        supervisor.start()
        wait_until(lambda: count(journal, "policy ready")() == 1, "the node", supervisor.watch)
        os.kill(supervisor.pid("policy"), signal.SIGKILL)
        wait_until(lambda: count(journal, "policy ready")() == 2, "it again", supervisor.watch)
    assert said == ["policy ended with signal 9. It is started again."]


# Ends


def test_the_death_of_an_essential_node_ends_the_run_and_names_it(supervise, journal):
    essential = NodeSpec("robosuite_bridge", "crash", essential=True)
    with supervise(NodeSpec("arbiter", "steady"), essential) as supervisor:
        supervisor.start()
        pid = supervisor.pid("arbiter")
        sentence = watched_until_the_run_ends(supervisor)
    assert sentence.startswith("robosuite_bridge ended with exit code 5. The run ends.\n")
    assert "the last thing robosuite_bridge said" in sentence
    assert ended(pid)


def test_an_essential_node_that_ends_well_is_done_and_so_is_the_run(supervise, journal):
    """The operator quit the keyboard."""
    said = []
    with supervise(NodeSpec("keyboard", "finish", essential=True), say=said.append) as supervisor:
        supervisor.start()
        wait_until(lambda: supervisor.done, "its end", supervisor.watch)
        assert supervisor.done == {"keyboard"}
    assert journal() == ["keyboard ran"] and said == []


def test_only_the_end_of_a_long_log_is_shown(supervise, installed):
    long = "for i in range(1000): print('line', i)\nsys.exit(1)"
    (installed / "lib/hapo_ros/talkative").write_text(BEGIN + long)
    with supervise(NodeSpec("bridge", "talkative", essential=True)) as supervisor:
        supervisor.start()
        lines = watched_until_the_run_ends(supervisor).splitlines()
    assert lines[1:-1] == [f"line {i}" for i in range(992, 1000)]
    assert (installed / "log/bridge.log").read_text().startswith("line 0\nline 1\n")


def test_without_a_log_folder_there_are_no_last_words(supervise, capfd):
    with supervise(NodeSpec("bridge", "crash", essential=True), logs=False) as supervisor:
        supervisor.start()
        sentence = watched_until_the_run_ends(supervisor)
    assert sentence == "bridge ended with exit code 5. The run ends."
    assert "the last thing bridge said" in capfd.readouterr().out


def test_the_run_goes_on_without_a_node_that_is_neither_essential_nor_restarted(supervise):
    said = []
    optimizer, other = NodeSpec("optimizer", "crash"), NodeSpec("other", "steady")
    with supervise(optimizer, other, say=said.append) as supervisor:
        supervisor.start()
        wait_until(lambda: said, "the end of the optimizer", supervisor.watch)
        for _ in range(10):
            supervisor.watch()
        assert supervisor.pid("other") is not None
    (sentence,) = said
    assert sentence.startswith("optimizer ended with exit code 5. The run goes on without it.")


def test_a_node_whose_work_is_done_is_not_started_again(supervise, journal):
    said = []
    spec = NodeSpec("simulated_operator", "finish", restart=AT_ONCE, done=True)
    with supervise(spec, say=said.append) as supervisor:
        supervisor.start()
        wait_until(lambda: supervisor.done, "the end of its work", supervisor.watch)
        for _ in range(10):
            supervisor.watch()
        assert supervisor.done == {"simulated_operator"}
    assert journal() == ["simulated_operator ran"] and said == []


def test_a_node_that_crashes_before_its_work_is_done_is_started_again(supervise, journal):
    spec = NodeSpec("simulated_operator", "crash", restart=AT_ONCE, done=True)
    with supervise(spec) as supervisor:
        supervisor.start()
        assert "for the 4th time" in watched_until_the_run_ends(supervisor)
        assert supervisor.done == set()


def test_a_node_whose_work_is_done_can_be_given_more(supervise, journal):
    spec = NodeSpec("simulated_operator", "finish", done=True)
    with supervise(spec) as supervisor:
        supervisor.start()
        wait_until(lambda: supervisor.done, "the end of its work", supervisor.watch)
        supervisor.run_again(NodeSpec("simulated_operator", "steady", done=True))
        assert supervisor.done == set()
        wait_until(lambda: len(journal()) == 2, "its second round", supervisor.watch)
    assert journal()[1:] == ["simulated_operator ready", "simulated_operator stopped"]


# Stopping


def test_nodes_are_stopped_in_order_each_after_those_before_it_have_ended(supervise, journal):
    order = {"recorder": 3, "bridge": 2, "arbiter": 1, "policy": 0, "operator": 0}
    specs = [NodeSpec(name, "steady", stop_order=number) for name, number in order.items()]
    with supervise(*specs) as supervisor:
        supervisor.start()
        wait_until(lambda: len(journal()) == 5, "all of them")
        pids = [supervisor.pid(name) for name in order]
    stopped = [line.split()[0] for line in journal() if line.endswith("stopped")]
    assert set(stopped[:2]) == {"policy", "operator"}
    assert stopped[2:] == ["arbiter", "bridge", "recorder"]
    assert all(map(ended, pids))


def test_one_that_ignores_sigterm_is_killed_at_its_deadline_and_the_rest_still_stop_in_order(
    supervise, journal
):
    deaf = NodeSpec("arbiter", "deaf", stop_order=1, stop_timeout_s=0.3)
    recorder = NodeSpec("recorder", "steady", stop_order=3)
    with supervise(deaf, recorder) as supervisor:
        supervisor.start()
        wait_until(lambda: len(journal()) == 2, "both of them")
        pid, began = supervisor.pid("arbiter"), time.monotonic()
    assert 0.3 <= time.monotonic() - began < DEADLINE_S
    assert ended(pid)
    assert journal()[-1] == "recorder stopped"


def test_what_a_deaf_node_has_started_is_killed_with_it(supervise, journal):
    with supervise(NodeSpec("optimizer", "parent", stop_timeout_s=0.2)) as supervisor:
        supervisor.start()
        line = wait_until(lambda: journal()[:1], "its child")[0]
        grandchild = int(line.split()[-1])
        assert not ended(grandchild)
    wait_until(lambda: ended(grandchild), "the end of its child")


def test_stopping_twice_and_stopping_what_has_ended_does_nothing(supervise, journal):
    with supervise(NodeSpec("one", "finish"), NodeSpec("two", "steady")) as supervisor:
        supervisor.start()
        wait_until(lambda: len(journal()) == 2, "both of them")
        supervisor.stop()
        supervisor.stop()
    assert sorted(journal()) == ["one ran", "two ready", "two stopped"]


def test_an_exception_in_the_run_stops_the_nodes(supervise, journal):
    supervisor = supervise(NodeSpec("one", "steady"))
    with pytest.raises(KeyboardInterrupt), supervisor:
        supervisor.start()
        wait_until(journal, "the node")
        pid = supervisor.pid("one")
        raise KeyboardInterrupt
    assert ended(pid) and journal() == ["one ready", "one stopped"]


SUPERVISOR_PROGRAM = """
import sys, time
from pathlib import Path
from hapo_ros.deployment import Deployment, NodeSpec
from hapo_ros.supervisor import Supervisor
specs = (NodeSpec("one", "steady"), NodeSpec("two", "steady"))
supervisor = Supervisor(Deployment(specs, Path("none.yaml"), False, {}))
supervisor.start()
print(supervisor.pid("one"), supervisor.pid("two"), flush=True)
while True:
    supervisor.watch()
    time.sleep(0.05)
"""


def test_the_nodes_end_when_the_supervisor_is_killed(installed, journal):
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR_PROGRAM], stdout=subprocess.PIPE, text=True
    )
    pids = []
    try:
        pids = [int(word) for word in supervisor.stdout.readline().split()]
        assert len(pids) == 2
        wait_until(lambda: len(journal()) == 2, "both nodes")
        supervisor.kill()
        supervisor.wait(DEADLINE_S)
        wait_until(lambda: all(map(ended, pids)), "the end of the nodes")
        assert sorted(journal()[2:]) == ["one stopped", "two stopped"]  # by SIGTERM: they flush
    finally:
        supervisor.kill()
        supervisor.wait(DEADLINE_S)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_what_happens_is_said_at_once_into_a_pipe_too(installed):
    program = SUPERVISOR_PROGRAM.replace('"one", "steady"', '"one", "crash"')
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=buffered
    ) as supervisor:
        try:
            said = "one ended with exit code 5. The run goes on without it.\n"
            assert said in iter(supervisor.stdout.readline, "")
        finally:
            supervisor.terminate()  # it would go on for ever


# ``hapo deploy``


def test_a_deployment_says_which_node_was_done_and_ended_the_run(installed, monkeypatch, capsys):
    node = NodeSpec("keyboard", "finish", essential=True)
    deployed = Deployment((node,), installed / "none.yaml", False, {"operator": "keyboard"})
    monkeypatch.setattr(deployment, "describe", lambda arguments: deployed)
    assert cli.main(["deploy"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["keyboard is done. The run ends."]


DEPLOY_PROGRAM = """
import sys
from pathlib import Path
from hapo_ros import cli, deployment
from hapo_ros.deployment import Deployment, NodeSpec
specs = (NodeSpec("stubborn", "stubborn", stop_timeout_s=0.2),)
deployed = Deployment(specs, Path("none.yaml"), False, {"operator": "none"})
deployment.describe = lambda arguments: deployed
sys.exit(cli.main(["deploy"]))
"""


def on_a_terminal_of_its_own(*words: str) -> tuple[subprocess.Popen, int]:
    """A process, and the terminal whose only one it is: closing that hangs up."""
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        words,
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(its_end)
    return process, terminal


def test_a_deployment_whose_terminal_is_closed_stops_its_nodes_by_their_deadlines(
    installed, journal
):
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote(os.getpid())\nsignal.pause()"
    (installed / "lib/hapo_ros/stubborn").write_text(BEGIN + deaf)
    hapo, terminal = on_a_terminal_of_its_own(sys.executable, "-c", DEPLOY_PROGRAM)
    pid = None
    try:
        pid = int(wait_until(journal, "the node")[0].split()[-1])
        os.close(terminal)
        assert hapo.wait(DEADLINE_S) == 0 and ended(pid)
    finally:
        hapo.kill()
        hapo.wait(DEADLINE_S)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


UNTIL_STOPPED = """
import os, signal, sys, time
from hapo_ros.cli import _stop_flag
if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
with _stop_flag() as stopped:
    if "nohup" in sys.argv:
        signal.raise_signal(signal.SIGHUP)
        sys.exit(10 + stopped())
    print("ready", flush=True)
    while not stopped():
        time.sleep(0.01)
    print("Nobody reads this.", flush=True)
"""


def test_what_is_said_to_a_terminal_that_was_closed_is_no_error():
    hapo, terminal = on_a_terminal_of_its_own(sys.executable, "-c", UNTIL_STOPPED)
    try:
        assert b"ready" in os.read(terminal, 100)
        os.close(terminal)
        assert hapo.wait(DEADLINE_S) == 0
    finally:
        hapo.kill()
        hapo.wait(DEADLINE_S)


def test_a_closed_terminal_stops_nothing_that_was_started_with_nohup():
    command = [sys.executable, "-c", UNTIL_STOPPED, "nohup"]
    assert subprocess.run(command, timeout=DEADLINE_S, check=False).returncode == 10


# Single processes


def test_a_child_that_ends_in_time_gives_its_own_exit_code():
    program = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); "
    program += "print('ready', flush=True); signal.pause()"
    child = processes.start([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    assert processes.stop(child, DEADLINE_S) == 7
    assert processes.stop(child, DEADLINE_S) == 7  # a second time changes nothing
    processes.kill_group(child)
    child.stdout.close()


def test_a_child_that_does_not_end_in_time_is_killed():
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    program += "print('ready', flush=True); signal.pause()"
    child = processes.start([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    assert processes.stop(child, 0.1) == -signal.SIGKILL
    child.stdout.close()


def test_a_child_gives_way_to_what_runs_in_other_sessions_too():
    given = processes.start(["sleep", "60"], niceness=7)
    try:
        assert os.getpriority(os.PRIO_PROCESS, given.pid) == 7
        group = Path(f"/proc/{given.pid}/autogroup")
        if group.exists():
            assert group.read_text().endswith(" nice 7\n")
    finally:
        processes.stop(given, 5.0)
