"""``current.json``: the checkpoint that is served from now on, also by a restarted policy node."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CURRENT = "current.json"


def current(folder: str | Path, ignored_ns: int = 0) -> str:
    """The checkpoint that ``folder``'s current.json names; "" where there is none.

    ignored_ns: the one that was written then, see :func:`written_ns`, does not count; an earlier
    one does, clocks are set. Raises ValueError for a file that names no checkpoint.
    """
    path = Path(folder) / CURRENT
    if written_ns(folder) in (0, ignored_ns):
        return ""
    try:
        return str(json.loads(path.read_text())["checkpoint"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not name a checkpoint ({error!r}). Nothing is served from it. Run `hapo "
            "promote CHECKPOINT`, or remove the file."
        ) from error


def written_ns(folder: str | Path) -> int:
    """When current.json was written, ns since the epoch; 0 where there is none."""
    path = Path(folder) / CURRENT
    return path.stat().st_mtime_ns if path.exists() else 0


@contextmanager
def becoming_current(folder: Path, checkpoint: Path, version: str) -> Iterator[None]:
    """Name ``checkpoint`` in ``folder``'s current.json, atomically, if the body ends well.

    It is on the disk, under another name, before the body runs: OSError comes before that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{CURRENT}.{os.getpid()}"
    try:
        with temporary.open("w") as file:
            file.write(json.dumps({"checkpoint": str(checkpoint), "version": version}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        yield
        os.utime(temporary)  # that it is served counts from now on
        temporary.replace(folder / CURRENT)
    finally:
        temporary.unlink(missing_ok=True)
