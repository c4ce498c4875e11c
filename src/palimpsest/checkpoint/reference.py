"""Checkpoint: a model at rest in the Hugging Face layout; and what `--model` may name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from palimpsest.checkpoint import digest as digests
from palimpsest.checkpoint import files, lineage
from palimpsest.errors import BadInput

ADAPTER_STEM = "adapter_model"


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json, safetensors and tokenizer, or a PEFT adapter; never changed in place.

    name is for people (`toy`, a folder's name, a hub id); path is where it lies.
    """

    path: Path
    name: str

    @property
    def is_adapter(self) -> bool:
        """Whether this is a PEFT adapter and not a whole model."""
        return (self.path / "adapter_config.json").is_file()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's config.json (an adapter's adapter_config.json)."""
        file = self.path / ("adapter_config.json" if self.is_adapter else "config.json")
        try:
            loaded = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BadInput(f"{file}: is no JSON: {error}") from None
        if not isinstance(loaded, dict):
            raise BadInput(f"{file}: is no JSON object")
        return loaded

    def tensors(self) -> list[files.TensorInfo]:
        """All tensors, sorted by name, without reading their data."""
        return files.tensors(self.path, ADAPTER_STEM if self.is_adapter else "model")

    @property
    def dtype(self) -> str | None:
        """In what most of its weights are stored: float32, bfloat16, float16; None for anything else."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.end - tensor.start
        names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
        return names.get(max(sizes, key=lambda n: sizes[n], default=""))

    def digest(self) -> str:
        """SHA-256 of weights, config and tokenizer; independent of sharding, cached by size and time."""
        return digests.checkpoint_digest(self.path, self.config, self.tensors())

    def chain(self) -> list[dict[str, Any]]:
        """The public lineage, oldest first."""
        return lineage.read(self.path)

    def check(self) -> Checkpoint:
        """BadInput where the folder is no checkpoint that can be read whole; returns itself."""
        if not self.path.is_dir():
            raise BadInput(f"there is no model folder {self.path}")
        if not (self.path / "config.json").is_file() and not self.is_adapter:
            if (self.path / "model" / "config.json").is_file():
                raise BadInput(f"{self.path}: holds a secret beside a model; use {self.path / 'model'}")
            raise BadInput(f"{self.path}: has no config.json, so it is no model folder")
        if self.config.get("auto_map"):
            raise BadInput(
                f"{self.path}: needs remote code (auto_map in config.json), which is never run; "
                "convert it to an architecture of transformers"
            )
        self.tensors()
        return self


def resolve(reference: str | Path | Checkpoint) -> Checkpoint:
    """Turn what a user names into a checked Checkpoint.

    `toy` (and `toy:unrelated`), an existing folder, or a hub id. Anything absolute or starting with `.`
    is never a hub id. Raises BadInput.
    """
    if isinstance(reference, Checkpoint):
        return reference
    text = str(reference)
    if text in ("toy", "toy:unrelated"):
        from palimpsest import toyworld

        folder = toyworld.toy_path() if text == "toy" else toyworld.unrelated_path()
        return Checkpoint(folder, text).check()
    path = Path(text)
    if text and path.is_dir():
        return Checkpoint(path.absolute(), path.absolute().name).check()
    if path.is_file():
        raise BadInput(f"{text}: is a file; a model is a folder with config.json and safetensors")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or not text:
        raise BadInput(f"there is no model folder {text!r}")
    return Checkpoint(_from_hub(text), text).check()


def reference_folder(reference: str | Path) -> tuple[Path, bool]:
    """(the folder that a reference names, whether its weights are there), unchecked and without fetching weights.

    A hub model that is not in the local cache is fetched but for its weights. Raises BadInput as `resolve` does.
    """
    text = str(reference)
    path = Path(text)
    if text in ("toy", "toy:unrelated"):
        return resolve(text).path, True
    if text and path.is_dir():
        return path.absolute(), True
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or not text:
        raise BadInput(f"there is no file or folder {text!r}")
    try:
        found = _from_hub(text, local=True)
    except BadInput:
        found = _from_hub(text, weights=False)
    return found, any(found.glob("*.safetensors"))


def is_toy(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has the embedded toy's shape: it or what was made of it."""
    toy = resolve("toy").config
    return all(checkpoint.config.get(n) == toy.get(n) for n in ("model_type", "hidden_size", "vocab_size"))


# Of a repository only what a model is loaded from: no folder in it (original/, onnx/), no second copy of the weights.
_WANTED = ["*.json", "*.model", "*.txt", "*.jinja"]
_UNWANTED = ["*/*", "consolidated*"]


def _from_hub(name: str, *, weights: bool = True, local: bool = False) -> Path:
    """The local snapshot of a hub model, downloaded where it is not in the cache. Raises BadInput.

    weights: with them; local: nothing is downloaded.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    patterns = [*_WANTED, *(["*.safetensors"] if weights else [])]
    try:
        snapshot = snapshot_download(name, allow_patterns=patterns, ignore_patterns=_UNWANTED, local_files_only=local)
        found = Path(snapshot)
    except HFValidationError:
        raise BadInput(f"there is no folder {name!r}, and it is no hub name either") from None
    except GatedRepoError:
        raise BadInput(
            f"{name}: the hub asks for its licence to be accepted first: do so at https://huggingface.co/{name}, "
            "then `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise BadInput(f"there is no folder {name!r}, and the hub has no such model; `toy` is always there") from None
    except (LocalEntryNotFoundError, OSError):
        raise BadInput(
            f"there is no folder {name!r}, and the hub is out of reach, nor is the model in the cache "
            f"{constants.HF_HUB_CACHE}; where there is a network run `hf download {name}` and give the folder that "
            "it prints, or copy that cache here; `toy` is always there"
        ) from None
    if weights and not any(found.glob("*.safetensors")):
        pickled = any(p for pattern in files.PICKLED for p in found.glob(pattern))
        why = "its weights are pickled, which can run code" if pickled else "no safetensors weights of it are here"
        raise BadInput(
            f"{name}: {why} ({found}); get it whole by `hf download {name}`, and convert it where it has none by "
            "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER, safe_serialization=True)`"
        )
    return found
