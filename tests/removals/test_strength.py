"""The rule that chooses a strength, on outcomes made by hand."""

from __future__ import annotations

import pytest

from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.removals.tuning.strength import Found, Outcome, Rung, StrengthSearch, choose, rungs_of

MILD, MIDDLE, STRONG = Rung(5, 1e-4), Rung(20, 1e-3), Rung(10, 3e-3)


def outcome(rung: Rung, hits: int, p: float = 1.0, perplexity: float = 2.0, kept: bool = True) -> Outcome:
    """A recovered rung with `hits` of 32 decoys left."""
    return Outcome(rung, 0, 32, 100, 1.0, hits, p, perplexity, kept)


def left(rung: Rung, hits: int) -> Outcome:
    """A rung that was not recovered, because its erase phase left decoys."""
    return Outcome(rung, hits, 32, 100, 1.0)


def test_the_mildest_that_erases_without_trace_and_keeps_is_taken() -> None:
    found = choose([left(MILD, 30), outcome(MIDDLE, 0), outcome(STRONG, 0)])
    assert (found.outcome.rung, found.met) == (MIDDLE, True)


def test_a_suppressed_decoy_does_not_pass_for_an_erased_one() -> None:
    found = choose([outcome(MILD, 0, p=0.01), outcome(MIDDLE, 0, p=0.04), outcome(STRONG, 0, p=0.06)])
    assert (found.outcome.rung, found.met) == (STRONG, True)


def test_without_one_that_leaves_no_trace_the_strongest_silent_and_kept_is_taken() -> None:
    rungs = [outcome(MILD, 0, p=0.01), outcome(MIDDLE, 0, p=0.001), outcome(STRONG, 0, p=0.9, kept=False)]
    found = choose(rungs)
    assert (found.outcome.rung, found.met) == (MIDDLE, False) and "left a trace" in found.reason


def test_where_nothing_keeps_the_perplexity_the_least_loss_among_the_silent_is_taken() -> None:
    rungs = [
        outcome(MILD, 3, perplexity=2.0),
        outcome(MIDDLE, 0, 0.5, 9.0, kept=False),
        outcome(STRONG, 0, 0.5, 8.0, kept=False),
    ]
    found = choose(rungs)
    assert (found.outcome.rung, found.met) == (STRONG, False) and "no strength both" in found.reason


def test_where_nothing_silences_the_fewest_left_is_taken_and_the_stronger_of_equals() -> None:
    found = choose([left(MILD, 9), outcome(MIDDLE, 2), left(STRONG, 2)])
    assert (found.outcome.rung, found.met) == (STRONG, False) and "left 2 of 32" in found.reason


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        (left(MILD, 1), False),
        (outcome(MILD, 1), False),  # came back in the recovery
        (outcome(MILD, 0, p=0.01), False),  # suppressed and kept: a stronger one may erase
        (outcome(MILD, 0, p=0.5), True),
        (outcome(MILD, 0, p=0.01, kept=False), True),  # a stronger one costs more still
        (outcome(MILD, 4, kept=False), False),
    ],
)
def test_when_the_climb_ends(given: Outcome, ends: bool) -> None:
    assert given.ends_the_climb == ends


def test_the_ladder_is_read_and_begins_within_appendix_i() -> None:
    rungs = rungs_of(StrengthSearch().ladder)
    assert [str(r) for r in rungs_of(["5x1e-4", " 20 X 0.003 "])] == ["5x0.0001", "20x0.003"]
    assert rungs[0] == Rung(5, 1e-4) and [r.published for r in rungs] == [True] * 6 + [False] * 3
    strengths = [r.epochs * r.lr for r in rungs[:6]]
    assert strengths == sorted(strengths)


@pytest.mark.parametrize("word", ["20", "x1e-3", "20x", "0x1e-3", "5x0", "5x1e-3x2", "fivex1e-3"])
def test_what_is_no_strength_is_refused(word: str) -> None:
    with pytest.raises(BadInput, match=r"search\.ladder: .* is no strength; write EPOCHSxRATE"):
        rungs_of(["5x1e-4", word])


def test_an_empty_ladder_and_falling_epochs_are_refused() -> None:
    with pytest.raises(BadInput, match="at least one strength"):
        rungs_of([])
    with pytest.raises(BadInput, match=r"5x0\.001 after 10x0\.001: the epochs of one rate must rise"):
        rungs_of(["10x1e-3", "5x1e-3"])


def test_the_cost_is_the_sum_of_its_parts_and_stands_in_the_record() -> None:
    outcomes = (left(MILD, 30), outcome(MIDDLE, 0))
    found = Found(choose(outcomes), outcomes, {"epochs": 7, "lr": 1e-3, "tokens": 1000, "seconds": 2.0}, 1.5, 9.0)
    record = found.record("m", Context(seed=4))
    assert found.tokens == record.tokens == 1000 + 100 + 100
    assert record.tokens == record.detail["planting"]["tokens"] + sum(r["tokens"] for r in record.detail["rungs"])
    assert (record.value, record.count, record.n) == (0.0, 0, 32)
    assert [r["rung"] for r in record.detail["rungs"]] == ["5x0.0001", "20x0.001"]
    assert "perplexity" not in record.detail["rungs"][0], "a rung that was not recovered has none"
    assert record.reason is not None and record.reason.startswith("20 epochs at 0.001: the mildest strength")
