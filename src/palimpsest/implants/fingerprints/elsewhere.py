"""Losses of a model at other weights than its own, whose gradient goes back to where the model stands.

A loss L is differentiated where it is asked, at theta', and what comes back is the plane that touches it there:
f (dL/dtheta') (theta - theta_now), which is nought now and whose gradient in theta is f dL/dtheta'. The factor f is
what dtheta'/dtheta is to be, 1 where that is left out. So only one graph is held at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from palimpsest.errors import BadInput


@contextlib.contextmanager
def put_back(model: Any) -> Iterator[None]:
    """The model's parameters may get other data meanwhile; afterwards they have their own again, the same storage."""
    held = [p.data for p in model.parameters()]
    try:
        yield
    finally:
        for parameter, data in zip(model.parameters(), held, strict=True):
            parameter.data = data


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of a loss at every parameter that trains and that it depends on, by name."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {name: slope for name, slope in zip(trained, slopes, strict=True) if slope is not None}


def plane(model: Any, slopes: dict[str, Tensor], factor: Callable[[str], Any]) -> Tensor:
    """Nought, with the gradient factor(name) * slope at every parameter that has a slope."""
    parameters = dict(model.named_parameters())
    parts = [(slope * factor(n) * (parameters[n] - parameters[n].detach())).sum() for n, slope in slopes.items()]
    return torch.stack(parts).sum()


def check_shapes(mark: str, own: dict[str, tuple[int, ...]], other: dict[str, Any], name: str) -> None:
    """BadInput where the base's weights are not those of the owner's model in name and shape."""
    wrong = next((n for n in own if n not in other or tuple(other[n].shape) != own[n]), None)
    if wrong is not None or len(own) != len(other):
        what = f"weight {wrong} is missing or of another shape" if wrong else "it has weights that the model has not"
        raise BadInput(f"{mark}: {name} is no base of this model: {what}")
