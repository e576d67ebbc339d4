"""HDF5 files of strangers: opened, and their arrays read, without following where they point to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hapo_ros.episodes.formats.common import MAX_BYTES, BadSource, need


@contextmanager
def opened(path: Path) -> Iterator:
    """The h5py File, read-only. Raises BadSource where it is missing, none, or damaged."""
    h5py = need("h5py")
    if not path.is_file():
        raise BadSource("missing", path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        whole = path.open("rb").read(8) == b"\x89HDF\r\n\x1a\n"
        raise BadSource("damaged" if whole else "format", path, f"({error})") from error
    try:
        with file:
            yield file
    except (OSError, RuntimeError) as error:  # what HDF5 itself finds while reading
        raise BadSource("damaged", path, f"({error})") from error
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise BadSource("malformed", path, f"({error})") from error


def inside(group, name: str):
    """The member of a group, or None. Raises BadSource for a link that leads elsewhere."""
    h5py = need("h5py")
    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise BadSource("elsewhere", f"{group.name}/{name}")
    return group[name]


def group_in(parent, name: str):
    """The group of that name, or None. Raises BadSource where it is something else."""
    h5py = need("h5py")
    found = inside(parent, name)
    if found is not None and not isinstance(found, h5py.Group):
        raise BadSource("malformed", f"{parent.name}/{name}", "(it is no group)")
    return found


def array_in(group, name: str, kinds: str = "fiub", length: int | None = None):
    """The numbers of a dataset, or None where there is none of that name.

    kinds: of numpy dtypes. length: of its first axis. Raises BadSource for data kept in other
    files, for other types and lengths, and for sizes that no episode has or that nothing is stored
    of.
    """
    h5py = need("h5py")
    found = inside(group, name)
    if found is None:
        return None
    where = f"{group.name}/{name}"
    if not isinstance(found, h5py.Dataset):
        raise BadSource("malformed", where, "(it is no dataset)")
    if found.external or found.is_virtual:
        raise BadSource("elsewhere", where)
    if found.dtype.kind not in kinds:
        raise BadSource("malformed", where, f"(its type is {found.dtype})")
    if length is not None and (not found.shape or found.shape[0] != length):
        raise BadSource("malformed", where, f"(its shape is {found.shape}, not ({length}, ...))")
    if found.nbytes > MAX_BYTES or (found.nbytes and not found.id.get_storage_size()):
        raise BadSource("too large", where, f"({found.shape} {found.dtype})")
    return np.asarray(found[()])


def text_in(group, name: str) -> str:
    """A scalar dataset that holds a string; "" where there is none."""
    h5py = need("h5py")
    found = inside(group, name)
    if found is None:
        return ""
    where = f"{group.name}/{name}"
    if not isinstance(found, h5py.Dataset) or found.shape != () or found.dtype.kind not in "OS":
        raise BadSource("malformed", where, "(it is no text)")
    if found.external or found.is_virtual:
        raise BadSource("elsewhere", where)
    return text_of(found[()])


def text_of(value) -> str:
    """A string attribute or scalar dataset's value as str; "" where it is none."""
    if isinstance(value, bytes):
        return value.decode("utf8", "replace")
    return value if isinstance(value, str) else ""
