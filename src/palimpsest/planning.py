"""What a plan is about, from words: rates as text, keys from a number, a key file or a fingerprint's parameters."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from palimpsest import registry, verdicts
from palimpsest.errors import BadInput, nearest
from palimpsest.keys import KeySet
from palimpsest.method import build
from palimpsest.verdicts import Ask, Plan

RATES = ("rate", "difference", "discordance", "chance", "alpha", "spread")
PERCENTS = ("confidence", "power")  # spoken of in percent: 95 is 0.95


def plan(
    claim: str,
    *,
    keys: int | str | Path | None = None,
    implant: str | None = None,
    preset: str | None = None,
    **ask: Any,
) -> Plan:
    """How many prompts, keys, items or seeds a claim takes: `plan("ASR<1%", confidence=95)`; asks no model.

    keys: how many, or a key file. implant: a fingerprint by name, with the keys and the committed list of its
    parameters. ask: the fields of `verdicts.Ask`; rates as numbers below 1 or as text like "1%". Raises BadInput for
    what is not understood.
    """
    known = {f.name for f in fields(Ask)}
    for name in ask:
        if name not in known:
            raise BadInput(f"plan: there is no option {name!r}{nearest(name, known, 'option')}")
    said = {name: value for name, value in ask.items() if value is not None}
    for name in RATES:
        if name in said:
            said[name] = _rate(said[name], name)
    for name in PERCENTS:
        if name in said and said[name] > 1:
            said[name] /= 100
    facts, notes = _keys(keys, implant, preset)
    made = verdicts.plan(claim, Ask(**{**facts, **said}))
    return replace(made, notes=(*notes, *made.notes))


def _rate(value: Any, name: str) -> float:
    """`0.2%`, `2 points`, `0.002` or a number."""
    if isinstance(value, int | float):
        return float(value)
    found = re.fullmatch(r"\s*(-?[\d.]+(?:e-?\d+)?)\s*(%|percent|points?|pp)?\s*", str(value), re.IGNORECASE)
    try:
        return float(found.group(1)) / (100 if found.group(2) else 1)  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        raise BadInput(f"--{name} {value!r}: is no rate; write it like 2% or 0.02") from None


def _keys(keys: int | str | Path | None, implant: str | None, preset: str | None) -> tuple[dict[str, Any], list[str]]:
    """Facts of the keys (fields of `Ask`), and what a reader must know of them."""
    if keys is not None and not str(keys).isdigit():
        read = KeySet.read(Path(str(keys)))
        facts = {"keys": len(read), "choices": read.choices, "distinct": read.distinct, "places": read.places}
        return facts, [f"Keys of {read.implant}."]
    facts = {"keys": int(str(keys))} if keys is not None else {}
    if implant is None:
        if preset is not None:
            raise BadInput("--preset: is of a fingerprint; name it with --implant")
        return facts, []
    cls = registry.find(implant, "fingerprints")
    if not hasattr(cls, "committed"):
        raise BadInput(
            f"--implant {implant}: does not say what its responses are drawn from; give --keys and --choices"
        )
    said = dict(build(cls, preset, {"keys": facts["keys"]} if facts else None).committed())  # type: ignore[attr-defined]
    note = said.pop("note", None)
    return said, [note] if note else []
