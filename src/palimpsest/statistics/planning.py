"""How many keys, prompts, items or seeds it takes: sizes and chances, exact unless a docstring says otherwise.

Rates, powers and levels lie in [0, 1]. A power rises with n in a sawtooth, for counts are whole: the sizes given here
are those from which on it holds (looked at over the next tooth or more), not the first that happens to reach it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from palimpsest.statistics.comparisons import MINIMUM_SEEDS
from palimpsest.statistics.intervals import check_count, check_fraction, clopper_pearson

LARGEST = 1_000_000  # items beyond which a plan is refused
NOTHING = 1e-15  # rates below it are nought
NEARBY = 40  # sizes on either side that are looked at for the sawtooth


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


def chance_of_at_most(hits: int, n: int, rate: float) -> float:
    """P(X <= hits) for X ~ Binomial(n, rate)."""
    from scipy.special import bdtr

    check_count(hits, n)
    return float(bdtr(hits, n, rate))


def keys_for_bound(bound: float, rate: float, power: float, confidence: float = 0.95) -> tuple[int, int, float]:
    """(keys, hits allowed, chance): the smallest plan by which a model of true `rate` shows an upper bound <= bound.

    Allowing more hits takes more keys and forgives more; the first plan whose chance of success reaches `power`.
    ValueError where rate is so near the bound that it would take more than a million keys.
    """
    check_fraction(power, "power")
    if not 0 <= rate < bound:
        raise ValueError(f"a true rate of {rate:g} cannot be shown to lie below {bound:g}")
    hits, step = 0, 1
    while True:
        n = keys_needed(bound, confidence, hits)
        if n > LARGEST:
            raise ValueError(f"a true rate of {rate:g} is too near {bound:g}: more than {LARGEST:,} keys")
        if chance_of_at_most(hits, n, rate) >= power:
            break
        hits, step = hits + step, max(1, hits // 8)
    while hits and chance_of_at_most(hits - 1, keys_needed(bound, confidence, hits - 1), rate) >= power:
        hits -= 1
    n = keys_needed(bound, confidence, hits)
    return n, hits, chance_of_at_most(hits, n, rate)


def lasting(power_at: Callable[[int], float], power: float, start: int) -> int:
    """The n from which on power_at(n) >= power; `start` is a guess. ValueError beyond a million.

    power_at must rise but for its sawtooth: a bracket is doubled and halved, and sizes nearby are tried one by one.
    """
    check_fraction(power, "power")
    low, high = 0, max(2, start)
    while power_at(high) < power:
        low, high = high, 2 * high
        if high > LARGEST:
            raise ValueError(f"it would take more than {LARGEST:,}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_at(middle) >= power else (middle, high)
    short = (n for n in range(high + NEARBY, max(1, high - NEARBY) - 1, -1) if power_at(n) < power)
    return next(short, max(1, high - NEARBY) - 1) + 1


def above_chance_power(n: int, chance: float, rate: float, confidence: float = 0.95) -> float:
    """Chance that n items answered at true `rate` show a one-sided lower bound (Clopper-Pearson) above `chance`."""
    from scipy.special import bdtr, bdtrc

    low, high = -1, n + 1  # smallest count with P(X >= count | chance) < 1 - confidence
    while high - low > 1:
        middle = (low + high) // 2
        tail = float(bdtrc(middle - 1, n, chance)) if middle > 0 else 1.0
        low, high = (low, middle) if tail < 1 - confidence else (middle, high)
    return 0.0 if high > n else 1.0 - float(bdtr(high - 1, n, rate)) if high > 0 else 1.0


def above_chance_items(chance: float, rate: float, power: float, confidence: float = 0.95) -> int:
    """Items at which accuracy at true `rate` is shown to be above chance, with that power."""
    check_fraction(chance, "chance")
    if not chance < rate < 1:
        raise ValueError(f"a true rate of {rate:g} is not above chance, {chance:g}, and below 1")
    guess = _normal_size(math.sqrt(chance * (1 - chance)), math.sqrt(rate * (1 - rate)), rate - chance, confidence)
    return lasting(lambda n: above_chance_power(n, chance, rate, confidence), power, guess)


def _normal_size(null_spread: float, spread: float, gap: float, confidence: float) -> int:
    """A first guess by the normal approximation at power 0.8."""
    return max(2, math.ceil(((2.0 if confidence < 0.99 else 3.0) * null_spread + 0.84 * spread) ** 2 / gap**2))


def _check_discordance(difference: float, discordance: float) -> None:
    if not 0 < abs(difference) <= discordance <= 1:
        raise ValueError(
            f"a difference of {difference:g} needs at least that share of items to change: {discordance:g} do"
        )


def mcnemar_power(n: int, difference: float, discordance: float, alpha: float = 0.05) -> float:
    """Exact chance that McNemar's exact two-sided test shows the better one better, on n items answered by both.

    discordance: share of items that only one of the two answers rightly; difference: by how much the better is
    better. Summed over the number of discordant items; a significant result for the worse one does not count.
    """
    import numpy as np
    from scipy.special import bdtr
    from scipy.stats import binom

    _check_discordance(difference, discordance)
    changed = _window(n, discordance)
    better = (discordance + abs(difference)) / (2 * discordance)
    needed = binom.isf(alpha / 2, changed, 0.5) + 1  # smallest b with 2 P(B >= b) <= alpha
    reject = np.where(needed <= changed, 1 - bdtr(np.maximum(needed - 1, 0), changed, better), 0.0)
    return float(math.fsum(binom.pmf(changed, n, discordance) * reject))


def mcnemar_items(difference: float, discordance: float, power: float, alpha: float = 0.05) -> int:
    """Items on which a difference at a discordance is significant by McNemar's exact test, with that power."""
    _check_discordance(difference, discordance)
    level = 2.0 if alpha >= 0.01 else 4.0
    guess = math.ceil((level * math.sqrt(discordance) + math.sqrt(discordance)) ** 2 / difference**2)
    return lasting(lambda n: mcnemar_power(n, difference, discordance, alpha), power, guess)


def _window(n: int, rate: float) -> Any:
    """Counts (numpy, whole numbers) that hold all but about 1e-15 of Binomial(n, rate)."""
    import numpy as np

    reach = 8 * math.sqrt(n * rate * (1 - rate)) + 12
    return np.arange(max(0, math.floor(n * rate - reach)), min(n, math.ceil(n * rate + reach)) + 1)


def within_margin_power(n: int, margin: float, lost: float, gained: float, confidence: float = 0.95) -> float:
    """Exact chance that n items answered before and after show a loss of at most `margin`.

    lost, gained: shares of items right only before, only after. The rule is that of the verdicts: one-sided upper
    bound of `paired_difference_interval` (Tango, widened where nothing was gained) <= margin. Summed over all
    (lost, gained) counts.
    """
    import numpy as np
    from scipy.special import bdtr, ndtri
    from scipy.stats import binom

    check_fraction(margin, "margin")
    if lost < 0 or gained < 0 or lost + gained > 1:
        raise ValueError(f"shares of items that change must add up to at most 1: {lost:g} and {gained:g}")
    if gained < NOTHING:  # scipy's binomial overflows at denormal rates
        gained = 0.0
    won = _window(n, gained)
    quantile = float(ndtri(1 - confidence))
    low, high = np.full(len(won), -1), n - won + 1  # most lost that still pass, found for each count won
    while (high - low > 1).any():
        middle = (low + high) // 2
        passes = _scores(np.maximum(middle, 0), won, n, margin) <= quantile
        low, high = np.where(passes & (middle > low), middle, low), np.where(passes, high, middle)
    if won[0] == 0:  # nothing gained: also the exact bound of the losses alone must hold
        while low[0] >= 0 and clopper_pearson(int(low[0]), n, confidence, "upper").high > margin:
            low[0] -= 1
    share = min(1.0, lost / (1 - gained)) if gained < 1 else 0.0
    passed = np.where(low >= 0, bdtr(np.maximum(low, 0), n - won, share), 0.0)
    return float(math.fsum(binom.pmf(won, n, gained) * passed))


def _scores(lost: Any, won: Any, n: int, margin: float) -> Any:
    """`tango_score` of many counts at once (numpy)."""
    import numpy as np

    linear = -lost - won + (2 * n - lost + won) * margin
    root = np.sqrt(np.maximum(0.0, linear**2 + 8.0 * n * won * margin * (1 - margin)))
    variance = n * np.maximum(0.0, (root - linear) / (2 * n) + margin * (1 - margin))
    return (lost - won - n * margin) / np.sqrt(variance)


def within_margin_items(margin: float, lost: float, gained: float, power: float, confidence: float = 0.95) -> int:
    """Items on which a loss of at most `margin` is shown with that power."""
    if lost - gained >= margin:
        raise ValueError(f"a true loss of {lost - gained:g} cannot be shown to lie within {margin:g}")
    guess = math.ceil(9 * (lost + gained + margin / 4) / (margin - lost + gained) ** 2)
    return lasting(lambda n: within_margin_power(n, margin, lost, gained, confidence), power, guess)


def seeds_for_exact(alpha: float = 0.05, rows: int = 1, paired: bool = False) -> int:
    """Fewest seeds a side at which the exact permutation test can reach alpha / rows at all (and at least five).

    Its smallest two-sided p is 2 / C(2 n, n), for pairs 2 / 2^n.
    """
    check_fraction(alpha, "alpha")
    n = 1
    while rows * 2 / (2**n if paired else math.comb(2 * n, n)) > alpha:
        n += 1
    return max(n, MINIMUM_SEEDS)


def t_power(seeds: int, effect: float, alpha: float = 0.05, paired: bool = False) -> float:
    """Chance that a two-sided t test shows the better one better; effect: difference in standard deviations.

    seeds a side, equal spreads (of the differences where paired), normal values: noncentral t. Welch's t, which
    `t_test` takes, has at equal spreads almost the same power.
    """
    from scipy.stats import nct, t

    freedom, shift = (seeds - 1, math.sqrt(seeds)) if paired else (2 * seeds - 2, math.sqrt(seeds / 2))
    return float(nct.sf(t.isf(alpha / 2, freedom), freedom, abs(effect) * shift))


def t_seeds(effect: float, power: float, alpha: float = 0.05, paired: bool = False) -> int:
    """Fewest seeds a side (at least five) whose t test has that power."""
    check_fraction(power, "power")
    if not effect:
        raise ValueError("no number of seeds shows a difference of nought")
    n = MINIMUM_SEEDS
    while t_power(n, effect, alpha, paired) < power:
        n += max(1, n // 64)
        if n > LARGEST:
            raise ValueError(f"it would take more than {LARGEST:,} seeds")
    while n > MINIMUM_SEEDS and t_power(n - 1, effect, alpha, paired) >= power:
        n -= 1
    return n


def permutation_power(
    seeds: int, effect: float, alpha: float = 0.05, paired: bool = False, trials: int = 400, seed: int = 0
) -> float:
    """Chance that the exact permutation test shows the better one better, by simulation of normal values.

    Its standard error is at most 0.5 / sqrt(trials); all relabellings are listed, so keep to 10 seeds a side.
    """
    import numpy as np

    draw = np.random.default_rng(seed)
    labels = _relabellings(seeds, paired)  # (relabellings, values), each +-1
    shown = 0
    for _ in range(trials):
        first, second = draw.normal(abs(effect), 1, seeds), draw.normal(0, 1, seeds)
        values = draw.normal(abs(effect), 1, seeds) if paired else np.concatenate([first, second])
        found = labels @ values
        own = values.sum() if paired else first.sum() - second.sum()
        shown += own > 0 and (np.abs(found) >= abs(own) - 1e-9).mean() <= alpha
    return shown / trials


@functools.lru_cache(maxsize=8)
def _relabellings(seeds: int, paired: bool) -> Any:
    """Signs of every relabelling: 2^seeds sign flips, or C(2 seeds, seeds) splits in two halves."""
    import itertools

    import numpy as np

    if paired:
        return np.array(list(itertools.product((1.0, -1.0), repeat=seeds)))
    chosen = np.array(list(itertools.combinations(range(2 * seeds), seeds)))
    signs = -np.ones((len(chosen), 2 * seeds))
    np.put_along_axis(signs, chosen, 1.0, axis=1)
    return signs
