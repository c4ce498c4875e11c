"""Kin of a tiny model: copies whose weights are moved at random, as data and a seed move them in tuning.

mine = moved(base, tmp_path / "mine", DATA, (1, SIZE))    # the data's direction, and seed 1's own
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from factory import copy_of

DATA, SIZE = (1000, 0.02), 0.02  # what the owner's data does to every model tuned on it, and what a seed adds


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def written(source: Path, out: Path, weights: dict[str, torch.Tensor]) -> Path:
    copy_of(source, out)
    save_file({n: t.contiguous() for n, t in weights.items()}, out / "model.safetensors", metadata={"format": "pt"})
    return out


def moved(source: Path, out: Path, *steps: tuple[int, float]) -> Path:
    """Every weight of two dimensions moved in random directions: (seed, size as a share of its spread)."""
    weights = weights_of(source)
    for seed, size in steps:
        drawn = torch.Generator().manual_seed(seed)
        for name in sorted(weights):
            if weights[name].dim() == 2:
                change = torch.randn(weights[name].shape, generator=drawn)
                weights[name] = weights[name] + size * weights[name].std() * change
    return written(source, out, weights)
