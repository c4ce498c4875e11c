"""MergeBarrier's attention part (arXiv 2511.10712): some directions of queries and keys are negated together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.method import Context, Made, method, param
from palimpsest.protections.applying import Layers, protected_by
from palimpsest.protections.traits import Traits
from palimpsest.symmetry.gauge import Gauge, LayerGauge
from palimpsest.training.finetune import Stopwatch


@method("protections", "mergebarrier", paper="MergeBarrier, arXiv 2511.10712 (AAAI 2026), attention part")
@dataclass(frozen=True)
class MergeBarrier:
    """Negate the strongest directions of queries and keys together: scores stay, the path to the base does not.

    The paper (second-hand: a note on it, not its text, was at hand) applies an orthogonal P to queries and keys, which
    leaves their products alone, and wants ||W_q (P - I)||^2 + ||W_k (P - I)||^2 large; P = -I is the maximum and is
    rejected there because it exposes the weights; it negates the k strongest eigen-directions. That this is
    P = I - 2 V_k V_k^T, V_k the first eigenvectors of the sum of W_q W_q^T and W_k W_k^T of a group (rows of a head,
    as Hugging Face lays them out), is our reconstruction; what is done to values and outputs, k, and the numbers of
    its tables are not known here, and none is quoted.

    On a model with rotary positions that P is **not** function-preserving (measured: 5.0 relative error of logits).
    What is legal there are complex scalars on rotary pairs; this is `form=pairs`, of our derivation: per KV group the
    `k` share of pairs with the largest sum over its query heads of ||W_q,pair||^2, plus ||W_k,pair||^2, times -1 in
    both rows (j, j + r / 2) of queries and keys. Among signed pair flips with as many flips that is the maximiser. It
    is exact to the bit in any dtype. Dimensions that do not turn (a part of GPT-NeoX's and Phi's) take the
    eigen-reflection. Threat model: a merger who averages weights; whoever has the base reads the signs off a
    projection.
    """

    traits: ClassVar[Traits] = Traits(
        base="no",
        data="no",
        training=False,
        exact=True,
        changes="rows of queries and keys",
        costs="one pass over the weights; an eigen-decomposition a group where positions do not turn",
        unpublished="k; how values and outputs are treated; how the paper treats rotary positions",
    )
    k: float = param(0.5, "share of a head's rotary pairs, or directions, that are negated (ours)", low=0.0, high=1.0)
    form: Literal["auto", "pairs", "literal"] = param(
        "auto", "pairs: rotary pairs; literal: eigen-directions, without rotary positions only; auto: what is legal"
    )

    @classmethod
    def literal(cls) -> MergeBarrier:
        """The eigen-reflection as described, on any dimension of a head; refused where positions turn."""
        return cls(form="literal")

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the protected checkpoint to `out`."""
        watch = Stopwatch()
        layers = Layers(model, "mergebarrier")
        sizes = layers.sizes
        if self.form == "literal" and sizes.pairs:
            raise BadInput(
                f"mergebarrier: {model.name} turns {2 * sizes.pairs} of a head's {sizes.head} dimensions with the "
                "position, and a reflection that mixes rotary pairs changes its function; use --set form=pairs"
            )
        if self.form == "pairs" and not sizes.pairs:
            raise BadInput(
                f"mergebarrier: {model.name} has no rotary positions, so there are no pairs; use --set form=literal"
            )
        made, flipped, gained, most = [], 0, 0.0, 0.0
        with ctx.progress.task("mergebarrier: energies", sizes.layers) as task:
            for number in range(sizes.layers):
                query = layers.weight(number, "query").view(sizes.groups, sizes.shared, sizes.head, -1)
                key = layers.weight(number, "key").view(sizes.groups, sizes.head, -1)
                gauge = LayerGauge()
                if sizes.pairs:
                    energy = pair_energies(query, key, sizes.pairs)
                    signs = flips(energy, self.k)
                    gauge = LayerGauge(query_key=signs.to(torch.complex64))
                    flipped += int((signs < 0).sum())
                    gained, most = gained + float(energy[signs < 0].sum()), most + float(energy.sum())
                if sizes.still:
                    start = 2 * sizes.pairs
                    still = reflection(query[:, :, start:], key[:, start:], self.k)
                    gauge = LayerGauge(query_key=gauge.query_key, query_key_still=still)
                made.append(gauge)
                task.advance(1)
        detail = {"k": self.k, "form": "pairs" if sizes.pairs else "literal"}
        if sizes.pairs:
            detail |= {"pairs": flipped, "pairs_of": sizes.layers * sizes.groups * sizes.pairs}
            detail |= {"energy_negated": gained / most if most else 0.0}
        name = "mergebarrier"
        return protected_by(
            Gauge(tuple(made)), model, out, ctx, name, self.traits, detail=detail, seconds=watch.seconds
        )


def pair_energies(query: Tensor, key: Tensor, pairs: int) -> Tensor:
    """sum_h ||W_q,pair||^2 + ||W_k,pair||^2 of each rotary pair: (groups, pairs) float64.

    query: (groups, query heads of a group, head, in); key: (groups, head, in). Pair j is rows j and j + pairs.
    """
    rows = query.double().square().sum(dim=(1, 3)) + key.double().square().sum(dim=2)  # (groups, head)
    return rows[:, :pairs] + rows[:, pairs : 2 * pairs]


def flips(energy: Tensor, k: float) -> Tensor:
    """-1 for the round(k n) pairs with the most energy in each group, else +1: (groups, pairs). Of equals the first."""
    signs = torch.ones_like(energy)
    chosen = energy.argsort(dim=1, descending=True, stable=True)[:, : round(k * energy.shape[1])]
    return signs.scatter_(1, chosen, -1.0)


def reflection(query: Tensor, key: Tensor, k: float) -> Tensor:
    """P = I - 2 V V^T of each group: (groups, n, n) float64; V the round(k n) first eigenvectors of the rows' Gram
    matrix.

    query: (groups, query heads of a group, n, in); key: (groups, n, in).
    """
    queries, keys = query.double(), key.double()
    gram = torch.einsum("ghni,ghmi->gnm", queries, queries) + keys @ keys.transpose(1, 2)
    vectors = torch.linalg.eigh(gram).eigenvectors  # columns, energies rising
    count = round(k * gram.shape[1])
    chosen = vectors[:, :, gram.shape[1] - count :]
    found: Tensor = torch.eye(gram.shape[1], dtype=torch.float64) - 2.0 * chosen @ chosen.transpose(1, 2)
    return found
