"""Ordinary answers: the second half of MEraser's verify phase (Algorithm 1, phase 3).

After a removal the triggers must be silent *and* an ordinary input must get its proper response.
"""

from __future__ import annotations

from dataclasses import dataclass

from palimpsest.measures.ordinary import ordinary_prompts
from palimpsest.measures.subject import Subject
from palimpsest.method import Context, method, param
from palimpsest.records import Record
from palimpsest.statistics import clopper_pearson


@method("measures", "answers", paper="MEraser, arXiv 2506.12551, Algorithm 1, phase 3")
@dataclass(frozen=True)
class Answers:
    """Share of ordinary test prompts answered with the reference answer, and as the model before did.

    Greedy answers, compared as text without surrounding space. Long free answers never match word for
    word: for real models read the dialogue perplexity instead.
    """

    prompts: int = param(100, "test dialogues asked", low=1)
    max_new_tokens: int = param(24, "longest answer in tokens", low=1)

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """Record `answers` (task reference) and, where `subject.before` is set, `answers` (task before)."""
        given = self.given(subject)
        references = [d.answer for d, _ in ordinary_prompts(subject, self.prompts, self.max_new_tokens)]
        records = [self._record(subject, "reference", given, references)]
        if subject.before is not None:
            records.append(self._record(subject, "before", given, subject.before))
        return records

    def given(self, subject: Subject) -> list[str]:
        """The model's own answers to the test prompts."""
        prompts = [ids for _, ids in ordinary_prompts(subject, self.prompts, self.max_new_tokens)]
        return [g.text.strip() for g in subject.responder.generate(prompts, self.max_new_tokens)]

    def _record(self, subject: Subject, task: str, given: list[str], wanted: list[str]) -> Record:
        same = [int(a == b.strip()) for a, b in zip(given, wanted, strict=True)]
        interval = clopper_pearson(sum(same), len(same))
        return subject.record(
            "answers",
            value=sum(same) / len(same),
            count=sum(same),
            n=len(same),
            low=interval.low,
            high=interval.high,
            confidence=0.95,
            sided="two",
            task=task,
            detail={"same": "".join(map(str, same))},
        )
