"""Other forms of episodes: what goes out comes back, and what is hostile is refused by name."""

import ctypes
import json
import os
import shutil
import struct
import threading
import zlib
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rerun.chunk import RrdReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from hapo_ros import labels, topics
from hapo_ros.arbitration import Applied, Authority, Decision, PolicyCommand, Reason, Tick
from hapo_ros.cli import main
from hapo_ros.episodes import (
    EpisodeInfo,
    EpisodeReader,
    EpisodeWriter,
    Observation,
    messages,
    reviews,
)
from hapo_ros.episodes.bag import BagFile
from hapo_ros.episodes.contents import messages as recorded_messages
from hapo_ros.episodes.formats import BadSource, Options, export_episodes, import_episodes
from hapo_ros.episodes.formats.lerobot_writing import _encode
from hapo_ros.episodes.messages import info_json
from hapo_ros.episodes.writer import info_cdr
from hapo_ros.resources import resource
from hapo_ros.sim.environment import action_space

P, H, N = labels.POLICY, labels.HUMAN, labels.NONE
TYPES = messages.bag_types()
START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 50_000_000
CAMERAS = {"agentview": [6, 8], "wrist": [4, 4]}
LIVE = {"a": (P, P, P, P, H, H, N, P), "b": (H,) * 5}


def record(root: Path, name: str, live, lost=(), outcome="success") -> Path:
    """A made-up episode; lost: sequences whose pose was not recorded."""
    info = EpisodeInfo(
        episode_id=name,
        task="Lift",
        instruction="lift the cube",
        source="demonstration" if set(live) == {H} else "deployment",
        seed=7,
        policy_version="v1",
        cameras=CAMERAS,
        object_state=["cube_x", "cube_y"],
        action_space=action_space(),
        settings={"robot": "simulation"},
        versions={"hapo_ros": "0.1.0"},
    )
    rng, epoch = np.random.default_rng(len(live)), 0
    declared = topics.recorded(info.cameras, True)
    with EpisodeWriter(root, info, declared, start_ns=START_NS) as writer:
        for sequence in range(len(live) + 1):
            at_ns = START_NS + sequence * PERIOD_NS + sequence  # no exact period
            applied = Applied.APPLIED if sequence else Applied.NO_DECISION
            tick = Tick(name, sequence, at_ns, sequence - 1, applied)
            images = {c: rng.integers(0, 256, (*size, 3), np.uint8) for c, size in CAMERAS.items()}
            seen = Observation(images, rng.normal(size=9), rng.normal(size=7), rng.normal(size=2))
            built = messages.observation_messages(TYPES, seen, tick, info.object_state)
            if sequence in lost:
                del built[topics.EEF_POSE]
            if sequence < len(live):
                epoch += sequence > 0 and live[sequence] != live[sequence - 1]
                action = rng.uniform(-1, 1, 7).astype(np.float32)
                if live[sequence] == P:
                    command = PolicyCommand(
                        name, sequence, epoch, "v1", action[None], sequence / 16
                    )
                    built[topics.POLICY_ACTION] = messages.policy_action_message(
                        TYPES, command, at_ns
                    )
                decision = Decision(
                    *(name, sequence, action, action[:0] if live[sequence] == N else action * 2),
                    *(live[sequence], Authority.POLICY, Reason.CAP_MOVED, epoch),
                    policy_version="v1" if live[sequence] == P else "",
                    limited=sequence % 2 == 0,
                )
                built[topics.EXECUTED_ACTION] = messages.executed_action_message(
                    TYPES, decision, at_ns
                )
            for topic, message in built.items():
                writer.write_message(topic, message, at_ns)
        return writer.finish(writer.result(outcome, note="as it went"))


@pytest.fixture(scope="module")
def bags(tmp_path_factory) -> Path:
    """A corrected deployment that failed and lost a human step's pose, and a demonstration."""
    root = tmp_path_factory.mktemp("bags")
    record(root, "a", LIVE["a"], lost=(5,), outcome="failure")
    record(root, "b", LIVE["b"])
    return root


def edit(kind: str, **values) -> dict:
    """A reviewer's edit."""
    return {"at": "2026-11-26T09:00:00+00:00", "by": "Ada", "kind": kind, **values}


def review(folder: Path, *edits: dict) -> EpisodeReader:
    """The episode, after these edits of it."""
    reader = EpisodeReader(folder)
    own = {"episode_id": reader.info.episode_id, "bag_hash": reader.bag_hash}
    reviews.append(folder, edits, seen=0, steps=len(reader.timeline), **own)
    return EpisodeReader(folder)


def refused(name, source, tmp_path, **options) -> BadSource:
    """The error of a source that is refused as a whole; nothing is written."""
    with pytest.raises(BadSource) as caught:
        import_episodes(name, source, tmp_path / "out", Options(**options))
    assert not (tmp_path / "out").exists()
    return caught.value


def skipped(name, source, tmp_path, **options) -> list[str]:
    """Reasons of the episodes that were not taken; no trace of them is left."""
    summary = import_episodes(name, source, tmp_path / "out", Options(**options))
    left = {path.name for path in (tmp_path / "out").glob("*")} if summary.output.exists() else ()
    assert len(left) == summary.episodes
    return summary.reasons


def assert_same(there: Path, back: Path, k: int = 2) -> None:
    """Two bags of the same episode: every step, label and word; besides where it is from."""
    first, second = EpisodeReader(there), EpisodeReader(back)
    origin = second.info.settings.pop("imported")
    assert origin["by"]["hapo_ros"]
    assert second.info == first.info
    assert second.result == first.result
    assert second.timeline.tolist() == first.timeline.tolist()
    assert second.labels(k).tolist() == first.labels(k).tolist()
    for a, b in zip(first.steps(k), second.steps(k), strict=True):
        assert a.observation.images.keys() == b.observation.images.keys()
        for camera, image in a.observation.images.items():
            assert np.array_equal(image, b.observation.images[camera])
        for name in ("joint_positions", "eef_pose", "object_state"):
            assert np.array_equal(getattr(a.observation, name), getattr(b.observation, name)), name
        assert np.array_equal(a.action, b.action) and np.array_equal(a.requested, b.requested)
        assert np.array_equal(a.confidence, b.confidence, equal_nan=True)
        for name in (
            "sequence",
            "stamp_ns",
            "live",
            "label",
            "policy_version",
            "limited",
            "reason",
        ):
            assert getattr(a, name) == getattr(b, name), name


# robomimic


@pytest.fixture(scope="module")
def robomimic(bags, tmp_path_factory) -> Path:
    """The bags, exported."""
    output = tmp_path_factory.mktemp("robomimic") / "demo.hdf5"
    summary = export_episodes("robomimic", [bags], output, Options(k=2))
    assert (summary.episodes, summary.steps, summary.skipped) == (2, 12, [])
    return output


def robosuite_file(path: Path, demos=("demo_0",), length=3, **changes) -> Path:
    """A file as robomimic's dataset_states_to_obs.py writes it; changes: of one demo's arrays,
    None to leave one out."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = length * len(demos)
        kwargs = {"robots": ["Panda"], "control_freq": 20, "reward_shaping": False}
        kwargs["controller_configs"] = {"type": "OSC_POSE", "control_delta": True}
        kwargs["controller_configs"]["output_max"] = [0.05] * 3 + [0.5] * 3
        data.attrs["env_args"] = json.dumps(
            {"env_name": "Square_D0", "type": 1, "env_kwargs": kwargs, "env_version": "1.4.1"}
        )
        for name in demos:
            arrays = {
                "actions": rng.uniform(-1, 1, (length, 7)),
                "rewards": np.r_[np.zeros(length - 1), 1.0],
                "dones": np.zeros(length, np.int64),
                "states": rng.normal(size=(length, 20)),
                "obs/agentview_image": rng.integers(0, 256, (length, 6, 8, 3), np.uint8),
                "obs/robot0_eye_in_hand_image": rng.integers(0, 256, (length, 4, 4, 3), np.uint8),
                "obs/robot0_joint_pos": rng.normal(size=(length, 7)),
                "obs/robot0_gripper_qpos": rng.normal(size=(length, 2)),
                "obs/robot0_eef_pos": rng.normal(size=(length, 3)),
                "obs/robot0_eef_quat": np.tile([1.0, 0.0, 0.0, 0.0], (length, 1)),
                "obs/object": rng.normal(size=(length, 14)),
                "next_obs/object": rng.normal(size=(length, 14)),
            } | changes
            demo = data.create_group(name)
            demo.attrs["num_samples"] = length
            for key, array in arrays.items():
                if array is not None:
                    demo[key] = array
    return path


def test_what_went_to_robomimic_comes_back_as_it_was(bags, robomimic, tmp_path):
    summary = import_episodes("robomimic", robomimic, tmp_path, Options())
    assert (summary.episodes, summary.skipped) == (2, [])
    for name in LIVE:
        assert_same(bags / name, tmp_path / name)


def test_a_robomimic_file_holds_what_its_own_tools_ask_for(bags, robomimic):
    reader = EpisodeReader(bags / "a")
    steps = reader.steps(2)
    with h5py.File(robomimic) as file:
        data, demo = file["data"], file["data/demo_0"]
        assert data.attrs["total"] == 12
        environment = json.loads(data.attrs["env_args"])
        assert (environment["env_name"], environment["type"]) == ("Lift", 1)
        assert demo.attrs["num_samples"] == len(steps) == 7
        assert np.array_equal(demo["actions"], [step.action for step in steps])
        assert demo["rewards"][:].tolist() == [0.0] * 7  # it failed
        assert file["data/demo_1/rewards"][-1] == 1
        assert demo["dones"][:].tolist() == [0] * 6 + [1]
        assert demo["c_t"][:].tolist() == reader.labels(2).tolist() == [1, 1, 0, 0, 2, 3, 1]
        assert demo["intervention"][:].tolist() == [live == H for live in reader.live]
        wrist = demo["obs/robot0_eye_in_hand_image"]
        assert np.array_equal(wrist[3], steps[3].observation.images["wrist"])
        for key in ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"):
            assert len(demo[f"obs/{key}"]) == 7


def test_a_file_of_robosuite_becomes_demonstrations_that_can_be_trained_from(tmp_path):
    from hapo_ros.learning.data import from_readers

    source = robosuite_file(tmp_path / "square.hdf5", ("demo_0", "demo_1", "demo_10", "demo_2"))
    summary = import_episodes("robomimic", source, tmp_path / "out", Options())
    assert (summary.episodes, summary.steps) == (4, 12)
    reader = EpisodeReader(tmp_path / "out" / "square_demo_10")
    info, step = reader.info, reader.steps()[2]
    assert (info.task, info.source, info.instruction) == (
        "Square_D0",
        "demonstration",
        "slide the square block onto the wooden stick",
    )
    assert info.action_space == action_space()
    assert reader.result.outcome == "success"
    assert reader.labels().tolist() == [P] * 3 and reader.live.tolist() == [H] * 3
    assert step.stamp_ns == 2 * PERIOD_NS
    with h5py.File(source) as file:
        demo = file["data/demo_10"]
        obs = demo["obs"]
        assert np.array_equal(step.action, demo["actions"][2].astype(np.float32))
        assert np.array_equal(step.observation.images["wrist"], obs["robot0_eye_in_hand_image"][2])
        joints = np.r_[obs["robot0_joint_pos"][2], obs["robot0_gripper_qpos"][2]]
        assert np.array_equal(step.observation.joint_positions, joints)
        assert np.array_equal(step.observation.object_state, obs["object"][2])
        assert np.array_equal(step.observation.eef_pose[:3], obs["robot0_eef_pos"][2])
    # The hand points down; the grip site is turned by -90 degrees about the hand's z.
    assert np.allclose(step.observation.eef_pose[3:], np.array([1, 1, 0, 0]) / np.sqrt(2))
    table = from_readers([reader], object_state=False)
    assert table.actions.shape == (3, 1, 7) and table.images["agentview"].shape == (3, 6, 8, 3)


def test_options_say_what_the_file_does_not(tmp_path):
    source = robosuite_file(tmp_path / "x.hdf5", rewards=np.zeros(3))
    options = Options(task="Lift", instruction="take it", source="deployment")
    import_episodes("robomimic", source, tmp_path / "out", options)
    reader = EpisodeReader(tmp_path / "out" / "x_demo_0")
    info = reader.info
    assert (info.task, info.instruction, info.source) == ("Lift", "take it", "deployment")
    assert reader.live.tolist() == [P] * 3 and reader.result.outcome == "failure"


def test_hostile_hdf5_is_refused_by_name_and_nothing_is_written(tmp_path):
    path = tmp_path / "x.hdf5"
    path.write_bytes(b"no HDF5")
    assert refused("robomimic", path, tmp_path).name == "format"
    assert refused("robomimic", tmp_path / "none.hdf5", tmp_path).name == "missing"
    robosuite_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    assert refused("robomimic", path, tmp_path).name == "damaged"
    with h5py.File(path, "w") as file:
        file["other"] = [1]
    assert refused("robomimic", path, tmp_path).name == "format"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"actions": None}, "malformed"),
        ({"actions": np.full((3, 7), np.nan)}, "malformed"),
        ({"actions": np.array([b"rm -rf /"] * 3)}, "malformed"),
        ({"actions": np.zeros((0, 7))}, "malformed"),
        ({"obs/agentview_image": np.zeros((3, 6, 8, 3), np.float32)}, "malformed"),
        ({"obs/agentview_image": np.zeros((3, 6, 8), np.uint8)}, "malformed"),
        ({"obs/agentview_image": np.zeros((2, 6, 8, 3), np.uint8)}, "malformed"),
        ({"obs/agentview_image": h5py.ExternalLink("/etc/passwd", "/")}, "elsewhere"),
        ({"obs/agentview_image": h5py.SoftLink("/data")}, "elsewhere"),
        ({"obs": h5py.ExternalLink("other.hdf5", "/obs")}, "elsewhere"),
    ],
)
def test_a_demonstration_that_lies_is_skipped_by_name_and_leaves_no_trace(
    tmp_path, changes, reason
):
    if "obs" in changes:
        keys = ("agentview_image", "robot0_eye_in_hand_image", "robot0_joint_pos", "object")
        keys += ("robot0_gripper_qpos", "robot0_eef_pos", "robot0_eef_quat")
        changes = {f"obs/{key}": None for key in keys} | changes
    source = robosuite_file(tmp_path / "x.hdf5", **changes)
    assert skipped("robomimic", source, tmp_path) == [reason]


def test_lengths_that_no_episode_has_are_refused_before_anything_is_allocated(tmp_path):
    source = robosuite_file(tmp_path / "x.hdf5", actions=None)
    with h5py.File(source, "a") as file:
        demo = file["data/demo_0"]
        demo.create_dataset("actions", (1 << 40, 7), "f8", chunks=(1024, 7))
    assert skipped("robomimic", source, tmp_path) == ["too large"]
    source = robosuite_file(tmp_path / "x.hdf5", **{"obs/agentview_image": None})
    with h5py.File(source, "a") as file:  # small enough, but nothing of it is there
        file["data/demo_0/obs"].create_dataset(
            "agentview_image", (3, 1024, 1024, 3), "u1", chunks=(1, 64, 64, 3)
        )
    assert skipped("robomimic", source, tmp_path) == ["too large"]


def test_names_that_lead_out_of_the_folder_are_refused(bags, robomimic, tmp_path):
    source = robosuite_file(tmp_path / "x.hdf5", ("demo_0", "..", ".hidden"))
    assert skipped("robomimic", source, tmp_path) == ["name", "name"]
    evil = spoilt(robomimic, tmp_path, lambda own, demo: own["info"].update(episode_id="../../x"))
    assert skipped("robomimic", evil, tmp_path / "2") == ["name", "name"]
    assert not (tmp_path.parent / "x").exists()


def spoilt(robomimic: Path, folder: Path, spoil) -> Path:
    """A copy of the export; spoil: told every demonstration's own words and group."""
    copy = folder / "spoilt.hdf5"
    copy.write_bytes(robomimic.read_bytes())
    with h5py.File(copy, "a") as file:
        for demo in file["data"].values():
            own = json.loads(demo["hapo"][()].tobytes())
            spoil(own, demo)
            del demo["hapo"]
            demo["hapo"] = np.frombuffer(json.dumps(own).encode(), np.uint8)
    return copy


def overwrite(demo, name, value):
    demo[name][...] = value


@pytest.mark.parametrize(
    "spoil",
    [
        lambda own, demo: demo.pop("c_t_live"),
        lambda own, demo: overwrite(demo, "c_t", 7),
        lambda own, demo: overwrite(demo, "sequence", 1),
        lambda own, demo: overwrite(demo, "stamp_ns", 1 << 62),
        lambda own, demo: overwrite(demo, "reason", 99),
        lambda own, demo: overwrite(demo, "policy_version", 5),
        lambda own, demo: own.pop("info"),
        lambda own, demo: own["info"].update(source="elsewhere"),
        lambda own, demo: own["info"].update(cameras={"agentview": [6, 8]}),
        lambda own, demo: own["info"].update(object_state=["x"]),
        lambda own, demo: own["result"].update(outcome="great"),
        lambda own, demo: own.update(timeline=[[1], 2]),
        lambda own, demo: own.update(timeline="1" * 8),
        lambda own, demo: own.update(review="reviewed"),
        lambda own, demo: own.update(review=[{"kind": "reviewed", "reviewed": True}]),
        lambda own, demo: own.update(review=[edit("label", first=0, last=99, label="human")]),
    ],
)
def test_an_export_that_was_changed_is_refused_by_name(robomimic, tmp_path, spoil):
    assert skipped("robomimic", spoilt(robomimic, tmp_path, spoil), tmp_path) == ["malformed"] * 2


@pytest.mark.parametrize("form, name", [("robomimic", "set.hdf5"), ("lerobot", "set")])
def test_a_review_goes_along_and_an_excluded_episode_does_not(bags, tmp_path, form, name):
    there = Path(shutil.copytree(bags, tmp_path / "bags"))
    first = edit("label", first=0, last=1, label="undesirable")
    reviewed = review(
        there / "a", first, edit("outcome", outcome="success"), edit("note", note="?")
    )
    review(there / "b", edit("exclude", exclude=True))
    summary = export_episodes(form, [there], tmp_path / name, Options(k=2))
    assert (summary.episodes, summary.reasons) == (1, ["excluded"])
    assert import_episodes(form, tmp_path / name, tmp_path / "in", Options()).episodes == 1
    assert_same(there / "a", tmp_path / "in" / "a")
    back = EpisodeReader(tmp_path / "in" / "a")
    assert back.review.edits == reviewed.review.edits
    assert (back.result.outcome, back.outcome) == ("failure", "success")
    assert back.labels(2)[:2].tolist() == [labels.UNDESIRABLE] * 2


def test_a_review_that_cannot_be_kept_takes_its_bag_along(bags, robomimic, tmp_path, monkeypatch):
    there = Path(shutil.copytree(bags, tmp_path / "bags"))
    review(there / "a", edit("note", note="?"))
    export_episodes("robomimic", [there], tmp_path / "set.hdf5", Options())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reviews, "_replace", full)
    with pytest.raises(reviews.ReviewError, match="No space left"):
        import_episodes("robomimic", tmp_path / "set.hdf5", tmp_path / "in", Options())
    assert not list((tmp_path / "in").iterdir())


def test_nothing_is_overwritten_and_an_import_that_was_interrupted_goes_on(robomimic, tmp_path):
    import_episodes("robomimic", robomimic, tmp_path, Options())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = import_episodes("robomimic", robomimic, tmp_path, Options())
    assert again.reasons == ["taken", "taken"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_export_never_overwrites_and_leaves_nothing_half_done(bags, tmp_path, monkeypatch):
    from hapo_ros.episodes.formats import robomimic as module

    output = tmp_path / "x.hdf5"
    monkeypatch.setattr(module, "_write_demo", None)
    with pytest.raises(TypeError):
        export_episodes("robomimic", [bags], output, Options())
    assert not list(tmp_path.iterdir())
    output.write_text("mine")
    with pytest.raises(FileExistsError, match="overwritten"):
        export_episodes("robomimic", [bags], output, Options())
    assert output.read_text() == "mine"
    with pytest.raises(ValueError, match=r"\.hdf5"):
        export_episodes("robomimic", [bags], tmp_path / "folder", Options())


def test_the_command_line_imports_and_exports(bags, tmp_path, capsys):
    output = tmp_path / "demo.hdf5"
    assert main(["export", "robomimic", str(bags), "--output", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 12
    words = ["import", "robomimic", str(output), "--output", str(tmp_path / "in")]
    assert main(words) == 0
    assert "episodes: 2" in capsys.readouterr().out
    assert main(words) == 1  # all of them are there
    assert "nothing was overwritten" in capsys.readouterr().err
    with h5py.File(output, "a") as file:
        del file["data/demo_0/actions"]
    assert (
        main(["import", "robomimic", str(output), "--output", str(tmp_path / "3"), "--json"]) == 3
    )
    (sentence,) = json.loads(capsys.readouterr().out)["skipped"]
    assert "demo_0" in sentence and "no actions" in sentence


def test_without_the_library_a_sentence_says_how_to_get_it(
    robomimic, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert main(["import", "robomimic", str(robomimic), "--output", str(tmp_path / "out")]) == 1
    assert "pip install 'hapo_ros[formats]'" in capsys.readouterr().err


# LeRobot


@pytest.fixture(scope="module")
def lerobot(bags, tmp_path_factory) -> Path:
    """The bags, exported with images in Parquet."""
    output = tmp_path_factory.mktemp("lerobot") / "set"
    assert export_episodes("lerobot", [bags], output, Options(k=2)).steps == 12
    return output


@pytest.fixture
def copy(lerobot, tmp_path) -> Path:
    """A copy of it to be spoilt."""
    return Path(shutil.copytree(lerobot, tmp_path / "copy"))


def edit_info(source: Path, **changes) -> None:
    path = source / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_episodes(source: Path, drop=(), **changes) -> None:
    """Columns of meta/episodes left out or made the same for all."""
    path = source / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows = [{k: v for k, v in row.items() if k not in drop} | changes for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_what_went_to_lerobot_comes_back_as_it_was(bags, lerobot, tmp_path):
    summary = import_episodes("lerobot", lerobot, tmp_path, Options())
    assert (summary.episodes, summary.skipped) == (2, [])
    for name in LIVE:
        assert_same(bags / name, tmp_path / name)


def test_a_lerobot_data_set_holds_what_lerobot_asks_for(bags, lerobot):
    """The files, columns and types of lerobot 0.4 to 0.6 (docs/formats.md: loaded with it)."""
    info = json.loads((lerobot / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 20, 12)
    features = info["features"]
    assert features["action"] == {
        "dtype": "float32",
        "shape": [7],
        "names": ["x", "y", "z", "roll", "pitch", "yaw", "gripper"],
    }
    table = pq.read_table(lerobot / "data/chunk-000/file-000.parquet")
    assert set(table.column_names) == set(features)
    assert table["index"].to_pylist() == list(range(12))
    assert table["frame_index"].to_pylist() == [*range(7), *range(5)]
    assert np.allclose(table["timestamp"].to_numpy(), np.array([*range(7), *range(5)]) / 20)
    assert table["c_t"].to_pylist() == [1, 1, 0, 0, 2, 3, 1] + [1] * 5
    assert table["intervention"].to_pylist() == [False] * 4 + [True] + [False] * 2 + [True] * 5
    assert table["next.success"].to_pylist() == [False] * 11 + [True]  # the first one failed
    assert table.schema.field("action").type == pa.list_(pa.float32(), 7)
    episodes = pq.read_table(lerobot / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["length"] for row in episodes] == [7, 5]
    assert [row["outcome"] for row in episodes] == ["failure", "success"]
    assert episodes[1]["dataset_from_index"] == 7 and episodes[1]["tasks"] == ["lift the cube"]
    statistics = json.loads((lerobot / "meta/stats.json").read_text())
    assert statistics.keys() == features.keys()
    actions = np.stack(table["action"].to_pylist())
    assert np.allclose(statistics["action"]["mean"], actions.mean(0))
    assert np.shape(statistics["observation.images.wrist"]["std"]) == (3, 1, 1)
    tasks = pq.read_table(lerobot / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]


def test_video_is_smaller_and_not_the_same_but_everything_else_is(bags, tmp_path):
    output = tmp_path / "set"
    export_episodes("lerobot", [bags], output, Options(k=2, video=True))
    assert len(list(output.glob("videos/*/*/*.mp4"))) == 4
    import_episodes("lerobot", output, tmp_path / "back", Options())
    first, second = EpisodeReader(bags / "a").steps(2), EpisodeReader(tmp_path / "back/a").steps(2)
    assert [step.label for step in first] == [step.label for step in second]
    assert [step.stamp_ns for step in first] == [step.stamp_ns for step in second]
    image, other = (s[2].observation.images["agentview"] for s in (first, second))
    assert image.shape == other.shape
    there = np.stack([step.observation.images["agentview"] for step in second]).astype(float)
    errors = [
        np.abs(there - step.observation.images["agentview"]).mean((1, 2, 3)) for step in first
    ]
    assert np.argmin(errors, axis=1).tolist() == list(range(7))  # lossy, but the right ones


def test_a_video_is_written_at_no_other_priority(tmp_path):
    """The encoder makes itself real-time where it may, as root: all else would starve."""
    seen = []

    class Watched:
        shape = (8, 64, 64, 3)

        def __iter__(self):
            for _ in range(8):
                threads = [int(thread) for thread in os.listdir("/proc/self/task")]
                seen.append([os.sched_getscheduler(thread) for thread in threads])
                yield np.zeros((64, 64, 3), np.uint8)

    ended = threading.Event()

    def of_its_own():
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        ready.set()
        ended.wait(60)

    ready = threading.Event()
    other = threading.Thread(target=of_its_own)
    other.start()
    assert ready.wait(60)
    _encode(Watched(), tmp_path / "video.mp4", 20.0)
    assert os.sched_getscheduler(other.native_id) == os.SCHED_BATCH  # not the encoder's to change
    ended.set()
    other.join()
    assert len(seen) == 8 and len(seen[-1]) > 10  # the encoder's are among them
    for policies in seen:
        policies.remove(os.SCHED_BATCH)
        assert set(policies) == {os.SCHED_OTHER}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    # Nor does the C library remember another one, which some threads (Fast DDS's) are begun with.
    remembered, parameter = ctypes.c_int(-1), ctypes.c_int(-1)
    libc = ctypes.CDLL(None)
    libc.pthread_self.restype = ctypes.c_void_p
    me = ctypes.c_void_p(libc.pthread_self())
    assert libc.pthread_getschedparam(me, ctypes.byref(remembered), ctypes.byref(parameter)) == 0
    assert (remembered.value, parameter.value) == (os.SCHED_OTHER, 0)
    assert (tmp_path / "video.mp4").stat().st_size > 0


def test_a_data_set_of_others_becomes_episodes_with_their_labels_and_tasks(copy, tmp_path):
    edit_episodes(copy, drop=("hapo",))
    summary = import_episodes("lerobot", copy, tmp_path / "out", Options(task="Lift"))
    assert (summary.episodes, summary.skipped) == (2, [])
    reader = EpisodeReader(tmp_path / "out" / "copy_episode_0")
    assert (reader.info.source, reader.info.instruction) == ("deployment", "lift the cube")
    assert reader.live.tolist() == [P, P, P, P, H, P, P]
    assert reader.result.outcome == "failure"
    assert reader.info.cameras == CAMERAS and reader.info.object_state == ["cube_x", "cube_y"]
    assert reader.info.action_space["names"] == action_space()["names"]
    step = reader.steps()[1]
    assert step.observation.joint_positions.shape == (16,) and step.stamp_ns == PERIOD_NS
    features = json.loads((copy / "meta/info.json").read_text())["features"]
    for name in ("intervention", "next.success"):
        del features[name]
    edit_info(copy, features=features)
    import_episodes("lerobot", copy, tmp_path / "demos", Options())
    reader = EpisodeReader(tmp_path / "demos" / "copy_episode_0")
    assert (reader.info.source, reader.result.outcome) == ("demonstration", "success")
    assert reader.labels().tolist() == [P] * 7


def test_episodes_of_two_kinds_do_not_fit_into_one_data_set(bags, tmp_path):
    robosuite = robosuite_file(tmp_path / "x.hdf5")
    import_episodes("robomimic", robosuite, tmp_path / "in", Options())
    with pytest.raises(ValueError, match="of one kind"):
        export_episodes("lerobot", [bags, tmp_path / "in"], tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_is_no_data_set_is_refused_by_name(copy, tmp_path):
    (tmp_path / "empty").mkdir()
    assert refused("lerobot", tmp_path / "empty", tmp_path).name == "format"
    edit_info(copy, codebase_version="v2.1")
    assert "convert_dataset_v21_to_v30" in str(refused("lerobot", copy, tmp_path))
    edit_info(copy, codebase_version="v3.0", data_path="../../{chunk_index.__class__}")
    assert refused("lerobot", copy, tmp_path).name == "elsewhere"
    edit_info(copy, data_path=None)
    assert refused("lerobot", copy, tmp_path).name == "elsewhere"
    (copy / "meta/info.json").write_text("[" * 100_000)
    assert refused("lerobot", copy, tmp_path).name == "malformed"


def test_features_whose_names_lead_elsewhere_are_refused(copy, tmp_path):
    features = json.loads((copy / "meta/info.json").read_text())["features"]
    evil = {"dtype": "video", "shape": [4, 4, 3]}
    edit_info(copy, features=features | {"observation.images.../../../x": evil})
    assert refused("lerobot", copy, tmp_path).name == "name"


@pytest.mark.parametrize("where", ["data", "meta/episodes"])
def test_a_truncated_parquet_file_is_called_damaged(copy, tmp_path, where):
    path = copy / where / "chunk-000" / "file-000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    if where == "data":
        assert skipped("lerobot", copy, tmp_path) == ["damaged"] * 2
    else:
        assert refused("lerobot", copy, tmp_path).name == "damaged"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"length": 10**12}, "malformed"),
        ({"length": "seven"}, "malformed"),
        ({"data/file_index": 10**9}, "missing"),
        ({"data/file_index": -1}, "missing"),
        ({"hapo": "{}"}, "malformed"),
        ({"hapo": "[" * 100_000}, "malformed"),
    ],
)
def test_an_episode_that_lies_is_skipped_by_name(copy, tmp_path, changes, reason):
    edit_episodes(copy, **changes)
    assert skipped("lerobot", copy, tmp_path) == [reason] * 2


def test_images_as_paths_are_never_opened_and_broken_ones_are_damaged(copy, tmp_path):
    path = copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    key = "observation.images.wrist"
    header = struct.pack(">IIBBBBB", 1 << 16, 1 << 16, 8, 2, 0, 0, 0)  # 12 GB, were it decoded
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    bomb += struct.pack(">I", zlib.crc32(b"IHDR" + header))
    bomb += struct.pack(">I", 4) + b"IDAT" + b"1234" + struct.pack(">I", zlib.crc32(b"IDAT1234"))
    for cell, reason in (
        ({"bytes": bomb, "path": None}, "too large"),
        ({"bytes": None, "path": "/etc/passwd"}, "elsewhere"),
        ({"bytes": b"GIF89a", "path": None}, "damaged"),
    ):
        column = pa.array([cell] * 12, table.schema.field(key).type)
        pq.write_table(table.set_column(table.column_names.index(key), key, column), path)
        assert skipped("lerobot", copy, tmp_path) == [reason] * 2


# The APO authors'


def apo_interaction(path: Path, codes=(2, 2, 0, 1, 1, 2), drop=(), **changes) -> Path:
    """A file as their code reads it; changes: of the arrays of every step; drop: steps left out."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data["task_description"] = "make_coffee"
        for t, code in enumerate(codes):
            if t not in drop:
                step = data.create_group(f"timestep_{t}")
                step["action"] = np.full(7, t / 10)
                step["third_obs"] = np.full((6, 8, 3), t, np.uint8)
                step["is_human"] = code
                for name, value in changes.items():
                    del step[name]
                    if value is not None:
                        step[name] = value
    return path


def test_an_interaction_of_apo_comes_with_its_codes_translated(tmp_path):
    import_episodes("apo", apo_interaction(tmp_path / "x 1.hdf5"), tmp_path / "out", Options())
    reader = EpisodeReader(tmp_path / "out" / "x_1")
    assert reader.live.tolist() == [P, P, N, H, H, P]
    assert reader.labels(2).tolist() == [P, 0, N, H, H, P]
    info = reader.info
    assert (info.source, info.task, info.instruction) == (
        "deployment",
        "make_coffee",
        "make coffee",
    )
    assert "does not say how it ended" in reader.result.note
    steps = reader.steps()
    assert np.allclose([step.action for step in steps], np.arange(6)[:, None] / 10)
    assert steps[4].observation.images["agentview"].max() == 4


def test_demonstrations_of_apo_are_demonstrations(tmp_path):
    path = tmp_path / "stack_three_d0.hdf5"
    with h5py.File(path, "w") as file:
        for demo in ("demo_0", "demo_1"):
            for t in range(3):
                file[f"{demo}/timestep_{t}/action"] = np.zeros(7)
                file[f"{demo}/timestep_{t}/third_obs"] = np.zeros((6, 8, 3), np.uint8)
    assert import_episodes("apo", path, tmp_path / "out", Options()).episodes == 2
    reader = EpisodeReader(tmp_path / "out" / "stack_three_d0_demo_1")
    assert reader.info.source == "demonstration" and reader.labels().tolist() == [P] * 3
    assert reader.info.instruction.startswith("stack the blocks in the order")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"codes": (2, 7)}, "malformed"),
        ({"drop": (1,)}, "malformed"),
        ({"is_human": None}, "malformed"),
        ({"action": None}, "malformed"),
        ({"action": np.full(7, np.inf)}, "malformed"),
        ({"third_obs": h5py.ExternalLink("/etc/passwd", "/")}, "elsewhere"),
    ],
)
def test_an_interaction_that_lies_is_skipped_by_name(tmp_path, changes, reason):
    assert skipped("apo", apo_interaction(tmp_path / "x.hdf5", **changes), tmp_path) == [reason]


# Plain bags

ROBOT = """
frames: {base: base, tool: tool}
control_period_s: 0.05
scales: {linear_m_s: 0.5, angular_rad_s: 1.0}
limits: {linear_m_s: 0.5, angular_rad_s: 1.0}
cameras: {front: {topic: /camera/image, source: [6, 8], size: [6, 8], rate_hz: 20,
                  tolerance_s: 0.09}}
joint_states: [{topic: /joint_states, joints: [j1, finger]}]
pose: {source: topic, topic: /pose}
servo: {topic: /servo/twist, units: speed_units}
gripper: {kind: float64_multi_array, topic: /gripper, joints: [finger], open: 0.04, closed: 0.0}
"""


def plain_bag(path: Path, storage="mcap") -> Path:
    """One second as `ros2 bag record` would have it; camera gone from 0.3 to 0.5 s, commands only
    from 0.2 to 0.8 s, the gripper closed at 0.6 s."""
    store = get_typestore(Stores.ROS2_JAZZY)
    types = store.types
    with Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()]) as bag:
        connections = {}

        def put(topic, kind, at_ns, **values):
            if topic not in connections:
                connections[topic] = bag.add_connection(topic, kind, typestore=store)
            time = types["builtin_interfaces/msg/Time"](*divmod(at_ns, 10**9))
            header = types["std_msgs/msg/Header"](time, "base")
            values = values if "data" in values and "height" not in values else {
                "header": header} | values  # fmt: skip
            message = types[kind](**values)
            bag.write(connections[topic], at_ns, store.serialize_cdr(message, kind))

        layout = types["std_msgs/msg/MultiArrayLayout"]([], 0)
        vector, pose = types["geometry_msgs/msg/Vector3"], types["geometry_msgs/msg/Pose"]
        point, quaternion = types["geometry_msgs/msg/Point"], types["geometry_msgs/msg/Quaternion"]
        nothing = np.zeros(0)
        for i in range(100):
            at_ns, t = START_NS + i * 10_000_000, i / 100
            if i % 5 == 0 and not 0.3 <= t < 0.5:
                image = np.full(6 * 8 * 3, i, np.uint8)
                shape = {"height": 6, "width": 8, "encoding": "rgb8", "is_bigendian": 0, "step": 24}
                put("/camera/image", "sensor_msgs/msg/Image", at_ns, data=image, **shape)
            names, positions = ["finger", "j1"], np.array([0.04, t])
            put("/joint_states", "sensor_msgs/msg/JointState", at_ns, name=names,
                position=positions, velocity=nothing, effort=nothing)  # fmt: skip
            at = pose(point(t, 0.0, 1.0), quaternion(1.0, 0.0, 0.0, 0.0))
            put("/pose", "geometry_msgs/msg/PoseStamped", at_ns, pose=at)
            if 0.2 <= t < 0.8:
                twist = types["geometry_msgs/msg/Twist"](vector(0.25, 0.0, 0.0), vector(0, 0, t))
                put("/servo/twist", "geometry_msgs/msg/TwistStamped", at_ns, twist=twist)
            if i == 60:
                put("/gripper", "std_msgs/msg/Float64MultiArray", at_ns, layout=layout,
                    data=np.zeros(1))  # fmt: skip
    return path


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_plain_bag_becomes_an_episode_by_the_file_of_its_robot(tmp_path, storage):
    robot = tmp_path / "arm.yaml"
    robot.write_text(ROBOT)
    bag = plain_bag(tmp_path / "teleop", storage)
    options = Options(robot=str(robot), instruction="push it")
    summary = import_episodes("rosbag", bag, tmp_path / "out", options)
    assert (summary.episodes, summary.skipped) == (1, [])
    reader = EpisodeReader(tmp_path / "out" / "teleop", accept_recovered=True)
    assert reader.info.instruction == "push it" and reader.info.source == "demonstration"
    assert reader.result.lossy and reader.result.lost == {topics.OBSERVATION_TICK: 4}
    steps = {round((step.stamp_ns - START_NS) / 1e9, 2): step for step in reader.steps()}
    assert 0.4 not in steps and {0.25, 0.55, 0.75} <= steps.keys()  # the camera was gone
    step = steps[0.7]
    # The camera's newest image and the state at 0.69 s; the command by the end of the step.
    assert step.observation.joint_positions.tolist() == [0.69, 0.04]
    assert step.observation.eef_pose[:3].tolist() == [0.69, 0.0, 1.0]
    assert step.observation.images["front"].max() == 65
    assert np.allclose(step.action, [0.5, 0, 0, 0, 0, 0.74, 1])
    assert steps[0.3].action[6] == -1 and step.live == H
    assert [steps[at].live for at in (0.05, 0.1, 0.8)] == [N, N, H]
    assert max(steps) == 0.8  # the last command, of 0.79 s, holds for 0.1 s


def test_a_bag_needs_a_robot_and_an_instruction(tmp_path):
    with pytest.raises(ValueError, match="--robot"):
        import_episodes("rosbag", tmp_path, tmp_path / "out", Options(instruction="x"))
    with pytest.raises(ValueError, match="--instruction"):
        import_episodes("rosbag", tmp_path, tmp_path / "out", Options(robot="franka"))


def test_hostile_bags_are_refused_by_name(tmp_path):
    robot = tmp_path / "arm.yaml"
    robot.write_text(ROBOT)
    options = {"robot": str(robot), "task": "Lift"}
    (tmp_path / "empty").mkdir()
    assert refused("rosbag", tmp_path / "empty", tmp_path, **options).name == "format"
    bag = plain_bag(tmp_path / "bag")
    metadata, text = bag / "metadata.yaml", (bag / "metadata.yaml").read_text()
    metadata.write_text(text.replace("bag.mcap", "../../bag.mcap"))
    assert skipped("rosbag", bag, tmp_path, **options) == ["elsewhere"]
    metadata.write_text("!!python/object/apply:os.system ['touch hacked']")
    assert skipped("rosbag", bag, tmp_path, **options) == ["malformed"]
    metadata.write_text(text)
    (file,) = bag.glob("*.mcap")
    file.write_bytes(file.read_bytes()[:2000])
    assert skipped("rosbag", bag, tmp_path, **options) == ["damaged"]
    other = {"robot": "franka", "task": "Lift"}  # none of whose topics is in it
    assert skipped("rosbag", plain_bag(tmp_path / "bag2"), tmp_path, **other) == ["no observations"]


# Viewers


def test_view_writes_images_actions_and_labels_as_a_timeline_of_states(bags, tmp_path, capsys):
    output = tmp_path / "episode.rrd"
    assert main(["view", str(bags / "a"), "--k", "2", "--save", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    file = RrdReader(output)
    assert len(file.blueprints()) == 1
    chunks = list(file.stream())

    def values(entity, component):
        """(step, value) of everything logged there, in order."""
        found = []
        for chunk in chunks:
            batch = chunk.to_record_batch()
            names = [name for name in batch.schema.names if name.endswith(component)]
            if chunk.entity_path == entity and names and "step" in batch.schema.names:
                rows = zip(batch["step"].to_pylist(), batch[names[0]].to_pylist(), strict=True)
                found += [row for row in rows if row[1]]
        return sorted(found)

    states = values("/labels/label", "StateChange:state")
    assert states == [
        (0, ["policy"]),
        (2, ["undesirable"]),
        (4, ["human"]),
        (6, ["none"]),
        (7, ["policy"]),
    ]
    assert [state for _, state in values("/labels/live", "StateChange:state")] == [
        *(["policy"], ["human"], ["none"], ["policy"])
    ]
    actions = values("/action", "Scalars:scalars")
    steps = EpisodeReader(bags / "a").steps()
    assert [step for step, _ in actions] == [step.sequence for step in steps]
    assert np.allclose([action for _, action in actions], [step.action for step in steps])
    images = {chunk.entity_path for chunk in chunks if chunk.entity_path.startswith("/cameras")}
    assert images == {"/cameras/agentview", "/cameras/wrist"}
    assert main(["view", str(bags / "a"), "--save", str(output)]) == 1
    assert "Nothing was overwritten" in capsys.readouterr().err


def test_the_foxglove_layout_names_panels_topics_and_fields_that_there_are():
    """Checked against the types that foxglove-sdk 0.x writes (docs/formats.md) and the messages."""
    layout = json.loads(resource("config/foxglove.json").read_text())
    assert layout.keys() == {
        "configById",
        "globalVariables",
        "userNodes",
        "playbackConfig",
        "layout",
    }

    def leaves(node):
        if isinstance(node, str):
            return [node]
        assert node.keys() == {"direction", "first", "second", "splitPercentage"}
        return leaves(node["first"]) + leaves(node["second"])

    assert sorted(leaves(layout["layout"])) == sorted(layout["configById"])
    paths = []
    for name, panel in layout["configById"].items():
        kind = name.partition("!")[0]
        if kind == "Image":
            paths.append(panel["imageMode"]["imageTopic"])
        elif kind in ("Plot", "StateTransitions"):
            paths += [path["value"] for path in panel["paths"]]
        else:
            assert kind == "RawMessages"
            paths.append(panel["topicPath"])
    declared = topics.recorded(CAMERAS, True)
    for path in paths:
        topic, _, fields = path.partition(".")
        definition = messages.typestore().fielddefs[declared[topic]][1]
        if fields:
            assert fields.partition("[")[0].partition(".")[0] in {name for name, _ in definition}
    assert {path.partition(".")[0] for path in paths} >= {
        *map(topics.image, CAMERAS),
        topics.EXECUTED_ACTION,
        topics.AUTHORITY_STATUS,
    }


# Earlier versions of this project


def test_a_bag_from_before_episode_info_said_as_much_is_read_all_the_same(bags, tmp_path):
    """The messages are those of the first version; episode/info has grown since."""
    later_info = {"settings", "versions", "max_lost_fraction", "normalisation"}
    later_result = {"lossy", "clock_jumps", "unresolved"}
    reader = EpisodeReader(bags / "a")
    info = {k: v for k, v in reader.info.as_dict().items() if k not in later_info}
    result = {k: v for k, v in reader.result.as_dict().items() if k not in later_result}
    path = tmp_path / "a"
    path.mkdir()
    bag = BagFile(path, "a")
    kept = list(recorded_messages(next((bags / "a").glob("*.mcap"))))
    for topic in dict.fromkeys(message.topic for message in kept):
        bag.add_topic(*topic)
    for number, message in enumerate(kept):
        cdr = message.cdr
        if message.topic.name == topics.EPISODE_INFO:
            cdr = info_cdr({"result": result} if number else {"info": info})
        bag.write(message.topic.name, cdr, message.log_ns, message.publish_ns)
    bag.close({"episode_info": info_json(info), "episode_result": info_json(result)})
    earlier = EpisodeReader(path)
    assert earlier.labels().tolist() == reader.labels().tolist()
    assert (earlier.info.max_lost_fraction, earlier.result.lossy) == (1.0, False)
    export_episodes("lerobot", [path], tmp_path / "out", Options())
