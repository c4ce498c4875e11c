"""One run at a time in a study's folder, on one machine or on several that share its disk.

On one machine the kernel holds the lock (`flock`) and lets it go with the process, however that ends. Where several
machines share a disk that does not hand such locks on, `.lock` also says whose run it is, and the run touches it every
few seconds: a run of another machine is dead when it was not touched for a minute, by the clock of the disk itself.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from palimpsest.errors import BadInput

NAME = ".lock"
BEAT_SECONDS = 10.0  # between two touches
DEAD_SECONDS = 60.0  # without a touch, after which a run of another machine is taken for dead


@contextmanager
def held(folder: Path) -> Iterator[str]:
    """Hold a folder for one run; yields the run's own word. Raises BadInput where another run is at work."""
    path = folder / NAME
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                whose = _whose(holder(folder))
                raise BadInput(f"--out {folder}: another run is at work in this folder{whose}") from None
        found = holder(folder)
        if found and found.get("host") != socket.gethostname():
            age = _disk_time(folder) - path.stat().st_mtime
            if age < DEAD_SECONDS:
                raise BadInput(
                    f"--out {folder}: another run is at work in this folder{_whose(found)}; it was alive {age:.0f} s "
                    f"ago, and is taken for dead after {DEAD_SECONDS:.0f} s"
                )
        word = secrets.token_hex(8)
        values = {"run": word, "host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%H:%M:%S")}
        _write(handle, json.dumps(values))
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(handle, stop), daemon=True, name="palimpsest-lock")
        beat.start()
        try:
            yield word
        finally:
            stop.set()
            beat.join()
            _write(handle, "")
    finally:
        os.close(handle)


def holder(folder: Path) -> dict[str, Any]:
    """What `.lock` says of the run that holds the folder, or held it when it was killed; empty after a run's end."""
    for _ in range(3):  # it may be read while it is written
        try:
            text = (folder / NAME).read_text(encoding="utf-8")
            return dict(json.loads(text)) if text.strip() else {}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError):
            time.sleep(0.01)
    return {}


def at_work(folder: Path) -> dict[str, Any]:
    """What is said of the run that is at work in the folder now; empty where none is."""
    found = holder(folder)
    if not found:
        return {}
    if found.get("host") != socket.gethostname():
        age = time.time() - (folder / NAME).stat().st_mtime
        return found if age < DEAD_SECONDS else {}
    handle = os.open(folder / NAME, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return found
    finally:
        os.close(handle)
    return {}


def _whose(found: dict[str, Any]) -> str:
    if not found:
        return ""
    return f" (process {found.get('pid')} on {found.get('host')}, since {found.get('since')})"


def _write(handle: int, text: str) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, text.encode(), 0)


def _beat(handle: int, stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        os.utime(handle)


def _disk_time(folder: Path) -> float:
    """What time it is by the clock that stamps files in this folder."""
    probe = folder / f".clock-{socket.gethostname()}-{os.getpid()}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
