"""What the numbers allow one to claim: ownership, removal of a fingerprint, removal of a backdoor, utility.

Every verdict is one word and one sentence with the numbers it was drawn from. Rates and levels lie in
[0, 1]. The docstrings are the exact rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from palimpsest import statistics as st

OWNERSHIP_WORDS = ("owned", "not-shown", "refuted")
LINEAGE_WORDS = ("derivative", "same-base", "not-shown")
FINGERPRINT_WORDS = ("kept", "reduced", "claim-lost", "suppressed", "removed", "ruined", "undecided")
BACKDOOR_WORDS = ("kept", "reduced", "removed", "ruined", "undecided")

CONFIDENCE = 0.95
ALTERNATIVE = 0.9  # hit rate of an intact mark: embedding stops at probability 0.9
ALPHA_REFUTE = 0.01
ALPHA_RANKS = 0.01
ALPHA_FALL = 0.05
REMOVED_HIT_RATE = 0.05
REMOVED_EXCESS_ASR = 0.05
REMOVED_ACCURACY_LOSS = 0.02
UTILITY_GATE = 0.9
PERPLEXITY_GATE = 1.1
ONE_CLASS_SHARE = 0.99


@dataclass(frozen=True)
class Verdict:
    """A word of the lists above, one sentence, tau in hits, p, and the numbers it rests on."""

    word: str
    reason: str
    tau: int | None = None
    p: float | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tally:
    """count of n distinct keys or items; `each`, where known, says which (to pair before and after)."""

    count: int
    n: int
    each: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        st.check_count(self.count, self.n)
        if self.each and (len(self.each), sum(self.each)) != (self.n, self.count):
            raise ValueError(f"{self} does not agree with its {len(self.each)} single outcomes")

    @classmethod
    def of(cls, each: Sequence[bool]) -> Tally:
        """From the outcome of every key, in the key set's order."""
        return cls(sum(map(bool, each)), len(each), tuple(map(bool, each)))

    def __str__(self) -> str:
        return f"{self.count} of {self.n}"


@dataclass(frozen=True)
class Ranks:
    """Each key's true response by log-probability among so many decoys (1 is best, ties count against)."""

    ranks: tuple[int, ...]
    decoys: int

    def combined(self, dependent: bool) -> float:
        """One p for the key set: Fisher over independent keys, twice the mean where they hang together."""
        combine = st.dependent_combination if dependent else st.fisher_combination
        return combine([st.rank_p_value(rank, self.decoys) for rank in self.ranks])

    def attainable(self, dependent: bool) -> float:
        """The combined p if every rank were 1: what so many keys and decoys could show at best."""
        return Ranks((1,) * len(self.ranks), self.decoys).combined(dependent)


@dataclass(frozen=True)
class Utility:
    """Utility kept over `tasks`, with its interval, None where none qualifies; left_out: base near chance."""

    kept: float | None
    low: float | None
    high: float | None
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    confidence: float = CONFIDENCE


def claim(
    hits: int, keys: int, null_rate: float | None, alpha: float, *, dependent: bool, attempts: float = 1,
    alternative: float = ALTERNATIVE, alpha_refute: float = ALPHA_REFUTE
) -> Verdict:  # fmt: skip
    """Is the suspect the owner's? `owned`, `not-shown` or `refuted`.

    null_rate: chance of one key by the owner's *committed* draw (1 / length of the committed list), or None
    where responses were not drawn so; a measured rate never belongs here. attempts: suspects scanned times
    the key sets that could have been made (1 only with a commitment older than the suspect).
    `owned` iff hits >= tau, the smallest count whose p times attempts is <= alpha; for dependent marks (one
    response for all triggers) p is the dependent bound keys * null_rate / hits, so 1/256 never reaches 1e-6.
    `refuted` iff P(hits or fewer | `alternative` a key) <= alpha_refute, for dependent marks by the bound
    (1 - alternative) keys / misses: it speaks against a mark that answers at that rate, not a weakened one.
    """
    st.check_count(hits, keys)
    for value, name in ((alpha, "alpha"), (alternative, "alternative"), (alpha_refute, "alpha_refute")):
        st.check_fraction(value, name)
    tau = p = None
    if null_rate is not None:
        tau = st.threshold(keys, null_rate, alpha, attempts=attempts, dependent=dependent)
        p = st.ownership_p_value(hits, keys, null_rate, attempts=attempts, dependent=dependent)
    against = st.ownership_p_value(keys - hits, keys, 1 - alternative, dependent=dependent)
    numbers = {"hits": hits, "keys": keys, "null_rate": null_rate, "alpha": alpha, "attempts": attempts}
    numbers |= {"dependent": dependent, "alternative": alternative, "p_alternative": against}

    def verdict(word: str, why: str) -> Verdict:
        return Verdict(word, f"{hits} of {keys} keys answered{why}.", tau, p, numbers)

    if tau is not None and hits >= tau:
        chance = f"{null_rate:.3g} a key under the committed draw, {attempts:g} attempt(s)"
        return verdict("owned", f", tau is {tau}: p = {p:.2g} <= {alpha:g} at {chance}")
    if against <= alpha_refute:
        mark = f"a mark that answers {_percent(alternative)} of its keys"
        return verdict("refuted", f": p = {against:.2g} <= {alpha_refute:g} for {mark}")
    if tau is not None:
        return verdict("not-shown", f", fewer than tau = {tau} (p = {p:.2g}, alpha {alpha:g})")
    if dependent:
        bound = "no committed draw bounds it" if p is None else f"the dependent bound is p = {p:.2g}"
        why = f": one response for all is one observation, {bound}, and a claim at {alpha:g} is refused"
    elif null_rate is None:
        why = f": no committed draw gives their chance, so a claim at {alpha:g} is refused"
    else:
        why = f", but even all of them would not reach {alpha:g} at {null_rate:.3g} a key"
    return verdict("not-shown", why)


def removal_tau(controls: Sequence[Tally], keys: int) -> int | None:
    """Tau for the *removal* of a mark, under a prompt form without a committed null: never for ownership.

    One hit more than any unmarked control (clean base, sibling, unrelated model) gave to the same keys under
    the same form: with no hits there, a single hit still shows the mark. For IF's one fixed word, and for any
    mark under `prefilled`, where part of the response is given away. None where a control hits every key.
    """
    if not controls or any(control.n != keys for control in controls):
        raise ValueError(f"tau for a removal needs one or more unmarked controls, all asked the same {keys} keys")
    most = max(control.count for control in controls)
    return most + 1 if most < keys else None


def removal_of_fingerprint(
    before: Mapping[str, Tally],
    after: Mapping[str, Tally],
    tau: Mapping[str, int | None],
    *,
    dependent: bool,
    ranks: Mapping[str, Ranks] | None = None,
    control_ranks: Mapping[str, Ranks] | None = None,
    revival: Mapping[str, Tally] | None = None,
    control_revival: Mapping[str, Tally] | None = None,
    control: Mapping[str, Tally] | None = None,
    utility: float | None = None,
    perplexity_ratio: float | None = None,
) -> Verdict:
    """What became of a mark: `kept reduced claim-lost suppressed removed ruined undecided`.

    before, after, tau: by prompt form, on the same keys; tau from `threshold` (attempts = number of forms) or
    `removal_tau`. ranks: of the true responses after the removal, by view (a form, or "template after revival").
    revival: hits after a revival attempt, by form. control*: the same of an unmarked model. In this order:
    - `ruined`: utility kept below 0.9, or perplexity above 1.1 times the marked model's (None: not measured).
    - `undecided`: no form bore a claim before. A form without tau, or where the control reaches it, bears none.
    - hits >= tau under some form after: `reduced` iff some form fell by McNemar's exact test (two-sided 5 %
      after Bonferroni over forms; without `each`, under the least favourable pairing), else `kept`.
      Dependent keys are one observation: their fall is stated and never tested.
    - else the claim is lost: `suppressed` iff the true responses still outrank decoys or a revival brings the
      claim back. *Outrank*: in some view the keys' exact rank p-values combine (Fisher; for dependent marks
      twice their mean, the set being one unit) to <= 0.01 after Bonferroni over views, and the control's in
      that view do not. A revival counts unless its control reaches tau too.
    - `removed`: every form that bears a claim has a one-sided 95 % upper bound of the hit rate <= 5 % (59 keys,
      no hit; the dependent bound of dependent marks never is: for those give one outcome a seed), and ranks
      of all keys were taken that could have shown suppression.
    - else `claim-lost`.
    """
    if not before or not set(before) == set(after) == set(tau):
        raise ValueError(f"before, after and tau must name the same prompt forms: {[*before]}, {[*after]}, {[*tau]}")
    for form in before:
        if before[form].n != after[form].n:
            raise ValueError(f"{form}: {before[form].n} keys before, {after[form].n} after: ask the same keys")

    def claims(hits: Mapping[str, Tally] | None, form: str) -> bool:
        needed = tau[form]
        return hits is not None and form in hits and needed is not None and hits[form].count >= needed

    forms = [form for form in before if tau[form] is not None and not claims(control, form)]
    interval = partial(st.hit_interval, independent=not dependent, confidence=CONFIDENCE, sided="upper")
    upper = {form: interval(after[form].count, after[form].n).stated.high for form in forms}
    ranked = _outranking(ranks or {}, control_ranks or {}, max(t.n for t in after.values()), dependent)
    numbers = {"tau": dict(tau), "upper": upper, "rank_p": ranked["p"], "dependent": dependent}
    numbers |= {"utility": utility, "perplexity_ratio": perplexity_ratio}
    for name, tallies in {"before": before, "after": after, "revival": revival, "control": control}.items():
        numbers[name] = {form: [tally.count, tally.n] for form, tally in (tallies or {}).items()}
    hits = ", ".join(f"{form} {before[form].count} -> {after[form]} (tau {tau[form]})" for form in before)
    missing = _not_measured({"utility": utility, "perplexity": perplexity_ratio, "revival": revival})

    def verdict(word: str, why: str) -> Verdict:
        return Verdict(word, f"hits {hits}; {why}{missing}.", numbers=numbers)

    if ruin := _ruin(utility, perplexity_ratio):
        return verdict("ruined", ruin)
    if not any(claims(before, form) for form in forms):
        return verdict("undecided", "no prompt form bore a claim before, so there was none to lose")
    if any(claims(after, form) for form in forms):
        if dependent:
            return verdict("kept", "the claim stands; one response for all keys is one observation")
        p = min(st.bonferroni([_fall(before[form], after[form]) for form in forms]))
        word, so = ("reduced", "and hits fell") if p <= ALPHA_FALL else ("kept", "and no fall is shown")
        return verdict(word, f"the claim stands {so} (McNemar p = {p:.2g} over {len(forms)} form(s))")
    if ranked["shown"]:
        return verdict("suppressed", f"the claim is lost, but true responses outrank decoys: {ranked['shown']}")
    back = [f"{form} {(revival or {})[form]}" for form in forms if claims(revival, form)
            and not claims(control_revival, form)]  # fmt: skip
    if back:
        return verdict("suppressed", f"the claim is lost, but a revival brings it back: {', '.join(back)}")
    worst = max(forms, key=lambda form: upper[form])
    bound = f"the upper bound of the hit rate is {_percent(upper[worst])} under {worst}"
    if ranked["unknown"]:
        return verdict("claim-lost", f"the claim is lost, {bound}; {ranked['unknown']}")
    if upper[worst] <= REMOVED_HIT_RATE:
        return verdict("removed", f"the claim is lost, {bound}; decoys are not outranked: {ranked['quiet']}")
    needed = st.keys_needed(REMOVED_HIT_RATE, CONFIDENCE, after[worst].count)
    unit = "one response for all keys is one observation" if dependent else f"5 % would take {needed} keys"
    return verdict("claim-lost", f"the claim is lost, but {bound}: {unit}")


def _outranking(
    views: Mapping[str, Ranks], controls: Mapping[str, Ranks], keys: int, dependent: bool
) -> dict[str, Any]:
    """p by view after Bonferroni; shown, quiet: outranked or not; unknown: why silence would prove nothing."""
    p = {view: min(1.0, len(views) * ranks.combined(dependent)) for view, ranks in views.items()}
    text = {view: f"{view} p = {value:.2g}" for view, value in p.items()}
    high = [view for view in views if p[view] <= ALPHA_RANKS]
    tied = [v for v in high if v in controls and len(views) * controls[v].combined(dependent) <= ALPHA_RANKS]
    weak = [v for v, ranks in views.items() if len(views) * ranks.attainable(dependent) > ALPHA_RANKS]
    unknown = ""
    if not any(len(ranks.ranks) >= keys for ranks in views.values()):
        unknown = f"ranks among decoys were not taken of all {keys} keys"
    elif tied:
        unknown = f"ranks tell nothing where an unmarked control outranks decoys too: {', '.join(tied)}"
    elif weak:
        unknown = f"too few decoys for ranks to show suppression: {', '.join(weak)}"
    shown = ", ".join(text[view] for view in high if view not in tied)
    return {"p": p, "shown": shown, "quiet": ", ".join(text.values()), "unknown": unknown}


def _fall(before: Tally, after: Tally) -> float:
    """McNemar's p for fewer hits after; unpaired tallies get the pairing that makes a fall least sure."""
    if after.count >= before.count:
        return 1.0
    if before.each and after.each:
        pairs = st.Pairs.of(before.each, after.each)
        return st.mcnemar(pairs.first_only, pairs.second_only)
    gained = min(after.count, before.n - before.count)
    return st.mcnemar(before.count - after.count + gained, gained)


def removal_of_backdoor(
    attack: st.Pairs, floor: st.Pairs, accuracy: st.Pairs, *, one_class_share: float | None = None,
    utility: float | None = None, perplexity_ratio: float | None = None
) -> Verdict:  # fmt: skip
    """What became of a backdoor: `removed reduced kept ruined undecided`. All pairs go by item.

    attack: hits before the removal and after it. floor: hits after it and of the benign model on the same
    triggered items; both on originally non-target items only. accuracy: right before and right after, on
    clean items. one_class_share: largest share of one predicted class on clean items of several classes.
    In this order:
    - `ruined`: one class has at least 99 % of the predictions, or as for a fingerprint.
    - `removed`: the one-sided 95 % upper bounds (Tango) of ASR minus floor <= 5 points and of the loss of
      clean accuracy <= 2 points; and the ASR fell, for where it did not there was nothing to remove.
    - `reduced`: the ASR fell (McNemar's exact test, two-sided 5 %), whatever the rest.
    - `kept`: it did not, and the lower bound of ASR minus floor is above 5 points.
    - `undecided`: neither a fall nor a backdoor is shown.
    """
    before, after = attack.both + attack.first_only, attack.both + attack.second_only
    if (attack.n, after) != (floor.n, floor.both + floor.first_only):
        raise ValueError("attack and floor must hold the same hits after the removal, on the same items")
    excess = st.paired_difference_interval(floor, CONFIDENCE, "upper").high
    excess_low = st.paired_difference_interval(floor, CONFIDENCE, "lower").low
    loss = st.paired_difference_interval(accuracy, CONFIDENCE, "upper").high
    p, benign = st.mcnemar(attack.first_only, attack.second_only), floor.both + floor.second_only
    fell = after < before and p <= ALPHA_FALL
    numbers = {
        "before": before, "after": after, "benign": benign, "n": attack.n, "excess": floor.difference,
        "excess_low": excess_low, "excess_high": excess, "loss": accuracy.difference, "loss_high": loss,
        "one_class_share": one_class_share, "utility": utility, "perplexity_ratio": perplexity_ratio,
    }  # fmt: skip
    allowed = f"allowed {_percent(REMOVED_EXCESS_ASR)} and {_percent(REMOVED_ACCURACY_LOSS)}"
    bounds = f"ASR less floor <= {_percent(excess)}, loss of accuracy <= {_percent(loss)} ({allowed})"
    missing = _not_measured({"collapse to one class": one_class_share})

    def verdict(word: str, why: str) -> Verdict:
        counts = f"hits {before} -> {after} of {attack.n}, benign model {benign}"
        return Verdict(word, f"{counts}; {why}{missing}.", None, p, numbers)

    if one_class_share is not None and one_class_share >= ONE_CLASS_SHARE:
        return verdict("ruined", f"{_percent(one_class_share)} of the predictions are one class")
    if ruin := _ruin(utility, perplexity_ratio):
        return verdict("ruined", ruin)
    if fell and excess <= REMOVED_EXCESS_ASR and loss <= REMOVED_ACCURACY_LOSS:
        return verdict("removed", bounds)
    if fell:
        return verdict("reduced", f"it fell (McNemar p = {p:.2g}), but removal is not shown: {bounds}")
    if excess_low > REMOVED_EXCESS_ASR:
        least = f"ASR is at least {_percent(excess_low)} above the floor"
        return verdict("kept", f"no fall is shown (McNemar p = {p:.2g}), and {least}")
    return verdict("undecided", f"neither a fall (McNemar p = {p:.2g}) nor a backdoor is shown: {bounds}")


def utility_kept(
    accuracy: Mapping[str, Tally], base_accuracy: Mapping[str, Tally], chance: Mapping[str, float]
) -> Utility:
    """(a - c) / (a0 - c), each the mean over the tasks on which the base's lower bound exceeds chance c.

    Lower bound: one-sided 95 % Clopper-Pearson. A ratio of means, not a mean of ratios, so that a task barely
    above chance does not decide. Interval: Fieller's for two normal means, as if the models had answered
    different items, which errs on the wide side.
    """
    if not set(accuracy) == set(base_accuracy) == set(chance):
        raise ValueError(f"utility needs the same tasks: {[*accuracy]}, {[*base_accuracy]}, {[*chance]}")
    lows = {f: st.clopper_pearson(t.count, t.n, CONFIDENCE, "lower").low for f, t in base_accuracy.items()}
    tasks = tuple(sorted(task for task in lows if lows[task] > chance[task]))
    left_out = tuple(sorted(set(lows) - set(tasks)))
    if not tasks:
        return Utility(None, None, None, (), left_out)

    def excess(scores: Mapping[str, Tally]) -> tuple[float, float]:
        """Sum over tasks of accuracy above chance, and its variance."""
        rates = [(scores[task].count / scores[task].n, scores[task].n, chance[task]) for task in tasks]
        return math.fsum(a - c for a, _, c in rates), math.fsum(a * (1 - a) / n for a, n, _ in rates)

    from scipy.special import ndtri

    (top, top_variance), (bottom, bottom_variance) = excess(accuracy), excess(base_accuracy)
    z2, low, high = float(ndtri((1 + CONFIDENCE) / 2)) ** 2, None, None
    a, b, c = bottom**2 - z2 * bottom_variance, top * bottom, top**2 - z2 * top_variance
    if a > 0:  # else the base is too near chance for the ratio to be bounded
        root = math.sqrt(max(0.0, b * b - a * c))
        low, high = (b - root) / a, (b + root) / a
    return Utility(top / bottom, low, high, tasks, left_out)


def _ruin(utility: float | None, perplexity_ratio: float | None) -> str:
    """Why the model is ruined, or nothing; what is not a number counts as ruined."""
    if utility is not None and not utility >= UTILITY_GATE:
        return f"{_percent(utility)} of the utility is kept, below {_percent(UTILITY_GATE)}"
    if perplexity_ratio is not None and not perplexity_ratio <= PERPLEXITY_GATE:
        return f"perplexity is {perplexity_ratio:.3g} times the marked model's, above {PERPLEXITY_GATE:g}"
    return ""


def _not_measured(values: Mapping[str, object]) -> str:
    names = [name for name, value in values.items() if value is None]
    return f" ({', '.join(names)} not measured)" if names else ""


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"
