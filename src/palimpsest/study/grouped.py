"""Records that can be looked up by cell: a report of a thousand cells reads each record a few times, not a thousand."""

from __future__ import annotations

from collections.abc import Sequence

from palimpsest.records import Record

Group = tuple[str | None, int | None, str | None, str | None]


class Grouped(list[Record]):
    """A list of records that is not changed any more, with the places of each (model, seed, implant, removal)."""

    def __init__(self, records: Sequence[Record]) -> None:
        super().__init__(records)
        self.places: dict[Group, list[int]] = {}
        for place, r in enumerate(self):
            self.places.setdefault((r.model, r.seed, r.detail.get("implant"), r.detail.get("removal")), []).append(
                place
            )

    @classmethod
    def of(cls, records: Sequence[Record]) -> Grouped:
        """The records themselves, where they are grouped already."""
        return records if isinstance(records, Grouped) else cls(records)

    def rows(self, model: str, seed: int, implant: str, removal: str | None) -> list[Record]:
        """In their order: the records of a removal, of its mark, and of the model without a mark."""
        groups = {(model, seed, i, r) for i in (None, implant) for r in (None, removal)}
        return [self[place] for place in sorted(p for group in groups for p in self.places.get(group, []))]
