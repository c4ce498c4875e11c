"""Methods that a study leaves open: `${MARK}` and `${PRESET-toy}` are filled in from the environment when it is read.

    implants: [{"${MARK}": {preset: "${PRESET-toy}"}}]
    removals: [{overwrite: {mark: "${MARK}", mark_preset: "${PRESET-toy}"}}]

Only the name of a method, its preset, and the parameters `mark` and `mark_preset` may be such words, each as a whole.
`${NAME-word}` stands for `word` where the environment has no NAME. A preset that was not asked for in so many words is
dropped where the method has none of that name; an empty one (`PRESET=`) asks for the method's defaults. What is stored
and run is the study with its words filled in, so that it stays what it was, whatever the environment says later.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from typing import Any

from palimpsest import registry
from palimpsest.errors import BadInput
from palimpsest.method import presets

WORD = re.compile(r"\$\{(\w+)(?:-([^}]*))?\}")
FIELDS = ("implants", "removals")  # of a study, whose methods may be left open
PAIRS = {"mark_preset": "mark"}  # a parameter that is a preset, and the one that says of which method


def filled_in(raw: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> tuple[dict[str, Any], list[str]]:
    """A study as it is written with its words filled in, and each word that was set, as `NAME=value` without folders.

    Raises BadInput, with the place, for a word without a value.
    """
    filler = _Filler(os.environ if environment is None else environment)
    made = dict(raw)
    for field in FIELDS:
        if isinstance(raw.get(field), list):
            made[field] = [filler.entry(entry, f"{field}[{n}]") for n, entry in enumerate(raw[field])]
    return made, [f"{name}={shlex.quote(value.rpartition('/')[2])}" for name, value in sorted(filler.used.items())]


class _Filler:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment, self.used = environment, dict[str, str]()

    def word(self, value: Any, where: str) -> tuple[Any, bool]:
        """What a value stands for, and whether that is only the word's default."""
        found = WORD.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            return value, False
        name, default = found.groups()
        if name in self.environment and (self.environment[name] or default is not None):
            self.used[name] = self.environment[name]
            return self.environment[name], False
        if default is None:
            raise BadInput(
                f"{where}: {value}: the environment has no {name}; set it to the method that is meant: "
                f"{name}=NAME or {name}=path/to/file.py:Class"
            )
        return default, True

    def entry(self, entry: Any, where: str) -> Any:
        """An entry: a name, a name with what stands under it, or a chain."""
        if isinstance(entry, str):
            return self.word(entry, where)[0]
        if isinstance(entry, list):
            return [self.entry(link, f"{where}[{n}]") for n, link in enumerate(entry)]
        if not isinstance(entry, dict):
            return entry
        if "chain" in entry:
            return {**entry, "chain": self.entry(entry["chain"], where)}
        made: dict[Any, Any] = {}
        for name, given in entry.items():
            called = self.word(name, where)[0]
            made[called] = self.given(called, given, where) if isinstance(given, dict) else given
        return made

    def given(self, name: str, given: dict[str, Any], where: str) -> dict[str, Any]:
        """What stands under a method's name."""
        made = dict(given)
        for key in ("mark", "preset", "mark_preset"):
            if key not in made:
                continue
            value, by_default = self.word(made[key], f"{where}.{key}")
            of = name if key == "preset" else str(made.get(PAIRS.get(key, ""), ""))
            if key != "mark" and value != given[key] and (not value or (by_default and not _has(of, value))):
                del made[key]
            else:
                made[key] = value
        return made


def _has(method: str, preset: str) -> bool:
    try:
        return preset.replace("-", "_") in presets(registry.find(method, "fingerprints", "backdoors"))
    except BadInput:
        return True  # for the check of names to refuse
