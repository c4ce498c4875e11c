"""The study file: one YAML file, checked completely before anything runs.

    models: [toy, {id: other, path: ./folder}]      on: [toy]           data: toy
    implants: [if-sft, {hashchain: {preset: full}}]
    experts: [{id: guild, finetune: {preset: expert, data: "toy:guild-marks"}}]
    removals: [none, {meraser: {preset: paper, erase: {epochs: 3}, id: gentle}}, {cleangen: {reference: sibling}}]
    controls: [clean-same-schedule, revival]        negatives: [clean-base, sibling]
    measures: [hit-rate, rank, perplexity, {accuracy: {items: 100}}]    seeds: [0]

A method is written as its name, or as its name with `preset`, `id`, parameters, inputs, and a `sweep` (see
`sweeps`). An input that is a model names one of `models` or `experts`, or `base`, `sibling` or `unrelated`.
`${NAME}` in the path of a model, of data or of text is the environment's. Every error is one line that names the
file, the field and the nearest valid name. All fields: docs/studies.md.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from palimpsest import registry
from palimpsest.errors import BadInput, nearest
from palimpsest.method import build, input_fields, presets
from palimpsest.study import sweeps

Control = Literal["clean-same-schedule", "clean-same-distance", "revival", "clean-base"]
Negative = Literal["clean-base", "sibling", "unrelated-model", "other-owner"]
Stage = Literal["base", "expert", "fingerprinted", "wrapped", "erased", "recovered", "revived"]
RECIPES = Path(__file__).resolve().parent.parent / "recipes"
METHOD_FIELDS = ("implants", "experts", "removals", "measures")
OWN_FIELDS = ("preset", "controls", "stages", "point")  # of an entry; the rest are the method's parameters and inputs
WORDS = ("base", "sibling", "unrelated")  # models that a study knows without naming them
TOYS = ("toy", "toy:unrelated")  # the models of the package
FILLED = {"removals": ("schedule", "like"), "measures": ("original",)}  # inputs that the graph fills, and nobody names
OPTIONAL = ("base", "model", "reference")  # inputs that are the target's base where nothing is named


class ModelSpec(BaseModel):
    """A model of the study: `id` is what records and `on` call it, `path` what it is read from."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str = Field(min_length=1)
    path: str = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"id": value.rstrip("/").split("/")[-1] or value, "path": value}
        return value


class Point(BaseModel):
    """Where in a sweep an entry stands: `of` is the id of the entry that was swept, `at` a value an axis."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    of: str
    at: dict[str, Any]


class MethodSpec(BaseModel):
    """A method with its preset and parameters; `id` tells two settings of one method apart.

    controls: of a removal, in place of the study's. stages: of a measure, those at which alone it is taken.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    id: str
    preset: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    controls: list[Control] | None = None
    stages: list[Stage] | None = None
    point: Point | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        given: Any = {}
        if isinstance(value, dict) and len(value) == 2 and "id" in value:  # {id: guild, finetune: {...}}
            name, given = next((n, g) for n, g in value.items() if n != "id")
            if given is None or isinstance(given, dict):
                value = {name: {**(given or {}), "id": value["id"]}}
        if isinstance(value, str):
            name = value
        elif isinstance(value, dict) and len(value) == 1:
            name, given = next(iter(value.items()))
            given = {} if given is None else given
        else:
            raise ValueError("write a method as its name, or as `name: {preset: ..., parameters}`")
        if not isinstance(name, str) or not isinstance(given, dict):
            raise ValueError(f"what stands under {name!r} must be its preset and parameters, as `name: value`")
        own = {k: given[k] for k in OWN_FIELDS if k in given}
        rest = {str(k): v for k, v in given.items() if k not in ("id", *OWN_FIELDS)}
        name = name if ".py:" in name else name.replace("_", "-")
        return {"name": name, "id": str(given.get("id", name)), "settings": rest, **own}


class StudySpec(BaseModel):
    """A checked study. `alpha` is the false-claim rate of ownership claims; `text` a file of neutral text.

    notes: what a reader must know, first of all what was tuned on which seeds. published: CSVs of published
    numbers beside the recipes, shown beside ours. unrelated: a model with the same tokenizer that never saw
    these marks (the toy brings its own). experts: made of every target's base, and named by other methods' inputs.
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
    controls: list[Control] = Field(default_factory=list)
    negatives: list[Negative] = Field(default_factory=list)
    unrelated: str | None = None
    measures: list[MethodSpec] = Field(min_length=1)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    alpha: float = Field(default=1e-6, gt=0, lt=1)
    published: list[str] = Field(default_factory=list)
    _source: str = PrivateAttr(default="study")

    @property
    def source(self) -> str:
        """The file or recipe this was read from."""
        return self._source

    @field_validator("notes", "data", "on", "published", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator(*METHOD_FIELDS, mode="before")
    @classmethod
    def _spread_sweeps(cls, value: Any) -> Any:
        return [made for entry in value for made in sweeps.expanded(entry)] if isinstance(value, list) else value

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
        return [r for r in self.removals if r.name != "none"]

    @property
    def is_toy(self) -> bool:
        """Whether every marked model is of the embedded toy world: then only shapes may be read off."""
        return all(m.path in TOYS for m in self.targets)

    @property
    def brings_unrelated(self) -> bool:
        """Whether the package has a model that is unrelated to all that are marked: it has one beside `toy`."""
        return all(m.path == "toy" for m in self.targets)

    def model(self, id: str) -> ModelSpec:
        """The model of this id."""
        return next(m for m in self.models if m.id == id)


def expanded(path: str) -> str:
    """A path with its `${NAME}` filled in from the environment. Raises BadInput where one is not set."""
    filled = os.path.expandvars(path)
    left = re.search(r"\$\{?(\w+)\}?", filled)
    if left and left.group() in path:
        raise BadInput(f"{path}: the environment has no {left.group(1)}; set it to the folder that is meant")
    return filled


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
        spec = StudySpec.model_validate(raw)
    except ValidationError as error:
        raise BadInput(f"{source}: {_first_line(error)}") from None
    spec._source = source
    try:
        _check_names(spec)
        for kind in METHOD_FIELDS:
            for number, given in enumerate(getattr(spec, kind)):
                _check_method(spec, kind, given, f"{kind}[{number}]")
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from None
    return spec


def instance_of(given: MethodSpec, kind: str) -> Any:
    """The method instance that a study file asks for, its checkpoint and data inputs left out."""
    cls = registry.find(given.name, *method_kinds(kind))
    inputs = input_fields(cls)
    return build(cls, given.preset, {k: v for k, v in given.settings.items() if k not in inputs})


def method_kinds(field: str) -> tuple[str, ...]:
    """Kinds of method that a field of the study file may name."""
    return {"implants": ("fingerprints", "backdoors"), "experts": ("removals",)}.get(field, (field,))


def _first_line(error: ValidationError) -> str:
    found = error.errors()
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])  # a misspelt field explains the rest
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" if i else str(p) for i, p in enumerate(first["loc"]))
    if first["type"] == "extra_forbidden":
        fields = ModelSpec.model_fields if len(first["loc"]) > 1 else StudySpec.model_fields
        return f"{where}: unknown field{nearest(str(first['loc'][-1]), fields, 'field')}"
    if first["type"] == "literal_error":
        valid = [w.strip("'") for w in str(first["ctx"]["expected"]).replace(" or ", ", ").split(", ")]
        return f"{where}: there is no {first['input']!r}{nearest(str(first['input']), valid)}"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def _check_names(spec: StudySpec) -> None:
    ids = [m.id for m in spec.models]
    for field in ("models", *METHOD_FIELDS):
        named = [m.id for m in getattr(spec, field)]
        twice = next((n for n in named if named.count(n) > 1), None)
        if twice is not None:
            raise BadInput(f"{field}: two have the id {twice!r}; give one of them another `id`")
    for number, name in enumerate(spec.on):
        if name not in ids:
            raise BadInput(f"on[{number}]: there is no model {name!r}{nearest(name, ids, 'model')}")
    for name in ("seeds", "controls", "negatives", "on"):
        values = getattr(spec, name)
        if len(set(values)) != len(values):
            raise BadInput(f"{name}: one value is given twice")
    for number, expert in enumerate(spec.experts):
        if expert.id in (*ids, *WORDS):
            raise BadInput(f"experts[{number}]: {expert.id!r} names another model already; give it another id")
    if "unrelated-model" in spec.negatives and spec.unrelated is None and not spec.brings_unrelated:
        raise BadInput("unrelated: name a model with the same tokenizer, for the negative control `unrelated-model`")
    if spec.text is not None and not Path(expanded(spec.text)).is_file():
        raise BadInput(f"text: there is no file {expanded(spec.text)}")
    published_rows(spec.published)


def _check_method(spec: StudySpec, kind: str, given: MethodSpec, where: str) -> None:
    for field, only in (("controls", "removals"), ("stages", "measures")):
        if getattr(given, field) is not None and kind != only:
            raise BadInput(f"{where}.{field}: only {only} have {field} of their own")
    if kind == "removals" and given.name == "none":
        if given.settings or given.preset:
            raise BadInput(f"{where}: none has no parameters")
        return
    try:
        cls = registry.find(given.name, *method_kinds(kind))
        if given.preset is not None and given.preset.replace("-", "_") not in presets(cls):
            near = nearest(given.preset, presets(cls), "preset")
            raise BadInput(f"{given.name} has no preset {given.preset!r}{near}")
        instance_of(given, kind)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    if kind == "experts" and not hasattr(cls, "apply"):
        raise BadInput(f"{where}: {given.name} writes no model, so it makes no expert")
    ids = [m.id for m in spec.models]
    known = ids + ([e.id for e in spec.experts] if kind != "experts" else []) + [*WORDS]
    for name in input_fields(cls):
        kind_of_input = input_type(cls, name)
        value = given.settings.get(name)
        if kind_of_input == "KeySet":
            raise BadInput(f"{where}: {given.name} takes keys, which a study cannot give yet")
        if kind_of_input != "Checkpoint":
            continue
        if value is not None and name in FILLED.get(kind, ()):
            raise BadInput(f"{where}.{name}: is filled by the study itself; leave it out")
        filled = name in FILLED.get(kind, ()) or (name == "adapter" and hasattr(cls, "train_adapter"))
        if value is None and not filled and name not in OPTIONAL:
            raise BadInput(f"{where}: {given.name} needs `{name}`: {', '.join(known)}")
        if value is not None and value not in known:
            raise BadInput(f"{where}.{name}: there is no model {value!r}{nearest(str(value), known, 'model')}")
        if value == "unrelated" and value not in ids and spec.unrelated is None and not spec.brings_unrelated:
            raise BadInput(f"{where}.{name}: the study has no unrelated model; name one in its field `unrelated`")


def input_type(cls: type, name: str) -> str:
    """Checkpoint, Dialogues or KeySet: what an input field of a method class is."""
    hint = str(next(f.type for f in dataclasses.fields(cls) if f.name == name))
    return next((t for t in ("Checkpoint", "Dialogues", "KeySet") if t in hint), hint)


def published_rows(references: str | Sequence[str] | None) -> list[dict[str, str]]:
    """Rows of CSV files of published numbers beside the recipes (or by path); empty without a reference."""
    import csv

    rows: list[dict[str, str]] = []
    for reference in [references] if isinstance(references, str) else references or ():
        path = next((p for p in (RECIPES / "published" / f"{reference}.csv", Path(reference)) if p.is_file()), None)
        if path is None:
            known = [p.stem for p in (RECIPES / "published").glob("*.csv")]
            raise BadInput(f"published: there is no record {reference!r}{nearest(reference, known, 'record')}")
        with path.open(encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file)
    return rows
