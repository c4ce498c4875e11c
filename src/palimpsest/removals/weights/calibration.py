"""What pruning that reads data reads: windows of dialogues, equally long, without padding."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_tokenizer, positions
from palimpsest.data import Dialogues, load_dialogues
from palimpsest.errors import BadInput
from palimpsest.prompts import Renderer

PARTS = ("erase", "recover", "revival", "embed")  # `test` is what perplexity is measured on


@dataclass(frozen=True)
class Calibration:
    """ids: (examples, tokens). source: in words, for records."""

    ids: Tensor
    source: str

    @property
    def tokens(self) -> int:
        """How many tokens in all."""
        return self.ids.numel()


def calibration(
    data: Dialogues | None, model: Checkpoint, samples: int, tokens: int, seed: int, what: str
) -> Calibration:
    """`samples` examples of `tokens` tokens (at most the model's positions): dialogues as the model reads them, drawn
    without replacement and joined, cut into windows.

    Fewer where the data hold no more; a single shorter one where they do not fill one. Raises BadInput where there
    is nothing to read.
    """
    given = data if data is not None else load_dialogues("toy")
    toy = given.name == "toy"
    width = min(tokens, positions(model) or tokens)
    rows = [d.turns for part in PARTS for d in given.part(part)]
    random.Random(f"calibration-{seed}").shuffle(rows)
    renderer = Renderer(load_tokenizer(model))
    ids: list[int] = []
    for turns in rows:
        ids += renderer.dialogue(turns)[0]
        if len(ids) >= samples * width:
            break
    if len(ids) < 2:
        raise BadInput(f"{what}: data {given.name} holds no dialogue to calibrate on")
    count = min(samples, len(ids) // width)
    read = torch.tensor(ids[: count * width]).view(count, width) if count else torch.tensor([ids])
    source = "the toy world's dialogues" if toy else given.name
    return Calibration(read, f"{source}: {len(read)} x {read.shape[1]} tokens")
