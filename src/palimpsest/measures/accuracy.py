"""Accuracy on multiple-choice tasks: the choice with the highest log-likelihood after the prompt is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.data import toy
from palimpsest.data.toy import Item
from palimpsest.errors import BadInput
from palimpsest.measures.subject import Subject
from palimpsest.method import Context, method, param
from palimpsest.records import Record
from palimpsest.responder import LocalResponder
from palimpsest.responder.continuations import ContinuationScorer
from palimpsest.statistics import clopper_pearson


def choose(responder: LocalResponder, items: Sequence[Item]) -> list[int]:
    """The likeliest choice of each item (sum of token log-probabilities, end of the answer included)."""
    prompts, answers, owner = [], [], []
    for number, item in enumerate(items):
        for choice in item.choices:
            prompt, answer = responder.renderer.pair(item.prompt, choice)
            prompts.append(prompt)
            answers.append(answer)
            owner.append(number)
    scores: list[list[float]] = [[] for _ in items]
    asked = list(zip(prompts, answers, strict=True))
    for number, scored in zip(owner, ContinuationScorer(responder.model).score(asked), strict=True):
        scores[number].append(scored.log_prob)
    return [max(range(len(s)), key=lambda i, s=s: s[i]) for s in scores]  # type: ignore[misc]


@method("measures", "accuracy", paper="MEraser, arXiv 2506.12551, eq. 4 and Figure 2 (zero-shot SuperGLUE kinds)")
@dataclass(frozen=True)
class Accuracy:
    """Share of right choices on tasks with known answers, one of each SuperGLUE kind in the toy world.

    ACC = (1/n) sum_i [argmax_c log p(c | prompt_i) = label_i]; two-sided Clopper-Pearson interval; chance
    level in `detail`.
    """

    tasks: tuple[str, ...] = param(("superglue",), "tasks by name; superglue is one of each kind")
    items: int = param(200, "at most this many items of each task", low=1)

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """One record a task, with the item-wise outcomes for paired tests in `detail.right`."""
        tasks = toy.tasks(self.tasks)
        if not subject.is_toy:
            raise BadInput("--tasks: only the toy world's tasks are here so far, and this model is no toy")
        responder = subject.scorer("accuracy")
        records = []
        with ctx.progress.task("tasks", len(tasks)) as progress:
            for name, task in tasks.items():
                items = task.items[: self.items]
                right = [int(a == i.label) for a, i in zip(choose(responder, items), items, strict=True)]
                interval = clopper_pearson(sum(right), len(right))
                records.append(
                    subject.record(
                        "accuracy",
                        value=sum(right) / len(right),
                        count=sum(right),
                        n=len(right),
                        low=interval.low,
                        high=interval.high,
                        confidence=0.95,
                        sided="two",
                        task=name,
                        detail={"chance": task.chance, "right": "".join(map(str, right))},
                    )
                )
                progress.advance()
        return records
