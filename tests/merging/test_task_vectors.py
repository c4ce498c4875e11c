"""Norms and products over all weights agree with what whole tensors in memory give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from factory import make_model
from merging.folders import make_folder, tensors_of, weights_of
from palimpsest.checkpoint import resolve
from palimpsest.merging import task_vectors as module
from palimpsest.merging.task_vectors import products, task_vectors


def test_norms_and_cosine_are_those_of_all_weights_as_one_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)  # several chunks a tensor, the last one short
    base, first, second = (tensors_of(seed=s) for s in (0, 1, 2))
    folders = [resolve(make_folder(tmp_path / str(i), w)) for i, w in enumerate((base, first, second))]
    flat = [torch.cat([w[n].flatten() for n in sorted(w)]).double() for w in (base, first, second)]
    found = task_vectors(folders[1:], folders[0])
    a, b = flat[1] - flat[0], flat[2] - flat[0]
    assert found.base == pytest.approx(float(flat[0].norm()), rel=1e-6)
    assert found.norms == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-6)
    assert found.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-5)
    every, matrices = products(folders[1:], folders[0])
    assert float(every[0, 2]) == pytest.approx(float(a @ flat[0]), rel=1e-5)
    names = [n for n in base if base[n].dim() > 1]
    assert 0 < len(names) < len(base)
    square = sum(float((first[n] - base[n]).double().pow(2).sum()) for n in names)
    whole = sum(float(base[n].double().pow(2).sum()) for n in names)
    assert float(matrices[0, 0]) == pytest.approx(square, rel=1e-5)
    assert found.apart[0] == pytest.approx((square / whole) ** 0.5, rel=1e-5)


def test_a_model_against_itself_is_a_zero_vector_without_a_cosine(tmp_path: Path) -> None:
    one, other = (resolve(make_folder(tmp_path / str(s), seed=s)) for s in (0, 1))
    found = task_vectors([one, other], one)
    assert found.norms[0] == 0.0 and found.norms[1] > 0 and found.cosine is None
    assert task_vectors([other], one).cosine is None


def test_a_tied_head_counts_once_and_other_dtypes_are_read_as_numbers(tmp_path: Path) -> None:
    base = resolve(make_model(tmp_path / "b", tied=True, layers=1))
    model = resolve(make_model(tmp_path / "m", tied=True, layers=1, seed=1, dtype="bfloat16"))
    mine, theirs = weights_of(model.path), weights_of(base.path)
    assert "lm_head.weight" not in theirs
    total = sum(float((mine[n].float() - theirs[n]).double().pow(2).sum()) for n in theirs)
    assert task_vectors([model], base).norms[0] == pytest.approx(total**0.5, rel=1e-6)
