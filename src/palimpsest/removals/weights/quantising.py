"""The mathematics of quantisation: numbers to codes and back, as pure functions on tensors in float32.

int8    w' = q / 127 * absmax with q = round(127 w / absmax), one absmax for a row, a tensor, or a group in a row
        (symmetric, vector-wise: LLM.int8(), arXiv 2208.07339, section 2)
nf4     w' = c * absmax with c the nearest of 16 values, one absmax for each block of 64 numbers along the
        flattened weight (QLoRA, arXiv 2305.14314, section 3 and Appendix E)
double  the absmax constants of nf4, less their mean, in 8 bits with one absmax for each 256 of them (QLoRA, section 3)

The largest magnitude of a block is given back as it was, so that quantising what was quantised changes nothing
(but for double quantisation, which moves the constants).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

LEVELS = 127
CONSTANTS = 256  # absmax constants that share one of their own, under double quantisation


def int8_round_trip(rows: Tensor, largest: Tensor | None = None) -> Tensor:
    """Each row quantised to int8 by its own absmax and back: (..., in) float32 to the same shape.

    largest: an absmax to take instead, broadcastable to (..., 1).
    """
    absmax = rows.abs().amax(dim=-1, keepdim=True) if largest is None else largest
    scale = torch.where(absmax > 0, absmax, torch.ones_like(absmax))
    return (rows / scale * LEVELS).round_().clamp_(-LEVELS, LEVELS).div_(LEVELS).mul_(scale)


def int8_groups_round_trip(rows: Tensor, group: int) -> Tensor:
    """Each `group` numbers of a row by themselves, the last group of a row as short as it is: (rows, in) float32."""
    width = rows.shape[-1]
    padded = torch.nn.functional.pad(rows, (0, -width % group))
    return int8_round_trip(padded.view(*rows.shape[:-1], -1, group)).view(*rows.shape[:-1], -1)[..., :width]


@functools.cache
def nf4_code() -> Tensor:
    """The 16 values of NormalFloat4, ascending from -1 to 1: (16,) float32.

    Quantiles of the standard normal distribution over the largest of them: 8 positive ones at equal steps of
    probability between 1 - e and 1/2, 7 negative ones likewise, and an exact 0, with e the mean of 1/30 and 1/32
    (QLoRA, Appendix E).
    """
    outer = 1 - (1 / 30 + 1 / 32) / 2
    positive = torch.special.ndtri(torch.linspace(outer, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(outer, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive.flip(0)])
    code: Tensor = (values / positive[0]).float()
    return code


@functools.cache
def dynamic_code() -> Tensor:
    """The 256 values of the signed 8-bit dynamic data type that holds the constants: (256,) float32, ascending.

    For each of 7 decades that end at 1, 2**i equal parts of [0.1, 1] of the decade (i = 0 for the smallest) have
    their midpoints, with both signs; 0 and 1 complete it (8-bit optimisers, arXiv 2110.02861, section 2.1).
    """
    values = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    for i in range(7):
        bounds = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float64)
        middle = (bounds[:-1] + bounds[1:]) / 2 * 10.0 ** (i - 6)
        values += [middle, -middle]
    return torch.cat(values).sort().values.float()


def nearest_of(code: Tensor, numbers: Tensor) -> Tensor:
    """The value of an ascending code (k,) nearest to each number; of two as near, the lower one."""
    code = code.to(numbers.device)
    return code[torch.bucketize(numbers, (code[1:] + code[:-1]) / 2)]


def block_absmax(flat: Tensor, block: int) -> Tensor:
    """The largest magnitude of each block of the flattened weight, the last as short as it is: (n,) to (blocks,)."""
    return _blocks(flat, block).abs().amax(dim=-1)


def nf4_round_trip(flat: Tensor, block: int = 64, constants: Tensor | None = None) -> Tensor:
    """Each block quantised to nf4 and back: (n,) float32 to (n,).

    constants: (blocks,) what the codes are multiplied by on the way back, where that is not the blocks' own absmax.
    """
    blocks = _blocks(flat, block)
    absmax = blocks.abs().amax(dim=-1, keepdim=True)
    scale = torch.where(absmax > 0, absmax, torch.ones_like(absmax))
    back = scale if constants is None else constants[:, None]
    return nearest_of(nf4_code(), blocks / scale).mul_(back).view(-1)[: flat.numel()]


def constants_round_trip(constants: Tensor, block: int = CONSTANTS) -> Tensor:
    """Double quantisation: absmax constants less their mean in 8 bits and back, (blocks,) float32.

    Each `block` of them has one absmax in float32; codes are of `dynamic_code`.
    """
    mean = constants.mean()
    blocks = _blocks(constants - mean, block)
    absmax = blocks.abs().amax(dim=-1, keepdim=True)
    scale = torch.where(absmax > 0, absmax, torch.ones_like(absmax))
    return nearest_of(dynamic_code(), blocks / scale).mul_(scale).view(-1)[: constants.numel()].add_(mean)


def _blocks(flat: Tensor, block: int) -> Tensor:
    """(n,) to (blocks, block), filled with zeros, which change no absmax."""
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block)).view(-1, block)
