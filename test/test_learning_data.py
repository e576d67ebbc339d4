"""Which steps are learned from, and how they become arrays (method.md 1.1, 1.4)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy_bags
from hypothesis import given, settings
from hypothesis import strategies as st

from hapo_ros import labels, topics
from hapo_ros.episodes import messages, open_episodes
from hapo_ros.episodes.formats import common
from hapo_ros.episodes.types import EpisodeInfo, Observation, Step
from hapo_ros.learning.augment import augment, draw_shifts, shift_images
from hapo_ros.learning.data import Episode, build, chunks, from_readers, last_correction
from hapo_ros.learning.reference import partners
from hapo_ros.robots import config as robots
from hapo_ros.sim.environment import action_space

NAMES = ["x", "y", "gripper"]
P, H, N = labels.POLICY, labels.HUMAN, labels.NONE


def episode(
    name,
    live,
    source="deployment",
    outcome="success",
    k=2,
    cameras=("cam",),
    unresolved=False,
    **info,
):
    """An episode whose step t executes (t / 100, 0, 1) and sees images of brightness t."""
    relabelled = (
        labels.demonstration(live)
        if source == "demonstration"
        else labels.relabel(np.array(live), k)
    )
    steps = [
        Step(
            t,
            t * 50_000_000,
            Observation(
                {c: np.full((8, 8, 3), t, np.uint8) for c in cameras},
                np.zeros(9),
                np.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]),
                np.full(4, float(t)),
            ),
            np.array([t / 100, 0, 1], np.float32),
            np.zeros(0, np.float32),
            int(live[t]),
            int(c),
            "v",
            False,
            0,
            0.5,
        )
        for t, c in enumerate(relabelled)
    ]
    info = EpisodeInfo(
        **{
            "episode_id": name,
            "task": "lift",
            "instruction": "lift the cube",
            "source": source,
            "seed": 0,
            "cameras": {c: [8, 8] for c in cameras},
            "action_space": {"names": NAMES},
        }
        | info
    )
    return Episode(info, steps, bag_hash=f"hash of {name}", outcome=outcome, unresolved=unresolved)


def rows_of(table, group):
    return [
        (table.episodes[table.episode[r]]["episode_id"], int(table.sequence[r]))
        for r in table.groups[group]
    ]


def test_every_step_is_in_the_group_its_label_and_source_say():
    table = build(
        [episode("demo", [P, P, H], "demonstration"), episode("run", [P, P, P, H, H, N, P])]
    )
    assert rows_of(table, "expert") == [("demo", 0), ("demo", 1), ("demo", 2)]
    assert rows_of(table, "policy") == [("run", 0), ("run", 6)]
    assert rows_of(table, "undesirable") == [("run", 1), ("run", 2)]
    assert rows_of(table, "human") == [("run", 3), ("run", 4)]
    assert rows_of(table, "interaction") == [("run", t) for t in (0, 1, 2, 3, 4, 6)]
    assert table.counts == {
        "expert": 3,
        "policy": 2,
        "undesirable": 2,
        "human": 2,
        "none": 1,
        "not_asked_for": 0,
        "unresolved": 0,
        "episodes_left_out": 0,
    }
    assert table.desirable.tolist() == [True] * 3 + [True, False, False, True, True, True]


def test_only_the_groups_asked_for_are_kept_and_the_others_counted():
    table = build(
        [episode("demo", [P] * 3, "demonstration"), episode("run", [P, P, P, H])],
        groups=("expert", "human"),
    )
    assert len(table) == 4 and table.counts["not_asked_for"] == 3
    interaction = build([episode("demo", [P] * 3, "demonstration"), episode("run", [P, P, P, H])],
                        groups=["interaction"])  # fmt: skip
    assert len(interaction) == 4 and interaction.counts["not_asked_for"] == 3


def test_takeovers_are_pairs_of_segments_within_their_episode():
    """Steps that no group asked for are left out, and nothing moves: K counts recorded steps."""
    episodes = [
        episode("demo", [P] * 3, "demonstration"),
        episode("a", [P, P, P, H, H, H, P, P, P, H]),
        episode("b", [H, P]),
        episode("c", [P, N, N, H]),
        episode("d", [P, P, H, P, H]),
        episode("e", [P, P, H], outcome="failure", unresolved=True),
    ]
    for groups in (("takeover",), ("expert", "human", "undesirable", "policy")):
        table = build(episodes, groups=groups, k=2)
        said = [
            tuple(
                (table.episodes[table.episode[s[0]]]["episode_id"], *table.sequence[s])
                for s in pair
            )
            for pair in table.pairs.values()
        ]
        assert said == [
            (("a", 3, 4), ("a", 1, 2)),
            (("a", 9), ("a", 7, 8)),
            (("d", 2), ("d", 0, 1)),
            (("d", 4), ("d", 3)),
        ]
        assert rows_of(table, "takeover") == [("a", 3), ("a", 9), ("d", 2), ("d", 4)]
        assert table.unpaired == 3  # of b, c and e
    assert set(build(episodes, groups=["takeover"]).labels) == {labels.HUMAN, labels.UNDESIRABLE}


def test_the_correction_that_never_resolved_is_counted_and_not_learned_from():
    live = [P, P, H, H, P, P, P, H, N, H, H]
    bad = episode("run", live, outcome="failure", unresolved=True)
    table = build([bad])
    assert rows_of(table, "human") == [("run", 2), ("run", 3)]
    assert table.counts["unresolved"] == 3
    # What led to it is as undesirable as ever.
    assert rows_of(table, "undesirable") == [("run", t) for t in (0, 1, 5, 6)]
    kept = build([bad], drop_unresolved=False)
    assert len(kept.groups["human"]) == 5 and kept.counts["unresolved"] == 0


def test_the_corrections_of_an_episode_that_failed_later_are_learned_from():
    """They resolved: the operator had handed back."""
    table = build([episode("run", [P, P, P, H, H, P, P], outcome="failure")])
    assert rows_of(table, "human") == [("run", 3), ("run", 4)] and table.counts["unresolved"] == 0


@given(st.lists(st.sampled_from([P, H, N]), max_size=30), st.integers(0, 12))
def test_the_last_correction_is_the_humans_part_after_the_policy_last_acted_before_it(live, k):
    found = last_correction(labels.relabel(np.array(live, int), k))
    assert (np.array(live, int)[found] == H).all()
    if H not in live:
        assert not found.any()
        return
    first = int(np.flatnonzero(found)[0])
    last = len(live) - 1 - live[::-1].index(H)
    between = live[first : last + 1]
    assert P not in between and between.count(H) == found.sum()
    earlier = [each for each in live[:first] if each != N]
    assert not earlier or earlier[-1] == P


def test_a_failed_demonstration_is_not_a_correction():
    table = build([episode("demo", [P, P], "demonstration", outcome="failure")])
    assert len(table.groups["expert"]) == 2


def test_discarded_and_excluded_episodes_are_never_used_and_it_is_said():
    excluded = episode("b", [P, H])
    excluded.excluded = True
    table = build([episode("a", [P, H], outcome="discarded"), excluded, episode("c", [P, H])])
    assert [e["episode_id"] for e in table.episodes] == ["c"]
    assert table.skipped == [
        "Episode a was discarded and is not used.",
        "Episode b was excluded in review and is not used.",
    ]


def test_an_episode_given_twice_is_used_once_and_it_is_said():
    other = episode("a", [P, H, H])
    other.bag_hash = "recovered"
    table = build([episode("a", [P, H]), episode("a", [P, H]), other])
    assert len(table) == 2 and len(table.episodes) == 1
    assert table.skipped == [
        "Episode a was given twice and is used once.",
        "Episode a was given twice with other contents; the first one counts and is used once.",
    ]


def test_nothing_left_is_an_error_with_the_reasons():
    with pytest.raises(ValueError, match=r"No step to learn from.*a was discarded"):
        build([episode("a", [P, H], outcome="discarded")])


def test_episodes_of_different_forms_are_refused_by_name():
    one = episode("a", [P, H])
    for other, what in (
        (episode("b", [P, H], cameras=("cam", "wrist")), "cameras"),
        (episode("b", [P, H], action_space={"names": ["x", "z", "gripper"]}), "action_names"),
    ):
        with pytest.raises(ValueError, match=rf"Episode b does not fit the others \({what}"):
            build([one, other])
    with pytest.raises(ValueError, match="Episode b has no images of wrist"):
        build([episode("b", [P, H])], cameras=("wrist",))
    with pytest.raises(ValueError, match="does not name its 3 action dimensions"):
        build([episode("b", [P, H], action_space={})])


def with_units(name, space):
    """An episode whose action space has these units, and the names of ``episode``."""
    return episode(name, [P, H], action_space={**space, "names": NAMES})


def test_actions_of_other_units_are_never_mixed_whichever_came_first():
    simulation, arm = action_space(), robots.load("franka").action_space()
    other = {"control_hz": 10.0, "linear_scale_m_s": 0.5, "angular_scale_rad_s": 1, "frame": "tool"}
    for space in (arm, *({**simulation, key: value} for key, value in other.items())):
        unlike = [key for key in other if space[key] != simulation[key]]
        for spaces in ((simulation, space), (space, simulation), ({}, simulation, {}, space)):
            made = [with_units(f"e{i}", each) for i, each in enumerate(spaces)]
            with pytest.raises(ValueError, match=rf"Episode e\d does not fit .*\({unlike[0]}: "):
                build(made)


def test_actions_of_the_same_units_mix_wherever_they_were_recorded_and_go_with_unknown_ones():
    spaces = (
        action_space(),  # without ROS, and through the graph
        robots.load("simulated").action_space(),  # behind a robot's topics
        common.osc_pose_space(20.0, (0.1 * 0.5, 0.1 * 5)),  # robomimic's and the APO authors' files
        {"control_hz": 20},  # LeRobot
        {},
    )
    for order in (spaces, spaces[::-1]):
        table = build([with_units(f"e{i}", each) for i, each in enumerate(order)])
        assert len(table.episodes) == len(spaces)


def test_numbers_that_are_not_finite_are_refused_by_episode():
    bad = episode("bad", [P, H])
    bad.steps[1].action[0] = np.nan
    with pytest.raises(ValueError, match="Episode bad holds NaN or infinity in its actions"):
        build([bad])


def test_a_batch_holds_what_was_seen_and_done():
    table = build([episode("demo", [P] * 4, "demonstration"), episode("run", [P, P, P, H])])
    batch = table.batch([1, 7])
    assert batch.images["cam"].shape == (2, 8, 8, 3) and batch.images["cam"].dtype == torch.uint8
    assert batch.images["cam"][:, 0, 0, 0].tolist() == [1, 3]
    assert batch.object_state[:, 0].tolist() == [1.0, 3.0]
    assert batch.actions[:, 0, 0].tolist() == pytest.approx([0.01, 0.03])
    assert batch.instructions == ["lift the cube"] * 2 and len(batch) == 2
    assert table.names([1, 7, 6]) == "demo steps [1]; run steps [2, 3]"


def test_chunks_end_with_the_controller_a_gap_and_the_episode():
    table = build([episode("run", [P, P, P, H, H, N, P, P])], horizon=3)
    by_step = dict(zip(table.sequence.tolist(), table.action_mask.tolist(), strict=True))
    assert by_step[0] == [True, True, True]  # 0 and 1, 2: relabelled, and the same controller
    assert by_step[2] == [True, False, False]
    assert by_step[3] == [True, True, False]
    assert by_step[6] == [True, True, False] and by_step[7] == [True, False, False]
    actions = dict(zip(table.sequence.tolist(), table.actions[:, :, 0].tolist(), strict=True))
    assert actions[3] == pytest.approx([0.03, 0.04, 0.0])


def test_a_teleoperated_demonstrations_chunks_do_not_end_where_the_device_changed():
    table = build([episode("demo", [P, H, P], "demonstration")], horizon=3)
    assert table.action_mask[0].tolist() == [True, True, True]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([P, H, N]), min_size=1, max_size=30),
    st.integers(1, 6),
    st.sets(st.integers(0, 29)),
)
def test_a_chunk_never_crosses_a_change_a_gap_or_the_end(live, horizon, lost):
    kept = [t for t in range(len(live)) if t not in lost]
    if not kept:
        return
    actions = np.array(kept, np.float32)[:, None]
    chunk, mask = chunks(actions, [live[t] for t in kept], kept, horizon)
    for i, t in enumerate(kept):
        for j in range(horizon):
            whole = all(t + n in kept and live[t + n] == live[t] for n in range(j + 1))
            assert mask[i, j] == whole
            assert chunk[i, j, 0] == (t + j if whole else 0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=8), st.integers(0, 99))
def test_a_mismatched_action_is_of_another_episode_and_always_the_same(sizes, seed):
    rows = np.repeat(np.arange(len(sizes)), sizes)
    pairs = partners(rows, seed)
    assert (rows[pairs] != rows).all() and pairs.min() >= 0 and pairs.max() < len(rows)
    assert list(pairs) == list(partners(rows, seed))


def test_partners_are_drawn_evenly_and_one_episode_is_refused():
    pairs = partners(np.repeat([0, 1, 2], 3000), 0)
    counts = np.bincount(pairs, minlength=9000).reshape(3, -1).sum(1)
    assert np.abs(counts - 3000).max() < 200
    with pytest.raises(ValueError, match="Record at least one more episode"):
        partners(np.zeros(5), 0)


def test_the_fingerprint_is_of_the_content():
    def table(**options):
        return build(
            [episode("demo", [P] * 3, "demonstration"), episode("run", [P, P, P, H])], **options
        )

    first = table().fingerprint()
    assert table().fingerprint() == first
    assert table(horizon=2).fingerprint() != first
    assert table(groups=("expert",)).fingerprint() != first
    changed = table()
    changed.labels[-1] = P
    assert changed.fingerprint() != first


def test_readers_are_read_one_by_one_and_images_only_where_wanted():
    asked = []

    def reader(e):
        def steps(k, images):
            asked.append((e.info.episode_id, k, images))
            return e.steps

        return SimpleNamespace(
            info=e.info,
            result=SimpleNamespace(unresolved=e.unresolved),
            outcome=e.outcome,
            excluded=False,
            steps=steps,
            bag_hash=e.bag_hash,
            review_hash="r",
        )

    readers = [reader(episode("a", [P, P, P, H])), reader(episode("b", [P], outcome="discarded"))]
    table = from_readers(readers, k=2, cameras=())
    assert asked == [("a", 2, False)] and table.images == {} and table.k == 2
    assert table.episodes[0]["review_hash"] == "r"


def odd_image(stamp_ns):
    """(topic, message) of an image in an encoding that nobody decodes."""
    image = messages.image_message(toy_bags.TYPES, np.zeros((8, 8, 3), np.uint8), stamp_ns, "front")
    image.encoding = "mono8"
    return topics.image("front"), image


def test_a_bag_with_a_malformed_image_is_left_out_unless_no_tick_names_it(tmp_path):
    live = (P,) * 4 + (H,) * 3
    toy_bags.record(tmp_path, "bad", live, extra=[odd_image(2 * toy_bags.PERIOD_NS)])
    toy_bags.record(tmp_path, "good", live)
    toy_bags.record(tmp_path, "stray", live, extra=[odd_image(2 * toy_bags.PERIOD_NS + 7)])
    readers, skipped = open_episodes(tmp_path)
    assert len(readers) == 3 and not skipped
    table = from_readers(readers, k=2)
    assert [each["episode_id"] for each in table.episodes] == ["good", "stray"]
    assert len(table.skipped) == table.counts["episodes_left_out"] == 1
    assert str(tmp_path / "bad") in table.skipped[0] and "'mono8'" in table.skipped[0]
    with pytest.raises(ValueError, match=r"'mono8'.*It is not used"):
        from_readers(readers[:1])


def test_shifted_images_are_the_images_moved():
    images = torch.arange(2 * 6 * 6 * 3).reshape(2, 6, 6, 3).to(torch.uint8)
    shifts = draw_shifts(2, 1, 2, torch.Generator().manual_seed(0))
    moved = shift_images(images, 2, shifts[:, 0])
    assert moved.shape == images.shape and moved.dtype == torch.uint8
    padded = np.pad(images.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    for one, wide in zip(moved.numpy(), padded, strict=True):
        assert any((one == wide[r : r + 6, c : c + 6]).all() for r in range(5) for c in range(5))
    batch = build([episode("a", [P, H])]).batch([0, 1])
    assert augment(batch, 0, draw_shifts(2, 1, 0, torch.Generator())) is batch
