"""The study file: one YAML file, checked completely before anything runs.

    models: [toy, {id: other, path: ./folder}, {id: guild, from: [toy, {finetune: {data: "toy:guild-marks"}}]}]
    on: [toy]                                       data: toy
    implants: [if-sft, {hashchain: {preset: full}}]
    removals: [none, {meraser: {id: gentle}}, [prune-l1, {expert-merge: {expert: guild, share: [0.4, 0.6]}}]]
    exclude: [{implant: hashchain, removal: gentle}]
    controls: [clean-same-schedule, revival]        negatives: [clean-base, sibling]
    measures: [hit-rate, rank, perplexity, {accuracy: {items: 100}}]    seeds: [0]

A method is written as its name, or as its name with `preset`, `id`, parameters and inputs (see `entries`); a list of
values makes an entry of each (see `sweeps`), a list of methods a chain. An input that is a model names one of `models`
or `experts`, or `base`, `sibling` or `unrelated`. `${NAME}` in the path of a model, of data or of text is the
environment's, and so is a method that the file leaves open (see `words`). Every error is one line that names the file,
the field and the nearest valid name (see `checking`). All fields: docs/studies.md.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from palimpsest.errors import BadInput, nearest
from palimpsest.study import sweeps
from palimpsest.study.checking import METHOD_FIELDS, check_spec, input_type, instance_of, method_kinds
from palimpsest.study.entries import NONE, Control, Exclusion, MethodSpec, ModelSpec, Negative, Stage
from palimpsest.study.paths import expanded
from palimpsest.study.words import filled_in

__all__ = [
    "RECIPES",
    "Cell",
    "Control",
    "MethodSpec",
    "ModelSpec",
    "Negative",
    "Stage",
    "StudySpec",
    "expanded",
    "input_type",
    "instance_of",
    "load_spec",
    "method_kinds",
    "parse_spec",
    "published_rows",
    "recipes",
]

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
TOYS = ("toy", "toy:unrelated", "toy:encoder")  # the models of the package


class Cell(NamedTuple):
    """A cell of the grid: a removal (None: none) of a mark (`none`: no mark) on a model with a seed."""

    model: ModelSpec
    seed: int
    implant: MethodSpec
    removal: MethodSpec | None


class StudySpec(BaseModel):
    """A checked study. `alpha` is the false-claim rate of ownership claims; `text` a file of neutral text.

    notes: what a reader must know, first of all what was tuned on which seeds. published: CSVs of published
    numbers beside the recipes, shown beside ours. unrelated: a model with the same tokenizer that never saw
    these marks (the toy brings its own). experts: made of every target's base, and named by other methods' inputs.
    exclude: cells of the grid that are left out.
    """

    model_config = ConfigDict(extra="forbid")
    title: str = ""
    notes: list[str] = Field(default_factory=list)
    models: list[ModelSpec] = Field(min_length=1)
    on: list[str] = Field(default_factory=list)
    data: list[str] = Field(default_factory=lambda: ["toy"])
    text: str | None = None
    implants: list[MethodSpec] = Field(min_length=1)
    experts: list[MethodSpec] = Field(default_factory=list)
    removals: list[MethodSpec] = Field(default_factory=list)
    exclude: list[Exclusion] = Field(default_factory=list)
    controls: list[Control] = Field(default_factory=list)
    negatives: list[Negative] = Field(default_factory=list)
    unrelated: str | None = None
    measures: list[MethodSpec] = Field(min_length=1)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    alpha: float = Field(default=1e-6, gt=0, lt=1)
    published: list[str] = Field(default_factory=list)
    _source: str = PrivateAttr(default="study")
    _words: list[str] = PrivateAttr(default_factory=list)

    @property
    def source(self) -> str:
        """The file or recipe this was read from."""
        return self._source

    @property
    def words(self) -> list[str]:
        """What was filled in from the environment where the file leaves a method open, as `NAME=value`."""
        return self._words

    @field_validator("notes", "data", "on", "published", "exclude", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @field_validator(*METHOD_FIELDS, mode="before")
    @classmethod
    def _spread_sweeps(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = method_kinds(str(info.field_name))
        return [made for entry in value for made in sweeps.expanded(entry, kinds)] if isinstance(value, list) else value

    @field_validator(*METHOD_FIELDS)
    @classmethod
    def _tell_presets_apart(cls, given: list[MethodSpec]) -> list[MethodSpec]:
        """Two presets of one method are called by method and preset, where no `id` says otherwise."""
        named = [m.id for m in given]
        return [
            m.model_copy(update={"id": f"{m.id}-{m.preset}"})
            if named.count(m.id) > 1 and m.id == m.name and m.preset is not None
            else m
            for m in given
        ]

    @property
    def targets(self) -> list[ModelSpec]:
        """The models that are marked and attacked: those of `on`, or all."""
        return [m for m in self.models if not self.on or m.id in self.on]

    @property
    def attacks(self) -> list[MethodSpec]:
        """The removals without `none`, which stands for the marked model as it is."""
        return [r for r in self.removals if r.name != NONE]

    @property
    def marks(self) -> list[MethodSpec]:
        """The implants without `none`, which stands for the model without one."""
        return [i for i in self.implants if i.name != NONE]

    @property
    def is_toy(self) -> bool:
        """Whether every marked model is of the embedded toy world: then only shapes may be read off."""
        return all(self.root(m.id).path in TOYS for m in self.targets)

    @property
    def brings_unrelated(self) -> bool:
        """Whether the package has a model that is unrelated to all that are marked: it has one beside `toy`."""
        return all(self.root(m.id).path == "toy" for m in self.targets)

    def model(self, id: str) -> ModelSpec:
        """The model of this id."""
        return next(m for m in self.models if m.id == id)

    def root(self, id: str) -> ModelSpec:
        """The model that one that is made came of, first of all; of any other, itself."""
        found = self.model(id)
        while found.is_made:
            found = self.model(found.start)
        return found

    def excluded(self, **cell: Any) -> bool:
        """Whether an exclusion leaves a cell out, or a part of one: model and seed, or these and the implant."""
        return any(e.fits(cell) for e in self.exclude)

    def cells(self) -> Iterator[Cell]:
        """The grid without what is excluded: every mark by itself, then under each removal."""
        for seed in self.seeds:
            for model in self.targets:
                at: dict[str, Any] = {"model": model.id, "seed": seed}
                for implant in self.implants if not self.excluded(**at) else ():
                    if self.excluded(**at, implant=implant.id):
                        continue
                    yield Cell(model, seed, implant, None)
                    for removal in self.attacks:
                        if not self.excluded(**at, implant=implant.id, removal=(removal.id, removal.family)):
                            yield Cell(model, seed, implant, removal)


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, where plain YAML silently takes the last, and keeps `on` a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:bool":  # YAML 1.1 reads the key `on` as true
                key_node.tag = "tag:yaml.org,2002:str"
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise BadInput(f":{key_node.start_mark.line + 1}: {key!r} is given twice")
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)


def recipes() -> dict[str, Path]:
    """The study files that ship with the package, by name."""
    return {p.stem: p for p in sorted(RECIPES.glob("*.yaml"))}


def load_spec(reference: str | Path) -> StudySpec:
    """Read and check a study file, by path or by the name of a shipped recipe. Raises BadInput."""
    path = Path(reference)
    if not path.is_file():
        known = recipes()
        if str(reference) not in known:
            raise BadInput(f"there is no study file {str(reference)!r}{nearest(str(reference), known, 'recipe')}")
        path = known[str(reference)]
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise BadInput(f"{path}{line}: is no YAML: {getattr(error, 'problem', None) or error}") from None
    except BadInput as error:
        raise BadInput(f"{path}{error}") from None
    if not isinstance(raw, dict):
        raise BadInput(f"{path}: holds no study; its fields are {', '.join(StudySpec.model_fields)}")
    return parse_spec(raw, str(path))


def parse_spec(raw: dict[str, Any], source: str = "study") -> StudySpec:
    """Check plain values as a study; `source` stands before every error."""
    try:
        raw, words = filled_in(raw)
        spec = StudySpec.model_validate(raw)
    except ValidationError as error:
        raise BadInput(f"{source}: {_first_line(error)}") from None
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from None
    spec._source, spec._words = source, words
    try:
        check_spec(spec)
        published_rows(spec.published)
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from None
    return spec


def _first_line(error: ValidationError) -> str:
    found = error.errors()
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])  # a misspelt field explains the rest
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" if i else str(p) for i, p in enumerate(first["loc"]))
    if first["type"] == "extra_forbidden":
        nested = {"exclude": Exclusion.model_fields, "models": ("id", "path", "from", "seed")}
        fields: Iterable[str] = (
            StudySpec.model_fields if len(first["loc"]) == 1 else nested.get(str(first["loc"][0]), ())
        )
        return f"{where}: unknown field{nearest(str(first['loc'][-1]), fields, 'field')}"
    if first["type"] == "literal_error":
        valid = [w.strip("'") for w in str(first["ctx"]["expected"]).replace(" or ", ", ").split(", ")]
        return f"{where}: there is no {first['input']!r}{nearest(str(first['input']), valid)}"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def published_rows(references: str | Sequence[str] | None) -> list[dict[str, str]]:
    """Rows of CSV files of published numbers beside the recipes (or by path); empty without a reference."""
    rows: list[dict[str, str]] = []
    for reference in [references] if isinstance(references, str) else references or ():
        path = next((p for p in (RECIPES / "published" / f"{reference}.csv", Path(reference)) if p.is_file()), None)
        if path is None:
            known = [p.stem for p in (RECIPES / "published").glob("*.csv")]
            raise BadInput(f"published: there is no record {reference!r}{nearest(reference, known, 'record')}")
        with path.open(encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file)
    return rows
