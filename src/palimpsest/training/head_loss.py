"""Cross-entropy from the hidden states, a piece of the vocabulary's logits at a time.

L = sum_i w_i (log sum_v exp(h_i . W_v) - h_i . W_{y_i}), so dL/dh_i = w_i (softmax(W h_i) - e_{y_i}) W: each
piece's gradient is taken while its logits are still in the cache, and the full (tokens, vocabulary) matrix,
which for open vocabularies is most of a step's memory, is never made. The sums are the same sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.responder.logits import chosen_hidden, chosen_logits, decoder_and_head

PIECE = 1 << 22  # float32 numbers of one piece of logits on a CPU, 16 MiB: it stays in the cache
ELSEWHERE = 16  # times as many on other devices, which want large products


def weighted_loss(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    chosen: Tensor,
    weights: Tensor,
    total: float | None = None,
) -> Tensor:
    """Weighted mean cross-entropy (nats) of the `chosen` tokens, a scalar.

    input_ids, attention_mask, chosen: (rows, time); weights: (tokens,) of the chosen ones. total: what the
    weighted sum is divided by; by default the sum of the weights.
    """
    targets = input_ids[chosen]
    scale = weights.sum().clamp_min(1e-8) if total is None else max(total, 1e-8)
    parts = decoder_and_head(model)
    if parts is not None and _in_pieces(parts[1], len(targets), input_ids.device.type):
        decoder, head = parts
        hidden = chosen_hidden(decoder, input_ids, attention_mask, chosen)  # (tokens, width)
        found: Tensor = HeadLoss.apply(hidden, head.weight, head.bias, targets, weights / scale)  # type: ignore[no-untyped-call]
        return found
    logits = chosen_logits(model, input_ids, attention_mask, chosen)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum() / scale


def _in_pieces(head: nn.Module, tokens: int, device: str) -> bool:
    """Whether the logits are too many for one piece and the head is a plain matrix held in one place."""
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter or torch.is_autocast_enabled(device):
        return False
    return head.weight.dim() == 2 and tokens * head.weight.shape[0] > _piece(device)


def _piece(device: str) -> int:
    return PIECE if device == "cpu" else ELSEWHERE * PIECE


class HeadLoss(torch.autograd.Function):
    """sum_i weights_i * cross-entropy_i of head(hidden_i) against targets_i; gradients come with the value."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor
    ) -> Tensor:
        """hidden: (tokens, width), weight: (vocabulary, width), bias: (vocabulary,) or None, targets and
        weights: (tokens,).
        """
        wanted = ctx.needs_input_grad
        for_hidden = torch.empty_like(hidden) if wanted[0] else None
        for_weight = torch.zeros_like(weight) if wanted[1] else None
        for_bias = torch.zeros_like(bias) if bias is not None and wanted[2] else None
        value = torch.zeros((), device=hidden.device)
        step = max(1, _piece(hidden.device.type) // len(weight))
        for start in range(0, len(hidden), step):
            piece = slice(start, start + step)
            here, share = targets[piece, None], weights[piece, None]
            logits = nn.functional.linear(hidden[piece], weight, bias).float()  # (some tokens, vocabulary)
            logits.sub_(logits.amax(dim=1, keepdim=True))
            true = logits.gather(1, here)
            mass = logits.exp_().sum(dim=1, keepdim=True)
            value += ((mass.log() - true) * share).sum()
            if not any(wanted):
                continue
            logits.mul_(share / mass).scatter_add_(1, here, -share)  # d value / d logits
            slopes = logits.to(weight.dtype)
            if for_hidden is not None:
                for_hidden[piece] = slopes @ weight
            if for_weight is not None:
                for_weight.addmm_(slopes.t(), hidden[piece])
            if for_bias is not None:
                for_bias += slopes.sum(dim=0)
        ctx.slopes = (for_hidden, for_weight, for_bias)
        return value

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:  # type: ignore[override]
        """Gradients of hidden, weight and bias, times that of the value."""
        return (*(None if g is None else g * slope for g in ctx.slopes), None, None)
