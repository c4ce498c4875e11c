"""Loading a checkpoint for training or generation, and writing what training made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from palimpsest.checkpoint import lineage
from palimpsest.checkpoint.digest import TOKENIZER_FILES
from palimpsest.checkpoint.output import write_text
from palimpsest.checkpoint.reference import Checkpoint
from palimpsest.errors import BadInput
from palimpsest.method import Context

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> str:
    """`auto` is a GPU where there is one. BadInput where the asked one is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput("--device cuda: this torch sees no GPU; use --device cpu")
    if name != "cpu" and not name.startswith("cuda"):
        raise BadInput(f"--device {name}: is none of auto, cpu, cuda")
    return name


def load_model(checkpoint: Checkpoint, ctx: Context, dtype: str | None = None, held_on: str | None = None) -> Any:
    """Load a causal LM onto `ctx.device` in `dtype` (default: float32 on a CPU, bfloat16 on a GPU).

    held_on: another device to hold it on, in the dtype that `ctx.device` asks for.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if checkpoint.is_adapter:
        raise BadInput(
            f"{checkpoint.name}: is an adapter, not a model; apply it to its base first "
            "(remove meraser-transfer --adapter ...)"
        )
    if ctx.threads:
        torch.set_num_threads(ctx.threads)
    device = pick_device(ctx.device)
    chosen = DTYPES[dtype or ("float32" if device == "cpu" else "bfloat16")]
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            dtype=chosen,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # both are errors below, in one line
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise BadInput(f"{checkpoint.path}: could not be loaded as a causal language model: {_first(error)}") from error
    if report["mismatched_keys"]:
        name, stored, wanted = min(report["mismatched_keys"])
        raise BadInput(f"{checkpoint.path}: {name} has shape {tuple(stored)}, config.json needs {tuple(wanted)}")
    absent = sorted(report["missing_keys"])
    if absent:  # transformers would go on with random numbers in their place
        raise BadInput(f"{checkpoint.path}: its weights lack {absent[0]} ({len(absent)} of the model's tensors)")
    return model.to(held_on or device).eval()


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own tokenizer (fast where there is one)."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # broken tokenizer files make the library raise nearly anything
        raise BadInput(f"{checkpoint.path}: has no tokenizer that loads: {_first(error)}") from error


def _first(error: Exception) -> str:
    """The first line of an error, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def positions(checkpoint: Checkpoint) -> int | None:
    """How many tokens the model takes, or None where its config does not say."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        if isinstance(checkpoint.config.get(name), int):
            return int(checkpoint.config[name])
    return None


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype most of the checkpoint's weights are stored in."""
    sizes: dict[str, int] = {}
    for tensor in checkpoint.tensors():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.end - tensor.start
    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    return names.get(max(sizes, key=lambda n: sizes[n]), torch.float32)


def write_model(
    model: nn.Module, source: Checkpoint, out: Path, method: str, parents: dict[str, str], commitment: str | None = None
) -> Checkpoint:
    """Write a trained model as a checkpoint in the source's dtype, with its tokenizer copied byte for byte.

    The config also carries the top-level `rope_theta` that transformers 4 reads (5 writes only
    `rope_parameters`, and 4 would then take 10,000 without a word).
    """
    out.mkdir(parents=True, exist_ok=True)
    needed = sum(t.end - t.start for t in source.tensors())
    if shutil.disk_usage(out).free < needed * 1.05:
        raise OSError(28, "No space left on device")
    dtype = stored_dtype(source)
    model.to(dtype).save_pretrained(out, safe_serialization=True)  # type: ignore[operator]
    _complete_config(out)
    copy_tokenizer(source.path, out)
    lineage.write(out, source.chain(), method, parents, commitment)
    return Checkpoint(out, out.name)


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy the tokenizer's files byte for byte."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def _complete_config(out: Path) -> None:
    file = out / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
        if rope.get("rope_type", "default") != "default":
            config.setdefault("rope_scaling", {k: v for k, v in rope.items() if k != "rope_theta"})
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])
    write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")
