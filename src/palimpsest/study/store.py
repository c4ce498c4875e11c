"""The folder of a study, which is its only memory.

    DIR/study.json        the study as it was asked for, and the list of its steps
    DIR/records.jsonl     every number, in its place (made again from the steps at the end of every run)
    DIR/steps/ID/         one folder a step: record.json, records.jsonl, model/ (a checkpoint),
                          keys.json and samples.jsonl (secret, mode 0600)
    DIR/steps/.scratch/   what a killed step goes on from

A step's folder grows beside its place and appears by one rename, so what is there is complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.output import new_folder, sweep, write_text
from palimpsest.errors import BadInput
from palimpsest.keys import KeySet
from palimpsest.records import Record, read_jsonl

FORMAT = 1
SECRET_DETAILS = ("samples", "texts")  # details of a record that hold what a model was asked and said
OWN = {"steps", ".lock"}  # what a run that was killed at its very start may leave


class Store:
    """Reads and writes the folder of one study."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path) -> Store:
        """Open a study's folder, or make it; BadInput where it is something else's."""
        if folder.is_file():
            raise BadInput(f"--out {folder}: is a file")
        if folder.is_dir() and not (folder / "study.json").is_file() and {p.name for p in folder.iterdir()} - OWN:
            raise BadInput(f"--out {folder}: the folder is not empty and holds no study")
        try:
            (folder / "steps" / ".scratch").mkdir(parents=True, exist_ok=True)
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
        """Hold the folder for one runner; the lock ends with the process, however it ends."""
        with (self.folder / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BadInput(f"--out {self.folder}: another run is at work in this folder") from None
            sweep(self.folder / "steps")
            yield

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
        lines = "".join(json.dumps(r.to_json(), ensure_ascii=False) + "\n" for r in records)
        write_text(self.folder / "records.jsonl", lines)

    def records(self) -> list[Record]:
        """Every number of the study, in its place."""
        path = self.folder / "records.jsonl"
        return read_jsonl(path) if path.is_file() else []

    # -- steps ---------------------------------------------------------------------------------------

    def path(self, step: str) -> Path:
        """Folder of a step."""
        return self.folder / "steps" / step[:16]

    def scratch(self, step: str) -> Path:
        """Folder of what a killed step goes on from."""
        folder = self.folder / "steps" / ".scratch" / step[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop_scratch(self, step: str) -> None:
        """Forget what a step was going on from."""
        shutil.rmtree(self.folder / "steps" / ".scratch" / step[:16], ignore_errors=True)

    def record(self, step: str) -> dict[str, Any] | None:
        """record.json of a step, or None where it has not run to an end."""
        try:
            return dict(json.loads((self.path(step) / "record.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def state(self, step: str) -> str:
        """`done`, `failed` or `open`."""
        found = self.record(step)
        return "open" if found is None else str(found["status"])

    @contextmanager
    def making(self, step: str) -> Iterator[Path]:
        """A folder to fill that becomes the step's by one rename when the block ends well."""
        with new_folder(self.path(step)) as partial:
            yield partial

    def forget(self, step: str) -> None:
        """Remove a failed step, so that it can be tried again."""
        shutil.rmtree(self.path(step), ignore_errors=True)

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

    def answers(self, step: str) -> list[str]:
        """What the model of a step said to the ordinary prompts."""
        path = self.path(step) / "samples.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
        return [str(r["answer"]) for r in rows if "answer" in r]


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
