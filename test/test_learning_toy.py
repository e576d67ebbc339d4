"""What the methods of HABC learn where it is known what is to be learned (method.md 2)."""

import numpy as np
import pytest
import torch
from toy_episodes import SMALL, episode, gradients, update_of

from hapo_ros.labels import HUMAN, POLICY
from hapo_ros.learning import loop, methods, trainer
from hapo_ros.learning.data import build
from hapo_ros.learning.parallel import Ranks
from hapo_ros.learning.runlog import RunLog
from hapo_ros.learning.updates import OBJECTIVES
from hapo_ros.policies import checkpoint

ADVANCE, DITHER, STRAY, OTHER = 0.7, -0.7, 0.0, 0.3


def walk(name, places, actions, outcome="success", live=None):
    """An episode in a row of 4 places; the second dimension of its actions is what they are."""
    states = np.array([[p, 1.0 if p >= 0 else -1.0] for p in places]) / [3, 1]
    moves = np.c_[np.zeros(len(actions)), actions, np.ones(len(actions))]
    return episode(name, "deployment", live or [POLICY] * len(places), moves, states,
                   outcome=outcome)  # fmt: skip


SLOW = np.repeat(range(4), 2), [DITHER, ADVANCE] * 4
FAST = range(4), [ADVANCE] * 4


def chain():
    """At each place the policy advances twice as often as it dithers, and advancing from the last
    one is the success. From the first it may also stray, off the row, and fail."""
    lost = [0, -1, -2, -3], [STRAY] * 4, "failure"
    episodes = [walk("slow", *SLOW), walk("fast", *FAST)]
    return build([*episodes, *(walk(f"lost{i}", *lost) for i in range(2))], k=4)


def learned(table, method, folder, **settings):
    """The update of a method after a training of an untrained policy."""
    base = trainer.train_bc(
        table, SMALL | {"k": 4, "steps": 1, "fractions": {"all": 1.0}}, folder / "base"
    )
    whole = {"k": 4, "parameters": "full", "lr": 3e-3}
    settings = methods.resolve(method, whole | settings)
    policy = checkpoint.load(base.checkpoint)
    update = OBJECTIVES[methods.method(method).objective](policy, table, settings)
    (folder / "run").mkdir()
    with RunLog(folder / "run") as log:
        sampler = trainer._sampler(method, table, settings, Ranks())
        loop.Training(policy, update, sampler, settings, log).run(loop.Hooks())
    return update


def likelihoods(update, rows, *actions):
    """(len(rows), len(actions)) how likely the policy does each of them at the rows' states."""
    batch = update.table.batch(rows)
    chosen = []
    for action in actions:
        batch.actions[:, 0, 1] = action
        with torch.no_grad():
            chosen.append(update.policy.log_prob(batch)[0][:, 1].exp())
    return torch.stack(chosen, 1)


LONG = {"steps": 400, "batch_size": 20, "critic_warmup": 250}
ALONE = {"fractions": {"policy": 1.0}}


def test_the_critic_finds_known_values_and_the_policy_comes_to_advance(tmp_path):
    update = learned(chain(), "habc", tmp_path, **LONG, **ALONE)
    with torch.no_grad():
        z_v, v_e = update.critic(update.policy.features(update.table.batch(np.arange(20))))
    # A third of the steps goes nowhere: V(s) = V(s + 1) - 3 / 2, and the last target is 0.
    np.testing.assert_allclose(v_e[:8:2], [-5.0, -3.5, -2.0, -0.5], atol=0.5)
    viability = z_v.sigmoid()
    assert viability[0] == pytest.approx(3 / 5, abs=0.1)
    assert (viability[2:8] > 0.9).all() and (viability[13:16] < 0.1).all()
    # The gate is 1 + tanh(1 / 2) where it advances and 1 + tanh(-1) where it does not; cloning
    # would make them 2 / 3 and 1 / 3, and of what strays at the first place 2 / 5.
    likely = likelihoods(update, [2, 4, 6], ADVANCE, DITHER)
    assert (likely[:, 0] > 0.8).all() and (likely[:, 1] < 0.2).all()
    assert likelihoods(update, [0], STRAY) < 0.05


def test_without_efficiency_the_policy_avoids_failure_and_dithers_as_before(tmp_path):
    """Where success is sure the gate is 1 whatever the policy does; where it is 3 / 5, advancing
    makes it sure, and the gate is close to 2."""
    update = learned(chain(), "habc_v", tmp_path, **LONG, **ALONE)
    likely = likelihoods(update, [2, 4, 6], ADVANCE, DITHER).numpy()
    np.testing.assert_allclose(likely, [[2 / 3, 1 / 3]] * 3, atol=0.1)
    first = likelihoods(update, [0], ADVANCE, DITHER, STRAY)[0].numpy()
    np.testing.assert_allclose(first, [4 / 5, 1 / 5, 0.0], atol=0.08)


@pytest.mark.parametrize(("method", "advances"), [("habc", 2 / 3), ("habc_ir", 0.9)])
def test_corrections_that_go_nowhere_count_less_where_they_are_reweighted(
    tmp_path, method, advances
):
    """The operator dithers a third of the time, and the policy, whose way is another one, never."""
    helped = [
        walk("slow", *SLOW, live=[HUMAN] * 8),
        walk("fast", *FAST, live=[HUMAN] * 4),
        walk("alone", range(4), [OTHER] * 4),
        walk("lost", [-1, -2, -3], [STRAY] * 3, "failure"),
    ]
    drawn = {"fractions": {"human": 0.6, "policy": 0.4}, "min_human": 1}
    update = learned(build(helped, k=4), method, tmp_path, **LONG, **drawn)
    likely = likelihoods(update, [2, 4, 6], ADVANCE, DITHER)
    share = likely[:, 0] / likely.sum(1)
    np.testing.assert_allclose(share.numpy(), advances, atol=0.08)


def test_imit_dagger_imitates_both_demonstrations_and_corrections_alike_and_no_policy(tmp_path):
    """However many steps there are of each, and no correction that is too short."""
    shown = walk("shown", [0] * 12, [ADVANCE] * 12)
    shown.info.source = "demonstration"
    live = [POLICY] * 20 + [HUMAN] * 6
    helped = walk("helped", [0] * 26, [STRAY] * 20 + [DITHER] * 6, live=live)
    short = walk("short", [0] * 3, [STRAY, OTHER, OTHER], live=[POLICY, HUMAN, HUMAN])
    drawn = {"steps": 150, "batch_size": 16, "min_human": 3}
    update = learned(build([shown, helped, short], k=4), "imit_dagger", tmp_path, **drawn)
    likely = likelihoods(update, [0], ADVANCE, DITHER, STRAY, OTHER)[0].numpy()
    np.testing.assert_allclose(likely, [0.5, 0.5, 0.0, 0.0], atol=0.1)


def test_imit_recap_imitates_what_turned_out_better_than_expected(tmp_path):
    """Of V(s) = (-3 + 1.8 V(s + 1)) / 2.1, with 0 at the end, steps that advance are 0.3 to 0.5
    better than expected, and those that dither 0.6 to 1 worse."""
    episodes = [walk("slow1", *SLOW), walk("slow2", *SLOW), walk("fast1", *FAST)]
    table = build([*episodes, walk("fast2", *FAST)], k=4)
    settings = {"held_out": 0.5, "seed": 1}
    held = OBJECTIVES["imit_recap"].held_out(table, methods.resolve("imit_recap", settings))
    advancing = table.actions[:, 0, 1] == np.float32(ADVANCE)
    assert 0.5 < advancing[held].mean() < 1
    settings |= {"keep": advancing[held].mean() - 0.03, "fractions": {"interaction": 1.0}}
    settings |= {"failure_penalty": 0.0, "gamma": 0.9, "value_bins": 21, "lr": 1e-2}
    update = learned(table, "imit_recap", tmp_path, **LONG, **settings)
    assert -0.55 < update.threshold < 0.3
    likely = likelihoods(update, [0, 2, 4, 6], ADVANCE, DITHER)
    assert (likely[:, 0] > 0.85).all() and (likely[:, 1] < 0.15).all()


def test_the_value_of_recap_is_that_of_the_rewards_to_come(tmp_path):
    table = chain()
    drawn = {"k": 4, "fractions": {"policy": 1.0}}
    base = trainer.train_bc(table, SMALL | drawn | {"steps": 1}, tmp_path / "base")
    settings = {"batch_size": 20, "failure_penalty": 9.0, "gamma": 0.9, "value_bins": 21}
    update = update_of("imit_recap", base, table, **settings)
    optimizer = torch.optim.Adam(update.critic.parameters(), 1e-2)
    rows = np.arange(20)
    for _ in range(300):
        gradients(update, rows)
        optimizer.step()
    with torch.no_grad():
        value = update.critic.value(update.critic(update.policy.features(table.batch(rows))))
    lost = [-9.0]
    for _ in range(2):
        lost.append(-1 + 0.9 * lost[-1])
    np.testing.assert_allclose(value[13:16], lost[::-1], atol=0.3)
    at_goal = -1 / (3 - 0.9)  # V = (-1 + 0.9 V) / 3: two of three steps there end the episode
    assert value[7].item() == pytest.approx(at_goal, abs=0.3)
