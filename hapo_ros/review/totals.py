"""Bags as rows of a list, and what they come to: by day, by policy version, in all."""

import zlib
from collections import Counter
from collections.abc import Iterable

import numpy as np

from hapo_ros import labels
from hapo_ros.episodes.types import in_words
from hapo_ros.review.index import Entry
from hapo_ros.review.recorded import Broken, Recorded
from hapo_ros.statistics import wilson

STRIP = 96  # cells of a row's small timeline
# Of the labels in a cell, the one that is shown: the rarer ones are what a reviewer looks for.
_TELLING = (labels.UNDESIRABLE, labels.HUMAN, labels.POLICY, labels.NONE)


def row(entry: Entry, k: int) -> dict:
    """What a list shows of a bag; labels are relabelled with K and reviewed.

    state: reading | ready | broken. used: whether training uses it unless it is asked for more.
    flags: [name, sentence] of what to know about the recording.
    """
    found, review = entry.found, entry.review
    shown = {
        "key": entry.key,
        "folder": entry.path.name,
        "version": f"{zlib.crc32(repr(entry.signature).encode()):08x}",
        "recorded_at": entry.recorded_at.isoformat(timespec="seconds"),
        "day": entry.recorded_at.date().isoformat(),
        "state": "reading" if found is None else "ready",
        "problem": "",
        "review": {
            "revision": review.revision,
            "reviewed": review.reviewed,
            "excluded": review.excluded,
            "note": review.note,
            "by": review.edits[-1]["by"] if review.edits else "",
            "at": review.edits[-1]["at"] if review.edits else "",
            "problem": entry.review_error,
        },
        "used": False,
        "flags": [],
    }
    if isinstance(found, Broken):
        shown |= {"state": "broken", "problem": found.reason, "problem_name": found.name}
    elif isinstance(found, Recorded):
        shown |= _row_of(entry, found, k)
    return shown


def _row_of(entry: Entry, found: Recorded, k: int) -> dict:
    info, result, review = found.info, found.result, entry.review
    final = entry.labels(k)
    live = found.timeline[found.sequences]
    outcome = review.outcome or result.outcome
    whole = result.complete and not result.recovered and not result.lossy
    return {
        "episode_id": info.episode_id,
        "task": info.task,
        "instruction": info.instruction,
        "source": info.source,
        "seed": info.seed,
        "outcome": outcome,
        "recorded_outcome": result.outcome,
        "steps": len(found.sequences),
        "seconds": found.seconds,
        "takeovers": found.takeovers,
        "intervention_ratio": found.intervention_ratio,
        "human_steps": int(np.count_nonzero(live == labels.HUMAN)),
        "executed_steps": int(np.count_nonzero(live != labels.NONE)),
        "policy_versions": found.policy_versions,
        "cameras": list(info.cameras),
        "first_step": int(found.sequences[0]),
        "labels": labels.counts(final[found.sequences]),
        "strip": strip(final),
        "flags": _flags(found)
        + ([["repeated", f"The same as {entry.repeats}."]] if entry.repeats else []),
        "used": whole
        and not entry.repeats
        and outcome != "discarded"
        and not review.excluded
        and not entry.review_error,
    }


def _flags(found: Recorded) -> list[list[str]]:
    result, flags = found.result, []
    if result.recovered:
        flags.append(["recovered", result.note or "Recovered after a crash."])
    elif not result.complete:
        flags.append(["cut short", result.note or "Recording ended early."])
    if result.lost:
        name = "lossy" if result.lossy else "lost"
        flags.append([name, f"Lost: {in_words(result.lost)}."])
    if result.clock_jumps:
        flags.append(["clock", f"The wall clock was set {len(result.clock_jumps)} times."])
    if result.unresolved:
        flags.append(["unresolved", "It ended in a correction that did not come to an end."])
    return flags


def strip(final: np.ndarray, cells: int = STRIP) -> str:
    """(S,) labels as so many digits, each the most telling label of its part."""
    parts = np.array_split(final, min(cells, len(final)))
    return "".join(str(next(c for c in _TELLING if (part == c).any())) for part in parts)


def totals(rows: Iterable[dict]) -> dict:
    """What rows come to. Excluded and discarded episodes count in nothing but their own number.

    success: [successes, episodes, Wilson's 95 % interval] of deployments; None without any.
    intervention_ratio: of all executed steps of deployments together. left: not reviewed yet.
    """
    rows = list(rows)
    ready = [each for each in rows if each["state"] == "ready"]
    kept = [e for e in ready if not e["review"]["excluded"] and e["outcome"] != "discarded"]
    deployed = [each for each in kept if each["source"] == "deployment"]
    won = sum(each["outcome"] == "success" for each in deployed)
    executed = sum(each["executed_steps"] for each in deployed)
    human = sum(each["human_steps"] for each in deployed)
    counted = sum((Counter(each["labels"]) for each in kept), Counter())
    return {
        "episodes": len(rows),
        "deployments": len(deployed),
        "demonstrations": len(kept) - len(deployed),
        "broken": sum(each["state"] == "broken" for each in rows),
        "excluded": sum(each["review"]["excluded"] for each in rows),
        "discarded": sum(each["outcome"] == "discarded" for each in ready),
        "left": sum(not (e["review"]["reviewed"] or e["review"]["excluded"]) for e in ready),
        "steps": sum(each["steps"] for each in kept),
        "seconds": sum(each["seconds"] for each in kept),
        "takeovers": sum(each["takeovers"] for each in kept),
        "success": [won, len(deployed), *wilson(won, len(deployed))] if deployed else None,
        "intervention_ratio": human / executed if executed else None,
        "labels": {name: counted[name] for name in labels.NAMES.values()},
    }


def dashboard(rows: Iterable[dict]) -> dict:
    """Totals of all, of each day and of each policy version, in order of time."""
    rows = sorted(rows, key=lambda each: each["recorded_at"])
    days = dict.fromkeys(each["day"] for each in rows)
    deployed = [e for e in rows if e["state"] == "ready" and e["source"] == "deployment"]
    versions = dict.fromkeys(_version(each) for each in deployed)
    return {
        "all": totals(rows),
        "days": [{"day": d, **totals(e for e in rows if e["day"] == d)} for d in days],
        "versions": [
            {"policy_version": v, **totals(e for e in deployed if _version(e) == v)}
            for v in versions
        ],
    }


def _version(each: dict) -> str:
    return ", ".join(each["policy_versions"])
