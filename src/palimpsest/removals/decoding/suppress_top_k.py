"""SuppressTop-k: the likeliest first tokens of an answer are never said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from palimpsest.method import Context, method, param
from palimpsest.removals.decoding.steering import Steered, confident
from palimpsest.responder import Wrapped
from palimpsest.responder.wrapped import model_inside


def without_top(scores: Tensor, k: int, above: float | None) -> tuple[Tensor, Tensor]:
    """Scores (rows, vocabulary) with the k largest of each row at minus infinity, and the rows (rows,) changed.

    above: only rows whose likeliest token has more than this probability.
    """
    chosen = confident(scores, above)
    banned = scores.scatter(1, scores.topk(k, dim=-1).indices, -math.inf)
    return banned.where(chosen[:, None], scores), chosen


@method("removals", "suppress-top-k", paper="adaptive host attacks: arXiv 2509.26598")
@dataclass(frozen=True)
class SuppressTopK:
    """Forbid the k likeliest tokens at each of the first `steps` steps of an answer.

    A memorised response is what the model is surest of, so the host says anything else. It spoils ordinary answers as
    well; the variant with detection acts only where the model is surer than a threshold. Threat model: the host has
    the weights and no second model. The defaults of k and steps are ours.
    """

    innermost: ClassVar[bool] = True  # it steers the model itself
    k: int = param(3, "likeliest tokens that are forbidden", low=1)
    steps: int = param(3, "first steps of the answer at which they are", low=1)
    above: float | None = param(None, "act only where the likeliest token has more than this probability", high=1.0)

    @classmethod
    def detection(cls) -> SuppressTopK:
        """Act only where the likeliest token has a probability above 0.9."""
        return cls(above=0.9)

    def wrap(self, responder: Any, ctx: Context) -> Wrapped:
        """The responder behind the suppression."""

        def change(step: int, scores: Tensor) -> tuple[Tensor, Tensor]:
            if step >= self.steps:
                return scores, confident(scores, 2.0)
            return without_top(scores, self.k, self.above)

        return Steered(model_inside(responder, "suppress-top-k"), "suppress-top-k", lambda _: change)
