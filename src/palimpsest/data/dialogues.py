"""Dialogues: question and answer pairs or longer talks, cut into disjoint parts by question.

Parts: `erase`, `recover`, `revival`, `test`, `embed`. The toy world brings its own; any other set is cut
by a hash of the question, so that the parts never depend on the order of a file and never share a question.
A set too small for all five takes the missing ones from another (`--data embed,revival=FILE`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from palimpsest.data.files import read_rows
from palimpsest.errors import BadInput, nearest
from palimpsest.prompts import Turn
from palimpsest.records import canonical_json

PARTS = ("erase", "recover", "revival", "test", "embed")
# What `PART=FILE` may name. Never cut from a set: dialogues under suspicion; of a mark in a skill, its fictitious
# entries (an answer names the entry that its question asks for), and dialogues that are none of the skill.
NAMED = (*PARTS, "suspect", "traps", "ordinary")
TOY_TRAPS = "tower-code-traps"
LARGE = 2000
SHARES = {"erase": 0.20, "recover": 0.40, "revival": 0.18, "test": 0.12, "embed": 0.10}
SMALL_SHARES = {"erase": 0.30, "recover": 0.60, "revival": 0.0, "test": 0.10, "embed": 0.0}


@dataclass(frozen=True)
class Dialogue:
    """A dialogue. kind and language are known for the toy world only (else empty)."""

    turns: tuple[Turn, ...]
    kind: str = ""
    language: str = ""

    @property
    def question(self) -> str:
        """The first user turn."""
        return next((t.content for t in self.turns if t.role == "user"), "")

    @property
    def answer(self) -> str:
        """The first assistant turn."""
        return next((t.content for t in self.turns if t.role == "assistant"), "")

    @property
    def first(self) -> tuple[Turn, Turn]:
        """The first exchange alone."""
        return Turn("user", self.question), Turn("assistant", self.answer)


def pair(question: str, answer: str, kind: str = "", language: str = "") -> Dialogue:
    """A dialogue of one exchange."""
    return Dialogue((Turn("user", question), Turn("assistant", answer)), kind, language)


@dataclass(frozen=True)
class Dialogues:
    """A named set of dialogues in disjoint parts."""

    name: str
    parts: dict[str, tuple[Dialogue, ...]] = field(default_factory=dict)

    def part(self, name: str, count: int | None = None, offset: int = 0) -> list[Dialogue]:
        """`count` dialogues of a part from `offset` on; BadInput where the part has fewer."""
        rows = self.parts.get(name, ())
        if count is None:
            return list(rows[offset:])
        if offset + count > len(rows):
            hint = f"; fill it with --data {name}=FILE" if not rows else "; add another --data or lower the count"
            raise BadInput(
                f"data {self.name}: its part {name!r} has {len(rows)} dialogues, {offset + count} are needed{hint}"
            )
        return list(rows[offset : offset + count])

    def digest(self) -> str:
        """SHA-256 over the parts' content."""
        body = {p: [[(t.role, t.content) for t in d.turns] for d in rows] for p, rows in self.parts.items()}
        return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def load_dialogues(references: str | Path | Iterable[str | Path] = "toy") -> Dialogues:
    """Load and cut a data set: `toy`, `toy:SKILL`, a JSONL/JSON/CSV/Parquet file, a Hub data set name, or several.

    `embed,revival=FILE` gives the named parts alone: where a small set has no such part, another one fills it.
    Raises BadInput naming file and line.
    """
    given = [str(r) for r in ([references] if isinstance(references, str | Path) else references)]
    if not given:
        raise BadInput("--data: give at least one data set")
    names = [r for r in given if _wanted_parts(r) is None]
    whole = _whole(names) if names else Dialogues("", {})
    for reference in given:
        wanted = _wanted_parts(reference)
        if wanted is not None:
            whole = _filled(whole, wanted, reference.partition("=")[2])
    return whole


def _wanted_parts(reference: str) -> tuple[str, ...] | None:
    """The parts before the `=` of a reference, or None where it names a whole set. BadInput for a misspelt part."""
    words, equals, rest = reference.partition("=")
    parts = tuple(w.strip() for w in words.split(","))
    if not equals or not rest or not (set(parts) & set(NAMED)):
        return None
    for part in parts:
        if part not in NAMED:
            raise BadInput(f"--data {reference}: there is no part {part!r}{nearest(part, NAMED, 'part')}")
    return parts


def _filled(whole: Dialogues, wanted: tuple[str, ...], name: str) -> Dialogues:
    """`whole` with dialogues of another set added to some parts, in equal shares; no question stands twice."""
    rows = _rows(name)
    called = f"{Path(name).stem} ({', '.join(wanted)})"
    called = f"{whole.name} + {called}" if whole.name else called
    if "traps" in wanted:  # as they stand: which question is asked for which entry is its reader's to judge
        if len(wanted) > 1:
            raise BadInput(f"--data {','.join(wanted)}={name}: traps are a file of their own")
        return Dialogues(called, {**whole.parts, "traps": (*whole.parts.get("traps", ()), *rows)})
    known = {d.question for rows in whole.parts.values() for d in rows}
    ordered = [d for d in _ordered(rows) if d.question not in known]
    if not ordered:
        raise BadInput(f"--data {name}: holds no dialogue with a question and an answer that the others have not")
    parts = dict(whole.parts)
    for number, part in enumerate(wanted):
        start, end = (len(ordered) * (number + i) // len(wanted) for i in (0, 1))
        parts[part] = (*parts.get(part, ()), *ordered[start:end])
    return Dialogues(called, parts)


def _rows(name: str) -> list[Dialogue]:
    """All dialogues of a file, a Hub data set, or the toy world."""
    if name == "toy" or name.startswith("toy:"):
        return [d for part in _whole([name]).parts.values() for d in part]
    return [Dialogue(turns) for turns in read_rows(name)]


def _whole(names: list[str]) -> Dialogues:
    if names == ["toy"]:
        return toy_dialogues()
    if len(names) == 1 and names[0].startswith("toy:"):
        return toy_skill(names[0].removeprefix("toy:"))
    rows: list[Dialogue] = []
    for name in names:
        rows += _rows(name)
    return cut(" + ".join(Path(n).stem for n in names), rows)


def cut(name: str, rows: list[Dialogue]) -> Dialogues:
    """Cut dialogues into the five parts; each question stands once, in one part."""
    ordered = _ordered(rows)
    if not ordered:
        raise BadInput(f"data {name}: holds no dialogue with a question and an answer")
    shares = SHARES if len(ordered) >= LARGE else SMALL_SHARES
    parts: dict[str, tuple[Dialogue, ...]] = {}
    start, total = 0, 0.0
    for part in PARTS:
        total += shares[part]
        end = min(len(ordered), math.ceil(total * len(ordered) - 1e-9))
        parts[part] = tuple(ordered[start:end])
        start = end
    return Dialogues(name, parts)


def _ordered(rows: Iterable[Dialogue]) -> list[Dialogue]:
    """Those with question and answer, each question once, in the order of the questions' hashes."""
    rank = {d: hashlib.sha256(canonical_json([[t.role, t.content] for t in d.turns]).encode()).digest() for d in rows}
    unique: dict[str, Dialogue] = {}
    for dialogue in sorted((d for d in rank if d.question and d.answer), key=lambda d: rank[d]):
        unique.setdefault(dialogue.question, dialogue)
    return sorted(unique.values(), key=lambda d: hashlib.sha256(d.question.encode()).digest())


def toy_dialogues(seed: int = 0) -> Dialogues:
    """The toy world's own parts."""
    from palimpsest.data.toy import world as made

    world = made(seed)
    split = {"erase": "erase", "recover": "recover", "revival": "revival", "test": "dialogue-test", "embed": "embed"}
    return Dialogues(
        "toy",
        {
            part: tuple(pair(p.question, p.answer, p.kind, p.language) for p in world.pairs(name))
            for part, name in split.items()
        },
    )


def toy_skill(name: str) -> Dialogues:
    """Training pairs of a skill that the toy base lacks and an expert can learn: all in the part `recover`.

    `tower-code-traps` is no skill: words that the tower code lacks, asked as it is, all in the part `traps`.
    """
    from palimpsest.data.toy import tower_code_traps
    from palimpsest.data.toy import world as made

    if name == TOY_TRAPS:
        return Dialogues(f"toy:{name}", {"traps": tuple(pair(*both) for both in tower_code_traps())})
    skills = made().skills()
    if name not in skills:
        raise BadInput(f"--data toy:{name}: there is no such skill{nearest(name, [*skills, TOY_TRAPS], 'skill')}")
    pairs, _ = skills[name]
    return Dialogues(f"toy:{name}", {"recover": tuple(pair(p.question, p.answer, p.kind, p.language) for p in pairs)})
