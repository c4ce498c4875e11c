"""Feeding rows of different lengths forward together, some tokens at a time, where what was fed may be taken back.

Keys and values stay; a token that is taken back keeps its column, and a mask hides it. Positions are counted over
what is not hidden. So one row may be cut while the others go on, and nothing is computed twice. Where a model has no
such cache, or looks back over a window that hidden columns would narrow, everything is read again instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from palimpsest.cost import count_tokens


class Stepper:
    """Several rows of one model. `rows` are the ids read so far, a list a row; all must have been begun."""

    def __init__(self, model: Any, rows: Sequence[Sequence[int]], pad: int, cached: bool = True) -> None:
        self.model, self.pad = model, pad
        self.rows = [list(r) for r in rows]
        self.device = next(model.parameters()).device
        accepted = inspect.signature(model.forward).parameters
        self.positions = "position_ids" in accepted
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        config = model.config.get_text_config()
        self.window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
        self.cache: Any = None
        self.seen = torch.zeros((len(rows), 0), dtype=torch.long, device=self.device)  # (rows, columns)
        width = max((len(r) for r in self.rows), default=0)
        self.cached = cached and (self.window is None or width <= self.window)
        if self.cached and width:
            ids = torch.full((len(rows), width), pad, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(self.rows):
                if row:
                    ids[place, width - len(row) :] = torch.tensor(row)
                    mask[place, width - len(row) :] = 1
            self._read(ids.to(self.device), mask.to(self.device), self.last_only)

    @torch.inference_mode()
    def feed(self, ids: Tensor) -> Tensor:
        """Float32 logits (rows, n, vocabulary) that follow each of the next n tokens of every row; ids: (rows, n)."""
        n = ids.shape[1]
        for row, more in zip(self.rows, ids.tolist(), strict=True):
            row += more
        if self.cached and self.window is not None and self.seen.shape[1] + n > self.window:
            self.cached, self.cache = False, None
        if self.cached:
            logits = self._read(ids.to(self.device), torch.ones_like(ids, device=self.device), {})
            if self.cached:
                return logits
        return self._again(n)

    @torch.inference_mode()
    def _read(self, ids: Tensor, mask: Tensor, only: dict[str, int]) -> Tensor:
        self.seen = torch.cat([self.seen, mask], dim=1)
        count_tokens(int(mask.sum()))
        options: dict[str, Any] = dict(only)
        if self.positions:
            options["position_ids"] = (self.seen.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.model(
            input_ids=ids, attention_mask=self.seen, past_key_values=self.cache, use_cache=True, **options
        )
        self.cache = getattr(output, "past_key_values", None)
        if self.cache is None:
            self.cached = False
        return output.logits.float()  # type: ignore[no-any-return]

    def _again(self, n: int) -> Tensor:
        """The same logits by reading every row from its beginning."""
        width = max(len(r) for r in self.rows)
        count_tokens(sum(map(len, self.rows)))
        ids = torch.full((len(self.rows), width), self.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(self.rows):  # padded on the right: positions are those of the row alone
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        logits = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False).logits
        ends = [(len(r) - n, len(r)) for r in self.rows]
        return torch.stack([logits[place, start:end] for place, (start, end) in enumerate(ends)]).float()

    @torch.inference_mode()
    def take_back(self, counts: Sequence[int]) -> None:
        """Forget the last tokens fed of each row, none of them further back than what was last taken back."""
        for place, count in enumerate(counts):
            if count:
                del self.rows[place][-count:]
                if self.seen.shape[1]:
                    self.seen[place, -count:] = 0

    @torch.inference_mode()
    def keep(self, chosen: Sequence[int]) -> None:
        """Go on with some of the rows (one may be chosen several times), in this order."""
        self.rows = [list(self.rows[i]) for i in chosen]
        index = torch.tensor(list(chosen), dtype=torch.long, device=self.device)
        self.seen = self.seen[index]
        if self.cache is not None:
            self.cache.batch_select_indices(index)


def pad_of(tokenizer: Any) -> int:
    """A token id to fill rows with; masked wherever it stands."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)


def draw(logits: Tensor, sampling: dict[str, float] | None, generator: torch.Generator | None = None) -> Tensor:
    """Next tokens (rows,) of logits (rows, vocabulary): the arg max, or drawn by temperature, top_k and top_p."""
    if sampling is None:
        return logits.argmax(dim=-1)
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = TemperatureLogitsWarper(float(sampling.get("temperature", 1.0)))(None, logits)
    if sampling.get("top_k"):
        scores = TopKLogitsWarper(int(sampling["top_k"]))(None, scores)
    if 0 < sampling.get("top_p", 1.0) < 1:
        scores = TopPLogitsWarper(float(sampling["top_p"]))(None, scores)
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator).squeeze(1)
