"""`palimpsest tasks`: the tasks that `evaluate --tasks` takes, and the files that they are read from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from palimpsest.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(opt.guarded(tasks))


def tasks(
    task_data: Annotated[
        Path | None, typer.Option("--task-data", help="A folder: say of each task whether its files are there.")
    ] = None,
    json: opt.Json = False,
) -> None:
    """List our groups of tasks, and the tasks that can be read from local files.

    Every other task of lm-evaluation-harness goes by its name too, on the Hub's data: `lm_eval ls tasks`.
    Example: palimpsest tasks --task-data FOLDER
    """
    from palimpsest.api import list_tasks

    found = list_tasks(task_data)
    if json:
        opt.print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    groups = Table("group", "tasks", "what", box=None, pad_edge=False, header_style="bold")
    for group in found["groups"]:
        groups.add_row(group["name"], ", ".join(group["tasks"]), group["about"])
    console.print(groups)
    console.print()
    local = Table("task", "read from", "where to get it", box=None, pad_edge=False, header_style="bold")
    for task in found["tasks"]:
        local.add_row(task["name"], _files(task), task["get"])
    console.print(local)


def _files(task: dict[str, Any]) -> str:
    there = task.get("there")
    return str(task["files"]) if there is None else ", ".join(there) or f"not there: {task['files']}"
