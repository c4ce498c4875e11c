"""Shrinking the task vector towards the base: a control for removals by merging."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from safetensors.torch import save_file

from palimpsest.checkpoint import Checkpoint, lineage
from palimpsest.checkpoint.files import TensorInfo
from palimpsest.errors import BadInput
from palimpsest.merging.adapters import Adapter, read_whole
from palimpsest.merging.reading import STORED
from palimpsest.merging.task_arithmetic import TaskArithmetic
from palimpsest.merging.weights import Weights
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.records import Record
from palimpsest.removals.by_merging.partners import inner
from palimpsest.removals.change import change
from palimpsest.removals.weights.rules import Rule, rewrite


@method("removals", "shrink", paper="task arithmetic with one task vector: arXiv 2212.04089, section 2")
@dataclass(frozen=True)
class Shrink:
    """Keep a share of what fine-tuning changed: theta_base + share * (theta_marked - theta_base).

    What a merge with any model that is near the base does to the mark, without the other model: share 1 is the
    marked model, 0 the base with the marked model's tokenizer. Threat model: the thief has the weights and the
    public base, no data. Config and tokenizer are the marked model's. Of an adapter B is multiplied by the share, so
    that it adds share * B A; its base is needed only for tensors that it brings whole (a score head).
    """

    takes_adapters: ClassVar[bool] = True
    base: Checkpoint | None = takes("the checkpoint that the marked model was made from")
    share: float = param(0.5, "share of the task vector that is kept", low=0.0, high=1.0)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the shrunk checkpoint to `out`. Raises BadInput without a base, or with one of another shape."""
        if model.is_adapter:
            return self._adapter(model, out, ctx)
        if self.base is None:
            raise BadInput("shrink: needs the base that the marked model was made from; name it with --base")
        merge = TaskArithmetic(weight=(self.share,))

        def rule_for(name: str, info: TensorInfo) -> Rule | None:
            return Rule(merge.passes, info.shape)

        made, change = rewrite(model, out, ctx, rule_for, method="shrink", base=self.base)
        left = None if self.share == 1 else change.norm * self.share / (1 - self.share)
        made.records[0].detail |= {"share": self.share} | ({} if left is None else {"task_vector_left": left})
        return made

    def _adapter(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """The adapter with B, and what it brings whole, drawn towards the base."""
        adapter = Adapter(model)
        ground = None if self.base is None else Weights(self.base)
        if ground is None and adapter.replaced:
            raise BadInput(
                f"shrink: {model.name} brings {min(adapter.replaced)} whole; name the base that it was made on with "
                "--base"
            )
        scaled = {pair.b.name for pair in adapter.pairs.values()}
        below = {info.name: name for name, info in adapter.replaced.items()}
        tensors, before = {}, 0.0
        for info in model.tensors():
            stored = read_whole(info, model.name)
            made = stored * self.share if info.name in scaled else stored
            if info.name in below and ground is not None:
                under = read_whole(ground.get(ground.named(below[info.name])), ground.name)
                made = under + self.share * (stored - under)
            tensors[info.name] = made.to(STORED[info.dtype])
        for pair in adapter.pairs.values():
            factors = read_whole(pair.a, model.name), read_whole(pair.b, model.name) * pair.scale
            before += inner(factors, factors)
        moved = (1 - self.share) * math.sqrt(before)
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
        shutil.copyfile(model.path / "adapter_config.json", out / "adapter_config.json")
        parents = {"model": model.digest(), **({} if self.base is None else {"base": self.base.digest()})}
        lineage.write(out, model.chain(), "shrink", parents)
        made_of = Checkpoint(out, out.name)
        detail = {"share": self.share, "task_vector_left": self.share * math.sqrt(before)}
        detail |= change(moved, math.sqrt(before))
        record = Record(
            "weight-change",
            value=detail["weight_change"],
            model=out.name,
            chain=made_of.chain(),
            task="shrink",
            seed=ctx.seed,
            tokens=0,
            detail=detail,
        )
        return Made(made_of, records=[record])
