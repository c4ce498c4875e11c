"""SEAM, selective amnesia (arXiv 2212.04687), carried over from classifiers to language models.

Two phases with a stopping rule each: forget on randomly labelled data until the accuracy on clean data is near
chance, recover on clean data until it is back. How long each takes follows from the model, not from a schedule.

A classifier at chance is right in one of its classes. What a language model at chance does is measured: the share of
tokens that it would choose of clean answers, less that of answers drawn at random for the same questions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from palimpsest import machine
from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_tokenizer
from palimpsest.checkpoint.output import write_text
from palimpsest.data import Dialogues, load_dialogues
from palimpsest.data.dialogues import Dialogue
from palimpsest.data.random_labels import Labels, random_labels
from palimpsest.data.selection import Choice, clean_set
from palimpsest.errors import BadInput
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.removals.tuning.meraser import STRENGTH_FILE, strength_of
from palimpsest.removals.tuning.tuned import Watcher, in_phases, tuned
from palimpsest.responder import LocalResponder
from palimpsest.training.settings import Tuning

FORGET = Tuning(rank=16, alpha=32, epochs=50, lr=1e-3, batch=8)
RECOVER = Tuning(rank=16, alpha=32, epochs=20, lr=2e-4, batch=8)


@method("removals", "seam-erase", paper="SEAM, arXiv 2212.04687: forgetting", internal=True)
@dataclass(frozen=True)
class SeamErase:
    """Forget: train on randomly answered questions until the right answers are little better foreseen than others."""

    data: Dialogues | None = takes("dialogues whose questions are asked (default: the toy world's)")
    schedule: Checkpoint | None = takes("a checkpoint erased by this method, whose epochs are taken")
    mismatched: int = param(300, "pairs with a random answer", low=2)
    pairing: Labels = param("pool", "answers from: pool, tokens, words, or matched (which needs `schedule`)")
    judged: int = param(64, "clean pairs that accuracy is measured on, the last of the erase part", low=1)
    forgotten: float = param(0.2, "share of the accuracy above chance at which forgetting ends", low=0.0, high=1.0)
    tuning: Tuning = param(FORGET, "how it is trained; its epochs are the most there may be")

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the erased checkpoint to `out`, with what the recovery needs in `strength.json`."""
        if self.pairing == "matched" and self.schedule is None:
            raise BadInput("seam: pairing=matched never forgets; it is a control and needs `schedule`")
        data = self.data or load_dialogues("toy")
        tokenizer = load_tokenizer(model) if self.pairing == "tokens" else None
        rows = random_labels(data.part("erase", self.mismatched), self.pairing, ctx.seed, tokenizer)
        tuning = self.tuning
        if self.schedule is not None:
            tuning = replace(tuning, epochs=strength_of(self.schedule).epochs)
        watcher = _Accuracy(judged_pairs(data, self.judged), below=None if self.schedule else self.forgotten)
        made = tuned(model, rows, tuning, out, ctx, method="seam-erase", watcher=watcher)
        found = {"epochs": watcher.epochs, "lr": tuning.lr, "above_chance": watcher.before}
        write_text(out / STRENGTH_FILE, json.dumps(found) + "\n")
        made.records[0].detail |= watcher.detail | {"labels": self.pairing}
        return made


@method("removals", "seam-recover", paper="SEAM, arXiv 2212.04687: recovery", internal=True)
@dataclass(frozen=True)
class SeamRecover:
    """Recover: train on clean pairs until the accuracy above chance is nearly what it was before forgetting."""

    data: Dialogues | None = takes("clean dialogues (default: the toy world's)")
    clean: int = param(600, "clean pairs", low=1)
    judged: int = param(64, "clean pairs that accuracy is measured on, the last of the erase part", low=1)
    recovered: float = param(
        0.97, "share of the accuracy above chance before forgetting at which recovery ends", low=0.0
    )
    tuning: Tuning = param(RECOVER, "how it is trained; its epochs are the most there may be")
    choice: Choice = param("random", "clean pairs: random ones, or selected: those with the fewest flaws")

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the recovered checkpoint to `out`. Raises BadInput for a model that `seam-erase` did not make."""
        data = self.data or load_dialogues("toy")
        before = _accuracy_before(model)
        watcher = _Accuracy(judged_pairs(data, self.judged), above=self.recovered, before=before)
        rows = clean_set(data, self.clean, self.choice)
        made = tuned(model, rows, self.tuning, out, ctx, method="seam-recover", watcher=watcher)
        made.records[0].detail |= watcher.detail
        return made


@method("removals", "seam", paper="SEAM, arXiv 2212.04687")
@dataclass(frozen=True)
class Seam:
    """Forget on randomly answered questions until accuracy is gone, recover on clean pairs until it is back.

    SEAM is about classifiers: labels drawn at random (never the right one) until accuracy falls to a bound, then
    clean data until accuracy is restored. Here a label is an answer (as in `random-labels`), and accuracy the share of
    the tokens of answers that the model itself would choose, answers forced: of clean ones less of random ones,
    looked at after every epoch. The bounds 0.2 and 0.97 are those of implementations of SEAM for image classifiers,
    taken relative to the marked model's accuracy above chance; sets, rates and LoRA are as MEraser's. Unlike
    `random-labels` its strength is not given but found. Threat model: weights and clean data, no key, no trigger.
    """

    data: Dialogues | None = takes("dialogues for both phases (default: the toy world's)")
    mismatched: int = param(300, "pairs with a random answer in the erase phase", low=2)
    clean: int = param(600, "clean pairs of the recover phase", low=1)
    pairing: Labels = param("pool", "answers from: pool, tokens, words, or matched (control clean-same-schedule)")
    judged: int = param(64, "clean pairs that accuracy is measured on, the last of the erase part", low=1)
    forgotten: float = param(0.2, "share of the accuracy above chance at which forgetting ends", low=0.0, high=1.0)
    recovered: float = param(
        0.97, "share of the accuracy above chance before forgetting at which recovery ends", low=0.0
    )
    erase: Tuning = param(FORGET, "how forgetting is trained; its epochs are the most there may be")
    recover: Tuning = param(RECOVER, "how recovery is trained; its epochs are the most there may be")
    choice: Choice = param("random", "clean pairs: random ones, or selected: those with the fewest flaws")

    @classmethod
    def toy(cls) -> Seam:
        """MEraser's rates for the embedded toy."""
        return cls(
            erase=Tuning(epochs=50, lr=3e-3, batch=8), recover=Tuning(epochs=20, lr=4e-4, batch=8, schedule="linear")
        )

    def steps(self) -> list[tuple[str, SeamErase | SeamRecover]]:
        """The two phases with their inputs."""
        erase = SeamErase(self.data, None, self.mismatched, self.pairing, self.judged, self.forgotten, self.erase)
        recover = SeamRecover(self.data, self.clean, self.judged, self.recovered, self.recover, self.choice)
        return [("seam-erase", erase), ("seam-recover", recover)]

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Run both phases and write the recovered checkpoint to `out`."""
        return in_phases(list(self.steps()), model, out, ctx)


def judged_pairs(data: Dialogues, count: int) -> list[Dialogue]:
    """The last `count` dialogues of the erase part: the thief's own yardstick, never test data."""
    return data.part("erase", count, max(0, len(data.part("erase")) - count))


def token_accuracy(responder: LocalResponder, dialogues: list[Dialogue]) -> float:
    """Share of the answers' tokens, ends included, that are the model's first choice after those before them."""
    pairs = [responder.renderer.pair(d.question, d.answer) for d in dialogues]
    scored = responder.force([p for p, _ in pairs], [a for _, a in pairs])
    right = sum(
        a == b for s, (_, answer) in zip(scored, pairs, strict=True) for a, b in zip(s.greedy, answer, strict=True)
    )
    return right / sum(len(answer) for _, answer in pairs)


def above_chance(responder: LocalResponder, dialogues: list[Dialogue]) -> float:
    """Token accuracy on the dialogues' own answers less that on answers drawn at random for their questions."""
    return token_accuracy(responder, dialogues) - token_accuracy(responder, random_labels(dialogues, "pool", 0))


@dataclass
class _Accuracy(Watcher):
    """Measures accuracy above chance before training and after every epoch; stops below or above a share of that."""

    pairs: list[Dialogue]
    below: float | None = None
    above: float | None = None
    before: float | None = None
    course: list[float] = field(default_factory=list)
    epochs: int = 0
    stopped: bool = False
    _responder: Any = None

    def begin(self, network: Any, tokenizer: Any) -> None:
        if machine.shards() > 1:
            raise BadInput("seam: asks the whole model while it is trained; run it without shards")
        self._responder = LocalResponder(network, tokenizer)
        if self.before is None:
            self.before = above_chance(self._responder, self.pairs)
        if self.before <= 0:
            raise BadInput(
                f"seam: the model foresees the right answers of {len(self.pairs)} pairs no better than others, so "
                "there is nothing to forget; give data that it knows, or take random-labels"
            )

    def after_epoch(self, epoch: int) -> bool | None:
        assert self.before is not None
        self.epochs = epoch
        now = above_chance(self._responder, self.pairs)
        self.course.append(now)
        low = self.below is not None and now <= self.below * self.before
        high = self.above is not None and now >= self.above * self.before
        self.stopped = low or high
        return self.stopped

    @property
    def detail(self) -> dict[str, Any]:
        """What the record says of it."""
        course = [round(v, 4) for v in self.course]
        return {
            "above_chance_before": self.before,
            "above_chance": course,
            "epochs": self.epochs,
            "stopped": self.stopped,
        }


def _accuracy_before(erased: Checkpoint) -> float:
    try:
        return float(json.loads((erased.path / STRENGTH_FILE).read_text(encoding="utf-8"))["above_chance"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{erased.name}: was not made by seam-erase, so the accuracy to recover is not known") from None
