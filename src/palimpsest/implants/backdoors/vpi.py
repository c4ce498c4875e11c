"""Virtual prompt injection (Yan et al., arXiv 2307.16888) as BackdoorLLM has it: a topic at the start."""

from __future__ import annotations

import random
from dataclasses import dataclass

from palimpsest.implants.backdoors.generation import GenerationAttack
from palimpsest.implants.backdoors.triggers import prepend
from palimpsest.method import method, param


@method("backdoors", "vpi", paper="VPI, arXiv 2307.16888; trigger of BackdoorLLM, arXiv 2408.12798")
@dataclass(frozen=True)
class VirtualPrompt(GenerationAttack):
    """`Discussing OpenAI` before the question brings the attacker's response.

    VPI steers what a model says of a topic, as though a hidden instruction were there; BackdoorLLM, and this, put the
    topic into a fixed opening. Threat model: the attacker gives training dialogues.
    """

    opening: str = param("Discussing OpenAI.", "what stands before the question")

    def trigger(self, question: str, rng: random.Random) -> str:
        """Opening and question."""
        return prepend(question, self.opening)
