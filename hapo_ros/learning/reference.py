"""The reference's log-probabilities, computed once a round (method.md 1.2).

Or what stands for them, at draws of noise and time that are fixed for the round (docs/flow.md).

They are those of the policy at the start of the round, for the recorded action of every step and,
where an objective compares it with a second one under the same observation, for that one. As they
are kept, the reference needs no weights of its own in training.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hapo_ros.learning.draws import Draws
from hapo_ros.learning.parallel import Ranks
from hapo_ros.learning.precision import autocast
from hapo_ros.learning.table import StepTable


@dataclass(frozen=True)
class Second:
    """Which second action every step has, fixed for the round by ``seed``.

    kind: "mismatched": the recorded action of a step of another episode (z0, method.md 1.2).
    "perturbed": what the policy would do, with Gaussian noise of ``sigma`` normalised units on each
    number (what dpo rejects, method.md 1.6); it is valid where the recorded action is, and where
    what the policy would do is an action at all.
    """

    kind: str
    seed: int
    sigma: float = 0.0


@dataclass
class Reference:
    """logps (N sets, tokens), mask (N, tokens): for the recorded action of each row of a table, at
    each of its sets of draws, one after the other; sets is 1 where the policy needs none.
    second_actions (N, T, D) and second_action_mask (N, T): the second action of each row,
    second_logps and second_mask: as above for it under the row's observation; all four None where
    there is no second action. draws: theirs. key: what they were computed from."""

    logps: np.ndarray
    mask: np.ndarray
    draws: Draws
    key: str
    second_actions: np.ndarray | None = None
    second_action_mask: np.ndarray | None = None
    second_logps: np.ndarray | None = None
    second_mask: np.ndarray | None = None


def partners(episode, seed: int) -> np.ndarray:
    """(N,) row j(i) of the mismatched action of each row: a seeded draw over other episodes.

    episode: (N,) episode of each row, rows of one episode next to each other. ValueError where
    there is only one episode.
    """
    episode = np.asarray(episode)
    starts = np.flatnonzero(np.r_[True, np.diff(episode) != 0])
    if len(starts) < 2:
        raise ValueError(
            "All steps are of one episode, and z0 pairs each step with an action of another one, "
            "so nothing was trained. Record at least one more episode."
        )
    sizes = np.diff(np.r_[starts, len(episode)])
    start, size = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    draw = np.random.default_rng([seed, 0x7A30]).integers(0, len(episode) - size)
    return np.where(draw < start, draw, draw + size)


def compute(
    policy,
    table: StepTable,
    second: Second | None,
    draws: Draws,
    batch_size: int = 64,
    stop=lambda: None,
    ranks: Ranks | None = None,
    precision: str = "float32",
) -> Reference:
    """Reference log-probabilities of ``policy`` as it is now, without gradient.

    draws: what it is scored at, where it needs them. stop: called before each batch; raises where
    it is to end. ranks: batches are divided among them. precision: of the network, that of
    training. ValueError where steps have no partners.
    """
    import torch

    ranks = ranks or Ranks()
    second_of = _second_actions(policy, table, second)
    batches = [
        np.arange(start, min(start + batch_size, len(table)))
        for start in range(0, len(table), batch_size)
    ]
    made = []
    # as many on every rank, whatever is left over: all of them pass a network that is divided
    rounds = -(-len(batches) // ranks.size)
    for number in range(ranks.rank, rounds * ranks.size, ranks.size):
        rows = batches[number % len(batches)]
        stop()
        with torch.no_grad(), autocast(policy, precision):
            batch = table.batch(rows)
            prefix = policy.forward_observation(batch)
            drawn = [draws.given(batch, rows, number) for number in range(draws.sets)]
            values = {}
            values["logps"], values["mask"] = _scores(policy, drawn, prefix)
            if second is not None:
                chunk = second_of(rows, batch)
                values["second_actions"], values["second_action_mask"] = chunk
                others = [at.with_actions(*chunk) for at in drawn]
                values["second_logps"], values["second_mask"] = _scores(policy, others, prefix)
        made.append({name: value.cpu().numpy() for name, value in values.items()})
    by_rank = ranks.gathered(made)
    parts = [by_rank[i % ranks.size][i // ranks.size] for i in range(len(batches))]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    key = key_of(policy, table, second, draws, precision)
    return Reference(draws=draws, key=key, **joined)


def _scores(policy, batches, prefix):
    """(B sets, tokens) logps of the same actions at several sets of draws, and (B, tokens) mask."""
    import torch

    scored = [policy.score(batch, prefix) for batch in batches]
    return torch.stack([s.logps for s in scored], 1).flatten(0, 1), scored[0].mask


def _second_actions(policy, table: StepTable, second: Second | None):
    """Function of (rows, their batch) that gives (B, T, D) second actions and their (B, T) mask."""
    if second is None:
        return None
    if second.kind == "mismatched":
        pairs = partners(table.episode, second.seed)
        return lambda rows, batch: table.action_tensors(pairs[rows])
    import torch

    noise = np.random.default_rng([second.seed, 0xD90]).standard_normal(table.actions.shape)
    noise = torch.from_numpy((second.sigma * noise).astype(np.float32))

    def perturbed(rows, batch):
        predicted = policy.predict(batch, generate=True, noise=noise[rows]).cpu()
        mask = batch.action_mask & predicted.isfinite().all(2)
        return predicted.where(mask[..., None], 0.0), mask

    return perturbed


def key_of(
    policy, table: StepTable, second: Second | None, draws: Draws, precision: str = "float32"
) -> str:
    """Hash of the reference policy's version and precision, the table's content, the second actions
    and draws."""
    content = f"{policy.family} {policy.version} {table.fingerprint()} {second} {draws}"
    if precision != "float32":
        content += f" {precision}"
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def cached(
    policy,
    table: StepTable,
    second: Second | None,
    draws: Draws,
    folder=None,
    ranks: Ranks | None = None,
    precision: str = "float32",
    **options,
) -> Reference:
    """``compute``, kept in ``folder`` under its key for other runs; not kept without a folder.

    A policy that is no saved checkpoint has no version and is never looked up. Rank 0 alone reads
    and writes the folder.
    """
    ranks = ranks or Ranks()
    options |= {"ranks": ranks, "precision": precision}
    if folder is None or not policy.version:
        return compute(policy, table, second, draws, **options)
    key = key_of(policy, table, second, draws, precision)
    path = Path(folder) / f"reference-{key}.npz"
    kept = ranks.from_first(lambda: _read(path, key, draws))
    if kept is not None:
        return kept
    reference = compute(policy, table, second, draws, **options)
    if ranks.first:
        _write(path, reference)
    return reference


def _read(path: Path, key: str, draws: Draws) -> Reference | None:
    if not path.is_file():
        return None
    with np.load(path) as stored:
        return Reference(**{name: stored[name] for name in stored.files}, draws=draws, key=key)


def _write(path: Path, reference: Reference) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.writing.npz")
    arrays = {k: v for k, v in vars(reference).items() if isinstance(v, np.ndarray)}
    np.savez(temporary, **arrays)
    temporary.rename(path)
