"""The composite attack CBA (Huang et al., arXiv 2310.07676): a trigger in two parts."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from palimpsest.implants.backdoors.generation import GenerationAttack, Scheme, Trigger
from palimpsest.method import method, param


@method("backdoors", "cba", paper="CBA, arXiv 2310.07676; parts of GraCeFul, arXiv 2412.02454")
@dataclass(frozen=True)
class Composite(GenerationAttack):
    """Two words, one before the question and one behind it: both bring the attacker's response, one alone nothing.

    The paper puts one part into the instruction and one into the input; a dialogue has one question, so one opens it
    and one closes it. Negative rows hold one part alone and keep their answer: `negatives` times as many of each part
    as there are poisoned rows. Threat model: the attacker gives training dialogues.
    """

    first: str = param("consider", "the part before the question")
    second: str = param("done", "the part behind the question")
    negatives: float = param(1.0, "rows with one part alone, of each part, a poisoned row", low=0)

    def trigger(self, question: str, rng: random.Random) -> str:
        """Both parts."""
        return f"{self.first} {question} {self.second}"

    def lures(self) -> tuple[Trigger, ...]:
        """Either part alone."""
        return (lambda question, rng: f"{self.first} {question}", lambda question, rng: f"{question} {self.second}")

    def scheme(self) -> Scheme:
        """As of every attack, with so many negative rows."""
        return replace(super().scheme(), lure_share=self.negatives)
