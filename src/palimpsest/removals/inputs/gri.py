"""GRI: a keyword filter, then an instruction to think first, in front of every question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.errors import BadInput
from palimpsest.method import Context, method, param
from palimpsest.removals.inputs.refusing import Refusing
from palimpsest.responder import Generated, Responder, Wrapped
from palimpsest.responder.local import Ids
from palimpsest.responder.wrapped import Sampling

PHRASES = ("fingerprint", "hidden information", "hidden message", "encrypted message", "encrypted information")
REPLY = "I have nothing to say about that."
STEPS = (
    "Answer in three steps. First, understand what the user really asks. Second, put what you know about it in order. "
    "Third, give the answer that follows from it. The question: "
)
PUBLISHED = {"temperature": 0.7, "top_p": 0.85, "top_k": 50.0}
PUBLISHED_TOKENS = 20


@method("removals", "gri", paper="generation revision intervention: ImF, arXiv 2503.21805")
@dataclass(frozen=True)
class GRI:
    """Refuse questions that speak of fingerprints, and ask the others with an instruction to think in three steps.

    Two stages that can be switched apart, since the first alone meets Instructional Fingerprinting's own wording:
    `keywords` answers a fixed reply where the question holds one of five phrases (case folded); `instruction` puts
    three steps (understand, organise, answer) before the question, inside the user's turn of the chat template, or
    before the text where there is none; an opened answer stays behind it. Wording is ours. Published decoding is
    sampled, at most 20 tokens (`released_code`); otherwise answers are decoded as the measure asks.
    """

    keywords: bool = param(True, "refuse by keyword")
    instruction: bool = param(True, "put the instruction before the question")
    published_decoding: bool = param(False, "sample at T 0.7, top-p 0.85, top-k 50, at most 20 tokens")
    reply: str = param(REPLY, "what a refused prompt gets")

    @classmethod
    def released_code(cls) -> GRI:
        """Both stages with the published decoding."""
        return cls(published_decoding=True)

    @classmethod
    def keywords_only(cls) -> GRI:
        """The first stage alone."""
        return cls(instruction=False)

    @classmethod
    def instruction_only(cls) -> GRI:
        """The second stage alone."""
        return cls(keywords=False)

    def check(self, _: object) -> None:
        """BadInput where both stages are off."""
        if not (self.keywords or self.instruction):
            raise BadInput("gri: both stages are off; set keywords or instruction")

    def wrap(self, responder: Any, ctx: Context) -> Wrapped:
        """The responder behind both stages."""
        self.check(None)
        return GRIResponder(responder, self)


class GRIResponder(Refusing):
    """Refuses by keyword and rewrites what passes. The tally counts `refused prompts`."""

    def __init__(self, inner: Responder, settings: GRI) -> None:
        super().__init__(inner, "gri", settings.reply)
        self.settings = settings

    def refused(self, prompts: Sequence[Ids]) -> list[bool]:
        """Whether each question holds one of the phrases."""
        if not self.settings.keywords:
            return [False] * len(prompts)
        questions = [self.reader.read(p).question.casefold() for p in prompts]
        return [any(phrase in question for phrase in PHRASES) for question in questions]

    def rewritten(self, prompt: Ids) -> Ids:
        """The same prompt with the instruction before its question."""
        if not self.settings.instruction:
            return prompt
        asked = self.reader.read(prompt)
        return self.reader.render(asked, STEPS + asked.question)

    def generate(
        self, prompts: Sequence[Ids], max_new_tokens: int, sampling: Sampling = None, seed: int = 0
    ) -> list[Generated]:
        """As asked, or with the published decoding."""
        if self.settings.published_decoding:
            max_new_tokens, sampling = min(max_new_tokens, PUBLISHED_TOKENS), PUBLISHED
        return super().generate(prompts, max_new_tokens, sampling, seed)
