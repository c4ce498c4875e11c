"""The grid of a study as a graph of steps, in which equal work stands once.

A step's identity is the SHA-256 of its method, its parameters, the hash of the method's source module, its
seed, and the identities of its inputs (a digest for models and data, an identity for earlier steps). Two
cells of the grid that need the same work therefore name the same step: the marked model is made once for
all its removals, the erased model once for all its recoveries, an adapter once for all its targets.

A `Place` says where in the tables the numbers of a measure belong; one step may have several places.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palimpsest import registry
from palimpsest.checkpoint import resolve
from palimpsest.data import load_dialogues
from palimpsest.errors import BadInput
from palimpsest.method import build, input_fields, settings_of
from palimpsest.records import canonical_json
from palimpsest.study.spec import MethodSpec, ModelSpec, StudySpec, expanded, input_type, instance_of
from palimpsest.study.steps import Place, Plan, PlannedStep, Step

KEYED = ("hit-rate", "rank")  # measures that look for an implant; a class may say so itself: `keyed = True`
SIBLING_SEED = 1000  # added to the study's seed: a sibling is no twin of the marked model


def plan(spec: StudySpec) -> Plan:
    """Make the graph of a study; reads digests of models and data, loads no model. Raises BadInput."""
    return _Planner(spec).all()


def check(spec: StudySpec) -> list[PlannedStep]:
    """The steps that a run of this study would take, each once, with how many cells share it."""
    return plan(spec).listed()


def derived_seed(seed: int, what: str) -> int:
    """A seed of its own for `what`: 63 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(f"palimpsest study {seed} {what}".encode()).digest()[:8], "big") >> 1


def code_version(cls: type) -> str:
    """SHA-256 of the source module of a method class."""
    source = inspect.getsourcefile(cls)
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else "unknown"


class _Planner:
    """Grows a plan: every `_add` either finds the step already there or appends it."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self.plan = Plan(spec)
        self.measures = [(given, instance_of(given, "measures")) for given in spec.measures]
        self.digests: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.data_digests: dict[tuple[str, ...], str] = {}

    def all(self) -> Plan:
        for model in self.spec.models:
            self._model(model.id, model.path)
        if "unrelated-model" in self.spec.negatives:
            self._model("unrelated", self.spec.unrelated or "toy:unrelated")
        for seed in self.spec.seeds:
            for model in self.spec.targets:
                self._of_model(model, seed)
        return self.plan

    # -- the grid ------------------------------------------------------------------------------------

    def _of_model(self, model: ModelSpec, seed: int) -> None:
        base = f"model:{model.id}"
        answers = self._measure_all(base, Place("", model.id, seed, "base"), keys=None)
        sibling = None
        if "sibling" in self.spec.negatives:
            sibling = self._sibling(model, base, seed)
            self._making(sibling, Place("", model.id, seed, "base", control="sibling"))
        for given in self.spec.implants:
            marked = self._transform(
                given.id,
                instance_of(given, "implants"),
                base,
                seed,
                given,
                key_seed=derived_seed(seed, f"keys {model.id} {given.id}"),
            )
            place = Place("", model.id, seed, "fingerprinted", given.id)
            self._making(marked, place)
            self._measure_all(base, dataclasses.replace(place, stage="base", control="clean-base"), marked, keyed=True)
            before = self._measure_all(marked, place, marked, answers)
            if sibling is not None:
                self._negative(sibling, place, marked, "sibling", "base")
            if "unrelated-model" in self.spec.negatives:
                self._negative("model:unrelated", place, marked, "unrelated-model", "base")
            if "other-owner" in self.spec.negatives:
                others = self._other_owner(given, base, seed)
                self._negative(marked, place, others, "other-owner", "fingerprinted")
            for removal in self.spec.attacks:
                self._attack(removal, base, marked, dataclasses.replace(place, removal=removal.id), before)

    def _attack(self, removal: MethodSpec, base: str, marked: str, place: Place, before: str | None) -> None:
        method = instance_of(removal, "removals")
        made = self._phases(removal, method, base, marked, place, marked, before)
        last = made[-1]
        if "revival" in self.spec.controls:
            self._revival(last, dataclasses.replace(place, control="revival"), marked, before)
        if "clean-same-schedule" in self.spec.controls:
            matched = clean_same_schedule(method)
            if matched is None:
                self._note(f"{removal.id} has no mismatched phase, so clean-same-schedule does not apply to it")
            else:
                control = dataclasses.replace(place, control="clean-same-schedule")
                self._phases(removal, matched, base, marked, control, marked, before, like=made)
        if "clean-base" in self.spec.controls:  # the unmarked base through the same removal
            control = dataclasses.replace(place, control="clean-base")
            last = self._phases(removal, method, base, base, control, marked, None, like=made)[-1]
            if "revival" in self.spec.controls:
                self._revival(last, dataclasses.replace(control, stage="revived"), marked, None)

    def _phases(
        self,
        removal: MethodSpec,
        method: Any,
        base: str,
        start: str,
        place: Place,
        keys: str,
        before: str | None,
        *,
        like: Sequence[str] = (),
    ) -> list[str]:
        """The removal's phases from `start` on, each a step that is measured; returns their ids.

        like: the same phases of the run that this one is a control of, for those that found their strength.
        """
        current = start
        made: list[str] = []
        phases = method.steps() if hasattr(method, "steps") else [(removal.name, method)]
        clean = " (clean pairs)" if place.control == "clean-same-schedule" else ""
        for number, (name, phase) in enumerate(phases):
            shown = (name if len(phases) > 1 else removal.id) + clean
            run = like[number] if like else ""
            current = self._transform(shown, phase, current, place.seed, removal, base=base, like=run)
            made.append(current)
            stage = stage_name(name, number, len(phases))
            self._making(current, dataclasses.replace(place, stage=stage))
            self._measure_all(current, dataclasses.replace(place, stage=stage), keys, before)
        return made

    def _revival(self, model: str, place: Place, keys: str, before: str | None) -> None:
        revive = build(registry.find("finetune", "removals"), "revival")
        revived = self._transform("revival", revive, model, place.seed, None)
        where = dataclasses.replace(place, stage="revived")
        self._making(revived, where)
        self._measure_all(revived, where, keys, before)

    def _sibling(self, model: ModelSpec, base: str, seed: int) -> str:
        cls = registry.find("finetune", "removals")
        method = build(cls, "toy") if model.path == "toy" else build(cls, None, {"part": "recover"})
        return self._transform("sibling", method, base, seed + SIBLING_SEED, None)

    def _negative(self, model: str, place: Place, keys: str, control: str, stage: str) -> None:
        where = dataclasses.replace(place, control=control, stage=stage)
        self._measure_all(model, where, keys, only=("hit-rate",))

    def _other_owner(self, given: MethodSpec, base: str, seed: int) -> str:
        method = instance_of(given, "implants")
        return self._add(
            "keys",
            f"another owner's {given.id}",
            method,
            base,
            seed,
            given,
            key_seed=derived_seed(seed, f"another owner {given.id}"),
        )

    def _measure_all(
        self,
        model: str,
        place: Place,
        keys: str | None,
        before: str | None = None,
        *,
        keyed: bool | None = None,
        only: tuple[str, ...] = (),
    ) -> str | None:
        """Plan every measure of a checkpoint; returns the step of its ordinary answers, if they are asked."""
        answers = None
        for given, method in self.measures:
            wants_keys = getattr(method, "keyed", _name_of(method) in KEYED)
            if (keyed and not wants_keys) or (keys is None and wants_keys) or (only and _name_of(method) not in only):
                continue
            asks = hasattr(method, "given")
            name = f"{given.id}: {self._name(model)}"
            if keys is not None and wants_keys and not self._name(model).startswith(self._name(keys)):
                name += f", keys of {self._name(keys)}"
            step = self._add(
                "measure",
                name,
                method,
                model,
                0,
                given,
                keys=keys if wants_keys else None,
                before=before if asks else None,
            )
            answers = step if asks else answers
            found = dataclasses.replace(place, step=step)
            if found not in self.plan.places:
                self.plan.places.append(found)
        return answers

    # -- steps ---------------------------------------------------------------------------------------

    def _transform(
        self,
        name: str,
        method: Any,
        model: str,
        seed: int,
        given: MethodSpec | None,
        *,
        base: str = "",
        key_seed: int | None = None,
        like: str = "",
    ) -> str:
        first = model.startswith("model:") and len(self.spec.seeds) > 1
        shown = f"{self._name(model)} > {name}" + (f" (seed {seed})" if first else "")
        inputs: dict[str, str] = {}
        for field_name in input_fields(type(method)):
            if input_type(type(method), field_name) != "Checkpoint":
                continue
            wanted = given.settings.get(field_name) if given is not None else None
            if field_name == "schedule":  # what a run found; only its controls are given one
                if like:
                    inputs[field_name] = like
            elif wanted is not None:
                inputs[field_name] = f"model:{wanted}"
            elif field_name == "adapter" and hasattr(method, "train_adapter"):
                inputs[field_name] = self._add(
                    "adapter", f"{self._name(base)} > adapter of {name}", method, base, seed, given
                )
            else:
                inputs[field_name] = base
        return self._add("transform", shown, method, model, seed, given, key_seed=key_seed, inputs=inputs)

    def _add(
        self,
        kind: str,
        name: str,
        method: Any,
        model: str,
        seed: int,
        given: MethodSpec | None,
        *,
        key_seed: int | None = None,
        keys: str | None = None,
        before: str | None = None,
        inputs: dict[str, str] | None = None,
    ) -> str:
        data = self._data(method, kind, given)
        method_name = _name_of(method)
        identity = {
            "kind": kind,
            "method": method_name,
            "parameters": settings_of(method),
            "code": code_version(type(method)),
            "seed": seed,
            "key_seed": key_seed,
            "model": self._identity(model),
            "keys": keys,
            "before": before,
            "data": self.data_digests[data] if data else None,
            "inputs": {n: self._identity(r) for n, r in (inputs or {}).items()},
            "text": self._text_digest if kind == "measure" else None,
        }
        id = hashlib.sha256(canonical_json(identity).encode()).hexdigest()
        if id not in self.plan.steps:
            self.names[id] = name
            self.plan.steps[id] = Step(
                id,
                kind,
                name,
                method_name,
                method,
                model,
                seed,
                key_seed,
                keys,
                before,
                tuple(sorted((inputs or {}).items())),
                data,
            )
        return id

    def _data(self, method: Any, kind: str, given: MethodSpec | None) -> tuple[str, ...]:
        """Names of the data sets a step reads; loaded once, so that a wrong file is found before the run."""
        takes = [n for n in input_fields(type(method)) if input_type(type(method), n) == "Dialogues"]
        if not takes and kind != "measure":
            return ()
        own = given.settings.get(takes[0]) if given is not None and takes else None
        names = tuple(self.spec.data) if own is None else tuple([own] if isinstance(own, str) else own)
        if names not in self.plan.data:
            self.plan.data[names] = load_dialogues([expanded(n) for n in names])
            self.data_digests[names] = self.plan.data[names].digest()
        return names

    @functools.cached_property
    def _text_digest(self) -> str | None:
        return hashlib.sha256(Path(expanded(self.spec.text)).read_bytes()).hexdigest() if self.spec.text else None

    def _model(self, id: str, path: str) -> None:
        if id not in self.plan.models:
            try:
                found = resolve(expanded(path))
            except BadInput as error:
                raise BadInput(f"{self.spec.source}: models: {id}: {error}") from None
            self.plan.models[id] = dataclasses.replace(found, name=id)
            self.digests[f"model:{id}"] = found.digest()

    def _identity(self, reference: str) -> str:
        return self.digests.get(reference, reference)

    def _making(self, step: str, place: Place) -> None:
        found = dataclasses.replace(place, step=step)
        if found not in self.plan.makings:
            self.plan.makings.append(found)

    def _name(self, reference: str) -> str:
        return reference.removeprefix("model:") if reference.startswith("model:") else self.names[reference]

    def _note(self, line: str) -> None:
        if line not in self.plan.notes:
            self.plan.notes.append(line)


def _name_of(method: Any) -> str:
    info = getattr(method, "info", None)
    return str(info.name) if info is not None else type(method).__name__


def clean_same_schedule(method: Any) -> Any | None:
    """The same removal with every pair keeping its own answer, or None where it mismatches nothing."""
    fields = {f.name for f in dataclasses.fields(method)}
    return dataclasses.replace(method, pairing="matched") if "pairing" in fields else None


def stage_name(phase: str, number: int, phases: int) -> str:
    """The table's column for a phase: `x-erase` is erased, `x-recover` recovered; a single phase is erased."""
    for ending, stage in (("erase", "erased"), ("recover", "recovered")):
        if phase.endswith(ending):
            return stage
    return "erased" if phases == 1 or number == 0 else phase
