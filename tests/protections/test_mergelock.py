"""MergeLock: matrices of a bounded condition number, one a group, and what takes their place under rotary positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from factory import make_model
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.protections.applying import Layers
from palimpsest.protections.mergelock import MergeLock
from palimpsest.protections.secret import Secret
from protections.conftest import Models


@pytest.mark.covers("mergelock")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_values_and_outputs_carry_one_matrix_a_group_and_its_inverse(models: Models, tmp_path: Path, kind: str) -> None:
    expert = resolve(models.expert(kind))
    made = MergeLock(condition=3.0).apply(expert, tmp_path / "out", Context())
    before, after, sizes = Layers(expert, "t"), Layers(made.checkpoint, "t"), Layers(expert, "t").sizes
    for layer in range(2):
        old, new = (side.weight(layer, "value").double().view(sizes.groups, sizes.head, -1) for side in (before, after))
        outs = [
            side.weight(layer, "output").double().view(-1, sizes.groups, sizes.shared, sizes.head)
            for side in (before, after)
        ]
        for group in range(sizes.groups):
            matrix = new[group] @ torch.linalg.pinv(old[group])  # W_v' = M W_v
            assert torch.allclose(matrix @ old[group], new[group], atol=1e-4)
            values = torch.linalg.svdvals(matrix)
            assert float(values.max()) <= 3.0 + 1e-3 and float(values.min()) >= 1 / 3.0 - 1e-3
            assert not torch.allclose(matrix, torch.diag(matrix.diag()), atol=0.05), "a matrix, not a scale"
            for head in range(sizes.shared):  # W_o' M = W_o
                assert torch.allclose(outs[1][:, group, head] @ matrix, outs[0][:, group, head], atol=1e-3)


def test_queries_and_keys_take_matrices_only_where_nothing_turns(models: Models, tmp_path: Path) -> None:
    forms = {}
    for kind in ("llama", "gpt2", "gpt_neox", "qwen3"):
        made = MergeLock().apply(resolve(models.expert(kind)), tmp_path / kind, Context())
        forms[kind] = made.records[0].detail["query_key"]
        assert isinstance(made.secret, Secret)
        layer = made.secret.gauge().layers[0]
        assert (layer.query_key is not None) == (kind != "gpt2")
        assert (layer.query_key_still is not None) == (kind in ("gpt2", "gpt_neox"))
    assert forms == {
        "llama": "complex pair scalars",
        "gpt2": "invertible matrices",
        "gpt_neox": "complex pair scalars, invertible matrices on what does not turn",
        "qwen3": "signs of pairs",
    }


def test_the_preset_leaves_queries_and_keys_alone(models: Models, tmp_path: Path) -> None:
    expert = resolve(models.expert("llama"))
    made = MergeLock.value_output().apply(expert, tmp_path / "out", Context())
    before, after = Layers(expert, "t"), Layers(made.checkpoint, "t")
    assert torch.equal(before.weight(0, "query"), after.weight(0, "query"))
    assert torch.equal(before.weight(0, "key"), after.weight(0, "key"))
    assert not torch.allclose(before.weight(0, "value"), after.weight(0, "value"))
    assert "query_key" not in made.records[0].detail


def test_where_nothing_is_legal_it_is_refused(tmp_path: Path) -> None:
    clipped = make_model(tmp_path / "m", "olmo", clip_qkv=3.0)
    with pytest.raises(BadInput, match=r"nothing of it keeps the function.*clip"):
        MergeLock.value_output().apply(resolve(clipped), tmp_path / "out", Context())
    assert not (tmp_path / "out").exists()
