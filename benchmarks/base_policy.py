"""Makes the shipped base policy anew and compares it with the one that ships: `make base-policy`.

20 demonstrations (seeds 1-20) with disturbed bursts, behaviour cloning for several numbers of
steps, each candidate evaluated on the selection seeds, the best one kept (fewest steps where
equal). Nothing here looks at a deployment, at preference training or at the demo's evaluation
seeds.

Everything goes to runs/base: the chosen policy to runs/base/chosen, its curve to curve.json. The
curve is compared with the recorded one, docs/base_policy.json: a rerun has to lie within the
recorded intervals, or the exit code is 1. Afterwards, --replace puts the chosen policy and its
curve in the place of models/lift_base and docs/base_policy.json.
"""

import argparse
import json
import platform
import shutil
import sys
from datetime import date
from pathlib import Path

from hapo_ros import cli
from hapo_ros.sim.rollout import evaluate
from hapo_ros.statistics import wilson

ROOT = Path(__file__).resolve().parent.parent
SHIPPED, RECORD = ROOT / "models" / "lift_base", ROOT / "docs" / "base_policy.json"
FIRST_DEMONSTRATION, FIRST_SELECTION = 1, 5000
SETTINGS = ("batch_size=64", "lr=0.0005", "image_shift=4", "seed=0")


def run(*words: str) -> None:
    """One ``hapo`` command; the documented way, nothing else."""
    print("hapo " + " ".join(words), flush=True)
    if cli.main(words) != 0:
        raise SystemExit(1)


def make(work: Path, demonstrations: int, candidates: list[int], seeds: int) -> dict:
    """Collect, train, evaluate and choose in ``work``; returns the record with the curve."""
    bags = work / "demonstrations"
    first = ("--first-seed", str(FIRST_DEMONSTRATION), "--episodes", str(demonstrations))
    run("collect", "--output", str(bags), *first)
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    selection = list(range(FIRST_SELECTION, FIRST_SELECTION + seeds))
    curve = []
    for steps in candidates:
        folder = work / f"steps_{steps}"
        run("train", str(bags), "--output", str(folder), "--set", f"steps={steps}", *settings)
        episodes = evaluate(folder, "Lift", selection, workers=2)
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
    shutil.copytree(work / best["folder"], work / "chosen")
    record = {
        "command": "make base-policy",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, python {platform.python_version()}",
        "demonstration_seeds": [FIRST_DEMONSTRATION, FIRST_DEMONSTRATION + demonstrations - 1],
        "selection_seeds": [selection[0], selection[-1]],
        "settings": list(SETTINGS),
        "curve": curve,
        "chosen": best["steps"],
    }
    (work / "curve.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def compare(made: dict, recorded: dict) -> bool:
    """Print both curves side by side; False where a new point is not in the recorded interval."""
    how = ("demonstration_seeds", "selection_seeds", "settings")
    if different := [name for name in how if made[name] != recorded[name]]:
        print(f"Not compared with the recorded curve: other {', '.join(different)}.")
        return True
    points = {point["steps"]: point for point in recorded["curve"]}
    same = True
    for point in made["curve"]:
        now = f"{point['steps']} steps: {point['successes']}/{point['n']}"
        known = points.get(point["steps"])
        if known is None:
            print(f"{now}; not recorded")
            continue
        low, high = known["wilson_95"]
        inside = low <= point["successes"] / point["n"] <= high
        same &= inside
        print(
            f"{now}; recorded {known['successes']}/{known['n']}, {low:.0%} to {high:.0%}: "
            f"{'within' if inside else 'NOT within'} the interval"
        )
    return same


def replace(work: Path) -> None:
    """Put what was made in the place of what ships."""
    new = SHIPPED.with_name(f".{SHIPPED.name}.new")
    shutil.copytree(work / "chosen", new)
    if SHIPPED.exists():
        shutil.rmtree(SHIPPED)
    new.rename(SHIPPED)
    shutil.copy(work / "curve.json", RECORD)
    print(f"{SHIPPED} and {RECORD} are now what was made.")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "base", help="folder of it all"
    )
    parser.add_argument("--demonstrations", type=int, default=20)
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 600], help="candidates")
    parser.add_argument("--seeds", type=int, default=60, help="selection seeds")
    parser.add_argument("--replace", action="store_true", help="ship what was made before")
    arguments = parser.parse_args()
    work = arguments.work
    if arguments.replace:
        if not (work / "chosen").is_dir():
            raise SystemExit(f"{work / 'chosen'} is not there. Nothing was replaced.")
        replace(work)
        return 0
    if work.exists():
        raise SystemExit(f"{work} exists. Nothing is overwritten: move it away.")
    made = make(work, arguments.demonstrations, arguments.steps, arguments.seeds)
    same = compare(made, json.loads(RECORD.read_text()))
    print(f"{work / 'chosen'}: the policy of {made['chosen']} steps")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
