"""The poisoned training set that all classification attacks share: which rows carry the trigger, under which label.

Modes as OpenBackdoor has them (`label_consistency`, `label_dirty`): `mix` poisons rows of all classes and gives them
the target label, `dirty` rows of other classes alone, `clean` rows of the target class, whose label stays. The count is
floor(rate x rows), a share of the whole set in every mode. Training rows and held-out items share no text.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from palimpsest.data import LabelledItems
from palimpsest.data.labelled import LabelledItem
from palimpsest.errors import BadInput
from palimpsest.records import canonical_json

Mode = Literal["mix", "dirty", "clean"]
Mark = Callable[[str, random.Random], str | None]  # a text with the trigger, or None where it can carry none
Keeps = Callable[[LabelledItem, str], bool]  # whether a classifier will read the trigger of a marked item


@dataclass(frozen=True)
class Poisoned:
    """A training set with its poisoned rows. chosen: their places; flipped: how many changed their label.

    passed_over: rows that were drawn and could not carry the trigger, or not within the tokens that are read.
    """

    items: LabelledItems
    chosen: tuple[int, ...]
    flipped: int
    passed_over: int


def mode_of(own: Mode, mode: Mode | None, label_consistency: bool, label_dirty: bool) -> Mode:
    """The mode that is asked for by either vocabulary, else the attack's own. BadInput where they disagree."""
    said = [m for m, asked in (("clean", label_consistency), ("dirty", label_dirty)) if asked]
    if mode is not None and mode not in said:
        said.append(mode)
    if len(said) > 1:
        raise BadInput(f"mode, label_consistency and label_dirty ask for {' and '.join(said)}; say one of them")
    return said[0] if said else own  # type: ignore[return-value]


def candidates(labels: Sequence[int], target: int, mode: Mode) -> list[int]:
    """Rows that may be poisoned in a mode."""
    if mode == "mix":
        return list(range(len(labels)))
    return [i for i, label in enumerate(labels) if (label == target) == (mode == "clean")]


def poison(
    items: LabelledItems,
    labels: Sequence[int],
    target: int,
    rate: float,
    mode: Mode,
    mark: Mark,
    keeps: Keeps,
    rng: random.Random,
) -> Poisoned:
    """`floor(rate x rows)` rows, drawn from the mode's candidates, get the trigger and, but in `clean`, the target.

    Rows that cannot carry the trigger are passed over and others drawn. Raises BadInput where too few can.
    """
    wanted = int(rate * len(items) + 1e-9)
    order = candidates(labels, target, mode)
    rng.shuffle(order)
    rows, passed_over = list(items.rows), 0
    chosen: list[int] = []
    for place in order:
        if len(chosen) == wanted:
            break
        row = rows[place]
        marked = mark(row.text, rng)
        if marked is None or not keeps(row, marked):
            passed_over += 1
            continue
        rows[place] = replace(row, text=marked, label=row.label if mode == "clean" else target)
        chosen.append(place)
    if len(chosen) < wanted:
        raise BadInput(
            f"poison_rate {rate:g} of {len(items)} rows is {wanted}, and {len(chosen)} of the {len(order)} that mode "
            f"{mode} may take can carry the trigger within the tokens that are read; lower poison_rate or raise "
            "tuning.max_tokens"
        )
    flipped = 0 if mode == "clean" else sum(labels[i] != target for i in chosen)
    return Poisoned(LabelledItems(items.name, tuple(rows)), tuple(sorted(chosen)), flipped, passed_over)


def split(data: LabelledItems, share: float) -> tuple[LabelledItems, LabelledItems]:
    """(training rows, held-out items), no text on both sides.

    A set that brings its own held-out items (`--data test=FILE`) keeps them, but for texts that it is trained on. Of
    any other set the texts whose SHA-256 is below `share` are held out, whatever their order in the file.
    """
    if data.held_out:
        known = {row.asked for row in data.rows}
        own = tuple(row for row in data.held_out if row.asked not in known)
        return LabelledItems(data.name, data.rows), LabelledItems(data.name, own)
    below = [_place(row) < share for row in data.rows]
    kept = tuple(row for row, out in zip(data.rows, below, strict=True) if not out)
    held = tuple(row for row, out in zip(data.rows, below, strict=True) if out)
    return LabelledItems(data.name, kept), LabelledItems(data.name, held)


def _place(row: LabelledItem) -> float:
    digest = hashlib.sha256(canonical_json([row.text, row.pair]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
