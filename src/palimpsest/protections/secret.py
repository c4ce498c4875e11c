"""What an owner keeps of a protection: the gauge, in a safetensors file of mode 0600 beside the publishable folder.

A secret never enters the model's folder, its lineage, a log or a report. Randomness comes of the system's entropy, all
19,968 bits of the generator's state, unless a seed is given: then the secret is only as secret as the seed.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.symmetry.gauge import Gauge, LayerGauge, Rotation, SignedPermutation

FILE = "secret.safetensors"
_HEADER, _COMPLEX = "palimpsest-secret", "/complex"
_WORDS, _FIRST = 624, 24  # of MT19937's state; where they begin in torch's, 8 bytes each


@dataclass(frozen=True, eq=False)
class Secret:
    """Tensors by name, and plain facts about them (`method`, digests of the models before and after)."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file, mode 0600."""
        write_secret(self.tensors, path, self.facts)

    def gauge(self) -> Gauge:
        """The gauge that these tensors are. Raises BadInput where they are none."""
        return gauge_of(self.tensors)


def secret_generator(ctx: Context) -> torch.Generator:
    """A generator whose whole state is drawn from the system's entropy, or follows from the given seed.

    Not `manual_seed`: torch keeps 32 bits of a seed on the CPU, few enough to try them all.
    """
    drawn = ctx.key_randomness()
    made = torch.Generator().manual_seed(0)
    state = made.get_state()
    words = torch.frombuffer(bytearray(drawn.randbytes(4 * _WORDS)), dtype=torch.int32)
    wide = state[_FIRST : _FIRST + 8 * _WORDS].view(torch.int32)  # each word lies in the low half of 8 bytes
    wide[0::2] = words
    made.set_state(state)
    return made


def secret_seed(ctx: Context) -> int:
    """128 random bits for draws by position (`merging.randomness`), from the same source."""
    drawn: random.Random = ctx.key_randomness()
    return drawn.getrandbits(128)


def write_secret(what: Gauge | Mapping[str, Tensor], path: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write a gauge or named tensors with some facts; seen whole or not at all, readable by the owner alone."""
    tensors = tensors_of(what) if isinstance(what, Gauge) else dict(what)
    header = {_HEADER: json.dumps({"format": 1, **(facts or {})}, sort_keys=True)}
    content = save(dict(_storable(n, t.detach().cpu()) for n, t in tensors.items()), header)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_secret(path: Path) -> Secret:
    """Read what `write_secret` wrote. Raises BadInput for any other file."""
    try:
        with safe_open(path, framework="pt") as stored:
            facts = json.loads((stored.metadata() or {})[_HEADER])
            names = list(stored.keys())
            tensors = dict(_as_it_was(name, stored.get_tensor(name)) for name in names)
    except (OSError, SafetensorError, KeyError, ValueError):
        raise BadInput(f"{path}: is no secret of `palimpsest protect`") from None
    if facts.pop("format", None) != 1:
        raise BadInput(f"{path}: is a secret of another format than this version reads")
    return Secret(tensors, facts)


def _storable(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """safetensors knows no complex128: complex numbers as pairs of real ones."""
    if tensor.is_complex():
        return name + _COMPLEX, torch.view_as_real(tensor).contiguous()
    return name, tensor.contiguous()


def _as_it_was(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    if name.endswith(_COMPLEX):
        return name.removesuffix(_COMPLEX), torch.view_as_complex(tensor)
    return name, tensor


def tensors_of(gauge: Gauge) -> dict[str, Tensor]:
    """A gauge as named tensors; those that are the identity are left out."""
    found: dict[str, Tensor] = {"layers": torch.tensor([len(gauge.layers)])}
    for number, layer in enumerate(gauge.layers):
        for part in fields(layer):
            value = getattr(layer, part.name)
            if isinstance(value, Tensor):
                found[f"layers.{number}.{part.name}"] = value
        found |= {f"layers.{number}.norms.{place}": gain for place, gain in layer.norms.items()}
    if isinstance(gauge.residual, Rotation):
        found["residual.matrix"] = gauge.residual.matrix
    elif gauge.residual is not None:
        found |= {"residual.index": gauge.residual.index, "residual.sign": gauge.residual.sign}
    if gauge.final_norm is not None:
        found["final_norm"] = gauge.final_norm
    return found


def gauge_of(tensors: Mapping[str, Tensor]) -> Gauge:
    """The inverse of `tensors_of`."""
    if "layers" not in tensors:
        raise BadInput("the secret holds no gauge")
    layers = []
    for number in range(int(tensors["layers"])):
        start = f"layers.{number}."
        own = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
        norms: dict[Any, Tensor] = {n.removeprefix("norms."): t for n, t in own.items() if n.startswith("norms.")}
        parts: dict[str, Any] = {n: t for n, t in own.items() if not n.startswith("norms.")}
        layers.append(LayerGauge(**parts, norms=norms))
    residual: Rotation | SignedPermutation | None = None
    if "residual.matrix" in tensors:
        residual = Rotation(tensors["residual.matrix"])
    elif "residual.index" in tensors:
        residual = SignedPermutation(tensors["residual.index"], tensors["residual.sign"])
    return Gauge(tuple(layers), residual, tensors.get("final_norm"))
