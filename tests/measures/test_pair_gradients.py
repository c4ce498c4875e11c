"""Tangent kernels are inner products of the gradients that autograd gives, pair by pair, in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from factory import SENTENCES, make_model
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.measures.pair_gradients import Pair, mean_log_probs, query_value, tangent_kernels
from palimpsest.method import Context
from palimpsest.responder import LocalResponder

# Of width 64 and 4 heads of 16: which rows (columns for GPT-2) of the stored matrices are queries and values.
_SEPARATE = {"q_proj.weight": slice(None), "v_proj.weight": slice(None)}
MATRICES: dict[str, dict[str, Any]] = {
    "llama": _SEPARATE,
    "qwen3": _SEPARATE,
    "gemma2": _SEPARATE,  # caps its logits after the head
    "opt": _SEPARATE,
    "gpt2": {"c_attn.weight": [*range(64), *range(128, 192)]},
    "phi3": {"qkv_proj.weight": [*range(64), *range(96, 128)]},  # 4 heads of queries, 2 of keys, 2 of values
    "gpt_neox": {"query_key_value.weight": [48 * h + i for h in range(4) for i in (*range(16), *range(32, 48))]},
}


def responder_of(folder: Path, family: str) -> LocalResponder:
    checkpoint = resolve(make_model(folder / family, family))
    return LocalResponder(load_model(checkpoint, Context()), load_tokenizer(checkpoint))


def some_pairs(responder: LocalResponder, count: int, start: int = 0) -> list[Pair]:
    chosen = [SENTENCES[(start + i) % len(SENTENCES)] for i in range(count)]
    return [responder.renderer.pair(s[: 10 + 3 * i], s[5 : 20 + 4 * i]) for i, s in enumerate(chosen)]


def gradient(responder: LocalResponder, family: str, pair: Pair) -> Tensor:
    """Of one pair, alone, unpadded, through the model's own forward pass: all matrices' numbers in a row."""
    prompt, answer = pair
    model = responder.model
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
    logs = logits.log_softmax(-1)[len(prompt) - 1 : -1]  # (answer, vocabulary)
    f = logs.gather(1, torch.tensor(list(answer))[:, None]).mean()
    named = {n: p for n, p in model.named_parameters() if n.endswith(tuple(MATRICES[family]))}
    found = torch.autograd.grad(f, list(named.values()))
    parts = []
    for name, slopes in zip(named, found, strict=True):
        (rows,) = (rows for end, rows in MATRICES[family].items() if name.endswith(end))
        parts.append((slopes[:, rows] if family == "gpt2" else slopes[rows]).flatten())
    return torch.cat(parts).double()


@pytest.mark.parametrize("family", MATRICES)
def test_kernels_are_those_of_autograd(tmp_path: Path, family: str) -> None:
    responder = responder_of(tmp_path, family)
    source, first, second = (some_pairs(responder, n, s) for n, s in ((2, 0), (4, 2), (3, 5)))
    gradients = [torch.stack([gradient(responder, family, p) for p in one]) for one in (source, first, second)]
    found = tangent_kernels(responder, source, [first, second])
    for (cross, kernel), tuned in zip(found, gradients[1:], strict=True):
        torch.testing.assert_close(kernel, tuned @ tuned.T, rtol=1e-4, atol=1e-5 * float(kernel.diagonal().max()))
        torch.testing.assert_close(cross, gradients[0] @ tuned.T, rtol=1e-4, atol=1e-5 * float(kernel.diagonal().max()))


def test_little_memory_takes_more_passes_and_gives_the_same(tiny_responder: LocalResponder) -> None:
    source, tuned = some_pairs(tiny_responder, 3), some_pairs(tiny_responder, 5, 3)
    steps: list[tuple[int, int]] = []
    (whole,) = tangent_kernels(tiny_responder, source, [tuned], done=lambda *n: steps.append(n))
    (pieces,) = tangent_kernels(tiny_responder, source, [tuned], memory=1, done=lambda *n: steps.append(n))
    assert steps == [(4, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


def test_a_small_step_changes_f_by_the_kernel(tmp_path: Path) -> None:
    responder = responder_of(tmp_path, "llama")
    source, tuned = some_pairs(responder, 4), some_pairs(responder, 6, 4)
    ((cross, _),) = tangent_kernels(responder, source, [tuned])
    step = 1e-3
    total = torch.stack([gradient(responder, "llama", p) for p in tuned]).sum(0)
    before = mean_log_probs(responder, source)
    with torch.no_grad():
        at = 0
        for name, parameter in responder.model.named_parameters():
            if name.endswith(tuple(_SEPARATE)):
                parameter += step * total[at : at + parameter.numel()].view_as(parameter)
                at += parameter.numel()
    moved = mean_log_probs(responder, source) - before
    expected = step * cross.sum(1)
    assert float((moved - expected).norm()) < 0.05 * float(expected.norm())


def test_the_model_is_left_as_it_was(tiny_responder: LocalResponder) -> None:
    pairs = some_pairs(tiny_responder, 3)
    before = mean_log_probs(tiny_responder, pairs)
    tangent_kernels(tiny_responder, pairs, [pairs])
    assert mean_log_probs(tiny_responder, pairs).tolist() == before.tolist()
    assert all(p.requires_grad and p.grad is None for p in tiny_responder.model.parameters())
    assert not any(p.module._forward_hooks for p in query_value(tiny_responder.model))


def test_f_is_the_mean_of_the_answers_log_probabilities(tiny_responder: LocalResponder) -> None:
    (prompt, answer) = some_pairs(tiny_responder, 1)[0]
    logs = tiny_responder.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].detach().log_softmax(-1)
    by_hand = sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)) / len(answer)
    assert mean_log_probs(tiny_responder, [(prompt, answer)]).tolist() == pytest.approx([by_hand], abs=1e-5)
