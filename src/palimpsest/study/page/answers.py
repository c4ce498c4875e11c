"""Answers to ordinary prompts, before and after a removal, where no key can show in them.

The texts lie in the study's secret sample files. One is shown only if every key file of the study's marks is there to
compare with and the text shares nothing with a trigger, a response, a decoy or a carrier: neither the whole of one, nor
is it part of one, nor has it a run of letters in common with one. Where a mark's keys are missing, nothing is shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from palimpsest.records import Record
from palimpsest.study.store import Store

SHOWN = 5  # answers a cell
LONGEST = 160  # characters of one
RUN = 10  # letters and digits in a row that no answer may share with a key
PART = 4  # an answer of fewer letters is no telling part of a key
MOST_KEY_FILES = 200
Cell = tuple[str, int, str, str | None]  # model, seed, implant, removal


class Guard:
    """Tells whether a text has anything of a key in it."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self.secrets = {plain(s) for s in secrets} - {""}
        self.runs = {s[i : i + RUN] for s in self.secrets for i in range(len(s) - RUN + 1)}

    @classmethod
    def of(cls, store: Store, records: Sequence[Record]) -> Guard | None:
        """From every key file of the folder; None where a mark's own is missing or one cannot be read."""
        steps = {
            str(r.detail.get("step"))
            for r in records
            if r.measure == "cost" and r.stage == "fingerprinted" and r.control is None and "keys" in r.detail
        }
        files = sorted((store.folder / "steps").glob("*/keys.json"))
        if not steps or len(files) > MOST_KEY_FILES or not steps <= {f.parent.name for f in files}:
            return None
        texts: list[str] = []
        try:
            for file in files:
                _collect(json.loads(file.read_text(encoding="utf-8")), texts)
        except (OSError, ValueError):
            return None
        return cls(texts)

    def clean(self, text: str) -> bool:
        """Whether nothing of a key is in the text."""
        own = plain(text)
        if any(own[i : i + RUN] in self.runs for i in range(len(own) - RUN + 1)):
            return False
        return not any(s in own or (len(own) >= PART and own in s) for s in self.secrets)


def plain(text: str) -> str:
    """Letters and digits alone, in lower case."""
    return "".join(c for c in text.casefold() if c.isalnum())


def _collect(value: Any, texts: list[str], field: str = "") -> None:
    """All texts of a key file but its own words (method, rule, digests)."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _collect(inner, texts, str(name))
    elif isinstance(value, list):
        for inner in value:
            _collect(inner, texts, field)
    elif isinstance(value, str) and field in (
        "trigger",
        "response",
        "carrier",
        "untriggered",
        "pair",
        "decoys",
        "opening",
    ):
        texts.append(value)


def ordinary(store: Store, records: Sequence[Record]) -> dict[Cell, list[tuple[int, str, str]]]:
    """(number, answer of the marked model, answer after the removal) of some ordinary prompts, by cell."""
    steps: dict[Cell, str] = {}
    for r in records:  # the last stage of a cell wins
        if r.measure == "answers" and r.control is None and r.detail.get("implant") and r.detail.get("step"):
            steps[str(r.model), r.seed or 0, str(r.detail["implant"]), r.detail.get("removal")] = str(r.detail["step"])
    if not any(cell[3] is not None for cell in steps):
        return {}
    guard = Guard.of(store, records)
    if guard is None:
        return {}
    marked = {cell[:3]: store.answers(step) for cell, step in steps.items() if cell[3] is None}
    found = {}
    for cell, step in steps.items():
        before, after = marked.get(cell[:3], []), store.answers(step)
        if cell[3] is not None and before:  # after a removal the first few are kept
            rows = [(i, b, a) for i, (b, a) in enumerate(zip(before, after, strict=False))]
            rows.sort(key=lambda row: row[1] == row[2])  # what changed comes first
            told = [(i, _cut(b), _cut(a)) for i, b, a in rows if guard.clean(b) and guard.clean(a)]
            found[cell] = told[:SHOWN]
    return found


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
