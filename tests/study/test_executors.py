"""A pool, Ray and submitit make what the serial run makes, survive lost workers, and leave no process behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import pytest

from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.study.executors import Where
from palimpsest.study.executors.pool import PoolExecutor
from palimpsest.study.run import Options, StudyResult, run_study
from palimpsest.study.spec import parse_spec
from palimpsest.study.store import Store
from palimpsest.study.work import Assignment

PROGRAM = """
import json, signal, sys
from pathlib import Path
from palimpsest.method import Context
from palimpsest.study.executors import Where
from palimpsest.study.run import Options, run_study
from palimpsest.study.spec import parse_spec
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start us with it ignored
    spec = parse_spec(json.loads(Path(sys.argv[1]).read_text()))
    run_study(spec, Path(sys.argv[2]), Context(threads=1), options=Options(where=Where(workers=2)))
"""


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def digests(folder: Path) -> dict[str, Any]:
    """Per step what it came to, times left out."""
    store = Store.open(folder)
    found = {}
    for step in store.study()["steps"]:
        body = store.record(step["id"]) or {}
        rows = [
            {k: v for k, v in r.to_json().items() if k not in ("seconds", "peak_bytes", "grown_bytes")}
            for r in store.step_records(step["id"])
        ]
        found[step["id"]] = (body.get("status"), body.get("error"), body.get("digest"), body.get("keys"), rows)
    return found


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A study with a step that fails and one that kills its worker the first time; stand-ins named by their file."""
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    return fakes.portable(fakes.study(tmp_path, removals=["fake-eraser", "breaks", "fragile"]))


def serial(values: dict[str, Any], tmp_path: Path) -> StudyResult:
    (tmp_path / "log").write_text("fragile\n" * 9)  # enough deaths: in this process it must not die
    return run_study(parse_spec(values), tmp_path / "serial", Context(threads=1))


def like_the_serial_run(values: dict[str, Any], tmp_path: Path, where: Where) -> None:
    expected = serial(values, tmp_path)
    (tmp_path / "log").write_text("")
    result = run_study(parse_spec(values), tmp_path / "out", Context(threads=1), options=Options(where=where))
    assert digests(tmp_path / "out") == digests(tmp_path / "serial")
    assert [f.error for f in result.failed] == [f.error for f in expected.failed] == ["RuntimeError: it broke"]
    assert result.left_out == expected.left_out and len(result.records) == len(expected.records)
    assert (tmp_path / "log").read_text().splitlines().count("fragile") == 2, "its worker died once"
    assert not list((tmp_path / "out" / "steps" / ".partial").iterdir())


def test_a_pool_makes_what_the_serial_run_makes(values: dict[str, Any], tmp_path: Path) -> None:
    like_the_serial_run(values, tmp_path, Where(workers=2))


def test_ray_makes_what_the_serial_run_makes(values: dict[str, Any], tmp_path: Path) -> None:
    needs("ray")
    like_the_serial_run(values, tmp_path, Where(ray="local", workers=2))


def test_submitit_makes_what_the_serial_run_makes(values: dict[str, Any], tmp_path: Path) -> None:
    needs("submitit")
    like_the_serial_run({**values, "measures": values["measures"][:1]}, tmp_path, Where(slurm="local:", workers=2))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_run(tmp_path: Path, stop: signal.Signals) -> None:
    values = fakes.portable(fakes.study(tmp_path, removals=[{"fake-eraser": {"erase": {"seconds": 600}}}]))
    (tmp_path / "spec.json").write_text(json.dumps(values))
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "spec.json"), str(tmp_path / "out")]
    environment = {**os.environ, "FAKE_LOG": str(tmp_path / "log")}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    log = tmp_path / "log"
    deadline = time.monotonic() + 300
    while not (log.exists() and "erase" in log.read_text()) and time.monotonic() < deadline:
        assert run.poll() is None
        time.sleep(0.05)
    children = [int(p) for p in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    workers = {int(p.name.split(".")[-2]) for p in (tmp_path / "out" / "steps" / ".partial").iterdir()}
    assert workers and workers <= set(children)
    run.send_signal(stop)
    assert run.wait(timeout=120) != 0
    while any(alive(pid) for pid in children) and time.monotonic() < deadline + 120:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in children)
    done = list((tmp_path / "out").glob("steps/*/record.json"))
    assert done and all(json.loads(p.read_text())["status"] == "done" for p in done)


def test_threads_are_divided_and_gpus_given_one_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_spec(fakes.study(tmp_path))
    base = Assignment(spec, tmp_path, "", Context(), str(tmp_path))
    monkeypatch.setattr("palimpsest.machine.cores", lambda: 12)
    assert PoolExecutor(base, 4).assignment.ctx.threads == 3
    assert PoolExecutor(base, 40).assignment.ctx.threads == 1
    given = replace(base, ctx=Context(threads=5, device="cuda"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 1")
    pool = PoolExecutor(given, 2)
    assert pool.assignment.ctx.threads == 5 and pool.gpus == ["3", "1"] and pool.free() == ["worker 1", "worker 2"]
    assert PoolExecutor(base, 2).gpus == []


def test_a_worker_that_does_not_see_the_run_says_so(tmp_path: Path) -> None:
    spec = parse_spec(fakes.study(tmp_path))
    store = Store.create(tmp_path / "out")
    with store.alone():
        there = Assignment(spec, store.folder, store.run or "", Context(), str(tmp_path))
        assert there.workshop().plan.steps
        with pytest.raises(BadInput, match=r"does not see the run in .*a disk that all workers share"):
            replace(there, folder=tmp_path / "elsewhere").workshop()
        with pytest.raises(BadInput, match="does not see the run"):
            replace(there, run="another").workshop()


@pytest.mark.parametrize(
    ("where", "line"),
    [
        (Where(ray="auto", slurm="gpu"), "--ray and --slurm"),
        (Where(minutes=5), "--memory and --time are those of a Slurm job"),
        (Where(gpus=1), "--gpus is that of a Slurm job or a Ray worker"),
    ],
)
def test_options_that_do_not_go_together_are_refused(where: Where, line: str) -> None:
    with pytest.raises(BadInput, match=line):
        where.check()


@pytest.mark.parametrize(("where", "extra"), [(Where(ray="auto"), "ray"), (Where(slurm="gpu"), "slurm")])
def test_a_missing_extra_is_one_line(where: Where, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=rf"--{extra} needs \w+: pip install 'palimpsest-lm\[{extra}\]'"):
        where.check()


def test_under_a_launcher_there_is_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    Where().check()
    with pytest.raises(BadInput, match="under accelerate or torchrun"):
        Where(workers=2).check()
