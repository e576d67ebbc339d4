"""The bags of some folders: which there are, what they hold, what was decided about them.

Folders are looked at anew when the page asks; bags are read one after the other, in a process of
its own, whatever the page waits for first. What the page names is a key of this index, so no
path ever comes from it.
"""

import hashlib
import os
import re
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from hapo_ros.episodes import reviews
from hapo_ros.episodes.collection import episode_folders
from hapo_ros.episodes.reader import final_labels
from hapo_ros.episodes.reviews import REVIEW, Review, ReviewError
from hapo_ros.review import recorded
from hapo_ros.review.frames import ChunkCache, FrameFile, NoFrame
from hapo_ros.review.recorded import Broken, Recorded

RESCAN_S = 2.0
TRACK_BYTES = 128 << 20  # of all episodes' tracks together; the ones looked at last are kept
_RECORDED_AT = re.compile(r"(\d{8}T\d{6})")


class Unknown(KeyError):
    """No bag of this key."""


@dataclass
class Entry:
    """A bag. key: what the page calls it. found: None while it was not read yet.

    signature: of its files, to notice another bag of the same name. review_error: why there is no
    review, "" otherwise. recorded_at: local time. changed: the index's count when something of it
    changed last. reading: a process is at it. repeats: the folder that holds the same episode, and
    comes before it.
    """

    key: str
    path: Path
    signature: tuple
    recorded_at: datetime
    found: Recorded | Broken | None = None
    review: Review = field(default_factory=Review)
    review_error: str = ""
    review_signature: tuple = ()
    changed: int = 0
    reading: bool = False
    repeats: str = ""

    def labels(self, k: int) -> np.ndarray:
        """(S,) c_t of all control steps, relabelled with K and reviewed."""
        found = self.found
        return final_labels(found.timeline.astype(np.int64), found.info.source, k, self.review)


class Index:
    """The bags at or directly under some folders. Thread-safe. Close it.

    Raises ValueError where a folder is not there.
    """

    def __init__(self, folders: Iterable[str | Path]):
        self.folders = [Path(folder).resolve() for folder in folders]
        for folder in self.folders:
            if not folder.is_dir():
                raise ValueError(f"There is no folder {folder}. Give folders of recorded episodes.")
        self.count = 0  # grows with every change
        self._entries: dict[str, Entry] = {}
        self._frames: dict[tuple, FrameFile] = {}
        self._chunks = ChunkCache()
        self._kept: OrderedDict[str, int] = OrderedDict()  # key -> bytes of its tracks
        self._wanted: list[str] = []  # keys that someone waits for, the last one first
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._scanned_s = float("-inf")
        self._closed = False
        self._pool: ProcessPoolExecutor | None = None
        self._pid = 0  # of the process that reads bags
        self.scan()
        self._thread = threading.Thread(target=self._read_bags, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the process that reads bags, whatever it is at."""
        with self._lock:
            self._closed = True
            self._work.notify_all()
            if self._pid:
                with suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGTERM)
        self._thread.join()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # What there is

    def entries(self) -> list[Entry]:
        """All bags, in order of their folders' names."""
        now_s = time.monotonic()
        if now_s - self._scanned_s > RESCAN_S:
            self.scan()
        with self._lock:
            return list(self._entries.values())

    def entry(self, key: str) -> Entry:
        """The bag of a key, with the review that lies beside it now. Raises Unknown."""
        with self._lock:
            if key not in self._entries:
                raise Unknown(key)
            entry = self._entries[key]
            self._look_at_review(entry)
            return entry

    def tracks(self, key: str) -> Recorded | Broken | None:
        """What a bag holds, tracks and all; None where it is being read: ask again."""
        entry = self.entry(key)
        with self._lock:
            found = entry.found
            if isinstance(found, Broken) or (found is not None and found.tracks is not None):
                if key in self._kept:
                    self._kept.move_to_end(key)
                return found
            if key not in self._wanted:
                self._wanted.insert(0, key)
                self._work.notify()
        return None

    def frames(self, key: str) -> FrameFile:
        """The images of a bag. Raises NoFrame where it is none that can be read."""
        entry = self.entry(key)
        with self._lock:
            known = self._frames.get((key, entry.signature))
        if known is None:
            files = sorted(entry.path.glob("*.mcap"))
            if len(files) != 1:
                raise NoFrame("This bag is not one MCAP file.")
            known = FrameFile(files[0], self._chunks)
            with self._lock:
                self._frames[key, entry.signature] = known
        return known

    def append(self, key: str, edits: list[dict], seen: int) -> Entry:
        """Add edits to a bag's review. Raises ReviewError (Conflict), Unknown."""
        entry = self.entry(key)
        found = entry.found
        if not isinstance(found, Recorded):
            raise ReviewError("The bag was not read yet, or cannot be. Nothing was saved.")
        reviews.append(
            entry.path,
            edits,
            seen=seen,
            episode_id=found.info.episode_id,
            bag_hash=found.bag_hash,
            steps=len(found.timeline),
        )
        return self.entry(key)

    @property
    def left(self) -> int:
        """Bags that were not read yet."""
        with self._lock:
            return sum(entry.found is None for entry in self._entries.values())

    # Looking at folders

    def scan(self) -> None:
        """Take in what came, went or changed since."""
        with self._lock:
            self._scanned_s = time.monotonic()
            seen = {}
            for folder in [each for root in self.folders for each in episode_folders(root)]:
                if folder in self.folders and not _holds_a_bag(folder):
                    continue  # an empty folder, given to be filled
                signature = _signature(folder)
                if signature is None:
                    continue  # gone meanwhile
                key = hashlib.sha256(str(folder).encode("utf8", "surrogateescape")).hexdigest()[:16]
                known = self._entries.get(key)
                if known is None or known.signature != signature:
                    known = Entry(
                        key, folder, signature, _recorded_at(folder), changed=self._next()
                    )
                    self._kept.pop(key, None)
                self._look_at_review(known)
                seen[key] = known
            if seen.keys() != self._entries.keys():
                self._next()
            self._entries = seen
            self._mark_repeated()
            self._frames = {k: f for k, f in self._frames.items() if k[0] in seen}
            self._work.notify_all()

    def _mark_repeated(self) -> None:
        """The same episode twice is used once, the first one; as ``open_episodes`` does."""
        first: dict[tuple, Entry] = {}
        for entry in self._entries.values():
            if isinstance(found := entry.found, Recorded):
                before = first.setdefault((found.info.episode_id, found.bag_hash), entry)
                repeats = "" if before is entry else before.path.name
                if entry.repeats != repeats:
                    entry.repeats, entry.changed = repeats, self._next()

    def _next(self) -> int:
        self.count += 1
        return self.count

    def _look_at_review(self, entry: Entry) -> None:
        signature = _file_signature(entry.path / REVIEW)
        if signature == entry.review_signature:
            return
        entry.review_signature = signature
        try:
            entry.review, entry.review_error = reviews.read(entry.path), ""
        except ReviewError as error:
            entry.review, entry.review_error = Review(), str(error)
        self._compare(entry)
        entry.changed = self._next()

    def _compare(self, entry: Entry) -> None:
        """Do without a review that was made for another bag."""
        if isinstance(entry.found, Recorded):
            try:
                reviews.require_same_bag(entry.review, entry.found.bag_hash)
            except ReviewError as error:
                entry.review, entry.review_error = Review(), str(error)

    # Reading bags

    def _read_bags(self) -> None:
        while True:
            with self._lock:
                entry = self._next_to_read()
                while entry is None and not self._closed:
                    self._work.wait()
                    entry = self._next_to_read()
                if self._closed:
                    return
                entry.reading = True
            found = self._read(entry.path)
            with self._lock:
                entry.reading = False
                if self._closed:
                    return
                entry.found = found
                self._compare(entry)
                self._keep(entry)
                self._mark_repeated()
                entry.changed = self._next()
                self._work.notify_all()

    def _next_to_read(self) -> Entry | None:
        while self._wanted:
            entry = self._entries.get(self._wanted.pop(0))
            if entry is not None and not entry.reading:
                return entry
        unread = (e for e in self._entries.values() if e.found is None)
        return next((e for e in unread if not e.reading), None)

    def _read(self, path: Path) -> Recorded | Broken:
        try:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, get_context("spawn"), recorded.prepare)
                pid = self._pool.submit(os.getpid).result()
                with self._lock:
                    self._pid = pid
            with self._lock:
                if self._closed:
                    return Broken("missing", f"{path}: Not read any more.")
            return self._pool.submit(recorded.read, path).result()
        except BrokenExecutor:
            with self._lock:
                pool, self._pool, self._pid = self._pool, None, 0
            pool.shutdown()  # its own thread would trip over the end of this process
            return Broken("malformed", f"{path}: The process that read this bag died of it.")
        except Exception as error:  # nobody thought of it; the other bags are still to be read
            return Broken("malformed", f"{path}: Reading it failed ({error!r}). Report this.")

    def _keep(self, entry: Entry) -> None:
        """Keep an episode's tracks; let go of those that were looked at longest ago."""
        if not isinstance(entry.found, Recorded):
            return
        self._kept[entry.key] = entry.found.size
        self._kept.move_to_end(entry.key)
        while sum(self._kept.values()) > TRACK_BYTES and len(self._kept) > 1:
            oldest, _ = self._kept.popitem(last=False)
            other = self._entries.get(oldest)
            if other is not None and isinstance(other.found, Recorded):
                other.found = replace(other.found, tracks=None)


def _holds_a_bag(folder: Path) -> bool:
    return (folder / "metadata.yaml").exists() or any(folder.glob("*.mcap"))


def _file_signature(file: Path) -> tuple:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _signature(folder: Path) -> tuple | None:
    """What tells one bag from another in the same folder; None where it is gone."""
    try:
        names = sorted(p for p in folder.iterdir() if p.suffix in (".mcap", ".yaml", ".db3"))
    except OSError:
        return None
    return tuple((name.name, *_file_signature(name)) for name in names)


def _recorded_at(folder: Path) -> datetime:
    """When it was recorded: as its name says, or else when its metadata was written.

    In lock-step a bag's own stamps are those of the simulation, which tell no day.
    """
    if found := _RECORDED_AT.search(folder.name):
        try:
            return datetime.strptime(found[1], "%Y%m%dT%H%M%S")
        except ValueError:
            pass  # digits that are no date
    for file in (folder / "metadata.yaml", folder):
        try:
            return datetime.fromtimestamp(file.stat().st_mtime)
        except (OSError, OverflowError, ValueError):
            continue
    return datetime.fromtimestamp(0)
