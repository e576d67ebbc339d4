"""How sure a success rate is: intervals and paired comparisons, for small numbers of trials."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, comb, cos, pi, sqrt
from statistics import NormalDist, fmean, stdev

NO_DIFFERENCE = "no difference shown"


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a proportion; E. B. Wilson, JASA 22 (1927).

    Raises ValueError unless 0 <= successes <= n, n > 0 and 0 < confidence < 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials are no proportion.")
    z = _z(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


@dataclass(frozen=True)
class PairedDifference:
    """Two arms on the same seeds.

    first, second: success rates. difference: first - second; low, high: its interval. only_first,
    only_second: seeds on which that arm alone succeeded. p_value: McNemar's exact, two-sided.
    """

    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float

    @property
    def verdict(self) -> str:
        """What the interval shows: a difference only where it leaves out zero."""
        if self.low > 0:
            return "the first is better"
        if self.high < 0:
            return "the second is better"
        return NO_DIFFERENCE


def paired_difference(a: Sequence, b: Sequence, confidence: float = 0.95) -> PairedDifference:
    """Success rate of ``a`` minus that of ``b``, on the same seeds in the same order.

    The interval is Newcombe's method 10: Wilson's intervals of both rates, combined with their
    correlation (R. G. Newcombe, Statistics in Medicine 17 (1998) 2635-2650). Raises ValueError for
    sequences of different or no length, and for values that are neither true nor false.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"Arms of {len(a)} and {len(b)} seeds are not paired.")
    if any(value not in (0, 1) for value in (*a, *b)):
        raise ValueError("An outcome is true or false.")
    n, pairs = len(a), list(zip(map(bool, a), map(bool, b), strict=True))
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    first, second = both + only_first, both + only_second
    p1, p2 = first / n, second / n
    low1, high1 = wilson(first, n, confidence)
    low2, high2 = wilson(second, n, confidence)
    phi = _correlation(both, only_first, only_second, neither)
    down, up = (p1 - low1, high2 - p2), (high1 - p1, p2 - low2)
    return PairedDifference(
        n=n,
        first=p1,
        second=p2,
        difference=p1 - p2,
        low=p1 - p2 - _combined(*down, phi),
        high=p1 - p2 + _combined(*up, phi),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p that discordant pairs fall so unequally by chance; 1 where there are none.

    Q. McNemar, Psychometrika 12 (1947), with the binomial distribution.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)


@dataclass(frozen=True)
class MeanOverSeeds:
    """A mean over n training seeds, with Student's t interval; (nan, nan) for a single seed."""

    n: int
    mean: float
    low: float
    high: float


def mean_over_seeds(values: Sequence[float], confidence: float = 0.95) -> MeanOverSeeds:
    """Mean of one figure per training seed. Raises ValueError for none."""
    if not len(values):
        raise ValueError("No training seed, no mean.")
    n, mean = len(values), fmean(values)
    if n == 1:
        return MeanOverSeeds(1, mean, float("nan"), float("nan"))
    half = _t((1 + confidence) / 2, n - 1) * stdev(values) / sqrt(n)
    return MeanOverSeeds(n, mean, mean - half, mean + half)


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"A confidence lies between 0 and 1, not at {confidence}.")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Newcombe's phi: of the two outcomes over seeds, drawn towards 0 where it is positive."""
    n = both + only_first + only_second + neither
    margins = (both + only_first) * (only_second + neither)
    margins *= (both + only_second) * (only_first + neither)
    excess = both * neither - only_first * only_second
    if excess > 0:
        excess = max(excess - n / 2, 0)
    return excess / sqrt(margins) if margins else 0.0


def _combined(one: float, other: float, phi: float) -> float:
    return sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))


def _t(probability: float, freedom: int) -> float:
    """Quantile, above the median, of Student's t with a whole number of degrees of freedom."""
    low, high = 0.0, 1.0
    while _t_cdf(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        if _t_cdf(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return high


def _t_cdf(t: float, freedom: int) -> float:
    """Abramowitz and Stegun 26.7.3 and 26.7.4: exact, a finite sum."""
    angle = atan(t / sqrt(freedom))
    sine, square = t / sqrt(freedom + t * t), cos(angle) ** 2
    odd = freedom % 2
    term = cos(angle) * 2 / pi if odd else 1.0
    total = 0.0
    for k in range(freedom // 2):
        total += term
        term *= square * (2 * k + 2) / (2 * k + 3) if odd else square * (2 * k + 1) / (2 * k + 2)
    between = total * sine + (2 * angle / pi if odd else 0.0)
    return (1 + between) / 2
