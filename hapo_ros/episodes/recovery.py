"""Saving what a crash left of an episode; the original is kept as it is."""

import json
import shutil
from pathlib import Path

from hapo_ros.episodes import parsers
from hapo_ros.episodes.bag import CHUNK_BYTES, BagFile, is_being_written, sync_folder
from hapo_ros.episodes.contents import (
    BadEpisode,
    Damaged,
    checked_info,
    checked_result,
    messages,
    read_metadata,
)
from hapo_ros.episodes.interfaces import from_cdr
from hapo_ros.episodes.tally import Tally
from hapo_ros.episodes.types import EpisodeResult
from hapo_ros.episodes.writer import finish_bag
from hapo_ros.topics import EPISODE_INFO


class RecoveryError(Exception):
    """Nothing was recovered; says why."""


def unfinished(root: str | Path) -> list[Path]:
    """Folders under root that a dead recorder left and of which nothing was recovered yet."""
    return [
        folder
        for folder in sorted(Path(root).glob(".*.partial"))
        if not _destination(folder).exists() and not any(map(is_being_written, _files(folder)))
    ]


def recover(
    folder: str | Path, destination: str | Path | None = None, outcome: str | None = None
) -> Path:
    """Write a new bag of every message in a whole chunk; returns its folder.

    folder: an unfinished recording (``.<episode_id>.partial``) or a damaged bag. destination: by
    default the episode's own name beside it, ``<name>_recovered`` for a damaged bag. outcome: by
    default as recorded, in the bag or else in its metadata.yaml, and where neither can be read what
    the last recorded tick says of success. Whether it ended unresolved, the clock's jumps and the
    note stay as recorded too. The new bag is marked recovered and incomplete, so it is read only
    where that is accepted. The original is kept.

    Raises RecoveryError where there is nothing to save, the destination exists, the recorder is
    still writing, or the disk is full.
    """
    folder = Path(folder)
    files = _files(folder)
    if not files:
        raise RecoveryError(f"{folder} holds no MCAP file. Nothing was recovered.")
    if is_being_written(files[0]):
        raise RecoveryError(f"{folder} is still being written. Stop its recorder first.")
    destination = Path(destination) if destination else _destination(folder)
    if destination.exists():
        raise RecoveryError(f"{destination} exists already. Nothing was overwritten.")
    working = destination.parent / f".{destination.name}.recovering"
    if any(map(is_being_written, _files(working))):
        raise RecoveryError(f"{folder} is being recovered already, in {working}. Wait for it.")
    try:
        if working.exists():  # of a recovery that was killed
            shutil.rmtree(working)
        working.mkdir()
        bag = BagFile(working, destination.name)
        try:
            _copy(files[0], bag, outcome)
        except BaseException:
            bag.abandon()
            shutil.rmtree(working)
            raise
        working.rename(destination)
        sync_folder(destination.parent)
    except (OSError, ValueError) as error:
        raise RecoveryError(
            f"{folder} could not be recovered: {error}. The original is untouched."
        ) from error
    return destination


def _copy(source: Path, bag: BagFile, outcome: str | None) -> None:
    """Copy what can be read of source and close the bag. Raises ValueError if it is no episode."""
    info = tally = said = None
    declared, damage, lost_chunks = set(), [], []
    try:
        for message in messages(source, lost_chunks.append):
            if message.topic.name == EPISODE_INFO:
                data = parsers.info_from(from_cdr(message.cdr, message.topic.type_name))
                if "result" in data:
                    said = checked_result(data)
                    continue
                info = checked_info(data)
                tally = Tally(info)
            if tally is None:
                raise ValueError("it does not begin with an episode/info")
            tally.see(message.topic.name, message.cdr)
            if message.topic.name not in declared:
                declared.add(message.topic.name)
                bag.add_topic(*message.topic)
            bag.write(message.topic.name, message.cdr, message.log_ns, message.publish_ns)
            if bag.pending_bytes >= CHUNK_BYTES:
                bag.flush()
    except Damaged as error:
        damage.append(f"what followed the last whole chunk is lost ({error})")
    if tally is None:
        raise ValueError("not even its first episode/info can be read")
    if lost_chunks:
        damage.insert(0, f"{len(lost_chunks)} damaged chunk(s) of it are lost")
    lost = " and ".join(damage) or "nothing is missing"
    note, unresolved = f"Recovered from {source.parent.name}: {lost}.", False
    if said := said or _result_in_metadata(source.parent, info.episode_id):
        outcome, unresolved = outcome or said.outcome, said.unresolved
        tally.clock_jumps.extend(said.clock_jumps)
        note += f" Noted before: {said.note}" if said.note else ""
    result = tally.result(outcome, complete=False, recovered=True, unresolved=unresolved, note=note)
    finish_bag(bag, info, result)


def _result_in_metadata(folder: Path, episode_id: str) -> EpisodeResult | None:
    """What metadata.yaml says became of the episode; None where that cannot be read."""
    try:
        custom = read_metadata(folder)[0]["custom_data"]
        if custom.get("episode_id") == episode_id:
            return checked_result({"result": json.loads(custom["episode_result"])})
    except (BadEpisode, KeyError, TypeError, ValueError):
        pass  # damaged like the bag; what the messages themselves say is left
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.mcap"))


def _destination(folder: Path) -> Path:
    if folder.name.startswith(".") and folder.name.endswith(".partial"):
        return folder.parent / folder.name[1:].removesuffix(".partial")
    return folder.parent / f"{folder.name}_recovered"
