"""The review page with a 10-minute episode and with 500 bags: how long, and how much memory.

    .venv/bin/python benchmarks/review.py --record docs/review.json

Records 12,000 steps with two cameras (as ``--size``) and 500 short episodes, opens both pages, and
says when the first frame was there (the bag never read before), what a frame in the middle takes,
how long everything was read for, and how the server's memory grew while it was scrubbed through.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from hapo_ros import labels, topics
from hapo_ros.arbitration.types import Applied, Authority, Decision, Reason, Tick
from hapo_ros.episodes import EpisodeInfo, EpisodeWriter, Observation, messages
from hapo_ros.review.server import serving

TYPES = messages.bag_types()
NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
PERIOD_NS = 50_000_000
POSE = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])


def record(root: Path, name: str, steps: int, size: int, cameras=("agentview", "wrist")) -> Path:
    """An episode in which the operator has the arm for five seconds of every thirty."""
    info = EpisodeInfo(
        name,
        "Lift",
        "lift the cube",
        "deployment",
        0,
        cameras={camera: [size, size] for camera in cameras},
        action_space={"names": NAMES, "control_hz": 20.0},
    )
    rng = np.random.default_rng(0)
    base = rng.integers(0, 200, (size, size, 3), np.uint8)
    writer = EpisodeWriter(root, info, topics.recorded(info.cameras, False), start_ns=0)
    for sequence in range(steps + 1):
        now_ns = (sequence + 1) * PERIOD_NS
        applied = Applied.APPLIED if sequence else Applied.NO_DECISION
        tick = Tick(name, sequence, now_ns, sequence - 1, applied, success=sequence == steps)
        image = np.roll(base, sequence, 1) + np.uint8(sequence % 50)
        observation = Observation(dict.fromkeys(info.cameras, image), np.zeros(9), POSE)
        for topic, message in messages.observation_messages(TYPES, observation, tick, ()).items():
            writer.write_message(topic, message, now_ns)
        if sequence == steps:
            break
        label = labels.HUMAN if sequence % 600 >= 500 else labels.POLICY
        action = np.sin(sequence / np.arange(10, 17)).astype(np.float32)
        decision = Decision(
            name, sequence, action, action, label, Authority.POLICY, Reason.POLICY_ACTS, 1
        )
        message = messages.executed_action_message(TYPES, decision, now_ns)
        writer.write_message(topics.EXECUTED_ACTION, message, now_ns)
    return writer.finish(writer.result("success"))


def fetch(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=120) as response:
        return response.read()


def timed(address: str) -> float:
    begin = time.monotonic()
    fetch(address)
    return time.monotonic() - begin


def memory_mib() -> float:
    """Resident memory of this process, the server's."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def until_read(address: str) -> float:
    begin = time.monotonic()
    while json.loads(fetch(f"{address}api/episodes"))["left"]:
        time.sleep(0.1)
    return time.monotonic() - begin


def measure_long(root: Path, steps: int, size: int) -> dict:
    path = record(root / "long", "long", steps, size)
    with serving([path.parent], root) as address:
        key = json.loads(fetch(f"{address}api/episodes"))["keys"][0]
        frames = f"{address}api/episodes/{key}/frames"
        first_s = timed(f"{frames}/0/0")
        read_s = until_read(address)
        rng = np.random.default_rng(1)
        jumps = [timed(f"{frames}/0/{step}") for step in rng.integers(0, steps, 50)]
        before = memory_mib()
        for step in rng.integers(0, steps, 500):
            fetch(f"{frames}/1/{step}")
        return {
            "steps": steps,
            "size": size,
            "mcap_mib": round(next(path.glob("*.mcap")).stat().st_size / 2**20, 1),
            "first_frame_s": round(first_s, 3),
            "whole_bag_read_s": round(read_s, 2),
            "frame_anywhere_s": round(statistics.median(jumps), 4),
            "server_mib": round(before, 1),
            "server_mib_after_500_frames": round(memory_mib(), 1),
        }


def measure_many(root: Path, count: int) -> dict:
    one = record(root / "one", "one", 60, 84)
    for i in range(count):
        shutil.copytree(one, root / "many" / f"20261126T{i // 60:02d}{i % 60:02d}00_Lift_s{i}")
    begin = time.monotonic()
    with serving([root / "many"], root) as address:
        rows = json.loads(fetch(f"{address}api/episodes"))["keys"]
        listed_s = time.monotonic() - begin
        read_s = until_read(address)
        return {
            "bags": len(rows),
            "listed_s": round(listed_s, 2),
            "all_read_s": round(read_s, 1),
            "list_again_s": round(timed(f"{address}api/episodes"), 3),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--size", type=int, default=128, help="pixels of an image's side")
    parser.add_argument("--bags", type=int, default=500)
    parser.add_argument("--record", help="file to write the figures to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "load": round(os.getloadavg()[0], 1),
            "long_episode": measure_long(root, arguments.steps, arguments.size),
            "many_episodes": measure_many(root, arguments.bags),
        }
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.record:
        Path(arguments.record).write_text(text + "\n")


if __name__ == "__main__":
    main()
