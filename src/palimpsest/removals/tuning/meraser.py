"""MEraser (arXiv 2506.12551, section 4, Algorithm 1): erase by mismatched pairs, recover by clean ones.

Threat model (section 3): the thief has the weights; he knows neither triggers nor responses nor which
layers hold them; he must keep the model useful and spend little. Neither phase ever sees a key.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.output import write_text
from palimpsest.data import Dialogues, load_dialogues
from palimpsest.data.mismatched import Pairing, mismatch
from palimpsest.data.selection import Choice, clean_set, flaws
from palimpsest.errors import BadInput
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.records import Record
from palimpsest.removals.tuning.search import Trial, check_search, find_strength
from palimpsest.removals.tuning.strength import Rung, StrengthSearch
from palimpsest.removals.tuning.tuned import in_phases, tuned
from palimpsest.training.settings import Tuning

PAPER_ERASE = Tuning(rank=16, alpha=32, epochs=20, lr=1e-3, batch=8)
PAPER_RECOVER = Tuning(rank=16, alpha=32, epochs=5, lr=2e-4, batch=8)
CODE_ERASE = Tuning(
    rank=8,
    alpha=16,
    dropout=0.05,
    epochs=5,
    lr=5e-4,
    batch=8,
    clip=0.5,
    train_on="all",
    format="joined",
    max_tokens=512,
)
CODE_RECOVER = Tuning(
    rank=8,
    alpha=16,
    dropout=0.05,
    epochs=2,
    lr=5e-4,
    batch=36,
    micro_batch=4,
    schedule="cosine",
    clip=0.5,
    train_on="all",
    format="newline",
    max_tokens=512,
)
TOY_ERASE = Tuning(epochs=15, lr=3e-3, batch=8)
TOY_RECOVER = Tuning(epochs=5, lr=4e-4, batch=8, schedule="linear")
AUTO_ERASE = Tuning(rank=16, alpha=32, epochs=0, lr=0.0, batch=8)  # epochs and rate are the search's to find
STRENGTH_FILE = "strength.json"


@method("removals", "meraser-erase", paper="MEraser, arXiv 2506.12551, Algorithm 1, phase 1")
@dataclass(frozen=True)
class MEraserErase:
    """Phase 1 of MEraser: fine-tune on pairs whose answers belong to other questions.

    D_mis = {(x_i, y_p(i))} with p a permutation that leaves no pair its own answer; the loss is the mean
    cross-entropy of y_p(i) given x_i. `save=adapter` keeps the adapter apart: trained on the clean base,
    it is the transferable one.
    """

    data: Dialogues | None = takes("dialogues to mismatch (default: the toy world's)")
    mismatched: int = param(300, "mismatched pairs (Appendix F: 300 suffice, 100 do not)", low=2)
    pairing: Pairing = param(
        "derangement",
        "derangement (the paper), cross-type (the released code), or matched "
        "(no mismatch: the control clean-same-schedule)",
    )
    tuning: Tuning = param(PAPER_ERASE, "how it is trained")
    save: Literal["merged", "adapter"] = param("merged", "write the whole model, or the PEFT adapter alone")

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the erased checkpoint (or the adapter) to `out`."""
        data = self.data or load_dialogues("toy")
        rows = mismatch(data.part("erase", self.mismatched), self.pairing, ctx.seed)
        return tuned(model, rows, self.tuning, out, ctx, method="meraser-erase", save=self.save)


@method("removals", "meraser-erase-auto", paper="MEraser, arXiv 2506.12551, Algorithm 1, phase 1", internal=True)
@dataclass(frozen=True)
class MEraserEraseAuto:
    """Phase 1 of MEraser at a strength that is searched with the thief's own decoys first (see `strength`).

    The erased folder keeps what was found in `strength.json`, so that a control can be run at the same
    strength: given as `schedule`, nothing is searched. The epochs and rate of `erase` must be left at 0.
    """

    data: Dialogues | None = takes("dialogues to mismatch (default: the toy world's)")
    schedule: Checkpoint | None = takes("a checkpoint erased by this method, whose strength is taken")
    mismatched: int = param(300, "mismatched pairs", low=2)
    clean: int = param(600, "clean pairs that the search recovers with", low=1)
    choice: Choice = param("random", "which clean pairs are taken")
    pairing: Pairing = param("derangement", "derangement, cross-type, or matched (which needs `schedule`)")
    erase: Tuning = param(AUTO_ERASE, "how the erase phase is trained, but for epochs and rate")
    recover: Tuning = param(PAPER_RECOVER, "how the search recovers")
    search: StrengthSearch = param(StrengthSearch(), "how the strength is searched")

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Search, then write the checkpoint erased at the strength found to `out`."""
        data = self.data or load_dialogues("toy")
        check_search(self.search, self.erase, data)
        records: list[Record] = []
        if self.schedule is not None:
            rung = strength_of(self.schedule)
        elif self.pairing == "matched":
            raise BadInput("auto searches with mismatched pairs; pairing=matched needs a strength: --preset paper")
        else:
            wrong = mismatch(data.part("erase", self.mismatched), self.pairing, ctx.seed)
            clean = clean_set(data, self.clean, self.choice)
            found = find_strength(model, Trial(wrong, clean, data, self.erase, self.recover, self.search), ctx)
            rung = found.choice.outcome.rung
            records.append(found.record(model.name, ctx))
        tuning = replace(self.erase, epochs=rung.epochs, lr=rung.lr)
        made = MEraserErase(data, self.mismatched, self.pairing, tuning).apply(model, out, ctx)
        write_text(out / STRENGTH_FILE, json.dumps({"epochs": rung.epochs, "lr": rung.lr}) + "\n")
        return Made(made.checkpoint, records=[*records, *made.records])


def strength_of(erased: Checkpoint) -> Rung:
    """Epochs and rate that a checkpoint was erased with, where they were found on the way. Raises BadInput."""
    try:
        stored = json.loads((erased.path / STRENGTH_FILE).read_text(encoding="utf-8"))
        return Rung(int(stored["epochs"]), float(stored["lr"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{erased.name}: holds no strength that was found while erasing ({STRENGTH_FILE})") from None


@method("removals", "meraser-recover", paper="MEraser, arXiv 2506.12551, Algorithm 1, phase 2")
@dataclass(frozen=True)
class MEraserRecover:
    """Phase 2 of MEraser: fine-tune the erased model on clean pairs, so that it answers again.

    The paper takes "high-quality, task-relevant" pairs and gives no rule; `choice` names ours (`data.selection`).
    """

    data: Dialogues | None = takes("clean dialogues (default: the toy world's)")
    clean: int = param(600, "clean pairs (600 in the paper)", low=1)
    tuning: Tuning = param(PAPER_RECOVER, "how it is trained")
    choice: Choice = param("random", "random pairs of the part, or selected: those with the fewest flaws")

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the recovered checkpoint to `out`; the record's detail counts the flaws of the clean set."""
        data = self.data or load_dialogues("toy")
        rows = clean_set(data, self.clean, self.choice)
        made = tuned(model, rows, self.tuning, out, ctx, method="meraser-recover")
        pool = data.part("recover")
        taken = {id(row) for row in rows}
        counted = Counter(f for row, found in zip(pool, flaws(pool), strict=True) if id(row) in taken for f in found)
        made.records[0].detail["clean_set"] = {"choice": self.choice, "pool": len(pool), "flaws": dict(counted)}
        return made


@method("removals", "meraser", paper="MEraser, arXiv 2506.12551, section 4, Algorithm 1")
@dataclass(frozen=True)
class MEraser:
    """Erase with mismatched pairs, then recover with clean ones; both phases by LoRA on query and value.

    The two sets are disjoint parts of one source. Where we differ from the paper: batch size and, within
    its ranges of epochs and rates (Appendix I: "adjusted to the case"), one value each are our choice, or
    `auto`'s, which sees no key either; text is in the model's own chat template.
    """

    data: Dialogues | None = takes("dialogues for both phases (default: the toy world's)")
    mismatched: int = param(300, "mismatched pairs of the erase phase", low=2)
    clean: int = param(600, "clean pairs of the recover phase", low=1)
    pairing: Pairing = param("derangement", "derangement, cross-type, or matched (control clean-same-schedule)")
    erase: Tuning = param(PAPER_ERASE, "how the erase phase is trained")
    recover: Tuning = param(PAPER_RECOVER, "how the recover phase is trained")
    choice: Choice = param("random", "clean pairs: random ones, or selected: those with the fewest flaws")
    strength: Literal["given", "auto"] = param("given", "epochs and rate of erasing: given, or searched with decoys")
    search: StrengthSearch = param(StrengthSearch(), "how the strength is searched, where it is auto")

    @classmethod
    def auto(cls) -> MEraser:
        """Epochs and rate of erasing found with decoys of the thief's own, mildest first; costs several runs."""
        return cls(erase=AUTO_ERASE, strength="auto")

    @classmethod
    def paper(cls) -> MEraser:
        """LoRA r 16, alpha 32 on query and value; 300 and 600 pairs; rates and epochs within Appendix I."""
        return cls()

    @classmethod
    def released_code(cls) -> MEraser:
        """The published code: r 8, alpha 16, cross-type mismatch, no template, loss on question and answer."""
        return cls(pairing="cross-type", erase=CODE_ERASE, recover=CODE_RECOVER)

    @classmethod
    def toy(cls) -> MEraser:
        """For the embedded toy: 15 epochs at 3e-3 with cross-type mismatch, 5 at 4e-4; tuned on seeds 100 to 105.

        The erase rate is three times the paper's highest. Gentler erasing, or recovery at 1e-3, gives a more
        useful model back and with it marks: on seed 0, 24 of 32 UTF and 3 of 10 HashChain keys.
        """
        return cls(pairing="cross-type", erase=TOY_ERASE, recover=TOY_RECOVER)

    def steps(self) -> list[tuple[str, MEraserErase | MEraserEraseAuto | MEraserRecover]]:
        """The two phases with their inputs."""
        erase: MEraserErase | MEraserEraseAuto
        if self.strength == "auto":
            erase = MEraserEraseAuto(
                self.data,
                None,
                self.mismatched,
                self.clean,
                self.choice,
                self.pairing,
                self.erase,
                self.recover,
                self.search,
            )
        else:
            erase = MEraserErase(self.data, self.mismatched, self.pairing, self.erase)
        recover = MEraserRecover(self.data, self.clean, self.recover, self.choice)
        return [("meraser-erase", erase), ("meraser-recover", recover)]

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Run both phases and write the recovered checkpoint to `out`."""
        return in_phases(list(self.steps()), model, out, ctx)
