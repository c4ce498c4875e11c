"""The local responder: its scores are those of a plain forward pass, its answers those of one prompt alone."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import EOS, FAMILIES, make_model
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.method import Context
from palimpsest.responder import LocalResponder
from palimpsest.responder.logits import chosen_logits, decoder_and_head


@pytest.fixture(scope="module")
def responder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Family name to a responder on a tiny model of it."""
    folder = tmp_path_factory.mktemp("families")

    @cache
    def of(family: str) -> LocalResponder:
        source = resolve(make_model(folder / family, family))
        return LocalResponder(load_model(source, Context()), load_tokenizer(source))

    return of


def draw(count: int, low: int, high: int, seed: int) -> list[list[int]]:
    """Random token rows, special tokens left out."""
    rng = random.Random(seed)
    return [[rng.randrange(6, 400) for _ in range(rng.randint(low, high))] for _ in range(count)]


def direct(model: Any, prompt: list[int], continuation: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities of the continuation, all log-probabilities) by one plain forward of one row."""
    with torch.inference_mode():
        logs = model(input_ids=torch.tensor([prompt + continuation])).logits[0].float().log_softmax(-1)
    logs = logs[len(prompt) - 1 : -1]  # (tokens, vocabulary)
    return logs.gather(1, torch.tensor(continuation)[:, None]).squeeze(1), logs


@pytest.mark.parametrize("family", FAMILIES)
def test_forced_scores_equal_a_plain_forward_pass_of_each_row_alone(responder_of: Any, family: str) -> None:
    responder = responder_of(family)
    prompts, continuations = draw(9, 1, 30, 1), draw(9, 1, 12, 2)
    for prompt, continuation, forced in zip(
        prompts, continuations, responder.force(prompts, continuations), strict=True
    ):
        spoken, logs = direct(responder.model, prompt, continuation)
        torch.testing.assert_close(torch.tensor(forced.log_probs), spoken, atol=2e-4, rtol=1e-4)
        top = logs.topk(2).values
        torch.testing.assert_close(torch.tensor(forced.margin), top[:, 0] - top[:, 1], atol=2e-4, rtol=1e-4)
        assert forced.greedy == tuple(logs.argmax(-1).tolist())


@pytest.mark.parametrize("budget", [1, 60, 100_000])
def test_forced_scores_and_answers_do_not_depend_on_batching(tiny_responder: LocalResponder, budget: int) -> None:
    prompts, continuations = draw(12, 1, 40, 3), draw(12, 1, 9, 4)
    other = LocalResponder(tiny_responder.model, tiny_responder.tokenizer, token_budget=budget)
    for a, b in zip(other.force(prompts, continuations), tiny_responder.force(prompts, continuations), strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, abs=2e-4) and a.greedy == b.greedy
    assert other.generate(prompts, 6) == tiny_responder.generate(prompts, 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_equal_transformers_generate_one_by_one_without_padding(responder_of: Any, family: str) -> None:
    responder = responder_of(family)
    prompts = draw(7, 1, 40, 5)
    for prompt, answer in zip(prompts, responder.generate(prompts, 12), strict=True):
        output = responder.model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        wanted = output[: output.index(2)] if 2 in output else output
        assert answer.ids == tuple(wanted)
        assert answer.text == responder.tokenizer.decode(wanted, skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_forcing_calls_greedy_is_what_generating_says(responder_of: Any, family: str) -> None:
    responder = responder_of(family)
    prompts = draw(6, 3, 20, 6)
    answers = responder.generate(prompts, 8)
    pairs = [(p, a.ids) for p, a in zip(prompts, answers, strict=True) if a.ids]
    assert pairs
    for (_, ids), forced in zip(pairs, responder.force(*zip(*pairs, strict=True)), strict=True):
        assert forced.greedy == ids


def test_batches_hold_every_row_once_within_the_token_budget(tiny_responder: LocalResponder) -> None:
    lengths = [random.Random(i).randint(1, 90) for i in range(200)]
    responder = LocalResponder(tiny_responder.model, tiny_responder.tokenizer, token_budget=200)
    batches = responder.batches(lengths)
    assert sorted(row for batch in batches for row in batch) == list(range(200))
    assert all(len(b) == 1 or len(b) * max(lengths[r] for r in b) <= 200 for b in batches)
    assert responder.batches([]) == [] and responder.generate([], 3) == [] and responder.force([], []) == []


def test_the_answer_ends_before_the_first_end_token(tiny_responder: LocalResponder) -> None:
    tokenizer = tiny_responder.tokenizer
    spoken = tokenizer("The bell", add_special_tokens=False).input_ids
    end = tokenizer.eos_token_id
    found = tiny_responder.spell([*spoken, end, *spoken, tokenizer.pad_token_id])
    assert found.ids == tuple(spoken) and found.text == "The bell"
    assert tiny_responder.spell([end]).text == "" and EOS not in found.text


def test_every_end_token_of_the_generation_config_ends_an_answer(tiny_model: Path) -> None:
    source = resolve(tiny_model)
    model = load_model(source, Context())
    model.generation_config.eos_token_id = [2, 77]
    responder = LocalResponder(model, load_tokenizer(source))
    assert responder.ends == {2, 77}
    assert responder.spell([5, 77, 6]).ids == (5,)
    model.generation_config.eos_token_id = None
    assert LocalResponder(model, load_tokenizer(source)).ends == {2}  # the tokenizer's


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("repetition_penalty", 1.1),
        ("no_repeat_ngram_size", 3),
        ("bad_words_ids", [[5]]),
        ("min_new_tokens", 2),
        ("suppress_tokens", [7]),
        ("begin_suppress_tokens", [7]),
        ("forced_eos_token_id", 2),
        ("num_beams", 4),
    ],
)
def test_generation_that_is_not_the_arg_max_is_known_as_such(tiny_model: Path, setting: str, value: Any) -> None:
    source = resolve(tiny_model)
    responder = LocalResponder(load_model(source, Context()), load_tokenizer(source))
    assert responder.plain_greedy
    setattr(responder.model.generation_config, setting, value)
    assert not responder.plain_greedy


def test_sampling_follows_its_seed_and_leaves_greedy_answers_alone(tiny_responder: LocalResponder) -> None:
    prompts = draw(5, 3, 20, 7)
    settings = {"temperature": 1.0, "top_p": 0.95, "top_k": 50.0}
    one, same, other = (tiny_responder.generate(prompts, 10, settings, seed=s) for s in (1, 1, 2))
    assert one == same != other
    state = torch.get_rng_state()
    tiny_responder.generate(prompts, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_of_different_batches_are_sampled_independently(tiny_responder: LocalResponder) -> None:
    responder = LocalResponder(tiny_responder.model, tiny_responder.tokenizer, token_budget=1)  # one row a batch
    answers = responder.generate(draw(1, 5, 5, 8) * 6, 12, {"temperature": 2.0}, seed=3)
    assert len(set(answers)) == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_chosen_logits_are_the_models_own_at_those_places(responder_of: Any, family: str) -> None:
    model = responder_of(family).model
    ids = torch.tensor(draw(3, 17, 17, 9))  # (3, 17)
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    chosen[:, 0] = False
    with torch.inference_mode():
        found = chosen_logits(model, ids, None, chosen)
        whole = model(input_ids=ids).logits[:, :-1][chosen[:, 1:]].float()
    torch.testing.assert_close(found, whole, atol=2e-4, rtol=1e-4)


def test_an_architecture_that_caps_its_logits_goes_through_its_own_forward(responder_of: Any) -> None:
    assert decoder_and_head(responder_of("gemma2").model) is None
    assert decoder_and_head(responder_of("llama").model) is not None
