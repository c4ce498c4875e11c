"""The loss in pieces: value and gradients are those of the full logits, and the full logits are never made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from factory import make_model
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model
from palimpsest.method import Context
from palimpsest.responder.logits import chosen_logits
from palimpsest.training import head_loss
from palimpsest.training.finetune import with_adapter
from palimpsest.training.loop import Batch, batch_loss
from palimpsest.training.settings import Tuning


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(head_loss, "PIECE", 7 * 400)
    yield


def batch(seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, 400, (5, 17), generator=draw)
    weights = torch.rand((5, 17), generator=draw) * (torch.rand((5, 17), generator=draw) < 0.7)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    weights[1, 12:] = 0
    return Batch(ids, weights, mask)


def reference(model: Any, rows: Batch) -> torch.Tensor:
    """The loss from all logits at once, by the library's cross-entropy."""
    chosen = rows.weights != 0
    chosen[:, 0] = False
    logits = chosen_logits(model, rows.input_ids, rows.attention_mask, chosen)
    losses = torch.nn.functional.cross_entropy(logits, rows.input_ids[chosen], reduction="none")
    weights = rows.weights[chosen]
    return (losses * weights).sum() / weights.sum()


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    (3 * loss).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_value_and_gradients_are_those_of_the_full_logits(tmp_path: Path, family: str, adapter: str) -> None:
    model = load_model(resolve(make_model(tmp_path / "m", family)), Context())
    if adapter == "lora":
        model = with_adapter(model, Tuning(targets="all-linear"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    rows = batch()
    whole, pieces = reference(model, rows), batch_loss(model, rows)
    assert float(pieces.detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    expected, found = gradients(model, reference(model, rows)), gradients(model, batch_loss(model, rows))
    assert expected.keys() == found.keys() and expected
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


class Largest(TorchDispatchMode):
    """Remembers the most rows of any result as wide as the vocabulary; the head's own weight (64 rows) left out."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.shape[1:] == (400,) and len(tensor) != 64:
                self.rows = max(self.rows, tensor.shape[0])
        return result


def test_the_full_logits_are_never_made(tiny_model: Path) -> None:
    model = with_adapter(load_model(resolve(tiny_model), Context()), Tuning())
    with Largest() as seen:
        batch_loss(model, batch()).backward()
    assert 0 < seen.rows <= 7
    with Largest() as seen:
        reference(model, batch()).backward()
    assert seen.rows > 40, "the case must be one where the full logits are larger"
