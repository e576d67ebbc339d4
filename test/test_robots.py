"""A robot's configuration, its images, joint states, poses and transforms; no ROS needed."""

import copy
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from scipy.spatial.transform import Rotation

from hapo_ros.episodes.interfaces import bag_types, typestore
from hapo_ros.resources import resource
from hapo_ros.robots import config, images, inputs
from hapo_ros.robots.assembly import Assembler, Fault
from hapo_ros.robots.transforms import TransformTree

FRANKA = YAML(typ="safe").load(resource("config/robots/franka.yaml").read_text())


def changed(path: str, value=None, **more) -> dict:
    """The Franka's configuration with one key set, or removed where ``value`` is None."""
    data = copy.deepcopy(FRANKA)
    *way, last = path.split(".")
    section = data
    for key in way:
        section = section[int(key) if key.isdigit() else key]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return data | more


# Configuration


@pytest.mark.parametrize("name", config.names())
def test_every_robot_that_ships_can_be_loaded(name):
    robot = config.load(name)
    assert robot.name == name
    assert robot == config.load(resource("config/robots") / f"{name}.yaml")
    assert len(robot.joints) >= 7 or name == "ur"
    space = robot.action_space()
    assert len(space["names"]) == 7 and space["control_hz"] == 20.0
    assert space["frame"] == robot.base_frame


def test_the_examples_are_a_franka_a_ur_and_the_simulated_one():
    assert config.names() == ["franka", "simulated", "ur"]
    franka, ur = config.load("franka"), config.load("ur")
    assert franka.servo_topic == ur.servo_topic == "/servo_node/delta_twist_cmds"
    assert not franka.unitless and not ur.unitless
    # By TF: what the drivers publish of themselves is in another frame than the servo's.
    assert not franka.pose.topic and not ur.pose.topic
    assert [robot.simulated for robot in (franka, ur, config.load("simulated"))] == [0, 0, 1]


def test_what_is_left_out_has_defaults():
    data = changed("timeouts")
    del data["stamp_tolerance_s"]
    robot = config.parse(data, "mine")
    assert robot.decision_timeout_s == pytest.approx(0.045)
    assert robot.command_timeout_s == pytest.approx(0.1) == robot.servo_timeout_s
    assert robot.stamp_tolerance_s == 0.5 and not robot.simulated
    assert config.load("ur").workspace_max_m == (np.inf,) * 3
    (camera, _) = robot.cameras
    assert camera.tolerance_s == pytest.approx(0.1) and camera.frozen_after == 15


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("frames", None, "frames is missing"),
        ("frames.base", None, "frames: base is missing"),
        ("frames.base", 3, "base must be a word, not 3"),
        ("frames.camera", "c", "frames: camera is not known here"),
        ("speed", 3, "speed is not known here"),
        ("scales.linear_m_s", "fast", "linear_m_s must be a number in 0.001..10, not 'fast'"),
        ("scales.linear_m_s", float("nan"), "linear_m_s must be a number"),
        ("scales.angular_rad_s", True, "angular_rad_s must be a number"),
        ("limits.workspace_min_m", [1, 2], "workspace_min_m must be 3 numbers, not [1, 2]"),
        ("limits.workspace_min_m", [1, 2, float("inf")], "workspace_min_m must be 3 numbers"),
        ("limits.workspace_min_m", [0.3, 0.5, 0.2], "the workspace has no room"),
        ("cameras.wrist.size", [84], "cameras: wrist: size must be 2 whole numbers"),
        ("cameras.wrist.size", [0, 84], "size must be 2 whole numbers from 1 on"),
        ("cameras.wrist.source", None, "cameras: wrist: source is missing"),
        ("cameras.wrist.source", [480, 559], "cameras: wrist: the crop (0, 80, 480, 480)"),
        ("cameras.wrist.crop", [1, 80, 480, 480], "is not inside its source of 480 x 640"),
        ("cameras.wrist.crop", [0, 0, 0, 480], "is not inside its source"),
        ("cameras.wrist.crop", [0, 0, 1.5, 2], "crop must be 4 whole numbers"),
        ("cameras.wrist.rate_hz", None, "cameras: wrist: rate_hz is missing"),
        ("cameras.wrist.topic", "a b", "topic must be a topic's name"),
        ("cameras.wrist.kind", "film", "kind must be one of raw, compressed, not 'film'"),
        ("cameras.the left", {}, "'the left' must be a word of letters, digits and _"),
        ("cameras.wrist", [], "cameras: wrist: keys with values are needed, not []"),
        ("joint_states", [], "joint_states must be a list of sections, not []"),
        ("joint_states.0.joints", "a", "joint_states 1: joints must be a list of names"),
        ("pose.source", "guess", "source must be one of topic, tf"),
        ("pose", {"source": "topic"}, "pose: topic is missing"),
        ("servo.units", "knots", "units must be one of speed_units, unitless"),
        ("gripper.kind", "magnet", "kind must be one of float64_multi_array, joint_trajectory"),
        ("gripper.closed", 0.04, "open and closed are the same"),
        ("gripper.topic", "/joint_states", "/joint_states is named twice"),
        ("simulated", "yes", "simulated must be true or false"),
        ("timeouts.decision_s", 0.06, "more than the control period"),
        ("timeouts.command_s", 0.04, "less than the control period"),
        ("timeouts.servo_s", 0.06, "it would halt between two twists"),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_a_sentence_that_names_it(path, value, said):
    with pytest.raises(ValueError) as refused:
        config.parse(changed(path, value), "mine", "mine.yaml")
    assert said in str(refused.value) and str(refused.value).startswith("mine.yaml: ")


def test_a_control_period_leaves_a_quarter_of_the_servos_time_out():
    slow = {"control_period_s": 0.2}
    with pytest.raises(ValueError, match=r"control_period_s is 0.2 s, more than 0.75 of"):
        config.parse(changed("timeouts", {"servo_s": 0.26}, **slow), "mine")
    assert config.parse(changed("timeouts", {"servo_s": 0.27}, **slow), "mine").stop_s == 0.3


def test_a_file_that_is_not_there_or_no_yaml_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no robot r2d2.*franka, simulated, ur"):
        config.load("r2d2")
    with pytest.raises(FileNotFoundError, match="There is no robot"):
        config.load(tmp_path / "mine.yaml")
    file = tmp_path / "mine.yaml"
    for text in ("{", "frames: 1\nframes: 2\n"):
        file.write_text(text)
        with pytest.raises(ValueError, match="is not YAML"):
            config.load(file)
    file.write_text("")
    with pytest.raises(ValueError, match="keys with values are needed, not None"):
        config.load(str(file))


def test_two_parts_of_an_arm_may_speak_on_one_topic():
    fingers = {"topic": "/joint_states", "joints": ["left", "right"]}
    data = changed("joint_states", [*FRANKA["joint_states"], fingers])
    assert config.parse(data, "mine").joints[-2:] == ("left", "right")


# Images

SCENE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
SCENE[:] = cv2.resize(SCENE, (2, 2)).repeat(3, 0).repeat(4, 1)  # flat: chroma is subsampled


def camera(**known) -> config.CameraConfig:
    defaults = {"compressed": False, "source": (6, 8), "size": (6, 8), "crop": None, "rate_hz": 30}
    return config.CameraConfig(
        "front", "/front", tolerance_s=0.1, frozen_after=0, **(defaults | known)
    )


def image(encoding: str, pixels: np.ndarray, padding: int = 0):
    """A sensor_msgs/Image of (H, W, C) or (H, W) pixels, its rows padded with so many bytes."""
    types = bag_types()
    rows = pixels.reshape(len(pixels), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    height, width = pixels.shape[:2]
    header = types.Header(stamp=types.Time(sec=1, nanosec=2), frame_id="")
    return types.Image(
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=rows.shape[1],
        data=rows.ravel(),
    )


def yuv(order: str) -> np.ndarray:
    """The scene as packed YUV 4:2:2, by the full matrix of BT.601 (what OpenCV inverts)."""
    planes = cv2.cvtColor(SCENE, cv2.COLOR_RGB2YUV).astype(int)
    y = np.clip((planes[..., 0] - 128) * 219 / 255 + 126, 16, 235)
    u, v = ((planes[:, ::2, i] - 128) * s + 128 for i, s in ((1, 0.436 / 0.5), (2, 0.615 / 0.877)))
    packed = np.zeros((*SCENE.shape[:2], 2), np.uint8)
    luma, chroma = (1, 0) if order == "uyvy" else (0, 1)
    packed[..., luma] = y
    packed[:, ::2, chroma], packed[:, 1::2, chroma] = u, v
    return packed


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", SCENE),
        ("bgr8", SCENE[..., ::-1]),
        ("8UC3", SCENE[..., ::-1]),
        ("rgba8", np.dstack([SCENE, SCENE[..., 0]])),
        ("bgra8", np.dstack([SCENE[..., ::-1], SCENE[..., 0]])),
    ],
)
def test_an_image_becomes_rgb_whatever_its_encoding_and_padding(encoding, pixels, padding):
    seen = images.picture(image(encoding, pixels, padding), camera())
    assert seen.dtype == np.uint8 and seen.flags.c_contiguous
    np.testing.assert_array_equal(seen, SCENE)


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_a_grey_image_becomes_grey_rgb(encoding):
    seen = images.picture(image(encoding, SCENE[..., 1]), camera())
    np.testing.assert_array_equal(seen, SCENE[..., [1, 1, 1]])


@pytest.mark.parametrize(
    ("encoding", "order"),
    [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")],
)
def test_packed_yuv_becomes_rgb_with_red_and_blue_where_they_belong(encoding, order):
    seen = images.picture(image(encoding, yuv(order)), camera()).astype(int)
    assert np.abs(seen - SCENE).max() < 40 < np.abs(seen - SCENE[..., ::-1]).max()


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_bayer_pattern_becomes_rgb_with_red_and_blue_where_they_belong(pattern):
    colour = np.full((8, 8, 3), (200, 120, 30), np.uint8)
    mosaic = np.zeros((8, 8), np.uint8)
    for place, letter in zip(((0, 0), (0, 1), (1, 0), (1, 1)), pattern, strict=True):
        mosaic[place[0] :: 2, place[1] :: 2] = colour[0, 0]["rgb".index(letter)]
    seen = images.picture(image(f"bayer_{pattern}8", mosaic), camera(source=(8, 8), size=(8, 8)))
    np.testing.assert_array_equal(seen, colour)


def compressed(data: bytes, how: str):
    types = bag_types()
    return typestore().types["sensor_msgs/msg/CompressedImage"](
        header=types.Header(stamp=types.Time(sec=1, nanosec=2), frame_id=""),
        format=how,
        data=np.frombuffer(data, np.uint8),
    )


@pytest.mark.parametrize(("suffix", "error"), [(".png", 0), (".jpg", 12)])
def test_a_compressed_image_becomes_rgb(suffix, error):
    scene = cv2.resize(SCENE, (64, 48), interpolation=cv2.INTER_NEAREST)
    _, data = cv2.imencode(suffix, scene[..., ::-1])
    how = f"rgb8; {suffix[1:]} compressed bgr8"
    known = {"compressed": True, "source": (48, 64), "size": (48, 64)}
    seen = images.picture(compressed(data.tobytes(), how), camera(**known))
    assert np.median(np.abs(seen.astype(int) - scene)) <= error


def test_an_image_is_cropped_first_and_then_resized_by_averaging():
    scene = np.zeros((4, 8, 3), np.uint8)
    scene[:, 4:] = 100
    scene[::2, 4:] = 200
    seen = images.picture(
        image("rgb8", scene), camera(source=(4, 8), crop=(0, 4, 4, 4), size=(2, 2))
    )
    np.testing.assert_array_equal(seen, np.full((2, 2, 3), 150))


@pytest.mark.parametrize(
    ("message", "known", "said"),
    [
        (image("16UC1", SCENE[..., 0]), {}, "encoding '16UC1' is none of rgb8, bgr8"),
        (image("rgb8", SCENE[..., :2]), {}, "rgb8 image of 6 x 8 in rows of 16 bytes"),
        (image("yuv422", SCENE[:5, :, :2]), {}, "odd number of pixels"),
        (image("rgb8", SCENE[:4]), {}, r"its images are 4 x 8, and the robot's file says 6 x 8"),
        (image("rgb8", SCENE), {"source": (12, 16)}, r"6 x 8, and the robot's file says 12 x 16"),
        (compressed(cv2.imencode(".png", SCENE[:, :4])[1].tobytes(), "png"), {"compressed": True},
         "its images are 6 x 4"),
        (compressed(b"", "jpeg"), {"compressed": True}, "0 bytes of format 'jpeg' are no image"),
        (compressed(b"abc" * 9, "jpeg"), {"compressed": True}, "27 bytes of format 'jpeg'"),
        (compressed(b"abc", "16UC1; compressedDepth"), {"compressed": True}, "is depth"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_with_a_sentence(message, known, said):
    with pytest.raises(ValueError, match=said):
        images.picture(message, camera(**known))


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 20), st.integers(0, 20), st.integers(0, 80),
       st.sampled_from([*images.ENCODINGS, "", "rgb16"]))  # fmt: skip
def test_no_image_of_whatever_bytes_does_anything_but_be_refused_or_seen(
    data, height, width, step, encoding
):
    message = image("rgb8", SCENE)
    message.data = np.frombuffer(data, np.uint8)
    message.height, message.width, message.step, message.encoding = height, width, step, encoding
    try:
        seen = images.picture(message, camera(source=(height, width), size=(4, 4)))
    except ValueError:
        return
    assert seen.shape == (4, 4, 3) and seen.dtype == np.uint8


# Joint states and poses


def joint_state(**positions):
    types = bag_types()
    header = types.Header(stamp=types.Time(sec=1, nanosec=2), frame_id="")
    nothing = np.zeros(0)
    values = np.array(list(positions.values()), np.float64)
    return types.JointState(header, list(positions), values, nothing, nothing)


def pose(*numbers, frame="base"):
    types = bag_types()
    header = types.Header(stamp=types.Time(sec=1, nanosec=2), frame_id=frame)
    x, y, z, *turn = numbers
    return types.PoseStamped(header, types.Pose(types.Point(x, y, z), types.Quaternion(*turn)))


def test_joints_are_taken_by_name_in_the_configured_order():
    source = config.JointStatesConfig("/joint_states", ("b", "a", "a"), 0.1)
    read = inputs.positions_from(joint_state(a=1.0, c=3.0, b=2.0), source)
    np.testing.assert_array_equal(read, [2.0, 1.0, 1.0])
    assert inputs.positions_from(joint_state(a=1.0), source) is None
    short = joint_state(a=1.0, b=2.0)
    short.position = short.position[:1]
    assert inputs.positions_from(short, source) is None
    with pytest.raises(ValueError, match="not finite"):
        inputs.positions_from(joint_state(a=1.0, b=np.nan), source)


def test_a_pose_of_another_frame_or_of_no_numbers_is_refused():
    read = inputs.pose_from(pose(1, 2, 3, 0, 0, 0, 1.05), "base")
    np.testing.assert_allclose(read, [1, 2, 3, 0, 0, 0, 1])
    np.testing.assert_allclose(inputs.pose_from(pose(1, 2, 3, 0, 0, 0, 1, frame="/base"), "base"),
                               read)  # fmt: skip
    with pytest.raises(ValueError, match="it is in frame 'tool', not in 'base'"):
        inputs.pose_from(pose(1, 2, 3, 0, 0, 0, 1, frame="tool"), "base")
    for wrong in ((np.nan, 2, 3, 0, 0, 0, 1), (1, 2, 3, 0, 0, 0, 0), (1, 2, 3, 0, 0, 0, np.inf)):
        with pytest.raises(ValueError, match="not finite, or its quaternion"):
            inputs.pose_from(pose(*wrong), "base")


def test_the_gripper_is_measured_where_its_joint_is_observed():
    robot = config.load("franka")
    positions = np.zeros(9)
    for opening, closed in ((0.04, -1.0), (0.039, -1.0), (0.02, 1.0), (0.0, 1.0)):
        positions[-2:] = opening
        assert inputs.measured_gripper(positions, robot) == closed
    unseen = config.parse(changed("gripper.joints", ["another"]), "mine")
    assert inputs.measured_gripper(positions, unseen) is None


def test_only_the_cameras_that_are_wanted_are_waited_for():
    robot = config.parse(changed("pose", {"source": "topic", "topic": "/pose"}), "mine")
    known = inputs.inputs(robot, {"wrist": (84, 84)})
    assert list(known) == ["wrist", "joints 0", "pose"]
    assert "/wrist_camera/color/image_raw/compressed" in known["wrist"].name
    topics = {source.key: (source.topic, source.type_name) for source in
              inputs.sources(robot, {"wrist": (84, 84)})}  # fmt: skip
    assert topics.keys() == known.keys()
    assert topics["wrist"][1] == "sensor_msgs/msg/CompressedImage"
    ur = config.load("ur")
    assert "pose" in inputs.inputs(ur, {})
    assert "pose" not in [source.key for source in inputs.sources(ur, {})]  # it is TF's


# Transforms


def transform(parent, child, position=(0, 0, 0), rotation=(0, 0, 0, 1), stamp_ns=0):
    types, store = bag_types(), typestore().types
    header = types.Header(types.Time(*divmod(stamp_ns, 1_000_000_000)), parent)
    body = store["geometry_msgs/msg/Transform"](
        types.Vector3(*map(float, position)), types.Quaternion(*map(float, rotation))
    )
    return store["geometry_msgs/msg/TransformStamped"](header, child, body)


def matrix(pose: np.ndarray) -> np.ndarray:
    found = np.eye(4)
    found[:3, :3] = Rotation.from_quat(pose[3:]).as_matrix()
    found[:3, 3] = pose[:3]
    return found


numbers = st.lists(st.floats(-2, 2), min_size=7, max_size=7).filter(
    lambda n: np.linalg.norm(n[3:]) > 0.1
)


def unit(numbers) -> np.ndarray:
    numbers = np.array(numbers)
    return np.concatenate([numbers[:3], numbers[3:] / np.linalg.norm(numbers[3:])])


@settings(deadline=None)
@given(st.lists(numbers, min_size=4, max_size=4))
def test_a_pose_out_of_transforms_is_the_product_of_their_matrices(links):
    world, shoulder, wrist, camera = map(unit, links)
    tree = TransformTree()
    for parent, child, link in (
        ("world", "base", world),
        ("base", "shoulder", shoulder),
        ("shoulder", "wrist", wrist),
        ("base", "camera", camera),  # another branch
    ):
        tree.add(transform(parent, child, link[:3], link[3:]), 0.0)
    expected = {
        ("base", "wrist"): matrix(shoulder) @ matrix(wrist),
        ("world", "wrist"): matrix(world) @ matrix(shoulder) @ matrix(wrist),
        ("wrist", "base"): np.linalg.inv(matrix(shoulder) @ matrix(wrist)),
        ("camera", "wrist"): np.linalg.inv(matrix(camera)) @ matrix(shoulder) @ matrix(wrist),
        ("base", "base"): np.eye(4),
    }
    for (base, tool), wanted in expected.items():
        np.testing.assert_allclose(matrix(tree.pose(base, tool)[0]), wanted, atol=1e-9)


def test_a_pose_is_as_old_as_the_oldest_transform_that_moves():
    tree = TransformTree()
    tree.add(transform("base", "arm", stamp_ns=5_000_000_000), 10.0)
    tree.add(transform("arm", "hand", stamp_ns=7_000_000_000), 12.0)
    tree.add(transform("hand", "tool", stamp_ns=1), np.inf)  # static
    tree.add(transform("base", "elsewhere", stamp_ns=1_000_000_000), 1.0)
    assert tree.pose("base", "tool")[1:] == (5_000_000_000, 10.0)
    tree.add(transform("base", "arm", (1, 0, 0), stamp_ns=8_000_000_000), 13.0)
    newest, stamp_ns, received_s = tree.pose("base", "tool")
    assert (newest[0], stamp_ns, received_s) == (1.0, 7_000_000_000, 12.0)


def test_frames_that_are_not_connected_a_loop_and_no_numbers_are_refused():
    tree = TransformTree()
    with pytest.raises(LookupError, match="does not connect tool to base; frames there are: none"):
        tree.pose("base", "tool")
    tree.add(transform("a", "base"), 0.0)
    tree.add(transform("b", "tool"), 0.0)
    with pytest.raises(LookupError, match="frames there are: base, tool"):
        tree.pose("base", "tool")
    tree.add(transform("tool", "b"), 0.0)
    with pytest.raises(LookupError, match="TF has a loop"):
        tree.pose("base", "tool")
    for wrong in ({"position": (np.nan, 0, 0)}, {"rotation": (0, 0, 0, 0)}):
        with pytest.raises(ValueError, match="not finite"):
            tree.add(transform("a", "base", **wrong), 0.0)


def test_a_pose_of_tf_is_an_input_like_any_other():
    ur = config.load("ur")
    assembler = Assembler(inputs.inputs(ur, {}), stamp_tolerance_s=0.5)
    tf = inputs.PoseFromTf(ur, assembler)

    def hear(stamp_s, x=0.0, received_s=None, child="tool0", parent="wrist"):
        message = SimpleNamespace(
            transforms=[transform(parent, child, (x, 0, 0), stamp_ns=round(stamp_s * 1e9))]
        )
        tf.add(message, stamp_s if received_s is None else received_s, stamp_s)

    def fault(now_s):
        tf.look_up(now_s, round(now_s * 1e9))
        problem = assembler.problems(now_s).get("pose")
        return problem and problem.fault

    hear(10.0)
    assert fault(10.0) is Fault.REFUSED  # base and wrist are not connected
    assert "does not connect tool0 to base_link" in assembler.problems(10.0)["pose"].text
    hear(10.01, 0.3, np.inf, child="wrist", parent="base_link")  # static
    assert fault(10.02) is None
    hear(10.05, x=0.2)
    assert fault(10.06) is None
    np.testing.assert_allclose(assembler.value("pose")[0], [0.5, 0, 0, 0, 0, 0, 1])
    assert assembler.value("pose")[1] == 10_050_000_000
    assert fault(10.2) is Fault.LATE  # nothing new came
    hear(11.0, x=np.nan)
    assert fault(11.0) is Fault.REFUSED
    hear(99.0, received_s=11.1)
    assert fault(11.1) is Fault.REFUSED  # stamped far in the future
    hear(11.2)
    assert fault(11.2) is None
    tf.look_up(11.25, 11_050_000_000)  # the clock was set back by 0.2 s
    hear(11.1, received_s=11.28)
    tf.look_up(11.3, 11_100_000_000)
    assert assembler.value("pose")[1] == 11_100_000_000
    hear(11.15, received_s=11.3)
    tf.look_up(11.35, 11_150_000_000)  # as old as what it is made of
    assert "pose" not in assembler.problems(11.39) and "pose" in assembler.problems(11.41)
    hear(11.12, received_s=11.36)
    tf.look_up(11.36, 11_160_000_000)
    assert assembler.value("pose")[1] == 11_150_000_000  # overtaken


def test_nothing_of_a_robot_needs_ros():
    import ast

    for path in sorted((Path(config.__file__).parent).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith(("rclpy", "hapo_ros.nodes")), path
