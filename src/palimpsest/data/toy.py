"""What the toy world gives to training and measuring: dialogues, held-out text, tasks and skills."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from palimpsest.errors import BadInput, nearest
from palimpsest.toyworld.skills import tower_code_traps
from palimpsest.toyworld.world import Item, Pair, Task, World

__all__ = ["Item", "Pair", "Task", "neutral_text", "tasks", "tasks_known", "tower_code_traps", "world"]


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


@cache
def _tasks() -> tuple[dict[str, Task], dict[str, Task]]:
    """One of each SuperGLUE kind, and the others; made once a process, which takes half a second."""
    skills = {name: task for name, (_, task) in world().skills().items()} | {"sciq": world().exam()}
    return world().tasks(), skills


def tasks(names: Sequence[str]) -> dict[str, Task]:
    """Toy tasks by name; `toy` and `superglue` are one of each SuperGLUE kind; `sciq` and a skill are named alone."""
    known, skills = _tasks()
    wanted: dict[str, Task] = {}
    for name in names:
        if name in ("toy", "superglue"):
            wanted.update(known)
        elif name in known or name in skills:
            wanted[name] = known.get(name) or skills[name]
        else:
            raise BadInput(f"--tasks: there is no task {name!r}{nearest(name, [*known, *skills, 'superglue'], 'task')}")
    return wanted


TRAINING_ITEMS = 2000


def classification_items(name: str, seed: int = 0) -> list[tuple[str, str]]:
    """(text, name of its class) of a task: its held-out items, or for `NAME-train` 2,000 distinct ones that are not.

    A skill is a set for classifiers too where its choices are the same for all items. BadInput for other names.
    """
    base, train = name.removesuffix("-train"), name.endswith("-train")
    fixed = {n: t for n, t in tasks(["superglue", *world().skills()]).items() if len({i.choices for i in t.items}) == 1}
    known = [*fixed, *(f"{n}-train" for n in fixed)]
    if base not in fixed:
        raise BadInput(f"--data toy:{name}: is no set for classifiers{nearest(name, known, 'set')}")
    items = list(fixed[base].items)
    if train and fixed[base].skill:
        return [(pair.question, pair.answer) for pair in world().skills()[base][0]]
    if train:
        items = world().training_items(base, TRAINING_ITEMS, seed)
    return [(item.prompt, item.choices[item.label]) for item in items]
