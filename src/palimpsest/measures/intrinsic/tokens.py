"""Which tokens two or more models are compared on: those that all of them have, by what they spell, not by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.merging.reading import RowNumbers
from palimpsest.merging.tokens import added_entries, read_tokens

Choice = Literal["rare", "frequent", "spread"]


def shared_rows(
    models: Sequence[Checkpoint], rows: Sequence[int], count: int | None = None, choice: Choice = "spread"
) -> list[RowNumbers]:
    """For each model the rows of its embedding that hold the chosen tokens, in one order: `count` each, or fewer.

    rows: of each model's embedding. Tokens are ordered by their number in the first model, which for BPE is the order
    in which merges were found, so `rare` takes the last, `frequent` the first, `spread` every so many; None takes all.
    Added tokens (special ones) are left out. Where no model's tokens are known and all have as many rows, rows go by
    number. Raises BadInput where fewer than two tokens are shared or a tokenizer is missing.
    """
    known = [read_tokens(m.path) for m in models]
    if all(t is None for t in known) and len(set(rows)) == 1:
        numbers = [np.arange(rows[0], dtype=np.int64)] * len(models)
    else:
        found = [t for t in known if t is not None]
        for model, tokens in zip(models, known, strict=True):
            if tokens is None:
                raise BadInput(f"{model.name}: has no tokenizer.json or vocab.json, so its rows cannot be told apart")
        common = set.intersection(*(set(t) for t in found)) - set(added_entries(models[0].path))
        within = [t for t in common if all(k[t] < n for k, n in zip(found, rows, strict=True))]
        ordered = sorted(within, key=lambda t: (found[0][t], t))
        numbers = [np.array([k[t] for t in ordered], dtype=np.int64) for k in found]
    if len(numbers[0]) < 2:
        raise BadInput(f"{' and '.join(m.name for m in models)}: share {len(numbers[0])} tokens; two are needed")
    picked = picks(len(numbers[0]), count, choice)
    return [n[picked] for n in numbers]


def picks(size: int, count: int | None, choice: Choice) -> RowNumbers:
    """Places 0 to size - 1 that are taken, rising."""
    if count is None or count >= size:
        return np.arange(size, dtype=np.int64)
    if choice == "frequent":
        return np.arange(count, dtype=np.int64)
    if choice == "rare":
        return np.arange(size - count, size, dtype=np.int64)
    return np.arange(count, dtype=np.int64) * size // count
