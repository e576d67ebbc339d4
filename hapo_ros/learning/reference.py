"""The reference's log-probabilities, computed once a round (method.md 1.2).

They are those of the policy at the start of the round, for the recorded action of every step and
for a mismatched one. As they are kept, the reference needs no weights of its own in training.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hapo_ros.learning.data import StepTable


@dataclass
class Reference:
    """logps, mask: (N, tokens) for the recorded action of each row of a table. partners: (N,) row
    whose action is the mismatched one; kl_logps: (N, tokens) for it under the row's observation,
    kl_mask its valid tokens. key: what they were computed from."""

    logps: np.ndarray
    mask: np.ndarray
    partners: np.ndarray
    kl_logps: np.ndarray
    kl_mask: np.ndarray
    key: str


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
    policy, table: StepTable, seed: int, batch_size: int = 64, stop=lambda: None
) -> Reference:
    """Reference log-probabilities of ``policy`` as it is now, without gradient.

    stop: called before each batch; raises where it is to end.
    """
    import torch

    pairs = partners(table.episode, seed)
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for start in range(0, len(table), batch_size):
        stop()
        rows = np.arange(start, min(start + batch_size, len(table)))
        with torch.no_grad():
            batch = table.batch(rows)
            prefix = policy.forward_observation(batch)
            own = policy.score(batch, prefix)
            other = batch.with_actions(*table.action_tensors(pairs[rows]))
            mismatched = policy.score(other, prefix)
        values = (own.logps, own.mask, mismatched.logps, mismatched.mask)
        for column, value in zip(columns, values, strict=True):
            column.append(value.cpu().numpy())
    logps, mask, kl_logps, kl_mask = (np.concatenate(column) for column in columns)
    return Reference(logps, mask, pairs, kl_logps, kl_mask, key_of(policy, table, seed))


def key_of(policy, table: StepTable, seed: int) -> str:
    """Hash of the reference policy's version, the table's content and the seed of the partners."""
    content = f"{policy.family} {policy.version} {table.fingerprint()} {seed}"
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def cached(policy, table: StepTable, seed: int, folder=None, **options) -> Reference:
    """``compute``, kept in ``folder`` under its key for other runs; not kept without a folder.

    A policy that is no saved checkpoint has no version and is never looked up.
    """
    if folder is None or not policy.version:
        return compute(policy, table, seed, **options)
    key = key_of(policy, table, seed)
    path = Path(folder) / f"reference-{key}.npz"
    if path.is_file():
        with np.load(path) as stored:
            return Reference(**{name: stored[name] for name in stored.files}, key=key)
    reference = compute(policy, table, seed, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.writing.npz")
    np.savez(temporary, **{k: v for k, v in vars(reference).items() if k != "key"})
    temporary.rename(path)
    return reference
