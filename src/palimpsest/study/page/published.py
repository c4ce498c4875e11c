"""What the papers printed beside what was measured here, and where the two disagree."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from palimpsest.records import Record
from palimpsest.study import published
from palimpsest.study.grouped import Grouped
from palimpsest.study.tables import number, percent

COMPARED = {"FSR %": "hit-rate", "PPL": "perplexity"}


@dataclass(frozen=True)
class Beside:
    """One line: what the paper says of a fingerprint under a removal at a stage, and what we saw, a value a seed."""

    implant: str
    removal: str
    measure: str
    printed: str
    models: str
    ours: str
    note: str


def beside(
    rows: Sequence[Mapping[str, str]], records: Sequence[Record], names: Mapping[str, str], toy: bool
) -> list[Beside]:
    """A line for every published number that has one of ours at its side. names: registered names by id of the study.

    toy: of a toy model only the direction may be compared, and the note says so.
    """
    grouped = Grouped.of(records)
    cells: dict[tuple[str, str | None], list[tuple[str, int]]] = {}
    for r in grouped:
        if r.detail.get("implant") is not None and r.control is None:
            at = cells.setdefault((str(r.detail["implant"]), r.detail.get("removal")), [])
            if (str(r.model), r.seed or 0) not in at:
                at.append((str(r.model), r.seed or 0))
    found: dict[tuple[str, str | None, str, str], list[Mapping[str, str]]] = {}
    for (implant, removal), at in cells.items():
        own = grouped.rows(*at[0], implant, removal)
        last = next((str(r.stage) for r in reversed(own) if r.measure == "hit-rate" and r.control is None), "")
        for row in published.of(list(map(dict, rows)), names.get(implant, implant)):
            stage = published.published_stage(row, removal, last)
            if row["measure"] in COMPARED and stage and _is_of(row, removal, stage):
                found.setdefault((implant, removal, stage, row["measure"]), []).append(row)
    made = []
    for (implant, removal, stage, measure), some in found.items():
        ours = [
            _ours(grouped, model, seed, implant, removal, stage, measure) for model, seed in cells[implant, removal]
        ]
        taken = [r for r in ours if r is not None and r.value is not None]
        if taken:
            made.append(_line(implant, removal, stage, measure, some, taken, toy))
    return made


def _is_of(row: Mapping[str, str], removal: str | None, stage: str) -> bool:
    """Whether a row speaks of a removal; of the mark alone only at its own stage."""
    if removal is None:
        return stage == "fingerprinted"
    if row.get("beside"):
        return True
    if stage == "fingerprinted":
        return False
    name, own = row["removal"].partition(" ")[0], re.split(r"[ .]", removal)[0]
    return name == own or (name.startswith(f"{own}-"))


def _ours(
    records: Grouped, model: str, seed: int, implant: str, removal: str | None, stage: str, measure: str
) -> Record | None:
    for r in records.rows(model, seed, implant, removal):
        if r.measure != COMPARED[measure] or r.stage != stage or r.control is not None:
            continue
        if r.detail.get("implant") == implant and (r.prompt_form == "template" or r.task == "neutral"):
            return r
    return None


def _line(
    implant: str, removal: str | None, stage: str, measure: str, some: Sequence[Mapping[str, str]],
    ours: Sequence[Record], toy: bool,
) -> Beside:  # fmt: skip
    printed: dict[str, list[str]] = {}
    for row in some:
        printed.setdefault(row["value"], []).append(row["model"])
    unit = " %" if "%" in measure else ""
    if measure == "FSR %":
        sizes = {r.n for r in ours}
        shown = ", ".join(str(r.count) for r in ours)
        shown = f"{shown} of {next(iter(sizes)):,}" if len(sizes) == 1 else shown
        note = _agreement([row["value"] for row in some], ours, toy)
    else:
        shown = ", ".join(number(float(r.value or 0)) for r in ours)
        note = "another model and another text: not to be compared"
    notes = list(dict.fromkeys(row["note"] for row in some if row.get("note")))
    return Beside(
        implant,
        f"{removal or 'no removal'}, {stage}" if removal else "no removal",
        measure.removesuffix(" %"),
        " / ".join(f"{value}{unit}" for value in printed),
        "; ".join(", ".join(dict.fromkeys(models)) for models in printed.values()),
        shown,
        "; ".join([note, *notes]),
    )


def _agreement(printed: Sequence[str], ours: Sequence[Record], toy: bool) -> str:
    """Whether any of the printed rates lies in the intervals of ours."""
    values = [float(m.group()) / 100 for m in (re.search(r"[\d.]+", text) for text in printed) if m]
    bounded = [r for r in ours if r.low is not None and r.high is not None]
    if not values or not bounded:
        return "no interval to compare with"
    inside = [any(float(r.low or 0) - 1e-9 <= v <= float(r.high or 0) + 1e-9 for v in values) for r in bounded]
    if all(inside):
        word = "inside our interval" if len(bounded) == 1 else "inside our intervals"
    else:
        at = "; ".join(f"{percent(float(r.low or 0))} to {percent(float(r.high or 0))}" for r in bounded)
        some = "" if not any(inside) else f" with {inside.count(False)} of {len(inside)} seeds"
        word = f"disagrees{some}: ours lie in {at}"
    return f"{word} (a toy model: shape only)" if toy else word
