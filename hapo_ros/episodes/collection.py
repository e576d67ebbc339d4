"""Many episodes at once: finding and opening them, and what there is to say about them."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hapo_ros import labels as label_rules
from hapo_ros.episodes.bag import METADATA
from hapo_ros.episodes.contents import BadEpisode
from hapo_ros.episodes.reader import EpisodeReader


class Skipped(NamedTuple):
    """A bag that is not used. name: a key of ``contents.REASONS``; reason: the whole sentence."""

    path: Path
    reason: str
    name: str


def open_episodes(
    paths: Iterable[str | Path] | str | Path,
    *,
    accept_recovered: bool = False,
    accept_discarded: bool = False,
) -> tuple[list[EpisodeReader], list[Skipped]]:
    """Open episodes, given their folders or folders of such folders, in order of name.

    Returns (readers, skipped): every bag is in one of them. An episode is its id and its bag's
    hash; given again it is used once. What recovery or a full disk left, or lost too much, is used
    only with ``accept_recovered``; a discarded or excluded episode only with ``accept_discarded``
    (to show it).
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    readers: dict[tuple[str, str], EpisodeReader] = {}
    skipped = []
    for folder in [folder for path in paths for folder in episode_folders(path)]:
        try:
            reader = EpisodeReader(folder, accept_recovered=accept_recovered)
            if reader.outcome == "discarded" and not accept_discarded:
                raise BadEpisode("discarded", folder, reader.result.note)
            if reader.excluded and not accept_discarded:
                raise BadEpisode("excluded", folder, reader.review.note)
            first = readers.setdefault((reader.info.episode_id, reader.bag_hash), reader)
            if first is not reader:
                raise BadEpisode("repeated", folder, f"({first.path})")
        except BadEpisode as error:
            skipped.append(Skipped(folder, str(error), error.name))
        except OSError as error:
            skipped.append(Skipped(folder, f"{folder}: {error.strerror}.", "missing"))
    return list(readers.values()), skipped


def episode_folders(path: str | Path) -> list[Path]:
    """Folders of episodes at or directly under a path; the path itself where there are none.

    An unfinished recording counts as long as nothing of its name was recovered from it.
    """
    path = Path(path)
    if not path.is_dir() or _is_episode(path):
        return [path]
    found = [child for child in sorted(path.iterdir()) if child.is_dir() and _is_episode(child)]
    return found or [path]


def describe(reader: EpisodeReader, k: int = label_rules.DEFAULT_K) -> dict:
    """What there is to say about an episode; plain numbers and strings.

    labels: steps by name after relabelling with K and review. outcome: the reviewer's, or else as
    recorded. intervention_ratio: who acted, whatever a review says, of the steps that were
    executed; None for a demonstration. lost_steps: decided, with an observation not recorded.
    review: None where there is none.
    """
    info, result, review = reader.info, reader.result, reader.review
    deployment = info.source == "deployment"
    steps = reader.steps(k, images=False)
    return {
        "path": str(reader.path),
        "episode_id": info.episode_id,
        "task": info.task,
        "instruction": info.instruction,
        "source": info.source,
        "seed": info.seed,
        "outcome": reader.outcome,
        "excluded": reader.excluded,
        "complete": result.complete,
        "recovered": result.recovered,
        "lossy": result.lossy,
        "clock_jumps": result.clock_jumps,
        "note": result.note,
        "steps": len(steps),
        "lost_steps": reader.lost_steps,
        "duration_s": (steps[-1].stamp_ns - steps[0].stamp_ns) / 1e9,
        "labels": label_rules.counts(reader.labels(k)),
        "takeovers": label_rules.takeovers(reader.live) if deployment else 0,
        "intervention_ratio": label_rules.intervention_ratio(reader.live) if deployment else None,
        "policy_versions": reader.policy_versions,
        "messages": reader.counts,
        "lost_messages": result.lost,
        "bag_hash": reader.bag_hash,
        "review_hash": reader.review_hash,
        "review": {
            "reviewed": review.reviewed,
            "recorded_outcome": result.outcome,
            "labelled_steps": int((review.overlay(len(reader.timeline)) >= 0).sum()),
            "note": review.note,
            "by": sorted({edit["by"] for edit in review.edits}),
            "last": review.edits[-1]["at"],
        }
        if review.edits
        else None,
    }


def summary(readers: list[EpisodeReader], k: int = label_rules.DEFAULT_K) -> dict:
    """The same for many: episodes, steps and labels in all, counts by task, source, outcome.

    intervention_ratio: human over executed steps of all deployments together, None without any.
    """
    deployed = [reader.live for reader in readers if reader.info.source == "deployment"]
    live = np.concatenate(deployed) if deployed else None
    labels = [label_rules.counts(reader.labels(k)) for reader in readers]
    return {
        "episodes": len(readers),
        "steps": sum(len(reader.live) for reader in readers),
        "labels": {
            name: sum(count[name] for count in labels) for name in label_rules.NAMES.values()
        },
        "takeovers": sum(label_rules.takeovers(each) for each in deployed),
        "intervention_ratio": None if live is None else label_rules.intervention_ratio(live),
        "tasks": dict(Counter(reader.info.task for reader in readers)),
        "sources": dict(Counter(reader.info.source for reader in readers)),
        "outcomes": dict(Counter(reader.outcome for reader in readers)),
        "excluded": sum(reader.excluded for reader in readers),
        "policy_versions": sorted({reader.info.policy_version for reader in readers} - {""}),
    }


def _is_episode(folder: Path) -> bool:
    if folder.name.startswith("."):
        recovered = folder.parent / folder.name[1:].removesuffix(".partial")
        return folder.name.endswith(".partial") and not recovered.exists()
    return (folder / METADATA).exists() or any(folder.glob("*.mcap")) or any(folder.glob("*.db3"))
