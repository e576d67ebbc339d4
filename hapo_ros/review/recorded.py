"""What the page shows of a bag, read from end to end once, in a process of its own.

A bag may be damaged or made to harm: that process is bounded in memory and may die of it.
"""

import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hapo_ros import labels
from hapo_ros.episodes import BadEpisode, EpisodeInfo, EpisodeReader, EpisodeResult

MEMORY_BYTES = 8 << 30  # address space of the reading process, libraries included
NICENESS = 10


@dataclass
class Recorded:
    """A whole bag but for its observations.

    timeline: (S,) int8 live labels of all control steps. sequences: (T,) int32 of the steps that
    are whole. tracks: as of ``EpisodeReader.tracks``; None where only the rest is kept.
    """

    info: EpisodeInfo
    result: EpisodeResult
    bag_hash: str
    timeline: np.ndarray
    sequences: np.ndarray
    seconds: float
    takeovers: int
    intervention_ratio: float | None
    policy_versions: list[str]
    tracks: dict[str, np.ndarray] | None

    @property
    def size(self) -> int:
        """Bytes of the tracks."""
        return sum(track.nbytes for track in (self.tracks or {}).values())


@dataclass
class Broken:
    """A bag that cannot be read. name: a key of ``contents.REASONS``; reason: a sentence."""

    name: str
    reason: str


def prepare() -> None:
    """What a reading process does first: yield to everyone else, and bound what it may take."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, which ends this one
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def read(folder: Path) -> Recorded | Broken:
    """Read a bag. Its review is not looked at: that may change at any time."""
    try:
        reader = EpisodeReader(folder, accept_recovered=True, use_review=False)
        tracks = reader.tracks()
    except BadEpisode as error:
        return Broken(error.name, str(error))
    except OSError as error:
        return Broken("missing", f"{folder}: {error.strerror}.")
    except MemoryError:
        return Broken("malformed", f"{folder}: Reading it takes more memory than is allowed.")
    deployment = reader.info.source == "deployment"
    stamps = tracks["stamp_ns"]
    return Recorded(
        info=reader.info,
        result=reader.result,
        bag_hash=reader.bag_hash,
        timeline=reader.timeline.astype(np.int8),
        sequences=reader.sequences.astype(np.int32),
        seconds=float(stamps[-1] - stamps[0]) / 1e9,
        takeovers=labels.takeovers(reader.live) if deployment else 0,
        intervention_ratio=labels.intervention_ratio(reader.live) if deployment else None,
        policy_versions=reader.policy_versions,
        tracks=tracks,
    )
