"""What surrounds an API call: how it runs, what it returns, how words become a method."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from palimpsest import registry
from palimpsest.checkpoint import Checkpoint, is_toy, resolve
from palimpsest.checkpoint.labels import is_classifier, is_encoder
from palimpsest.checkpoint.output import new_folder
from palimpsest.data import load_dialogues, load_labelled
from palimpsest.errors import BadInput, nearest
from palimpsest.method import Context, Made, build, input_fields, presets, spoken
from palimpsest.progress import Progress, Silent
from palimpsest.records import Record, versions


@dataclass
class Result:
    """What a call made and measured. notes are lines a person should read; figures say what a merge took; secret is
    the file that a protection leaves its maker."""

    records: list[Record] = field(default_factory=list)
    path: Path | None = None
    keys: Path | None = None
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    secret: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        found: dict[str, Any] = {"records": [r.to_json() for r in self.records]}
        if self.path is not None:
            found["path"] = str(self.path)
        if self.keys is not None:
            found["keys"] = str(self.keys)
        if self.secret is not None:
            found["secret"] = str(self.secret)
        if self.notes:
            found["notes"] = self.notes
        if self.figures:
            found["figures"] = self.figures
        return found


@dataclass(frozen=True)
class Run:
    """How a call runs: the part of `Context` a user sets."""

    seed: int | None = None
    device: str = "auto"
    threads: int | None = None
    dtype: str = "auto"
    progress: Progress = field(default_factory=Silent)
    load_in: str | None = None

    @contextmanager
    def context(self) -> Iterator[Context]:
        """A Context with a scratch folder that goes with it; device and quantisation are checked first."""
        from palimpsest.checkpoint.load import pick_device
        from palimpsest.checkpoint.quantised import check_load_in

        device = pick_device(self.device)
        check_load_in(self.load_in)
        with tempfile.TemporaryDirectory(prefix="palimpsest-") as scratch:
            yield Context(
                seed=self.seed or 0,
                key_seed=self.seed,
                device=device,
                threads=self.threads,
                dtype=self.dtype,
                progress=self.progress,
                scratch=Path(scratch),
                load_in=self.load_in,
            )


DEFAULT_RUN = Run()


@dataclass(frozen=True)
class Phases:
    """The first phases of a method."""

    steps: list[tuple[str, Any]]

    def apply(self, model: Checkpoint, out: Path, ctx: Context) -> Made:
        """Run them one after the other."""
        from palimpsest.removals.tuning.tuned import in_phases

        return in_phases(self.steps, model, out, ctx)


def first_phases(instance: Any, last: str) -> Phases:
    """The phases up to `last`, which may leave out the method's own name; BadInput for another word."""
    steps = list(instance.steps()) if hasattr(instance, "steps") else []
    names = [name for name, _ in steps]
    short = {name.rpartition("-")[2]: name for name in names}
    wanted = short.get(last, last)
    if wanted not in names:
        raise BadInput(f"--until {last}{nearest(last, [*names, *short], 'phase')}")
    return Phases(steps[: names.index(wanted) + 1])


@contextmanager
def filled(out: Path, force: bool) -> Iterator[Path]:
    """A folder to make that becomes `out` itself; whatever a method leaves beside it goes with the partial."""
    with new_folder(out, force) as partial:
        yield partial / "made"
        for entry in sorted((partial / "made").iterdir()):
            entry.rename(partial / entry.name)
        for left in [p for p in partial.iterdir() if p.is_dir()]:
            shutil.rmtree(left)


def method_for(
    name: str,
    kinds: tuple[str, ...],
    model: Checkpoint,
    preset: str | None,
    settings: Mapping[str, Any] | None,
    data: Sequence[str | Path],
    references: Mapping[str, str | Path | Sequence[str | Path] | None] | None = None,
) -> tuple[Any, list[str]]:
    """Build a method for a model; inputs it does not take are noted, not refused.

    references: by the name of the input; several where it takes several (`with_`).
    """
    cls = registry.find(name, *kinds)
    if hasattr(cls, "check_model"):
        cls.check_model(model)
    notes = []
    chosen = preset
    labelled = "classifier" in presets(cls) and (is_classifier(model) or is_encoder(model))
    if preset is None and labelled:
        chosen = "classifier"
        notes.append("preset classifier (the model reads a text and gives a label)")
    elif preset is None and is_toy(model) and "toy" in presets(cls):
        a_skill = "expert" in presets(cls) and any(str(d).startswith("toy:") for d in data)
        chosen = "expert" if a_skill else "toy"
        others = ", ".join(presets(cls))
        notes.append(f"preset {chosen} (the model is the embedded toy); --preset names another: {others}")
    elif preset is None and not settings and "auto" in presets(cls):
        chosen = "auto"
        notes.append(f"preset auto; --preset names another: {', '.join(presets(cls))}")
    instance = build(cls, chosen, dict(settings or {}))
    fields = input_fields(cls)
    inputs: dict[str, Any] = {}
    for role, reference in (references or {}).items():
        if reference is None or reference == ():
            continue
        if role not in fields:
            notes.append(f"--{spoken(role)} is not needed by {name}")
        elif isinstance(reference, str | Path | Checkpoint):
            inputs[role] = resolve(reference)
        else:
            inputs[role] = tuple(resolve(r) for r in reference)
    if labelled:
        if not data:
            raise BadInput(f"{name}: {model.name} is trained on labelled items: name a file of them with --data")
        inputs["data"] = load_labelled(list(data))
    elif reads_labels(cls) and (is_classifier(model) or not reads_dialogues(cls)):
        if data:
            inputs["data"] = load_labelled(list(data), labels=not getattr(cls, "unlabelled", False))
    elif "data" in fields:
        if not data and not is_toy(model):
            notes.append("no --data: the toy world's dialogues are used, which this model was not made for")
        inputs["data"] = load_dialogues(list(data) or "toy")
    elif data:
        notes.append(f"--data is not needed by {name}")
    return replace(instance, **inputs), notes


def reads_labels(cls: type) -> bool:
    """Whether a method's data may be labelled items."""
    return "LabelledItems" in _data_hint(cls)


def reads_dialogues(cls: type) -> bool:
    """Whether a method's data may be dialogues."""
    return "Dialogues" in _data_hint(cls)


def _data_hint(cls: type) -> str:
    return next((str(f.type) for f in dataclass_fields(cls) if f.name == "data"), "")


def check_report(model: Checkpoint, data: Sequence[str | Path], report: bool, known: bool) -> None:
    """BadInput where a report is asked for that has nothing to ask, or keys of an adapter, which answers nothing."""
    if model.is_adapter and (report or known):
        option = "--report" if report else "--keys"
        raise BadInput(f"{option}: {model.name} is an adapter, which answers nothing alone; ask it on its base")
    if report and is_classifier(model) and not data:
        raise BadInput("--report: name ordinary items for the classifier with --data (a file with text and label)")


def stamped(made: Made, checkpoint: Checkpoint, stage: str | None, implant: str | None) -> list[Record]:
    """A transform's own records, named after where the checkpoint now lies."""
    return [
        replace(
            r,
            model=checkpoint.name,
            digest=checkpoint.digest(),
            chain=checkpoint.chain(),
            stage=stage,
            implant=implant or r.implant,
        )
        for r in made.records
    ]


def complete(records: Sequence[Record], ctx: Context) -> list[Record]:
    return [
        replace(
            r,
            versions=versions(),
            device=r.device or ctx.device,
            threads=r.threads or ctx.threads,
            dtype=r.dtype or ctx.load_in,
        )
        for r in records
    ]
