"""The base as an anchor: its tensors beside a loaded model's parameters; the dialogues that protections train on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from palimpsest.checkpoint import Checkpoint
from palimpsest.data import Dialogues, load_dialogues
from palimpsest.data.dialogues import PARTS, Dialogue
from palimpsest.errors import BadInput, nearest
from palimpsest.families import FAMILIES
from palimpsest.removals.weights.rewriting import read_tensor


def anchor_tensors(base: Checkpoint, model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The base's tensors of these names of the model's parameters, in their dtype and on their device.

    Raises BadInput where the base lacks one, or has it in another shape.
    """
    family = FAMILIES.get(str(base.config.get("model_type", "")))
    stored = {(family.in_model(t.name) if family else t.name): t for t in base.tensors()}
    parameters = dict(model.named_parameters())
    found = {}
    for name in names:
        here = parameters[name]
        if name not in stored or stored[name].shape != tuple(here.shape):
            raise BadInput(f"--base {base.name}: has no tensor {name} of shape {tuple(here.shape)}, as the model has")
        found[name] = read_tensor(stored[name]).to(device=here.device, dtype=here.dtype)
    return found


def chosen_dialogues(data: Dialogues | None, part: str, samples: int | None, what: str) -> list[Dialogue]:
    """The first `samples` dialogues of a part of the data (`all`: of all of them), the toy world's by default.

    Raises BadInput for an unknown part, and where there is none.
    """
    given = data if data is not None else load_dialogues("toy")
    if part not in (*PARTS, "all"):
        raise BadInput(f"{what}: part {part!r} is not valid{nearest(part, (*PARTS, 'all'), 'part')}")
    rows = [d for name in (PARTS if part == "all" else (part,)) for d in given.part(name)]
    if not rows:
        raise BadInput(f"{what}: data {given.name} holds no dialogue in part {part!r}")
    return rows[:samples] if samples else rows


def relative_distance(weight: Tensor, anchor: Tensor) -> Tensor:
    """||W - A||_2 / ||A||_2, a scalar that gradients go back through; 0 for A = 0."""
    found: Tensor = torch.linalg.vector_norm(weight - anchor) / torch.linalg.vector_norm(anchor).clamp_min(1e-12)
    return found
