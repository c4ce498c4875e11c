"""Nothing half-written is ever seen: outputs grow in `.NAME.partial-PID` beside the target, then are renamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palimpsest.errors import BadInput

_PARTIAL = re.compile(r"^\..+\.(partial|old)-(\d+)$")


def check_target(target: Path, force: bool = False) -> None:
    """BadInput where `target` may not be written: a file, or a non-empty folder without `--force`.

    `--force` replaces only a folder that this program made (it has a palimpsest.json).
    """
    if target.is_file():
        raise BadInput(f"--out {target}: is a file")
    if not target.is_dir() or not any(target.iterdir()):
        return
    ours = any((target / p).is_file() for p in ("palimpsest.json", "model/palimpsest.json"))
    if not force:
        hint = "; --force replaces it" if ours else ""
        raise BadInput(f"--out {target}: the folder is not empty{hint}")
    if not ours:
        raise BadInput(f"--out {target}: was not made by palimpsest (it has no palimpsest.json), so --force leaves it")


@contextmanager
def new_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """Yield a folder to fill that becomes `target` by one rename when the block ends well."""
    target = target.absolute()
    check_target(target, force)
    made = [p for p in (target.parent, *target.parent.parents) if not p.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except PermissionError:
        raise BadInput(f"--out {target}: {target.parent} may not be written to") from None
    try:
        yield partial
        old = None
        if target.exists():
            old = target.with_name(f".{target.name}.old-{os.getpid()}")
            target.rename(old)
        partial.rename(target)
        if old is not None:
            shutil.rmtree(old)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        if is_full_disk(error):
            raise BadInput(f"--out {target}: the disk is full; nothing was written") from error
        raise


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, of Python's or of a writer that wraps it, says that the disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "os error 28" in str(error)


def sweep(folder: Path) -> None:
    """Remove the partial folders and files that dead processes left in `folder`."""
    for entry in folder.iterdir():
        found = _PARTIAL.match(entry.name)
        if found and not _alive(int(found.group(2))):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a small file so that it is seen whole or not at all."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)
