"""c_t and its relabelling: method.md 1.1, to the letter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hapo_ros import labels
from hapo_ros.labels import HUMAN, NONE, POLICY, UNDESIRABLE, relabel

LETTERS = {"u": UNDESIRABLE, "p": POLICY, "h": HUMAN, "-": NONE}
EPISODES = st.lists(st.sampled_from([POLICY, HUMAN, NONE]), max_size=60)
# Long runs, as real episodes have: takeovers are rare in a list of independent draws.
RUNS = st.lists(st.tuples(st.sampled_from([POLICY, HUMAN, NONE]), st.integers(1, 15)), max_size=8)
ANY_EPISODE = EPISODES | RUNS.map(lambda runs: [c for c, length in runs for _ in range(length)])
ANY_K = st.integers(0, 30)


def steps(text: str) -> list[int]:
    return [LETTERS[letter] for letter in text]


def text(steps) -> str:
    return "".join("uph-"[c] for c in steps)


def relabelled(live: str, k: int) -> str:
    return text(relabel(steps(live), k))


def slow_reference(live, k):
    """method.md 1.1 read aloud, a step at a time and without looking at the code under test."""
    result = list(live)
    for t, label in enumerate(live):
        if label != POLICY:
            continue
        for ahead in range(1, k + 1):
            if t + ahead >= len(live):
                break
            if live[t + ahead] == HUMAN:
                result[t] = UNDESIRABLE
                break
    return result


@pytest.mark.parametrize(
    ("what", "live", "k", "expected"),
    [
        ("the K policy steps before a takeover", "pppppphhpp", 3, "pppuuuhhpp"),
        ("exactly K of them, at the paper's K", "p" * 15 + "h", 10, "p" * 5 + "u" * 10 + "h"),
        ("what follows the human stays", "pphhpppp", 2, "uuhhpppp"),
        ("two takeovers further apart than K: two windows", "ppphpppph", 2, "puuhppuuh"),
        ("two takeovers closer than K: all between is undesirable", "pppphpph", 3, "puuuhuuh"),
        ("the window ends at an earlier human step", "pppphph", 5, "uuuuhuh"),
        ("the window ends at the start of the episode", "pph", 10, "uuh"),
        ("a takeover on the first step has no window", "hpp", 10, "hpp"),
        ("NONE counts towards K and stays NONE", "pppp--h", 3, "pppu--h"),
        ("NONE alone fills a window", "ppp---h", 3, "ppp---h"),
        ("NONE inside a human segment starts no window past it", "ppphh-hh", 2, "puuhh-hh"),
        ("NONE between hand-back and takeover", "pph-p-h", 10, "uuh-u-h"),
        ("K = 0 changes nothing", "ppphpph", 0, "ppphpph"),
        ("K beyond the episode takes all of it", "pp-pph", 1000, "uu-uuh"),
        ("no takeover, nothing undesirable", "ppp--ppp", 10, "ppp--ppp"),
        ("a human alone", "hhhh", 10, "hhhh"),
        ("an episode of one step", "p", 10, "p"),
        ("an empty episode", "", 10, ""),
    ],
)
def test_relabelling_marks(what, live, k, expected):
    assert relabelled(live, k) == expected


def test_k_is_ten_by_default():
    assert text(relabel(steps("p" * 12 + "h"))) == "pp" + "u" * 10 + "h"


@settings(max_examples=400, deadline=None)
@given(ANY_EPISODE, ANY_K)
def test_relabelling_agrees_with_an_independent_reference(live, k):
    assert relabel(live, k).tolist() == slow_reference(live, k)


@settings(max_examples=200, deadline=None)
@given(ANY_EPISODE, ANY_K)
def test_only_policy_steps_change_and_only_to_undesirable(live, k):
    before, after = np.array(live, int), relabel(live, k)
    changed = after != before
    assert np.all(before[changed] == POLICY) and np.all(after[changed] == UNDESIRABLE)


@settings(max_examples=200, deadline=None)
@given(ANY_EPISODE, ANY_K)
def test_a_larger_k_only_adds_undesirable_steps(live, k):
    less, more = relabel(live, k) == UNDESIRABLE, relabel(live, k + 1) == UNDESIRABLE
    assert np.all(more[less])


@settings(max_examples=200, deadline=None)
@given(ANY_EPISODE, ANY_K)
def test_at_most_k_steps_a_takeover_become_undesirable(live, k):
    segments = sum(
        c == HUMAN and (t == 0 or live[t - 1] != HUMAN) for t, c in enumerate(live)
    )  # a hold in a segment adds no window: there is no policy step behind it
    assert np.count_nonzero(relabel(live, k) == UNDESIRABLE) <= k * segments


@settings(max_examples=200, deadline=None)
@given(ANY_EPISODE, ANY_EPISODE, ANY_K)
def test_what_comes_after_a_human_step_has_no_say_over_what_came_before(first, second, k):
    live = [*first, HUMAN, *second]
    assert relabel(live, k)[: len(first) + 1].tolist() == relabel([*first, HUMAN], k).tolist()
    assert relabel(live, k)[len(first) :].tolist() == relabel([HUMAN, *second], k).tolist()


def test_the_live_labels_are_left_as_they_are():
    live = np.array(steps("pppph"), np.uint8)
    result = relabel(live, 2)
    assert text(live) == "pppph"
    assert result.dtype == np.int64 and result.shape == live.shape


def test_relabelling_again_is_refused_rather_than_wrong():
    with pytest.raises(ValueError, match="live label 0 at step 2"):
        relabel(relabel(steps("pppph"), 2), 4)


# What the published code does, and this does not.


def test_a_takeover_at_the_start_of_an_episode_marks_nothing_in_the_one_before_it():
    """Joined into one array, the first episode's last steps would become undesirable."""
    first, second = "pppp", "phh"
    assert relabelled(first, 3) + relabelled(second, 3) == "pppp" + "uhh"
    assert relabelled(first + second, 3) == "ppuuuhh"


def test_human_steps_stay_human_when_takeovers_are_close():
    """A plain slice ``labels[onset - k : onset] = 0`` would overwrite the earlier correction."""
    assert relabelled("pphhpph", 6) == "uuhhuuh"


def test_k_counts_recorded_steps_and_not_those_that_are_left_after_a_filter():
    """With the NONE steps dropped first, the window would reach two steps further back."""
    live = "ppppp-p-h"
    assert relabelled(live, 4) == "ppppu-u-h"
    filtered = live.replace("-", "")
    assert relabelled(filtered, 4) == "ppuuuuh"


# Demonstrations, takeovers, ratios


def test_in_a_demonstration_every_executed_step_is_one_and_none_stays():
    assert text(labels.demonstration(steps("-hhp-hh"))) == "-ppp-pp"
    assert labels.demonstration([]).tolist() == []


@given(ANY_EPISODE)
def test_a_demonstration_holds_no_undesirable_and_no_human_step(live):
    assert set(labels.demonstration(live).tolist()) <= {POLICY, NONE}


@pytest.mark.parametrize(
    ("live", "number"),
    [
        ("", 0),
        ("ppp", 0),
        ("---", 0),
        ("hhh", 1),
        ("pphhpp", 1),
        ("hpph", 2),
        ("pph-hpp", 1),
        ("pph-php", 2),
        ("-h-p-h-", 2),
    ],
)
def test_takeovers_are_human_segments_and_a_hold_inside_does_not_split_one(live, number):
    assert labels.takeovers(steps(live)) == number


@pytest.mark.parametrize(
    ("live", "ratio"), [("", 0.0), ("---", 0.0), ("pppp", 0.0), ("pphh", 0.5), ("ph--", 0.5)]
)
def test_the_intervention_ratio_is_of_executed_steps(live, ratio):
    assert labels.intervention_ratio(steps(live)) == pytest.approx(ratio)


@given(ANY_EPISODE)
def test_the_intervention_ratio_lies_in_0_1_and_holds_do_not_move_it(live):
    ratio = labels.intervention_ratio(live)
    assert 0.0 <= ratio <= 1.0
    assert labels.intervention_ratio([*live, NONE, NONE]) == ratio


def test_counts_are_by_name_and_cover_every_label():
    assert labels.counts(relabel(steps("-pppph"), 2)) == {
        "undesirable": 2,
        "policy": 2,
        "human": 1,
        "none": 1,
    }


# Bad input


@pytest.mark.parametrize(
    "function",
    [relabel, labels.demonstration, labels.takeovers, labels.intervention_ratio],
    ids=lambda function: function.__name__,
)
@pytest.mark.parametrize(
    ("live", "error", "says"),
    [
        ([1, 2, 0], ValueError, "live label 0 at step 2"),
        ([4], ValueError, "live label 4 at step 0"),
        ([1, -1], ValueError, "live label -1 at step 1"),
        ([1.0, 2.0], TypeError, "integers"),
        ([True, False], TypeError, "integers"),
        (["1"], TypeError, "integers"),
        ([[1, 2]], ValueError, "shape"),
        (1, ValueError, "shape"),
    ],
)
def test_what_is_no_row_of_live_labels_is_refused(function, live, error, says):
    with pytest.raises(error, match=says):
        function(live)


@pytest.mark.parametrize("k", [-1, 2.5, float("nan"), float("inf"), "10", None])
def test_a_k_that_is_no_whole_number_of_steps_is_refused(k):
    with pytest.raises(ValueError, match="K must be a whole number"):
        relabel([POLICY, HUMAN], k)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint64, np.uint8])
def test_k_may_be_any_kind_of_integer(kind):
    assert text(relabel(steps("ppph"), kind(2))) == "puuh"


def windows(live: str, k: int) -> str:
    """Number of the takeover of each step; "." for none."""
    numbers = labels.takeover_windows(relabel(steps(live), k), k)
    return "".join("." if n < 0 else str(n) for n in numbers)


@pytest.mark.parametrize(
    ("what", "live", "k", "expected"),
    [
        ("K steps before and the first K after", "pppphhhhpp", 2, "..0000...."),
        ("a short correction as far as it goes", "pppphpppp", 3, ".0000...."),
        ("a takeover early in the episode", "phhhh", 3, "0000."),
        ("two takeovers", "ppphpppphh", 2, ".000..1111"),
        ("two takeovers closer than K", "ppphpphh", 5, "00001111"),
        ("a hold inside a correction splits nothing", "pph-hh", 3, "000.00"),
        ("a hold before it counts towards K", "pppp--h", 3, "...0..0"),
        ("a takeover without a step before it", "hhpp", 3, "00.."),
        ("no takeover", "pppp", 3, "...."),
        ("K = 0", "pphh", 0, "...."),
        ("an empty episode", "", 3, ""),
    ],
)
def test_the_segments_of_a_takeover_are(what, live, k, expected):
    assert windows(live, k) == expected


@given(ANY_EPISODE, ANY_K)
def test_the_segments_of_takeovers_are_of_them_alone(live, k):
    c = relabel(np.array(live, int), k)
    number = labels.takeover_windows(c, k)
    assert number.shape == c.shape and number.max(initial=-1) < labels.takeovers(live)
    assert set(c[number >= 0]) <= {UNDESIRABLE, HUMAN}
    assert (number[c == UNDESIRABLE] >= 0).all()  # every step to be avoided is one takeover's
    assert list(number[number >= 0]) == sorted(number[number >= 0])
    for n in set(number[number >= 0]):
        own = np.flatnonzero(number == n)
        human, before = own[c[own] == HUMAN], own[c[own] == UNDESIRABLE]
        assert len(human) <= k and len(before) <= k
        assert not before.size or before[-1] < human[0]
        assert before.size == 0 or human[0] - before[0] <= k
        between = c[(before[0] if before.size else human[0]) : human[-1] + 1]
        assert POLICY not in between
        assert HUMAN not in c[before[0] : human[0]] if before.size else True
