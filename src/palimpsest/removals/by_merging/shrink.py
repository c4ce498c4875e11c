"""Shrinking the task vector towards the base: a control for removals by merging."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.files import TensorInfo
from palimpsest.errors import BadInput
from palimpsest.merging.task_arithmetic import TaskArithmetic
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.removals.weights.rules import Rule, rewrite


@method("removals", "shrink", paper="task arithmetic with one task vector: arXiv 2212.04089, section 2")
@dataclass(frozen=True)
class Shrink:
    """Keep a share of what fine-tuning changed: theta_base + share * (theta_marked - theta_base).

    What a merge with any model that is near the base does to the mark, without the other model: share 1 is the
    marked model, 0 the base with the marked model's tokenizer. Threat model: the thief has the weights and the
    public base, no data. Config and tokenizer are the marked model's.
    """

    base: Checkpoint | None = takes("the checkpoint that the marked model was made from")
    share: float = param(0.5, "share of the task vector that is kept", low=0.0, high=1.0)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the shrunk checkpoint to `out`. Raises BadInput without a base, or with one of another shape."""
        if self.base is None:
            raise BadInput("shrink: needs the base that the marked model was made from; name it with --base")
        merge = TaskArithmetic(weight=(self.share,))

        def rule_for(name: str, info: TensorInfo) -> Rule | None:
            return Rule(merge.passes, info.shape)

        made, change = rewrite(model, out, ctx, rule_for, method="shrink", base=self.base)
        left = None if self.share == 1 else change.norm * self.share / (1 - self.share)
        made.records[0].detail |= {"share": self.share} | ({} if left is None else {"task_vector_left": left})
        return made
