"""Invariant terms of one layer, the mathematics: HuRef (arXiv 2312.04828, section 4) carried over to today's models.

HuRef multiplies what a permutation or rotation of the weights would meet with its inverse: M_a = E W_Q W_K^T E^T,
M_b = E W_V W_O E^T, M_f = E W_1 W_2 E^T, with E some rows of the embedding. Here E is replaced by what the layer would
read if a token's embedding stood alone in its stream, N = norm(E) with the norm's gain, and what is written is read
against the tokens' directions, so that every function-preserving change cancels that the family has:

    match   sum_h q_h(a) . k_h(b)              attention's score at distance 0
    turned  sum_h q_h(a) . J k_h(b)            what distance adds, rotary models only
    value   o(a) . x(c) / s                    o: the output of attention that looks at token a alone
    inner   f(a) . x(c) / s                    f = (N G^T o N U^T) D^T with a gate, else (N U^T) D^T, no activation

x(c) is token c's direction (mean taken away where norms do, length sqrt(width)) and s the root mean square of E, so
that a common factor on E and all that is written cancels. Rotary positions turn pair j by an angle D w_j at distance
D, so the score is sum_j [cos(D w_j) Re_j + sin(D w_j) Im_j] with Re, Im of conj(q_j) k_j. Q and K may be changed by one
complex number a pair (q_j by z, k_j by 1 / conj(z)), which leaves both; `match` and `turned` are their sums. HuRef's
M_a is Re alone, and it stays for any invertible matrix too, which destroys a rotary model.

All tensors are float32, (tokens, features) unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NormKind = Literal["rms", "rms-plus-one", "layer", "layer-bare"]
TINY = 1e-30


@dataclass(frozen=True)
class Norm:
    """A norm's kind, gain and shift, both (width,) or None."""

    kind: NormKind
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def gain(self) -> Tensor | float:
        """What a normalised number is multiplied by: Gemma stores it less one."""
        if self.weight is None:
            return 1.0
        return 1 + self.weight if self.kind == "rms-plus-one" else self.weight

    def scaled(self, x: Tensor) -> Tensor:
        """Normalised and multiplied by the gain, without the shift. No epsilon: what it blurs is a factor on x."""
        return unit(x, self.kind in ("layer", "layer-bare")) * self.gain

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised, gain and shift."""
        found = self.scaled(x)
        return found if self.bias is None else found + self.bias


def unit(x: Tensor, centred: bool) -> Tensor:
    """Rows of root mean square 1, their mean taken away first where `centred`. A row of zeros stays."""
    if centred:
        x = x - x.mean(dim=-1, keepdim=True)
    return x / x.pow(2).mean(dim=-1, keepdim=True).clamp_min(TINY).sqrt()


def scale_of(x: Tensor, centred: bool) -> float:
    """Root mean square of all numbers, each row's mean taken away first where `centred`."""
    if centred:
        x = x - x.mean(dim=-1, keepdim=True)
    return float(x.double().pow(2).mean().clamp_min(TINY).sqrt())


def match(q: Tensor, k: Tensor) -> Tensor:
    """sum_h q_h(a) . k_g(h)(b), (tokens, tokens). q: (tokens, heads, size), k: (tokens, groups, size).

    Query head h reads group h // (heads / groups), so the queries of a group are added first.
    """
    return _of_group(q, k.shape[1]).flatten(1) @ k.flatten(1).T


def turned(q: Tensor, k: Tensor, rotary: int) -> Tensor:
    """sum over heads and pairs of Im(conj(q_j) k_j), (tokens, tokens); pair j is dimensions (j, j + rotary / 2)."""
    half = rotary // 2
    q = _of_group(q, k.shape[1])
    q_re, q_im = q[..., :half], q[..., half:rotary]
    k_re, k_im = k[..., :half], k[..., half:rotary]
    return q_re.flatten(1) @ k_im.flatten(1).T - q_im.flatten(1) @ k_re.flatten(1).T


def _of_group(q: Tensor, groups: int) -> Tensor:
    tokens, heads, size = q.shape
    return q.view(tokens, groups, heads // groups, size).sum(dim=2)


def spread_values(v: Tensor, heads: int) -> Tensor:
    """Values as the output projection reads them, (tokens, heads * size), where a query attends to one token alone."""
    return v.repeat_interleave(heads // v.shape[1], dim=1).flatten(1)


def written(out: Tensor, directions: Tensor, scale: float, centred: bool) -> Tensor:
    """What is written into the stream against every token's direction: out . x / scale, (tokens, tokens).

    Where directions are centred the mean of `out` meets nothing; it is taken away so that rounding does not see it.
    """
    if centred:
        out = out - out.mean(dim=-1, keepdim=True)
    return out @ directions.T / scale


def pearson(a: Tensor, b: Tensor) -> float:
    """Correlation of all entries of two matrices; 0 where one is constant."""
    a, b = a.double().flatten(), b.double().flatten()
    a, b = a - a.mean(), b - b.mean()
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 0 else 0.0


def cosine(dot: float, first: float, second: float) -> float:
    """dot / sqrt(first second) of a product and two squared norms; 0 where one is 0. Rounding never leaves [-1, 1]."""
    if first <= 0 or second <= 0:
        return 0.0
    found: float = dot / (first**0.5 * second**0.5)
    return min(1.0, max(-1.0, found))


def as_published(
    embedded: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, inner: Tensor, down: Tensor
) -> dict[str, Tensor]:
    """HuRef's three terms from raw weights: E W_Q^T W_K E^T, E W_V^T W_O^T E^T, E W_1^T W_2^T E^T.

    query, key, value: (heads * size, width), a KV head repeated for its query heads; output: (width, heads * size);
    inner: (inner, width), with a gate the released code's elementwise product of gate and up; down: (width, inner).
    """
    e = embedded
    return {
        "match": (e @ query.T) @ (e @ key.T).T,
        "value": (e @ value.T) @ (e @ output).T,
        "inner": (e @ inner.T) @ (e @ down).T,
    }


def repeated(weight: Tensor, groups: int, heads: int) -> Tensor:
    """Rows of KV heads, (groups * size, width), repeated for the query heads that read them."""
    size = weight.shape[0] // groups
    return torch.repeat_interleave(weight.view(groups, size, -1), heads // groups, dim=0).flatten(0, 1)
