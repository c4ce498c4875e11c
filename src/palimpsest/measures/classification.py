"""Classification: accuracy of a classifier on clean items (CACC), class by class; the hit rate of a target label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.checkpoint.labels import check_one_label, label_names
from palimpsest.data.labelled import LabelledItems, class_of
from palimpsest.errors import BadInput
from palimpsest.measures.label_hits import hit_records, rate
from palimpsest.measures.subject import Subject
from palimpsest.method import Context, method, param
from palimpsest.records import Record
from palimpsest.responder import ClassifierResponder
from palimpsest.verdicts import sanitising_score


@dataclass(frozen=True)
class Confusion:
    """counts[t][p]: items of class t that were answered with class p."""

    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, labels: Sequence[int], answers: Sequence[int], classes: int) -> Confusion:
        """Tally true labels and answers, item by item."""
        cells = Counter(zip(labels, answers, strict=True))
        return cls(tuple(tuple(cells[t, p] for p in range(classes)) for t in range(classes)))

    def right(self, label: int) -> int:
        """Items of a class that were answered with it."""
        return self.counts[label][label]

    def items(self, label: int) -> int:
        """Items of a class."""
        return sum(self.counts[label])

    def answers(self, label: int) -> int:
        """Items that were answered with a class."""
        return sum(row[label] for row in self.counts)

    def f1(self, label: int) -> float | None:
        """2 right / (items + answers), which is the harmonic mean of recall and precision; None without either."""
        total = self.items(label) + self.answers(label)
        return 2 * self.right(label) / total if total else None

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that stand among labels or answers (0 for one that is never right)."""
        found = [f for f in map(self.f1, range(len(self.counts))) if f is not None]
        return sum(found) / len(found)


@method("measures", "classification", paper="CACC and ASR: Free Lunch (WAG), arXiv 2402.19334, section 4")
@dataclass(frozen=True)
class Classification:
    """How a classifier answers labelled items: accuracy (CACC), recall and precision by class, macro F1.

    CACC = (1/n) sum_i [argmax_c p(c | text_i) = label_i]. Beside it stand chance (1 / classes), the share of the
    commonest class, and the largest share of one answer, which tells a model that collapsed to one class. With a
    `target`, also the hit rate of that label on items of another label: with their triggers (ASR) where the data has
    `triggered` texts, paired with the same items as they are (the floor); else the floor alone. The triggered one's
    `detail.score` is sqrt(CACC x (100 - ASR)), the score of Anti-BAD (`verdicts.sanitising_score`).
    """

    target: str | None = param(None, "label, by name or number, whose hit rate on items of other labels is taken")
    limit: int | None = param(None, "at most this many items, the first ones; none means all", low=1)
    max_tokens: int | None = param(None, "longest text in tokens; none means the model's own limit", low=4)

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """Records `accuracy`, `macro-f1`, `recall` and `precision` a class, and `hit-rate` of the target.

        `accuracy` holds in `detail`: chance, majority, one_class_share with its class, confusion, and `right` and
        `answers`, the outcomes item by item for paired tests.
        """
        check_one_label(subject.checkpoint)
        items, names = subject.required_items().first(self.limit), label_names(subject.checkpoint.config)
        labels, target = items.classes(names), self._target(names, items)
        responder = subject.classifier("classification", self.max_tokens)
        given = responder.classify([row.asked for row in items.rows])
        answers = [a.label for a in given]
        confusion = Confusion.of(labels, answers, len(responder.labels))
        right = [int(a == b) for a, b in zip(answers, labels, strict=True)]
        shares = Counter(answers).most_common(1)[0]
        detail: dict[str, Any] = {
            "classes": list(responder.labels),
            "chance": 1 / len(responder.labels),
            "majority": Counter(labels).most_common(1)[0][1] / len(labels),
            "one_class_share": shares[1] / len(answers),
            "one_class": responder.labels[shares[0]],
            "confusion": [list(row) for row in confusion.counts],
            "cut": sum(a.cut for a in given),
            "room": responder.room,
            "right": "".join(map(str, right)),
            "answers": answers,
        }
        records = [
            subject.record(
                "accuracy",
                **rate(sum(right), len(right)),
                confidence=0.95,
                sided="two",
                task=items.name,
                tokens=sum(a.tokens for a in given),
                detail=detail,
            ),
            subject.record("macro-f1", value=confusion.macro_f1, n=len(right), task=items.name),
        ]
        records += self._by_class(subject, confusion, responder.labels, items.name)
        if target is not None:
            records += self._hits(subject, responder, items, labels, answers, target)
        return records

    def _target(self, names: Sequence[str], items: LabelledItems) -> int | None:
        if self.target is None:
            if any(row.triggered for row in items.rows):
                raise BadInput(
                    f"data {items.name}: has triggered texts; name the label they aim at: --set target=LABEL"
                )
            return None
        said = int(self.target) if self.target.isdecimal() else self.target
        return class_of(said, names, "classification: target")

    @staticmethod
    def _by_class(subject: Subject, confusion: Confusion, names: Sequence[str], task: str) -> list[Record]:
        """Recall (right of the class's items) and precision (right of its answers); none of a class that has none."""
        made = []
        for label, name in enumerate(names):
            for measure, n in (("recall", confusion.items(label)), ("precision", confusion.answers(label))):
                if n:
                    found = rate(confusion.right(label), n)
                    made.append(
                        subject.record(
                            measure,
                            **found,
                            confidence=0.95,
                            sided="two",
                            task=f"{task}, {name}",
                            detail={"class": name},
                        )
                    )
        return made

    def _hits(
        self,
        subject: Subject,
        responder: ClassifierResponder,
        items: LabelledItems,
        labels: Sequence[int],
        answers: Sequence[int],
        target: int,
    ) -> list[Record]:
        """Triggered items of other labels against the target; without triggers the items as they are."""
        others = [i for i, label in enumerate(labels) if label != target]
        with_trigger = [i for i in others if items.rows[i].triggered]
        asked = with_trigger or others
        plain = [answers[i] for i in asked]
        texts = [items.rows[i].asked_triggered if with_trigger else items.rows[i].asked for i in asked]
        given = responder.classify(texts)
        detail = {
            "target": responder.labels[target],
            "triggered": bool(with_trigger),
            "items": asked,
            "hits": "".join(str(int(a.label == target)) for a in given),
        }
        if with_trigger:
            right = sum(a == b for a, b in zip(answers, labels, strict=True))
            hits = sum(a.label == target for a in given)
            detail["score"] = sanitising_score(right / len(answers), hits / len(given))
        targets = [target] * len(asked)
        said = plain if with_trigger else None
        fields = {"prompt_form": None, "task": f"{items.name}, target {responder.labels[target]}"}
        return hit_records(subject, [a.label for a in given], said, targets, detail, given, **fields)
