"""The method table: read without imports, complete, and every name in it covered by a test."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from palimpsest import registry
from palimpsest.errors import BadInput
from palimpsest.method import KINDS, build, presets

TESTS = Path(__file__).parent
PLUGIN = '''
"""A plug-in."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Literal
from palimpsest.method import method, param

@method("removals", "my-removal", paper="none")
@dataclass(frozen=True)
class Mine:
    """Mine."""
    strength: float = param(0.5, "how strong", low=0.0)
    rule: Literal["a", "b"] = param("a", "which")
'''
NESTED = '''
from dataclasses import dataclass
from palimpsest.method import method, param, takes
from palimpsest.training.settings import Tuning

@method("removals", "nested-example", paper="1234.56789")
@dataclass(frozen=True)
class Nested:
    """One line that says what it is.

    More.
    """
    base: "Checkpoint | None" = takes("the base")
    share: float = param(0.25, "a share", low=0.0)
    erase: Tuning = param(Tuning(epochs=40, lr=3e-4), "how it erases")

    @classmethod
    def paper(cls) -> "Nested":
        """Appendix I."""
        return cls()

class HalfOf(Nested):
    pass

@method("removals", "inheriting-example", paper="1234.56789")
@dataclass(frozen=True)
class Inheriting(HalfOf):
    """What it inherits is its own."""
    more: int = param(3, "one more")

@method("removals", "nested-phase", internal=True)
@dataclass(frozen=True)
class Phase:
    """A phase."""
'''


def run(code: str) -> str:
    """Run a program in a process of its own; its output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_table_is_read_without_importing_torch_or_any_method() -> None:
    heavy = run(
        "import sys, palimpsest\nfrom palimpsest import registry\nfound = registry.table()\n"
        "modules = {e.module for e in found.values()}\n"
        "print(sorted(m for m in ('torch', 'transformers', 'peft', 'scipy', *modules) if m in sys.modules))"
    )
    assert heavy == "[]"


def covered() -> dict[str, list[str]]:
    """Names in `covers(...)` marks of the test sources, with where each stands."""
    found: dict[str, list[str]] = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "covers":
                for argument in node.args:
                    assert isinstance(argument, ast.Constant), f"{file}:{node.lineno}: covers() takes plain text"
                    found.setdefault(str(argument.value), []).append(f"{file.name}:{node.lineno}")
    return found


def built_in() -> Iterator[registry.Entry]:
    """Entries of the package itself."""
    return (e for e in registry.table().values() if e.module.startswith("palimpsest."))


def test_every_registered_name_has_a_test_that_covers_it() -> None:
    marked = covered()
    missing = [f"{e.kind}: {e.name}" for e in built_in() if not e.internal and e.name not in marked]
    assert not missing, f"registered without a test marked covers(name): {', '.join(missing)}"


def test_every_covers_mark_names_a_registered_method() -> None:
    known = {e.name for e in built_in()}
    unknown = {name: places for name, places in covered().items() if name not in known}
    assert not unknown


def test_every_class_in_the_sources_that_calls_itself_a_method_is_in_the_table() -> None:
    declared = []
    for file in registry.ROOT.rglob("*.py"):
        declared += re.findall(r'^@method\(\s*"[a-z]+",\s*"([^"]+)"', file.read_text(encoding="utf-8"), re.M)
    assert sorted(declared) == sorted(e.name for e in built_in())


def test_names_are_in_the_houses_form_and_entries_say_what_they_are() -> None:
    for entry in built_in():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry.name), entry.name
        assert entry.kind in KINDS and entry.summary, entry.name
        for parameter in entry.parameters:
            assert parameter.help, f"{entry.name}: {parameter.name}"


def test_the_table_says_what_the_classes_are() -> None:
    for entry in built_in():
        cls = registry.find(entry.name)
        info = cls.info
        assert (info.kind, info.name, info.paper) == (entry.kind, entry.name, entry.paper)
        assert set(entry.presets) == set(presets(cls))
        for name in presets(cls):
            build(cls, name)


def test_names_take_underscores_and_kinds() -> None:
    for entry in built_in():
        assert registry.find(entry.name.replace("-", "_"), entry.kind) is registry.find(entry.name)


@pytest.fixture
def example_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, registry.Entry]]:
    """The table of a package of two example methods and the real settings."""
    root = tmp_path / "palimpsest"
    (root / "training").mkdir(parents=True)
    (root / "nested.py").write_text(NESTED)
    (root / "training" / "settings.py").write_text((registry.ROOT / "training/settings.py").read_text())
    monkeypatch.setattr(registry, "ROOT", root)
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    registry.table.cache_clear()
    yield registry.table()
    registry.table.cache_clear()


def test_parameters_are_shown_with_the_defaults_that_the_method_gives_to_nested_ones(
    example_table: dict[str, registry.Entry],
) -> None:
    entry = example_table["nested-example"]
    assert (entry.paper, entry.summary, entry.module) == (
        "1234.56789",
        "One line that says what it is.",
        "palimpsest.nested",
    )
    shown = {p.name: p for p in entry.parameters}
    assert shown["base"].input and shown["base"].help == "the base"
    assert shown["share"].default == "0.25"
    assert shown["erase.epochs"].default == "40" and shown["erase.lr"].default == "0.0003"
    assert shown["erase.rank"].default == "16" and shown["erase.rank"].help == "LoRA rank"
    assert "erase" not in shown and entry.presets == {"paper": "Appendix I."}


def test_parameters_and_presets_are_inherited(example_table: dict[str, registry.Entry]) -> None:
    parent, child = (example_table[f"{name}-example"] for name in ("nested", "inheriting"))
    assert [p.name for p in child.parameters] == [*(p.name for p in parent.parameters), "more"]
    assert child.presets == parent.presets and child.summary == "What it inherits is its own."


@pytest.mark.usefixtures("example_table")
def test_an_unknown_name_brings_the_nearest_and_phases_are_not_offered() -> None:
    with pytest.raises(BadInput, match="there is no method 'nested-exampel'; did you mean nested-example"):
        registry.find("nested-exampel")
    with pytest.raises(BadInput) as caught:
        registry.find("nested-phas", "removals")
    assert "nested-phase" not in str(caught.value)
    with pytest.raises(BadInput, match="is one of the removals, not of the fingerprints"):
        registry.find("nested_example", "fingerprints")


def test_a_plug_in_file_gives_a_working_method(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    cls = registry.find(f"{tmp_path / 'mine.py'}:Mine")
    assert cls.info.name == "my-removal"
    assert build(cls, None, {"strength": "1e-1", "rule": "b"}).strength == 0.1


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (PLUGIN, "Min", "has no method class 'Min'; did you mean Mine"),
        ("1 / 0", "Mine", "could not be loaded: ZeroDivisionError"),
        ("def f(:", "Mine", "could not be loaded: SyntaxError"),
        (None, "Mine", "there is no file"),
    ],
)
def test_a_broken_plug_in_is_one_line(tmp_path: Path, text: str | None, name: str, message: str) -> None:
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(BadInput, match=message):
        registry.find(f"{tmp_path / 'mine.py'}:{name}")
