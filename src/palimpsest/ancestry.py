"""`verify --original`: what two models' weights and hidden states say of a common origin, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest import preflight
from palimpsest.calls import DEFAULT_RUN, Result, Run, complete
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.data import load_dialogues
from palimpsest.errors import BadInput
from palimpsest.method import build
from palimpsest.records import Record
from palimpsest.through import shared_out

MEASURES = ("weight-cosine", "huref", "reef", "lineage")


def verify_original(
    model: str | Path | Checkpoint,
    original: str | Path | Checkpoint,
    *,
    base: str | Path | Checkpoint | None = None,
    against: Sequence[str | Path | Checkpoint] = (),
    twins: Sequence[str | Path | Checkpoint] = (),
    states: bool = True,
    settings: Mapping[str, Any] | None = None,
    data: Sequence[str | Path] = (),
    alpha: float = 0.01,
    run: Run = DEFAULT_RUN,
) -> Result:
    """Compare a suspect with a model of one's own that carries no mark: weights, invariant terms, hidden states.

    base: the public base of both; with it the differences to it are compared (`lineage`), and the verdict may be
    `derivative`. against: siblings on other data, controls. twins: models of the base tuned on the owner's data with
    other seeds, the null of the verdict. states: also compare hidden states (`reef`), for which both models are loaded.
    settings: parameters of the measures, `huref.tokens`. data: dialogues whose test questions are `reef`'s prompts.
    """
    from palimpsest import judging
    from palimpsest.measures.intrinsic.huref import HuRef
    from palimpsest.measures.intrinsic.lineage import Lineage
    from palimpsest.measures.intrinsic.reef import Reef
    from palimpsest.measures.intrinsic.weight_cosine import WeightCosine

    suspect, mine = resolve(model), resolve(original)
    ground = resolve(base) if base is not None else None
    siblings, seeds = tuple(map(resolve, against)), tuple(map(resolve, twins))
    if ground is None and seeds:
        raise BadInput("--twin: is compared by its difference to the base: give --base")
    set_for = shared_out((settings or {}).items(), ".", [], list(MEASURES), "--set")
    inputs = {"original": mine}
    dialogues = load_dialogues(data) if data else None
    weights = build(WeightCosine, settings=set_for["weight-cosine"], inputs={**inputs, "base": ground})
    huref = build(HuRef, settings=set_for["huref"], inputs=inputs)
    reef = build(Reef, settings=set_for["reef"], inputs={**inputs, "data": dialogues})
    lineage = build(
        Lineage,
        settings={"alpha": alpha, **set_for["lineage"]},
        inputs={**inputs, "base": ground, "siblings": siblings, "twins": seeds},
    )
    controls: list[tuple[str, Checkpoint]] = [("clean-base", ground)] if ground is not None else []
    controls += [("same-data-sibling", s) for s in seeds] + [("sibling", s) for s in siblings]
    measures: list[Any] = [weights, huref, *([reef] if states else [])]
    records: list[Record] = []
    with run.context() as ctx:
        if states:
            preflight.before_asking([suspect, mine, *(c for _, c in controls)], ctx)
        for control, checkpoint in [(None, suspect), *controls]:
            with judging.measured(checkpoint, ctx) as subject:
                for measure in measures:
                    records += judging.staged(measure.take(subject, ctx), None, control)
        with judging.measured(suspect, ctx) as subject:
            records += lineage.take(subject, ctx) if ground is not None else [_of_base(subject, records)]
    return Result(complete(records, ctx))


def _of_base(subject: Any, records: Sequence[Record]) -> Record:
    """The verdict where no base was given: raw similarity says `same-base` at most."""
    from palimpsest.measures.intrinsic.differences import SAME_BASE

    similar = next(r.value for r in records if r.task == "huref" and r.control is None)
    assert similar is not None
    same = similar >= SAME_BASE
    word = "same-base" if same else "not-shown"
    reason = (
        f"Invariant terms correlate {similar:.3f} ({SAME_BASE} and more counts as one base; unrelated models are near "
        "0). Raw similarity is as high for every descendant of a base: whether it is made from mine needs --base and "
        "at least five --twin."
        if same
        else f"Invariant terms correlate {similar:.3f}, below {SAME_BASE}: no common origin is shown."
    )
    return subject.record("lineage", verdict=word, reason=reason)  # type: ignore[no-any-return]
