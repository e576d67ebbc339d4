"""HABC through the trainer: what its critic finds and its policy becomes (method.md 2)."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_episodes import episodes, gradients, run, trained_base, update_of

from hapo_ros.labels import HUMAN, POLICY
from hapo_ros.learning import methods, trainer
from hapo_ros.learning.credit import INTERVENTION, NO_WINDOW, POLICY_WINDOW, UNLABELLED
from hapo_ros.learning.data import build
from hapo_ros.learning.parallel import Ranks
from hapo_ros.learning.updates import OBJECTIVES
from hapo_ros.policies import checkpoint

FAMILY = ("habc_v", "habc", "habc_ir")
QUICK = {"k": 4, "steps": 4, "batch_size": 16, "min_human": 2, "warmup": 0, "lr": 1e-3}


@pytest.fixture(scope="module")
def table():
    return build(episodes(), k=4)


@pytest.fixture(scope="module")
def base(table, tmp_path_factory):
    return trained_base(table, tmp_path_factory.mktemp("base"))


def optimize(table, base, method, output, **settings):
    quick = {name: value for name, value in QUICK.items() if name in methods.resolve(method)}
    return trainer.optimize(table, base.checkpoint, method, quick | settings, output)


# Which steps


def test_windows_are_of_whole_episodes_whatever_the_table_leaves_out(table):
    cut = build(
        [run("cut", [POLICY] * 2 + [HUMAN] * 3, "failure", unresolved=True)], k=4
    )  # the correction is left out, and what the policy did before it is not to blame for the end
    assert len(cut) == 2
    assert (cut.windows(50, 2).outcome == UNLABELLED).all()
    windows = table.windows(50, 2)
    names = np.array([e["episode_id"] for e in table.episodes])[table.episode]
    assert windows.outcome[names == "alone"].tolist() == [1] * 6
    assert windows.outcome[names == "helped"].tolist() == [-1] * 7 + [1] * 3
    assert (windows.kind[names == "helped"] == INTERVENTION).tolist() == (
        [False] * 3 + [True] * 3 + [False] * 4  # the last human step has but one in its window
    )
    assert np.flatnonzero(windows.terminal[names == "helped"]).tolist() == [9]


def test_what_follows_a_step_is_of_its_episode(table):
    following = table.following
    assert (table.episode[following] == table.episode).all()
    moved = following != np.arange(len(table))
    assert (table.sequence[following[moved]] == table.sequence[moved] + 1).all()
    assert (~moved).sum() == len(table.episodes)


def test_batches_hold_no_step_whose_outcome_is_anothers_doing(table):
    settings = methods.resolve("habc", QUICK)
    drawn = OBJECTIVES["habc"].drawn(table, settings)
    windows = table.windows(50, 2)
    assert (drawn == ((windows.kind != NO_WINDOW) & ~(
        (windows.kind == POLICY_WINDOW) & (windows.outcome == UNLABELLED)
    ))).all()  # fmt: skip
    sampler = trainer._sampler("habc", table, settings, Ranks())
    assert sampler.counts == {"expert": 8, "human": 4, "policy": 4}
    assert drawn[sampler.effective(0)].all()


# The update


def by_hand(update, rows, method):
    """Weights (len(rows),) of the rows, in numpy."""
    with torch.no_grad():
        now, after = (
            [x.numpy() for x in update.critic(update.policy.features(update.table.batch(r)))]
            for r in (rows, update.table.following[rows])
        )
    windows = update.table.windows(50, 2)
    p = 1 / (1 + np.exp(-now[0]))
    a_v, a_e = after[0] - now[0], -1 + after[1] - now[1]
    terminal = windows.terminal[rows]
    a_v[terminal], a_e[terminal] = 0.0, -now[1][terminal]
    gate = 1 + np.tanh((1 - p) * a_v + (0 if method == "habc_v" else p * a_e))
    kind, outcome = windows.kind[rows], windows.outcome[rows]
    weights = np.ones(len(rows))
    weights[(kind == POLICY_WINDOW) & (outcome == 1)] = gate[
        (kind == POLICY_WINDOW) & (outcome == 1)
    ]
    weights[(kind == POLICY_WINDOW) & (outcome == 0)] = 0.0
    if method == "habc_ir":
        weights[kind == INTERVENTION] = gate[kind == INTERVENTION]
    return weights / weights.mean()


@pytest.mark.parametrize("method", FAMILY)
def test_the_actors_loss_is_that_of_weights_by_hand_with_a_mean_of_1(base, table, method):
    rows = np.flatnonzero(OBJECTIVES["habc"].drawn(table, methods.resolve(method, QUICK)))
    update = update_of(method, base, table, critic_warmup=0, min_human=2, micro_batch=5)
    weights = by_hand(update, rows, method)
    assert weights.mean() == pytest.approx(1.0) and weights.std() > 0.3
    given = []
    clone = update._clone
    update._clone = lambda rows, weights: given.append(weights) or clone(rows, weights)
    metrics, gradient = gradients(update, rows)
    np.testing.assert_allclose(given[0], weights, rtol=1e-3, atol=1e-5)
    loss = (torch.tensor(weights) * update.policy.bc_loss(table.batch(rows))).mean()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)
    parameters = list(update.policy.network.parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    torch.testing.assert_close(gradient[: len(expected)], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", FAMILY)
def test_the_critics_gradients_too_do_not_depend_on_the_micro_batch(base, table, method):
    def update(size):
        options = {"critic_warmup": 0, "min_human": 2, "critic_backbone": method == "habc"}
        return update_of(method, base, table, micro_batch=size, **options)

    rows = np.arange(10, len(table))
    whole, whole_gradient = gradients(update(len(rows)), rows)
    for size in (1, 7):
        metrics, gradient = gradients(update(size), rows)
        torch.testing.assert_close(gradient, whole_gradient, rtol=1e-3, atol=1e-5)
        assert metrics == pytest.approx(whole, rel=1e-3, nan_ok=True)


def test_the_critics_loss_stays_in_its_heads_unless_asked_for(base, table):
    def policy_gradient(rows, **settings):
        update = update_of("habc", base, table, min_human=2, **settings)
        gradients(update, rows)
        return sum(
            float(p.grad.abs().sum())
            for p in update.policy.network.parameters() if p.grad is not None
        )  # fmt: skip

    failed = table.groups["policy"][6:11]  # nothing is cloned of them
    assert policy_gradient(failed) == 0.0
    assert policy_gradient(failed, critic_backbone=True) > 0.0


# Through the trainer


def test_the_warm_up_is_plain_cloning(base, table, tmp_path):
    """Of demonstrations and corrections every step weighs 1, so habc is imit_dagger there."""
    halves = {"fractions": {"expert": 0.5, "human": 0.5}}
    warm, cloned, judged = (
        optimize(table, base, method, tmp_path / f"{number}", **own)
        for number, (method, own) in enumerate(
            [
                ("habc", halves | {"critic_warmup": 4}),
                ("imit_dagger", {}),
                ("habc", {"critic_warmup": 3}),
            ]
        )
    )
    assert warm.version == cloned.version
    assert "All 4 steps were the critic's warm-up" in warm.notes[0] and judged.notes == []
    lines = [json.loads(line) for line in (judged.run / "metrics.jsonl").open()]
    assert [line["gate_policy"] for line in lines[:3]] == [1.0] * 3 != lines[3]["gate_policy"]


def test_habc_v_is_habc_with_the_efficiency_term_off(base, table, tmp_path):
    own = {"critic_warmup": 0}
    viability, off, both = (
        optimize(table, base, method, tmp_path / f"{number}", **own | more)
        for number, (method, more) in enumerate(
            [("habc_v", {}), ("habc", {"no_efficiency": True}), ("habc", {})]
        )
    )
    assert viability.version == off.version != both.version
    update = update_of("habc_v", base, table, critic_warmup=0)
    gradients(update, np.arange(len(table)))
    assert all(p.grad is None for p in update.critic.efficiency.parameters())


def test_corrections_are_reweighted_only_after_a_first_phase(base, table, tmp_path):
    with pytest.raises(ValueError, match=r"habc_ir goes on from .* trained by bc, so nothing was"):
        optimize(table, base, "habc_ir", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    first = optimize(table, base, "habc", tmp_path / "first")
    cloning = {"k": 4, "steps": 1, "batch_size": 8}
    between = trainer.optimize(
        table, first.checkpoint, "bc_continue", cloning, tmp_path / "between"
    )
    second = optimize(table, between, "habc_ir", tmp_path / "second", critic_warmup=0)
    plain = optimize(table, between, "habc", tmp_path / "plain", critic_warmup=0)
    assert second.version != plain.version


def test_the_result_is_an_ordinary_checkpoint_without_a_critic(base, table, tmp_path):
    trained = optimize(table, base, "habc", tmp_path / "new", parameters="full")
    before, after = checkpoint.load(base.checkpoint), checkpoint.load(trained.checkpoint)
    assert after.network.state_dict().keys() == before.network.state_dict().keys()
    assert checkpoint.read_provenance(trained.checkpoint)["settings"]["critic_warmup"] == 500


def test_what_an_old_policy_did_is_not_learned_from(base, table, tmp_path):
    """A policy's age is counted in optimizer steps along the base's ancestors."""
    first = optimize(table, base, "habc", tmp_path / "first", steps=3)
    second = optimize(table, first, "habc", tmp_path / "second", steps=2)
    known = {second.version: 0, first.version: 2, base.version: 5}
    shutil.rmtree(first.checkpoint)  # a checkpoint knows where it came from by itself
    lineage = checkpoint.lineage(second.checkpoint)
    assert [made["method"] for made in lineage] == ["habc", "habc", "bc"]
    assert trainer._ages(lineage) == known
    aged = episodes()
    for made, version in zip(aged[2:], (base.version, first.version, "unknown", ""), strict=True):
        made.info.policy_version = version
    steps = build(aged, k=4)
    third = optimize(steps, second, "habc", tmp_path / "third", stale_after=5)
    assert not any("Not used" in note for note in third.notes)
    third = optimize(steps, second, "habc", tmp_path / "fourth", stale_after=4)
    assert (
        third.notes[0] == "Not used: 6 steps of policies that are more than 4 optimizer steps old."
    )
    drawn = OBJECTIVES["habc"].drawn(
        replace(steps, ages=known), methods.resolve("habc", QUICK | {"stale_after": 4})
    )
    names = np.array([e["episode_id"] for e in steps.episodes])[steps.episode]
    assert not drawn[names == "alone"].any() and drawn[names == "lost"].all()


def test_data_that_habc_cannot_learn_from_are_refused_with_what_to_record(base, tmp_path):
    def refused(made, method="habc"):
        with pytest.raises(ValueError) as error:
            optimize(build(made, k=4), base, method, tmp_path / "new")
        assert list(tmp_path.iterdir()) == [] and "nothing was trained" in str(error.value)
        return str(error.value)

    made = episodes()
    assert "no step for human" in refused(made[:4])
    assert "no step for human" in refused(made[:4], "imit_dagger")
    assert "in an episode that succeeded without" in refused([*made[:2], made[3], made[5]])


def test_successes_alone_are_learned_from_and_it_is_said(base, tmp_path):
    made = episodes()
    steps = build([*made[:3], made[4]], k=4)
    for method, what in (("habc", "by efficiency"), ("habc_v", "alike")):
        trained = optimize(steps, base, method, tmp_path / method, critic_warmup=2)
        (note,) = trained.notes
        assert "failed without a human" in note and f"the policy's steps count {what}" in note
        assert trained.metrics["viability_loss"] < np.log(2)


def test_failures_alone_are_learned_from_where_that_is_allowed(base, tmp_path):
    """What the policy did weighs nothing then; demonstrations and corrections make up for it."""
    made = episodes()
    steps = build([*made[:2], made[3], made[5]], k=4)
    settings = {"allow_missing_group": True, "critic_warmup": 2}
    trained = optimize(steps, base, "habc", tmp_path / "new", **settings)
    assert trained.notes == [] and np.isnan(trained.metrics["gate_policy"])
    alone = build([*made[:2], run("rescued", [POLICY] * 3 + [HUMAN] * 5)], k=4)
    trained = optimize(alone, base, "habc", tmp_path / "rescued", **settings)
    assert "There is no step for policy; its share goes to the others" in trained.notes[0]


# imit_recap


def test_recap_keeps_the_share_of_held_out_steps_that_is_asked_for(base, table):
    update = update_of("imit_recap", base, table, critic_warmup=0, held_out=0.5, keep=0.37)
    held = update.held_out(table, update.settings)
    assert len(np.unique(table.episode[held])) == 2 and not held[table.demonstration].any()
    assert (update.drawn(table, update.settings) == ~held).all()
    rows = np.arange(len(table))
    with torch.no_grad():
        value = update.critic.value(update.critic(update.policy.features(table.batch(rows))))
    value = value.numpy().astype(np.float64)
    end = table.following == rows
    success = np.array([e["outcome"] == "success" for e in table.episodes])[table.episode]
    reward = np.where(end, np.where(success, 0.0, -100.0), -1.0)
    residual = np.where(end, reward, reward + 0.99 * value[table.following]) - value
    metrics, _ = gradients(update, rows)
    assert metrics["threshold"] == pytest.approx(np.quantile(residual[held], 0.63), rel=1e-3)
    deployed = residual[~table.demonstration]
    assert metrics["kept"] == pytest.approx((deployed > metrics["threshold"]).mean(), abs=0.05)
    with torch.no_grad():
        losses = update.policy.bc_loss(table.batch(rows)).numpy()
    kept = table.demonstration | (residual > metrics["threshold"])
    assert metrics["loss"] == pytest.approx(losses[kept].mean(), rel=1e-2)


def test_recap_keeps_everything_while_its_value_warms_up(base, table, tmp_path):
    trained = optimize(table, base, "imit_recap", tmp_path / "new", critic_warmup=2)
    lines = [json.loads(line) for line in (trained.run / "metrics.jsonl").open()]
    assert [line["kept"] for line in lines[:2]] == [1.0, 1.0] and lines[2]["kept"] < 1.0
    assert [line["threshold"] is None for line in lines] == [True, True, False, False]


def test_recap_needs_episodes_to_hold_out(base, tmp_path):
    with pytest.raises(ValueError, match="Deployment episodes to learn from: 1"):
        optimize(build(episodes()[:3], k=4), base, "imit_recap", tmp_path / "new")
