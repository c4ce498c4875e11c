"""What inspecting finds: of a folder or file, and of this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["ok", "note", "broken"]


@dataclass(frozen=True)
class Ability:
    """One command on what was found. needs: memory in bytes, estimated. why: the reason where it is not possible."""

    command: str
    possible: bool
    why: str = ""
    needs: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, empty ones left out."""
        found = {"command": self.command, "possible": self.possible, "why": self.why, "memory": self.needs}
        return {name: value for name, value in found.items() if value not in (None, "")}


@dataclass
class Finding:
    """What one path is. kind: model, adapter, keys, marked, secret, study, study-file, or unknown.

    title: one line. facts: name to plain value, in the order in which a person reads them. problems: what is
    wrong. notes: what is good to know. parts: what lies in it (a marked model and its keys).
    """

    path: str
    kind: str
    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    abilities: list[Ability] = field(default_factory=list)
    parts: list[Finding] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether anything is wrong with it or with a part of it."""
        return bool(self.problems) or any(part.broken for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "path": self.path,
            "kind": self.kind,
            "title": self.title,
            "facts": self.facts,
            "problems": self.problems,
            "notes": self.notes,
            "abilities": [a.to_json() for a in self.abilities],
            "parts": [p.to_json() for p in self.parts],
        }


@dataclass(frozen=True)
class Check:
    """One thing looked at here. state: ok, note (good to know) or broken. mend: what would put it right."""

    name: str
    state: State
    what: str
    mend: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, empty ones left out."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass
class Diagnosis:
    """All checks of this machine, and what was found of the models that were named."""

    checks: list[Check]
    findings: list[Finding] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether anything has to be mended."""
        return any(c.state == "broken" for c in self.checks) or any(f.broken for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "records": [],
            "checks": [c.to_json() for c in self.checks],
            "findings": [f.to_json() for f in self.findings],
        }
