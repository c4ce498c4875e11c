"""What each kind of claim takes, as a sentence, tables and plain numbers; `planning` reads the claim's words.

Sizes and chances are those of `statistics.planning`, by the very rules by which the verdicts are drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from palimpsest import statistics as st
from palimpsest.statistics import planning as size
from palimpsest.verdicts.verdict import ALPHA_OWNED, ALPHA_REFUTE, ALTERNATIVE, CONFIDENCE, REMOVED_HIT_RATE, percent

POWER = 0.8
ALLOWED = (0, 1, 2, 3, 5, 10)  # hits allowed in the table of rates
DISCORDANCES = (0.02, 0.05, 0.1, 0.2, 0.3)
TRUE_RATES = (ALTERNATIVE, 0.5, 0.3, 0.1)  # hit rates at which a claim of ownership is looked at
EFFECTS = (0.8, 1.0, 1.5, 2.0, 3.0)  # differences between two methods, in standard deviations over seeds
LARGEST_SEQUENTIAL = 512  # keys up to which the sequential boundary is computed


@dataclass(frozen=True)
class PlanTable:
    """A table to read: heading, columns, rows of words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plan:
    """answer: one sentence. tables: more of it. notes: what it rests on. numbers: all of it as plain values."""

    claim: str
    answer: str
    tables: tuple[PlanTable, ...] = ()
    notes: tuple[str, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """What surrounds a claim; None where the claim's own default is meant.

    confidence of bounds; power: wanted chance to succeed; rate: the true rate (or accuracy, or A's) one expects;
    keys, choices, distinct: of a fingerprint, its committed list (places: responses one answer can hold); attempts:
    suspects scanned times key sets that could have been made; difference: true difference (or loss); discordance:
    share of items that change; chance: level of guessing; alpha: of ownership, or of a comparison; rows: of the
    table in which the claim stands; paired: seeds that share all but the method; spread: standard deviation over seeds.
    """

    confidence: float = CONFIDENCE
    power: float = POWER
    rate: float | None = None
    keys: int | None = None
    choices: float | None = None
    distinct: bool = True
    places: int = 1
    attempts: float = 1
    difference: float | None = None
    discordance: float | None = None
    chance: float | None = None
    alpha: float | None = None
    rows: int = 1
    paired: bool = False
    spread: float | None = None


def bounded(words: str, bound: float, ask: Ask, above: bool = False, unit: str = "prompts") -> Plan:
    """A hit rate below a bound; `above`: above it, where misses are counted in the place of hits."""
    what, sign = ("misses", ">") if above else ("hits", "<")
    true = None if ask.rate is None else (1 - ask.rate if above else ask.rate)
    rates = [true] if true is not None else [bound / 10, bound / 2]
    shown = [1 - r if above else r for r in rates]
    table, raw = [], []
    for hits in ALLOWED:
        n = st.keys_needed(bound, ask.confidence, hits)
        chances = [size.chance_of_at_most(hits, n, r) for r in rates]
        table.append((str(hits), f"{n:,}", *map(_chance, chances)))
        raw.append({what: hits, "n": n, "chances": chances})
    numbers: dict[str, Any] = {"bound": 1 - bound if above else bound, "confidence": ask.confidence, "allowed": raw}
    numbers |= {"rates": shown}
    first = raw[0]["n"]
    answer = f"{first:,} {unit}, {'all' if above else 'none'} of them answered"
    answer += f": that shows {words} with {percent(ask.confidence)} confidence."
    for r, s in zip(rates, shown, strict=True):
        if true is None and r == rates[1]:
            continue
        n, hits, chance = size.keys_for_bound(bound, r, ask.power, ask.confidence)
        numbers |= {"n": n, "hits": hits, "chance": chance, "power": ask.power, "rate": s}
        given = f"If the true rate is {percent(s)}"
        answer += f" {given}, plan {n:,} and allow {hits} {_many(what, hits)}; "
        answer += f"the chance to succeed is then {_chance(chance)}."
    columns = (f"{what} allowed", unit, *(f"chance, true rate {percent(s)}" for s in shown))
    return Plan(
        words,
        answer,
        (PlanTable(f"{unit[0].upper()}{unit[1:]} for an exact one-sided bound {sign} {percent(numbers['bound'])}",
                   columns, tuple(table)),),
        (
            f"Decide on the number of {unit} and of {what} allowed before asking; asking on until it fits is no test.",
            f"The {unit} must be different and drawn alike: under greedy decoding the same one asked again is the same "
            "observation, and the bound speaks of new ones of the same kind.",
            "A mark with one response for all its triggers is one observation however many keys it has: count seeds.",
        ),
        numbers,
    )  # fmt: skip


def removed(words: str, ask: Ask) -> Plan:
    """The hit-rate part of the verdict `removed` of a fingerprint."""
    made = bounded(words, REMOVED_HIT_RATE, ask, unit="keys")
    head = made.answer.split(": that shows")[0]
    tail = made.answer.split("confidence.", 1)[1]
    bound = f"the one-sided {percent(ask.confidence)} bound of the hit rate is then at most {percent(REMOVED_HIT_RATE)}"
    notes = (
        "removed also needs that the true responses no longer outrank decoys (rank, of all keys), that no revival "
        "brings the claim back, and that the model keeps 90 % of its utility; fewer keys can only show claim-lost.",
        *made.notes[1:],
    )
    return Plan(words, f"{head}: {bound}, under every prompt form.{tail}", made.tables, notes, made.numbers)


def owned(words: str, ask: Ask) -> Plan:
    """Tau at a false-claim rate, the chance to reach it, and what asking one key after the other saves."""
    alpha, keys = ask.alpha or ALPHA_OWNED, ask.keys
    if keys is None:
        raise ValueError("say which keys: --keys K --choices N (length of the committed list), or --implant NAME")
    if ask.choices is None or not ask.distinct:
        why = "one response for all triggers is one observation" if not ask.distinct else "no committed draw is known"
        raise ValueError(f"{why}, so no number of hits bears a claim at {alpha:g}; keys need responses drawn apart "
                         "from a committed list (--choices)")  # fmt: skip
    if ask.choices <= ask.places:
        raise ValueError(f"a committed list of {ask.choices:g} answers proves nothing")
    null = ask.places / ask.choices
    tau = st.threshold(keys, null, alpha, attempts=ask.attempts)
    scanned = f" after {ask.attempts:g} attempts" if ask.attempts > 1 else ""
    numbers: dict[str, Any] = {"keys": keys, "choices": ask.choices, "null_rate": null, "alpha": alpha}
    numbers |= {"attempts": ask.attempts, "tau": tau}
    by_keys = [
        (k, st.threshold(k, null, alpha, attempts=ask.attempts))
        for k in sorted({2, 4, 8, 10, 16, 32, 64, keys} - ({2, 4} if tau is not None else set()))
    ]
    more = PlanTable("Hits needed (tau) by the number of keys", ("keys", "tau"),
                     tuple((str(k), "out of reach" if t is None else str(t)) for k, t in by_keys))  # fmt: skip
    if tau is None:
        fewest = next(k for k in range(1, 10_000) if st.threshold(k, null, alpha, attempts=ask.attempts) is not None)
        answer = f"Not possible: {keys} keys, all of them answered, have p = "
        answer += f"{st.ownership_p_value(keys, keys, null, attempts=ask.attempts):.2g}{scanned}, above {alpha:g}. "
        answer += f"At least {fewest} keys are needed."
        return Plan(words, answer, (more,), (), {**numbers, "fewest": fewest})
    p = st.ownership_p_value(tau, keys, null, attempts=ask.attempts)
    answer = f"tau = {tau}: {tau} or more hits of {keys} keys bear a claim at a false-claim rate of {alpha:g}{scanned} "
    answer += f"(exact p = {p:.2g})."
    rates = (ask.rate,) if ask.rate is not None else TRUE_RATES
    fixed = [1 - size.chance_of_at_most(tau - 1, keys, r) for r in rates]
    columns: tuple[str, ...] = ("true hit rate", "chance to claim, all keys asked")
    rows: list[tuple[str, ...]] = [(percent(r), _chance(c)) for r, c in zip(rates, fixed, strict=True)]
    numbers |= {"p": p, "rates": list(rates), "chance": fixed}
    notes = [
        "The null is the owner's committed draw, so p is exact for any fixed suspect; the commitment must be older "
        "than the suspect, and each further suspect or set of keys is a further attempt (--attempts)."
    ]
    if keys <= LARGEST_SEQUENTIAL and null < ALTERNATIVE:
        upper = st.sequential_boundary(keys, null, alpha / ask.attempts, ALTERNATIVE, exact=True)
        lower = st.refuting_boundary(keys, null, ALPHA_REFUTE, ALTERNATIVE)
        runs = [st.stopping(upper, r, lower) for r in rates]
        false = ask.attempts * st.stopping(upper, null, lower).claimed
        first = next((m for m, needed in enumerate(upper, 1) if needed is not None), None)
        numbers["sequential"] = {
            "boundary": list(upper), "refuting": list(lower), "false_claims": false, "alternative": ALTERNATIVE,
            "expected_queries": [r.expected for r in runs], "chance": [r.claimed for r in runs],
            "refuted": [r.refuted for r in runs], "unmarked_queries": st.stopping(upper, null, lower).expected,
        }  # fmt: skip
        columns += ("one after the other: chance to claim", "refuted", "queries on average")
        rows = [(*row, _chance(r.claimed), _chance(r.refuted), f"{r.expected:.1f}")
                for row, r in zip(rows, runs, strict=True)]  # fmt: skip
        if first is not None:
            answer += f" Asked one after the other, a mark that answers {percent(ALTERNATIVE)} of its keys is "
            intact = st.stopping(upper, ALTERNATIVE, lower)
            answer += f"claimed after {intact.expected:.1f} queries on average (the earliest after {first}), "
            answer += f"and an unmarked model dropped after {numbers['sequential']['unmarked_queries']:.1f}."
        notes.append(
            f"One after the other: the order is fixed beforehand; a claim as soon as the exact boundary is reached "
            f"(false claims {false:.2g}), given up once a mark that answers {percent(ALTERNATIVE)} of its keys is "
            f"refuted at {ALPHA_REFUTE:g}. A weakened mark is therefore often given up: where queries cost nothing, "
            "ask all keys."
        )
    return Plan(
        words, answer, (PlanTable("Chance to claim", columns, tuple(rows)), more), tuple(notes), numbers
    )  # fmt: skip


def above_chance(words: str, ask: Ask) -> Plan:
    """Accuracy above guessing."""
    chance = 0.5 if ask.chance is None else ask.chance
    rates = [ask.rate] if ask.rate is not None else [chance + g * (1 - chance) for g in (0.05, 0.1, 0.2, 0.4)]
    items = [size.above_chance_items(chance, r, ask.power, ask.confidence) for r in rates]
    rows = tuple((percent(r), f"{n:,}") for r, n in zip(rates, items, strict=True))
    answer = f"{items[0]:,} items, if the true accuracy is {percent(rates[0])} and chance {percent(chance)}: then the "
    answer += (
        f"one-sided {percent(ask.confidence)} lower bound lies above chance in at least {_chance(ask.power)} of trials."
    )
    return Plan(
        words,
        answer,
        (PlanTable(f"Items for {percent(ask.power)} power", ("true accuracy", "items"), rows),),
        ("Utility counts only tasks on which the base passes this; items must be different and not in the training.",),
        {"chance_level": chance, "power": ask.power, "confidence": ask.confidence, "rates": rates, "items": items},
    )


def better(words: str, ask: Ask) -> Plan:
    """A better than B on the same items."""
    difference = 0.02 if ask.difference is None else ask.difference
    alpha = (ask.alpha or 1 - ask.confidence) / ask.rows
    given = [ask.discordance] if ask.discordance is not None else [d for d in DISCORDANCES if d > abs(difference)]
    items = [size.mcnemar_items(difference, d, ask.power, alpha) for d in given]
    rows = tuple((percent(d), f"{n:,}") for d, n in zip(given, items, strict=True))
    answer = f"{items[0]:,} items answered by both, if {percent(abs(difference))} of them is the true difference and "
    answer += f"{percent(given[0])} of the items are right for only one of the two: McNemar's exact test (two-sided "
    answer += f"{alpha:.3g}{_rows(ask)}) then shows it in at least {_chance(ask.power)} of trials."
    return Plan(
        words,
        answer,
        (PlanTable(f"Items for {percent(ask.power)} power at a true difference of {percent(abs(difference))}",
                   ("items right for one only", "items"), rows),),
        (
            "What counts is how many items change, not how many there are: a small trial tells the discordance.",
            "Two models on the same items with one training run each: this speaks of these two checkpoints. That one "
            "method beats another is a claim over seeds: `A beats B`.",
        ),
        {"difference": difference, "alpha": alpha, "power": ask.power, "discordances": given, "items": items},
    )  # fmt: skip


def within(words: str, margin: float, ask: Ask, floor: bool) -> Plan:
    """Loss of accuracy, or ASR less the benign floor: a one-sided bound of a paired difference within a margin."""
    true = 0.0 if ask.difference is None else ask.difference
    given = [ask.discordance] if ask.discordance is not None else [d for d in DISCORDANCES if d >= true]
    items, raw = [], []
    for d in given:
        if d < abs(true):
            raise ValueError(f"a true loss of {true:g} needs at least that share of items to change: {d:g}")
        lost, gained = (d + true) / 2, (d - true) / 2
        items.append(size.within_margin_items(margin, lost, gained, ask.power, ask.confidence))
        raw.append({"discordance": d, "lost": lost, "gained": gained, "n": items[-1]})
    least = st.keys_needed(margin, ask.confidence)
    said = "the ASR above the benign floor" if floor else "the loss of accuracy"
    changed = "hit in one of the two only" if floor else "right only before or only after"
    answer = f"{items[0]:,} items asked twice, if {percent(given[0])} of them are {changed} and the true difference is "
    answer += f"{percent(true)}: then {said} is shown to be at most {100 * margin:g} points in "
    answer += f"at least {_chance(ask.power)} of trials. Where no item changes at all, {least:,} are enough."
    rows = tuple((percent(d), f"{n:,}") for d, n in zip(given, items, strict=True))
    return Plan(
        words,
        answer,
        (PlanTable(f"Items for {percent(ask.power)} power at a true difference of {percent(true)}",
                   (f"items {changed}", "items"), rows),),
        ("The bound is Tango's score interval of the paired difference, one-sided, as in the verdict removed of a "
         "backdoor; the power is summed over all outcomes.",),
        {"margin": margin, "difference": true, "confidence": ask.confidence, "power": ask.power, "least": least,
         "plans": raw},
    )  # fmt: skip


def beats(words: str, ask: Ask) -> Plan:
    """A better than B over seeds."""
    alpha = ask.alpha or st.SIGNIFICANCE
    level = alpha / ask.rows
    least = size.seeds_for_exact(alpha, ask.rows, ask.paired)
    unit = "pairs of seeds" if ask.paired else "seeds a side"
    numbers: dict[str, Any] = {"alpha": alpha, "rows": ask.rows, "paired": ask.paired, "least": least}
    fewer = 2 / (2 ** (least - 1) if ask.paired else math.comb(2 * least - 2, least - 1))
    why = f"under {st.MINIMUM_SEEDS} seeds only describe"
    if fewer > level:
        why = f"with fewer the exact permutation test cannot reach {level:.3g}{_rows(ask)}, however far apart they lie"
    answer = f"At least {least} {unit}: {why}."
    effects: list[float] = list(EFFECTS)
    if ask.difference is not None and ask.spread:
        effects = [abs(ask.difference) / ask.spread]
    rows, raw = [], []
    for effect in effects:
        n = size.t_seeds(effect, ask.power, level, ask.paired)
        enough = size.t_power(least, effect, level, ask.paired)
        exact = size.permutation_power(least, effect, level, ask.paired) if least <= 8 else None
        raw.append({"effect": effect, "t_seeds": n, "t_power_at_least": enough, "exact_power_at_least": exact})
        rows.append((f"{effect:g}", str(n), _chance(enough), "–" if exact is None else f"{_chance(exact)}"))
    if len(effects) == 1:
        answer += f" For a difference of {effects[0]:.2g} standard deviations plan {raw[0]['t_seeds']} {unit} (t test, "
        answer += f"{percent(ask.power)} power)."
    columns = ("difference in standard deviations", f"{unit} for {percent(ask.power)} power (t)",
               f"power at {least}: t", f"power at {least}: exact")  # fmt: skip
    return Plan(
        words,
        answer,
        (PlanTable("Seeds by how far the two lie apart", columns, tuple(rows)),),
        (
            "Standard deviation: over the seeds of one method (of the differences, where seeds are paired). Settings "
            "are fixed on other seeds than those reported.",
            "Chances of t by the noncentral t distribution, of the exact test by 400 simulated normal studies (± 5 %).",
        ),
        {**numbers, "power": ask.power, "effects": raw},
    )


def _rows(ask: Ask) -> str:
    return f", Bonferroni over {ask.rows} rows" if ask.rows > 1 else ""


def _chance(value: float) -> str:
    """A chance as percent, and no 100 % that is not certain."""
    if 0.9995 < value < 1:
        return "> 99.9 %"
    return f"{100 * value:.3g} %" if value >= 1e-4 or not value else f"{100 * value:.1e} %"


def _many(what: str, count: int) -> str:
    """`hits`, or `hit` where there is one."""
    return {"hits": "hit", "misses": "miss"}[what] if count == 1 else what
