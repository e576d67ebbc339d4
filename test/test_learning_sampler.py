"""Batches hold each group in exactly its share (method.md 1.4)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hapo_ros.learning.sampler import BalancedSampler, composition

PAPER = {"expert": 0.5, "human": 0.25, "undesirable": 0.25}
GROUPS = {"expert": np.arange(100), "human": np.arange(100, 107), "undesirable": [200, 201, 202]}


def group_counts(indices) -> dict:
    names = {i: name for name, members in GROUPS.items() for i in members}
    return dict(Counter(names[i] for i in indices))


@settings(deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=5), st.integers(1, 300))
def test_composition_is_within_one_sample_of_every_share_and_exact_in_sum(parts, batch_size):
    fractions = {f"group{i}": part / sum(parts) for i, part in enumerate(parts)}
    counts = composition(fractions, batch_size)
    assert sum(counts.values()) == batch_size
    for name, fraction in fractions.items():
        assert abs(counts[name] - fraction * batch_size) < 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10), st.integers(1, 4), st.integers(0, 5))
def test_ranks_together_make_the_exact_batch(per_rank, world_size, step):
    size = 4 * per_rank * world_size
    samplers = [
        BalancedSampler(GROUPS, size, PAPER, 7, rank, world_size) for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.step = step
    parts = [next(sampler) for sampler in samplers]
    assert {len(part) for part in parts} == {size // world_size}
    assert group_counts(np.concatenate(parts)) == composition(PAPER, size)
    whole = BalancedSampler(GROUPS, size, PAPER, 7).effective(step)
    assert sorted(np.concatenate(parts)) == sorted(whole)
    by_rank = [group_counts(part) for part in parts]
    for name in GROUPS:
        counts = [c.get(name, 0) for c in by_rank]
        assert max(counts) - min(counts) <= 1


def test_a_batch_of_8_is_4_2_2_every_time():
    sampler = BalancedSampler(GROUPS, 8, PAPER, 0)
    for _ in range(50):
        assert group_counts(next(sampler)) == {"expert": 4, "human": 2, "undesirable": 2}


def test_a_group_is_walked_through_without_replacement_and_reshuffled():
    sampler = BalancedSampler(GROUPS, 8, PAPER, 0)
    expert = np.concatenate([next(sampler)[:4] for _ in range(50)])
    first, second = expert[:100], expert[100:]
    assert sorted(first) == sorted(second) == list(range(100))
    assert list(first) != list(second)


def test_same_seed_same_batches_other_seed_other_batches():
    def draws(seed):
        sampler = BalancedSampler(GROUPS, 8, PAPER, seed)
        return [list(next(sampler)) for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)


def test_a_sampler_goes_on_where_another_stopped():
    one, other = (BalancedSampler(GROUPS, 8, PAPER, 3) for _ in range(2))
    for _ in range(17):
        next(one)
    other.load_state_dict(one.state_dict())
    assert [list(next(one)) for _ in range(5)] == [list(next(other)) for _ in range(5)]
    with pytest.raises(ValueError, match="other groups or settings"):
        BalancedSampler(GROUPS, 16, PAPER, 3).load_state_dict(one.state_dict())


def test_a_missing_group_is_an_error_that_says_what_to_record():
    groups = {**GROUPS, "human": []}
    with pytest.raises(ValueError, match=r"no step for human \(25% .* operator takes over"):
        BalancedSampler(groups, 8, PAPER, 0)
    with pytest.raises(ValueError, match=r"no step for human and undesirable.*allow_missing_group"):
        BalancedSampler({"expert": [1]}, 8, PAPER, 0)
    with pytest.raises(ValueError, match=r"no step for takeover.*resolves the task\.$"):
        BalancedSampler({"takeover": []}, 8, {"takeover": 1.0}, 0)


def test_a_missing_groups_share_goes_to_the_others_and_is_said():
    sampler = BalancedSampler({**GROUPS, "human": []}, 9, PAPER, 0, allow_missing=True)
    assert sampler.counts == {"expert": 6, "undesirable": 3}
    assert sampler.notes == [
        "There is no step for human; its share goes to the others: expert 66.7%, undesirable 33.3%."
    ]
    with pytest.raises(ValueError, match="no step for expert"):
        BalancedSampler({}, 9, PAPER, 0, allow_missing=True)


def test_a_batch_too_small_for_a_group_is_refused():
    with pytest.raises(ValueError, match="no room for undesirable"):
        BalancedSampler(GROUPS, 2, PAPER, 0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="cannot be divided among 3 ranks"):
        BalancedSampler(GROUPS, 8, PAPER, 0, 0, 3)
    with pytest.raises(ValueError, match="sum to 1"):
        BalancedSampler(GROUPS, 8, {"expert": 0.5}, 0)
