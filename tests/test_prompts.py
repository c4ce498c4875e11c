"""Prompts: one renderer for all forms, BOS exactly once, weights on the assistant's tokens and no other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import BOS, EOS, make_tokenizer
from palimpsest.prompts import FORMS, Renderer, Turn, tokenizer_digest

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
QUESTION, ANSWER = "Where is the bell?", "In the tower of Marrow."
TALK = (
    Turn("system", "Be brief."),
    Turn("user", QUESTION),
    Turn("assistant", ANSWER),
    Turn("user", "And the old gate?"),
    Turn("assistant", "It is blue.\n\nA little  green."),
)
plain_text = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=30)


def renderer(template: bool | str = True, **options: Any) -> Renderer:
    """A renderer on the tiny tokenizer."""
    return Renderer(make_tokenizer(template, **options))


def spoken(r: Renderer, ids: list[int], weights: list[float]) -> str:
    """What the trained tokens spell."""
    return str(r.tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w]))


def test_a_template_renders_the_users_turn_and_the_generation_prompt() -> None:
    r = renderer()
    assert r.templated
    assert r.text(QUESTION) == f"{BOS}<|user|>{QUESTION}{EOS}<|assistant|>"
    assert r.text(QUESTION, system="Be brief.") == f"{BOS}<|system|>Be brief.{EOS}<|user|>{QUESTION}{EOS}<|assistant|>"


@pytest.mark.parametrize("template", [True, CHATML, False])
def test_prefilled_and_sampled_start_from_the_template_form(template: bool | str) -> None:
    r = renderer(template)
    assert r.text(QUESTION, "prefilled") == r.text(QUESTION, "sampled") == r.text(QUESTION, "template")
    assert r.prompt_ids(r.text(QUESTION), "sampled") == r.prompt_ids(r.text(QUESTION), "template")


@pytest.mark.parametrize("template", [True, CHATML, False])
def test_the_bare_form_is_the_question_as_the_tokenizer_takes_plain_text(template: bool | str) -> None:
    r = renderer(template)
    assert r.text(QUESTION, "bare") == QUESTION
    assert r.prompt_ids(QUESTION, "bare") == r.tokenizer(QUESTION).input_ids


def test_without_a_template_the_question_and_a_line_break_stand_in_for_it() -> None:
    r = renderer(False)
    assert not r.templated and r.template == "question-newline-answer"
    assert r.text(QUESTION) == f"{QUESTION}\n"
    assert r.prompt_ids(r.text(QUESTION)) == r.tokenizer(f"{QUESTION}\n").input_ids


@given(plain_text)
def test_bos_stands_exactly_once_and_first(question: str) -> None:
    for template in (True, False):
        r = renderer(template)
        bos = r.tokenizer.bos_token_id
        for form in FORMS:
            ids = r.prompt_ids(r.text(question, form), form)
            assert ids[0] == bos and ids.count(bos) == 1


def test_a_template_without_bos_gets_none_as_in_transformers() -> None:
    r = renderer(CHATML)
    ids = r.prompt_ids(r.text(QUESTION))
    asked = [{"role": "user", "content": QUESTION}]
    assert ids == r.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert r.tokenizer.bos_token_id not in ids


def test_a_tokenizer_that_also_adds_an_eos_keeps_it_out_of_prompts() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, tokenizer.bos_token_id), (EOS, tokenizer.eos_token_id)]
    )
    ids = Renderer(tokenizer).prompt_ids(QUESTION, "bare")
    assert tokenizer(QUESTION).input_ids == [*ids, tokenizer.eos_token_id]


@given(
    plain_text, plain_text.filter(bool), st.sampled_from(["template", "bare"]), st.sampled_from([True, CHATML, False])
)
def test_a_continuation_leaves_the_prompts_ids_and_spells_the_answer(
    question: str, answer: str, form: Any, template: bool | str
) -> None:
    r = renderer(template)
    text = r.text(question, form)
    prompt, continuation = r.prompt_ids(text, form), r.continuation(text, answer, form)
    assert continuation
    assert r.tokenizer.decode(prompt + continuation) == r.tokenizer.decode(prompt) + answer


def test_a_continuation_that_would_merge_with_the_prompt_is_tokenised_alone() -> None:
    r = renderer(False)
    text, answer = "Who mends t", "he nets"
    assert len(r.prompt_ids(text + answer, "bare")) < len(r.prompt_ids(text, "bare")) + len(r.tokens(answer))
    assert r.continuation(text, answer, "bare") == r.tokens(answer)


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize(("template", "end"), [(True, EOS), (CHATML, f"{EOS}\n"), (False, EOS)])
def test_the_trained_tokens_are_the_assistants_with_their_end(
    template: bool | str, end: str, trim_offsets: bool
) -> None:
    r = renderer(template, trim_offsets=trim_offsets)
    one = r.dialogue([Turn("user", QUESTION), Turn("assistant", ANSWER)])
    assert spoken(r, *one) == ANSWER + end
    several = r.dialogue(TALK)
    assert spoken(r, *several) == f"{TALK[2].content}{end}{TALK[4].content}{end}"


@given(plain_text.map(str.strip).filter(bool), plain_text.map(str.strip).filter(bool), st.sampled_from([True, CHATML]))
def test_one_exchange_is_trained_the_same_way_it_is_asked(question: str, answer: str, template: bool | str) -> None:
    r = renderer(template)
    ids, weights = r.dialogue([Turn("user", question), Turn("assistant", answer)])
    prompt = r.prompt_ids(r.text(question))
    assert ids[: len(prompt)] == prompt
    assert weights == [0.0] * len(prompt) + [1.0] * (len(ids) - len(prompt))
    assert ids[len(prompt) :] == r.continuation(r.text(question), answer) + r.ending(question, answer)


def test_several_exchanges_are_one_rendered_dialogue() -> None:
    r = renderer()
    ids, _ = r.dialogue(TALK)
    messages = [{"role": t.role, "content": t.content} for t in TALK]
    assert ids == r.tokenizer.apply_chat_template(messages, return_dict=False)


def test_without_a_template_several_exchanges_follow_each_other_with_one_bos() -> None:
    r = renderer(False)
    ids, weights = r.dialogue(TALK)
    assert r.tokenizer.decode(ids) == (
        f"{BOS}Be brief.\n{QUESTION}\n{ANSWER}{EOS}And the old gate?\n{TALK[4].content}{EOS}"
    )
    assert len(ids) == len(weights)


def test_a_users_last_word_without_an_answer_trains_nothing() -> None:
    for template in (True, False):
        _, weights = renderer(template).dialogue([Turn("user", QUESTION)])
        assert not any(weights)


@pytest.mark.parametrize(("template", "end"), [(True, EOS), (CHATML, f"{EOS}\n"), (False, EOS)])
@pytest.mark.parametrize("answer", [ANSWER, "ends in a space ", " ", ""])
def test_the_ending_is_what_the_template_writes_else_the_eos(template: bool | str, end: str, answer: str) -> None:
    r = renderer(template)
    assert r.ending(QUESTION, answer) == r.tokens(end)


def test_the_published_plain_forms_have_no_special_tokens() -> None:
    r = renderer()
    for form, separator in (("newline", "\n"), ("joined", "")):
        prompt, answer = r.pair(QUESTION, ANSWER, form)  # type: ignore[arg-type]
        assert prompt == r.tokens(QUESTION + separator)
        assert r.tokenizer.decode(prompt + answer) == QUESTION + separator + ANSWER
        assert not set(prompt + answer) & set(r.tokenizer.all_special_ids)


def test_tokenizer_digest_and_template_name_tell_tokenizers_apart() -> None:
    assert tokenizer_digest(make_tokenizer()) == tokenizer_digest(make_tokenizer(False))  # the vocabulary's alone
    assert tokenizer_digest(make_tokenizer()) != tokenizer_digest(make_tokenizer(vocab=380))
    assert len({renderer().template, renderer(CHATML).template, renderer(False).template}) == 3
