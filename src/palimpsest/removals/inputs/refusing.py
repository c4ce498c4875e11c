"""What input removals share: a responder that looks at each prompt, and refuses some with a fixed reply."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from palimpsest.responder import Generated, Responder, Wrapped
from palimpsest.responder.local import Ids
from palimpsest.responder.reading import PromptReader
from palimpsest.responder.wrapped import Sampling


class Refusing(Wrapped, ABC):
    """Answers with `reply` where `refused` says so. The tally counts `refused prompts`."""

    def __init__(self, inner: Responder, name: str, reply: str) -> None:
        super().__init__(inner, name)
        self.reply = reply
        self.reader = PromptReader(inner.renderer)

    @abstractmethod
    def refused(self, prompts: Sequence[Ids]) -> list[bool]:
        """Whether each prompt gets the reply."""

    def rewritten(self, prompt: Ids) -> Ids:
        """What the inner responder is asked instead."""
        return prompt

    def generate(
        self, prompts: Sequence[Ids], max_new_tokens: int, sampling: Sampling = None, seed: int = 0
    ) -> list[Generated]:
        """The reply, as far as it fits, or the inner responder's answer."""
        refused = self.refused(prompts)
        self.count("refused prompts", sum(refused), len(refused))
        passed = [self.rewritten(p) for p, no in zip(prompts, refused, strict=True) if not no]
        answers = iter(self.inner.generate(passed, max_new_tokens, sampling, seed) if passed else [])
        reply = self.spell(self.renderer.tokens(self.reply)[:max_new_tokens])
        return [reply if no else next(answers) for no in refused]
