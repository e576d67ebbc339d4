"""One rosbag2 bag on disk: an MCAP file and its metadata.yaml, as ``ros2 bag`` (Jazzy) writes them.

Written with the ``mcap`` library, because a chunk can then be flushed at will (rosbags' writer only
flushes by size) and carries a checksum. metadata.yaml is version 9, rosbag2's in Jazzy.
"""

import fcntl
import os
from io import StringIO
from pathlib import Path

METADATA = "metadata.yaml"
CHUNK_BYTES = 1 << 20
ROS_DISTRO = "jazzy"  # whose message definitions are embedded


def definition(type_name: str) -> tuple[str, str]:
    """(text of the message definition with all it depends on, RIHS01 hash) of a message type.

    Raises ValueError for a type that neither ROS 2 Jazzy nor this project defines.
    """
    from hapo_ros.episodes.interfaces import typestore

    store = typestore()
    if type_name not in store.fielddefs:
        raise ValueError(f"message type {type_name} is unknown, so it cannot be recorded")
    return store.generate_msgdef(type_name, ros_version=2)[0], store.hash_rihs01(type_name)


class _Chunks:
    """The stream under the mcap writer: bytes reach the file in :meth:`flush` only, all or none."""

    def __init__(self, path: Path):
        self._file = path.open("xb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._parts: list[bytes] = []
        self._flushed = self._size = 0

    def write(self, data: bytes) -> int:
        self._parts.append(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        data = memoryview(b"".join(self._parts))
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(self._flushed)
            raise
        self._parts, self._flushed = [], self._size

    def close(self, sync: bool) -> None:
        if sync:
            os.fsync(self._file.fileno())
        self._file.close()


class BagFile:
    """A bag that is being written into an existing, empty folder.

    name: of the bag; the file is ``<name>_0.mcap``. It is locked while it is open, so that
    :func:`is_being_written` tells a running recorder from a dead one. OSError goes to the caller;
    after one in :meth:`write` or :meth:`flush` only :meth:`abandon` is left to call.
    """

    def __init__(self, folder: Path, name: str):
        from mcap.writer import CompressionType, Writer

        from hapo_ros import __version__

        self.folder = folder
        self.counts: dict[str, int] = {}
        self.pending_bytes = 0
        self._pending_since: int | None = None
        self._file_name = f"{name}_0.mcap"
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._topics: dict[str, tuple[str, str]] = {}
        self._first_ns, self._last_ns = 2**63 - 1, 0
        self._stream = _Chunks(folder / self._file_name)
        # Chunks end where flush() is called, never by the library's own count.
        self._mcap = Writer(
            self._stream,
            chunk_size=1 << 62,
            compression=CompressionType.ZSTD,
            enable_data_crcs=True,
        )
        self._mcap.start(profile="ros2", library=f"hapo_ros-{__version__}")

    @property
    def last_ns(self) -> int:
        """Largest log time so far."""
        return self._last_ns

    def add_topic(self, topic: str, type_name: str, text: str, digest: str) -> None:
        """Declare a topic; text and digest as :func:`definition` gives them."""
        if type_name not in self._schemas:
            self._schemas[type_name] = self._mcap.register_schema(
                type_name, "ros2msg", text.encode()
            )
        self._channels[topic] = self._mcap.register_channel(
            topic,
            "cdr",
            self._schemas[type_name],
            {"offered_qos_profiles": "[]", "topic_type_hash": digest},
        )
        self._topics[topic] = type_name, digest
        self.counts[topic] = 0

    def write(self, topic: str, cdr: bytes, log_ns: int, publish_ns: int) -> None:
        """Add a message to the chunk in memory. Raises KeyError for an undeclared topic."""
        self._mcap.add_message(self._channels[topic], log_ns, cdr, publish_ns)
        self.counts[topic] += 1
        self.pending_bytes += len(cdr)
        if self._pending_since is None:
            self._pending_since = log_ns
        self._first_ns = min(self._first_ns, log_ns)
        self._last_ns = max(self._last_ns, log_ns)

    def pending_ns(self, log_ns: int) -> int:
        """Log time that has passed, in either direction, since the first unflushed message."""
        return 0 if self._pending_since is None else abs(log_ns - self._pending_since)

    def flush(self) -> None:
        """Write the chunk in memory: a process killed afterwards does not lose it."""
        self._mcap.flush()
        self.pending_bytes, self._pending_since = 0, None

    def close(self, custom_data: dict[str, str]) -> None:
        """Write what is left, the index and metadata.yaml; all of it is on the disk afterwards."""
        self.flush()
        metadata = self._metadata(custom_data)
        self._mcap.add_metadata("rosbag2", {"serialized_metadata": _yaml(metadata)})
        self._mcap.finish()
        self._stream.flush()
        self._stream.close(sync=True)
        with (self.folder / METADATA).open("x", encoding="utf8") as file:
            file.write(_yaml({"rosbag2_bagfile_information": metadata}))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder)

    def abandon(self) -> None:
        """Close the file at its last whole chunk, without index and metadata."""
        self._stream.close(sync=False)

    def _metadata(self, custom_data: dict[str, str]) -> dict:
        start = {"nanoseconds_since_epoch": self._first_ns}
        duration = {"nanoseconds": self._last_ns - self._first_ns}
        count = sum(self.counts.values())
        return {
            "version": 9,
            "storage_identifier": "mcap",
            "duration": duration,
            "starting_time": start,
            "message_count": count,
            "topics_with_message_count": [
                {
                    "topic_metadata": {
                        "name": topic,
                        "type": type_name,
                        "serialization_format": "cdr",
                        "offered_qos_profiles": [],
                        "type_description_hash": digest,
                    },
                    "message_count": self.counts[topic],
                }
                for topic, (type_name, digest) in self._topics.items()
            ],
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [self._file_name],
            "files": [
                {
                    "path": self._file_name,
                    "starting_time": dict(start),
                    "duration": dict(duration),
                    "message_count": count,
                }
            ],
            "custom_data": custom_data,
            "ros_distro": ROS_DISTRO,
        }


def is_being_written(mcap_file: Path) -> bool:
    """Whether a living process holds the file open through :class:`BagFile`."""
    with mcap_file.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _yaml(data: dict) -> str:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = False  # U+0085 as it is would be folded like a line's end on reading
    yaml.width = 1 << 30
    yaml.sort_base_mapping_type_on_output = False
    text = StringIO()
    yaml.dump(data, text)
    return text.getvalue()
