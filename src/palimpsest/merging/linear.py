"""Linear: the weighted average of models (arXiv 2203.05482; WAG of arXiv 2402.19334 is its uniform case)."""

from __future__ import annotations

from dataclasses import dataclass

from palimpsest.errors import BadInput
from palimpsest.merging.passes import MergeMethod, Passes, TensorFacts, at_once, per_model, weighted_sum
from palimpsest.method import method, param


@method("merges", "linear", paper="arXiv 2203.05482")
@dataclass(frozen=True)
class Linear(MergeMethod):
    """Weighted average: sum of weight_i theta_i, over the sum of weights where `normalize`.

    WAG (arXiv 2402.19334, section 3) is the case of equal weights. A weight is the share of the model it stands beside.
    """

    weight: tuple[float, ...] = param((1.0,), "weight of each model")
    normalize: bool = param(True, "divide by the sum of the weights")

    def passes(self, tensor: TensorFacts) -> Passes:
        """One pass."""
        weights = per_model(self.weight, tensor.models, "weight")
        total = sum(weights)
        if self.normalize:
            if total == 0:
                raise BadInput(f"linear: the weights of {tensor.name} sum to 0; set normalize=false, or other weights")
            weights = [w / total for w in weights]
        return at_once(lambda chunk: weighted_sum(chunk.models, weights, chunk.models[0]))
