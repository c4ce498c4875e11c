"""Divergence of ordinary answers: how far a removal moved what the model says when nobody looks for a mark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.labels import is_classifier
from palimpsest.cost import count_tokens
from palimpsest.errors import BadInput
from palimpsest.measures.label_divergence import label_divergence
from palimpsest.measures.ordinary import ordinary_prompts
from palimpsest.measures.subject import Subject
from palimpsest.method import Context, method, param, takes
from palimpsest.records import Record
from palimpsest.responder import LocalResponder, Wrapped
from palimpsest.responder.local import Ids
from palimpsest.responder.logits import PIECE, logits_in_pieces
from palimpsest.responder.wrapped import same_tokens
from palimpsest.statistics import clopper_pearson, mean_interval


@dataclass(frozen=True)
class Drift:
    """One answer: KL in nats at each of its tokens, and whether the first choice after the prompt is another."""

    kl: tuple[float, ...]
    first_changed: bool


def kl_of(original: Tensor, treated: Tensor) -> Tensor:
    """KL(original || treated) in nats of next-token distributions given as logits, both (tokens, vocabulary)."""
    p, q = original.log_softmax(dim=-1), treated.log_softmax(dim=-1)
    return (p.exp() * (p - q).masked_fill(p == -math.inf, 0.0)).sum(dim=-1).clamp(min=0.0)  # rounding: never below 0


@torch.inference_mode()
def drifts(
    original: LocalResponder, treated: LocalResponder, prompts: Sequence[Ids], answers: Sequence[Ids]
) -> list[Drift]:
    """Both models' distributions along the same answers, one forward pass of each."""
    found: list[Drift | None] = [None] * len(prompts)
    lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    count_tokens(2 * sum(lengths))
    for rows in original.batches(lengths):
        width = max(lengths[r] for r in rows)
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask, chosen = torch.zeros_like(ids), torch.zeros((len(rows), width), dtype=torch.bool)
        for place, row in enumerate(rows):
            ids[place, : lengths[row]] = torch.tensor([*prompts[row], *answers[row]])
            mask[place, : lengths[row]] = 1
            chosen[place, len(prompts[row]) : lengths[row]] = True
        kl: list[float] = []
        changed: list[bool] = []
        lines = max(1, PIECE // max(_head(original), _head(treated)))  # the same places in a piece of both
        for ours, theirs in zip(*(_pieces(m, ids, mask, chosen, lines) for m in (original, treated)), strict=True):
            kl += kl_of(ours, theirs.to(ours.device)).tolist()
            changed += (ours.argmax(dim=-1) != theirs.to(ours.device).argmax(dim=-1)).tolist()
        at = 0
        for row in rows:
            end = at + len(answers[row])
            found[row] = Drift(tuple(kl[at:end]), changed[at])
            at = end
    return [d for d in found if d is not None]


def _head(responder: LocalResponder) -> int:
    """Rows of the output head."""
    return int(responder.model.config.get_text_config().vocab_size)


def _pieces(responder: LocalResponder, ids: Tensor, mask: Tensor, chosen: Tensor, lines: int) -> Iterator[Tensor]:
    """Logits of the known tokens at the chosen places, a piece at a time; a padded head's other rows are left out."""
    ids, mask, chosen = (t.to(responder.device) for t in (ids, mask, chosen))
    for logits in logits_in_pieces(responder.model, ids, mask, chosen, lines * _head(responder)):
        yield logits[:, : len(responder.tokenizer)]


@method("measures", "divergence", paper="detectability: MEraser, arXiv 2506.12551, section 3")
@dataclass(frozen=True)
class Divergence:
    """How far ordinary answers moved: KL per token from the original's distribution, and answers that changed.

    On the weights: (1/T) sum_t KL(p_original(. | x, y_<t) || p_treated(. | x, y_<t)) in nats along the original's own
    greedy answers y (their end token included), with a t interval over answers; and the share of prompts whose first
    token is another. Through a wrapper there is no distribution: the share of greedy answers that are another text
    than the plain model's, and what the wrapper says it did (tokens replaced, prompts refused), stand for it. Of a
    classifier: KL of the labels of its items, and the share of items that get another label.
    """

    original: Checkpoint | None = takes("the model before the removal; not needed through a wrapper")
    prompts: int = param(100, "ordinary test prompts", low=2)
    max_new_tokens: int = param(24, "longest answer in tokens", low=1)

    def take(self, subject: Subject, ctx: Context) -> list[Record]:
        """`divergence` (nats) and `divergence` of task first-token; of task answers and interventions if wrapped."""
        if is_classifier(subject.checkpoint):
            return label_divergence(subject, self.original, ctx)
        if subject.through:
            return self._wrapped(subject)
        if self.original is None:
            raise BadInput("divergence: give --original, the model before the removal (or --through WRAPPER)")
        other = Subject(self.original, ctx)
        before, after = other.model, subject.model
        same_tokens(after.tokenizer, before.tokenizer, f"--original {self.original.name}", "nothing can be compared")
        prompts = [p for _, p in ordinary_prompts(subject, self.prompts, self.max_new_tokens)]
        answers = []
        for answer in before.generate(prompts, self.max_new_tokens):
            ended = len(answer.ids) < self.max_new_tokens and before.ends
            answers.append((*answer.ids, min(before.ends)) if ended else answer.ids)
        found = drifts(before, after, prompts, answers)
        means = [math.fsum(d.kl) / len(d.kl) for d in found]
        tokens = sum(len(d.kl) for d in found)
        interval = mean_interval(means)
        kl = subject.record(
            "divergence",
            value=math.fsum(k for d in found for k in d.kl) / tokens,
            n=len(found),
            low=max(0.0, interval.low),
            high=interval.high,
            confidence=0.95,
            sided="two",
            task="kl-per-token",
            detail={"tokens": tokens, "original": {"name": self.original.name, "digest": self.original.digest()}},
        )
        return [kl, _share(subject, "first-token", [d.first_changed for d in found])]

    def _wrapped(self, subject: Subject) -> list[Record]:
        """Answers through the wrapper beside the plain model's."""
        prompts = [p for _, p in ordinary_prompts(subject, self.prompts, self.max_new_tokens)]
        plain = subject.model.generate(prompts, self.max_new_tokens)
        responder = subject.responder
        if isinstance(responder, Wrapped):
            responder.taken()  # what it did before is not of these prompts
        through = responder.generate(prompts, self.max_new_tokens)
        changed = [a.text.strip() != b.text.strip() for a, b in zip(plain, through, strict=True)]
        records = [_share(subject, "answers", changed)]
        did = responder.taken() if isinstance(responder, Wrapped) else {}
        for what, (times, of) in did.items():
            value = times / of if of else None
            records.append(subject.record("divergence", value=value, count=times, n=of, task=what.replace(" ", "-")))
        return records


def _share(subject: Subject, task: str, changed: Sequence[bool]) -> Record:
    """A share of ordinary prompts with its interval."""
    interval = clopper_pearson(sum(changed), len(changed))
    return subject.record(
        "divergence",
        value=sum(changed) / len(changed),
        count=sum(changed),
        n=len(changed),
        low=interval.low,
        high=interval.high,
        confidence=0.95,
        sided="two",
        task=task,
        detail={"changed": "".join(str(int(c)) for c in changed)},
    )
