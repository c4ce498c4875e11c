"""full-gauge: every exact symmetry of the architecture at once, drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from palimpsest.checkpoint import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.method import Context, Made, method, param
from palimpsest.protections.applying import protected_by
from palimpsest.protections.secret import secret_generator
from palimpsest.protections.traits import Traits
from palimpsest.symmetry.drawing import draw
from palimpsest.symmetry.legality import Legality, legal
from palimpsest.training.finetune import Stopwatch


@method("protections", "full-gauge", paper="none: all transforms of docs/protections/symmetries.md together")
@dataclass(frozen=True)
class FullGauge:
    """Draw every exact symmetry that the architecture allows and apply them together.

    Values and outputs, queries and keys, norms' gains, feed-forward neurons and their scales, heads, and the residual
    stream (a rotation where it is legal, else a permutation with signs); which of them an architecture allows, in which
    form, is read from its configuration. The function stays, exactly in real arithmetic; in the stored dtype the record
    `agreement` says how far. No published method does all of them: it is the strongest protection of this kind that
    there can be, so whoever undoes it undoes every other one by symmetries. Threat model: a merger who averages; with
    the base each component can be undone (`realign`). Drawn from the system's entropy unless a seed is given: the
    secret is then as secret as the seed.
    """

    traits: ClassVar[Traits] = Traits(
        base="no",
        data="no",
        training=False,
        exact=True,
        changes="every weight, bias and gain",
        costs="one pass over the weights; a rotation costs a product with a (hidden, hidden) matrix a weight",
    )
    components: tuple[str, ...] = param(("all",), "which symmetries (see docs/protections/symmetries.md), or all")
    condition: float = param(2.0, "matrices and scales lie in [1 / condition, condition]", low=1.0, high=100.0)
    exact: bool = param(False, "only permutations, signs and powers of two, which change no digit of a stored number")
    untie: bool = param(False, "write the tied head as a tensor of its own, so that the residual stream can be rotated")

    @classmethod
    def digits(cls) -> FullGauge:
        """Permutations, signs and powers of two alone: no stored digit is rounded."""
        return cls(exact=True)

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Write the protected checkpoint to `out`."""
        watch = Stopwatch()
        allowed = legal(model.config, self.untie)
        chosen = self.chosen(allowed)
        generator = secret_generator(ctx)
        gauge = draw(model.config, chosen, generator, self.condition, exact=self.exact, untied=self.untie)
        detail = {
            "components": {c: allowed.form(c) for c in chosen},
            "condition": self.condition,
            "exact_digits": self.exact,
        }
        detail |= {"not_legal_here": allowed.refused, "untied": self.untie}
        return protected_by(
            gauge, model, out, ctx, "full-gauge", self.traits, detail=detail, seconds=watch.seconds, untie=self.untie
        )

    def chosen(self, allowed: Legality) -> tuple[str, ...]:
        """The components to draw. Raises BadInput with the reason for one that is not legal."""
        if self.components != ("all",):
            wanted = tuple(dict.fromkeys(self.components))
            if "all" in wanted or not wanted:
                raise BadInput("full-gauge: components: give `all` alone, or names of symmetries")
            for component in wanted:
                allowed.require(component, "full-gauge")
            return wanted
        turned = allowed.allows("residual-rotation") and not self.exact
        less = "residual-permutation" if turned else "residual-rotation"
        return tuple(c for c in allowed.allowed if c != less)
