"""What a flow policy learns by each method, and what that must not depend on (docs/flow.md)."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from toy_episodes import SMALL, episode, episodes, gradients, trained_base, update_of

from hapo_ros.learning import loop, methods, reference, trainer
from hapo_ros.learning.data import build
from hapo_ros.learning.draws import Draws
from hapo_ros.policies import checkpoint, lora
from hapo_ros.policies.flow import NATS

HORIZON = 3
QUICK = {"k": 4, "steps": 2, "batch_size": 8, "warmup": 0, "min_human": 1, "critic_warmup": 0}
PREFERENCES = [name for name in methods.METHODS if "bc_weight" in methods.resolve(name)]


@pytest.fixture(scope="module")
def table():
    return build(episodes(), k=4, horizon=HORIZON)


@pytest.fixture(scope="module")
def base(table, tmp_path_factory):
    """A checkpoint, trained a little by behaviour cloning."""
    folder = tmp_path_factory.mktemp("base")
    return trained_base(table, folder, steps=30, family="flow", horizon=HORIZON)


def rows_of(table, method):
    if method == "tpo":
        return table.groups["takeover"]
    return np.concatenate([table.groups[name][:3] for name in ("expert", "human", "undesirable")])


def known(method, settings):
    return {name: value for name, value in settings.items() if name in methods.resolve(method)}


# The draws


def test_draws_are_a_rows_own_whatever_else_is_in_the_batch(table, base):
    policy = checkpoint.load(base.checkpoint)
    draws = Draws(policy, seed=3, samples=4)

    def drawn(rows, number, draws=draws):
        return draws.given(table.batch(rows), rows, number)

    together, alone = drawn([5, 9, 2], 7), drawn([9], 7)
    assert together.noise.shape == (3, 4, HORIZON, 3) and together.time.shape == (3, 4)
    assert torch.equal(together.noise[1:2], alone.noise)
    assert torch.equal(together.time[1:2], alone.time)
    for other in (drawn([9], 8), drawn([8], 7), drawn([9], 7, Draws(policy, 4, 4))):
        assert not torch.equal(other.noise, alone.noise) and not torch.equal(other.time, alone.time)
    assert (together.time * 4).floor().tolist() == [[0, 1, 2, 3]] * 3, "one in each quarter"
    many = drawn(np.arange(len(table)), 0)
    assert abs(many.noise.mean()) < 0.05 and many.noise.std() == pytest.approx(1, abs=0.05)


def test_each_row_goes_through_its_sets_in_an_order_of_its_own(base):
    draws = Draws(checkpoint.load(base.checkpoint), 0, samples=2, sets=3)
    chosen = np.stack([draws.chosen(step, np.arange(50)) for step in range(60)])
    np.testing.assert_allclose(np.bincount(chosen.ravel()) / chosen.size, [1 / 3] * 3, atol=0.03)
    assert abs(np.corrcoef(chosen[:, :2].T)[0, 1]) < 0.4
    assert draws.chosen(8, [[30, 31]]).tolist() == [chosen[8, 30:32].tolist()]


# Every method


@pytest.mark.parametrize("method", [name for name in methods.METHODS if name != "bc"])
def test_8_samples_at_once_are_8_micro_batches_of_1(base, table, method):
    rows = rows_of(table, method)
    own = known(method, {"bc_weight": 0.5, "undesirable_floor": -0.2, "critic_warmup": 0,
                         "min_human": 1, "l1_prediction": "generate"})  # fmt: skip
    updates = [update_of(method, base, table, micro_batch=n, **own) for n in (len(rows), 1)]
    losses = []
    for _ in range(2):  # the second time at other draws, and alike
        (whole, whole_gradient), (parts, gradient) = (gradients(u, rows) for u in updates)
        assert whole_gradient.norm() > 1e-3
        torch.testing.assert_close(gradient, whole_gradient, rtol=1e-3, atol=1e-5)
        assert parts == pytest.approx(whole, rel=1e-3, abs=1e-5, nan_ok=True)
        losses.append(whole["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("method", ["bc_continue", "hapo", "tpo", "habc_v"])
def test_a_run_that_was_cancelled_ends_as_one_that_was_not(base, table, tmp_path, method):
    settings = known(method, QUICK)
    whole = trainer.optimize(table, base.checkpoint, method, settings, tmp_path / "whole")
    steps = []
    hooks = {"progress": steps.append, "cancelled": lambda: len(steps) == 1}
    given = table, base.checkpoint, method, settings, tmp_path / "cut"
    with pytest.raises(loop.Cancelled):
        trainer.optimize(*given, **hooks)
    assert trainer.optimize(*given, resume=True).version == whole.version


def test_the_sizes_of_a_flow_policy_are_settings_and_no_other_familys(base, table, tmp_path):
    assert checkpoint.load(base.checkpoint).config.executed == 2
    sizes = {"executed": 1, "integration_steps": 3}
    settings = {**SMALL, "k": 4, "steps": 1, "family": "flow", "horizon": HORIZON, **sizes}
    made = trainer.train_bc(table, settings, tmp_path / "sized")
    config = checkpoint.load(made.checkpoint).config
    assert (config.executed, config.integration_steps, config.horizon) == (1, 3, HORIZON)
    with pytest.raises(ValueError, match="tiny_vla has no executed and no integration_steps"):
        trainer.train_bc(table, {**settings, "family": "tiny_vla"}, tmp_path / "other")


# HAPO's objective


def errors(policy, table, rows, draws, number, dimensions=slice(None), actions=None):
    """(len(rows),) flow-matching errors in some dimensions of the actions, in numpy."""
    given = draws.given(table.batch(rows), rows, number)
    if actions is not None:
        given = given.with_actions(*actions)
    there = given.action_mask
    noise, time = given.noise, given.time
    found = np.zeros(len(rows))
    with torch.no_grad():
        prefix = policy.forward_observation(given)
        for s in range(noise.shape[1]):
            t = time[:, s, None, None]
            noisy = (1 - t) * noise[:, s] + t * given.actions
            v = policy.network.velocity(prefix, noisy, time[:, s], there)
            squared = ((v - (given.actions - noise[:, s])) ** 2).numpy()[..., dimensions].sum(2)
            found += (squared * there.numpy()).sum(1) / there.numpy().sum(1) / noise.shape[1]
    return found


@pytest.mark.parametrize("steps_before", [0, 3])
def test_the_log_ratio_is_the_difference_of_errors_at_shared_noise_and_time(
    base, table, steps_before
):
    """kto by hand: the gripper's error is left out of what failed, z0 is of mismatched actions."""
    rows = rows_of(table, "kto")
    update = update_of("kto", base, table, moved=True, micro_batch=4, beta=0.7)
    update.updates = steps_before
    metrics, _ = gradients(update, rows)
    policy, draws = update.policy, update.reference.draws
    old = checkpoint.load(base.checkpoint)
    old.network.head.weight.data *= 0.6  # what the reference was computed from, see update_of
    chosen = draws.chosen(steps_before, rows)
    assert len(set(chosen)) > 1
    pairs = reference.partners(table.episode, 0)[rows]

    def ratio(dimensions=slice(None), actions=None):
        new, was = (errors(p, table, rows, draws, chosen, dimensions, actions)
                    for p in (policy, old))  # fmt: skip
        return NATS * (was - new)

    z0 = max(0.0, ratio(actions=table.action_tensors(pairs)).mean())
    desirable = table.desirable[rows]
    r = np.where(desirable, ratio(), ratio(slice(0, 2)))
    value = 1 / (1 + np.exp(-0.7 * np.where(desirable, 1, -1) * (r - z0)))
    assert metrics["z0"] == pytest.approx(z0, rel=1e-3, abs=1e-5)
    assert metrics["reward_desirable"] == pytest.approx(r[desirable].mean(), rel=1e-3)
    assert metrics["reward_undesirable"] == pytest.approx(r[~desirable].mean(), rel=1e-3)
    assert metrics["loss"] == pytest.approx((1 - value).mean(), rel=1e-3)


def test_at_the_start_of_a_round_nothing_is_different_and_the_loss_is_one_half(base, table):
    update = update_of("kto", base, table, moved=False)
    metrics, _ = gradients(update, rows_of(table, "kto"))
    assert metrics["loss"] == pytest.approx(0.5, abs=1e-5) and abs(metrics["z0"]) < 1e-4
    assert metrics["reward_desirable"] == pytest.approx(0.0, abs=1e-3)


def test_a_kept_reference_is_a_fresh_one_and_the_policy_with_its_adapter_off(base, table, tmp_path):
    policy = checkpoint.load(base.checkpoint)
    second = reference.Second("mismatched", 3)
    draws = Draws(policy, 0, samples=2, sets=3)
    fresh = reference.compute(policy, table, second, draws, batch_size=5)
    assert fresh.logps.shape == (3 * len(table), 3 * HORIZON)
    for _ in range(2):
        kept = reference.cached(policy, table, second, draws, tmp_path)
        np.testing.assert_allclose(kept.logps, fresh.logps, atol=1e-4)
        np.testing.assert_allclose(kept.second_logps, fresh.second_logps, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [f"reference-{fresh.key}.npz"]
    others = [Draws(policy, *other) for other in ((1, 2, 3), (0, 1, 3), (0, 2, 2))]
    keys = {reference.key_of(policy, table, second, other) for other in (draws, *others)}
    assert len(keys) == 4
    lora.add_lora(policy, rank=4)
    for name, parameter in policy.network.named_parameters():
        if ".lora_B" in name:
            parameter.data += 0.1
    on = reference.compute(policy, table, second, draws)
    with lora.adapter_off(policy):
        off = reference.compute(policy, table, second, draws)
    np.testing.assert_allclose(off.logps, fresh.logps, atol=1e-4)
    assert np.abs(on.logps - fresh.logps).max() > 0.1


def test_runs_with_and_without_a_kept_reference_come_to_the_same_checkpoint(base, table, tmp_path):
    for method in ("hapo", "dpo"):
        given = table, base.checkpoint, method, known(method, QUICK)
        versions = {
            trainer.optimize(*given, tmp_path / f"{method}{i}", reference_cache=cache).version
            for i, cache in enumerate((None, tmp_path / "kept", tmp_path / "kept"))
        }
        assert len(versions) == 1, method


def test_a_run_warns_of_undesirable_actions_per_action_whatever_the_chunk(
    base, table, tmp_path, monkeypatch
):
    """A log-ratio of a flow policy is a mean over its actions."""
    warn, told = loop._warn_of_runaway, []

    def watched(step, recent, actions, log):
        told.append(actions)
        warn(step, recent, actions, log)

    monkeypatch.setattr(loop, "_warn_of_runaway", watched)
    settings = known("kto", QUICK) | {"steps": 1}
    trainer.optimize(table, base.checkpoint, "kto", settings, tmp_path / "new")
    assert told == [1]


# That it learns

WRONG, RIGHT = -0.5, 0.5


def corrected(count=4):
    """Where the state is -1 demonstrations do nothing; where it is 1 the policy does the WRONG for
    4 steps and the operator the RIGHT for 4."""

    def made(name, source, live, second, state):
        actions = np.stack([np.zeros(len(live)), second, np.ones(len(live))], 1)
        return episode(name, source, live, actions, np.full((len(live), 2), state))

    shown = [made(f"d{i}", "demonstration", [1] * 8, [0.0] * 8, -1.0) for i in range(count)]
    helped = [
        made(f"r{i}", "deployment", [1] * 4 + [2] * 4, [WRONG] * 4 + [RIGHT] * 4, 1.0)
        for i in range(count)
    ]
    return build([*shown, *helped], k=4)


@pytest.fixture(scope="module")
def wronging(tmp_path_factory):
    """What was recorded with a base policy that does the WRONG where it is helped, and that."""
    table = corrected()
    taught = replace(table, labels=np.where(table.labels == 2, 3, 1).astype(np.int8))
    settings = {**SMALL, "k": 4, "steps": 250, "batch_size": 32, "family": "flow", "horizon": 1,
                "fractions": {"expert": 0.5, "policy": 0.5}}  # fmt: skip
    return table, trainer.train_bc(taught, settings, tmp_path_factory.mktemp("wronging") / "base")


@dataclass
class Done:
    """right, wrong: share of 64 noises from which a policy does it, where it was helped. own: what
    it does from its own. error_right, error_wrong: mean flow error of either there."""

    right: float
    wrong: float
    own: float
    error_right: float
    error_wrong: float


def done(folder, table) -> Done:
    policy = checkpoint.load(folder)
    helped = policy.example()
    helped.object_state = np.ones(2)
    human, failed = (table.groups[name] for name in ("human", "undesirable"))
    noise = torch.randn(64, 1, 3, generator=torch.Generator().manual_seed(1))
    prefix = policy.forward_observation(table.batch(np.repeat(human[:1], 64)))
    with torch.no_grad():
        second = policy._integrated(prefix, noise)[0][:, 0, 1]
    draws = Draws(policy, 5, samples=16)
    return Done(
        *(float(((second - which).abs() < 0.3).float().mean()) for which in (RIGHT, WRONG)),
        float(policy.act(helped, "reach it")[0, 1]),
        *(errors(policy, table, rows, draws, 0).mean() for rows in (human, failed)),
    )


LEARNING = {"k": 4, "steps": 100, "batch_size": 16, "lr": 3e-3, "parameters": "full"}
ANCHOR = {"bc_weight": 1.0, "undesirable_floor": -5.0}


def test_dagger_goes_on_doing_what_failed_beside_the_correction(wronging, tmp_path):
    """Its optimum is either as often as the other, and so are their errors."""
    table, base = wronging
    before = done(base.checkpoint, table)
    assert before.right == 0 and before.wrong > 0.9
    assert before.own == pytest.approx(WRONG, abs=0.15)
    after = done(
        trainer.optimize(table, base.checkpoint, "dagger", LEARNING, tmp_path / "new").checkpoint,
        table,
    )
    assert 0.15 < after.right < 0.7 and 0.15 < after.wrong < 0.7
    assert after.error_wrong == pytest.approx(after.error_right, abs=0.5)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("kto", {}), ("hapo", {}), ("hapo_anchored", {}), ("dpo", ANCHOR), ("tpo", ANCHOR)],
    ids=["kto", "hapo", "hapo_anchored", "dpo", "tpo"],
)
def test_a_preference_raises_the_error_of_what_failed_and_the_correction_is_done(
    wronging, tmp_path, method, settings
):
    table, base = wronging
    before = done(base.checkpoint, table)
    trained = trainer.optimize(
        table, base.checkpoint, method, LEARNING | settings, tmp_path / "new"
    )
    after = done(trained.checkpoint, table)
    assert after.error_wrong > before.error_wrong + 3
    assert after.error_right < before.error_right - 3
    assert after.right > 0.9 and after.wrong == 0
    assert after.own == pytest.approx(RIGHT, abs=0.15)
