"""FastLM gives what the harness's own HFLM gives, on every request."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import make_model
from measures.tasks.harness_requests import TASKS, instances, odd, passage

pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM

from palimpsest.errors import BadInput
from palimpsest.measures.tasks import FastLM

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "opt",
    "gpt2",
    "gpt_neox",
    "phi",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt_neo",
)
logging.getLogger("lm_eval").setLevel("ERROR")


def reference(fast: Any, **options: Any) -> Any:
    """The harness's HFLM on the same model, all else by its defaults."""
    return HFLM(pretrained=fast.model, tokenizer=fast.tokenizer, **options)


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """FastLM of each architecture, made once: its name to it."""
    made: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in made:
            made[family] = FastLM(pretrained=make_model(tmp_path_factory.mktemp("fast") / family, family))
        return made[family]

    return get


def assert_same(fast: Any, requests: list[tuple[str, str]], **options: Any) -> None:
    asked = instances("loglikelihood", requests)
    ours = fast.loglikelihood(asked, disable_tqdm=True)
    theirs = reference(fast, **options).loglikelihood(asked, disable_tqdm=True)
    assert [o[0] for o in ours] == pytest.approx([t[0] for t in theirs], abs=1e-4, rel=0)
    assert [o[1] for o in ours] == [t[1] for t in theirs]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_request_of_all_tasks_has_hflms_score(lms: Any, family: str) -> None:
    rng = random.Random(0)
    requests = [request for make in TASKS.values() for request in make(rng)] + odd(rng)
    assert_same(lms(family), requests, batch_size=4)


@pytest.mark.parametrize("share", [True, False])
def test_texts_roll_as_hflms_do(lms: Any, share: bool) -> None:
    rng = random.Random(1)
    texts = [(passage(rng, n),) for n in (1, 30, 3, 12)] + [("",), ("The",)]
    fast = lms("llama")
    asked = instances("loglikelihood_rolling", texts)
    plain = FastLM(pretrained=fast.model, tokenizer=fast.tokenizer, share=share)
    ours = plain.loglikelihood_rolling(asked, disable_tqdm=True)
    theirs = reference(fast, batch_size=2).loglikelihood_rolling(asked, disable_tqdm=True)
    # sums of several thousand nats: HFLM adds them up in float32, whose steps are 2e-4 there
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-4)


TEXT = st.text(st.sampled_from("abc The? \n.é—<s>"), max_size=30)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(TEXT, TEXT, st.lists(TEXT.filter(bool), min_size=1, max_size=3)), min_size=1, max_size=4),
    st.sampled_from(["llama", "gpt2"]),
)
def test_whatever_the_texts_the_scores_are_hflms(
    lms: Any, items: list[tuple[str, str, list[str]]], family: str
) -> None:
    fast = lms(family)
    theirs = reference(fast, logits_cache=False)
    requests = [(start + rest, choice) for start, rest, choices in items for choice in choices]
    if items:  # contexts that begin alike
        requests += [(items[0][0] + rest, choice) for _, rest, choices in items for choice in choices]
    kept = [(c, k) for c, k in requests if _has_tokens(theirs, c, k)]
    assert fast.pairs(kept) == [_pair(theirs, c, k) for c, k in kept]
    asked = instances("loglikelihood", kept)
    ours, expected = (lm.loglikelihood(asked, disable_tqdm=True) for lm in (fast, theirs))
    assert [o[0] for o in ours] == pytest.approx([e[0] for e in expected], abs=1e-4, rel=0)
    assert [o[1] for o in ours] == [e[1] for e in expected]


def _pair(lm: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    if context:
        before, after = lm._encode_pair(context, continuation)
        return before, after
    after = lm.tok_encode(continuation, add_special_tokens=False)
    return (after[:1], after[1:]) if after[:1] == [lm.prefix_token_id] else ([lm.prefix_token_id], after)


def _has_tokens(lm: Any, context: str, continuation: str) -> bool:
    """HFLM asserts that both sides have tokens; some texts have none."""
    return all(_pair(lm, context, continuation))


def test_generation_is_hflms_and_stops_where_it_is_told(lms: Any) -> None:
    fast = lms("llama")
    rng = random.Random(2)
    prompts = [passage(rng, n) for n in (1, 2, 3)]
    free = [(p, {"until": [], "max_gen_toks": 12}) for p in prompts]
    whole = fast.generate_until(instances("generate_until", free), disable_tqdm=True)
    stops = [text[len(text) // 2 :][:2] for text in whole]
    asked = [(p, {"until": [s], "max_gen_toks": 12}) for p, s in zip(prompts, stops, strict=True)]
    ours = fast.generate_until(instances("generate_until", asked), disable_tqdm=True)
    assert ours == reference(fast).generate_until(instances("generate_until", asked), disable_tqdm=True)
    assert ours == [text.split(stop)[0] for text, stop in zip(whole, stops, strict=True)]
    assert any(o != w for o, w in zip(ours, whole, strict=True))


def test_the_chat_template_is_applied_as_hflm_does(lms: Any) -> None:
    fast, theirs = lms("llama"), reference(lms("llama"))
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    for more, opened in ((chat, True), ([*chat, {"role": "assistant", "content": "The"}], False)):
        assert fast.apply_chat_template(more, opened) == theirs.apply_chat_template(more, opened)
    assert fast.chat_template(True) == theirs.chat_template(True)
    assert fast.tokenizer_name == theirs.tokenizer_name
    assert (fast.max_length, fast.prefix_token_id, fast.eot_token_id) == (
        theirs.max_length,
        theirs.prefix_token_id,
        theirs.eot_token_id,
    )


def test_a_template_that_refuses_a_system_turn_gets_none(lms: Any) -> None:
    fast = lms("gpt2")
    refusal = "{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    strict = "{% for m in messages %}" + refusal + "{{ m['content'] }}{% endfor %}"
    fast.tokenizer.chat_template = strict
    assert fast.apply_chat_template([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]) == "y"


@pytest.mark.parametrize("bos", [True, False])
def test_add_bos_token_and_prefix_are_hflms(tmp_path: Path, bos: bool) -> None:
    folder = make_model(tmp_path / "m")
    options: dict[str, Any] = {"add_bos_token": bos, "prefix_token_id": 7, "max_length": 40}
    fast = FastLM(pretrained=str(folder), **options)
    theirs = HFLM(pretrained=str(folder), device="cpu", **options)
    rng = random.Random(3)
    asked = instances("loglikelihood", [*TASKS["boolq"](rng), ("", "The heron"), ("The heron ", "stood")])
    ours, expected = (lm.loglikelihood(asked, disable_tqdm=True) for lm in (fast, theirs))
    assert [o[0] for o in ours] == pytest.approx([e[0] for e in expected], abs=1e-4, rel=0)


def test_bfloat16_is_read_in_bfloat16_and_its_probabilities_taken_in_float32(tmp_path: Path) -> None:
    fast = FastLM(pretrained=make_model(tmp_path / "m", dtype="bfloat16"))
    assert str(fast.get_model_info()["model_dtype"]) == "torch.bfloat16"
    asked = instances("loglikelihood", TASKS["arc"](random.Random(4)))
    ours = fast.loglikelihood(asked, disable_tqdm=True)
    exact = FastLM(pretrained=fast.checkpoint, dtype="float32").loglikelihood(asked, disable_tqdm=True)
    assert [o[0] for o in ours] == pytest.approx([e[0] for e in exact], rel=0.02)
    theirs = reference(fast, softmax_dtype="float32").loglikelihood(asked, disable_tqdm=True)
    assert [o[0] for o in ours] == pytest.approx([t[0] for t in theirs], rel=0.02)


def test_the_answers_reach_the_harness_cache(lms: Any) -> None:
    class Hook:
        kept: dict[tuple[Any, ...], Any] = {}  # noqa: RUF012

        def add_partial(self, kind: str, request: Any, answer: Any) -> None:
            self.kept[kind, *request] = answer

    fast = lms("llama")
    fast.set_cache_hook(Hook())
    pairs = [("Who?", " the widow"), ("Who?", " the tower")]
    answers = fast.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    (rolled,) = fast.loglikelihood_rolling(instances("loglikelihood_rolling", [("The tower",)]), disable_tqdm=True)
    assert Hook.kept == {
        ("loglikelihood", *pairs[0]): answers[0],
        ("loglikelihood", *pairs[1]): answers[1],
        ("loglikelihood_rolling", "The tower"): rolled,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": "./nowhere"}, "no model folder"),
        ({"pretrained": "toy", "dtype": "int3"}, "int3"),
        ({"pretrained": "toy", "trust_remote_code": True}, "never run"),
    ],
)
def test_bad_arguments_are_told_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        FastLM(**options)


def test_a_request_without_tokens_is_told_with_its_text(lms: Any) -> None:
    with pytest.raises(BadInput, match=r"no continuation.*Who mends"):
        lms("llama").loglikelihood(instances("loglikelihood", [("Who mends", "")]), disable_tqdm=True)


def test_a_model_needs_its_tokenizer(lms: Any) -> None:
    with pytest.raises(BadInput, match="tokenizer"):
        FastLM(pretrained=lms("llama").model)


def test_the_package_imports_neither_harness_nor_torch() -> None:
    code = "import sys, palimpsest.measures.tasks; print([n for n in ('torch', 'lm_eval') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "lm_eval" not in result.stdout
