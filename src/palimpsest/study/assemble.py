"""From the steps' numbers to the study's records: each in its place, with what it cost and what it allows to claim."""

from __future__ import annotations

import copy
from typing import Any, Protocol

from palimpsest.keys import KeySet
from palimpsest.records import Record, collected_later, versions
from palimpsest.study.constraints import training_tokens
from palimpsest.study.entries import default_id
from palimpsest.study.judge import judge
from palimpsest.study.steps import Place, Plan

BESIDE = ("sibling", "same-data-sibling")  # controls that a measure of lineage looks at itself
SAID_OF_ITSELF = ("strength-search", "protection", "realignment")  # records of transforms that the report shows


class Steps(Protocol):
    """What says how the steps ended: a study's folder (`Store`) or its index."""

    def record(self, step: str) -> dict[str, Any] | None: ...
    def state(self, step: str) -> str: ...
    def step_records(self, step: str) -> list[Record]: ...


def key_facts(keys: KeySet) -> dict[str, Any]:
    """What may be public of a key set: sizes, the rule, the commitment."""
    return {
        "n": len(keys),
        "distinct": keys.distinct,
        "choices": keys.choices,
        "places": keys.places,
        "decoys": len(keys.decoys),
        "forms": list(keys.forms),
        "match": keys.match,
        "commitment": keys.commitment(),
    }


@collected_later()
def assemble(plan: Plan, store: Steps) -> list[Record]:
    """All records of the finished steps in their places, then costs, then verdicts and constraints."""
    names = {i.id: default_id(i.name) for i in plan.spec.marks}  # a plug-in by its class: no path
    found: list[Record] = []
    for place in plan.places:
        for record in store.step_records(place.step) if store.state(place.step) == "done" else []:
            found.append(_placed(record, place, names))
    for place in plan.makings:
        done = store.record(place.step)
        if done is not None and done["status"] == "done":
            found.append(_cost(done, place, names))
            said = (r for r in store.step_records(place.step) if r.measure in SAID_OF_ITSELF)
            found += [_placed(r, place, names) for r in said]
    tokens = {m.id: training_tokens(plan.models[plan.spec.root(m.id).id]) for m in plan.spec.targets}
    return [*found, *judge(found, plan.spec.alpha, tokens)]


def _placed(record: Record, place: Place, names: dict[str, str]) -> Record:
    placed = copy.copy(record)
    placed.model, placed.seed, placed.stage, placed.control = place.model, place.seed, place.stage, place.control
    if record.control == "clean-base":  # a measure that looked at the unmarked base beside its own model
        placed.stage, placed.control = "base", record.control
    elif record.control in BESIDE:  # ... or at siblings, as if each were the suspect
        placed.control = record.control
        placed.detail = {**record.detail, "beside": record.model}
    placed.implant = names.get(place.implant or "")
    placed.detail = {**placed.detail, "implant": place.implant, "removal": place.removal, "step": place.step[:16]}
    placed.detail = {k: v for k, v in placed.detail.items() if v is not None}
    return placed


def _cost(done: dict[str, Any], place: Place, names: dict[str, str]) -> Record:
    """What a step cost: seconds, tokens read (training, calibration), peak memory; what is public of its keys."""
    record = Record(
        "cost",
        value=done["seconds"],
        seconds=done["seconds"],
        tokens=done.get("tokens"),
        peak_bytes=done.get("peak_bytes"),
        grown_bytes=done.get("grown_bytes"),
        digest=done.get("digest"),
        chain=done.get("chain", []),
        device=done.get("device"),
        threads=done.get("threads"),
        versions=done.get("versions", versions()),
        task=done["method"],
        detail={name: done[name] for name in ("keys", "rows") if done.get(name) is not None},
    )
    return _placed(record, place, names)
