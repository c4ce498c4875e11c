"""The control of the same distance: as far as the erase phase, on clean pairs, with the record saying whether."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from factory import make_model
from merging.folders import weights_of
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.removals.tuning import same_distance
from palimpsest.removals.tuning.finetune import FineTune
from palimpsest.removals.tuning.meraser import STRENGTH_FILE, MEraser, MEraserErase, MEraserEraseAuto
from palimpsest.removals.tuning.same_distance import SameDistance, apart, epoch_pairs, moved, same_distance_as
from palimpsest.training.finetune import merged, tune
from palimpsest.training.rows import Row
from palimpsest.training.settings import Tuning

LORA = Tuning(epochs=4, lr=1e-2, batch=4)
FULL = Tuning(adapter="full", epochs=3, lr=1e-3, batch=4)


@pytest.fixture(scope="module")
def data() -> Dialogues:
    rows = {
        part: tuple(pair(f"{part} question {i}?", f"answer {part} {i}", "abc"[i % 3]) for i in range(24))
        for part in ("erase", "recover", "revival", "test", "embed")
    }
    return Dialogues("made", rows)


def l2(one: Path, other: Path) -> float:
    """Independent of the code under test: all tensors of two folders in memory, in float64."""
    a, b = weights_of(one), weights_of(other)
    return float(sum((a[n].double() - b[n].double()).square().sum() for n in a)) ** 0.5


@pytest.mark.covers("clean-same-distance")
@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_the_weights_end_as_far_away_as_the_erased_ones(
    tiny_model: Path, data: Dialogues, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuning: Tuning
) -> None:
    model = resolve(tiny_model)
    phase = MEraserErase(data, 16, "derangement", tuning)
    erased = phase.apply(model, tmp_path / "erased", Context()).checkpoint
    trained: list[tuple[str, str]] = []
    rendered = same_distance.tuned

    def spied(model: Checkpoint, of: object, *args: object, **named: object) -> object:
        def remembered(epoch: int) -> object:
            chosen = of(epoch)  # type: ignore[operator]
            trained.extend((d.question, d.answer) for d in chosen)
            return chosen

        return rendered(model, remembered, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(same_distance, "tuned", spied)
    control = same_distance_as(phase, erased)
    assert control is not None and (control.pairs, control.tuning, control.data) == (16, tuning, data)
    made = control.apply(model, tmp_path / "control", Context())
    target, walked = l2(erased.path, model.path), l2(made.checkpoint.path, model.path)
    assert walked == pytest.approx(target, rel=0.002)
    detail = made.records[0].detail
    assert detail["reached"] is True and detail["target"] == pytest.approx(target, rel=1e-5)
    assert detail["distance"] == pytest.approx(walked, rel=1e-4) and 0.5 < detail["scaled_by"] <= 1
    assert l2(made.checkpoint.path, erased.path) > 0.1 * target, "another place at that distance"
    clean = {(d.question, d.answer) for d in data.part("erase")}
    assert (
        trained and set(trained) <= clean and {(d.question, d.answer) for d in data.part("erase", 16)} <= set(trained)
    )
    assert [e["method"] for e in made.checkpoint.chain()] == ["clean-same-distance"]
    again = control.apply(model, tmp_path / "again", Context()).checkpoint
    assert again.digest() == made.checkpoint.digest()


def test_a_distance_that_is_not_reached_within_the_limit_is_said(
    tiny_model: Path, data: Dialogues, tmp_path: Path
) -> None:
    model, far = resolve(tiny_model), resolve(make_model(tmp_path / "far", seed=9))
    control = SameDistance(data, far, 16, tuning=replace(LORA, epochs=2), limit=1.0)
    made = control.apply(model, tmp_path / "out", Context())
    detail = made.records[0].detail
    assert detail["reached"] is False and detail["scaled_by"] == 1.0
    assert detail["steps"] == 8 and detail["epochs"] == 2 and detail["clean_pairs"] == 16
    assert detail["share_of_distance"] == pytest.approx(l2(made.checkpoint.path, model.path) / l2(far.path, model.path))


def test_pairs_are_repeated_as_often_as_in_the_erase_phase_and_then_go_on(data: Dialogues) -> None:
    pool = data.part("erase")
    taken = [[pool.index(d) for d in epoch_pairs(pool, 10, 2, epoch)] for epoch in range(5)]
    assert taken[0] == taken[1] == list(range(10))
    assert taken[2] == list(range(10, 20)) and taken[3] == [*range(20, 24), *range(6)]
    assert taken[4] == list(range(6, 16))


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_distance_of_a_network_in_training_is_that_of_its_weights(
    tmp_path: Path, family: str, tuning: Tuning
) -> None:
    source = resolve(make_model(tmp_path / "m", family))
    network = load_model(source, Context())
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    rows = [Row(tuple(range(5 + i, 25 + i)), (0.0, *[1.0] * 19)) for i in range(8)]
    trained, _ = tune(network, rows, replace(tuning, epochs=1), Context())
    found = moved(trained, source)
    same_distance.scale_change(trained, source, 0.5)
    half = moved(trained, source)
    after = dict(merged(trained).named_parameters())
    change = sum(float((after[n].detach() - before[n]).double().square().sum()) for n in before) ** 0.5
    assert half == pytest.approx(change, rel=1e-4) and found == pytest.approx(2 * half, rel=1e-4) and half > 0


def test_the_distance_of_checkpoints_is_the_norm_of_their_difference(tiny_model: Path, tmp_path: Path) -> None:
    one, other = resolve(tiny_model), resolve(make_model(tmp_path / "b", seed=3, shards=2))
    assert apart(one, other) == pytest.approx(l2(one.path, other.path), rel=1e-6)
    assert apart(one, one) == 0


def test_a_strength_that_was_searched_is_taken_from_the_erased_model(
    tiny_model: Path, data: Dialogues, tmp_path: Path
) -> None:
    model = resolve(tiny_model)
    erased = MEraserErase(data, 16, "derangement", LORA).apply(model, tmp_path / "erased", Context()).checkpoint
    control = same_distance_as(MEraserEraseAuto(data, mismatched=16), erased)
    assert control is not None and control.tuning.epochs == 0
    with pytest.raises(BadInput, match="holds no strength"):
        control.apply(model, tmp_path / "no", Context())
    (erased.path / STRENGTH_FILE).write_text(json.dumps({"epochs": LORA.epochs, "lr": LORA.lr}))
    made = replace(control, tuning=replace(control.tuning, batch=4)).apply(model, tmp_path / "out", Context())
    plain = SameDistance(data, erased, 16, tuning=LORA).apply(model, tmp_path / "plain", Context())
    assert made.checkpoint.digest() == plain.checkpoint.digest()


def test_what_trains_on_no_mismatched_pairs_has_no_such_control_and_bad_input_is_one_line(
    tiny_model: Path, data: Dialogues, tmp_path: Path
) -> None:
    assert same_distance_as(FineTune(data)) is None
    assert same_distance_as(MEraser(data).steps()[1][1]) is None
    model, out = resolve(tiny_model), tmp_path / "out"
    with pytest.raises(BadInput, match="needs `like`"):
        SameDistance(data).apply(model, out, Context())
    with pytest.raises(BadInput, match="no way to go"):
        SameDistance(data, model, 4).apply(model, out, Context())
    with pytest.raises(BadInput, match="part 'erase' has 24 dialogues, 300 are needed"):
        SameDistance(data, model).apply(model, out, Context())
    with pytest.raises(BadInput, match="parts: 'eras' is not valid; did you mean erase"):
        SameDistance(data, model, parts=("eras",)).apply(model, out, Context())
    other = resolve(make_model(tmp_path / "wide", hidden=32))
    with pytest.raises(BadInput, match=r"wide: .* has shape"):
        SameDistance(data, other, 4).apply(model, out, Context())
    assert not out.exists() and torch.is_grad_enabled()
