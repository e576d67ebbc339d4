"""``benchmarks/optimizer.py``: that what it measures is the method, and its bound is counted right.

How fast it is, nobody tests.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hapo_ros.learning import methods, reference
from hapo_ros.learning.updates import Kto
from hapo_ros.policies import lora

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SAMPLES, BETA = 4, 0.5


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture(scope="module")
def shape(benchmarks):
    from llama_policy import Shape

    return Shape(2, 64, 96, 4, 300, text_tokens=5, image_tokens=3, feature_width=8)


def network(shape, seed=0):
    from llama_policy import language_model

    return language_model(shape, SAMPLES, seed, "cpu", torch.float32)


def made_up(shape):
    from llama_policy import made_up_steps

    return made_up_steps(shape, SAMPLES, 0)


def update(policy, table, base, **settings):
    """A step of kto, with the references of ``base``."""
    settings = methods.resolve("kto", {"batch_size": SAMPLES, **settings})
    kept = reference.compute(base, table, Kto.second(settings), Kto.draws(base, settings))
    return Kto(policy, table, settings, kept)


def directly(model, shape, table, actions):
    """(B, 7) log-probabilities: whole sequences through the network as transformers has it."""
    from llama_policy import BINS

    edges = np.linspace(-1, 1, BINS)
    tokens = torch.from_numpy(np.digitize(actions[:, 0], edges) - 1 + shape.vocabulary - BINS)
    seen = model.get_input_embeddings()
    words = torch.from_numpy(table.object_state[:, shape.image_tokens :]).long()
    images = seen.features.reshape(SAMPLES, shape.image_tokens, -1) @ seen.projector.weight.T
    parts = [images + seen.projector.bias, seen.words(words), seen.words(tokens)]
    logits = model(inputs_embeds=torch.cat(parts, 1)).logits[:, shape.prefix - 1 : -1]
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def test_scores_are_those_of_whole_sequences_whatever_was_kept(shape):
    from llama_policy import LlamaPolicy

    model, table = network(shape), made_up(shape)
    policy, batch = LlamaPolicy(model), table.batch(np.arange(SAMPLES))
    other = np.roll(table.actions, 1, 0)
    prefix = policy.forward_observation(batch)
    with torch.no_grad():
        for actions in (table.actions, other, table.actions):
            given = batch.with_actions(torch.from_numpy(actions), batch.action_mask)
            expected = directly(model, shape, table, actions)
            torch.testing.assert_close(policy.score(given, prefix).logps, expected)
        assert (expected - directly(model, shape, table, other)).abs().max() > 0.01


@pytest.mark.parametrize("micro_batch", [SAMPLES, 1])
def test_its_kto_step_is_the_published_loss_of_whole_sequences(shape, micro_batch):
    """TRL's formula, written out; the gripper's token counts, as in the benchmark."""
    from llama_policy import LlamaPolicy

    model, table = network(shape, seed=1), made_up(shape)
    base = LlamaPolicy(network(shape))
    options = {"micro_batch": micro_batch, "beta": BETA, "no_gripper_rule": True}
    metrics = update(LlamaPolicy(model), table, base, **options).accumulate(np.arange(SAMPLES))
    found = {n: p.grad for n, p in model.named_parameters()}

    twin, first = network(shape, seed=1), network(shape)
    own, other = (
        directly(twin, shape, table, actions) - directly(first, shape, table, actions).detach()
        for actions in (table.actions, table.actions[reference.partners(table.episode, 0)])
    )
    z0 = other.sum(1).mean().detach().clamp(min=0)
    sign = torch.from_numpy(np.where(table.desirable, 1.0, -1.0)).float()
    loss = (1 - torch.sigmoid(BETA * sign * (own.sum(1) - z0))).mean()
    loss.backward()
    assert z0 > 0.01
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert metrics["z0"] == pytest.approx(float(z0), rel=1e-3)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("rank", [None, lora.RANK], ids=["full", "lora"])
def test_the_work_that_is_counted_is_the_work_that_is_done(rank):
    """By torch's own counter, on a shape whose attention, which it counts without regard to what
    is masked, hardly matters."""
    from llama_policy import LlamaPolicy, Shape
    from optimizer import work

    shape = Shape(6, 128, 256, 4, 300, text_tokens=16)
    table, policy = made_up(shape), LlamaPolicy(network(shape))
    kto = update(policy, table, policy)
    if rank:
        lora.add_lora(policy, rank)
    with FlopCounterMode(display=False) as counter:
        kto.accumulate(np.arange(SAMPLES))
    counted = SAMPLES * work("kto", shape, rank)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.05)
