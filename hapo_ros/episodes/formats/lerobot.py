"""LeRobotDataset v3: read and written, with pyarrow and PyAV, as LeRobot 0.4 to 0.6 do.

LeRobot itself is not needed, and holds numpy and torch to other versions than these. Images go into
the Parquet files as PNG, bit for bit, or into video, which loses some. Numbers that LeRobot trains
from are float32, as everywhere there; ``exact_state`` has them in full, and the column ``hapo`` of
``meta/episodes`` has an episode's own words, so that it comes back as it was.
"""

import re
from io import BytesIO
from pathlib import Path

import numpy as np

from hapo_ros.episodes.contents import MAX_STEPS
from hapo_ros.episodes.formats import common
from hapo_ros.episodes.formats.common import (
    MAX_BYTES,
    BadSource,
    Foreign,
    Found,
    Options,
    need,
)
from hapo_ros.episodes.formats.lerobot_layout import (
    DATA,
    EXACT,
    IMAGES,
    POSE_NAMES,
    VERSION,
    VIDEO,
)
from hapo_ros.episodes.formats.lerobot_writing import write
from hapo_ros.episodes.types import EpisodeInfo
from hapo_ros.labels import HUMAN, POLICY

__all__ = ["found", "write"]

INTERVENTION = ("intervention", "complementary_info.is_intervention")
KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


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


def _load(source: Path, info: dict, row: dict, options: Options) -> Foreign:
    try:
        return _episode(source, info, row, options)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError) as error:
        raise BadSource("malformed", source, f"({type(error).__name__}: {error})") from error


def _episode(source: Path, info: dict, row: dict, options: Options) -> Foreign:
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


def _own(own: str, numbers: dict[str, np.ndarray], images: dict[str, np.ndarray]) -> Foreign:
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


def _foreign(source, info, row, numbers, images, options: Options) -> Foreign:
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
    return Foreign(made, steps, outcome, note)


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
