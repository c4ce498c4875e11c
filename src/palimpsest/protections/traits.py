"""What a protection takes, costs and changes: class data, from which tables are made; importable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Need = Literal["no", "needed", "optional"]


@dataclass(frozen=True)
class Traits:
    """Facts about a protection.

    base, data: whether it needs the base, dialogues; `optional` where only some settings do. training: whether it
    trains. What neither trains nor reads data streams the weights tensor by tensor. exact: whether the function is
    kept in real arithmetic, so that only the rounding of stored numbers remains. stock: whether the result loads with
    stock transformers. changes, costs: in words. unpublished: what no source at hand states and is a choice of ours,
    in words; empty where nothing is.
    """

    base: Need
    data: Need
    training: bool
    exact: bool
    changes: str
    costs: str
    stock: bool = True
    unpublished: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for records."""
        return asdict(self)


def markdown_table(methods: Mapping[str, Traits]) -> str:
    """The protections as a table in Markdown, a line each in the order given."""
    said = {True: "yes", False: "no"}
    lines = [
        "| protection | base | data | trains | keeps the function | loads with stock transformers | changes | costs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, t in methods.items():
        kinds = (t.base, t.data, said[t.training], said[t.exact], said[t.stock])
        lines.append(f"| `{name}` | {' | '.join(kinds)} | {t.changes} | {t.costs} |")
    return "\n".join(lines) + "\n"
