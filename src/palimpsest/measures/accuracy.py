"""Accuracy on multiple-choice tasks: the choice with the highest log-likelihood after the prompt is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.checkpoint import Checkpoint, is_toy
from palimpsest.data import toy
from palimpsest.data.toy import Item
from palimpsest.measures.subject import Subject
from palimpsest.measures.tasks.files import local_tasks
from palimpsest.measures.tasks.groups import GROUPS
from palimpsest.measures.tasks.harness import evaluated, prepared, scorer_for
from palimpsest.measures.tasks.scored import records_of
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
    """Share of right answers on tasks with known ones: lm-evaluation-harness's tasks, or the toy world's for the toy.

    ACC = (1/n) sum_i [argmax_c log p(c | prompt_i) = label_i]; two-sided Clopper-Pearson interval; chance
    level in `detail`. For any other model tasks go by the harness's names or our groups' (`palimpsest tasks`), with the
    harness's own prompts and metrics, on the Hub's data or on files under `task_data`; a record a task and metric
    (`tasks.scored`). For the toy and what is made of it, names that the toy world knows mean its own tasks, one of each
    SuperGLUE kind, unless `task_data` is given; its choices are scored with the end of the answer.
    """

    tasks: tuple[str, ...] = param(
        ("superglue",), "tasks by name; superglue is BoolQ, CB, RTE, WiC, WSC, COPA, MultiRC"
    )
    items: int = param(200, "of the toy world's tasks, at most this many items of each", low=1)
    task_data: str | None = param(None, "folder with the tasks' files; without it they come from the Hub")
    limit: int | None = param(None, "at most the first so many items of each task", low=1)
    fewshot: int | None = param(None, "examples before each question (the task's own number, mostly 0)", low=0)

    def check(self, model: Checkpoint) -> None:
        """Load what the tasks need beside the model. Raises BadInput for an unknown task, or one without its data."""
        if not self._in_toy_world(model):
            prepared(self.tasks, self.task_data, self.fewshot)

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """One record a task and metric, with the item-wise outcomes for paired tests in `detail.right`."""
        if self._in_toy_world(subject.checkpoint):
            return self._toy(subject, ctx)
        ready = prepared(self.tasks, self.task_data, self.fewshot)
        scorer = scorer_for(subject)
        records = []
        with ctx.progress.task("tasks", len(ready)) as progress:
            for one in ready:
                with ctx.progress.task(one.name, 1.0) as bar:
                    found = evaluated(one, scorer, limit=self.limit, fewshot=self.fewshot, progress=bar)
                records += records_of(subject, found, self.limit)
                progress.advance(1, one.name)
        return records

    def _in_toy_world(self, model: Checkpoint) -> bool:
        """Whether these are the toy world's tasks; BadInput for a toy's task that nobody knows."""
        if not is_toy(model) or self.task_data is not None:
            return False
        if any(name not in toy.tasks_known() and (name in GROUPS or name in local_tasks()) for name in self.tasks):
            return False
        toy.tasks(self.tasks)
        return True

    def _toy(self, subject: Subject, ctx: Context) -> list[Record]:
        tasks = toy.tasks(self.tasks)
        responder = subject.scorer("accuracy")
        records = []
        with ctx.progress.task("tasks", len(tasks)) as progress:
            for name, task in tasks.items():
                items = task.items[: min(self.items, self.limit or self.items)]
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
