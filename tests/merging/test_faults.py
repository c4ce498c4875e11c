"""What can go wrong while merging: one clear line each, nothing half-written, nothing of the inputs touched."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import palimpsest as pal
from factory import copy_of, make_model, reshard
from merging.folders import make_folder, tensors_of, weights_of
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.merging import engine, writing
from palimpsest.merging.engine import run_jobs

RUN = pal.Run(device="cpu", threads=2)
KILLS = 8


def merge(out: Path, *models: Any, method: str = "linear", **said: Any) -> Any:
    return pal.merge(method, models, out, run=RUN, **said)


def refused(problem: str, out: Path, *models: Any, **said: Any) -> None:
    """The merge is refused with such a line, and nothing is left or changed."""
    before = {p: p.stat().st_mtime_ns for p in out.parent.rglob("*")}
    with pytest.raises(BadInput, match=problem) as caught:
        merge(out, *models, **said)
    assert "\n" not in str(caught.value)
    assert {p: p.stat().st_mtime_ns for p in out.parent.rglob("*")} == before, "something was written"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return make_folder(tmp_path / "one", seed=1), make_folder(tmp_path / "two", seed=2)


# -- inputs --------------------------------------------------------------------------------------------------


def test_a_truncated_shard(pair: tuple[Path, Path], tmp_path: Path) -> None:
    file = pair[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    refused(rf"{file}: is truncated: it has \d+ of \d+ bytes", tmp_path / "m", *pair)
    file.write_bytes(b"\x00\x01")
    refused(rf"{file}: is truncated", tmp_path / "m", *pair)


def test_a_shard_that_is_truncated_while_it_is_read(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pair[1] / "model.safetensors"

    def shorten(jobs: Any, *args: Any, **said: Any) -> None:
        os.truncate(file, file.stat().st_size // 2)
        run_jobs(jobs, *args, **said)

    monkeypatch.setattr("palimpsest.merging.folder.run_jobs", shorten)
    with pytest.raises(BadInput, match=r"is truncated inside tensor \S+"):
        merge(tmp_path / "m", *pair)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_a_header_of_noise(pair: tuple[Path, Path], tmp_path: Path) -> None:
    file = pair[0] / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[9:40] = bytes(range(100, 131))
    file.write_bytes(raw)
    refused(rf"{file}: is no safetensors file", tmp_path / "m", *pair)


def test_a_missing_shard_and_a_tensor_that_the_index_alone_knows(tmp_path: Path) -> None:
    whole = make_model(tmp_path / "whole", layers=1, shards=3)
    broken = copy_of(whole, tmp_path / "broken")
    shard = sorted(broken.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(f"{shard.name} is missing", tmp_path / "m", whole, broken)
    lacking = copy_of(whole, tmp_path / "lacking")
    index = lacking / "model.safetensors.index.json"
    index.write_text(
        index.read_text().replace('"weight_map": {', '"weight_map": {"lost.weight": "' + shard.name + '", ')
    )
    refused("lacking: model.safetensors.index.json names the tensor lost.weight", tmp_path / "m", whole, lacking)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_a_number_that_is_not_finite(
    pair: tuple[Path, Path], tmp_path: Path, value: float, word: str, method: str
) -> None:
    weights = tensors_of()
    weights["model.layers.1.mlp.up_proj.weight"][1, 2] = value
    bad = make_folder(tmp_path / "bad", weights)
    problem = f"bad: tensor model.layers.1.mlp.up_proj.weight holds {word} at position 6"
    refused(problem, tmp_path / "m", pair[0], bad, method=method)


def test_wrong_methods_parameters_numbers_of_models_and_bases(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "m"
    refused("there is no merge 'lineer'; did you mean linear", out, *pair, method="lineer")
    refused("one of the removals, not of the merges", out, *pair, method="meraser")
    refused("slerp: t: 2.0 is out of range", out, *pair, method="slerp", settings={"t": "2"})
    refused("slerp: unknown parameter 'weight'", out, f"{pair[0]}:0.5", pair[1], method="slerp")
    refused(
        "task-arithmetic: lambda: 'x' is not a number",
        out,
        pair[0],
        base=pair[1],
        method="task_arithmetic",
        settings={"lambda": "x"},
    )
    refused("slerp: takes 2 models, the base among them; here are 3", out, *pair, base=pair[0], method="slerp")
    refused("slerp: takes 2 models; here are 1", out, pair[0], method="slerp")
    refused("no models to merge", out)
    refused("task-arithmetic: needs the models' common base; name it with --base", out, *pair, method="task-arithmetic")
    refused("linear: takes no base", out, *pair, base=pair[0])
    refused("the weights of .* sum to 0", out, (pair[0], 1), (pair[1], -1))
    refused("--dtype int8: cannot be stored", out, *pair, dtype="int8")
    refused("--vocabulary all: is not valid", out, *pair, vocabulary="all")
    refused("there is no model folder", out, pair[0], tmp_path / "none")


# -- where it is written -------------------------------------------------------------------------------------


def test_an_output_folder_that_is_not_empty_is_left_and_force_replaces_only_ours(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    refused("not empty", out, *pair)
    refused("was not made by palimpsest", out, *pair, force=True)
    (out / "mine").unlink()
    merge(out, *pair)
    refused("--force replaces it", out, *pair)
    merge(out, pair[0], force=True)
    assert torch.equal(weights_of(out)["model.norm.weight"], weights_of(pair[0])["model.norm.weight"])


def test_an_output_inside_of_an_input_or_around_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    refused(r"lies in the input two", pair[1] / "merged", *pair)
    merge(tmp_path / "ours", *pair)
    refused("lies in the input ours", tmp_path / "ours", tmp_path / "ours", pair[0], force=True)
    inner = copy_of(pair[0], tmp_path / "ours" / "inner")
    refused("holds the input inner", tmp_path / "ours", inner, pair[1], force=True)
    (tmp_path / "link").symlink_to(pair[0])
    refused("lies in the input", tmp_path / "link" / "merged", *pair)


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    calls = []

    def full(*args: Any) -> int:
        calls.append(args)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.os, call, full)
    refused("the disk is full; nothing was written", tmp_path / "m", *pair)
    assert calls


def test_other_errors_of_the_system_are_one_line_too(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def large(*_: Any) -> int:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(writing.os, "posix_fallocate", large)
    refused("File too large; nothing was written", tmp_path / "m", *pair)
    monkeypatch.undo()

    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(engine.os, "preadv", broken)
    refused("Input/output error; nothing was written", tmp_path / "m", *pair)


def test_interrupted_it_leaves_nothing(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("palimpsest.merging.folder.run_jobs", stop)
    with pytest.raises(KeyboardInterrupt):
        merge(tmp_path / "m", *pair)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


# -- killed --------------------------------------------------------------------------------------------------


def killed_after(work: Callable[[], object], seconds: float) -> bool:
    """Run `work` in a child that is killed after `seconds`; whether the kill came before its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work itself failed"
    return os.WIFSIGNALED(status)


def test_killed_at_any_moment_it_leaves_nothing_half_written_and_the_next_run_sweeps(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    large = {"rows": 4000, "width": 256, "layers": 4}
    models = [make_folder(inputs / str(i), seed=i, config={"num_hidden_layers": 4}, **large) for i in range(2)]
    reshard(models[1], 3)
    runs = tmp_path / "runs"

    def work(target: Path) -> None:
        pal.merge("slerp", models, target, digests=False, shard_bytes=3_000_000, run=pal.Run(device="cpu", threads=1))

    work(runs / "whole")
    started = time.monotonic()
    work(runs / "timed")
    seconds = time.monotonic() - started
    wanted = resolve(runs / "whole").digest()
    rng, killed = random.Random(0), 0
    for number in range(KILLS):
        target = runs / f"out{number}"
        if killed_after(lambda target=target: work(target), seconds * rng.uniform(0.05, 1.0)):  # type: ignore[misc]
            killed += 1
        else:
            seconds *= 0.8
        if target.exists():
            assert resolve(target).digest() == wanted
    assert killed >= 2, "some kills must come in time to show anything"
    work(runs / "last")
    assert [p.name for p in runs.iterdir() if p.name.startswith(".")] == []
