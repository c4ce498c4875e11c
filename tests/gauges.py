"""Changes of a tiny model's weights that leave its function alone: every family's own, drawn at random.

    changed = gauged(folder, tmp_path / "g", ("value-output", "query-key"), seed=0)

Each works on named tensors in float64 and is written in float32; `tests/measures/intrinsic` checks by logits that the
function stays. Matrices are drawn with singular values between 1/2 and 2, so that float32 keeps what is exact.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from palimpsest.families import Family, Role, family_of

Drawn = torch.Generator


class Weights:
    """Tensors of one model in float64 by their name in the model; a layer's weights as (out, in) by role."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.family: Family = family_of(self.config)
        self.heads = self.family.heads(self.config)
        stored = load_file(folder / "model.safetensors")
        self.names = {self.family.in_model(n): n for n in stored}
        self.tensors = {self.family.in_model(n): t.double() for n, t in stored.items()}
        self.layers = 1 + max(int(n.split(f"{self.family.layers}.")[1].split(".")[0]) for n in self.tensors if
                              n.startswith(f"{self.family.layers}."))  # fmt: skip

    def name(self, layer: int, inside: str) -> str:
        return f"{self.family.layers}.{layer}.{inside}"

    def weight(self, layer: int, role: Role) -> Tensor:
        """(out of the role, in)."""
        whole = self.tensors[self.name(layer, f"{self.family.name(role)}.weight")]
        whole = whole.T if self.family.transposed else whole
        return whole[self.family.rows(role, self.config)].clone()

    def set_weight(self, layer: int, role: Role, value: Tensor) -> None:
        whole = self.tensors[self.name(layer, f"{self.family.name(role)}.weight")]
        (whole.T if self.family.transposed else whole)[self.family.rows(role, self.config)] = value

    def change_rows(self, layer: int, role: Role, change: Callable[[Tensor], Tensor]) -> None:
        """Change weight and bias alike: rows of (out, in), and the bias as one more column."""
        self.set_weight(layer, role, change(self.weight(layer, role)))
        bias = self.tensors.get(self.name(layer, f"{self.family.name(role)}.bias"))
        if bias is not None:
            rows = self.family.rows(role, self.config)
            bias[rows] = change(bias[rows][:, None])[:, 0]

    def change_columns(self, layer: int, role: Role, change: Callable[[Tensor], Tensor]) -> None:
        """Change a weight (out, in) from the right."""
        self.set_weight(layer, role, change(self.weight(layer, role)))

    def write(self, source: Path, out: Path) -> Path:
        shutil.copytree(source, out)
        made = {self.names[n]: t.float().contiguous() for n, t in self.tensors.items()}
        save_file(made, out / "model.safetensors", metadata={"format": "pt"})
        return out


def invertible(size: int, drawn: Drawn) -> Tensor:
    """(size, size) with singular values between 1/2 and 2."""
    left, right = (torch.linalg.qr(torch.randn(size, size, generator=drawn, dtype=torch.float64))[0] for _ in "lr")
    return left @ torch.diag(0.5 + 1.5 * torch.rand(size, generator=drawn, dtype=torch.float64)) @ right


def orthogonal(size: int, drawn: Drawn) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=drawn, dtype=torch.float64))[0]


def by_block(weight: Tensor, blocks: list[Tensor]) -> Tensor:
    """Rows of each head times that head's matrix."""
    return torch.cat([m @ part for m, part in zip(blocks, weight.split(blocks[0].shape[1]), strict=True)])


def value_output(w: Weights, drawn: Drawn) -> None:
    """V by an invertible matrix of its KV group, O by the inverse, for every query head of the group."""
    shared = w.heads.query // w.heads.key_value
    for layer in range(w.layers):
        m = [invertible(w.heads.size, drawn) for _ in range(w.heads.key_value)]
        inverse = [torch.linalg.inv(g) for g in m for _ in range(shared)]
        w.change_rows(layer, "value", lambda v, m=m: by_block(v, m))
        w.change_columns(layer, "output", lambda o, i=inverse: torch.cat(
            [part @ g for part, g in zip(o.split(w.heads.size, dim=1), i, strict=True)], dim=1))  # fmt: skip


def query_key(w: Weights, drawn: Drawn) -> None:
    """One complex number a rotary pair; any invertible matrix for what does not turn; signs where normed."""
    rotary, size, half = w.family.rotary_size(w.config), w.heads.size, w.family.rotary_size(w.config) // 2
    shared = w.heads.query // w.heads.key_value
    normed = "query" in w.family.norm_places(w.config)
    for layer in range(w.layers):
        a, b = [], []
        for _ in range(w.heads.key_value):
            first, second = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
            for pair in range(half):
                r = 0.5 + 1.5 * torch.rand((), generator=drawn, dtype=torch.float64)
                t = 6.28 * torch.rand((), generator=drawn, dtype=torch.float64)
                if normed:
                    r, t = torch.tensor(1.0), 3.141592653589793 * (t > 3.14)
                at = [pair, pair + half]
                turn = torch.tensor([[torch.cos(t), -torch.sin(t)], [torch.sin(t), torch.cos(t)]], dtype=torch.float64)
                first[at[0]][at] = r * turn[0]
                first[at[1]][at] = r * turn[1]
                second[at[0]][at] = turn[0] / r
                second[at[1]][at] = turn[1] / r
            if rotary < size:
                free = invertible(size - rotary, drawn)
                first[rotary:, rotary:], second[rotary:, rotary:] = free, torch.linalg.inv(free).T
            a.append(first)
            b.append(second)
        w.change_rows(layer, "query", lambda q, a=a: by_block(q, [m for m in a for _ in range(shared)]))
        w.change_rows(layer, "key", lambda k, b=b: by_block(k, b))


def key_bias(w: Weights, drawn: Drawn) -> None:
    """A bias that all keys share, where nothing turns: softmax does not see it."""
    for layer in range(w.layers):
        bias = w.tensors[w.name(layer, f"{w.family.name('key')}.bias")]
        rows = w.family.rows("key", w.config)
        bias[rows] += torch.randn(len(rows), generator=drawn, dtype=torch.float64)


def head_scale(w: Weights, drawn: Drawn) -> None:
    """A positive factor a query and key head, where they are normalised afterwards."""
    for layer in range(w.layers):
        for role, count in (("query", w.heads.query), ("key", w.heads.key_value)):
            factors = 0.5 + 1.5 * torch.rand(count, generator=drawn, dtype=torch.float64)
            each = factors.repeat_interleave(w.heads.size)[:, None]
            w.change_rows(layer, role, lambda x, f=each: x * f)  # type: ignore[arg-type]


def heads(w: Weights, drawn: Drawn) -> None:
    """KV groups in another order, and the query heads in each group."""
    size, groups, shared = w.heads.size, w.heads.key_value, w.heads.query // w.heads.key_value
    for layer in range(w.layers):
        order = torch.randperm(groups, generator=drawn)
        queries = torch.cat([int(g) * shared + torch.randperm(shared, generator=drawn) for g in order])
        rows = {"key": order, "value": order, "query": queries}
        for role, of in rows.items():
            places = (of[:, None] * size + torch.arange(size)).flatten()
            w.change_rows(layer, role, lambda x, p=places: x[p])  # type: ignore[arg-type]
        places = (queries[:, None] * size + torch.arange(size)).flatten()
        w.change_columns(layer, "output", lambda x, p=places: x[:, p])


def neurons(w: Weights, drawn: Drawn) -> None:
    """Feed-forward neurons in another order; with a gate signed factors on up, with ReLU positive ones."""
    activation = str(w.config.get("activation_function") or w.config.get("hidden_act") or "")
    for layer in range(w.layers):
        count = w.family.inner(w.config)
        order = torch.randperm(count, generator=drawn)
        factors = torch.ones(count, dtype=torch.float64)
        if w.family.gate or activation == "relu":
            factors = 0.5 + 1.5 * torch.rand(count, generator=drawn, dtype=torch.float64)
        if w.family.gate:
            factors *= torch.randint(0, 2, (count,), generator=drawn) * 2 - 1
            w.change_rows(layer, "gate", lambda x, o=order: x[o])
        w.change_rows(layer, "up", lambda x, o=order, f=factors: (x * f[:, None])[o])
        w.change_columns(layer, "down", lambda x, o=order, f=factors: (x / f)[:, o])


READERS: dict[str, tuple[Role, ...]] = {"attention-in": ("query", "key", "value"), "feed-forward-in": ("gate", "up")}


def gains(w: Weights, drawn: Drawn) -> None:
    """Gains of the norms that blocks read, folded into the readers: any factor in place of each gain."""
    less = 1.0 if w.family.norm == "rms-plus-one" else 0.0
    for layer in range(w.layers):
        for place, roles in READERS.items():
            norm = w.tensors[w.name(layer, w.family.norm_places(w.config)[place] + ".weight")]  # type: ignore[index]
            shift = w.tensors.get(w.name(layer, w.family.norm_places(w.config)[place] + ".bias"))  # type: ignore[index]
            factors = 0.5 + 1.5 * torch.rand(len(norm), generator=drawn, dtype=torch.float64)
            norm[:] = (norm + less) * factors - less
            if shift is not None:
                shift *= factors
            for role in roles:
                if w.family.name(role):
                    w.change_columns(layer, role, lambda x, f=factors: x / f)


def stream(w: Weights, basis: Callable[[Tensor], Tensor], vector: Callable[[Tensor], Tensor]) -> None:
    """A new basis of the residual stream. basis: (n, width) to (n, width); vector: the same for gains."""
    family = w.family
    into = [f"{family.embedding}.weight", f"{family.head}.weight"]
    into += [f"{family.positions}.weight"] if family.positions else []
    for name in into:
        if name in w.tensors and not (name == into[1] and family.tied(w.config)):
            w.tensors[name] = basis(w.tensors[name])
    for layer in range(w.layers):
        for role in ("query", "key", "value", "gate", "up"):
            if family.name(role):  # type: ignore[arg-type]
                w.change_columns(layer, role, basis)  # type: ignore[arg-type]
        for role in ("output", "down"):
            w.change_rows(layer, role, lambda x: basis(x.T).T)  # type: ignore[arg-type]
        places = family.norm_places(w.config)
        for name in {name for place, name in places.items() if place not in ("query", "key")}:
            for part in (f"{name}.weight", f"{name}.bias"):
                if w.name(layer, part) in w.tensors:
                    w.tensors[w.name(layer, part)] = vector(w.tensors[w.name(layer, part)])
    for part in ("weight", "bias"):
        if f"{family.final_norm}.{part}" in w.tensors:
            w.tensors[f"{family.final_norm}.{part}"] = vector(w.tensors[f"{family.final_norm}.{part}"])


def stream_permutation(w: Weights, drawn: Drawn) -> None:
    """The residual basis in another order; signs too where norms take no mean away."""
    order = torch.randperm(w.family.width(w.config), generator=drawn)
    signs = torch.ones(len(order), dtype=torch.float64)
    if w.family.norm.startswith("rms"):
        signs = (torch.randint(0, 2, (len(order),), generator=drawn) * 2 - 1).double()
    stream(w, lambda x: (x * signs)[:, order], lambda v: v[order])


def stream_rotation(w: Weights, drawn: Drawn) -> None:
    """Any rotation of the residual stream, gains folded into their readers first. RMS norms, untied, no post-norms."""
    for layer in range(w.layers):
        for place, roles in READERS.items():
            norm = w.tensors[w.name(layer, w.family.norm_places(w.config)[place] + ".weight")]  # type: ignore[index]
            kept = norm.clone()
            for role in roles:
                w.change_columns(layer, role, lambda x, n=kept: x * n)
            norm[:] = 1.0
    w.tensors[f"{w.family.head}.weight"] *= w.tensors[f"{w.family.final_norm}.weight"]
    w.tensors[f"{w.family.final_norm}.weight"][:] = 1.0
    turn = orthogonal(w.family.width(w.config), drawn)
    stream(w, lambda x: x @ turn, lambda v: v)


def stream_scale(w: Weights, drawn: Drawn) -> None:
    """One factor on all that is written into the stream; what the norms' epsilon does not see."""
    into = [f"{w.family.embedding}.weight"] + ([f"{w.family.positions}.weight"] if w.family.positions else [])
    for name in into:
        w.tensors[name] *= 4.0
    for layer in range(w.layers):
        for role in ("output", "down"):
            w.change_rows(layer, role, lambda x: 4.0 * x)  # type: ignore[arg-type]
    if w.family.tied(w.config):  # the head has become as much larger
        less = 1.0 if w.family.norm == "rms-plus-one" else 0.0
        gain = w.tensors[f"{w.family.final_norm}.weight"]
        gain[:] = (gain + less) / 4.0 - less
        if f"{w.family.final_norm}.bias" in w.tensors:
            w.tensors[f"{w.family.final_norm}.bias"] /= 4.0


def stream_mean(w: Weights, drawn: Drawn) -> None:
    """A multiple of (1, ..., 1) on everything that is written, where norms take the mean away. Untied only."""
    for name in [f"{w.family.embedding}.weight"] + ([f"{w.family.positions}.weight"] if w.family.positions else []):
        rows = w.tensors[name]
        rows += torch.randn(len(rows), 1, generator=drawn, dtype=torch.float64)
    for layer in range(w.layers):
        for role in ("output", "down"):
            w.change_rows(  # the same row added to all rows: one number more on every feature
                layer,
                role,
                lambda x: x + torch.randn(1, x.shape[1], generator=drawn, dtype=torch.float64),  # type: ignore[arg-type]
            )


GAUGES: dict[str, Callable[[Weights, Drawn], None]] = {
    "value-output": value_output,
    "query-key": query_key,
    "key-bias": key_bias,
    "head-scale": head_scale,
    "heads": heads,
    "neurons": neurons,
    "gains": gains,
    "stream-permutation": stream_permutation,
    "stream-rotation": stream_rotation,
    "stream-scale": stream_scale,
    "stream-mean": stream_mean,
}


def gauged(source: Path, out: Path, which: tuple[str, ...] | str, seed: int = 0) -> Path:
    """Write `source` with some gauges applied one after the other; returns `out`."""
    weights = Weights(source)
    drawn = torch.Generator().manual_seed(seed)
    for name in (which,) if isinstance(which, str) else which:
        GAUGES[name](weights, drawn)
    return weights.write(source, out)
