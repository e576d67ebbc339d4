"""What people decided about an episode after it was recorded: ``review.json`` beside its bag.

A review is a list of edits, each with who made it and when; nothing is ever taken out of it. To
undo an edit is an edit as well. Its revision is their number, so that whoever saves can say which
state they saw (:func:`append`). The bag is never touched (design.md section 4).
"""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from hapo_ros.episodes.bag import sync_folder
from hapo_ros.labels import NAMES, NONE

REVIEW = "review.json"
FORMAT, VERSION = "hapo_ros review", 1
MAX_BYTES = 8 << 20  # of a file: some 50,000 edits
MAX_NOTE, MAX_NAME = 10_000, 100  # characters
MAX_STEP = 1_000_000
OUTCOMES = ("success", "failure")
KEPT = -1  # in an overlay: no reviewer's label
LABELS = {name: label for label, name in NAMES.items()}


class ReviewError(Exception):
    """A review that cannot be read, or an edit that cannot be made; the message is a sentence."""


class Conflict(ReviewError):
    """Someone else saved meanwhile. review: what is saved now; nothing of it was overwritten."""

    def __init__(self, review: "Review", seen: int):
        super().__init__(_whose(review, seen))
        self.review = review


@dataclass(frozen=True)
class Review:
    """The edits of one episode, oldest first. Without any: as if there were no review.

    edits: each with ``by`` (a person's name), ``at`` (UTC, ISO 8601), ``kind`` and, by kind,
    label: ``first``, ``last`` (steps, both included), ``label`` (a name of ``labels.NAMES``, or
    None: as recorded); outcome: ``outcome`` (success | failure, or None: as recorded); exclude:
    ``exclude`` (bool); note: ``note``; reviewed: ``reviewed`` (bool); undo: ``edit`` (the number,
    from 0, of the edit that it takes back; undoing an undo does that edit again).
    bag_hash: SHA-256 of the MCAP that they were made for. hash: SHA-256 of the file, "" without.
    """

    edits: tuple[dict, ...] = ()
    episode_id: str = ""
    bag_hash: str = ""
    hash: str = field(default="", compare=False)

    @property
    def revision(self) -> int:
        return len(self.edits)

    @cached_property
    def valid(self) -> tuple[bool, ...]:
        """For each edit whether it counts: nobody took it back."""
        counts = [True] * len(self.edits)
        for number in reversed(range(len(self.edits))):
            if counts[number] and self.edits[number]["kind"] == "undo":
                counts[self.edits[number]["edit"]] = False
        return tuple(counts)

    def last(self, kind: str):
        """The value of the last edit of a kind that counts; None where there is none."""
        values = [e[kind] for e, counts in self._counted() if counts and e["kind"] == kind]
        return values[-1] if values else None

    @property
    def outcome(self) -> str | None:
        """success, failure, or None: as recorded."""
        return self.last("outcome")

    @property
    def excluded(self) -> bool:
        return bool(self.last("exclude"))

    @property
    def note(self) -> str:
        return self.last("note") or ""

    @property
    def reviewed(self) -> bool:
        """Someone said that they are through with it."""
        return bool(self.last("reviewed"))

    def overlay(self, steps: int) -> np.ndarray:
        """(steps,) int64: the label that a reviewer gave to each control step, KEPT elsewhere."""
        given = np.full(steps, KEPT)
        for edit, counts in self._counted():
            if counts and edit["kind"] == "label":
                label = edit["label"]
                given[edit["first"] : edit["last"] + 1] = KEPT if label is None else LABELS[label]
        return given

    def apply(self, labels: np.ndarray) -> np.ndarray:
        """(S,) c_t of control steps 0 .. S - 1 with the reviewers' labels in place of theirs.

        Where nothing was executed it stays NONE, whatever was said: there is no action to learn.
        """
        given = self.overlay(len(labels))
        return np.where((given != KEPT) & (np.asarray(labels) != NONE), given, labels)

    def undoable(self) -> int | None:
        """Number of the edit that "undo" takes back: the last that counts and is no undo."""
        pairs = enumerate(self._counted())
        numbers = [n for n, (edit, counts) in pairs if counts and edit["kind"] != "undo"]
        return numbers[-1] if numbers else None

    def redoable(self) -> int | None:
        """Number of the undo that "redo" takes back: one that nothing but undoing came after."""
        for number in range(self.revision - 1, -1, -1):
            edit = self.edits[number]
            if edit["kind"] != "undo":
                return None
            if self.valid[number] and self.edits[edit["edit"]]["kind"] != "undo":
                return number
        return None

    def _counted(self):
        return zip(self.edits, self.valid, strict=True)


def read(folder: Path) -> Review:
    """The review beside a bag; an empty one where there is none.

    Raises ReviewError where the file is not this format and version. It is never guessed at: a
    decision that was not understood must not be trained against.
    """
    file = Path(folder) / REVIEW
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return Review()
    except OSError as error:
        raise ReviewError(f"{REVIEW} cannot be read: {error.strerror}.") from error
    return _parsed(data)


def append(
    folder: Path,
    edits: Sequence[dict],
    *,
    seen: int,
    episode_id: str,
    bag_hash: str,
    steps: int,
) -> Review:
    """Add edits to the review beside a bag and return it, saved.

    seen: the revision that whoever made them was looking at. steps: control steps of the episode.
    The file is replaced in one go, and only where it is still what was seen; so it holds between
    processes and machines too. Raises Conflict where someone was faster, ReviewError where an edit
    makes no sense or nothing can be written there; nothing is changed then.
    """
    folder = Path(folder)
    try:
        with _held(folder / REVIEW) as new:
            before = read(folder)
            require_same_bag(before, bag_hash)
            if before.revision != seen:
                raise Conflict(before, seen)
            after = _extended(before, edits, episode_id, bag_hash, steps)
            data = _bytes(after)
            if len(data) > MAX_BYTES:
                raise ReviewError(f"{REVIEW} would be larger than {MAX_BYTES >> 20} MiB.")
            if not _replace(folder / REVIEW, data, new):
                raise Conflict(read(folder), seen)
    except OSError as error:
        raise ReviewError(
            f"{REVIEW} cannot be written into {folder}: {error.strerror}. Nothing was saved. Make "
            "the folder writable, or free some space."
        ) from error
    return _parsed(data)


def check(edits: Sequence[dict], steps: int) -> None:
    """Raise ReviewError unless ``edits`` can be all those of an episode of so many steps."""
    if not isinstance(edits, list | tuple):
        raise ReviewError("Its edits are no list.")
    _extended(Review(), edits, "", "", steps)


def require_same_bag(review: Review, bag_hash: str) -> None:
    """Raise ReviewError where a review was made for another bag than the one it lies beside."""
    if review.bag_hash and review.bag_hash != bag_hash:
        raise ReviewError(
            f"{REVIEW} was made for another bag (of episode {review.episode_id}). It is not used. "
            "Put it back where it belongs."
        )


def _extended(before: Review, edits, episode_id: str, bag_hash: str, steps: int) -> Review:
    review = before
    for edit in edits:
        checked = _checked(edit, review.revision, review.edits)
        if checked["kind"] == "label" and checked["last"] >= steps:
            raise ReviewError(f"Step {checked['last']} is beyond the episode's last, {steps - 1}.")
        review = Review((*review.edits, checked), episode_id, bag_hash)
    return review


def _bytes(review: Review) -> bytes:
    head = {"format": FORMAT, "version": VERSION}
    head |= {"episode_id": review.episode_id, "bag_hash": review.bag_hash}
    lines = ",\n".join(f"  {json.dumps(edit, ensure_ascii=False)}" for edit in review.edits)
    return f'{json.dumps(head)[:-1]}, "edits": [\n{lines}\n]}}\n'.encode()


def _parsed(data: bytes) -> Review:
    if len(data) > MAX_BYTES:
        raise ReviewError(f"{REVIEW} is larger than {MAX_BYTES >> 20} MiB. It is not used.")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ReviewError(f"{REVIEW} is not JSON ({error}). It is not used, and kept.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ReviewError(f"{REVIEW} is no review of hapo_ros. It is not used, and kept.")
    if found.get("version") != VERSION:
        raise ReviewError(
            f"{REVIEW} is of version {found.get('version')!r}, and this hapo_ros knows version "
            f"{VERSION}. It is not used, and kept. Use the hapo_ros that wrote it, or a newer one."
        )
    edits, episode_id, bag_hash = (found.get(n) for n in ("edits", "episode_id", "bag_hash"))
    if not (isinstance(edits, list) and isinstance(episode_id, str) and isinstance(bag_hash, str)):
        raise ReviewError(f"{REVIEW} lacks its edits, episode_id or bag_hash. It is not used.")
    checked: list[dict] = []
    for edit in edits:
        checked.append(_checked(edit, len(checked), checked))
    return Review(tuple(checked), episode_id, bag_hash, hashlib.sha256(data).hexdigest())


def _checked(edit, number: int, earlier: Sequence[dict]) -> dict:
    """The edit, with nothing in it that does not belong there. Raises ReviewError."""
    kind = edit.get("kind") if isinstance(edit, dict) else None
    rules = {
        "label": {
            "first": lambda v: _whole(v, MAX_STEP),
            "last": lambda v: _whole(v, MAX_STEP) and _whole(edit["first"], v),
            "label": lambda v: v is None or v in LABELS,
        },
        "outcome": {"outcome": lambda v: v is None or v in OUTCOMES},
        "exclude": {"exclude": lambda v: isinstance(v, bool)},
        "note": {"note": lambda v: isinstance(v, str) and len(v) <= MAX_NOTE},
        "reviewed": {"reviewed": lambda v: isinstance(v, bool)},
        "undo": {"edit": lambda v: _whole(v, number - 1)},
    }
    rule = rules.get(kind) if isinstance(kind, str) else None
    if rule is None:
        raise ReviewError(f"Edit {number} is of no kind that there is: {', '.join(rules)}.")
    rule = {
        **rule,
        "by": lambda v: isinstance(v, str) and 0 < len(v.strip()) <= MAX_NAME,
        "at": lambda v: isinstance(v, str) and 0 < len(v) <= 40,
    }
    for name, holds in rule.items():
        value = edit.get(name, ...)
        if isinstance(value, dict | list) or value is ... or not holds(value):
            said = "nothing" if value is ... else repr(value)[:80]
            raise ReviewError(f"Edit {number} ({kind}) has {said} as its {name}.")
    return {"at": edit["at"], "by": edit["by"], "kind": kind} | {
        name: edit[name] for name in rule if name not in ("at", "by")
    }


def _whole(value, at_most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= at_most


@contextmanager
def _held(file: Path):
    """Hold a review against other writers; yields whether there is none yet."""
    while True:
        try:
            stream = file.open("r+b")
        except FileNotFoundError:
            yield True  # whoever links it first has it
            return
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(stream.fileno()), file.stat())
            except FileNotFoundError:
                same = False
            if same:  # not replaced by another while we waited
                yield False
                return


def _replace(file: Path, data: bytes, new: bool) -> bool:
    """Put ``data`` in the place of ``file``; False where it was to be new and is not."""
    descriptor, name = tempfile.mkstemp(prefix=".review-", suffix=".json", dir=file.parent)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644 if new else file.stat().st_mode & 0o777)
        if new:
            try:
                os.link(name, file)
            except FileExistsError:
                return False
        else:
            os.replace(name, file)
        sync_folder(file.parent)
        return True
    finally:
        Path(name).unlink(missing_ok=True)


def _whose(review: Review, seen: int) -> str:
    news = review.edits[seen:]
    if not news:
        return "The review beside the bag is another one now. Your edit was not saved. Look again."
    people = ", ".join(dict.fromkeys(edit["by"] for edit in news))
    count = "an edit" if len(news) == 1 else f"{len(news)} edits"
    return (
        f"{people} saved {count} of this episode meanwhile. Yours was not saved, and nothing was "
        "overwritten. Look at theirs, then make yours again."
    )
