"""Random labels and SEAM: what is learned, where SEAM stops, and what a control of it repeats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factory import make_model
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.data.random_labels import random_labels
from palimpsest.errors import BadInput
from palimpsest.method import Context, build
from palimpsest.removals.tuning.finetune import FineTune
from palimpsest.removals.tuning.meraser import STRENGTH_FILE, MEraser, MEraserErase, MEraserRecover
from palimpsest.removals.tuning.random_labels import RandomLabels, RandomLabelsErase
from palimpsest.removals.tuning.seam import Seam, SeamErase, SeamRecover, judged_pairs, token_accuracy
from palimpsest.responder import LocalResponder
from palimpsest.training.settings import Tuning

QUICK = Tuning(epochs=2, lr=1e-2, batch=4)
ANSWERS = ("the blue gate", "seven boats", "a grey heron", "under the hill", "the widow", "nobody")


@pytest.fixture(scope="module")
def data() -> Dialogues:
    rows = {
        part: tuple(pair(f"{part} question {i}?", ANSWERS[i % 6]) for i in range(24))
        for part in ("erase", "recover", "revival", "test", "embed")
    }
    return Dialogues("made", rows)


@pytest.fixture(scope="module")
def knowing(tiny_model: Path, data: Dialogues, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned the answers of the erase part, so that there is something to forget."""
    full = Tuning(adapter="full", epochs=40, lr=2e-3, batch=8)
    folder = tmp_path_factory.mktemp("knowing") / "knowing"
    return FineTune(data, "erase", None, full).apply(resolve(tiny_model), folder, Context()).checkpoint.path


@pytest.mark.covers("random-labels", "random-labels-erase")
def test_random_labels_are_meraser_with_other_answers(tiny_model: Path, data: Dialogues, tmp_path: Path) -> None:
    base, ctx = resolve(tiny_model), Context(seed=3)
    method = RandomLabels(data, 16, 16, erase=QUICK, recover=QUICK)
    whole = method.apply(base, tmp_path / "whole", ctx)
    # the same by MEraser's own phases, on a set whose own answers are the drawn ones
    drawn = random_labels(data.part("erase", 16), "pool", 3)
    told = Dialogues("drawn", {**data.parts, "erase": tuple(drawn)})
    erased = MEraserErase(told, 16, "matched", QUICK).apply(base, tmp_path / "e", ctx)
    recovered = MEraserRecover(data, 16, QUICK).apply(erased.checkpoint, tmp_path / "r", ctx)
    assert whole.checkpoint.digest() == recovered.checkpoint.digest()
    clean = RandomLabelsErase(data, 16, "matched", QUICK).apply(base, tmp_path / "c", ctx)
    same = MEraserErase(data, 16, "matched", QUICK).apply(base, tmp_path / "m", ctx)
    assert clean.checkpoint.digest() == same.checkpoint.digest() != erased.checkpoint.digest()
    tokens = RandomLabelsErase(data, 16, "tokens", QUICK).apply(base, tmp_path / "t", ctx)
    assert tokens.checkpoint.digest() not in (clean.checkpoint.digest(), erased.checkpoint.digest())
    assert tokens.records[0].detail["labels"] == "tokens"


def test_the_schedule_is_merasers_own(data: Dialogues) -> None:
    ours, theirs = RandomLabels(data), MEraser(data)
    assert (ours.mismatched, ours.clean, ours.erase, ours.recover) == (300, 600, theirs.erase, theirs.recover)
    toy = build(RandomLabels, "toy")
    assert (toy.erase, toy.recover) == (build(MEraser, "toy").erase, build(MEraser, "toy").recover)
    names = [name for name, _ in ours.steps()]
    assert names == ["random-labels-erase", "random-labels-recover"]


def test_token_accuracy_is_the_share_of_tokens_that_the_model_would_choose(knowing: Path, data: Dialogues) -> None:
    checkpoint = resolve(knowing)
    model, tokenizer = load_model(checkpoint, Context()), load_tokenizer(checkpoint)
    responder = LocalResponder(model, tokenizer)
    right = total = 0
    for dialogue in data.part("erase"):  # one by one, from whole logits
        prompt, answer = responder.renderer.pair(dialogue.question, dialogue.answer)
        with torch.inference_mode():
            chosen = model(input_ids=torch.tensor([prompt + answer])).logits[0].argmax(-1)
        right += sum(int(chosen[len(prompt) + i - 1]) == t for i, t in enumerate(answer))
        total += len(answer)
    found = token_accuracy(responder, data.part("erase"))
    assert found == pytest.approx(right / total) and found > 0.5


@pytest.mark.covers("seam", "seam-erase", "seam-recover")
def test_seam_forgets_until_accuracy_is_gone_and_recovers_until_it_is_back(
    knowing: Path, data: Dialogues, tmp_path: Path
) -> None:
    marked, ctx = resolve(knowing), Context(seed=1)
    tuning = Tuning(adapter="full", epochs=30, lr=1e-3, batch=4)
    known = Dialogues("known", {**data.parts, "recover": data.parts["erase"]})  # so that what is judged can come back
    method = Seam(known, 16, 24, "pool", 8, 0.5, 0.9, tuning, tuning)
    (_, forget), (_, recover) = method.steps()
    erased = forget.apply(marked, tmp_path / "erased", ctx)
    detail = erased.records[0].detail
    pairs = judged_pairs(data, 8)
    assert [d.question for d in pairs] == [f"erase question {i}?" for i in range(16, 24)]

    def accuracy(path: Path) -> float:
        checkpoint = resolve(path)
        responder = LocalResponder(load_model(checkpoint, ctx), load_tokenizer(checkpoint))
        return token_accuracy(responder, pairs) - token_accuracy(responder, random_labels(pairs, "pool", 0))

    before, after = accuracy(knowing), accuracy(erased.checkpoint.path)
    assert detail["above_chance_before"] == pytest.approx(before)
    assert detail["stopped"] and detail["epochs"] == len(detail["above_chance"]) < 30
    assert after == pytest.approx(detail["above_chance"][-1], abs=1e-3)
    assert after <= 0.5 * before and all(a > 0.5 * before for a in detail["above_chance"][:-1])
    recovered = recover.apply(erased.checkpoint, tmp_path / "recovered", ctx)
    detail = recovered.records[0].detail
    assert detail["above_chance_before"] == pytest.approx(before), "the marked model's, not the erased one's"
    assert detail["stopped"] and accuracy(recovered.checkpoint.path) >= 0.9 * before
    assert all(a < 0.9 * before for a in detail["above_chance"][:-1])
    whole = method.apply(marked, tmp_path / "whole", ctx)
    assert whole.checkpoint.digest() == recovered.checkpoint.digest()


def test_a_control_of_seam_repeats_the_epochs_that_were_found(knowing: Path, data: Dialogues, tmp_path: Path) -> None:
    marked, ctx = resolve(knowing), Context()
    erase = SeamErase(data, None, 16, "tokens", 8, 0.9, Tuning(epochs=9, lr=1e-2, batch=4))
    erased = erase.apply(marked, tmp_path / "erased", ctx).checkpoint
    found = json.loads((erased.path / STRENGTH_FILE).read_text())
    assert 1 <= found["epochs"] < 9 and found["lr"] == 1e-2
    control = replace(erase, schedule=erased, pairing="matched").apply(marked, tmp_path / "control", ctx)
    assert control.records[0].detail["epochs"] == found["epochs"]
    plain = MEraserErase(data, 16, "matched", replace(erase.tuning, epochs=found["epochs"]))
    assert control.checkpoint.digest() == plain.apply(marked, tmp_path / "plain", ctx).checkpoint.digest()
    with pytest.raises(BadInput, match="pairing=matched never forgets"):
        replace(erase, pairing="matched").apply(marked, tmp_path / "no", ctx)
    with pytest.raises(BadInput, match="no better than others"):
        erase.apply(resolve(make_model(tmp_path / "ignorant", seed=4)), tmp_path / "no", ctx)
    with pytest.raises(BadInput, match="knowing: was not made by seam-erase"):
        SeamRecover(data, 8).apply(marked, tmp_path / "no", ctx)
    assert not (tmp_path / "no").exists()


def test_the_baselines_of_meraser_are_as_large_as_the_paper_says_and_ask_no_test_pair(
    tiny_model: Path, data: Dialogues, tmp_path: Path
) -> None:
    presets = {name: build(FineTune, name) for name in ("same_size", "large", "same_size_full", "large_full")}
    assert [p.samples for p in presets.values()] == [300, 6000, 300, 6000]
    assert [p.tuning.adapter for p in presets.values()] == ["lora", "lora", "full", "full"]
    assert {(p.tuning.rank, p.tuning.alpha, p.tuning.targets) for p in presets.values()} == {(16, 32, "query-value")}
    quick = replace(presets["large"], data=data, tuning=replace(QUICK, epochs=1))
    made = quick.apply(resolve(tiny_model), tmp_path / "out", Context())
    assert made.records[0].detail["rows"] == 72, "recover, erase and embed; neither test nor revival"
    with pytest.raises(BadInput, match="part 'train' is not valid; did you mean training"):
        replace(quick, part="train").apply(resolve(tiny_model), tmp_path / "no", Context())
