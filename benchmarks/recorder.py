"""What the recorder costs and how much it can take, beside ``ros2 bag record`` where that is there.

    python benchmarks/recorder.py --record docs/recorder.json

A robot side in this process publishes what a deployment does (two cameras, states, ticks, answers,
decisions, an operator's device at 100 Hz), with pictures rendered by the simulation; the recorder
node, and then ``ros2 bag record`` (MCAP, zstd_fast) on the same work, record it in real time. Then
the highest rate of ticks at which nothing is lost, and the time to recover a 10-minute episode that
a kill left unfinished.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

from hapo_ros import processes, topics
from hapo_ros.arbitration import Applied, Authority, Decision, PolicyCommand, Reason, Tick
from hapo_ros.episodes import EpisodeReader, EpisodeWriter, messages, recover
from hapo_ros.episodes.types import EpisodeInfo, Observation
from hapo_ros.sim.environment import Simulation, action_space
from hapo_ros.sim.tasks import get_task
from hapo_ros.supervisor import executable

CAMERAS, SIZE = ("agentview", "wrist"), 224
DEVICE_HZ = 100.0


def observations(n: int = 40) -> list[Observation]:
    """Frames and states of a moving arm."""
    simulation = Simulation(get_task("Lift"), SIZE, CAMERAS)
    rng = np.random.default_rng(0)
    found = [simulation.reset(1)]
    while len(found) < n:
        found.append(simulation.step(rng.uniform(-1, 1, 7).astype(np.float32)))
    simulation.close()
    return [Observation(o.images, o.joint_positions, o.eef_pose) for o in found]


def step_messages(types, observation, episode_id: str, sequence: int, stamp_ns: int) -> dict:
    """Every message of one tick, by topic."""
    action = np.zeros(7, np.float32)
    tick = Tick(
        episode_id,
        sequence,
        stamp_ns,
        applied_sequence=sequence - 1,
        applied=Applied.APPLIED if sequence else Applied.NO_DECISION,
        applied_action=action,
    )
    command = PolicyCommand(episode_id, sequence, 0, "v", action[None])
    decision = Decision(
        episode_id, sequence, action, action, 1, Authority.POLICY, Reason.POLICY_ACTS, 0, "v"
    )
    return messages.observation_messages(types, observation, tick) | {
        topics.POLICY_ACTION: messages.policy_action_message(types, command, stamp_ns),
        topics.EXECUTED_ACTION: messages.executed_action_message(types, decision, stamp_ns),
    }


class RobotSide:
    """Publishes a deployment's messages at a rate."""

    def __init__(self, seen: list[Observation]):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        from hapo_ros.nodes.common import IMAGES, LATCHED, RECORD, STATUS, message_class, ros_types
        from hapo_ros.srv import EndEpisode, StartEpisode

        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("benchmark_robot", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.types, self.seen = ros_types(), seen
        recorded = topics.recorded(CAMERAS, object_state=False)

        def qos(topic, type_name):
            if topic == topics.AUTHORITY_STATUS:
                return STATUS
            return IMAGES if type_name == "sensor_msgs/msg/Image" else RECORD

        self.publishers = {
            topic: self.node.create_publisher(message_class(name), topic, qos(topic, name))
            for topic, name in recorded.items()
        }
        info = self.node.create_publisher(self.types.String, topics.OBSERVATION_INFO, LATCHED)
        policy = self.node.create_publisher(self.types.String, topics.POLICY_INFO, LATCHED)
        known = {
            "task": "Lift",
            "instruction": "lift the cube",
            "cameras": {camera: [SIZE, SIZE] for camera in CAMERAS},
            "object_state": [],
            "action_space": action_space(),
        }
        info.publish(self.types.String(data=json.dumps(known)))
        policy.publish(self.types.String(data=json.dumps({"version": "v", "normalisation": {}})))
        self.start = self.node.create_client(StartEpisode, topics.START_EPISODE)
        self.end = self.node.create_client(EndEpisode, topics.END_EPISODE)

    def call(self, client, timeout_s: float = 20.0, **fields):
        """A service's answer."""
        request = client.srv_type.Request(**fields)
        if not client.wait_for_service(timeout_s):
            raise RuntimeError("The recorder did not start.")
        future = client.call_async(request)
        self.executor.spin_until_future_complete(future, timeout_s)
        if future.result() is None:
            raise RuntimeError("The recorder did not answer.")
        return future.result()

    def started(self) -> str:
        """Start an episode as soon as the recorder hears everyone; returns its id."""
        end_s = time.monotonic() + 20
        while True:
            reply = self.call(self.start, task="Lift", source="deployment", seed=1)
            if reply.ok:
                return reply.episode_id
            if time.monotonic() > end_s:
                raise RuntimeError(reply.text)

    def publish(self, episode_id: str, rate_hz: float, seconds: float) -> dict:
        """Publish for so long; returns what was sent by topic, and how far behind it fell."""
        sent = dict.fromkeys(self.publishers, 0)
        begin_s, next_device_s, late_s = time.monotonic(), 0.0, 0.0
        for sequence in range(round(rate_hz * seconds)):
            due_s = begin_s + sequence / rate_hz
            while (now_s := time.monotonic()) < due_s:
                if now_s >= next_device_s:
                    self._device(sent)
                    next_device_s = now_s + 1 / DEVICE_HZ
                time.sleep(min(due_s - now_s, 0.001))
            late_s = max(late_s, now_s - due_s)
            observation = self.seen[sequence % len(self.seen)]
            stamp_ns = self.node.get_clock().now().nanoseconds
            for topic, message in step_messages(
                self.types, observation, episode_id, sequence, stamp_ns
            ).items():
                self.publishers[topic].publish(message)
                sent[topic] += 1
            if sequence % max(round(rate_hz / 5), 1) == 0:
                self._status(stamp_ns, episode_id, sequence)
                sent[topics.AUTHORITY_STATUS] += 1
        return {"sent": sent, "fell_behind_s": round(late_s, 3)}

    def _device(self, sent: dict) -> None:
        stamp_ns = self.node.get_clock().now().nanoseconds
        for topic, message in messages.operator_messages(
            self.types, np.zeros(6, np.float32), (0, 0), np.zeros(6), stamp_ns
        ).items():
            self.publishers[topic].publish(message)
            sent[topic] += 1

    def _status(self, stamp_ns: int, episode_id: str, sequence: int) -> None:
        message = messages.authority_status_message(
            self.types,
            stamp_ns,
            Authority.POLICY,
            Reason.POLICY_ACTS,
            episode_id=episode_id,
            sequence=sequence,
        )
        self.publishers[topics.AUTHORITY_STATUS].publish(message)

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


def cpu_s(pid: int) -> float:
    """CPU time so far of a process and what it started."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rsplit(")", 1)
        except OSError:
            continue  # it ended meanwhile
        fields = fields.split()
        if int(name.split()[0]) == pid or int(fields[1]) == pid:
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def run_recorder(robot: RobotSide, folder: Path, rate_hz: float, seconds: float) -> dict:
    """The recorder node on this work."""
    given = ["-p", f"root:={folder}", "-p", "lock_step:=false"]
    process = processes.start(
        [executable("recorder"), "--ros-args", "--log-level", "ERROR", *given]
    )
    try:
        episode_id = robot.started()
        before_s, began_s = cpu_s(process.pid), time.monotonic()
        published = robot.publish(episode_id, rate_hz, seconds)
        share = (cpu_s(process.pid) - before_s) / (time.monotonic() - began_s)
        last = round(rate_hz * seconds) - 1
        reply = robot.call(robot.end, episode_id=episode_id, outcome="success", last_sequence=last)
        if not reply.ok:
            raise RuntimeError(reply.text)
    finally:
        processes.stop(process, 15.0)
    reader = EpisodeReader(reply.bag, accept_recovered=True)
    return outcome(published, reader.counts, share, Path(reply.bag)) | {
        "lost_by_its_own_word": reader.result.lost
    }


def run_ros2_bag(robot: RobotSide, folder: Path, rate_hz: float, seconds: float) -> dict:
    """``ros2 bag record`` on the same work."""
    from ruamel.yaml import YAML

    bag = folder / "ros2_bag"
    log = (folder / "ros2_bag.log").open("wb")
    process = subprocess.Popen(
        ["ros2", "bag", "record", "-s", "mcap", "--storage-preset-profile", "zstd_fast"]
        + ["-o", str(bag), "--topics", *(f"/{topic}" for topic in robot.publishers)],
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        end_s = time.monotonic() + 60
        while any(p.get_subscription_count() == 0 for p in robot.publishers.values()):
            if time.monotonic() > end_s:
                raise RuntimeError(f"ros2 bag record did not subscribe; see {log.name}")
            time.sleep(0.1)
        before_s, began_s = cpu_s(process.pid), time.monotonic()
        published = robot.publish("benchmark", rate_hz, seconds)
        share = (cpu_s(process.pid) - before_s) / (time.monotonic() - began_s)
        time.sleep(1.0)  # it has no service to ask whether everything has arrived
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    metadata = YAML(typ="safe").load(bag / "metadata.yaml")["rosbag2_bagfile_information"]
    counts = {
        each["topic_metadata"]["name"].lstrip("/"): each["message_count"]
        for each in metadata["topics_with_message_count"]
    }
    return outcome(published, counts, share, bag)


def outcome(published: dict, counts: dict, share: float, bag: Path) -> dict:
    lost = {
        topic: n - counts.get(topic, 0)
        for topic, n in published["sent"].items()
        # The device is recorded from the start of the episode on.
        if topic not in (topics.JOY, topics.TWIST) and n > counts.get(topic, 0)
    }
    size = sum(path.stat().st_size for path in bag.rglob("*") if path.is_file())
    return {
        "ticks": published["sent"][topics.OBSERVATION_TICK],
        "fell_behind_s": published["fell_behind_s"],
        "lost": lost,
        "cpu_share": round(share, 4),
        "mib": round(size / 2**20, 1),
    }


def time_recovery(seen: list[Observation], folder: Path, minutes: float) -> dict:
    """An unfinished episode of so many minutes at 20 Hz, and how long its recovery takes."""
    types = messages.bag_types()
    info = EpisodeInfo(
        "killed",
        "Lift",
        "lift the cube",
        "deployment",
        1,
        cameras={camera: [SIZE, SIZE] for camera in CAMERAS},
        action_space=action_space(),
    )
    recorded = topics.recorded(CAMERAS, object_state=False)
    writer = EpisodeWriter(folder, info, recorded, start_ns=0)
    steps = round(minutes * 60 * 20)
    for sequence in range(steps):
        stamp_ns = sequence * 50_000_000
        observation = seen[sequence % len(seen)]
        for topic, message in step_messages(
            types, observation, "killed", sequence, stamp_ns
        ).items():
            writer.write_message(topic, message, stamp_ns)
    writer.close()  # as a kill leaves it: whole chunks, no index, no metadata
    left = folder / ".killed.partial"
    size = sum(path.stat().st_size for path in left.iterdir())
    began_s = time.monotonic()
    bag = recover(left)
    took_s = time.monotonic() - began_s
    return {
        "minutes": minutes,
        "mib": round(size / 2**20),
        "recover_s": round(took_s, 1),
        "steps_lost": steps - len(EpisodeReader(bag, accept_recovered=True).live),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the killed episode")
    parser.add_argument("--rates", default="20,40,80,160,320", help="Hz, with commas")
    parser.add_argument("--record", help="JSON file of the results")
    arguments = parser.parse_args()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["ROS_DOMAIN_ID"] = str(random.randint(1, 100))
    runs = {"hapo_ros": run_recorder}
    if shutil.which("ros2"):
        runs["ros2 bag record"] = run_ros2_bag
    else:
        print("ros2 is not installed, so there is nothing to compare with.")
    seen = observations()
    robot = RobotSide(seen)
    result = {
        "command": "python benchmarks/recorder.py",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python "
        f"{platform.python_version()}",
        "pictures": f"2 x {SIZE} x {SIZE} x 3 a tick",
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as root:
        for number, rate in enumerate(map(float, arguments.rates.split(","))):
            row = {"rate_hz": rate}
            for name, run in runs.items():
                folder = Path(root) / f"{number}_{name.replace(' ', '_')}"
                folder.mkdir()
                row[name] = found = run(robot, folder, rate, arguments.seconds)
                print(
                    f"{rate:5g} Hz  {name:16} {found['cpu_share']:6.1%} of a core, "
                    f"{found['mib']} MiB, lost {found['lost'] or 'nothing'}, fell behind "
                    f"{found['fell_behind_s']} s",
                    flush=True,
                )
                shutil.rmtree(folder)
            if len(runs) == 2:
                ours, theirs = (row[name]["cpu_share"] for name in runs)
                print(f"          CPU, ours / theirs: {ours / theirs:.2f}")
            result["rows"].append(row)
            if row["hapo_ros"]["lost"] or row["hapo_ros"]["fell_behind_s"] > 0.5:
                break
        robot.close()
        result["recovery"] = time_recovery(seen, Path(root), arguments.minutes)
        print(f"recovery of a killed episode: {result['recovery']}")
    if arguments.record:
        Path(arguments.record).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
