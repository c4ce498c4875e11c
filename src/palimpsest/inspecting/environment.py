"""The doctor's checks of this machine and installation, one line each with what would mend it."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from palimpsest import machine
from palimpsest.checkpoint.digest import cache_folder
from palimpsest.checkpoint.output import half_written
from palimpsest.inspecting.findings import Check
from palimpsest.machine import in_words

DISTRIBUTION = "palimpsest-lm"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
PERPLEXITY_AGREES = 0.01  # relative; tests/toyworld/test_golden.py asks the same of other machines
PLENTY = 2 << 30  # bytes of free disk below which a line says so


def checks() -> list[Check]:
    """Every check, in the order in which a person reads them; one that fails to run is itself broken."""
    found: list[Check] = []
    parts: list[tuple[str, Callable[[], list[Check]]]] = [
        ("python", python),
        ("packages", packages),
        ("torch", torch_build),
        ("machine", resources),
        ("disk", disks),
        ("cache", cache),
        ("hub", hub),
        ("extras", extras),
        ("plug-ins", plug_ins),
        ("toy", toy),
        ("leftovers", leftovers),
    ]
    for name, look in parts:
        try:
            found += look()
        except Exception as error:  # the doctor must say what is wrong, not fall over it
            line = (str(error).strip().splitlines() or [""])[0]
            found.append(Check(name, "broken", f"could not be looked at: {type(error).__name__}: {line}"))
    return found


def python() -> list[Check]:
    """The interpreter against `requires-python`."""
    wanted = _requires_python()
    version = platform.python_version()
    if wanted and not _fits(version, wanted):
        return [Check("python", "broken", f"{version}, {wanted} is needed", "make an environment with a newer Python")]
    return [Check("python", "ok", f"{version} ({sys.executable})")]


def _requires_python() -> str:
    try:
        return str(metadata.metadata(DISTRIBUTION)["Requires-Python"] or "")
    except (metadata.PackageNotFoundError, KeyError):
        return ""


def _fits(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(version, prereleases=True)


def requirements(extra: str = "") -> list[Any]:
    """What this package declares that it needs, or what one of its extras does."""
    from packaging.requirements import Requirement

    parsed = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    if not extra:
        return [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [
        r for r in parsed if r.marker is not None and "extra" in str(r.marker) and r.marker.evaluate({"extra": extra})
    ]


def lacking(requirement: Any) -> str | None:
    """What is wrong with the installed package, or None where it is there and in range."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed ({requirement.specifier} is needed)"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} is installed, {requirement.specifier} is needed"
    return None


def packages() -> list[Check]:
    """Every dependency against the range that the package declares."""
    try:
        needed = requirements()
    except metadata.PackageNotFoundError:
        return [Check("packages", "note", "palimpsest-lm is not installed as a package, so no ranges are known")]
    found = []
    for requirement in needed:
        wrong = lacking(requirement)
        if wrong is not None:
            mend = f"pip install '{requirement.name}{requirement.specifier}'"
            found.append(Check("packages", "broken", wrong, mend))
    if found:
        return found
    named = ("torch", "transformers", "tokenizers", "safetensors", "peft", "numpy")
    listed = ", ".join(f"{r.name} {metadata.version(r.name)}" for r in needed if r.name in named)
    own = metadata.version(DISTRIBUTION)
    return [Check("packages", "ok", f"palimpsest {own}; all {len(needed)} dependencies in range: {listed}")]


def torch_build() -> list[Check]:
    """CPU or CUDA build, the GPUs that it sees, bfloat16."""
    import torch

    version, cuda = str(torch.__version__), getattr(torch.version, "cuda", None)
    gpus = machine.gpus()
    if gpus:
        shown = "; ".join(
            f"cuda:{g.number} {g.name}, {in_words(g.available)} of {in_words(g.total)} free, "
            f"{'bfloat16' if g.bf16 else 'no bfloat16'}"
            for g in gpus
        )
        return [Check("torch", "ok", f"{version}, CUDA {cuda}: {shown}")]
    if machine.has_gpu_driver():
        what = f"{version} sees no GPU, although a driver is there; commands run on the CPU"
        return [Check("torch", "note", what, "install the build of torch for your driver: https://pytorch.org")]
    build = f"built for CUDA {cuda}, no GPU here" if cuda else "CPU build"
    mps = getattr(torch.backends, "mps", None)
    apple = "; Apple's GPU is there and is not used" if mps is not None and mps.is_available() else ""
    return [Check("torch", "ok", f"{version} ({build}), float32 on the CPU{apple}")]


def resources() -> list[Check]:
    """Processor cores, threads, memory."""
    import torch

    memory = machine.memory()
    cores, threads = machine.cores(), torch.get_num_threads()
    told = f" (OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']})" if "OMP_NUM_THREADS" in os.environ else ""
    found = [Check("cores", "ok", f"{cores}, of which torch takes {threads}{told}; --threads sets that")]
    if threads > cores:
        mend = f"give --threads {cores}, or set OMP_NUM_THREADS={cores}"
        found = [
            Check("cores", "note", f"{cores}, and torch takes {threads}{told}, which is slower than as many", mend)
        ]
    free, total = in_words(memory.available), in_words(memory.total)
    what = f"{free} of {total} free ({memory.of})"
    low = memory.available < 1 << 30
    mend = "end other programs; the toy world needs about 1 GiB" if low else ""
    return [*found, Check("memory", "note" if low else "ok", what, mend)]


def disks() -> list[Check]:
    """Free space where outputs, the cache and temporary files go."""
    places = {"here": Path.cwd(), "cache": cache_folder(), "temporary files": Path(tempfile.gettempdir())}
    free = {name: machine.disk(path)[1] for name, path in places.items()}
    shown = "; ".join(f"{name} {in_words(size)} free" for name, size in free.items())
    low = [name for name, size in free.items() if size < PLENTY]
    if low:
        return [Check("disk", "note", shown, f"make room ({', '.join(low)}), or set PALIMPSEST_CACHE or TMPDIR")]
    return [Check("disk", "ok", shown)]


def cache() -> list[Check]:
    """The cache folder: where, how large, whether it can be written."""
    folder = cache_folder()
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-"):
            pass
        if made:
            folder.rmdir()
    except OSError as error:
        mend = "set PALIMPSEST_CACHE to a folder that you may write to"
        return [Check("cache", "broken", f"{folder} cannot be written to ({error.strerror})", mend)]
    return [Check("cache", "ok", f"{folder}, {in_words(size_of(folder))}")]


def size_of(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else 0


def hub() -> list[Check]:
    """The Hugging Face cache, and whether the environment says offline."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    models = [p.name.removeprefix("models--").replace("--", "/") for p in sorted(folder.glob("models--*"))]
    told = [name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON")]
    offline = f"; offline ({', '.join(told)}): only models that are there can be named" if told else ""
    held = f"{len(models)} models in {folder}" if models else f"no models in {folder}"
    listed = f" ({', '.join(models[:4])}{' ...' if len(models) > 4 else ''})" if models else ""
    return [Check("hub", "note" if told else "ok", f"{held}{listed}{offline}")]


def extras() -> list[Check]:
    """Which extras are installed, and how to install the others."""
    try:
        names = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for name in sorted(set(names) - {"all", "dev"}):
        wrong = [w for w in map(lacking, requirements(name)) if w]
        if not wrong:
            found.append(Check(f"extra {name}", "ok", "installed"))
        else:
            out_of_range = [w for w in wrong if "is installed" in w]
            what = out_of_range[0] if out_of_range else "not installed"
            found.append(Check(f"extra {name}", "note", what, f"pip install '{DISTRIBUTION}[{name}]'"))
    return found


def plug_ins() -> list[Check]:
    """Whether methods of other packages can be loaded."""
    found = []
    for point in metadata.entry_points(group="palimpsest.methods"):
        owner = point.dist.name if point.dist is not None else "its package"
        try:
            cls = point.load()
        except BaseException as error:  # a plug-in may fail in any way, sys.exit among them
            if isinstance(error, KeyboardInterrupt):
                raise
            line = (str(error).strip().splitlines() or [""])[0]
            what = f"{point.name} of {owner} cannot be loaded: {type(error).__name__}: {line}"
            found.append(Check("plug-ins", "broken", what, f"pip install --upgrade {owner}, or uninstall it"))
            continue
        if hasattr(cls, "info"):
            found.append(Check("plug-ins", "ok", f"{point.name} of {owner}"))
        else:
            what = f"{point.name} of {owner} is no method: {point.value} is not marked with @method"
            found.append(Check("plug-ins", "broken", what, f"pip install --upgrade {owner}, or uninstall it"))
    return found or [Check("plug-ins", "ok", "none")]


def toy() -> list[Check]:
    """The embedded base: its perplexity on the stories it never saw against the recorded number."""
    from palimpsest.toyworld import toy_path
    from palimpsest.toyworld.train import load_model, text_perplexity
    from palimpsest.toyworld.world import World

    mend = f"pip install --force-reinstall --no-deps {DISTRIBUTION}"
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        recorded = float(json.loads((toy_path() / "golden.json").read_text(encoding="utf-8"))["neutral_perplexity"])
        model, tokenizer = load_model(toy_path())
        measured = text_perplexity(model, tokenizer, World(0).neutral_text())
    except Exception as error:  # whatever a damaged file makes the libraries raise
        line = (str(error).strip().splitlines() or [""])[0]
        return [Check("toy", "broken", f"the embedded base cannot be read: {type(error).__name__}: {line}", mend)]
    if abs(measured - recorded) > PERPLEXITY_AGREES * recorded:
        what = f"the embedded base has perplexity {measured:.4f} on its stories, {recorded:.4f} was recorded"
        return [Check("toy", "broken", what, mend)]
    return [Check("toy", "ok", f"the embedded base gives its recorded perplexity ({measured:.4f})")]


def leftovers() -> list[Check]:
    """What killed runs left: half-written folders here and in the cache, states of pretraining."""
    found = []
    for folder in (Path.cwd(), cache_folder()):
        try:
            dead = [p for p in folder.iterdir() if (half_written(p) or ("", True))[1] is False]
        except OSError:
            continue
        if dead:
            size = sum(size_of(p) if p.is_dir() else p.stat().st_size for p in dead)
            what = f"{len(dead)} half-written by runs that ended, {in_words(size)} in {folder}: {dead[0].name} first"
            found.append(Check("leftovers", "note", what, "the next output made there removes them; or delete them"))
    states = [p for p in (cache_folder() / "pretrain").glob("*") if p.is_dir()]
    if states:
        held = in_words(sum(map(size_of, states)))
        what = f"pretraining runs that have not ended: {len(states)}, {held} in the cache"
        mend = f"give the same command again to go on, or delete {cache_folder() / 'pretrain'}"
        found.append(Check("leftovers", "note", what, mend))
    return found or [Check("leftovers", "ok", "none")]
