"""The grid of a study as a graph of steps, in which equal work stands once.

Two cells of the grid that need the same work name the same step (see `builder`): the marked model is made once
for all its removals, the erased model once for all its recoveries, an adapter or an expert once for all its
targets.

A `Place` says where in the tables the numbers of a measure belong; one step may have several places.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from palimpsest import registry
from palimpsest.errors import BadInput
from palimpsest.method import build, input_fields
from palimpsest.study import controls
from palimpsest.study.builder import PlanBuilder, name_of
from palimpsest.study.spec import FILLED, TOYS, MethodSpec, ModelSpec, StudySpec, input_type, instance_of
from palimpsest.study.steps import Place, Plan, PlannedStep, Through

KEYED = ("hit-rate", "rank", "token-forcing")  # measures that look for an implant; a class may say `keyed = True`
SIBLING_SEED = 1000  # added to the study's seed: a sibling is no twin of the marked model
EXPERT_SEED = 2000  # nor is an expert


def plan(spec: StudySpec) -> Plan:
    """Make the graph of a study; reads digests of models and data, loads no model. Raises BadInput."""
    return _Planner(spec).all()


def check(spec: StudySpec) -> list[PlannedStep]:
    """The steps that a run of this study would take, each once, with how many cells share it."""
    return plan(spec).listed()


def derived_seed(seed: int, what: str) -> int:
    """A seed of its own for `what`: 63 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(f"palimpsest study {seed} {what}".encode()).digest()[:8], "big") >> 1


@dataclasses.dataclass(frozen=True)
class _Asked:
    """How a checkpoint is measured: keys to look for, the step of earlier answers, the model before the removal,
    wrappers."""

    keys: str | None = None
    before: str | None = None
    original: str | None = None
    through: tuple[Through, ...] = ()


class _Planner(PlanBuilder):
    """The grid: which step every cell needs."""

    def __init__(self, spec: StudySpec) -> None:
        super().__init__(spec)
        self.measures = [(given, instance_of(given, "measures")) for given in spec.measures]

    def all(self) -> Plan:
        for model in self.spec.models:
            self.add_model(model.id, model.path)
        if "unrelated-model" in self.spec.negatives:
            self._unrelated()
        self._check_measures()
        for seed in self.spec.seeds:
            for model in self.spec.targets:
                self._of_model(model, seed)
        return self.plan

    def _check_measures(self) -> None:
        """What measures need beside the models, of every target: BadInput before anything runs."""
        for given, method in self.measures:
            for model in self.spec.targets if hasattr(method, "check") else ():
                try:
                    method.check(self.plan.models[model.id])
                except BadInput as error:
                    raise BadInput(f"{self.spec.source}: measures: {given.id}: {error}") from None

    # -- the grid ------------------------------------------------------------------------------------

    def _of_model(self, model: ModelSpec, seed: int) -> None:
        base = f"model:{model.id}"
        answers = self._measure_all(base, Place("", model.id, seed, "base"), _Asked())
        for given in self.spec.experts:
            expert = self._expert(given, base, seed)
            place = Place("", model.id, seed, "expert", control=f"expert {given.id}")
            self.making(expert, place)
            self._measure_all(expert, place, _Asked())
        sibling = None
        if "sibling" in self.spec.negatives:
            sibling = self._sibling(base, seed)
            self.making(sibling, Place("", model.id, seed, "base", control="sibling"))
        for given in self.spec.implants:
            marked = self._transform(
                given.id,
                instance_of(given, "implants"),
                base,
                seed,
                given,
                base=base,
                key_seed=derived_seed(seed, f"keys {model.id} {given.id}"),
            )
            place = Place("", model.id, seed, "fingerprinted", given.id)
            self.making(marked, place)
            clean = dataclasses.replace(place, stage="base", control="clean-base")
            self._measure_all(base, clean, _Asked(marked), keyed=True)
            before = self._measure_all(marked, place, _Asked(marked, answers))
            if sibling is not None:
                self._negative(sibling, place, marked, "sibling", "base")
            if "unrelated-model" in self.spec.negatives:
                self._negative(self._unrelated(), place, marked, "unrelated-model", "base")
            if "other-owner" in self.spec.negatives:
                others = self._other_owner(given, base, seed)
                self._negative(marked, place, others, "other-owner", "fingerprinted")
            for removal in self.spec.attacks:
                at = dataclasses.replace(place, removal=removal.id)
                method = instance_of(removal, "removals")
                asked = _Asked(marked, before, marked)
                if controls.wraps(method):
                    self._wrapped(removal, method, base, marked, at, asked)
                else:
                    self._attack(removal, method, base, marked, at, asked)

    def _wrapped(self, removal: MethodSpec, method: Any, base: str, marked: str, place: Place, asked: _Asked) -> None:
        """The marked model asked through a wrapper, and the unmarked base through the same one."""
        through = Through(
            removal.id,
            method,
            tuple(sorted(self._inputs(method, removal, "removals", base, place.seed).items())),
            self.data_of(method, "wrapper", removal),
        )
        there = dataclasses.replace(asked, through=(through,))
        self._measure_all(marked, dataclasses.replace(place, stage="wrapped"), there)
        asked_for = self._controls(removal)
        if "clean-base" in asked_for:
            clean = dataclasses.replace(place, stage="wrapped", control="clean-base")
            self._measure_all(base, clean, dataclasses.replace(there, before=None, original=base))
        left = [c for c in asked_for if c != "clean-base"]
        if left:
            self.note(f"{removal.id} changes no weight, so {', '.join(left)} cannot be run beside it")

    def _controls(self, removal: MethodSpec) -> list[Any]:
        """The controls that stand beside a removal."""
        return list(self.spec.controls if removal.controls is None else removal.controls)

    def _attack(self, removal: MethodSpec, method: Any, base: str, marked: str, place: Place, asked: _Asked) -> None:
        asked_for = self._controls(removal)
        made = self._phases(removal, method, base, marked, place, asked)
        if "revival" in asked_for:
            self._revival(made[-1], dataclasses.replace(place, control="revival"), asked)
        if "clean-same-schedule" in asked_for:
            matched = controls.clean_same_schedule(method)
            if matched is None:
                self.note(f"{removal.id} has no mismatched phase, so clean-same-schedule does not apply to it")
            else:
                control = dataclasses.replace(place, control="clean-same-schedule")
                self._phases(removal, matched, base, marked, control, asked, like=made)
        if "clean-same-distance" in asked_for:
            self._same_distance(removal, method, base, marked, place, asked, made)
        if "clean-base" in asked_for:  # the unmarked base through the same removal
            control = dataclasses.replace(place, control="clean-base")
            there = _Asked(marked, None, base)
            last = self._phases(removal, method, base, base, control, there, like=made)[-1]
            if "revival" in asked_for:
                self._revival(last, dataclasses.replace(control, stage="revived"), there)

    def _phases(
        self,
        removal: MethodSpec,
        method: Any,
        base: str,
        start: str,
        place: Place,
        asked: _Asked,
        *,
        like: Sequence[str] = (),
        first: int = 0,
    ) -> list[str]:
        """The removal's phases (from number `first`) on from `start`, each a step that is measured; their ids.

        like: the same phases of the run that this one is a control of, for those that found their strength.
        """
        current = start
        made: list[str] = []
        phases = controls.phases_of(method, removal.name)
        clean = " (clean pairs)" if place.control == "clean-same-schedule" else ""
        for number, (name, phase) in list(enumerate(phases))[first:]:
            shown = (name if len(phases) > 1 else removal.id) + clean
            run = like[number] if like else ""
            current = self._transform(shown, phase, current, place.seed, removal, base=base, like=run, place=place)
            made.append(current)
            self._stage(
                current, dataclasses.replace(place, stage=controls.stage_name(name, number, len(phases))), asked
            )
        return made

    def _same_distance(
        self, removal: MethodSpec, method: Any, base: str, marked: str, place: Place, asked: _Asked, made: Sequence[str]
    ) -> None:
        """Clean pairs until the erase phase's distance is reached, then the removal's own further phases."""
        phases = controls.phases_of(method, removal.name)
        control = controls.clean_same_distance(phases[0][1])
        if control is None:
            self.note(f"{removal.id} has no mismatched phase, so clean-same-distance does not apply to it")
            return
        at = dataclasses.replace(place, control="clean-same-distance")
        shown = f"{phases[0][0] if len(phases) > 1 else removal.id} (clean pairs, same distance)"
        current = self._transform(shown, control, marked, place.seed, removal, base=base, like=made[0])
        self._stage(current, dataclasses.replace(at, stage=controls.stage_name(phases[0][0], 0, len(phases))), asked)
        if len(phases) > 1:
            self._phases(removal, method, base, current, at, asked, first=1)

    def _stage(self, made: str, place: Place, asked: _Asked) -> None:
        self.making(made, place)
        self._measure_all(made, place, asked)

    def _revival(self, model: str, place: Place, asked: _Asked) -> None:
        revive = build(registry.find("finetune", "removals"), "revival")
        revived = self._transform("revival", revive, model, place.seed, None)
        self._stage(revived, dataclasses.replace(place, stage="revived"), asked)

    def _negative(self, model: str, place: Place, keys: str, control: str, stage: str) -> None:
        where = dataclasses.replace(place, control=control, stage=stage)
        self._measure_all(model, where, _Asked(keys), only=("hit-rate",))

    def _other_owner(self, given: MethodSpec, base: str, seed: int) -> str:
        key_seed = derived_seed(seed, f"another owner {given.id}")
        method = instance_of(given, "implants")
        return self.add("keys", f"another owner's {given.id}", method, base, seed, given, key_seed=key_seed)

    def _measure_all(
        self, model: str, place: Place, asked: _Asked, *, keyed: bool | None = None, only: tuple[str, ...] = ()
    ) -> str | None:
        """Plan every measure of a checkpoint; returns the step of its ordinary answers, if they are asked.

        Through a wrapper only what makes sense there; a measure that compares with the model before a removal only
        where there was one.
        """
        answers = None
        for given, method in self.measures:
            kind = name_of(method)
            wants_keys = getattr(method, "keyed", kind in KEYED)
            if (keyed and not wants_keys) or (asked.keys is None and wants_keys) or (only and kind not in only):
                continue
            if asked.through and not controls.answers_through(method, kind):
                continue
            if given.stages is not None and place.stage not in given.stages:
                continue
            if "original" in input_fields(type(method)) and asked.original is None:
                continue
            asks = hasattr(method, "given")
            name = f"{given.id}: {self.name(model)}" + "".join(f" through {t.name}" for t in asked.through)
            if asked.keys is not None and wants_keys and not self.name(model).startswith(self.name(asked.keys)):
                name += f", keys of {self.name(asked.keys)}"
            step = self.add(
                "measure",
                name,
                method,
                model,
                0,
                given,
                keys=asked.keys if wants_keys else None,
                before=asked.before if asks else None,
                inputs=self._inputs(
                    method, given, "measures", f"model:{place.model}", place.seed, original=asked.original
                ),
                through=asked.through,
            )
            answers = step if asks else answers
            self.measured(step, place)
        return answers

    # -- models that inputs name ---------------------------------------------------------------------

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
        place: Place | None = None,
    ) -> str:
        first = model.startswith("model:") and len(self.spec.seeds) > 1
        shown = f"{self.name(model)} > {name}" + (f" (seed {seed})" if first else "")
        inputs = self._inputs(method, given, "removals", base or model, seed, like=like, name=name, place=place)
        return self.add("transform", shown, method, model, seed, given, key_seed=key_seed, inputs=inputs)

    def _inputs(
        self,
        method: Any,
        given: MethodSpec | None,
        kind: str,
        base: str,
        seed: int,
        *,
        like: str = "",
        original: str | None = None,
        name: str = "",
        place: Place | None = None,
    ) -> dict[str, str]:
        """References of the models that a method takes: as the study names them, or as the graph fills them."""
        inputs: dict[str, str] = {}
        for field in input_fields(type(method)):
            if input_type(type(method), field) != "Checkpoint":
                continue
            wanted = given.settings.get(field) if given is not None else None
            if field in FILLED.get(kind, ()):  # `schedule`, `like`: only controls are given one
                filled = original if field == "original" else like
                if filled:
                    inputs[field] = filled
            elif wanted is not None:
                inputs[field] = self._named(str(wanted), base, seed)
            elif field == "adapter" and hasattr(method, "train_adapter"):
                own = given.settings.get("base") if given is not None else None
                on = self._named(str(own), base, seed) if own is not None else base
                inputs[field] = self.add("adapter", f"{self.name(on)} > adapter of {name}", method, on, seed, given)
                if place is not None:
                    self.making(inputs[field], dataclasses.replace(place, stage="adapter"))
            else:
                inputs[field] = base
        return inputs

    def _named(self, word: str, base: str, seed: int) -> str:
        """What a study calls `word`: one of its models or experts, or the base, its sibling, the unrelated model."""
        if any(m.id == word for m in self.spec.models):
            return f"model:{word}"
        expert = next((e for e in self.spec.experts if e.id == word), None)
        if expert is not None:
            return self._expert(expert, base, seed)
        return {"base": lambda: base, "sibling": lambda: self._sibling(base, seed), "unrelated": self._unrelated}[
            word
        ]()

    def _expert(self, given: MethodSpec, base: str, seed: int) -> str:
        method = instance_of(given, "experts")
        return self._transform(f"expert {given.id}", method, base, seed + EXPERT_SEED, given, base=base)

    def _sibling(self, base: str, seed: int) -> str:
        cls = registry.find("finetune", "removals")
        toy = self.spec.model(base.removeprefix("model:")).path in TOYS
        method = build(cls, "toy") if toy else build(cls, None, {"part": "recover"})
        return self._transform("sibling", method, base, seed + SIBLING_SEED, None)

    def _unrelated(self) -> str:
        return self.add_model("unrelated", self.spec.unrelated or "toy:unrelated")
