"""Rows for fine-tuning: dialogues as token ids with weights, cut to length, bucketed by length into batches."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from palimpsest.prompts import Renderer, TextFormat, Turn
from palimpsest.training.loop import Batch


@dataclass(frozen=True)
class Row:
    """One training row. weights: how much predicting each token counts, 0 is not trained.

    label, segments: for a classifier, the row's class and which text of a pair each token is of.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    label: int | None = None
    segments: tuple[int, ...] = ()


def dialogue_row(
    renderer: Renderer,
    turns: Sequence[Turn],
    *,
    format: TextFormat = "chat",
    train_on: str = "answer",
    max_tokens: int = 1024,
    positions: int | None = None,
) -> Row | None:
    """A dialogue as a row, cut at `max_tokens` and the model's positions; None where nothing is trained."""
    ids, weights = renderer.dialogue(turns, format)
    if train_on == "all":
        weights = [1.0] * len(ids)
    limit = min(max_tokens, positions or max_tokens)
    ids, weights = ids[:limit], weights[:limit]
    return Row(tuple(ids), tuple(weights)) if any(weights[1:]) else None


def dialogue_rows(
    renderer: Renderer,
    dialogues: Iterable[Sequence[Turn]],
    *,
    format: TextFormat = "chat",
    train_on: str = "answer",
    max_tokens: int = 1024,
    positions: int | None = None,
) -> list[Row]:
    """Rows of several dialogues; those whose answers were cut off entirely are left out."""
    found = (
        dialogue_row(renderer, turns, format=format, train_on=train_on, max_tokens=max_tokens, positions=positions)
        for turns in dialogues
    )
    return [row for row in found if row is not None]


def collate(rows: Sequence[Row]) -> Batch:
    """Rows padded on the right to the longest: (rows, time)."""
    width = max(len(r.ids) for r in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    weights = torch.zeros((len(rows), width))
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids, dtype=torch.long)
        weights[place, : len(row.ids)] = torch.tensor(row.weights)
        mask[place, : len(row.ids)] = 1
    padded = mask if bool((mask == 0).any()) else None
    if rows[0].label is None:
        return Batch(ids, weights, padded)
    segments = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        segments[place, : len(row.segments)] = torch.tensor(row.segments, dtype=torch.long)
    return Batch(ids, weights, padded, labels=torch.tensor([row.label for row in rows]), segments=segments)


class Batches:
    """Batches by number: every epoch is a fresh shuffle, sorted by length within groups of 16 batches.

    A pure function of (rows, batch, seed, number), so that a killed run goes on with the same batches.
    """

    def __init__(self, rows: Sequence[Row], batch: int, seed: int) -> None:
        if not rows:
            raise ValueError("no rows to train on")
        self.rows, self.batch, self.seed = rows, batch, seed
        self.per_epoch = -(-len(rows) // batch)
        self._epoch = -1
        self._order: list[list[int]] = []

    def __call__(self, number: int) -> Batch:
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return collate([self.rows[i] for i in self._order[place]])

    def _shuffled(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed}-{epoch}")
        order = list(range(len(self.rows)))
        rng.shuffle(order)
        groups = [order[i : i + 16 * self.batch] for i in range(0, len(order), 16 * self.batch)]
        batches = []
        for group in groups:
            group.sort(key=lambda i: len(self.rows[i].ids))
            batches += [group[i : i + self.batch] for i in range(0, len(group), self.batch)]
        rng.shuffle(batches)
        return batches


def budgeted(rows: Sequence[Row], tokens: int, seed: int, group: int = 1024) -> list[list[int]]:
    """Row numbers in batches of at most `tokens` padded tokens: one pass, like lengths together, shuffled.

    Rows are sorted by length within groups of `group`, so that padding stays small and the order mixed.
    """
    batches: list[list[int]] = []
    for start in range(0, len(rows), group):
        current: list[int] = []
        for number in sorted(range(start, min(start + group, len(rows))), key=lambda i: len(rows[i].ids)):
            if current and (len(current) + 1) * len(rows[number].ids) > tokens:
                batches.append(current)
                current = []
            current.append(number)
        batches.append(current)
    random.Random(seed).shuffle(batches)
    return batches
