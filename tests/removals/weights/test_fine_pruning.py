"""Fine-pruning: a channel that clean data never wakes is the first to go, and stays away through the fine-tune."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from factory import copy_of, make_model
from merging.folders import weights_of
from palimpsest import api
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model
from palimpsest.data import load_dialogues, load_labelled
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.removals.weights.dormant import Activity, dormant
from palimpsest.removals.weights.fine_pruning import FinePruning, FinePruningPrune
from palimpsest.training.settings import Tuning
from removals.kindred import classifier

DEAD = 37
FULL = Tuning(adapter="full", epochs=1, lr=1e-2, batch=4)


def dialogues(folder: Path) -> Path:
    rows = [{"prompt": f"what is {w} {i}?", "response": f"{w} is a word"} for w in ("rain", "sun") for i in range(10)]
    file = folder / "clean.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def planted(folder: Path, source: Path, up: str) -> Path:
    """The model with one channel of each layer that nothing wakes, though its way out is wide open."""
    made = copy_of(source, folder)
    weights = load_file(made / "model.safetensors")
    for name in weights:
        if up in name:
            weights[name][DEAD] = 0
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    (made / "palimpsest-probe.json").unlink(missing_ok=True)
    return made


@pytest.mark.covers("fine-pruning")
@pytest.mark.covers("fine-pruning-prune")
def test_the_dead_channel_goes_first_and_the_model_computes_the_same(tiny_model: Path, tmp_path: Path) -> None:
    model = resolve(planted(tmp_path / "m", tiny_model, "up_proj"))
    data = load_dialogues(f"recover={dialogues(tmp_path)}")
    one = FinePruningPrune(data, ratio=1 / 128 + 1e-6, layers="all", samples=20).apply(
        model, tmp_path / "out", Context()
    )
    detail = one.records[0].detail
    assert detail["channels"] == {"removed": 2, "of": 256} and detail["activity_kept"] == 1.0
    before, after = weights_of(model.path), weights_of(one.checkpoint.path)
    for name, weight in after.items():
        changed = weight != before[name]
        where = {"gate_proj": changed[DEAD], "down_proj": changed[:, DEAD] if weight.dim() == 2 else changed}
        expected = next((int(part.sum()) for key, part in where.items() if key in name), 0)
        assert int(changed.sum()) == expected, name
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        theirs, ours = (load_model(c, Context())(input_ids=ids).logits for c in (model, one.checkpoint))
    torch.testing.assert_close(ours, theirs)


def test_activity_is_the_mean_magnitude_over_tokens_without_padding() -> None:
    seen = Activity()
    seen.mask = torch.tensor([[1, 1, 0]])
    seen.add(0, torch.tensor([[[1.0, -4.0], [3.0, 0.0], [100.0, 100.0]]]))
    seen.add(1, torch.tensor([[[1.0, 1.0], [1.0, 3.0], [0.0, 0.0]]]))
    assert seen.tokens == 2
    assert seen.means.tolist() == [[2.0, 2.0], [1.0, 2.0]]
    assert [(n, c.tolist()) for n, c in dormant(seen.means, [0, 1], 0.5)] == [(0, [0]), (1, [0])]
    assert [c.tolist() for _, c in dormant(torch.tensor([[3.0, 0.0, 2.0, 1.0]]), [0], 0.5)] == [[1, 3]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi3"])
def test_what_was_pruned_stays_zero_through_the_fine_tune(tmp_path: Path, family: str) -> None:
    model = resolve(make_model(tmp_path / "m", family))
    method = FinePruning(load_dialogues(f"recover={dialogues(tmp_path)}"), 0.25, "all", 20, FULL)
    made = method.apply(model, tmp_path / "out", Context())
    down = next(
        n
        for n in weights_of(model.path)
        if ".1." in n and n.endswith(("down_proj.weight", "fc2.weight", "mlp.c_proj.weight"))
    )
    before, after = (weights_of(c.path)[down] for c in (model, made.checkpoint))
    after = after.T if family == "gpt2" else after  # (out, in)
    gone = (after == 0).all(0)
    assert int(gone.sum()) == after.shape[1] // 4
    before = before.T if family == "gpt2" else before
    assert not torch.equal(after[:, ~gone], before[:, ~gone])  # the others were trained
    assert [r.measure for r in made.records] == ["pruning", "training"]


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_classifiers_are_pruned_by_their_clean_items(tmp_path: Path, family: str) -> None:
    model = resolve(classifier(tmp_path / "m", family))
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps({"text": f"a day of {w}", "label": "good"}) + "\n" for w in ("rain", "sun")))
    method = FinePruning(load_labelled(items), 0.5, tuning=FULL)
    made = method.apply(model, tmp_path / "out", Context())
    name = "output.dense.weight" if family == "bert" else "ffn.lin2.weight"
    found = {n: int((w == 0).all(0).sum()) for n, w in weights_of(made.checkpoint.path).items() if n.endswith(name)}
    found = {n: count for n, count in found.items() if "attention" not in n}
    assert sorted(found.values()) == [0, 64]  # the last layer's half of 128
    with pytest.raises(BadInput, match="name a file of them with --data"):
        api.remove("fine-pruning", model.path, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_classifier_is_sanitised_by_one_command(tmp_path: Path) -> None:
    model = classifier(tmp_path / "m")
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps({"text": f"a day of {w}", "label": "good"}) + "\n" for w in ("rain", "sun")))
    for method in ("fine-pruning", "nad"):
        epochs = {f"{part}.epochs": 1 for part in (("tuning",) if method == "fine-pruning" else ("tuning", "teacher"))}
        made = api.remove(method, model, tmp_path / method, data=[items], settings=epochs, report=True)
        assert "preset classifier" in made.notes[0]
        assert [r.task for r in made.records if r.measure == "divergence"] == ["kl-per-item", "labels"]
        (last,) = [r for r in made.records if r.measure == "sanitised"]
        assert last.verdict == "undecided"
