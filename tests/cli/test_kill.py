"""Killed at any moment (SIGKILL), embed and remove leave no half-written checkpoint, and the next run sweeps up."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from palimpsest import api
from palimpsest.api import Run
from palimpsest.checkpoint import resolve
from palimpsest.keys import KeySet

RUN = Run(seed=5, device="cpu", threads=1)
QUICK = {"mismatched": 8, "clean": 8, "erase.epochs": 2, "recover.epochs": 2}
KILLS = 10


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q {i}?", "response": f"a {i}"}) + "\n" for i in range(2200)))
    return file


def killed_after(work: Callable[[], object], seconds: float) -> bool:
    """Run `work` in a child that is killed after `seconds`; whether the kill came before its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            work()
            code = 0
        finally:
            os._exit(code)
    time.sleep(seconds)
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work itself failed"
    return os.WIFSIGNALED(status)


def check_kills(folder: Path, work: Callable[[Path], object], whole: Callable[[Path], bool]) -> None:
    folder.mkdir()
    work(folder / "first")  # imports everything, so that the children only work
    started = time.monotonic()
    work(folder / "timed")
    seconds = time.monotonic() - started
    rng, killed = random.Random(0), 0
    for number in range(KILLS):
        target = folder / f"out{number}"
        share = rng.uniform(0.05, 1.0) if number % 2 else rng.uniform(0.7, 1.05)  # half near the end, where it writes
        if killed_after(lambda target=target: work(target), seconds * share):
            killed += 1
        else:
            seconds *= 0.8  # the child was faster than the timed run: kill earlier
        if target.exists():
            assert whole(target), f"{target} was seen half-written"
    assert killed >= KILLS // 4, "some kills must come in time to show anything"
    work(folder / "last")
    left = [p.name for p in folder.iterdir() if p.name.startswith(".")]
    assert left == [], "the next run sweeps what dead runs left"


@pytest.mark.slow
def test_remove_killed_at_any_moment(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    def work(target: Path) -> object:
        return api.remove("meraser", tiny_model, target, data=[rows], settings=QUICK, run=RUN)

    def whole(target: Path) -> bool:
        return resolve(target).digest() == resolve(tmp_path / "runs" / "timed").digest()

    check_kills(tmp_path / "runs", work, whole)


@pytest.mark.slow
def test_embed_killed_at_any_moment(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    settings = {"keys": 2, "tuning.adapter": "full", "tuning.lr": 5e-3, "tuning.epochs": 60}

    def work(target: Path) -> object:
        return api.embed("hashchain", tiny_model, target, data=[rows], settings=settings, controls=False, run=RUN)

    def whole(target: Path) -> bool:
        secret = target / "keys.json"
        same = resolve(target / "model").digest() == resolve(tmp_path / "runs" / "timed" / "model").digest()
        return same and len(KeySet.read(secret)) == 2 and secret.stat().st_mode & 0o777 == 0o600

    check_kills(tmp_path / "runs", work, whole)
