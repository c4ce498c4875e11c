"""CleanGen: tokens that a model likes far better than a reference model does are replaced while it decodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.method import Context, method, param, takes
from palimpsest.removals.references import check_vocabulary, given, loaded
from palimpsest.responder import Generated, LocalResponder, Wrapped
from palimpsest.responder.local import Ids
from palimpsest.responder.stepping import Stepper, draw, pad_of
from palimpsest.responder.wrapped import Sampling, model_inside, same_tokens

WHY = "cleangen compares the two models' probabilities of the same tokens"
WHAT = "an unmarked model of the same tokenizer (the clean base, a sibling, a smaller one)"


def cut_position(target: Tensor, reference: Tensor, alpha: float) -> int | None:
    """Place of the first token with p_target / p_reference >= alpha, or None; both (tokens,) log-probabilities."""
    suspicious = (target - reference >= math.log(alpha)).nonzero()
    return int(suspicious[0]) if len(suspicious) else None


@method("removals", "cleangen", paper="CleanGen, arXiv 2406.12257, Algorithm 1")
@dataclass(frozen=True)
class CleanGen:
    """Replace tokens that the model likes alpha times better than a reference does, block by block while decoding.

    The model drafts `block` tokens greedily; the reference reads them in one pass. Token t is suspicious if
    p_model(t) / p_reference(t) >= alpha. At the first suspicious one the text is cut, the reference's likeliest token
    takes its place, the rest of the block is dropped, and the next block begins there. Threat model: the thief has a
    second model that does not carry the same mark; with the clean base this is an upper bound.

    The published code is greedy and never looks at an unfinished last block, so an answer of at most `block` tokens,
    its end among them, passes unchecked (`released_code`); here that block is checked too, its end token included.
    Under the sampled prompt form the model's tokens are drawn and compared by their untempered probabilities.
    Penalties of a generation configuration are left out, as there.
    """

    innermost: ClassVar[bool] = True  # it steers the model itself
    reference: Checkpoint | None = takes("an unmarked model with the same tokenizer")
    block: int = param(4, "tokens drafted before the reference looks", low=1)
    alpha: float = param(20.0, "a token is suspicious from this ratio of probabilities on", low=1.0)
    last_block: bool = param(True, "whether an unfinished last block is checked too")

    @classmethod
    def released_code(cls) -> CleanGen:
        """As the published code does: the last block is checked only where it is whole and does not end the answer."""
        return cls(last_block=False)

    def check(self, model: Checkpoint) -> None:
        """BadInput without a reference, or with one of another vocabulary; nothing is loaded."""
        check_vocabulary(model, given(self.reference, "cleangen", WHAT), WHY)

    def wrap(self, responder: Any, ctx: Context) -> Wrapped:
        """The responder behind CleanGen; loads the reference."""
        model = model_inside(responder, "cleangen")
        reference = loaded(given(self.reference, "cleangen", WHAT), ctx)
        return CleanGenResponder(model, reference, self)


class CleanGenResponder(Wrapped):
    """Answers in checked blocks. The tally counts `replaced tokens` out of all tokens said."""

    def __init__(self, model: LocalResponder, reference: LocalResponder, settings: CleanGen) -> None:
        super().__init__(model, "cleangen")
        same_tokens(model.tokenizer, reference.tokenizer, "the reference", WHY)
        self.model, self.reference, self.settings = model, reference, settings

    def generate(
        self, prompts: Sequence[Ids], max_new_tokens: int, sampling: Sampling = None, seed: int = 0
    ) -> list[Generated]:
        """Continue each prompt by up to `max_new_tokens` checked tokens."""
        if sampling is not None:
            torch.manual_seed(seed)
        answers: list[list[int]] = [[] for _ in prompts]
        for rows in self.model.batches([len(p) + max_new_tokens for p in prompts]):
            said = self._answers([prompts[r] for r in rows], max_new_tokens, sampling)
            for row, ids in zip(rows, said, strict=True):
                answers[row] = ids
        return [self.spell(ids) for ids in answers]

    def _answers(self, prompts: list[Ids], longest: int, sampling: Sampling) -> list[list[int]]:
        pad = pad_of(self.tokenizer)
        known = [p[:-1] for p in prompts]  # the last token is fed with the first block
        target, reference = (Stepper(m.model, known, pad) for m in (self.model, self.reference))
        said: list[list[int]] = [[] for _ in prompts]
        active = [i for i in range(len(prompts)) if longest > 0]
        last = torch.tensor([p[-1] for p in prompts], device=self.model.device)  # said, and not fed yet
        while active:
            size = min(self.settings.block, max(longest - len(said[i]) for i in active))
            drafted, liked, fed = [], [], [last]
            for _ in range(size):
                logits = target.feed(fed[-1][:, None])[:, -1]  # (rows, vocabulary)
                token = draw(logits, sampling)
                liked.append(logits.log_softmax(dim=-1).gather(1, token[:, None]).squeeze(1))
                drafted.append(token)
                fed.append(token)
            tokens = torch.stack(drafted, dim=1)  # (rows, size)
            other = reference.feed(torch.stack(fed[:-1], dim=1).to(self.reference.device)).to(tokens.device)
            width = min(other.shape[-1], logits.shape[-1])  # a head may be padded beyond the vocabulary
            theirs = other.log_softmax(dim=-1).gather(2, tokens[..., None]).squeeze(2)  # (rows, size)
            chosen = other[..., :width].argmax(dim=-1)  # (rows, size)
            ours, back, going_on, following = torch.stack(liked, dim=1), [], [], []
            for place, row in enumerate(active):
                draft = self._up_to_the_end(tokens[place, : longest - len(said[row])].tolist())
                cut = self._cut(draft, ours[place], theirs[place])
                if cut is not None:
                    draft = [*draft[:cut], int(chosen[place, cut])]
                said[row] += draft
                self.count("replaced tokens", int(cut is not None), len(draft))
                back.append(size - len(draft))
                following.append(draft[-1])
                if draft[-1] not in self.model.ends and len(said[row]) < longest:
                    going_on.append(place)
            target.take_back(back)
            reference.take_back(back)
            target.keep(going_on)
            reference.keep(going_on)
            active = [active[place] for place in going_on]
            last = torch.tensor([following[place] for place in going_on], device=self.model.device)
        return said

    def _up_to_the_end(self, draft: list[int]) -> list[int]:
        """The draft up to and with its first end token."""
        end = next((i for i, token in enumerate(draft) if token in self.model.ends), len(draft) - 1)
        return draft[: end + 1]

    def _cut(self, draft: list[int], ours: Tensor, theirs: Tensor) -> int | None:
        """Where a row's draft is cut, None where nothing is suspicious or it is not looked at."""
        whole = len(draft) == self.settings.block and draft[-1] not in self.model.ends
        if not whole and not self.settings.last_block:
            return None
        return cut_position(ours[: len(draft)], theirs[: len(draft)], self.settings.alpha)
