"""MergeBarrier's feed-forward part (arXiv 2511.10712): Taylor coefficients in the place of weights. An experiment."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint, lineage
from palimpsest.checkpoint.load import copy_tokenizer, load_model
from palimpsest.cost import count_tokens
from palimpsest.data import Dialogues
from palimpsest.errors import BadInput
from palimpsest.families import Family, family_of
from palimpsest.merging.writing import Shards, Slot
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.protections.applying import Layers, protection_record
from palimpsest.protections.coefficient_ratio import recover
from palimpsest.protections.expansion import MODEL_TYPE, at_order, load_expanded, part_name
from palimpsest.protections.secret import Secret, secret_generator
from palimpsest.protections.taylor import coefficients
from palimpsest.protections.traits import Traits
from palimpsest.records import Record
from palimpsest.removals.weights.calibration import calibration
from palimpsest.removals.weights.rewriting import bytes_of, named_tensors, read_tensor
from palimpsest.statistics import clopper_pearson
from palimpsest.symmetry.described import activation
from palimpsest.training.finetune import Stopwatch

NAMES = {"float32": ("F32", torch.float32), "bfloat16": ("BF16", torch.bfloat16), "float64": ("F64", torch.float64)}
FOUND = 1e-2  # relative error of a gate row under which a neuron counts as recovered


@dataclass
class _Part:
    """What is stored of a layer's expanded neurons, and the secret of them. clear: neurons that stay as they are."""

    clear: Tensor
    expanded: Tensor
    tensors: dict[str, Tensor]
    scale: Tensor
    point: Tensor


@method(
    "protections", "mergebarrier-ffn", paper="MergeBarrier, arXiv 2511.10712, feed-forward part; TaylorMLP (EMNLP 2024)"
)
@dataclass(frozen=True)
class MergeBarrierFFN:
    """Publish Taylor coefficients of the feed-forward instead of its weights: not exact, and not stock code.

    As noted of the paper (second-hand): the activation is expanded around the midpoint of the values that it takes on
    data, order N trades precision for security, and the remainder is said to act as the noise of an LWE problem. Per
    neuron i with gate row g, up row u, down column w, activation f (our reconstruction): s g, s z0, u and
    C_n = s^-n f^(n)(z0) / n! w are published, n = 0..N; the neuron gives (u . x) sum_n C_n (s g . x - s z0)^n. Like the
    nearest public code (TaylorMLP) only the `neurons` with the narrowest range of values are expanded, and computed in
    float32; its secret is a sign, here a number of either sign with |s| in [1 / `condition`, `condition`].

    What is written loads with `protections.expansion` only. The record says the precision and cost by order, and how
    many neurons the coefficient-ratio attack recovers from the published tensors alone, with no base: the remainder is
    an error of evaluation, not noise on what is published, so the LWE argument does not speak of that attacker. Claims
    of differential privacy are not examined here.
    """

    traits: ClassVar[Traits] = Traits(
        base="no",
        data="needed",
        training=False,
        exact=False,
        changes="the feed-forward's expanded neurons, and the code that runs it",
        costs="a pass over the data; N + 1 columns a neuron in the place of one, and as many products",
        stock=False,
        unpublished="N, which neurons, the calibration data, the scale; the form is a reconstruction",
    )
    data: Dialogues | None = takes("dialogues to calibrate on (default: the toy world's)")
    order: int = param(12, "N, the highest power (TaylorMLP's default)", low=2, high=40)
    neurons: int = param(256, "neurons of each layer that are expanded (TaylorMLP's default)", low=1)
    max_gap: float | None = param(None, "expand only neurons whose values span less than this on the data", low=0.0)
    condition: float = param(2.0, "the secret |s| lies in [1 / condition, condition]", low=1.0, high=100.0)
    stored: Literal["float32", "bfloat16", "float64"] = param("float32", "dtype of rows, shifts and coefficients")
    samples: int = param(32, "windows of the data to calibrate on; an eighth as many more to measure on", low=1)
    tokens: int = param(128, "tokens of a window", low=2)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the expanded model to `out`."""
        watch = Stopwatch()
        family, name = family_of(model.config), activation(model.config)
        if family.gate and family.gate == family.up:
            raise BadInput(
                f"mergebarrier-ffn: {model.name} keeps gate and up in one projection, which is not expanded here"
            )
        coefficients(name, torch.zeros(1), 2)  # refuses an activation without a series
        layers = Layers(model, "mergebarrier-ffn")
        measured = max(1, self.samples // 8)
        read = calibration(self.data, model, self.samples + measured, self.tokens, ctx.seed, "mergebarrier-ffn")
        measured = min(measured, max(1, len(read.ids) // 2))
        network = load_model(model, ctx, "float32")
        low, high = ranges(network, family, read.ids[: max(1, len(read.ids) - measured)])
        generator = secret_generator(ctx)
        parts = [self._part(layers, n, name, low[n], high[n], generator) for n in range(layers.sizes.layers)]
        made = self._write(model, out, family, name, parts)
        probe = read.ids[-measured:]
        facts, agreed, n = self._precision(made, network, probe)
        detail = {
            "order": self.order,
            "neurons": [len(p.expanded) for p in parts],
            "neurons_of": layers.sizes.inner,
            "stored": self.stored,
            "calibration": read.source,
            "size": sum(t.end - t.start for t in made.tensors()) / sum(t.end - t.start for t in model.tensors()),
            **facts,
        }
        record = protection_record(made, "mergebarrier-ffn", self.traits, {}, detail)
        record.seconds = watch.seconds
        records = [
            record,
            _share("agreement", "next-token", agreed, n, made),
            self._attacked(layers, name, parts, made),
        ]
        secret = {f"layers.{i}.{k}": getattr(p, k) for i, p in enumerate(parts) for k in ("expanded", "scale", "point")}
        digests = {"method": "mergebarrier-ffn", "model": model.digest(), "protected": made.digest()}
        return Made(made, records=records, secret=Secret(secret, digests))

    def _part(
        self, layers: Layers, number: int, name: str, low: Tensor, high: Tensor, generator: torch.Generator
    ) -> _Part:
        gap = (high - low).double()
        order = gap.argsort(stable=True)
        count = min(self.neurons, layers.sizes.inner)
        if self.max_gap is not None:
            count = min(count, int((gap < self.max_gap).sum()))
        chosen, clear = order[:count].sort().values, order[count:].sort().values
        drawn = torch.rand(2, count, generator=generator, dtype=torch.float64)
        scale = self.condition ** (2 * drawn[0] - 1) * torch.where(drawn[1] < 0.5, -1.0, 1.0)
        point = ((low + high).double() / 2)[chosen]
        first = "gate" if layers.family.gate else "up"
        rows, bias = layers.weight(number, first)[chosen].double(), layers.bias(number, first)  # type: ignore[arg-type]
        shift = point if bias is None else point - bias[chosen].double()
        terms = coefficients(name, point, self.order)  # (N + 1, k)
        powers = torch.stack([scale**-n for n in range(self.order + 1)])
        columns = layers.weight(number, "down")[:, chosen].t().double()  # (k, d)
        found = {
            "rows": rows * scale[:, None],
            "shift": shift * scale,
            "coefficients": (terms * powers)[:, :, None] * columns,
        }
        if layers.family.gate:
            found["up"] = layers.weight(number, "up")[chosen]
            if (more := layers.bias(number, "up")) is not None:
                found["up_bias"] = more[chosen]
        dtype = NAMES[self.stored][1]
        return _Part(clear, chosen, {k: t.to(dtype).contiguous() for k, t in found.items()}, scale, point)

    def _write(self, model: Checkpoint, out: Path, family: Family, name: str, parts: list[_Part]) -> Checkpoint:
        """The folder: the stock tensors without the expanded neurons, and beside them what was made of these."""
        out.mkdir(parents=True, exist_ok=True)
        tensors = named_tensors(model)
        kept = {tensor: keep for i, p in enumerate(parts) for tensor, keep in _kept(family, i, p.clear, set(tensors))}
        own = {part_name(family, i, k): t for i, p in enumerate(parts) for k, t in p.tensors.items() if t.numel()}
        slots = []
        for tensor, info in tensors.items():
            shape = list(info.shape)
            if tensor in kept:
                shape[kept[tensor][0]] = len(kept[tensor][1])
            width = (info.end - info.start) // max(1, info.count)
            slots.append(Slot(tensor, info.dtype, tuple(shape), width * torch.Size(shape).numel()))
        slots += [Slot(n, NAMES[self.stored][0], tuple(t.shape), t.numel() * t.element_size()) for n, t in own.items()]
        shards = Shards(out, slots)
        try:
            for tensor, info in tensors.items():
                if tensor in kept:
                    shards.write(tensor, 0, bytes_of(read_tensor(info).index_select(*kept[tensor])))
                else:
                    shards.write(tensor, 0, memoryview(b"".join(info.chunks())))
            for tensor, value in own.items():
                shards.write(tensor, 0, bytes_of(value))
        finally:
            shards.close()
        facts = {
            "model_type": model.config["model_type"],
            "activation": name,
            "order": self.order,
            "neurons": [len(p.expanded) for p in parts],
        }
        config = {**model.config, "model_type": MODEL_TYPE, "architectures": ["PalimpsestExpanded"], "expanded": facts}
        (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        copy_tokenizer(model.path, out)
        lineage.write(out, model.chain(), "mergebarrier-ffn", {"model": model.digest()})
        return Checkpoint(out, out.name)

    def _precision(self, made: Checkpoint, network: Any, ids: Tensor) -> tuple[dict[str, Any], int, int]:
        """(precision and cost by order, agreeing first choices at the full order, of how many)."""
        expanded = load_expanded(made).to(network.device)
        ids = ids.to(network.device)
        with torch.inference_mode():
            before, plain = _timed(network, ids)
            rows = []
            for order in range(1, self.order + 1):
                with at_order(expanded, order):
                    after, seconds = _timed(expanded, ids)
                same = int((before.argmax(-1) == after.argmax(-1)).sum())
                error = float((after - before).abs().max() / before.abs().max())
                rows.append({"order": order, "relative_error": error, "agreement": same / before[..., 0].numel()})
        return {"by_order": rows, "latency": seconds / plain}, same, before[..., 0].numel()

    def _attacked(self, layers: Layers, name: str, parts: list[_Part], made: Checkpoint) -> Record:
        """How many expanded neurons the coefficient-ratio attack gets out of what is published."""
        first: Literal["gate", "up"] = "gate" if layers.family.gate else "up"
        hit = total = 0
        for number, part in enumerate(parts):
            if not len(part.expanded):
                continue
            biased = layers.bias(number, first) is not None
            shift = None if biased else part.tensors["shift"].double()
            found = recover(part.tensors["coefficients"].double(), name, shift)
            truth = layers.weight(number, first)[part.expanded].double()
            rows = part.tensors["rows"].double() / found.scale[:, None]
            error = (rows - truth).norm(dim=1) / truth.norm(dim=1).clamp_min(1e-300)
            hit, total = hit + int((error < FOUND).sum()), total + len(error)
        record = _share("recovery", "coefficient-ratio", hit, total, made)
        record.detail |= {"within": FOUND, "of": "gate rows, relative", "base": "none"}
        return record


def ranges(network: Any, family: Family, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest value that each neuron's activation is given on tokens: two of (layers, inner) float32."""
    role: Literal["gate", "up"] = "gate" if family.gate else "up"
    rows = torch.tensor(family.rows(role, network.config.to_dict()))
    found: list[list[Tensor]] = []
    handles = []
    for layer in network.get_submodule(family.layers):
        seen: list[Tensor] = []
        found.append(seen)

        def note(_: Any, inputs: Any, output: Tensor, seen: list[Tensor] = seen) -> None:
            values = output.reshape(-1, output.shape[-1])[:, rows.to(output.device)].float()
            low, high = values.amin(dim=0).cpu(), values.amax(dim=0).cpu()
            seen[:] = [torch.minimum(seen[0], low), torch.maximum(seen[1], high)] if seen else [low, high]

        handles.append(layer.get_submodule(family.name(role)).register_forward_hook(note))
    try:
        with torch.inference_mode():
            for row in ids:
                count_tokens(row.numel())
                network(input_ids=row[None].to(network.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([s[0] for s in found]), torch.stack([s[1] for s in found])


def _kept(family: Family, layer: int, clear: Tensor, names: set[str]) -> list[tuple[str, tuple[int, Tensor]]]:
    """(tensor, (dimension, neurons that stay)) of a layer's feed-forward."""
    start = f"{family.layers}.{layer}."
    found = []
    for module in filter(None, (family.gate, family.up)):
        found.append((f"{start}{module}.weight", (1 if family.transposed else 0, clear)))
        if f"{start}{module}.bias" in names:
            found.append((f"{start}{module}.bias", (0, clear)))
    return [*found, (f"{start}{family.down}.weight", (0 if family.transposed else 1, clear))]


def _timed(network: Any, ids: Tensor) -> tuple[Tensor, float]:
    """(logits, seconds) of one forward pass."""
    started = time.perf_counter()
    logits: Tensor = network(input_ids=ids, use_cache=False).logits.float()
    return logits, time.perf_counter() - started


def _share(measure: str, task: str, count: int, n: int, made: Checkpoint) -> Record:
    interval = clopper_pearson(count, n) if n else None
    return Record(
        measure,
        value=count / n if n else None,
        count=count,
        n=n,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        confidence=0.95,
        sided="two",
        model=made.name,
        chain=made.chain(),
        task=task,
    )
