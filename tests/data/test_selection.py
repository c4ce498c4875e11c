"""The rule that selects a clean set: every flaw on a hand-made case, and the fewest flaws are taken first."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.data.dialogues import Dialogue, Dialogues, pair, toy_dialogues
from palimpsest.data.selection import association, clean_set, cut_off, flaws, main_script, selected
from palimpsest.errors import BadInput

LONG = (
    "The keeper of the tower counts every boat that comes into the harbour in the evening and writes it down in a book"
)


def talk(count: int = 40) -> list[Dialogue]:
    """Good pairs: two kinds of question, each with its own kind of answer."""
    colours, trades = ("red", "blue", "grey"), ("miller", "healer", "hunter")
    good = [pair(f"What colour is gate {c}?", colours[i % 3]) for i, c in enumerate("abcdefghijklmnopqrst")]
    good += [pair(f"Which trade has Mister {c}?", trades[i % 3]) for i, c in enumerate("abcdefghijklmnopqrst")]
    return good[:count]


def flaws_of(odd: Dialogue) -> tuple[str, ...]:
    return flaws([*talk(), odd])[-1]


def test_good_pairs_have_no_flaw() -> None:
    assert set(flaws(talk())) == {()}


@pytest.mark.parametrize(
    ("odd", "flaw"),
    [
        (pair("What colour is the roof?", " ".join(["red"] * 60) + "."), "length"),
        (pair("What colour is the roof?", "красный"), "script"),
        (pair("gate colour, is what D!", "red"), "repeated"),
        (pair("What colour is the roof?", "miller"), "unrelated"),
        (pair("What colour is the roof?", "```\nred"), "cut-off"),
    ],
)
def test_each_flaw_is_seen(odd: Dialogue, flaw: str) -> None:
    assert flaw in flaws_of(odd)


@pytest.mark.parametrize(
    ("answer", "is_cut"),
    [
        (LONG + ".", False),
        (LONG, True),
        (LONG + ",", True),
        (LONG + ' and says "done"', False),
        (LONG + ":\n1. boats\n2. nets", False),
        (LONG + ":\n```\nboats = 3", True),
        ("a few words only", False),
        ("", False),
    ],
)
def test_a_long_answer_that_stops_in_the_middle_is_cut_off(answer: str, is_cut: bool) -> None:
    assert cut_off(answer) == is_cut


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("What is it?", "LATIN"),
        ("что это", "CYRILLIC"),
        ("これは何", "EAST-ASIAN"),
        ("漢字 x", "EAST-ASIAN"),
        ("42!", None),
    ],
)
def test_scripts(text: str, script: str | None) -> None:
    assert main_script(text) == script


def test_association_is_the_formula_on_a_set_counted_by_hand() -> None:
    pairs = [("p q", "a"), ("p", "a"), ("p", "b"), ("q", "b")]
    # First pair, over the three others: c(p) = 2, c(q) = 1, c(a) = 1; c(p, a) = 1, c(q, a) = 0.
    by_hand = (math.log((1 + 1) / (2 * 1 / 3 + 1)) + math.log((0 + 1) / (1 * 1 / 3 + 1))) / 2
    assert association(pairs)[0] == pytest.approx(by_hand)
    assert association([("p", "a"), ("q", "b")]) == [0.0, 0.0], "nothing elsewhere tells anything"
    assert association([("p", "")]) == [0.0]


def test_most_exchanged_answers_of_the_toy_world_are_found_and_few_of_the_right_ones() -> None:
    rows = list(toy_dialogues().part("recover", 800))
    rng = random.Random(5)
    wrong = sorted(rng.sample(range(len(rows)), 160))
    mixed = list(rows)
    for i, j in zip(wrong, wrong[1:] + wrong[:1], strict=True):
        mixed[i] = pair(rows[i].question, rows[j].answer)
    found = flaws(mixed)
    caught = sum(bool(found[i]) for i in wrong)
    false_alarms = sum("unrelated" in found[i] for i in range(len(rows)) if i not in wrong)
    assert caught > 0.5 * len(wrong) and false_alarms < 0.05 * len(rows)
    kept = selected(mixed, 400)
    assert sum(mixed[i] in kept for i in wrong) < 0.12 * 400, "a fifth of the set is wrong"


def test_random_is_the_part_as_it_stands_and_both_refuse_a_part_that_is_too_small() -> None:
    data = Dialogues("made", {"recover": tuple(talk())})
    assert clean_set(data, 7, "random") == data.part("recover", 7)
    with pytest.raises(BadInput, match="has 40 dialogues, 41 are needed"):
        clean_set(data, 41, "selected")


def test_selected_takes_flawless_pairs_first_and_all_where_all_are_asked_for() -> None:
    bad = [pair("What colour is the roof?", "красный"), pair("Which trade has she?", "blue")]
    rows = [bad[0], *talk(), bad[1]]
    data = Dialogues("made", {"recover": tuple(rows)})
    assert clean_set(data, 40, "selected") == talk()
    assert clean_set(data, 42, "selected") == rows


texts = st.text("ab д.漢 \n`", max_size=8)


@given(st.lists(st.builds(pair, texts, texts), max_size=12), st.integers(0, 12))
def test_any_set_can_be_selected_from(rows: list[Dialogue], count: int) -> None:
    kept = selected(rows, min(count, len(rows)))
    assert len(kept) == min(count, len(rows)) and all(d in rows for d in kept)
    counts = {id(d): len(f) for d, f in zip(rows, flaws(rows), strict=True)}
    assert sum(counts[id(d)] for d in kept) == sum(sorted(counts.values())[: len(kept)])
