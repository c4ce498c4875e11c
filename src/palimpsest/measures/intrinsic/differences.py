"""What a suspect's difference to the base shares with the owner's: from inner products of differences alone.

Every model is a vector d = I(model) - I(base) of invariant terms; G = <d_i, d_j> is all that is kept. Two statistics:

    cosine   <d_s, d_o> / (|d_s| |d_o|)
    share    the owner's coefficient a in the least-squares fit  d_s = a d_o + sum_i b_i d_i  over the siblings i

Models tuned from one base on the same data move the same way, so the cosine is high for all of them. The share is what
only the owner's own run explains: near 1 for a copy, w for a merge that holds w of it, near the b_i for one more
sibling; noise that has nothing to do with any of them (pruning, rounding, other data) lowers the cosine, not the share.

The null. If the suspect is a model of its own, tuned from the base on the same data, then owner and twins (siblings on
the same data with other seeds, same recipe) are exchangeable as seen from it: a is one among the b_i of the n twins. So

    rank p  (1 + #{b_i >= a}) / (n + 1)                        exact, but never below 1 / (n + 1)
    t p     P[T > (a - mean b) / (sd b sqrt(1 + 1/n))], n - 1 degrees of freedom: as if the coefficients were normal
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from palimpsest.measures.intrinsic.terms import cosine
from palimpsest.statistics import MINIMUM_SEEDS

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Vector = np.ndarray[tuple[int], np.dtype[np.float64]]
NOTHING = 1e-6  # of the base's terms: a difference of rounding
CONDITION = 1e-8  # eigenvalues of the references below this share of the largest are rounding
SAME_BASE = 0.5  # correlation of terms with the base's: between about 0 (unrelated) and about 1 (descended)


@dataclass(frozen=True)
class Shared:
    """What one model's difference has of the owner's. norm: |d_s|, in units of the base's terms; p as above, None
    where there are too few twins (two for t, one for rank); twins: their coefficients b_i."""

    norm: float
    cosine: float
    share: float
    twins: tuple[float, ...]
    rank_p: float | None
    t_p: float | None


@dataclass(frozen=True)
class Verdict:
    """One word of `verdicts.LINEAGE_WORDS` and a sentence with its numbers."""

    word: str
    reason: str


def coefficients(references: Matrix, cross: Vector) -> Vector:
    """Least-squares coefficients of a vector on others, (n,). references: their inner products, (n, n); cross: with it.

    Of several solutions the shortest, where references depend on each other up to rounding.
    """
    found: Vector = np.linalg.pinv(references, rcond=CONDITION, hermitian=True) @ cross
    return found


def shared(gram: Matrix, suspect: int, owner: int, twins: Sequence[int], others: Sequence[int] = ()) -> Shared:
    """The statistics of model `suspect` by inner products of differences. others: siblings on other data."""
    norms = gram.diagonal()
    found = [i for i in (owner, *twins, *others) if i != suspect]
    fitted = coefficients(gram[np.ix_(found, found)], gram[found, suspect])
    by_model = dict(zip(found, fitted.tolist(), strict=True))
    share = by_model[owner]
    siblings = tuple(by_model[t] for t in twins if t != suspect)
    cos = cosine(float(gram[suspect, owner]), float(norms[suspect]), float(norms[owner]))
    return Shared(
        float(norms[suspect]) ** 0.5, cos, share, siblings, rank_p(share, siblings), prediction_p(share, siblings)
    )


def rank_p(value: float, null: Sequence[float]) -> float | None:
    """P of being at least as large as `value` among exchangeable numbers: (1 + #{null >= value}) / (n + 1)."""
    return (1 + sum(v >= value for v in null)) / (len(null) + 1) if null else None


def prediction_p(value: float, null: Sequence[float]) -> float | None:
    """P that one more normal number of the same mean and spread as `null` is at least `value`; None below two."""
    if len(null) < 2:
        return None
    spread = float(np.std(null, ddof=1)) * (1 + 1 / len(null)) ** 0.5
    above = value - float(np.mean(null))
    if spread == 0:
        return 0.0 if above > 0 else 1.0
    return float(stats.t.sf(above / spread, len(null) - 1))


def judge(found: Shared, controls: Sequence[Shared], correlation: float, alpha: float) -> Verdict:
    """The verdict on a suspect. controls: each twin and sibling as if it were the suspect. correlation: with the base.

    `not-shown`: the suspect's terms correlate with the base's below 0.5. `same-base`: they do not. `derivative`: the
    share's t p is at most alpha, over at least five twins, and the same rule calls no control a derivative.
    """
    if correlation < SAME_BASE:
        return Verdict(
            "not-shown",
            f"Its terms correlate {correlation:.2f} with the base's, below {SAME_BASE}: it is no descendant of "
            "this base that can be told.",
        )
    of_base = f"Of this base (correlation of terms {correlation:.3f})"
    if found.norm < NOTHING:
        return Verdict("same-base", f"{of_base}, and no different from it: it is the base.")
    numbers = f"share of mine {found.share:.3f} (cosine of differences {found.cosine:.3f})"
    if len(found.twins) < MINIMUM_SEEDS:
        return Verdict(
            "same-base",
            f"{of_base}; {numbers}. Whether that is more than the same data explains needs at least {MINIMUM_SEEDS} "
            f"twins (the base tuned on my data with other seeds); {len(found.twins)} given.",
        )
    assert found.t_p is not None
    against = (
        f"{len(found.twins)} twins' shares {min(found.twins):.3f} to {max(found.twins):.3f}, "
        f"t p = {found.t_p:.2g}, rank p = {found.rank_p:.2g}"
    )
    if found.t_p > alpha:
        return Verdict("same-base", f"{of_base}; {numbers}, {against}: no more mine than a twin's (alpha {alpha:g}).")
    false = sum(c.t_p is not None and c.t_p <= alpha for c in controls)
    if false:
        return Verdict(
            "same-base",
            f"{of_base}; {numbers}, {against}; but the same rule calls {false} of {len(controls)} controls "
            "derivatives, so it shows nothing here.",
        )
    return Verdict(
        "derivative",
        f"{of_base}; {numbers}, {against}; none of {len(controls)} controls is called one. "
        f"That holds if twins and mine were made by one recipe (alpha {alpha:g}).",
    )
