"""robomimic's HDF5, of robosuite and MimicGen demonstrations: read and written.

``data/demo_N`` with ``actions``, ``obs/...``, ``rewards``, ``dones``; what the environment was, in
the attribute ``env_args`` (robomimic.github.io/docs/datasets/overview.html). An export holds our
columns beside them and an episode's own words in ``hapo`` (JSON, UTF-8), so that it comes back as
it was. Simulator states and ``next_obs`` are neither read nor written.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hapo_ros.episodes.formats import common, hdf5
from hapo_ros.episodes.formats.common import BadSource, Foreign, Found, Options, need
from hapo_ros.episodes.types import EpisodeInfo
from hapo_ros.labels import HUMAN, POLICY

CAMERAS = {"wrist": "robot0_eye_in_hand"}  # ours -> robosuite's; others have the same name
IMAGE = "_image"
FINGERS = 2
OWN = "hapo"  # a dataset, as attributes hold 64 KiB at most
ROBOSUITE = 1  # robomimic's EnvType.ROBOSUITE_TYPE
# The pose here is of the grip site. robosuite's eef_quat is of the hand's body instead, from which
# the Panda gripper is turned by -90 degrees about z (robosuite 1.5.2, panda_gripper.xml, body
# right_gripper; robots/robot.py tells the two keys apart).
HAND_TO_SITE = np.array([0.0, 0.0, -np.sqrt(0.5), np.sqrt(0.5)])  # x y z w


def found(source: Path, options: Options) -> list[Found]:
    """The demonstrations of a file. Raises BadSource where it is not robomimic's."""
    with hdf5.opened(source) as file:
        data = hdf5.group_in(file, "data")
        if data is None:
            raise BadSource("format", source, "It has no group data.")
        names = sorted(data, key=lambda name: (len(name), name))
        environment = _environment(data)
    return [
        Found(name, lambda name=name: _load(source, name, environment, options)) for name in names
    ]


def write(readers: list, output: Path, options: Options, advance: Callable[[int], None]) -> None:
    """Write the episodes into a new file."""
    h5py = need("h5py")
    with h5py.File(output, "x") as file:
        data, total = file.create_group("data"), 0
        for number, reader in enumerate(readers):
            steps = reader.steps(options.k)
            demo = data.create_group(f"demo_{number}")
            _write_demo(demo, reader, steps, options.k)
            total += len(steps)
            advance(number + 1)
        data.attrs["total"] = total
        data.attrs["env_args"] = json.dumps(_env_args(readers[0].info))


def _load(source: Path, name: str, environment: dict, options: Options) -> Foreign:
    with hdf5.opened(source) as file:
        common.safe_id(name)
        demo = hdf5.group_in(hdf5.group_in(file, "data"), name)
        actions = hdf5.array_in(demo, "actions", "f")
        if actions is None or actions.ndim != 2 or not len(actions):
            raise BadSource("malformed", demo.name, "(it has no actions)")
        obs = hdf5.group_in(demo, "obs")
        if obs is None:
            raise BadSource(
                "no observations",
                demo.name,
                "Make them with robomimic's dataset_states_to_obs.py.",
            )
        observations = _observations(obs, len(actions))
        own = hdf5.array_in(demo, OWN, "u")
        if own is not None:
            arrays = {key: hdf5.array_in(demo, key) for key in common.COLUMNS}
            arrays = {key: array for key, array in arrays.items() if array is not None}
            return common.from_about(own.tobytes().decode(), arrays, observations, actions)
        return _foreign(source, demo, environment, observations, actions, options)


def _foreign(source, demo, environment, observations, actions, options: Options) -> Foreign:
    """A demonstration that others wrote: every step is the demonstrator's."""
    kwargs = environment.get("env_kwargs")
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    control_hz = kwargs.get("control_freq", 20)
    if not isinstance(control_hz, int | float) or not 0.1 <= control_hz <= 1000:
        raise BadSource("malformed", source, f"(control_freq is {control_hz!r})")
    task = options.task or str(environment.get("env_name") or "unknown")
    origin = options.source or "demonstration"
    live = np.full(len(actions), HUMAN if origin == "demonstration" else POLICY)
    first = observations[0]
    info = EpisodeInfo(
        episode_id=common.safe_id(common.stem_of(source), demo.name.rsplit("/", 1)[-1]),
        task=task,
        instruction=common.instruction_for(task, options),
        source=origin,
        seed=0,
        cameras={name: list(image.shape[:2]) for name, image in first.images.items()},
        object_state=[f"object[{i}]" for i in range(np.size(first.object_state))]
        if first.object_state is not None
        else [],
        action_space=_action_space(kwargs, actions.shape[1], float(control_hz)),
        settings={"robot": str(kwargs.get("robots", "unknown"))},
        versions={"robosuite": str(environment.get("env_version", ""))},
    )
    outcome, note = common.outcome_of(origin, options)
    rewards = hdf5.array_in(demo, "rewards", "fiub", len(actions))
    if rewards is not None and not options.outcome:  # robosuite's is 1 where the task is done
        outcome, note = ("success" if (rewards >= 1 - 1e-6).any() else "failure"), ""
    steps = common.foreign_steps(observations, actions, live, round(1e9 / control_hz))
    return Foreign(info, steps, outcome, note)


def _environment(data) -> dict:
    """``env_args``, as far as it is there."""
    try:
        return common.json_of(hdf5.text_of(data.attrs.get("env_args", "")) or "{}")
    except ValueError as error:
        raise BadSource("malformed", data.name, f"(env_args: {error})") from error


def _action_space(kwargs: dict, size: int, control_hz: float) -> dict:
    """What is known of the numbers of an action; names are given in any case."""
    controller = kwargs.get("controller_configs") or {}
    if isinstance(controller, dict) and isinstance(controller.get("body_parts"), dict):
        controller = controller["body_parts"].get("right") or {}  # robosuite 1.5's composite
    if not isinstance(controller, dict):
        controller = {}
    kind = str(controller.get("type", "OSC_POSE"))
    deltas = controller.get("input_type", "delta") == "delta"
    deltas = deltas and controller.get("control_delta", True) is True
    if kind == "OSC_POSE" and deltas and size == len(common.OSC_POSE_NAMES):
        reach = controller.get("output_max")
        scales = common.OSC_POSE_SCALES
        if isinstance(reach, list) and len(reach) == 6:
            scales = float(reach[0]), float(reach[3])
        return common.osc_pose_space(control_hz, scales)
    return {
        "names": [f"action[{i}]" for i in range(size - 1)] + ["gripper"],
        "control_hz": control_hz,
        "gripper": "-1 open, 1 closed",
        "controller": f"robosuite {kind}, {'deltas' if deltas else 'absolute'}",
    }


def _observations(obs, length: int) -> list:
    """T observations of ``obs``: cameras, joints, pose, object state; other keys are left out."""

    def array(name):
        return hdf5.array_in(obs, name, "f", length)

    images = {}
    for key in obs:
        if key.endswith(IMAGE):
            theirs = key.removesuffix(IMAGE)
            name = next((ours for ours, other in CAMERAS.items() if other == theirs), theirs)
            stored = hdf5.array_in(obs, key, "u", length)
            images[common.safe_id(name)] = common.pictures(stored, name)
    joints = [array("robot0_joint_pos"), array("robot0_gripper_qpos")]
    joints = [part.reshape(length, -1) for part in joints if part is not None]
    position, state = array("robot0_eef_pos"), array("object")
    if not images and not joints and position is None and state is None:
        raise BadSource("no observations", obs.name, "(none of the keys that robosuite writes)")
    rest, pose = common.nowhere()
    joints = np.concatenate(joints, 1) if joints else np.tile(rest, (length, 1))
    rotation = array("robot0_eef_quat_site")
    if rotation is None:
        rotation = array("robot0_eef_quat")
        rotation = None if rotation is None else product(rotation.reshape(length, 4), HAND_TO_SITE)
    if position is None or rotation is None:
        poses = np.tile(pose, (length, 1))
    else:
        poses = np.concatenate([position.reshape(length, 3), rotation.reshape(length, 4)], 1)
    return [
        common.observation(
            {name: stack[t] for name, stack in images.items()},
            joints[t],
            poses[t],
            None if state is None else state[t].reshape(-1),
        )
        for t in range(length)
    ]


def _write_demo(demo, reader, steps, k: int) -> None:
    length, success = len(steps), reader.outcome == "success"
    seen = [step.observation for step in steps]
    joints = np.stack([o.joint_positions for o in seen])
    poses = np.stack([o.eef_pose for o in seen])
    arm = max(joints.shape[1] - FINGERS, 0)
    arrays = {
        "robot0_joint_pos": joints[:, :arm],
        "robot0_gripper_qpos": joints[:, arm:],
        "robot0_eef_pos": poses[:, :3],
        "robot0_eef_quat_site": poses[:, 3:],
        "robot0_eef_quat": product(poses[:, 3:], HAND_TO_SITE * [-1, -1, -1, 1]),
    }
    if reader.info.object_state:
        arrays["object"] = np.stack([o.object_state for o in seen])
    for camera in reader.info.cameras:
        stack = np.stack([o.images[camera] for o in seen])
        arrays[f"{CAMERAS.get(camera, camera)}{IMAGE}"] = stack
    for name, array in arrays.items():
        packed = {"compression": "gzip", "compression_opts": 1} if array.ndim == 4 else {}
        chunks = (1, *array.shape[1:]) if array.ndim == 4 else None
        demo.create_dataset(f"obs/{name}", data=array, chunks=chunks, **packed)
    demo["actions"] = np.stack([step.action for step in steps])
    demo["rewards"] = np.zeros(length)
    demo["dones"] = np.zeros(length, np.int64)
    demo["rewards"][-1], demo["dones"][-1] = float(success), 1
    for name, array in common.columns(steps).items():
        demo[name] = array
    demo.attrs["num_samples"] = length
    demo.attrs["episode_id"] = reader.info.episode_id
    demo.attrs["outcome"] = reader.outcome
    demo.attrs["instruction"] = reader.info.instruction
    demo[OWN] = np.frombuffer(common.about(reader, steps, k).encode(), np.uint8)


def _env_args(info: EpisodeInfo) -> dict:
    """What robomimic asks of a data set: which environment it is of."""
    return {
        "env_name": info.task,
        "type": ROBOSUITE,
        "env_version": info.versions.get("robosuite", ""),
        "env_kwargs": {
            "robots": "Panda",
            "control_freq": info.action_space.get("control_hz", 20.0),
            "reward_shaping": False,
            "camera_names": [CAMERAS.get(name, name) for name in info.cameras],
            "camera_heights": [size[0] for size in info.cameras.values()],
            "camera_widths": [size[1] for size in info.cameras.values()],
        },
    }


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., 4) quaternions x y z w of turning by ``b`` in the frame that ``a`` has turned."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    vector = a[..., 3:] * b[..., :3] + b[..., 3:] * a[..., :3] + np.cross(a[..., :3], b[..., :3])
    scalar = a[..., 3] * b[..., 3] - np.sum(a[..., :3] * b[..., :3], axis=-1)
    return np.concatenate([vector, scalar[..., None]], axis=-1)
