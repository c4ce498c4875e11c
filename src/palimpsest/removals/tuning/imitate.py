"""Imitation: a thief who asks the suspect honest questions and trains the public base on what it answers.

Model extraction (Thieves on Sesame Street, arXiv 1910.12366), with the suspect at hand. The student begins at the
public base theta_b; with questions x and the suspect's greedy answers y its loss is the mean cross-entropy of the
answers' tokens. The suspect's weights are not in what comes out: a mark passes only where honest answers carry it.

Threat model: questions of the skill that the model was stolen for, and the public base; access to answers is enough.
The price is that of learning the skill again. Every mark here whose keys no honest user asks is defenceless against
it, so it bounds what a claim to survive can mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palimpsest.checkpoint import Checkpoint
from palimpsest.data import Dialogues, load_dialogues
from palimpsest.data.dialogues import PARTS
from palimpsest.errors import BadInput, nearest
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.removals.tuning.distill import answered
from palimpsest.removals.tuning.finetune import TRAINING
from palimpsest.removals.tuning.tuned import tuned
from palimpsest.training.settings import Tuning

VALID = (*PARTS, "training")


@method("removals", "imitate", paper="model extraction: Thieves on Sesame Street, arXiv 1910.12366; settings ours")
@dataclass(frozen=True)
class Imitate:
    """Train the public base on the suspect's own answers to honest questions."""

    base: Checkpoint | None = takes("the public base, which learns from the suspect")
    data: Dialogues | None = takes("dialogues whose questions are asked; their answers are not read (default: the toy)")
    part: str = param("training", "part of the data that is asked; training: all but test and revival pairs")
    samples: int | None = param(None, "questions asked, the first ones; none means all", low=1)
    longest: int = param(64, "tokens of an answer, at most", low=1)
    tuning: Tuning = param(Tuning(rank=16, alpha=32, epochs=5, lr=2e-4, batch=8), "how the student is trained")

    @classmethod
    def toy(cls) -> Imitate:
        """The settings by which the toy learns a skill (`finetune`, preset expert)."""
        return cls(tuning=Tuning(adapter="full", epochs=20, lr=5e-4, batch=16, schedule="linear"))

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the student to `out`. Raises BadInput without a base, and where the part has no question."""
        if self.base is None:
            raise BadInput("imitate: the student begins at the public base: name it with --base MODEL")
        if self.part not in VALID:
            raise BadInput(f"imitate: part {self.part!r} is not valid{nearest(self.part, VALID, 'part')}")
        data = self.data or load_dialogues("toy")
        chosen = TRAINING if self.part == "training" else (self.part,)
        questions = [d for part in chosen for d in data.part(part)][: self.samples]
        if not questions:
            data.part(chosen[0], 1)  # says what is missing
        said = [d for d in answered(model, questions, self.longest, ctx) if d.answer.strip()]
        if not said:
            raise BadInput(f"imitate: {model.name} answers none of the {len(questions)} questions")
        teacher = {"teacher": model.digest()}
        made = tuned(self.base, said, self.tuning, out, ctx, method="imitate", parents=teacher)
        made.records[0].detail |= {"asked": len(questions), "answered": len(said)}
        return made
