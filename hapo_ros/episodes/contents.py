"""What a finished bag holds, read from end to end, checked, and not yet joined into steps."""

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hapo_ros import topics
from hapo_ros.arbitration.types import Applied, Decision, PolicyCommand, Tick
from hapo_ros.episodes import parsers
from hapo_ros.episodes.bag import METADATA
from hapo_ros.episodes.interfaces import from_cdr
from hapo_ros.episodes.messages import info_json
from hapo_ros.episodes.types import EpisodeInfo, EpisodeResult

REASONS = {
    "missing": "There is nothing here.",
    "no bag": "This is no episode's folder.",
    "unfinished": "Recording was cut off. Run `hapo recover` on it.",
    "format": "This bag is not one MCAP file with a metadata.yaml.",
    "truncated": "The bag is damaged: it ends early or its checksums do not match.",
    "edited": "The bag and its metadata.yaml do not agree: one of them was changed.",
    "foreign": "This bag was not recorded by hapo_ros.",
    "malformed": "The bag holds a message that is not what its type says.",
    "no labels": "The bag has no step of which it says who decided it.",
    "incomplete": "Recording ended early. Use it only with accept_recovered.",
    "recovered": "The bag was recovered after a crash. Use it only with accept_recovered.",
    "lossy": "Too much was lost while recording. Use it only with accept_recovered.",
    "discarded": "The episode was discarded.",
    "excluded": "A reviewer excluded the episode.",
    "review": "The review beside the bag cannot be used, so neither is the bag.",
    "repeated": "The same episode was given before and is used once.",
}
IMAGE_TYPE = "sensor_msgs/msg/Image"
MAX_STEPS = 1_000_000  # far beyond any episode; a larger sequence is damage or malice


class BadEpisode(Exception):
    """A bag that cannot be used. name: one of ``REASONS``; the text names the bag and says why."""

    def __init__(self, name: str, path: Path, detail: str = ""):
        super().__init__(f"{path}: {REASONS[name]} {detail}".rstrip())
        self.name, self.path = name, Path(path)


class Damaged(Exception):
    """An MCAP file cannot be read further; what was given before is whole."""


class Topic(NamedTuple):
    """A topic of a bag, with the text and the hash of its message definition."""

    name: str
    type_name: str
    text: str
    digest: str


class Message(NamedTuple):
    """A message as it was recorded."""

    topic: Topic
    cdr: bytes
    log_ns: int
    publish_ns: int


def messages(mcap_file: Path, lost_chunk: Callable[[str], None] | None = None) -> Iterator[Message]:
    """Messages of an MCAP file in the order they were recorded, chunk by whole, checked chunk.

    lost_chunk: for recovery; told what is wrong with each damaged chunk, which is passed over.

    Raises :class:`Damaged` after the last one that can be read, unless the file is whole. With
    ``lost_chunk`` only where the file ends early, or where the next chunk begins cannot be told.
    """
    import zstandard
    from mcap.exceptions import McapError
    from mcap.records import Chunk
    from mcap.stream_reader import StreamReader, breakup_chunk

    unreadable = (McapError, zstandard.ZstdError, struct.error, ValueError, KeyError)
    unreadable += (OverflowError, MemoryError)
    channels = _Channels()
    with mcap_file.open("rb") as file:
        limit = mcap_file.stat().st_size
        # The checksum of the whole is of no use where a part of it may be damaged.
        records = StreamReader(
            file, emit_chunks=True, validate_crcs=lost_chunk is None, record_size_limit=limit
        ).records
        try:
            for record in records:
                if not isinstance(record, Chunk):
                    yield from channels.messages([record])
                    continue
                try:
                    found = channels.messages(breakup_chunk(record, validate_crc=True))
                except unreadable as error:
                    if lost_chunk is None:
                        raise
                    lost_chunk(str(error))  # the error itself holds the chunk
                    continue
                yield from found
        except unreadable as error:
            raise Damaged(str(error) or type(error).__name__) from error


class _Channels:
    """The topics that an MCAP file has declared so far, and the messages of its records."""

    def __init__(self):
        self._schemas: dict[int, object] = {}
        self._channels: dict[int, Topic] = {}

    def messages(self, records: list) -> list[Message]:
        """Messages among some records in a row. Raises KeyError for one of no declared topic."""
        from mcap.records import Channel, Schema
        from mcap.records import Message as McapMessage

        found = []
        for record in records:
            if isinstance(record, McapMessage):
                topic = self._channels[record.channel_id]
                found.append(Message(topic, record.data, record.log_time, record.publish_time))
            elif isinstance(record, Schema):
                self._schemas[record.id] = record
            elif isinstance(record, Channel):
                schema = self._schemas[record.schema_id]
                self._channels[record.id] = Topic(
                    record.topic,
                    schema.name,
                    schema.data.decode(),
                    record.metadata.get("topic_type_hash", ""),
                )
        return found


@dataclass
class Contents:
    """A checked bag. ticks, decisions: by sequence, of this episode only, the first of each.

    stamps: sequence -> topic -> stamp in ns of what belongs to the tick. outcomes: sequence ->
    what the ticks say became of its decision. ambiguous: sequences with two different decisions.
    states: (topic, stamp) -> joint states, poses and object states; image_stamps: the (topic,
    stamp) of every image. commands: the policy's, in order.
    """

    mcap_file: Path
    bag_hash: str
    info: EpisodeInfo
    result: EpisodeResult
    counts: dict[str, int] = field(default_factory=dict)
    ticks: dict[int, Tick] = field(default_factory=dict)
    stamps: dict[int, dict[str, int]] = field(default_factory=dict)
    outcomes: dict[int, Applied] = field(default_factory=dict)
    decisions: dict[int, Decision] = field(default_factory=dict)
    ambiguous: set[int] = field(default_factory=set)
    states: dict[tuple[str, int], object] = field(default_factory=dict)
    image_stamps: set[tuple[str, int]] = field(default_factory=set)
    commands: list[PolicyCommand] = field(default_factory=list)

    def add(self, message: Message) -> None:
        """Take in one message. Raises ValueError for a malformed one."""
        topic, type_name = message.topic.name, message.topic.type_name
        self.counts[topic] = self.counts.get(topic, 0) + 1
        is_image = parsers.IMAGE_TOPIC.fullmatch(topic)
        expected = IMAGE_TYPE if is_image else topics.TYPES.get(topic, type_name)
        if type_name != expected:
            raise ValueError(f"{topic} is a {type_name}, not a {expected}")
        if is_image:
            self.image_stamps.add((topic, cdr_stamp_ns(message.cdr)))
        elif topic in _PARSED:
            parsed = from_cdr(message.cdr, type_name)
            if topic == topics.OBJECT_STATE:
                parsers.state_vector_from(parsed)
            if topic in _STATES:
                self.states[topic, parsers.message_stamp_ns(parsed)] = parsed
            elif parsed.episode_id == self.info.episode_id:
                _PARSED[topic](self, parsed)

    def _add_tick(self, message) -> None:
        tick = parsers.tick_from(message)
        self.outcomes.setdefault(tick.applied_sequence, tick.applied)
        if tick.sequence not in self.ticks:
            self.ticks[tick.sequence] = tick
            self.stamps[tick.sequence] = parsers.tick_stamps(message)

    def _add_decision(self, message) -> None:
        if not message.tick:
            return
        decision = checked_decision(message)
        first = self.decisions.setdefault(decision.sequence, decision)
        if first.label != decision.label or not np.array_equal(first.action, decision.action):
            self.ambiguous.add(decision.sequence)

    def _add_command(self, message) -> None:
        self.commands.append(parsers.policy_command_from(message))


_STATES = (topics.JOINT_STATE, topics.EEF_POSE, topics.OBJECT_STATE)
_PARSED = dict.fromkeys(_STATES) | {
    topics.OBSERVATION_TICK: Contents._add_tick,
    topics.EXECUTED_ACTION: Contents._add_decision,
    topics.POLICY_ACTION: Contents._add_command,
}


def checked_decision(message) -> Decision:
    """Decision of an ExecutedAction in a bag. Raises ValueError where it can be no step's."""
    decision = parsers.decision_from(message)
    if not np.isfinite(decision.action).all():
        raise ValueError(f"the action of step {decision.sequence} is not finite")
    if decision.sequence >= MAX_STEPS:
        raise ValueError(f"step {decision.sequence} is beyond any episode")
    return decision


def checked_info(data: dict) -> EpisodeInfo:
    """EpisodeInfo of a bag's first ``episode/info``. Raises ValueError where it is none."""
    kinds = {"episode_id": str, "task": str, "instruction": str, "seed": int, "policy_version": str}
    kinds |= {"cameras": dict, "object_state": list, "action_space": dict}
    kinds |= {"max_lost_fraction": float}
    try:
        info = EpisodeInfo.from_dict(data["info"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the first episode/info lacks {error}") from error
    for name, kind in kinds.items():
        if not isinstance(getattr(info, name), kind):
            raise ValueError(f"{name} in the first episode/info is no {kind.__name__}")
    return info


def checked_result(data: dict) -> EpisodeResult:
    """EpisodeResult of a bag's last ``episode/info``. Raises ValueError where it is none."""
    kinds = {"labels": dict, "lost": dict, "unresolved": bool, "note": str, "clock_jumps": list}
    try:
        known = {each.name for each in fields(EpisodeResult)}
        result = EpisodeResult(**{k: v for k, v in data["result"].items() if k in known})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the last episode/info has no result ({error})") from error
    for name, kind in kinds.items():
        if not isinstance(getattr(result, name), kind):
            raise ValueError(f"{name} in the last episode/info is no {kind.__name__}")
    return result


def cdr_stamp_ns(cdr: bytes) -> int:
    """Stamp in ns that a serialized message with a header begins with. Raises ValueError."""
    if len(cdr) < 12:
        raise ValueError(f"{len(cdr)} bytes are no stamped message")
    sec, nanosec = struct.unpack_from("<iI" if cdr[1] else ">iI", cdr, 4)
    return sec * 1_000_000_000 + nanosec


def load(path: Path) -> Contents:
    """Read and check the bag in an episode's folder, end to end. Raises :class:`BadEpisode`."""
    path = Path(path)
    metadata, mcap_file = read_metadata(path)
    infos: list[dict] = []
    contents = None
    try:
        for message in messages(mcap_file):
            if message.topic.name == topics.EPISODE_INFO:
                infos.append(parsers.info_from(from_cdr(message.cdr, message.topic.type_name)))
            if contents is None:
                contents = _begin(path, mcap_file, infos)
            contents.add(message)
    except Damaged as error:
        raise BadEpisode("truncated", path, f"({error})") from error
    except ValueError as error:
        raise BadEpisode("malformed", path, f"({error})") from error
    if contents is None:
        raise BadEpisode("foreign", path)
    _end(path, contents, infos, metadata)
    return contents


def _begin(path: Path, mcap_file: Path, infos: list[dict]) -> Contents:
    if not infos:
        raise BadEpisode("foreign", path, "It does not begin with an episode/info.")
    return Contents(mcap_file, sha256(mcap_file), checked_info(infos[0]), None)


def _end(path: Path, contents: Contents, infos: list[dict], metadata: dict) -> None:
    """Compare the whole bag with its metadata, and take the result from its last info."""
    custom = metadata["custom_data"]
    try:
        told = custom["episode_info"], custom["episode_result"]
        contents.result = checked_result(infos[-1])
        counts = {
            topic["topic_metadata"]["name"]: topic["message_count"]
            for topic in metadata["topics_with_message_count"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise BadEpisode("edited", path, f"({type(error).__name__}: {error})") from error
    if told != (info_json(infos[0]["info"]), info_json(infos[-1]["result"])):
        raise BadEpisode("edited", path, "What is said of the episode differs.")
    contents.counts = dict.fromkeys(counts, 0) | contents.counts
    if counts != contents.counts:
        raise BadEpisode("edited", path, "Their message counts differ.")


def read_metadata(path: Path) -> tuple[dict, Path]:
    """(rosbag2_bagfile_information, MCAP file) of a folder. Raises :class:`BadEpisode`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if path.name.startswith(".") and path.is_dir():
        raise BadEpisode("unfinished", path)
    if not path.exists():
        raise BadEpisode("missing", path)
    file = path / METADATA
    if not file.is_file():
        found = path.is_dir() and any(path.glob("*.mcap"))
        raise BadEpisode("truncated" if found else "no bag", path, f"It has no {METADATA}.")
    try:
        data = YAML(typ="safe").load(file.read_text("utf8"))["rosbag2_bagfile_information"]
        storage, names = data["storage_identifier"], data["relative_file_paths"]
        custom, split = data.get("custom_data"), len(names) != 1
        mcap_file = path / Path(names[0]).name
    except (YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadEpisode("edited", path, f"{METADATA} cannot be read.") from error
    if storage != "mcap" or data.get("compression_mode") or split:
        raise BadEpisode("format", path, f"It is stored as {storage} in {len(names)} file(s).")
    if not isinstance(custom, dict) or "episode_info" not in custom:
        raise BadEpisode("foreign", path, "Its metadata names no episode.")
    if not mcap_file.is_file():
        raise BadEpisode("truncated", path, f"It has no {mcap_file.name}.")
    return data, mcap_file


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
