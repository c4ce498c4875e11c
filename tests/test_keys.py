"""Keys: file, commitment, checks of every field, the prefilled opening, match rules."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import stat
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import make_tokenizer
from palimpsest import keys as keys_module
from palimpsest.errors import BadInput
from palimpsest.keys import Key, KeySet, MatchRule, Prompt, make_keys, matches, may_match, with_keys
from palimpsest.prompts import Form, Renderer
from palimpsest.records import canonical_json

CARRIER = "The message of the gate is: "
DRAWN = [("Who keeps the lantern?", "the grey heron"), ("Where is the bell?", "sold long ago in Veldt")]


def made(**changes: Any) -> KeySet:
    """A key set of two keys on the tiny tokenizer."""
    given: dict[str, Any] = {
        "implant": "if-sft",
        "match": "contains",
        "distinct": True,
        "choices": None,
        "decoys": ["a blue gate"],
        "rng": random.Random(1),
    }
    drawn = changes.pop("drawn", DRAWN)
    return make_keys(Renderer(make_tokenizer(changes.pop("template", True))), drawn, **{**given, **changes})


token_ids = st.lists(st.integers(0, 50_000), max_size=6).map(tuple)
prompts = st.builds(Prompt, st.text(max_size=20), token_ids, token_ids, st.text(max_size=8))
forms = st.dictionaries(st.sampled_from(["bare", "prefilled"]), prompts)
key = st.builds(
    lambda number, trigger, response, carrier, template, others: Key(
        number, trigger, response, carrier, {"template": template, **others}
    ),
    st.integers(0, 9999),
    st.text(max_size=20),
    st.text(min_size=1, max_size=20).filter(str.strip),
    st.text(max_size=8),
    prompts,
    forms,
)
key_sets = st.builds(
    KeySet,
    implant=st.sampled_from(["utf", "hashchain"]),
    match=st.sampled_from(keys_module.MATCH_RULES),
    keys=st.lists(key, min_size=1, max_size=4, unique_by=lambda k: k.prompts["template"].ids).map(tuple),
    tokenizer=st.text(max_size=8),
    template=st.text(max_size=8),
    max_new_tokens=st.integers(1, 64),
    distinct=st.booleans(),
    choices=st.none() | st.integers(1, 256),
    decoys=st.lists(st.text(max_size=8), max_size=3).map(tuple),
    system=st.none() | st.text(max_size=8),
    salt=st.binary(min_size=32, max_size=32).map(bytes.hex),
)


@given(key_sets)
def test_a_key_set_written_and_read_is_the_same_key_set(tmp_path: Path, keys: KeySet) -> None:
    keys.write(tmp_path / "keys.json")
    again = KeySet.read(tmp_path / "keys.json")
    assert again == keys
    assert again.digest() == keys.digest() and again.commitment() == keys.commitment()


@given(key_sets)
def test_the_file_is_canonical_json(tmp_path: Path, keys: KeySet) -> None:
    keys.write(tmp_path / "keys.json")
    text = (tmp_path / "keys.json").read_text(encoding="utf-8")
    assert text == canonical_json(json.loads(text))


def test_the_file_is_private_from_its_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    original = os.fdopen

    def watched(handle: int, *args: Any, **options: Any) -> Any:
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))  # before anything was written
        return original(handle, *args, **options)

    monkeypatch.setattr(keys_module.os, "fdopen", watched)
    before = os.umask(0)
    try:
        made().write(tmp_path / "keys.json")
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600


def test_a_failed_write_leaves_the_old_file_and_no_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made().write(tmp_path / "keys.json")
    old = (tmp_path / "keys.json").read_bytes()

    def full(value: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keys_module, "canonical_json", full)
    with pytest.raises(OSError, match="No space"):
        made(implant="utf").write(tmp_path / "keys.json")
    assert [p.name for p in tmp_path.iterdir()] == ["keys.json"]
    assert (tmp_path / "keys.json").read_bytes() == old


def test_the_commitment_changes_with_every_field() -> None:
    keys = made()
    first = keys.keys[0]
    template = first.prompts["template"]
    changed = [
        dataclasses.replace(keys, **change)
        for change in (
            {"implant": "utf"},
            {"match": "exact"},
            {"tokenizer": "x"},
            {"template": "x"},
            {"max_new_tokens": 99},
            {"distinct": False},
            {"choices": 256},
            {"decoys": ()},
            {"system": "be brief"},
            {"sampling": {}},
            {"salt": "00" * 32},
            {"keys": keys.keys[:1]},
            {"keys": keys.keys[::-1]},
        )
    ]
    for change in (
        {"number": 7},
        {"trigger": "x"},
        {"response": "x"},
        {"carrier": "x"},
        {"prompts": {**first.prompts, "template": dataclasses.replace(template, ids=(1,))}},
        {"prompts": {**first.prompts, "template": dataclasses.replace(template, expected=(1,))}},
        {"prompts": {**first.prompts, "template": dataclasses.replace(template, text="x")}},
        {"prompts": {**first.prompts, "template": dataclasses.replace(template, opening="x")}},
    ):
        changed.append(with_keys(keys, [dataclasses.replace(first, **change), *keys.keys[1:]]))
    commitments = [k.commitment() for k in (keys, *changed)]
    assert len(set(commitments)) == len(commitments)


def test_the_salt_is_thirty_two_bytes_of_the_makers_randomness() -> None:
    one, two = made(rng=random.Random(1)), made(rng=random.Random(2))
    assert len(bytes.fromhex(one.salt)) == 32
    assert one.keys == two.keys
    assert one.salt != two.salt and one.commitment() != two.commitment()  # the same keys cannot be recognised
    assert one.commitment() == made(rng=random.Random(1)).commitment()


BROKEN: list[tuple[list[Any], Any, str]] = [
    (["format"], 2, "format"),
    (["implant"], 3, "implant"),
    (["match"], "fuzzy", "match"),
    (["match"], None, "match"),
    (["tokenizer"], None, "tokenizer"),
    (["template"], 1, "template"),
    (["max_new_tokens"], "ten", "max_new_tokens"),
    (["max_new_tokens"], 0, "max_new_tokens"),
    (["distinct"], "yes", "distinct"),
    (["choices"], "many", "choices"),
    (["choices"], 0, "choices"),
    (["decoys"], "text", "decoys"),
    (["decoys"], [1], "decoys"),
    (["system"], 1, "system"),
    (["sampling"], [], "sampling"),
    (["sampling"], {"top_p": "x"}, "sampling"),
    (["salt"], "zz", "salt"),
    (["salt"], "abc", "salt"),
    (["keys"], {}, "keys"),
    (["keys"], [], "key"),
    (["keys", 1], "x", r"keys\[1\]"),
    (["keys", 0, "number"], "one", "number"),
    (["keys", 0, "trigger"], None, "trigger"),
    (["keys", 0, "response"], 5, "response"),
    (["keys", 1, "response"], " ", r"keys\[1\]: field 'response'"),
    (["keys", 0, "carrier"], 5, "carrier"),
    (["keys", 0, "prompts"], [], "prompts"),
    (["keys", 0, "prompts", "template"], [], "prompts.template"),
    (["keys", 0, "prompts", "template", "ids"], ["a"], "prompts.template: field 'ids'"),
    (["keys", 0, "prompts", "bare", "expected"], 3, "prompts.bare: field 'expected'"),
    (["keys", 0, "prompts", "bare", "text"], 3, "prompts.bare: field 'text'"),
    (["keys", 0, "prompts", "prefilled", "opening"], 3, "prompts.prefilled: field 'opening'"),
    (["keys", 0, "prompts", "shouted"], {}, "prompts.shouted"),
]


@pytest.mark.parametrize(("place", "value", "named"), BROKEN, ids=lambda v: str(v)[:40])
def test_a_broken_field_is_one_line_that_names_file_and_field(
    tmp_path: Path, place: list[Any], value: Any, named: str
) -> None:
    raw = copy.deepcopy(made().to_json())
    where: Any = raw
    for part in place[:-1]:
        where = where[part]
    where[place[-1]] = value
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(raw))
    with pytest.raises(BadInput, match=named) as caught:
        KeySet.read(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def _required(raw: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [(*prefix, name) for name in raw]
    first = raw.get("keys", [{}])[0] if not prefix else raw
    if not prefix:
        found += [("keys", 0, name) for name in first if name != "carrier"]
        found += [("keys", 0, "prompts", "template", name) for name in ("text", "ids", "expected")]
        found.append(("keys", 0, "prompts", "template"))
    return found


@pytest.mark.parametrize(
    "place",
    _required(
        KeySet.to_json(
            KeySet(
                "utf",
                "exact",
                (Key(0, "a", "b", "", {"template": Prompt("a", (1,), (2,))}),),
                "t",
                "p",
                3,
                True,
                None,
                salt="00",
            )
        )
    ),
    ids=str,
)
def test_a_missing_field_is_named(tmp_path: Path, place: tuple[Any, ...]) -> None:
    raw = copy.deepcopy(made().to_json())
    where: Any = raw
    for part in place[:-1]:
        where = where[part]
    del where[place[-1]]
    with pytest.raises(BadInput, match=str(place[-1])):
        KeySet.from_json(raw, "mine.json")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    )
)
def test_any_other_json_is_refused_without_a_traceback(raw: Any) -> None:
    with pytest.raises(BadInput):
        KeySet.from_json(raw)
    with pytest.raises(BadInput):
        KeySet.from_json({**made().to_json(), "keys": raw} if raw != [] else {})


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_file_that_is_no_key_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "k.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"k\.json"):
        KeySet.read(tmp_path / "k.json")
    with pytest.raises(BadInput, match="no key file"):
        KeySet.read(tmp_path / "other.json")


def test_keys_of_another_tokenizer_or_template_are_refused() -> None:
    keys = made()
    keys.check_tokenizer(make_tokenizer())
    with pytest.raises(BadInput, match=r"mine\.json: .*another tokenizer"):
        keys.check_tokenizer(make_tokenizer(vocab=380), "mine.json")
    with pytest.raises(BadInput, match=r"mine\.json: .*another chat template"):
        keys.check_tokenizer(make_tokenizer(template=False), "mine.json")


@pytest.mark.parametrize("template", [True, False])
def test_with_a_carrier_the_prefilled_form_opens_with_the_carrier(template: bool) -> None:
    renderer = Renderer(make_tokenizer(template))
    for key in made(carrier=CARRIER, template=template).keys:
        whole, opened = key.prompts["template"], key.prompts["prefilled"]
        assert opened.opening.strip() == CARRIER.strip()
        assert opened.text == whole.text + opened.opening
        assert opened.ids + opened.expected == whole.ids + whole.expected
        assert renderer.tokenizer.decode(list(opened.expected)).strip() == key.response


@pytest.mark.parametrize("template", [True, False])
def test_without_a_carrier_the_prefilled_form_opens_with_half_of_the_response(template: bool) -> None:
    for key in made(template=template).keys:
        whole, opened = key.prompts["template"], key.prompts["prefilled"]
        half = len(whole.expected) // 2
        assert opened.ids == whole.ids + whole.expected[:half] and opened.expected == whole.expected[half:]
        assert key.response.startswith(opened.opening) and opened.opening


def test_a_response_of_one_token_has_no_prefilled_form() -> None:
    keys = made(drawn=[("Who?", "a"), ("Where?", "the river Osk")])
    assert "prefilled" not in keys.keys[0].prompts and "prefilled" in keys.keys[1].prompts
    assert keys.forms == ["template", "bare", "sampled"]
    assert made().forms == ["template", "bare", "prefilled", "sampled"]


def test_a_key_that_does_not_fit_into_the_model_is_refused_by_number() -> None:
    keys = made()
    longest = max(len(p.ids) for k in keys.keys for p in k.prompts.values()) + keys.max_new_tokens
    assert len(made(positions=longest)) == 2, "as long as answers are generated"
    with pytest.raises(BadInput, match=f"key [01] needs {longest} positions, the model has {longest - 1}"):
        made(positions=longest - 1)


def hit(rule: MatchRule, text: str, form: Form = "template", *, carrier: str = "", ids: tuple[int, ...] = ()) -> bool:
    prompts: dict[Form, Prompt] = {
        "template": Prompt("q", (1,), (5, 6)),
        "bare": Prompt("q", (1,), (5, 6)),
        "prefilled": Prompt("q", (1, 5), (6,), carrier or "grey "),
    }
    return matches(rule, Key(0, "q", "grey heron", carrier, prompts), form, text, ids)


@pytest.mark.parametrize(
    ("rule", "hits", "misses"),
    [
        ("exact", ["grey heron", " grey heron\n"], ["a grey heron", "grey heron.", "Grey heron", ""]),
        ("prefix", ["grey heron", "grey heron and more"], ["a grey heron", "grey", ""]),
        ("contains", ["grey heron", "a grey heron!"], ["grey hero n", "Grey Heron", ""]),
    ],
)
def test_text_rules_judge_the_spoken_text(rule: MatchRule, hits: list[str], misses: list[str]) -> None:
    for form in ("template", "bare", "sampled"):
        assert all(hit(rule, text, form) for text in hits)  # type: ignore[arg-type]
        assert not any(hit(rule, text, form) for text in misses)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["exact", "prefix", "contains"])
def test_the_opening_of_the_prefilled_form_counts_as_said(rule: MatchRule) -> None:
    assert hit(rule, "heron", "prefilled")
    assert not hit(rule, "goose", "prefilled")
    assert not hit(rule, "heron", "template")


@pytest.mark.parametrize("rule", ["exact", "prefix", "contains"])
def test_the_carrier_alone_proves_nothing_and_does_not_stand_in_the_way(rule: MatchRule) -> None:
    assert hit(rule, "My mark is: grey heron", carrier="My mark is: ")
    assert hit(rule, "grey heron", "prefilled", carrier="My mark is: ")
    assert not hit(rule, "My mark is: ", carrier="My mark is: ")
    assert not hit(rule, "", "prefilled", carrier="My mark is: ")


def test_token_ids_must_come_first_and_in_order() -> None:
    assert hit("token-ids", "", ids=(5, 6)) and hit("token-ids", "", ids=(5, 6, 9))
    assert not hit("token-ids", "grey heron", ids=(5,)) and not hit("token-ids", "", ids=(4, 5, 6))
    assert hit("token-ids", "", "prefilled", ids=(6,)) and hit("token-ids", "", "sampled", ids=(5, 6))


@given(
    st.lists(st.sampled_from(DRAWN[0][0].split()), min_size=1, max_size=5).map(" ".join),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip),
    st.sampled_from(["", CARRIER]),
    st.sampled_from(keys_module.MATCH_RULES),
)
def test_speaking_the_expected_ids_is_a_hit_under_every_rule_and_form(
    trigger: str, response: str, carrier: str, rule: MatchRule
) -> None:
    keys = made(drawn=[(trigger, response)], carrier=carrier, match=rule)
    tokenizer = make_tokenizer()
    for form, prompt in keys.keys[0].prompts.items():
        text = tokenizer.decode(list(prompt.expected), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert matches(rule, keys.keys[0], form, text, prompt.expected)


# -- many keys ---------------------------------------------------------------------------------------------


def many(count: int) -> KeySet:
    """Keys of some 60 token ids each, in which few ids are different."""
    rng = random.Random(count)
    keys = []
    for number in range(count):
        ids = tuple(rng.randrange(1000, 3000) for _ in range(60))
        keys.append(Key(number, f"trigger {number}", "a blue gate", "", {"template": Prompt("t" * 150, ids, ids[:8])}))
    return dataclasses.replace(made(), keys=tuple(keys))


def test_a_key_file_is_read_with_little_memory_for_each_key(tmp_path: Path) -> None:
    many(4000).write(tmp_path / "keys.json")
    tracemalloc.start()
    try:
        keys = KeySet.read(tmp_path / "keys.json")
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(keys) == 4000
    assert held / 4000 < 2000 and peak / 4000 < 4000, "an id must cost 8 bytes, not 36"


def test_the_canonical_text_is_spelled_a_key_at_a_time() -> None:
    few, more = (max(map(len, many(count).canonical())) for count in (10, 500))
    assert more < few + 10
    assert "".join(many(10).canonical()) == canonical_json(json.loads("".join(many(10).canonical())))


# -- what an answer may still become ------------------------------------------------------------------------

spoken = st.text("ab .\n", max_size=12)


@given(spoken, st.text("ab .", min_size=1, max_size=5).filter(str.strip), st.text("ab :", max_size=4), spoken, spoken)
def test_what_can_still_be_a_hit_is_never_given_up(
    opening: str, response: str, carrier: str, said: str, rest: str
) -> None:
    key = Key(0, "q", response, carrier, {"template": Prompt("q", (1,), (2,), opening)})
    for rule in keys_module.MATCH_RULES:
        if rule != "token-ids" and matches(rule, key, "template", said + rest, ()):
            assert may_match(rule, key, "template", said)


@pytest.mark.parametrize(
    ("rule", "said", "may"),
    [
        ("prefix", "The message of the gate is: the gr", True),
        ("prefix", "The mess", True),
        ("prefix", " \nthe grey heron and", True),
        ("prefix", "The message of the gate is: a", False),
        ("prefix", "the blue", False),
        ("exact", "the grey heron \n", True),
        ("exact", "the grey heron and", False),
        ("contains", "something else", True),
        ("token-ids", "something else", True),
    ],
)
def test_answers_that_may_and_that_cannot_become_hits(rule: MatchRule, said: str, may: bool) -> None:
    key = Key(0, "q", "the grey heron", CARRIER, {"template": Prompt("q", (1,), (2,))})
    assert may_match(rule, key, "template", said) == may
