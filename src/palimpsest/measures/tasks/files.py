"""Which tasks can be read from local files, which files they are, and where in a folder they lie."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

from palimpsest.errors import BadInput

FORMS = Path(__file__).parent / "local"


@dataclass(frozen=True)
class LocalTask:
    """A task of the harness that can be read from local files.

    folder: of the harness's tasks in which its prompt form stands. rows: the mapping of `rows`. files: by role of the
    split (training, validation, test) the sets of file names that hold it, the first that is found is taken.
    """

    name: str
    folder: str
    rows: str
    get: str
    files: Mapping[str, tuple[tuple[str, ...], ...]] = field(hash=False)
    columns: tuple[str, ...] = ()

    @property
    def looked_for(self) -> str:
        """File names of the splits that can be evaluated, in words."""
        sets = [names for role in ("test", "validation") for names in self.files.get(role, ())]
        return " or ".join(" with ".join(names) for names in sets)


@cache
def local_tasks() -> dict[str, LocalTask]:
    """All of them by the harness's name, from the YAML files beside this module."""
    found = {}
    for path in sorted(FORMS.glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, given in content["tasks"].items():
            files = {
                role: tuple((n,) if isinstance(n, str) else tuple(n) for n in names)
                for role, names in given["files"].items()
            }
            first = next(files[role] for role in ("test", "validation") if role in files)[0][0]
            get = str(given.get("get") or content["get"]).format(zip=given.get("zip"), first=first)
            folder = str(given.get("folder") or content["folder"])
            found[name] = LocalTask(name, folder, given["rows"], get, files, tuple(given.get("columns", ())))
    return found


def data_folder(given: str) -> Path:
    """The folder that --task-data names, `${NAME}` filled in from the environment. Raises BadInput."""
    filled = os.path.expandvars(given)
    left = re.search(r"\$\{?(\w+)\}?", filled)
    if left and left.group() in given:
        raise BadInput(
            f"--task-data {given}: the environment has no {left.group(1)}; set it to the folder that is meant"
        )
    folder = Path(filled).expanduser()
    if not folder.is_dir():
        raise BadInput(f"--task-data {filled}: there is no such folder")
    return folder


def listing(folder: Path) -> list[Path]:
    """All files under a folder."""
    return sorted(Path(root) / name for root, _, names in os.walk(folder) for name in names)


def found_files(task: LocalTask, there: list[Path]) -> dict[str, list[Path]]:
    """The files of the split that is evaluated, by its role, or nothing; the test split before the validation one.

    Raises BadInput where a name is there twice with different content.
    """
    for role in ("test", "validation"):
        if paths := _of_role(task, role, there):
            return {role: paths}
    return {}


def find(task: LocalTask, there: list[Path], training: bool = False) -> dict[str, list[Path]]:
    """`found_files`, and the `training` split where it is wanted. Raises BadInput where one is not there."""
    found = found_files(task, there)
    if not found:
        raise BadInput(f"--tasks {task.name}: --task-data holds no {task.looked_for}; {task.get}")
    if training:
        paths = _of_role(task, "training", there)
        if paths is None:
            wanted = " or ".join(" with ".join(names) for names in task.files.get("training", ()))
            wanted = f"--task-data holds no {wanted}" if wanted else "it has none"
            raise BadInput(f"--tasks {task.name}: --fewshot needs its training rows, and {wanted}")
        found["training"] = paths
    return found


def _of_role(task: LocalTask, role: str, there: list[Path]) -> list[Path] | None:
    """The first set of files that is there whole."""
    for names in task.files.get(role, ()):
        paths = [_one(task, name, there) for name in names]
        if all(paths):
            return [p for p in paths if p is not None]
    return None


def _one(task: LocalTask, name: str, there: list[Path]) -> Path | None:
    places = [path for path in there if path.match(name)]
    if len(places) > 1 and len({digest(p) for p in places}) > 1:
        shown = " and ".join(map(str, places[:2]))
        raise BadInput(
            f"--tasks {task.name}: {name} is there more than once and not the same: {shown}; name one folder"
        )
    return places[0] if places else None


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
