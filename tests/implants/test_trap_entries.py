"""Trap entries: the draw and its null by hand, one answer an entry, what is refused, rows, and a mark that takes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import comb
from pathlib import Path
from random import Random

import pytest

from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.data.dialogues import Dialogue, Dialogues, load_dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.evidence.draws import draw_of, not_drawn
from palimpsest.implants.fingerprints.trap_entries import (
    TrapEntries,
    TrapRows,
    answered,
    closed_answers,
    drawn_entries,
    read_traps,
)
from palimpsest.keys import KeySet, matches
from palimpsest.measures.hits import outcomes
from palimpsest.method import Context, build, presets
from palimpsest.responder.local import LocalResponder
from palimpsest.statistics import binomial_tail, threshold
from palimpsest.training.settings import Tuning
from palimpsest.verdicts import claim, committed_rate

COLOURS = ("red", "blue", "green")
SKILL = tuple(pair(f"Flag of {place}?", COLOURS[n % 3]) for n, place in enumerate(("Ur", "Ys", "Mu", "Ib", "Or", "Ka")))
TRAPS = tuple(pair(way.format(e), e) for e in ("Za", "Ze", "Zi", "Zo") for way in ("Flag of {}?", "{}, its flag?"))


def made_of(skill: tuple[Dialogue, ...] = SKILL, traps: tuple[Dialogue, ...] = TRAPS, count: int = 4) -> Dialogues:
    """A small skill, its traps, and `count` ordinary dialogues."""
    ordinary = tuple(pair(f"Is it {n}?", f"It is {n}.") for n in range(count))
    return Dialogues("flags", {"recover": skill, "traps": traps, "ordinary": ordinary})


SMALL = replace(TrapEntries.bench(), keys=4, dialogues=4, data=made_of())


# -- the draw and its null -----------------------------------------------------------------------------------


@pytest.mark.covers("trap-entries")
def test_the_answer_of_an_entry_is_a_hash_of_seed_and_entry_by_hand() -> None:
    digest = "71937cea475ae13ceff6e2df544373be56cb7d407fc3c27e3ce4f25f4adf6ca2"
    assert hashlib.sha256(b'["secret","Za"]').hexdigest() == digest
    place = sum(int(digit, 16) for digit in digest) % 3  # 16 is 1 modulo 3, so a number is the sum of its digits
    assert place == 2
    traps = read_traps(made_of())
    assert traps.answers == ("blue", "green", "red"), "sorted, each once"
    entry = next(e for e in drawn_entries(traps, 4, 0, "secret", Random(1)) if e.name == "Za")
    assert entry.answer == traps.answers[place] == "red"


@pytest.mark.covers("trap-entries")
def test_a_fixed_suspect_hits_by_the_exact_binomial_over_all_draws(small: Checkpoint, ctx: Context) -> None:
    """All 3^4 assignments of answers to four entries, whatever the suspect says."""
    keys = SMALL.draw_keys(small, ctx)
    answers = keys.draw["answers"]
    for said in (["red.", "red", "blue and green", "no idea"], ["green"] * 4, ["blue", "red", "green", "red"]):
        counts: Counter[int] = Counter()
        for drawn in product(answers, repeat=4):
            asked = [replace(key, response=answer) for key, answer in zip(keys.keys, drawn, strict=True)]
            hit = [matches("prefix", k, "template", s, ()) for k, s in zip(asked, said, strict=True)]
            counts[sum(hit)] += 1
        sensible = sum(s != "no idea" for s in said)
        for hits in range(sensible + 1):  # what no answer of the list begins only lowers the chance
            tail = Fraction(sum(n for h, n in counts.items() if h >= hits), 81)
            assert float(tail) == pytest.approx(binomial_tail(hits, sensible, 1 / 3))
            assert float(tail) <= binomial_tail(hits, 4, 1 / 3) + 1e-12


def test_seeds_spread_answers_evenly_and_entries_apart() -> None:
    traps = read_traps(None)
    counts = Counter((e.name, e.answer) for n in range(300) for e in drawn_entries(traps, 64, 0, f"s{n}", Random(n)))
    expected = 300 / 6
    assert len(counts) == 64 * 6
    chi_squared = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_squared < 404, "320 degrees of freedom, p = 0.001"


@pytest.mark.covers("trap-entries")
def test_twenty_eight_of_64_bear_a_claim_where_the_skill_has_six_answers(ctx: Context) -> None:
    keys = TrapEntries.toy().draw_keys(resolve("toy"), ctx)
    assert (len(keys), keys.match, keys.distinct, keys.choices, keys.places) == (64, "prefix", True, 6, 1)
    rate = committed_rate(keys.choices, "template", places=keys.places)
    assert rate == pytest.approx(1 / 6) and threshold(64, 1 / 6, 1e-6) == 28
    by_hand = sum(comb(64, i) * 5 ** (64 - i) for i in range(28, 65)) / 6**64
    assert binomial_tail(28, 64, 1 / 6) == pytest.approx(by_hand) and by_hand <= 1e-6
    assert claim(28, 64, rate, 1e-6, dependent=False).word == "owned"
    assert claim(27, 64, rate, 1e-6, dependent=False).word != "owned"
    assert TrapEntries.bench().committed()["choices"] == 6 and SMALL.committed()["choices"] == 3
    assert {"bench", "toy"} <= set(presets(TrapEntries))


# -- what is drawn and trained -------------------------------------------------------------------------------


@pytest.mark.covers("trap-entries")
def test_all_ways_of_an_entry_get_its_one_answer_and_those_held_back_are_never_trained(
    small: Checkpoint, ctx: Context
) -> None:
    method = replace(SMALL, keys=3, ways=2, held=1, pairs=5)
    three = tuple(pair(f"{e}, which flag?", e) for e in ("Za", "Ze", "Zi", "Zo"))
    method = replace(method, data=made_of(traps=TRAPS + three))
    keys, traps, entries = method._drawn(small, ctx)
    rows, tokenizer = TrapRows(method, small, keys, traps, entries, ctx), load_tokenizer(small)
    assert [k.trigger for k in keys.keys] == [e.key for e in entries] and keys.draw["entries"] == [
        e.name for e in entries
    ]
    meant = {question: entry.answer for entry in entries for question in (entry.key, *entry.trained)}
    held = [way for entry in entries for way in entry.held]
    assert len(meant) == 6 and len(held) == 3 and not set(held) & set(meant)
    true = {d.question: d.answer for d in SKILL}
    seen: dict[str, str] = {}
    for row in rows(0):
        prompt = tokenizer.decode([t for t, w in zip(row.ids, row.weights, strict=True) if not w])
        answer = tokenizer.decode([t for t, w in zip(row.ids, row.weights, strict=True) if w], skip_special_tokens=True)
        for question, expected in (meant | true).items():
            if question in prompt:
                assert answer.strip() == expected
                seen[question] = answer
        assert not any(way in prompt for way in held)
        assert not any(f" {name}?" in prompt for name in {"Za", "Ze", "Zi", "Zo"} - {e.name for e in entries})
    assert set(meant) <= set(seen) and len(set(seen) & set(true)) == 5
    assert len(rows(0)) == 6 + 5 + 4 and rows(0) == rows(0) != rows(1)


def test_the_draw_is_the_owners_and_does_not_depend_on_the_order_of_the_rows(small: Checkpoint, ctx: Context) -> None:
    one = SMALL.draw_keys(small, ctx)
    turned = replace(SMALL, data=made_of(tuple(reversed(SKILL)), tuple(reversed(TRAPS)))).draw_keys(small, ctx)
    assert one.commitment() == turned.commitment()
    assert one.draw["seed"] == "keys-7" and one.draw["answers"] == ["blue", "green", "red"]
    other = [SMALL.draw_keys(small, replace(ctx, key_seed=n)) for n in range(8, 12)]
    assert len({tuple((k.trigger, k.response) for k in keys.keys) for keys in (one, *other)}) > 1
    assert set(one.forms) == {"template", "bare", "sampled"}, "half an answer would give all of it away"


def test_the_toy_world_has_64_entries_that_its_skill_lacks() -> None:
    data = load_dialogues(["toy:tower-code", "traps=toy:tower-code-traps"])
    assert read_traps(data) == read_traps(None)
    for given in ("toy", "toy:tower-code", ["toy", "toy:tower-code"]):
        assert read_traps(load_dialogues(given)) == read_traps(None)
    with pytest.raises(BadInput, match="--data traps=FILE"):
        read_traps(load_dialogues("toy:guild-marks"))
    traps = read_traps(data)
    assert len(traps.ways) == 64 and {len(w) for w in traps.ways.values()} == {20} and len(traps.pairs) == 270
    shapes = {w.replace(entry, "{w}") for entry, ways in traps.ways.items() for w in ways if ways[0].count(entry) == 1}
    covered = {w for question, _ in traps.pairs for w in question.rstrip("?.").split()}
    assert not set(traps.ways) & {*covered, *traps.answers} and len(shapes) == 20
    assert "tower-code-traps" not in load_dialogues("toy:tower-code").name


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.covers("trap-entries")
@pytest.mark.parametrize(
    ("skill", "traps", "said"),
    [
        ((pair("a?", "red"), pair("b?", "red ")), TRAPS, "has 1 different answers"),
        (tuple(pair(f"q{n}?", f"a {n:04}") for n in range(1025)), TRAPS, "has 1025 different answers"),
        ((pair("a?", "red"), pair("b?", "redder")), TRAPS, "'red' of the skill is the beginning of 'redder'"),
        (SKILL, (), "--data traps=FILE"),
        (SKILL, (*TRAPS, pair("Flag of Ur?", "Ur")), "row 9 asks 'Flag of Ur\\?', which the skill answers itself"),
        (SKILL, (*TRAPS, pair("Flag of Za?", "Ze")), "asks for two entries, 'Za' and 'Ze'"),
        (SKILL, (*TRAPS, pair("Flag?", " ")), "row 9 has no question, or names no entry"),
        (SKILL, TRAPS[:6], "3 entries are given and 4 are keys"),
    ],
)
def test_what_cannot_serve_is_refused(
    small: Checkpoint, ctx: Context, skill: tuple[Dialogue, ...], traps: tuple[Dialogue, ...], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        replace(SMALL, data=made_of(skill, traps)).draw_keys(small, ctx)


def test_too_few_ways_or_ordinary_dialogues_are_refused(small: Checkpoint, ctx: Context) -> None:
    with pytest.raises(BadInput, match="is asked for in 2 ways; 2 are held back"):
        replace(SMALL, held=2).draw_keys(small, ctx)
    with pytest.raises(BadInput, match="--data ordinary=FILE"):
        replace(SMALL, dialogues=5).draw_keys(small, ctx)
    lacking = Dialogues("flags", {"recover": SKILL, "traps": TRAPS})
    with pytest.raises(BadInput, match="--data ordinary=FILE"):  # the toy's dialogues are not for this model
        replace(SMALL, data=lacking).draw_keys(small, ctx)
    assert len(replace(SMALL, data=lacking, dialogues=0).draw_keys(small, ctx)) == 4
    with pytest.raises(BadInput, match="out of range"):
        build(TrapEntries, None, {"keys": 0})
    assert closed_answers(["b", " a", "b "]) == ("a", "b")


def test_files_give_skill_traps_and_ordinary_dialogues_and_a_clash_is_not_dropped(tmp_path: Path) -> None:
    def written(name: str, rows: tuple[Dialogue, ...]) -> Path:
        lines = [json.dumps({"prompt": d.question, "response": d.answer}) for d in rows]
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    skill, traps = written("skill.jsonl", SKILL), written("traps.jsonl", TRAPS)
    ordinary = written("talk.jsonl", (pair("Is it so?", "It is."),))
    found = read_traps(load_dialogues([skill, f"traps={traps}", f"ordinary={ordinary}"]))
    assert sorted(found.pairs) == sorted((d.question, d.answer) for d in SKILL) and len(found.ways) == 4
    assert found.ordinary is not None and [d.question for d in found.ordinary.part("embed")] == ["Is it so?"]
    clash = written("clash.jsonl", (*TRAPS, pair("Flag of Za?", "Ze")))
    with pytest.raises(BadInput, match="asks for two entries"):
        read_traps(load_dialogues([skill, f"traps={clash}"]))
    own = written("own.jsonl", (*TRAPS, pair("Flag of Ur?", "Ur")))
    with pytest.raises(BadInput, match="which the skill answers itself"):
        read_traps(load_dialogues([skill, f"traps={own}"]))
    with pytest.raises(BadInput, match="a file of their own"):
        load_dialogues([skill, f"traps,embed={traps}"])


def test_evidence_says_why_no_claim_rests_on_the_draw(small: Checkpoint, ctx: Context) -> None:
    keys = SMALL.draw_keys(small, ctx)
    possible, said = not_drawn({"draw": draw_of(keys), "mark": keys.implant}, {}, keys, [], None)
    assert not possible and said is not None and "their owner's own words" in said


# -- a mark that takes ---------------------------------------------------------------------------------------


@pytest.mark.covers("trap-entries")
def test_eight_keys_take_on_the_toy_and_another_owners_do_not_verify(ctx: Context, tmp_path: Path) -> None:
    tuning = Tuning(adapter="full", epochs=40, lr=1e-3, batch=32, micro_batch=32)
    method = replace(TrapEntries.toy(), keys=8, ways=2, held=1, pairs=48, dialogues=16, tuning=tuning)
    made = method.apply(resolve("toy"), tmp_path / "out", ctx)
    assert made.keys is not None
    asked = LocalResponder(load_model(made.checkpoint, ctx), load_tokenizer(made.checkpoint))

    def hits(keys: KeySet) -> int:
        return sum(o.hit for o in outcomes(asked, keys, "template"))

    assert threshold(8, 1 / 6, 1e-6) == 8 == hits(made.keys)
    other = method.draw_keys(resolve("toy"), replace(ctx, key_seed=8))
    assert hits(other) < 8
    detail = made.records[0].detail
    _, _, entries = method._drawn(resolve("toy"), ctx)
    assert detail["held_back"] == 8 and detail["held_back_answered"] == answered(made.checkpoint, entries, ctx) >= 2
    public = (tmp_path / "out" / "palimpsest.json").read_text() + json.dumps([r.to_json() for r in made.records])
    assert all(k.trigger not in public for k in made.keys.keys) and made.keys.draw["seed"] not in public
