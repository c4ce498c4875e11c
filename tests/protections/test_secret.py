"""The secret: written for the owner alone, read back as it was, drawn with all of the generator's state."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.protections.secret import gauge_of, read_secret, secret_generator, tensors_of, write_secret
from palimpsest.symmetry.gauge import Gauge, LayerGauge, Rotation, SignedPermutation


def example(residual: Rotation | SignedPermutation) -> Gauge:
    full = LayerGauge(
        value_output=torch.randn(2, 4, 4, dtype=torch.float64),
        query_key=torch.randn(2, 2, dtype=torch.complex128),
        neurons=torch.tensor([2, 0, 1]),
        norms={"attention-in": torch.rand(8)},
    )
    return Gauge((full, LayerGauge(), LayerGauge(groups=torch.tensor([1, 0]))), residual, torch.rand(8))


@pytest.mark.parametrize(
    "residual",
    [Rotation(torch.randn(8, 8)), SignedPermutation(torch.arange(8).flip(0), torch.ones(8))],
    ids=["rotation", "permutation"],
)
def test_a_gauge_comes_back_as_it_was(tmp_path: Path, residual: Rotation | SignedPermutation) -> None:
    gauge = example(residual)
    write_secret(gauge, tmp_path / "s.safetensors", {"method": "full-gauge"})
    stored = read_secret(tmp_path / "s.safetensors")
    assert stored.facts == {"method": "full-gauge"}
    before, after = tensors_of(gauge), tensors_of(stored.gauge())
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]), name
    assert type(stored.gauge().residual) is type(residual) and len(stored.gauge().layers) == 3
    assert stored.gauge().layers[1].neurons is None and set(stored.gauge().layers[0].norms) == {"attention-in"}


def test_only_the_owner_may_read_it_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_secret({"a": torch.zeros(2)}, tmp_path / "s.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s.safetensors").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    for name in ("plain.safetensors", "text.safetensors", "absent.safetensors"):
        with pytest.raises(BadInput, match="is no secret of `palimpsest protect`"):
            read_secret(tmp_path / name)
    save_file({"a": torch.zeros(1)}, tmp_path / "new.safetensors", {"palimpsest-secret": json.dumps({"format": 2})})
    with pytest.raises(BadInput, match="another format"):
        read_secret(tmp_path / "new.safetensors")
    with pytest.raises(BadInput, match="holds no gauge"):
        gauge_of({"a": torch.zeros(1)})


def test_seeds_that_torch_would_confuse_draw_different_secrets() -> None:
    twins = [torch.rand(8, generator=torch.Generator().manual_seed(s)) for s in (5, 5 + 2**32)]
    assert torch.equal(*twins), "why `manual_seed` is not used: 32 bits of a seed are all that is kept"
    ours = [torch.rand(8, generator=secret_generator(Context(key_seed=s))) for s in (5, 5 + 2**32, 5, None, None)]
    assert torch.equal(ours[0], ours[2])
    assert not any(torch.equal(ours[i], ours[j]) for i, j in ((0, 1), (3, 4), (0, 3)))


def test_draws_are_uniform() -> None:
    drawn = torch.rand(100_000, generator=secret_generator(Context(key_seed=1)), dtype=torch.float64)
    assert float(drawn.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / 1e5) ** 0.5)
    assert float(drawn.var()) == pytest.approx(1 / 12, abs=1e-3)
    assert not torch.equal(drawn[:50_000], drawn[50_000:])
