"""Loading a checkpoint for training or generation, and writing what training made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from torch import nn

from palimpsest.checkpoint import lineage
from palimpsest.checkpoint.digest import TOKENIZER_FILES
from palimpsest.checkpoint.labels import check_answers_with_text, first_architecture, is_classifier
from palimpsest.checkpoint.output import write_text
from palimpsest.checkpoint.probe import check_probe, check_tokenizer, write_probe
from palimpsest.checkpoint.quantised import loading_options
from palimpsest.checkpoint.reference import Checkpoint
from palimpsest.cost import note_dtype
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

    held_on: another device to hold it on, in the dtype that `ctx.device` asks for. Where `ctx.load_in` says so its
    linear layers are quantised while they are read (`quantised`).
    Raises BadInput for what does not load whole, and for a model that does not give its stored probe values.
    """
    from transformers import AutoModelForCausalLM

    check_answers_with_text(checkpoint)
    model = _whole(AutoModelForCausalLM, "a causal language model", checkpoint, ctx, dtype)
    if ctx.load_in is not None:  # where it is, and not to be moved; its probe values are others
        return model.eval()
    model = model.to(held_on or pick_device(ctx.device)).eval()
    check_probe(model, checkpoint.path)
    return model


def load_classifier(checkpoint: Checkpoint, ctx: Context, dtype: str | None = None) -> Any:
    """Load a classifier of texts, head and all, as `load_model` does; nothing stores probe values of classifiers.

    Raises BadInput for a model that its configuration does not call one, and for what does not load whole.
    """
    from transformers import AutoModelForSequenceClassification

    if not is_classifier(checkpoint):
        named = first_architecture(checkpoint)
        raise BadInput(f"{checkpoint.path}: is no classifier of texts; config.json names {named}")
    model = _whole(AutoModelForSequenceClassification, "a classifier of texts", checkpoint, ctx, dtype)
    return model.to(pick_device(ctx.device)).eval()


def load_with_new_head(checkpoint: Checkpoint, classes: Sequence[str], ctx: Context) -> Any:
    """Load an encoder in float32 under a fresh head for `classes`, drawn with `ctx.seed`, for training.

    Raises BadInput where weights of the encoder itself are missing.
    """
    from transformers import AutoModelForSequenceClassification

    names = dict(enumerate(classes))
    head = {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": None}
    torch.manual_seed(ctx.seed)
    loader = AutoModelForSequenceClassification
    model = _whole(loader, "an encoder", checkpoint, ctx, "float32", drawn=_is_above_layers, config=head)
    return model.to(pick_device(ctx.device)).eval()


def _is_above_layers(name: str) -> bool:
    """Whether a tensor belongs to head or pooler, which a pretrained encoder may lack."""
    return not any(f".{part}." in f".{name}" for part in ("embeddings", "layer", "layers", "encoder", "transformer"))


def _whole(
    loader: Any,
    what: str,
    checkpoint: Checkpoint,
    ctx: Context,
    dtype: str | None,
    *,
    drawn: Callable[[str], bool] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Any:
    """The model on the CPU as one of transformers' loaders reads it, every tensor of it from the files.

    drawn: tensors that may be missing and are drawn at random then. config: values in place of the configuration's.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    getLogger("bitsandbytes").setLevel("ERROR")  # which PEFT imports where it is; it tells of kernels and of every cast
    if checkpoint.is_adapter:
        raise BadInput(
            f"{checkpoint.name}: is an adapter, not a model; apply it to its base first "
            "(remove meraser-transfer --adapter ...)"
        )
    if ctx.threads:
        torch.set_num_threads(ctx.threads)
    device = pick_device(ctx.device)
    chosen = DTYPES[dtype or ("float32" if device == "cpu" else "bfloat16")]
    note_dtype(ctx.load_in or str(chosen).removeprefix("torch."))
    options = {} if ctx.load_in is None else loading_options(checkpoint, ctx.load_in, chosen, device)
    try:
        model, report = loader.from_pretrained(
            checkpoint.path,
            dtype=chosen,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # both are errors below, in one line
            **options,
            **(config or {}),
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise BadInput(f"{checkpoint.path}: could not be loaded as {what}: {_first(error)}") from error
    if report["mismatched_keys"]:
        name, stored, wanted = min(report["mismatched_keys"])
        raise BadInput(f"{checkpoint.path}: {name} has shape {tuple(stored)}, config.json needs {tuple(wanted)}")
    absent = sorted(n for n in report["missing_keys"] if drawn is None or not drawn(n))
    if absent:  # transformers would go on with random numbers in their place
        raise BadInput(f"{checkpoint.path}: its weights lack {absent[0]} ({len(absent)} of the model's tensors)")
    return model


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own tokenizer (fast where there is one), checked against the stored probe."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # broken tokenizer files make the library raise nearly anything
        raise BadInput(f"{checkpoint.path}: has no tokenizer that loads: {_first(error)}") from error
    check_tokenizer(tokenizer, checkpoint.path)
    return tokenizer


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
    return DTYPES.get(checkpoint.dtype or "", torch.float32)


def to_dtype(model: Any, dtype: torch.dtype) -> Any:
    """Bring a model's weights to a dtype in place; returns the model.

    Not `model.to(dtype)`: that also rounds what no file holds and every load computes anew in float32, such as
    the rotary frequencies, and the model in memory is then not the one that is loaded later.
    """
    stored = set(model.state_dict())
    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in stored)]
    for _, tensor in named:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model


def write_model(
    model: nn.Module, source: Checkpoint, out: Path, method: str, parents: dict[str, str], commitment: str | None = None
) -> Checkpoint:
    """Write a trained model as a checkpoint in the source's dtype, with its tokenizer and its probe values.

    What is written loads in transformers 4 and 5: see `complete_config` and `copy_tokenizer`.
    """
    out.mkdir(parents=True, exist_ok=True)
    needed = sum(t.end - t.start for t in source.tensors())
    if shutil.disk_usage(out).free < needed * 1.05:
        raise OSError(28, "No space left on device")
    to_dtype(model, stored_dtype(source)).save_pretrained(out, safe_serialization=True)
    complete_config(out)
    copy_tokenizer(source.path, out)
    lineage.write(out, source.chain(), method, parents, commitment)
    written = Checkpoint(out, out.name)
    if not is_classifier(written):  # probe values are log-probabilities of tokens
        store_probe(model, written)
    return written


def store_probe(model: nn.Module, written: Checkpoint) -> None:
    """Write the probe values of a model beside the weights it was written to, with the folder's tokenizer."""
    try:
        tokenizer = load_tokenizer(written)
    except BadInput:
        tokenizer = None  # a model alone: its probe is made of plain numbers
    write_probe(model, written.path, tokenizer, positions(written))


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy the tokenizer's files byte for byte, but for what transformers 4 cannot read.

    Transformers 5 calls a plain fast tokenizer TokenizersBackend and lists extra special tokens; 4 knows neither.
    """
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    file = out / "tokenizer_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        newer = settings.get("tokenizer_class") == "TokenizersBackend"
    except (OSError, ValueError, AttributeError):
        return  # none, or one that loading will complain of
    listed = settings.get("extra_special_tokens")
    if newer:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(listed, list):
        del settings["extra_special_tokens"]
        settings["additional_special_tokens"] = [*settings.get("additional_special_tokens", []), *listed]
    if newer or isinstance(listed, list):
        write_text(file, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def complete_config(out: Path) -> None:
    """Add to config.json the names under which transformers 4 looks for the same values.

    5 writes `rope_parameters`; 4 reads `rope_theta`, `rope_scaling` and, by family, the share that turns and the
    base of local layers, and would take its defaults without a word.
    """
    file = out / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and isinstance(rope.get("full_attention"), dict):  # Gemma 3: one for each kind of layer
        local = rope.get("sliding_attention") or {}
        if "rope_theta" in local:
            config.setdefault("rope_local_base_freq", local["rope_theta"])
        rope = rope["full_attention"]
    if isinstance(rope, dict) and "rope_theta" in rope:
        share = rope.get("partial_rotary_factor")
        config.setdefault("rope_theta", rope["rope_theta"])
        if share is not None:
            config.setdefault("partial_rotary_factor", share)
        if config.get("model_type") == "gpt_neox":
            config.setdefault("rotary_emb_base", rope["rope_theta"])
            config.setdefault("rotary_pct", 1.0 if share is None else share)
        if rope.get("rope_type", "default") != "default":
            apart = {"rope_theta", "partial_rotary_factor"}
            scaling = {k: v for k, v in rope.items() if k not in apart}
            if config.get("model_type") == "phi3":  # its class in 4 takes these three fields and no other
                scaling = {"type": scaling["rope_type"], **{k: scaling.get(k) for k in ("short_factor", "long_factor")}}
            config.setdefault("rope_scaling", scaling)
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])
    write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")
