"""An episode as a picture: frames with who decided at each, and the timeline of its labels."""

import base64
import io
from collections.abc import Sequence

import numpy as np

from hapo_ros.episodes import EpisodeReader
from hapo_ros.labels import HUMAN, NAMES, NONE, UNDESIRABLE, takeover_onsets
from hapo_ros.report import charts
from hapo_ros.report.charts import line, rect, text
from hapo_ros.report.markup import Html, element, percent

FRAMES = 8
FRAME_PIXELS = 224  # longest side of a frame in the report
WIDTH, LEFT, RIGHT = 1040, 116, 1030
ROW = 38  # height of the gripper's and of the confidence's row


def choose(episodes: Sequence[dict], at_most: int = 3) -> list[tuple[dict, str]]:
    """The episodes that tell most, each with why: one takeover that is like the others, a failure
    or else the most takeovers, and one that the policy did alone; then others, to fill up.

    episodes: as ``hapo_ros.episodes.describe`` gives them.
    """
    corrected = [each for each in episodes if each["takeovers"]]
    alone = [each for each in episodes if not each["takeovers"]]
    failed = [each for each in episodes if each["outcome"] == "failure"]
    most = sorted(corrected, key=lambda each: (-each["takeovers"], -each["steps"]))
    middle = np.median([each["intervention_ratio"] for each in corrected]) if corrected else 0.0
    typical = sorted(corrected, key=lambda each: abs(each["intervention_ratio"] - middle))
    alone.sort(key=lambda each: (each["outcome"] != "success", -each["steps"]))
    wanted = [(each, "a typical takeover") for each in typical[:1]]
    wanted += [(each, "a failure") for each in failed[:1]] or [
        (each, "the most takeovers") for each in most[:1]
    ]
    wanted += [(each, "the policy alone") for each in alone[:1]]
    wanted += [(each, "another takeover") for each in typical]
    wanted += [(each, "another without a takeover") for each in alone]
    chosen: dict[str, tuple[dict, str]] = {}
    for episode, why in wanted:
        chosen.setdefault(episode["path"], (episode, why))
    return list(chosen.values())[:at_most]


def figure(reader: EpisodeReader, k: int, why: str) -> Html:
    """Film strip and timeline of an episode. Raises BadEpisode where an image is malformed."""
    steps, onsets = reader.steps(k), takeover_onsets(reader.live).tolist()
    info, labels = reader.info, reader.labels(k)
    shown = film_indices(len(steps), [*onsets, *_gone_wrong(labels)])
    seconds = np.array([step.stamp_ns - steps[0].stamp_ns for step in steps]) / 1e9
    names = list(info.action_space.get("names") or ())[: steps[0].action.size]
    gripper = next((i for i, name in enumerate(names) if "gripper" in str(name)), None)
    tracks = []
    if gripper is not None:
        command = np.array([step.action[gripper] for step in steps], float)
        says = str(info.action_space.get("gripper", "")).replace("-", "−")
        tracks.append(("gripper", command, *_range(command, -1.0), says))
    confidence = np.array([step.confidence for step in steps])
    if np.isfinite(confidence).any():
        low, high = _range(confidence, 0.0)
        tracks.append(("confidence", confidence, low, high, f"{low:g} to {high:g}"))
    words = f"{why[0].upper()}{why[1:]}: {info.episode_id}"
    executed = np.count_nonzero(reader.live != NONE)
    facts = [
        reader.outcome,
        f"{_count(len(steps), 'step')}, {seconds[-1]:.2f} s",
        _count(len(onsets), "takeover"),
        f"human {percent(np.count_nonzero(reader.live == HUMAN) / max(1, executed))}",
        f"seed {info.seed}",
        f"“{info.instruction}”",
    ]
    return element(
        "figure",
        element("figcaption", element("h3", words), element("p", " · ".join(facts))),
        _strip(steps, labels, seconds, shown, onsets) if info.cameras else None,
        element(
            "div",
            _timeline(reader.sequences, labels, seconds, onsets, shown, tracks),
            class_="wide",
        ),
        class_="episode",
    )


def film_indices(count: int, telling: Sequence[int], frames: int = FRAMES) -> list[int]:
    """Which of ``count`` steps to show: evenly over the episode, the telling ones in place of the
    nearest of them, as long as there is room."""
    chosen = set(np.linspace(0, count - 1, min(frames, count)).round().astype(int).tolist())
    kept = {0, count - 1, *telling}
    for index in telling:
        free = chosen - kept
        if index not in chosen and free:
            chosen.remove(min(free, key=lambda each: abs(each - index)))
            chosen.add(index)
    return sorted(chosen)


def _gone_wrong(labels: np.ndarray) -> list[int]:
    """The middle of each undesirable stretch of (T,) labels."""
    wrong = np.flatnonzero(labels == UNDESIRABLE)
    stretches = np.split(wrong, np.flatnonzero(np.diff(wrong) > 1) + 1)
    return [int(each[len(each) // 2]) for each in stretches if each.size]


def _strip(steps, labels, seconds, shown, onsets) -> Html:
    rows = []
    for camera in steps[0].observation.images:
        rows.append(element("div", camera, class_="camera"))
        for index in shown:
            name = NAMES[labels[index]]
            words = f"{camera}, step {steps[index].sequence}, {name}"
            picture = _data_url(steps[index].observation.images[camera])
            rows.append(element("img", src=picture, alt=words, class_=f"frame border-{name}"))
    rows.append(element("div", class_="camera"))
    for number, index in enumerate(shown, 1):
        name = NAMES[labels[index]]
        rows.append(
            element(
                "div",
                element("b", f"{number} · {name}", class_=f"ink-{name}"),
                element("span", f"{seconds[index]:.2f} s, step {steps[index].sequence}"),
                element("span", "▲ takeover", class_="flag") if index in onsets else None,
                class_="frame-words",
            )
        )
    return element(
        "div",
        element("div", *rows, class_="strip", style=f"--frames: {FRAMES}"),
        class_="wide",
    )


def _timeline(sequences, labels, seconds, onsets, shown, tracks) -> Html:
    """SVG: takeovers, a bar a step, the frames' numbers, the tracks, seconds and steps."""
    first, last = int(sequences[0]), int(sequences[-1])
    across = charts.scale(first, last + 1, LEFT, RIGHT)
    each = across(first + 1) - LEFT
    bars, frames, rows = 24, 56, 74
    parts = [_row_name("label c_t", bars + 17), _row_name("frame", frames + 9)]
    for sequence, label in zip(sequences.tolist(), labels.tolist(), strict=True):
        tooltip = element("title", f"step {sequence}: {NAMES[label]}")
        width = each - (0.6 if each > 3 else 0)
        parts.append(rect(across(sequence), bars, width, 26, f"label-{NAMES[label]}", tooltip))
    parts += _segment_words(sequences, labels, across, bars + 17)
    written = numbered = 0.0
    for onset in onsets:
        x = across(int(sequences[onset]))
        parts.append(line(x, 16, x, bars + 26, "flag-line"))
        parts.append(line(x, rows - 4, x, rows + ROW * len(tracks) + 2, "flag-line"))
        parts.append(element("path", d=f"M{x:.1f} 22l-5 -9h10z", class_="flag-mark"))
        if x - written > 80:
            anchor = "middle" if x < RIGHT - 30 else "end"
            parts.append(text(x, 10, "takeover", anchor=anchor, class_="flag"))
            written = x
    for number, index in enumerate(shown, 1):
        x = across(int(sequences[index])) + each / 2
        parts.append(line(x, frames - 5, x, frames - 1, "zero"))
        if x - numbered > 9:
            parts.append(text(x, frames + 9, number, anchor="middle", class_="number"))
            numbered = x
    for index, (name, values, low, high, says) in enumerate(tracks):
        parts += _track(name, values, low, high, says, sequences, across, rows + ROW * index)
    y = rows + ROW * len(tracks) + 17
    parts += [line(LEFT, y - 15, RIGHT, y - 15, "zero"), _row_name("seconds", y)]
    for tick in charts.ticks(0.0, float(seconds[-1]), 10):
        x = across(float(np.interp(tick, seconds, sequences)))
        parts += [line(x, y - 15, x, y - 11, "zero"), text(x, y, f"{tick:g}", anchor="middle")]
    parts.append(_row_name("steps", y + 15))
    for tick in charts.ticks(first, last, 10, whole=True):
        parts.append(text(across(tick), y + 15, f"{tick:g}", anchor="middle"))
    return charts.svg(WIDTH, y + 20, "Who decided each step, over time", *parts)


def _segment_words(sequences, labels, across, y):
    """The name of a run of equal labels, on its bar, where there is room for it."""
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    for start, end in zip(starts, np.r_[starts[1:], len(labels)], strict=True):
        left, right = across(int(sequences[start])), across(int(sequences[end - 1]) + 1)
        name, count = NAMES[labels[start]], int(end - start)
        words = charts.fitting(right - left, f"{name} {count}", str(count))
        if words:
            yield text((left + right) / 2, y, words, anchor="middle", class_="on-label")


def _track(name, values, low, high, says, sequences, across, top):
    """One quantity per step, as a line with a step for each; broken where it is NaN or lost."""
    up = charts.scale(low, high, top + ROW - 8, top + 4)
    yield _row_name(name, top + ROW / 2)
    yield text(LEFT - 8, top + ROW / 2 + 12, says, anchor="end", class_="small")
    for edge in (low, high):
        yield line(LEFT, up(edge), RIGHT, up(edge), "grid")
    xs, ys = [], []
    for index, (sequence, value) in enumerate(zip(sequences.tolist(), values, strict=True)):
        if index and sequence != sequences[index - 1] + 1:
            xs, ys = xs + [across(sequence)], ys + [np.nan]
        xs += [across(sequence), across(sequence + 1)]
        ys += [up(float(value))] * 2
    yield charts.path(xs, ys, f"track {name}")


def _row_name(words: str, y: float) -> Html:
    return text(LEFT - 8, y, words, anchor="end", class_="row-name")


def _range(values: np.ndarray, low: float, high: float = 1.0) -> tuple[float, float]:
    """From low to high, or as far as the values go beyond."""
    finite = values[np.isfinite(values)]
    return float(np.min(finite, initial=low)), float(np.max(finite, initial=high))


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _data_url(image: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB as a JPEG that needs no file."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((FRAME_PIXELS, FRAME_PIXELS))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
