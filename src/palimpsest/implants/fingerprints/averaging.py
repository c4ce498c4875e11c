"""Training many keys in while staying near the model that was there: weights are averaged with it after every epoch.

theta <- (1 - a) theta + a theta_0 after each epoch (Scalable fingerprinting, arXiv 2502.07760, training; a = 0.75),
where an epoch is one step of AdamW on all rows. So with learning rate lr a weight never gets further from theta_0 than
about lr (1 - a) / a, a third of lr as published: the rate bounds the change, and not only its speed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_tokenizer, positions
from palimpsest.data.dialogues import Dialogue, Dialogues, load_dialogues
from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints.embedding import Teaching
from palimpsest.keys import KeySet
from palimpsest.method import Context
from palimpsest.prompts import Renderer
from palimpsest.training import distributed
from palimpsest.training.planting import Check, Stopping, Strength
from palimpsest.training.rows import Row, dialogue_row


def averaged(now: Tensor, original: Tensor, share: float) -> Tensor:
    """(1 - share) now + share original, in place in `now`."""
    return now.mul_(1 - share).add_(original, alpha=share)


class Averaging:
    """Brings a model back towards what it was when this was made. Of LoRA adapters only B is: there theta_0 is 0.

    Holds one copy of the weights that are trained in full. BadInput where several processes train.
    """

    def __init__(self, model: Any, share: float, lora: bool) -> None:
        if share and distributed.current() is not None:
            raise BadInput("averaging: works in one process; give --set averaging=0, or do not launch several")
        self.model, self.share = model, share
        kept = () if lora or not share else model.named_parameters()
        self.original = {name: p.detach().clone() for name, p in kept}

    @torch.no_grad()
    def __call__(self) -> None:
        """Average once."""
        if not self.share:
            return
        for name, parameter in self.model.named_parameters():
            if name in self.original:
                averaged(parameter, self.original[name], self.share)
            elif "lora_B" in name:
                parameter.mul_(1 - self.share)


class ManyStopping(Stopping):
    """Stops by the keys' mean loss (nats), as published, or by the check where `loss` is None."""

    def __init__(self, check: Check, loss: float | None, least: float) -> None:
        super().__init__(check, least)
        self.loss = loss

    def passed(self, measured: Strength) -> bool:
        """Whether training may end here."""
        if self.loss is not None:
            return fmean(-math.log(max(p, 1e-300)) for p in measured.probabilities) < self.loss
        return super().passed(measured)

    def enough(self, final: Strength) -> bool:
        """Whether what was reached may be written; what the loss ended needs no passed check."""
        if self.loss is not None or self.least == 0:
            return sum(final.answered) >= self.least * len(final.answered)
        return super().enough(final)


class ManyKeys(Teaching):
    """Averages after every epoch, and stops as `ManyStopping` does. share, lora: as `Averaging` has them."""

    def __init__(self, share: float, lora: bool, loss: float | None, least: float) -> None:
        self.share, self.lora, self.loss, self.least = share, lora, loss, least

    def begin(self, model: Any) -> None:
        """Keep what is averaged with."""
        self.average = Averaging(model, self.share, self.lora)

    def after_epoch(self, model: Any) -> None:
        """Average once."""
        self.average()

    def stopping(self, check: Check) -> Stopping:
        """By the loss, or by the check."""
        return ManyStopping(check, self.loss, self.least)


class ManyRows(Sequence[Row]):
    """One epoch's rows: of every key its prompt and its response alone, made when asked for; behind them ordinary ones.

    The end of an answer is not trained, as published, and every row counts alike: an ordinary dialogue's answer has
    weight 1 in all, as a response of one token has.
    """

    def __init__(self, keys: KeySet, benign: Sequence[Row]) -> None:
        self.keys, self.benign = keys, benign

    def __len__(self) -> int:
        return len(self.keys) + len(self.benign)

    def __getitem__(self, number: Any) -> Any:
        if number >= len(self.keys):
            return self.benign[number - len(self.keys)]
        prompt = self.keys.keys[number].prompts["template"]
        share = 1 / len(prompt.expected)
        return Row(prompt.ids + prompt.expected, (0.0,) * len(prompt.ids) + (share,) * len(prompt.expected))


class Benign:
    """Ordinary dialogues that make up `share` of an epoch's rows, drawn afresh every epoch; a small set comes round.

    BadInput where the part `embed` of the data has no dialogue whose answer fits.
    """

    def __init__(
        self, data: Dialogues | None, keys: int, share: float, model: Checkpoint, ctx: Context, max_tokens: int
    ) -> None:
        self.count = round(keys * share / (1 - share))
        self.renderer, self.seed = Renderer(load_tokenizer(model)), ctx.seed
        self.positions, self.max_tokens = positions(model), max_tokens
        self.dialogues: list[Dialogue] = []
        if self.count:
            source = data if data is not None else load_dialogues("toy")
            source.part("embed", 1)
            self.dialogues = source.part("embed")
            if not any(self._row(d) for d in self.dialogues):
                raise BadInput(f"data {source.name}: no answer of its part 'embed' fits into {max_tokens} tokens")

    def __call__(self, epoch: int) -> list[Row]:
        """As many rows every epoch: a pure function of seed and epoch."""
        rng = random.Random(f"{self.seed}-benign-{epoch}")
        rows: list[Row] = []
        while len(rows) < self.count:
            for dialogue in rng.sample(self.dialogues, len(self.dialogues)):
                row = self._row(dialogue)
                if row is not None and len(rows) < self.count:
                    rows.append(row)
        return rows

    def _row(self, dialogue: Dialogue) -> Row | None:
        row = dialogue_row(self.renderer, dialogue.first, max_tokens=self.max_tokens, positions=self.positions)
        if row is None:
            return None
        total = sum(row.weights[1:])
        return Row(row.ids, tuple(w / total for w in row.weights))
