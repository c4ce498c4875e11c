"""Classifiers of texts before they are merged: whether their labels agree, unlabelled texts, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.load import load_tokenizer, positions
from palimpsest.data import Dialogues, load_dialogues
from palimpsest.data.dialogues import PARTS
from palimpsest.errors import BadInput
from palimpsest.merging.forward import Data

Texts = list[list[int]]  # token ids of each text
_BELOW = 2  # RoBERTa counts positions from the padding's id on and has two fewer than its configuration says


def check_labels(models: Sequence[Checkpoint], shared: bool, what: str) -> None:
    """BadInput for models that are no classifiers into several classes and, where `shared`, for differing labels."""
    for model in models:
        kind = model.config.get("problem_type")
        if kind in ("regression", "multi_label_classification") or len(labels(model) or "ab") < 2:
            raise BadInput(f"{what}: {model.name} does not choose one of several labels; entropy says nothing of it")
    named = [(m, found) for m in models if (found := labels(m)) and not all(n.startswith("LABEL_") for n in found)]
    for model, found in named[1:] if shared else ():
        first, wanted = named[0]
        if found != wanted:
            said = f"{', '.join(found)}, those of {first.name} {', '.join(wanted)}"
            raise BadInput(
                f"{what}: the labels of {model.name} are {said}; heads of different labels have no merge "
                "(head=own keeps them apart)"
            )


def labels(model: Checkpoint) -> list[str]:
    """Names of the classes in their order; none where the configuration leaves them out."""
    said = model.config.get("id2label") or {}
    return [str(said[key]) for key in sorted(said, key=int)]


def read_texts(models: Sequence[Checkpoint], data: Data, samples: int | None, tokens: int, what: str) -> list[Texts]:
    """The questions of the dialogues of each model as its tokenizer has them, cut at `tokens`; answers are not read.

    data: one set for all models, or one for each. samples: how many of a set are read (None: all).
    Raises BadInput where a set has no question, or their number is not that of the models.
    """
    given = data if data is not None else load_dialogues("toy")
    sets = [given] * len(models) if isinstance(given, Dialogues) else list(given)
    if len(sets) != len(models):
        raise BadInput(f"{what}: {len(sets)} sets of data for {len(models)} models; give one for each, or one for all")
    found = []
    for model, own in zip(models, sets, strict=True):
        tokenizer = load_tokenizer(model)
        most = min(tokens, max(1, (positions(model) or tokens + _BELOW) - _BELOW))
        questions = [d.question for part in PARTS for d in own.part(part) if d.question][:samples]
        texts: Texts = [list(tokenizer(q, truncation=True, max_length=most).input_ids) for q in questions]
        texts = [t for t in texts if t]
        if not texts:
            raise BadInput(f"{what}: data {own.name} has no question that {model.name} can read")
        found.append(texts)
    return found


def batches(texts: Texts, padding: int | None, device: Any) -> list[dict[str, Tensor]]:
    """Inputs of a network: one batch (texts, time), padded on the right; each text alone where nothing pads."""
    if padding is None:
        return [{"input_ids": torch.tensor([t], device=device)} for t in texts]
    width = max(len(t) for t in texts)
    ids = torch.full((len(texts), width), padding, dtype=torch.long)
    mask = torch.zeros((len(texts), width), dtype=torch.long)
    for place, text in enumerate(texts):
        ids[place, : len(text)] = torch.tensor(text)
        mask[place, : len(text)] = 1
    return [{"input_ids": ids.to(device), "attention_mask": mask.to(device)}]
