"""Perplexity: exp of the mean negative log-likelihood per token (MEraser, eq. 3), also per byte and per word.

Each token is predicted once, in windows that overlap (`windows`); the record says how they lie and what stands before
them, so that a number can be set beside the field's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.checkpoint.load import positions
from palimpsest.data import toy
from palimpsest.data.texts import ReadAs, read_texts
from palimpsest.errors import BadInput
from palimpsest.measures.perplexity.likelihood import (
    Likelihood,
    answer_likelihoods,
    blocks,
    dialogue_likelihoods,
    text_likelihoods,
    together,
    window_sums,
    words_in,
)
from palimpsest.measures.perplexity.windows import Bos, Reading, Scheme
from palimpsest.measures.subject import Subject
from palimpsest.method import Context, method, param
from palimpsest.records import Record
from palimpsest.responder import LocalResponder
from palimpsest.statistics import mean_interval

SIDES = ("neutral", "dialogue")
ALL_SIDES = (*SIDES, "dialogue-and-prompt")
HARNESS_LENGTH = 2048  # max_length of a model whose configuration names none


@method("measures", "perplexity", paper="MEraser, arXiv 2506.12551, eq. 3")
@dataclass(frozen=True)
class Perplexity:
    """exp(mean negative log-likelihood per token) on neutral text and on answers of test dialogues.

    PPL = exp(-(1/T) sum_t log p(x_t | x_<t)). `detail` also has bits per byte, byte perplexity, bits per word and word
    perplexity, which tokenizers share. A .txt is read as documents (articles of WikiText, else pieces of 4,000
    characters), or whole as one stream; dialogues as answers alone (prompt masked), or with their prompts. The
    interval is a t interval of the mean log-likelihood over documents; of a stream, over blocks of a window's length.
    Neutral text is not of the recovery data's distribution; dialogue answers are.
    """

    on: tuple[str, ...] = param(SIDES, "what is read: neutral, dialogue, dialogue-and-prompt")
    documents: int = param(100, "at most this many documents or dialogues of each", low=2)
    window: int | None = param(
        512, "tokens of one window (the model's positions where they are fewer, or for none)", low=8
    )
    stride: int | None = param(None, "tokens that each further window predicts (default: half a window)", low=1)
    bos: Bos = param("auto", "what stands before windows: auto (the tokenizer's habit), always, first, never")
    as_: ReadAs = param("auto", "documents or stream; auto: documents of a file, the stream of a corpus")
    tokens: int | None = param(None, "of a stream, at most this many tokens are read", low=16)
    scheme: Scheme = param("stride", "how windows lie: by stride, or as lm-evaluation-harness lays them")

    @classmethod
    def harness(cls) -> Perplexity:
        """Documents in lm-evaluation-harness's windows, all of them, as long as the model's positions."""
        return cls(documents=1_000_000, window=None, bos="first", as_="documents", scheme="harness")

    @classmethod
    def hugging_face(cls) -> Perplexity:
        """One stream, windows of 1,024 tokens, stride 512: as in Hugging Face's "Perplexity of fixed-length models"."""
        return cls(window=1024, stride=512, bos="first", as_="stream")

    def reading(self, most: int | None) -> Reading:
        """The windows for a model of `most` positions. Raises BadInput where window and stride do not agree."""
        window = min(w for w in (self.window, most, None if self.window or most else HARNESS_LENGTH) if w)
        found = Reading(window, self.stride, self.bos, self.scheme)
        found.check("perplexity")
        return found

    def validate(self) -> None:
        """BadInput for sides that there are not, and for windows that do not go together."""
        for side in self.on:
            if side not in ALL_SIDES:
                raise BadInput(f"perplexity: {side!r} is none of {', '.join(ALL_SIDES)}")
        if self.window is not None:
            self.reading(None)

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """One record a side, `task` neutral, dialogue or dialogue-and-prompt."""
        self.validate()
        responder = subject.scorer("perplexity")
        reading = self.reading(positions(subject.checkpoint))
        records = []
        for side in self.on:
            if side == "neutral":
                records += self._neutral(subject, responder, reading)
            else:
                pairs = [(d.question, d.answer) for d in subject.dialogues.part("test")[: self.documents]]
                score = answer_likelihoods if side == "dialogue" else dialogue_likelihoods
                found = score(responder, pairs, reading.window)
                masked = {"prompt": "masked" if side == "dialogue" else "predicted", "documents": len(found)}
                records.append(likelihood_record(subject, side, found, detail=masked))
        return records

    def _neutral(self, subject: Subject, responder: LocalResponder, reading: Reading) -> list[Record]:
        texts = neutral_texts(subject, self.as_)
        if texts is None:
            return []
        how = described(reading, responder)
        is_corpus = subject.text is not None and not Path(subject.text).is_file()
        if not (self.as_ == "stream" or (self.as_ == "auto" and is_corpus)):
            found = text_likelihoods(responder, texts[: self.documents], reading)
            return [likelihood_record(subject, "neutral", found, detail={"documents": len(found), **how})]
        (windows,) = window_sums(responder, texts, reading, self.tokens)
        if not windows:
            raise BadInput(f"perplexity: {subject.text}: has no token that anything predicts")
        text = read_part(responder, texts[0], self.tokens)
        parts = blocks(windows, reading.window)
        sums = together(parts)
        whole = Likelihood(sums.nll, sums.tokens, len(text.encode()), words_in(text))
        return [likelihood_record(subject, "neutral", parts, whole, {"blocks": len(parts), "as": "stream", **how})]


def read_part(responder: LocalResponder, text: str, tokens: int | None) -> str:
    """The beginning of a text that so many tokens spell; all of it for None."""
    if tokens is None:
        return text
    ids = responder.renderer.tokens(text)
    if len(ids) <= tokens:
        return text
    return str(responder.tokenizer.decode(ids[:tokens], clean_up_tokenization_spaces=False))


def neutral_texts(subject: Subject, read_as: ReadAs = "documents") -> list[str] | None:
    """The given text's documents or stream, the toy world's held-out text for toys, else None."""
    if subject.text is not None:
        return read_texts(subject.text, read_as)
    if subject.is_toy:
        texts = toy.neutral_text()
        return ["\n\n".join(texts)] if read_as == "stream" else texts
    return None


def described(reading: Reading, responder: LocalResponder) -> dict[str, Any]:
    """How a text was read, as records say it."""
    prefix = reading.prefix(responder.renderer)
    stride = {"stride": reading.stride} if reading.scheme == "stride" and reading.stride is not None else {}
    every = bool(prefix) and reading.bos != "first" and reading.scheme == "stride"
    before = {"rule": reading.bos, "ids": prefix, "windows": "all" if every else "first" if prefix else "none"}
    return {"window": reading.window, **stride, "scheme": reading.scheme, "bos": before}


def likelihood_record(
    subject: Subject,
    side: str,
    found: Sequence[Likelihood],
    whole: Likelihood | None = None,
    detail: dict[str, Any] | None = None,
) -> Record:
    """Pool documents (or blocks, whose sum is then `whole`) into one record."""
    pooled = whole or together(found)
    nll, tokens = pooled.nll, pooled.tokens
    low = high = None
    if len(found) > 1:
        interval = mean_interval([f.nll / f.tokens for f in found])
        low, high = exp(interval.low), exp(interval.high)
    return subject.record(
        "perplexity",
        value=exp(nll / tokens),
        n=len(found),
        low=low,
        high=high,
        confidence=0.95,
        sided="two",
        task=side,
        detail={
            "nll_per_token": nll / tokens,
            "bits_per_byte": nll / pooled.bytes / math.log(2),
            "byte_perplexity": exp(nll / pooled.bytes),
            "bits_per_word": nll / pooled.words / math.log(2),
            "word_perplexity": exp(nll / pooled.words),
            "predicted": {"tokens": tokens, "bytes": pooled.bytes, "words": pooled.words},
            **(detail or {}),
        },
    )


def exp(value: float) -> float:
    """e to the value; the largest number there is where that overflows."""
    return math.exp(min(value, 700.0))
