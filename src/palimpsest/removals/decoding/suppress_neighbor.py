"""SuppressNeighbor: what the model is first surest of, and every token that begins alike, is never said."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.method import Context, method, param
from palimpsest.removals.decoding.steering import Change, Steered, confident
from palimpsest.responder import Wrapped
from palimpsest.responder.wrapped import model_inside


def letters(text: str) -> str:
    """A text's letters and digits, case folded."""
    return "".join(c for c in text.casefold() if c.isalnum())


class Neighbors:
    """Tokens whose letters begin with another token's letters, or that one's with theirs."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.known: dict[int, list[int]] = {}

    @cached_property
    def ordered(self) -> tuple[list[str], list[int]]:
        """Every token's letters in order, with its id; tokens without letters left out."""
        ids = sorted(self.tokenizer.get_vocab().values())
        special = set(self.tokenizer.all_special_ids)
        spelled = ((letters(self.tokenizer.decode([i])), i) for i in ids if i not in special)
        pairs = sorted((text, i) for text, i in spelled if text)
        return [text for text, _ in pairs], [i for _, i in pairs]

    def of(self, token: int) -> list[int]:
        """A token and its neighbours; it alone where it has no letters."""
        if token not in self.known:
            text = "" if token in self.tokenizer.all_special_ids else letters(self.tokenizer.decode([token]))
            found = {token}
            texts, ids = self.ordered
            for end in range(1, len(text)):  # tokens that are its beginnings
                at = bisect_left(texts, text[:end])
                while at < len(texts) and texts[at] == text[:end]:
                    found.add(ids[at])
                    at += 1
            at = bisect_left(texts, text)
            while text and at < len(texts) and texts[at].startswith(text):  # itself, and what it begins
                found.add(ids[at])
                at += 1
            self.known[token] = sorted(found)
        return self.known[token]


@method("removals", "suppress-neighbor", paper="adaptive host attacks: arXiv 2509.26598")
@dataclass(frozen=True)
class SuppressNeighbor:
    """Forbid the likeliest first token and all tokens that share its beginning, wherever the model is too sure.

    The banned set is fixed at the first step: the `candidates` likeliest tokens and every token whose letters (case
    folded, letters and digits only) begin theirs or are begun by theirs, so that the same word in another spelling or
    in pieces is caught too. At each step where the likeliest token's probability exceeds `above`, the set is forbidden.
    """

    innermost: ClassVar[bool] = True  # it steers the model itself
    candidates: int = param(1, "likeliest first tokens whose neighbours are banned", low=1)
    above: float = param(0.9, "act only where the likeliest token has more than this probability", low=0.0, high=1.0)
    steps: int | None = param(None, "first steps at which it acts; none means all", low=1)

    def wrap(self, responder: Any, ctx: Context) -> Wrapped:
        """The responder behind the suppression."""
        model = model_inside(responder, "suppress-neighbor")
        neighbors = Neighbors(model.tokenizer)

        def made(_: object) -> Change:
            banned: list[Tensor] = []

            def change(step: int, scores: Tensor) -> tuple[Tensor, Tensor]:
                if step == 0:
                    banned[:] = [banned_set(scores, neighbors, self.candidates)]
                if self.steps is not None and step >= self.steps:
                    return scores, confident(scores, 2.0)
                chosen = confident(scores, self.above)
                return scores.masked_fill(banned[0] & chosen[:, None], -math.inf), chosen

            return change

        return Steered(model, "suppress-neighbor", made)


def banned_set(scores: Tensor, neighbors: Neighbors, candidates: int) -> Tensor:
    """(rows, vocabulary): the neighbours of each row's likeliest tokens. scores: (rows, vocabulary)."""
    banned = torch.zeros_like(scores, dtype=torch.bool)
    for row, tokens in enumerate(scores.topk(candidates, dim=-1).indices.tolist()):
        for token in tokens:
            banned[row, neighbors.of(token)] = True
    return banned
