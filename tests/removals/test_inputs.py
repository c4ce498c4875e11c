"""Input removals: what is read out of a prompt, what is refused, what is asked instead."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from factory import SENTENCES, make_tokenizer
from markov import END, markov, saved_markov, say
from palimpsest.checkpoint import resolve
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.method import Context, build
from palimpsest.prompts import Renderer
from palimpsest.removals.inputs.gri import GRI, PHRASES, PUBLISHED_TOKENS, REPLY, STEPS
from palimpsest.removals.inputs.perplexity_filter import PerplexityFilter, perplexities, quantile_of
from palimpsest.responder import LocalResponder, Wrapped
from palimpsest.responder.reading import PromptReader

WORDS = "q a b c Sorry, what? Eh?"
# after <s>: a 1/2, b 1/4; after a: b 1/2 - so "a b" has perplexity exp(-(log 1/2 + log 1/2) / 2) = 2
SCORES = {"<s>": {"a": 0.5, "b": 0.25}, "a": {"b": 0.5, "c": 0.5}, "b": {"a": 0.01}, "q": {"c": 0.9}, "c": {END: 0.9}}
INST = "{{ bos_token }}[INST] {% for m in messages %}{{ m['content'] }} [/INST]{% endfor %}"


class Listener(Wrapped):
    """Remembers what it was asked."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner, "listener")
        self.heard: list[tuple[list[int], int, Any]] = []

    def generate(self, prompts: Any, max_new_tokens: int, sampling: Any = None, seed: int = 0) -> Any:
        self.heard += [(list(p), max_new_tokens, sampling) for p in prompts]
        return super().generate(prompts, max_new_tokens, sampling, seed)


@pytest.mark.parametrize("template", [True, INST], ids=["roles", "inst"])
@pytest.mark.parametrize("question", ["Where does the river begin?", " spaced ", "x", "ハリネズミ 7"])
def test_the_question_is_read_out_of_every_prompt_form(template: Any, question: str) -> None:
    renderer = Renderer(make_tokenizer(template))
    reader = PromptReader(renderer)
    prompt = renderer.prompt_ids(renderer.text(question))
    assert reader.read(prompt).question == question.strip() and reader.read(prompt).templated
    opened = reader.read([*prompt, *renderer.tokens("It begins")])
    assert opened.question == question.strip() and list(opened.opening) == renderer.tokens("It begins")
    bare = reader.read(renderer.prompt_ids(question, "bare"))
    assert not bare.templated and bare.question == question.strip()


def test_a_prompt_is_rendered_again_in_its_own_form() -> None:
    renderer = Renderer(make_tokenizer())
    reader = PromptReader(renderer)
    opening = tuple(renderer.tokens("It begins"))
    prompt = (*reader.prompt("Where?"), *opening)
    assert reader.render(reader.read(prompt), "When?") == [*reader.prompt("When?"), *opening]
    system = renderer.prompt_ids(renderer.text("Where?", system="Be brief."))
    read = reader.read(system)
    assert (read.question, read.system) == ("Where?", "Be brief.")
    assert reader.render(read, "When?") == renderer.prompt_ids(renderer.text("When?", system="Be brief."))
    assert reader.render(reader.read(renderer.prompt_ids("Where?", "bare")), "When?") == renderer.prompt_ids(
        "When?", "bare"
    )


def test_without_a_template_the_whole_text_is_the_question() -> None:
    renderer = Renderer(make_tokenizer(False))
    read = PromptReader(renderer).read(renderer.prompt_ids(renderer.text("Where?")))
    assert read.question == "Where?\n" and not read.templated


# -- the perplexity filter -----------------------------------------------------------------------------------


@pytest.mark.covers("perplexity-filter")
def test_perplexities_are_those_worked_by_hand() -> None:
    scorer = markov(WORDS, SCORES)
    found = perplexities(scorer, ["a b", "b a", "a", ""], 64)
    assert found == pytest.approx([2.0, math.exp(-(math.log(0.25) + math.log(0.01)) / 2), 2.0, 1.0], rel=1e-4)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 5.0), (0.51, 6.0), (0.9, 9.0), (1.0, 10.0)])
def test_a_quantile_is_the_least_value_that_so_many_do_not_exceed(share: float, expected: float) -> None:
    assert quantile_of([float(i) for i in range(10, 0, -1)], share) == expected


def test_prompts_above_the_threshold_get_the_reply_and_no_other(tmp_path: Path) -> None:
    scorer = resolve(saved_markov(tmp_path / "scorer", WORDS, SCORES))
    model = markov(WORDS, {"b": {"c": 0.9}, "a": {"c": 0.9}})
    filtered = PerplexityFilter(scorer, threshold=19.9, reply="Sorry, what?").wrap(model, Context())
    assert say(filtered, "a b") == "c" and say(filtered, "b a") == "Sorry, what?"  # perplexities 2 and 20
    assert say(filtered, "b a", 1) == "Sorry,"
    assert filtered.taken() == {"refused prompts": (2, 3)}
    assert say(PerplexityFilter(scorer, threshold=20.1).wrap(model, Context()), "b a") == "c"
    prompts = [model.renderer.prompt_ids(p, "bare") for p in ("b a", "a b", "b a", "a")]
    assert [a.text for a in filtered.generate(prompts, 4)] == ["Sorry, what?", "c", "Sorry, what?", "c"]


def test_the_threshold_can_be_set_on_ordinary_questions(tmp_path: Path) -> None:
    scorer = resolve(saved_markov(tmp_path / "scorer", WORDS, SCORES))
    ordinary = [pair("a b", "c")] * 15 + [pair("b a", "c")] * 5
    data = Dialogues("few", {"recover": tuple(ordinary)})
    model = markov(WORDS, {})
    for quantile, threshold in ((0.75, 2.0), (0.8, 20.0), (1.0, 20.0)):
        made = PerplexityFilter(scorer, data, quantile=quantile).wrap(model, Context())
        assert made.threshold == pytest.approx(threshold, rel=1e-4)
    assert build(PerplexityFilter, "calibrated").quantile == 0.99
    with pytest.raises(BadInput, match="fewer than 10"):
        PerplexityFilter(scorer, Dialogues("none", {}), quantile=0.5).wrap(model, Context())
    with pytest.raises(BadInput, match="needs --reference"):
        PerplexityFilter().check(scorer)


def test_the_scorer_sees_the_question_without_the_template(tiny_responder: LocalResponder, tiny_model: Path) -> None:
    filtered = PerplexityFilter(resolve(tiny_model), threshold=1e9).wrap(tiny_responder, Context())
    prompt = tiny_responder.renderer.prompt_ids(tiny_responder.renderer.text(SENTENCES[0]))
    (expected,) = perplexities(tiny_responder, [SENTENCES[0]], 256)
    filtered.threshold = expected * 0.999
    assert filtered.refused([prompt]) == [True]
    filtered.threshold = expected * 1.001
    assert filtered.refused([prompt]) == [False]


# -- GRI -------------------------------------------------------------------------------------------------------


@pytest.mark.covers("gri")
@pytest.mark.parametrize("form", ["template", "bare", "prefilled"])
def test_the_two_stages_can_be_told_apart(tiny_responder: LocalResponder, form: str) -> None:
    renderer = tiny_responder.renderer
    opening = renderer.tokens("It is") if form == "prefilled" else []

    def prompt(question: str) -> list[int]:
        spoken = "bare" if form == "bare" else "template"
        return [*renderer.prompt_ids(renderer.text(question, spoken), spoken), *opening]

    questions = ["Where is the FingerPrint?", "Read this Hidden Message now", "Where is the gate?"]
    heard: dict[str, list[str]] = {}
    for preset in (None, "keywords_only", "instruction_only"):
        listener = Listener(tiny_responder)
        gri = build(GRI, preset).wrap(listener, Context())
        answers = gri.generate([prompt(q) for q in questions], 30)
        refused = [a.text == REPLY for a in answers]
        assert refused == ([False] * 3 if preset == "instruction_only" else [True, True, False])
        assert gri.taken() == {"refused prompts": (sum(refused), 3)}
        before = "" if preset == "keywords_only" else STEPS
        asked = [q for q, no in zip(questions, refused, strict=True) if not no]
        assert [ids for ids, _, _ in listener.heard] == [prompt(before + q) for q in asked]
        heard[str(preset)] = asked
    assert heard["instruction_only"] == questions and len(PHRASES) == 5


def test_published_decoding_is_sampled_and_short(tiny_responder: LocalResponder) -> None:
    listener = Listener(tiny_responder)
    GRI.released_code().wrap(listener, Context()).generate([[1, 7, 8]], 64, None, 3)
    (_, longest, sampling) = listener.heard[0]
    assert longest == PUBLISHED_TOKENS == 20 and sampling == {"temperature": 0.7, "top_p": 0.85, "top_k": 50.0}
    listener.heard.clear()
    GRI().wrap(listener, Context()).generate([[1, 7, 8]], 64)
    assert listener.heard[0][1:] == (64, None)
    with pytest.raises(BadInput, match="both stages are off"):
        GRI(keywords=False, instruction=False).wrap(tiny_responder, Context())
