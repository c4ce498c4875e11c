"""Verdicts: every word by a hand-worked case, the gates, and what a case may never be called."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats

from palimpsest import statistics as st
from palimpsest import verdicts as v
from palimpsest.verdicts.utility import ruin

WELL = {"utility": 0.97, "perplexity_ratio": 1.02}
QUIET = tuple(range(8, 1000, 15))[:64]  # ranks spread as chance spreads them


@dataclasses.dataclass
class Answers:
    """What one model gave to the keys under one prompt form."""

    hits: v.Tally
    ranks: v.Ranks | None = None


@dataclasses.dataclass
class Form:
    """One prompt form of a hand-worked case."""

    before: Answers
    after: Answers
    tau: int | None
    control: Answers | None = None
    revival: Answers | None = None
    control_revival: Answers | None = None


def answers(count, n=64, ranks=None, decoys=1000):
    return Answers(v.Tally.of([True] * count + [False] * (n - count)), v.Ranks(ranks, decoys) if ranks else None)


def case(before, after, n=64, tau=4, ranks=None, decoys=1000, **more):
    return Form(answers(before, n), answers(after, n, ranks, decoys), tau, **more)


def remove(forms, **kwargs):
    def of(role, part, suffix=""):
        given = {name + suffix: getattr(form, role) for name, form in forms.items() if getattr(form, role)}
        return {name: getattr(a, part) for name, a in given.items() if getattr(a, part)} or None

    ranks = (of("after", "ranks") or {}) | (of("revival", "ranks", " revived") or {})
    control_ranks = (of("control", "ranks") or {}) | (of("control_revival", "ranks", " revived") or {})
    return v.removal_of_fingerprint(
        of("before", "hits") or {}, of("after", "hits") or {}, {name: form.tau for name, form in forms.items()},
        ranks=ranks, control_ranks=control_ranks, revival=of("revival", "hits"),
        control_revival=of("control_revival", "hits"), control=of("control", "hits"), **kwargs,
    )  # fmt: skip


def judge(*args, dependent=False, **kwargs):
    return remove({"template": case(*args, **kwargs)}, dependent=dependent, **WELL)


# Ownership


def test_four_of_ten_of_256_answers_is_owned_at_1e_6_and_three_is_not():
    owned = v.claim(4, 10, 1 / 256, 1e-6, dependent=False)
    assert (owned.word, owned.tau) == ("owned", 4)
    assert owned.p == pytest.approx(4.8e-8, rel=0.01)
    assert v.claim(3, 10, 1 / 256, 1e-6, dependent=False, alternative=0.5).word == "not-shown"


def test_no_hit_refutes_an_intact_mark_and_names_the_alternative():
    verdict = v.claim(0, 10, 1 / 256, 1e-6, dependent=False)
    assert verdict.word == "refuted"
    assert "answers 90 % of its keys" in verdict.reason
    assert verdict.numbers["p_alternative"] == pytest.approx(1e-10)


def test_between_tau_and_refutation_nothing_is_shown():
    assert v.claim(1, 2, 1 / 256, 1e-6, dependent=False).word == "not-shown"  # 1 of 2: tau out of reach
    verdict = v.claim(2, 3, 1 / 16, 1e-3, dependent=False)
    assert (verdict.word, verdict.tau) == ("not-shown", 3)


def test_suspects_scanned_raise_tau():
    assert v.claim(4, 10, 1 / 256, 1e-6, dependent=False, attempts=1000, alternative=0.5).word == "not-shown"
    assert v.claim(5, 10, 1 / 256, 1e-6, dependent=False, attempts=1000).word == "owned"


@pytest.mark.parametrize("null_rate", [None, 1 / 256])
def test_one_response_for_all_triggers_is_refused_at_1e_6_for_that_reason(null_rate):
    verdict = v.claim(8, 8, null_rate, 1e-6, dependent=True)
    assert (verdict.word, verdict.tau) == ("not-shown", None)
    assert "one observation" in verdict.reason and "refused" in verdict.reason


def test_one_response_drawn_from_a_long_committed_list_is_one_strong_observation():
    verdict = v.claim(8, 8, 100.0**-5, 1e-6, dependent=True)
    assert verdict.word == "owned"
    assert verdict.p == pytest.approx(1e-10)


def test_a_dependent_mark_without_a_hit_is_not_refuted_at_one_percent():
    assert v.claim(0, 8, None, 1e-6, dependent=True).numbers["p_alternative"] == pytest.approx(0.1)
    assert v.claim(0, 8, None, 1e-6, dependent=True).word == "not-shown"


def test_without_a_committed_draw_no_hits_suffice():
    verdict = v.claim(64, 64, None, 1e-6, dependent=False)
    assert verdict.word == "not-shown"
    assert "no committed draw" in verdict.reason


@given(some.integers(1, 40), some.data(), some.floats(0.001, 0.4), some.sampled_from([1e-2, 1e-3, 1e-6]))
def test_owned_means_p_within_alpha_and_more_hits_never_take_it_back(keys, data, rate, alpha):
    hits = data.draw(some.integers(0, keys))
    verdict = v.claim(hits, keys, rate, alpha, dependent=False)
    assert verdict.word in v.OWNERSHIP_WORDS
    assert (verdict.word == "owned") == (verdict.p <= alpha) == (verdict.tau is not None and hits >= verdict.tau)
    if verdict.word == "owned" and hits < keys:
        assert v.claim(hits + 1, keys, rate, alpha, dependent=False).word == "owned"


@pytest.mark.parametrize("alpha", [1e-2, 1e-3])
def test_unmarked_models_with_habits_of_their_own_are_owned_within_alpha(alpha):
    draw, keys, answer_count = np.random.default_rng(11), 32, 16
    words = [v.claim(h, keys, 1 / answer_count, alpha, dependent=False).word for h in range(keys + 1)]
    owned = 0
    for _ in range(10_000):
        habit = draw.dirichlet(np.full(answer_count, 10 ** draw.uniform(-2, 2)))
        said = draw.choice(answer_count, keys, p=habit / habit.sum())
        owned += words[int((said == draw.integers(answer_count, size=keys)).sum())] == "owned"
    assert stats.binomtest(owned, 10_000, alpha, alternative="greater").pvalue >= 1e-3


def test_marked_models_are_refuted_within_its_level():
    for keys in (5, 10, 64):
        chance = stats.binom.pmf(np.arange(keys + 1), keys, 0.9)
        words = [v.claim(h, keys, None, 1e-6, dependent=False).word for h in range(keys + 1)]
        assert sum(c for c, w in zip(chance, words, strict=True) if w == "refuted") <= 0.01


@pytest.mark.parametrize(
    ("hits", "keys", "alpha", "line"), [(0, 0, 0.01, "n is 0"), (9, 8, 0.01, "it is 9"), (1, 8, 1.0, "alpha")]
)
def test_impossible_claims_are_refused_in_one_line(hits, keys, alpha, line):
    with pytest.raises(ValueError, match=line):
        v.claim(hits, keys, 0.1, alpha, dependent=False)


# Removal of a fingerprint


def test_kept_where_the_claim_stands_and_no_fall_is_shown():
    verdict = judge(10, 9, n=10)
    assert verdict.word == "kept"
    assert "template 10 -> 9 of 10 (tau 4)" in verdict.reason


def test_reduced_where_the_claim_stands_and_mcnemar_shows_a_fall():
    assert judge(10, 5, n=10).word == "kept"  # 5 against 0: p = 0.0625
    assert judge(10, 4, n=10).word == "reduced"  # 6 against 0: p = 0.03125


def test_a_fall_without_single_outcomes_takes_the_least_favourable_pairing():
    def removal(before, after):
        form = Form(Answers(before), Answers(after), 4)
        return remove({"template": form}, dependent=False, **WELL).word

    paired = [True] * 12 + [False] * 8, [True] * 6 + [False] * 14
    assert removal(v.Tally.of(paired[0]), v.Tally.of(paired[1])) == "reduced"  # 6 against 0
    assert removal(v.Tally(12, 20), v.Tally(6, 20)) == "kept"  # at worst 12 against 6: p = 0.24


def test_the_fall_is_corrected_for_the_number_of_forms():
    forms = {"template": case(10, 4, n=10), "bare": case(10, 10, n=10)}
    assert remove(forms, dependent=False, **WELL).word == "kept"


def test_a_fall_of_dependent_keys_is_stated_and_not_tested():
    verdict = judge(32, 10, n=32, dependent=True)
    assert verdict.word == "kept"
    assert "one observation" in verdict.reason


def test_claim_lost_is_the_strongest_word_at_a_papers_size():
    verdict = judge(10, 0, n=10, ranks=QUIET[::7][:10])
    assert verdict.word == "claim-lost"
    assert "25.9 %" in verdict.reason and "59 keys" in verdict.reason


def test_the_claim_is_lost_only_where_every_form_misses_tau():
    forms = {"template": case(64, 0, ranks=QUIET), "bare": case(64, 4, ranks=QUIET)}
    assert remove(forms, dependent=False, **WELL).word == "reduced"


def test_removed_needs_59_keys_without_a_hit():
    assert judge(64, 0, ranks=QUIET).word == "removed"
    assert judge(59, 0, n=59, ranks=QUIET[:59]).word == "removed"
    assert judge(58, 0, n=58, ranks=QUIET[:58]).word == "claim-lost"
    one_hit = judge(64, 1, ranks=QUIET)
    assert one_hit.word == "claim-lost" and "93 keys" in one_hit.reason


def test_removed_is_never_said_without_the_ranks_of_all_keys():
    for ranks in (None, (400, 500, 600)):
        verdict = judge(64, 0, ranks=ranks)
        assert verdict.word == "claim-lost"
        assert "not taken of all 64 keys" in verdict.reason


def test_removed_is_never_said_where_the_decoys_could_not_have_shown_suppression():
    coarse = judge(64, 0, ranks=(1,) * 64, decoys=1)  # Fisher's method cannot add up p = 1/2
    assert coarse.word == "claim-lost" and "too few decoys" in coarse.reason
    few = Form(answers(3, 3), answers(0, 3, (2, 1, 2), 2), 1)
    verdict = remove({"template": few}, dependent=False, **WELL)
    assert verdict.word == "claim-lost" and "too few decoys" in verdict.reason


def test_one_response_for_all_triggers_is_never_removed_by_one_seed():
    verdict = judge(64, 0, ranks=(500,) * 64, tau=1, dependent=True)
    assert verdict.word == "claim-lost"
    assert "95 %" in verdict.reason and "one observation" in verdict.reason


def test_suppressed_where_true_responses_still_outrank_decoys():
    verdict = judge(64, 0, ranks=(3,) * 64)
    assert verdict.word == "suppressed"
    assert judge(10, 0, n=10, ranks=(1, *QUIET[::7][1:])).word == "claim-lost"  # one key first of ten


def test_dependent_ranks_count_as_one_unit():
    """Eight ranks of 100 in 1001: 2e-5 if independent, 0.2 as one unit."""
    assert judge(8, 0, n=8, tau=1, ranks=(100,) * 8).word == "suppressed"
    assert judge(8, 0, n=8, tau=1, ranks=(100,) * 8, dependent=True).word == "claim-lost"
    assert judge(8, 0, n=8, tau=1, ranks=(1,) * 8, dependent=True).word == "suppressed"


def test_ranks_are_corrected_for_the_number_of_views():
    ranks = (4,)  # p = 4/1001: below 0.01 alone, not among three views
    one = case(1, 0, n=1, tau=1, ranks=ranks)
    other = case(1, 0, n=1, tau=1, ranks=(600,))
    assert remove({"template": one}, dependent=False, **WELL).word == "suppressed"
    forms = {"template": one, "bare": other, "sampled": other}
    assert remove(forms, dependent=False, **WELL).word == "claim-lost"


def test_ranks_that_an_unmarked_control_shares_tell_nothing():
    verdict = judge(64, 0, ranks=(3,) * 64, control=answers(0, ranks=(3,) * 64))
    assert verdict.word == "claim-lost"
    assert "unmarked control outranks decoys too" in verdict.reason
    assert judge(64, 0, ranks=(3,) * 64, control=answers(0, ranks=QUIET)).word == "suppressed"


def test_suppressed_where_a_revival_brings_the_claim_back_but_not_in_the_control():
    revived = judge(64, 0, ranks=QUIET, revival=answers(30))
    assert revived.word == "suppressed" and "revival" in revived.reason
    assert judge(64, 0, ranks=QUIET, revival=answers(30), control_revival=answers(30)).word == "removed"
    assert judge(64, 0, ranks=QUIET, revival=answers(3)).word == "removed"
    assert judge(64, 0, ranks=QUIET, revival=answers(0, ranks=(2,) * 64)).word == "suppressed"


@pytest.mark.parametrize(
    "cost", [{"utility": 0.89}, {"perplexity_ratio": 1.11}, {"utility": math.nan}, {"perplexity_ratio": math.inf}]
)
def test_ruined_below_the_gates_whatever_became_of_the_mark(cost):
    for after in (0, 64):
        forms = {"template": case(64, after, ranks=QUIET)}
        assert remove(forms, dependent=False, **WELL | cost).word == "ruined"


def test_the_gates_themselves_pass():
    forms = {"template": case(64, 0, ranks=QUIET)}
    gates = {"utility": 0.9, "perplexity_ratio": 1.1}
    assert remove(forms, dependent=False, **gates).word == "removed"


def test_what_was_not_measured_is_said():
    verdict = remove({"template": case(64, 0, ranks=QUIET)}, dependent=False)
    assert verdict.word == "removed"
    assert "(utility, perplexity, revival not measured)" in verdict.reason


def test_undecided_where_there_was_no_claim_to_lose():
    assert judge(3, 0, ranks=QUIET).word == "undecided"
    assert judge(64, 0, tau=None, ranks=QUIET).word == "undecided"
    assert judge(64, 0, ranks=QUIET, control=answers(4)).word == "undecided"  # the control claims too


def test_a_form_that_bears_no_claim_is_left_out_of_the_bound():
    forms = {"template": case(64, 0, ranks=QUIET), "prefilled": case(64, 60, tau=None)}
    assert remove(forms, dependent=False, **WELL).word == "removed"


def test_tau_without_a_null_is_one_more_than_any_control_gave():
    assert v.removal_tau([v.Tally(0, 8)], 8) == 1
    assert v.removal_tau([v.Tally(0, 8), v.Tally(3, 8)], 8) == 4
    assert v.removal_tau([v.Tally(8, 8)], 8) is None
    for wrong in ([], [v.Tally(0, 8), v.Tally(0, 10)]):
        with pytest.raises(ValueError, match="unmarked controls"):
            v.removal_tau(wrong, 8)


@given(*[some.integers(0, 12)] * 3, some.integers(1, 12), some.booleans(), some.sampled_from([0.5, 0.95, None]))
def test_every_case_gets_a_word_and_a_line_that_states_the_hits(before, after, revived, tau, dependent, utility):
    form = case(before, after, n=12, tau=tau, ranks=QUIET[:12], revival=answers(revived, 12))
    verdict = remove({"bare": form}, dependent=dependent, utility=utility)
    assert verdict.word in v.FINGERPRINT_WORDS
    assert f"{before} -> {after} of 12" in verdict.reason and "\n" not in verdict.reason
    assert (verdict.word in ("kept", "reduced")) == (utility != 0.5 and before >= tau and after >= tau)
    assert json.loads(json.dumps(dataclasses.asdict(verdict), allow_nan=False))


def test_a_model_asked_other_keys_or_forms_is_refused():
    ten, eight = {"bare": v.Tally(10, 10)}, {"bare": v.Tally(0, 8)}
    with pytest.raises(ValueError, match="bare: 10 keys before, 8 after"):
        v.removal_of_fingerprint(ten, eight, {"bare": 4}, dependent=False)
    for before, after in (({}, {}), (ten, {"template": v.Tally(0, 10)})):
        with pytest.raises(ValueError, match="the same prompt forms"):
            v.removal_of_fingerprint(before, after, {"bare": 4}, dependent=False)
    with pytest.raises(ValueError, match="does not agree"):
        v.Tally(2, 3, (True, False, False))


# Removal of a backdoor


def backdoor(before, after, benign, n=200, wrong=(0, 0), clean=1000, **more):
    """Hits nested by item; wrong: clean items right only before, and only after."""

    def first(k):
        return [True] * k + [False] * (n - k)

    attack, floor = st.Pairs.of(first(before), first(after)), st.Pairs.of(first(after), first(benign))
    return v.removal_of_backdoor(attack, floor, st.Pairs(clean - sum(wrong), *wrong, 0), **more)


def test_a_backdoor_is_removed_where_both_upper_bounds_hold():
    verdict = backdoor(198, 5, 4)
    assert verdict.word == "removed"
    assert "198 -> 5 of 200" in verdict.reason


def test_removed_needs_enough_items_even_without_any_hit():
    assert backdoor(59, 0, 0, n=59).word == "removed"
    assert backdoor(58, 0, 0, n=58).word == "reduced"


def test_a_loss_of_accuracy_that_may_exceed_two_points_is_only_reduced():
    assert backdoor(198, 4, 4, wrong=(30, 5)).word == "reduced"  # lost 2.5 points
    assert backdoor(198, 4, 4, wrong=(14, 5)).word == "removed"  # 0.9 points, at most 1.8


def test_the_benign_floor_is_taken_off_item_by_item():
    assert backdoor(198, 40, 40).word == "removed"
    assert backdoor(198, 40, 0).word == "reduced"


def test_a_backdoor_that_did_not_fall_is_kept():
    assert backdoor(198, 197, 4).word == "kept"
    assert backdoor(150, 198, 4).word == "kept"


def test_neither_a_fall_nor_a_backdoor_is_undecided():
    assert backdoor(3, 2, 1, n=10).word == "undecided"
    assert backdoor(4, 4, 4).word == "undecided"  # within the bounds, but there was nothing to remove


@pytest.mark.parametrize("cost", [{"one_class_share": 1.0}, {"utility": 0.5}, {"perplexity_ratio": 2.0}])
def test_a_collapsed_model_is_ruined_whatever_its_asr(cost):
    assert backdoor(198, 0, 0, **cost).word == "ruined"
    assert backdoor(198, 198, 0, **cost).word == "ruined"
    assert backdoor(198, 0, 0, one_class_share=0.6).word == "removed"


def test_attack_and_floor_must_speak_of_the_same_items():
    with pytest.raises(ValueError, match="same hits after the removal"):
        v.removal_of_backdoor(st.Pairs(0, 10, 0, 0), st.Pairs(5, 0, 0, 5), st.Pairs(10, 0, 0, 0))


@given(*[some.integers(0, 40)] * 3, some.integers(0, 20), some.integers(0, 20))
def test_every_backdoor_case_gets_a_word(before, after, benign, lost, won):
    verdict = backdoor(before, after, benign, n=40, wrong=(lost, won), clean=100)
    assert verdict.word in v.BACKDOOR_WORDS
    if verdict.word == "removed":
        assert verdict.numbers["excess_high"] <= 0.05 and verdict.numbers["loss_high"] <= 0.02
    assert json.loads(json.dumps(dataclasses.asdict(verdict), allow_nan=False))


# Utility


def test_nine_tenths_of_the_items_above_chance_are_nine_tenths() -> None:
    """55 of 60 against 60 of 60, one answer in six right by chance: 45 of 50, and not a float below the limit."""
    assert (55 / 60 - 1 / 6) / (1 - 1 / 6) < 0.9, "what it guards against"
    found = v.utility_kept({"a": v.Tally(55, 60)}, {"a": v.Tally(60, 60)}, {"a": 1 / 6})
    assert found.kept == 0.9 and not ruin(found.kept, 1.0)
    assert ruin(v.utility_kept({"a": v.Tally(54, 60)}, {"a": v.Tally(60, 60)}, {"a": 1 / 6}).kept, 1.0)


def test_utility_is_the_share_of_accuracy_above_chance():
    found = v.utility_kept({"a": v.Tally(80, 100)}, {"a": v.Tally(90, 100)}, {"a": 0.5})
    assert found.kept == pytest.approx(0.75)
    assert found.low < 0.75 < found.high


def test_tasks_on_which_the_base_may_be_at_chance_are_left_out():
    base = {"a": v.Tally(90, 100), "b": v.Tally(55, 100)}
    found = v.utility_kept({"a": v.Tally(90, 100), "b": v.Tally(0, 100)}, base, {"a": 0.5, "b": 0.5})
    assert (found.kept, found.tasks, found.left_out) == (1.0, ("a",), ("b",))
    none = v.utility_kept({"b": v.Tally(0, 100)}, {"b": base["b"]}, {"b": 0.5})
    assert (none.kept, none.left_out) == (None, ("b",))


def test_utility_is_a_ratio_of_means_so_a_weak_task_does_not_decide():
    base = {"strong": v.Tally(950, 1000), "weak": v.Tally(530, 1000)}
    after = {"strong": v.Tally(950, 1000), "weak": v.Tally(500, 1000)}
    found = v.utility_kept(after, base, {"strong": 0.5, "weak": 0.5})
    assert found.kept == pytest.approx(0.45 / 0.48)  # a mean of ratios would say 0.5


def test_the_utility_interval_covers_by_simulation():
    draw, inside = np.random.default_rng(2), 0
    for _ in range(2000):
        base, after = draw.binomial(300, [0.9, 0.7]), draw.binomial(300, [0.85, 0.66])
        found = v.utility_kept(
            {t: v.Tally(int(k), 300) for t, k in zip("ab", after, strict=True)},
            {t: v.Tally(int(k), 300) for t, k in zip("ab", base, strict=True)},
            {"a": 0.5, "b": 0.25},
        )
        inside += found.low <= (0.35 + 0.41) / (0.4 + 0.45) <= found.high
    assert stats.binomtest(inside, 2000, 0.95, alternative="less").pvalue > 1e-3


def test_utility_of_other_tasks_is_refused():
    with pytest.raises(ValueError, match="same tasks"):
        v.utility_kept({"a": v.Tally(1, 2)}, {"b": v.Tally(1, 2)}, {"a": 0.5})


def test_the_word_lists_are_those_of_the_records():
    words = set(v.OWNERSHIP_WORDS + v.FINGERPRINT_WORDS + v.BACKDOOR_WORDS)
    assert words == {"owned", "not-shown", "refuted", "kept", "reduced", "claim-lost", "suppressed",
                     "removed", "ruined", "undecided"}  # fmt: skip


# -- the score of sanitisers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("utility", "asr", "score"), [(0.81, 0.0, 90.0), (0.5, 0.5, 50.0), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (1, 0, 100)]
)
def test_the_score_is_the_geometric_mean_of_what_is_kept_and_what_is_gone(utility, asr, score):
    assert v.sanitising_score(utility, asr) == pytest.approx(score)


def test_percentages_are_refused():
    with pytest.raises(ValueError, match="utility is a share in"):
        v.sanitising_score(90.0, 0.1)
