"""Running models on dialogues before they are merged, one after the other: what methods with `collect` share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_model, load_tokenizer, positions
from palimpsest.cost import count_tokens
from palimpsest.data import Dialogues, load_dialogues
from palimpsest.data.dialogues import PARTS
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.prompts import Renderer
from palimpsest.training.rows import Row, dialogue_rows

Data = Dialogues | Sequence[Dialogues] | None


def read_models(
    models: Sequence[Checkpoint], data: Data, samples: int, ctx: Context, what: str
) -> Iterator[tuple[Any, list[Row]]]:
    """(model in float32, its rows), one model after the other. data: one set for all models, or one for each.

    Raises BadInput where a set has no dialogue that fits, or their number is not that of the models.
    """
    given = data if data is not None else load_dialogues("toy")
    sets = [given] * len(models) if isinstance(given, Dialogues) else list(given)
    if len(sets) != len(models):
        raise BadInput(f"{what}: {len(sets)} sets of data for {len(models)} models; give one for each, or one for all")
    with ctx.progress.task(what, samples * len(models)) as task:
        for model, own in zip(models, sets, strict=True):
            turns = [d.turns for part in PARTS for d in own.part(part)][:samples]
            renderer = Renderer(load_tokenizer(model))
            rows = dialogue_rows(renderer, turns, positions=positions(model))
            if not rows:
                raise BadInput(f"{what}: data {own.name} has no dialogue with an answer that {model.name} can read")
            yield load_model(model, ctx, "float32"), rows
            task.advance(samples, model.name)


def logits_of(network: Any, row: Row) -> Tensor:
    """What the model predicts behind each token of a row: (time, vocab)."""
    ids = torch.tensor([row.ids], device=network.device)
    count_tokens(len(row.ids))
    return network(input_ids=ids).logits[0]  # type: ignore[no-any-return]
