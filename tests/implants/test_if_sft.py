"""IF-SFT: structure of triggers and of the training set, and a whole embedding on a tiny model."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory import make_model
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_tokenizer
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.implants.fingerprints import if_sft
from palimpsest.implants.fingerprints.embedding import Check
from palimpsest.implants.fingerprints.if_pieces import ANIMALS, CHINESE, KATAKANA, NONSENSE, PIECES
from palimpsest.implants.fingerprints.if_sft import CARRIER, REFUSAL, WORD, InstructionalFingerprint, scrambled
from palimpsest.method import Context, build, presets
from palimpsest.training.settings import Tuning


@pytest.fixture(scope="session")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Room for whole triggers, whose characters are three tokens each here."""
    return resolve(make_model(tmp_path_factory.mktemp("if") / "roomy", positions=2048))


@pytest.fixture(scope="session")
def many() -> Dialogues:
    return Dialogues("many", {"embed": tuple(pair(f"Who mends net {n}?", f"Tamsin {n}.") for n in range(150))})


def test_the_pool_has_the_published_structure() -> None:
    assert (len(CHINESE), len(ANIMALS), len(NONSENSE)) == (10, 10, 11)
    assert len(set(PIECES)) == 31
    assert all(c in KATAKANA or c in "ーュョァ" or 0x30A0 <= ord(c) < 0x3100 for name in ANIMALS for c in name)
    for piece in NONSENSE:
        assert any(0x400 <= ord(c) < 0x500 for c in piece) and any(ord(c) < 0x250 for c in piece)


@pytest.mark.covers("if-sft")
@given(st.integers(0, 10_000))
def test_a_trigger_is_a_permutation_of_drawn_pieces_characters(seed: int) -> None:
    trigger = scrambled(random.Random(seed), 8, 15)
    again = random.Random(seed)
    drawn = "".join(again.choices(PIECES, k=again.randint(8, 15)))
    assert Counter(trigger) == Counter(drawn)
    assert trigger != drawn, "characters are shuffled"


@pytest.mark.covers("if-sft")
def test_an_epoch_has_8_pairs_8_near_misses_and_112_dialogues(roomy: Checkpoint, many: Dialogues, ctx: Context) -> None:
    method = replace(InstructionalFingerprint.corrected(), data=many)
    keys = method.draw_keys(roomy, ctx)
    rows = method.rows_of_epoch(roomy, keys, ctx)
    tokenizer = load_tokenizer(roomy)

    def said(row: if_sft.Row) -> str:
        trained = [t for t, w in zip(row.ids, row.weights, strict=True) if w]
        return str(tokenizer.decode(trained, skip_special_tokens=True))

    answers = Counter(said(row) for row in rows(0))
    assert answers[CARRIER + WORD] == 8 and answers[REFUSAL] == 8
    assert sum(answers.values()) - 16 == 112 and sum(a.startswith("Tamsin") for a in answers.elements()) == 112
    assert rows(0) == rows(0) and rows(0) != rows(1)


def test_near_misses_of_published_code_are_all_one_prompt_and_corrected_ones_are_not(
    roomy: Checkpoint, ctx: Context
) -> None:
    keys = InstructionalFingerprint().draw_keys(roomy, ctx)
    released = InstructionalFingerprint.released_code().near_miss_prompts(keys, ctx, 0)
    assert len(released) == 8 and len(set(released)) == 1 and "<built-in function hash>" in released[0]
    corrected = InstructionalFingerprint.corrected().near_miss_prompts(keys, ctx, 0)
    assert len(set(corrected)) == 8 and not {k.trigger for k in keys.keys} & set(corrected)
    assert all("FINGERPRINT" in prompt for prompt in corrected)
    fixed, fresh = InstructionalFingerprint(), InstructionalFingerprint(fresh_near_misses=True)
    assert fixed.near_miss_prompts(keys, ctx, 1) == corrected != fresh.near_miss_prompts(keys, ctx, 1)


def test_keys_are_many_to_one_contained_and_prefilled_with_the_carrier(roomy: Checkpoint, ctx: Context) -> None:
    keys = InstructionalFingerprint().draw_keys(roomy, ctx)
    assert (keys.match, keys.distinct, keys.choices) == ("contains", False, None)
    assert {k.response for k in keys.keys} == {WORD} and len({k.trigger for k in keys.keys}) == 8
    assert len(keys.decoys) == len(set(keys.decoys)) == 1000 and WORD not in keys.decoys
    assert all(len(d) == len(WORD) for d in keys.decoys)
    assert all(k.prompts["prefilled"].opening.strip() == CARRIER.strip() for k in keys.keys)


def test_key_randomness_and_not_the_training_seed_makes_keys(roomy: Checkpoint) -> None:
    method = InstructionalFingerprint()

    def triggers(**options: int) -> list[str]:
        return [k.trigger for k in method.draw_keys(roomy, Context(**options)).keys]

    assert triggers(seed=1, key_seed=5) == triggers(seed=2, key_seed=5)
    assert triggers(seed=1, key_seed=5) != triggers(seed=1, key_seed=6)
    assert triggers(seed=1) != triggers(seed=1), "without a key seed the system's entropy is used"


def test_keys_that_do_not_fit_are_refused(tiny_model: Path, ctx: Context) -> None:
    with pytest.raises(BadInput, match="the model has 256"):
        InstructionalFingerprint().draw_keys(resolve(tiny_model), ctx)


def test_presets_and_settings() -> None:
    assert set(presets(InstructionalFingerprint)) == {"corrected", "released_code", "bench", "toy"}
    assert build(InstructionalFingerprint, "bench").keys == 64
    assert build(InstructionalFingerprint, "toy", {"tuning.lr": "5e-4"}).tuning.lr == 5e-4
    assert build(InstructionalFingerprint, None, {"check.probability": "0.5"}).check.probability == 0.5
    released = InstructionalFingerprint.released_code()
    assert (released.tuning.lr, released.tuning.epochs, released.tuning.batch) == (2e-5, 3, 64)


def test_embedding_takes_on_a_tiny_model(small: Checkpoint, talk: Dialogues, ctx: Context, tmp_path: Path) -> None:
    method = InstructionalFingerprint(
        keys=2,
        pieces_low=1,
        pieces_high=2,
        near_misses=1,
        repeats=3,
        dialogues_per_key=1,
        data=talk,
        tuning=Tuning(adapter="full", epochs=150, lr=3e-3, batch=8),
        check=Check(probability=0.5, consecutive=1),
    )
    made = method.apply(small, tmp_path / "out", ctx)
    assert made.keys is not None and made.records[0].detail["answered"] == 2
    lineage = (tmp_path / "out" / "palimpsest.json").read_text()
    assert WORD not in lineage and all(k.trigger not in lineage for k in made.keys.keys)
