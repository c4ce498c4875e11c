"""A local causal LM that answers prompts: greedy or sampled generation and teacher-forced scores, batched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from palimpsest.cost import count_tokens
from palimpsest.prompts import Renderer
from palimpsest.responder.batching import by_length
from palimpsest.responder.covering import Covering
from palimpsest.responder.logits import PIECE, logits_in_pieces
from palimpsest.responder.spelling import SettledText

Ids = Sequence[int]
Steering = Callable[[list[int], int], Any]  # (rows of the batch, width of their prompts) to a logits processor
CACHED_TOKENS = 2048  # a forced pass has nothing to keep: pieces that stay in a CPU's cache are the faster ones
CACHED_LOGITS = 1 << 23  # float32 numbers, 32 MiB


@dataclass(frozen=True)
class Generated:
    """One answer: its ids (end token left out) and its text without special tokens."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Forced:
    """One teacher-forced continuation.

    log_probs: (tokens,) of the expected tokens. greedy: (tokens,) the model's own first choice at each
    place given the expected tokens before it. margin: (tokens,) its lead over the second choice, in nats.
    """

    log_probs: tuple[float, ...]
    greedy: tuple[int, ...]
    margin: tuple[float, ...]


class LocalResponder:
    """Wraps a loaded model and its tokenizer. `token_budget` bounds rows times tokens of one forward pass."""

    can_force = True
    through: tuple[str, ...] = ()

    def __init__(self, model: Any, tokenizer: Any, token_budget: int = 8192) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.renderer = Renderer(tokenizer)
        self.settled_text = SettledText(tokenizer)
        self.covering = Covering(self.settled_text)
        self.token_budget = token_budget
        self.device = next(model.parameters()).device
        ends = model.generation_config.eos_token_id if getattr(model, "generation_config", None) else None
        if ends is None:
            ends = tokenizer.eos_token_id
        self.ends: set[int] = set(ends) if isinstance(ends, list | tuple) else ({ends} if ends is not None else set())

    @property
    def plain_greedy(self) -> bool:
        """Whether greedy generation is the arg max of the logits (no penalties, no forced tokens)."""
        config = getattr(self.model, "generation_config", None)
        if config is None:
            return True
        neutral: dict[str, tuple[Any, ...]] = {
            "repetition_penalty": (None, 1.0),
            "no_repeat_ngram_size": (None, 0),
            "bad_words_ids": (None,),
            "min_length": (None, 0),
            "min_new_tokens": (None, 0),
            "suppress_tokens": (None, []),
            "begin_suppress_tokens": (None, []),
            "forced_bos_token_id": (None,),
            "forced_eos_token_id": (None,),
            "num_beams": (None, 1),
            "sequence_bias": (None,),
            "encoder_repetition_penalty": (None, 1.0),
        }
        return all(getattr(config, name, None) in allowed for name, allowed in neutral.items())

    def batches(self, lengths: Sequence[int], budget: int | None = None) -> list[list[int]]:
        """Row numbers in batches: sorted by length, each within the token budget (or a smaller one)."""
        return by_length(lengths, min(self.token_budget, budget or self.token_budget))

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Ids],
        max_new_tokens: int,
        sampling: dict[str, float] | None = None,
        seed: int = 0,
        steering: Steering | None = None,
    ) -> list[Generated]:
        """Continue each prompt by up to `max_new_tokens`; greedy, or sampled by temperature/top_p/top_k.

        steering: makes what changes the logits of each step of a batch (a decoding removal).
        """
        from transformers import LogitsProcessorList

        results: list[Generated | None] = [None] * len(prompts)
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None else (min(self.ends) if self.ends else 0)
        if sampling is not None:
            torch.manual_seed(seed)  # once: batches that each began anew would draw the same numbers
        for rows in self.batches([len(p) + max_new_tokens for p in prompts]):
            width = max(len(prompts[r]) for r in rows)
            ids = torch.full((len(rows), width), pad, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(rows):  # left padding: all rows end at the same column
                ids[place, width - len(prompts[row]) :] = torch.tensor(list(prompts[row]), dtype=torch.long)
                mask[place, width - len(prompts[row]) :] = 1
            options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            if sampling is not None:
                options = {"do_sample": True, **sampling, "top_k": int(sampling.get("top_k", 0))}
            if steering is not None:
                options["logits_processor"] = LogitsProcessorList([steering(rows, width)])
            output = self.model.generate(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                pad_token_id=pad,
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted(self.ends) or None,
                **options,
            )
            for place, row in enumerate(rows):
                results[row] = said = self.spell(output[place, width:].tolist())
                count_tokens(len(prompts[row]) + len(said.ids))
        return [r for r in results if r is not None]

    def spell(self, ids: list[int]) -> Generated:
        """Cut at the first end token and decode."""
        cut = next((i for i, t in enumerate(ids) if t in self.ends), len(ids))
        kept = ids[:cut]
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Generated(tuple(kept), text)

    @torch.inference_mode()
    def force(self, prompts: Sequence[Ids], continuations: Sequence[Ids]) -> list[Forced]:
        """Score each continuation after its prompt in one pass; the head sees the continuations only."""
        results: list[Forced | None] = [None] * len(prompts)
        on_cpu = self.device.type == "cpu"
        lengths = [len(p) + len(c) for p, c in zip(prompts, continuations, strict=True)]
        count_tokens(sum(lengths))
        for rows in self.batches(lengths, CACHED_TOKENS if on_cpu else None):
            width = max(lengths[r] for r in rows)
            ids = torch.zeros((len(rows), width), dtype=torch.long)
            mask = torch.zeros_like(ids)
            chosen = torch.zeros((len(rows), width), dtype=torch.bool)
            for place, row in enumerate(rows):
                ids[place, : lengths[row]] = torch.tensor([*prompts[row], *continuations[row]], dtype=torch.long)
                mask[place, : lengths[row]] = 1
                chosen[place, len(prompts[row]) : lengths[row]] = True
            targets = ids[chosen].to(self.device)
            spoken: list[float] = []
            first: list[int] = []
            lead: list[float] = []
            padded = lengths[rows[0]] < width  # rows are sorted: without a mask attention is plainly causal
            moved = ids.to(self.device), mask.to(self.device) if padded else None, chosen.to(self.device)
            for logits in logits_in_pieces(self.model, *moved, CACHED_LOGITS if on_cpu else PIECE):
                here = targets[len(spoken) : len(spoken) + len(logits), None]
                best = logits.argmax(dim=-1, keepdim=True)  # of logits: (some of the tokens, vocabulary)
                logits = logits.sub_(logits.gather(1, best))  # in place: these logits are nobody else's
                true = logits.gather(1, here)
                second = logits.scatter_(1, best, -math.inf).amax(dim=-1)
                mass = logits.exp_().sum(dim=-1, keepdim=True) + 1  # the best one's own is exp(0)
                spoken += (true - mass.log()).squeeze(1).tolist()
                first += best.squeeze(1).tolist()
                lead += (-second).tolist()
            at = 0
            for row in rows:
                end = at + len(continuations[row])
                results[row] = Forced(tuple(spoken[at:end]), tuple(first[at:end]), tuple(lead[at:end]))
                at = end
        return [r for r in results if r is not None]
