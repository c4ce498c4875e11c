"""Nothing half-written is ever seen: whatever ends a run, the target is whole or not there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsest.checkpoint import output
from palimpsest.checkpoint.output import check_target, is_full_disk, new_folder, sweep, write_text
from palimpsest.errors import BadInput


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(p.name for p in folder.iterdir())


def dead_pid() -> int:
    """The number of a process that is no more."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_the_target_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "out"
    with new_folder(target) as partial:
        assert partial.parent == target.parent and not target.exists()
        (partial / "x").write_text("1")
        (partial / "sub").mkdir()
        (partial / "sub" / "y").write_text("2")
    assert names(tmp_path / "a" / "b") == ["out"] and names(target) == ["sub", "x"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, BadInput])
def test_an_error_leaves_nothing_not_even_the_parents_it_made(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(error), new_folder(tmp_path / "there" / "new" / "newer" / "out") as partial:
        (partial / "half").write_text("x")
        raise error("stop")
    assert names(tmp_path / "there") == []


def test_parents_that_others_use_meanwhile_stay(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "new" / "out"):
        (tmp_path / "new" / "of-someone-else").write_text("x")
        raise RuntimeError
    assert names(tmp_path / "new") == ["of-someone-else"]


CHILD = """
import sys, time
from pathlib import Path
from palimpsest.checkpoint.output import new_folder
with new_folder(Path(sys.argv[1]), force=True) as partial:
    (partial / "model.safetensors").write_bytes(bytes(1000))
    print("writing", flush=True)
    time.sleep(60)
"""


def test_sigkill_leaves_no_target_and_the_next_run_sweeps_up(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", CHILD, str(target)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "writing\n"
        living = f".out.partial-{child.pid}"
        assert names(tmp_path) == [living]
        with new_folder(tmp_path / "beside"):
            pass
        assert names(tmp_path) == [living, "beside"]  # what a living process writes is left alone
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not target.exists() and living in names(tmp_path)
    with new_folder(target) as partial:
        (partial / "x").write_text("1")
    assert names(tmp_path) == ["beside", "out"] and names(target) == ["x"]


def test_a_process_that_died_between_the_two_renames_loses_neither_folder(tmp_path: Path) -> None:
    pid = dead_pid()
    (tmp_path / f".out.old-{pid}").mkdir()
    (tmp_path / f".out.old-{pid}" / "old").write_text("1")
    (tmp_path / f".out.partial-{pid}").mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old"]


def test_sweeping_takes_only_what_dead_processes_left(tmp_path: Path) -> None:
    pid = dead_pid()
    for name in (f".a.partial-{pid}", f".a.old-{pid}", f".b.partial-{os.getpid()}", ".c.partial-x", "a"):
        (tmp_path / name).mkdir()
    (tmp_path / f".keys.json.partial-{pid}").write_text("secret")
    sweep(tmp_path)
    assert names(tmp_path) == [f".b.partial-{os.getpid()}", ".c.partial-x", "a"]


def ours(folder: Path) -> Path:
    """A folder that this program made."""
    folder.mkdir()
    (folder / "palimpsest.json").write_text("{}")
    return folder


def test_a_folder_that_is_not_empty_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("x")
    for target, force, message in (
        (ours(tmp_path / "ours"), False, "not empty; --force replaces it"),
        (tmp_path / "theirs", False, "not empty$"),
        (tmp_path / "theirs", True, "not made by palimpsest"),
        (tmp_path / "theirs" / "thesis.txt", True, "is a file"),
    ):
        with pytest.raises(BadInput, match=message), new_folder(target, force):
            pytest.fail("was let in")
    assert (tmp_path / "theirs" / "thesis.txt").read_text() == "x"


def test_force_replaces_our_folder_at_the_end_and_not_before(tmp_path: Path) -> None:
    target = ours(tmp_path / "out")
    with pytest.raises(RuntimeError), new_folder(target, force=True):
        raise RuntimeError
    assert names(target) == ["palimpsest.json"]
    with new_folder(target, force=True) as partial:
        (partial / "new").write_text("x")
        assert names(target) == ["palimpsest.json"]
    assert names(target) == ["new"] and names(tmp_path) == ["out"]


def test_force_knows_a_folder_that_holds_a_secret_beside_its_model(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    ours(tmp_path / "out" / "model")
    check_target(tmp_path / "out", force=True)


def test_a_replacement_that_cannot_be_renamed_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = ours(tmp_path / "out")
    real = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if "partial" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"), new_folder(target, force=True):
        pass
    assert names(tmp_path) == ["out"] and names(target) == ["palimpsest.json"]


def test_an_empty_folder_may_be_the_target(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as partial:
        (partial / "x").write_text("1")
    assert names(tmp_path / "out") == ["x"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    target = tmp_path / "new" / "out"
    with pytest.raises(BadInput, match="the disk is full; nothing was written"), new_folder(target) as partial:
        (partial / "half").write_text("x")
        raise error
    assert names(tmp_path) == []
    assert not is_full_disk(OSError(errno.EACCES, "Permission denied")) and not is_full_disk(ValueError("28"))


def test_a_target_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out"):
        with pytest.raises(BadInput, match="cannot be written to"), new_folder(target):
            pytest.fail("was let in")


def test_a_parent_that_may_not_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)  # a real mode would not stop root
    with pytest.raises(BadInput, match=r"cannot be written to \(Permission denied\)"), new_folder(tmp_path / "out"):
        pytest.fail("was let in")


def test_small_files_are_seen_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    write_text(file, "old")
    write_text(file, "ein schöner Text")
    assert file.read_text(encoding="utf-8") == "ein schöner Text" and file.stat().st_mode & 0o777 == 0o644
    write_text(tmp_path / "secret", "x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output.Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_text(file, "half")
    assert names(tmp_path) == ["config.json", "secret"] and file.read_text(encoding="utf-8") == "ein schöner Text"
