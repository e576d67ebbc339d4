"""The flow policy: its error, its mask, how it acts, and its checkpoints (docs/flow.md)."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from hapo_ros.policies import checkpoint, lora
from hapo_ros.policies.base import Batch, finite_act
from hapo_ros.policies.flow import NATS, Flow, FlowConfig
from hapo_ros.policies.small import Normalisation
from hapo_ros.policies.tokenizers import Words

NAMES = ("x", "y", "gripper")
B, S, T, D = 3, 2, 4, 3


def make(cameras=0, seed=0, **config) -> Flow:
    torch.manual_seed(seed)
    seen = {f"cam{i}": (16, 16) for i in range(cameras)}
    sizes = {"horizon": T, "width": 16, "blocks": 2, "heads": 2} | config
    shape = FlowConfig(seen, 2, NAMES, **sizes)
    normal = np.random.default_rng(seed).normal(size=(40, 11))
    return Flow(shape, Normalisation.fit(D, normal, normal[:, :2]), Words.fit(["lift it"]))


def batch(seed=0, valid=(4, 2, 1)) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(
        {},
        torch.randn(B, 11, generator=g),
        torch.randn(B, 2, generator=g),
        ["lift it"] * B,
        2 * torch.rand(B, T, D, generator=g) - 1,
        torch.arange(T) < torch.tensor(valid)[:, None],
        torch.randn(B, S, T, D, generator=g),
        torch.rand(B, S, generator=g),
    )


@pytest.fixture(scope="module")
def policy() -> Flow:
    return make()


# What it is trained by


def test_the_flow_error_is_the_mean_over_valid_actions_of_the_squared_velocity_error(policy):
    """By hand, for each draw by itself, from the velocities of the noisy actions."""
    given = batch()
    actions, noise, time = (x.double().numpy() for x in (given.actions, given.noise, given.time))
    prefix = policy.forward_observation(given)
    expected, l1 = np.zeros(B), np.zeros(B)
    for b in range(B):
        valid = int(given.action_mask[b].sum())
        for s in range(S):
            t = time[b, s]
            noisy = (1 - t) * noise[b, s] + t * actions[b]
            one = [tuple(part[b : b + 1] for part in block) for block in prefix]
            x = torch.tensor(noisy[None], dtype=torch.float32)
            with torch.no_grad():
                there = given.action_mask[b : b + 1]
                v = policy.network.velocity(one, x, torch.tensor([t]), there)[0, :valid].numpy()
            expected[b] += ((v - (actions[b] - noise[b, s])[:valid]) ** 2).sum() / valid / S
            reached = noisy[:valid] + (1 - t) * v
            l1[b] += np.abs(reached - actions[b, :valid]).mean() / S
    with torch.no_grad():
        scored = policy.score(given, prefix)
        alone = replace(given, noise=None, time=None)
        errors = policy.flow_error(alone, given.noise, given.time), policy.bc_loss(given)
    for got in (*errors, scored.bc_loss(), -scored.logps.sum(1) / NATS):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(scored.l1.numpy(), l1, rtol=1e-4)
    assert scored.mask.sum(1).tolist() == [12, 6, 3] and scored.decodable.all()
    assert (scored.logps[~scored.mask] == 0).all()
    with pytest.raises(ValueError, match="draws of noise and time; the batch holds none"):
        policy.bc_loss(alone)


def test_each_number_of_a_chunk_has_its_share_of_the_error_under_its_own_name():
    """So that a gripper's can be left out."""
    policy = make()
    policy.network.head.weight.data.zero_()
    policy.network.head.bias.data = torch.tensor([0.1, -0.2, 0.3])
    given = batch()
    with torch.no_grad():
        logps = policy.score(given).logps.numpy()
    u = (given.actions[:, None] - given.noise).numpy()
    squared = ((np.array([0.1, -0.2, 0.3]) - u) ** 2).mean(1)
    share = squared * given.action_mask.numpy()[..., None] / np.array([4, 2, 1])[:, None, None]
    np.testing.assert_allclose(logps, -NATS * share.reshape(B, -1), rtol=1e-5)
    assert policy.token_names == NAMES * T


def test_what_lies_behind_the_end_of_a_chunk_makes_no_difference(policy):
    given = batch()
    behind = ~given.action_mask
    other = replace(given, actions=given.actions.clone(), noise=given.noise.clone())
    other.actions[behind] = 9.0
    other.noise[behind[:, None].expand(-1, S, -1)] = -9.0
    with torch.no_grad():
        one, two = policy.score(given), policy.score(other)
    assert torch.equal(one.logps, two.logps) and torch.equal(one.l1, two.l1)
    other.actions[0, 3] += 0.5
    with torch.no_grad():
        assert not torch.equal(policy.score(other).logps[0], one.logps[0])


def test_the_first_velocity_depends_on_the_last_action_the_time_and_the_observation(policy):
    given = batch()
    noisy, time = given.noise[:, 0], given.time[:, 0]
    later = noisy.clone()
    later[:, -1] += 1.0
    with torch.no_grad():
        prefix = policy.forward_observation(given)
        seen = policy.forward_observation(replace(given, object_state=given.object_state + 1))
        first = policy.network.velocity(prefix, noisy, time)[:, 0]
        for other in ((prefix, later, time), (prefix, noisy, time / 2), (seen, noisy, time)):
            assert ((policy.network.velocity(*other)[:, 0] - first).abs().sum(1) > 1e-4).all()


def test_the_gradients_are_those_of_finite_differences():
    policy = make()
    network = policy.network.double()
    for part in policy._constants:
        policy._constants[part] = policy._constants[part].double()
    given = batch()
    given.proprio, given.object_state = given.proprio.double(), given.object_state.double()
    given.actions, given.time = given.actions.double(), given.time.double()
    weights = network.head.weight, network.timed[0].bias, network.blocks[0].attention_out.bias

    def error(noise, *_):
        return policy.flow_error(given, noise, given.time)

    noise = given.noise.double().requires_grad_()
    assert torch.autograd.gradcheck(error, (noise, *weights), fast_mode=True)


def test_a_unit_of_error_is_worth_nats_to_actions_that_scatter_by_a_sixteenth():
    """docs/flow.md eq. (6), for the best velocity there is for actions of a normal distribution."""
    scatter, moved = 2 / (math.pi * NATS), 0.3
    t = (np.arange(400_000) + 0.5) / 400_000
    variance = t**2 * scatter**2 + (1 - t) ** 2

    def error(action):  # of N(0, scatter) for this action; it is quadratic in the noise
        errors = []
        for noise in (-1.0, 1.0):
            x = (1 - t) * noise + t * action
            best = (t * scatter**2 - (1 - t)) / variance * x
            errors.append((best - (action - noise)) ** 2)
        return np.mean(errors)

    worth = NATS * (error(moved) - error(0.0))
    assert worth == pytest.approx(moved**2 / (2 * scatter**2), rel=1e-3)
    assert scatter == pytest.approx(1 / 16, rel=0.02)


# How it acts


def test_acting_follows_the_velocity_from_its_noise_in_euler_steps():
    policy = make(integration_steps=5)
    policy.network.head.weight.data.zero_()
    policy.network.head.bias.data = torch.tensor([0.4, -0.4, 3.0])
    action = policy.act(policy.example(), "lift it")
    expected = (policy.network.start + torch.tensor([0.4, -0.4, 3.0])).clamp(-1, 1)[:2]
    np.testing.assert_allclose(action, expected.numpy(), atol=1e-6)
    times = []
    policy.network.velocity = lambda prefix, x, t: times.append(t) or t[:, None, None].expand_as(x)
    action = policy.act(policy.example(), "lift it")
    assert [t[0].item() for t in times] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    expected = (policy.network.start + 0.4).clamp(-1, 1)[:2]
    np.testing.assert_allclose(action, expected.numpy(), atol=1e-6)


def test_it_executes_half_of_its_chunk_or_what_it_is_told(policy):
    assert np.isnan(policy.confidence)
    action = finite_act(policy, policy.example(), "lift it")
    assert action.shape == (2, D) and action.dtype == np.float32
    assert np.abs(action).max() <= 1.0 and 0.0 <= policy.confidence <= 1.0
    assert make(executed=1).act(policy.example(), "lift it").shape == (1, D)
    assert FlowConfig({}, 2, NAMES).horizon == 50 and FlowConfig({}, 2, NAMES).executed == 25
    for bad in ({"executed": 5}, {"executed": 0}, {"integration_steps": 0}):
        with pytest.raises(ValueError, match="cannot be executed, or"):
            make(**bad)


def test_its_confidence_is_how_close_it_comes_to_the_mean_of_what_it_might_do():
    policy = make(executed=1)
    start = policy.network.start
    two_ways = torch.where(start > 0, 0.6, -0.6)  # actions of either sign, by that of the noise
    velocity = policy.network.velocity
    policy.network.velocity = lambda _, x, t: torch.where(  # the best one, at 0 and later
        (t == 0)[:, None, None], -x, (two_ways - x) / (1 - t)[:, None, None]
    )
    action = policy.act(policy.example(), "lift it")
    np.testing.assert_allclose(action, two_ways[:1].numpy(), atol=1e-6)
    assert policy.confidence == pytest.approx(1 - 0.6 / 2, rel=1e-5)
    policy.network.velocity = lambda _, x, t: (0.6 - x) / (1 - t)[:, None, None]
    policy.act(policy.example(), "lift it")
    assert policy.confidence == pytest.approx(1.0)
    policy.network.velocity = velocity
    policy.network.head.bias.data[0] = math.nan
    with pytest.raises(ValueError, match="confidence is nan"):
        finite_act(policy, policy.example(), "lift it")


def test_a_prediction_is_what_acting_gives_and_noise_is_in_normalised_units():
    policy = make()
    policy.normalisation.action_high[0] = 3.0  # -1 to 3 in the action space is -1 to 1
    policy = Flow(policy.config, policy.normalisation, policy.words)
    seen = policy.batch_of(policy.example(), "lift it")
    predicted = policy.predict(seen, generate=True)
    np.testing.assert_allclose(predicted[0, :2], policy.act(policy.example(), "lift it"), atol=1e-5)
    moved = policy.predict(seen, noise=torch.full((1, T, D), 0.1)) - predicted
    torch.testing.assert_close(moved[..., 0], torch.full((1, T), 0.2))
    torch.testing.assert_close(moved[..., 1:], torch.full((1, T, 2), 0.1))
    own = seen.with_actions(predicted, torch.ones(1, T, dtype=torch.bool))
    own.noise, own.time = torch.randn(1, 1, T, D), torch.rand(1, 1)
    assert policy.score(own, generate=True).l1.item() == pytest.approx(0.0, abs=1e-6)
    assert policy.score(own).l1.item() > 1e-3


def test_the_same_observation_gives_the_same_bits_again_and_in_another_process(tmp_path):
    policy = make(cameras=1)
    checkpoint.save(policy, tmp_path / "a", {})
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from hapo_ros.policies import checkpoint\n"
        "p = checkpoint.load(sys.argv[1])\n"
        "for i in (0, 51): print(p.act(p.example(i), 'lift').tobytes().hex(), p.confidence.hex())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a"],
        capture_output=True, text=True, check=True, timeout=110,
    ).stdout.split()  # fmt: skip
    here = []
    for brightness in (0, 51, 0):
        torch.manual_seed(brightness)
        here += [policy.act(policy.example(brightness), "lift").tobytes().hex()]
        here += [policy.confidence.hex()]
    assert here == [*told, *told[:2]] and told[0] != told[2]


# Its checkpoints


def test_a_loaded_policy_is_the_saved_one_and_keeps_its_noise(tmp_path):
    policy = make(cameras=1, executed=3, integration_steps=4)
    version = checkpoint.save(policy, tmp_path / "a", {})
    torch.manual_seed(7)
    loaded = checkpoint.load(tmp_path / "a")
    assert loaded.version == version
    assert replace(loaded.config, cameras=policy.config.cameras) == policy.config
    observation = policy.example()
    np.testing.assert_array_equal(
        loaded.act(observation, "lift it"), policy.act(observation, "lift it")
    )
    assert loaded.act(observation, "lift it").shape == (3, D)
    checkpoint.check(loaded)


def test_an_adapter_changes_all_its_layers_and_merges(tmp_path):
    policy = make()
    checkpoint.save(policy, tmp_path / "base", {})
    lora.add_lora(policy, rank=4)
    with torch.no_grad():
        before = policy.response(batch())
        for name, parameter in policy.network.named_parameters():
            if ".lora_B" in name:
                parameter += 0.1
        after = policy.response(batch())
        with lora.adapter_off(policy):
            assert torch.equal(policy.response(batch()), before)
    assert not torch.allclose(after, before, atol=1e-3)
    checkpoint.save(policy, tmp_path / "merged", {})
    checkpoint.save(policy, tmp_path / "alone", {}, merge=False, base=tmp_path / "base")
    for name in ("merged", "alone"):
        with torch.no_grad():
            response = checkpoint.load(tmp_path / name).response(batch())
        torch.testing.assert_close(response, after, rtol=1e-4, atol=1e-5)


def test_one_that_does_not_see_or_is_not_finite_is_not_served():
    policy = make(cameras=1)
    checkpoint.check(policy)
    policy.network.cameras["camera_cam0"].out.weight.data.zero_()
    with pytest.raises(ValueError, match="alike to black and to white images"):
        checkpoint.check(policy)
    policy.network.head.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="It is not served"):
        checkpoint.check(policy)
