"""Models whose tokenizers or embeddings differ: which row of each belongs to which row of the merged embedding.

`same` (the default): all must agree. `common`: the numbers that all share at the beginning, checked to be the same
tokens. `base`: the vocabulary of the base (else of the first model, or of the `owner` that the request names), rows
of the others by token. `union`: that one and behind it the tokens that only others have. `unchecked`: row by row,
whatever the tokenizers say, as mergekit does where a file names no tokenizer.

A token that a model lacks takes the row of the base where that has it, else the mean over the models that have it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.errors import BadInput
from palimpsest.merging.reading import RowNumbers, Rows, Source
from palimpsest.merging.request import MergeRequest
from palimpsest.merging.tokens import added_entries, read_tokens
from palimpsest.merging.weights import Weights

# Tensors with a row for each token, in the architectures that are known here and in encoders.
_ROWS = re.compile(
    r"(embed_tokens|word_embeddings|wte|embed_in|shared|lm_head|embed_out|lm_head\.decoder|predictions\.decoder"
    r"|vocab_projector|generator_lm_head)\.(weight|bias)$|(cls\.predictions|lm_head)\.bias$"
)
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id")


def has_rows(name: str) -> bool:
    """Whether a tensor has a row for each token."""
    return bool(_ROWS.search(name))


@dataclass(frozen=True)
class Vocabulary:
    """The merged vocabulary. folder: of the tokenizer to write, with the tokens in `added`.

    rows: for each model (the parts, then the base) which of its rows is row i, or None where they are its own.
    first: the model whose row counts where another lacks a token, or None for the mean.
    """

    folder: Path
    rows: tuple[RowNumbers | None, ...]
    first: int | None = None
    added: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def source(self, number: int, sources: Mapping[int, Source]) -> Source:
        """A vocabulary tensor of model `number` in merged rows; `sources`: those that take part, by model."""
        own = self.rows[number]
        if own is None:
            return sources[number]
        fill: list[tuple[Source, RowNumbers]] = []
        if (own < 0).any():
            preferred = self._numbers(self.first) if self.first in sources else None
            for other, source in sources.items():
                theirs = self._numbers(other)
                if other != self.first and preferred is not None:
                    theirs = np.where(preferred >= 0, -1, theirs)
                fill.append((source, theirs))
        return Rows(sources[number], own, fill)

    def _numbers(self, number: int | None) -> RowNumbers:
        assert number is not None
        own = self.rows[number]
        if own is None:
            count = next(len(r) for r in self.rows if r is not None)
            return np.arange(count, dtype=np.int64)
        return own


@dataclass
class _Model:
    """What is known of one model: its name, its tokenizer's folder and tokens, rows of its embedding."""

    name: str
    folder: Path
    tokens: dict[str, int] | None
    rows: int

    @property
    def used(self) -> int:
        """Rows that its tokenizer can ask for."""
        return 1 + max(self.tokens.values(), default=-1) if self.tokens is not None else self.rows


def plan_vocabulary(request: MergeRequest, weights: Sequence[Weights], base: Weights | None) -> Vocabulary:
    """The merged vocabulary. Raises BadInput where the models' do not fit what was asked for."""
    everyone = [*weights, *([base] if base is not None else [])]
    folders = [p.tokenizer for p in request.parts] + ([request.base.path] if request.base is not None else [])
    models = [_Model(w.name, f, read_tokens(f), _embedding_rows(w)) for w, f in zip(everyone, folders, strict=True)]
    outline = len(weights) if base is not None else request.donor or 0
    first = len(weights) if base is not None else request.donor
    own = (None,) * len(models)
    how = request.vocabulary
    if how in ("same", "unchecked") or (_alike(models) and request.owner is None):
        notes = _check_same(models, outline, how == "unchecked")
        return Vocabulary(models[outline].folder, own, notes=notes)
    if how == "common":
        return _common(models, outline, request)
    return _by_token(models, outline, first, request)


def _embedding_rows(weights: Weights) -> int:
    found = [t.shape[0] for n, t in weights.stored.items() if has_rows(n) and len(t.shape) == 2]
    return found[0] if found else 0


def _alike(models: Sequence[_Model]) -> bool:
    return all(m.tokens == models[0].tokens and m.rows == models[0].rows for m in models)


def _check_same(models: Sequence[_Model], outline: int, unchecked: bool) -> list[str]:
    """Notes; BadInput where tokens or numbers of rows differ."""
    mine = models[outline]
    notes = []
    for model in models:
        differs = _difference(model, mine)
        if differs and unchecked:
            notes.append(f"tokenizers differ: {differs}; rows are merged by number, as mergekit does")
        elif differs:
            raise BadInput(
                f"tokenizers differ: {differs}; --vocabulary base keeps the tokens of {mine.name}, union those of all, "
                "common the numbers that all share (in a mergekit file tokenizer_source: base or union)"
            )
        if model.rows != mine.rows:
            raise BadInput(
                f"vocabularies differ in size: {model.name} has {model.rows} rows of embeddings, {mine.name} "
                f"{mine.rows}; --vocabulary base keeps those of {mine.name}, common the rows that all share (in a "
                "mergekit file tokenizer_source: base or union)"
            )
    return notes


def _difference(model: _Model, other: _Model) -> str:
    """The first token of another number, in words; empty where they agree or nothing is known."""
    if model.tokens is None or other.tokens is None or model.tokens == other.tokens:
        return ""
    number, token = min((n, t) for t, n in model.tokens.items() ^ other.tokens.items())
    here, there = model.tokens.get(token), other.tokens.get(token)
    spoken = [f"{'no token' if n is None else n} in {m.name}" for n, m in ((here, model), (there, other))]
    return f"{token!r} is {spoken[0]} and {spoken[1]} (number {number})"


def _common(models: Sequence[_Model], outline: int, request: MergeRequest) -> Vocabulary:
    """The rows that all have, where all numbers that all use are the same tokens."""
    count = min(m.rows for m in models)
    shared = min(count, *(m.used for m in models))
    tokens = [{n: t for t, n in m.tokens.items() if n < shared} if m.tokens is not None else None for m in models]
    known = [(m, t) for m, t in zip(models, tokens, strict=True) if t is not None]
    for model, theirs in known[1:]:
        if theirs != known[0][1]:
            first = min(n for n in range(shared) if theirs.get(n) != known[0][1].get(n))
            raise BadInput(
                f"--vocabulary common: number {first} is {theirs.get(first)!r} in {model.name} and "
                f"{known[0][1].get(first)!r} in {known[0][0].name}; only {first} numbers are the same: use "
                "--vocabulary base or union"
            )
    fitting = [outline, *range(len(models))]
    owner = next((i for i in fitting if models[i].used <= count), outline)
    rows = tuple(None if m.rows == count else np.arange(count, dtype=np.int64) for m in models)
    notes = [f"the merge has the {count} rows that all models share, and the tokenizer of {models[owner].name}"]
    return Vocabulary(models[owner].folder, rows, config=_config(count, request, owner, outline), notes=notes)


def _by_token(models: Sequence[_Model], outline: int, first: int | None, request: MergeRequest) -> Vocabulary:
    """`base` and `union`: the owner's rows as they are, padding too, and rows of the others by token."""
    owner: int | None = outline
    mine = models[outline]
    if request.owner is not None:
        paths = [*(p.model.path for p in request.parts), *([request.base.path] if request.base is not None else [])]
        owner = paths.index(request.owner.path) if request.owner.path in paths else None
        tokens = read_tokens(request.owner.path) if owner is None else models[owner].tokens
        folder = request.owner.path if owner is None else models[owner].folder
        size = 1 + max((tokens or {"": -1}).values()) if owner is None else models[owner].rows
        mine = _Model(request.owner.name, folder, tokens, size)
    if mine.tokens is None:
        raise BadInput(
            f"{mine.name}: has no tokenizer.json or vocab.json, so its tokens are not known; load its tokenizer with "
            "transformers and save it, or give models whose shapes agree"
        )
    merged = {t: n for t, n in mine.tokens.items() if n < mine.rows}
    added: list[dict[str, Any]] = []
    if request.vocabulary == "union":
        added = _added(models, mine, merged)
    count = max(mine.rows, 1 + max(merged.values(), default=-1))
    found = [
        np.arange(count, dtype=np.int64) if i == owner else _rows_of(model, mine, merged, count)
        for i, model in enumerate(models)
    ]
    if owner is not None:
        found[owner][mine.rows :] = -1
    rows = tuple(None if m.rows == count and (r == np.arange(count)).all() else r for m, r in zip(models, found))  # noqa: B905
    notes = [f"the merge has {count} rows of embeddings, by the tokens of {mine.name}"]
    if added:
        notes[0] += f" and {len(added)} that only others have"
    orphans = int((np.stack(found) < 0).all(0).sum())
    if orphans:
        notes.append(f"rows that no model has, zero in the merge: {orphans}")
    return Vocabulary(mine.folder, rows, first, added, _config(count, request, owner, outline), notes)


def _rows_of(model: _Model, mine: _Model, merged: Mapping[str, int], count: int) -> RowNumbers:
    """Which row of a model is each merged row, by token; -1 where it has none."""
    found = np.full(count, -1, dtype=np.int64)
    if model.tokens is None:
        if model.rows != mine.rows:
            raise BadInput(
                f"{model.name}: has no tokenizer.json, so its {model.rows} rows cannot be told apart; {mine.name} has "
                f"{mine.rows}"
            )
        found[: model.rows] = np.arange(model.rows)
        return found
    for token, number in merged.items():
        theirs = model.tokens.get(token, -1)
        if theirs < model.rows:
            found[number] = theirs
    return found


def _added(models: Sequence[_Model], mine: _Model, merged: dict[str, int]) -> list[dict[str, Any]]:
    """Tokens that only others have, as tokenizer.json describes them; they are put into `merged` too."""
    if not (mine.folder / "tokenizer.json").is_file():
        raise BadInput(f"--vocabulary union: {mine.name} has no tokenizer.json to which tokens could be added")
    assert mine.tokens is not None
    # The tokenizers library gives added tokens the next numbers, so nothing may be left out before them.
    number = 1 + max(mine.tokens.values(), default=-1)
    entries = []
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    for model in models:
        described = added_entries(model.folder)
        for token, theirs in sorted((model.tokens or {}).items(), key=lambda item: item[1]):
            if token in mine.tokens or token in merged or theirs >= model.rows:
                continue
            entries.append({"content": token, **plain, **described.get(token, {}), "id": number})
            merged[token] = number
            number += 1
    return entries


def _config(count: int, request: MergeRequest, owner: int | None, outline: int) -> dict[str, Any]:
    """What config.json says of the merged vocabulary; numbers of special tokens are those of the owner."""
    found: dict[str, Any] = {"vocab_size": count}
    if owner == outline:
        return found
    configs = [*(p.ground.config for p in request.parts), *([request.base.config] if request.base is not None else [])]
    theirs = request.owner.config if owner is None and request.owner is not None else configs[owner or 0]
    return found | {name: theirs[name] for name in _SPECIAL if name in theirs}
