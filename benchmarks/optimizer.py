"""What a step of ``kto`` and ``hapo`` costs beside one of TRL's KTOTrainer.

    python3 -m venv runs/trl && runs/trl/bin/pip install -c constraints/pypi.txt '.[benchmark]'
    runs/trl/bin/python benchmarks/optimizer.py --record docs/optimizer.json  # two cores: 5 minutes
    runs/trl/bin/python benchmarks/optimizer.py --shape 7b --peak-tflops 989  # one H100
    .venv/bin/python benchmarks/optimizer.py --arms kto,hapo                  # without TRL

Both sides train transformers' Llama with the same random weights on the same tokens in one batch,
with the same loss, adapter, optimizer and learning rate, each by its own loop (``Training``,
``KTOTrainer.train``); TRL with its ``precompute_ref_log_probs`` off and on. Batches are collated
before, gradient checkpointing is off. The mismatched actions of TRL's KL estimate are those of ours
(its own would be the batch's, shifted), image features are tokens to it (it refuses to keep
references for images), and the gripper's token counts for undesirable samples too, as TRL has no
such rule; ``hapo`` is as published. That both do the same is checked first: loss, KL
and gradient norm of the first steps have to agree.

Every setting has a process of its own, and they take turns. The ratio stands beside its bound, from
the passes that each side makes: TRL scores mismatched actions, and without kept references those of
the reference too, in passes over the whole sequence; hapo_ros keeps references, and the mismatched
actions see the keys and values of the observation that the pass before has made. The optimizer
itself is in neither count, nor are positions that TRL's head scores in vain on a CPU. Memory is the
peak above what the process had before it made its network.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import shlex
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib import metadata
from pathlib import Path

import numpy as np
from optimizer_sides import OURS, TRL, Options, child

NAMES = {
    "kto": "hapo_ros kto",
    "hapo": "hapo_ros hapo",
    "trl_on": "TRL, references kept",
    "trl_off": "TRL, references anew",
}
SOFTWARE = ("torch", "transformers", "peft", "trl")
CHECKED = 3  # first steps of each side, compared and not timed
SHARE, LEAST = 0.8, 1.5  # goals: of the bound, and times TRL's slower setting


# What each side has to compute


@dataclass(frozen=True)
class Pass:
    """Of one sample through the network: tokens that follow ``seen`` ones whose keys and values
    are there; with the adapter or without, and with a backward pass or without."""

    tokens: int
    seen: int = 0
    adapter: bool = True
    backward: bool = False


def passes(arm: str, shape) -> list[Pass]:
    """All passes of one sample in a step."""
    from llama_policy import ACTIONS

    actions = len(ACTIONS)
    if arm in OURS:  # the last token predicts nothing, and is not fed
        whole = Pass(shape.prefix + actions - 1, backward=True)
        return [whole, Pass(actions - 1, seen=shape.prefix)]
    whole = Pass(shape.prefix + actions)
    reference = [] if arm == "trl_on" else 2 * [replace(whole, adapter=False)]
    return [replace(whole, backward=True), whole, *reference]


def flops(each: Pass, shape, rank: int | None) -> float:
    """Floating-point operations of a pass, multiply and add counted as two.

    rank: of the adapter; None where all weights are trained. Frozen weights have no gradient, so
    that a backward pass costs as much as a forward one there, and twice that elsewhere.
    """
    from llama_policy import ACTIONS

    seen = each.tokens * each.seen + each.tokens * (each.tokens + 1) / 2
    attention = shape.layers * 4 * shape.width * seen
    blocks = 4 * shape.width**2 + 3 * shape.width * shape.hidden
    weights = 2 * each.tokens * shape.layers * blocks
    weights += 2 * len(ACTIONS) * shape.vocabulary * shape.width
    ends = 4 * 2 * shape.width + 3 * (shape.width + shape.hidden)
    adapter = 2 * each.tokens * shape.layers * ends * (rank or 0) * each.adapter
    forward = weights + attention + adapter
    return forward + each.backward * (
        (2 if rank is None else 1) * weights + 2 * (attention + adapter)
    )


def work(arm: str, shape, rank: int | None) -> float:
    """Operations of one sample in a step."""
    return sum(flops(each, shape, rank) for each in passes(arm, shape))


# All settings, in turns


class Arm:
    """One setting's process. Raises SystemExit where it ends without an answer."""

    def __init__(self, arm: str, options: Options):
        context = multiprocessing.get_context("spawn")
        self.name = arm
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=child, args=(theirs, arm, options), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()
        self.first = self.take(CHECKED)[1]

    def take(self, steps: int) -> tuple[float, list[dict], float]:
        """Seconds a step, each step's loss, z0 and grad_norm, and the peak so far in MiB."""
        self._connection.send(steps)
        seconds, metrics, peak_mib = self._answer()
        return float(np.mean(seconds)), metrics, peak_mib

    def close(self) -> None:
        if self._process.is_alive():
            self._connection.send(0)
        self._process.join()

    def _answer(self):
        try:
            return self._connection.recv()
        except EOFError:
            raise SystemExit(
                f"{NAMES[self.name]} ended without an answer, so there is nothing to compare. Its "
                "own message stands above; where it is memory, use a smaller --batch."
            ) from None


@contextmanager
def running(arm: str, options: Options):
    made = Arm(arm, options)
    try:
        yield made
    finally:
        made.close()


def measure(arms: list[str], options: Options, rounds: int, steps: int, together: bool) -> dict:
    """name -> first steps' metrics, seconds a step of every round, and peak in MiB.

    together: the processes live at the same time, idle but for one; otherwise each is started anew
    in every round.
    """
    found = {arm: {"first": [], "seconds": [], "peak_mib": 0.0} for arm in arms}

    def turn(arm: Arm) -> None:
        seconds, _, peak_mib = arm.take(steps)
        row = found[arm.name]
        row["first"] = arm.first
        row["seconds"].append(seconds)
        row["peak_mib"] = max(row["peak_mib"], peak_mib)

    if together:
        with ExitStack() as stack:
            alive = [stack.enter_context(running(arm, options)) for arm in arms]
            for _ in range(rounds):
                for arm in alive:
                    turn(arm)
    else:
        for _ in range(rounds):
            for name in arms:
                with running(name, options) as arm:
                    turn(arm)
    return found


def require_same(found: dict, bfloat16: bool) -> None:
    """Say what ``kto`` found in its first steps; SystemExit unless TRL found the same."""
    tolerance = 0.05 if bfloat16 else 1e-3
    for key in found["kto"]["first"][0]:
        values = ", ".join(f"{step[key]:.6f}" for step in found["kto"]["first"])
        print(f"  {key} of the first steps: {values}")
    for arm in set(TRL) & set(found):
        for own, its in zip(found["kto"]["first"], found[arm]["first"], strict=True):
            for key, value in own.items():
                if not math.isclose(value, its[key], rel_tol=tolerance, abs_tol=1e-6):
                    raise SystemExit(
                        f"{NAMES[arm]} does not compute what kto does: {key} is {its[key]:g} and "
                        f"{value:g}. Nothing was compared."
                    )


def spread(values) -> dict:
    """Median, least and greatest, to four digits."""
    numbers = {"median": np.median(values), "min": np.min(values), "max": np.max(values)}
    return {key: float(f"{value:.4g}") for key, value in numbers.items()}


def summary(found: dict, options: Options, peak_tflops: float | None) -> dict:
    """What was found, as recorded."""
    from hapo_ros.policies.lora import RANK

    rank = RANK if options.parameters == "lora" else None
    rows, against = {}, {}
    for arm, row in found.items():
        rate = spread([options.batch / seconds for seconds in row["seconds"]])
        tflops = work(arm, options.shape, rank) * rate["median"] / 1e12
        rows[arm] = {
            "samples_per_s": rate,
            "peak_mib": round(row["peak_mib"]),
            "tflops": float(f"{tflops:.4g}"),
            "first_steps": row["first"],
        }
        if peak_tflops:
            rows[arm]["share_of_peak"] = round(tflops / peak_tflops, 3)
    for own in set(OURS) & set(found):
        for its in (arm for arm in TRL if arm in found):
            pairs = zip(found[its]["seconds"], found[own]["seconds"], strict=True)
            ratio = spread([a / b for a, b in pairs])
            bound = work(its, options.shape, rank) / work(own, options.shape, rank)
            against[f"{own} / {its}"] = {
                "ratio": ratio,
                "bound": round(bound, 3),
                "share_of_bound": round(ratio["median"] / bound, 3),
                "memory": round(rows[own]["peak_mib"] / rows[its]["peak_mib"], 3),
            }
    return {"settings": rows, "compared": against}


def show(result: dict) -> None:
    for arm, row in result["settings"].items():
        rate = row["samples_per_s"]
        share = f", {row['share_of_peak']:.0%} of the peak" if "share_of_peak" in row else ""
        print(
            f"  {NAMES[arm]:21} {rate['median']:8.4g} samples/s ({rate['min']:.4g} to "
            f"{rate['max']:.4g}), {row['peak_mib']:6} MiB, {row['tflops']:.3g} TFLOP/s{share}"
        )
    for name, row in result["compared"].items():
        ratio = row["ratio"]
        print(
            f"  {name:21} {ratio['median']:.2f} x ({ratio['min']:.2f} to {ratio['max']:.2f}), "
            f"bound {row['bound']:.2f} x: {row['share_of_bound']:.0%} of it; memory "
            f"{row['memory']:.2f} x"
        )
        slower = name.endswith("trl_off")
        for missed, text in (
            (row["share_of_bound"] < SHARE, f"{SHARE:.0%} of the bound"),
            (slower and ratio["median"] < LEAST, f"{LEAST} x TRL's slower setting"),
            (row["memory"] > 1, "equal or less memory"),
        ):
            if missed:
                print(f"  {'':21} NOT reached: {text}")


def arguments() -> argparse.Namespace:
    from llama_policy import SHAPES

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the Llama")
    for name, value in asdict(SHAPES["small"]).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"small: {value}")
    parser.add_argument("--arms", default=",".join((*OURS, *TRL)), help="settings, with commas")
    parser.add_argument("--parameters", help="lora,full; of 7b lora alone")
    parser.add_argument("--batch", type=int, default=8, help="samples of a step")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each setting")
    parser.add_argument("--steps", type=int, default=1, help="of a turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: by the device")
    parser.add_argument("--peak-tflops", type=float, help="the chip's, for the share reached")
    parser.add_argument(
        "--lr", type=float, default=1e-3, help="large: the first steps are compared"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", help="JSON file of the results")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    import torch
    from llama_policy import SHAPES

    arms = given.arms.split(",")
    if unknown := set(arms) - set(NAMES):
        raise SystemExit(
            f"There is no setting {', '.join(unknown)}. Use some of {','.join(NAMES)}."
        )
    if set(arms) & set(TRL) and ("kto" not in arms or importlib.util.find_spec("trl") is None):
        raise SystemExit(
            "TRL's settings are compared with kto, and need TRL. Nothing was measured. Run\n"
            "    pip install -c constraints/pypi.txt '.[benchmark]'\n"
            "in a virtual environment of its own, or measure --arms kto,hapo alone."
        )
    wanted = {key: getattr(given, key) for key in asdict(SHAPES["small"])}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    shape = replace(SHAPES[given.shape], **wanted)
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    bfloat16 = (given.dtype or ("bfloat16" if device == "cuda" else "float32")) == "bfloat16"
    cores = f"{platform.machine()}, {os.cpu_count()} cores"
    result = {
        "command": shlex.join(["python", "benchmarks/optimizer.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if device == "cuda" else cores,
        "software": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in SOFTWARE if importlib.util.find_spec(name)},
        "shape": asdict(shape),
        "batch": given.batch,
        "dtype": "bfloat16" if bfloat16 else "float32",
    }
    both = "lora" if given.shape == "7b" else "lora,full"
    for parameters in (given.parameters or both).split(","):
        options = Options(shape, given.batch, parameters, device, bfloat16, given.lr, given.seed)
        print(f"{parameters}: {shape}, batch {given.batch}, {device}", flush=True)
        found = measure(arms, options, given.rounds, given.steps, together=device == "cpu")
        if "kto" in found:
            require_same(found, bfloat16)
        result[parameters] = summary(found, options, given.peak_tflops)
        show(result[parameters])
    if given.record:
        Path(given.record).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
