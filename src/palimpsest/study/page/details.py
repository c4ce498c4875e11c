"""What a cell of the matrix opens: stages, forms, keys, tasks, claims. Numbers and words, never a text of a key.

The page holds all of it as one JSON document that its script lays out when a cell is opened. What recurs (a marked
model's numbers stand behind every cell of its mark) stands once, in `pool`, and is named by its place there:

    {"pool": [anything], "cells": [{"title", "about", "seeds": [seed], "repeat": [line]}]}
    seed   {"name", "word", "why", "claims": [place of [what, word, why]], "facts",
            "columns": place of [[title, is control]],
            "lines": [[place of [title, note], place of [text, note] a column]],
            "tasks": as lines, "keys": [[column, place of [numbers, ranks, [[form, hits, log-probabilities]]]]],
            "answers": [[number, before, after]]}

hits: a digit a key. Log-probabilities: nats below zero, with spaces between; `.` where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palimpsest.records import Record
from palimpsest.study import tables
from palimpsest.study.tables import FORM_WORDS, Block, Line

KEYED_CELLS = 1500  # cells and seeds; of more than that the single keys stay in records.jsonl


class Pool:
    """Values of JSON, each once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.places: dict[Any, int] = {}
        self.tables: dict[tuple[int, ...], int | None] = {}  # of single keys, by the records that they are made of

    def __call__(self, value: Any) -> int:
        """The place of a value."""
        key = value if isinstance(value, str) else (repr(value),)  # lists of texts and numbers: one spelling each
        if key not in self.places:
            self.places[key] = len(self.values)
            self.values.append(value)
        return self.places[key]


def document(cells: Sequence[dict[str, Any]], pool: Pool) -> dict[str, Any]:
    """The whole of it. cells: as `of_cell` gives them, in the order of their numbers."""
    return {"cells": list(cells), "pool": pool.values}


def of_cell(
    title: str, about: str, blocks: Sequence[Block], records: Sequence[Record], repeat: Sequence[str], pool: Pool,
    keyed: bool = True, answers: Mapping[int, Sequence[tuple[int, str, str]]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The details of a fingerprint under a removal. blocks: one a seed. keyed: whether with single keys."""
    given = answers or {}
    return {
        "title": pool(title),
        "about": pool(about),
        "seeds": [_of_seed(b, records, pool, keyed, given.get(b.cell.seed, ())) for b in blocks],
        "repeat": [pool(line) for line in repeat],
    }


def _of_seed(
    block: Block, records: Sequence[Record], pool: Pool, keyed: bool, answers: Sequence[tuple[int, str, str]]
) -> dict[str, Any]:
    rows = tables.rows_of(records, block.cell)
    verdict = block.verdict
    claims = [[f"claim, {stage}", r.verdict, r.reason] for stage, r in block.ownership.items()]
    claims += [
        [f"control, {tables.CONTROL_WORDS[str(r.control)]}", r.verdict, r.reason] for r in block.control_verdicts
    ]
    limits = [r for r in rows if r.measure == "constraint" and r.detail.get("removal") == block.cell.removal]
    claims += [[f"thief's limit, {r.task}", r.verdict or "no limit", r.reason] for r in limits]
    columns, found = tables.tasks(records, block.cell, rows)
    at = [columns.index(c) if c in columns else None for c in block.columns]
    return {
        "name": block.cell.seed,
        "word": pool(str(verdict.verdict)) if verdict else None,
        "why": pool(_why(verdict)) if verdict else None,
        "claims": [pool([str(what), str(word), _tidy(str(why or ""))]) for what, word, why in claims],
        "facts": pool(facts(rows)),
        "columns": pool([[c.title, int(c.control is not None)] for c in block.columns]),
        "lines": [_line(line, pool) for line in block.lines],
        "tasks": [
            [pool([name, ""]), *(_value(values[i] if i is not None else tables.Value(), pool) for i in at)]
            for name, values in found
        ],
        "keys": _keys(block, rows, pool) if keyed else [],
        "answers": [[number, pool(before), pool(after)] for number, before, after in answers],
        "searched": pool(block.searched) if block.searched else None,
    }


def _why(verdict: Record) -> str:
    at = f" Bounds at {100 * verdict.confidence:g} %, one-sided." if verdict.confidence else ""
    return _tidy(str(verdict.reason)) + at


def _tidy(text: str) -> str:
    """A reason as a sentence in print."""
    return (text[:1].upper() + text[1:]).replace("->", "→").replace("<=", "≤")


def facts(rows: Sequence[Record]) -> str:
    """What may be public of the keys, as a line."""
    known = next(
        (r.detail["keys"] for r in rows if r.measure == "cost" and isinstance(r.detail.get("keys"), dict)), None
    )
    if known is None:
        return ""
    drawn = "responses drawn independently" if known["distinct"] else "one response for all"
    drawn += f" from a committed list of {known['choices']:,}" if known.get("choices") else ""
    return f"{known['n']:,} keys, match rule {known['match']}, {drawn}. Commitment {known['commitment']}"


def _line(line: Line, pool: Pool) -> list[int]:
    return [pool([line.title, line.note]), *(_value(v, pool) for v in line.values)]


def _value(value: tables.Value, pool: Pool) -> int:
    return pool([value.text, value.note] if value.note else [value.text])


def _keys(block: Block, rows: Sequence[Record], pool: Pool) -> list[list[Any]]:
    """A table of single keys a column that was asked."""
    found: list[list[Any]] = []
    for place, column in enumerate(block.columns):
        asked = [r for r in tables.records_at(rows, column) if r.measure in ("hit-rate", "rank")]
        made_of = tuple(map(id, asked))  # a marked model's own stand behind every cell of its mark
        if made_of not in pool.tables:
            pool.tables[made_of] = _table(tables.per_key(asked, block.forms), block.forms, pool)
        if pool.tables[made_of] is not None:
            found.append([place, pool.tables[made_of]])
    return found


def _table(keys: Sequence[dict[str, Any]], asked_forms: Sequence[str], pool: Pool) -> int | None:
    """The place of a table of single keys; None where there is none."""
    if not keys:
        return None
    forms = []
    for form in asked_forms:
        asked = [k["forms"].get(form) for k in keys]
        if any(a is not None for a in asked):
            hits = "".join("." if a is None else str(int(a[0])) for a in asked)
            logs = " ".join("." if a is None or a[1] is None else _nats(a[1]) for a in asked)
            forms.append([FORM_WORDS[form], hits, logs])
    ranks = " ".join("." if k["rank"] is None else str(k["rank"]) for k in keys)
    return pool([" ".join(str(k["number"]) for k in keys), ranks, forms])


def _nats(log_prob: float) -> str:
    """Nats below zero: two decimals where one would say too little."""
    return f"{-log_prob:.2f}" if log_prob > -10 else f"{-log_prob:.1f}"
