"""One image of a bag, whatever its size: found through the MCAP's index, never the whole file."""

import struct
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from mcap.exceptions import McapError
from mcap.reader import SeekingReader

from hapo_ros import topics
from hapo_ros.episodes import parsers
from hapo_ros.episodes.contents import MAX_STEPS, cdr_stamp_ns, checked_info
from hapo_ros.episodes.interfaces import from_cdr

MAX_CHUNK_BYTES = 256 << 20  # of a chunk, unpacked; the recorder's have 1 MiB and a few images
CACHE_BYTES = 96 << 20  # unpacked chunks kept, of all bags together
NEAR = 6  # chunks before and after a tick's in which its images are looked for
_RECORD = struct.Struct("<BQ")
_CHUNK = struct.Struct("<QQQII")  # start, end, unpacked size, its CRC, length of compression's name
_MESSAGE = struct.Struct("<HIQQ")
_MESSAGE_OPCODE, _CHUNK_OPCODE = 5, 6


class NoFrame(Exception):
    """There is no such image; the message is a sentence."""


@dataclass(frozen=True)
class _Chunk:
    """Messages of a chunk: channel id -> their bytes, in order. size: in bytes."""

    messages: dict[int, list[memoryview]]
    size: int


class ChunkCache:
    """Unpacked chunks used last, of many bags, at most ``limit`` bytes of them. Thread-safe."""

    def __init__(self, limit: int = CACHE_BYTES):
        self._limit, self._size = limit, 0
        self._kept: OrderedDict[tuple, _Chunk] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple, make) -> _Chunk:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._size += made.size
            while self._size > self._limit and len(self._kept) > 1:
                self._size -= self._kept.popitem(last=False)[1].size
        return made


class FrameFile:
    """The images of one MCAP file. Reading one takes a few chunks, however long the file is.

    unpacked: how many chunks were read so far, for who wants to know. Raises NoFrame where the
    file has no index that can be trusted.
    """

    def __init__(self, mcap_file: Path, cache: ChunkCache):
        self._file, self._cache, self.unpacked = mcap_file, cache, 0
        self._first_ticks: dict[int, int | None] = {}  # chunk -> its first tick's sequence
        try:
            with mcap_file.open("rb") as stream:
                self._size = mcap_file.stat().st_size
                summary = SeekingReader(stream, record_size_limit=self._size).get_summary()
            self._channels = {c.topic: c.id for c in summary.channels.values()}
            self._types = {
                c.topic: summary.schemas[c.schema_id].name for c in summary.channels.values()
            }
            self._places = sorted(
                (c.chunk_start_offset, c.chunk_length) for c in summary.chunk_indexes
            )
            self._tick_channel = self._channels[topics.OBSERVATION_TICK]
        except (
            McapError, OSError, struct.error, ValueError, KeyError, AttributeError, OverflowError,
            MemoryError,
        ) as error:  # fmt: skip
            raise NoFrame(f"{mcap_file.name} has no index that can be read ({error}).") from error

    def cameras(self) -> list[str]:
        """Names of the cameras, as the bag's first message has them. Raises NoFrame."""
        try:
            (first, *_) = self._chunk(0).messages[self._channels[topics.EPISODE_INFO]]
            told = parsers.info_from(from_cdr(bytes(first), topics.TYPES[topics.EPISODE_INFO]))
            return list(checked_info(told).cameras)
        except (OSError, ValueError, LookupError, AttributeError, struct.error) as error:
            raise NoFrame(f"The bag does not say what it holds ({error}).") from error

    def image(self, camera: str, sequence: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB that a step's tick names. Raises NoFrame."""
        topic = topics.image(camera)
        if topic not in self._channels or self._types[topic] != "sensor_msgs/msg/Image":
            raise NoFrame(f"The bag has no images of {camera!r}.")
        try:
            at, tick = self._tick(sequence)
            wanted = parsers.tick_stamps(tick).get(topic)
            cdr = None if wanted is None else self._near(at, self._channels[topic], wanted)
            if cdr is None:
                raise NoFrame(f"The image of {camera!r} at step {sequence} was not recorded.")
            return parsers.image_from(from_cdr(bytes(cdr), "sensor_msgs/msg/Image"))
        except (OSError, ValueError, AttributeError, struct.error, MemoryError) as error:
            raise NoFrame(
                f"The image of {camera!r} at step {sequence} is damaged ({error})."
            ) from (error)

    def _tick(self, sequence: int) -> tuple[int, object]:
        """(chunk, ObservationTick) of a step, by bisection: ticks rise from chunk to chunk."""
        if not 0 <= sequence < MAX_STEPS:
            raise NoFrame(f"There is no step {sequence}.")
        low, high = 0, len(self._places)
        while high - low > 1:
            middle = (low + high) // 2
            at, first = middle, self._first_tick(middle)
            while first is None and at + 1 < high:  # a chunk without a tick
                at += 1
                first = self._first_tick(at)
            if first is None or first > sequence:
                high = middle
            else:
                low = at
        for tick in self._ticks(low) if self._places else ():
            if tick.sequence == sequence:
                return low, tick
        raise NoFrame(f"Step {sequence} was not recorded.")

    def _first_tick(self, index: int) -> int | None:
        if index not in self._first_ticks:
            first = next(iter(self._ticks(index)), None)
            self._first_ticks[index] = None if first is None else int(first.sequence)
        return self._first_ticks[index]

    def _ticks(self, index: int):
        type_name = topics.TYPES[topics.OBSERVATION_TICK]
        for cdr in self._chunk(index).messages.get(self._tick_channel, ()):
            yield from_cdr(bytes(cdr), type_name)

    def _near(self, at: int, channel: int, stamp_ns: int) -> memoryview | None:
        """The message of a channel with this stamp, in the chunks around one."""
        for distance in range(NEAR + 1):
            for index in {at - distance, at + distance}:
                if 0 <= index < len(self._places):
                    for cdr in self._chunk(index).messages.get(channel, ()):
                        if cdr_stamp_ns(cdr) == stamp_ns:
                            return cdr
        return None

    def _chunk(self, index: int) -> _Chunk:
        return self._cache.get((self._file, index), lambda: self._read_chunk(index))

    def _read_chunk(self, index: int) -> _Chunk:
        self.unpacked += 1
        start, length = self._places[index]
        if not 0 <= start <= start + length <= self._size or length > MAX_CHUNK_BYTES:
            raise ValueError("its index points outside of the file")
        with self._file.open("rb") as file:
            file.seek(start)
            record = file.read(length)
        return _unpacked(record)


def _unpacked(record: bytes) -> _Chunk:
    """Messages of a chunk's record. Raises ValueError or struct.error where it is none."""
    opcode, length = _RECORD.unpack_from(record)
    _, _, size, crc, name_length = _CHUNK.unpack_from(record, _RECORD.size)
    if opcode != _CHUNK_OPCODE or size > MAX_CHUNK_BYTES or name_length > 16:
        raise ValueError(f"its index names a chunk of {size} bytes where none is")
    at = _RECORD.size + _CHUNK.size
    compression = record[at : at + name_length]
    (packed_size,) = struct.unpack_from("<Q", record, at + name_length)
    data = record[at + name_length + 8 :]
    if len(data) != packed_size or len(record) != length + _RECORD.size:
        raise ValueError("a chunk's length is not what it says")
    if compression == b"zstd":
        try:
            if zstandard.frame_content_size(data) > MAX_CHUNK_BYTES:
                raise ValueError("a chunk unpacks to more than it says")
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=max(size, 1))
        except zstandard.ZstdError as error:
            raise ValueError(f"a chunk cannot be unpacked: {error}") from error
    elif compression:
        raise ValueError("a chunk is packed in an unknown way")
    if len(data) != size or (crc and zlib.crc32(data) != crc):
        raise ValueError("a chunk's checksum does not match")
    view, at = memoryview(data), 0
    messages: dict[int, list[memoryview]] = {}
    while at < size:
        opcode, length = _RECORD.unpack_from(view, at)
        at += _RECORD.size
        if length > size - at:
            raise ValueError("a message is longer than its chunk")
        if opcode == _MESSAGE_OPCODE:
            channel, *_ = _MESSAGE.unpack_from(view, at)
            messages.setdefault(channel, []).append(view[at + _MESSAGE.size : at + length])
        at += length
    return _Chunk(messages, size)
