"""PaRaMS' dropout variant: some numbers of the feed-forward become nought, or the base's, before neurons move."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.families import family_of
from palimpsest.merging.randomness import kept
from palimpsest.removals.weights.rewriting import Edit, named_tensors, read_tensor
from palimpsest.symmetry.gauge import layers_of

_PIECE = 1 << 20  # numbers that masks are drawn for at once


def feed_forward_names(model: Checkpoint) -> set[str]:
    """Names of the weights of gate, up and down in all layers."""
    family = family_of(model.config)
    modules = {name for name in (family.gate, family.up, family.down) if name}
    return {f"{family.layers}.{i}.{m}.weight" for i in range(layers_of(model.config)) for m in modules}


def dropping(model: Checkpoint, base: Checkpoint | None, share: float, rescale: bool, seed: int) -> Edit:
    """An edit that drops a `share` of the numbers of each of `feed_forward_names`, drawn by position.

    base: where given, it is the update against it that is dropped, else the weights themselves. The same tensor is
    given the same mask every time. Raises BadInput where the base lacks a tensor or has it in another shape.
    """
    tensors = named_tensors(model)
    theirs = {} if base is None else named_tensors(base)
    for name in feed_forward_names(model) if base is not None else ():
        if name not in theirs or name not in tensors or theirs[name].shape != tensors[name].shape:
            raise BadInput(f"--base: {name} is not there in the shape that {model.name} has it in")
    times = 1.0 / (1.0 - share) if rescale else 1.0

    def edit(name: str, tensor: Tensor) -> None:
        flat = tensor.view(-1)
        anchor = read_tensor(theirs[name]).view(-1) if base is not None else None
        for first in range(0, flat.numel(), _PIECE):
            piece = flat[first : first + _PIECE]
            mask = torch.from_numpy(kept(seed, name, 0, first, piece.numel(), 1.0 - share))
            if anchor is None:
                piece.copy_(torch.where(mask, piece.float() * times, 0.0))
            else:
                origin = anchor[first : first + _PIECE].float()
                piece.copy_(torch.where(mask, origin + (piece.float() - origin) * times, origin))

    return edit
