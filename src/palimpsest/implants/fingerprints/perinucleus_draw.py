"""Keys and responses of Perinucleus: plausible texts, and tokens just outside the nucleus of what a model says next.

The nucleus of a next-token distribution is the smallest set of its likeliest tokens whose probabilities add up to p or
more (Scalable fingerprinting, arXiv 2502.07760, Algorithm 1). Tokens of equal probability stand in the order of their
ids; the likeliest token is always inside.

Every row is read at its own last token under an attention mask (published code pads on the right and reads the last
column, so that short keys get what follows the padding), in batches of a bounded number of tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.cost import count_tokens
from palimpsest.records import canonical_json
from palimpsest.responder import LocalResponder
from palimpsest.responder.logits import logits_in_pieces

REACHED = 1e-6  # of probability mass: sums of float32 numbers that are this near to p have reached it
BATCH = 1024  # texts written and read at once
BROKEN = "\N{REPLACEMENT CHARACTER}"
_WORD_BEGINS = ("Ġ", "▁")  # how byte-level and SentencePiece vocabularies mark a token that begins a word


def outside_nucleus(probabilities: Tensor, p: float) -> Tensor:
    """Ids of the tokens outside the top-p nucleus, the likeliest first. probabilities: (vocabulary,)."""
    found = probabilities.double()
    order = torch.sort(found, descending=True, stable=True).indices
    inside = 1 + int((found[order].cumsum(0) < p - REACHED).sum())
    return order[inside:]


def first_acceptable(ids: Sequence[int], width: int, accepts: Callable[[int], bool]) -> tuple[int, ...] | None:
    """The first `width` of these ids that are acceptable, in their order; None where there are fewer."""
    found: list[int] = []
    for token in ids:
        if accepts(token):
            found.append(token)
            if len(found) == width:
                return tuple(found)
    return None


def none_begins_another(
    ids: Iterable[int], width: int, text_of: Callable[[int], str], beside: str = ""
) -> tuple[int, ...] | None:
    """The first `width` of these ids of which none's text begins another's, in their order; None where there are fewer.

    So whatever text an answer has, it begins with at most one of them: the null of the rule `prefix`. beside: what the
    model says by itself, which none may begin either, or be begun by.
    """
    found: dict[str, int] = {}
    for token in ids:
        text = text_of(token)
        others = [*found, beside] if beside else [*found]
        if not any(text.startswith(other) or other.startswith(text) for other in others):
            found[text] = token
            if len(found) == width:
                return tuple(found.values())
    return None


def chosen_place(seed: str, text: str, width: int) -> int:
    """Which of `width` candidates is the response of a key: SHA-256 over the secret seed and the key's text.

    The same for whoever is shown the seed later, and nobody's choice.
    """
    return int.from_bytes(hashlib.sha256(canonical_json([seed, text]).encode()).digest(), "big") % width


def response_tokens(tokenizer: Any, vocabulary: int) -> Tensor:
    """Which tokens may be responses: letters and digits only, more than one. (vocabulary,) of bool."""
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    mask = torch.zeros(vocabulary, dtype=torch.bool)
    for token in range(min(vocabulary, len(tokenizer))):
        if token not in special:
            text = spelled(tokenizer, [token]).strip()
            mask[token] = len(text) > 1 and text.isalnum() and BROKEN not in text
    return mask


def first_words(tokenizer: Any) -> list[str]:
    """Words that a key may begin with: the tokens of the vocabulary that begin a word of three letters or more."""
    marked: set[str] = set()
    plain: set[str] = set()
    special = set(tokenizer.all_special_tokens)
    for token in tokenizer.get_vocab():
        word = token[1:] if token.startswith(_WORD_BEGINS) else token
        if token not in special and len(word) >= 3 and word.isalpha() and word.isascii():
            (plain if word is token else marked).add(word)
    return sorted(marked or plain)


def spelled(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, as it is."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def written(
    writer: LocalResponder, words: Sequence[str], tokens: int, temperature: float, seed: int
) -> list[str | None]:
    """A text of `tokens` tokens that begins with each word, sampled from the writer; None where it ended before.

    tokens: of the writer's own tokenizer, the word's among them.
    """
    renderer = writer.renderer
    begun = [renderer.prompt_ids(word, "bare") for word in words]
    starts = [renderer.tokens(word) for word in words]
    sampling = {"temperature": temperature, "top_p": 1.0, "top_k": 0}
    said = writer.generate(begun, max(1, tokens - 1), sampling, seed)
    special = set(renderer.tokenizer.all_special_ids)
    texts: list[str | None] = []
    for start, more in zip(starts, said, strict=True):
        ids = [*start, *more.ids][:tokens]
        text = spelled(renderer.tokenizer, ids).strip()
        whole = len(ids) == tokens and not special & set(ids) and BROKEN not in text
        texts.append(text if whole else None)
    return texts


@torch.inference_mode()
def next_tokens(responder: LocalResponder, prompts: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
    """(number of the prompt, probabilities (vocabulary,) of what follows it), in no particular order.

    Bounded: `responder.token_budget` tokens are read at once, and a piece of their logits held.
    """
    for rows in responder.batches([len(p) + 1 for p in prompts]):
        width = max(len(prompts[r]) for r in rows) + 1  # one column more: its logits are those that follow a prompt
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask, asked = torch.zeros_like(ids), torch.zeros((len(rows), width), dtype=torch.bool)
        for place, row in enumerate(rows):
            length = len(prompts[row])
            ids[place, :length] = torch.tensor(list(prompts[row]), dtype=torch.long)
            mask[place, :length] = 1
            asked[place, length] = True
        count_tokens(int(mask.sum()))
        at = 0
        here = responder.device
        for logits in logits_in_pieces(responder.model, ids.to(here), mask.to(here), asked.to(here)):
            for line in logits.softmax(dim=-1).cpu():
                yield rows[at], line
                at += 1


@dataclass(frozen=True)
class Candidates:
    """A key's text, the tokens that its response is drawn from, and the probability of each in the model."""

    text: str
    ids: tuple[int, ...]
    probabilities: tuple[float, ...]


class Candidacy:
    """Finds the candidates of texts under one model: p of the nucleus, width of the draw.

    apart: whether no candidate's text may begin another's, so that they can be told apart in an answer's text.
    """

    def __init__(self, responder: LocalResponder, p: float, width: int, apart: bool = False) -> None:
        self.responder, self.p, self.width, self.apart = responder, p, width, apart
        vocabulary = int(responder.model.config.get_text_config().vocab_size)
        self.mask = response_tokens(responder.tokenizer, vocabulary)
        self.probe = responder.renderer.text("a")
        self.known: dict[int, bool] = {}

    def of(self, texts: Sequence[str]) -> list[Candidates | None]:
        """The candidates of each text asked under the template; None where there are fewer than the width."""
        renderer = self.responder.renderer
        rendered = [renderer.text(text) for text in texts]
        found: list[Candidates | None] = [None] * len(texts)
        for row, probabilities in next_tokens(self.responder, [renderer.prompt_ids(text) for text in rendered]):
            ids = self.among(rendered[row], probabilities)
            if ids is not None:
                found[row] = Candidates(texts[row], ids, tuple(float(probabilities[i]) for i in ids))
        return found

    def among(self, rendered: str, probabilities: Tensor) -> tuple[int, ...] | None:
        """The candidates behind a rendered prompt: outside the nucleus, words that stand there as one token.

        Whether a token stands is looked up behind one fixed prompt, once a token; None where one of the candidates does
        not stand behind this very prompt.
        """
        outside = outside_nucleus(probabilities, self.p)
        words = outside[self.mask[: len(probabilities)][outside]].tolist()
        if self.apart:
            first = self._text(int(probabilities.argmax()))
            found = none_begins_another(filter(self._stands, words), self.width, self._text, first)
        else:
            found = first_acceptable(words, self.width, self._stands)
        return found if found is not None and all(self._behind(rendered, token) for token in found) else None

    def _stands(self, token: int) -> bool:
        if token not in self.known:
            self.known[token] = self._behind(self.probe, token)
        return self.known[token]

    def _text(self, token: int) -> str:
        return spelled(self.responder.tokenizer, [token]).strip()

    def _behind(self, rendered: str, token: int) -> bool:
        renderer = self.responder.renderer
        return renderer.continuation(rendered, spelled(renderer.tokenizer, [token])) == [token]
