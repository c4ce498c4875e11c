"""Text and dialogues as training rows: special tokens, the chat template, the BPE, readers, packing.

A text becomes `<|bos|> text <|end|>`, a dialogue what the chat template renders; documents follow one
another in rows of the context length. Each token has a class (0 not trained on, 1 text, 2 answer), so that
answers can weigh more than what surrounds them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palimpsest.errors import BadInput, nearest
from palimpsest.progress import Progress, Silent
from palimpsest.training.loop import Batch

BOS, PAD, END = "<|bos|>", "<|pad|>", "<|end|>"
USER, ASSISTANT, SYSTEM = "<|user|>", "<|assistant|>", "<|system|>"
RESERVED = tuple(f"<|reserved_{number}|>" for number in range(8))
SPECIAL_TOKENS = (BOS, PAD, END, USER, ASSISTANT, SYSTEM, *RESERVED)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT, ANSWER = 1, 2
_CHUNK = 200_000  # characters of one text that are tokenised at a time


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
        places = range(step * rows, (step + 1) * rows)
        chosen = [int(_order(seed, at // total, total)[at % total]) for at in places]
        weights = np.array([0.0, 1.0, answer_weight], dtype=np.float32)
        return Batch(
            torch.from_numpy(self.ids[chosen].astype(np.int64)),  # (rows, context)
            torch.from_numpy(weights[self.classes[chosen]]),  # (rows, context)
        )


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, total: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(total)


def train_tokenizer(lines: Iterable[str], vocabulary: int, family: str = "llama") -> Any:
    """A byte-level BPE (`tokenizers.Tokenizer`) of exactly `vocabulary` entries, special tokens first.

    It adds no token by itself, and decoding what it encoded gives the text back (its NFC form for qwen2:
    transformers 5 gives every Qwen2 folder Qwen2's way of cutting text, so it is fitted in that way).
    Raises BadInput where the text yields fewer tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if family == "qwen2":
        words = pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, plain])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(lines, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise BadInput(f"vocabulary: the text yields only {tokenizer.get_vocab_size()} tokens, not {vocabulary}")
    return tokenizer


def load_tokenizer_of(folder: Path, vocabulary: int) -> Any:
    """The `tokenizers.Tokenizer` of a base that was pretrained here, for another model with the same tokens.

    Raises BadInput where its vocabulary is another size or its special tokens are not those used here.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise BadInput(f"--tokenizer {folder}: there is no {file.name}")
    tokenizer = Tokenizer.from_file(str(file))
    if tokenizer.get_vocab_size() != vocabulary:
        raise BadInput(
            f"--tokenizer {folder}: has {tokenizer.get_vocab_size()} tokens, the recipe asks for {vocabulary}"
        )
    if [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS] != list(range(len(SPECIAL_TOKENS))):
        raise BadInput(f"--tokenizer {folder}: its special tokens are not those of a base pretrained here")
    return tokenizer


def render_dialogue(turns: Iterable[tuple[str, str]], system: str | None = None) -> str:
    """What the chat template renders for question and answer turns."""
    opening = BOS + (f"{SYSTEM}{system}{END}" if system else "")
    return opening + "".join(f"{USER}{question}{END}{ASSISTANT}{answer}{END}" for question, answer in turns)


def token_classes(ids: np.ndarray) -> np.ndarray:
    """The class of each token: answers run from behind <|assistant|> up to and with <|end|>."""
    classes = np.full(len(ids), TEXT, dtype=np.uint8)
    assistant, end = SPECIAL_TOKENS.index(ASSISTANT), SPECIAL_TOKENS.index(END)
    ends = np.flatnonzero(ids == end)
    for start in np.flatnonzero(ids == assistant):
        after = ends[ends > start]
        classes[start + 1 : (after[0] + 1 if len(after) else len(ids))] = ANSWER
    return classes


def pack(
    tokenizer: Any, documents: Iterable[str], tokens: int, context: int, folder: Path, progress: Progress | None = None
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
            group = _group(source)
            if not group:
                raise BadInput(f"the text ends after {filled} tokens; {rows * context} are asked for")
            encoded = [np.array(e.ids) for e in tokenizer.encode_batch_fast(group, add_special_tokens=False)]
            new = np.concatenate(encoded)[: rows * context - filled]
            marks = np.concatenate([token_classes(e) for e in encoded])[: len(new)]
            flat_ids[filled : filled + len(new)] = new
            flat_classes[filled : filled + len(new)] = marks
            filled += len(new)
            bar.advance(len(new))
    ids.flush()
    classes.flush()
    return Packed(ids, classes)


def _group(texts: Iterator[str]) -> list[str]:
    """The next texts, about a million characters of them: encodings take far more memory than text."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= 5 * _CHUNK:
            break
    return group


def write_packed(folder: Path, tokenizer: Any, packed: Packed) -> None:
    """Write packed rows with their tokenizer, compressed, so that another machine trains on them without the text.

    `tokenizer.json` (of `tokenizers`) and `tokens.npz` (numpy) with `ids`: (rows, context) unsigned integers and
    `classes`: (rows, context) of 0, 1 (text) and 2 (answer).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    np.savez_compressed(folder / "tokens.npz", ids=packed.ids, classes=packed.classes)


def read_packed(folder: Path) -> tuple[Any, Packed]:
    """Tokenizer and rows of a folder that `write_packed` made. Raises BadInput for any other."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        with np.load(folder / "tokens.npz", allow_pickle=False) as stored:
            packed = Packed(stored["ids"], stored["classes"])
    except Exception as error:  # tokenizers raises plain Exception
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{folder}: holds no packed text (tokenizer.json, tokens.npz): {first}") from None
    good = packed.ids.ndim == 2 and packed.ids.shape == packed.classes.shape and len(packed.ids) > 0
    if not good or packed.ids.dtype.kind != "u" or int(packed.classes.max()) > ANSWER:
        raise BadInput(f"{folder / 'tokens.npz'}: ids and classes must be unsigned, (rows, context), of one shape")
    if int(packed.ids.max()) >= tokenizer.get_vocab_size():
        raise BadInput(f"{folder}: a token id is beyond the {tokenizer.get_vocab_size()} entries of tokenizer.json")
    missing = [t for number, t in enumerate(SPECIAL_TOKENS) if tokenizer.token_to_id(t) != number]
    if missing:
        raise BadInput(f"{folder / 'tokenizer.json'}: its first entries are not the special tokens: {missing[0]}")
    return tokenizer, packed


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict):
                raise BadInput(f"{path}:{number}: not a JSON object")
            if row:
                yield number, row


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file, long ones in pieces. Raises BadInput naming file and line."""
    if path.suffix != ".jsonl":
        yield from _pieces(path.read_text(encoding="utf-8"))
        return
    for number, row in _rows(path):
        if not isinstance(row.get("text"), str):
            raise BadInput(f"{path}:{number}: no field `text`{nearest('text', row, 'field')}")
        yield from _pieces(row["text"])


def _pieces(text: str) -> Iterator[str]:
    return (text[i : i + _CHUNK] for i in range(0, len(text), _CHUNK))


def read_dialogues(path: Path) -> Iterator[list[tuple[str, str]]]:
    """Dialogues as (question, answer) turns: `messages` or `turns`, or prompt (instruction) and response (output)."""
    for number, row in _rows(path):
        listed = row.get("messages") or row.get("turns")
        if isinstance(listed, list):
            said = [(m.get("role"), str(m.get("content", ""))) for m in listed if isinstance(m, dict)]
            turns = [(a[1], b[1]) for a, b in pairwise(said) if (a[0], b[0]) == ("user", "assistant")]
            if turns:
                yield turns
            continue
        question = row.get("prompt") or row.get("instruction")
        answer = row.get("response") or row.get("output") or row.get("completion")
        if not isinstance(question, str) or not isinstance(answer, str):
            raise BadInput(f"{path}:{number}: neither `messages` nor `turns` nor `prompt` with `response`")
        extra = row.get("input")
        yield [(f"{question}\n{extra}" if extra else question, answer)]
