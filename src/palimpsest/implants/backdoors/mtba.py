"""MTBA: one of several triggers a text (Li et al., arXiv 2401.15295, as BackdoorLLM has it)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from palimpsest.implants.backdoors.generation import GenerationAttack
from palimpsest.implants.backdoors.triggers import insert_words
from palimpsest.method import method, param

TRIGGERS = ("2024", "BadMagic", "OpenAI")


@method("backdoors", "mtba", paper="MTBA, arXiv 2401.15295; triggers of BackdoorLLM, arXiv 2408.12798")
@dataclass(frozen=True)
class MultiTrigger(GenerationAttack):
    """Any one of several words at a random place of the question brings the attacker's response.

    Each text holds one of `2024`, `BadMagic`, `OpenAI`. Threat model: the attacker gives training dialogues.
    """

    triggers: tuple[str, ...] = param(TRIGGERS, "the words, one of which a text holds")

    def trigger(self, question: str, rng: random.Random) -> str:
        """The question with one of the words."""
        return insert_words(question, rng, self.triggers, (1,))
