"""How likely a model finds texts and answers: sums of negative log-likelihoods with what they are divided by."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from palimpsest.measures.perplexity.windows import Reading
from palimpsest.responder import LocalResponder

Pairs = Sequence[tuple[str, str]]
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood (nats), predicted tokens, and UTF-8 bytes and words of one document."""

    nll: float
    tokens: int
    bytes: int
    words: int = 0


def words_in(text: str) -> int:
    """Words as lm-evaluation-harness counts them for word_perplexity: parts between white space.

    White space at the beginning or the end counts an empty word more, as it does there.
    """
    return len(_SPACE.split(text))


def together(parts: Iterable[Likelihood]) -> Likelihood:
    """The likelihood of all parts."""
    found = list(parts)
    return Likelihood(
        math.fsum(f.nll for f in found),
        sum(f.tokens for f in found),
        sum(f.bytes for f in found),
        sum(f.words for f in found),
    )


def window_sums(
    responder: LocalResponder, texts: Sequence[str], reading: Reading, longest: int | None = None
) -> list[list[Likelihood]]:
    """A text's windows in order, each with the negative log-likelihood and the number of the tokens it predicts.

    longest: at most so many tokens of each text are read. A window's sum does not depend on which others it shares a
    batch with, but for the rounding of another batch's size.
    """
    prefix = reading.prefix(responder.renderer)
    prompts: list[list[int]] = []
    targets: list[list[int]] = []
    owner: list[int] = []
    for number, text in enumerate(texts):
        ids = responder.renderer.tokens(text)[:longest]
        for window in reading.windows(len(ids), len(prefix)):
            prompts.append([*(prefix if window.bos else ()), *ids[window.start : window.first]])
            targets.append(ids[window.first : window.end])
            owner.append(number)
    found: list[list[Likelihood]] = [[] for _ in texts]
    for number, scored in zip(owner, responder.force(prompts, targets), strict=True):
        found[number].append(Likelihood(-math.fsum(scored.log_probs), len(scored.log_probs), 0))
    return found


def text_likelihoods(responder: LocalResponder, texts: Sequence[str], reading: Reading | int = 512) -> list[Likelihood]:
    """Likelihood of each document that has a token to predict, in the windows of a reading (or of so many tokens)."""
    how = reading if isinstance(reading, Reading) else Reading(reading)
    found = []
    for text, windows in zip(texts, window_sums(responder, texts, how), strict=True):
        if tokens := sum(w.tokens for w in windows):
            nll = sum(w.nll for w in windows)
            found.append(Likelihood(nll, tokens, len(text.encode()), words_in(text)))
    return found


def blocks(windows: Sequence[Likelihood], tokens: int) -> list[Likelihood]:
    """Neighbouring windows together until they predict `tokens`; what is left over at the end joins the last block."""
    found: list[list[Likelihood]] = [[]]
    for window in windows:
        if sum(w.tokens for w in found[-1]) >= tokens:
            found.append([])
        found[-1].append(window)
    if len(found) > 1 and sum(w.tokens for w in found[-1]) < tokens / 2:
        last = found.pop()
        found[-1] += last
    return [together(block) for block in found if block]


def answer_likelihoods(responder: LocalResponder, pairs: Pairs, limit: int) -> list[Likelihood]:
    """Likelihood of each answer (its end token included) after its question under the template.

    limit: tokens of both; a question is cut to its first half of them, then the answer to what is left.
    """
    kept = _kept(responder, pairs, limit)
    scored = responder.force([p for p, _ in kept], [a for _, a in kept])
    found = []
    for (_, answer), (prompt, ids), s in zip(pairs, kept, scored, strict=True):
        read = _read_of(responder, answer, prompt, ids, limit)
        found.append(Likelihood(-math.fsum(s.log_probs), len(s.log_probs), len(read.encode()), words_in(read)))
    return found


def dialogue_likelihoods(responder: LocalResponder, pairs: Pairs, limit: int) -> list[Likelihood]:
    """Likelihood of each question and answer, prompt not masked: every token of the rendered row after its first.

    The template's own tokens are predicted too; bytes and words are those of question and answer.
    """
    kept = _kept(responder, pairs, limit)
    scored = responder.force([p[:1] for p, _ in kept], [[*p[1:], *a] for p, a in kept])
    found = []
    for (question, answer), (prompt, ids), s in zip(pairs, kept, scored, strict=True):
        read = _read_of(responder, answer, prompt, ids, limit)
        size, words = len((question + read).encode()), words_in(question) + words_in(read)
        found.append(Likelihood(-math.fsum(s.log_probs), len(s.log_probs), size, words))
    return found


def _kept(responder: LocalResponder, pairs: Pairs, limit: int) -> list[tuple[list[int], list[int]]]:
    rendered = [responder.renderer.pair(q, a) for q, a in pairs]
    return [(p[: limit // 2], a[: limit - min(len(p), limit // 2)]) for p, a in rendered]


def _read_of(responder: LocalResponder, answer: str, prompt: Sequence[int], ids: Sequence[int], limit: int) -> str:
    """What of an answer was read: all of it, or its beginning where it was cut to the limit."""
    if len(prompt) + len(ids) < limit:
        return answer
    said = responder.spell(list(ids)).text
    return answer if len(said) >= len(answer) else said
