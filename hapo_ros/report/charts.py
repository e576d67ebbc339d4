"""Charts as inline SVG; their colours are in report.css.

A label's colour is never all that tells it: there is a word with it, or a number.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hapo_ros.labels import NAMES, NONE, UNDESIRABLE
from hapo_ros.report.markup import Html, element, number, percent

CURVE_POINTS = 400  # of a curve; more steps than that are averaged
ORDER = sorted(NAMES, key=lambda c: (c == NONE, c == UNDESIRABLE, c))  # policy, human, ...


def svg(width: float, height: float, label: str, *children, class_: str = "chart") -> Html:
    """A picture that scales with its surroundings; label: what it shows, for a screen reader."""
    return element(
        "svg", *children, viewBox=f"0 0 {number(width)} {number(height)}", role="img",
        class_=class_, aria_label=label,
    )  # fmt: skip


def text(x: float, y: float, *words, anchor: str | None = None, class_: str | None = None) -> Html:
    return element("text", *words, x=float(x), y=float(y), text_anchor=anchor, class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str, *children) -> Html:
    return element(
        "rect", *children, x=float(x), y=float(y), width=float(width), height=float(height),
        class_=class_,
    )  # fmt: skip


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def path(xs: Sequence[float], ys: Sequence[float], class_: str) -> Html:
    """A line through points, broken where y is NaN."""
    drawn, pen_down = [], False
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            drawn.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = math.isfinite(y)
    return element("path", d="".join(drawn), class_=class_)


def scale(low: float, high: float, start: float, end: float) -> Callable:
    """The function that maps low..high to start..end."""
    per_unit = (end - start) / ((high - low) or 1.0)
    return lambda value: start + (value - low) * per_unit


def ticks(low: float, high: float, about: int = 6, whole: bool = False) -> list[float]:
    """Round numbers from low to high, about so many."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def fitting(width: float, *wordings: str) -> str:
    """The first wording that has room in a bar so wide; empty where none has."""
    return next((words for words in wordings if width > 7.5 * len(words)), "")


def label_bar(counts: dict[str, int], width: float, height: float, longest: int = 0) -> Html:
    """Steps by label, one behind the other. longest: steps of the whole width, if not these."""
    across = scale(0, longest or sum(counts.values()), 0, width)
    parts, done = [], 0
    for name in (NAMES[c] for c in ORDER if counts.get(NAMES[c])):
        words, each = f"{name} {counts[name]}", across(counts[name])
        parts.append(rect(across(done), 0, each, height, f"label-{name}", element("title", words)))
        if height > 16 and (fits := fitting(each, words, str(counts[name]))):
            at = across(done) + each / 2
            parts.append(text(at, height / 2 + 4, fits, anchor="middle", class_="on-label"))
        done += counts[name]
    said = ", ".join(f"{name} {count}" for name, count in counts.items())
    return svg(width, height, f"Steps by label: {said}", *parts)


class Rate(NamedTuple):
    """A success rate with its interval; main: the arm that the report is about."""

    name: str
    rate: float
    low: float
    high: float
    words: str
    main: bool


def interval_chart(rates: Sequence[Rate], width: float = 1040) -> Html:
    """Success rates, each with its interval, on an axis from 0 to 100 %."""
    left, right, row = 150, 270, 40
    across = scale(0, 1, left, width - right)
    bottom = row * len(rates) + 8
    parts = []
    for tick in ticks(0, 1, 5):
        parts.append(line(across(tick), 4, across(tick), bottom, "grid"))
        parts.append(text(across(tick), bottom + 16, percent(tick), anchor="middle"))
    for index, each in enumerate(rates):
        y = row * index + row / 2 + 4
        parts.append(text(left - 12, y + 4, each.name, anchor="end", class_="name"))
        accent = " main" if each.main else ""
        parts.append(rect(left, y - 9, across(each.rate) - left, 18, "rate" + accent))
        parts.append(_whisker(across(each.low), across(each.high), y, "whisker" + accent))
        parts.append(element("circle", cx=across(each.rate), cy=y, r=5, class_="dot" + accent))
        parts.append(text(width - right + 16, y + 4, each.words, class_="value"))
    said = "; ".join(f"{each.name}: {each.words}" for each in rates)
    return svg(width, bottom + 22, f"Success rates. {said}", *parts)


def difference_bar(low: float, difference: float, high: float) -> Html:
    """A difference of rates with its interval, between -100 % and 100 %, zero marked."""
    width, y = 160, 10
    across = scale(-1, 1, 2, width - 2)
    return svg(
        width, 2 * y, f"{percent(low, True)} to {percent(high, True)}",
        line(2, y, width - 2, y, "grid"),
        line(across(0), 1, across(0), 2 * y - 1, "zero"),
        _whisker(across(low), across(high), y, "whisker"),
        element("circle", cx=across(difference), cy=y, r=4, class_="dot"),
        class_="difference",
    )  # fmt: skip


def outcome_grid(arms: dict[str, Sequence[bool]], seeds: Sequence[int], width=1040) -> Html:
    """One column a seed, one row an arm: a full square for a success, an empty one for none."""
    left, row = 150, 20
    cell = min(16.0, (width - left) / max(1, len(seeds)))
    gap = 2 if cell > 6 else 0.5
    parts = []
    for index, (name, successes) in enumerate(arms.items()):
        parts.append(text(left - 12, row * index + 12, name, anchor="end", class_="name"))
        for column, (seed, success) in enumerate(zip(seeds, successes, strict=True)):
            words = element("title", f"{name}, seed {seed}: {'success' if success else 'failure'}")
            x, y = left + cell * column + gap / 2, row * index + gap / 2
            kind = "success" if success else "failure"
            parts.append(rect(x, y, cell - gap, 16 - gap, kind, words))
    return svg(width, row * len(arms), "Outcome of every seed", *parts)


class Curve(NamedTuple):
    """A quantity over training steps; (T,) each, NaN where there was none. kind: its class."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    kind: str


def line_chart(title: str, curves: Sequence[Curve], width: float = 510) -> Html | None:
    """Curves over training steps: faint as they are, strong smoothed. None without any value."""
    curves = [_thinned(curve) for curve in curves if np.isfinite(curve.values).any()]
    if not curves:
        return None
    left, right, top, bottom = 48, width - 12, 44, 216
    low, high = _bounds(np.concatenate([curve.values for curve in curves]))
    first = min(curve.steps[0] for curve in curves)
    last = max(curve.steps[-1] for curve in curves)
    across, up = scale(first, last, left, right), scale(low, high, bottom, top)
    parts = [text(0, 14, title, class_="name")]
    for tick in ticks(low, high, 5):
        kind = "zero" if tick == 0 and low < 0 else "grid"
        parts.append(line(left, up(tick), right, up(tick), kind))
        parts.append(text(left - 8, up(tick) + 4, _plain(tick), anchor="end"))
    for tick in ticks(first, last, 6, whole=True):
        parts.append(text(across(tick), bottom + 18, _plain(tick), anchor="middle"))
    parts.append(text((left + right) / 2, bottom + 36, "optimizer step", anchor="middle"))
    x = left
    for curve in curves:
        parts.append(path(across(curve.steps), up(curve.values), f"curve faint {curve.kind}"))
        smooth = up(_smoothed(curve.values))
        parts.append(path(across(curve.steps), smooth, f"curve {curve.kind}"))
        parts.append(line(x, 30, x + 18, 30, f"curve {curve.kind}"))
        parts.append(text(x + 24, 34, curve.name))
        x += 42 + 7 * len(curve.name)
    return svg(width, bottom + 42, f"{title} over optimizer steps", *parts)


def mean(values: np.ndarray) -> float:
    """Mean of the values that are finite; NaN where none is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def _whisker(low: float, high: float, y: float, class_: str) -> Html:
    ends = "".join(f"M{x:.1f} {y - 5:.1f}V{y + 5:.1f}" for x in (low, high))
    return element("path", d=f"M{low:.1f} {y:.1f}H{high:.1f}{ends}", class_=class_)


def _bounds(values: np.ndarray) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return (0.0 if 0 <= low < high / 2 else low - margin), high + margin


def _thinned(curve: Curve) -> Curve:
    """At most CURVE_POINTS points, each the mean of as many steps."""
    each = math.ceil(len(curve.steps) / CURVE_POINTS)
    groups = [slice(i, i + each) for i in range(0, len(curve.steps), each)]
    means = [mean(curve.values[group]) for group in groups]
    steps = [curve.steps[group].mean() for group in groups]
    return curve._replace(steps=np.array(steps), values=np.array(means))


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Moving average over a twentieth of the points; NaN where there was none."""
    half = len(values) // 40
    windows = [mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    return np.where(np.isfinite(values), windows, np.nan)


def _plain(tick: float) -> str:
    return f"{tick:g}".replace("-", "−")
