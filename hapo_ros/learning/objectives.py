"""The objectives as pure functions of tensors (method.md 1.2, 1.3, 1.6, 2; HAPO eqs. (1)-(6)).

Symbols: B samples, N tokens a sample, r the reward of eq. (1), z0 the baseline, lambda the weight
of a sample. Sums over the *effective* batch (micro-batches x accumulation x ranks) are arguments,
so that splitting a batch differently changes nothing.
"""

import torch
from torch.nn import functional as F

from hapo_ros.learning.credit import DEMONSTRATION, INTERVENTION, POLICY_WINDOW, UNLABELLED

UNDESIRABLE_GROUP, DESIRABLE_GROUP = 0, 1  # places in the (2,) totals of ``l1_totals``


def log_ratio(policy_logps, ref_logps, mask=None):
    """(B,) sum over the tokens of log pi_theta - log pi_ref, eq. (1).

    policy_logps, ref_logps: (B, N). mask: (B, N) bool, tokens that count; their values elsewhere
    are never looked at, so they may be anything.
    """
    if mask is None:
        return (policy_logps - ref_logps).sum(1)
    zero = torch.zeros((), dtype=policy_logps.dtype, device=policy_logps.device)
    return torch.where(mask, policy_logps, zero).sum(1) - torch.where(mask, ref_logps, zero).sum(1)


def mismatched_kl(kl_policy_logps, kl_ref_logps, mask=None):
    """Sum and count of the log-ratios of mismatched actions, for ``baseline`` (method.md 1.2).

    (B, N) log-probabilities of the action of another step under each observation, scored with its
    own tokens as prefix; all valid tokens, gripper included; no gradient. Returns 0-d (sum, count)
    to be summed over micro-batches and ranks. Samples without any valid token do not count.
    """
    ratios = log_ratio(kl_policy_logps.detach(), kl_ref_logps.detach(), mask)
    count = ratios.new_tensor(len(ratios)) if mask is None else mask.any(1).sum().to(ratios)
    return ratios.sum(), count


def baseline(kl_sum, kl_count, upper=None):
    """z0 = max(0, sum / count), at most ``upper`` where given; 0 for a count of 0."""
    mean = torch.where(kl_count > 0, kl_sum / kl_count.clamp(min=1), torch.zeros_like(kl_sum))
    return mean.clamp(min=0.0, max=upper)


def kto_loss(
    policy_logps,
    ref_logps,
    desirable,
    *,
    z0,
    beta=0.1,
    weights=None,
    rejected_mask=None,
    mask=None,
    undesirable_floor=None,
):
    """Preference loss, mean over B of lambda - v, and metrics; eqs. (1)-(3).

        v = lambda * sigmoid(beta * (r - z0))   desirable
        v = lambda * sigmoid(beta * (z0 - r))   undesirable

    policy_logps, ref_logps: (B, N). desirable: (B,) bool. z0: 0-d, see ``baseline``. weights: (B,)
    lambda, 1 where not given. rejected_mask: (N,) or (B, N) bool, tokens that count for
    undesirable samples (the gripper's does not). mask: (B, N) bool, valid tokens.
    undesirable_floor: an undesirable sample whose r is already below it gives no gradient.

    Metrics (0-d, no gradient): loss, z0, reward_desirable, reward_undesirable (mean r, without
    beta), margins (their difference), lambda_desirable, lambda_undesirable, and the counts
    desirable and undesirable; a mean over nothing is NaN. ``merge_metrics`` joins micro-batches.
    """
    counted = torch.ones_like(policy_logps, dtype=torch.bool) if mask is None else mask
    if rejected_mask is not None:
        counted = counted & (desirable[:, None] | rejected_mask)
    reward = log_ratio(policy_logps, ref_logps, counted)
    learned = reward
    if undesirable_floor is not None:
        learned = torch.where(~desirable & (reward < undesirable_floor), reward.detach(), reward)
    weights = torch.ones_like(reward) if weights is None else weights.to(reward).detach()
    sign = torch.where(desirable, 1.0, -1.0).to(reward)
    # lambda - lambda * sigmoid(x) = lambda * sigmoid(-x), which keeps its precision for large x
    loss = (weights * torch.sigmoid(-beta * sign * (learned - z0))).mean()
    with torch.no_grad():
        metrics = {"loss": loss.detach(), "z0": torch.as_tensor(z0).detach()}
        for name, chosen in (("desirable", desirable), ("undesirable", ~desirable)):
            metrics[f"reward_{name}"] = reward[chosen].mean()
            metrics[f"lambda_{name}"] = weights[chosen].mean()
            metrics[name] = chosen.sum()
        metrics["margins"] = metrics["reward_desirable"] - metrics["reward_undesirable"]
    return loss, metrics


def dpo_loss(
    policy_chosen_logps,
    policy_rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    *,
    beta=0.1,
    chosen_mask=None,
    rejected_mask=None,
    undesirable_floor=None,
):
    """Mean over P pairs of -log sigmoid(beta * (r_chosen - r_rejected)), and metrics; DPO.

    r is the log-ratio of eq. (1), of all tokens, gripper included (method.md 1.6). *_logps: (P, N)
    of two actions under the same observation. *_mask: (P, N) bool, valid tokens. The rest as
    ``kto_loss``: metrics without z0 and lambda, chosen as desirable and rejected as undesirable.
    """
    steps = [logps[:, None] for logps in (policy_chosen_logps, policy_rejected_logps,
                                          ref_chosen_logps, ref_rejected_logps)]  # fmt: skip
    masks = [None if mask is None else mask[:, None] for mask in (chosen_mask, rejected_mask)]
    return tpo_loss(
        *steps,
        beta=beta,
        chosen_mask=masks[0],
        rejected_mask=masks[1],
        undesirable_floor=undesirable_floor,
    )


def tpo_loss(
    policy_chosen_logps,
    policy_rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    *,
    beta=0.1,
    chosen_mask=None,
    rejected_mask=None,
    undesirable_floor=None,
):
    """``dpo_loss`` of P pairs of segments: r summed over their steps, whatever their lengths.

    chosen: (P, L, N), rejected: (P, M, N), segments of up to L and M steps, their masks False where
    there is no step. undesirable_floor: a rejected step whose own r is already below it gives no
    gradient. The metrics' rewards are means over the pairs of the mean r of a step, so that they
    compare with those of other methods, and their counts are pairs.
    """
    rewards = []
    for policy, ref, mask in (
        (policy_chosen_logps, ref_chosen_logps, chosen_mask),
        (policy_rejected_logps, ref_rejected_logps, rejected_mask),
    ):
        mask = torch.ones_like(policy, dtype=torch.bool) if mask is None else mask
        ratios = log_ratio(policy.flatten(0, 1), ref.flatten(0, 1), mask.flatten(0, 1))
        rewards.append((ratios.unflatten(0, policy.shape[:2]), mask.any(2).sum(1).clamp(min=1)))
    (chosen, chosen_steps), (rejected, rejected_steps) = rewards
    learned = rejected
    if undesirable_floor is not None:
        learned = torch.where(rejected < undesirable_floor, rejected.detach(), rejected)
    loss = -F.logsigmoid(beta * (chosen.sum(1) - learned.sum(1))).mean()
    with torch.no_grad():
        pairs = torch.tensor(len(chosen))
        metrics = {
            "loss": loss.detach(),
            "reward_desirable": (chosen.sum(1) / chosen_steps).mean(),
            "reward_undesirable": (rejected.sum(1) / rejected_steps).mean(),
            "desirable": pairs,
            "undesirable": pairs,
        }
        metrics["margins"] = metrics["reward_desirable"] - metrics["reward_undesirable"]
    return loss, metrics


def merge_metrics(parts: list[dict]) -> dict:
    """Metrics of an effective batch from those a preference loss gave for its micro-batches."""
    counts = {name: sum(p[name] for p in parts) for name in ("desirable", "undesirable")}

    def mean(key, name):
        if counts[name] == 0:
            return parts[0][key]  # NaN
        return sum(p[key] * p[name] for p in parts if p[name] > 0) / counts[name]

    merged = {**parts[0], **counts}  # z0 is that of the effective batch in every part
    sizes = [p["desirable"] + p["undesirable"] for p in parts]
    merged["loss"] = sum(p["loss"] * n for p, n in zip(parts, sizes, strict=True)) / sum(sizes)
    for name in counts:
        for key in (f"reward_{name}", f"lambda_{name}"):
            if key in merged:
                merged[key] = mean(key, name)
    merged["margins"] = merged["reward_desirable"] - merged["reward_undesirable"]
    return merged


def l1_totals(l1, desirable, decodable=None):
    """(2,) sums and (2,) counts of l1 (B,), undesirable first; to be summed over micro-batches.

    Samples that are not ``decodable`` are left out.
    """
    kept = torch.ones_like(desirable) if decodable is None else decodable
    groups = torch.stack([kept & ~desirable, kept & desirable])
    values = torch.where(kept, l1.detach(), torch.zeros_like(l1))
    return (groups * values).sum(1), groups.sum(1).to(l1)


def adaptive_weights(
    l1,
    desirable,
    *,
    beta_d=1.0,
    beta_u=1.0,
    scope="batch",
    scale="none",
    decodable=None,
    l1_sum=None,
    l1_count=None,
):
    """(B,) lambda of each sample from its action error; eqs. (4)-(6), method.md 1.3.

        w_i = l_i / sum_j l_j
        lambda_i = 1 - exp(-beta_d * w_i)  desirable,   exp(-beta_u * w_i)  undesirable

    l1: (B,) action error, normalised units. scope: "batch": one sum over all samples, as in the
    paper; "group": desirable and undesirable each by their own sum, as the published code does.
    scale: "none" as in the paper; "unit_mean": w times the number of samples in its sum, so that
    the mean w is 1 whatever the batch size. decodable: (B,) bool, False where the prediction is no
    action: lambda is 1 there and l1 does not enter the sum. l1_sum, l1_count: totals over the
    effective batch, (2,) as of ``l1_totals`` or, with scope "batch", also 0-d; by default over
    this l1. A sum of 0 gives w = 0. No gradient. ValueError for another scope or scale.
    """
    if scope not in ("batch", "group"):
        raise ValueError(f"scope must be batch or group, not {scope!r}")
    if scale not in ("none", "unit_mean"):
        raise ValueError(f"scale must be none or unit_mean, not {scale!r}")
    own_sum, own_count = l1_totals(l1, desirable, decodable)
    total = own_sum if l1_sum is None else torch.as_tensor(l1_sum).to(l1)
    count = own_count if l1_count is None else torch.as_tensor(l1_count).to(l1)
    if scope == "batch":
        total, count = total.sum().expand(2), count.sum().expand(2)
    elif total.shape != (2,) or count.shape != (2,):
        raise ValueError("scope 'group' needs l1_sum and l1_count of shape (2,): see l1_totals")
    group = desirable.long()
    w = torch.where(total[group] > 0, l1.detach() / total[group], torch.zeros_like(l1))
    if scale == "unit_mean":
        w = w * count[group]
    weights = torch.where(desirable, 1.0 - torch.exp(-beta_d * w), torch.exp(-beta_u * w))
    return weights if decodable is None else torch.where(decodable, weights, 1.0)


def sirius_weights(counts, *, human=0.5, undesirable=0.002):
    """(4,) weight of a step's behaviour cloning by its class; Sirius, method.md 1.6.

        w = P*(class) / P(class)

    counts: (4,) steps of the classes expert, human, undesirable, policy (``table.GROUPS``), drawn
    from alike, so that P(class) is its share. P* of human and undesirable are given; demonstrations
    keep their share, and the policy's steps get the rest. Where nothing is left for these, their
    weight is 0 and the demonstrations get what human and undesirable leave. A class without a step
    weighs 0. ValueError where there is no human step, or a P* is no share.
    """
    counts = torch.as_tensor(counts, dtype=torch.float64)
    if counts.shape != (4,) or not (human >= 0 and undesirable >= 0 and human + undesirable <= 1):
        raise ValueError(f"Four counts and shares are needed, not {counts}, {human}, {undesirable}")
    if counts[1] <= 0:
        raise ValueError(
            f"There is no human step, and {human:.0%} of what is learned is theirs, so nothing was "
            "trained. Record deployment episodes in which the operator takes over and resolves the "
            "task."
        )
    share = counts / counts.sum()
    left = 1.0 - human - undesirable
    expert = min(float(share[0]), left)
    wanted = torch.tensor([expert, human, undesirable, left - expert], dtype=torch.float64)
    return torch.where(counts > 0, wanted / share, 0.0)


def efficiency_target(v_e_next, terminal, t_max):
    """(B,) y_e, what V_e(s_t) is to be: minus the steps to success; HABC eq. (3).

    0 at the terminal success step, else -1 + V_e(s_{t+1}), kept in [-t_max, 0]. v_e_next: (B,) V_e
    at s_{t+1}, not looked at where terminal (B,) bool. No gradient.
    """
    later = (v_e_next.detach() - 1.0).clamp(-t_max, 0.0)
    return torch.where(terminal, torch.zeros_like(later), later)


def critic_losses(z_v, v_e, y_e, outcome, progress, *, delta=1.0, counts=None):
    """The viability and the efficiency head's loss, 0-d each; HABC eq. (4) is their sum.

        mean of BCE(z_v, y) over labelled windows,  mean of Huber(V_e, y_e) where ``progress``

    z_v, v_e: (B,) the heads' answers. y_e: (B,), see ``efficiency_target``. outcome: (B,) 1, 0 or
    UNLABELLED; progress: (B,) bool, both as of ``credit.label_windows``. delta: of Huber, in steps;
    errors above it pull alike, so that V_e tends to a median: where half of the steps go nowhere,
    it has no other end than the targets' bound. counts: windows of each mean in the effective
    batch; by default those given here. A mean over nothing is 0.
    """
    labelled = outcome != UNLABELLED
    if counts is None:
        counts = int(labelled.sum()), int(progress.sum())
    y = (outcome == 1).to(z_v)
    viability = F.binary_cross_entropy_with_logits(z_v, y, reduction="none")
    efficiency = F.huber_loss(v_e, y_e.detach(), reduction="none", delta=delta)
    return (
        torch.where(labelled, viability, 0.0).sum() / max(1, counts[0]),
        torch.where(progress, efficiency, 0.0).sum() / max(1, counts[1]),
    )


def recap_target(reward, value_next, end, gamma):
    """(B,) what the value V(s_t) is to be, (1 - m)(r + gamma V(s')) + m R; HABC eq. (9).

    reward: (B,) r. value_next: (B,) V(s_{t+1}), not looked at at an episode's end (B,) bool, where
    m = 1 and what is left of the return R is r. The same, less V(s_t), is what imit_recap keeps
    steps by. No gradient.
    """
    return torch.where(end, reward, reward + gamma * value_next.detach())


def value_losses(logits, target, returns):
    """(B,) cross-entropy of a distribution over returns with a target value (HABC appendix A).

    logits: (B, K). returns: (K,) what each of them stands for, evenly spaced and rising. target:
    (B,), as the two returns next to it, by its distance to each; beyond the last, as that one.
    """
    spacing = returns[1] - returns[0]
    place = ((target - returns[0]) / spacing).clamp(0, len(returns) - 1)
    near = torch.arange(len(returns), device=place.device)
    shares = (1.0 - (place[:, None] - near).abs()).clamp(min=0.0)
    return -(shares * F.log_softmax(logits, -1)).sum(1)


def habc_gate(z_v, z_v_next, v_e, v_e_next, terminal, *, no_efficiency=False):
    """(B,) g in (0, 2): how much the policy's step from s_t was worth; HABC eqs. (5)-(7).

        A_v = z_v(s') - z_v(s)    A_e = -1 + V_e(s') - V_e(s)    p = sigmoid(z_v(s))
        g = 1 + tanh((1 - p) * A_v + p * A_e)

    z_v, z_v_next: (B,) logits of viability at s_t and s_{t+1}. v_e, v_e_next: (B,) minus the steps
    to success there. terminal: (B,) bool, terminal success steps: their next values are never
    looked at, A_v = 0 and A_e = -V_e(s_t) (method.md 2). no_efficiency: without the term of A_e
    (HABC-V). No gradient. Far out, g rounds to 0 or 2.
    """
    z_v, v_e = z_v.detach(), v_e.detach()
    zero = torch.zeros_like(z_v)
    viability = torch.where(terminal, zero, z_v_next.detach() - z_v)
    efficiency = torch.where(terminal, zero, v_e_next.detach() - 1.0) - v_e
    if no_efficiency:
        efficiency = zero
    return 1.0 + torch.tanh(torch.sigmoid(-z_v) * viability + torch.sigmoid(z_v) * efficiency)


def habc_weights(
    gate, kind, outcome, *, reweight_interventions=False, demonstrations_in_mean=True, eps=1e-6
):
    """(B,) weight of each window in the actor's loss; HABC eq. (8), over the effective batch.

        w = w~ / max(mean of w~ over valid windows, eps)

    w~ is the gate for the policy's windows labelled 1, 0 for those labelled 0, and 1 for
    demonstrations and interventions. The policy's unlabelled windows are not valid: their w is 0,
    and they are not in the mean. gate: (B,), see ``habc_gate``; ones while the critic warms up;
    never looked at where it does not count. kind, outcome: (B,) as of ``credit.label_windows``.
    reweight_interventions: the gate for interventions too (HABC + IR). demonstrations_in_mean:
    False as in the paper's algorithm, which leaves demonstrations out of the mean and their weight
    at 1. No gradient.
    """
    gated = (kind == POLICY_WINDOW) & (outcome == 1)
    if reweight_interventions:
        gated = gated | (kind == INTERVENTION)
    demonstration = kind == DEMONSTRATION
    whole = demonstration | (kind == INTERVENTION)
    raw = torch.where(gated, gate.detach(), whole.to(gate))
    valid = whole | ((kind == POLICY_WINDOW) & (outcome != UNLABELLED))
    averaged = valid if demonstrations_in_mean else valid & ~demonstration
    mean = torch.where(averaged, raw, 0.0).sum() / averaged.sum().clamp(min=1)
    return torch.where(averaged, raw / mean.clamp(min=eps), raw)
