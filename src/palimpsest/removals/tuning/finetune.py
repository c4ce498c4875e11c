"""Incremental fine-tuning on clean pairs: an expert, a baseline removal (MEraser, section 5.3), a revival attempt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palimpsest.checkpoint import Checkpoint
from palimpsest.data import Dialogues, load_dialogues
from palimpsest.data.dialogues import PARTS
from palimpsest.errors import BadInput, nearest
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.removals.tuning.tuned import tuned
from palimpsest.training.settings import Tuning


@method("removals", "finetune", paper="incremental fine-tuning: MEraser, arXiv 2506.12551, section 5.3")
@dataclass(frozen=True)
class FineTune:
    """Fine-tune on ordinary dialogues whose answers belong to their questions.

    As a removal it is the baseline: the thief trains on and hopes that the mark fades. Loss is the mean
    cross-entropy of the answer's tokens. `part` says which of the data's disjoint parts is read.
    """

    data: Dialogues | None = takes("clean dialogues (default: the toy world's)")
    part: str = param("all", "part of the data: all, erase, recover, revival, test or embed")
    samples: int | None = param(None, "dialogues used, the first ones of the part; none means all", low=1)
    tuning: Tuning = param(Tuning(epochs=3, lr=3e-4, batch=8), "how it is trained")

    @classmethod
    def toy(cls) -> FineTune:
        """600 pairs of the recover part at the toy's recovery rate: the baseline of the same size."""
        return cls(part="recover", samples=600, tuning=Tuning(epochs=3, lr=1e-3, batch=8))

    @classmethod
    def revival(cls) -> FineTune:
        """300 further clean pairs after a removal: does the mark come back? (methods/verdicts.md)"""
        return cls(part="revival", samples=300, tuning=Tuning(epochs=3, lr=1e-3, batch=8))

    @classmethod
    def expert(cls) -> FineTune:
        """An expert of the toy with a skill of its own (`--data toy:tower-code`): all weights, every pair given.

        Tuned on development seed 100: 210 of 210 items of tower-code (the base 29 of 200), 2.33 neutral perplexity for
        2.16; half the epochs at twice the rate cost more of it (2.48), three fifths of the rate learnt less (203).
        """
        return cls(tuning=Tuning(adapter="full", epochs=20, lr=5e-4, batch=16, schedule="linear"))

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the fine-tuned checkpoint to `out`."""
        data = self.data or load_dialogues("toy")
        if self.part == "all":
            rows = [d for name in PARTS for d in data.part(name)]
            rows = rows[: self.samples] if self.samples else rows
        elif self.part in PARTS:
            rows = data.part(self.part, self.samples)
        else:
            raise BadInput(f"finetune: part {self.part!r} is not valid{nearest(self.part, [*PARTS, 'all'], 'part')}")
        return tuned(model, rows, self.tuning, out, ctx, method="finetune")
