"""SuppressLookahead: words that every way of answering leads to with certainty are made less likely."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.method import Context, method, param
from palimpsest.removals.decoding.steering import Change, Steered, confident
from palimpsest.removals.decoding.suppress_neighbor import letters
from palimpsest.responder import LocalResponder, Wrapped
from palimpsest.responder.local import Ids
from palimpsest.responder.stepping import Stepper, pad_of
from palimpsest.responder.wrapped import model_inside


@method("removals", "suppress-lookahead", paper="adaptive host attacks: arXiv 2509.26598")
@dataclass(frozen=True)
class SuppressLookahead:
    """Look ahead along several beginnings, and lower what turns up surely in all of them.

    From each of the `branches` likeliest first tokens the answer goes on greedily to `ahead` tokens. At every step the
    `top` likeliest tokens are looked at; those with a probability above `counted` that are neither special nor a word
    of the prompt are counted. The `words` tokens counted most often lose `penalty` from their logits at the first
    `steps` steps where the model is surer than `above`. All branches share their first step, so it counts once for
    each. It costs about branches * ahead forward passes a prompt.
    """

    innermost: ClassVar[bool] = True  # it steers the model itself
    branches: int = param(10, "beginnings that are followed", low=1)
    ahead: int = param(32, "tokens of each, the first among them", low=1)
    top: int = param(10, "likeliest tokens looked at in each step", low=1)
    counted: float = param(0.4, "probability above which one of them is counted", low=0.0, high=1.0)
    words: int = param(12, "tokens that are lowered: those counted most often", low=1)
    penalty: float = param(10.0, "what their logits lose", low=0.0)
    steps: int = param(16, "first steps at which it acts", low=1)
    above: float = param(0.9, "act only where the likeliest token has more than this probability", low=0.0, high=1.0)

    def wrap(self, responder: Any, ctx: Context) -> Wrapped:
        """The responder behind the suppression."""
        model = model_inside(responder, "suppress-lookahead")

        def made(prompts: list[Ids]) -> Change:
            lowered = [self.found(model, prompt) for prompt in prompts]

            def change(step: int, scores: Tensor) -> tuple[Tensor, Tensor]:
                if step >= self.steps:
                    return scores, confident(scores, 2.0)
                chosen = confident(scores, self.above)
                loss = torch.zeros_like(scores)
                for row, tokens in enumerate(lowered):
                    loss[row, tokens] = self.penalty
                return scores - loss * chosen[:, None], chosen

            return change

        return Steered(model, "suppress-lookahead", made)

    @torch.inference_mode()
    def found(self, model: LocalResponder, prompt: Sequence[int]) -> list[int]:
        """The tokens to lower for one prompt, the most frequent first (the smaller id first among equals)."""
        stepper = Stepper(model.model, [prompt[:-1]], pad_of(model.tokenizer))
        logits = stepper.feed(torch.tensor([[prompt[-1]]], device=model.device))[:, -1]  # (1, vocabulary)
        count = min(self.branches, logits.shape[-1])
        tokens = logits.topk(count, dim=-1).indices[0]
        counts: Counter[int] = Counter()
        self._count(counts, logits, count)
        stepper.keep([0] * count)
        for _ in range(self.ahead - 1):
            going = [i for i, token in enumerate(tokens.tolist()) if token not in model.ends]
            if not going:
                break
            stepper.keep(going)
            logits = stepper.feed(tokens[going][:, None])[:, -1]  # (branches that go on, vocabulary)
            self._count(counts, logits, 1)
            tokens = logits.argmax(dim=-1)
        spoken = {letters(word) for word in model.tokenizer.decode(list(prompt)).split()} - {""}
        left_out = {*model.tokenizer.all_special_ids, *model.ends, *prompt}
        left_out |= {t for t in counts if letters(model.tokenizer.decode([t])) in spoken}
        kept = sorted((t for t in counts if t not in left_out), key=lambda t: (-counts[t], t))
        return kept[: self.words]

    def _count(self, counts: Counter[int], logits: Tensor, times: int) -> None:
        """Count the tokens of each row that are likely enough."""
        best = logits.softmax(dim=-1).topk(min(self.top, logits.shape[-1]), dim=-1)
        for token in best.indices[best.values > self.counted].tolist():
            counts[token] += times
