"""Many episodes from one form into another; nothing is overwritten, nothing is left half done."""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from hapo_ros.episodes.collection import open_episodes
from hapo_ros.episodes.formats.bags import write_bag
from hapo_ros.episodes.formats.common import BadSource, Foreign, Options, Summary
from hapo_ros.episodes.software import software_versions


class Format(NamedTuple):
    """A form that episodes come in or go to. suffix: of what is written; None: it is a folder."""

    name: str
    text: str
    reads: bool = True
    writes: bool = False
    suffix: str | None = None

    @property
    def module(self):
        return import_module(f"hapo_ros.episodes.formats.{self.name}")


FORMATS = {
    each.name: each
    for each in (
        Format(
            "robomimic",
            "robomimic's HDF5 (robosuite, MimicGen): one file",
            writes=True,
            suffix=".hdf5",
        ),
        Format("lerobot", "LeRobotDataset v3: a folder", writes=True),
        Format("apo", "the HDF5 of the APO authors' code: one file"),
        Format("rosbag", "plain rosbag2 bags of a robot's topics (--robot): a folder"),
    )
}


def import_episodes(
    name: str,
    source: Path,
    output: Path,
    options: Options,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Write a bag into ``output`` for each episode of ``source``.

    What cannot be taken is skipped and named; ``info.settings["imported"]`` of the others says
    where they are from. advance: told how many of how many are done. Raises BadSource where the
    source as a whole is none, NotInstalled, and EpisodeWriteError where nothing can be written.
    """
    form, source, output = _format(name, "reads"), Path(source), Path(output)
    if not source.exists():
        raise BadSource("missing", source)
    summary, found = Summary(output), form.module.found(source, options)
    for number, each in enumerate(found):
        try:
            recorded = each.load()
            write_bag(output, _with_origin(recorded, form, source, each.name))
        except BadSource as error:
            summary.skipped.append(f"{each.name}: {error}")
            summary.reasons.append(error.name)
        else:
            summary.episodes += 1
            summary.steps += len(recorded.steps)
        advance(number + 1, len(found))
    return summary


def export_episodes(
    name: str,
    bags: Iterable[str | Path],
    output: Path,
    options: Options,
    accept_recovered: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Write the episodes of ``bags`` to ``output``, which must not exist and is there when it is
    whole. Labels are the reader's: relabelled with K, and reviewed.

    Raises ValueError where there is nothing to write, or the episodes do not fit into one data set,
    FileExistsError, and NotInstalled.
    """
    form, output = _format(name, "writes"), Path(output)
    if form.suffix and output.suffix != form.suffix:
        raise ValueError(
            f"{name} is one file: end --output with {form.suffix}. Nothing was written."
        )
    if output.exists():
        raise FileExistsError(f"{output} exists already. Nothing was overwritten. Choose another.")
    readers, skipped = open_episodes(bags, accept_recovered=accept_recovered)
    summary = Summary(output, skipped=[item.reason for item in skipped])
    summary.reasons = [item.name for item in skipped]
    if not readers:
        raise ValueError(" ".join(["There is no episode to export.", *summary.skipped]))
    output.parent.mkdir(parents=True, exist_ok=True)
    working = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        form.module.write(readers, working, options, lambda done: advance(done, len(readers)))
        working.rename(output)
    except BaseException:
        shutil.rmtree(working) if working.is_dir() else working.unlink(missing_ok=True)
        raise
    summary.episodes = len(readers)
    summary.steps = sum(len(reader.sequences) for reader in readers)
    return summary


def _format(name: str, does: str) -> Format:
    known = [each for each in FORMATS.values() if getattr(each, does)]
    for each in known:
        if each.name == name:
            return each
    raise ValueError(
        f"There is no format {name!r} here. It {does}: {', '.join(f.name for f in known)}."
    )


def _with_origin(recorded: Foreign, form: Format, source: Path, name: str) -> Foreign:
    """The same, its info saying where it came from."""
    origin = {"format": form.name, "source": source.name, "name": name, "by": software_versions()}
    settings = recorded.info.settings | {"imported": origin}
    return replace(recorded, info=replace(recorded.info, settings=settings))
