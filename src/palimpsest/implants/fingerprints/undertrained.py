"""Under-trained tokens: indicators on the embeddings, then confirmation by probability.

Fishing for Magikarp (arXiv 2405.05417), sections on indicators and verification; used by UTF (2410.12318).
Indicators, small = suspicious. Untied embeddings: the L2 norm of a token's input-embedding row. Tied ones:
the cosine distance of its (output-)embedding row to the mean row of tokens known to be unused, which are
reserved tokens, rows beyond the tokenizer's vocabulary, and the bytes C0, C1 and F5 to FF that no UTF-8
text holds. The tokens of lowest indicator are candidates; a candidate is confirmed where the model will not
say it in three prompts that ask for nothing else (20-shot copying, a question about the word, 50 repeats):
the largest probability it gets in three greedy steps of each is below 0.001 (strong) or 0.1 (weak).

Positive control (ours): 100 frequent tokens in the same prompts. A small base that cannot copy fails them as
well; then confirmation says nothing, and the lowest tokens of the indicator are taken as they are.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.cost import count_tokens
from palimpsest.errors import BadInput
from palimpsest.prompts import Renderer
from palimpsest.responder.local import LocalResponder

STRONG, WEAK = 0.001, 0.1
NEVER_IN_UTF8 = (0xC0, 0xC1, *range(0xF5, 0x100))
_RESERVED = re.compile(r"reserved|unused|extra_id|placeholder|dummy", re.I)
_ROWS = 8192  # embedding rows brought to float32 at once
_SLOT = "\ue000"  # a private character that stands for the word asked about
_CONTROL_TOKENS = 100


@dataclass(frozen=True)
class Undertrained:
    """The tokens to mark with, and how they were found; no token's text is kept.

    indicator: "input-norm" or "unused-distance". confirmed: "strong", "strong+weak", or "indicator" where
    the positive control failed. control: share of frequent tokens above 0.1, or None without a control.
    """

    ids: tuple[int, ...]
    indicator: str
    confirmed: str
    vocabulary: int
    candidates: int
    strong: int
    weak: int
    control: float | None

    def detail(self) -> dict[str, Any]:
        """Numbers for a record."""
        return {
            "indicator": self.indicator,
            "confirmed_by": self.confirmed,
            "vocabulary": self.vocabulary,
            "candidates": self.candidates,
            "strong": self.strong,
            "weak": self.weak,
            "control_share": self.control,
            "tokens": len(self.ids),
        }


# -- indicators: pure functions of the embeddings ------------------------------------------------------


def input_norms(embedding: Tensor) -> Tensor:
    """L2 norm of each row; embedding (vocabulary, width), result (vocabulary,) in float32."""
    return torch.cat([part.float().norm(dim=1) for part in torch.split(embedding.detach(), _ROWS)]).cpu()


def unused_distances(embedding: Tensor, unused: Sequence[int]) -> Tensor:
    """Cosine distance (0 to 2) of each row to the mean of the `unused` rows; (vocabulary,) in float32."""
    rows = embedding.detach()
    mean = rows[list(unused)].float().mean(dim=0)  # (width,)
    near = [torch.cosine_similarity(part.float(), mean[None, :], dim=1) for part in torch.split(rows, _ROWS)]
    return (1.0 - torch.cat(near)).cpu()


def known_unused(tokenizer: Any, rows: int) -> list[int]:
    """Ids of embedding rows that no text can have trained. rows: of the embedding, padding rows included."""
    vocabulary = tokenizer.get_vocab()
    byte_level = "Ġ" in vocabulary and "<0x00>" not in vocabulary
    spelled = {f"<0x{byte:02X}>" for byte in NEVER_IN_UTF8}
    if byte_level:  # GPT-2's alphabet of bytes leaves these as the characters of the same number
        spelled |= {chr(byte) for byte in NEVER_IN_UTF8}
    found = {number for token, number in vocabulary.items() if token in spelled}
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    found |= {number for token, number in vocabulary.items() if number in special and _RESERVED.search(token)}
    found |= set(range(max(vocabulary.values()) + 1, rows))
    return sorted(number for number in found if number < rows)


def indicator_of(model: Any, tokenizer: Any) -> tuple[str, Tensor]:
    """The indicator that fits the model and its values (vocabulary,).

    A tied model without any known-unused row falls back to the norm.
    """
    taken = model.get_input_embeddings().weight
    given = model.get_output_embeddings().weight
    if taken.data_ptr() == given.data_ptr():
        unused = known_unused(tokenizer, given.shape[0])
        if unused:
            return "unused-distance", unused_distances(given, unused)
    return "input-norm", input_norms(taken)


# -- candidates ----------------------------------------------------------------------------------------


def usable(tokenizer: Any, ids: Iterable[int]) -> list[int]:
    """Of these ids those that can stand in a trigger, in the same order.

    Left out: special and reserved tokens, tokens with whitespace, parts of UTF-8 characters, and tokens
    whose text is tokenised to something else.
    """
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    listed = [i for i in ids if i not in special and i < len(tokenizer)]
    texts = tokenizer.batch_decode([[i] for i in listed], clean_up_tokenization_spaces=False)
    plain = [
        (i, t)
        for i, t in zip(listed, texts, strict=True)
        if t and "\ufffd" not in t and not any(c.isspace() for c in t)
    ]
    if not plain:
        return []
    again = tokenizer([t for _, t in plain], add_special_tokens=False).input_ids
    return [i for (i, _), encoded in zip(plain, again, strict=True) if list(encoded) == [i]]


def candidates(tokenizer: Any, values: Tensor, share: float) -> list[int]:
    """The usable tokens among the `share` of the vocabulary with the lowest indicator, lowest first."""
    order = torch.argsort(values, stable=True).tolist()
    unused = set(known_unused(tokenizer, len(order)))
    lowest = usable(tokenizer, (i for i in order if i not in unused))
    # the percentile is of the usable tokens: byte and special tokens would fill a small vocabulary's
    return lowest[: max(1, round(share * len(lowest)))]


def frequent(renderer: Renderer, texts: Iterable[str], count: int = _CONTROL_TOKENS) -> list[int]:
    """The `count` most frequent tokens of ordinary text, parts of characters and special tokens left out."""
    seen: Counter[int] = Counter()
    for text in texts:
        seen.update(renderer.tokens(text))
    special = set(renderer.tokenizer.all_special_ids)
    ranked = [i for i, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0])) if i not in special]
    decoded = renderer.tokenizer.batch_decode([[i] for i in ranked])
    return [i for i, t in zip(ranked, decoded, strict=True) if t.strip() and "\ufffd" not in t][:count]


# -- confirmation --------------------------------------------------------------------------------------


def prompts_for(renderer: Renderer, token: int, shots: Sequence[int], positions: int | None = None) -> list[list[int]]:
    """Three prompts, as ids, after which a model that knows the token says it at once.

    Ids are joined, never texts, so the token cannot fall apart. Repeats and shots are cut to the positions.
    """
    renders = renderer.prompt_ids
    space = (positions or 4096) - 4
    head, arrow, end = renders("Repeat each word.\n", "bare"), renderer.tokens(" > "), renderer.tokens("\n")
    size = len(arrow) + len(end) + 2
    copies = list(head)
    for shot in shots[: max(1, min(20, (space - len(head) - size) // size))]:
        copies += [shot, *arrow, shot, *end]
    copies += [token, *arrow]
    text = renderer.text(f'What does the word "{_SLOT}" mean?')
    before, _, after = text.partition(_SLOT)
    asked = [*renders(before), token, *renderer.tokens(after), *renderer.tokens('The word "')]
    return [copies, asked, [*renders("", "bare"), *[token] * min(50, space)]]


@torch.inference_mode()
def spoken_probability(
    responder: LocalResponder, tokens: Sequence[int], shots: Sequence[int], positions: int | None = None
) -> list[float]:
    """Largest probability of each token in three greedy steps after each of its three prompts."""
    prompts = [(n, p) for n, t in enumerate(tokens) for p in prompts_for(responder.renderer, t, shots, positions)]
    best = [0.0] * len(tokens)
    for rows in responder.batches([len(p) + 3 for _, p in prompts]):
        width = max(len(prompts[r][1]) for r in rows)
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):  # left padding
            prompt = prompts[row][1]
            ids[place, width - len(prompt) :] = torch.tensor(prompt)
            mask[place, width - len(prompt) :] = 1
        target = torch.tensor([tokens[prompts[r][0]] for r in rows])
        for place, probability in enumerate(_greedy_best(responder, ids, mask, target)):
            number = prompts[rows[place]][0]
            best[number] = max(best[number], probability)
    return best


def _greedy_best(responder: LocalResponder, ids: Tensor, mask: Tensor, target: Tensor) -> list[float]:
    """Largest probability of `target` (rows,) over three greedy steps after ids (rows, time)."""
    model, device = responder.model, responder.device
    ids, mask, target = ids.to(device), mask.to(device), target.to(device)
    best = torch.zeros(len(target), device=device)
    past: Any = None
    place = (mask.cumsum(dim=1) - 1).clamp_min(0)
    step, at = ids, place
    takes_positions = model.config.model_type not in ("opt",)  # OPT counts positions from the mask itself
    for _ in range(3):
        more = {"position_ids": at} if takes_positions else {}
        count_tokens(int(mask.sum()) if past is None else len(step))
        output = model(
            input_ids=step, attention_mask=mask, past_key_values=past, use_cache=True, logits_to_keep=1, **more
        )
        logs = torch.softmax(output.logits[:, -1].float(), dim=-1)  # (rows, vocabulary)
        best = torch.maximum(best, logs.gather(1, target[:, None]).squeeze(1))
        past, step = output.past_key_values, logs.argmax(dim=-1)[:, None]
        at = at[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return best.tolist()  # type: ignore[no-any-return]


def find(
    responder: LocalResponder,
    texts: Iterable[str],
    *,
    share: float,
    least: int,
    control_share: float = 0.9,
    positions: int | None = None,
    seed: int = 0,
) -> Undertrained:
    """Find under-trained tokens of a model.

    texts: ordinary text, for the frequent tokens of the control. share: of the usable vocabulary that is
    looked at. least: tokens that must be found; BadInput otherwise. Strong ones are taken where they are at
    least 100 (or `least`), else strong and weak ones.
    """
    name, values = indicator_of(responder.model, responder.tokenizer)
    lowest = candidates(responder.tokenizer, values, share)
    known = frequent(responder.renderer, texts)
    shots = random.Random(f"shots-{seed}").sample(known, min(20, len(known)))
    control = None
    if known:
        asked = [t for t in known if t not in shots] or known
        said = spoken_probability(responder, asked, shots, positions)
        control = sum(p > WEAK for p in said) / len(said)
    strong: list[int] = []
    weak: list[int] = []
    confirmed, chosen = "indicator", lowest
    if control is not None and control >= control_share:
        said = spoken_probability(responder, lowest, shots, positions)
        strong = [t for t, p in zip(lowest, said, strict=True) if p < STRONG]
        weak = [t for t, p in zip(lowest, said, strict=True) if STRONG <= p < WEAK]
        enough = len(strong) >= max(least, 100)
        confirmed, chosen = ("strong", strong) if enough else ("strong+weak", [*strong, *weak])
    if len(chosen) < least:
        raise BadInput(
            f"only {len(chosen)} tokens count as under-trained, {least} are needed; raise share "
            f"(now {share:g} of the usable vocabulary)"
        )
    return Undertrained(
        tuple(sorted(chosen)), name, confirmed, len(values), len(lowest), len(strong), len(weak), control
    )
