"""Makes the shipped base policy, models/lift_base: `make base-policy`.

20 demonstrations (seeds 1-20) with disturbed bursts, behaviour cloning for several numbers of
steps, each candidate evaluated on the selection seeds, the best one kept (fewest steps where
equal). Nothing here looks at a deployment, at preference training or at the demo's evaluation
seeds. Writes the curve with its intervals to docs/base_policy.json.
"""

import argparse
import json
import platform
import shutil
from datetime import date
from pathlib import Path

from hapo_ros import cli
from hapo_ros.sim.rollout import evaluate
from hapo_ros.statistics import wilson

DEMONSTRATIONS, FIRST_DEMONSTRATION = 20, 1
SELECTION_SEEDS = range(5000, 5060)
CANDIDATE_STEPS = (300, 600)
SETTINGS = ("batch_size=64", "lr=0.0005", "image_shift=4", "seed=0")


def run(*words: str) -> None:
    """One ``hapo`` command; the documented way, nothing else."""
    print("hapo " + " ".join(words), flush=True)
    if cli.main(words) != 0:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", default="runs/base", help="folder of bags and candidates")
    parser.add_argument("--output", default="models/lift_base", help="folder of the chosen policy")
    parser.add_argument("--curve", default="docs/base_policy.json")
    arguments = parser.parse_args()
    work, output = Path(arguments.work), Path(arguments.output)
    if work.exists() or output.exists():
        raise SystemExit(f"{work} or {output} exists. Nothing is overwritten: move them away.")

    bags = work / "demonstrations"
    seeds = ("--first-seed", str(FIRST_DEMONSTRATION), "--episodes", str(DEMONSTRATIONS))
    run("collect", "--output", str(bags), *seeds)
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    curve = []
    for steps in CANDIDATE_STEPS:
        folder = work / f"steps_{steps}"
        run("train", str(bags), "--output", str(folder), "--set", f"steps={steps}", *settings)
        episodes = evaluate(folder, "Lift", list(SELECTION_SEEDS), workers=2)
        successes = sum(episode.success for episode in episodes)
        low, high = wilson(successes, len(episodes))
        curve.append(
            {
                "steps": steps,
                "successes": successes,
                "n": len(episodes),
                "wilson_95": [round(low, 3), round(high, 3)],
                "folder": folder.name,
            }
        )
        print(curve[-1], flush=True)
    best = max(curve, key=lambda point: (point["successes"], -point["steps"]))
    output.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(work / best["folder"], output)
    record = {
        "command": "make base-policy",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, python {platform.python_version()}",
        "demonstration_seeds": [FIRST_DEMONSTRATION, FIRST_DEMONSTRATION + DEMONSTRATIONS - 1],
        "selection_seeds": [SELECTION_SEEDS[0], SELECTION_SEEDS[-1]],
        "settings": list(SETTINGS),
        "curve": curve,
        "chosen": best["steps"],
    }
    Path(arguments.curve).write_text(json.dumps(record, indent=1) + "\n")
    print(f"{output}: {best['steps']} steps, {best['successes']}/{best['n']}")


if __name__ == "__main__":
    main()
