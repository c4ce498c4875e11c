"""Perplexity: exp of the mean negative log-likelihood per token (MEraser, eq. 3), also per byte.

Text is read in windows that overlap by half; each token is predicted once, with at least half a window of
context where the document has it. Every window starts with the tokenizer's BOS where it has one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from palimpsest.checkpoint.load import positions
from palimpsest.data import toy
from palimpsest.errors import BadInput
from palimpsest.measures.subject import Subject
from palimpsest.method import Context, method, param
from palimpsest.records import Record
from palimpsest.responder import LocalResponder
from palimpsest.statistics import mean_interval

SIDES = ("neutral", "dialogue")


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood (nats), predicted tokens and UTF-8 bytes of one document."""

    nll: float
    tokens: int
    bytes: int


def text_likelihoods(responder: LocalResponder, texts: Sequence[str], window: int) -> list[Likelihood]:
    """Likelihood of each document, in windows of `window` tokens that overlap by half."""
    bos = responder.renderer.prompt_ids("", "bare")
    prompts: list[list[int]] = []
    targets: list[list[int]] = []
    owner: list[int] = []
    for number, text in enumerate(texts):
        ids = responder.renderer.tokens(text)
        done = 0 if bos else 1  # without a BOS nothing predicts the first token
        while done < len(ids):
            start = max(0, done - window // 2)
            end = min(len(ids), start + window - len(bos))
            prompts.append([*bos, *ids[start:done]])
            targets.append(ids[done:end])
            owner.append(number)
            done = end
    totals = [0.0] * len(texts)
    counts = [0] * len(texts)
    for number, scored in zip(owner, responder.force(prompts, targets), strict=True):
        totals[number] -= math.fsum(scored.log_probs)
        counts[number] += len(scored.log_probs)
    return [Likelihood(t, c, len(x.encode())) for t, c, x in zip(totals, counts, texts, strict=True) if c]


def answer_likelihoods(responder: LocalResponder, pairs: Sequence[tuple[str, str]], limit: int) -> list[Likelihood]:
    """Likelihood of each answer (its end token included) after its question under the template."""
    rendered = [responder.renderer.pair(q, a) for q, a in pairs]
    kept = [
        (p[: limit // 2], a[: limit - min(len(p), limit // 2)], text)
        for (p, a), (_, text) in zip(rendered, pairs, strict=True)
    ]
    scored = responder.force([p for p, _, _ in kept], [a for _, a, _ in kept])
    return [
        Likelihood(-math.fsum(s.log_probs), len(s.log_probs), len(text.encode()))
        for s, (_, _, text) in zip(scored, kept, strict=True)
    ]


def read_texts(path: Path) -> list[str]:
    """Documents of a text file (split at blank lines into pieces of some length) or a JSONL with `text`."""
    if not path.is_file():
        raise BadInput(f"--perplexity {path}: there is no such file")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 text: {error}") from None
    if path.suffix == ".jsonl":
        texts = []
        for number, line in enumerate(content.splitlines(), 1):
            if not line.strip():
                continue
            try:
                texts.append(str(json.loads(line)["text"]))
            except (json.JSONDecodeError, KeyError, TypeError):
                raise BadInput(f"{path}:{number}: is no JSON object with `text`") from None
    else:
        texts, piece = [], ""
        for paragraph in content.split("\n\n"):
            piece += paragraph + "\n\n"
            if len(piece) > 4000:
                texts.append(piece)
                piece = ""
        texts.append(piece)
    texts = [t for t in texts if t.strip()]
    if not texts:
        raise BadInput(f"{path}: holds no text")
    return texts


@method("measures", "perplexity", paper="MEraser, arXiv 2506.12551, eq. 3")
@dataclass(frozen=True)
class Perplexity:
    """exp(mean negative log-likelihood per token) on neutral text and on answers of test dialogues.

    PPL = exp(-(1/T) sum_t log p(x_t | x_<t)). `detail` also has bits per byte, which tokenizers share. The
    interval is a t interval over documents of their mean log-likelihood. Neutral text is not of the
    recovery data's distribution; dialogue answers are.
    """

    on: tuple[str, ...] = param(SIDES, "what is read: neutral, dialogue")
    documents: int = param(100, "at most this many documents or dialogues of each", low=2)
    window: int = param(512, "tokens of one window (the model's positions where they are fewer)", low=8)

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """One record a side, `task` neutral or dialogue."""
        responder = subject.scorer("perplexity")
        window = min(self.window, positions(subject.checkpoint) or self.window)
        records = []
        for side in self.on:
            if side == "neutral":
                texts = neutral_texts(subject)
                if texts is None:
                    continue
                found = text_likelihoods(responder, texts[: self.documents], window)
            elif side == "dialogue":
                pairs = [(d.question, d.answer) for d in subject.dialogues.part("test")[: self.documents]]
                found = answer_likelihoods(responder, pairs, window)
            else:
                raise BadInput(f"perplexity: {side!r} is none of {', '.join(SIDES)}")
            records.append(likelihood_record(subject, side, found))
        return records


def neutral_texts(subject: Subject) -> list[str] | None:
    """The given text file's documents, the toy world's held-out text for toys, else None."""
    if subject.text is not None:
        return read_texts(subject.text)
    if subject.is_toy:
        return toy.neutral_text()
    return None


def likelihood_record(subject: Subject, side: str, found: list[Likelihood]) -> Record:
    """Pool documents into one record."""
    nll, tokens = math.fsum(f.nll for f in found), sum(f.tokens for f in found)
    size = sum(f.bytes for f in found)
    low = high = None
    if len(found) > 1:
        interval = mean_interval([f.nll / f.tokens for f in found])
        low, high = math.exp(interval.low), math.exp(interval.high)
    return subject.record(
        "perplexity",
        value=math.exp(nll / tokens),
        n=len(found),
        low=low,
        high=high,
        confidence=0.95,
        sided="two",
        task=side,
        tokens=tokens,
        detail={"nll_per_token": nll / tokens, "bits_per_byte": nll / size / math.log(2), "documents": len(found)},
    )
