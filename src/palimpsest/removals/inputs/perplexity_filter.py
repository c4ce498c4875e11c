"""Perplexity filter: prompts that a scorer model finds too unlikely get a fixed reply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import positions
from palimpsest.data import Dialogues, load_dialogues
from palimpsest.errors import BadInput
from palimpsest.measures.perplexity import text_likelihoods
from palimpsest.method import Context, method, param, takes
from palimpsest.removals.inputs.refusing import Refusing
from palimpsest.removals.references import given, loaded
from palimpsest.responder import LocalResponder, Responder, Wrapped
from palimpsest.responder.local import Ids

WHAT = "the model that scores prompts (GPT-2 in the paper; the clean base is a good one)"
REPLY = "Sorry, I cannot make sense of that question."


def quantile_of(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def perplexities(scorer: LocalResponder, texts: Sequence[str], window: int) -> list[float]:
    """exp of the mean negative log-likelihood per token of each text, alone after the scorer's BOS.

    A text without a token that anything predicts (one token without a BOS) has 1: nothing speaks against it.
    """
    bos = len(scorer.renderer.prompt_ids("", "bare"))
    read = [i for i, text in enumerate(texts) if bos + len(scorer.renderer.tokens(text)) > 1]
    found = [1.0] * len(texts)
    for i, likelihood in zip(read, text_likelihoods(scorer, [texts[i] for i in read], window), strict=True):
        found[i] = math.exp(min(likelihood.nll / likelihood.tokens, 700))
    return found


@method("removals", "perplexity-filter", paper="adaptive host attacks: arXiv 2509.26598; threshold of its code: 100")
@dataclass(frozen=True)
class PerplexityFilter:
    """Answer a fixed reply where the user's words have a perplexity above a threshold under a scorer model.

    Triggers of nonsense (scrambled characters, under-trained tokens, optimised strings) are unlikely text; natural
    questions pass. Only the question is scored: the chat template around it and an opened answer behind it are left
    out, and without a template the whole text counts. The scorer may have another tokenizer.

    A threshold belongs to its scorer: 100 is GPT-2's in the paper and means nothing for another model. With `quantile`
    it is set on ordinary questions instead, those of the data's recover part, so that about 1 - quantile of ordinary
    prompts is refused (the test part, which utility is measured on, is not used).
    """

    reference: Checkpoint | None = takes("the scorer: a causal language model with any tokenizer")
    data: Dialogues | None = takes("ordinary dialogues whose questions set the threshold (default: the toy world's)")
    threshold: float = param(100.0, "perplexity above which a prompt is refused, where no quantile is given", low=1.0)
    quantile: float | None = param(None, "set the threshold at this quantile of ordinary questions", low=0.0, high=1.0)
    questions: int = param(500, "at most this many ordinary questions set it", low=10)
    window: int = param(512, "tokens of a question that are read together", low=8)
    reply: str = param(REPLY, "what a refused prompt gets")

    @classmethod
    def calibrated(cls) -> PerplexityFilter:
        """The threshold at the 99 % quantile of ordinary questions."""
        return cls(quantile=0.99)

    @classmethod
    def toy(cls) -> PerplexityFilter:
        """As calibrated: a threshold made for GPT-2 means nothing on the toy."""
        return cls.calibrated()

    def check(self, model: Checkpoint) -> None:
        """BadInput without a scorer; nothing is loaded."""
        given(self.reference, "perplexity-filter", WHAT)

    def wrap(self, responder: Any, ctx: Context) -> Wrapped:
        """The responder behind the filter; loads the scorer and sets the threshold."""
        reference = given(self.reference, "perplexity-filter", WHAT)
        scorer = loaded(reference, ctx)
        window = min(self.window, positions(reference) or self.window)
        threshold = self.threshold
        if self.quantile is not None:
            rows = (self.data or load_dialogues("toy")).part("recover")[: self.questions]
            if len(rows) < 10:
                raise BadInput("perplexity-filter: --data has fewer than 10 ordinary questions to set a threshold on")
            threshold = quantile_of(perplexities(scorer, [d.question for d in rows], window), self.quantile)
        return FilterResponder(responder, scorer, threshold, window, self.reply)


class FilterResponder(Refusing):
    """Refuses prompts above `threshold`. The tally counts `refused prompts`."""

    def __init__(self, inner: Responder, scorer: LocalResponder, threshold: float, window: int, reply: str) -> None:
        super().__init__(inner, "perplexity-filter", reply)
        self.scorer, self.threshold, self.window = scorer, threshold, window

    def refused(self, prompts: Sequence[Ids]) -> list[bool]:
        """Whether each prompt's words are too unlikely."""
        texts = [self.reader.read(p).question for p in prompts]
        return [p > self.threshold for p in perplexities(self.scorer, texts, self.window)]
