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
    typer.echo("groups")
    for group in found["groups"]:
        typer.echo(f"  {group['name']}: {', '.join(group['tasks'])} ({group['about']})")
    typer.echo("tasks that can be read from local files")
    for task in found["tasks"]:
        typer.echo(f"  {task['name']}: {_files(task)}")


def _files(task: dict[str, Any]) -> str:
    there = task.get("there")
    if there:
        return ", ".join(there)
    return f"{'' if there is None else 'not there: '}{task['files']}; {task['get']}"
