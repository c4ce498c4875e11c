"""The job of one tensor of a merge: its sources, its parameters, its dtype."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from palimpsest.errors import BadInput, nearest
from palimpsest.merging.engine import Job
from palimpsest.merging.parameters import first_of, fits, listed
from palimpsest.merging.passes import MergeMethod, Passes, TensorFacts, at_once
from palimpsest.merging.reading import STORED, STORED_NAMES, Source
from palimpsest.merging.request import MergeRequest, Slice, Stretch
from palimpsest.merging.vocabulary import Vocabulary, has_rows
from palimpsest.merging.weights import LAYER, WHOLE, Weights, differing, moved
from palimpsest.merging.writing import Slot
from palimpsest.method import build, spoken

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Wanted:
    """A tensor of the merged model: its name, what it is made of (part or base, and the name there), and its depth."""

    name: str
    sources: tuple[tuple[Stretch, str], ...]
    made_of: Slice
    depth: float


class _Take(MergeMethod):
    """The first model's tensor as it is, where its bytes in a file are not the tensor."""

    def passes(self, tensor: TensorFacts) -> Passes:
        """One pass."""
        return at_once(lambda chunk: chunk.models[0])


class Maker:
    """Makes jobs, one tensor at a time; `notes` says what a person should know of them."""

    def __init__(
        self,
        request: MergeRequest,
        cls: Any,
        weights: Sequence[Weights],
        base: Weights | None,
        outline: Weights,
        vocabulary: Vocabulary,
        statistics: Any = None,
    ) -> None:
        self.request, self.cls, self.weights, self.base, self.outline = request, cls, weights, base, outline
        self.vocabulary, self.statistics = vocabulary, statistics
        self.takes_base = base is not None and cls.base != "none"
        self.notes: list[str] = []
        hints = typing.get_type_hints(cls)
        self.names = [f.name for f in fields(cls) if not f.metadata.get("input")]
        self.for_each = {n for n in self.names if hints[n] == tuple[float, ...]}
        self.built: dict[str, Any] = {}
        own = [(p.settings, spoken_names(self.for_each)) for p in request.parts]
        for given, valid in [(request.settings, spoken_names(self.names)), *own]:
            check_names(cls, given, valid)

    def make(self, wanted: Wanted) -> tuple[Job, Slot]:
        """The job of one tensor, and where it is stored. Raises BadInput for models that do not fit together."""
        stored = self._stored_name(wanted)
        copied = self._copied(wanted, stored)
        if copied is not None:
            return copied
        sources = {_number(s, len(self.weights)): self._of(s.part).source(n) for s, n in wanted.sources}
        names = {_number(s, len(self.weights)): (self._of(s.part), n) for s, n in wanted.sources}
        last = len(self.weights)
        if self.takes_base and last not in sources:
            assert self.base is not None
            sources[last] = self.base.source(wanted.sources[0][1])
            names[last] = (self.base, wanted.sources[0][1])
        rows = has_rows(wanted.name)
        if rows:
            sources = {i: self.vocabulary.source(i, sources) for i in sources}
        self._check_alike(wanted, [(names[i][0], names[i][1], source) for i, source in sources.items()])
        stretches = [s for s, _ in wanted.sources if s.part is not None]
        models = [sources[_part(s)] for s in stretches]
        origin = sources.get(last) if self.takes_base else None
        if origin is not None and self.cls.base == "model":
            models, origin = [origin, *models], None
        dtype = self._dtype([*models, *([origin] if origin is not None else [])])
        method = self._method(wanted, stretches)
        has_base = origin is not None
        facts = TensorFacts(wanted.name, models[0].shape, len(models), has_base, self.request.seed, self.statistics)
        job = Job(stored, facts, method, models, origin, dtype)
        return job, Slot(stored, STORED_NAMES[dtype], facts.shape, job.bytes_out)

    def _of(self, part: int | None) -> Weights:
        found = self.base if part is None else self.weights[part]
        assert found is not None
        return found

    def _stored_name(self, wanted: Wanted) -> str:
        """As the outline's files call it."""
        if wanted.name in self.outline.stored:
            return self.outline.stored[wanted.name].name
        stretch, name = wanted.sources[0]
        layer = LAYER.search(wanted.name)
        there = self._of(stretch.part).stored.get(name)
        return wanted.name if there is None or layer is None else moved(there.name, int(layer.group()))

    def _copied(self, wanted: Wanted, stored: str) -> tuple[Job, Slot] | None:
        """The tensor that is taken as it is: one that `copies` names, or one of whole numbers."""
        for copy in self.request.copies:
            if fits(copy.pattern, wanted.name) or fits(copy.pattern, stored):
                name = next((n for s, n in wanted.sources if s.part == copy.part), wanted.sources[0][1])
                return self._taken(wanted.name, stored, copy.part, name)
        stretch, name = next(((s, n) for s, n in wanted.sources if s.part is None), wanted.sources[0])
        if self._of(stretch.part).get(name).dtype not in WHOLE:
            return None
        if differing([self._of(s.part).get(n) for s, n in wanted.sources]):
            self.notes.append(
                f"{wanted.name} holds whole numbers that differ; taken from {self._of(stretch.part).name}"
            )
        return self._taken(wanted.name, stored, stretch.part, name)

    def _taken(self, wanted: str, stored: str, part: int | None, name: str) -> tuple[Job, Slot]:
        model = self._of(part)
        info, raw, source = model.get(name), model.raw(name), None
        if has_rows(wanted):
            number = len(self.weights) if part is None else part
            source = self.vocabulary.source(number, {number: model.source(name)})
            raw = raw if self.vocabulary.rows[number] is None else None
        if raw is not None:
            facts = TensorFacts(wanted, raw.shape, 0)
            return Job(stored, facts, copied=raw), Slot(stored, raw.dtype, raw.shape, raw.end - raw.start)
        if info.dtype not in STORED:
            raise BadInput(f"{model.name}: tensor {info.name} holds whole numbers ({info.dtype}) for each token")
        source = source or model.source(name)
        facts = TensorFacts(wanted, source.shape, 1, False)
        job = Job(stored, facts, _Take(), [source], None, STORED[info.dtype])
        return job, Slot(stored, info.dtype, source.shape, job.bytes_out)

    @staticmethod
    def _check_alike(wanted: Wanted, everyone: Sequence[tuple[Weights, str, Source]]) -> None:
        first, _, there = everyone[0]
        for model, name, source in everyone[1:]:
            if source.shape == there.shape:
                continue
            hint = ""
            if any(part in wanted.name for part in ("classifier", "score", "out_proj", "qa_outputs")):
                hint = (
                    "; heads of different shape answer different questions, so no one head can: merge models of one "
                    f"task, or keep one model's head and labels with --copy {wanted.name.rpartition('.')[0]}=MODEL"
                )
            raise BadInput(
                f"tensor {model.get(name).name}: {model.name} has the shape {list(source.shape)}, {first.name} "
                f"{list(there.shape)}{hint}"
            )

    def _dtype(self, sources: Sequence[Source]) -> torch.dtype:
        if self.request.dtype is not None:
            return DTYPES[self.request.dtype]
        found = sources[0].dtype
        for source in sources[1:]:
            found = torch.promote_types(found, source.dtype)
        return torch.float32 if found == torch.float64 else found

    def _method(self, wanted: Wanted, stretches: Sequence[Stretch]) -> Any:
        """The method with this tensor's parameters."""
        shared = (wanted.made_of.settings, self.request.settings)
        found: dict[str, Any] = {}
        for name in self.names:
            said = spoken(name)
            if name not in self.for_each:
                value = first_of(said, shared, wanted.name, wanted.depth)
            else:
                value = self._for_each(said, wanted, stretches, shared)
            if value is not None:
                found[said] = value
        key = repr(found)
        if key not in self.built:
            self.built[key] = build(self.cls, settings=found)
        return self.built[key]

    def _for_each(
        self, name: str, wanted: Wanted, stretches: Sequence[Stretch], shared: Sequence[Mapping[str, Any]]
    ) -> Any:
        """One value a model, or None where none is said anywhere. A tuple in shared settings has one for each."""
        names = {_part(s): n for s, n in wanted.sources if s.part is not None}
        values = []
        for stretch in stretches:
            part = _part(stretch)
            own = (stretch.settings, self.request.parts[part].settings)
            value = first_of(name, own, names[part], wanted.depth)
            if value is None:
                value = first_of(name, shared, names[part], wanted.depth)
                if isinstance(value, tuple):
                    value = listed(name, value, len(self.request.parts))[part]
            values.append(value)
        if all(v is None for v in values):
            return None
        default = next(f.default for f in fields(self.cls) if spoken(f.name) == name)
        return [default[0] if v is None else v for v in values]  # type: ignore[index]


def per_model(cls: Any) -> set[str]:
    """Parameters that have a value for each model."""
    hints = typing.get_type_hints(cls)
    return {spoken(f.name) for f in fields(cls) if hints[f.name] == tuple[float, ...]}


def spoken_names(names: Any) -> list[str]:
    """Parameters as people call them."""
    return [spoken(n) for n in names]


def check_names(cls: Any, given: Mapping[str, Any], valid: Sequence[str]) -> None:
    """BadInput for a parameter that a method does not have, or that is not one model's own."""
    for name in given:
        if name not in valid:
            everywhere = spoken_names(f.name for f in fields(cls))
            if name in everywhere:
                raise BadInput(f"{cls.info.name}: {name} is one for all models, not one model's own")
            raise BadInput(f"{cls.info.name}: unknown parameter {name!r}{nearest(name, valid, 'parameter')}")


def _number(stretch: Stretch, base: int) -> int:
    return base if stretch.part is None else stretch.part


def _part(stretch: Stretch) -> int:
    assert stretch.part is not None
    return stretch.part
