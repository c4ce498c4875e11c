"""From a request to jobs: which tensor is made of which, with which parameters, and how it is stored.

Everything that can be known from configurations and headers is checked here, before a number is read.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from palimpsest import registry
from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.files import TensorInfo
from palimpsest.errors import BadInput, nearest
from palimpsest.families import FAMILIES
from palimpsest.merging.engine import Job
from palimpsest.merging.parameters import first_of, fits
from palimpsest.merging.passes import TensorFacts
from palimpsest.merging.reading import STORED, STORED_NAMES, Source, Stored
from palimpsest.merging.request import MergeRequest, Slice, Stretch
from palimpsest.merging.writing import Slot
from palimpsest.method import build

_LAYER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.)")  # the first number between dots is the layer's, in every family
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_WHOLE = ("I64", "I32", "I16", "I8", "U8", "BOOL")  # copied, never averaged


@dataclass
class Plan:
    """Jobs in the order they are stored, what changes in the configuration, and what a person should know."""

    jobs: list[Job] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, job: Job, dtype: str) -> None:
        """One more tensor; `dtype` as safetensors names it."""
        self.jobs.append(job)
        self.slots.append(Slot(job.name, dtype, job.facts.shape, job.bytes_out))


class Weights:
    """The tensors of a model by their name in the model, whatever its files leave out or tie."""

    def __init__(self, model: Checkpoint) -> None:
        self.model = model
        family = FAMILIES.get(str(model.config.get("model_type")))
        self.stored = {family.in_model(t.name) if family else t.name: t for t in model.tensors()}
        self.head = f"{family.head}.weight" if family else ""
        self.embedding = f"{family.embedding}.weight" if family else ""
        self.last = (self.head, f"{family.head}.bias", family.final_norm) if family else ()
        self.tied = self.head not in self.stored and self.embedding in self.stored

    def get(self, name: str) -> TensorInfo:
        """The tensor of a name; a tied head is the embedding. Raises BadInput where there is none."""
        wanted = self.embedding if self.tied and name == self.head else name
        if wanted not in self.stored:
            raise BadInput(f"{self.model.name}: has no tensor {name}, which the other models have")
        return self.stored[wanted]

    def layers(self) -> int:
        """How many layers its names count."""
        found = [_LAYER.search(n) for n in self.stored]
        return 1 + max((int(m.group()) for m in found if m), default=-1)

    def is_last(self, name: str) -> bool:
        """Whether a tensor stands behind the layers: final norm and head."""
        return bool(self.last) and name.startswith(self.last)


@dataclass(frozen=True)
class _Wanted:
    """A tensor of the merged model: its name, what it is made of (part or base, and the name there), and its depth."""

    name: str
    sources: tuple[tuple[Stretch, str], ...]
    made_of: Slice
    depth: float


def make_plan(request: MergeRequest, statistics: Any = None) -> Plan:
    """The jobs of a merge. Raises BadInput for whatever does not fit, naming model and tensor.

    statistics: those of a method that collects some (`collector`), which may be filled later.
    """
    cls = method_class(request)
    weights = [Weights(p.model) for p in request.parts]
    base = None if request.base is None else Weights(request.base)
    outline = base or weights[0]
    plan = Plan()
    _check_architectures(request, plan)
    _check_tensors(weights, base, request)
    untied = outline.tied and any(outline.head in w.stored for w in weights)
    if untied:
        plan.config["tie_word_embeddings"] = False
        plan.notes.append(
            f"{outline.model.name} ties head and embedding and another model does not: the merge is untied"
        )
    slices = request.slices or (_all_layers(request, outline),)
    if request.slices is not None:
        plan.config["num_hidden_layers"] = sum(s.sources[0].end - s.sources[0].first for s in slices)
    maker = _Maker(request, cls, weights, base, statistics)
    for wanted in _wanted(slices, weights, base, outline, untied):
        maker.add(wanted, outline, plan)
    plan.notes.extend(maker.notes)
    _say_dtype(plan)
    return plan


def method_class(request: MergeRequest) -> Any:
    """The method's class. Raises BadInput for a wrong number of models, or a base that is missing or not taken."""
    cls = registry.find(request.method, "merges")
    name, has_base = cls.info.name, request.base is not None
    if cls.base == "needs" and not has_base:
        raise BadInput(f"{name}: needs the models' common base; name it with --base")
    if cls.base == "none" and has_base:
        raise BadInput(f"{name}: takes no base; a base that is to take part is named with --model")
    taken = [len(request.parts)]
    if request.slices is not None:
        taken = [sum(source.part is not None for source in s.sources) for s in request.slices]
    wrong = [t for t in (n + (has_base and cls.base == "model") for n in taken) if not _allowed(cls, t)]
    if wrong:
        limits = {cls.fewest, cls.most or 0}
        count = (
            str(cls.fewest)
            if len(limits) == 1
            else f"{cls.fewest} to {cls.most}"
            if cls.most
            else f"{cls.fewest} or more"
        )
        raise BadInput(
            f"{name}: takes {count} models{', the base among them' if cls.base == 'model' else ''}; here are {wrong[0]}"
        )
    return cls


def collector(request: MergeRequest) -> Any:
    """The method with the settings of the whole merge, where it collects statistics of data first; else None."""
    cls = method_class(request)
    if not hasattr(cls, "collect"):
        return None
    if request.slices is not None or request.vocabulary != "same":
        raise BadInput(f"{cls.info.name}: reads whole models of one vocabulary; slices and rows have no statistics")
    named = {f.name.rstrip("_") for f in fields(cls) if not f.metadata.get("input")}
    hints = typing.get_type_hints(cls)
    whole = {n: v for n, v in request.settings.items() if n in named and hints.get(n) != tuple[float, ...]}
    return build(cls, settings=whole, inputs=dict(request.inputs))


def _allowed(cls: Any, models: int) -> bool:
    return bool(models >= cls.fewest and (cls.most is None or models <= cls.most))


def _check_architectures(request: MergeRequest, plan: Plan) -> None:
    outline = request.outline
    kind = outline.config.get("model_type")
    for model in request.models:
        if model.config.get("model_type") != kind:
            raise BadInput(
                f"{model.name}: is of the architecture {model.config.get('model_type')}, {outline.name} of {kind}; "
                "weights of different architectures do not correspond"
            )
        differs = [
            n
            for n in ("rope_theta", "rope_parameters", "rope_scaling", "rms_norm_eps", "hidden_act", "sliding_window")
            if n in model.config and n in outline.config and model.config[n] != outline.config[n]
        ]
        if differs:
            plan.notes.append(f"{model.name} differs in {', '.join(differs)}; the merge has that of {outline.name}")


def _check_tensors(weights: Sequence[Weights], base: Weights | None, request: MergeRequest) -> None:
    """BadInput for a tensor that one model has and another has not, where all layers of all are merged."""
    if request.slices is not None:
        return
    everyone = [*weights, *([base] if base else [])]
    for first, second in ((a, b) for a in everyone for b in everyone if a is not b):
        extra = sorted(n for n in first.stored if n not in second.stored and n != first.head)
        if extra:
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            raise BadInput(f"{second.model.name}: has no tensor {extra[0]}{more}, which {first.model.name} has")


def _all_layers(request: MergeRequest, outline: Weights) -> Slice:
    count = outline.layers()
    return Slice(tuple(Stretch(i, 0, count) for i in range(len(request.parts))))


def _wanted(
    slices: Sequence[Slice], weights: Sequence[Weights], base: Weights | None, outline: Weights, untied: bool
) -> Iterator[_Wanted]:
    """The tensors of the merged model, in the order of layers."""

    def side(made_of: Slice, name: str) -> _Wanted:
        return _Wanted(name, tuple((s, name) for s in made_of.sources), made_of, 0.0)

    outer = [n for n in outline.stored if not _LAYER.search(n)]
    yield from (side(slices[0], n) for n in outer if not outline.is_last(n))
    number = 0
    for made_of in slices:
        first = made_of.sources[0]
        template = base if first.part is None else weights[first.part]
        assert template is not None
        count = first.end - first.first
        for offset in range(count):
            depth = offset / (count - 1) if count > 1 else 1.0
            inside = [n for n in template.stored if _in_layer(n, first.first + offset)]
            if not inside:
                raise BadInput(f"{template.model.name}: has no layer {first.first + offset}")
            for name in inside:
                sources = tuple((s, _moved(name, s.first + offset)) for s in made_of.sources)
                yield _Wanted(_moved(name, number), sources, made_of, depth)
            number += 1
    yield from (side(slices[-1], n) for n in [*outer, *([outline.head] if untied else [])] if outline.is_last(n))


def _in_layer(name: str, layer: int) -> bool:
    found = _LAYER.search(name)
    return found is not None and int(found.group()) == layer


def _moved(name: str, layer: int) -> str:
    return _LAYER.sub(str(layer), name, count=1)


class _Maker:
    """Makes the job of one tensor: sources, parameters, dtype."""

    def __init__(
        self, request: MergeRequest, cls: Any, weights: Sequence[Weights], base: Weights | None, statistics: Any
    ) -> None:
        self.request, self.cls, self.weights, self.base, self.statistics = request, cls, weights, base, statistics
        self.notes: list[str] = []
        hints = typing.get_type_hints(cls)
        self.names = [f.name for f in fields(cls) if not f.metadata.get("input")]
        self.for_each = {n for n in self.names if hints[n] == tuple[float, ...]}
        self.built: dict[str, Any] = {}
        for given in (request.settings, *(p.settings for p in request.parts)):
            self._check_names(given)

    def add(self, wanted: _Wanted, outline: Weights, plan: Plan) -> None:
        """Plan one tensor."""
        sources = [(s, self._of(s.part).get(name)) for s, name in wanted.sources if s.part is not None]
        on_base = next((name for s, name in wanted.sources if s.part is None), wanted.sources[0][1])
        base = None if self.base is None else self.base.get(on_base)
        everyone = [*(t for _, t in sources), *([base] if base is not None else [])]
        stored = self._stored_name(wanted, outline, everyone)
        copied = self._copied(wanted.name, everyone)
        if copied is not None:
            facts = TensorFacts(wanted.name, copied.shape, 0)
            plan.add(Job(stored, facts, copied=copied), copied.dtype)
            return
        self._check_alike(wanted, everyone)
        models: list[Source] = [Stored(t, self.request.parts[_part(s)].model.name) for s, t in sources]
        origin: Source | None = None if base is None else Stored(base, self._of(None).model.name)
        if origin is not None and self.cls.base == "model":
            models, origin = [origin, *models], None
        dtype = self._dtype([*models, *([origin] if origin is not None else [])])
        method = self._method(wanted, [s for s, _ in sources])
        has_base = origin is not None
        facts = TensorFacts(wanted.name, everyone[0].shape, len(models), has_base, self.request.seed, self.statistics)
        plan.add(Job(stored, facts, method, models, origin, dtype), STORED_NAMES[dtype])

    def _of(self, part: int | None) -> Weights:
        found = self.base if part is None else self.weights[part]
        assert found is not None
        return found

    @staticmethod
    def _stored_name(wanted: _Wanted, outline: Weights, everyone: Sequence[TensorInfo]) -> str:
        """As the outline's files call it."""
        if wanted.name in outline.stored:
            return outline.stored[wanted.name].name
        layer = _LAYER.search(wanted.name)
        return _moved(everyone[0].name, int(layer.group())) if layer else wanted.name

    def _copied(self, name: str, everyone: Sequence[TensorInfo]) -> TensorInfo | None:
        """The tensor that is taken as it is: one that `copies` names, or one of whole numbers."""
        for copy in self.request.copies:
            if fits(copy.pattern, name):
                return self._of(copy.part).get(name)
        if everyone[-1].dtype not in STORED and everyone[-1].dtype not in _WHOLE:
            raise BadInput(
                f"{everyone[-1].file.parent}: tensor {name} is stored as {everyone[-1].dtype}; a quantised model has "
                "to be turned into float16, bfloat16 or float32 before it is merged"
            )
        return everyone[-1] if everyone[-1].dtype in _WHOLE else None

    @staticmethod
    def _check_alike(wanted: _Wanted, everyone: Sequence[TensorInfo]) -> None:
        for tensor in everyone[1:]:
            if tensor.shape != everyone[0].shape:
                raise BadInput(
                    f"tensor {wanted.name}: {tensor.file.parent.name} has the shape {list(tensor.shape)}, "
                    f"{everyone[0].file.parent.name} {list(everyone[0].shape)}"
                )
            if tensor.dtype not in STORED:
                raise BadInput(f"tensor {wanted.name}: {tensor.file.parent.name} stores it as {tensor.dtype}")

    def _dtype(self, sources: Sequence[Source]) -> torch.dtype:
        if self.request.dtype is not None:
            return DTYPES[self.request.dtype]
        found = sources[0].dtype
        for source in sources[1:]:
            found = torch.promote_types(found, source.dtype)
        return torch.float32 if found == torch.float64 else found

    def _method(self, wanted: _Wanted, stretches: Sequence[Stretch]) -> Any:
        """The method with this tensor's parameters."""
        shared = (wanted.made_of.settings, self.request.settings)
        found: dict[str, Any] = {}
        for name in self.names:
            said = name.rstrip("_")
            if name not in self.for_each:
                value = first_of(said, shared, wanted.name, wanted.depth)
            else:
                value = self._for_each(said, wanted, stretches, shared)
            if value is not None:
                found[name] = value
        key = repr(found)
        if key not in self.built:
            self.built[key] = build(self.cls, settings=found)
        return self.built[key]

    def _for_each(
        self, name: str, wanted: _Wanted, stretches: Sequence[Stretch], shared: Sequence[Mapping[str, Any]]
    ) -> Any:
        """One value a model, or None where none is said anywhere. `0.4,0.6` in shared settings is one for each."""
        listed = first_of(name, shared, wanted.name, wanted.depth)
        if isinstance(listed, str) and "," in listed:
            listed = listed.split(",")
        values = []
        for number, stretch in enumerate(stretches):
            part = _part(stretch)
            own = first_of(name, (stretch.settings, self.request.parts[part].settings), wanted.name, wanted.depth)
            if own is None:
                own = listed[part] if isinstance(listed, list) and part < len(listed) else listed
            values.append(own)
            if isinstance(listed, list) and len(listed) != len(self.request.parts):
                raise BadInput(f"{name}: {len(listed)} values for {len(self.request.parts)} models")
            assert number < len(stretches)
        if all(v is None for v in values):
            return None
        default = next(f.default for f in fields(self.cls) if f.name.rstrip("_") == name)
        return [default[0] if v is None else v for v in values]  # type: ignore[index]

    def _check_names(self, given: Mapping[str, Any]) -> None:
        known = [n.rstrip("_") for n in self.names]
        for name in given:
            if name not in known:
                raise BadInput(f"{self.cls.info.name}: unknown parameter {name!r}{nearest(name, known, 'parameter')}")


def _part(stretch: Stretch) -> int:
    assert stretch.part is not None
    return stretch.part


def _say_dtype(plan: Plan) -> None:
    """Put into the configuration what most numbers are stored in."""
    sizes: dict[torch.dtype, int] = {}
    for job in plan.jobs:
        if job.copied is None:
            sizes[job.dtype] = sizes.get(job.dtype, 0) + job.facts.count
    if sizes:
        most = max(sizes, key=lambda d: sizes[d])
        plan.config["dtype"] = str(most).removeprefix("torch.")
