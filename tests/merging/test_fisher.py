"""Fisher merging: by hand, the information of a model whose Fisher is known, and whole merges on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file
from torch import Tensor, nn

from factory import SENTENCES, make_model
from merging.tensors import models, random_tensors
from palimpsest.checkpoint import resolve
from palimpsest.data import Dialogues
from palimpsest.data.dialogues import pair
from palimpsest.errors import BadInput
from palimpsest.merging.fisher import Fisher, by_shares, fisher_information
from palimpsest.merging.folder import merge_to_folder
from palimpsest.merging.passes import merge_tensors
from palimpsest.merging.request import MergeRequest, Part, Slice, Stretch
from palimpsest.method import Context
from palimpsest.training.rows import Row

DATA = Dialogues("test", {"erase": tuple(pair(q, a) for q, a in zip(SENTENCES[::2], SENTENCES[1::2], strict=True))})


class Unigram(nn.Module):
    """Predicts every token from one vector of logits."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.device = torch.device("cpu")

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.logits.expand(1, input_ids.shape[1], -1))


@pytest.mark.covers("fisher")
def test_by_hand() -> None:
    first, second = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([5.0, 5.0, 5.0])
    merged = by_shares([first, second], [torch.tensor([1.0, 3.0, 0.0]), torch.tensor([1.0, 1.0, 2.0])])
    assert merged.tolist() == [3.0, 2.0, 5.0]


def test_the_information_of_a_softmax_is_p_times_one_minus_p() -> None:
    """Of each logit: the gradient of log p(y) is [y = k] - p_k, whose mean square over the model's draws is that."""
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    network = Unigram(probabilities.log().tolist())
    rows = [Row((0, 1), (0.0, 1.0))] * 2_000
    found = fisher_information(network, rows, "model", 0)["logits"]
    assert torch.allclose(found, probabilities * (1 - probabilities), rtol=0.15)
    longer = fisher_information(network, [Row((0,) * 6, (0.0, 0.0, 1.0, 1.0, 1.0, 1.0))] * 1_000, "model", 0)["logits"]
    assert torch.allclose(longer, 4 * probabilities * (1 - probabilities), rtol=0.2)  # four scored tokens


def test_the_empirical_information_scores_the_datas_answers() -> None:
    network = Unigram([0.0, 0.0])
    found = fisher_information(network, [Row((0, 1), (0.0, 1.0)), Row((0, 0, 1), (0.0, 1.0, 1.0))], "data", 0)
    assert found["logits"].tolist() == pytest.approx([0.125, 0.125])  # (0.25 + 0) / 2: one of each cancels


@given(models(1, 1))
def test_equal_models_give_themselves_back_whatever_the_shares(found: list[Tensor]) -> None:
    shares = [torch.rand_like(found[0]), torch.zeros_like(found[0]), torch.rand_like(found[0])]
    assert torch.equal(by_shares(found * 3, shares), found[0])


def test_without_statistics_it_is_the_average() -> None:
    found = random_tensors(2, (3, 4), 0)
    merged = merge_tensors(Fisher(weight=(3, 1)), found)
    assert torch.allclose(merged, 0.75 * found[0] + 0.25 * found[1])


def test_a_whole_merge_is_the_formula_with_the_information_of_each_model(tmp_path: Path) -> None:
    from palimpsest.checkpoint.load import load_model

    folders = [make_model(tmp_path / f"m{i}", "qwen2", seed=i, tied=True) for i in range(2)]
    checkpoints = [resolve(f) for f in folders]
    request = MergeRequest(
        "fisher", (Part(checkpoints[0], {"weight": 2.0}), Part(checkpoints[1])), inputs={"data": DATA}
    )
    merge_to_folder(request, tmp_path / "out", Context(threads=2))
    assert not (tmp_path / "out" / "statistics").exists()
    made = load_file(tmp_path / "out" / "model.safetensors")
    stored = [load_file(f / "model.safetensors") for f in folders]
    load_model(resolve(tmp_path / "out"), Context(threads=1))  # it is a model
    shares = _shares(checkpoints, [2.0, 1.0])
    for name in made:
        whole = sum(s[name] for s in shares)
        wanted = sum(s[name] * w[name].double() for s, w in zip(shares, stored, strict=True)) / whole
        assert torch.allclose(made[name].double(), wanted, atol=1e-5), name
    other = merge_to_folder(request, tmp_path / "again", Context(threads=1)).checkpoint
    assert other.digest() == resolve(tmp_path / "out").digest()


def _shares(checkpoints: list[Any], weights: list[float]) -> list[dict[str, Tensor]]:
    """weight times information over its length, in float64."""
    from palimpsest.merging.forward import read_models

    shares = []
    reading = read_models(checkpoints, DATA, 256, Context(threads=1), "fisher")
    for (network, rows), weight in zip(reading, weights, strict=True):
        found = {n: f.double() for n, f in fisher_information(network, rows, "model", 0).items()}
        mean = sum(float(f.sum()) for f in found.values()) / sum(f.numel() for f in found.values())
        raised = {n: f.clamp(min=1e-6 * mean) for n, f in found.items()}
        length = sum(float(f.square().sum()) for f in raised.values()) ** 0.5
        shares.append({n: weight * f / length for n, f in raised.items()})
    return shares


def test_what_does_not_fit_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = resolve(tiny_model)
    parts = (Part(model), Part(model))
    three = MergeRequest("fisher", parts, inputs={"data": (DATA, DATA, DATA)})
    with pytest.raises(BadInput, match="fisher: 3 sets of data for 2 models"):
        merge_to_folder(three, tmp_path / "out", Context())
    empty = MergeRequest("fisher", parts, inputs={"data": Dialogues("none", {})})
    with pytest.raises(BadInput, match="data none has no dialogue"):
        merge_to_folder(empty, tmp_path / "out", Context())
    sliced = MergeRequest("fisher", parts, slices=(Slice((Stretch(0, 0, 1), Stretch(1, 0, 1))),))
    with pytest.raises(BadInput, match="reads whole models"):
        merge_to_folder(sliced, tmp_path / "out", Context())
    assert not (tmp_path / "out").exists()
