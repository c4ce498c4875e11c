"""From the harness's results to records: count, interval, the level that needs no model, item-wise outcomes."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from palimpsest.measures.tasks.harness import Evaluated, harness_version
from palimpsest.records import Record
from palimpsest.statistics import clopper_pearson

if TYPE_CHECKING:
    from palimpsest.measures.subject import Subject

RESAMPLES = 400
BASELINES = ("chance", "majority", "shortest")  # accuracies that need no model
BOOTSTRAP = f"percentile bootstrap over items, {RESAMPLES} resamples"


def records_of(subject: Subject, found: Evaluated, limit: int | None) -> list[Record]:
    """One record a metric: `accuracy` for the harness's `acc`, the harness's own name for any other.

    A metric that is the mean of zeros and ones has its count, its Clopper-Pearson interval and the item-wise outcomes
    (`detail.right`); any other (F1, Matthews' correlation, perplexity) a bootstrap interval. `detail.chance` is 1 over
    the number of choices, averaged over items; `detail.majority` the share of the most frequent class where the classes
    are the same for all items, `detail.shortest` that of items whose shortest choice is right where they are not.
    """
    detail = {
        "harness": harness_version(),
        "version": found.ready.task.VERSION,
        "prompt_form": found.ready.prompt_form,
        "scorer": found.scorer,
        "fewshot": found.fewshot,
        "split": found.ready.split,
        "source": found.ready.source,
        "chance": chance(found),
        "majority": majority(found),
        "shortest": shortest(found),
        "limit": limit,
        "positions": found.positions,
        "items_cut": found.cut,
    }
    detail = {name: value for name, value in detail.items() if value is not None}
    records = []
    for key, value in found.results.items():
        metric, _, name = key.partition(",")
        if not name or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        samples = [s for s in found.samples if s.get("filter", "none") == name and metric in s]
        filtered = {} if name == "none" else {"filter": name}
        numbers = _numbers([s[metric] for s in samples], float(value), found.ready.task.aggregation().get(metric))
        records.append(_record(subject, found, metric, numbers, {**detail, **filtered}))
    if found.ready.name == "multirc":
        records += [_record(subject, found, *named, detail) for named in multirc(found.samples).items()]
    return records


def _record(subject: Subject, found: Evaluated, metric: str, numbers: dict[str, Any], detail: dict[str, Any]) -> Record:
    more = numbers.pop("detail", {})
    if metric != "acc":
        detail = {k: v for k, v in detail.items() if k not in BASELINES or metric.startswith("acc")}
    return subject.record(
        "accuracy" if metric == "acc" else metric,
        task=found.ready.name,
        confidence=0.95,
        sided="two",
        seconds=found.seconds,
        tokens=found.tokens,
        detail={**detail, "metric": metric, **more},
        **numbers,
    )


def _numbers(values: Sequence[Any], value: float, aggregate: Callable[[Any], float] | None) -> dict[str, Any]:
    """value, n and interval of a metric's item-wise values."""
    if values and all(isinstance(v, int | float) and v in (0, 1) for v in values):
        count = int(sum(values))
        if abs(count / len(values) - value) < 1e-9:
            interval = clopper_pearson(count, len(values))
            right = "".join(str(int(v)) for v in values)
            return {
                "value": count / len(values), "count": count, "n": len(values), "low": interval.low,
                "high": interval.high, "detail": {"right": right},
            }  # fmt: skip
    low, high = bootstrap(values, aggregate) if aggregate is not None else (None, None)
    return {"value": value, "n": len(values), "low": low, "high": high, "detail": {"interval": BOOTSTRAP}}


def bootstrap(values: Sequence[Any], aggregate: Callable[[Any], float]) -> tuple[float | None, float | None]:
    """95 % percentile interval of a metric over items; none under ten items."""
    if len(values) < 10:
        return None, None
    draw = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample may lack a class
        drawn = sorted(float(aggregate(draw.choices(values, k=len(values)))) for _ in range(RESAMPLES))
    cut = int(0.025 * RESAMPLES)
    return drawn[cut], drawn[RESAMPLES - 1 - cut]


# -- what needs no model ------------------------------------------------------------------------------


def chance(found: Evaluated) -> float | None:
    """1 over the number of choices, averaged over items exactly; 0 for tasks without choices."""
    task = found.ready.task
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0.0 if task.OUTPUT_TYPE in ("loglikelihood", "generate_until") else None
    shares = [Fraction(1, len(task.doc_to_choice(s["doc"]))) for s in found.samples]
    return float(sum(shares, Fraction(0)) / len(shares)) if shares else None


def majority(found: Evaluated) -> float | None:
    """Accuracy of always giving the most frequent class, where all items have the same classes; else None.

    Classes are what the choices of an item end with, after what they begin with in common: "yes" and "no" also in
    MultiRC, whose choices repeat the answer that is judged.
    """
    answers = _answers(found)
    if not answers or len({_endings(choices) for choices, _ in answers}) > 1:
        return None
    return max(Counter(gold for _, gold in answers).values()) / len(answers)


def shortest(found: Evaluated) -> float | None:
    """Accuracy of always giving the shortest choice (characters; the first of equals), where items have their own.

    Scores that are sums over tokens favour short choices, so a model may have this without knowing anything.
    """
    answers = _answers(found)
    if not answers or len({_endings(choices) for choices, _ in answers}) == 1:
        return None
    lengths = [([len(c) for c in choices], gold) for choices, gold in answers]
    return sum(of.index(min(of)) == gold for of, gold in lengths) / len(answers)


def _answers(found: Evaluated) -> list[tuple[list[str], int]] | None:
    """Choices and number of the right one, of all items; None where there are none, or several are right."""
    task = found.ready.task
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    answers = []
    for sample in found.samples:
        choices = [str(c) for c in task.doc_to_choice(sample["doc"])]
        gold = task.doc_to_text(sample["doc"]) if task.multiple_input else task.doc_to_target(sample["doc"])
        gold = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
        if not isinstance(gold, int):
            return None
        answers.append((choices, gold))
    return answers


def _endings(choices: Sequence[str]) -> tuple[str, ...]:
    """What the choices end with, after what they begin with in common."""
    shared = _shared(choices)
    return tuple(c[shared:] for c in choices)


def _shared(choices: Sequence[str]) -> int:
    """How many characters all choices begin with in common."""
    first, last = min(choices), max(choices)
    differ = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(differ, min(len(first), len(last)))


# -- MultiRC ------------------------------------------------------------------------------------------


def multirc(samples: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """SuperGLUE's own two numbers of MultiRC from the same scores, which the harness's form does not give.

    `em`: share of questions of which every answer is judged right; `f1a`: F1 over all answers of the class "correct".
    An answer is judged correct where "yes" is likelier than "no". (The harness's `acc` in 0.4.13 takes choice number
    `label`, which is "yes" for label 0, "not correct": where a model judges well it is low.)
    """
    questions: dict[tuple[int, int], list[bool]] = {}
    pairs: list[tuple[int, int]] = []
    for sample in samples:
        said = [str(a[1]).rstrip().endswith("yes") for a in sample["arguments"]]
        scores = [r[0] for r in sample["filtered_resps"]]
        judged = int(said[scores.index(max(scores))])
        idx, label = sample["doc"]["idx"], int(sample["doc"]["label"])
        questions.setdefault((idx["paragraph"], idx["question"]), []).append(judged == label)
        pairs.append((label, judged))
    exact = [int(all(answers)) for answers in questions.values()]
    by_chance = float(sum((Fraction(1, 2 ** len(a)) for a in questions.values()), Fraction(0)) / len(questions))
    em = _numbers(exact, sum(exact) / len(exact), None)
    em["detail"] |= {"chance": by_chance, "of": "questions"}
    return {"em": em, "f1a": _numbers(pairs, f1(pairs), f1)}


def f1(pairs: Sequence[tuple[int, int]]) -> float:
    """F1 of class 1 over (label, judged) pairs; 0 where there is no true positive."""
    both = sum(a and b for a, b in pairs)
    return 2 * both / (sum(a for a, _ in pairs) + sum(b for _, b in pairs)) if both else 0.0
