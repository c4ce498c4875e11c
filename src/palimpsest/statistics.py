"""Exact statistics for hits, ranks, pairs and seeds: pure functions on counts, each with its source.

Rates lie in [0, 1]. Nothing here draws a conclusion; `verdicts` does. scipy and random sampling are
imported inside the functions that need them, so that importing this module costs nothing.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Sided = Literal["two", "upper", "lower"]
Values: TypeAlias = Sequence[float]
SIGNIFICANCE = 0.05
MINIMUM_SEEDS = 5  # below it seeds describe and nothing beats anything
MINIMUM_BOOTSTRAP = 10
RESAMPLES = 2000
MAXIMUM_RELABELLINGS = 200_000  # 10 seeds against 10 are 184,756


@dataclass(frozen=True)
class Interval:
    """low to high at `confidence`; sided "upper" and "lower" have the range's own end on the other side."""

    low: float
    high: float
    confidence: float
    sided: Sided


@dataclass(frozen=True)
class HitInterval:
    """count of n as it speaks of new keys of the same generator, and of the set as one observation."""

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


@dataclass(frozen=True)
class Comparison:
    """First minus second over seeds; p is None, and nothing is significant, where seeds only describe."""

    difference: float
    p: float | None
    test: str
    seeds: tuple[int, int]
    significant: bool
    reason: str


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


def _tails(confidence: float, sided: Sided) -> tuple[float, float]:
    """Probability left out below and above."""
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
    below, above = _tails(confidence, sided)
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
    below, above = _tails(confidence, sided)
    new_keys = clopper_pearson(count, n, confidence, sided)
    low, high = below * count / n, 1 - above * (1 - count / n)
    return HitInterval(count, n, independent, new_keys, Interval(low, high, confidence, sided))


def keys_needed(bound: float, confidence: float = 0.95, hits: int = 0) -> int:
    """Smallest number of keys at which `hits` hits have a one-sided upper bound <= bound (0.05: 59 keys)."""
    check_fraction(bound, "bound")
    too_few, enough = hits, hits + 1
    while clopper_pearson(hits, enough, confidence, "upper").high > bound:
        too_few, enough = enough, 2 * enough
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        fits = clopper_pearson(hits, middle, confidence, "upper").high <= bound
        too_few, enough = (too_few, middle) if fits else (middle, enough)
    return enough


def binomial_tail(hits: int, keys: int, rate: float) -> float:
    """P(X >= hits) for X ~ Binomial(keys, rate), by the incomplete beta function."""
    from scipy.special import betainc

    check_count(hits, keys)
    return float(betainc(hits, keys - hits + 1, rate)) if hits else 1.0


def ownership_p_value(hits: int, keys: int, null_rate: float, *, attempts: float = 1, dependent: bool = False) -> float:
    """P(at least `hits` of `keys` answers by chance), times `attempts`, at most 1.

    null_rate: 1 / length of the committed list from which each response was drawn. Independent draws, with
    replacement: the binomial tail, exact for any fixed suspect. `dependent` (one draw for all triggers):
    Markov's keys * null_rate / hits, which holds for any dependence. attempts: suspects scanned, times the
    key sets a claimant could have regenerated.
    """
    check_count(hits, keys)
    check_fraction(null_rate, "null_rate")
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1: it is {attempts}")
    markov = keys * null_rate / max(hits, keys * null_rate)
    return min(1.0, attempts * (markov if dependent else binomial_tail(hits, keys, null_rate)))


def threshold(keys: int, null_rate: float, alpha: float, *, attempts: float = 1, dependent: bool = False) -> int | None:
    """Smallest tau with `ownership_p_value` <= alpha, or None where not even all keys reach it."""
    check_count(0, keys)
    check_fraction(alpha, "alpha")
    p = functools.partial(ownership_p_value, attempts=attempts, dependent=dependent)
    return next((tau for tau in range(1, keys + 1) if p(tau, keys, null_rate) <= alpha), None)


def sequential_boundary(keys: int, null_rate: float, alpha: float, alternative: float = 0.9) -> tuple[int | None, ...]:
    """Hits at which asking may stop with a claim, after 1, 2, ... keys (None: not yet).

    The likelihood ratio of `alternative` to the null reaches 1 / alpha (Wald 1945), so the chance of ever
    crossing is at most alpha (Ville's inequality); `crossing_probability` gives the exact one.
    """
    check_count(0, keys)
    check_fraction(alpha, "alpha")
    if not 0 < null_rate < alternative < 1:
        raise ValueError(f"expected 0 < null rate < alternative < 1: got {null_rate} and {alternative}")
    hit, miss = math.log(alternative / null_rate), math.log((1 - alternative) / (1 - null_rate))
    needed = [math.ceil((-math.log(alpha) - asked * miss) / (hit - miss)) for asked in range(1, keys + 1)]
    return tuple(tau if tau <= asked else None for asked, tau in enumerate(needed, start=1))


def crossing_probability(boundary: Sequence[int | None], rate: float) -> float:
    """Exact chance that hits at `rate` a key ever reach the boundary, summed over all paths."""
    alive, crossed = [1.0], 0.0  # alive[h]: probability of h hits without having stopped
    for tau in boundary:
        stay, rise = [*alive, 0.0], [0.0, *alive]
        alive = [s * (1 - rate) + r * rate for s, r in zip(stay, rise, strict=True)]
        if tau is not None:
            crossed += math.fsum(alive[tau:])
            alive = [mass if hits < tau else 0.0 for hits, mass in enumerate(alive)]
    return crossed


def rank_among(score: float, decoys: Values) -> int:
    """1 + the number of decoys at least as likely (log-probabilities): ties count against the claim."""
    if math.isnan(score) or any(math.isnan(decoy) for decoy in decoys):
        raise ValueError("a log-probability is not a number: no rank can be given")
    return 1 + sum(decoy >= score for decoy in decoys)


def rank_p_value(rank: int, decoys: int) -> float:
    """rank / (1 + decoys): exact where truth and decoys are draws of one generator (Phipson, Smyth 2010)."""
    if decoys < 1 or not 1 <= rank <= decoys + 1:
        raise ValueError(f"a rank among {decoys} decoys must be between 1 and {decoys + 1}: it is {rank}")
    return rank / (decoys + 1)


def _probabilities(p_values: Values) -> list[float]:
    ps = [float(p) for p in p_values]
    if not ps or not all(0 <= p <= 1 for p in ps):
        raise ValueError("expected one or more p-values between 0 and 1")
    return ps


def fisher_combination(p_values: Values) -> float:
    """One p for independent keys: -2 sum log p is chi-squared with 2k degrees of freedom (Fisher 1932).

    The keys must be independent: responses drawn apart and decoys afresh for each key. Otherwise take
    `dependent_combination`. Conservative for discrete p.
    """
    from scipy.special import gammaincc

    ps = _probabilities(p_values)
    return 0.0 if min(ps) == 0 else float(gammaincc(len(ps), -math.fsum(math.log(p) for p in ps)))


def dependent_combination(p_values: Values) -> float:
    """One p for keys that hang together in any way: twice the mean (Vovk and Wang 2020)."""
    ps = _probabilities(p_values)
    return ps[0] if len(ps) == 1 else min(1.0, 2 * math.fsum(ps) / len(ps))


def bonferroni(p_values: Values) -> tuple[float, ...]:
    """Each p times their number, at most 1: over the rows of a table, or over prompt forms."""
    ps = _probabilities(p_values)
    return tuple(min(1.0, len(ps) * p) for p in ps)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p for b items that changed one way and c the other (McNemar 1947, binomial form)."""
    if b < 0 or c < 0:
        raise ValueError(f"discordant counts cannot be negative: {b} and {c}")
    return min(1.0, 2 * binomial_tail(max(b, c), b + c, 0.5)) if b + c else 1.0


def fisher_exact(table: Sequence[Sequence[int]]) -> float:
    """Two-sided p of a 2 x 2 table: all tables of these margins that are no likelier (Fisher 1934)."""
    (a, b), (c, d) = table
    if min(a, b, c, d) < 0:
        raise ValueError(f"counts of a table cannot be negative: {table}")
    row, column, n = a + b, a + c, a + b + c + d
    low, high = max(0, row + column - n), min(row, column)
    ways = {x: math.comb(column, x) * math.comb(n - column, row - x) for x in range(low, high + 1)}
    return sum(w for w in ways.values() if w <= ways[a]) / math.comb(n, row)


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

    below, above = _tails(confidence, sided)
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


def mean_interval(values: Values, confidence: float = 0.95) -> Interval:
    """Student's t interval over documents or seeds; for perplexity give losses in nats and take exp of it."""
    from scipy.special import stdtrit

    n, (below, _) = len(values), _tails(confidence, "two")
    if n < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"an interval of a mean needs at least two finite values: got {n}")
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    reach = float(stdtrit(n - 1, 1 - below)) * error
    return Interval(mean - reach, mean + reach, confidence, "two")


def exact_permutation(first: Values, second: Values, *, paired: bool = False) -> float:
    """Two-sided exact p of the difference of means over all relabellings (paired: over all sign flips).

    Five against five can reach 2/252, five pairs only 2/32: for pairs at 5 % take six, or t.
    """
    if 0 in (len(first), len(second)) or (paired and len(first) != len(second)):
        raise ValueError(f"no relabelling of {len(first)} and {len(second)} values")
    count = 2 ** len(first) if paired else math.comb(len(first) + len(second), len(first))
    if count > MAXIMUM_RELABELLINGS:
        raise ValueError(f"{count} relabellings are too many to list: use t")
    if paired:
        gaps = [one - two for one, two in zip(first, second, strict=True)]
        signs = itertools.product((1, -1), repeat=len(gaps))
        found = [abs(math.fsum(map(operator.mul, flips, gaps))) for flips in signs]
    else:
        pooled = [*first, *second]
        expected = math.fsum(pooled) * len(first) / len(pooled)
        found = [abs(math.fsum(chosen) - expected) for chosen in itertools.combinations(pooled, len(first))]
    slack = 1e-12 * math.fsum(abs(value) for value in (*first, *second))  # float ties are ties
    return sum(value >= found[0] - slack for value in found) / count  # found[0] is the labelling as it is


def t_test(first: Values, second: Values, *, paired: bool = False) -> float:
    """Two-sided p of Welch's t (unequal variances), or of the paired t."""
    from scipy import stats

    for values in ([one - two for one, two in zip(first, second, strict=True)],) if paired else (first, second):
        if len(values) < 2 or max(values) == min(values):
            raise ValueError("t needs at least two values a side that differ: use the exact test")
    test = stats.ttest_rel(first, second) if paired else stats.ttest_ind(first, second, equal_var=False)
    return float(test.pvalue)


def compare_seeds(
    first: Values, second: Values, *, paired: bool = False, exact: bool = True, rows: int = 1
) -> Comparison:
    """May one say that A beats B? At least five seeds a side, Bonferroni over `rows`, exact test or t."""
    test, seeds = "exact permutation" if exact else "t", (len(first), len(second))
    difference = math.fsum(first) / seeds[0] - math.fsum(second) / seeds[1]
    if min(seeds) < MINIMUM_SEEDS:
        reason = f"{min(seeds)} seeds describe; a comparison needs at least {MINIMUM_SEEDS} a side"
        return Comparison(difference, None, test, seeds, False, reason)
    p = min(1.0, rows * (exact_permutation if exact else t_test)(first, second, paired=paired))
    reason = f"difference {difference:.4g}, two-sided p = {p:.3g} over {rows} row(s), alpha {SIGNIFICANCE:g}"
    return Comparison(difference, p, test, seeds, p <= SIGNIFICANCE, reason)


def bootstrap_interval(
    values: Values, statistic: Callable[[Values], float], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap over seeds; refused under ten values, where it is too narrow to be trusted."""
    import random

    if len(values) < MINIMUM_BOOTSTRAP:
        raise ValueError(f"no bootstrap under {MINIMUM_BOOTSTRAP} values: got {len(values)}")
    draw = random.Random(seed)
    found = sorted(statistic(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    cut = math.floor(_tails(confidence, "two")[0] * RESAMPLES)
    return Interval(found[cut], found[RESAMPLES - 1 - cut], confidence, "two")
