"""What Wanda and SparseGPT share: calibrate, go through the layers, change each projection, write the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, write_model
from palimpsest.data import Dialogues
from palimpsest.families import family_of
from palimpsest.method import Context, Made
from palimpsest.removals.change import change_of
from palimpsest.removals.weights.calibration import calibration
from palimpsest.removals.weights.layer_inputs import walk
from palimpsest.removals.weights.magnitude import check_sparsity, pruned_names
from palimpsest.removals.weights.rewriting import named_tensors
from palimpsest.removals.weights.scoring import as_out_in
from palimpsest.removals.weights.unstructured import check_pattern, pattern_of, pruning_record
from palimpsest.training.finetune import Stopwatch


class Gathered(Protocol):
    """What is added up of a projection's inputs."""

    def add(self, inputs: Tensor) -> None:
        """inputs: (tokens, in) float32."""
        ...


def prune_layerwise(
    model: Checkpoint,
    out: Path,
    ctx: Context,
    method: str,
    data: Dialogues | None,
    samples: int,
    tokens: int,
    sparsity: float,
    pattern: str,
    gather: Callable[[int, torch.device], Any],
    prune: Callable[[Tensor, Any, tuple[int, int] | None], Tensor],
) -> Made:
    """Prune all layers' projections one after the other and write the model.

    gather: makes a `Gathered` for a number of inputs. prune: (weight (out, in) float32, what was gathered, n:m) to the
    pruned weight. Raises BadInput before the model is loaded.
    """
    watch = Stopwatch()
    runs = pattern_of(pattern, method)
    if runs is None:
        check_sparsity(sparsity, method)
    tensors, family = named_tensors(model), family_of(model.config)
    names = pruned_names(model, method)
    check_pattern(runs, {n: tensors[n].shape[0 if family.transposed else 1] for n in names}, method)
    read = calibration(data, model, samples, tokens, ctx.seed, method)
    network = load_model(model, ctx)
    gone = 0
    with ctx.progress.task(method, len(network.get_submodule(family.layers))) as task:
        for layer in walk(network, family, read.ids):
            found = layer.projections(family)
            seen = _observed(layer.observe, found, gather, family.transposed)
            for name, module in found.items():
                stored: Any = module.weight.data
                weight = as_out_in(stored, family.transposed)  # a view: what is copied to it stays
                weight.copy_(prune(weight.float(), seen[name], runs))
                gone += int((weight == 0).sum())
            task.advance(1)
    moved = change_of(network, model)
    made = write_model(network, model, out, method, {"model": model.digest()})
    among = sum(tensors[n].count for n in names)
    record = pruning_record(method, made, ctx, watch, gone, among, sum(t.count for t in tensors.values()))
    record.tokens = read.tokens
    wanted: dict[str, Any] = {"pattern": pattern} if runs else {"sparsity": sparsity}
    record.detail |= {**wanted, "calibration": read.source, "rows": len(read.ids), **moved}
    return Made(made, records=[record])


def _observed(
    observe: Callable[[dict[str, nn.Module], Callable[[str, Tensor], None]], None],
    projections: Mapping[str, nn.Module],
    gather: Callable[[int, torch.device], Any],
    transposed: bool,
) -> dict[str, Gathered]:
    seen: dict[str, Gathered] = {}
    for name, module in projections.items():
        weight: Any = module.weight
        seen[name] = gather(as_out_in(weight, transposed).shape[1], weight.device)
    observe(dict(projections), lambda name, inputs: seen[name].add(inputs))
    return seen
