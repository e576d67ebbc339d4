"""Whose doing an episode's outcome is: HABC's credit assignment (method.md 2; HABC 3.4, D).

A *segment* is a maximal interval under one controller, where a hold splits nothing; a *window* is
what follows a step of it, its anchor, within the segment. The *suffix* is the policy's segment
after the last intervention. Only the policy's steps that no human interfered with afterwards are
labelled with the outcome: all of them where nobody intervened, else those of the suffix.
"""

from dataclasses import dataclass, fields

import numpy as np

from hapo_ros import labels

NO_WINDOW, DEMONSTRATION, POLICY_WINDOW, INTERVENTION = -1, 0, 1, 2
UNLABELLED = -1
WINDOW = 50  # steps of a window
MIN_HUMAN = 10  # human steps that a window of an intervention has at least


@dataclass(frozen=True)
class Windows:
    """The windows of one episode of T steps, by anchor; or of T steps of several.

    kind: (T,) of NO_WINDOW, DEMONSTRATION, POLICY_WINDOW, INTERVENTION. outcome: (T,) 1 or 0 for
    the policy's windows whose outcome is the policy's doing, else UNLABELLED: what the viability
    head learns from, and how the actor's loss is weighted. progress: (T,) bool, what the efficiency
    head learns from: windows labelled 1, and interventions in an episode that succeeded. terminal:
    (T,) bool, the last executed step of an episode that succeeded, whose target of progress is 0.
    mask: (T, window) bool, steps of each window that count in the actor's loss.
    """

    kind: np.ndarray
    outcome: np.ndarray
    progress: np.ndarray
    terminal: np.ndarray
    mask: np.ndarray

    def at(self, anchors) -> "Windows":
        """Those of some anchors."""
        return Windows(*(getattr(self, f.name)[anchors] for f in fields(self)))

    @classmethod
    def joined(cls, parts) -> "Windows":
        """Those of several episodes, one after the other."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))


def label_windows(
    c,
    outcome: int,
    *,
    demonstration: bool = False,
    window: int = WINDOW,
    min_human: int = MIN_HUMAN,
) -> Windows:
    """The windows of an episode from its labels and its outcome.

    c: (T,) labels, recorded or relabelled. outcome: y, 1 success or 0 failure. demonstration: every
    executed step is the expert's, and none is labelled. window: steps of a window. min_human: a
    human step with fewer human steps than that in its window is no window. ValueError for another
    outcome or a window without steps.
    """
    c = np.asarray(c)
    if outcome not in (0, 1):
        raise ValueError(f"An episode's outcome is 1 (success) or 0 (failure), not {outcome!r}.")
    if window < 1 or min_human < 1:
        raise ValueError(f"A window and its human part need a step, not {window} and {min_human}.")
    acted = c != labels.NONE
    human = (c == labels.HUMAN) & (not demonstration)
    segment = _segments(acted, human)
    ahead = np.arange(len(c))[:, None] + np.arange(window)
    inside = ahead < len(c)
    mask = inside & (segment[np.where(inside, ahead, 0)] == segment[:, None]) & acted[:, None]

    kind = np.full(len(c), NO_WINDOW, np.int8)
    kind[acted] = DEMONSTRATION if demonstration else POLICY_WINDOW
    kind[human] = np.where(mask.sum(1) >= min_human, INTERVENTION, NO_WINDOW)[human]
    mask &= (kind != NO_WINDOW)[:, None]

    suffix = np.arange(len(c)) > (np.flatnonzero(human)[-1] if human.any() else -1)
    labelled = (kind == POLICY_WINDOW) & suffix
    terminal = np.zeros(len(c), bool)
    if outcome == 1 and acted.any():
        terminal[np.flatnonzero(acted)[-1]] = True
    return Windows(
        kind=kind,
        outcome=np.where(labelled, outcome, UNLABELLED).astype(np.int8),
        progress=(outcome == 1) & (labelled | (kind == INTERVENTION)),
        terminal=terminal,
        mask=mask,
    )


def _segments(acted, human) -> np.ndarray:
    """(T,) number of the segment of each executed step; -1 where nobody acted."""
    segment = np.full(len(acted), -1)
    who = human[acted]
    segment[acted] = np.cumsum(np.r_[False, who[1:] != who[:-1]][: len(who)])
    return segment
