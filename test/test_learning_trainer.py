"""The training loop: what must not depend on how it is run, and what it leaves behind."""

import gc
import itertools
import json
import math
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_episodes import SMALL, episode, gradients, trained_base, update_of

from hapo_ros.learning import loop, methods, precision, reference, trainer
from hapo_ros.learning.data import build
from hapo_ros.learning.draws import Draws
from hapo_ros.learning.runlog import RunLog
from hapo_ros.learning.updates import Preference
from hapo_ros.policies import checkpoint, lora
from hapo_ros.policies.network import ActionTokens

RIGHT, WRONG = 0.5, -0.5  # of the second dimension, where the policy does not know better


def episodes(count=6):
    """Demonstrations act (s, RIGHT or WRONG, 1) for a state s; in deployments the policy does the
    WRONG for 4 steps and the operator the RIGHT, where s > 0."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        s = rng.uniform(-1, 1, 8)
        second = rng.choice([RIGHT, WRONG], 8)
        actions = np.stack([s, second, np.ones(8)], 1)
        states = np.stack([s, s**2], 1)
        made.append(episode(f"demo{i}", "demonstration", [1] * 8, actions, states))
        s = rng.uniform(0.2, 1, 8)
        actions = np.stack([s, np.r_[[WRONG] * 4, [RIGHT] * 4], np.ones(8)], 1)
        states = np.stack([s, s**2], 1)
        made.append(episode(f"run{i}", "deployment", [1] * 4 + [2] * 4, actions, states))
    return made


@pytest.fixture(scope="module")
def table():
    return build(episodes(), k=4)


@pytest.fixture(scope="module")
def base(table, tmp_path_factory):
    """A checkpoint, trained a little by behaviour cloning."""
    return trained_base(table, tmp_path_factory.mktemp("base"), steps=60)


def preference(base, table, **settings):
    return update_of("hapo", base, table, **settings)


SECOND = reference.Second("mismatched", 0)
ANCHOR = {"bc_weight": 1.0, "undesirable_floor": -0.5, "beta": 0.7}
ROWS = [0, 1, 12, 13, 8, 9, 28, 60]  # demonstrations, corrections and undesirable steps


# What must not depend on how it is run


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((name, {}) for name in methods.METHODS if name != "bc"),
        ("hapo", {"scope": "group"}),
        ("hapo", {"scale": "unit_mean", "l1_prediction": "generate"}),
        ("habc_ir", {"critic_warmup": 0, "min_human": 1}),
        ("imit_recap", {"critic_warmup": 0}),
        *((name, ANCHOR) for name in methods.METHODS if "bc_weight" in methods.resolve(name)),
    ],
    ids=str,
)
def test_8_samples_at_once_are_8_micro_batches_of_1(base, table, method, options):
    def update(size):
        return update_of(method, base, table, micro_batch=size, **options)

    rows = list(table.groups["takeover"])[:5] if method == "tpo" else ROWS
    whole, whole_gradient = gradients(update(8), rows)
    assert whole.get("z0", 1.0) > 0.01 and whole_gradient.norm() > 1e-3
    for size in (1, 3):
        split, gradient = gradients(update(size), rows)
        torch.testing.assert_close(gradient, whole_gradient, rtol=1e-3, atol=1e-6)
        for key in whole:
            assert split[key] == pytest.approx(whole[key], rel=1e-3, abs=1e-6, nan_ok=True), key


@pytest.mark.parametrize(
    "second",
    [reference.Second("mismatched", 3), reference.Second("perturbed", 3, 0.1), None],
    ids=["mismatched", "perturbed", "none"],
)
def test_a_kept_reference_is_a_fresh_one(base, table, tmp_path, second):
    policy = checkpoint.load(base.checkpoint)
    fresh = reference.compute(policy, table, second, Draws(policy, 0), batch_size=5)
    for _ in range(2):
        kept = reference.cached(policy, table, second, Draws(policy, 0), tmp_path)
        for name in ("logps", "second_logps") if second else ("logps",):
            np.testing.assert_allclose(getattr(kept, name), getattr(fresh, name), atol=1e-5)
        np.testing.assert_array_equal(kept.second_actions, fresh.second_actions)
    assert [p.name for p in tmp_path.iterdir()] == [f"reference-{fresh.key}.npz"]
    for other in (reference.Second("mismatched", 4), reference.Second("perturbed", 3, 0.2)):
        assert reference.key_of(policy, table, other, Draws(policy, 0)) != fresh.key


def test_a_kept_reference_trains_to_the_same_checkpoint(base, table, tmp_path):
    settings = {"k": 4, "steps": 1, "batch_size": 8}
    for method in (name for name in methods.METHODS if "bc_weight" in methods.resolve(name)):
        versions = {
            trainer.optimize(
                table,
                base.checkpoint,
                method,
                settings,
                tmp_path / f"{method}{run}",
                reference_cache=tmp_path / "kept" if run else None,
            ).version
            for run in range(3)
        }
        assert len(versions) == 1, method


def test_the_reference_is_the_policy_with_its_adapter_off(base, table):
    policy = checkpoint.load(base.checkpoint)
    kept = reference.compute(policy, table, SECOND, Draws(policy, 0))
    lora.add_lora(policy, rank=4)
    for name, parameter in policy.network.named_parameters():
        if ".lora_B" in name:
            parameter.data += 0.1
    with lora.adapter_off(policy):
        off = reference.compute(policy, table, SECOND, Draws(policy, 0))
    np.testing.assert_allclose(off.logps, kept.logps, atol=1e-5)
    on = reference.compute(policy, table, SECOND, Draws(policy, 0))
    assert np.abs(on.logps - kept.logps).max() > 0.01


def test_kto_is_hapo_without_reweighting(base, table, tmp_path):
    settings = {"k": 4, "steps": 3, "batch_size": 8, "warmup": 0}
    kto, hapo, plain = (
        trainer.optimize(table, base.checkpoint, method, settings | own, tmp_path / name)
        for name, method, own in (
            ("a", "kto", {}),
            ("b", "hapo", {"no_reweighting": True}),
            ("c", "hapo", {}),
        )
    )
    assert kto.version == hapo.version != plain.version
    assert (kto.run / "metrics.jsonl").read_text() == (hapo.run / "metrics.jsonl").read_text()


def test_without_reweighting_every_sample_weighs_1(base, table):
    metrics, _ = gradients(update_of("kto", base, table), ROWS)
    assert metrics["lambda_desirable"] == metrics["lambda_undesirable"] == 1.0
    weighted, _ = gradients(preference(base, table), ROWS)
    assert weighted["lambda_desirable"] < 0.5 < weighted["lambda_undesirable"]


def test_at_the_start_of_a_round_the_loss_is_half_the_mean_weight(base, table):
    metrics, _ = gradients(preference(base, table, moved=False, no_reweighting=True), ROWS)
    assert metrics["loss"] == pytest.approx(0.5, abs=1e-5)
    assert metrics["z0"] == pytest.approx(0.0, abs=1e-5)


def test_the_cloning_term_is_the_mean_over_the_desirable_samples(base, table):
    update = preference(base, table, micro_batch=3, bc_weight=2.0)
    metrics, _ = gradients(update, ROWS)
    with torch.no_grad():
        nll = update.policy.bc_loss(table.batch(ROWS))[table.desirable[ROWS]].mean().item()
    assert metrics["bc_loss"] == pytest.approx(nll, rel=1e-4)
    assert metrics["loss"] == pytest.approx(metrics["preference_loss"] + 2.0 * nll, rel=1e-4)
    without, _ = gradients(preference(base, table, micro_batch=3), ROWS)
    assert metrics["preference_loss"] == pytest.approx(without["loss"], rel=1e-5)


# What the published code gets wrong (method.md 3)


def test_z0_is_of_mismatched_actions_on_their_own_prefix_over_the_effective_batch(base, table):
    update = preference(base, table, micro_batch=2)
    metrics, _ = gradients(update, ROWS)
    pairs = reference.partners(table.episode, 0)[ROWS]
    assert (table.episode[pairs] != table.episode[ROWS]).all()
    with torch.no_grad():
        mismatched = table.batch(ROWS).with_actions(*table.action_tensors(pairs))
        logps = update.policy.log_prob(mismatched)[0].numpy()
    ratios = (logps - update.reference.second_logps[ROWS]).sum(1)
    assert metrics["z0"] == pytest.approx(max(0.0, ratios.mean()), rel=1e-4)
    assert gradients(preference(base, table, no_z0=True), ROWS)[0]["z0"] == 0.0
    assert gradients(preference(base, table, z0_max=0.01), ROWS)[0]["z0"] == pytest.approx(0.01)


def test_dpo_rejects_what_the_base_would_have_done_with_noise(base, table):
    """And the base's own prediction, not one on the recorded action's tokens."""
    policy = checkpoint.load(base.checkpoint)
    plain, noisy, again = (
        reference.compute(
            policy, table, reference.Second("perturbed", seed, sigma), Draws(policy, 0), size
        )
        for seed, sigma, size in ((0, 0.0, 64), (0, 0.1, 64), (0, 0.1, 7))
    )
    own = policy.predict(table.batch(np.arange(len(table))), generate=True).numpy()
    np.testing.assert_allclose(plain.second_actions, own, atol=1e-6)
    np.testing.assert_allclose(noisy.second_actions, again.second_actions, atol=1e-6)
    noise = noisy.second_actions - own
    assert noise.std() == pytest.approx(0.1, rel=0.1) and abs(noise.mean()) < 0.02
    with torch.no_grad():
        rejected = table.batch(ROWS).with_actions(
            torch.from_numpy(noisy.second_actions[ROWS]), table.batch(ROWS).action_mask
        )
        logps = policy.log_prob(rejected)[0].numpy()
    np.testing.assert_allclose(noisy.second_logps[ROWS], logps, atol=1e-5)


def test_dpo_compares_both_actions_each_on_its_own_tokens_with_the_reference(base, table):
    update = update_of("dpo", base, table, beta=0.3)
    rows = ROWS[:4]
    metrics, _ = gradients(update, rows)
    kept, batch = update.reference, table.batch(rows)
    rejected = batch.with_actions(torch.from_numpy(kept.second_actions[rows]), batch.action_mask)
    with torch.no_grad():  # every token, gripper included
        r_chosen, r_rejected = (
            (update.policy.log_prob(actions)[0].numpy() - logps[rows]).sum(1)
            for actions, logps in ((batch, kept.logps), (rejected, kept.second_logps))
        )
    expected = np.log(1 + np.exp(-0.3 * (r_chosen - r_rejected))).mean()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["reward_undesirable"] == pytest.approx(r_rejected.mean(), rel=1e-3)


def test_what_dpo_rejects_is_masked_where_the_recorded_chunk_is(base, table):
    chunked = build(episodes(), k=4, horizon=3)
    policy = trainer._new_policy(chunked, methods.resolve("bc", {**SMALL, "horizon": 3}))
    kept = reference.compute(
        policy, chunked, reference.Second("perturbed", 0, 0.1), Draws(policy, 0)
    )
    np.testing.assert_array_equal(kept.second_action_mask, chunked.action_mask)
    assert (kept.second_actions[~chunked.action_mask] == 0).all()
    np.testing.assert_array_equal(kept.second_mask, kept.mask)


def test_the_segments_of_tpo_count_as_they_are_and_not_as_they_are_padded(base):
    table = build(episodes(), k=4)
    update = update_of("tpo", base, table, beta=0.3)
    rows = table.groups["takeover"][:2]
    pairs = [table.pairs[row] for row in rows]
    # A correction of 2 steps beside one of 4.
    table.pairs[rows[0]] = pairs[0] = (pairs[0][0][:2], pairs[0][1])
    metrics, _ = gradients(update, rows)
    with torch.no_grad():
        logps = update.policy.log_prob(table.batch(np.arange(len(table))))[0].numpy()
    r = (logps - update.reference.logps).sum(1)  # every token, gripper included
    margins = np.array([r[human].sum() - r[before].sum() for human, before in pairs])
    assert metrics["loss"] == pytest.approx(np.log(1 + np.exp(-0.3 * margins)).mean(), rel=1e-4)
    assert metrics["reward_desirable"] == pytest.approx(
        np.mean([r[human].mean() for human, _ in pairs]), rel=1e-3
    )


def test_without_z0_one_episode_is_enough_to_learn_from(base, tmp_path):
    one = build(episodes()[1:2], k=4)
    settings = {"k": 4, "steps": 1, "batch_size": 8, "allow_missing_group": True}
    with pytest.raises(ValueError, match="All steps are of one episode"):
        trainer.optimize(one, base.checkpoint, "kto", settings, tmp_path / "a")
    trainer.optimize(one, base.checkpoint, "kto", {**settings, "no_z0": True}, tmp_path / "b")


def test_the_gripper_rule_is_on_and_can_be_switched_off(base, table):
    with_rule, without = (
        gradients(preference(base, table, no_gripper_rule=off), ROWS)[0] for off in (False, True)
    )
    assert with_rule["reward_desirable"] == pytest.approx(without["reward_desirable"])
    assert with_rule["reward_undesirable"] != pytest.approx(without["reward_undesirable"])


def test_the_learning_rate_warms_up_and_its_cosine_ends_with_the_last_optimizer_step():
    rates = [loop.rate(step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.5) and 0 < rates[99] < 0.001
    assert loop.rate(0, 1, 0) == 1.0


@pytest.mark.parametrize("method", ["sirius", "dpo", "tpo", "hapo"])
def test_accumulation_changes_neither_the_steps_nor_the_rates_nor_the_weights(
    base, table, tmp_path, method
):
    settings = {"k": 4, "steps": 5, "batch_size": 8, "warmup": 2, "parameters": "full"}
    runs = [
        trainer.optimize(
            table,
            base.checkpoint,
            method,
            {**settings, "micro_batch": size},
            tmp_path / f"micro{size}",
        )
        for size in (8, 2)
    ]
    lines = [[json.loads(line) for line in (run.run / "metrics.jsonl").open()] for run in runs]
    assert [len(x) for x in lines] == [5, 5]
    assert [x["lr"] for x in lines[0]] == [x["lr"] for x in lines[1]]
    assert [x["loss"] for x in lines[0]] == pytest.approx([x["loss"] for x in lines[1]], rel=1e-3)
    one, other = (checkpoint.load(run.checkpoint).network.state_dict() for run in runs)
    start = checkpoint.load(base.checkpoint).network.state_dict()
    assert any((one[key] != start[key]).any() for key in one)
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=2e-5)


def test_gradients_are_clipped_to_max_grad_norm(base, table, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def recorded(self, *arguments):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat([g.flatten() for g in grads if g is not None]).norm()))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    trainer.optimize(
        table,
        base.checkpoint,
        "bc_continue",
        {"k": 4, "steps": 3, "batch_size": 8, "max_grad_norm": 0.01},
        tmp_path / "a",
    )
    assert len(norms) == 3 and norms == pytest.approx([0.01] * 3, rel=1e-3)


@pytest.mark.parametrize("method", ["dpo", "tpo", "hapo"])
def test_lora_needs_no_second_copy_of_the_base_and_leaves_it_as_it_was(
    base, table, tmp_path, method
):
    def networks():
        return sum(type(thing) is ActionTokens for thing in gc.get_objects())

    gc.collect()
    before, alive = networks(), []
    settings = {"k": 4, "steps": 3, "batch_size": 8, "lr": 1e-2, "warmup": 0}
    trained = trainer.optimize(
        table,
        base.checkpoint,
        method,
        settings,
        tmp_path / "new",
        progress=lambda _: alive.append(networks()),
    )
    assert alive == [before + 1] * 3
    start = checkpoint.load(base.checkpoint).network.state_dict()
    end = checkpoint.load(trained.checkpoint).network.state_dict()
    changed = {key for key in end if not torch.equal(start[key], end[key])}
    assert changed and all(key.endswith(".weight") for key in changed)
    assert "action_tokens.weight" not in changed and "head.weight" in changed


# That it learns


def test_training_lowers_the_loss_and_the_base_does_what_was_shown(base, table):
    lines = [json.loads(line) for line in (base.run / "metrics.jsonl").open()]
    assert np.mean([x["loss"] for x in lines[-10:]]) < 0.5 * lines[0]["loss"]
    policy = checkpoint.load(base.checkpoint)
    predicted = policy.predict(table.batch(table.groups["expert"]), generate=True)
    assert (predicted[:, 0, 2] > 0.9).all()


def change(base, table, output, method, **settings):
    """Change of the mean log-probability of the second action token, by group; and the run."""
    settings = {"k": 4, "steps": 40, "batch_size": 16, "lora_rank": 8, **settings}
    trained = trainer.optimize(table, base.checkpoint, method, settings, output)
    with torch.no_grad():
        after, before = (
            {
                name: policy.log_prob(table.batch(rows))[0][:, 1].mean().item()
                for name, rows in table.groups.items()
                if len(rows)
            }
            for policy in (checkpoint.load(trained.checkpoint), checkpoint.load(base.checkpoint))
        )
    return {name: after[name] - before[name] for name in after}, trained


@pytest.mark.parametrize("method", ["tpo", "kto", "hapo", "hapo_anchored"])
def test_what_failed_becomes_less_likely_and_the_correction_more(base, table, tmp_path, method):
    changed, trained = change(base, table, tmp_path / "new", method, lr=3e-4)
    assert changed["undesirable"] < -0.3 and changed["human"] > 0.3
    assert trained.metrics["reward_undesirable"] < 0 < trained.metrics["margins"]


CLASSES = {"expert": 0.7, "human": 0.3, "undesirable": -0.3, "policy": -0.7}


@pytest.fixture(scope="module")
def mixed():
    """Wherever the robot is, it sees the same; the second action dimension tells the group alone.

    12 steps of demonstrations, 6 corrections, 4 undesirable steps and 8 of the policy's others.
    """
    groups = {
        "demonstration": ["expert"] * 4,
        "deployment": ["policy"] * 4 + ["undesirable"] * 2 + ["human"] * 3,
    }
    live = {"expert": 1, "policy": 1, "undesirable": 1, "human": 2}
    made = []
    for name, source in [("d", "demonstration")] * 3 + [("r", "deployment")] * 2:
        steps = groups[source]
        actions = np.stack(
            [np.zeros(len(steps)), [CLASSES[g] for g in steps], np.ones(len(steps))], 1
        )
        made.append(
            episode(f"{name}{len(made)}", source, [live[g] for g in steps], actions,
                    np.zeros((len(steps), 2)), k=2)
        )  # fmt: skip
    return build(made, k=2)


@pytest.mark.parametrize(
    ("method", "settings", "optimum"),
    [
        pytest.param("bc_continue", {}, (1, 0, 0, 0), id="bc_continue"),
        pytest.param("dagger", {}, (1 / 2, 1 / 6, 1 / 9, 2 / 9), id="dagger"),
        pytest.param(
            "dagger", {"no_undesirable": True}, (1 / 2, 3 / 14, 0, 2 / 7), id="without c = 0"
        ),
        pytest.param(
            "dagger",
            {"no_balanced_sampling": True},
            (2 / 5, 1 / 5, 2 / 15, 4 / 15),
            id="unbalanced",
        ),
        pytest.param("sirius", {}, (0.4, 0.5, 0.002, 0.098), id="sirius"),
    ],
)
def test_cloning_comes_to_act_like_each_group_as_often_as_its_method_wants(
    mixed, tmp_path, method, settings, optimum
):
    settings = {
        "k": 2,
        "steps": 150,
        "batch_size": 30,
        "lr": 2e-3,
        "parameters": "full",
        **settings,
    }
    start = trainer.train_bc(mixed, {**SMALL, "k": 2, "steps": 1}, tmp_path / "base")
    trained = trainer.optimize(mixed, start.checkpoint, method, settings, tmp_path / "new")
    policy = checkpoint.load(trained.checkpoint)
    with torch.no_grad():
        probabilities = [
            policy.log_prob(mixed.batch(mixed.groups[name][:1]))[0][0, 1].exp().item()
            for name in CLASSES
        ]
    assert probabilities == pytest.approx(optimum, abs=0.04)


def test_dpo_prefers_what_was_recorded_to_what_it_rejects(base, table, tmp_path):
    changed, trained = change(base, table, tmp_path / "new", "dpo", lr=1e-3)
    assert changed["human"] > 0.3
    assert trained.metrics["reward_undesirable"] < 0 < trained.metrics["reward_desirable"]
    assert trained.metrics["loss"] < np.log(2)


def test_the_anchor_keeps_what_was_shown_where_hapo_as_published_loses_it(base, table, tmp_path):
    published, _ = change(base, table, tmp_path / "a", "hapo", lr=3e-3)
    anchored, _ = change(base, table, tmp_path / "b", "hapo_anchored", lr=3e-3)
    assert published["expert"] < -2.0 and anchored["expert"] > -0.5
    assert published["undesirable"] < -5.0 and -5.0 < anchored["undesirable"] < -0.3


@pytest.mark.parametrize(
    ("method", "limit"), [("hapo", -15.0), ("tpo", -15.0), ("dpo", -15.0), ("kto", -5.0)]
)
def test_log_ratios_that_run_away_are_said_once(base, table, tmp_path, monkeypatch, method, limit):
    assert loop.RUNAWAY == -15.0
    monkeypatch.setattr(loop, "RUNAWAY", limit)
    settings = {"k": 4, "steps": 20, "batch_size": 8, "parameters": "full", "lr": 3e-2}
    trained = trainer.optimize(
        table, base.checkpoint, method, settings | {"warmup": 0}, tmp_path / "new"
    )
    lines = [json.loads(line) for line in (trained.run / "metrics.jsonl").open()]
    step = [line["runaway"] for line in lines].index(1.0) + 1
    assert [line["runaway"] for line in lines] == [0.0] * (step - 1) + [1.0] * (21 - step)
    rewards = [line["reward_undesirable"] for line in lines]
    assert np.mean(rewards[:step]) < limit <= np.mean(rewards[: step - 1])
    (note,) = trained.notes
    assert f"(below {limit:.0f}) at step {step}" in note and "undesirable_floor=-5" in note
    assert (trained.run / "notes.txt").read_text() == f"Step {step}: {note}\n"
    assert checkpoint.read_provenance(trained.checkpoint)["notes"] == [note]


def test_a_floor_keeps_the_log_ratios_from_running_away(base, table, tmp_path):
    """As above, with the anchor."""
    settings = {"k": 4, "steps": 20, "batch_size": 8, "parameters": "full", "lr": 3e-2}
    trained = trainer.optimize(
        table, base.checkpoint, "hapo_anchored", settings | {"warmup": 0}, tmp_path / "new"
    )
    assert trained.notes == [] and trained.metrics["runaway"] == 0.0
    assert not (trained.run / "notes.txt").exists()


def test_a_chunk_may_fall_as_far_as_each_of_its_actions(tmp_path):
    with RunLog(tmp_path) as log:
        for horizon, said in ((5, 0), (1, 1)):
            recent = deque([{"reward_undesirable": value} for value in (math.nan, -30.0, -20.0)])
            recent[1]["runaway"] = 0.0
            loop._warn_of_runaway(3, recent, horizon, log)
            assert len(log.notes) == said and recent[-1]["runaway"] == said


def test_the_same_seed_gives_the_same_checkpoint(base, table, tmp_path):
    settings = {"k": 4, "steps": 4, "batch_size": 8}
    versions = [
        trainer.optimize(
            table, base.checkpoint, "hapo", {**settings, "seed": seed}, tmp_path / str(i)
        ).version
        for i, seed in enumerate((1, 1, 2))
    ]
    assert versions[0] == versions[1] != versions[2]


# Memory and arithmetic


@pytest.mark.parametrize("method", ["hapo_anchored", "habc"])
def test_activations_that_are_computed_again_change_nothing(base, table, method):
    """But that fewer are kept: of a block, what goes in and out."""
    kept = []

    def pack(tensor):
        kept[-1] += tensor.numel()
        return tensor

    results = []
    for wanted in (False, True):
        options = {"micro_batch": 3, "activation_checkpointing": wanted}
        own = {"critic_backbone": True, "critic_warmup": 0} if method == "habc" else {}
        update = update_of(method, base, table, **options, **own)
        precision.prepare(update.policy, update.settings)
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            results.append(gradients(update, ROWS))
    (plain, gradient), (again, same) = results
    torch.testing.assert_close(same, gradient, rtol=1e-5, atol=1e-7)
    assert again == pytest.approx(plain, rel=1e-5, nan_ok=True)
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.parametrize("method", ["hapo_anchored", "habc"])
def test_bfloat16_is_of_the_network_alone_and_near_to_float32(base, table, tmp_path, method):
    """Weights, the reference, log-probabilities and what a critic says stay float32."""
    settings = {"k": 4, "steps": 3, "batch_size": 8, "warmup": 0, "precision": "bfloat16"}
    critic = {"critic_warmup": 0, "min_human": 1} if method == "habc" else {}
    settings |= critic | {"allow_missing_group": True}
    trained = trainer.optimize(table, base.checkpoint, method, settings, tmp_path / "new")
    weights = checkpoint.load(trained.checkpoint).network.state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    first = json.loads((trained.run / "metrics.jsonl").open().readline())
    if method == "hapo_anchored":
        assert first["z0"] == first["reward_desirable"] == 0.0  # of the same arithmetic
    halves = [
        gradients(update_of(method, base, table, precision=name, **critic), ROWS)
        for name in ("float32", "bfloat16")
    ]
    (plain, gradient), (half, other) = halves
    assert half["loss"] == pytest.approx(plain["loss"], rel=0.1) and half["loss"] != plain["loss"]
    assert torch.nn.functional.cosine_similarity(gradient, other, dim=0) > 0.9


def test_a_reference_of_other_arithmetic_is_another_one(base, table):
    policy = checkpoint.load(base.checkpoint)
    given = policy, table, SECOND, Draws(policy, 0)
    assert reference.key_of(*given) != reference.key_of(*given, "bfloat16")


# What it leaves behind


def test_the_provenance_says_where_a_checkpoint_came_from(base, table, tmp_path):
    settings = {"k": 4, "steps": 2, "batch_size": 8, "micro_batch": 4}
    trained = trainer.optimize(table, base.checkpoint, "hapo", settings, tmp_path / "new")
    provenance = checkpoint.read_provenance(trained.checkpoint)
    assert provenance["method"] == "hapo" and provenance["parent"] == base.version
    assert provenance["version"] == trained.version != base.version
    assert provenance["k"] == 4 and provenance["effective_batch"] == 8
    assert provenance["settings"]["undesirable_floor"] is None
    assert provenance["batch_composition"] == {"expert": 4, "human": 2, "undesirable": 2}
    assert provenance["bags"][1]["bag_hash"] == "hash of run0"
    assert provenance["counts"]["human"] == 24 and provenance["software"]["torch"]
    assert provenance["metrics"]["bc_loss"] is None and provenance["metrics"]["z0"] >= 0
    assert list(trained.run.glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("method", "shares", "histograms"),
    [
        ("hapo", {"expert": 0.5, "human": 0.25, "undesirable": 0.25}, ("desirable", "undesirable")),
        ("sirius", None, ()),
    ],
)
def test_tensorboard_shows_what_a_training_is_judged_by(
    base, table, tmp_path, method, shares, histograms
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"k": 4, "steps": 10, "batch_size": 8}
    trained = trainer.optimize(table, base.checkpoint, method, settings, tmp_path / "new")
    events = EventAccumulator(str(trained.run), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    lines = [json.loads(line) for line in (trained.run / "metrics.jsonl").open()]
    for name in (name for name in lines[0] if name != "step" and lines[0][name] is not None):
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert shown == pytest.approx({line["step"]: line[name] for line in lines}, rel=1e-5), name
    assert {"loss", "grad_norm", "lr"} <= set(lines[0])
    assert all(event.value > 0 for event in events.Scalars("samples_per_s"))
    drawn = {
        name: events.Scalars(f"share/{name}")[0].value
        for name in ("expert", "human", "undesirable", "policy")
    }
    assert sum(drawn.values()) == pytest.approx(1.0)
    if shares:
        assert drawn == pytest.approx(shares | {"policy": 0.0})
        wanted = {"z0", "margins", "reward_desirable", "reward_undesirable", "lambda_desirable"}
        assert wanted <= set(lines[0])
    names = [f"lambda/{name}" for name in histograms] or ["weight"]
    assert set(tags["histograms"]) == set(names)
    for name in names:
        counts = {event.step: event.histogram_value.num for event in events.Histograms(name)}
        group = lines[0][name.partition("/")[2]] if histograms else 8
        assert counts == {1: group, 10: group}


def test_progress_is_told_after_every_step(base, table, tmp_path):
    told = []
    trainer.optimize(
        table,
        base.checkpoint,
        "hapo",
        {"k": 4, "steps": 3, "batch_size": 8},
        tmp_path / "new",
        progress=told.append,
    )
    assert [report["step"] for report in told] == [1, 2, 3]
    assert set(told[0]) == {
        "step",
        "total",
        "loss",
        "reward_desirable",
        "reward_undesirable",
        "time_left_s",
    }
    assert told[0]["time_left_s"] > 0 and told[-1]["time_left_s"] == 0
    assert all(math.isfinite(value) for report in told for value in report.values())


def test_a_cancelled_run_writes_no_checkpoint(base, table, tmp_path):
    told = []
    with pytest.raises(loop.Cancelled, match="No checkpoint was written"):
        trainer.optimize(
            table,
            base.checkpoint,
            "hapo",
            {"k": 4, "batch_size": 8},
            tmp_path / "new",
            progress=told.append,
            cancelled=lambda: len(told) >= 2,
        )
    assert len(told) == 2 and not (tmp_path / "new").exists()
    again = trainer.optimize(
        table, base.checkpoint, "hapo", {"k": 4, "batch_size": 8, "steps": 1}, tmp_path / "new"
    )
    assert again.run.name == "new.run-2"  # the cancelled run's metrics are kept


def test_nan_stops_the_run_and_names_the_step_and_the_episodes(base, table, tmp_path, monkeypatch):
    told = []
    accumulate = Preference.accumulate

    def poisoned(self, rows):
        metrics = accumulate(self, rows)
        if len(told) == 1:
            next(p for p in self.policy.network.parameters() if p.requires_grad).grad[:] = math.nan
        return metrics

    monkeypatch.setattr(Preference, "accumulate", poisoned)
    with pytest.raises(loop.Diverged, match=r"at step 2\. .*batch was: (demo|run)\d steps \["):
        trainer.optimize(
            table,
            base.checkpoint,
            "hapo",
            {"k": 4, "batch_size": 8},
            tmp_path / "new",
            progress=told.append,
        )
    assert len(told) == 1 and not (tmp_path / "new").exists()


def test_what_cannot_work_is_refused_before_anything_is_trained(base, table, tmp_path):
    def optimize(steps=table, method="hapo", output="new", **settings):
        trainer.optimize(steps, base.checkpoint, method, {"k": 4, **settings}, tmp_path / output)

    with pytest.raises(FileExistsError, match="nothing was trained"):
        optimize(output=".")
    with pytest.raises(ValueError, match="call train_bc"):
        optimize(method="bc")
    with pytest.raises(ValueError, match="labelled with K = 4, not 10"):
        optimize(k=10)
    demonstrations = build([e for e in episodes() if e.info.source == "demonstration"], k=4)
    with pytest.raises(ValueError, match="no step for human and undesirable"):
        optimize(demonstrations)
    with pytest.raises(ValueError, match="horizon is 1 for the policy and 2 in the episodes"):
        optimize(build(episodes(), k=4, horizon=2))
    with pytest.raises(ValueError, match="object state is 2 for the policy and 0"):
        optimize(build(episodes(), k=4, object_state=False))
    with pytest.raises(ValueError, match="hold no images"):
        trainer.train_bc(table, {"k": 4, "inputs": "images"}, tmp_path / "new")
    with pytest.raises(ValueError, match="no human step"):
        optimize(demonstrations, method="sirius")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_group_can_be_allowed_and_unbalanced_sampling_asked_for(base, table, tmp_path):
    settings = {"k": 4, "steps": 1, "batch_size": 8}
    demonstrations = build([e for e in episodes() if e.info.source == "demonstration"], k=4)
    trained = trainer.optimize(
        demonstrations,
        base.checkpoint,
        "hapo",
        {**settings, "allow_missing_group": True},
        tmp_path / "a",
    )
    assert "its share goes to the others: expert 100.0%" in trained.notes[0]
    trained = trainer.optimize(
        table, base.checkpoint, "hapo", {**settings, "no_balanced_sampling": True}, tmp_path / "b"
    )
    assert checkpoint.read_provenance(trained.checkpoint)["batch_composition"] == {"all": 8}


def test_takeovers_that_are_no_pairs_are_said(base, tmp_path):
    def run(name, live):
        zeros = np.zeros((len(live), 3))
        return episode(name, "deployment", live, zeros, zeros[:, :2])

    steps = build([run("a", [1, 1, 2, 2]), run("b", [2, 2, 1]), run("c", [1, 2])], k=4)
    settings = {"k": 4, "steps": 1, "batch_size": 2}
    trained = trainer.optimize(steps, base.checkpoint, "tpo", settings, tmp_path / "new")
    assert trained.notes == [
        "Not used: 1 of 3 takeovers, for want of a correction or of a step of the policy before it."
    ]
    provenance = checkpoint.read_provenance(trained.checkpoint)
    assert provenance["batch_composition"] == {"takeover": 2}


def test_bags_are_opened_read_for_what_the_policy_sees_and_skipped_ones_said(
    base, tmp_path, monkeypatch
):
    asked = []

    def reader(e):
        def steps(k, images):
            asked.append((k, images))
            return e.steps

        return SimpleNamespace(
            info=e.info,
            bag_hash=e.bag_hash,
            review_hash="",
            excluded=False,
            outcome=e.outcome,
            steps=steps,
            result=SimpleNamespace(unresolved=False),
        )

    skipped = SimpleNamespace(reason="broken is no bag.")
    monkeypatch.setattr(
        "hapo_ros.episodes.open_episodes",
        lambda paths, accept_recovered: (
            [reader(e) for e in episodes()],
            [] if accept_recovered else [skipped],
        ),
        raising=False,
    )
    trained = trainer.optimize(
        ["bags"], base.checkpoint, "hapo", {"k": 4, "steps": 1, "batch_size": 8}, tmp_path / "new"
    )
    assert set(asked) == {(4, False)}
    assert trained.skipped == ["broken is no bag."] and trained.notes == []
    assert checkpoint.read_provenance(trained.checkpoint)["skipped"] == trained.skipped
    accepting = {"k": 4, "steps": 1, "batch_size": 8, "accept_recovered": True}
    assert not trainer.optimize(
        ["bags"], base.checkpoint, "hapo", accepting, tmp_path / "accepted"
    ).skipped
    again = trainer.train_bc("bags", {**SMALL, "k": 4, "steps": 1}, tmp_path / "base")
    assert checkpoint.load(again.checkpoint).object_state == 2
