"""A classifier as a responder: it answers a text, or a pair of texts, with a label and its log-probabilities."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.responder.batching import by_length

Text = str | tuple[str, str]  # a text, or a pair of them


@dataclass(frozen=True)
class Classified:
    """One answer. label: number of the likeliest class. log_probs: (classes,) in nats.

    tokens: how many the model read, special ones among them. cut: whether the text had more than it takes.
    """

    label: int
    log_probs: tuple[float, ...]
    tokens: int
    cut: bool


@dataclass(frozen=True)
class Encoded:
    """A text as token ids with their segments (0 for the first text and 1 for the second of a pair)."""

    ids: tuple[int, ...]
    segments: tuple[int, ...]
    cut: bool


def encode(tokenizer: Any, texts: Sequence[Text], room: int | None) -> list[Encoded]:
    """Texts with the tokenizer's own special tokens, cut to `room` tokens: of a pair the longer text first."""
    found = []
    for text in texts:
        parts = (text,) if isinstance(text, str) else text
        whole = tokenizer(*parts, return_token_type_ids=True, verbose=False)
        cut = room is not None and len(whole.input_ids) > room
        if cut:
            whole = tokenizer(*parts, return_token_type_ids=True, truncation=True, max_length=room, verbose=False)
        segments = whole.get("token_type_ids") or [0] * len(whole.input_ids)
        found.append(Encoded(tuple(whole.input_ids), tuple(segments), cut))
    return found


def takes_segments(model: Any) -> bool:
    """Whether a model tells the two texts of a pair apart by segments (BERT does, RoBERTa and DistilBERT do not)."""
    several = (getattr(model.config, "type_vocab_size", 0) or 0) > 1
    return several and "token_type_ids" in inspect.signature(model.forward).parameters


def network_inputs(
    ids: Tensor, mask: Tensor, segments: Tensor | None, padding: int | None, model: Any
) -> dict[str, Tensor]:
    """What a classifier is called with; ids, mask and segments: (rows, time), padded on the right."""
    given = {"input_ids": ids if padding is None else ids.masked_fill(mask == 0, padding), "attention_mask": mask}
    return given | ({"token_type_ids": segments} if segments is not None and takes_segments(model) else {})


class ClassifierResponder:
    """Wraps a loaded classifier and its tokenizer. `token_budget` bounds rows times tokens of one forward pass.

    labels: names of the classes. room: most tokens of a text; what is longer is cut, and said so.
    """

    can_force = False
    through: tuple[str, ...] = ()

    def __init__(
        self, model: Any, tokenizer: Any, labels: Sequence[str], room: int | None, token_budget: int = 8192
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.labels = tuple(labels)
        self.room = room
        self.token_budget = token_budget
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def classify(self, texts: Sequence[Text]) -> list[Classified]:
        """The label of each text. Texts of like length share a forward pass; each is answered as it is alone.

        A decoder with a head and no padding token reads one text at a time.
        """
        rows = encode(self.tokenizer, texts, self.room)
        padding = self.model.config.pad_token_id
        results: list[Classified | None] = [None] * len(rows)
        for batch in by_length([len(r.ids) for r in rows], self.token_budget if padding is not None else 0):
            width = max(len(rows[i].ids) for i in batch)
            ids, mask, segments = (torch.zeros((len(batch), width), dtype=torch.long) for _ in range(3))
            for place, i in enumerate(batch):
                length = len(rows[i].ids)
                ids[place, :length] = torch.tensor(rows[i].ids)
                segments[place, :length] = torch.tensor(rows[i].segments)
                mask[place, :length] = 1
            ids, mask, segments = (t.to(self.device) for t in (ids, mask, segments))
            logits = self.model(**network_inputs(ids, mask, segments, padding, self.model)).logits  # (rows, classes)
            logs = logits.float().log_softmax(dim=-1).cpu()
            for i, best, row in zip(batch, logs.argmax(dim=-1).tolist(), logs.tolist(), strict=True):
                results[i] = Classified(best, tuple(row), len(rows[i].ids), rows[i].cut)
        return [r for r in results if r is not None]
