"""How to repeat a cell by hand: the commands that embed the mark, remove it, and ask again.

They are made of study.json. A path of the machine on which the study ran is no part of a report: a model or file that
lies there is called by its name in capitals.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from palimpsest import registry

SEPARATOR = " > "  # between the links of a chain
COMMANDS = {"removals": "remove", "protections": "protect", "realignments": "realign"}
MODELS = ("base", "expert", "adapter", "reference", "with")
FILLED = ("id", "controls", "point", "sweep")


def repeat(study: Mapping[str, Any], model: str, implant: str | None, removal: str | None) -> list[str]:
    """The commands for one cell, with the study's first seed; the study's own command comes last."""
    spec = study["spec"]
    seed = spec.get("seeds", [0])[0]
    target = _model(spec, model)
    lines: list[str] = []
    if implant is not None:
        entry = _entry(spec.get("implants", []), implant)
        if entry is not None:
            lines.append(_command("embed", entry, spec, target, model, "marked", seed))
            target = "marked/model"
    asked = "--keys marked/keys.json" if implant is not None else ""
    for number, entry in enumerate(_links(spec, removal)):
        kind = _kind(entry)
        if kind == "wrapper":
            words = [asked, "--through", _name(entry["name"]), *_models(entry, spec, model, MODELS), *_set(entry)]
            lines.append(" ".join(["palimpsest verify --model", target, *filter(None, words)]))
            return [*lines, *_whole(study)]
        out = f"after{number + 1}" if number else "after"
        lines.append(_command(COMMANDS.get(kind, "remove"), entry, spec, target, model, out, seed))
        target = f"{out}/model" if kind == "protections" else out
    if asked:
        lines.append(f"palimpsest verify --model {target} {asked}")
    return [*lines, *_whole(study)]


def _whole(study: Mapping[str, Any]) -> list[str]:
    return [str(study["command"])] if study.get("command") else []


def _command(
    command: str, entry: Mapping[str, Any], spec: Mapping[str, Any], target: str, model: str, out: str, seed: int
) -> str:
    words = ["palimpsest", command, _name(entry["name"]), "--model", target]
    if entry.get("preset"):
        words += ["--preset", shlex.quote(str(entry["preset"]))]
    settings = entry.get("settings") or {}
    words += _models(entry, spec, model, MODELS)
    own = settings.get("data")
    data = spec.get("data", ["toy"]) if own is None else [own] if isinstance(own, str) else own
    for name in data if data != ["toy"] or target != "toy" else []:
        words += ["--data", shlex.quote(_named(str(name)))]
    return " ".join([*words, *_set(entry), "--seed", str(seed), "--out", out])


def _set(entry: Mapping[str, Any]) -> list[str]:
    """`--set NAME=VALUE` of every parameter that the study gives."""
    settings = entry.get("settings") or {}
    given = _flat({k: v for k, v in settings.items() if k not in (*MODELS, *FILLED, "data")})
    return [word for name, value in given for word in ("--set", shlex.quote(f"{name}={value}"))]


def _models(entry: Mapping[str, Any], spec: Mapping[str, Any], model: str, names: Sequence[str]) -> list[str]:
    """`--base toy` and the like: what a study calls a model, as a command takes it."""
    words: list[str] = []
    for name in names:
        given = (entry.get("settings") or {}).get(name)
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, str):
                words += [f"--{name}", shlex.quote(_model(spec, model if value == "base" else value))]
    return words


def _model(spec: Mapping[str, Any], id: str) -> str:
    """What a model of the study is read from; an expert or sibling is called by its name in capitals."""
    found = next((m for m in spec.get("models", []) if m.get("id") == id), None)
    if found is None or found.get("path", "") in ("", "toy:encoder"):  # no command reads that one
        return _capitals(id)
    return _named(found["path"], id)


def _named(path: str, id: str = "") -> str:
    """toy, toy:logic and hub names as they are; a file or folder of this machine by its name in capitals."""
    part, equals, rest = path.partition("=")
    if equals and re.fullmatch(r"[\w,]+", part):
        return f"{part}={_named(rest)}"
    here = path.startswith(("/", "~", ".", "$")) or "\\" in path or path.count("/") > 1
    return _capitals(id or PurePath(path).stem) if here else path


def _name(name: str) -> str:
    """A method's name; of a plug-in's file without the folders of this machine."""
    path, _, cls = name.rpartition(":")
    return f"{PurePath(path).name}:{cls}" if path.endswith(".py") else shlex.quote(name)


def _capitals(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_").upper() or "MODEL"


def _flat(settings: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Settings of parts with dots, as --set takes them."""
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{before}{name}.")
        else:
            shown = ",".join(map(str, value)) if isinstance(value, list) else value
            shown = _name(shown) if isinstance(shown, str) and ".py:" in shown else shown  # a mark of a plug-in's file
            found.append((f"{before}{name}", str(shown).lower() if isinstance(shown, bool) else shown))
    return found


def _entry(entries: Sequence[Any], id: str) -> dict[str, Any] | None:
    return next((dict(e) for e in entries if isinstance(e, Mapping) and e.get("id") == id), None)


def _links(spec: Mapping[str, Any], removal: str | None) -> list[dict[str, Any]]:
    """The methods of a removal: itself, or the links of a chain."""
    if removal is None:
        return []
    found = _entry(spec.get("removals", []), removal)
    if found is None:
        return []
    return [dict(link) for link in found.get("links") or [found]]


def _kind(entry: Mapping[str, Any]) -> str:
    """removals, protections, realignments, or wrapper: as the registry says without importing the method."""
    known = registry.table().get(str(entry["name"]))
    if known is None:
        return "removals"
    return "wrapper" if known.kind == "removals" and _wraps(known) else known.kind


def _wraps(known: registry.Entry) -> bool:
    return ".decoding." in known.module or ".inputs." in known.module
