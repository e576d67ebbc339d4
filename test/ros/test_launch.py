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
from ros_graph import configuration, save_untrained

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


def left_behind(session: int) -> dict[int, str]:
    """pid -> command line of the processes of a session that are still there."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[3]) == session and fields[0] != "Z":
            found[int(entry.name)] = command
    return found


def pid_of(node: str, session: int) -> int:
    """Process id of a node of this launch; 0 where it does not run."""
    running = left_behind(session).items()
    return next((pid for pid, command in running if f"__node:={node} " in command), 0)


def is_recorded(bags: Path, size: int) -> bool:
    """Whether an episode is being recorded of which so many bytes are on the disk."""
    return any(path.stat().st_size > size for path in bags.glob(".*.partial/*.mcap"))


def ended(process: subprocess.Popen) -> str:
    """What a launch that ends by itself has said; nothing of it is left then."""
    try:
        output, _ = process.communicate(timeout=STARTS_WITHIN_S + ENDS_WITHIN_S)
        wait_for(lambda: not left_behind(process.pid), ENDS_WITHIN_S, f"the end of nodes\n{output}")
    finally:
        for pid in left_behind(process.pid):
            os.kill(pid, signal.SIGKILL)
    return output


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


def test_a_misspelt_argument_starts_nothing(ros_domain, tmp_path):
    process = ros2_launch(tmp_path, robot_dryrun="true")
    output = ended(process)
    assert "There is no argument 'robot_dryrun'. Nothing is started." in output
    assert process.returncode == 1 and not (tmp_path / "bags").exists(), output


def test_ros2_launch_runs_an_episode_and_ends_by_itself(ros_domain, tmp_path):
    process = ros2_launch(tmp_path)
    output = ended(process)
    readers, skipped = open_episodes(tmp_path / "bags")
    assert (len(readers), skipped) == (1, []), output
    assert readers[0].result.complete and len(readers[0].live) > 10
    assert process.returncode == 0, output


def test_a_killed_operator_and_a_killed_arbiter_come_back_and_the_run_goes_on(ros_domain, tmp_path):
    """The operator goes on with the seeds that were not used."""
    policy = save_untrained(tmp_path / "policy", object_state=10)  # nothing has to be rendered
    process = ros2_launch(tmp_path, episodes="3", first_seed="7", policy=str(policy))
    bags = tmp_path / "bags"
    wait_for(lambda: is_recorded(bags, 0), STARTS_WITHIN_S, "recording")
    os.kill(pid_of("simulated_operator", process.pid), signal.SIGKILL)
    wait_for(lambda: any(bags.glob("*_s7")), STARTS_WITHIN_S, "the end of its episode")
    wait_for(lambda: is_recorded(bags, 0), STARTS_WITHIN_S, "recording")
    os.kill(pid_of("arbiter", process.pid), signal.SIGKILL)
    output = ended(process)
    for node in ("simulated_operator", "arbiter"):
        assert f"{node} ended with signal 9. It is started again." in output
    assert sorted(path.name.rpartition("_s")[2] for path in bags.iterdir()) == ["7", "8", "9"]
    assert process.returncode == 0, output


def test_an_arbiter_that_dies_a_fourth_time_within_a_minute_ends_the_launch_with_an_error(
    ros_domain, tmp_path
):
    process, killed = ros2_launch(tmp_path, episodes="50"), set()
    while len(killed) < 4:
        wait_for(
            lambda: pid_of("arbiter", process.pid) not in {0, *killed},
            STARTS_WITHIN_S,
            "the start of the arbiter",
        )
        pid = pid_of("arbiter", process.pid)
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    output = ended(process)
    assert "arbiter ended with signal 9, for the 4th time within 60 s. The run ends." in output
    assert process.returncode == 1, output


def test_the_death_of_the_simulation_ends_the_launch_with_an_error(ros_domain, tmp_path):
    process, bags = ros2_launch(tmp_path, episodes="50"), tmp_path / "bags"
    wait_for(lambda: is_recorded(bags, 0), STARTS_WITHIN_S, "recording")
    os.kill(pid_of("robosuite_bridge", process.pid), signal.SIGKILL)
    output = ended(process)
    assert "robosuite_bridge ended with signal 9. The run ends." in output
    assert process.returncode == 1, output
    assert list(bags.glob(".*.partial")) == [], output


def test_ctrl_c_twice_ends_everything_and_keeps_the_bag(ros_domain, tmp_path):
    # Real time, on after the task is done: the episode runs on while a busy test acts on it.
    config = configuration(tmp_path, {"simulated_operator": {"success_steps": 100}})
    process = ros2_launch(tmp_path, episodes="50", lock_step="false", config=str(config))
    bags = tmp_path / "bags"
    try:
        wait_for(lambda: is_recorded(bags, 300_000), STARTS_WITHIN_S, "recording")
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
