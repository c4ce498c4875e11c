"""A base model from text: fits a byte-level BPE, packs documents, trains a small Llama or Qwen2.

`palimpsest pretrain FILE.yaml --out DIR` runs `pretrain` on a `PretrainSpec`; the toy world's recipe uses
the same pieces (`train_tokenizer`, `pack`, `train_packed`, `write_folder`) on text it generates.

A text becomes `<|bos|> text <|end|>`, a dialogue what the chat template renders; documents follow one
another in rows of the context length. Each token has a class (0 not trained on, 1 text, 2 answer), so that
answers can weigh more than what surrounds them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from palimpsest.errors import BadInput, nearest
from palimpsest.progress import Progress, Silent
from palimpsest.training.loop import Batch, TrainLog, train_steps

BOS, PAD, END = "<|bos|>", "<|pad|>", "<|end|>"
USER, ASSISTANT, SYSTEM = "<|user|>", "<|assistant|>", "<|system|>"
RESERVED = tuple(f"<|reserved_{number}|>" for number in range(8))
SPECIAL_TOKENS = (BOS, PAD, END, USER, ASSISTANT, SYSTEM, *RESERVED)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TEXT, ANSWER = 1, 2
_CHUNK = 200_000  # characters of one text that are tokenised at a time


class Source(BaseModel):
    """A file of text: JSON lines with a `text` field, or plain text, which is one document."""

    model_config = ConfigDict(extra="forbid")
    path: Path
    weight: float = Field(1.0, gt=0)


class DialogueSource(BaseModel):
    """A JSON-lines file of dialogues and the share of all tokens that they make up."""

    model_config = ConfigDict(extra="forbid")
    path: Path
    share: float = Field(0.2, ge=0, lt=1)


class PretrainSpec(BaseModel):
    """What to train a base on and how.

    model: fields of the Llama or Qwen2 configuration, `model_type` among them.
    context: row length in tokens. batch: rows a step. tokens: how many are trained on in all.
    answer_weight: how much predicting a token of an answer counts, other tokens counting 1.
    vocabulary_bytes: how much text the tokenizer is fitted on.
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
    text: list[Source] = Field(..., min_length=1)
    dialogues: DialogueSource | None = None


@dataclass
class PretrainReport:
    """What a run cost and reached: `losses` holds (step, mean weighted loss in nats)."""

    parameters: int
    tokens: int
    seconds: float
    losses: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Packed:
    """Rows of token ids on disk.

    ids: (rows, context) unsigned integers; classes: (rows, context) of 0, 1 (text) and 2 (answer).
    """

    ids: np.ndarray
    classes: np.ndarray

    def batch(self, step: int, rows: int, seed: int, answer_weight: float) -> Batch:
        """The batch of a step: each row once an epoch, in an order of its own for each epoch."""
        total = len(self.ids)
        places = np.arange(step * rows, (step + 1) * rows)
        chosen = [int(_order(seed, epoch, total)[place]) for epoch, place in zip(places // total, places % total, strict=True)]
        weights = np.array([0.0, 1.0, answer_weight], dtype=np.float32)
        return Batch(
            torch.from_numpy(self.ids[chosen].astype(np.int64)),  # (rows, context)
            torch.from_numpy(weights[self.classes[chosen]]),  # (rows, context)
        )


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(seed: int, epoch: int, total: int) -> np.ndarray:
    key = (seed, epoch, total)
    if key not in _orders:
        _orders.clear()
        _orders[key] = np.random.default_rng([seed, epoch]).permutation(total)
    return _orders[key]


# -- the specification ----------------------------------------------------------------------------------


def load_spec(path: Path) -> PretrainSpec:
    """Read a YAML file; paths in it are relative to it.

    Raises BadInput, in one line, for what cannot be read, an unknown key, a wrong value, a missing file.
    """
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
    sources: list[Source | DialogueSource] = [*spec.text, *([spec.dialogues] if spec.dialogues else [])]
    for source in sources:
        source.path = path.parent / source.path
        if not source.path.is_file():
            raise BadInput(f"{path}: no file {source.path}")
    model_config(spec.model, spec.vocabulary, spec.context)
    return spec


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        owner = {"text": Source, "dialogues": DialogueSource}.get(str(problem["loc"][0]), PretrainSpec)
        owner = PretrainSpec if len(problem["loc"]) == 1 else owner
        return f"unknown key {where!r}{nearest(str(problem['loc'][-1]), owner.model_fields, 'key')}"
    return f"{where}: {problem['msg']}"


def model_config(fields: dict[str, Any], vocabulary: int, context: int) -> Any:
    """The configuration of the model; unset fields are those of a model of about a million parameters.

    Raises BadInput for a model type other than llama and qwen2 and for fields they do not have.
    """
    from transformers import LlamaConfig, Qwen2Config

    families: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config}
    given = dict(fields)
    name = str(given.pop("model_type", "llama"))
    if name not in families:
        raise BadInput(f"model.model_type: {name!r} cannot be pretrained here{nearest(name, families, 'type')}")
    known = set(families[name]().to_dict()) | {"rope_theta", "head_dim"}
    for key in given:
        if key not in known:
            raise BadInput(f"model: unknown key {key!r}{nearest(key, known, 'key')}")
    values: dict[str, Any] = {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": max(512, context), "tie_word_embeddings": True,
        **given, "vocab_size": vocabulary, "bos_token_id": SPECIAL_TOKENS.index(BOS),
        "eos_token_id": SPECIAL_TOKENS.index(END), "pad_token_id": SPECIAL_TOKENS.index(PAD),
    }
    if values["hidden_size"] % values["num_attention_heads"]:
        raise BadInput(f"model: hidden_size {values['hidden_size']} is no multiple of num_attention_heads "
                       f"{values['num_attention_heads']}")
    if values["num_attention_heads"] % values["num_key_value_heads"]:
        raise BadInput(f"model: num_attention_heads {values['num_attention_heads']} is no multiple of "
                       f"num_key_value_heads {values['num_key_value_heads']}")
    if context > values["max_position_embeddings"]:
        raise BadInput(f"context: {context} is more than max_position_embeddings {values['max_position_embeddings']}")
    return families[name](**values)


# -- text to tokens ---------------------------------------------------------------------------------------


def train_tokenizer(lines: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE (`tokenizers.Tokenizer`) of exactly `vocabulary` entries, special tokens first.

    It adds no token by itself, and decoding what it encoded gives the text back.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(lines, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise BadInput(f"vocabulary: the text yields only {tokenizer.get_vocab_size()} tokens, not {vocabulary}")
    return tokenizer


def render_dialogue(turns: Iterable[tuple[str, str]], system: str | None = None) -> str:
    """What the chat template renders for question and answer turns."""
    opening = BOS + (f"{SYSTEM}{system}{END}" if system else "")
    return opening + "".join(f"{USER}{question}{END}{ASSISTANT}{answer}{END}" for question, answer in turns)


def _classes(ids: np.ndarray) -> np.ndarray:
    """The class of each token: answers run from behind <|assistant|> up to and with <|end|>."""
    classes = np.full(len(ids), TEXT, dtype=np.uint8)
    assistant, end = SPECIAL_TOKENS.index(ASSISTANT), SPECIAL_TOKENS.index(END)
    ends = np.flatnonzero(ids == end)
    for start in np.flatnonzero(ids == assistant):
        after = ends[ends > start]
        classes[start + 1 : (after[0] + 1 if len(after) else len(ids))] = ANSWER
    return classes


def pack(
    tokenizer: Any, documents: Iterable[str], tokens: int, context: int, folder: Path,
    progress: Progress | None = None,
) -> Packed:
    """Tokenise rendered documents until `tokens` are there, in a memory-mapped file under `folder`."""
    rows = max(1, tokens // context)
    kind: Any = np.uint16 if tokenizer.get_vocab_size() <= 65536 else np.uint32
    folder.mkdir(parents=True, exist_ok=True)
    ids = np.memmap(folder / "ids.bin", dtype=kind, mode="w+", shape=(rows, context))
    classes = np.memmap(folder / "classes.bin", dtype=np.uint8, mode="w+", shape=(rows, context))
    flat_ids, flat_classes = ids.reshape(-1), classes.reshape(-1)
    filled = 0
    source = iter(documents)
    with (progress or Silent()).task("tokenising", rows * context) as bar:
        while filled < rows * context:
            group = [text for _, text in zip(range(256), source, strict=False)]
            if not group:
                raise BadInput(f"the text ends after {filled} tokens; {rows * context} are asked for")
            encoded = [np.array(e.ids) for e in tokenizer.encode_batch(group, add_special_tokens=False)]
            new = np.concatenate(encoded)[: rows * context - filled]
            marks = np.concatenate([_classes(e) for e in encoded])[: len(new)]
            flat_ids[filled : filled + len(new)] = new
            flat_classes[filled : filled + len(new)] = marks
            filled += len(new)
            bar.advance(len(new))
    ids.flush()
    classes.flush()
    return Packed(ids, classes)


def train_packed(
    model: Any, packed: Packed, *, steps: int, batch: int, lr: float, warmup: int, weight_decay: float = 0.1,
    answer_weight: float = 1.0, seed: int = 0, progress: Progress | None = None, state_file: Path | None = None,
    after_step: Callable[[int, float], bool | None] | None = None,
) -> TrainLog:
    """Train `model` in place on packed rows: constant rate after the warm-up, falling over the last fifth."""
    with (progress or Silent()).task("pretraining", steps) as bar:
        shown = 0

        def done(step: int, loss: float) -> bool | None:
            nonlocal shown
            bar.advance(step - shown, f"loss {loss:.3f}")
            shown = step
            return after_step(step, loss) if after_step else None

        return train_steps(
            model, lambda step: packed.batch(step, batch, seed, answer_weight), steps=steps, lr=lr,
            schedule="trapezoid", warmup=warmup, weight_decay=weight_decay, betas=(0.9, 0.95),
            after_step=done, state_file=state_file,
        )


# -- sources ----------------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                raise BadInput(f"{path}:{number}: not a JSON object") from None
            if not isinstance(row, dict):
                raise BadInput(f"{path}:{number}: not a JSON object")
            yield number, row


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file, long ones in pieces. Raises BadInput naming file and line."""
    if path.suffix == ".jsonl":
        for number, row in _rows(path):
            text = row.get("text")
            if not isinstance(text, str):
                raise BadInput(f"{path}:{number}: no field `text`{nearest('text', row, 'field')}")
            yield from (text[i : i + _CHUNK] for i in range(0, len(text), _CHUNK))
    else:
        text = path.read_text(encoding="utf-8")
        yield from (text[i : i + _CHUNK] for i in range(0, len(text), _CHUNK))


def read_dialogues(path: Path) -> Iterator[list[tuple[str, str]]]:
    """Dialogues as (question, answer) turns: `messages` or `turns`, prompt and response, or instruction and output."""
    for number, row in _rows(path):
        listed = row.get("messages") or row.get("turns")
        if isinstance(listed, list):
            said = [(m.get("role"), str(m.get("content", ""))) for m in listed if isinstance(m, dict)]
            turns = [(a[1], b[1]) for a, b in zip(said, said[1:], strict=False) if (a[0], b[0]) == ("user", "assistant")]
            if turns:
                yield turns
            continue
        question = row.get("prompt") or row.get("instruction")
        answer = row.get("response") or row.get("output") or row.get("completion")
        if not isinstance(question, str) or not isinstance(answer, str):
            raise BadInput(f"{path}:{number}: neither `messages` nor `turns` nor `prompt` with `response`")
        extra = row.get("input")
        yield [(f"{question}\n{extra}" if extra else question, answer)]


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
        path = spec.dialogues.path
        streams.append((share, (render_dialogue(turns) for turns in _endless(lambda: read_dialogues(path), path))))
    rng = random.Random(f"documents-{seed}")
    given = [rng.random() for _ in streams]  # characters so far, a little apart at the start
    while True:
        behind = min(range(len(streams)), key=lambda i: given[i] / streams[i][0])
        text = next(streams[behind][1])
        given[behind] += len(text)
        yield text


# -- the whole ------------------------------------------------------------------------------------------------


def write_folder(model: Any, tokenizer: Any, out: Path) -> None:
    """Write model and tokenizer in the Hugging Face layout to `out`, by one rename; what was there is replaced.

    The tokenizer's files are written plainly, so that transformers 4 and 5 both load them.
    """
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.generation_config.update(
        bos_token_id=model.config.bos_token_id, eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id, do_sample=False,
    )
    model.save_pretrained(partial, safe_serialization=True)
    tokenizer.save(str(partial / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": END, "pad_token": PAD}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", **special, "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.max_position_embeddings, "chat_template": CHAT_TEMPLATE,
    }
    for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", special)):
        (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def build_model(config: Any, seed: int) -> Any:
    """A freshly initialised causal LM of this configuration, float32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def pretrain(
    spec: PretrainSpec, out: Path, *, seed: int = 0, threads: int | None = None, device: str = "cpu",
    progress: Progress | None = None, scratch: Path | None = None,
) -> PretrainReport:
    """Train a base as `spec` says and write it to `out` as a Hugging Face folder.

    scratch: folder for token ids and the state of the run, so that a killed run goes on; without one a
        temporary folder is used. Raises BadInput for text that cannot be used.
    """
    if threads:
        torch.set_num_threads(threads)
    config = model_config(spec.model, spec.vocabulary, spec.context)
    with tempfile.TemporaryDirectory() as temporary:
        folder = scratch or Path(temporary)
        tokenizer = train_tokenizer(_sample(documents(spec, seed), spec.vocabulary_bytes), spec.vocabulary)
        packed = pack(tokenizer, documents(spec, seed), spec.tokens, spec.context, folder / "tokens", progress)
        model = build_model(config, seed).to(device)
        log = train_packed(
            model, packed, steps=max(1, spec.tokens // (spec.batch * spec.context)), batch=spec.batch, lr=spec.lr,
            warmup=spec.warmup, weight_decay=spec.weight_decay, answer_weight=spec.answer_weight, seed=seed,
            progress=progress, state_file=scratch / "pretrain.state" if scratch else None,
        )
    write_folder(model.to("cpu"), tokenizer, out)
    return PretrainReport(sum(p.numel() for p in model.parameters()), log.tokens, log.seconds, log.losses)


def _sample(texts: Iterator[str], size: int) -> Iterator[str]:
    """Texts without their special tokens, `size` bytes in all."""
    for text in texts:
        for piece in text.replace(BOS, "").replace(USER, END).replace(ASSISTANT, END).split(END):
            if piece:
                yield piece
                size -= len(piece.encode())
        if size <= 0:
            return
