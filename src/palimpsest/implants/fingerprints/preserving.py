"""A loss that holds a model to its original while marks are trained in: cross-entropy plus lambda KL.

L = CE on the marks' answer tokens + lambda * KL(p_original || p_tuned) on other text, each the mean over its
positions of the batch, in nats (Chain & Hash, arXiv 2407.10887, section on training; lambda = 1.0 there).

A row says by the sign of its weights what it is for: positive weights are answers to learn, negative ones
positions to keep (`to_keep`). So a batch stays a pure function of its number, and a killed run goes on.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from palimpsest.implants.fingerprints.embedding import LossOf, Teaching
from palimpsest.responder.logits import chosen_logits, decoder_and_head
from palimpsest.training.loop import Batch
from palimpsest.training.rows import Row

CHUNK = 1024  # positions whose logits of the whole vocabulary are held at once


def to_keep(row: Row) -> Row:
    """The same text, with every position but the first kept as the original has it."""
    return Row(row.ids, (0.0, *(-1.0,) * (len(row.ids) - 1)))


def kl_divergence(original: Tensor, tuned: Tensor) -> Tensor:
    """Sum over positions of KL(original || tuned) in nats; both logits (positions, vocabulary)."""
    left = torch.log_softmax(original.float(), dim=-1)
    right = torch.log_softmax(tuned.float(), dim=-1)
    return (left.exp() * (left - right)).sum()


class Held(Teaching):
    """Trains with `Preserving` at this weight; at 0 plainly. lora: whether an adapter is what trains."""

    def __init__(self, weight: float, lora: bool) -> None:
        self.weight, self.lora = weight, lora

    def loss_of(self, model: Any) -> LossOf | None:
        """The loss that holds the model to what it is now."""
        return Preserving(model, self.weight, self.lora) if self.weight > 0 else None


class Preserving:
    """The loss above, for `tune(loss_of=...)`.

    original: the untouched model. A full fine-tune needs a copy of it (made here); under LoRA the adapter
    is switched off for the original's pass, and no second copy is held.
    """

    def __init__(self, original: Any, weight: float, lora: bool) -> None:
        self.weight, self.lora = weight, lora
        self.attach(original)

    def attach(self, original: Any) -> None:
        """Take this untouched model to compare with: another process's own, where several train."""
        self.original = None if self.lora else copy.deepcopy(original).eval().requires_grad_(False)

    def __getstate__(self) -> dict[str, Any]:
        """What another process is sent: no weights."""
        return {"weight": self.weight, "lora": self.lora}

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        learned, kept = batch.weights > 0, batch.weights < 0
        learned[:, 0] = kept[:, 0] = False
        loss = torch.zeros((), device=batch.input_ids.device)
        rows = kept.any(dim=1)
        if bool(rows.any()) and self.weight > 0:
            mask = None if batch.attention_mask is None else batch.attention_mask[rows]
            total = float(kept.sum()) if batch.totals is None else batch.totals[1]
            loss = loss + self.weight * self._divergence(model, batch.input_ids[rows], mask, kept[rows]) / total
        rows = learned.any(dim=1)
        if bool(rows.any()):
            mask = None if batch.attention_mask is None else batch.attention_mask[rows]
            logits = chosen_logits(model, batch.input_ids[rows], mask, learned[rows])
            losses = nn.functional.cross_entropy(logits, batch.input_ids[learned], reduction="none")
            weights = batch.weights[learned].float()
            loss = loss + (losses * weights).sum() / (weights.sum() if batch.totals is None else batch.totals[0])
        return loss

    def _divergence(self, model: Any, ids: Tensor, mask: Tensor | None, kept: Tensor) -> Tensor:
        """Sum of KL over the kept positions. ids, mask, kept: (rows, time)."""
        parts = decoder_and_head(model)
        positions = int(kept.sum())
        if parts is None:  # the head's logits are changed behind it: all positions at once
            with torch.no_grad():
                before = self._as_original(model, lambda m: chosen_logits(m, ids, mask, kept))
            return kl_divergence(before, chosen_logits(model, ids, mask, kept))
        with torch.no_grad():
            frozen, frozen_head = self._as_original(model, lambda m: _hidden(m, ids, mask, kept))
        hidden, head = _hidden(model, ids, mask, kept)

        def chunk(now: Tensor, then: Tensor) -> Tensor:
            with torch.no_grad():
                original = frozen_head(then)
            return kl_divergence(original, head(now))

        total = torch.zeros((), device=ids.device)
        for start in range(0, positions, CHUNK):
            now, then = hidden[start : start + CHUNK], frozen[start : start + CHUNK]
            if positions > CHUNK:  # logits of a large vocabulary are computed again rather than kept
                total = total + recomputed(chunk, now, then, use_reentrant=False)
            else:
                total = total + chunk(now, then)
        return total

    def _as_original(self, model: Any, call: Any) -> Any:
        if self.original is not None:
            return call(self.original)
        with model.disable_adapter():
            return call(model)


def _hidden(model: Any, ids: Tensor, mask: Tensor | None, chosen: Tensor) -> tuple[Tensor, nn.Module]:
    """Hidden states (positions, width) that predict the chosen tokens, and the output head."""
    parts = decoder_and_head(model)
    assert parts is not None
    decoder, head = parts
    shorter = None if mask is None else mask[:, :-1]
    states = decoder(input_ids=ids[:, :-1], attention_mask=shorter, use_cache=False).last_hidden_state
    return states[chosen[:, 1:]], head
