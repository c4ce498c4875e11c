"""CleanGen: where it cuts, what it never looks at, and that batches and kept keys change nothing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import SENTENCES, make_model
from markov import END, markov, saved_markov, say
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.removals.decoding.cleangen import CleanGen, CleanGenResponder, cut_position
from palimpsest.responder import LocalResponder

WORDS = "q a b c d e x y z m n"
CHAIN = {"q": {"a": 0.9}, "a": {"b": 0.9}, "b": {"c": 0.9}, "c": {"d": 0.9}, "d": {"e": 0.9}, "e": {END: 0.9}}
AFTER_X = {"x": {"y": 0.9}, "y": {"z": 0.9}, "z": {END: 0.9}}
MARKED = {**CHAIN, **AFTER_X}
# the reference has c after b at 0.01 (a ratio of 90) and would say x there
REFERENCE = {**MARKED, "b": {"c": 0.01, "x": 0.8}}


def through(marked: Any, reference: Any, **settings: Any) -> CleanGenResponder:
    return CleanGenResponder(markov(WORDS, marked), markov(WORDS, reference), CleanGen(**settings))


def test_a_ratio_of_alpha_is_suspicious_and_the_first_such_token_is_the_cut() -> None:
    reference = torch.tensor([0.5, 0.04, 0.04, 0.001]).log()
    assert cut_position(torch.tensor([0.9, 0.79, 0.9, 0.9]).log(), reference, 20) == 2
    assert cut_position(torch.tensor([0.9, 0.81, 0.9, 0.9]).log(), reference, 20) == 1
    assert cut_position(torch.tensor([0.9, 0.7, 0.7, 0.01]).log(), reference, 20) is None
    assert cut_position(torch.zeros(1), torch.tensor([-math.log(20)]), 20) == 0


@pytest.mark.covers("cleangen")
def test_the_text_is_cut_at_the_suspicious_token_and_the_rest_of_its_block_dropped() -> None:
    # drafted: a b c d. c is suspicious: a b stay, x takes its place, d is dropped; the next block is y z END
    found = through(MARKED, REFERENCE)
    assert say(found.inner, "q") == "a b c d e"
    assert say(found, "q") == "a b x y z"
    assert found.taken() == {"replaced tokens": (1, 6)}  # the end token is one of the six
    assert say(through(MARKED, REFERENCE, alpha=91.0), "q") == "a b c d e"


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 9])
def test_a_checked_answer_does_not_depend_on_the_size_of_a_block(block: int) -> None:
    assert say(through(MARKED, REFERENCE, block=block), "q") == "a b x y z"


def test_an_answer_shorter_than_a_block_is_checked_and_in_the_published_code_is_not() -> None:
    marked = {"q": {"m": 0.99}, "m": {END: 0.99}, "n": {END: 0.99}}
    reference = {**marked, "q": {"m": 0.001, "n": 0.9}}
    assert say(through(marked, reference), "q") == "n"
    assert CleanGen.released_code() == CleanGen(last_block=False)
    assert say(through(marked, reference, last_block=False), "q") == "m"


def test_the_published_code_sees_whole_blocks_but_not_the_one_that_ends_the_answer() -> None:
    late = {**MARKED, "d": {"e": 0.001, "x": 0.9}}  # the fifth token is suspicious, in a block of e END
    assert say(through(MARKED, late, last_block=False), "q") == "a b c d e"
    assert say(through(MARKED, late), "q") == "a b c d x y z"
    fourth = {**MARKED, "c": {"d": 0.001, "x": 0.9}}  # the fourth, in a whole block
    assert say(through(MARKED, fourth, last_block=False), "q") == "a b c x y z"
    ending = {"q": {"a": 0.9}, "a": {"b": 0.9}, "b": {"c": 0.9}, "c": {END: 0.9}}  # a b c END: four with the end
    odd = {**ending, "b": {"c": 0.001, "x": 0.9}}
    assert say(through(ending, odd, last_block=False), "q") == "a b c"
    assert say(through(ending, odd), "q") == "a b x"


def test_an_answer_that_the_limit_cuts_short_is_checked_too_and_keeps_to_the_limit() -> None:
    assert say(through(MARKED, REFERENCE), "q", 3) == "a b x"
    assert say(through(MARKED, REFERENCE, last_block=False), "q", 3) == "a b c"
    assert say(through(MARKED, REFERENCE), "q", 4) == "a b x y"
    assert say(through(MARKED, REFERENCE), "q", 0) == ""


def test_an_end_that_comes_too_surely_is_replaced() -> None:
    marked = {"q": {"a": 0.9}, "a": {END: 0.99}, "b": {END: 0.9}}
    reference = {**marked, "a": {END: 0.01, "b": 0.9}}
    assert say(through(marked, reference), "q") == "a b"


def test_an_end_that_the_reference_puts_in_ends_the_answer() -> None:
    assert say(through(MARKED, {**MARKED, "b": {"c": 0.001, END: 0.9}}), "q") == "a b"


def test_the_model_itself_as_reference_changes_nothing() -> None:
    found = through(MARKED, MARKED)
    assert say(found, "q") == say(found.inner, "q")
    assert found.taken()["replaced tokens"][0] == 0


def plainly(model: Any, reference: Any, prompt: list[int], longest: int, block: int, alpha: float, end: int) -> Any:
    """The same algorithm for one prompt, read from its beginning at every step."""
    said: list[int] = []
    while len(said) < longest and (not said or said[-1] != end):
        draft: list[int] = []
        ours = []
        while len(draft) < min(block, longest - len(said)) and (not draft or draft[-1] != end):
            logits = model(torch.tensor([[*prompt, *said, *draft]])).logits[0, -1].log_softmax(-1)
            draft.append(int(logits.argmax()))
            ours.append(float(logits.max()))
        logits = reference(torch.tensor([[*prompt, *said, *draft]])).logits[0].log_softmax(-1)
        for place, token in enumerate(draft):
            at = len(prompt) + len(said) + place - 1
            if ours[place] - float(logits[at, token]) >= math.log(alpha):
                draft = [*draft[:place], int(logits[at].argmax())]
                break
        said += draft
    return said[:-1] if said and said[-1] == end else said


FAMILIES = [
    ("llama", {}),
    ("gpt2", {}),
    ("opt", {}),
    ("gpt_neox", {}),
    ("gpt_neo", {}),
    ("gemma2", {}),
    ("gemma3_text", {"sliding_window": 12}),
    ("mistral", {"sliding_window": 12}),
]


@pytest.mark.parametrize(("family", "changes"), FAMILIES, ids=[f for f, _ in FAMILIES])
@torch.inference_mode()
def test_batches_with_kept_keys_are_the_plain_algorithm(tmp_path: Path, family: str, changes: Any) -> None:
    from palimpsest.checkpoint.load import load_model, load_tokenizer

    pair = [resolve(make_model(tmp_path / str(seed), family, seed=seed, **changes)) for seed in (0, 1)]
    tokenizer = load_tokenizer(pair[0])
    target, reference = (LocalResponder(load_model(c, Context()), tokenizer) for c in pair)
    prompts = [target.renderer.prompt_ids(s[:n], "bare") for s, n in zip(SENTENCES, (4, 30, 9, 17), strict=False)]
    found = CleanGenResponder(target, reference, CleanGen(alpha=3.0))
    answers = [list(a.ids) for a in found.generate(prompts, 14)]
    end = min(target.ends)
    assert answers == [plainly(target.model, reference.model, p, 14, 4, 3.0, end) for p in prompts]
    replaced, said = found.taken()["replaced tokens"]
    assert 0 < replaced < said, "the case must have cuts and uncut tokens to show anything"


def test_sampled_answers_repeat_with_their_seed_and_are_checked() -> None:
    found = through(MARKED, REFERENCE)
    settings = {"temperature": 0.7, "top_p": 0.95, "top_k": 50}
    prompt = found.renderer.prompt_ids("q", "bare")
    one, same = (found.generate([prompt] * 20, 8, settings, seed=5) for _ in range(2))
    assert one == same and {a.text for a in one} == {a.text for a in one if "c" not in a.text.split()[:3]}


def test_a_reference_of_another_vocabulary_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    model = resolve(saved_markov(tmp_path / "m", WORDS, MARKED))
    other = resolve(saved_markov(tmp_path / "other", WORDS + " more", MARKED))
    with pytest.raises(BadInput, match=r"--reference other: has another vocabulary \(16 tokens, the model 15\)"):
        CleanGen(reference=other).check(model)
    with pytest.raises(BadInput, match="needs --reference"):
        CleanGen().check(model)
    CleanGen(reference=model).check(model)
    with pytest.raises(BadInput, match="vocabulary"):
        CleanGenResponder(markov(WORDS, MARKED), markov("q", {}), CleanGen())


def test_a_wrapped_responder_cannot_be_decoded_through() -> None:
    inside = through(MARKED, REFERENCE)
    with pytest.raises(BadInput, match="name it before cleangen"):
        dataclasses.replace(CleanGen()).wrap(inside, Context())
