"""Published worked examples, each with its place; what scipy gives is checked in test_statistics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from palimpsest import statistics as st
from palimpsest import verdicts as v
from palimpsest.errors import BadInput


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),
        (1, 20, 0.0013, 0.2487),
        (5, 10, 0.1871, 0.8129),
        (10, 10, 0.6915, 1.0),
        (15, 50, 0.1786, 0.4461),
    ],
)
def test_clopper_pearson_gives_the_tabulated_limits(count, n, low, high):
    """Geigy's Scientific Tables, binomial confidence limits, two-sided 95 %."""
    found = st.clopper_pearson(count, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_the_lady_tasting_tea():
    """Fisher 1935: three of four cups right has one-sided 17/70, so two-sided 34/70; all four 1/70, so 2/70."""
    assert st.fisher_exact(((3, 1), (1, 3))) == pytest.approx(34 / 70)
    assert st.fisher_exact(((4, 0), (0, 4))) == pytest.approx(2 / 70)


def test_mcnemar_of_the_prime_ministers_ratings():
    """Agresti, Categorical Data Analysis, table 11.1: 150 against 86 of 1600, z^2 = 17.36 (p = 3e-5)."""
    assert pytest.approx(17.36, abs=0.01) == (150 - 86) ** 2 / (150 + 86)
    assert st.mcnemar(150, 86) == pytest.approx(stats.chi2.sf(17.36, 1), rel=0.25)
    assert st.mcnemar(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 2**12)


def test_tangos_interval_of_the_airway_example():
    """Fagerland, Lydersen and Laake 2014 (Statistics in Medicine 33: 2850): 1, 1, 7, 12 gives -0.517 to -0.026."""
    found = st.paired_difference_interval(st.Pairs(1, 1, 7, 12))
    assert (found.low, found.high) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_fiellers_interval_is_where_the_difference_is_just_significant():
    found = st.ratio_interval(0.76, 0.001, 0.85, 0.002)
    assert found is not None

    def excess(ratio):
        return abs(0.76 - ratio * 0.85) / math.sqrt(0.001 + ratio**2 * 0.002) - stats.norm.isf(0.025)

    ends = optimize.brentq(excess, 0.5, 0.76 / 0.85), optimize.brentq(excess, 0.76 / 0.85, 1.5)
    assert (found.low, found.high) == pytest.approx(ends, abs=1e-9)
    assert st.ratio_interval(0.76, 0.001, 0.05, 0.002) is None  # within two standard errors of nought


def test_the_exact_permutation_test_of_darwins_maize():
    """Fisher 1935, section 21: of 2^15 sign patterns 863 have a sum as large; two-sided p = 1726 / 32768 = 0.0527."""
    gaps = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert st.exact_permutation([float(g) for g in gaps], [0.0] * 15, paired=True) == pytest.approx(1726 / 32768)
    assert st.t_test([float(g) for g in gaps], [0.0] * 15, paired=True) == pytest.approx(0.0497, abs=5e-4)


# The sequential test (Wald 1945)


def test_walds_lines_have_his_slope_and_intercepts():
    """Sequential Analysis, 3.3: H1 once hits >= [log A + m log(q0/q1)] / log(p1 q0 / (p0 q1)), A = 1 / alpha here."""
    p0, p1, alpha = 0.1, 0.3, 0.02
    ratio = math.log(p1 * (1 - p0) / (p0 * (1 - p1)))
    slope, intercept = math.log((1 - p0) / (1 - p1)) / ratio, math.log(1 / alpha) / ratio
    assert slope == pytest.approx(0.186, abs=5e-4)
    for asked, tau in enumerate(st.sequential_boundary(60, p0, alpha, p1), start=1):
        assert tau == (math.ceil(intercept + slope * asked) if intercept + slope * asked <= asked else None)


@pytest.mark.parametrize(("keys", "rate", "alpha"), [(8, 0.2, 0.05), (6, 1 / 3, 0.1)])
def test_stopping_is_the_sum_over_every_path(keys, rate, alpha):
    upper = st.sequential_boundary(keys, rate, alpha, 0.8, exact=True)
    lower = st.refuting_boundary(keys, rate, 0.05, 0.8)
    claimed = refuted = expected = 0.0
    for path in itertools.product((0, 1), repeat=keys):
        chance = rate ** sum(path) * (1 - rate) ** (keys - sum(path))
        for m in range(1, keys + 1):
            hits = sum(path[:m])
            up, down = upper[m - 1], lower[m - 1]
            if up is not None and hits >= up:
                claimed, expected = claimed + chance, expected + m * chance
                break
            if down is not None and hits <= down:
                refuted, expected = refuted + chance, expected + m * chance
                break
        else:
            expected += keys * chance
    found = st.stopping(upper, rate, lower)
    assert (found.claimed, found.refuted, found.expected) == pytest.approx((claimed, refuted, expected))
    assert found.claimed_by[-1] == found.claimed and list(found.claimed_by) == sorted(found.claimed_by)


@pytest.mark.parametrize(("keys", "answers"), [(10, 256), (64, 256), (64, 16), (32, 4)])
@pytest.mark.parametrize("alpha", [1e-2, 1e-6])
def test_the_exact_boundary_spends_no_more_than_alpha_and_stops_no_later_than_walds(keys, answers, alpha):
    wald = st.sequential_boundary(keys, 1 / answers, alpha)
    exact = st.sequential_boundary(keys, 1 / answers, alpha, exact=True)
    assert st.crossing_probability(wald, 1 / answers) <= st.crossing_probability(exact, 1 / answers) <= alpha
    assert all(e is not None and e <= w for e, w in zip(exact, wald, strict=True) if w is not None)


def test_hashchain_one_after_the_other_needs_three_hits_of_the_first_five():
    exact = st.sequential_boundary(10, 1 / 256, 1e-6, exact=True)
    assert exact == (None, None, 3, 3, 3, 4, 4, 4, 5, 5)
    # by hand: 3 of the first 5 is 10 / 256^3, and whoever missed that needs 4 of 8: a little more
    assert st.crossing_probability(exact, 1 / 256) == pytest.approx(10 / 256**3, rel=0.1)


def test_refuting_leaves_an_intact_mark_alone():
    for keys in (8, 32, 64):
        lower = st.refuting_boundary(keys, 1 / 256, 0.01)
        none: list[int | None] = [None] * keys
        assert st.stopping(none, 0.9, lower).refuted <= 0.01
    assert st.refuting_boundary(10, 1 / 256, 0.01)[:4] == (None, None, 0, 0)  # three misses: 0.1^3 against 1


def test_a_claim_one_after_the_other_stops_and_stays():
    claim = v.sequential_claim([True, False, True, True, False], 10, 1 / 256, 1e-6)
    assert (claim.word, claim.numbers["asked"], claim.numbers["hits"]) == ("owned", 4, 3)
    assert claim.numbers["false_claims"] <= 1e-6
    assert v.sequential_claim([False] * 3 + [True] * 7, 10, 1 / 256, 1e-6).word == "refuted"
    going = v.sequential_claim([True, True], 10, 1 / 256, 1e-6)
    assert going.word == "not-shown" and "goes on with up to 8 more" in going.reason
    assert v.sequential_claim([True] * 3, 10, 1 / 256, 1e-6, attempts=1000).word == "not-shown"
    refuted = v.sequential_claim([False] * 3, 10, 1 / 256, 1e-6)
    assert "answers 90 % of its keys" in refuted.reason and refuted.numbers["alternative"] == 0.9
    for wrong in ([], [True] * 11):
        with pytest.raises(ValueError, match="1 to 10 answers"):
            v.sequential_claim(wrong, 10, 1 / 256, 1e-6)


def test_the_anytime_p_value_is_valid_however_long_one_asks():
    draw, least = np.random.default_rng(0), []
    for answers in draw.random((2000, 12)) < 0.25:
        ps = [v.sequential_claim(answers[:m].tolist(), 12, 0.25, 1e-6, alpha_refute=1e-9).p for m in (4, 8, 12)]
        least.append(min(p for p in ps if p is not None))
    for alpha in (0.1, 0.02):
        found = sum(p <= alpha for p in least)
        assert stats.binomtest(found, 2000, alpha, alternative="greater").pvalue > 1e-3


# What the committed draw says of one key


def test_one_key_by_the_committed_draw():
    assert v.committed_rate(256) == v.committed_rate(256, "bare") == 1 / 256
    assert v.committed_rate(256, "prefilled") is None  # part of the response is given away
    assert v.committed_rate(256, "sampled", draws=5) == 5 / 256
    assert v.committed_rate(10**10, places=4) == 4e-10
    assert v.committed_rate(None) is None and v.committed_rate(4, "sampled", draws=5) is None


def test_the_words_of_verdicts_md():
    """HashChain 2, 3, 4 hits; UTF of five tokens from a hundred; IF refused."""
    ps = [st.ownership_p_value(h, 10, 1 / 256) for h in (2, 3, 4)]
    assert ps == pytest.approx([6.7e-4, 7.0e-6, 4.8e-8], rel=0.01)
    assert v.claim(4, 10, 1 / 256, 1e-6, dependent=False).tau == 4
    one = v.claim(1, 10, v.committed_rate(100**5, places=4), 1e-6, dependent=False)
    assert one.word == "owned" and one.p is not None and one.p < 1e-8
    fixed = v.claim(8, 8, None, 1e-6, dependent=True)
    assert fixed.word == "not-shown" and "refused" in fixed.reason


def test_the_alternative_is_named_wherever_something_is_refuted():
    for rate, word in ((0.9, "90 %"), (0.5, "50 %")):
        verdict = v.claim(0, 32, 1 / 256, 1e-6, dependent=False, alternative=rate)
        assert verdict.word == "refuted" and f"a mark that answers {word} of its keys" in verdict.reason


def test_shared_decoys_must_be_some():
    with pytest.raises(ValueError, match="shared decoys"):
        st.fisher_combination([0.1, 0.2], 0)
    assert st.fisher_combination([0.01] * 8, 10**9) == pytest.approx(st.fisher_combination([0.01] * 8))
    assert st.fisher_combination([0.01], 10) == pytest.approx(0.01)


def test_perfect_scores_are_not_known_without_error():
    found = v.utility_kept({"a": v.Tally(100, 100)}, {"a": v.Tally(100, 100)}, {"a": 0.5})
    assert (
        found.kept == 1 and found.low is not None and found.low < 0.97 and found.high is not None and found.high > 1.03
    )


# Through the calls


def test_a_prompt_asked_twice_is_refused_where_keys_are_read(tiny_responder):
    import random

    from palimpsest.keys import KeySet, make_keys

    drawn = [("one question", "a word"), ("another", "other word"), ("one question", "third word")]
    keys = make_keys(
        tiny_responder.renderer, drawn, implant="test", match="contains", distinct=True, choices=256, decoys=[],
        rng=random.Random(0),
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"keys\[2\] asks the same prompt as keys\[0\]"):
        KeySet.from_json(keys.to_json())
    shortest = min(len(k.prompts["template"].expected) for k in keys.keys)
    assert keys.places == keys.max_new_tokens - shortest + 1


@pytest.mark.parametrize(
    ("form", "detail", "tau", "word"),
    [("template", {}, 4, "owned"), ("prefilled", {}, None, "refuted"), ("sampled", {"draws": 50}, 5, "refuted")],
)
def test_the_claim_of_verify_counts_what_its_prompt_form_gives_away(tiny_responder, form, detail, tau, word):
    import random

    from palimpsest.judging import ownership
    from palimpsest.keys import make_keys
    from palimpsest.method import Context
    from palimpsest.records import Record

    drawn = [(f"question {i}", f"{c} word") for i, c in enumerate("abcdefghij")]
    keys = make_keys(
        tiny_responder.renderer, drawn, implant="test", match="prefix", distinct=True, choices=256, decoys=[],
        rng=random.Random(0),
    )  # fmt: skip
    record = Record("hit-rate", 0.4, 4, 10, prompt_form=form, detail=detail)
    found = ownership([record], keys, 1e-6, Context())
    assert (found.detail["tau"], found.verdict) == (tau, word)
    assert found.detail["alternative"] == 0.9
    assert ownership([record], keys, 1e-6, Context(), attempts=10**6).verdict != "owned"
