"""What the suppressing removals share: a responder whose model's logits are changed at each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from palimpsest.responder import Generated, LocalResponder, Wrapped
from palimpsest.responder.local import Ids
from palimpsest.responder.wrapped import Sampling

Change = Callable[[int, Tensor], tuple[Tensor, Tensor]]


def confident(scores: Tensor, above: float | None) -> Tensor:
    """Rows (rows,) whose likeliest next token has more than this probability; all where None. scores: (rows, vocab)."""
    if above is None:
        return torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    return scores.softmax(dim=-1).amax(dim=-1) > above


class Steered(Wrapped):
    """Generates as its model does, with logits changed before each choice.

    change: made for the prompts of a batch; called with the step (0 first) and scores (rows, vocabulary), returns the
    changed scores and which rows it changed. The tally counts `changed steps` of rows that have not ended.
    """

    def __init__(self, model: LocalResponder, name: str, change: Callable[[list[Ids]], Change]) -> None:
        super().__init__(model, name)
        self.model, self.change = model, change

    def generate(
        self, prompts: Sequence[Ids], max_new_tokens: int, sampling: Sampling = None, seed: int = 0
    ) -> list[Generated]:
        """Continue each prompt, greedily or by sampling from the changed distribution."""

        def steering(rows: list[int], width: int) -> Any:
            change = self.change([prompts[r] for r in rows])

            def processor(input_ids: Tensor, scores: Tensor) -> Tensor:
                said = input_ids[:, width:]
                going = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
                for end in self.model.ends:
                    going &= ~(said == end).any(dim=1)
                changed, touched = change(said.shape[1], scores)
                self.count("changed steps", int((touched & going).sum()), int(going.sum()))
                return changed

            return processor

        return self.model.generate(prompts, max_new_tokens, sampling, seed, steering)
