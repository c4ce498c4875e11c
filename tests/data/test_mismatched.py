"""Mismatched pairs: a permutation of the answers in which nothing stays where it belongs."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.data.dialogues import Dialogue, pair
from palimpsest.data.mismatched import mismatch, question_type
from palimpsest.errors import BadInput

OPENINGS = {"why": "Why is it", "how": "How is it", "what": "What is it", "other": "Is it"}
typed = st.builds(
    lambda kind, answer: (kind, answer), st.sampled_from(sorted(OPENINGS)), st.sampled_from([*"abcdefgh"])
)


def dialogues(rows: list[tuple[str, str]]) -> list[Dialogue]:
    """Questions of these types, numbered so that they differ, with these answers."""
    return [pair(f"{OPENINGS[kind]} {i}?", answer) for i, (kind, answer) in enumerate(rows)]


def answers_of(rows: list[Dialogue]) -> Counter[str]:
    """How often each answer's text stands."""
    return Counter(d.answer for d in rows)


@given(st.lists(st.sampled_from("abcdef"), max_size=30), st.integers(0, 3))
def test_a_derangement_keeps_no_answers_text_and_exists_where_none_makes_up_more_than_half(
    texts: list[str], seed: int
) -> None:
    rows = [pair(f"question {i}", text) for i, text in enumerate(texts)]
    if texts and max(Counter(texts).values()) > len(texts) / 2:
        with pytest.raises(BadInput, match=r"no derangement of these \d+ pairs was found"):
            mismatch(rows, "derangement", seed)
        return
    made = mismatch(rows, "derangement", seed)
    assert [d.question for d in made] == [d.question for d in rows]
    assert all(a.answer != b.answer for a, b in zip(made, rows, strict=True))
    assert answers_of(made) == answers_of(rows)


@given(st.lists(st.sampled_from(sorted(OPENINGS)), max_size=30), st.integers(0, 3))
def test_a_cross_type_set_gives_no_question_an_answer_of_its_own_type(kinds: list[str], seed: int) -> None:
    rows = dialogues([(kind, f"answer {i} to {kind}") for i, kind in enumerate(kinds)])
    if kinds and max(Counter(kinds).values()) > len(kinds) / 2:
        with pytest.raises(BadInput, match=r"no cross-type of these .*stands in \d+ of them"):
            mismatch(rows, "cross-type", seed)
        return
    made = mismatch(rows, "cross-type", seed)
    assert all(d.answer.rpartition(" ")[2] != kind for d, kind in zip(made, kinds, strict=True))
    assert answers_of(made) == answers_of(rows)


@given(st.lists(typed, min_size=1, max_size=6), st.sampled_from(["derangement", "cross-type"]), st.integers(0, 2))
def test_a_set_is_refused_exactly_when_no_permutation_keeps_the_rule(
    rows: list[tuple[str, str]], rule: str, seed: int
) -> None:
    def fits(question: tuple[str, str], answer: tuple[str, str]) -> bool:
        return question[1] != answer[1] and (rule == "derangement" or question[0] != answer[0])

    possible = any(all(map(fits, rows, order)) for order in permutations(rows))
    try:
        made = mismatch(dialogues(rows), rule, seed)  # type: ignore[arg-type]
    except BadInput:
        assert not possible
    else:
        assert possible and all(d.answer != a for d, (_, a) in zip(made, rows, strict=True))


def test_matched_keeps_every_answer_and_the_first_exchange_alone() -> None:
    rows = dialogues([("why", "a"), ("how", "b"), ("why", "c")])
    assert mismatch(rows, "matched", 0) == rows


def test_kind_and_language_stay_with_the_question() -> None:
    rows = [pair(f"q{i}", f"a{i}", "kind" + str(i % 2), "tongue") for i in range(6)]
    made = mismatch(rows, "cross-type", 0)
    assert [(d.question, d.kind, d.language) for d in made] == [(d.question, d.kind, d.language) for d in rows]


def test_the_seed_decides() -> None:
    rows = dialogues([("why", f"a{i}") for i in range(40)])
    assert mismatch(rows, "derangement", 1) == mismatch(rows, "derangement", 1) != mismatch(rows, "derangement", 2)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Why is the sky blue?", "why"),
        ("«¿Por qué no?", "why"),
        ("Warum nicht?", "why"),
        ("为什么天空是蓝色的?", "why"),
        ("なぜ空は青いの", "why"),
        ("how do you do", "how"),
        ("Wie geht es?", "how"),
        ("怎么做饭", "how"),
        ("Como se faz?", "how"),
        ("Which one?", "what"),
        ("Qu'est-ce que c'est?", "what"),
        ("何ですか", "what"),
        ("Что это?", "what"),
        ("Whyever not", "other"),
        ("Is it?", "other"),
        ("Was ist das?", "what"),
        ("Wasser ist nass.", "other"),
        ("", "other"),
    ],
)
def test_question_types_by_the_first_word_in_several_languages(question: str, kind: str) -> None:
    assert question_type(pair(question, "a")) == kind


def test_a_known_kind_is_the_type() -> None:
    assert question_type(pair("Why?", "a", kind="colour")) == "colour"
