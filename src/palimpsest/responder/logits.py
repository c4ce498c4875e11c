"""Logits at chosen positions only: shared by scoring and by the training loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

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
    inputs = input_ids[:, :-1]
    mask = None if attention_mask is None else attention_mask[:, :-1]
    wanted = chosen[:, 1:]
    parts = decoder_and_head(model)
    if parts is not None:
        decoder, head = parts
        hidden = decoder(input_ids=inputs, attention_mask=mask, use_cache=False).last_hidden_state
        return head(hidden[wanted]).float()  # type: ignore[no-any-return]
    columns = wanted.any(dim=0).nonzero().squeeze(1)
    kept = model(input_ids=inputs, attention_mask=mask, use_cache=False, logits_to_keep=columns).logits
    if kept.shape[1] != columns.numel():  # an architecture that ignores logits_to_keep
        kept = kept[:, columns]
    return kept[wanted[:, columns]].float()  # type: ignore[no-any-return]
