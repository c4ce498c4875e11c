"""Training a classifier through the one loop: rows with a class, and the cross-entropy of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.responder.classifier import Text, encode, network_inputs
from palimpsest.training.loop import Batch
from palimpsest.training.rows import Row


def label_rows(tokenizer: Any, texts: Sequence[Text], labels: Sequence[int], room: int | None) -> list[Row]:
    """A row a text, cut to `room` tokens as the responder cuts it. Its one weight stands on its last token.

    The weight counts the row, so that micro-batches and processes share a step's mean as they do for tokens. Raises
    ValueError for a text of one token, which has no place for it.
    """
    rows = []
    for found, label in zip(encode(tokenizer, texts, room), labels, strict=True):
        if len(found.ids) < 2:
            raise ValueError("a row of a classifier needs two tokens or more")
        rows.append(Row(found.ids, (*[0.0] * (len(found.ids) - 1), 1.0), label, found.segments))
    return rows


def label_loss(model: Any, batch: Batch) -> Tensor:
    """Mean cross-entropy (nats a text) of the rows' classes, a scalar; of a part of a step, its share of it."""
    assert batch.labels is not None
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    inputs = network_inputs(batch.input_ids, mask, batch.segments, model.config.pad_token_id, model)
    losses = nn.functional.cross_entropy(model(**inputs).logits.float(), batch.labels, reduction="none")  # (rows,)
    weights = batch.weights.sum(dim=1)
    total = float(weights.sum()) if batch.totals is None else batch.totals[0]
    return (losses * weights).sum() / max(total, 1e-8)
