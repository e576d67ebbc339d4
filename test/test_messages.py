"""Messages to and from the core's types: nothing changes on the way, nothing odd gets through."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hapo_ros import topics
from hapo_ros.arbitration.types import (
    Applied,
    Authority,
    Decision,
    PolicyCommand,
    Reason,
    Tick,
)
from hapo_ros.episodes import messages as m
from hapo_ros.episodes.types import EpisodeInfo, Observation

TYPES = m.bag_types()
IMAGE = "sensor_msgs/msg/Image"

text = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)
uint32 = st.integers(0, 2**32 - 1)
stamps = st.integers(0, 2**31 * 10**9 - 1)
floats32 = hnp.arrays(np.float32, st.integers(0, 9), elements=st.floats(width=32))


def over_the_wire(message, topic):
    """The message after CDR and back."""
    type_name = topics.TYPES.get(topic, IMAGE)
    return m.from_cdr(m.to_cdr(message, type_name), type_name)


def same(a, b):
    """Equal field by field, arrays bit by bit (NaN included)."""
    for field in dataclasses.fields(a):
        one, two = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == two.dtype and one.shape == two.shape, field.name
            assert one.tobytes() == two.tobytes(), field.name
        elif isinstance(one, float):
            assert np.float64(one).tobytes() == np.float64(two).tobytes(), field.name
        else:
            assert one == two and type(one) is type(two), field.name
    return True


def a_tick(**changes):
    return Tick(
        **({"episode_id": "ep", "sequence": 3, "stamp_ns": 1_700_000_000_050_000_001} | changes)
    )


def an_observation(rng, cameras=("front", "wrist"), state=5):
    return Observation(
        images={name: rng.integers(0, 256, (6, 8, 3), np.uint8) for name in cameras},
        joint_positions=rng.normal(size=9),
        eef_pose=rng.normal(size=7),
        object_state=rng.normal(size=state) if state else None,
    )


@given(
    st.builds(
        Tick, text, uint32, stamps, st.integers(-1, 2**62), st.sampled_from(Applied), floats32,
        st.sampled_from(Authority), uint32, st.booleans(), st.booleans(),
    )
)  # fmt: skip
def test_a_tick_comes_back_bit_by_bit(tick):
    message = m.tick_message(TYPES, tick, {"a": 5, "b": tick.stamp_ns})
    back = over_the_wire(message, topics.OBSERVATION_TICK)
    assert same(tick, m.tick_from(back))
    assert m.tick_stamps(back) == {"a": 5, "b": tick.stamp_ns}


@given(
    st.builds(
        PolicyCommand, text, uint32, uint32, text,
        hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 8)),
                   elements=st.floats(width=32)),
        st.floats(0, 1, width=32) | st.just(float("nan")), st.floats(0, 9, width=32),
    )
)  # fmt: skip
def test_a_policy_action_comes_back_bit_by_bit(command):
    message = m.policy_action_message(TYPES, command, 7)
    assert same(command, m.policy_command_from(over_the_wire(message, topics.POLICY_ACTION)))


@given(floats32, st.booleans(), st.sampled_from(Reason), st.sampled_from(Authority), st.data())
def test_a_decision_comes_back_bit_by_bit(action, hold, reason, authority, data):
    decision = Decision(
        episode_id=data.draw(text),
        sequence=data.draw(uint32),
        action=action,
        requested=np.zeros(0, np.float32) if hold else action[::-1].copy(),
        label=data.draw(st.sampled_from([1, 2, 3])),
        authority=authority,
        reason=reason,
        epoch=data.draw(uint32),
        policy_version=data.draw(text),
        limited=data.draw(st.booleans()),
        policy_due=data.draw(st.booleans()),
    )
    message = m.executed_action_message(TYPES, decision, 9, tick=hold)
    back = over_the_wire(message, topics.EXECUTED_ACTION)
    assert same(decision, m.decision_from(back))
    assert back.tick is hold and back.header.frame_id == "base_link"


@pytest.mark.parametrize("state", [0, 5])
def test_an_observation_comes_back_bit_by_bit_and_the_tick_names_all_of_it(state):
    observation = an_observation(np.random.default_rng(1), state=state)
    tick = a_tick()
    sent = m.observation_messages(TYPES, observation, tick, [f"x{i}" for i in range(state)])
    assert list(sent)[-1] == topics.OBSERVATION_TICK
    got = {topic: over_the_wire(message, topic) for topic, message in sent.items()}
    named = m.tick_stamps(got.pop(topics.OBSERVATION_TICK))
    assert named == dict.fromkeys(got, tick.stamp_ns)
    assert all(m.message_stamp_ns(message) == tick.stamp_ns for message in got.values())
    back = m.observation_from(got)
    assert back.images.keys() == observation.images.keys()
    for name, image in observation.images.items():
        assert back.images[name].tobytes() == image.tobytes()
        assert back.images[name].flags.writeable
    back.images = observation.images
    assert same(observation, back)


def test_an_operator_report_comes_back_bit_by_bit():
    axes, twist = np.linspace(-1, 1, 6, dtype=np.float32), np.linspace(-0.3, 0.7, 6)
    sent = m.operator_messages(TYPES, axes, (1, 0), twist, 123)
    joy, twisted = (over_the_wire(sent[topic], topic) for topic in (topics.JOY, topics.TWIST))
    sample = m.human_sample_from(joy, twisted, 4.5)
    assert sample.axes.tobytes() == axes.tobytes() and sample.twist.tobytes() == twist.tobytes()
    assert (sample.buttons, sample.received_s, sample.stamp_ns) == ((1, 0), 4.5, 123)


def test_status_state_privileged_state_and_info_come_back():
    status = m.authority_status_message(
        TYPES, 5, Authority.HOLD, Reason.LET_GO, episode_id="ep", labels=[0, 1, 2, 3]
    )
    back = over_the_wire(status, topics.AUTHORITY_STATUS)
    assert back.text == Reason.LET_GO.sentence and back.labels.tolist() == [0, 1, 2, 3]
    info = EpisodeInfo("ep", "lift", "lift it", "deployment", 3)
    state = m.episode_state_message(TYPES, 5, TYPES.EpisodeState.RUNNING, info, text="go")
    back = over_the_wire(state, topics.EPISODE_STATE)
    assert (back.state, back.episode_id, back.seed, back.text) == (2, "ep", 3, "go")
    values = {"cube x": 0.1, "cube y": float("inf")}
    vector = over_the_wire(m.privileged_message(TYPES, values, 5), topics.PRIVILEGED_STATE)
    assert m.state_vector_from(vector) == values
    data = {"limits": np.float32(0.5), "size": np.array([1, 2]), "who": "Zoë"}
    back = over_the_wire(m.info_message(TYPES, data), topics.EPISODE_INFO)
    assert m.info_from(back) == {"limits": 0.5, "size": [1, 2], "who": "Zoë"}


def test_a_bgr_image_with_padded_rows_is_read_as_rgb():
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    padded = np.zeros((4, 16), np.uint8)
    padded[:, :15] = rgb[..., ::-1].reshape(4, 15)
    message = m.image_message(TYPES, rgb, 0, "camera")
    message.encoding, message.step, message.data = "bgr8", 16, padded.reshape(-1)
    assert np.array_equal(m.image_from(message), rgb)


def changed(topic, **fields):
    """A well-formed message of a topic with some fields replaced."""
    tick, zero = a_tick(), np.zeros(2, np.float32)
    observed = m.observation_messages(
        TYPES, an_observation(np.random.default_rng(0)), tick, "abcde"
    )
    decision = Decision("ep", 3, zero, zero, 1, Authority.POLICY, Reason.POLICY_ACTS, 0)
    every = (
        observed
        | m.operator_messages(TYPES, np.zeros(6), [0], np.zeros(6), 5)
        | {
            topics.POLICY_ACTION: m.policy_action_message(
                TYPES, PolicyCommand("ep", 3, 0, "v", np.zeros((2, 7))), 5
            ),
            topics.EXECUTED_ACTION: m.executed_action_message(TYPES, decision, 5),
            topics.EPISODE_INFO: m.info_message(TYPES, {}),
        }
    )
    message = every[topic]
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def human(joy):
    return m.human_sample_from(joy, changed(topics.TWIST), 0.0)


@pytest.mark.parametrize(
    ("parse", "message", "sentence"),
    [
        (m.tick_from, changed(topics.OBSERVATION_TICK, topics=["a"]), "1 topics but 5 stamps"),
        (m.tick_from, changed(topics.OBSERVATION_TICK, topics=["a"] * 5), "a topic twice"),
        (m.tick_from, changed(topics.OBSERVATION_TICK, applied=9), "applied 9 is none of"),
        (m.tick_from, changed(topics.OBSERVATION_TICK, authority=0), "authority 0 is none of"),
        (m.policy_command_from, changed(topics.POLICY_ACTION, horizon=3), "14 numbers for a chunk"),
        (m.policy_command_from, changed(topics.POLICY_ACTION, horizon=0), "chunk of 0 x 7"),
        (m.decision_from, changed(topics.EXECUTED_ACTION, label=0), "live label 0"),
        (m.decision_from, changed(topics.EXECUTED_ACTION, reason=200), "reason 200 is none of"),
        (m.decision_from, changed(topics.EXECUTED_ACTION, action=np.zeros(3)), "in one decision"),
        (human, changed(topics.JOY, axes=np.zeros(5)), "axes must be 6 numbers"),
        (human, changed(topics.JOY, header=m.header(TYPES, 6)), "Joy is stamped 6 ns"),
        (m.image_from, changed(topics.image("front"), encoding="mono8"), "neither rgb8 nor bgr8"),
        (m.image_from, changed(topics.image("front"), height=7), "an image of 7 x 8"),
        (m.image_from, changed(topics.image("front"), step=1), "rows of 1 bytes"),
        (m.state_vector_from, changed(topics.OBJECT_STATE, names=["a"]), "must be 1 numbers"),
        (m.state_vector_from, changed(topics.OBJECT_STATE, names=["a"] * 5), "same name twice"),
        (m.info_from, changed(topics.EPISODE_INFO, data="{"), "not JSON"),
        (m.info_from, changed(topics.EPISODE_INFO, data="[]"), "not a JSON object"),
        (m.observation_from, {}, "has no observation/joint_state"),
    ],
)
def test_a_malformed_message_is_refused_with_a_sentence(parse, message, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse(message)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: m.image_message(TYPES, np.zeros((4, 4)), 0, ""), "uint8"),
        (lambda: m.pose_message(TYPES, np.zeros(6), 0), "7 numbers"),
        (lambda: m.joint_state_message(TYPES, np.zeros(3), 0, ["a"]), "3 joint positions have 1"),
        (lambda: m.state_vector_message(TYPES, ["a"], [1, 2], 0), "2 state values have 1 names"),
        (
            lambda: m.policy_action_message(TYPES, PolicyCommand("e", 0, 0, "", np.zeros(7)), 0),
            "shape",
        ),
    ],
)
def test_what_cannot_be_a_message_is_refused_with_a_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


@settings(max_examples=300)
@given(st.data())
def test_damaged_bytes_are_read_or_refused_but_never_crash_a_parser(data):
    topic, parse = data.draw(
        st.sampled_from(
            [
                (topics.OBSERVATION_TICK, m.tick_from),
                (topics.POLICY_ACTION, m.policy_command_from),
                (topics.EXECUTED_ACTION, m.decision_from),
                (topics.OBJECT_STATE, m.state_vector_from),
                (topics.image("front"), m.image_from),
            ]
        )
    )
    type_name = topics.TYPES.get(topic, IMAGE)
    raw = bytearray(m.to_cdr(changed(topic), type_name))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(4, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        parse(m.from_cdr(raw, type_name))
    except ValueError as error:
        assert str(error)


def test_an_unknown_type_is_refused_by_name():
    with pytest.raises(ValueError, match="nobody/msg/Knows is unknown"):
        m.from_cdr(b"", "nobody/msg/Knows")


def test_the_same_builders_fill_rclpy_messages():
    serialization = pytest.importorskip("rclpy.serialization")
    from builtin_interfaces.msg import Time
    from geometry_msgs.msg import (
        Point,
        Pose,
        PoseStamped,
        Quaternion,
        Twist,
        TwistStamped,
        Vector3,
    )
    from sensor_msgs.msg import Image, JointState, Joy
    from std_msgs.msg import Header, String

    classes = (
        Time, Header, String, Image, JointState, Joy, Point, Pose, PoseStamped, Quaternion,
        Twist, TwistStamped, Vector3,
    )  # fmt: skip
    ros = SimpleNamespace(sequence=m.ros_sequence, **{each.__name__: each for each in classes})
    observation = an_observation(np.random.default_rng(2), state=0)
    at = a_tick().stamp_ns

    def build(types):
        return {
            topics.image("front"): m.image_message(types, observation.images["front"], at, "f"),
            topics.JOINT_STATE: m.joint_state_message(types, observation.joint_positions, at),
            topics.EEF_POSE: m.pose_message(types, observation.eef_pose, at),
            topics.EPISODE_INFO: m.info_message(types, {"a": 1}),
        } | m.operator_messages(types, np.zeros(6), [1, 0], np.arange(6), at)

    ours = build(TYPES)
    for topic, message in build(ros).items():
        type_name = topics.TYPES.get(topic, IMAGE)
        raw = m.to_cdr(ours[topic], type_name)
        assert serialization.deserialize_message(raw, type(message)) == message
        # serialize_message estimates the size: stray bytes may follow, which no subscriber gets.
        theirs = serialization.serialize_message(message)[: len(raw)]
        assert m.to_cdr(m.from_cdr(theirs, type_name), type_name) == raw
        if hasattr(message, "header"):
            assert m.message_stamp_ns(message) == at
    received = build(ros)
    back = m.observation_from(received)
    assert np.array_equal(back.images["front"], observation.images["front"])
    assert np.array_equal(back.joint_positions, observation.joint_positions)
    sample = m.human_sample_from(received[topics.JOY], received[topics.TWIST], 0.0)
    assert sample.buttons == (1, 0) and sample.twist.tolist() == [0, 1, 2, 3, 4, 5]
