"""Intervals of a rate, of a paired difference, of a mean: pure functions on counts, each with its source.

Rates lie in [0, 1]. scipy and random sampling are imported inside the functions that need them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Sided = Literal["two", "upper", "lower"]
Values: TypeAlias = Sequence[float]
MINIMUM_BOOTSTRAP = 10
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """low to high at `confidence`; sided "upper" and "lower" have the range's own end on the other side."""

    low: float
    high: float
    confidence: float
    sided: Sided


@dataclass(frozen=True)
class HitInterval:
    """count of n as it speaks of new keys of the same generator, and of the set as one observation.

    Of the keys asked, under greedy decoding, count of n is the whole truth: a census, with no interval.
    """

    count: int
    n: int
    independent: bool
    new_keys: Interval
    dependent: Interval

    @property
    def stated(self) -> Interval:
        """The interval that may be quoted for this mark."""
        return self.new_keys if self.independent else self.dependent


@dataclass(frozen=True)
class Pairs:
    """The same items answered twice: yes both times, only the first time, only the second, neither."""

    both: int
    first_only: int
    second_only: int
    neither: int

    def __post_init__(self) -> None:
        for cell in (self.both, self.first_only, self.second_only, self.neither):
            check_count(cell, self.n)

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> Pairs:
        """Tally two answers to each item, in the same order."""
        if len(first) != len(second):
            raise ValueError(f"pairs need the same items twice: {len(first)} against {len(second)}")
        ones, twos = sum(map(bool, first)), sum(map(bool, second))
        both = sum(bool(one) and bool(two) for one, two in zip(first, second, strict=True))
        return cls(both, ones - both, twos - both, len(first) - ones - twos + both)

    @property
    def n(self) -> int:
        """Items."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def difference(self) -> float:
        """Rate of the first minus rate of the second."""
        return (self.first_only - self.second_only) / self.n


def check_count(count: int, n: int) -> None:
    """Raise ValueError unless count of n can be a rate."""
    if n < 1:
        raise ValueError(f"a rate needs at least one key or item: n is {n}")
    if not 0 <= count <= n:
        raise ValueError(f"the count must be between 0 and n = {n}: it is {count}")


def check_fraction(value: float, name: str) -> None:
    """Raise ValueError unless 0 < value < 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, both excluded: it is {value}")


def tails_of(confidence: float, sided: Sided) -> tuple[float, float]:
    """Probability left out below and above; ValueError for another side or a confidence outside (0, 1)."""
    check_fraction(confidence, "confidence")
    alpha = 1 - confidence
    tails = {"two": (alpha / 2, alpha / 2), "upper": (0.0, alpha), "lower": (alpha, 0.0)}
    if sided not in tails:
        raise ValueError(f'sided must be "two", "upper" or "lower": it is {sided!r}')
    return tails[sided]


def clopper_pearson(count: int, n: int, confidence: float = 0.95, sided: Sided = "two") -> Interval:
    """Exact interval of a rate (Clopper and Pearson 1934); 0 of 59 has the upper one-sided bound 0.0495."""
    from scipy.special import betaincinv

    check_count(count, n)
    below, above = tails_of(confidence, sided)
    low = float(betaincinv(count, n - count + 1, below)) if below and count > 0 else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - above)) if above and count < n else 1.0
    return Interval(low, high, confidence, sided)


def hit_interval(count: int, n: int, independent: bool, confidence: float = 0.95, sided: Sided = "two") -> HitInterval:
    """Clopper-Pearson for new keys of the same generator, and beside it the fully dependent bound.

    The dependent bound takes the whole set as one observation x = count / n of mean p, however its keys
    hang together. By Markov's inequality P(X <= x) <= (1 - p) / (1 - x) and P(X >= x) <= p / x, so
    p <= 1 - alpha (1 - x) and p >= alpha x: at 0 and at n hits just what one key would say. It is the one to
    state for many-to-one marks, where the seed is the unit. Repeated prompts count once.
    """
    below, above = tails_of(confidence, sided)
    new_keys = clopper_pearson(count, n, confidence, sided)
    low, high = below * count / n, 1 - above * (1 - count / n)
    return HitInterval(count, n, independent, new_keys, Interval(low, high, confidence, sided))


def tango_score(b: int, c: int, n: int, difference: float) -> float:
    """Score statistic of H0: p10 - p01 = difference; b, c: items with only the first, only the second.

    Tango 1998 (Statistics in Medicine 17: 891): p01 is at its maximum-likelihood value under H0.
    """
    linear = -b - c + (2 * n - b + c) * difference
    root = math.sqrt(max(0.0, linear**2 + 8 * n * c * difference * (1 - difference)))
    p01 = (root - linear) / (4 * n)
    variance = n * max(0.0, 2 * p01 + difference * (1 - difference))
    gap = b - c - n * difference
    return gap / math.sqrt(variance) if variance > 1e-300 else math.copysign(math.inf, gap) if gap else 0.0


def paired_difference_interval(pairs: Pairs, confidence: float = 0.95, sided: Sided = "two") -> Interval:
    """Interval of (rate of the first minus rate of the second) on the same items: Tango's score interval.

    Where nothing changed in one direction the score interval can be tighter than an exact bound, so there
    it is widened to Clopper-Pearson of the other direction: 0 against 0 of n says what 0 of n says.
    """
    from scipy.special import ndtri

    below, above = tails_of(confidence, sided)
    b, c, n = pairs.first_only, pairs.second_only, pairs.n

    def upper(more: int, fewer: int, tail: float) -> float:
        """Bound of p(more) - p(fewer): where the falling score meets the normal quantile."""
        quantile, low, high = float(ndtri(tail)), (more - fewer) / n, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if tango_score(more, fewer, n, middle) > quantile else (low, middle)
        return max(high, clopper_pearson(more, n, 1 - tail, "upper").high) if fewer == 0 else high

    low = -upper(c, b, below) if below else -1.0
    high = upper(b, c, above) if above else 1.0
    return Interval(low, high, confidence, sided)


def ratio_interval(
    top: float, top_variance: float, bottom: float, bottom_variance: float, confidence: float = 0.95
) -> Interval | None:
    """Interval of top / bottom, two independent estimates with their variances (Fieller 1954), two-sided.

    All r with (top - r bottom)^2 <= z^2 (top_variance + r^2 bottom_variance). None where bottom is within z of
    its standard errors of 0: then no finite interval exists.
    """
    from scipy.special import ndtri

    z2 = float(ndtri(1 - tails_of(confidence, "two")[1])) ** 2
    a, b, c = bottom**2 - z2 * bottom_variance, top * bottom, top**2 - z2 * top_variance
    if a <= 0:
        return None
    root = math.sqrt(max(0.0, b * b - a * c))
    return Interval((b - root) / a, (b + root) / a, confidence, "two")


def mean_interval(values: Values, confidence: float = 0.95) -> Interval:
    """Student's t interval over documents or seeds; for perplexity give losses in nats and take exp of it."""
    from scipy.special import stdtrit

    n, (below, _) = len(values), tails_of(confidence, "two")
    if n < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"an interval of a mean needs at least two finite values: got {n}")
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    reach = float(stdtrit(n - 1, 1 - below)) * error
    return Interval(mean - reach, mean + reach, confidence, "two")


def bootstrap_interval(
    values: Values, statistic: Callable[[Values], float], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap over seeds; refused under ten values, where it is too narrow to be trusted."""
    import random

    if len(values) < MINIMUM_BOOTSTRAP:
        raise ValueError(f"no bootstrap under {MINIMUM_BOOTSTRAP} values: got {len(values)}")
    draw = random.Random(seed)
    found = sorted(statistic(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    cut = math.floor(tails_of(confidence, "two")[0] * RESAMPLES)
    return Interval(found[cut], found[RESAMPLES - 1 - cut], confidence, "two")
