"""Who decided a control step: the label c_t, and its relabelling before a takeover.

Live labels (POLICY, HUMAN, NONE) are made by the arbiter together with the executed action and
are what a bag holds. UNDESIRABLE is written only on reading, by :func:`relabel`, so that K can be
changed without touching a bag (method.md 1.1; HAPO Algorithm 1, lines 14-16).
"""

from numbers import Integral

import numpy as np

UNDESIRABLE, POLICY, HUMAN, NONE = 0, 1, 2, 3
NAMES = {UNDESIRABLE: "undesirable", POLICY: "policy", HUMAN: "human", NONE: "none"}
DEFAULT_K = 10


def _live(live) -> np.ndarray:
    array = np.asarray(live)
    if array.ndim != 1:
        raise ValueError(f"live labels must have shape (T,), not {array.shape}")
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"live labels must be integers, not {array.dtype}")
    bad = np.flatnonzero(~np.isin(array, (POLICY, HUMAN, NONE)))
    if bad.size:
        raise ValueError(
            f"live label {array[bad[0]]} at step {bad[0]} is none of 1 (policy), 2 (human), "
            "3 (none)"
        )
    return array.astype(np.int64)


def relabel(live, k: int = DEFAULT_K) -> np.ndarray:
    """Mark the K steps before every human segment that the policy executed as UNDESIRABLE.

    ``live`` is (T,) int of POLICY, HUMAN, NONE: one whole deployment episode, no step filtered out
    (K counts control steps). The window ends at the start of the episode and at an earlier human
    step; NONE steps in it count towards K and stay NONE. Returns (T,) int64; ``live`` is untouched.
    Raises ValueError or TypeError for anything that is not such a sequence.
    """
    if not isinstance(k, Integral) or k < 0:
        raise ValueError(f"K must be a whole number of steps >= 0, not {k}.")
    live = _live(live)
    labels = live.copy()
    onsets = np.flatnonzero((live == HUMAN) & (np.r_[NONE, live[:-1]] != HUMAN))
    for onset in onsets:
        for t in range(onset - 1, max(onset - 1 - int(k), -1), -1):
            if live[t] == HUMAN:
                break
            if live[t] == POLICY:
                labels[t] = UNDESIRABLE
    return labels


def demonstration(live) -> np.ndarray:
    """Labels of a demonstration: every executed step is 1, whoever executed it; NONE stays NONE."""
    live = _live(live)
    return np.where(live == HUMAN, POLICY, live)


def takeover_windows(labels, k: int = DEFAULT_K) -> np.ndarray:
    """(T,) int64: number of the takeover, from 0, whose two segments a step is in; -1: of none.

    The segments of a takeover are its first K human steps and, of the K steps before it, those
    that are UNDESIRABLE (method.md 1.6, tpo). labels: (T,) of one deployment episode, relabelled
    with this K, no step filtered out. A hold inside a human segment does not split it and counts
    towards K before a takeover, as in :func:`relabel`; no segment reaches past an earlier human
    step or the next takeover.
    """
    c = np.asarray(labels)
    number = np.full(len(c), -1, np.int64)
    acted = np.flatnonzero(c != NONE)
    human = c[acted] == HUMAN
    onsets = acted[human & np.r_[True, ~human[:-1]][: len(human)]]
    for i, onset in enumerate(onsets):
        humans = np.flatnonzero(c[onset:] == HUMAN)[: int(k)] + onset
        if i + 1 < len(onsets):
            humans = humans[humans < onsets[i + 1]]
        number[humans] = i
        earlier = np.flatnonzero(c[:onset] == HUMAN)
        start = max(onset - int(k), earlier[-1] + 1 if earlier.size else 0)
        before = np.arange(start, onset)
        number[before[c[before] == UNDESIRABLE]] = i
    return number


def takeover_onsets(live) -> np.ndarray:
    """Indices at which human segments of (T,) live labels begin; a hold does not split one."""
    live = _live(live)
    acted = np.flatnonzero(live != NONE)
    human = live[acted] == HUMAN
    return acted[human & ~np.r_[False, human][: len(human)]]


def takeovers(live) -> int:
    """Number of human segments in (T,) live labels; a hold inside one does not split it."""
    return len(takeover_onsets(live))


def intervention_ratio(live) -> float:
    """Human steps over executed steps of a deployment; NONE counts in neither. 0 if nothing ran."""
    live = _live(live)
    executed = np.count_nonzero(live != NONE)
    return float(np.count_nonzero(live == HUMAN) / executed) if executed else 0.0


def counts(labels) -> dict[str, int]:
    """Number of steps of each label, by name; for live or relabelled (T,) labels."""
    return {name: int(np.count_nonzero(np.asarray(labels) == c)) for c, name in NAMES.items()}
