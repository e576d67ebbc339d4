"""What holds for every test: the installed package, no stray ROS traffic, no unexpected skips."""

import fcntl
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
EXPECTED_SKIPS = Path(__file__).with_name("expected_skips.txt")

# The checkout's hapo_ros/ has no generated messages; it must not stand before the installed one,
# however pytest was started.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path.append(str(Path(__file__).parent))  # ros_graph.py, fake_spacemouse.py

# Those tests import ROS 2's launch, which is not on PyPI: `make test-ros` runs them.
collect_ignore = [] if importlib.util.find_spec("launch_pytest") else ["ros"]

# How long an example takes is the machine's, which runs other tests meanwhile.
settings.register_profile("hapo_ros", deadline=None)
settings.load_profile("hapo_ros")

os.environ.setdefault("MUJOCO_GL", "egl")
# Two files run at a time, on as many cores: threads of one product would only wait for each other.
# And one thread adds in one order.
os.environ["OMP_NUM_THREADS"] = "1"
# Nothing leaves this machine, and what else runs on it is not heard (unless domains collide).
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_DOMAIN_ID"] = str(random.randint(1, 100))


@contextmanager
def _reserved_domain():
    domains = random.sample(range(1, 101), 100)
    for domain in domains:
        path = Path(tempfile.gettempdir()) / f"hapo_ros_test_domain_{domain}_{os.getuid()}.lock"
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            # What a node that had to be killed left for its successor is not for another test's.
            for left in path.parent.glob(f"hapo_ros_{os.getuid()}_{domain}_*.lock"):
                os.truncate(left, 0)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ROS_DOMAIN_ID", str(domain))
                yield domain
            return
    pytest.fail("All 100 ROS domains are taken by other test runs on this machine.")


@pytest.fixture
def ros_domain():
    """A ROS domain (1..100) that no other test on this machine has meanwhile; set in the
    environment, so that processes started by the test are in it too.
    """
    with _reserved_domain() as domain:
        yield domain


@pytest.fixture(scope="module")
def module_ros_domain():
    """The same for all tests of a file, for what they share."""
    with _reserved_domain() as domain:
        yield domain


@pytest.fixture
def no_node_is_left():
    """Fails where a process that was started in the test is still there after it."""
    from ros_graph import nothing_left_running

    with nothing_left_running():
        yield


@pytest.fixture
def probe(ros_domain):
    """A node in the test's own process."""
    from ros_graph import Probe

    with Probe(ros_domain) as probe:
        yield probe


@pytest.fixture
def start(tmp_path, ros_domain):
    """Starts nodes; they have ended well when the test ends, unless it ended them itself."""
    from ros_graph import log, start_node

    started = []

    def start(name, *ros_arguments, **parameters):
        path = tmp_path / f"{Path(name).name}-{len(started)}.log"
        process = start_node(name, path, *ros_arguments, **parameters)
        process.log = path
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(20)
            assert process.returncode == 0, log(process)
        assert "Traceback" not in log(process), log(process)


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a disk of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class _Skips:
    """Fails the run where a test was skipped that expected_skips.txt does not name."""

    def __init__(self, expected):
        self.expected = expected
        self.unexpected = []

    def _note(self, report):
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        for name in self.expected:
            exact = not name.endswith("*")
            if report.nodeid == name or (not exact and report.nodeid.startswith(name[:-1])):
                return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        self.unexpected.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report):
        self._note(report)

    def pytest_collectreport(self, report):
        self._note(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session, exitstatus):
        if self.unexpected and exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.unexpected:
            terminalreporter.section("unexpected skips", red=True)
            for line in self.unexpected:
                terminalreporter.line(line)
            terminalreporter.line(
                "The run fails. Let these tests run here, or name them in test/expected_skips.txt."
            )


def pytest_configure(config):
    lines = EXPECTED_SKIPS.read_text().splitlines()
    expected = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    config.pluginmanager.register(_Skips(expected), "expected_skips")
