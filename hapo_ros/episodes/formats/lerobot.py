"""LeRobotDataset v3: read and written, with pyarrow and PyAV, as LeRobot 0.4 to 0.6 do.

LeRobot itself is not needed, and holds numpy and torch to other versions than these. Images go into
the Parquet files as PNG, bit for bit, or into video, which loses some. Numbers that LeRobot trains
from are float32, as everywhere there; ``exact_state`` has them in full, and the column ``hapo`` of
``meta/episodes`` has an episode's own words, so that it comes back as it was.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np

from hapo_ros.episodes.contents import MAX_STEPS
from hapo_ros.episodes.formats import common
from hapo_ros.episodes.formats.common import (
    MAX_BYTES,
    BadSource,
    Found,
    Options,
    Recorded,
    need,
)
from hapo_ros.episodes.types import EpisodeInfo
from hapo_ros.labels import HUMAN, POLICY

VERSION = "v3.0"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
FILES_IN_CHUNK, DATA_MB, VIDEO_MB = 1000, 100, 200
IMAGES = "observation.images."
EXACT = "exact_state"  # joint positions, pose and object state in float64
INTERVENTION = ("intervention", "complementary_info.is_intervention")
POSE_NAMES = ("eef_x", "eef_y", "eef_z", "eef_qx", "eef_qy", "eef_qz", "eef_qw")
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
PICTURES = 100  # of an episode, that statistics of its images are made from
KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
INDEXES = ("frame_index", "episode_index", "index", "task_index")


# Writing


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
            "outcome": reader.result.outcome,
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
    success = reader.result.outcome == "success"
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
        for image in images:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _write_json(path: Path, data: dict) -> None:
    path.write_text(json.dumps(data, indent=4, ensure_ascii=False), "utf8")


# Reading


def found(source: Path, options: Options) -> list[Found]:
    """The episodes of a folder. Raises BadSource where it is no LeRobotDataset v3."""
    info = _info(source)
    rows = _episode_rows(source)
    return [
        Found(
            f"episode {row.get('episode_index')}", lambda row=row: _load(source, info, row, options)
        )
        for row in rows
    ]


def _info(source: Path) -> dict:
    """meta/info.json, as far as it is used checked."""
    path = source / "meta" / "info.json"
    if not path.is_file():
        raise BadSource("format", source, "It has no meta/info.json.")
    try:
        info = common.json_of(path.read_text("utf8"))
        version, features, fps = info["codebase_version"], info["features"], info["fps"]
    except (ValueError, KeyError) as error:
        raise BadSource("malformed", path, f"({error})") from error
    if not isinstance(version, str) or not version.startswith("v3."):
        raise BadSource(
            "format",
            source,
            f"Its version is {version!r} and not {VERSION}. LeRobot converts older ones: python -m "
            "lerobot.scripts.convert_dataset_v21_to_v30",
        )
    if info.get("data_path", DATA) != DATA or info.get("video_path") not in (None, VIDEO):
        raise BadSource("elsewhere", path, "(data_path or video_path is not the format's own)")
    if not isinstance(fps, int | float) or not 0.1 <= fps <= 1000:
        raise BadSource("malformed", path, f"(fps is {fps!r})")
    if not isinstance(features, dict) or not all(map(KEY.fullmatch, features)):
        raise BadSource("name", path, "(of its features)")
    for key, feature in features.items():
        if not isinstance(feature, dict) or not isinstance(feature.get("shape"), list):
            raise BadSource("malformed", path, f"(feature {key})")
    return info


def _episode_rows(source: Path) -> list[dict]:
    """The rows of meta/episodes, without statistics."""
    files = sorted((source / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise BadSource("format", source, "It has no meta/episodes.")
    rows = []
    for path in files:
        names = _opened(path).schema_arrow.names
        wanted = [name for name in names if not name.startswith("stats/")]
        rows += _table(path, wanted).to_pylist()
    return rows


def _opened(path: Path):
    """The Parquet file, checked for its size before anything of it is read."""
    pa, pq = need("pyarrow"), need("pyarrow.parquet")
    try:
        file = pq.ParquetFile(path)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    except FileNotFoundError as error:
        raise BadSource("missing", path) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadSource("damaged", path, f"({error})") from error
    rows, size = file.metadata.num_rows, sum(group.total_byte_size for group in groups)
    if not 0 <= size <= MAX_BYTES or not 0 <= rows <= MAX_STEPS * 100:
        raise BadSource("too large", path, f"({rows} rows, {size} bytes)")
    return file


def _table(path: Path, columns: list[str], episode: int | None = None):
    """Columns of a Parquet file as an Arrow table; of one episode."""
    pa, pq = need("pyarrow"), need("pyarrow.parquet")
    _opened(path)
    chosen = None if episode is None else [("episode_index", "=", episode)]
    try:
        return (
            pq.ParquetFile(path).read(columns)
            if chosen is None
            else pq.read_table(path, columns=columns, filters=chosen, partitioning=None)
        )
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise BadSource("damaged", path, f"({error})") from error


def _load(source: Path, info: dict, row: dict, options: Options) -> Recorded:
    try:
        return _episode(source, info, row, options)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError) as error:
        raise BadSource("malformed", source, f"({type(error).__name__}: {error})") from error


def _episode(source: Path, info: dict, row: dict, options: Options) -> Recorded:
    number, length = int(row["episode_index"]), int(row["length"])
    features, fps = info["features"], float(info["fps"])
    stored = [key for key, feature in features.items() if feature.get("dtype") != "video"]
    path = source / DATA.format(
        chunk_index=int(row["data/chunk_index"]), file_index=int(row["data/file_index"])
    )
    there = set(_opened(path).schema_arrow.names)
    table = _table(path, [key for key in stored if key in there], number)
    if table.num_rows != length or not length:
        raise ValueError(f"it says {length} steps and has {table.num_rows}")
    table = table.sort_by("frame_index") if "frame_index" in there else table
    images = {}
    for key, feature in features.items():
        camera = _camera(key, feature)
        if camera is None:
            continue
        if feature["dtype"] == "image":
            images[camera] = _stored_images(table[key], camera)
        else:
            images[camera] = _decode(source, key, row, length, fps)
    numbers = {
        key: _values(table[key], length)
        for key in table.column_names
        if features[key].get("dtype") not in ("image", "string")
    }
    own = row.get("hapo")
    if own and EXACT in numbers:
        return _own(own, numbers, images)
    return _foreign(source, info, row, numbers, images, options)


def _own(own: str, numbers: dict[str, np.ndarray], images: dict[str, np.ndarray]) -> Recorded:
    """An episode that was exported from here."""
    exact = np.asarray(numbers[EXACT], np.float64)
    state = len(common.json_of(own)["info"]["object_state"])
    joints = exact.shape[1] - state - len(POSE_NAMES)
    observations = [
        common.observation(
            {name: stack[t] for name, stack in images.items()},
            row[:joints],
            row[joints : joints + len(POSE_NAMES)],
            row[joints + len(POSE_NAMES) :] if state else None,
        )
        for t, row in enumerate(exact)
    ]
    return common.from_about(own, numbers, observations, numbers["action"])


def _foreign(source, info, row, numbers, images, options: Options) -> Recorded:
    """An episode that others recorded. Their state becomes the joint positions."""
    features, fps = info["features"], float(info["fps"])
    actions = np.asarray(numbers["action"]).reshape(int(row["length"]), -1)
    state = numbers.get("observation.state")
    objects = numbers.get("observation.environment_state")
    if state is None and objects is None and not images:
        raise BadSource("no observations", source)
    rest, pose = common.nowhere()
    observations = [
        common.observation(
            {name: stack[t] for name, stack in images.items()},
            rest if state is None else np.atleast_1d(state[t]),
            pose,
            None if objects is None else np.atleast_1d(objects[t]),
        )
        for t in range(len(actions))
    ]
    flags = next((numbers[name] for name in INTERVENTION if name in numbers), None)
    origin = options.source or ("demonstration" if flags is None else "deployment")
    live = np.full(len(actions), HUMAN if origin == "demonstration" else POLICY)
    if flags is not None:
        live = np.where(np.asarray(flags).reshape(-1) > 0, HUMAN, live)
    outcome, note = common.outcome_of(origin, options)
    if "next.success" in numbers and not options.outcome:
        outcome, note = ("success" if np.any(numbers["next.success"]) else "failure"), ""
    tasks = row.get("tasks")
    task = options.task or common.stem_of(source)
    said = str(tasks[0]) if isinstance(tasks, list) and tasks else ""
    names = features["action"].get("names")
    size = actions.shape[1]
    named = isinstance(names, list) and len(names) == size and len(set(map(str, names))) == size
    whose = features.get("observation.environment_state", {}).get("names")
    count = 0 if objects is None else np.atleast_1d(objects[0]).size
    made = EpisodeInfo(
        episode_id=common.safe_id(common.stem_of(source), f"episode_{int(row['episode_index'])}"),
        task=task,
        instruction=options.instruction or said or common.instruction_for(task, options),
        source=origin,
        seed=0,
        cameras={name: list(stack.shape[1:3]) for name, stack in images.items()},
        object_state=list(map(str, whose))
        if isinstance(whose, list) and len(set(whose)) == count
        else [f"state[{i}]" for i in range(count)],
        action_space={
            "names": list(map(str, names)) if named else [f"action[{i}]" for i in range(size)],
            "control_hz": fps,
        },
        settings={"robot": str(info.get("robot_type") or "unknown")},
    )
    steps = common.foreign_steps(observations, actions, live, round(1e9 / fps))
    return Recorded(made, steps, outcome, note)


def _camera(key: str, feature: dict) -> str | None:
    """Name of the camera that a feature is of; None where it is no colour image."""
    depth = (feature.get("info") or {}).get("video.is_depth_map", False)
    if feature.get("dtype") not in ("image", "video") or depth or 3 not in feature["shape"]:
        return None
    return key.removeprefix(IMAGES).removeprefix("observation.").replace(".", "_")


def _stored_images(column, camera: str) -> np.ndarray:
    """(T, H, W, 3) of PNG or JPEG bytes; a path in their place is never opened."""
    from PIL import Image, UnidentifiedImageError

    images = []
    for cell in column.to_pylist():
        data = cell.get("bytes") if isinstance(cell, dict) else None
        if not data:
            raise BadSource("elsewhere", camera, "(images as paths)")
        try:
            with Image.open(BytesIO(data), formats=("PNG", "JPEG")) as image:
                if max(image.size) > common.MAX_SIDE:
                    raise BadSource("too large", camera, f"({image.size} pixels)")
                images.append(np.asarray(image.convert("RGB")))
        except Image.DecompressionBombError as error:
            raise BadSource("too large", camera, f"({error})") from error
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise BadSource("damaged", camera, f"(an image: {error})") from error
    return common.pictures(np.stack(images), camera)


def _decode(source: Path, key: str, row: dict, length: int, fps: float) -> np.ndarray:
    """(T, H, W, 3) of an episode's part of a video."""
    av = need("av")
    path = source / VIDEO.format(
        video_key=key,
        chunk_index=int(row[f"videos/{key}/chunk_index"]),
        file_index=int(row[f"videos/{key}/file_index"]),
    )
    if not path.is_file():
        raise BadSource("missing", path)
    begin_s, images = float(row[f"videos/{key}/from_timestamp"]), []
    try:
        # Whatever the file is, it is read as this format, and refers to nothing else.
        with av.open(str(path), format="mp4", options={"protocol_whitelist": "file"}) as container:
            stream = container.streams.video[0]
            if max(stream.height, stream.width) > common.MAX_SIDE:
                raise BadSource("too large", path, f"({stream.height} x {stream.width} pixels)")
            container.seek(int(begin_s / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time is not None and frame.time > begin_s - 0.5 / fps:
                    images.append(frame.to_ndarray(format="rgb24"))
                if len(images) == length:
                    break
    except (av.error.FFmpegError, IndexError, OverflowError) as error:
        raise BadSource("damaged", path, f"({error})") from error
    if len(images) != length:
        raise BadSource("damaged", path, f"(it has {len(images)} of {length} images)")
    return common.pictures(np.stack(images), key)


def _values(column, length: int) -> np.ndarray:
    """(T,) or (T, N) numbers of an Arrow column of numbers or of lists of equal length."""
    pa = need("pyarrow")
    array = column.combine_chunks()
    if pa.types.is_nested(array.type):
        inner = np.asarray(array.flatten().to_numpy(zero_copy_only=False))
        return inner.reshape(length, -1)
    return array.to_numpy(zero_copy_only=False)
