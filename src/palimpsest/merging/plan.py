"""From a request to jobs: which tensor is made of which, with which parameters, and how it is stored.

Everything that can be known from configurations and headers is checked here, before a number is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from palimpsest import registry
from palimpsest.errors import BadInput, nearest
from palimpsest.merging.adapters import AdaptedWeights, Factors
from palimpsest.merging.engine import Job
from palimpsest.merging.jobs import DTYPES, Maker, Wanted, per_model
from palimpsest.merging.parameters import fits
from palimpsest.merging.request import MergeRequest, Slice, Stretch
from palimpsest.merging.vocabulary import Vocabulary, plan_vocabulary
from palimpsest.merging.weights import LAYER, Weights, moved
from palimpsest.merging.writing import Slot
from palimpsest.method import build, spoken

_ALIKE = ("rope_theta", "rope_parameters", "rope_scaling", "rms_norm_eps", "hidden_act", "sliding_window")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_LABELS = ("num_labels", "id2label", "label2id", "problem_type")


@dataclass
class Plan:
    """Jobs in the order they are stored, what changes in the configuration, and what a person should know.

    config: new values by name; None takes the name out.
    """

    jobs: list[Job] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    vocabulary: Vocabulary = field(default_factory=lambda: Vocabulary(Path(), ()))


def make_plan(request: MergeRequest, statistics: Any = None) -> Plan:
    """The jobs of a merge. Raises BadInput for whatever does not fit, naming model and tensor.

    statistics: those of a method that collects some (`collector`), which may be filled later.
    """
    cls = method_class(request)
    if request.dtype is not None and request.dtype not in DTYPES:
        raise BadInput(f"--dtype {request.dtype}: is not stored{nearest(request.dtype, DTYPES, 'dtype')}")
    plan = Plan(notes=list(request.notes))
    _check_architectures(request, plan)
    factors = Factors()
    weights = [
        AdaptedWeights(p.ground, p.model, factors) if p.model.is_adapter else Weights(p.model) for p in request.parts
    ]
    base = None if request.base is None else Weights(request.base)
    outline = base or weights[request.donor or 0]
    _drop_computed([*weights, *([base] if base else [])], plan)
    _check_tensors(weights, base, request)
    untied = outline.tied and any(outline.head in w.stored for w in weights)
    if untied:
        plan.config["tie_word_embeddings"] = False
        plan.notes.append(f"{outline.name} ties head and embedding and another model does not: the merge is untied")
    plan.vocabulary = plan_vocabulary(request, weights, base)
    plan.config |= plan.vocabulary.config
    plan.notes += plan.vocabulary.notes
    slices = request.slices or (_all_layers(request, outline),)
    if request.slices is not None:
        _check_slices(request, cls, weights, base)
        plan.config |= _layer_config(slices, outline, weights, base)
    maker = Maker(request, cls, weights, base, outline, plan.vocabulary, statistics)
    for wanted in _wanted(request, slices, weights, base, outline, untied):
        job, slot = maker.make(wanted)
        plan.jobs.append(job)
        plan.slots.append(slot)
    plan.notes.extend(dict.fromkeys(maker.notes))
    for copy in request.copies:
        _check_copied(copy.pattern, plan)
        donor = outline if copy.part is None else weights[copy.part]
        if copy.part is not None and any(n.startswith(("classifier", "score")) for n in _named(copy.pattern, donor)):
            plan.config |= {n: donor.config.get(n) for n in _LABELS}
    _say_dtype(plan)
    return plan


def method_class(request: MergeRequest) -> Any:
    """The method's class. Raises BadInput for a wrong number of models, or a base that is missing or not taken."""
    cls = registry.find(request.method, "merges")
    name, has_base = cls.info.name, request.base is not None
    if not request.parts:
        raise BadInput(f"{name}: no models to merge; name each with --model")
    for part in request.parts:
        if part.ground.is_adapter:
            raise BadInput(
                f"{part.model.name}: is an adapter, and what it stands on is not said: name the whole model with "
                "--base, or write --model WHOLE+ADAPTER"
            )
    if cls.base == "needs" and not has_base:
        raise BadInput(f"{name}: needs the models' common base; name it with --base")
    if cls.base == "none" and has_base and not any(p.model.is_adapter for p in request.parts):
        raise BadInput(f"{name}: takes no base; a base that is to take part is named with --model")
    if request.slices is None:
        _check_count(cls, len(request.parts), has_base, "")
    return cls


def collector(request: MergeRequest) -> Any:
    """The method with the settings of the whole merge, where it collects statistics of data first; else None."""
    cls = method_class(request)
    if not hasattr(cls, "collect"):
        return None
    if request.slices is not None or request.vocabulary not in ("same", "unchecked"):
        raise BadInput(f"{cls.info.name}: reads whole models of one vocabulary; slices and rows have no statistics")
    named = {spoken(f.name) for f in fields(cls) if not f.metadata.get("input")} - per_model(cls)
    whole = {n: v for n, v in request.settings.items() if n in named}
    return build(cls, settings=whole, inputs=dict(request.inputs))


def _check_count(cls: Any, parts: int, has_base: bool, where: str) -> None:
    counts = has_base and cls.base == "model"
    total = parts + counts
    if total >= cls.fewest and (cls.most is None or total <= cls.most):
        return
    if cls.most is None:
        count = f"{cls.fewest} or more models"
    else:
        count = f"{cls.fewest} models" if cls.fewest == cls.most else f"{cls.fewest} to {cls.most} models"
    among = ", the base among them" if counts else ""
    raise BadInput(f"{cls.info.name}: takes {count.replace('1 models', '1 model')}{among}; here are {total}{where}")


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
            n for n in _ALIKE if n in model.config and n in outline.config and model.config[n] != outline.config[n]
        ]
        if differs:
            plan.notes.append(f"{model.name} differs in {', '.join(differs)}; the merge has that of {outline.name}")


def _drop_computed(everyone: Sequence[Weights], plan: Plan) -> None:
    """Buffers that loading computes anew are left out where not all files hold them."""
    for model in everyone:
        extra = [n for n in model.stored if model.is_computed(n) and any(n not in w.stored for w in everyone)]
        for name in extra:
            del model.stored[name]
        if extra:
            plan.notes.append(f"{model.name}: {extra[0]} is left out (loading computes it, and not all models hold it)")


def _check_tensors(weights: Sequence[Weights], base: Weights | None, request: MergeRequest) -> None:
    """BadInput for a tensor that one model has and another has not, where all layers of all are merged."""
    if request.slices is not None:
        return
    everyone = [*weights, *([base] if base else [])]
    for first, second in ((a, b) for a in everyone for b in everyone if a is not b):
        missing = [n for n in first.stored if n not in second.stored and n != first.head]
        extra = sorted(n for n in missing if not any(fits(c.pattern, n) for c in request.copies))
        if extra:
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            hint = ""
            if not any(LAYER.search(n) for n in extra):
                hint = f"; to take it from one model as it is: --copy {extra[0]}={first.name}"
            raise BadInput(f"{second.name}: has no tensor {extra[0]}{more}, which {first.name} has{hint}")


def _all_layers(request: MergeRequest, outline: Weights) -> Slice:
    count = outline.layers()
    return Slice(tuple(Stretch(i, 0, count) for i in range(len(request.parts))))


def _check_slices(request: MergeRequest, cls: Any, weights: Sequence[Weights], base: Weights | None) -> None:
    for number, made_of in enumerate(request.slices or ()):
        where = f"slice {number + 1}: "
        parts = [s.part for s in made_of.sources]
        if len(set(parts)) < len(parts):
            raise BadInput(f"{where}names a model twice")
        if len({s.end - s.first for s in made_of.sources}) != 1:
            raise BadInput(f"{where}its layer ranges are of different length")
        for stretch in made_of.sources:
            model = base if stretch.part is None else weights[stretch.part]
            assert model is not None
            if not 0 <= stretch.first < stretch.end <= model.layers():
                raise BadInput(
                    f"{where}layers {stretch.first} to {stretch.end} of {model.name}, which has {model.layers()}"
                )
        needed = base is not None and cls.base in ("needs", "model")
        if needed and None not in parts and len({s.first for s in made_of.sources}) != 1:
            raise BadInput(f"{where}name the layers of the base too, since those of its sources differ")
        _check_count(cls, len([p for p in parts if p is not None]), base is not None, f" in slice {number + 1}")


def _layer_config(
    slices: Sequence[Slice], outline: Weights, weights: Sequence[Weights], base: Weights | None
) -> dict[str, Any]:
    """The number of layers, and lists with an entry for each layer in their new order."""
    config = outline.config
    found: dict[str, Any] = {}
    count = sum(s.sources[0].end - s.sources[0].first for s in slices)
    before = outline.layers()
    for name in _COUNTS:
        if name in config:
            found[name] = count
    for name, value in config.items():
        if isinstance(value, list) and len(value) == before and name != "architectures" and count != before:
            taken: list[Any] = []
            for made_of in slices:
                first = made_of.sources[0]
                model = base if first.part is None else weights[first.part]
                assert model is not None
                taken += list(model.config.get(name, value))[first.first : first.end]
            found[name] = taken
    return found


def _wanted(
    request: MergeRequest,
    slices: Sequence[Slice],
    weights: Sequence[Weights],
    base: Weights | None,
    outline: Weights,
    untied: bool,
) -> Iterator[Wanted]:
    """The tensors of the merged model, in the order of layers."""

    def side(made_of: Slice, name: str) -> Wanted:
        return Wanted(name, tuple((s, name) for s in made_of.sources), made_of, 0.0)

    outer = outline.outside()
    for copy in request.copies:  # what only the model copied from has, such as a head that the base lacks
        if copy.part is not None:
            theirs = weights[copy.part]
            outer += [n for n in _named(copy.pattern, theirs) if n not in outer and not LAYER.search(n)]
    yield from (side(slices[0], n) for n in outer if not outline.is_last(n))
    number = 0
    for made_of in slices:
        first = made_of.sources[0]
        template = base if first.part is None else weights[first.part]
        assert template is not None
        count = first.end - first.first
        for offset in range(count):
            depth = offset / (count - 1) if count > 1 else 1.0
            for name in template.in_layer(first.first + offset):
                sources = tuple((s, moved(name, s.first + offset)) for s in made_of.sources)
                yield Wanted(moved(name, number), sources, made_of, depth)
            number += 1
    yield from (side(slices[-1], n) for n in [*outer, *([outline.head] if untied else [])] if outline.is_last(n))


def _named(pattern: str, model: Weights) -> list[str]:
    return [n for n, t in model.stored.items() if fits(pattern, n) or fits(pattern, t.name)]


def _check_copied(pattern: str, plan: Plan) -> None:
    if not any(fits(pattern, j.name) or fits(pattern, j.facts.name) for j in plan.jobs):
        raise BadInput(f"--copy {pattern}: no tensor has such a name{nearest(pattern, [j.name for j in plan.jobs])}")


def _say_dtype(plan: Plan) -> None:
    """Put into the configuration what most numbers are stored in."""
    sizes: dict[str, int] = {}
    for job, slot in zip(plan.jobs, plan.slots, strict=True):
        sizes[slot.dtype] = sizes.get(slot.dtype, 0) + job.facts.count
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    held = {d: n for d, n in sizes.items() if d in names}
    if held:
        plan.config["dtype"] = str(names[max(held, key=lambda d: held[d])]).removeprefix("torch.")
