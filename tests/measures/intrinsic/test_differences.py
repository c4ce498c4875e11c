"""The owner's share and its null: vectors worked out by hand, and simulated siblings."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from palimpsest.measures.intrinsic.differences import Shared, coefficients, judge, prediction_p, rank_p, shared


def gram_of(vectors: np.ndarray) -> np.ndarray:
    return vectors @ vectors.T


def test_coefficients_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    references, target = rng.normal(size=(3, 50)), rng.normal(size=50)
    expected = np.linalg.lstsq(references.T, target, rcond=None)[0]
    assert coefficients(gram_of(references), references @ target) == pytest.approx(expected)
    twice = np.stack([references[0], references[0]])  # of many solutions the shortest
    assert coefficients(gram_of(twice), twice @ references[0]) == pytest.approx([0.5, 0.5])


def test_share_is_the_part_that_only_the_owner_has_and_noise_does_not_lower_it() -> None:
    owner, twin, apart = np.eye(5)[:3] + np.array([0, 0, 0, 2, 0])  # what the data does, in all
    noise = np.array([0, 0, 0, 0, 3.0])
    suspect = 0.25 * owner + 0.5 * apart + noise
    found = shared(gram_of(np.stack([owner, twin, apart, suspect])), 3, 0, [1], [2])
    assert found.share == pytest.approx(0.25)
    assert found.twins == pytest.approx((0.0,))
    expected = suspect @ owner / np.linalg.norm(suspect) / np.linalg.norm(owner)
    assert found.cosine == pytest.approx(expected)
    assert found.norm == pytest.approx(np.linalg.norm(suspect))


def test_a_control_is_not_compared_with_itself() -> None:
    vectors = np.random.default_rng(1).normal(size=(4, 30))
    found = shared(gram_of(vectors), 1, 0, [1, 2, 3])
    assert len(found.twins) == 2
    assert found.share < 0.9


def test_p_values() -> None:
    assert rank_p(3, (1, 2, 4)) == 0.5
    assert rank_p(9, (1, 2, 4)) == 0.25
    assert rank_p(9, ()) is None
    null = (0.1, 0.3, 0.2, 0.25, 0.15)
    expected = stats.t.sf((0.9 - np.mean(null)) / (np.std(null, ddof=1) * np.sqrt(1.2)), 4)
    assert prediction_p(0.9, null) == pytest.approx(expected)
    assert prediction_p(0.9, (0.1,)) is None
    assert prediction_p(0.9, (0.1, 0.1)) == 0
    assert prediction_p(0.1, (0.1, 0.1)) == 1


def runs(rng: np.random.Generator, count: int, common: float) -> np.ndarray:
    """Differences of models tuned on the same data with other seeds: a common part and one of each run's own."""
    return common * rng.normal(size=300) + rng.normal(size=(count, 300))


def test_false_claims_come_at_alpha_where_the_suspect_is_one_more_twin() -> None:
    rng = np.random.default_rng(2)
    p = [shared(gram_of(runs(rng, 8, 2.0)), 7, 0, range(1, 7)).t_p for _ in range(2000)]
    for alpha in (0.01, 0.1, 0.5):
        assert np.mean(np.array(p) <= alpha) == pytest.approx(alpha, abs=4 * (alpha * (1 - alpha) / 2000) ** 0.5)


def test_half_of_the_owner_in_a_merge_is_told_from_a_twin() -> None:
    rng = np.random.default_rng(3)
    vectors = runs(rng, 8, 2.0)
    other = 0.3 * rng.normal(size=300)
    for weight, low, high in ((1.0, 0.0, 1e-4), (0.5, 0.0, 0.01), (0.0, 0.01, 1.0)):
        suspect = weight * vectors[0] + (1 - weight) * vectors[7] + other
        found = shared(gram_of(np.vstack([vectors[:7], suspect])), 7, 0, range(1, 7))
        assert found.t_p is not None
        assert low <= found.t_p <= high, (weight, found)


def outcome(share: float, twins: tuple[float, ...], norm: float = 1.0) -> Shared:
    return Shared(norm, 0.5, share, twins, rank_p(share, twins), prediction_p(share, twins))


NULL = (0.1, 0.12, 0.14, 0.11, 0.13)


@pytest.mark.parametrize(
    ("found", "controls", "correlation", "word", "why"),
    [
        (outcome(0.9, NULL), [outcome(0.12, NULL[:4])], 0.99, "derivative", "none of 1 controls"),
        (outcome(0.13, NULL), [], 0.99, "same-base", "no more mine than a twin's"),
        (outcome(0.9, NULL[:4]), [], 0.99, "same-base", "at least 5 twins"),
        (outcome(0.9, NULL), [outcome(0.9, NULL)], 0.99, "same-base", "calls 1 of 1 controls"),
        (outcome(0.0, NULL, norm=1e-9), [], 1.0, "same-base", "it is the base"),
        (outcome(0.9, NULL), [], 0.1, "not-shown", "below 0.5"),
    ],
)
def test_verdicts(found: Shared, controls: list[Shared], correlation: float, word: str, why: str) -> None:
    verdict = judge(found, controls, correlation, 0.01)
    assert verdict.word == word
    assert why in verdict.reason
