"""Training samples a second from bags, beside LeRobotDataset on the same episodes.

    python benchmarks/reader.py --lerobot /path/to/venv/bin/python --record docs/reader.json

A sample: every camera's image as float32 (3, H, W) in 0..1, state, action and label, in shuffled
batches. The same episodes are exported as LeRobotDataset v3 twice, with images in Parquet (PNG, bit
for bit as in the bags) and as video, and read with LeRobot and torch's DataLoader by the Python of
--lerobot (which wants other versions of torch and numpy than hapo_ros, so has an environment of its
own). What is measured is each reader's way to train: bags are read and checked once, at the
start, and kept in memory; LeRobot decodes each sample when it is asked for. So the first epoch is
given with everything before it, and the later ones alone. Readers take turns, one thread each.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

BATCH = 32


def bags_epochs(bags: Path, epochs: int):
    """(seconds, samples) of the first epoch with all before it, then of each later one."""
    import numpy as np
    import torch

    from hapo_ros.episodes import open_episodes
    from hapo_ros.learning.data import from_readers

    began = time.perf_counter()
    readers, skipped = open_episodes([bags])
    assert not skipped, skipped
    table = from_readers(readers, groups=("all",))
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        seen = 0
        for rows in np.array_split(rng.permutation(len(table)), -(-len(table) // BATCH)):
            batch = table.batch(rows)
            images = {
                name: image.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
                for name, image in batch.images.items()
            }
            assert all(image.shape[1] == 3 for image in images.values())
            seen += len(torch.from_numpy(table.labels[rows]))
        yield time.perf_counter() - began, seen
        began = time.perf_counter()


def lerobot_epochs(root: Path, epochs: int, workers: int):
    """The same of a LeRobotDataset."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    began = time.perf_counter()
    found = LeRobotDataset("local/benchmark", root=root, video_backend="pyav")
    loader = torch.utils.data.DataLoader(
        found, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    for _ in range(epochs):
        seen = sum(len(batch["action"]) for batch in loader)
        yield time.perf_counter() - began, seen
        began = time.perf_counter()


def child(what: str, path: Path, epochs: int, workers: int) -> None:
    """Measure in this process and say it as JSON."""
    import importlib.metadata

    import torch

    torch.set_num_threads(1)
    run = bags_epochs(path, epochs) if what == "bags" else lerobot_epochs(path, epochs, workers)
    took = list(run)
    version = importlib.metadata.version("hapo_ros" if what == "bags" else "lerobot")
    print(json.dumps({"took": took, "version": version}))


def measure(python: str, what: str, path: Path, epochs: int, workers: int = 0) -> dict:
    """Samples/s of one reader, in a process of its own."""
    words = [python, __file__, "--child", what, "--path", path, "--epochs", epochs]
    words += ["--workers", workers]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr[-3000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    (first_s, count), *later = said["took"]
    rate = sum(seen for _, seen in later) / sum(seconds for seconds, _ in later)
    return {
        "version": said["version"],
        "samples": count,
        "first_epoch_per_s": round(count / first_s, 1),
        "later_per_s": round(rate, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lerobot", help="Python of an environment with lerobot")
    parser.add_argument("--bags", help="episodes with images; by default Lift demonstrations")
    parser.add_argument("--episodes", type=int, default=10, help="of those to collect")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--no-video", action="store_true", help="where LeRobot decodes none")
    parser.add_argument("--record", help="JSON file for the result")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.path, arguments.epochs, arguments.workers)
        return
    if not arguments.lerobot:
        parser.error("--lerobot is needed")
    from hapo_ros.episodes.formats import Options, export_episodes

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bags = Path(arguments.bags) if arguments.bags else root / "bags"
        if not arguments.bags:
            from hapo_ros.sim.rollout import collect

            cameras = {"agentview": [84, 84], "wrist": [84, 84]}
            collect(bags, "Lift", list(range(1, arguments.episodes + 1)), workers=0,
                    cameras=cameras, object_state=False)  # fmt: skip
        export_episodes("lerobot", [bags], root / "images", Options())
        readers = [
            ("bags", sys.executable, "bags", bags, 0),
            ("LeRobotDataset, PNG in Parquet", arguments.lerobot, "lerobot", root / "images", 0),
            ("the same, 2 workers", arguments.lerobot, "lerobot", root / "images", 2),
        ]
        if not arguments.no_video:
            export_episodes("lerobot", [bags], root / "video", Options(video=True))
            video = "LeRobotDataset, video", arguments.lerobot, "lerobot", root / "video", 0
            readers.append(video)
        rows = []
        for name, python, what, path, workers in readers:
            row = {"reader": name} | measure(python, what, path, arguments.epochs, workers)
            rows.append(row)
            print(
                f"{name:32} {row['samples']:6} samples, first epoch with opening "
                f"{row['first_epoch_per_s']:8} /s, later epochs {row['later_per_s']:8} /s",
                flush=True,
            )
    result = {
        "command": "python benchmarks/reader.py",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python "
        f"{platform.python_version()}",
        "rows": rows,
    }
    if arguments.record:
        Path(arguments.record).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
