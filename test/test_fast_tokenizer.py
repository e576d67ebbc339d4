"""FAST: chunks of actions as tokens, and back."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hapo_ros.policies.fast_tokenizer import FastTokenizer, cosines


def smooth(count=300, steps=5, dimensions=7, seed=0):
    """(count, steps, dimensions) chunks of slow motion, the last dimension a gripper that stays."""
    rng = np.random.default_rng(seed)
    time = np.arange(steps)[:, None] / 20
    motion = rng.uniform(-1, 1, (count, 1, dimensions)) * np.cos(
        time * rng.uniform(0, 2, (count, 1, dimensions)) + rng.uniform(0, 6, (count, 1, dimensions))
    )
    motion[..., -1] = rng.choice([-1, 1], (count, 1))
    return motion


@pytest.fixture(scope="module")
def fitted():
    return FastTokenizer.fit(smooth(), scale=20, vocabulary=256)


def test_the_cosine_transform_is_the_one_that_a_hand_computes():
    np.testing.assert_allclose(cosines(1), [[1.0]])
    np.testing.assert_allclose(cosines(2), np.array([[1, 1], [1, -1]]) / np.sqrt(2), atol=1e-12)
    thirds = [[1 / 3**0.5] * 3, [0.5**0.5, 0, -(0.5**0.5)], [1 / 6**0.5, -2 / 6**0.5, 1 / 6**0.5]]
    np.testing.assert_allclose(cosines(3), thirds, atol=1e-12)
    np.testing.assert_allclose(cosines(5) @ cosines(5).T, np.eye(5), atol=1e-12)


def test_tokens_are_scaled_and_rounded_coefficients_low_frequencies_first():
    """Of (1, 0.5) and (0, -1): sums 1.0607 and -0.7071, differences 0.3536 and 0.7071."""
    plain = FastTokenizer(horizon=2, dimensions=2, scale=10)
    assert plain.largest == 14 and len(plain) == 30 and plain.longest == 5
    (tokens,) = plain.encode([[[1.0, 0.0], [0.5, -1.0]]])
    assert [token - 14 for token in tokens[:-1]] == [11, -7, 4, 7] and tokens[-1] == plain.end == 29
    expected = np.array([[15, 0], [7, -14]]) / 10 / np.sqrt(2)
    np.testing.assert_allclose(plain.decode(tokens), np.clip(expected, -1, 1), atol=1e-6)


@settings(max_examples=60)
@given(arrays(np.float32, (5, 7), elements=st.floats(-1.25, 1.25, width=32)))
def test_every_chunk_comes_back_within_the_quantisation(fitted, chunk):
    (tokens,) = fitted.encode(chunk[None])
    assert tokens.index(fitted.end) == len(tokens) - 1 < fitted.longest
    decoded = fitted.decode(tokens)
    assert decoded.shape == (5, 7) and decoded.dtype == np.float32
    bound = np.sqrt(5) / (2 * 20) + 1e-6
    assert np.abs(decoded - np.clip(chunk, -1, 1)).max() <= bound
    assert fitted.decode([*tokens, 0, fitted.end]).tolist() == decoded.tolist()


def test_smooth_chunks_take_fewer_tokens_than_numbers_and_rough_ones_at_most_as_many(fitted):
    lengths = [len(tokens) - 1 for tokens in fitted.encode(smooth(seed=1))]
    assert np.mean(lengths) < 0.6 * 35
    rough = np.random.default_rng(0).uniform(-1, 1, (50, 5, 7))
    assert np.mean(lengths) < np.mean([len(t) - 1 for t in fitted.encode(rough)]) <= 35
    plain = FastTokenizer(5, 7, scale=20)
    assert {len(tokens) for tokens in plain.encode(rough)} == {plain.longest}


def test_fitting_is_the_same_in_any_order_and_keeps_to_its_vocabulary(fitted):
    again = FastTokenizer.fit(smooth()[::-1], scale=20, vocabulary=256)
    assert again.merges == fitted.merges and len(fitted) == len(fitted.pieces) + 1 == 256
    other = FastTokenizer.fit(smooth(seed=1), scale=20, vocabulary=256)
    assert other.merges != fitted.merges


def test_what_is_stored_is_the_same_tokenizer(fitted):
    stored = FastTokenizer.from_dict(json.loads(json.dumps(fitted.as_dict())))
    assert stored.encode(smooth(seed=2)) == fitted.encode(smooth(seed=2))
    assert stored.pieces == fitted.pieces and stored.as_dict() == fitted.as_dict()


def test_tokens_that_are_no_chunk_are_none(fitted):
    (tokens,) = fitted.encode(smooth(1))
    zero = fitted.pieces.index((0,))
    for wrong in (tokens[:-1], tokens[1:], [zero, *tokens], [fitted.end, *tokens], []):
        assert fitted.decode(wrong) is None


def test_what_cannot_be_a_tokenizer_is_refused(fitted):
    with pytest.raises(ValueError, match="no whole chunk"):
        FastTokenizer.fit(np.zeros((0, 5, 7)), scale=20, vocabulary=256)
    with pytest.raises(ValueError, match="vocabulary of 90 has no room for the 92 tokens"):
        FastTokenizer.fit(smooth(5), scale=20, vocabulary=90)
    with pytest.raises(ValueError, match="Use a smaller scale"):
        FastTokenizer(50, 7, scale=1000)
    with pytest.raises(ValueError, match="scale above 0"):
        FastTokenizer(5, 7, scale=0)
    with pytest.raises(ValueError, match="it has no token"):
        fitted.encode(np.full((1, 5, 7), np.nan))
    stored = fitted.as_dict()
    with pytest.raises(ValueError, match="belongs to another policy"):
        FastTokenizer.from_dict("uniform_bins")
    doubled = [[91 + i, 91 + i] for i in range(9)]
    for merges in ([[0, 4000]], [[-1, 0]], [[0, 0], *doubled]):
        with pytest.raises(ValueError, match="it is damaged"):
            FastTokenizer.from_dict(stored | {"merges": merges})
