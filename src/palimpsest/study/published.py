"""Published numbers beside ours: which row belongs under which removal and stage.

A row has the columns paper, table, model, fingerprint, removal, measure, value, note; and where its own name for the
removal is not the study's, `beside`: the ids of the removals that it stands beside (`a|b`), and `stage`: theirs, if it
is not the last one.
"""

from __future__ import annotations

from collections.abc import Sequence

PUBLISHED_STAGE = (("none", "fingerprinted"), ("meraser-erase", "erased"), ("meraser ", "recovered"))
Row = dict[str, str]


def published_stage(row: Row, removal: str | None = None, last: str = "") -> str:
    """The stage that a row belongs to in the block of `removal`, whose last stage is `last`; empty for none."""
    if row["removal"] == "none":
        return "fingerprinted"
    if row.get("beside"):
        return (row.get("stage") or last) if removal in row["beside"].split("|") else ""
    return next((stage for start, stage in PUBLISHED_STAGE if f"{row['removal']} ".startswith(start)), "")


def of(published: Sequence[Row], implant: str, measure: str | None = None) -> list[Row]:
    """The rows of a fingerprint, by its registered name."""
    return [p for p in published if p["fingerprint"] == implant and measure in (None, p["measure"])]


def other_measures(published: Sequence[Row], implant: str) -> list[str]:
    """What the paper measured of this fingerprint that has no line of ours (ANLI-R1, LAMBADA, ...)."""
    return [m for m in dict.fromkeys(p["measure"] for p in of(published, implant)) if m not in ("FSR %", "PPL")]


def shown_value(row: Row) -> str:
    """`FSR 100 %`, `PPL 4.51`, `ANLI-R1 0.403`."""
    name, percent, _ = row["measure"].partition(" %")
    return f"{name} {row['value']}{' %' if percent else ''}"


def beside(published: Sequence[Row], implant: str, removal: str | None) -> tuple[str, str]:
    """What the paper printed for a removal (None: the mark alone), and of which models, for a narrow column."""
    mine = [p for p in of(published, implant) if _is_of(p, removal)]
    models = list(dict.fromkeys(p["model"] for p in mine))
    first = [p for p in mine if p["model"] == models[0]] if models else []
    more = f" (and {len(models) - 1} more)" if len(models) > 1 else ""
    prefix = {id(p): f"{p['removal']} " if removal is None and p["removal"] != "none" else "" for p in first}
    return ", ".join(prefix[id(p)] + shown_value(p) for p in first), models[0] + more if models else ""


def _is_of(row: Row, removal: str | None) -> bool:
    if row.get("beside"):
        return (removal or "none") in row["beside"].split("|")
    if removal is None:
        return row["removal"] == "none"
    return row["removal"].partition(" ")[0] == removal


def notes(published: Sequence[Row], implants: Sequence[str]) -> list[str]:
    """Where the published numbers come from, and what their record notes about single ones."""
    mine = [p for p in published if p["fingerprint"] in implants]
    if not mine:
        return []
    sources = sorted({f"arXiv {p['paper']}, {_table(p['table'])}" for p in mine})
    told = [
        f"{p['fingerprint']} on {p['model']}, {published_stage(p) or p['removal']}, {p['measure']} {p['value']}: "
        f"{p['note']}."
        for p in mine
        if p.get("note")
    ]
    return [f"Published numbers are those of {' and '.join(sources)}, for the models named, as printed.", *told]


def _table(name: str) -> str:
    return name if name.startswith("Fig") else f"Table {name}"
