"""Episodes into a new LeRobotDataset v3; see ``lerobot``."""

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np

from hapo_ros.episodes.formats import common
from hapo_ros.episodes.formats.common import Options, need
from hapo_ros.episodes.formats.lerobot_layout import (
    DATA,
    EPISODES,
    EXACT,
    IMAGES,
    POSE_NAMES,
    VERSION,
    VIDEO,
)

FILES_IN_CHUNK, DATA_MB, VIDEO_MB = 1000, 100, 200
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
PICTURES = 100  # of an episode, that statistics of its images are made from
INDEXES = ("frame_index", "episode_index", "index", "task_index")


def write(readers: list, output: Path, options: Options, advance: Callable[[int], None]) -> None:
    """Write the episodes into a new folder. Raises ValueError where they are not of one kind."""
    need("pyarrow")
    form = _Form.of(readers[0], options.video)
    for reader in readers[1:]:
        form.require(_Form.of(reader, options.video), reader)
    writer = _Writer(output, form, options)
    for number, reader in enumerate(readers):
        writer.add(reader)
        advance(number + 1)
    writer.finish()


@dataclass(frozen=True)
class _Form:
    """What all episodes of a data set have in common. joints: of joint_positions."""

    cameras: tuple[tuple[str, int, int], ...]
    joints: int
    object_state: tuple[str, ...]
    actions: tuple[str, ...]
    fps: float
    robot: str
    video: bool

    @classmethod
    def of(cls, reader, video: bool) -> "_Form":
        info, step = reader.info, reader.steps(images=False)[0]
        size = len(step.action)
        names = list(info.action_space.get("names") or ())
        fps = float(info.action_space.get("control_hz") or 20.0)
        return cls(
            tuple((name, *size) for name, size in info.cameras.items()),
            len(step.observation.joint_positions),
            tuple(info.object_state),
            tuple(names if len(names) == size else [f"action[{i}]" for i in range(size)]),
            int(fps) if fps.is_integer() else fps,
            str(info.settings.get("robot", "unknown")),
            video,
        )

    def require(self, other: "_Form", reader) -> None:
        for name in ("cameras", "joints", "object_state", "actions", "fps"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"{reader.path}: its {name} {getattr(other, name)} are not the first episode's "
                    f"{getattr(self, name)}, and a LeRobot data set is of one kind. Nothing was "
                    "written. Export them apart."
                )

    def features(self) -> dict[str, dict]:
        """``features`` of meta/info.json."""
        state = [f"joint_{i + 1}" for i in range(self.joints)] + list(POSE_NAMES)
        found = {"observation.state": _numbers("float32", state)}
        if self.object_state:
            found["observation.environment_state"] = _numbers("float32", self.object_state)
        for name, height, width in self.cameras:
            found[IMAGES + name] = {
                "dtype": "video" if self.video else "image",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
            }
            if self.video:
                found[IMAGES + name]["info"] = {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "av1",
                    "video.pix_fmt": "yuv420p",
                    "video.is_depth_map": False,
                    "video.fps": self.fps,
                    "video.channels": 3,
                    "has_audio": False,
                }
        found["action"] = _numbers("float32", self.actions)
        found[EXACT] = _numbers("float64", [*state, *self.object_state])
        for name in common.COLUMNS:
            dtype = {"requested": "float32", "confidence": "float32"}.get(name, "int64")
            dtype = "bool" if name in ("intervention", "limited") else dtype
            found[name] = _numbers(dtype, self.actions if name == "requested" else None)
        for name, dtype in (("next.reward", "float32"), ("next.done", "bool")):
            found[name] = _numbers(dtype)
        found["next.success"] = _numbers("bool")
        found["timestamp"] = _numbers("float32")
        return found | {name: _numbers("int64") for name in INDEXES}


def _numbers(dtype: str, names=None) -> dict:
    return {
        "dtype": dtype,
        "shape": [1 if names is None else len(names)],
        "names": None if names is None else list(names),
    }


class _Writer:
    """A data set that grows by episodes; whole after :meth:`finish`."""

    def __init__(self, root: Path, form: _Form, options: Options):
        self._root, self._form, self._k = root, form, options.k
        self._features = form.features()
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict] = []
        self._values: dict[str, list[np.ndarray]] = {}  # for the statistics of the whole
        self._frames, self._file, self._parquet = 0, 0, None

    def add(self, reader) -> None:
        steps = reader.steps(self._k)
        number, length = len(self._episodes), len(steps)
        task = self._tasks.setdefault(reader.info.instruction, len(self._tasks))
        arrays = _arrays(reader, steps, self._form)
        arrays["timestamp"] = (np.arange(length) / self._form.fps).astype(np.float32)
        arrays["frame_index"] = np.arange(length)
        arrays["episode_index"] = np.full(length, number)
        arrays["index"] = self._frames + np.arange(length)
        arrays["task_index"] = np.full(length, task)
        row = {
            "episode_index": number,
            "tasks": [reader.info.instruction],
            "length": length,
            "data/chunk_index": self._file // FILES_IN_CHUNK,
            "data/file_index": self._file % FILES_IN_CHUNK,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            "episode_id": reader.info.episode_id,
            "outcome": reader.outcome,
            "hapo": common.about(reader, steps, self._k),
        }
        for key, array in arrays.items():
            sample = array
            if key.startswith(IMAGES):
                sample = array[:: -(-length // PICTURES)]
            self._values.setdefault(key, []).append(sample)
            for name, value in _statistics(sample).items():
                row[f"stats/{key}/{name}"] = value
        self._put(arrays)
        if self._form.video:
            row |= self._put_videos(arrays, number)
        self._frames += length
        self._episodes.append(row)

    def finish(self) -> None:
        pa, pq = need("pyarrow"), need("pyarrow.parquet")
        self._parquet.close()
        (self._root / EPISODES).parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._episodes), self._root / EPISODES)
        pq.write_table(_tasks_table(list(self._tasks)), self._root / "meta/tasks.parquet")
        _write_json(
            self._root / "meta/stats.json",
            {key: _statistics(np.concatenate(parts)) for key, parts in self._values.items()},
        )
        _write_json(
            self._root / "meta/info.json",
            {
                "codebase_version": VERSION,
                "robot_type": self._form.robot,
                "total_episodes": len(self._episodes),
                "total_frames": self._frames,
                "total_tasks": len(self._tasks),
                "chunks_size": FILES_IN_CHUNK,
                "data_files_size_in_mb": DATA_MB,
                "video_files_size_in_mb": VIDEO_MB,
                "fps": self._form.fps,
                "splits": {"train": f"0:{len(self._episodes)}"},
                "data_path": DATA,
                "video_path": VIDEO if self._form.video else None,
                "features": self._features,
            },
        )

    def _put(self, arrays: dict[str, np.ndarray]) -> None:
        """Add the rows of an episode, one row group; a file ends when it is large."""
        pa, pq = need("pyarrow"), need("pyarrow.parquet")
        columns = {
            key: _column(arrays[key], feature)
            for key, feature in self._features.items()
            if feature["dtype"] != "video"
        }
        table = pa.table(columns)
        if self._parquet is None:
            chunk, file = divmod(self._file, FILES_IN_CHUNK)
            path = self._root / DATA.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._path, self._parquet = path, pq.ParquetWriter(path, table.schema)
        self._parquet.write_table(table)
        if self._path.stat().st_size > DATA_MB << 20:
            self._parquet.close()
            self._parquet, self._file = None, self._file + 1

    def _put_videos(self, arrays: dict[str, np.ndarray], number: int) -> dict:
        """A video of the episode for each camera; where it is, for meta/episodes."""
        chunk, file = divmod(number, FILES_IN_CHUNK)
        row = {}
        for name, _, _ in self._form.cameras:
            key = IMAGES + name
            path = self._root / VIDEO.format(video_key=key, chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            _encode(arrays[key], path, self._form.fps)
            row[f"videos/{key}/chunk_index"] = chunk
            row[f"videos/{key}/file_index"] = file
            row[f"videos/{key}/from_timestamp"] = 0.0
            row[f"videos/{key}/to_timestamp"] = len(arrays[key]) / self._form.fps
        return row


def _arrays(reader, steps, form: _Form) -> dict[str, np.ndarray]:
    """(T, ...) of an episode's features, besides LeRobot's own counters."""
    seen = [step.observation for step in steps]
    state = np.stack([np.r_[o.joint_positions, o.eef_pose] for o in seen])
    arrays, exact = {"observation.state": state.astype(np.float32)}, state
    if form.object_state:
        objects = np.stack([o.object_state for o in seen])
        arrays["observation.environment_state"] = objects.astype(np.float32)
        exact = np.concatenate([state, objects], axis=1)
    for name, height, width in form.cameras:
        images = np.stack([o.images[name] for o in seen])
        if images.shape[1:3] != (height, width):
            raise ValueError(
                f"{reader.path}: its images of {name} are {images.shape[1:3]} and not the "
                f"({height}, {width}) that it says. Nothing was written. Leave it out."
            )
        arrays[IMAGES + name] = images
    success = reader.outcome == "success"
    last = np.arange(len(steps)) == len(steps) - 1
    arrays["action"] = np.stack([step.action for step in steps])
    arrays[EXACT] = exact
    arrays |= common.columns(steps)
    arrays["next.reward"] = (last & success).astype(np.float32)
    arrays["next.done"], arrays["next.success"] = last, last & success
    return arrays


def _column(array: np.ndarray, feature: dict):
    """The Arrow column of a feature, typed as LeRobot (Hugging Face datasets) has it."""
    pa = need("pyarrow")
    if feature["dtype"] == "image":
        rows = [{"bytes": _png(image), "path": None} for image in array]
        return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    kind = pa.bool_() if feature["dtype"] == "bool" else getattr(pa, feature["dtype"])()
    flat = pa.array(array.reshape(-1), kind)
    if array.ndim == 1:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    data = BytesIO()
    Image.fromarray(image).save(data, "PNG", compress_level=1)
    return data.getvalue()


def _statistics(array: np.ndarray) -> dict[str, list]:
    """What LeRobot normalises with: of each number, of images of each channel and in 0..1."""
    if array.ndim == 4:
        flat, shape = array.reshape(-1, 3) / 255.0, (3, 1, 1)
    else:
        flat = array.reshape(len(array), -1).astype(np.float64)
        shape = (flat.shape[1],)
    if np.isnan(flat).any():  # rows without a request, steps without a confidence
        flat = np.where(np.isnan(flat), 0.0, flat)
    found = {
        "min": flat.min(0),
        "max": flat.max(0),
        "mean": flat.mean(0),
        "std": flat.std(0),
    } | {f"q{round(100 * q):02d}": np.quantile(flat, q, axis=0) for q in QUANTILES}
    return {name: value.reshape(shape).tolist() for name, value in found.items()} | {
        "count": [len(array)]
    }


def _tasks_table(tasks: list[str]):
    """meta/tasks.parquet: LeRobot reads it with pandas and wants the texts as its index."""
    pa = need("pyarrow")
    index = "__index_level_0__"

    def column(name, field, kind, numpy):
        return {
            "name": name,
            "field_name": field,
            "pandas_type": kind,
            "numpy_type": numpy,
            "metadata": None,
        }

    pandas = {
        "index_columns": [index],
        "column_indexes": [column(None, None, "unicode", "object")],
        "columns": [
            column("task_index", "task_index", "int64", "int64"),
            column(None, index, "unicode", "object"),
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), index: tasks})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _encode(images: np.ndarray, path: Path, fps: float) -> None:
    """Write (T, H, W, 3) as a video: AV1 with LeRobot's own settings."""
    av = need("av")
    os.environ.setdefault("SVT_LOG", "1")  # the encoder's: errors only
    if images.shape[1] % 2 or images.shape[2] % 2:
        raise ValueError(
            f"Images of {images.shape[1]} x {images.shape[2]} have an odd side, which this video "
            "cannot have. Nothing was written. Export without --video."
        )
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(
            "libsvtav1", Fraction(fps).limit_denominator(1000), options={"crf": "30", "g": "2"}
        )
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        with ThreadPoolExecutor(1) as passing:
            passing.submit(_open_at_this_priority, stream.codec_context).result()
        for image in images:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _open_at_this_priority(encoder) -> None:
    """Open SVT-AV1 and take back that it makes itself real-time. In a thread that ends afterwards.

    Wherever it may, it gives SCHED_FIFO at 99 to its threads and, for good, to the one that opens
    it, which whatever that one starts later would inherit. It may as root, and as a user whom a
    robot's installation has put into a real-time group: an export would hold up what drives the
    arm. A passing thread, because the C library of the one that opens remembers the priority.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    others = set(os.listdir("/proc/self/task")) - {str(threading.get_native_id())}
    encoder.open()
    for thread in set(os.listdir("/proc/self/task")) - others:
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setscheduler(int(thread), policy, parameters)


def _write_json(path: Path, data: dict) -> None:
    path.write_text(json.dumps(data, indent=4, ensure_ascii=False), "utf8")
