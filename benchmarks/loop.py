"""The demo's loop over several training seeds, compared on the same unseen seeds.

    python benchmarks/loop.py --output runs/loop --record docs/loop.json

One deployment of the shipped base policy as in the demo (same seeds, same stopping rule, collected
synchronously, which gives the same bags), then for every training seed each method from the same
bags, and base and all results on the same evaluation seeds. Differences are paired by seed. The
mean over training seeds has two intervals: Student's t over the training seeds, and a bootstrap
over the evaluation seeds; a difference is called one only where both leave out zero. Evaluation
seeds are neither the demo's nor those that any setting was chosen on.

What is finished is kept in the output folder: the same command again goes on where it was stopped.
"""

import argparse
import json
import platform
import shlex
import shutil
import sys
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np

from hapo_ros.demo import (
    CONTROL,
    DEMONSTRATION_SEED,
    DEMONSTRATIONS,
    DEPLOYMENT_SEED,
    METHOD,
    SETTINGS,
    TASK,
    DemoOptions,
)
from hapo_ros.learning.trainer import optimize
from hapo_ros.policies.checkpoint import version_of
from hapo_ros.progress import progress
from hapo_ros.resources import resource
from hapo_ros.sim.environment import Disturbance
from hapo_ros.sim.rollout import collect, evaluate
from hapo_ros.statistics import NO_DIFFERENCE, mean_over_seeds, paired_difference, wilson

EVALUATION_SEED = 20_000


class Kept:
    """What was finished of a plan, one JSON file a part. Raises SystemExit for another plan's."""

    def __init__(self, folder: Path, plan: dict):
        self._folder = folder / "kept"
        self._folder.mkdir(parents=True, exist_ok=True)
        if self.get("plan", lambda: plan) != plan:
            raise SystemExit(f"{folder} is of another plan. Nothing was done. Give another folder.")

    def has(self, name: str) -> bool:
        return self._path(name).exists()

    def get(self, name: str, make):
        """What is kept by this name; made, and kept, where it is not there yet."""
        if not self.has(name):
            working = self._path(f".{name}")
            working.write_text(json.dumps(make()))
            working.rename(self._path(name))
        return json.loads(self._path(name).read_text())

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def demonstrate(folder: Path, workers: int) -> None:
    """The demo's demonstrations."""
    seeds = list(range(DEMONSTRATION_SEED, DEMONSTRATION_SEED + DEMONSTRATIONS))
    collect(folder, TASK, seeds, disturbance=Disturbance(), workers=workers)


def deploy(base: Path, folder: Path, options: DemoOptions) -> dict:
    """The demo's deployment: seeds in order until enough takeovers; later episodes are removed.

    A batch at a time, each in processes of its own: a simulation that is made anew keeps memory.
    """
    episodes, batch = [], 8 * options.workers
    for first in range(DEPLOYMENT_SEED, DEPLOYMENT_SEED + options.episodes, batch):
        seeds = range(first, min(first + batch, DEPLOYMENT_SEED + options.episodes))
        for episode in collect(folder, TASK, list(seeds), checkpoint=base, workers=options.workers):
            if sum(each.takeovers for each in episodes) < options.takeovers:
                episodes.append(episode)
            else:
                shutil.rmtree(episode.path)
        print(f"{len(episodes)} episodes", flush=True)
        if sum(each.takeovers for each in episodes) >= options.takeovers:
            break
    live = [label for episode in episodes for label in episode.live]
    return {
        "episodes": len(episodes),
        "takeovers": sum(episode.takeovers for episode in episodes),
        "human_steps": live.count(2),
        "policy_steps": live.count(1),
    }


def outcomes(checkpoint: Path, seeds: list[int], workers: int, what: str) -> list[bool]:
    """Success of the policy alone on every seed."""
    with progress(what, len(seeds)) as advance:
        episodes = evaluate(
            checkpoint,
            TASK,
            seeds,
            workers=workers,
            progress=lambda done, total, result: advance(done),
        )
    return [episode.success for episode in episodes]


def against(first: list[list[bool]], second: list[list[bool]]) -> dict:
    """Paired differences, one a training seed, and their mean."""
    pairs = [paired_difference(a, b) for a, b in zip(first, second, strict=True)]
    mean = mean_over_seeds([pair.difference for pair in pairs])
    low, high = evaluation_interval(np.subtract(first, second, dtype=float))
    shown = (mean.low > 0 and low > 0) or (mean.high < 0 and high < 0)
    return {
        "per_training_seed": [
            {
                "difference": p.difference,
                "low": p.low,
                "high": p.high,
                "p": p.p_value,
                "verdict": p.verdict,
            }
            for p in pairs
        ],
        "mean": mean.mean,
        "mean_low": mean.low,
        "mean_high": mean.high,
        "mean_low_over_evaluation_seeds": low,
        "mean_high_over_evaluation_seeds": high,
        "verdict": "a difference" if shown else NO_DIFFERENCE,
    }


def evaluation_interval(differences: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of (training seeds, evaluation seeds) differences, over
    the evaluation seeds: all training seeds meet the same ones."""
    by_seed = differences.mean(axis=0)
    picks = np.random.default_rng(0).integers(0, len(by_seed), (draws, len(by_seed)))
    low, high = np.quantile(by_seed[picks].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    defaults = DemoOptions()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="folder of bags and checkpoints")
    parser.add_argument("--record", help="JSON file of the results")
    parser.add_argument("--base", default=None, help="checkpoint; default: the shipped one")
    parser.add_argument("--methods", default=f"{METHOD},{CONTROL}")
    parser.add_argument("--training-seeds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=100, help="evaluation seeds")
    parser.add_argument("--first-seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--takeovers", type=int, default=defaults.takeovers)
    parser.add_argument("--episodes", type=int, default=defaults.episodes)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    output = Path(arguments.output)
    base = Path(arguments.base) if arguments.base else resource("models/lift_base")
    demonstrations, bags = output / "demonstrations", output / "deployment"
    settings = SETTINGS | {"steps": arguments.steps}
    settings |= {
        name: json.loads(value) for name, value in (word.split("=", 1) for word in arguments.set)
    }
    options = DemoOptions(
        episodes=arguments.episodes, takeovers=arguments.takeovers, workers=arguments.workers
    )
    seeds = list(range(arguments.first_seed, arguments.first_seed + arguments.seeds))
    plan = {
        "base": version_of(base),
        "settings": settings,
        "deployment": [options.episodes, options.takeovers],
        "seeds": [seeds[0], seeds[-1]],
    }
    kept = Kept(output, plan)
    if not kept.has("deployment"):
        for unfinished in (demonstrations, bags):
            shutil.rmtree(unfinished, ignore_errors=True)
        demonstrate(demonstrations, arguments.workers)
    deployment = kept.get("deployment", lambda: deploy(base, bags, options))
    print(deployment, flush=True)

    base_outcomes = kept.get("base", lambda: outcomes(base, seeds, arguments.workers, "base"))
    arms: dict[str, list[list[bool]]] = {}
    for method in arguments.methods.split(","):
        source = [demonstrations] if method == CONTROL else [demonstrations, bags]
        for training_seed in range(arguments.training_seeds):
            name = f"{method}_{training_seed}"
            if not (output / name).exists():
                with progress(name, arguments.steps) as advance:
                    optimize(
                        source,
                        base,
                        method,
                        settings | {"seed": training_seed},
                        output / name,
                        progress=lambda said: advance(said["step"], f"loss {said['loss']:.3f}"),
                    )
            evaluation = partial(outcomes, output / name, seeds, arguments.workers, name)
            arms.setdefault(method, []).append(kept.get(name, evaluation))

    n = len(seeds)
    result = {
        "command": shlex.join(["python", "benchmarks/loop.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, python {platform.python_version()}",
        "base": {
            "successes": sum(base_outcomes),
            "n": n,
            "wilson_95": wilson(sum(base_outcomes), n),
        },
        "deployment": deployment,
        "settings": settings,
        "evaluation_seeds": [seeds[0], seeds[-1]],
        "arms": {
            method: {
                "successes": [sum(run) for run in runs],
                "wilson_95": [wilson(sum(run), n) for run in runs],
                "against_base": against(runs, [base_outcomes] * len(runs)),
            }
            for method, runs in arms.items()
        },
    }
    if METHOD in arms and CONTROL in arms:
        result["method_against_control"] = against(arms[METHOD], arms[CONTROL])
    print(json.dumps(result, indent=1))
    if arguments.record:
        Path(arguments.record).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
