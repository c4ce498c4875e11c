"""One run at a time in a folder; a dead one is no obstacle."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from palimpsest.errors import BadInput
from palimpsest.study import lock


def enter(folder: Path) -> None:
    with lock.held(folder):
        pass


def test_a_second_run_is_told_whose_the_first_is(tmp_path: Path) -> None:
    with lock.held(tmp_path) as word:
        found = lock.at_work(tmp_path)
        assert found["run"] == word and found["pid"] == os.getpid()
        with pytest.raises(BadInput, match=f"another run is at work in this folder .process {os.getpid()} on "):
            enter(tmp_path)
    assert lock.holder(tmp_path) == {} and lock.at_work(tmp_path) == {}
    with lock.held(tmp_path) as again:
        assert again != word


def test_the_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with lock.held(tmp_path):
            (tmp_path / "held").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    try:
        with pytest.raises(BadInput, match=f"process {child}"):
            enter(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert lock.holder(tmp_path)["pid"] == child and lock.at_work(tmp_path) == {}
    with lock.held(tmp_path):
        assert lock.holder(tmp_path)["pid"] == os.getpid()


def test_a_run_of_another_machine_is_believed_while_it_gives_signs_of_life(tmp_path: Path) -> None:
    path = tmp_path / lock.NAME
    path.write_text(json.dumps({"run": "x", "host": "elsewhere", "pid": 1, "since": "12:00:00"}))
    assert lock.at_work(tmp_path)["host"] == "elsewhere"
    with pytest.raises(BadInput, match=r"process 1 on elsewhere, since 12:00:00.; it was alive \d s ago"):
        enter(tmp_path)
    old = time.time() - lock.DEAD_SECONDS - 1
    os.utime(path, (old, old))
    assert lock.at_work(tmp_path) == {}
    with lock.held(tmp_path):
        pass


def test_a_run_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with lock.held(tmp_path):
        os.utime(tmp_path / lock.NAME, (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / lock.NAME).stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / lock.NAME).stat().st_mtime > 1
