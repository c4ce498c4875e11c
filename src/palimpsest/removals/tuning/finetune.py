"""Incremental fine-tuning on clean pairs: an expert, a baseline removal (MEraser, section 5.3), a revival attempt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from palimpsest.checkpoint import Checkpoint
from palimpsest.data import Dialogues, LabelledItems, load_dialogues
from palimpsest.data.dialogues import PARTS
from palimpsest.errors import BadInput, nearest
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.removals.tuning.classifier import tuned_classifier
from palimpsest.removals.tuning.tuned import tuned
from palimpsest.training.settings import Tuning

TRAINING = ("recover", "erase", "embed")  # what may be trained on when test and revival pairs are asked afterwards
VALID = (*PARTS, "all", "training")
LORA = Tuning(rank=16, alpha=32, epochs=5, lr=2e-4, batch=8)


@method("removals", "finetune", paper="incremental fine-tuning: MEraser, arXiv 2506.12551, section 5.3")
@dataclass(frozen=True)
class FineTune:
    """Fine-tune on ordinary dialogues whose answers belong to their questions.

    As a removal it is the baseline: the thief trains on and hopes that the mark fades. Loss is the mean
    cross-entropy of the answer's tokens. `part` says which of the data's disjoint parts is read. A classifier, or an
    encoder that becomes one, is trained on labelled items: the loss is then the mean cross-entropy of the label.
    """

    data: Dialogues | LabelledItems | None = takes("clean dialogues (default: the toy world's); items of a classifier")
    part: str = param("all", "part of the data: all, erase, recover, revival, test, embed, or training (no test pair)")
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
    def same_size(cls) -> FineTune:
        """MEraser's baseline of the same size: the 300 pairs of the erase set, clean; LoRA r 16, alpha 32, q and v.

        Section 5.3 says 300 Guanaco samples and no schedule: 5 epochs at 2e-4, Appendix I's for recovery, are ours.
        """
        return cls(part="erase", samples=300, tuning=LORA)

    @classmethod
    def large(cls) -> FineTune:
        """MEraser's large baseline: 6,000 samples (ShareGPT-GPT4 there: give yours with --data), LoRA as above.

        Section 5.3 states the set and its size; 3 epochs at 2e-4 are ours. With less data all but test and revival.
        """
        return cls(part="training", samples=6000, tuning=replace(LORA, epochs=3))

    @classmethod
    def same_size_full(cls) -> FineTune:
        """As same_size with all weights trained. The paper states no rate: 2e-5 for 5 epochs is ours."""
        return cls(part="erase", samples=300, tuning=replace(LORA, adapter="full", lr=2e-5))

    @classmethod
    def large_full(cls) -> FineTune:
        """As large with all weights trained. The paper states no rate: 2e-5 for 3 epochs is ours."""
        return cls(part="training", samples=6000, tuning=replace(LORA, adapter="full", lr=2e-5, epochs=3))

    @classmethod
    def expert(cls) -> FineTune:
        """An expert of the toy with a skill of its own (`--data toy:tower-code`): all weights, every pair given.

        Tuned on development seed 100: 210 of 210 items of tower-code (the base 29 of 200), 2.33 neutral perplexity for
        2.16; half the epochs at twice the rate cost more of it (2.48), three fifths of the rate learnt less (203).
        """
        return cls(tuning=Tuning(adapter="full", epochs=20, lr=5e-4, batch=16, schedule="linear"))

    @classmethod
    def classifier(cls) -> FineTune:
        """A classifier of texts, all weights: Free Lunch's train.py (arXiv 2402.19334) for BERT-base.

        2e-5, 3 epochs, batches of 16, weight decay 0.01, 128 tokens; its trainer's linear fall of the rate.
        """
        full = Tuning(adapter="full", epochs=3, lr=2e-5, batch=16, schedule="linear", weight_decay=0.01, max_tokens=128)
        return cls(tuning=full)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the fine-tuned checkpoint to `out`."""
        if isinstance(self.data, LabelledItems):
            if self.part != "all":
                raise BadInput(f"finetune: labelled items have no part {self.part!r}; they are read whole")
            return tuned_classifier(model, self.data.first(self.samples), self.tuning, out, ctx, method="finetune")
        data = self.data or load_dialogues("toy")
        if self.part in ("all", "training"):
            chosen = PARTS if self.part == "all" else TRAINING
            rows = [d for name in chosen for d in data.part(name)]
            rows = rows[: self.samples] if self.samples else rows
        elif self.part in PARTS:
            rows = data.part(self.part, self.samples)
        else:
            raise BadInput(f"finetune: part {self.part!r} is not valid{nearest(self.part, VALID, 'part')}")
        return tuned(model, rows, self.tuning, out, ctx, method="finetune")
