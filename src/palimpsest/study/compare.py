"""Two studies side by side: what the second has more or less of than the first, and how sure that is.

Numbers are matched by model, implant, removal, control, stage, measure, prompt form, task and seed, and never pooled:

- With at least five common seeds the seed is the unit: sign flips of the differences, exactly, or a paired t test.
- With fewer the seeds describe. What can be tested then is each pair of models by itself, on the same items: McNemar's
  exact test on hits and right answers, the sign test on ranks. Keys of a many-to-one mark are not independent items.

Every p is adjusted by Holm over all tests of the comparison. A number that both studies took of one and the same model
(equal digests) is not tested: it can only be equal. Nothing here reads keys or samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from palimpsest.errors import BadInput, nearest
from palimpsest.records import Record
from palimpsest.statistics import MINIMUM_SEEDS, SIGNIFICANCE, holm
from palimpsest.study.pairing import SeedTest, Test, over_items, over_seeds, why_not_items
from palimpsest.study.store import Store

JUDGED = ("ownership", "removal")  # measures whose verdicts are compared in words
UNCOMPARED = (*JUDGED, "cost", "constraint", "strength-search", "training")  # no numbers of a model
SEED_TESTS = ("exact", "t")


@dataclass(frozen=True, order=True)
class Place:
    """Where a number stands in a study, whatever its seed; `part` tells several of one task apart (metric, filter)."""

    model: str
    implant: str
    removal: str
    control: str
    stage: str
    measure: str
    prompt_form: str
    task: str
    part: str

    @property
    def cell(self) -> tuple[str, str, str, str]:
        """Model, implant, removal and control."""
        return self.model, self.implant, self.removal, self.control


@dataclass(frozen=True)
class Row:
    """A number in both studies. first, second: its values by seed; difference: mean of second minus first.

    rate: whether it is a share of items. same: both studies measured the same model. note: why nothing is tested.
    """

    place: Place
    seeds: tuple[int, ...]
    first: tuple[float, ...]
    second: tuple[float, ...]
    rate: bool
    same: bool = False
    tests: tuple[Test, ...] = ()
    note: str = ""

    @property
    def difference(self) -> float:
        """Mean over the common seeds of second minus first."""
        return math.fsum(b - a for a, b in zip(self.first, self.second, strict=True)) / len(self.seeds)

    @property
    def alike(self) -> bool:
        """Whether the values are the same in every seed."""
        return self.first == self.second

    @property
    def word(self) -> str:
        """`higher` or `lower` where a test says so over the seeds; of single seeds, in how many of them."""
        found = [t for t in self.tests if t.significant]
        if not self.tests:
            return "same model" if self.same and self.alike else "described"
        if not found:
            return "no difference shown"
        if found[0].seed is None:
            return "higher" if self.difference > 0 else "lower"
        up = sum((t.more or 0) > (t.fewer or 0) for t in found)
        words = [f"{word} in {count} of {len(self.seeds)} seeds" for word, count in
                 (("higher", up), ("lower", len(found) - up)) if count]  # fmt: skip
        return ", ".join(words) if len(self.seeds) > 1 else words[0].partition(" ")[0]


@dataclass(frozen=True)
class Verdicts:
    """A verdict that differs: (seed, word in the first, word in the second), where it does."""

    place: Place
    changed: tuple[tuple[int, str, str], ...]


@dataclass
class Comparison:
    """What two studies differ in. first, second: title, folder name and versions of each.

    settings: (field, value in the first, in the second) of the study files. only: per study what the other one lacks.
    seed_test: how five seeds and more are tested.
    """

    first: dict[str, Any]
    second: dict[str, Any]
    settings: list[tuple[str, str, str]]
    rows: list[Row]
    verdicts: list[Verdicts]
    only: tuple[list[str], list[str]]
    seed_test: SeedTest = "exact"
    notes: list[str] = field(default_factory=list)

    @property
    def tests(self) -> list[Test]:
        """All tests that were made."""
        return [t for row in self.rows for t in row.tests]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "first": self.first,
            "second": self.second,
            "settings": [dict(zip(("field", "first", "second"), s, strict=True)) for s in self.settings],
            "rows": [
                {
                    **{k: v for k, v in asdict(r.place).items() if v},
                    "seeds": list(r.seeds),
                    "first": list(r.first),
                    "second": list(r.second),
                    "difference": r.difference,
                    "result": r.word,
                    "note": r.note,
                    "tests": [{k: v for k, v in asdict(t).items() if v is not None} for t in r.tests],
                }
                for r in self.rows
            ],
            "verdicts": [
                {
                    **{k: v for k, v in asdict(v.place).items() if v},
                    "changed": [dict(zip(("seed", "first", "second"), c, strict=True)) for c in v.changed],
                }
                for v in self.verdicts
            ],
            "only_in_first": self.only[0],
            "only_in_second": self.only[1],
            "tests": len(self.tests),
            "correction": "Holm",
            "alpha": SIGNIFICANCE,
            "seed_test": self.seed_test,
            "notes": self.notes,
        }


Numbers = dict[Place, dict[int, Record]]


def compare_studies(first: Path | str, second: Path | str, seed_test: str = "exact") -> Comparison:
    """Compare what two study folders hold. Raises BadInput where one holds no study or no numbers yet."""
    if seed_test not in SEED_TESTS:
        raise BadInput(f"--test: there is no {seed_test!r}{nearest(seed_test, SEED_TESTS)}")
    stores = Store.open(first), Store.open(second)
    studies = [store.study() for store in stores]
    records = [store.records() for store in stores]
    for store, found in zip(stores, records, strict=True):
        if not found:
            raise BadInput(f"{store.folder}: the study has no finished measure yet; `palimpsest study run` goes on")
    made = compare_records(records[0], records[1], studies[0], studies[1], "t" if seed_test == "t" else "exact")
    for said, store, study in zip((made.first, made.second), stores, studies, strict=True):
        said |= {
            "folder": store.folder.resolve().name,
            "title": study.get("title") or "",
            "seeds": study["spec"].get("seeds", [0]),
        }
        said["versions"] = study.get("versions", {})
    return made


def compare_records(
    first: Iterable[Record],
    second: Iterable[Record],
    first_study: Mapping[str, Any] | None = None,
    second_study: Mapping[str, Any] | None = None,
    seed_test: SeedTest = "exact",
) -> Comparison:
    """Compare two lists of records; the studies (study.json) say what their settings differ in."""
    one, other = list(first), list(second)
    specs = [dict((study or {}).get("spec", {})) for study in (first_study, second_study)]
    numbers = [
        numbers_of(r for r in some if r.measure not in UNCOMPARED and r.value is not None) for some in (one, other)
    ]
    keys = [commitments(some) for some in (one, other)]
    same_data = all(specs[0].get(name) == specs[1].get(name) for name in ("data", "text"))
    rows = []
    for place in [p for p in numbers[0] if p in numbers[1]]:
        seeds = sorted(numbers[0][place].keys() & numbers[1][place].keys())
        if seeds:
            pairs = [(numbers[0][place][s], numbers[1][place][s]) for s in seeds]
            rows.append(_row(place, seeds, pairs, keys, same_data, seed_test))
    judged = [numbers_of(r for r in some if r.measure in JUDGED) for some in (one, other)]
    only = _only(numbers[0], numbers[1]), _only(numbers[1], numbers[0])
    rows = _adjusted(rows)
    notes = _out_of_reach([t for row in rows for t in row.tests], [len(row.seeds) for row in rows])
    return Comparison({}, {}, _settings(*specs), rows, _verdicts(*judged), only, seed_test, notes)


def numbers_of(records: Iterable[Record]) -> Numbers:
    """Every record by its place and seed; those that would stand in one place are numbered in their order."""
    found: Numbers = {}
    for r in records:
        part = " ".join(str(r.detail[n]) for n in ("metric", "filter") if r.detail.get(n) not in (None, "acc"))
        own = (
            r.model,
            r.detail.get("implant"),
            r.detail.get("removal"),
            r.control,
            r.stage,
            r.measure,
            r.prompt_form,
            r.task,
            part,
        )
        place, seed, number = Place(*(str(v or "") for v in own)), r.seed or 0, 2
        while seed in found.get(place, {}):
            place, number = replace(place, part=f"{part} ({number})".strip()), number + 1
        found.setdefault(place, {})[seed] = r
    return found


def commitments(records: Iterable[Record]) -> dict[tuple[str, int, str], str]:
    """The keys' commitment of every model, seed and implant: equal ones are the same keys."""
    return {
        (str(r.model), r.seed or 0, str(r.detail.get("implant"))): str(r.detail["keys"]["commitment"])
        for r in records
        if r.measure == "cost" and isinstance(r.detail.get("keys"), dict) and "commitment" in r.detail["keys"]
    }


# -- one row --------------------------------------------------------------------------------------------


def _row(
    place: Place,
    seeds: list[int],
    pairs: list[tuple[Record, Record]],
    keys: list[dict[tuple[str, int, str], str]],
    same_data: bool,
    seed_test: SeedTest,
) -> Row:
    first, second = (tuple(float(pair[side].value or 0.0) for pair in pairs) for side in (0, 1))
    row = Row(place, tuple(seeds), first, second, all(r.count is not None for pair in pairs for r in pair))
    if all(a.digest is not None and a.digest == b.digest for a, b in pairs):
        note = "" if row.alike else "one and the same model, measured otherwise or by draws or clocks"
        return replace(row, same=True, note=note)
    if len(seeds) >= MINIMUM_SEEDS:
        return replace(row, tests=(over_seeds(first, second, seed_test),))
    tests: list[Test] = []
    notes: dict[str, None] = {}
    for seed, (a, b) in zip(seeds, pairs, strict=True):
        why = why_not_items(a, b, same_data, [k.get((place.model, seed, place.implant)) for k in keys])
        if why:
            notes[why] = None
        else:
            tests.append(replace(over_items(a, b), seed=seed))
    describes = f"{len(seeds)} seed{'s describe' if len(seeds) > 1 else ' describes'}"
    return replace(row, tests=tuple(tests), note="; ".join([describes, *notes]))


def _adjusted(rows: list[Row]) -> list[Row]:
    adjusted = iter(holm([t.p for row in rows for t in row.tests]))
    return [replace(row, tests=tuple(replace(t, adjusted=next(adjusted)) for t in row.tests)) for row in rows]


def _out_of_reach(tests: list[Test], seeds: list[int]) -> list[str]:
    """What no outcome could have shown with so few seeds and so many tests."""
    flips = [t for t in tests if t.name == "sign flips"]
    most = max(seeds, default=0)
    least = 2.0 ** (1 - most)
    if not flips or least * len(tests) <= SIGNIFICANCE:
        return []
    return [
        f"with {most} seeds sign flips come to p = {least:.2g} at the least, which {len(tests)} tests take beyond "
        f"{SIGNIFICANCE:g}: nothing could be shown so; --test t supposes normal differences, or take more seeds"
    ]


# -- beside the numbers ---------------------------------------------------------------------------------


def _verdicts(first: Numbers, second: Numbers) -> list[Verdicts]:
    found = []
    for place in first:
        both = sorted(first[place].keys() & second.get(place, {}).keys())
        words = [(s, str(first[place][s].verdict), str(second[place][s].verdict)) for s in both]
        changed = tuple(w for w in words if w[1] != w[2])
        if changed:
            found.append(Verdicts(place, changed))
    return found


def _only(mine: Numbers, theirs: Numbers) -> list[str]:
    """What a study has and the other lacks: whole seeds, whole cells, and numbers of cells that both have."""
    cells = {p.cell for p in theirs}
    known = {seed for found in theirs.values() for seed in found}
    lone = Counter(seed for found in mine.values() for seed in found if seed not in known)
    found: dict[str, set[int]] = {}
    for place, seeds in mine.items():
        missing = (seeds.keys() & known) - theirs.get(place, {}).keys()
        if missing:
            name = cell_name(place) if place.cell not in cells else f"{cell_name(place)}: {number_name(place)}"
            found.setdefault(name, set()).update(missing)
    lines = [f"all of seed {seed} ({count} numbers)" for seed, count in sorted(lone.items())]
    return lines + [
        f"{name} ({'seeds' if len(s) > 1 else 'seed'} {', '.join(map(str, sorted(s)))})" for name, s in found.items()
    ]


def cell_name(place: Place) -> str:
    """`toy > utf > meraser, control revival`."""
    steps = [p for p in (place.model, place.implant, place.removal) if p]
    return " > ".join(steps) + (f", control {place.control}" if place.control else "")


def number_name(place: Place) -> str:
    """`erased: hit-rate, template`."""
    return f"{place.stage}: " + ", ".join(p for p in (place.measure, place.prompt_form, place.task, place.part) if p)


def _settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What the study files differ in, field by field; methods are told apart by their id, and named once where only
    one study has them."""
    one, other = (dict(_leaves(spec)) for spec in (first, second))
    entries = [{name.partition("]")[0] + "]" for name in some if "[" in name} for some in (one, other)]
    found: dict[tuple[str, str, str], None] = {}
    for name in dict.fromkeys([*one, *other]):
        entry = name.partition("]")[0] + "]"
        if "[" in name and (entry in entries[0]) != (entry in entries[1]):
            found[entry, *(("there", "–") if entry in entries[0] else ("–", "there"))] = None
        elif one.get(name) != other.get(name):
            found[name, one.get(name, "–"), other.get(name, "–")] = None
    return list(found)


def _leaves(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and all(isinstance(v, Mapping) and "id" in v for v in value):
        for inner in value:
            yield from _leaves({k: v for k, v in inner.items() if k != "id"}, f"{name}[{inner['id']}]")
    elif value not in (None, [], {}, ""):
        yield name, str(value)
