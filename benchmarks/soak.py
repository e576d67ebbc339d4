"""A long run of the real graph, with takeovers, holds, emergency stops and discards all along.

    make soak        # cameras, real time, half an hour, into docs/soak.json
    python benchmarks/soak.py --steps 10000 --lock-step --state-only

What must not grow is counted once per --sample steps for every node: resident memory, open file
descriptors, threads. Afterwards every bag is read: each tick of each episode has to be in it, with
one decision and one label. The policy is untrained: it fails, so that there are takeovers.
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from hapo_ros.arbitration import Authority, Event
from hapo_ros.deployment import describe
from hapo_ros.episodes import BadEpisode, EpisodeReader
from hapo_ros.gateway_client import GatewayClient
from hapo_ros.resources import resource
from hapo_ros.supervisor import Supervisor

SETTLED = 0.3  # of the steps: by then caches are filled and nothing may grow any more
SILENCE_S = 60.0
RUNNING = 2  # EpisodeState.RUNNING
FAULTS = ("hold", "emergency stop", "discard")
# Between two of what is done to the run, in steps.
BETWEEN = (100, 300)
OVERTAKEN = 2  # decisions that an episode's end may overtake: those are in no bag


def untrained(folder: Path, cameras: dict[str, tuple[int, int]], object_state: int) -> Path:
    """A small checkpoint that moves the arm anyhow; returns its folder."""
    import torch

    from hapo_ros.policies import checkpoint
    from hapo_ros.policies.small import Normalisation
    from hapo_ros.policies.tiny_vla import TinyVla, TinyVlaConfig
    from hapo_ros.policies.tokenizers import Words
    from hapo_ros.sim.environment import action_space

    names = action_space()["names"]
    rng = np.random.default_rng(0)
    state = rng.normal(size=(50, object_state)).astype(np.float32) if object_state else None
    torch.manual_seed(0)
    policy = TinyVla(
        TinyVlaConfig(
            cameras=cameras,
            object_state=object_state,
            action_names=tuple(names),
            width=32,
            blocks=1,
        ),
        Normalisation.fit(len(names), rng.normal(size=(50, 11)).astype(np.float32), state),
        Words.fit(["lift the cube"]),
    )
    checkpoint.save(policy, folder, {"method": "none"})
    return folder


def used(pid: int) -> dict[str, int]:
    """What a process holds: kib of memory that is its own alone, descriptors, threads."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in status)
    return {
        "kib": int(values["RssAnon"].split()[0]),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(values["Threads"]),
    }


class Soak:
    """One run. said: the gateway's events, by kind, the newest of each."""

    def __init__(self, folder: Path, steps: int, lock_step: bool, cameras: bool, sample: int):
        self.folder, self.steps, self.sample = folder, steps, sample
        sizes = {"agentview": (84, 84), "wrist": (84, 84)} if cameras else {}
        policy = untrained(folder / "policy", sizes, 0 if cameras else 10)
        self.deployment = describe(
            {
                "operator": "simulated",
                "policy": str(policy),
                "optimizer": "false",
                "bags": str(folder / "bags"),
                "checkpoints": str(folder / "checkpoints"),
                "episodes": "1000000",
                "lock_step": "true" if lock_step else "false",
                "config": str(self._configuration()),
            }
        )
        self.random = random.Random(0)
        self.authority: dict = {}
        self.episode: dict = {}
        self.done = Counter()  # what was done to the run
        self.samples: dict[str, list[dict]] = {node.name: [] for node in self.deployment.nodes}
        self.decided: Counter[str] = Counter()  # steps by episode, as the arbiter tells
        self._episode_id = ""

    def _configuration(self) -> Path:
        yaml = YAML(typ="safe")
        config = yaml.load(Path(resource("config/deployment.yaml")))
        # Impatient: a takeover in every episode, and back to the policy.
        config["simulated_operator"]["ros__parameters"] |= {"patience_steps": 8, "finish": False}
        path = self.folder / "soak.yaml"
        yaml.dump(config, path)
        return path

    def hear(self, event: dict) -> None:
        if event["event"] == "authority":
            # After its end it still tells what an episode came to.
            self._episode_id = event["episode_id"] or self._episode_id
            if self._episode_id:
                self.decided[self._episode_id] = sum(event["labels"])
            self.authority = event
        elif event["event"] == "episode":
            self.episode = event

    @property
    def total(self) -> int:
        """Decided steps so far, over all episodes."""
        return self.decided.total()

    def run(self, tell=lambda steps: None) -> dict:
        """Until there are enough steps; returns the report."""
        began_s, told = time.monotonic(), 0
        next_sample, next_fault = self.sample, self.random.randint(*BETWEEN)
        with (
            Supervisor(self.deployment, self.folder / "logs") as supervisor,
            GatewayClient(30.0, self.hear) as self.gateway,
        ):
            supervisor.start()
            heard_s, last = time.monotonic(), 0
            while self.total < self.steps:
                supervisor.watch()
                self.gateway.news()
                if self.total > last:
                    heard_s, last = time.monotonic(), self.total
                if self.total >= told + 1000:
                    told = self.total
                    tell(told)
                if time.monotonic() - heard_s > SILENCE_S:
                    raise SystemExit(f"No step for {SILENCE_S:g} s, after {last}. See its logs.")
                if self.total >= next_sample:
                    next_sample += self.sample
                    self._take_sample(supervisor)
                if self.total >= next_fault and self.episode.get("state") == RUNNING:
                    next_fault = self.total + self.random.randint(*BETWEEN)
                    self._do(self.random.choice(FAULTS))
                self._recover()
                time.sleep(0.01)
        return self._report(time.monotonic() - began_s)

    def _take_sample(self, supervisor) -> None:
        for name, samples in self.samples.items():
            samples.append({"steps": self.total} | used(supervisor.pid(name)))

    def _do(self, what: str) -> None:
        if what == "discard":
            episode_id = self.episode["episode_id"]
            request = {"episode_id": episode_id, "reason": "A soak."}
            self.done[what] += self.gateway.call("discard_episode", **request)["ok"]
        else:
            self.done[what] += self._request(Event.HOLD if what == "hold" else Event.ESTOP)

    def _recover(self) -> None:
        """A human's act, after a hold or a stop; refused until the device has been seen neutral."""
        authority = self.authority.get("authority")
        if authority == Authority.FAULT:
            self._request(Event.CLEAR_FAULT)
        elif authority == Authority.HOLD and self.episode.get("state") == RUNNING:
            self._request(Event.RESUME)

    def _request(self, event: Event) -> bool:
        return self.gateway.call("request_authority", event=int(event))["ok"]

    def _report(self, took_s: float) -> dict:
        labels, outcomes, unaccounted = Counter(), Counter(), []
        takeovers = recorded = 0
        for bag in sorted((self.folder / "bags").iterdir()):
            if bag.name.startswith("."):
                unaccounted.append(f"{bag.name}: unfinished")
                continue
            try:
                reader = EpisodeReader(bag, accept_recovered=True)
            except BadEpisode as error:
                outcomes[error.name] += 1  # no labels: it was discarded as it began
                if error.name != "no labels" or self.decided[bag.name] > OVERTAKEN:
                    unaccounted.append(str(error))
                continue
            result, sequences = reader.result, reader.sequences.tolist()
            labels.update(result.labels)
            outcomes[result.outcome if result.complete else "cut short"] += 1
            recorded += len(sequences)
            takeovers += int(np.sum(np.diff((reader.live == 2).astype(int), prepend=0) == 1))
            if result.lost or sequences != list(range(len(sequences))):
                unaccounted.append(f"{bag.name}: lost {result.lost}")
            if sum(result.labels.values()) != result.steps:
                unaccounted.append(f"{bag.name}: {result.steps} steps, labels {result.labels}")
            # Fewer is no loss: who watches hears the newest status, and not every one.
            more = self.decided[bag.name] - result.steps
            if result.complete and more > OVERTAKEN:
                unaccounted.append(f"{bag.name}: {result.steps} steps, {more} more were decided")
        return {
            "steps": self.total,
            "recorded_steps": recorded,
            "steps_per_s": round(self.total / took_s, 1),
            "episodes": dict(outcomes),
            "takeovers": takeovers,
            "labels": dict(labels),
            "done": dict(self.done),
            "unaccounted": unaccounted,
            "growth": {name: growth(samples) for name, samples in self.samples.items()},
            "samples": self.samples,
        }


def growth(samples: list[dict]) -> dict[str, float]:
    """How much more a node holds at the end than when it had settled.

    kib_per_1000_steps: slope of a straight line through the settled samples. descriptors, threads:
    difference of the medians of the last and the first third of them.
    """
    settled = [each for each in samples if each["steps"] >= SETTLED * samples[-1]["steps"]]
    steps, kib = (np.array([each[name] for each in settled], float) for name in ("steps", "kib"))
    third = max(len(settled) // 3, 1)

    def more(name):
        values = [each[name] for each in settled]
        return float(np.median(values[-third:]) - np.median(values[:third]))

    return {
        "kib_per_1000_steps": round(float(np.polyfit(steps, kib, 1)[0]) * 1000, 1),
        "descriptors": more("descriptors"),
        "threads": more("threads"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=36_000, help="half an hour in real time")
    parser.add_argument("--lock-step", action="store_true", help="as fast as it goes")
    parser.add_argument("--state-only", action="store_true", help="no cameras")
    parser.add_argument("--sample", type=int, default=500, help="steps between two samples")
    parser.add_argument("--record", type=Path, help="write the report here")
    arguments = parser.parse_args()
    os.environ.setdefault("ROS_DOMAIN_ID", str(random.randint(1, 100)))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ.setdefault("MUJOCO_GL", "egl")
    with tempfile.TemporaryDirectory(prefix="hapo_soak_") as folder:
        soak = Soak(
            Path(folder),
            arguments.steps,
            arguments.lock_step,
            not arguments.state_only,
            arguments.sample,
        )
        report = soak.run(lambda steps: print(f"{steps} steps", flush=True))
    report = {
        "command": f"python benchmarks/soak.py {' '.join(sys.argv[1:])}",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    } | report
    if arguments.record:
        arguments.record.write_text(json.dumps(report, indent=1) + "\n")
    del report["samples"]
    print(json.dumps(report, indent=1))
    return 1 if report["unaccounted"] else 0


if __name__ == "__main__":
    sys.exit(main())
