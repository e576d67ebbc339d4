"""Writing one episode: a folder of its own, never overwritten, never half-finished under its name.

While it is written the folder is ``.<episode_id>.partial``; it gets its name when everything is on
the disk. What a crash leaves under the first name is for ``recovery``.
"""

import re
import shutil
from dataclasses import replace
from pathlib import Path

from hapo_ros.episodes.bag import CHUNK_BYTES, BagFile, definition, sync_folder
from hapo_ros.episodes.messages import bag_types, info_json, info_message, to_cdr
from hapo_ros.episodes.tally import Tally
from hapo_ros.episodes.types import EpisodeInfo, EpisodeResult
from hapo_ros.topics import EPISODE_INFO, TYPES

FLUSH_NS = 500_000_000
MIN_FREE_BYTES = 200 << 20  # before an episode
RESERVE_BYTES = 16 << 20  # while it is written: room to close the bag
EPISODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class EpisodeWriteError(Exception):
    """The episode cannot be written, or not further; says what happened, follows, to do."""


def check_episode_id(episode_id: str) -> None:
    """Raise ValueError for an id that is no safe name of a folder."""
    if not EPISODE_ID.fullmatch(episode_id):
        raise ValueError(
            f"episode id {episode_id!r} must be 1 to 100 letters, digits, '_', '-' and '.', "
            "a letter or digit first"
        )


def info_cdr(data: dict) -> bytes:
    """Bytes of an ``episode/info`` message. Raises TypeError for what JSON cannot hold."""
    return to_cdr(info_message(bag_types(), data), TYPES[EPISODE_INFO])


def finish_bag(bag: BagFile, info: EpisodeInfo, result: EpisodeResult) -> None:
    """Write the last ``episode/info`` and close; both infos go into ``custom_data``, as JSON."""
    bag.write(EPISODE_INFO, info_cdr({"result": result.as_dict()}), bag.last_ns, bag.last_ns)
    bag.close(
        {
            "episode_id": info.episode_id,
            "episode_info": info_json(info.as_dict()),
            "episode_result": info_json(result.as_dict()),
        }
    )


def free_episode_id(root: Path, wanted: str) -> str:
    """``wanted``, or with a number behind it where that is the name of an episode already."""
    name, number = wanted, 1
    while (root / name).exists() or partial_folder(root, name).exists():
        number += 1
        name = f"{wanted}_{number}"
    return name


def partial_folder(root: Path, episode_id: str) -> Path:
    """Where an episode is while it is written."""
    return Path(root) / f".{episode_id}.partial"


class EpisodeWriter:
    """Writes the bag of one episode.

    root: folder of the episodes. topics: topic -> message type of what will be written, besides
    ``episode/info``. start_ns: log time of the first ``episode/info``, the clock of all log times.
    min_free_bytes: needed on the disk to begin. reserve_bytes: left free on it; when less would be
    left the bag is closed, marked incomplete.

    A chunk is flushed when ``FLUSH_NS`` of log time or ``CHUNK_BYTES`` are in it, so a SIGKILL
    loses that much. Log time decides, not the wall clock: the same messages give the same bytes.
    Not thread-safe.

    Raises EpisodeWriteError where nothing can be written: id hostile or taken, folder read-only,
    disk too full, unknown message type.
    """

    def __init__(
        self,
        root: str | Path,
        info: EpisodeInfo,
        topics: dict[str, str],
        *,
        start_ns: int,
        min_free_bytes: int = MIN_FREE_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
    ):
        self.info = info
        self._root = Path(root)
        self._partial = partial_folder(root, info.episode_id)
        self._reserve_bytes = reserve_bytes
        self._closed = False
        self._types = {EPISODE_INFO: TYPES[EPISODE_INFO]} | topics
        try:
            check_episode_id(info.episode_id)
            definitions = {topic: definition(name) for topic, name in self._types.items()}
            first = info_cdr({"info": info.as_dict()})
        except (ValueError, TypeError) as error:
            raise EpisodeWriteError(f"Episode {info.episode_id}: {error}. Not recorded.") from error
        self._tally = Tally(info)
        self._bag = self._claim(min_free_bytes)
        try:
            for topic, type_name in self._types.items():
                self._bag.add_topic(topic, type_name, *definitions[topic])
            self._bag.write(EPISODE_INFO, first, start_ns, start_ns)
            self._bag.flush()
        except OSError as error:
            raise self._abandoned(error) from error

    @property
    def path(self) -> Path:
        """The episode's folder, once finished."""
        return self._root / self.info.episode_id

    @property
    def closed(self) -> bool:
        """Whether nothing more can be written: finished, discarded, failed or closed."""
        return self._closed

    @property
    def counts(self) -> dict[str, int]:
        """Messages written so far, by topic."""
        return dict(self._bag.counts)

    def write(
        self, topic: str, cdr: bytes, log_time_ns: int, publish_time_ns: int | None = None
    ) -> None:
        """Record a serialized message of a declared topic.

        Raises EpisodeWriteError once, when the disk gives out: the bag is closed then, as far as
        it got, under its own name marked incomplete or, where not even that can be written, left
        unfinished for ``hapo recover``. Raises KeyError for a topic that was not declared, and
        ValueError, with nothing written, for what would spoil the bag: bytes that are not its
        message; a time before 1970; a tick, an object state, an answer or a decision that is
        malformed.
        """
        if self._closed:
            raise EpisodeWriteError(f"Episode {self.info.episode_id} is closed; nothing is added.")
        cdr = bytes(cdr)
        publish_ns = log_time_ns if publish_time_ns is None else publish_time_ns
        if min(log_time_ns, publish_ns) < 0:
            raise ValueError(f"it is stamped {min(log_time_ns, publish_ns) / 1e9:g} s, before 1970")
        self._tally.see(topic, cdr)
        self._bag.write(topic, cdr, log_time_ns, publish_ns)
        if self._bag.pending_bytes >= CHUNK_BYTES or self._bag.pending_ns(log_time_ns) >= FLUSH_NS:
            self._flush()

    def write_message(self, topic: str, message, time_ns: int) -> None:
        """Record a :func:`~hapo_ros.episodes.messages.bag_types` message; raises as ``write``."""
        self.write(topic, to_cdr(message, self._types[topic]), time_ns)

    def note_clock_jump(self, after_s: float, jump_s: float) -> None:
        """Note that the wall clock was set forward by ``jump_s``, so long after the start."""
        self._tally.clock_jumps.append([round(after_s, 3), round(jump_s, 3)])

    def lost(self, but_newest: int = 0) -> dict[str, int]:
        """Messages known to be missing so far, by topic; see :meth:`Tally.lost`."""
        return self._tally.lost(but_newest)

    def is_whole(self, sequence: int) -> bool:
        """Whether nothing is missing of what was written, up to the tick ``sequence`` at least."""
        return self._tally.is_whole(sequence)

    def result(self, outcome: str | None, **known) -> EpisodeResult:
        """EpisodeResult with what was written so far; see :meth:`Tally.result`."""
        return self._tally.result(outcome, **known)

    def finish(self, result: EpisodeResult) -> Path:
        """Write the last ``episode/info``, close the bag, give the folder its name; returns it.

        Raises EpisodeWriteError where that fails; the unfinished folder is kept then.
        """
        if self._closed:
            raise EpisodeWriteError(f"Episode {self.info.episode_id} is closed already.")
        try:
            finish_bag(self._bag, self.info, result)
            self._partial.rename(self.path)
            sync_folder(self._root)
        except OSError as error:
            raise self._abandoned(error) from error
        self._closed = True
        return self.path

    def discard(self, result: EpisodeResult) -> Path:
        """Finish with outcome ``discarded``: the bag is kept and never used for learning."""
        return self.finish(replace(result, outcome="discarded"))

    def close(self) -> None:
        """Stop without finishing: what was written so far is left for ``hapo recover``."""
        if not self._closed:
            self._closed = True
            self._bag.abandon()

    def _claim(self, min_free_bytes: int) -> BagFile:
        """Make the unfinished episode's folder and its bag, or say why not."""
        partial = self._partial
        for taken in (self.path, partial):
            if taken.exists():
                raise EpisodeWriteError(
                    f"Episode {self.info.episode_id} exists already: {taken}. Not recorded, and "
                    "nothing was overwritten. Choose another id"
                    + (", or recover that one." if taken == partial else ".")
                )
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._root).free
            if free >= min_free_bytes:
                partial.mkdir()
                return BagFile(partial, self.info.episode_id)
        except OSError as error:
            raise EpisodeWriteError(
                f"No episode can be written into {self._root}: {error.strerror}. Not recorded. "
                "Choose another folder."
            ) from error
        raise EpisodeWriteError(
            f"{self._root} has {free >> 20} MiB free and {min_free_bytes >> 20} MiB are needed. "
            "Not recorded. Free some space or choose another folder."
        )

    def _flush(self) -> None:
        try:
            free = shutil.disk_usage(self._partial).free
            if free >= self._reserve_bytes + self._bag.pending_bytes:
                self._bag.flush()
                return
        except OSError as error:
            raise self._abandoned(error) from error
        note = f"the disk is full ({free >> 20} MiB free), recording ended early"
        path = self.finish(self._tally.result(complete=False, note=note))
        raise EpisodeWriteError(
            f"Episode {self.info.episode_id}: {note}. Closed as far as it got, marked incomplete: "
            f"{path}. Free some space before the next episode."
        )

    def _abandoned(self, error: OSError) -> EpisodeWriteError:
        self.close()
        return EpisodeWriteError(
            f"Episode {self.info.episode_id} cannot be written: {error.strerror}. What was written "
            f"is kept, unfinished, in {self._partial}. Make room, then run `hapo recover`."
        )

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()
