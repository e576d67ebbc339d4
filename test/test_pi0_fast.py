"""Small pi0_fast: chunks of a varying number of tokens, trained by every method and served."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from toy_episodes import SMALL, episode, gradients, muted, update_of

from hapo_ros.labels import HUMAN, POLICY
from hapo_ros.learning import methods, reference, trainer
from hapo_ros.learning.data import build
from hapo_ros.learning.draws import Draws
from hapo_ros.learning.table import GROUPS
from hapo_ros.policies import checkpoint, family
from hapo_ros.policies.fast_tokenizer import FastTokenizer
from hapo_ros.policies.pi0_fast import Pi0Fast

RIGHT, WRONG = 0.5, -0.5  # of the second dimension, where the policy does not know better
HORIZON = 2
PI0 = SMALL | {"family": "pi0_fast", "horizon": HORIZON, "k": 4}


def episodes(count=5):
    """Demonstrations act (s, RIGHT or WRONG, 1) for a state s that drifts; in deployments, where
    s > 0, the policy does the WRONG for 5 steps and the operator the RIGHT for 5; and one episode
    of the policy alone."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        for name, live, low in (
            ("demo", [POLICY] * 8, -1),
            ("run", [POLICY] * 5 + [HUMAN] * 5, 0.2),
        ):
            s = rng.uniform(low, 0.5) + 0.05 * np.arange(len(live))
            second = np.full(len(live), rng.choice([RIGHT, WRONG]))
            if name == "run":
                second = np.where(np.array(live) == HUMAN, RIGHT, WRONG)
            actions = np.stack([s, second, np.ones(len(live))], 1)
            source = "demonstration" if name == "demo" else "deployment"
            states = np.stack([s, s**2], 1)
            made.append(episode(f"{name}{i}", source, live, actions, states))
    alone = np.stack([np.full(6, 0.4), np.full(6, RIGHT), np.ones(6)], 1)
    made.append(episode("alone", "deployment", [POLICY] * 6, alone, alone[:, :2]))
    return made


@pytest.fixture(scope="module")
def table():
    return build(episodes(), k=4, horizon=HORIZON)


@pytest.fixture(scope="module")
def base(table, tmp_path_factory):
    """A checkpoint, trained a little by behaviour cloning."""
    return trainer.train_bc(table, PI0 | {"steps": 80}, tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def whole(table):
    return table.of_whole_chunks()


# Training


def test_cloning_lowers_the_loss_and_the_policy_does_what_was_shown(base, whole):
    lines = [json.loads(line) for line in (base.run / "metrics.jsonl").open()]
    assert np.mean([line["loss"] for line in lines[-10:]]) < 0.3 * lines[0]["loss"]
    policy = checkpoint.load(base.checkpoint)
    assert policy.horizon == HORIZON and policy.config.horizon == HORIZON
    shown = whole.batch(whole.groups["expert"])
    done = policy.predict(shown, generate=True)
    assert done.isfinite().all() and (done[..., 2] > 0.9).all()
    assert (done[..., 0] - shown.actions[..., 0]).abs().mean() < 0.2
    assert ((done[..., 1].abs() - 0.5).abs() < 0.05).all()


def test_its_chunks_are_of_5_actions_unless_asked_otherwise(tmp_path):
    assert family("pi0_fast") is Pi0Fast and Pi0Fast.Config.horizon == 5
    trained = trainer.train_bc(
        build(episodes(2), k=4, horizon=5), PI0 | {"horizon": None, "steps": 1}, tmp_path / "base"
    )
    policy = checkpoint.load(trained.checkpoint)
    assert policy.horizon == 5 and policy.act(policy.example(), "reach it").shape == (5, 3)


def test_samples_whose_chunk_is_cut_are_dropped_and_counted(base, table, whole, tmp_path):
    cut = ~table.action_mask.all(1)
    assert whole.action_mask.all() and len(whole) == len(table) - cut.sum()
    # The last steps of all episodes, and those before 5 takeovers.
    assert whole.counts["cut_chunk"] == cut.sum() == 11 + 5
    for i, name in enumerate(GROUPS):
        assert whole.counts[name] == len(whole.groups[name])
        assert table.counts[name] == len(table.groups[name]) == (table.group == i).sum()
    assert sum(e["steps"] for e in whole.episodes) == len(whole)
    np.testing.assert_array_equal(whole.proprio, table.proprio[~cut])
    for method in ("bc", "hapo"):
        settings = {"k": 4, "steps": 1, "batch_size": 8}
        trained = (
            trainer.train_bc(table, PI0 | settings, tmp_path / method)
            if method == "bc"
            else trainer.optimize(table, base.checkpoint, method, settings, tmp_path / method)
        )
        assert checkpoint.read_provenance(trained.checkpoint)["counts"]["cut_chunk"] == 16


def test_a_group_of_which_all_chunks_are_cut_is_told(base, tmp_path):
    made = [made for made in episodes(1) if made.info.source == "demonstration"]
    actions = np.zeros((6, 3))
    made.append(episode("hasty", "deployment", [POLICY] + [HUMAN] * 5, actions, actions[:, :2]))
    steps = build(made, k=4, horizon=HORIZON)
    with pytest.raises(ValueError, match=r"no step for undesirable.*3 steps whose chunk of 2"):
        trainer.optimize(steps, base.checkpoint, "hapo", {"k": 4}, tmp_path / "new")


OWN = {
    "habc": {"critic_warmup": 1, "min_human": 1},
    "habc_v": {"critic_warmup": 1, "min_human": 1},
    "imit_dagger": {"min_human": 1},
    "imit_recap": {"critic_warmup": 1},
}


def test_every_method_trains_it_on_the_same_episodes(base, table, tmp_path):
    quick = {"k": 4, "steps": 2, "batch_size": 8, "warmup": 0, "lr": 1e-3}
    versions, last = {base.version}, base.checkpoint
    for method in (name for name in methods.METHODS if name != "bc"):
        start = last if method == "habc_ir" else base.checkpoint
        settings = quick | OWN.get(method, OWN["habc"] if method == "habc_ir" else {})
        if method == "tpo":
            settings["batch_size"] = 3
        trained = trainer.optimize(table, start, method, settings, tmp_path / method)
        assert np.isfinite(trained.metrics["loss"]), method
        versions.add(trained.version)
        last = trained.checkpoint
    assert len(versions) == len(methods.METHODS)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("hapo_anchored", {}),
        ("hapo", {"l1_prediction": "generate"}),
        ("dpo", {"bc_weight": 1.0}),
        ("tpo", {}),
        ("habc", {"critic_warmup": 0, "min_human": 1}),
        ("imit_recap", {"critic_warmup": 0}),
    ],
    ids=str,
)
def test_8_samples_at_once_are_micro_batches_of_3(base, table, whole, method, options):
    """Though each is filled up to its own longest chunk."""
    data = table if method in ("habc", "imit_recap") else whole
    rows = np.arange(len(data))[::9]
    rows = data.groups["takeover"][:4] if method == "tpo" else rows
    (metrics, at_once), (split, in_parts) = (
        gradients(update_of(method, base, data, micro_batch=size, **options), rows)
        for size in (16, 3)
    )
    assert at_once.norm() > 1e-3
    torch.testing.assert_close(in_parts, at_once, rtol=1e-3, atol=1e-5)
    for key, value in metrics.items():
        assert split[key] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), key


@pytest.mark.parametrize("kind", ["mismatched", "perturbed"])
def test_the_reference_is_kept_with_chunks_of_any_number_of_tokens(base, whole, tmp_path, kind):
    policy = checkpoint.load(base.checkpoint)
    second, draws = reference.Second(kind, 3, 0.1), Draws(policy, 0)
    fresh = reference.compute(policy, whole, second, draws, batch_size=7)
    for _ in range(2):
        kept = reference.cached(policy, whole, second, draws, tmp_path)
        np.testing.assert_allclose(kept.logps, fresh.logps, atol=1e-5)
        np.testing.assert_allclose(kept.second_logps, fresh.second_logps, atol=1e-5)
        np.testing.assert_array_equal(kept.second_mask, fresh.second_mask)
    assert fresh.logps.shape == fresh.mask.shape == (len(whole), policy.slots)
    lengths = fresh.mask.sum(1)
    tokens = policy.tokenizer.encode(whole.actions)
    assert lengths.tolist() == [len(row) for row in tokens] and len(set(lengths)) > 1
    assert (fresh.second_mask.sum(1) != lengths).any()


def test_hapo_makes_the_chunk_that_failed_less_likely_and_the_correction_more(
    base, whole, table, tmp_path
):
    settings = {"k": 4, "steps": 40, "batch_size": 16, "lora_rank": 8, "lr": 1e-3}
    trained = trainer.optimize(table, base.checkpoint, "hapo", settings, tmp_path / "new")
    with torch.no_grad():
        after, before = (
            {
                name: policy.log_prob(whole.batch(whole.groups[name]))[0].sum(1).mean().item()
                for name in ("undesirable", "human")
            }
            for policy in (checkpoint.load(trained.checkpoint), checkpoint.load(base.checkpoint))
        )
    assert after["undesirable"] < before["undesirable"] - 0.2
    assert after["human"] > before["human"] + 0.2
    assert trained.metrics["reward_undesirable"] < 0 < trained.metrics["margins"]


def test_a_critic_learns_from_every_step_and_only_whole_chunks_are_imitated(base, table):
    update = update_of("habc", base, table, critic_warmup=0, min_human=1)
    last = np.flatnonzero(table.following == np.arange(len(table)))
    assert not table.whole[last].any()
    assert f"Of {len(table)} steps, 16 have a chunk that is cut" in update.notes[0]
    metrics, _ = gradients(update, last)
    assert metrics["loss"] == 0.0 and metrics["viability_loss"] > 0.0
    before = np.flatnonzero(table.whole & (table.place == 0))
    assert gradients(update, before)[0]["loss"] > 0.0


# What is no chunk


def test_an_answer_that_is_no_chunk_is_no_action_and_weighs_1(base, whole):
    policy = muted(checkpoint.load(base.checkpoint))
    batch = whole.batch(np.arange(6))
    for generate in (False, True):
        scored = policy.score(batch, generate=generate)
        assert not scored.decodable.any() and (scored.l1 == 0).all()
        assert policy.predict(batch, generate=generate).isnan().all()
    action = policy.act(policy.example(), "reach it")
    assert action.shape == (HORIZON, 3) and np.isnan(action).all()
    assert policy.confidence == pytest.approx(1.0)
    update = update_of("hapo", base, whole)
    rows = np.concatenate([whole.groups[name][:2] for name in ("expert", "undesirable")])
    weighed, _ = gradients(update, rows)
    assert weighed["lambda_undesirable"] < 1.0
    update.policy = policy
    weighed, _ = gradients(update, rows)
    assert weighed["lambda_desirable"] == weighed["lambda_undesirable"] == 1.0


def test_where_the_base_has_no_action_dpo_has_nothing_to_reject(base, whole):
    policy = muted(checkpoint.load(base.checkpoint))
    kept = reference.compute(policy, whole, reference.Second("perturbed", 0, 0.1), Draws(policy, 0))
    assert not kept.second_mask.any() and kept.mask.any(1).all()
    assert (kept.second_actions == 0).all()
    update = trainer.OBJECTIVES["dpo"](policy, whole, methods.resolve("dpo", {"k": 4}), kept)
    assert f"Of {len(whole)} steps, {len(whole)} have nothing to reject" in update.notes[0]
    metrics, gradient = gradients(update, np.arange(8))
    assert metrics["reward_undesirable"] == 0.0 and gradient.isfinite().all()
    assert update_of("dpo", base, whole).notes == ()


# Serving


def test_generating_ends_with_each_samples_own_end(base, whole):
    """And is what teacher forcing on the tokens of its own actions predicts."""
    policy = checkpoint.load(base.checkpoint)
    batch = whole.batch(np.arange(12))
    with torch.no_grad():
        tokens, there, _ = policy._generate(policy.forward_observation(batch), 12)
    ends = (tokens == policy.end).float().argmax(1)
    assert (there.sum(1) == ends + 1).all() and tokens.shape[1] == ends.max() + 1 < policy.slots
    alone = [policy.predict(whole.batch([row]), generate=True)[0] for row in range(12)]
    done = policy.predict(batch, generate=True)
    torch.testing.assert_close(done, torch.stack(alone), rtol=0, atol=1e-6)
    own = batch.with_actions(done, batch.action_mask)
    torch.testing.assert_close(policy.predict(own), done, rtol=0, atol=1e-6)
    assert policy.score(own).decodable.all()


def test_the_confidence_is_the_mean_probability_of_the_tokens_and_of_their_end(base):
    policy = checkpoint.load(base.checkpoint)
    action = policy.act(policy.example(), "reach it")
    own = policy.batch_of(policy.example(), "reach it").with_actions(
        torch.from_numpy(action)[None], torch.ones(1, HORIZON, dtype=torch.bool)
    )
    logps, mask = policy.log_prob(own)
    assert policy.confidence == pytest.approx(logps[mask].exp().mean().item(), rel=1e-4)


def test_a_loaded_policy_is_the_saved_one_bit_for_bit_and_fits_nothing(base, whole, monkeypatch):
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from hapo_ros.policies import checkpoint\n"
        "p = checkpoint.load(sys.argv[1])\n"
        "print(p.act(p.example(), 'reach it').tobytes().hex(), p.confidence.hex())\n"
    )
    monkeypatch.setattr(FastTokenizer, "fit", None)
    policy = checkpoint.load(base.checkpoint)
    action = policy.act(policy.example(), "reach it")
    other = subprocess.run(
        [sys.executable, "-c", code, base.checkpoint],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert other.stdout.split() == [action.tobytes().hex(), policy.confidence.hex()]
    assert policy.version == base.version and policy.tokenizer.merges
    checkpoint.check(policy)
    checkpoint.check(muted(checkpoint.load(base.checkpoint)))


def test_a_tokenizer_that_is_damaged_or_anothers_is_refused(base, tmp_path):
    policy = checkpoint.load(base.checkpoint)
    checkpoint.save(policy, tmp_path / "own", {})
    path = tmp_path / "own" / "tokenizer.json"
    stored = json.loads(path.read_text())

    def refused(**changed):
        path.write_text(json.dumps(stored | {"actions": stored["actions"] | changed}))
        version = checkpoint.version_of(tmp_path / "own")
        (tmp_path / "own" / "provenance.json").write_text(json.dumps({"version": version}))
        with pytest.raises(ValueError) as error:
            checkpoint.load(tmp_path / "own")
        return str(error.value)

    assert "it is damaged" in refused(merges=[[0, 4000]])
    assert "do not belong together" in refused(merges=stored["actions"]["merges"][:-1])
    assert "do not belong together" in refused(merges=[1])
    assert "chunks of 3 x 3 and the policy of 2 x 3" in refused(horizon=3, merges=[])
    assert "belongs to another policy" in refused(kind="uniform_bins")
    path.write_text(json.dumps(stored | {"actions": "uniform_bins"}))
    with pytest.raises(ValueError, match="not the checkpoint that was saved"):
        checkpoint.load(tmp_path / "own")
