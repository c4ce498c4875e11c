"""LoRA adapters merged into an adapter: `linear` and `task-arithmetic`, by delta or by factor.

By delta (the default) the merged adapter's effect is the weighted sum of the adapters' effects, exactly: ranks are
stacked, A = [A_1; A_2; ...] and B = [w_1 s_1 B_1, w_2 s_2 B_2, ...] with scales s_i and weights w_i folded in, so that
B A = sum of w_i s_i B_i A_i and the merged scale is 1. The rank is the sum of the ranks.

By factor A and B are averaged apart, as the published WAG code does (arXiv 2402.19334, section 3 speaks of weights):
mean(B) mean(A) is not the mean of B A, and for adapters that were trained apart may be far from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palimpsest import registry
from palimpsest.checkpoint.files import TensorInfo
from palimpsest.errors import BadInput
from palimpsest.merging.adapters import Adapter, Pair, read_whole
from palimpsest.merging.jobs import DTYPES
from palimpsest.merging.parameters import fits
from palimpsest.merging.passes import merge_tensors, per_model
from palimpsest.merging.reading import STORED_NAMES
from palimpsest.merging.request import MergeRequest
from palimpsest.merging.task_arithmetic import scaled
from palimpsest.merging.writing import Shards, Slot
from palimpsest.method import build

_METHODS = ("linear", "task-arithmetic")
_PREFIX = "base_model.model."
_SAME = ("fan_in_fan_out", "task_type")


def merge_adapters(request: MergeRequest, folder: Path) -> tuple[int, int, int, list[str]]:
    """Write the merged adapter into `folder`: (tensors, bytes read, bytes written, notes). Raises BadInput."""
    method = registry.find(request.method, "merges").info.name
    if method not in _METHODS:
        raise BadInput(
            f"{method}: adapters alone are merged by {' and '.join(_METHODS)}; with --base, the whole model that they "
            "are adapters of, every method takes them and gives a whole model"
        )
    adapters = [Adapter(p.model) for p in request.parts]
    copied = _copied(request, adapters)
    _check_alike(adapters)
    weights = _weights(request, method)
    by_factor = request.adapters == "factor"
    modules = sorted({m for a in adapters for m in a.pairs})
    groups = {m: [(a.pairs.get(m), w, a.model.name) for a, w in zip(adapters, weights, strict=True)] for m in modules}
    for module, group in groups.items():
        _check_shapes(module, group, by_factor)
    replaced = _replaced(adapters, method, copied)
    dtype = DTYPES[request.dtype or "float32"]
    slots: list[Slot] = []
    ranks = {}
    for module, group in groups.items():
        pairs = [p for p, _, _ in group if p is not None]
        ranks[module] = rank = pairs[0].rank if by_factor else sum(p.rank for p in pairs)
        for which, shape in (("A", (rank, pairs[0].a.shape[1])), ("B", (pairs[0].b.shape[0], rank))):
            slots.append(_slot(_name(module, which, pairs[0]), shape, dtype))
    slots += [_slot(_PREFIX + n, (copied.get(n) or adapters[0].replaced[n]).shape, dtype) for n in replaced]
    shards = Shards(folder, slots, "adapter_model", largest=1 << 62)  # PEFT reads one file
    try:
        for module, group in groups.items():
            a, b = _averaged(group) if by_factor else stacked(group)
            first = next(p for p, _, _ in group if p is not None)
            _write(shards, _name(module, "A", first), a.to(dtype))
            _write(shards, _name(module, "B", first), b.to(dtype))
        total = sum(weights)
        for name in replaced:
            if name in copied:
                _write(shards, _PREFIX + name, read_whole(copied[name], request.method).to(dtype))
                continue
            tensors = [read_whole(a.replaced[name], a.model.name) for a in adapters]
            mean = build(registry.find("linear"), settings={"weight": [w / total for w in weights]})
            _write(shards, _PREFIX + name, merge_tensors(mean, tensors).to(dtype))
    finally:
        shards.close()
    _write_config(adapters, ranks, folder, by_factor)
    read = sum(t.end - t.start for p in request.parts for t in p.model.tensors())
    notes = ["by factor: A and B are averaged apart, which is not the average of the adapters"] if by_factor else []
    return len(slots), read, sum(s.size for s in slots), notes


def _weights(request: MergeRequest, method: str) -> list[float]:
    """The factor of each adapter's delta."""
    own = [p.settings.get("weight") for p in request.parts]
    shared = dict(request.settings)
    if any(w is not None for w in own):
        default = shared.get("weight", 1.0)
        own = [default if w is None else w for w in own]
        shared["weight"] = own
    elif isinstance(shared.get("weight"), list):
        raise BadInput("weight: adapters alone have one weight each, and not a gradient or filters")
    if any(not isinstance(w, int | float | str) for w in own if w is not None):
        raise BadInput("weight: adapters alone have one weight each, and not a gradient or filters")
    instance: Any = build(registry.find(method), settings=shared)
    weights = per_model(instance.weight, len(request.parts), "weight")
    if method == "linear" and instance.normalize and not sum(weights):
        raise BadInput("linear: the weights sum to 0; set normalize=false, or other weights")
    return scaled(weights, instance.normalize, getattr(instance, "lambda_", 1.0))


def _check_alike(adapters: Sequence[Adapter]) -> None:
    first = adapters[0]
    for other in adapters[1:]:
        for name in _SAME:
            if (other.config.get(name) or None) != (first.config.get(name) or None):
                raise BadInput(
                    f"{other.model.name}: {name} is {other.config.get(name)!r}, in {first.model.name} "
                    f"{first.config.get(name)!r}; adapters that are merged have to agree in it"
                )


def _check_shapes(module: str, group: Sequence[tuple[Pair | None, float, str]], by_factor: bool) -> None:
    there = [(p, name) for p, _, name in group if p is not None]
    (first, first_name), *others = there
    for pair, name in others:
        if pair.delta_shape != first.delta_shape or pair.embedding != first.embedding:
            raise BadInput(
                f"{module}: {name} changes a weight of the shape {list(pair.delta_shape)}, {first_name} "
                f"{list(first.delta_shape)}; they are adapters of different models"
            )
        if by_factor and (pair.rank != first.rank or pair.scale != first.scale):
            raise BadInput(
                f"--adapters factor: {module} has rank {pair.rank} and scale {pair.scale:g} in {name}, {first.rank} "
                f"and {first.scale:g} in {first_name}; --adapters delta takes adapters that differ"
            )
    if by_factor and len(there) < len(group):
        lacking = next(name for p, _, name in group if p is None)
        raise BadInput(f"--adapters factor: {lacking} has no {module}; --adapters delta takes that as no change")


def _copied(request: MergeRequest, adapters: Sequence[Adapter]) -> dict[str, TensorInfo]:
    """Whole tensors that are one adapter's own, by name. Raises BadInput for a copy of anything else."""
    found: dict[str, TensorInfo] = {}
    for copy in request.copies:
        donor = {} if copy.part is None else adapters[copy.part].replaced
        names = [n for n in donor if fits(copy.pattern, n)]
        if not names:
            raise BadInput(f"--copy {copy.pattern}: is not for adapters alone; give --base for a whole model")
        found |= {n: donor[n] for n in names}
    return found


def _replaced(adapters: Sequence[Adapter], method: str, copied: Mapping[str, TensorInfo]) -> list[str]:
    """Tensors that the adapters bring whole (modules_to_save). copied: those that are one adapter's own."""
    names = sorted({n for a in adapters for n in a.replaced if n not in copied} | set(copied))
    for name in (n for n in names if n not in copied):
        lacking = next((a for a in adapters if name not in a.replaced), None)
        if lacking is not None or method != "linear":
            why = f"{lacking.model.name} has none" if lacking else f"{method} needs the base's to add to"
            raise BadInput(f"{name} is whole in an adapter, and {why}; give --base for a whole model")
        if len({a.replaced[name].shape for a in adapters}) > 1:
            raise BadInput(f"{name} has different shapes in the adapters")
    return names


def stacked(group: Sequence[tuple[Pair | None, float, str]]) -> tuple[Tensor, Tensor]:
    """A (sum of ranks, in) and B (out, sum of ranks) whose product is the weighted sum of the deltas."""
    there = [(p, w, name) for p, w, name in group if p is not None]
    a = torch.cat([read_whole(p.a, name) for p, _, name in there])
    b = torch.cat([read_whole(p.b, name) * (w * p.scale) for p, w, name in there], dim=1)
    return a, b


def _averaged(group: Sequence[tuple[Pair | None, float, str]]) -> tuple[Tensor, Tensor]:
    """A and B each as their weighted sums; scale and rank stay."""
    pairs = [(p, w, name) for p, w, name in group if p is not None]
    a = torch.stack([read_whole(p.a, name) * w for p, w, name in pairs]).sum(0)
    b = torch.stack([read_whole(p.b, name) * w for p, w, name in pairs]).sum(0)
    return a, b


def _name(module: str, which: str, pair: Pair) -> str:
    kind = f"lora_embedding_{which}" if pair.embedding else f"lora_{which}.weight"
    return f"{_PREFIX}{module}.{kind}"


def _slot(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Slot:
    return Slot(name, STORED_NAMES[dtype], shape, torch.Size(shape).numel() * dtype.itemsize)


def _write(shards: Shards, name: str, tensor: Tensor) -> None:
    stored = tensor.contiguous().flatten().view(torch.uint8)
    shards.write(name, 0, memoryview(stored.numpy()))  # type: ignore[arg-type]


def _write_config(adapters: Sequence[Adapter], ranks: dict[str, int], folder: Path, by_factor: bool) -> None:
    config = dict(adapters[0].config)
    if not by_factor:
        rank = max(ranks.values(), key=list(ranks.values()).count) if ranks else config.get("r", 8)
        others = {re.escape(m): r for m, r in ranks.items() if r != rank}
        config |= {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": others, "alpha_pattern": others}
        config |= {"init_lora_weights": True, "inference_mode": True}
        # Patterns of layers cannot say which modules several adapters have together: name each.
        named = {"layers_to_transform": None, "layers_pattern": None, "exclude_modules": None}
        config |= {**named, "target_modules": sorted(ranks)}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
