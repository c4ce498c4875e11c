"""The method table: read from the sources without importing them; only the method asked for is imported.

Plug-ins: entry points of the group `palimpsest.methods` (the entry's name is the method's), or
`path/to/file.py:Class` in place of a name.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeAlias

from palimpsest.errors import BadInput, nearest
from palimpsest.method import KINDS, spoken

ROOT = Path(__file__).parent
Classes: TypeAlias = dict[str, tuple[ast.ClassDef, dict[str, ast.expr]]]  # with the constants of its module


@dataclass(frozen=True)
class Parameter:
    """One parameter or input as `palimpsest methods` shows it."""

    name: str
    type: str
    default: str
    help: str
    input: bool = False


@dataclass(frozen=True)
class Entry:
    """A method as its source says it is."""

    kind: str
    name: str
    paper: str
    summary: str
    module: str
    cls: str
    internal: bool = False
    parameters: tuple[Parameter, ...] = ()
    presets: dict[str, str] = field(default_factory=dict)


@cache
def table() -> dict[str, Entry]:
    """All built-in methods by name, in the order of kinds and names; and plug-ins by entry point."""
    sources = [(path, path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))]
    trees = [(path, ast.parse(text)) for path, text in sources if "@method(" in text or "param(" in text]
    classes: Classes = {}
    for _, tree in trees:
        constants = _constants(tree)
        classes |= {n.name: (n, constants) for n in tree.body if isinstance(n, ast.ClassDef)}
    found: list[Entry] = []
    for path, tree in trees:
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                entry = _entry(node, _module(path), classes)
                if entry is not None:
                    found.append(entry)
    for point in entry_points(group="palimpsest.methods"):
        module, _, cls = point.value.partition(":")
        found.append(Entry("removals", point.name, "", "(plug-in)", module, cls))
    found.sort(key=lambda e: (KINDS.index(e.kind), e.name))
    return {e.name: e for e in found}


def find(name: str, *kinds: str) -> type[Any]:
    """The class of a method by name (underscores accepted) or by `path/to/file.py:Class`.

    kinds: where given, the method must be of one of them. Raises BadInput with the nearest names.
    """
    if ".py:" in name:
        return _from_file(name)
    wanted = name.replace("_", "-")
    entries = table()
    fitting = [n for n, e in entries.items() if (not kinds or e.kind in kinds) and not e.internal]
    if wanted not in entries:
        what = one_of([k.rstrip("s") for k in kinds]) if kinds else "method"
        raise BadInput(f"there is no {what} {name!r}{nearest(wanted, fitting, 'method')}")
    entry = entries[wanted]
    if kinds and entry.kind not in kinds:
        raise BadInput(f"{wanted} is one of the {entry.kind}, not of the {one_of(kinds)}")
    module = importlib.import_module(entry.module)
    return getattr(module, entry.cls)  # type: ignore[no-any-return]


def one_of(words: Sequence[str]) -> str:
    """`removals`, `removals or measures`, `removals, protections or realignments`."""
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _from_file(name: str) -> type[Any]:
    path, _, cls = name.rpartition(":")
    if not Path(path).is_file():
        raise BadInput(f"there is no file {path} to take {cls} from")
    spec = importlib.util.spec_from_file_location(f"palimpsest_plugin_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and type hints look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a plug-in may fail in any way; the command line must not
        del sys.modules[spec.name]
        raise BadInput(f"{path} could not be loaded: {type(error).__name__}: {error}") from error
    if not hasattr(module, cls):
        names = [n for n, v in vars(module).items() if hasattr(v, "info")]
        raise BadInput(f"{path} has no method class {cls!r}{nearest(cls, names, 'class')}")
    return getattr(module, cls)  # type: ignore[no-any-return]


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Module-level names bound to an expression: defaults may be named (`param(PAPER_ERASE, ...)`)."""
    return {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _entry(node: ast.ClassDef, module: str, classes: Classes) -> Entry | None:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "method":
            kind, name = (ast.literal_eval(a) for a in decorator.args[:2])
            options = {k.arg: ast.literal_eval(k.value) for k in decorator.keywords}
            summary = (ast.get_docstring(node) or "").strip().splitlines()
            return Entry(
                kind,
                name,
                options.get("paper", ""),
                summary[0] if summary else "",
                module,
                node.name,
                options.get("internal", False),
                tuple(_parameters(node.name, classes)),
                _presets(node.name, classes),
            )
    return None


def _line(name: str, classes: Classes) -> list[tuple[ast.ClassDef, dict[str, ast.expr]]]:
    """A class after those that it inherits from, as far as they are the package's own."""
    node, constants = classes[name]
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    return [known for base in bases for known in _line(base, classes)] + [(node, constants)]


def _presets(name: str, classes: Classes) -> dict[str, str]:
    found = {}
    for item in (item for node, _ in _line(name, classes) for item in node.body):
        if not isinstance(item, ast.FunctionDef) or item.name.startswith("_"):
            continue
        if any(getattr(d, "id", "") == "classmethod" for d in item.decorator_list):
            lines = (ast.get_docstring(item) or "").splitlines()
            found[item.name] = lines[0] if lines else ""
    return found


def _parameters(cls: str, classes: Classes, prefix: str = "", given: dict[str, str] | None = None) -> list[Parameter]:
    """Parameters, inherited ones first, in the order of the source; parts of a nested dataclass get dotted names."""
    found: list[Parameter] = []
    for item, constants in ((item, constants) for node, constants in _line(cls, classes) for item in node.body):
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.value, ast.Call)):
            continue
        call, name = item.value, prefix + spoken(getattr(item.target, "id", ""))
        kind = getattr(call.func, "id", "")
        hint = ast.unparse(item.annotation)
        if kind == "takes":
            found.append(Parameter(name, hint, "", ast.literal_eval(call.args[0]), input=True))
        elif kind == "param":
            default = call.args[0]
            if isinstance(default, ast.Name):
                default = constants.get(default.id, default)
            if hint in classes and isinstance(default, ast.Call):
                parts = {k.arg: ast.unparse(k.value) for k in default.keywords if k.arg}
                found.extend(_parameters(hint, classes, name + ".", parts))
            else:
                own = getattr(item.target, "id", "")
                if hint == "tuple[float, ...]" and isinstance(default, ast.Tuple) and len(default.elts) == 1:
                    default = default.elts[0]  # one value for all, or one for each
                shown = (given or {}).get(own, ast.unparse(default))
                found.append(Parameter(name, hint, shown, ast.literal_eval(call.args[1])))
    return found
