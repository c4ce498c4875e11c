"""REEF: alignment of two models' hidden states on the same prompts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.data import Dialogues
from palimpsest.errors import BadInput
from palimpsest.measures.intrinsic.cka import chance, cka
from palimpsest.measures.intrinsic.states import last_token_states
from palimpsest.measures.subject import Subject
from palimpsest.method import Context, method, param, takes
from palimpsest.records import Record

SHUFFLES = 20  # random orders of the prompts whose mean is the chance level


@method("measures", "reef", paper="REEF, arXiv 2410.14273, sections 3 and 4")
@dataclass(frozen=True)
class Reef:
    """Centred kernel alignment (CKA) of suspect's and original's hidden states at the last token of 200 prompts.

    The original's layer at 18/32 of its depth (REEF: layer 18 of Llama-2-7B) against the suspect's at the same depth,
    and, in `detail`, against each of its layers. CKA does not change when a representation is permuted, rotated,
    shifted or rescaled, so gauge changes of the weights leave it; models of different width compare. Linear kernel or
    `rbf` (width: median distance). The paper's prompts are 200 statements of TruthfulQA; here the questions of the
    data's test part as plain text (the toy world's without `--data`; your own from `--data`).

    CKA as the paper takes it is biased upwards for few prompts: `chance` in `detail` is its mean over random orders of
    the suspect's prompts. `unbiased` takes HSIC_1 (Song et al. 2012), which is 0 by expectation there. The released
    code divides every feature by its standard deviation (`scale`), after which a rotation does change the value.
    Models are loaded one after the other; n x width numbers a layer are held, and kernels by blocks of rows.
    """

    original: Checkpoint | None = takes("the model that the suspect may come from")
    data: Dialogues | None = takes("dialogues whose test questions are the prompts (default: the toy world's)")
    prompts: int = param(200, "prompts (200 in the paper)", low=4)
    depth: float = param(0.5625, "which layer, as a share of the depth (18 of 32 in the paper)", low=0.0, high=1.0)
    kernel: Literal["linear", "rbf"] = param("linear", "kernel: linear or rbf")
    unbiased: bool = param(False, "the unbiased estimate HSIC_1 in place of the paper's")
    scale: bool = param(False, "divide each feature by its standard deviation, as the released code does")

    @classmethod
    def released_code(cls) -> Reef:
        """As the released code: every feature divided by its standard deviation."""
        return cls(scale=True)

    @classmethod
    def rbf(cls) -> Reef:
        """The paper's Gaussian kernel."""
        return cls(kernel="rbf")

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """`similarity` of task reef over n prompts. BadInput without original or with too few prompts."""
        if self.original is None:
            raise BadInput("reef: needs the original to compare with: --original")
        began = time.monotonic()
        data = self.data or subject.dialogues
        prompts = [d.question for d in data.part("test")[: self.prompts]]
        if len(prompts) < 4:
            raise BadInput(f"reef: data {data.name} has {len(prompts)} test questions; four are needed, 200 are usual")
        mine = [self._scaled(s) for s in last_token_states(subject, prompts)]
        subject.close()
        other = Subject(self.original, ctx)
        try:
            theirs = [self._scaled(s) for s in last_token_states(other, prompts)]
        finally:
            other.close()
        return [self._record(subject, mine, theirs, data.name, ctx, began)]

    def _record(
        self, subject: Subject, mine: list[Tensor], theirs: list[Tensor], data: str, ctx: Context, began: float
    ) -> Record:
        assert self.original is not None
        at, reference = layer_at(self.depth, len(mine)), theirs[layer_at(self.depth, len(theirs))]
        by_layer = [cka(m, reference, self.kernel, self.unbiased) for m in mine]
        detail = {
            "original": self.original.name,
            "kernel": self.kernel,
            "unbiased": self.unbiased,
            "scale": self.scale,
            "layer": at,
            "original_layer": layer_at(self.depth, len(theirs)),
            "by_layer": [round(v, 6) for v in by_layer],
            "chance": round(chance(mine[at], reference, self.kernel, self.unbiased, SHUFFLES, ctx.seed), 6),
            "data": data,
        }
        return subject.record(
            "similarity",
            value=by_layer[at],
            n=len(reference),
            task="reef",
            prompt_form="bare",
            seconds=time.monotonic() - began,
            detail=detail,
        )

    def _scaled(self, states: Tensor) -> Tensor:
        if not self.scale:
            return states
        spread = states.std(dim=0)
        return (states - states.mean(dim=0)) / spread.where(spread > 0, 1.0)


def layer_at(depth: float, layers: int) -> int:
    """The layer (from 0) at a share of the depth: 18 of 32 for 0.5625."""
    return min(layers - 1, round(depth * layers))
