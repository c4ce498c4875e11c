"""Parameters of a fine-tuning phase; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from palimpsest.method import param


@dataclass(frozen=True)
class Tuning:
    """How a model is fine-tuned: LoRA or full, and the optimiser's settings."""

    adapter: Literal["lora", "full"] = param("lora", "what is trained: low-rank adapters or all weights")
    targets: Literal["query-value", "all-linear"] = param("query-value", "projections that get an adapter")
    rank: int = param(16, "LoRA rank", low=1)
    alpha: int = param(32, "LoRA alpha; updates are scaled by alpha / rank", low=1)
    dropout: float = param(0.0, "LoRA dropout", low=0.0, high=0.9)
    epochs: int = param(5, "passes over the rows", low=0)
    steps: int | None = param(None, "optimiser steps in place of epochs; rows come round as often as it takes", low=1)
    lr: float = param(1e-3, "peak learning rate of AdamW", low=0.0)
    batch: int = param(8, "rows of one optimiser step", low=1)
    micro_batch: int = param(32, "rows of one forward pass; larger batches accumulate", low=1)
    schedule: Literal["constant", "linear", "cosine", "trapezoid"] = param("constant", "course of the learning rate")
    warmup: float = param(0.0, "share of the steps that warm up", low=0.0, high=1.0)
    weight_decay: float = param(0.0, "AdamW weight decay", low=0.0)
    clip: float | None = param(1.0, "bound on the gradient norm", low=0.0)
    train_on: Literal["answer", "all"] = param("answer", "tokens that are trained: the answer's, or all of the row's")
    format: Literal["chat", "newline", "joined"] = param("chat", "text of a pair: chat template, or a published form")
    max_tokens: int = param(1024, "longest row in tokens; the rest is cut", low=8)
    checkpointing: bool = param(False, "compute activations again in the backward pass: less memory, more time")
