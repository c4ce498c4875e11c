"""What a protection takes, costs and changes: class data, from which tables are made; importable without torch."""

from __future__ import annotations

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
