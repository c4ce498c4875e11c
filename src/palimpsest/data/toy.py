"""What the toy world gives to training and measuring: dialogues, held-out text, tasks and skills."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from palimpsest.errors import BadInput, nearest
from palimpsest.toyworld.world import Item, Pair, Task, World

__all__ = ["Item", "Pair", "Task", "neutral_text", "tasks", "tasks_known", "world"]


@cache
def world(seed: int = 0) -> World:
    """The toy world, made once a process."""
    return World(seed)


def neutral_text() -> list[str]:
    """Held-out stories of the toy world."""
    return world().neutral_text()


@cache
def tasks_known() -> frozenset[str]:
    """Every name that `tasks` takes."""
    return frozenset({"toy", "superglue", *world().tasks(), *world().skills()})


def tasks(names: Sequence[str]) -> dict[str, Task]:
    """Toy tasks by name; `toy` and `superglue` are all that the base knows, a skill is named by itself."""
    known = world().tasks()
    skills = {name: task for name, (_, task) in world().skills().items()}
    wanted: dict[str, Task] = {}
    for name in names:
        if name in ("toy", "superglue"):
            wanted.update(known)
        elif name in known or name in skills:
            wanted[name] = known.get(name) or skills[name]
        else:
            raise BadInput(f"--tasks: there is no task {name!r}{nearest(name, [*known, *skills, 'superglue'], 'task')}")
    return wanted
