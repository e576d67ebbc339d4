"""Tokens, proprioception and the embedded policy."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hapo_ros.episodes.types import Observation
from hapo_ros.policies import FAMILIES, family
from hapo_ros.policies.base import Batch, proprioception
from hapo_ros.policies.small import Normalisation
from hapo_ros.policies.tiny_vla import TinyVla, TinyVlaConfig
from hapo_ros.policies.tokenizers import UniformBins, Words

NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
INSTRUCTION = "fit the square nut onto the square peg"


def make(cameras=1, object_state=0, horizon=1, seed=0) -> TinyVla:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = TinyVlaConfig(
        {f"cam{i}": (84, 84) for i in range(cameras)},
        object_state,
        NAMES,
        horizon,
        width=32,
        blocks=2,
    )
    state = rng.normal(size=(50, object_state)) if object_state else None
    return TinyVla(
        config, Normalisation.fit(7, rng.normal(size=(50, 11)), state), Words.fit([INSTRUCTION])
    )


def batch(policy, count=4, seed=0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    images = {
        n: torch.randint(0, 256, (count, *s, 3), generator=g, dtype=torch.uint8)
        for n, s in policy.cameras.items()
    }
    size = policy.object_state
    return Batch(
        images,
        torch.randn(count, 11, generator=g),
        torch.randn(count, size, generator=g) if size else None,
        [INSTRUCTION] * count,
        2 * torch.rand(count, policy.horizon, 7, generator=g) - 1,
        torch.ones(count, policy.horizon, dtype=torch.bool),
    )


@settings(deadline=None)
@given(st.lists(st.floats(-1.5, 1.5, width=32), min_size=1, max_size=20))
def test_bins_are_openvlas_for_numpy_and_torch_alike(values):
    actions = np.array(values, np.float32)
    tokens = UniformBins().encode(actions)
    edges = np.linspace(-1.0, 1.0, 256)
    assert list(tokens) == list(np.digitize(np.clip(actions, -1, 1), edges) - 1)
    assert list(tokens) == UniformBins().encode(torch.from_numpy(actions)).tolist()
    decoded = UniformBins().decode(tokens)
    assert np.abs(decoded - np.clip(actions, -1, 1)).max() <= 1 / 255 + 1e-6
    assert decoded.tolist() == UniformBins().decode(torch.from_numpy(tokens)).tolist()


def test_the_ends_of_the_bins_and_what_is_no_action():
    bins = UniformBins()
    assert bins.encode(np.array([-1.0, 1.0, -9.0, 9.0])).tolist() == [0, 255, 0, 255]
    assert bins.decode(np.array([255]))[0] == bins.decode(np.array([254]))[0]
    assert bins.encode(bins.decode(np.arange(255))).tolist() == list(range(255))
    for bad in (np.array([np.nan]), torch.tensor([float("inf")])):
        with pytest.raises(ValueError, match="no token"):
            bins.encode(bad)
    for bad in (np.array([256]), torch.tensor([-1])):
        with pytest.raises(ValueError, match=r"outside 0\.\.255"):
            bins.decode(bad)


def test_words_are_padded_cut_and_unknown_ones_are_the_same_word():
    words = Words.fit(["Lift the cube.", "fit the nut"])
    assert words.vocabulary == ("cube", "fit", "lift", "nut", "the") and words.length == 3
    assert words.encode("lift cube").tolist() == [4, 2, 0]
    assert words.encode("lift a penguin now").tolist() == [4, 1, 1]


def test_proprioception_is_the_same_for_both_names_of_an_orientation():
    quaternion = np.array([0.9, 0.1, -0.2, 0.3]) / np.linalg.norm([0.9, 0.1, -0.2, 0.3])
    joints = np.r_[np.zeros(7), 0.02, -0.02]
    one, other = (
        proprioception(Observation({}, joints, np.r_[0.1, 0.2, 0.9, sign * quaternion]))
        for sign in (1, -1)
    )
    assert one.dtype == np.float32 and one.shape == (11,)
    np.testing.assert_allclose(one, other)
    first, second = one[3:6], one[6:9]
    assert np.dot(first, second) == pytest.approx(0, abs=1e-6)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(one[9:], [0.02, -0.02])
    with pytest.raises(ValueError, match="quaternion is zero"):
        proprioception(Observation({}, joints, np.zeros(7)))
    with pytest.raises(ValueError, match="pose of 7 numbers"):
        proprioception(Observation({}, np.zeros(1), np.zeros(7)))


@pytest.mark.parametrize(("cameras", "state", "horizon"), [(2, 0, 1), (0, 9, 1), (1, 5, 3)])
def test_acting_gives_a_chunk_in_range_with_a_confidence(cameras, state, horizon):
    policy = make(cameras, state, horizon)
    assert np.isnan(policy.confidence)
    action = policy.act(policy.example(), INSTRUCTION)
    assert action.shape == (horizon, 7) and action.dtype == np.float32
    assert np.abs(action).max() <= 1.0 and 1 / 256 <= policy.confidence <= 1.0


def test_noise_of_a_prediction_is_in_normalised_units():
    policy = make(0, 4, horizon=2)
    policy.normalisation.action_high[0] = 3.0  # -1 to 3 in the action space is -1 to 1
    policy = TinyVla(policy.config, policy.normalisation, policy.words)
    given = batch(policy)
    noise = torch.full((4, 2, 7), 0.1)
    moved = policy.predict(given, generate=True, noise=noise) - policy.predict(given, generate=True)
    torch.testing.assert_close(moved[..., 0], torch.full((4, 2), 0.2))
    torch.testing.assert_close(moved[..., 1:], torch.full((4, 2, 6), 0.1))


def test_acting_with_kept_keys_is_what_teacher_forcing_on_its_own_tokens_predicts():
    policy = make(2, 4, horizon=2)
    observation = policy.example()
    action = policy.act(observation, INSTRUCTION)
    own = policy.batch_of(observation, INSTRUCTION).with_actions(
        torch.from_numpy(action)[None], torch.ones(1, 2, dtype=torch.bool)
    )
    np.testing.assert_array_equal(policy.predict(own)[0], action)
    np.testing.assert_array_equal(policy.predict(own, generate=True)[0], action)
    assert policy.score(own).l1.item() == pytest.approx(0.0, abs=1e-6)
    probability = policy.log_prob(own)[0].exp().mean().item()
    assert probability == pytest.approx(policy.confidence, rel=1e-4)


def test_black_and_white_images_give_different_logits():
    policy = make(2)
    pair = [
        policy.batch_of(policy.example(b), INSTRUCTION).with_actions(
            torch.zeros(1, 1, 7), torch.ones(1, 1, dtype=torch.bool)
        )
        for b in (0, 255)
    ]
    black, white = (policy.logits(b) for b in pair)
    assert (black - white).abs().max() > 1e-3


def test_each_token_depends_on_the_tokens_before_it_and_on_no_later_one():
    policy = make(0, 5)
    one = batch(policy)
    other = one.with_actions(one.actions.clone(), one.action_mask)
    other.actions[:, 0, 3] *= -1
    a, b = policy.logits(one), policy.logits(other)
    torch.testing.assert_close(a[:, :4], b[:, :4])
    assert (a[:, 4:] - b[:, 4:]).abs().amax(-1).min() > 1e-5


def test_a_mismatched_action_is_scored_on_its_own_tokens_not_on_the_recorded_ones():
    """The published code scores it on the recorded action's prefix (method.md 3)."""
    policy = make(1)
    recorded, mismatched = batch(policy, seed=0), batch(policy, seed=1)
    other = recorded.with_actions(mismatched.actions, mismatched.action_mask)
    prefix = policy.forward_observation(recorded)
    reused, fresh = policy.score(other, prefix), policy.score(other)
    torch.testing.assert_close(reused.logps, fresh.logps)
    tokens = policy.bins.encode(mismatched.actions).flatten(1)
    on_recorded = policy.logits(recorded).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    assert (reused.logps[:, 1:] - on_recorded[:, 1:]).abs().max() > 1e-4


def test_log_probabilities_are_masked_where_the_chunk_is():
    policy = make(0, 5, horizon=2)
    b = batch(policy)
    b.action_mask[0, 1] = False
    logps, mask = policy.log_prob(b)
    assert logps.shape == mask.shape == (4, 14) and (logps <= 0).all()
    assert mask[0].tolist() == [True] * 7 + [False] * 7
    expected = -logps[0, :7].mean()
    torch.testing.assert_close(policy.bc_loss(b)[0], expected)
    assert policy.token_names[6] == policy.token_names[13] == "gripper"


def test_the_instruction_is_read():
    policy = make(1)
    one, other = batch(policy), batch(policy)
    other.instructions = ["square square square"] * 4
    assert (policy.logits(one) - policy.logits(other)).abs().max() > 1e-5


def test_an_observation_unlike_training_is_refused():
    policy = make(1, 4)
    observation = policy.example()
    observation.images["cam0"] = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="camera 'cam0' at 84 x 84"):
        policy.act(observation, INSTRUCTION)
    observation = policy.example()
    observation.object_state = None
    with pytest.raises(ValueError, match="object state of 4 numbers and got none"):
        policy.act(observation, INSTRUCTION)
    with pytest.raises(ValueError, match="needs a camera or an object state"):
        TinyVlaConfig({}, 0, NAMES)


def test_the_same_input_gives_the_same_bits_in_another_process():
    code = (
        "import numpy as np, torch; torch.set_num_threads(1); torch.manual_seed(0)\n"
        "from hapo_ros.policies.small import Normalisation\n"
        "from hapo_ros.policies.tiny_vla import *\n"
        "names = ('x', 'y', 'gripper')\n"
        "p = TinyVla(TinyVlaConfig({'c': (84, 84)}, 0, names, width=32, blocks=2),"
        " Normalisation.fit(3, np.eye(11)), Words.fit(['lift']))\n"
        "for i in range(0, 256, 51): print(p.act(p.example(i), 'lift').tobytes().hex(),"
        " p.confidence.hex())\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1] and len(set(runs[0].split())) > 6


def test_it_is_small_enough_for_two_cores():
    names = ("agentview", "robot0_eye_in_hand")
    config = TinyVlaConfig(dict.fromkeys(names, (84, 84)), 0, NAMES)
    policy = TinyVla(config, Normalisation.fit(7, np.eye(11)), Words.fit([INSTRUCTION]))
    parameters = sum(p.numel() for p in policy.network.parameters())
    assert 4 * parameters < 8e6


def test_families_are_imported_when_asked_for_and_unknown_ones_named():
    assert family("tiny_vla") is TinyVla
    with pytest.raises(ValueError, match=f"Use one of: {', '.join(sorted(FAMILIES))}"):
        family("gpt")
    code = "import sys, hapo_ros.policies, hapo_ros.learning; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
