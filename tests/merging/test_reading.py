"""Reading stretches: of stored tensors, of rows in another order, of a base with an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from palimpsest.checkpoint.files import TensorInfo, read_header
from palimpsest.errors import BadInput
from palimpsest.merging.reading import Buffers, Files, Rows, Source, Stored

WIDTH = 5


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, TensorInfo]]:
    file = tmp_path_factory.mktemp("reading") / "a.safetensors"
    generator = torch.Generator().manual_seed(0)
    found = {f"t{i}": torch.randn(9 + i, WIDTH, generator=generator) for i in range(3)}
    found["half"] = found["t0"].half()
    found["bias"] = torch.arange(9.0)
    save_file(found, file)
    yield {t.name: t for t in read_header(file)}


def read(source: Source, first: int = 0, end: int | None = None) -> torch.Tensor:
    """A stretch, or all of a source."""
    files = Files()
    try:
        last = torch.Size(source.shape).numel() if end is None else end
        return source.read(first, last, files, Buffers(), 0).clone()
    finally:
        files.close()


def whole(info: TensorInfo) -> torch.Tensor:
    return read(Stored(info, "m")).view(info.shape)


@given(first=st.integers(0, 44), length=st.integers(1, 45))
def test_a_stretch_is_the_same_numbers_as_of_the_whole(stored: dict[str, TensorInfo], first: int, length: int) -> None:
    for name in ("t0", "half"):
        source = Stored(stored[name], "m")
        end = min(45, first + length)
        assert torch.equal(read(source, first, end), read(source)[first:end])


@given(data=st.data())
def test_rows_are_those_asked_for_or_the_mean_of_the_others(stored: dict[str, TensorInfo], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    infos = [stored[f"t{i}"] for i in range(3)]
    maps = [
        np.array(data.draw(st.lists(st.integers(-1, info.shape[0] - 1), min_size=count, max_size=count)))
        for info in infos
    ]
    sources = [Stored(info, "m") for info in infos]
    rows = Rows(sources[0], maps[0], [(s, m) for s, m in zip(sources[1:], maps[1:], strict=True)])
    tables = [whole(info) for info in infos]
    wanted = torch.zeros(count, WIDTH)
    for i in range(count):
        there = [t[m[i]] for t, m in zip(tables[1:], maps[1:], strict=True) if m[i] >= 0]
        if maps[0][i] >= 0:
            wanted[i] = tables[0][maps[0][i]]
        elif there:
            wanted[i] = torch.stack(there).mean(0)
    first = data.draw(st.integers(0, count * WIDTH - 1))
    end = data.draw(st.integers(first + 1, count * WIDTH))
    assert rows.shape == (count, WIDTH)
    assert torch.allclose(read(rows, first, end), wanted.view(-1)[first:end], atol=1e-6)


def test_rows_of_a_tensor_of_one_dimension_are_its_numbers(stored: dict[str, TensorInfo]) -> None:
    rows = Rows(Stored(stored["bias"], "m"), np.array([3, 4, -1, 0]))
    assert read(rows).tolist() == [3, 4, 0, 0] and rows.dtype == torch.float32


def test_a_number_that_is_not_finite_is_named_with_model_tensor_and_position(tmp_path: Path) -> None:
    for value, word in ((float("nan"), "nan"), (float("inf"), "inf")):
        bad = torch.ones(4, 4)
        bad[2, 1] = value
        save_file({"w": bad}, tmp_path / "bad.safetensors")
        (info,) = read_header(tmp_path / "bad.safetensors")
        with pytest.raises(BadInput, match=rf"mine: tensor w holds {word} at position 9"):
            read(Stored(info, "mine"))
        with pytest.raises(BadInput, match="position 9"):
            read(Stored(info, "mine"), 8, 12)


def test_large_numbers_whose_sum_is_no_float32_are_read(tmp_path: Path) -> None:
    save_file({"w": torch.full((64,), 3e38)}, tmp_path / "large.safetensors")
    (info,) = read_header(tmp_path / "large.safetensors")
    assert read(Stored(info, "m")).max() == pytest.approx(3e38)


def test_a_file_that_ends_too_early_is_named(tmp_path: Path) -> None:
    file = tmp_path / "short.safetensors"
    save_file({"w": torch.ones(64)}, file)
    (info,) = read_header(file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(BadInput, match="truncated inside tensor w"):
        read(Stored(info, "m"))
