"""HuRef: similarity of the invariant terms of two models' last layers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.measures.intrinsic.invariants import last_layers, layer_terms, opened, rows_for
from palimpsest.measures.intrinsic.stored import StoredModel
from palimpsest.measures.intrinsic.terms import pearson
from palimpsest.measures.subject import Subject
from palimpsest.merging.reading import RowNumbers
from palimpsest.method import Context, method, param, takes
from palimpsest.records import Record


@method("measures", "huref", paper="HuRef, arXiv 2312.04828, section 4")
@dataclass(frozen=True)
class HuRef:
    """Invariant-terms cosine similarity (ICS) of suspect and original, from the weights alone.

    Terms of the last two layers on K tokens (`terms` has the formulas); each is standardised and flattened, and ICS is
    the cosine of all of them, that is the mean of their correlations (as the released code does it). About 1 for
    models of one base, about 0 for independent ones. It says `same base`, never whose fine-tune: see `lineage`.

    Differences to the released code. Tokens: it takes the 4,096 rarest of those that occur in the English Wikipedia;
    here the order of the tokenizer stands for frequency and no corpus is needed. `folded` (default): norm gains and
    biases are folded in, grouped queries are summed by group, rotary models get a fourth term, and a gate and its up
    projection are multiplied as they meet in the layer, so that the terms hold under a rotation of the residual stream.
    `published`: raw weights, and gate times up element by element, which only permutations of the stream leave alone.
    Not taken over: the split of GPT-NeoX's fused projection into thirds, which mixes queries, keys and values.

    Threat model: the thief knows the method and changes the weights without changing what the model does.
    """

    original: Checkpoint | None = takes("the model that the suspect may come from")
    tokens: int = param(4096, "tokens K that the terms are taken on (4096 in the paper)", low=2)
    choice: Literal["rare", "frequent", "spread"] = param(
        "rare", "which tokens, by their number: rare, frequent, spread"
    )
    layers: int = param(2, "how many of the last layers (2 in the paper); 0: all", low=0)
    form: Literal["folded", "published"] = param("folded", "what is multiplied: folded, or the paper's published")

    @classmethod
    def published(cls) -> HuRef:
        """The paper's terms from raw weights."""
        return cls(form="published")

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """`similarity` of task huref; detail has each term's correlation. BadInput where terms are not defined."""
        if self.original is None:
            raise BadInput("huref: needs the original to compare with: --original")
        began = time.monotonic()
        with opened([subject.checkpoint, self.original], ctx.threads) as models:
            rows = rows_for(models, self.tokens, self.choice)
            found = correlations(models[0], models[1], rows, self.layers, self.form, ctx)
        if not found:
            raise BadInput(f"huref: {subject.checkpoint.name} and {self.original.name} have no term in common")
        detail = {
            "original": self.original.name,
            "tokens": len(rows[0]),
            "choice": self.choice,
            "form": self.form,
            "terms": {name: round(value, 6) for name, value in found.items()},
        }
        value = sum(found.values()) / len(found)
        seconds = time.monotonic() - began
        return [subject.record("similarity", value=value, task="huref", seconds=seconds, detail=detail)]


def correlations(
    suspect: StoredModel,
    original: StoredModel,
    rows: list[RowNumbers],
    layers: int,
    form: Literal["folded", "published"],
    ctx: Context,
) -> dict[str, float]:
    """Correlation of each term that both have, named `term-layer` counted from the end. rows: of suspect and original.

    A term that only one of two architectures has is left out. Two layers' terms are held, (tokens, tokens) each.
    """
    found = {}
    mine, theirs = last_layers([suspect, original], layers)
    with ctx.progress.task("huref", len(mine)) as task:
        for a, b in zip(mine, theirs, strict=True):
            first = layer_terms(suspect, a, rows[0], form)
            second = layer_terms(original, b, rows[1], form)
            for name in first.keys() & second.keys():
                found[f"{name}{a - suspect.layers}"] = pearson(first[name], second[name])
            task.advance(1)
    return dict(sorted(found.items()))
