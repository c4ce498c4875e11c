"""Which tasks there are, and which of them a folder of local files has: `palimpsest tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def list_tasks(task_data: str | Path | None = None) -> dict[str, Any]:
    """Our groups of tasks, and the tasks with a form for local files; of each, the files that `task_data` has."""
    from palimpsest.measures.tasks import files
    from palimpsest.measures.tasks.groups import GROUPS

    there = files.listing(files.data_folder(str(task_data))) if task_data is not None else None
    tasks = []
    for task in files.local_tasks().values():
        row: dict[str, Any] = {"name": task.name, "files": task.looked_for, "get": task.get}
        if there is not None:
            row["there"] = [p.name for paths in files.found_files(task, there).values() for p in paths]
        tasks.append(row)
    groups = [{"name": name, "tasks": list(g.tasks), "about": g.about} for name, g in GROUPS.items()]
    return {"groups": groups, "tasks": tasks}
