"""HABC's credit assignment: whose doing an outcome is (method.md 2)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hapo_ros import labels
from hapo_ros.labels import HUMAN, NONE, POLICY
from hapo_ros.learning.credit import (
    DEMONSTRATION,
    INTERVENTION,
    NO_WINDOW,
    POLICY_WINDOW,
    UNLABELLED,
    label_windows,
)

LETTERS = {"p": POLICY, "h": HUMAN, "-": NONE}
RUNS = st.lists(st.tuples(st.sampled_from("ph-"), st.integers(1, 15)), max_size=8)
EPISODES = RUNS.map(lambda runs: "".join(letter * length for letter, length in runs))


def windows(live: str, outcome: int, relabelled=True, **options):
    c = np.array([LETTERS[letter] for letter in live], int)
    return label_windows(labels.relabel(c, 3) if relabelled else c, outcome, **options)


def said(values) -> str:
    return "".join({1: "1", 0: "0", UNLABELLED: "."}[int(value)] for value in values)


@pytest.mark.parametrize(
    ("what", "live", "labelled"),
    [
        ("all of it where nobody intervened", "pppp", "1111"),
        ("the suffix alone where somebody did", "ppphhppp", ".....111"),
        ("the suffix after the last of several", "phpphp", ".....1"),
        ("nothing where the human ended it", "ppphh", "....."),
        ("never a hold, which interrupts nothing", "pp-p", "11.1"),
        ("the suffix of a hold after the human", "ph--p", "....1"),
        ("nothing where nobody acted", "--", ".."),
        ("nothing of nothing", "", ""),
    ],
)
def test_the_outcome_is_the_doing_of(what, live, labelled):
    assert said(windows(live, 1).outcome) == labelled
    assert said(windows(live, 0).outcome) == labelled.replace("1", "0")


def test_the_efficiency_head_learns_from_successes_the_humans_too():
    options = {"min_human": 2}
    assert list(windows("pphhpp", 1, **options).progress) == [0, 0, 1, 0, 1, 1]
    assert not windows("pphhpp", 0, **options).progress.any()


def test_the_last_executed_step_of_a_success_is_terminal():
    assert list(windows("ppp-", 1).terminal) == [0, 0, 1, 0]
    assert list(windows("pphh", 1).terminal) == [0, 0, 0, 1]
    assert not windows("ppp", 0).terminal.any()


def test_a_window_of_an_intervention_needs_its_human_steps_and_masks_the_others():
    made = windows("pp" + "h" * 6 + "-" + "h" * 6 + "p" * 9, 1, window=12, min_human=10)
    anchors = np.flatnonzero(made.kind == INTERVENTION)
    assert list(anchors) == [2, 3, 4]  # 11, 11 and 10 human steps in their 12
    assert "".join(".h"[int(x)] for x in made.mask[2]) == "hhhhhh.hhhhh"
    assert "".join(".h"[int(x)] for x in made.mask[4]) == "hhhh.hhhhhh."
    assert not made.mask[5].any() and made.kind[5] == NO_WINDOW
    assert windows("h" * 60, 1).mask.shape == (60, 50)
    assert (windows("h" * 60, 1).kind == INTERVENTION).sum() == 51


def test_a_demonstration_is_its_experts_whatever_device_moved_the_arm():
    made = windows("pph-p", 1, relabelled=False, demonstration=True, window=3)
    assert list(made.kind) == [DEMONSTRATION] * 3 + [NO_WINDOW, DEMONSTRATION]
    assert said(made.outcome) == "....." and not made.progress.any()
    assert made.mask[1].tolist() == [True, True, False]


def test_other_outcomes_and_empty_windows_are_refused():
    for outcome in (2, "success", None):
        with pytest.raises(ValueError, match=r"is 1 \(success\) or 0"):
            windows("p", outcome)
    with pytest.raises(ValueError, match="need a step"):
        windows("p", 1, window=0)


@given(EPISODES, st.integers(0, 1), st.integers(1, 20), st.integers(1, 6))
def test_no_credit_crosses_an_intervention(live, outcome, window, min_human):
    made = windows(live, outcome, window=window, min_human=min_human)
    assert len(made.kind) == len(made.outcome) == len(made.mask) == len(live)
    for t, letter in enumerate(live):
        autonomous = letter == "p" and "h" not in live[t:]
        assert made.outcome[t] == (outcome if autonomous else UNLABELLED)
        assert (made.kind[t] == POLICY_WINDOW) == (letter == "p")
        assert made.kind[t] != INTERVENTION or letter == "h"
        steps = np.flatnonzero(made.mask[t]) + t
        assert all(live[s] == letter for s in steps)
        if steps.size:
            other = {"p": "h", "h": "p"}[letter]
            assert steps[0] == t and other not in live[t : steps[-1] + 1]
        if made.kind[t] == INTERVENTION:
            assert steps.size >= min_human
        assert made.progress[t] == (outcome == 1 and (autonomous or made.kind[t] == INTERVENTION))


@given(EPISODES, st.integers(0, 30), st.integers(0, 1))
def test_credit_does_not_depend_on_the_relabelling(live, k, outcome):
    c = np.array([LETTERS[letter] for letter in live], int)
    one, other = label_windows(c, outcome), label_windows(labels.relabel(c, k), outcome)
    for name in vars(one):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
