"""The HDF5 of the APO authors' code (GeWu-Lab/Action-Preference-Optimization): read.

A file of interactions is one episode: ``data/task_description`` and ``data/timestep_N`` with
``action``, ``third_obs`` and ``is_human``, whose codes are 1 human, 2 policy, 0 skipped
(dataset/balance_apo_dataset.py). A file of demonstrations has ``<demo>/timestep_N`` at its top. No
proprioception is in either: what is written in its place is the same in every step.
"""

import re
from pathlib import Path

import numpy as np

from hapo_ros.episodes.contents import MAX_STEPS
from hapo_ros.episodes.formats import common, hdf5
from hapo_ros.episodes.formats.common import BadSource, Foreign, Found, Options
from hapo_ros.episodes.types import EpisodeInfo
from hapo_ros.labels import HUMAN, NONE, POLICY

CODES = {0: NONE, 1: HUMAN, 2: POLICY}  # theirs -> ours
STEP = re.compile(r"timestep_(\d{1,7})")
CAMERA = "agentview"  # what their third_obs is of
CONTROL_HZ = 20.0  # of MimicGen's environments


def found(source: Path, options: Options) -> list[Found]:
    """The episode of a file of interactions, or those of one of demonstrations."""
    with hdf5.opened(source) as file:
        groups = {"data": "data"} if "data" in file else {name: name for name in file}
        if not groups or any(hdf5.group_in(file, name) is None for name in groups):
            raise BadSource("format", source, "It has no group data and no demonstrations.")
        if not any(STEP.fullmatch(name) for group in groups for name in file[group]):
            raise BadSource("format", source, "It has no timestep_0.")
        names = sorted(groups, key=lambda name: (len(name), name))
    return [Found(name, lambda name=name: _load(source, name, options)) for name in names]


def _load(source: Path, name: str, options: Options) -> Foreign:
    with hdf5.opened(source) as file:
        common.safe_id(name)
        group = hdf5.group_in(file, name)
        count = sum(STEP.fullmatch(key) is not None for key in group)
        if not 0 < count <= MAX_STEPS:
            raise BadSource("malformed", group.name, f"(it has {count} steps)")
        steps = [hdf5.group_in(group, f"timestep_{t}") for t in range(count)]
        if None in steps:
            raise BadSource("malformed", group.name, f"(timestep_{steps.index(None)} is missing)")
        actions = np.stack([_required(step, "action", "f") for step in steps])
        images = np.stack([_required(step, "third_obs", "u") for step in steps])
        interaction = name == "data"
        codes = [hdf5.array_in(step, "is_human", "fiub") for step in steps]
        if interaction == any(code is None or code.size != 1 for code in codes):
            raise BadSource("malformed", group.name, "(is_human is not one number a step)")
        text = ""
        if interaction:
            text = hdf5.text_in(group, "task_description")
        live = [CODES[int(code.item())] for code in codes] if interaction else [HUMAN] * count
        return _recorded(
            source, name, text, actions, common.pictures(images, CAMERA), live, options
        )


def _recorded(source, name, text, actions, images, live, options: Options) -> Foreign:
    origin = options.source or ("deployment" if name == "data" else "demonstration")
    task = options.task or (text if name == "data" else common.stem_of(source))
    said = options.instruction or text.replace("_", " ")
    parts = [common.stem_of(source)] + ([] if name == "data" else [name])
    size = actions.shape[-1]
    known = actions.ndim == 2 and size == len(common.OSC_POSE_NAMES)
    info = EpisodeInfo(
        episode_id=common.safe_id(*parts),
        task=task,
        instruction=said or common.instruction_for(task, options),
        source=origin,
        seed=0,
        cameras={CAMERA: list(images.shape[1:3])},
        action_space=common.osc_pose_space(CONTROL_HZ)
        if known
        else {"names": [f"action[{i}]" for i in range(size)], "control_hz": CONTROL_HZ},
        settings={"robot": "robosuite"},
    )
    joints, pose = common.nowhere()
    observations = [common.observation({CAMERA: image}, joints, pose, None) for image in images]
    steps = common.foreign_steps(observations, actions, live, round(1e9 / CONTROL_HZ))
    outcome, note = common.outcome_of(origin, options)
    return Foreign(info, steps, outcome, note)


def _required(group, name: str, kinds: str) -> np.ndarray:
    array = hdf5.array_in(group, name, kinds)
    if array is None:
        raise BadSource("malformed", f"{group.name}/{name}", "(it is missing)")
    return array
