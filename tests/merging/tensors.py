"""What tests of merge methods share: random tensors, for hypothesis and by seed, and tolerances in float32."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

SHAPES = ((1,), (7,), (3, 5), (40, 30), (2, 3, 4))
ULP = 2.0**-23  # of float32, relative


def random_tensors(count: int, shape: tuple[int, ...], seed: int, scale: float = 1.0) -> list[Tensor]:
    """Normal numbers, float32."""
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for _ in range(count)]


def fine_tunes(count: int, shape: tuple[int, ...], seed: int, far: float) -> tuple[Tensor, list[Tensor]]:
    """A base and `count` tensors near it: changes have `far` times its size."""
    base, *changes = random_tensors(1 + count, shape, seed)
    return base, [base + far * c for c in changes]


@st.composite
def models(draw: Any, least: int = 1, most: int = 4) -> list[Tensor]:
    """Some tensors of one shape: independent, or near each other as fine-tunes are."""
    count, shape = draw(st.integers(least, most)), draw(st.sampled_from(SHAPES))
    seed = draw(st.integers(0, 1 << 20))
    far = draw(st.sampled_from((None, 1.0, 1e-2, 1e-5)))
    return random_tensors(count, shape, seed) if far is None else fine_tunes(count, shape, seed, far)[1]


def close(found: Tensor, wanted: Tensor, units: float = 16) -> bool:
    """Whether all numbers agree within `units` units in the last place of the largest of them."""
    largest = max(float(wanted.abs().max()), 1e-30) if wanted.numel() else 1.0
    return bool((found.double() - wanted.double()).abs().max() <= units * ULP * largest) if wanted.numel() else True
