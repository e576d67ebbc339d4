"""``hapo demo``'s report: one HTML file with everything in it, to be opened from the disk.

No script, nothing from the network; the page forbids both to the browser. What comes from bags is
text, never markup.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

import numpy as np

from hapo_ros.episodes import BadEpisode, EpisodeReader
from hapo_ros.labels import DEFAULT_K, NAMES
from hapo_ros.report import charts, filmstrip
from hapo_ros.report.markup import (
    Html,
    element,
    joined,
    note,
    number_cell,
    percent,
    points,
    section,
    table,
)
from hapo_ros.statistics import NO_DIFFERENCE, PairedDifference, paired_difference, wilson

BASE, CONTROL = "base", "bc_continue"
FINAL_STEPS = 50  # over which the training's last figures are averaged
STYLE = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MEANING = {
    "policy": "the policy acted",
    "human": "the operator acted",
    "undesirable": "the policy acted, and the operator took over within K steps",
    "none": "nobody's action was executed",
}


def write_report(path: str | Path, results: dict) -> Path:
    """Write the report to ``path``, atomically; returns it.

    results: what the demo found; a part that is not there is left out of the report.
      task, instruction, created, machine: text; versions: name -> text; took_s: phase -> seconds;
      bags: folder; checkpoints: method -> folder; k: of the labels, 10 where not given;
      episodes: dicts of ``hapo_ros.episodes.describe``; summary: of ``hapo_ros.episodes.summary``;
      labels: name -> steps; intervention_ratio: the summary's, unless given;
      training: method -> metrics.jsonl;
      evaluation: seeds [first, last] and arms: name -> {successes: [bool], steps: [int]}, in the
      same order of seeds for all; ``base`` and ``bc_continue`` are what the others are compared to.

    A bag or metrics file that cannot be read is named in the report, with the reason. Raises
    ValueError for arms that are not paired, OSError where the report cannot be written.
    """
    path = Path(path)
    page = _page(results).encode("utf-8", "replace")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(page)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _page(results: dict) -> str:
    title = " · ".join(["Learning from takeovers", *_given(results, "task")])
    parts = [_headline, _deployment, _training, _evaluation, _files]
    body = element("main", _head(results), *(part(results) for part in parts))
    head = joined(
        [
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=POLICY),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("title", title),
            Html(f"<style>{STYLE.read_text()}</style>"),
        ]
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _head(results: dict) -> Html:
    said = [f"“{words}”" for words in _given(results, "instruction")]
    words = " · ".join(said + _given(results, "created", "machine"))
    return element(
        "header",
        element("h1", "Learning from takeovers", *(f": {t}" for t in _given(results, "task"))),
        element("p", words, class_="muted") if words else None,
    )


def _headline(results: dict) -> Html | None:
    """What came out, in words."""
    arms = _arms(results)
    said = []
    for name in _learned(arms):
        successes = arms[name]["successes"]
        n = len(successes)
        said.append(f"{name} succeeded on {sum(successes)} of {n} seeds.")
        for other in (BASE, CONTROL):
            if other in arms:
                paired = paired_difference(successes, arms[other]["successes"])
                said.append(
                    f"Against {other} ({sum(arms[other]['successes'])} of {n}): "
                    f"{points(paired.difference)} points, 95 % interval {_interval(paired)}, "
                    f"exact p {_p_value(paired.p_value)}: {_verdict(paired, name, other)}."
                )
    if not said:
        return None
    return section("What came out", *(element("p", each) for each in said), class_="headline")


def _deployment(results: dict) -> Html | None:
    episodes, total = results.get("episodes") or [], results.get("summary") or {}
    k = results.get("k", DEFAULT_K)
    counts = results.get("labels") or total.get("labels")
    if not (episodes or total or counts):
        return None
    figures = [figure for episode, why in filmstrip.choose(episodes)
               if (figure := _figure(episode, k, why))]  # fmt: skip
    return section(
        "Deployment: who decided what",
        note(
            "Every step is recorded with who decided it. The policy's last "
            f"K = {k} steps before a takeover become undesirable when the bags are read."
        ),
        _tiles(results, total),
        element("div", charts.label_bar(counts, 1040, 34), class_="wide") if counts else None,
        _legend(),
        *figures,
        _episode_table(episodes) if episodes else None,
    )


def _tiles(results: dict, total: dict) -> Html | None:
    ratio = results.get("intervention_ratio", total.get("intervention_ratio"))
    outcomes = ", ".join(f"{count} {name}" for name, count in total.get("outcomes", {}).items())
    tiles = [
        (
            total.get("episodes"),
            f"episodes, with the operator: {outcomes}" if outcomes else "episodes",
        ),
        (total.get("takeovers"), "takeovers"),
        (total.get("steps"), "recorded steps"),
        (None if ratio is None else percent(ratio), "intervention ratio: human steps of executed"),
    ]
    shown = [
        element("div", element("b", value), element("span", words), class_="tile")
        for value, words in tiles
        if value is not None
    ]
    return element("div", *shown, class_="tiles") if shown else None


def _legend() -> Html:
    items = [
        element("li", element("i", class_=name), element("b", name), f": {words}")
        for name, words in MEANING.items()
    ]
    return element("ul", *items, class_="legend")


def _figure(episode: dict, k: int, why: str) -> Html:
    try:
        return filmstrip.figure(EpisodeReader(episode["path"], accept_recovered=True), k, why)
    except (BadEpisode, OSError) as error:
        return note(f"No pictures of {episode['episode_id']}: {error}")


def _episode_table(episodes: list[dict]) -> Html:
    longest = max(each["steps"] for each in episodes)
    names = [NAMES[c] for c in charts.ORDER]
    rows = []
    for each in episodes:
        ratio = each["intervention_ratio"]
        rows.append(
            [
                element("td", element("code", each["episode_id"])),
                number_cell(each["seed"]),
                element("td", each["outcome"], class_=f"outcome-{each['outcome']}"),
                *map(number_cell, (each["steps"], f"{each['duration_s']:.1f}", each["takeovers"])),
                number_cell("" if ratio is None else percent(ratio)),
                *(number_cell(each["labels"].get(name, 0)) for name in names),
                element("td", charts.label_bar(each["labels"], 180, 12, longest)),
            ]
        )
    heads = ["episode", "#seed", "outcome", "#steps", "#seconds", "#takeovers", "#human share"]
    listed = table([*heads, *(f"#{name}" for name in names), "steps by label"], rows)
    return joined(
        [
            element("h3", f"All {len(episodes)} episodes", class_="listed"),
            element("div", listed, class_="wide scroll"),
        ]
    )


def _training(results: dict) -> Html | None:
    runs = results.get("training") or {}
    if not runs:
        return None
    return section(
        "Training",
        note(
            "Faint: as logged; strong: moving average. Losses of different methods are different "
            "quantities. A reward is how much more probable the policy finds a recorded action "
            "than before training, log π − log π_ref: that of desirable steps should end up above "
            "that of undesirable ones. z0, the baseline, is the same for actions of other steps."
        ),
        *(_run(name, path) for name, path in runs.items()),
    )


def _run(name: str, path: str | Path) -> Html:
    try:
        metrics = _metrics(path)
    except (OSError, ValueError) as error:
        return joined([element("h3", name), note(f"No curves: {path}: {error}")])
    loss = charts.line_chart("Loss", _curves(metrics, {"loss": ("loss", "loss")}))
    wanted = {
        "reward_desirable": ("desirable", "desirable"),
        "reward_undesirable": ("undesirable", "undesirable"),
        "z0": ("z0", "baseline"),
    }
    rewards = charts.line_chart("Reward", _curves(metrics, wanted))
    last = [
        f"{key.replace('_', ' ')} {charts.mean(metrics[key][-FINAL_STEPS:]):.3g}"
        for key in ("loss", *wanted)
        if key in metrics
    ]
    words = f"{len(metrics['step'])} steps; mean of the last {FINAL_STEPS}: {', '.join(last)}"
    shown = [element("div", chart) for chart in (loss, rewards) if chart]
    return element(
        "figure",
        element("figcaption", element("h3", name), element("p", words.replace("-", "−"))),
        element("div", *shown, class_="pair"),
        class_="episode",
    )


def _metrics(path: str | Path) -> dict[str, np.ndarray]:
    """(T,) of each metric of a metrics.jsonl, NaN where it has none; ``step`` is always there."""
    with Path(path).open(encoding="utf-8") as lines:
        rows = [json.loads(each) for each in lines if each.strip()]
    if not rows:
        raise ValueError("it is empty")
    names = {name for row in rows for name in row}
    if not all("step" in row for row in rows):
        raise ValueError("a line has no step")
    return {name: np.array([row.get(name) for row in rows], float) for name in names}


def _curves(metrics: dict, wanted: dict) -> list[charts.Curve]:
    return [
        charts.Curve(words, metrics["step"], metrics[key], kind)
        for key, (words, kind) in wanted.items()
        if key in metrics
    ]


def _evaluation(results: dict) -> Html | None:
    arms = _arms(results)
    if not arms:
        return None
    n = len(next(iter(arms.values()))["successes"])
    seeds = results["evaluation"].get("seeds")
    which = f"seeds {seeds[0]} to {seeds[-1]}" if seeds else "the same seeds"
    deployed = {each["seed"] for each in results.get("episodes") or []}
    numbers = range(seeds[0], seeds[0] + n) if seeds else range(n)
    shared = len(deployed.intersection(numbers)) if seeds else 0
    words = f"Each policy alone, without an operator, once on each of {n} seeds ({which})."
    if shared:
        words += f" {shared} of these seeds were also deployed on, so this is not a clean test."
    successes = {name: arm["successes"] for name, arm in arms.items()}
    rates = list(_rates(arms))
    return section(
        "Evaluation",
        note(words),
        element("div", charts.interval_chart(rates), class_="wide"),
        note(
            "Bar and point: success rate; whiskers: Wilson's 95 % interval; steps: the median of "
            "the successes. Below, one column a seed: full is a success, empty a failure."
        ),
        element("div", charts.outcome_grid(successes, numbers), class_="wide"),
        _comparisons(successes),
    )


def _rates(arms: dict) -> Iterator[charts.Rate]:
    for name, arm in arms.items():
        n, good = len(arm["successes"]), sum(arm["successes"])
        low, high = wilson(good, n)
        words = f"{good}/{n} = {percent(good / n)} ({_percents(low, high)})"
        steps = arm.get("steps") or []
        took = [s for s, success in zip(steps, arm["successes"], strict=False) if success]
        if took:
            words += f", {median(took):.0f} steps"
        yield charts.Rate(name, good / n, low, high, words, name in _learned(arms))


def _comparisons(successes: dict) -> Html | None:
    pairs = [(name, BASE) for name in successes if name != BASE and BASE in successes]
    pairs += [(name, CONTROL) for name in _learned(successes) if CONTROL in successes]
    if not pairs:
        return None
    rows = []
    for first, second in pairs:
        paired = paired_difference(successes[first], successes[second])
        rows.append(
            [
                element("td", f"{first} − {second}"),
                number_cell(f"{points(paired.difference)} ({_interval(paired)})"),
                element("td", charts.difference_bar(paired.low, paired.difference, paired.high)),
                number_cell(f"{paired.only_first} : {paired.only_second}"),
                number_cell(_p_value(paired.p_value)),
                element("td", _verdict(paired, first, second), class_="verdict"),
            ]
        )
    heads = ["difference", "#points (95 % interval)", "−100 to +100 points",
             "#seeds only one solved", "#exact p", "verdict"]  # fmt: skip
    return joined(
        [
            element("div", table(heads, rows), class_="wide"),
            note(
                "Paired on the seeds: Newcombe's interval, McNemar's exact two-sided p, neither "
                "corrected for making several comparisons. The verdict is the interval's: where it "
                f"includes zero, {NO_DIFFERENCE}, which does not show that the policies are equal; "
                "where it leaves out zero and p is above 0.05, take it as unsettled. There is one "
                "training of each method: this says how sure the rates of these checkpoints are, "
                "not how another training would turn out."
            ),
        ]
    )


def _files(results: dict) -> Html | None:
    took = results.get("took_s") or {}
    places = {"bags": results["bags"]} if results.get("bags") else {}
    places |= {f"checkpoint {n}": p for n, p in (results.get("checkpoints") or {}).items()}
    places |= {f"metrics {n}": p for n, p in (results.get("training") or {}).items()}
    places |= {f"version of {n}": v for n, v in (results.get("versions") or {}).items()}
    if not (took or places):
        return None
    longest = max(took.values(), default=0) or 1
    times = [
        [
            element("td", phase),
            number_cell(f"{seconds:.0f} s"),
            element("td", _bar(seconds / longest)),
        ]
        for phase, seconds in took.items()
    ]
    kept = [[element("td", n), element("td", element("code", p))] for n, p in places.items()]
    return section(
        "Where it is, and how long it took",
        table(["phase", f"#{sum(took.values()):.0f} s in all", ""], times) if times else None,
        table(["what", "where, or which"], kept) if kept else None,
    )


def _arms(results: dict) -> dict:
    """The arms that were evaluated, the base first, the control last."""
    arms = (results.get("evaluation") or {}).get("arms") or {}
    names = sorted(arms, key=lambda name: (name != BASE, name == CONTROL))
    return {name: arms[name] for name in names if arms[name].get("successes")}


def _learned(arms: Iterable[str]) -> list[str]:
    """What learned from the takeovers: neither the base nor the control."""
    return [name for name in arms if name not in (BASE, CONTROL)]


def _verdict(paired: PairedDifference, first: str, second: str) -> str:
    if paired.verdict == NO_DIFFERENCE:
        return NO_DIFFERENCE
    return f"{first if paired.difference > 0 else second} is better"


def _interval(paired: PairedDifference) -> str:
    return f"{points(paired.low)} to {points(paired.high)}"


def _percents(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {percent(high)}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _given(results: dict, *names: str) -> list[str]:
    return [str(results[name]) for name in names if results.get(name)]


def _bar(share: float) -> Html:
    return charts.svg(180, 12, "", charts.rect(0, 0, 180 * share, 12, "time"))
