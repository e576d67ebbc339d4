"""ROS 2's real ``ros2 launch`` on the deployment: run by ``make test-ros``."""

import os
import signal
import subprocess
import time
from pathlib import Path

import launch_pytest
import pytest
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

import launch
from hapo_ros.deployment import ARGUMENTS
from hapo_ros.episodes import open_episodes
from hapo_ros.resources import resource

pytestmark = pytest.mark.ros
LAUNCH = "deploy.launch.py"
STARTS_WITHIN_S, ENDS_WITHIN_S = 90.0, 60.0


def arguments(folder: Path, **more) -> dict[str, str]:
    """A short simulated deployment that writes below ``folder``."""
    values = {
        "operator": "simulated",
        "policy": str(resource("models/lift_base")),
        "bags": str(folder / "bags"),
        "checkpoints": str(folder / "checkpoints"),
        "optimizer": "false",
        "episodes": "1",
    }
    return values | more


def ros2_launch(folder: Path, **more) -> subprocess.Popen:
    """``ros2 launch`` in a session of its own."""
    words = [f"{name}:={value}" for name, value in arguments(folder, **more).items()]
    return subprocess.Popen(
        ["ros2", "launch", "hapo_ros", LAUNCH, *words],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_behind(session: int) -> list[str]:
    """Command lines of the processes of a session that are still there."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(command)
    return found


def shared(relative: str) -> Path:
    """A file of the installed package's share folder."""
    for prefix in os.environ["AMENT_PREFIX_PATH"].split(os.pathsep):
        path = Path(prefix) / "share" / "hapo_ros" / relative
        if path.exists():
            return path
    raise FileNotFoundError(relative)


def wait_for(condition, seconds: float, what: str) -> None:
    """Poll until ``condition`` holds; fails with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.02)


def test_ros2_launch_shows_every_argument_with_its_description(ros_domain):
    shown = subprocess.run(
        ["ros2", "launch", "hapo_ros", LAUNCH, "--show-args"],
        capture_output=True,
        text=True,
        timeout=STARTS_WITHIN_S,
        check=True,
    ).stdout
    for argument in ARGUMENTS:
        assert f"'{argument.name}'" in shown
        assert argument.text in shown


def test_ros2_launch_runs_an_episode_and_ends_by_itself(ros_domain, tmp_path):
    process = ros2_launch(tmp_path)
    output, _ = process.communicate(timeout=STARTS_WITHIN_S + ENDS_WITHIN_S)
    readers, skipped = open_episodes(tmp_path / "bags")
    assert (len(readers), skipped) == (1, []), output
    assert readers[0].result.complete and len(readers[0].live) > 10
    assert process.returncode == 0, output
    assert left_behind(process.pid) == []


def test_ctrl_c_twice_ends_everything_and_keeps_the_bag(ros_domain, tmp_path):
    process = ros2_launch(tmp_path, episodes="50")
    bags = tmp_path / "bags"
    try:
        wait_for(
            lambda: any(path.stat().st_size > 100_000 for path in bags.glob(".*.partial/*.mcap")),
            STARTS_WITHIN_S,
            "recording",
        )
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)  # the operator's second Ctrl-C, not a synchronisation
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=ENDS_WITHIN_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    wait_for(
        lambda: not left_behind(process.pid), ENDS_WITHIN_S, f"the end of every node\n{output}"
    )
    assert list(bags.glob(".*.partial")) == [], output
    readers, skipped = open_episodes(bags, accept_recovered=True)
    assert readers and skipped == [], output


def test_ros2_run_starts_a_node_that_says_what_is_wrong(ros_domain):
    ended = subprocess.run(
        ["ros2", "run", "hapo_ros", "policy", "--ros-args", "-p", "checkpoint:=/nowhere"],
        capture_output=True,
        text=True,
        timeout=STARTS_WITHIN_S,
        check=False,
    )
    assert ended.returncode == 1
    assert "/nowhere" in ended.stderr and "does not start" in ended.stderr


@launch_pytest.fixture
def deployment(tmp_path_factory):
    """The launch file, included as another package would include it; and where it records."""
    folder = tmp_path_factory.mktemp("deployment")
    source = PythonLaunchDescriptionSource(str(shared(f"launch/{LAUNCH}")))
    included = IncludeLaunchDescription(
        source, launch_arguments=arguments(folder, episodes="2").items()
    )
    ready = launch_pytest.actions.ReadyToTest()
    return launch.LaunchDescription([included, ready]), folder / "bags"


@pytest.mark.launch(fixture=deployment)
def test_the_launch_file_records_under_launch_pytest(deployment, launch_context):
    bags = deployment[1]
    wait_for(lambda: any(bags.glob("[!.]*")), STARTS_WITHIN_S, "the first episode")
    readers, skipped = open_episodes(sorted(bags.glob("[!.]*")))
    assert readers and not skipped
