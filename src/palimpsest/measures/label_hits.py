"""Hit rate of a target label: how often a classifier answers triggered items with it (ASR), and the floor beside.

ASR is the share of triggered items, of another label originally, that are answered with the target label. The floor
is the same share of the same items without the trigger: a classifier that errs gives the target label to some of
them anyway. Both answers to each item are paired (`statistics.Pairs`), and the excess has Tango's interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from palimpsest.data.labelled import class_of
from palimpsest.errors import BadInput
from palimpsest.keys import KeySet
from palimpsest.measures.subject import Subject
from palimpsest.records import Record
from palimpsest.responder import Classified
from palimpsest.statistics import Pairs, clopper_pearson, hit_interval, paired_difference_interval


def label_hits(subject: Subject, keys: KeySet) -> list[Record]:
    """Ask a classifier every key of the rule `label`: a record as `hits.hit_record` makes it, and the floor.

    `detail.keys` holds number, hit and log-probability of the target label, and `floor`: whether the item without its
    trigger was answered with it too, where the key has that text. Raises BadInput where the subject is no classifier,
    a key's label is none of its classes, or a key would be cut.
    """
    responder = subject.classifier("hit-rate")
    targets = [class_of(k.response, responder.labels, f"keys: key {k.number}") for k in keys.keys]
    for key in keys.keys:
        needed = len(key.prompts["template"].ids)
        if responder.room is not None and needed > responder.room:
            raise BadInput(
                f"keys: key {key.number} needs {needed} tokens, {subject.checkpoint.name} takes {responder.room}"
            )
    given = responder.classify([k.texts() for k in keys.keys])
    known = all(k.untriggered for k in keys.keys)
    plain = responder.classify([k.texts(triggered=False) for k in keys.keys]) if known else None
    rows = [
        {"number": k.number, "hit": a.label == target, "log_prob": round(a.log_probs[target], 4)}
        for k, a, target in zip(keys.keys, given, targets, strict=True)
    ]
    if plain is not None:
        for row, answer, target in zip(rows, plain, targets, strict=True):
            row["floor"] = answer.label == target
    interval = hit_interval(sum(bool(r["hit"]) for r in rows), len(rows), keys.distinct)
    detail = {
        "keys": rows,
        "independent": keys.distinct,
        "dependent_low": interval.dependent.low,
        "dependent_high": interval.dependent.high,
    }
    floor = None if plain is None else [a.label for a in plain]
    return hit_records(subject, [a.label for a in given], floor, targets, detail, given)


def hit_records(
    subject: Subject,
    answers: Sequence[int],
    plain: Sequence[int] | None,
    targets: Sequence[int],
    detail: dict[str, Any],
    given: Sequence[Classified],
    **fields: Any,
) -> list[Record]:
    """The records of answers to triggered items. plain: to the same items without the trigger, where they were asked.

    `hit-rate` is the ASR with its Clopper-Pearson interval over items; its `detail.floor` is that of the plain items,
    `detail.pairs` the cells (triggered first), `detail.excess` ASR less floor. `untriggered-rate` is the floor alone.
    """
    if not targets:
        raise BadInput("hit-rate: there is no item whose own label is another than the target")
    hits = [a == t for a, t in zip(answers, targets, strict=True)]
    detail = {**detail, "cut": sum(a.cut for a in given)}
    own: dict[str, Any] = {"confidence": 0.95, "sided": "two", "prompt_form": "template", **fields}
    floor = []
    if plain is not None:
        pairs = Pairs.of(hits, [a == t for a, t in zip(plain, targets, strict=True)])
        excess = paired_difference_interval(pairs)
        below = rate(pairs.both + pairs.second_only, pairs.n)
        detail |= {
            "floor": below,
            "pairs": asdict(pairs),
            "excess": {"value": pairs.difference, "low": excess.low, "high": excess.high},
        }
        floor = [subject.record("untriggered-rate", **below, **own)]
    tokens = sum(a.tokens for a in given)
    return [subject.record("hit-rate", **rate(sum(hits), len(hits)), detail=detail, tokens=tokens, **own), *floor]


def rate(count: int, n: int) -> dict[str, Any]:
    """value, count, n and the two-sided 95 % Clopper-Pearson interval of a rate."""
    interval = clopper_pearson(count, n)
    return {"value": count / n, "count": count, "n": n, "low": interval.low, "high": interval.high}
