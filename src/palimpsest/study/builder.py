"""What makes the plan of a study grow: a step is added once, whoever needs it.

A step's identity is the SHA-256 of its method, its parameters, the hash of the method's source module, its
seed, and the identities of its inputs (a digest for models and data, an identity for earlier steps), of the
wrappers that it asks through as well.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palimpsest.checkpoint import resolve
from palimpsest.data import LabelledItems, load_dialogues
from palimpsest.errors import BadInput
from palimpsest.method import input_fields, settings_of
from palimpsest.records import canonical_json
from palimpsest.study import classifiers, suspects
from palimpsest.study.checking import DATA, input_type
from palimpsest.study.classifiers import LABELLED, TEXTS, Kind
from palimpsest.study.entries import MethodSpec
from palimpsest.study.paths import expanded
from palimpsest.study.spec import StudySpec
from palimpsest.study.steps import Place, Plan, Step, Through
from palimpsest.study.toy_encoder import NAME as TOY_ENCODER
from palimpsest.study.toy_encoder import toy_encoder


def code_version(*classes: type) -> str:
    """SHA-256 of the source modules of method classes and of those that they inherit from."""
    sources = dict.fromkeys(inspect.getsourcefile(c) for cls in classes for c in cls.__mro__ if c is not object)
    if None in sources:
        return "unknown"
    return hashlib.sha256(b"".join(Path(s).read_bytes() for s in sources if s)).hexdigest()


def name_of(method: Any) -> str:
    """The registered name of a method instance."""
    info = getattr(method, "info", None)
    return str(info.name) if info is not None else type(method).__name__


class PlanBuilder:
    """Steps, their names and identities; every `add` either finds the step already there or appends it."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self.plan = Plan(spec)
        self.digests: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.data_digests: dict[tuple[str, ...], str] = {}
        self.placed: set[tuple[str, Place]] = set()

    def add(
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
        through: Sequence[Through] = (),
    ) -> str:
        """The id of the step that does this work."""
        data = self.data_of(method, kind, given, self.kind_of(model), model)
        identity = {
            "kind": kind,
            **self._what(method, inputs or {}, data),
            "seed": seed,
            "key_seed": key_seed,
            "model": self.identity(model),
            "keys": keys,
            "before": before,
            "text": self._text_digest if kind == "measure" else None,
            "through": [self._what(t.method, dict(t.inputs), t.data) for t in through],
        }
        id = hashlib.sha256(canonical_json(identity).encode()).hexdigest()
        if id not in self.plan.steps:
            self.names[id] = name
            self.plan.steps[id] = Step(
                id,
                kind,
                name,
                name_of(method),
                method,
                model,
                seed,
                key_seed,
                keys,
                before,
                tuple(sorted((inputs or {}).items())),
                data,
                tuple(through),
            )
        return id

    def _what(self, method: Any, inputs: dict[str, str], data: tuple[str, ...]) -> dict[str, Any]:
        """What a method does, as far as its results depend on it."""
        return {
            "method": name_of(method),
            "parameters": settings_of(method),
            "code": code_version(type(method), *(method.uses() if hasattr(method, "uses") else ())),
            "inputs": {n: self.identity(r) for n, r in inputs.items()},
            "data": self.data_digests[data] if data else None,
        }

    def data_of(
        self, method: Any, kind: str, given: MethodSpec | None, of: Kind = "text", model: str = ""
    ) -> tuple[str, ...]:
        """Names of the data sets a step reads; loaded once, so that a wrong file is found before the run.

        of: what the step's model answers with; where that is labels the data are labelled items. model: the step's, for
        suspects that follow from it.
        """
        wanted = DATA if of != "text" else DATA[:1]
        takes = [n for n in input_fields(type(method)) if input_type(type(method), n) in wanted]
        if not takes and kind != "measure":
            return ()
        own = given.settings.get(takes[0]) if given is not None and takes else None
        where = "data" if own is None or given is None else f"{given.id}: {takes[0]}"
        names = tuple(self.spec.data) if own is None else tuple([own] if isinstance(own, str) else own)
        if of != "text":
            return self._searched(method, names, where, model)
        if names not in self.plan.data:
            try:
                self.plan.data[names] = load_dialogues([expanded(n) for n in names])
            except BadInput as error:
                raise BadInput(f"{self.spec.source}: {where}: {str(error).removeprefix('--data ')}") from None
            self.data_digests[names] = self.plan.data[names].digest()
        return names

    def _searched(self, method: Any, references: tuple[str, ...], where: str, model: str) -> tuple[str, ...]:
        """Labelled items, and where a word asks for it the suspects that the model's own training gives."""
        word, files = suspects.word_in(references), suspects.without_word(references)
        labels = not getattr(type(method), "unlabelled", False) or files == tuple(self.spec.data)
        names = self._labelled(files or tuple(self.spec.data), where, labels)
        if not word:
            return names
        try:
            if not hasattr(method, "check_search") or references == tuple(self.spec.data):
                raise BadInput(f"suspect={word}: belongs to the data of a removal that searches with suspects (gms)")
            more = (*names, suspects.name_of(self.plan, word, model))
        except BadInput as error:
            raise BadInput(f"{self.spec.source}: {where}: {error}") from None
        self.plan.data[more] = self.plan.data[names]
        self.data_digests[more] = f"{self.data_digests[names]} and {more[-1]}"
        return more

    def _labelled(self, references: tuple[str, ...], where: str, labels: bool = True) -> tuple[str, ...]:
        """Labelled items, what the study asks held out of them; their name in the plan.

        labels: whether each item must have its own.
        """
        names = (LABELLED if labels else TEXTS, *references)
        if names in self.plan.data:
            return names
        dropped = 0
        try:
            if references == tuple(self.spec.data):
                items = classifiers.read([expanded(n) for n in references])
            else:
                study = self.plan.data[self._labelled(tuple(self.spec.data), "data")]
                assert isinstance(study, LabelledItems)
                items, dropped = classifiers.read_own([expanded(n) for n in references], study, labels)
        except BadInput as error:
            raise BadInput(f"{self.spec.source}: {where}: {str(error).removeprefix('--data ')}") from None
        if dropped:
            self.note(f"{where}: {dropped} items that the study holds out are not trained on")
        self.plan.data[names], self.data_digests[names] = items, items.digest()
        return names

    def kind_of(self, reference: str) -> Kind:
        """Whether a model of the study answers with text or labels, or is an encoder without a head."""
        return classifiers.kind_in(self.plan, reference)

    @functools.cached_property
    def _text_digest(self) -> str | None:
        return hashlib.sha256(Path(expanded(self.spec.text)).read_bytes()).hexdigest() if self.spec.text else None

    def add_model(self, id: str, path: str) -> str:
        """The reference of a model that a study names; checked here. Raises BadInput."""
        if id not in self.plan.models:
            try:
                found = resolve(toy_encoder() if path == TOY_ENCODER else expanded(path))
            except BadInput as error:
                raise BadInput(f"{self.spec.source}: models: {id}: {error}") from None
            self.plan.models[id] = dataclasses.replace(found, name=id)
            self.digests[f"model:{id}"] = found.digest()
        return f"model:{id}"

    def identity(self, reference: str) -> str:
        """What a reference stands for: a model's digest, or the step itself."""
        return self.digests.get(reference, reference)

    def making(self, step: str, place: Place) -> None:
        """Show what the step cost at a place."""
        self._place("making", step, place, self.plan.makings)

    def measured(self, step: str, place: Place) -> None:
        """Show the numbers of the step at a place."""
        self._place("measured", step, place, self.plan.places)

    def _place(self, why: str, step: str, place: Place, places: list[Place]) -> None:
        found = dataclasses.replace(place, step=step)
        if (why, found) not in self.placed:
            self.placed.add((why, found))
            places.append(found)

    def name(self, reference: str) -> str:
        """What people call a reference."""
        return reference.removeprefix("model:") if reference.startswith("model:") else self.names[reference]

    def note(self, line: str) -> None:
        """Keep a remark for the report, once."""
        if line not in self.plan.notes:
            self.plan.notes.append(line)
