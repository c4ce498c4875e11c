"""What is this, what can be done with it here, what is missing: `palimpsest info` and `palimpsest doctor`.

Everything is read from headers and JSON files; no model is loaded and torch is not imported, but for the doctor's
check of the embedded base and where a GPU driver is at work.
"""

from __future__ import annotations

from pathlib import Path

from palimpsest.checkpoint import Checkpoint
from palimpsest.checkpoint.output import half_written
from palimpsest.checkpoint.reference import reference_folder
from palimpsest.inspecting.abilities import adapter_abilities, model_abilities
from palimpsest.inspecting.findings import Ability, Check, Diagnosis, Finding
from palimpsest.inspecting.models import adapter_finding, model_finding
from palimpsest.inspecting.others import SECRETS, file_finding, marked_finding, study_finding

__all__ = ["Ability", "Check", "Diagnosis", "Finding", "doctor", "info"]


def info(reference: str | Path, *, digest: bool = False) -> Finding:
    """What a path, `toy` or a hub id is, what is wrong with it, and what can be done with it here.

    digest: compute a checkpoint's digest where it is not known yet. A model of the hub is looked for in the local
    cache first; otherwise only its small files are fetched, not its weights. Raises BadInput where there is nothing.
    """
    path = Path(str(reference))
    if str(reference) not in ("toy", "toy:unrelated") and path.is_file():
        return file_finding(path)
    folder, complete = reference_folder(reference)
    found = _folder_finding(folder, str(reference), digest)
    for part in found.parts:
        part.path = f"{str(reference).rstrip('/')}/{Path(part.path).name}"
    found.path = str(reference)
    if not complete:
        found.problems = [p for p in found.problems if "weight files" not in p and "safetensors weights" not in p]
        found.notes.append("its weights are not on this machine yet; a command that needs them fetches them")
    return found


def _folder_finding(folder: Path, name: str, digest: bool) -> Finding:
    if (folder / "adapter_config.json").is_file():
        found = adapter_finding(folder, name, digest)
    elif (folder / "config.json").is_file():
        found = model_finding(folder, name, digest)
    elif (folder / "study.json").is_file():
        found = study_finding(folder)
    elif (folder / "model" / "config.json").is_file() and any((folder / n).is_file() for n in SECRETS):
        found = marked_finding(folder, _folder_finding(folder / "model", f"{name}/model", digest))
    else:
        found = _unknown(folder)
    partial = half_written(folder)
    if partial is not None:
        target, running = partial
        state = "is being written" if running else "was left half-written by a run that ended"
        found.problems.insert(0, f"it {state}; it would have become {target}")
    if found.kind == "model":
        found.abilities = model_abilities(found, Checkpoint(folder, name))
    if found.kind == "adapter":
        found.abilities = adapter_abilities(found)
    return found


def _unknown(folder: Path) -> Finding:
    found = Finding(str(folder), "unknown", "no model, adapter, key file or study")
    names = sorted(p.name for p in folder.iterdir())
    inner = [n for n in names if (folder / n / "config.json").is_file() or (folder / n / "study.json").is_file()]
    if inner:
        shown = ", ".join(inner[:5])
        found.title = f"a folder that holds {len(inner)} model or study folders: {shown}"
    elif any(n.endswith(".safetensors") for n in names):
        found.problems.append("it has weights and no config.json, so nothing tells what they are")
    else:
        found.problems.append("it has no config.json" if names else "it is empty")
    return found


def doctor(models: tuple[str | Path, ...] = ()) -> Diagnosis:
    """Look at this machine and installation, and at each model that is named. Raises BadInput for a missing model."""
    from palimpsest.inspecting.environment import checks

    findings = [info(model) for model in models]
    return Diagnosis(checks(), findings)
