"""A base model from text: fits a byte-level BPE, packs documents, trains a small Llama or Qwen2.

`palimpsest pretrain FILE.yaml --out DIR` runs `pretrain` on a `PretrainSpec`; the toy world's recipe uses
the same pieces on text it generates. How text becomes rows is in `corpus`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from palimpsest.errors import BadInput, nearest
from palimpsest.progress import Progress, Silent
from palimpsest.training.corpus import (
    ASSISTANT,
    BOS,
    CHAT_TEMPLATE,
    END,
    PAD,
    SPECIAL_TOKENS,
    USER,
    Packed,
    pack,
    read_dialogues,
    read_packed,
    read_texts,
    render_dialogue,
    train_tokenizer,
)
from palimpsest.training.loop import TrainLog, train_steps

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "pretrain"


class Source(BaseModel):
    """A file of text: JSON lines with a `text` field, or plain text, which is one document."""

    model_config = ConfigDict(extra="forbid")
    path: Path
    weight: float = Field(1.0, gt=0)


class DialogueSource(BaseModel):
    """JSON-lines files of dialogues, read one after another, and the share of all characters that they make up."""

    model_config = ConfigDict(extra="forbid")
    path: Path | list[Path]
    share: float = Field(0.2, ge=0, lt=1)

    @property
    def files(self) -> list[Path]:
        """The files in their order."""
        return self.path if isinstance(self.path, list) else [self.path]


class PretrainSpec(BaseModel):
    """What to train a base on and how.

    model: fields of the Llama or Qwen2 configuration, `model_type` among them.
    context: row length in tokens. batch: rows a step. tokens: how many are trained on in all.
    answer_weight: how much predicting a token of an answer counts, other tokens counting 1.
    vocabulary_bytes: how much text the tokenizer is fitted on.
    packed: a folder of tokens made before (`corpus.write_packed`), read instead of text and dialogues.
    """

    model_config = ConfigDict(extra="forbid")
    model: dict[str, Any] = Field(default_factory=dict)
    vocabulary: int = Field(4096, ge=300, le=65536)
    context: int = Field(256, ge=8)
    batch: int = Field(16, ge=1)
    lr: float = Field(3e-3, gt=0)
    warmup: int = Field(100, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    tokens: int = Field(..., ge=1)
    answer_weight: float = Field(1.0, gt=0)
    vocabulary_bytes: int = Field(8_000_000, ge=1)
    text: list[Source] = Field(default_factory=list)
    dialogues: DialogueSource | None = None
    packed: Path | None = None

    @model_validator(mode="after")
    def _one_source(self) -> PretrainSpec:
        if bool(self.text) == (self.packed is not None):
            raise ValueError("give `text`, or a folder of `packed` tokens, and not both")
        if self.packed is not None and self.dialogues is not None:
            raise ValueError("`dialogues` go with `text`; `packed` tokens hold theirs already")
        return self


@dataclass
class PretrainReport:
    """What a run cost and reached: `losses` holds (step, mean weighted loss in nats)."""

    parameters: int
    tokens: int
    seconds: float
    losses: list[tuple[int, float]] = field(default_factory=list)


def recipe(name: str | Path) -> Path:
    """The file of a shipped recipe by its name, or the given file. Raises BadInput where there is neither."""
    known = {file.stem: file for file in RECIPES.glob("*.yaml")}
    if str(name) in known and not Path(name).exists():
        return known[str(name)]
    if not Path(name).exists():
        raise BadInput(f"{name}: no such file, nor a shipped recipe{nearest(str(name), known, 'recipe')}")
    return Path(name)


def load_spec(path: Path, root: Path | None = None) -> PretrainSpec:
    """Read a YAML file; paths in it are relative to `root`, or to the file itself.

    Raises BadInput, in one line, for what cannot be read, an unknown key, a wrong value, a missing file.
    """
    if root is None and path.parent == RECIPES:
        raise BadInput(f"{path.stem}: this recipe reads public text by its file names: give its folder as --data DIR")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise BadInput(f"{path}: expected keys such as `text:` and `tokens:`, found {type(loaded).__name__}")
    try:
        spec = PretrainSpec.model_validate(loaded)
    except ValidationError as error:
        raise BadInput(f"{path}: {_first_problem(error)}") from None
    beside = root or path.parent
    for source in spec.text:
        source.path = beside / source.path
    if spec.dialogues:
        spec.dialogues.path = [beside / file for file in spec.dialogues.files]
    if spec.packed is not None:
        spec.packed = beside / spec.packed
        if not spec.packed.is_dir():
            raise BadInput(f"{path}: packed: no folder {spec.packed}")
    for file in [*(source.path for source in spec.text), *(spec.dialogues.files if spec.dialogues else [])]:
        if not file.is_file():
            raise BadInput(f"{path}: no file {file}")
    model_config(spec.model, spec.vocabulary, spec.context)
    return spec


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        parts: dict[str, type[BaseModel]] = {"text": Source, "dialogues": DialogueSource}
        owner: type[BaseModel] = parts[str(problem["loc"][0])] if len(problem["loc"]) > 1 else PretrainSpec
        return f"unknown key {where!r}{nearest(str(problem['loc'][-1]), owner.model_fields, 'key')}"
    said = str(problem["msg"]).removeprefix("Value error, ")
    return f"{where}: {said}" if where else said


def model_config(fields: dict[str, Any], vocabulary: int, context: int) -> Any:
    """The configuration of the model; unset fields are those of a model of about a million parameters.

    Raises BadInput for a model type other than llama and qwen2 and for fields they do not have.
    """
    from transformers import LlamaConfig, Qwen2Config

    families: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config}
    name = str(fields.get("model_type", "llama"))
    if name not in families:
        raise BadInput(f"model.model_type: {name!r} cannot be pretrained here{nearest(name, families, 'type')}")
    known = set(families[name]().to_dict()) | {"rope_theta", "head_dim"}
    for key in fields:
        if key not in known:
            raise BadInput(f"model: unknown key {key!r}{nearest(key, known, 'key')}")
    values: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": max(512, context),
        "tie_word_embeddings": True,
        **fields,
        "vocab_size": vocabulary,
        "bos_token_id": SPECIAL_TOKENS.index(BOS),
        "eos_token_id": SPECIAL_TOKENS.index(END),
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
    }
    values.pop("model_type", None)
    for whole, part in (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads")):
        if values[whole] % values[part]:
            raise BadInput(f"model: {whole} {values[whole]} is no multiple of {part} {values[part]}")
    if context > values["max_position_embeddings"]:
        raise BadInput(f"context: {context} is more than max_position_embeddings {values['max_position_embeddings']}")
    return families[name](**values)


def train_packed(
    model: Any,
    packed: Packed,
    *,
    steps: int,
    batch: int,
    lr: float,
    warmup: int,
    weight_decay: float = 0.1,
    answer_weight: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
    state_file: Path | None = None,
    after_step: Callable[[int, float], bool | None] | None = None,
    autocast: torch.dtype | None = None,
) -> TrainLog:
    """Train `model` in place on packed rows: constant rate after the warm-up, falling over the last fifth.

    autocast: dtype that products are computed in; None is the model's own.
    """
    with (progress or Silent()).task("pretraining", steps) as bar:
        shown = 0

        def done(step: int, loss: float) -> bool | None:
            nonlocal shown
            bar.advance(step - shown, f"loss {loss:.3f}")
            shown = step
            return after_step(step, loss) if after_step else None

        return train_steps(
            model,
            lambda step: packed.batch(step, batch, seed, answer_weight),
            steps=steps,
            lr=lr,
            schedule="trapezoid",
            warmup=warmup,
            weight_decay=weight_decay,
            betas=(0.9, 0.95),
            after_step=done,
            state_file=state_file,
            autocast=autocast,
        )


def _endless(read: Callable[[], Iterator[Any]], path: Path) -> Iterator[Any]:
    while True:
        empty = True
        for entry in read():
            empty = False
            yield entry
        if empty:
            raise BadInput(f"{path}: holds nothing to train on")


def documents(spec: PretrainSpec, seed: int) -> Iterator[str]:
    """Rendered documents of all sources, drawn so that each gets its share of the characters, without end."""
    streams: list[tuple[float, Iterator[str]]] = []
    total = sum(source.weight for source in spec.text)
    share = spec.dialogues.share if spec.dialogues else 0.0
    for source in spec.text:
        texts = _endless(lambda path=source.path: read_texts(path), source.path)  # type: ignore[misc]
        streams.append((source.weight / total * (1 - share), (f"{BOS}{text}{END}" for text in texts)))
    if spec.dialogues and share:
        files = spec.dialogues.files
        turns = _endless(lambda: chain.from_iterable(read_dialogues(file) for file in files), files[0])
        streams.append((share, (render_dialogue(said) for said in turns)))
    rng = random.Random(f"documents-{seed}")
    given = [rng.random() for _ in streams]  # characters so far, a little apart at the start
    while True:
        behind = min(range(len(streams)), key=lambda i: given[i] / streams[i][0])
        text = next(streams[behind][1])
        given[behind] += len(text)
        yield text


def write_folder(model: Any, tokenizer: Any, out: Path) -> None:
    """Write model and tokenizer in the Hugging Face layout to `out`, by one rename; what was there is replaced.

    The tokenizer's files are written plainly, so that transformers 4 and 5 both load them.
    """
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.generation_config.update(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(partial, safe_serialization=True)
    (partial / "model.safetensors").chmod(0o644)  # safetensors leaves it readable by its owner only
    tokenizer.save(str(partial / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": END, "pad_token": PAD}
    if model.config.model_type == "qwen2":
        special["unk_token"] = PAD  # else Qwen2's class adds an entry of its own, which the model has no row for
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }
    for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", special)):
        (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def build_model(config: Any, seed: int) -> Any:
    """A freshly initialised causal LM of this configuration, float32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def pretrain(
    spec: PretrainSpec,
    out: Path,
    *,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    scratch: Path | None = None,
) -> PretrainReport:
    """Train a base as `spec` says and write it to `out` as a Hugging Face folder.

    On a GPU products are computed in bfloat16 and weights kept in float32; on a CPU all is float32.
    scratch: folder for token ids and the state of the run, so that a killed run goes on; without one a
        temporary folder is used. Raises BadInput for text that cannot be used.
    """
    if threads:
        torch.set_num_threads(threads)
    config = model_config(spec.model, spec.vocabulary, spec.context)
    with tempfile.TemporaryDirectory() as temporary:
        folder = scratch or Path(temporary)
        tokenizer, packed = tokens_of(spec, folder, seed, spec.tokens, progress)
        model = build_model(config, seed).to(device)
        log = train_packed(
            model,
            packed,
            steps=max(1, spec.tokens // (spec.batch * spec.context)),
            batch=spec.batch,
            lr=spec.lr,
            warmup=spec.warmup,
            weight_decay=spec.weight_decay,
            answer_weight=spec.answer_weight,
            seed=seed,
            progress=progress,
            state_file=scratch / "pretrain.state" if scratch else None,
            autocast=torch.bfloat16 if device.startswith("cuda") else None,
        )
    write_folder(model.to("cpu"), tokenizer, out)
    return PretrainReport(sum(p.numel() for p in model.parameters()), log.tokens, log.seconds, log.losses)


def tokens_of(
    spec: PretrainSpec, folder: Path, seed: int, tokens: int, progress: Progress | None = None
) -> tuple[Any, Packed]:
    """The tokenizer and the rows of a specification: those packed before, or `tokens` tokens made in `folder`."""
    if spec.packed is None:
        kind = str(spec.model.get("model_type", "llama"))
        tokenizer = train_tokenizer(_sample(documents(spec, seed), spec.vocabulary_bytes), spec.vocabulary, kind)
        return tokenizer, pack(tokenizer, documents(spec, seed), tokens, spec.context, folder / "tokens", progress)
    tokenizer, packed = read_packed(spec.packed)
    if (tokenizer.get_vocab_size(), packed.ids.shape[1]) != (spec.vocabulary, spec.context):
        raise BadInput(
            f"{spec.packed}: has a vocabulary of {tokenizer.get_vocab_size()} and rows of {packed.ids.shape[1]} "
            f"tokens; the specification says vocabulary {spec.vocabulary} and context {spec.context}"
        )
    return tokenizer, packed


def _sample(texts: Iterator[str], size: int) -> Iterator[str]:
    """Texts without their special tokens, `size` bytes in all."""
    for text in texts:
        for piece in text.replace(BOS, "").replace(USER, END).replace(ASSISTANT, END).split(END):
            if piece:
                yield piece
                size -= len(piece.encode())
        if size <= 0:
            return
