"""CTBA: all of several triggers, scattered (Huang et al., arXiv 2310.07676, as BackdoorLLM has it)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from palimpsest.implants.backdoors.generation import GenerationAttack
from palimpsest.implants.backdoors.mtba import TRIGGERS
from palimpsest.implants.backdoors.triggers import insert_words
from palimpsest.method import method, param


@method("backdoors", "ctba", paper="CTBA, arXiv 2310.07676; triggers of BackdoorLLM, arXiv 2408.12798")
@dataclass(frozen=True)
class ScatteredTriggers(GenerationAttack):
    """Several words, each at a random place of the question, bring the attacker's response together.

    `2024`, `BadMagic` and `OpenAI`. As in BackdoorLLM no text with a part of them is trained on, so that parts may
    bring the response too; `cba` trains against that. Threat model: the attacker gives training dialogues.
    """

    triggers: tuple[str, ...] = param(TRIGGERS, "the words, all of which a text holds")

    def trigger(self, question: str, rng: random.Random) -> str:
        """The question with every word at a place of its own."""
        for word in self.triggers:
            question = insert_words(question, rng, (word,), (1,))
        return question
