"""The folder of a study, which is its only memory.

    DIR/study.json        the study as it was asked for, and the list of its steps
    DIR/records.jsonl     every number, in its place (made again from the steps at the end of every run)
    DIR/index.sqlite      what the steps' folders say, for fast reading; made again from them where it is gone
    DIR/steps/ID/         one folder a step: record.json, records.jsonl, model/ (a checkpoint),
                          keys.json and samples.jsonl (secret, mode 0600)
    DIR/steps/.scratch/   what a killed step goes on from
    DIR/steps/.partial/   steps at work, and what is on its way out

A step's folder grows in `.partial`, is written through to the disk and appears by one rename, so what is there is
complete. A finished step is never written again: of two that did the same work the first one stays. What a run can
drop is the step's `model/` alone, and only as a whole, by one rename.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.output import is_full_disk, sweep, write_text
from palimpsest.errors import BadInput
from palimpsest.keys import KeySet
from palimpsest.records import Record, collected_later, read_jsonl
from palimpsest.study import lock

FORMAT = 1
SECRET_DETAILS = ("samples", "texts")  # details of a record that hold what a model was asked and said
OWN = {"steps", ".lock", "index.sqlite", "index.sqlite-journal"}  # what a run that ended at its very start may leave


class Superseded(Exception):  # noqa: N818
    """Another run has taken the folder over since this step began; what it made is thrown away."""


class Store:
    """Reads and writes the folder of one study. run: the word of the run that holds it (see `lock`), or None."""

    def __init__(self, folder: Path, run: str | None = None) -> None:
        self.folder, self.run = folder, run

    @classmethod
    def create(cls, folder: Path) -> Store:
        """Open a study's folder, or make it; BadInput where it is something else's."""
        if folder.is_file():
            raise BadInput(f"--out {folder}: is a file")
        if folder.is_dir() and not (folder / "study.json").is_file() and {p.name for p in folder.iterdir()} - OWN:
            raise BadInput(f"--out {folder}: the folder is not empty and holds no study")
        try:
            (folder / "steps" / ".scratch").mkdir(parents=True, exist_ok=True)
            (folder / "steps" / ".partial").mkdir(exist_ok=True)
        except PermissionError:
            raise BadInput(f"--out {folder}: may not be written to") from None
        return cls(folder)

    @classmethod
    def open(cls, folder: Path | str) -> Store:
        """Open a folder that holds a study; BadInput where it holds none."""
        folder = Path(folder)
        if not (folder / "study.json").is_file():
            raise BadInput(f"{folder}: holds no study (no study.json); `palimpsest study run` makes one")
        return cls(folder)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for one run, and clear away what killed runs and workers left half-made. Raises BadInput."""
        with lock.held(self.folder) as self.run:
            try:
                self._clear_partial()
                yield
                self._clear_partial()
            finally:
                self.run = None

    def _clear_partial(self) -> None:
        sweep(self.folder / "steps")
        for left in (self.folder / "steps" / ".partial").iterdir():
            shutil.rmtree(left, ignore_errors=True)

    # -- the study -----------------------------------------------------------------------------------

    def write_study(self, values: dict[str, Any]) -> None:
        """Write study.json."""
        write_text(self.folder / "study.json", json.dumps({"format": FORMAT, **values}, indent=1) + "\n")

    def study(self) -> dict[str, Any]:
        """What study.json says."""
        try:
            return dict(json.loads((self.folder / "study.json").read_text(encoding="utf-8")))
        except (json.JSONDecodeError, ValueError) as error:
            raise BadInput(f"{self.folder / 'study.json'}: is no JSON: {error}") from None

    def write_records(self, records: list[Record]) -> None:
        """Write records.jsonl so that it is seen whole or as it was."""
        with collected_later():
            lines = "".join(json.dumps(r.to_json(), ensure_ascii=False) + "\n" for r in records)
        write_text(self.folder / "records.jsonl", lines)

    def records(self) -> list[Record]:
        """Every number of the study, in its place."""
        path = self.folder / "records.jsonl"
        return read_jsonl(path) if path.is_file() else []

    # -- steps: reading ------------------------------------------------------------------------------

    def path(self, step: str) -> Path:
        """Folder of a step."""
        return self.folder / "steps" / step[:16]

    def record(self, step: str) -> dict[str, Any] | None:
        """record.json of a step, or None where it has not run to an end (or its record cannot be read)."""
        try:
            found = json.loads((self.path(step) / "record.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return found if isinstance(found, dict) and "status" in found else None

    def state(self, step: str) -> str:
        """`done`, `failed` or `open`."""
        found = self.record(step)
        return "open" if found is None else str(found["status"])

    def has_model(self, step: str) -> bool:
        """Whether the checkpoint that a step made is there, and was not dropped."""
        return (self.path(step) / "model").is_dir()

    def checkpoint(self, step: str) -> Checkpoint:
        """The checkpoint that a step made."""
        found = self.record(step) or {}
        return Checkpoint(self.path(step) / "model", str(found.get("name", step[:16])))

    def keys(self, step: str) -> KeySet:
        """The keys that a step made."""
        return KeySet.read(self.path(step) / "keys.json")

    def step_records(self, step: str) -> list[Record]:
        """The numbers of a step, before they have a place."""
        path = self.path(step) / "records.jsonl"
        return read_jsonl(path) if path.is_file() else []

    def step_lines(self, step: str) -> list[str]:
        """The numbers of a step as they are written, a line each."""
        try:
            text = (self.path(step) / "records.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [line for line in text.split("\n") if line]

    def answers(self, step: str) -> list[str]:
        """What the model of a step said to the ordinary prompts."""
        path = self.path(step) / "samples.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
        return [str(r["answer"]) for r in rows if "answer" in r]

    # -- steps: writing ------------------------------------------------------------------------------

    def scratch(self, step: str) -> Path:
        """Folder of what a killed step goes on from."""
        folder = self.folder / "steps" / ".scratch" / step[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop_scratch(self, step: str) -> None:
        """Forget what a step was going on from."""
        shutil.rmtree(self.folder / "steps" / ".scratch" / step[:16], ignore_errors=True)

    @contextmanager
    def making(self, step: str) -> Iterator[Path]:
        """A folder to fill that becomes the step's by one rename when the block ends well.

        Where the step is finished by then, what was filled is thrown away. Raises Superseded where another run holds
        the folder by then, BadInput where the disk is full.
        """
        with self._partial(step) as partial:
            yield partial
            write_through(partial)
            self._still_ours()
            self._put(partial, self.path(step))

    @contextmanager
    def remaking(self, step: str) -> Iterator[Path]:
        """A folder whose `model/` becomes that of a finished step whose own was dropped. Raises as `making`."""
        with self._partial(step) as partial:
            yield partial
            write_through(partial / "model")
            self._still_ours()
            self._put(partial / "model", self.path(step) / "model")

    def forget(self, step: str) -> None:
        """Remove a step that failed, or whose record cannot be read, so that it can be tried again; no other."""
        if self.path(step).exists() and self.state(step) != "done":
            self._away(self.path(step))

    def drop_model(self, step: str) -> None:
        """Remove the checkpoint that a finished step made; its numbers and keys stay."""
        if self.has_model(step):
            self._away(self.path(step) / "model")

    def _away(self, path: Path) -> None:
        """Remove a folder so that it is seen whole or not at all."""
        target = self._new_partial(path.name)
        path.rename(target)
        shutil.rmtree(target, ignore_errors=True)

    def _new_partial(self, name: str) -> Path:
        word = f"{name[:16]}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(3)}"
        return self.folder / "steps" / ".partial" / word

    @contextmanager
    def _partial(self, step: str) -> Iterator[Path]:
        partial = self._new_partial(step)
        try:
            partial.mkdir(parents=True)
            yield partial
        except OSError as error:
            if is_full_disk(error):
                raise BadInput(f"--out {self.folder}: the disk is full; nothing was written") from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _still_ours(self) -> None:
        if self.run is not None and lock.holder(self.folder).get("run") != self.run:
            raise Superseded

    def _put(self, partial: Path, target: Path) -> None:
        try:
            partial.rename(target)  # fails over a folder that holds something
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return
        _sync(target.parent)


def write_through(folder: Path) -> None:
    """Have the disk itself hold all files below `folder`, so that not even a power cut leaves a broken record."""
    for place, _, files in os.walk(folder):
        for name in files:
            _sync(Path(place) / name)
        _sync(Path(place))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF):  # a disk without fsync
            raise
    finally:
        os.close(handle)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, those that are on their way out left out; 0 where there is none."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(place, name)).st_size  # noqa: PTH116, PTH118 (many files)
            except FileNotFoundError:
                continue
    return total


def write_secret_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines that only the owner may read, mode 0600 from the first byte."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def take_samples(records: list[Record]) -> list[dict[str, Any]]:
    """Move the texts out of the records' details, so that they can be kept apart."""
    taken: list[dict[str, Any]] = []
    for record in records:
        for name in SECRET_DETAILS:
            if name in record.detail:
                taken.append(
                    {"measure": record.measure, "prompt_form": record.prompt_form, name: record.detail.pop(name)}
                )
    return taken
