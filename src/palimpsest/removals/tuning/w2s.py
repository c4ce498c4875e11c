"""W2SDefense: a small clean teacher's labels and features pull a suspect classifier back (arXiv 2410.14425)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.labels import check_one_label, is_encoder, label_names, text_room
from palimpsest.checkpoint.load import load_classifier, load_tokenizer, write_model
from palimpsest.data import LabelledItems
from palimpsest.errors import BadInput
from palimpsest.method import Context, Made, method, param, takes
from palimpsest.removals.change import change_of
from palimpsest.removals.tuning.tuned import training_record
from palimpsest.responder.classifier import network_inputs
from palimpsest.training import distributed
from palimpsest.training.classifier import label_rows
from palimpsest.training.finetune import merged, tune
from palimpsest.training.loop import Batch
from palimpsest.training.rows import Row
from palimpsest.training.settings import Tuning

LORA = Tuning(targets="all-linear", rank=512, alpha=512, dropout=0.1, epochs=5, lr=2e-4, batch=32, max_tokens=128)
FULL = Tuning(adapter="full", epochs=3, lr=2e-5, batch=16, schedule="linear", weight_decay=0.01, max_tokens=128)
REFERENCE = "the clean teacher: a classifier of the same labels and tokenizer, fine-tuned on clean items"


@method("removals", "w2s", paper="W2SDefense, arXiv 2410.14425, section 4")
@dataclass(frozen=True)
class W2S:
    """Train the suspect on clean items with a clean teacher's soft labels and last states beside the labels.

        ce x cross-entropy + kl x T^2 KL(teacher || student) + features x mean squared difference of the last states

    with both label distributions at the temperature T. States are those of the first token (encoders) or the last one
    (decoders); where teacher and suspect differ in width that term is left out, and the record says so: the paper
    projects the teacher's by a layer that is trained with the teacher. With the published weights (5, 0.001, 0.001) the
    cross-entropy outweighs the rest by thousands, so the control without them (`cross_entropy_only`, the released
    lora.py) belongs beside every row. A teacher with another tokenizer is refused (the published one reads its own).
    Threat model: the full clean data of the task; no trigger. LoRA on decoders with a head; encoders are trained whole.
    """

    data: LabelledItems | None = takes("clean labelled items")
    reference: Checkpoint | None = takes("the clean teacher: a classifier of the same labels and tokenizer")
    ce: float = param(5.0, "weight of the cross-entropy", low=0.0)
    kl: float = param(0.001, "weight of the divergence from the teacher's soft labels", low=0.0)
    features: float = param(0.001, "weight of the distance between the last states", low=0.0)
    temperature: float = param(2.0, "of both label distributions (T)", low=0.01)
    tuning: Tuning = param(LORA, "how the suspect is trained")

    @classmethod
    def paper(cls) -> W2S:
        """LoRA of rank 512 on a decoder with a head, 5 epochs at 2e-4, batches of 32, T = 2."""
        return cls()

    @classmethod
    def cross_entropy_only(cls) -> W2S:
        """The control: the same training without a teacher."""
        return cls(kl=0.0, features=0.0)

    @classmethod
    def classifier(cls) -> W2S:
        """An encoder, all weights, as `finetune` trains classifiers."""
        return cls(tuning=FULL)

    @classmethod
    def classifier_cross_entropy_only(cls) -> W2S:
        """The control of an encoder: the same training without a teacher."""
        return cls(kl=0.0, features=0.0, tuning=FULL)

    def check(self, model: Checkpoint) -> None:
        """BadInput for what cannot be taught; nothing is loaded."""
        check_one_label(model)
        if self.data is None:
            raise BadInput(f"w2s: {model.name} is trained on clean labelled items: name a file of them with --data")
        if distributed.current() is not None:
            raise BadInput("w2s: two models are run side by side; run it in one process")
        if self.tuning.adapter == "lora" and is_encoder(model):
            raise BadInput("w2s: an encoder is trained whole: --set tuning.adapter=full (preset classifier)")
        if not (self.kl or self.features):
            return
        if self.reference is None:
            raise BadInput(f"w2s: needs --reference MODEL, {REFERENCE}")
        check_one_label(self.reference)
        if label_names(self.reference.config) != label_names(model.config):
            raise BadInput(f"--reference {self.reference.name}: has other labels than {model.name}")

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the taught classifier to `out`."""
        self.check(model)
        assert self.data is not None
        student, tokenizer = load_classifier(model, ctx, "float32"), load_tokenizer(model)
        teacher = None
        if self.reference is not None and (self.kl or self.features):
            if load_tokenizer(self.reference).get_vocab() != tokenizer.get_vocab():
                raise BadInput(f"--reference {self.reference.name}: has another vocabulary than {model.name}")
            teacher = load_classifier(self.reference, ctx, "float32")
        rooms = [n for n in (text_room(student.config, tokenizer), self.tuning.max_tokens) if n is not None]
        labels = self.data.classes(label_names(model.config))
        rows: list[Row] = label_rows(tokenizer, [r.asked for r in self.data.rows], labels, min(rooms))
        loss = Taught(teacher, self.ce, self.kl, self.features, self.temperature, is_encoder(model))
        network, log = tune(student, rows, self.tuning, ctx, what="w2s", loss_of=loss)
        plain = merged(network)
        moved = change_of(plain, model)
        made = write_model(plain, model, out, "w2s", {"model": model.digest()})
        record = training_record(made, "w2s", log, len(rows), ctx, moved)
        record.detail |= {"ce": self.ce, "kl": self.kl, "features": self.features, "same_width": loss.same_width}
        return Made(made, records=[record])


def soft_label_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of each row, in nats, of logits (rows, classes) over T: (rows,)."""
    theirs = (teacher / temperature).log_softmax(dim=-1)
    ours = (student / temperature).log_softmax(dim=-1)
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(dim=-1)


class Taught:
    """The loss of a suspect beside a teacher (None: the cross-entropy alone)."""

    def __init__(self, teacher: Any, ce: float, kl: float, features: float, temperature: float, first: bool) -> None:
        self.teacher, self.ce, self.kl, self.features = teacher, ce, kl, features
        self.temperature, self.first = temperature, first
        self.same_width: bool | None = None

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """Mean over rows, a scalar; of a part of a step, its share of it."""
        assert batch.labels is not None
        logits, states = self._read(model, batch)
        losses = self.ce * nn.functional.cross_entropy(logits, batch.labels, reduction="none")  # (rows,)
        if self.teacher is not None:
            with torch.no_grad():
                theirs, below = self._read(self.teacher, batch)
            losses = losses + self.kl * soft_label_distance(logits, theirs, self.temperature)
            self.same_width = states.shape == below.shape
            if self.same_width:
                losses = losses + self.features * (states - below).pow(2).mean(dim=-1)
        weights = batch.weights.sum(dim=1)
        total = float(weights.sum()) if batch.totals is None else batch.totals[0]
        return (losses * weights).sum() / max(total, 1e-8)

    def _read(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (rows, classes) and the last state (rows, hidden) at the first or the last token."""
        mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
        inputs = network_inputs(batch.input_ids, mask, batch.segments, model.config.pad_token_id, model)
        found = model(**inputs, output_hidden_states=True)
        places = torch.zeros_like(mask[:, 0]) if self.first else mask.sum(dim=1) - 1
        states = found.hidden_states[-1][torch.arange(len(mask), device=mask.device), places]
        return found.logits.float(), states.float()
