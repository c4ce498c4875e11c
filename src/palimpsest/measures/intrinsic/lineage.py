"""Lineage: is the suspect made from my fine-tune, and not only from the same base?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.measures.intrinsic.differences import NOTHING, Matrix, Shared, judge, shared
from palimpsest.measures.intrinsic.invariants import Terms, last_layers, layer_terms, opened, rows_for
from palimpsest.measures.intrinsic.stored import StoredModel
from palimpsest.measures.intrinsic.terms import cosine, pearson
from palimpsest.measures.subject import Subject
from palimpsest.method import Context, method, param, takes
from palimpsest.records import Record


@dataclass
class Differences:
    """Inner products of models' differences to the base, (models, models), by term; each model's mean correlation with
    the base over layers and terms."""

    grams: dict[str, Matrix] = field(default_factory=dict)
    correlations: list[float] = field(default_factory=list)

    @property
    def gram(self) -> Matrix:
        """Over all terms."""
        return np.sum(list(self.grams.values()), axis=0)  # type: ignore[no-any-return]


def unlike(base: StoredModel, model: StoredModel, layers: int) -> str:
    """Why a model's terms have no counterpart each in the base's; empty where they have."""
    kinds = [(bool(m.family.rotary_size(m.config)), bool(m.family.gate)) for m in (base, model)]
    names = f"{model.model.name} and {base.model.name}"
    if kinds[0] != kinds[1]:
        return f"{names} are of different architectures"
    if layers == 0 and base.layers != model.layers:
        return f"{names} have different numbers of layers ({model.layers} and {base.layers})"
    return ""


def differences(
    base: StoredModel, models: Sequence[StoredModel], tokens: int, choice: str, layers: int, ctx: Context
) -> Differences:
    """Differences of invariant terms, a layer at a time. Each term counts in units of its norm in the base.

    Held at once: a layer's terms of all models, (models + 1) x 4 matrices (tokens, tokens) in float32.
    """
    everyone = [base, *models]
    rows = rows_for(everyone, tokens, choice)  # type: ignore[arg-type]
    for model in models:
        if why := unlike(base, model, layers):
            raise BadInput(f"lineage: {why}; their differences cannot be compared (huref and reef can)")
    chosen = last_layers(everyone, layers)
    found = Differences()
    correlated: list[list[float]] = [[] for _ in models]
    with ctx.progress.task("lineage", len(chosen[0]) * len(everyone)) as task:
        for place in range(len(chosen[0])):
            ground = layer_terms(base, chosen[0][place], rows[0])
            task.advance(1)
            each: list[Terms] = []
            for number, model in enumerate(models):
                terms = layer_terms(model, chosen[number + 1][place], rows[number + 1])
                correlated[number] += [pearson(terms[name], ground[name]) for name in ground]
                each.append({name: (terms[name] - ground[name]).flatten() for name in ground})
                task.advance(1)
            for name, term in ground.items():
                vectors = torch.stack([e[name] for e in each]) / term.norm().clamp_min(1e-30)
                products = _products(vectors)
                found.grams[name] = found.grams[name] + products if name in found.grams else products
    found.correlations = [sum(c) / len(c) for c in correlated]
    return found


def _products(vectors: torch.Tensor, piece: int = 1 << 20) -> Matrix:
    """Inner products of rows, summed in float64."""
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for first in range(0, vectors.shape[1], piece):
        part = vectors[:, first : first + piece].double()
        total += part @ part.T
    return total.numpy()


@method("measures", "lineage", paper="differences of HuRef's terms (arXiv 2312.04828) to the base: our own")
@dataclass(frozen=True)
class Lineage:
    """Is the suspect a derivative of my model, or only another descendant of the same base?

    Raw similarity (HuRef, REEF) is near 1 for every descendant of a base. Here I(suspect) - I(base) is compared with
    I(original) - I(base), I being the invariant terms of all layers, so that changes of the weights that leave the
    function alone do not hide it. Statistics and null: `differences`. Verdict `derivative` only against at least five
    twins (models of the base tuned on the owner's data with other seeds, by his recipe), and only where the same rule
    calls no twin and no sibling on other data a derivative; else `same-base`, or `not-shown` for another base.

    Threat model: the thief took the owner's model and tunes, prunes, quantises, merges or re-gauges it; he knows the
    method. He does not distil it: a student that was started from another base, or from the base on the owner's
    answers, is not made from the owner's weights and is not found.
    """

    original: Checkpoint | None = takes("my model, tuned from the base")
    base: Checkpoint | None = takes("the public base of both")
    siblings: tuple[Checkpoint, ...] = takes("models of the base tuned on other data")
    twins: tuple[Checkpoint, ...] = takes("models of the base tuned on my data with other seeds")
    tokens: int = param(1024, "tokens that the terms are taken on", low=2)
    choice: Literal["rare", "frequent", "spread"] = param("spread", "tokens by their number: rare, frequent, spread")
    layers: int = param(0, "how many of the last layers; 0: all", low=0)
    alpha: float = param(0.01, "false-claim rate of the verdict derivative", low=1e-9, high=0.5)

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """`similarity` of tasks lineage (cosine) and lineage-share for the suspect and each control, and the verdict.

        A suspect of another architecture or depth has the verdict alone. Raises BadInput without original or base, for
        controls of another architecture or depth, and where the original is the base.
        """
        if self.original is None or self.base is None:
            raise BadInput("lineage: compares differences to the base: give --original and --base")
        began = time.monotonic()
        twins, siblings = list(self.twins or ()), list(self.siblings or ())
        asked = [self.original, *twins, *siblings, subject.checkpoint]
        with opened([self.base, *asked], ctx.threads) as (base, *models):
            if why := unlike(base, models[-1], self.layers):
                reason = f"No descendant of this base: {why}."
                return [subject.record("lineage", verdict="not-shown", reason=reason)]
            found = differences(base, models, self.tokens, self.choice, self.layers, ctx)
        gram = found.gram
        if gram[0, 0] ** 0.5 < NOTHING:
            raise BadInput(f"lineage: {self.original.name} does not differ from {self.base.name}: nothing to look for")
        last = len(asked) - 1
        own, others = range(1, 1 + len(twins)), range(1 + len(twins), last)

        def of(number: int) -> Shared:
            return shared(gram, number, 0, own, others)

        suspect, controls = of(last), [of(number) for number in (*own, *others)]
        records = self._records(subject, subject.checkpoint, suspect, None, _by_term(found, last))
        records[0].seconds = time.monotonic() - began
        nothing = subject.record(
            "similarity", task="lineage", detail={"norm": 0.0}, reason="the base does not differ from itself"
        )
        nothing.model, nothing.digest, nothing.chain = self.base.name, self.base.digest(), self.base.chain()
        nothing.control = "clean-base"
        records.append(nothing)
        for model, control, number in zip([*twins, *siblings], controls, (*own, *others), strict=True):
            name = "same-data-sibling" if number in own else "sibling"
            records += self._records(subject, model, control, name, _by_term(found, number))
        verdict = judge(suspect, controls, found.correlations[last], self.alpha)
        detail = {
            "alpha": self.alpha,
            "correlation": found.correlations[last],
            "rank_p": suspect.rank_p,
            "original": self.original.name,
            "base": self.base.name,
        }
        records.append(
            subject.record("lineage", value=suspect.t_p, verdict=verdict.word, reason=verdict.reason, detail=detail)
        )
        return records

    def _records(
        self, subject: Subject, model: Checkpoint, found: Shared, control: str | None, terms: dict[str, float]
    ) -> list[Record]:
        """The cosine and the share of one model."""
        detail = {"norm": found.norm, "tokens": self.tokens, "terms": terms}
        shares = {"twins": list(found.twins), "t_p": found.t_p, "rank_p": found.rank_p}
        records = [
            subject.record("similarity", value=found.cosine, task="lineage", control=control, detail=detail),
            subject.record("similarity", value=found.share, task="lineage-share", control=control, detail=shares),
        ]
        for record in records:
            record.model, record.digest, record.chain = model.name, model.digest(), model.chain()
        return records


def _by_term(found: Differences, number: int) -> dict[str, float]:
    """Cosine of a model's difference with the owner's, term by term."""
    return {
        name: round(cosine(float(g[number, 0]), float(g[number, number]), float(g[0, 0])), 6)
        for name, g in found.grams.items()
    }
