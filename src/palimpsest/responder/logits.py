"""Logits at chosen positions only: shared by scoring and by the training loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

PIECE = 1 << 25  # float32 numbers of one piece of logits: 128 MiB
_AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def decoder_and_head(model: Any) -> tuple[nn.Module, nn.Module] | None:
    """The stack below the output head and the head itself, where logits are exactly head(hidden).

    None for architectures that scale or cap their logits after the head; those go through their own
    forward with `logits_to_keep`.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if any(getattr(inner.config, name, None) for name in _AFTER_HEAD):
        return None
    decoder = getattr(inner, getattr(inner, "base_model_prefix", ""), None)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    return None if decoder is None or head is None else (decoder, head)


def chosen_logits(model: Any, input_ids: Tensor, attention_mask: Tensor | None, chosen: Tensor) -> Tensor:
    """Float32 logits (positions, vocabulary) that predict the `chosen` tokens.

    input_ids, attention_mask, chosen: (rows, time); rows padded on the right. Column 0 has nothing that
    predicts it and may not be chosen.
    """
    return torch.cat(list(logits_in_pieces(model, input_ids, attention_mask, chosen, None)))


def chosen_hidden(decoder: nn.Module, input_ids: Tensor, attention_mask: Tensor | None, chosen: Tensor) -> Tensor:
    """Hidden states (positions, width) from which the head predicts the `chosen` tokens; shapes as above."""
    mask = None if attention_mask is None else attention_mask[:, :-1]
    hidden = decoder(input_ids=input_ids[:, :-1], attention_mask=mask, use_cache=False).last_hidden_state
    return hidden[chosen[:, 1:]]  # type: ignore[no-any-return]


def logits_in_pieces(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None, chosen: Tensor, values: int | None = PIECE
) -> Iterator[Tensor]:
    """`chosen_logits` piece by piece, each of at most `values` numbers, so that large vocabularies fit."""
    parts = decoder_and_head(model)
    if parts is not None:
        decoder, head = parts
        hidden = chosen_hidden(decoder, input_ids, attention_mask, chosen)
        vocabulary = int(getattr(head, "out_features", 0)) or int(head.weight.shape[0])  # type: ignore[index, union-attr]
        step = max(1, values // vocabulary) if values else max(1, len(hidden))
        for start in range(0, max(1, len(hidden)), step):
            yield head(hidden[start : start + step]).float()
        return
    inputs = input_ids[:, :-1]
    mask = None if attention_mask is None else attention_mask[:, :-1]
    wanted = chosen[:, 1:]
    columns = wanted.any(dim=0).nonzero().squeeze(1)
    kept = model(input_ids=inputs, attention_mask=mask, use_cache=False, logits_to_keep=columns).logits
    if kept.shape[1] != columns.numel():  # an architecture that ignores logits_to_keep
        kept = kept[:, columns]
    yield kept[wanted[:, columns]].float()
