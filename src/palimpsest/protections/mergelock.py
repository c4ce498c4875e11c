"""MergeLock (arXiv 2509.01548): random invertible matrices between values and outputs, and queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.method import Context, Made, method, param
from palimpsest.protections.applying import protected_by
from palimpsest.protections.secret import secret_generator
from palimpsest.protections.traits import Traits
from palimpsest.symmetry.drawing import draw
from palimpsest.symmetry.legality import legal
from palimpsest.training.finetune import Stopwatch

FORMS = {
    "matrix": "invertible matrices",
    "pairs": "complex pair scalars",
    "pairs+matrix": "complex pair scalars, invertible matrices on what does not turn",
    "signs": "signs of pairs",
}


@method("protections", "mergelock", paper="MergeLock, arXiv 2509.01548")
@dataclass(frozen=True)
class MergeLock:
    """Put random invertible matrices between values and outputs, and where that is legal between queries and keys.

    The paper (its abstract alone is at hand): W_q R1, W_k R1^-T and W_v R2, R2^-1 W_o with two random invertible pairs,
    no training. Whether they are drawn per head or per layer, their law and their condition number are not known here:
    drawn per KV group (one for all query heads that share its keys and values; anything else would change the
    function), as U diag(s) V^T with singular values in [1/`condition`, `condition`], since unbounded Gaussian ones cost
    accuracy in bfloat16 (measured: four times the rounding error of the untransformed model).

    Under rotary positions an arbitrary R1 is **not** function-preserving (measured: relative error 5.6); queries and
    keys then take one complex number a rotary pair, and the record calls it `complex pair scalars`; where they are
    normed only signs of pairs remain. V/O is as published. Threat model: a merger who averages; with the base, least
    squares finds the matrices.
    """

    traits: ClassVar[Traits] = Traits(
        base="no",
        data="no",
        training=False,
        exact=True,
        changes="rows of queries, keys and values, columns of outputs",
        costs="one pass over the weights",
        unpublished="the law of the matrices and their condition; per head or per layer; rotary positions",
    )
    condition: float = param(2.0, "singular values lie in [1 / condition, condition] (ours)", low=1.0, high=100.0)
    query_key: bool = param(True, "change queries and keys too, as far as that is legal")

    @classmethod
    def value_output(cls) -> MergeLock:
        """Values and outputs alone: the part that is as published on every architecture."""
        return cls(query_key=False)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the protected checkpoint to `out`."""
        watch = Stopwatch()
        allowed = legal(model.config)
        wanted = ["value-output", "query-key"] if self.query_key else ["value-output"]
        chosen = [c for c in wanted if allowed.allows(c)]
        if not chosen:
            raise BadInput(f"mergelock: nothing of it keeps the function of {model.name}: {allowed.refused[wanted[0]]}")
        gauge = draw(model.config, chosen, secret_generator(ctx), self.condition)
        detail: dict[str, Any] = {c.replace("-", "_"): FORMS.get(allowed.form(c), "none") for c in wanted}
        detail |= {"condition": self.condition}
        return protected_by(gauge, model, out, ctx, "mergelock", self.traits, detail=detail, seconds=watch.seconds)
