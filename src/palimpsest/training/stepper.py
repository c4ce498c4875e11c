"""One process's part of an optimiser step: gradients of its micro-batches, then AdamW."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from palimpsest.training.loop import Batch

Compute = Callable[["Batch"], Tensor]


@dataclass(frozen=True)
class Optimising:
    """AdamW's settings. clip: bound on the gradient norm. autocast: dtype that products are computed in.
    skip_nonfinite: leave out a step whose gradient is not finite."""

    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    autocast: torch.dtype | None = None
    skip_nonfinite: bool = False


class Stepper:
    """Holds the optimiser of the parameters that require a gradient; `compute` gives a micro-batch's loss.

    Matrices decay, vectors do not. On a GPU the fused kernel steps all parameters at once.
    """

    def __init__(self, model: nn.Module, settings: Optimising, compute: Compute) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("no parameter of the model requires a gradient")
        self.settings, self.compute, self.skipped = settings, compute, 0
        decayed = [p for p in self.parameters if p.dim() >= 2]
        plain = [p for p in self.parameters if p.dim() < 2]
        self.device = self.parameters[0].device
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=settings.lr,
            betas=settings.betas,
            eps=1e-8,
            fused=True if self.device.type == "cuda" else None,
        )

    def gradients(self, parts: Sequence[Batch], times: float = 1.0) -> float:
        """Add the gradients of `times` the parts' losses up; returns the sum of the losses."""
        total = 0.0
        autocast = self.settings.autocast
        for part in parts:
            batch = part.to(self.device)
            with torch.autocast(self.device.type, dtype=autocast, enabled=autocast is not None):
                loss = self.compute(batch)
            if loss.requires_grad:  # a share without a supervised position may have nothing to go back through
                (loss if times == 1.0 else loss * times).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def update(self, rate: float) -> None:
        """One AdamW step at this learning rate on the gradients that are there, which are dropped then."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        norm = None
        if self.settings.clip is not None or self.settings.skip_nonfinite:
            bound = float("inf") if self.settings.clip is None else self.settings.clip
            norm = nn.utils.clip_grad_norm_(self.parameters, bound)
        if self.settings.skip_nonfinite and norm is not None and not bool(torch.isfinite(norm)):
            self.skipped += 1
        else:
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


@contextlib.contextmanager
def training(model: Any, device: torch.device, checkpointing: bool = False) -> Iterator[None]:
    """Training mode; with `checkpointing` a block's activations are computed again in the backward pass.

    On a GPU float32 products use TF32 meanwhile (a few 1e-4 relative), and full precision again afterwards.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    precision = torch.get_float32_matmul_precision()
    model.train()
    if checkpointing:
        _checkpoint(inner, True)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if checkpointing:
            _checkpoint(inner, False)
        torch.set_float32_matmul_precision(precision)
        model.eval()


def _checkpoint(model: Any, on: bool) -> None:
    """Switch activation checkpointing, which older versions of transformers call gradient checkpointing."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        options = {f"{kind}_checkpointing_kwargs": {"use_reentrant": False}}
        getattr(model, f"{kind}_checkpointing_enable")(**options)
    else:
        getattr(model, f"{kind}_checkpointing_disable")()
