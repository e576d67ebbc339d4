"""A tick and the messages that belong to it: joined by the stamps it names, never by time."""

import pytest

from hapo_ros import topics
from hapo_ros.arbitration import Tick
from hapo_ros.episodes import messages
from hapo_ros.nodes.joining import TickJoiner

TYPES = messages.bag_types()
JOINTS, POSE = topics.JOINT_STATE, topics.EEF_POSE


def stamped(ns: int):
    """Some message with a header."""
    return messages.state_vector_message(TYPES, ["a"], [0.0], ns)


def a_tick(ns: int, named: dict[str, int], episode_id="ep1", sequence=0):
    tick = Tick(episode_id, sequence, ns)
    return messages.tick_message(TYPES, tick, named)


def test_a_tick_is_given_with_exactly_the_messages_it_names():
    joiner = TickJoiner([JOINTS, POSE])
    wanted, other = stamped(100), stamped(101)
    for message in (wanted, other):
        joiner.add(JOINTS, message)
    pose = stamped(90)
    joiner.add(POSE, pose)
    tick = a_tick(110, {JOINTS: 100, POSE: 90})
    joiner.add_tick(tick)
    given, parts = joiner.take()
    assert given is tick and parts[JOINTS] is wanted and parts[POSE] is pose


@pytest.mark.parametrize("tick_first", [True, False])
def test_order_of_arrival_does_not_matter_and_nothing_is_given_before_all_is_there(tick_first):
    joiner = TickJoiner([JOINTS, POSE])
    tick = a_tick(110, {JOINTS: 100, POSE: 90})
    arrivals = [
        lambda: joiner.add_tick(tick),
        lambda: joiner.add(JOINTS, stamped(100)),
        lambda: joiner.add(POSE, stamped(90)),
    ]
    arrivals = arrivals if tick_first else arrivals[::-1]
    for arrive in arrivals[:-1]:
        arrive()
        assert joiner.take() is None
    arrivals[-1]()
    assert joiner.take() is not None


def test_a_message_one_nanosecond_away_is_not_the_one():
    joiner = TickJoiner([JOINTS])
    joiner.add_tick(a_tick(110, {JOINTS: 100}))
    joiner.add(JOINTS, stamped(101))
    assert joiner.take() is None and joiner.missing() == [JOINTS]


def test_a_tick_is_given_once():
    joiner = TickJoiner([JOINTS])
    joiner.add(JOINTS, stamped(100))
    joiner.add_tick(a_tick(110, {JOINTS: 100}))
    assert joiner.take() is not None
    assert joiner.take() is None and joiner.missing() == [] and joiner.tick_episode_id is None


def test_a_newer_tick_replaces_one_that_never_became_complete():
    joiner = TickJoiner([JOINTS])
    joiner.add_tick(a_tick(110, {JOINTS: 100}, sequence=1))
    joiner.add_tick(a_tick(210, {JOINTS: 200}, "ep2"))
    assert joiner.tick_episode_id == "ep2"
    joiner.add(JOINTS, stamped(100))
    assert joiner.take() is None
    joiner.add(JOINTS, stamped(200))
    assert joiner.take()[0].episode_id == "ep2"


def test_a_topic_that_the_tick_does_not_name_belongs_by_the_stamp_of_the_tick():
    joiner = TickJoiner([topics.PRIVILEGED_STATE])
    joiner.add_tick(a_tick(110, {}))
    joiner.add(topics.PRIVILEGED_STATE, stamped(110))
    assert joiner.take() is not None


def test_what_no_tick_ever_names_does_not_pile_up():
    joiner = TickJoiner([JOINTS], keep=3)
    for ns in range(1000):
        joiner.add(JOINTS, stamped(ns))
    assert len(joiner._buffers[JOINTS]) == 3
    joiner.add_tick(a_tick(1000, {JOINTS: 999}))
    assert joiner.take() is not None


def test_who_is_in_no_hurry_gets_the_newest_tick_that_is_complete_and_none_before_it_after_that():
    joiner = TickJoiner([JOINTS], ticks=3)
    for sequence in range(5):
        joiner.add_tick(a_tick(110 + sequence, {JOINTS: 100 + sequence}, sequence=sequence))
    joiner.add(JOINTS, stamped(101))
    assert joiner.take() is None  # given up: three have come after it
    for stamp in (102, 103):
        joiner.add(JOINTS, stamped(stamp))
    assert joiner.take()[0].sequence == 3
    assert joiner.take() is None and joiner.missing() == [JOINTS]
    joiner.add(JOINTS, stamped(104))
    assert joiner.take()[0].sequence == 4
