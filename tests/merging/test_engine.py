"""The engine: the same bytes whatever the threads and chunks, errors that end a run, memory that stays bounded."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from palimpsest.checkpoint.files import read_header
from palimpsest.errors import BadInput
from palimpsest.merging.engine import Job, run_jobs
from palimpsest.merging.karcher import Karcher
from palimpsest.merging.linear import Linear
from palimpsest.merging.model_stock import ModelStock
from palimpsest.merging.multislerp import MultiSlerp
from palimpsest.merging.nuslerp import NuSlerp
from palimpsest.merging.passes import Chunk, Gather, MergeMethod, Passes, Sample, Sum, TensorFacts, merge_tensors
from palimpsest.merging.reading import STORED_NAMES, Stored
from palimpsest.merging.slerp import Slerp
from palimpsest.merging.task_arithmetic import TaskArithmetic
from palimpsest.merging.writing import Shards, Slot

SHAPES = {"a.weight": (40, 30), "b.weight": (7, 9), "c.bias": (501,), "d.scale": (), "e.nothing": (0, 3)}
METHODS = {
    "linear": Linear(weight=(1, 2)),
    "task arithmetic": TaskArithmetic(weight=(0.3, 0.4)),
    "slerp": Slerp(t=0.3),
    "nuslerp": NuSlerp(weight=(1, 2)),
    "nuslerp by rows": NuSlerp(weight=(1, 2), nuslerp_flatten=False),
    "nuslerp by columns": NuSlerp(weight=(1, 2), nuslerp_flatten=False, nuslerp_row_wise=True),
    "multislerp": MultiSlerp(),
    "karcher": Karcher(),
    "model stock": ModelStock(),
    "model stock by rows": ModelStock(filter_wise=True),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files of the same tensors in bfloat16."""
    folder = tmp_path_factory.mktemp("files")
    generator = torch.Generator().manual_seed(0)
    found = [folder / f"{i}.safetensors" for i in range(3)]
    for file in found:
        tensors = {n: torch.randn(s, generator=generator).add(1).bfloat16() for n, s in SHAPES.items()}
        save_file(tensors, file)
    return found


def jobs_of(files: Sequence[Path], method: Any, dtype: torch.dtype = torch.float32) -> list[Job]:
    """A job for each tensor; the last file is the base where the method takes one as such."""
    headers = [{t.name: t for t in read_header(f)} for f in files]
    made = []
    for name, shape in SHAPES.items():
        sources = [Stored(h[name], f"model {i}") for i, h in enumerate(headers)]
        base = sources.pop() if method.base in ("needs", "origin") else None
        sources = sources[:2]
        made.append(Job(name, TensorFacts(name, shape, len(sources), base is not None), method, sources, base, dtype))
    return made


def run(jobs: Sequence[Job], out: Path, **options: Any) -> dict[str, Tensor]:
    """What the engine wrote."""
    out.mkdir(parents=True)
    slots = [Slot(j.name, STORED_NAMES[j.dtype], j.facts.shape, j.bytes_out) for j in jobs]
    shards = Shards(out, slots)
    try:
        run_jobs(jobs, shards, **options)
    finally:
        shards.close()
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("name", METHODS)
def test_workers_make_no_difference_and_chunks_none_beyond_rounding(
    name: str, files: list[Path], tmp_path: Path
) -> None:
    """Bytes do not depend on the number of workers; on the chunks only through the last bits of a tensor's products."""
    method = METHODS[name]
    jobs = jobs_of(files, method)
    for chunk in (1 << 18, 64, 30):
        found = [run(jobs, tmp_path / f"{chunk}-{w}", workers=w, chunk=chunk) for w in (1, 2, 4)]
        for other in found[1:]:
            assert all(torch.equal(found[0][n], other[n]) for n in SHAPES), chunk
        stored = [load_file(f) for f in files]
        for tensor in SHAPES:
            models = [s[tensor] for s in stored]
            base = models.pop() if method.base in ("needs", "origin") else None
            wanted = merge_tensors(method, models[:2], base, size=chunk)
            assert torch.equal(found[0][tensor], wanted), tensor
    if name in ("linear", "task arithmetic"):
        files_of = [(tmp_path / f"{c}-1" / "model.safetensors").read_bytes() for c in (1 << 18, 64, 30)]
        assert files_of[0] == files_of[1] == files_of[2]


@pytest.mark.parametrize("name", METHODS)
def test_stored_in_bfloat16_chunks_make_no_difference(name: str, files: list[Path], tmp_path: Path) -> None:
    jobs = jobs_of(files, METHODS[name], torch.bfloat16)
    runs = [run(jobs, tmp_path / str(c), workers=2, chunk=c) for c in (1 << 18, 64, 30)]
    for tensor in SHAPES:
        for other in runs[1:]:
            differing = (runs[0][tensor] != other[tensor]).float()
            assert differing.numel() == 0 or differing.mean() <= 1e-2  # a tie of rounding, if any


@dataclass(frozen=True)
class Failing(MergeMethod):
    """Fails at one chunk of one tensor, in a pass or at the end."""

    where: str = "apply"

    def passes(self, tensor: TensorFacts) -> Passes:
        def fail(chunk: Chunk) -> Tensor:
            if tensor.name == "c.bias" and chunk.number == 3:
                raise ZeroDivisionError("here")
            return chunk.models[0]

        if self.where == "sum":
            yield Sum(lambda chunk: fail(chunk).sum())
        if self.where == "program" and tensor.name == "c.bias":
            raise ZeroDivisionError("here")
        if self.where == "sample" and tensor.name == "c.bias":
            yield Sample(lambda chunk: 1 / 0)
        return fail if self.where == "apply" else lambda chunk: chunk.models[0]


@pytest.mark.parametrize("where", ["apply", "sum", "program", "sample"])
@pytest.mark.parametrize("workers", [1, 4])
def test_an_exception_in_a_method_ends_the_run_and_is_raised(
    where: str, workers: int, files: list[Path], tmp_path: Path
) -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        run(jobs_of(files, Failing(where)), tmp_path / "out", workers=workers, chunk=20)
    assert threading.active_count() == before


def test_a_number_that_is_not_finite_is_named(files: list[Path], tmp_path: Path) -> None:
    tensors = load_file(files[0])
    tensors["c.bias"][77] = float("nan")
    save_file(tensors, tmp_path / "spoilt.safetensors")
    jobs = jobs_of([files[0], tmp_path / "spoilt.safetensors"], Linear())
    with pytest.raises(BadInput, match=r"model 1: tensor c\.bias holds nan at position 77"):
        run(jobs, tmp_path / "out", workers=2, chunk=20)


def test_a_file_that_ends_early_is_named(files: list[Path], tmp_path: Path) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(files[0].read_bytes())
    jobs = jobs_of([files[1], short], Linear())
    last = max(read_header(short), key=lambda t: t.end)
    with short.open("r+b") as handle:
        handle.truncate(last.end - 4)
    with pytest.raises(BadInput, match=r"short\.safetensors: is truncated inside tensor"):
        run(jobs, tmp_path / "out", workers=2, chunk=20)


def test_tensors_taken_as_they_are_keep_their_bytes(files: list[Path], tmp_path: Path) -> None:
    header = {t.name: t for t in read_header(files[0])}
    jobs = [Job(n, TensorFacts(n, s, 0), copied=header[n], dtype=torch.bfloat16) for n, s in SHAPES.items()]
    made = run(jobs, tmp_path / "out", workers=2, chunk=16)
    wanted = load_file(files[0])
    assert all(torch.equal(made[n], wanted[n]) for n in SHAPES)


def test_a_run_tells_of_every_byte_it_wrote(files: list[Path], tmp_path: Path) -> None:
    told: list[int] = []
    jobs = jobs_of(files, Linear(), torch.bfloat16)
    run(jobs, tmp_path / "out", workers=3, chunk=50, done=told.append)
    assert sum(told) == sum(j.bytes_out for j in jobs) == sum(2 * torch.Size(s).numel() for s in SHAPES.values())
    assert jobs[0].bytes_in == 2 * 2 * 40 * 30


def test_threads_of_torch_are_given_back(files: list[Path], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    run(jobs_of(files, Linear()), tmp_path / "out", workers=2)
    assert torch.get_num_threads() == before


def test_sums_are_added_up_as_they_come(files: list[Path], tmp_path: Path) -> None:
    """However many chunks a tensor has, the results held are about as many as there are workers."""
    alive = most = 0
    lock = threading.Lock()

    class Counted:
        def __init__(self, value: float) -> None:
            nonlocal alive, most
            self.value = value
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

        def cpu(self) -> Counted:
            return self

        def __add__(self, other: Counted) -> Counted:
            return Counted(self.value + other.value)

    @dataclass(frozen=True)
    class Counting(MergeMethod):
        def passes(self, tensor: TensorFacts) -> Passes:
            total = yield Sum(lambda chunk: Counted(chunk.count))  # type: ignore[arg-type, return-value]
            assert total.value == tensor.count
            return lambda chunk: chunk.models[0]

    run(jobs_of(files, Counting()), tmp_path / "out", workers=1, chunk=4)
    assert most <= 8


def test_a_sample_is_spread_over_the_tensor_and_gathers_keep_their_order(tmp_path: Path) -> None:
    long = torch.arange(400_000, dtype=torch.float32)
    save_file({"long": long}, tmp_path / "long.safetensors")
    (info,) = read_header(tmp_path / "long.safetensors")
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Sampling(MergeMethod):
        def passes(self, tensor: TensorFacts) -> Passes:
            seen.append((yield Sample(lambda chunk: chunk.models[0].clone(), 1 << 14)))
            order = yield Gather(lambda chunk: chunk.first)
            assert order == sorted(order)
            return lambda chunk: chunk.models[0]

    job = Job("long", TensorFacts("long", (400_000,), 1), Sampling(), [Stored(info, "m")])
    made = run([job], tmp_path / "out", workers=3, chunk=1000)
    assert torch.equal(made["long"], long)
    (sample,) = seen
    assert len(sample) == 1 << 14
    assert sample[0] == 0 and sample[-1] == 399_999
    assert sample.mean() == pytest.approx(200_000, rel=1e-2)


def test_no_jobs_are_no_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    shards = Shards(tmp_path / "out", [])
    run_jobs([], shards, workers=2)
    shards.close()
