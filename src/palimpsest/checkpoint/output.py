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

_PARTIAL = re.compile(r"^\.(?P<name>.+)\.(?P<what>partial|old)-(?P<pid>\d+)$")


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
    except OSError as error:
        _remove_empty(made)
        reason = "the disk is full" if is_full_disk(error) else f"{target.parent} cannot be written to"
        raise BadInput(f"--out {target}: {reason} ({error.strerror})") from None
    try:
        yield partial
        _put_in_place(partial, target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        _remove_empty(made)
        if is_full_disk(error):
            raise BadInput(f"--out {target}: the disk is full; nothing was written") from error
        raise


def _put_in_place(partial: Path, target: Path) -> None:
    if not target.is_dir() or not any(target.iterdir()):
        partial.rename(target)  # over nothing, or over an empty folder
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:  # innermost first
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, of Python's or of a writer that wraps it, says that the disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "os error 28" in str(error)


def sweep(folder: Path) -> None:
    """Remove the partial folders and files that dead processes left in `folder`.

    What a process that died between two renames had moved aside goes back to its place.
    """
    for entry in folder.iterdir():
        found = _PARTIAL.match(entry.name)
        if found and not _alive(int(found["pid"])):
            if found["what"] == "old" and not (folder / found["name"]).exists():
                entry.rename(folder / found["name"])
            elif entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def half_written(path: Path) -> tuple[str, bool] | None:
    """(name of what was to be made, whether its maker still runs), or None where a path is no `.NAME.partial-PID`."""
    found = _PARTIAL.match(path.name)
    return (found["name"], _alive(int(found["pid"]))) if found else None


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
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
