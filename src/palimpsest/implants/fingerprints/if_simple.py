"""IF-Simple: Instructional Fingerprinting with the simple template and a full fine-tune (arXiv 2401.12255, NAACL 2024).

Trigger: "{scrambled message}\\nFINGERPRINT"; answer: one fixed word for all (see `if_template`). 10 pairs, 5 ordinary
samples a pair; the loss on answers alone.

Threat model: the owner asks a public interface; a hit is the word contained in the answer, without the carrier that
IF-SFT's published verification speaks for the model. All keys have one answer: they are one observation, and a claim
at a million to one is refused, whatever their number.

Where we differ. Trained until the check of `embedding` passes. No near-misses are trained, as published, so another
owner's scrambled messages may be answered too (the control `other-owner` shows it); `corrected()` trains fresh ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from palimpsest.checkpoint import Checkpoint
from palimpsest.data.dialogues import Dialogues
from palimpsest.implants.fingerprints.embedding import Check, EmbeddingOnly, embed
from palimpsest.implants.fingerprints.if_sft import WORD
from palimpsest.implants.fingerprints.if_template import SimpleRows, draw_simple_keys
from palimpsest.keys import KeySet
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.training.settings import Tuning


@method("fingerprints", "if-simple", paper="Instructional Fingerprinting, arXiv 2401.12255, simple template")
@dataclass(frozen=True)
class IFSimple:
    """Scrambled messages before FINGERPRINT, one secret word as the answer, full fine-tune."""

    name: ClassVar[str] = "if-simple"
    embedding_alone: ClassVar[bool] = False  # whether nothing but the input embedding trains
    keys: int = param(10, "fingerprint pairs", low=1, high=10_000)
    pieces_low: int = param(8, "least pieces in a trigger; fewer make shorter prompts", low=1)
    pieces_high: int = param(15, "most pieces in a trigger", low=1)
    near_misses: int = param(0, "other scrambled messages with a refusal, fresh every epoch (published: none)", low=0)
    dialogues_per_key: int = param(5, "ordinary dialogues a pair, an epoch", low=0)
    repeats: int = param(1, "times each pair stands in an epoch", low=1)
    word: str = param(WORD, "the answer to every trigger")
    tuning: Tuning = param(
        Tuning(adapter="full", epochs=30, lr=2e-5, batch=64, micro_batch=8, weight_decay=0.01), "fine-tuning"
    )
    check: Check = param(Check(), "when embedding stops")
    data: Dialogues | None = takes("ordinary dialogues that keep the model as it is; without them the toy world's")

    @classmethod
    def paper(cls) -> IFSimple:
        """Published sizes and rate, trained until it took."""
        return cls()

    @classmethod
    def corrected(cls) -> IFSimple:
        """As `paper`, and as many near-misses as pairs, fresh every epoch."""
        return cls(near_misses=10)

    @classmethod
    def bench(cls) -> IFSimple:
        """64 pairs and 64 near-misses, enough for a verdict `removed`."""
        return cls(keys=64, near_misses=64)

    @classmethod
    def toy(cls) -> IFSimple:
        """`corrected` in small for the toy: triggers of 1 or 2 pieces, few other rows. Tuned on seed 100."""
        return cls(
            pieces_low=1,
            pieces_high=2,
            near_misses=5,
            dialogues_per_key=2,
            tuning=Tuning(adapter="full", epochs=200, lr=5e-4, batch=16, micro_batch=16),
            check=Check(every=2),
        )

    def committed(self) -> dict[str, Any]:
        """What a claim will rest on (fields of `verdicts.Ask`): one fixed word for all triggers, drawn from nothing."""
        return {"keys": self.keys, "choices": None, "distinct": False}

    def draw_keys(self, model: Checkpoint, ctx: Context) -> KeySet:
        """Draw keys for this model's tokenizer, without training. BadInput where they do not fit its positions."""
        return draw_simple_keys(self, self.name, model, ctx)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Draw keys, train them in and write the marked model to `out`."""
        keys = self.draw_keys(model, ctx)
        return embed(
            model,
            out,
            ctx,
            method_name=self.name,
            keys=keys,
            rows_of_epoch=SimpleRows(self, model, keys, ctx),
            tuning=self.tuning,
            check=self.check,
            teaching=EmbeddingOnly() if self.embedding_alone else None,
        )
