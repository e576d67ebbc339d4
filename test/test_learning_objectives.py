"""The objectives against hand computations in numpy (method.md 1.2, 1.3 and 3)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hapo_ros.learning.credit import DEMONSTRATION, INTERVENTION, NO_WINDOW, POLICY_WINDOW
from hapo_ros.learning.objectives import (
    adaptive_weights,
    baseline,
    critic_losses,
    dpo_loss,
    efficiency_target,
    habc_gate,
    habc_weights,
    kto_loss,
    l1_totals,
    log_ratio,
    merge_metrics,
    mismatched_kl,
    recap_target,
    sirius_weights,
    tpo_loss,
    value_losses,
)

DESIRABLE = torch.tensor([True, False, True, False, True, True])
GRIPPER_OUT = torch.tensor([True, True, False])


@pytest.fixture
def logps():
    generator = torch.Generator().manual_seed(0)
    return [-3 * torch.rand(6, 3, generator=generator, dtype=torch.float64) for _ in range(2)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_loss_is_that_of_equation_2_computed_by_hand(logps):
    policy, ref = (x.numpy() for x in logps)
    weights, z0, beta = np.array([0.5, 0.9, 1.0, 0.2, 0.7, 0.3]), 0.3, 0.1
    expected = []
    for i in range(6):
        tokens = slice(0, 3) if DESIRABLE[i] else slice(0, 2)
        r = (policy[i] - ref[i])[tokens].sum()
        v = weights[i] * sigmoid(beta * (r - z0) if DESIRABLE[i] else beta * (z0 - r))
        expected.append(weights[i] - v)
    baseline_z0 = torch.tensor(z0, dtype=torch.float64)
    loss, metrics = kto_loss(
        *logps,
        DESIRABLE,
        z0=baseline_z0,
        beta=beta,
        weights=torch.tensor(weights),
        rejected_mask=GRIPPER_OUT,
    )
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-12)
    desirable = [(policy[i] - ref[i]).sum() for i in range(6) if DESIRABLE[i]]
    undesirable = [(policy[i] - ref[i])[:2].sum() for i in range(6) if not DESIRABLE[i]]
    assert metrics["reward_desirable"].item() == pytest.approx(np.mean(desirable))
    assert metrics["reward_undesirable"].item() == pytest.approx(np.mean(undesirable))
    assert metrics["margins"].item() == pytest.approx(np.mean(desirable) - np.mean(undesirable))
    assert metrics["lambda_undesirable"].item() == pytest.approx(0.55)


def test_gradient_is_that_of_the_loss(logps):
    policy, ref = logps
    policy.requires_grad_()

    def loss(policy_logps):
        return kto_loss(
            policy_logps,
            ref,
            DESIRABLE,
            z0=torch.tensor(0.2),
            beta=0.7,
            rejected_mask=GRIPPER_OUT,
            weights=torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
        )[0]

    assert torch.autograd.gradcheck(loss, policy)


def test_gripper_token_of_undesirable_samples_has_no_gradient_and_of_desirable_ones_has(logps):
    policy, ref = logps
    policy.requires_grad_()
    loss = kto_loss(policy, ref, DESIRABLE, z0=torch.tensor(0.0), rejected_mask=GRIPPER_OUT)[0]
    loss.backward()
    assert (policy.grad[~DESIRABLE, 2] == 0).all() and (policy.grad[DESIRABLE, 2] < 0).all()
    assert (policy.grad[~DESIRABLE, :2] > 0).all()


def test_invalid_tokens_are_never_looked_at(logps):
    policy, ref = logps
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[:, 2] = False
    expected = kto_loss(policy[:, :2], ref[:, :2], DESIRABLE, z0=torch.tensor(0.1))[0]
    policy[:, 2], ref[:, 2] = float("nan"), float("-inf")
    policy.requires_grad_()
    loss = kto_loss(policy, ref, DESIRABLE, z0=torch.tensor(0.1), mask=mask)[0]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item()) and policy.grad.isfinite().all()
    assert log_ratio(policy, ref, mask).isfinite().all()


def test_an_undesirable_sample_below_the_floor_gives_no_gradient_and_the_same_loss(logps):
    policy, ref = logps
    policy[1] -= 10.0
    policy[2] -= 10.0
    policy.requires_grad_()
    plain = kto_loss(policy, ref, DESIRABLE, z0=torch.tensor(0.0))[0]
    loss = kto_loss(policy, ref, DESIRABLE, z0=torch.tensor(0.0), undesirable_floor=-5.0)[0]
    loss.backward()
    assert loss.item() == plain.item()
    assert (policy.grad[1] == 0).all()
    assert (policy.grad[3] > 0).all() and (policy.grad[2] < 0).all()


def test_loss_is_bounded_and_finite_for_extreme_rewards():
    policy = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    loss = kto_loss(policy, torch.zeros(2, 1), torch.tensor([False, True]), z0=torch.tensor(0.0))[0]
    loss.backward()
    assert loss.item() == pytest.approx(1.0) and policy.grad.isfinite().all()


def test_z0_is_the_mean_over_the_effective_batch_and_never_negative(logps):
    policy, ref = logps
    parts = [mismatched_kl(policy[i : i + 2], ref[i : i + 2]) for i in (0, 2, 4)]
    joined = baseline(*(sum(x) for x in zip(*parts, strict=True)))
    mean = (policy - ref).sum(1).mean()
    assert joined.item() == pytest.approx(max(0.0, mean.item()))
    assert baseline(torch.tensor(-3.0), torch.tensor(2.0)).item() == 0.0
    assert baseline(torch.tensor(12.0), torch.tensor(2.0)).item() == 6.0  # no clamp at 5
    assert baseline(torch.tensor(12.0), torch.tensor(2.0), upper=5.0).item() == 5.0
    assert baseline(torch.tensor(0.0), torch.tensor(0.0)).item() == 0.0


def test_z0_has_no_gradient_and_counts_only_samples_with_a_valid_token(logps):
    policy, ref = logps
    policy.requires_grad_()
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[0] = False
    total, count = mismatched_kl(policy, ref, mask)
    assert not total.requires_grad and count.item() == 5
    assert total.item() == pytest.approx((policy - ref)[1:].sum().item())


def test_weights_are_equations_4_to_6_computed_by_hand():
    l1 = np.array([0.1, 0.4, 0.0, 0.2, 0.3, 0.5])
    w = l1 / l1.sum()
    expected = np.where(DESIRABLE, 1 - np.exp(-2.0 * w), np.exp(-3.0 * w))
    got = adaptive_weights(torch.tensor(l1), DESIRABLE, beta_d=2.0, beta_u=3.0)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_weights_at_batch_8_are_the_known_ones():
    l1, desirable = torch.full((8,), 0.3), torch.arange(8) < 6
    got = adaptive_weights(l1, desirable)
    assert got[0].item() == pytest.approx(0.1175, abs=1e-4)
    assert got[7].item() == pytest.approx(0.8825, abs=1e-4)


def test_group_scope_and_unit_mean_scale():
    l1 = torch.tensor([0.1, 0.4, 0.3, 0.2, 0.3, 0.5], dtype=torch.float64)
    group = adaptive_weights(l1, DESIRABLE, scope="group")
    assert group[0].item() == pytest.approx(1 - np.exp(-0.1 / 1.2))
    assert group[1].item() == pytest.approx(np.exp(-0.4 / 0.6))
    scaled = adaptive_weights(l1, DESIRABLE, scale="unit_mean")
    assert scaled[0].item() == pytest.approx(1 - np.exp(-0.1 / l1.mean().item()))
    both = adaptive_weights(l1, DESIRABLE, scope="group", scale="unit_mean")
    assert both[1].item() == pytest.approx(np.exp(-0.4 / 0.3))
    twice = adaptive_weights(l1.repeat(2), DESIRABLE.repeat(2), scale="unit_mean")
    torch.testing.assert_close(twice[:6], scaled)


@pytest.mark.parametrize("scope", ["batch", "group"])
@pytest.mark.parametrize("scale", ["none", "unit_mean"])
def test_weights_do_not_depend_on_how_the_batch_is_split(scope, scale):
    l1 = torch.rand(6, generator=torch.Generator().manual_seed(3))
    decodable = torch.tensor([True, True, False, True, True, True])
    options = {"scope": scope, "scale": scale}
    whole = adaptive_weights(l1, DESIRABLE, decodable=decodable, **options)
    parts = [l1_totals(l1[i], DESIRABLE[i], decodable[i]) for i in (slice(0, 4), slice(4, 6))]
    total, count = (sum(x) for x in zip(*parts, strict=True))
    split = [
        adaptive_weights(
            l1[i], DESIRABLE[i], decodable=decodable[i], l1_sum=total, l1_count=count, **options
        )
        for i in (slice(0, 4), slice(4, 6))
    ]
    torch.testing.assert_close(torch.cat(split), whole)


def test_undecodable_predictions_weigh_1_and_stay_out_of_the_sum():
    decodable = torch.tensor([True, True, False, True, True, True])
    l1 = torch.tensor([0.1, 0.4, float("nan"), 0.2, 0.3, 0.5])
    got = adaptive_weights(l1, DESIRABLE, decodable=decodable)
    assert got[2].item() == 1.0
    without = adaptive_weights(l1[decodable], DESIRABLE[decodable])
    torch.testing.assert_close(got[decodable], without)


def test_no_error_at_all_gives_w_0():
    got = adaptive_weights(torch.zeros(6), DESIRABLE)
    torch.testing.assert_close(got, (~DESIRABLE).float())


def test_unknown_scope_and_scale_are_named():
    with pytest.raises(ValueError, match="scope must be batch or group"):
        adaptive_weights(torch.ones(6), DESIRABLE, scope="rank")
    with pytest.raises(ValueError, match="scale must be none or unit_mean"):
        adaptive_weights(torch.ones(6), DESIRABLE, scale="mean")
    with pytest.raises(ValueError, match="l1_totals"):
        adaptive_weights(torch.ones(6), DESIRABLE, scope="group", l1_sum=3.0, l1_count=6)


def test_kto_is_hapo_with_weights_of_1(logps):
    z0 = torch.tensor(0.1)
    kto = kto_loss(*logps, DESIRABLE, z0=z0)[0]
    hapo = kto_loss(*logps, DESIRABLE, z0=z0, weights=torch.ones(6))[0]
    assert kto.item() == hapo.item()


def pairs(count=4, seed=2):
    """Log-probabilities of chosen and rejected actions: policy's, then the reference's."""
    generator = torch.Generator().manual_seed(seed)
    return [-3 * torch.rand(count, 3, generator=generator, dtype=torch.float64) for _ in range(4)]


def test_dpo_loss_computed_by_hand():
    logps = pairs()
    chosen, rejected, ref_chosen, ref_rejected = (x.numpy() for x in logps)
    rewards = (chosen - ref_chosen).sum(1), (rejected - ref_rejected).sum(1)
    expected = -np.log(sigmoid(0.3 * (rewards[0] - rewards[1])))
    loss, metrics = dpo_loss(*logps, beta=0.3)
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-12)
    assert metrics["reward_desirable"].item() == pytest.approx(rewards[0].mean())
    assert metrics["reward_undesirable"].item() == pytest.approx(rewards[1].mean())
    assert metrics["margins"].item() == pytest.approx((rewards[0] - rewards[1]).mean())
    assert metrics["desirable"] == metrics["undesirable"] == 4
    start = dpo_loss(logps[0], logps[1], logps[0], logps[1])[0]
    assert start.item() == pytest.approx(np.log(2))


def test_dpo_gradient_is_that_of_the_loss_and_counts_every_token():
    chosen, rejected, *ref = pairs()
    chosen.requires_grad_(), rejected.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *logps: dpo_loss(*logps, *ref, beta=0.7)[0], (chosen, rejected)
    )
    dpo_loss(chosen, rejected, *ref)[0].backward()
    assert (chosen.grad < 0).all() and (rejected.grad > 0).all()  # gripper included


def test_dpo_never_looks_at_invalid_tokens():
    logps = pairs()
    expected = dpo_loss(*(x[:, :2] for x in logps))[0]
    mask = torch.tensor([True, True, False]).expand(4, 3)
    for x in logps:
        x[:, 2] = float("nan")
    loss = dpo_loss(*logps, chosen_mask=mask, rejected_mask=mask)[0]
    assert loss.item() == pytest.approx(expected.item())


def test_dpo_gives_no_gradient_to_a_rejected_action_below_the_floor():
    chosen, rejected, *ref = pairs()
    rejected[1] -= 10.0
    chosen.requires_grad_(), rejected.requires_grad_()
    loss = dpo_loss(chosen, rejected, *ref, undesirable_floor=-5.0)[0]
    loss.backward()
    assert loss.item() == dpo_loss(chosen, rejected, *ref)[0].item()
    assert (rejected.grad[1] == 0).all() and (chosen.grad[1] < 0).all()
    assert (rejected.grad[0] > 0).all()


def test_dpo_loss_is_finite_for_extreme_rewards():
    far = torch.tensor([[1e4]], requires_grad=True)
    zero = torch.zeros(1, 1)
    loss = dpo_loss(zero, far, zero, zero, beta=1.0)[0]
    loss.backward()
    assert loss.item() == pytest.approx(1e4) and far.grad.item() == pytest.approx(1.0)


def minimum(loss_of_logits, arms=3):
    """Log-probabilities of the arms where a loss of their logits is least."""
    logits = torch.zeros(arms, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = loss_of_logits(logits.log_softmax(0))
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().log_softmax(0)


REF = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()


def test_dpo_is_least_where_the_log_ratios_differ_by_how_often_one_is_preferred():
    """Arm 0 is preferred to arm 1 in 8 of 10 pairs: Bradley and Terry's model, solved by hand."""
    chosen = torch.tensor([0] * 8 + [1] * 2)
    rejected = 1 - chosen

    def loss(logps):
        columns = (logps[chosen], logps[rejected], REF[chosen], REF[rejected])
        return dpo_loss(*(x[:, None] for x in columns), beta=0.5)[0]

    reward = minimum(loss) - REF
    assert (reward[0] - reward[1]).item() == pytest.approx(np.log(0.8 / 0.2) / 0.5, rel=1e-3)


def test_kto_is_least_where_only_the_desirable_arm_is_left_with_weights_or_without():
    """Among three arms, one desirable and one undesirable."""
    arms, desirable = torch.tensor([0, 0, 1]), torch.tensor([True, True, False])
    for weights in (None, torch.tensor([0.1, 0.3, 0.8])):
        logps = minimum(
            lambda logps, weights=weights: kto_loss(
                logps[arms][:, None],
                REF[arms][:, None],
                desirable,
                z0=torch.tensor(0.0),
                beta=1.0,
                weights=weights,
            )[0]
        )
        assert logps[0].exp().item() > 0.99


def segments(seed=3):
    """4 pairs of segments of up to 3 and 2 steps: log-probabilities as of ``pairs``, and masks."""
    generator = torch.Generator().manual_seed(seed)
    logps = [
        -3 * torch.rand(4, steps, 3, generator=generator, dtype=torch.float64)
        for steps in (3, 2, 3, 2)
    ]
    lengths = torch.tensor([3, 1, 2, 3]), torch.tensor([2, 2, 1, 1])
    masks = [
        (torch.arange(steps) < n[:, None])[..., None].expand(4, steps, 3)
        for n, steps in zip(lengths, (3, 2), strict=True)
    ]
    return logps, {"chosen_mask": masks[0], "rejected_mask": masks[1]}


def test_tpo_loss_computed_by_hand_is_of_sums_over_segments_whatever_their_lengths():
    logps, masks = segments()
    chosen, rejected, ref_chosen, ref_rejected = (x.numpy() for x in logps)
    expected, good, bad = [], [], []
    for i, (n, m) in enumerate(zip((3, 1, 2, 3), (2, 2, 1, 1), strict=True)):
        r_chosen = (chosen[i, :n] - ref_chosen[i, :n]).sum()
        r_rejected = (rejected[i, :m] - ref_rejected[i, :m]).sum()
        expected.append(-np.log(sigmoid(0.4 * (r_chosen - r_rejected))))
        good.append(r_chosen / n)
        bad.append(r_rejected / m)
    loss, metrics = tpo_loss(*logps, beta=0.4, **masks)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-12)
    assert metrics["reward_desirable"].item() == pytest.approx(np.mean(good))  # of a step
    assert metrics["reward_undesirable"].item() == pytest.approx(np.mean(bad))


def test_tpo_gradient_is_that_of_the_loss_and_none_where_there_is_no_step():
    (chosen, rejected, *ref), masks = segments()
    for x in (chosen, ref[0]):
        x[~masks["chosen_mask"]] = float("nan")
    chosen.requires_grad_(), rejected.requires_grad_()
    tpo_loss(chosen, rejected, *ref, **masks)[0].backward()
    assert (chosen.grad[masks["chosen_mask"]] < 0).all()
    assert (chosen.grad[~masks["chosen_mask"]] == 0).all()
    assert (rejected.grad[masks["rejected_mask"]] > 0).all()
    (chosen, rejected, *ref), masks = segments()
    chosen.requires_grad_(), rejected.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *logps: tpo_loss(*logps, *ref, beta=0.7, **masks)[0], (chosen, rejected)
    )


def test_tpo_of_segments_of_one_step_is_dpo():
    logps = pairs()
    tpo, dpo = tpo_loss(*(x[:, None] for x in logps)), dpo_loss(*logps)
    assert tpo[0].item() == dpo[0].item() and tpo[1] == dpo[1]


def test_the_floor_of_tpo_is_each_steps():
    (chosen, rejected, *ref), masks = segments()
    rejected[0, 0] -= 10.0
    rejected.requires_grad_()
    tpo_loss(chosen, rejected, *ref, undesirable_floor=-5.0, **masks)[0].backward()
    assert (rejected.grad[0, 0] == 0).all() and (rejected.grad[0, 1] > 0).all()


def test_tpo_is_least_where_the_sums_differ_by_how_often_one_is_preferred():
    """3 steps of arm 0 are preferred to 2 steps of arm 1 in 8 of 10 pairs."""

    def loss(logps):
        log_ratios = []
        for arm, steps in ((0, 3), (1, 2)):
            log_ratios += [(logps - REF)[arm].expand(1, steps, 1)]
        chosen, rejected = log_ratios
        zeros = [torch.zeros_like(x) for x in log_ratios]
        right = tpo_loss(chosen, rejected, *zeros, beta=0.5)[0]
        wrong = tpo_loss(rejected, chosen, *zeros[::-1], beta=0.5)[0]
        return 0.8 * right + 0.2 * wrong

    reward = minimum(loss) - REF
    assert (3 * reward[0] - 2 * reward[1]).item() == pytest.approx(np.log(4) / 0.5, rel=1e-3)


def test_metrics_of_pairs_in_micro_batches_join_to_those_of_the_batch():
    whole = dpo_loss(*pairs())[1]
    parts = [dpo_loss(*(x[i] for x in pairs()))[1] for i in (slice(0, 1), slice(1, 4))]
    joined = merge_metrics(parts)
    assert joined.keys() == whole.keys()
    for key, value in whole.items():
        assert float(joined[key]) == pytest.approx(float(value)), key


def test_metrics_of_micro_batches_join_to_those_of_the_batch(logps):
    policy, ref = logps
    z0 = torch.tensor(0.1)
    whole = kto_loss(policy, ref, DESIRABLE, z0=z0)[1]
    pieces = (slice(0, 1), slice(1, 2), slice(2, 6))
    parts = [kto_loss(policy[i], ref[i], DESIRABLE[i], z0=z0)[1] for i in pieces]
    joined = merge_metrics(parts)
    for key, value in whole.items():
        assert float(joined[key]) == pytest.approx(float(value)), key


def test_sirius_weights_computed_by_hand():
    counts = np.array([60, 20, 10, 110])  # expert, human, undesirable, policy
    share = counts / 200
    expected = np.array([0.3, 0.5, 0.002, 1 - 0.3 - 0.5 - 0.002]) / share
    np.testing.assert_allclose(sirius_weights(counts), expected, rtol=1e-12)


def test_sirius_leaves_the_policys_steps_nothing_where_there_are_many_demonstrations():
    counts = np.array([150, 20, 10, 20])
    expected = np.array([0.498, 0.5, 0.002, 0.0]) / (counts / 200)
    np.testing.assert_allclose(sirius_weights(counts), expected, rtol=1e-12)


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(lambda counts: counts[1] > 0))
def test_sirius_weights_are_never_negative_and_learn_from_the_human_half_the_time(counts):
    weights = sirius_weights(counts)
    learned = weights * torch.tensor(counts) / sum(counts)
    assert (weights >= 0).all() and weights.isfinite().all()
    assert learned[1].item() == pytest.approx(0.5) and learned.sum().item() <= 1 + 1e-9
    assert learned[2].item() == pytest.approx(0.002 if counts[2] else 0.0)
    if counts[2] and counts[3]:
        assert learned.sum().item() == pytest.approx(1.0)


def test_sirius_without_a_correction_says_what_to_record():
    with pytest.raises(ValueError, match=r"no human step, and 50% .* Record deployment episodes"):
        sirius_weights([10, 0, 5, 5])
    with pytest.raises(ValueError, match="Four counts and shares"):
        sirius_weights([10, 1, 5, 5], human=0.9, undesirable=0.2)


def test_the_gate_of_habc_computed_by_hand():
    z, z_next = np.array([0.3, -2.0, 1.5, 0.7]), np.array([0.8, -2.5, 1.5, np.nan])
    v, v_next = np.array([-9.0, -30.0, -4.0, -0.4]), np.array([-8.5, -31.0, -2.5, np.nan])
    terminal = np.array([False, False, False, True])
    p = sigmoid(z)
    a_v, a_e = z_next - z, -1 + v_next - v
    a_v[3], a_e[3] = 0.0, 0.4
    gate = habc_gate(*map(torch.tensor, (z, z_next, v, v_next, terminal)))
    np.testing.assert_allclose(gate, 1 + np.tanh((1 - p) * a_v + p * a_e), rtol=1e-12)


def test_without_the_efficiency_term_the_gate_is_of_viability_alone():
    z, z_next = torch.tensor([0.3, 1.0]), torch.tensor([0.8, 5.0])
    far = torch.tensor([-9.0, -50.0])
    gate = habc_gate(z, z_next, far, 3 * far, torch.tensor([False, True]), no_efficiency=True)
    np.testing.assert_allclose(gate, [1 + np.tanh((1 - sigmoid(0.3)) * 0.5), 1.0], rtol=1e-6)


CRITIC = {
    "z_v": [0.3, -1.2, 2.0, 0.7, -0.4],
    "v_e": [-3.0, -7.5, -1.2, -0.2, -2.0],
    "v_e_next": [-2.5, -8.0, float("nan"), 0.9, -99.0],
    "terminal": [False, False, True, False, False],
    "outcome": [1, 0, 1, -1, -1],  # of three labelled windows, an intervention and another one
    "progress": [True, False, True, True, False],
}


def critic():
    return {
        name: torch.tensor(v, dtype=torch.float64 if isinstance(v[0], float) else None)
        for name, v in CRITIC.items()
    }


def test_the_targets_and_losses_of_the_critic_computed_by_hand():
    c = critic()
    y_e = efficiency_target(c["v_e_next"], c["terminal"], 20)
    assert y_e.tolist() == [-3.5, -9.0, 0.0, pytest.approx(-0.1), -20.0]
    assert efficiency_target(torch.tensor([5.0]), torch.tensor([False]), 20).item() == 0.0
    viability, efficiency = critic_losses(
        c["z_v"], c["v_e"], y_e, c["outcome"], c["progress"], delta=1.0
    )
    bce = -np.log([sigmoid(0.3), 1 - sigmoid(-1.2), sigmoid(2.0)])
    assert viability.item() == pytest.approx(bce.mean())
    huber = [0.5 * 0.5**2, 1.2 - 0.5, 0.5 * 0.1**2]  # errors of 0.5, 1.2 and 0.1 steps
    assert efficiency.item() == pytest.approx(np.mean(huber))
    nothing = torch.full((5,), -1), torch.zeros(5, dtype=torch.bool)
    assert [x.item() for x in critic_losses(c["z_v"], c["v_e"], y_e, *nothing)] == [0.0, 0.0]


def test_the_critics_gradient_is_that_of_its_loss_and_none_flows_into_its_targets():
    c = critic()
    z_v, v_e = c["z_v"].requires_grad_(), c["v_e"].requires_grad_()
    v_e_next = c["v_e_next"].nan_to_num().requires_grad_()

    def loss(z_v, v_e):
        y_e = efficiency_target(v_e_next, c["terminal"], 20)
        return sum(critic_losses(z_v, v_e, y_e, c["outcome"], c["progress"]))

    assert torch.autograd.gradcheck(loss, (z_v, v_e))
    loss(z_v, v_e).backward()
    assert v_e_next.grad is None
    assert (z_v.grad != 0).tolist() == [True, True, True, False, False]
    assert (v_e.grad != 0).tolist() == CRITIC["progress"]


def test_the_critics_losses_of_micro_batches_add_up_to_those_of_the_batch():
    c = critic()
    y_e = efficiency_target(c["v_e_next"], c["terminal"], 20)
    arguments = [c["z_v"], c["v_e"], y_e, c["outcome"], c["progress"]]
    parts = [
        torch.stack(critic_losses(*(x[i : i + 1] for x in arguments), counts=(3, 3)))
        for i in range(5)
    ]
    torch.testing.assert_close(sum(parts), torch.stack(critic_losses(*arguments)))


RETURNS = torch.tensor([-20.0, -15.0, -10.0, -5.0, 0.0], dtype=torch.float64)


def test_the_target_and_loss_of_a_distribution_over_returns_computed_by_hand():
    reward = torch.tensor([-1.0, -100.0, 0.0])
    value_next = torch.tensor([-8.0, float("nan"), float("nan")])
    end = torch.tensor([False, True, True])
    target = recap_target(reward, value_next, end, 0.99)
    assert target.tolist() == pytest.approx([-1 - 0.99 * 8, -100.0, 0.0])
    logits = torch.tensor([[0.1, -0.4, 0.7, 1.2, 0.0]] * 3, dtype=torch.float64)
    logp = (logits[0] - logits[0].exp().sum().log()).numpy()
    expected = [
        -(0.784 * logp[2] + 0.216 * logp[3]),  # -8.92 lies 0.216 of the way from -10 to -5
        -logp[0],
        -logp[4],
    ]
    losses = value_losses(logits, target.double(), RETURNS)
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_values_gradient_is_that_of_its_loss_and_is_0_where_it_is_right():
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([-12.0, 3.0, -99.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: value_losses(x, target, RETURNS), logits)
    right = torch.tensor([[1e-9, 0.4, 0.6, 1e-9, 1e-9]], dtype=torch.float64).log()
    right.requires_grad_()
    value_losses(right, target[:1], RETURNS).sum().backward()
    assert right.grad.abs().max() < 1e-6


FINITE = st.floats(-20, 20)


@given(FINITE, FINITE, FINITE, FINITE, st.floats(0.01, 5))
def test_the_gate_is_between_0_and_2_and_grows_with_what_the_step_gained(z, zn, v, vn, gained):
    def gate(z_next, v_next):
        no = torch.tensor([False])
        values = (torch.tensor([x], dtype=torch.float64) for x in (z, z_next, v, v_next))
        return habc_gate(*values, no).item()

    assert 0.0 <= gate(zn, vn) <= 2.0
    assert gate(zn + gained, vn) >= gate(zn, vn) <= gate(zn, vn + gained)
    assert gate(z, v + 1.0) == pytest.approx(1.0)  # as viable as before, and one step nearer


def test_the_gate_looks_at_viability_where_it_is_low_and_at_progress_where_it_is_high():
    z = torch.tensor([-8.0, 8.0])
    gate = habc_gate(z, z + 1.0, torch.zeros(2), torch.full((2,), 2.0), torch.zeros(2).bool())
    np.testing.assert_allclose(gate, 1 + np.tanh([1.0, 1.0]), atol=1e-3)
    gate = habc_gate(z, z + 1.0, torch.zeros(2), torch.full((2,), 1.0), torch.zeros(2).bool())
    np.testing.assert_allclose(gate, 1 + np.tanh([1.0, 0.0]), atol=1e-3)


WINDOWS = {
    "kind": torch.tensor([DEMONSTRATION, INTERVENTION, *[POLICY_WINDOW] * 4, NO_WINDOW]),
    "outcome": torch.tensor([-1, -1, 1, 1, 0, -1, -1]),
}


def test_the_weights_of_habc_computed_by_hand():
    nan = float("nan")
    gate = torch.tensor([nan, 1.7, 0.4, 1.5, nan, nan, nan], dtype=torch.float64)
    raw = np.array([1.0, 1.0, 0.4, 1.5, 0.0, 0.0, 0.0])
    mean = raw[:5].mean()  # a failure counts in it, an unlabelled window does not
    np.testing.assert_allclose(habc_weights(gate, **WINDOWS), raw / mean, rtol=1e-12)
    raw[1] = 1.7
    weights = habc_weights(gate, **WINDOWS, reweight_interventions=True)
    np.testing.assert_allclose(weights, raw / raw[:5].mean(), rtol=1e-12)
    raw[1:5] /= raw[1:5].mean()
    weights = habc_weights(
        gate, **WINDOWS, reweight_interventions=True, demonstrations_in_mean=False
    )
    np.testing.assert_allclose(weights, raw, rtol=1e-12)


def test_failures_alone_weigh_nothing_and_nothing_valid_is_no_error():
    gate = torch.ones(2)
    kind = torch.tensor([POLICY_WINDOW] * 2)
    for outcome in ([0, 0], [-1, -1]):
        assert habc_weights(gate, kind, torch.tensor(outcome)).tolist() == [0.0, 0.0]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 1), st.floats(0.01, 2)), min_size=1))
def test_valid_weights_of_habc_have_a_mean_of_1(windows):
    kind, outcome, gate = (torch.tensor(column) for column in zip(*windows, strict=True))
    weights = habc_weights(gate, kind, outcome)
    valid = (kind != POLICY_WINDOW) | (outcome >= 0)
    assert (weights >= 0).all() and (weights[~valid] == 0).all()
    if (valid & ((kind != POLICY_WINDOW) | (outcome == 1))).any():
        assert weights[valid].mean().item() == pytest.approx(1.0, rel=1e-5)
