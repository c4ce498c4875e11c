"""Random labels: MEraser's schedule with randomly drawn answers in the place of exchanged ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_tokenizer
from palimpsest.data import Dialogues, load_dialogues
from palimpsest.data.random_labels import Labels, random_labels
from palimpsest.data.selection import Choice
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.removals.tuning.meraser import PAPER_ERASE, PAPER_RECOVER, TOY_ERASE, TOY_RECOVER, MEraserRecover
from palimpsest.removals.tuning.tuned import in_phases, tuned
from palimpsest.training.settings import Tuning


@method("removals", "random-labels-erase", paper="SEAM, arXiv 2212.04687: randomly labelled data", internal=True)
@dataclass(frozen=True)
class RandomLabelsErase:
    """Phase 1 of random labels: fine-tune on questions with random answers."""

    data: Dialogues | None = takes("dialogues whose questions are asked (default: the toy world's)")
    mismatched: int = param(300, "pairs with a random answer", low=2)
    pairing: Labels = param("pool", "answers from: pool, tokens, words, or matched (their own)")
    tuning: Tuning = param(PAPER_ERASE, "how it is trained")

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the erased checkpoint to `out`."""
        data = self.data or load_dialogues("toy")
        tokenizer = load_tokenizer(model) if self.pairing == "tokens" else None
        rows = random_labels(data.part("erase", self.mismatched), self.pairing, ctx.seed, tokenizer)
        made = tuned(model, rows, self.tuning, out, ctx, method="random-labels-erase")
        made.records[0].detail["labels"] = self.pairing
        return made


@method("removals", "random-labels", paper="a control after SEAM, arXiv 2212.04687, on MEraser's schedule")
@dataclass(frozen=True)
class RandomLabels:
    """Erase with randomly drawn answers, then recover with clean ones, on MEraser's schedule.

    MEraser exchanges answers within its set; SEAM draws labels at random. This is MEraser with SEAM's labels: an
    answer drawn uniformly, with replacement, from the distinct answers of the erase set but the question's own
    (`pool`), or as many random tokens as the question's own answer has (`tokens`). Drawn once, not anew every epoch.
    Everything else is MEraser's, so that a difference to it is one of the labels. Threat model: as MEraser's, no key.
    """

    data: Dialogues | None = takes("dialogues for both phases (default: the toy world's)")
    mismatched: int = param(300, "pairs with a random answer in the erase phase", low=2)
    clean: int = param(600, "clean pairs of the recover phase", low=1)
    pairing: Labels = param("pool", "answers from: pool, tokens, words, or matched (control clean-same-schedule)")
    erase: Tuning = param(PAPER_ERASE, "how the erase phase is trained")
    recover: Tuning = param(PAPER_RECOVER, "how the recover phase is trained")
    choice: Choice = param("random", "clean pairs: random ones, or selected: those with the fewest flaws")

    @classmethod
    def toy(cls) -> RandomLabels:
        """MEraser's settings for the embedded toy."""
        return cls(erase=TOY_ERASE, recover=TOY_RECOVER)

    def steps(self) -> list[tuple[str, RandomLabelsErase | MEraserRecover]]:
        """The two phases with their inputs; the second is MEraser's."""
        erase = RandomLabelsErase(self.data, self.mismatched, self.pairing, self.erase)
        return [
            ("random-labels-erase", erase),
            ("random-labels-recover", MEraserRecover(self.data, self.clean, self.recover, self.choice)),
        ]

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Run both phases and write the recovered checkpoint to `out`."""
        return in_phases(list(self.steps()), model, out, ctx)
