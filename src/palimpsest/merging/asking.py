"""From words to a request: references with weights, `WHOLE+ADAPTER`, settings, tensors to copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from palimpsest import registry
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.errors import BadInput, nearest
from palimpsest.merging.jobs import per_model
from palimpsest.merging.parameters import from_words, own_settings
from palimpsest.merging.request import VOCABULARIES, Adapters, Copy, MergeRequest, Part
from palimpsest.method import input_fields

Reference = str | Path | Checkpoint
_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
_DTYPES |= {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Words(TypedDict, total=False):
    """What a call may say of a merge beside method and models.

    settings: parameters of the method; a tuple has one value for each model, a list of numbers is a gradient over the
    layers, `[{"filter": ..., "value": ...}]` or a key such as `density@mlp` differs by tensor. copies: `pattern` or
    `pattern=model`, tensors taken as they are. dtype: what is stored. vocabulary: same, common, base or union.
    adapters: delta or factor. data: dialogues for methods that read some, of all models or one for each.
    """

    base: Reference | None
    settings: Mapping[str, Any] | None
    copies: Sequence[str]
    dtype: str | None
    vocabulary: str | None
    adapters: str | None
    data: Sequence[str | Path]


def asked_for(
    method: str | None,
    models: Sequence[Reference | tuple[Reference, float]],
    config: str | Path | None,
    seed: int,
    words: Words,
) -> MergeRequest:
    """The request of a mergekit file, or of words. Raises BadInput where both are given."""
    from palimpsest.merging.mergekit_file import read_mergekit

    if config is None:
        return read_request(method or "linear", models, words, seed)
    options = {"settings": "--set", "copies": "--copy"}
    given = {"METHOD": method, "--model": models, **{options.get(n, f"--{n}"): v for n, v in words.items()}}
    both = [name for name, value in given.items() if value]
    if both:
        raise BadInput(f"{both[0]} and --config {config}: the file says what is merged and how; give one of the two")
    return read_mergekit(Path(config), seed)


def read_request(
    method: str, models: Sequence[Reference | tuple[Reference, float]], words: Words, seed: int = 0
) -> MergeRequest:
    """The request that a call or a command line makes. Raises BadInput for words that stand for nothing."""
    base, dtype = words.get("base"), words.get("dtype")
    cls = registry.find(method, "merges")
    chosen_vocabulary = one_of("--vocabulary", words.get("vocabulary") or "same", VOCABULARIES)
    chosen_adapters: Adapters = one_of("--adapters", words.get("adapters") or "delta", ("delta", "factor"))
    stored = None if dtype is None else read_dtype(dtype, "--dtype")
    shared = from_words(words.get("settings") or {})
    whole = None if base is None else resolve(base)
    given = [weighted(m) for m in models]
    parts = [read_part(reference, whole) for reference, _ in given]
    own = own_settings(shared, [settings for _, settings in given], per_model(cls))
    made = tuple(Part(p.model, s, p.on) for p, s in zip(parts, own, strict=True))
    if whole is not None and whole.is_adapter:
        raise BadInput(f"--base {base}: is an adapter; the base is a whole model")
    request = MergeRequest(
        method if ".py:" in method else cls.info.name,
        made,
        whole,
        shared,
        copies=tuple(_copy(c, made, whole) for c in words.get("copies", ())),
        dtype=stored,
        vocabulary=chosen_vocabulary,
        adapters=chosen_adapters,
        seed=seed,
    )
    request, notes = _with_data(request, cls, words.get("data", ())), []
    if words.get("data") and not request.inputs:
        notes.append(f"--data is not needed by {cls.info.name}")
    if words.get("adapters") and made and not request.only_adapters:
        notes.append("--adapters has no effect: it is for adapters alone, without a whole model")
    return replace(request, notes=tuple(notes))


def _with_data(request: MergeRequest, cls: Any, data: Sequence[str | Path]) -> MergeRequest:
    """The request with dialogues, where they are given and the method takes some."""
    if not data or "data" not in input_fields(cls):
        return request
    from palimpsest.data import load_dialogues

    sets = tuple(load_dialogues(d) for d in data)
    return replace(request, inputs={"data": sets[0] if len(sets) == 1 else sets})


def one_of(option: str, value: str, valid: Sequence[str]) -> Any:
    """The value itself. Raises BadInput where it is none of the valid ones."""
    if value not in valid:
        raise BadInput(f"{option} {value}: is not valid{nearest(value, valid, 'value')}")
    return value


def read_dtype(said: str, where: str) -> str:
    """A dtype that is stored. Raises BadInput for another."""
    name = str(said).removeprefix("torch.")
    if name not in _DTYPES:
        raise BadInput(f"{where} {said}: cannot be stored{nearest(name, _DTYPES, 'dtype')}")
    return _DTYPES[name]


def weighted(given: Any) -> tuple[Reference, dict[str, Any]]:
    """(reference, its own settings) of `reference`, `(reference, weight)`, or text `reference:weight`.

    A folder whose name ends like a weight is that folder.
    """
    if isinstance(given, tuple):
        reference, weight = given
        return reference, {"weight": float(weight)}
    if isinstance(given, str) and not Path(given).is_dir():
        reference, colon, weight = given.rpartition(":")
        try:
            return (reference, {"weight": float(weight)}) if colon else (given, {})
        except ValueError:
            return given, {}  # `toy:unrelated`, or a path
    return given, {}


def read_part(reference: Reference, base: Checkpoint | None) -> Part:
    """A model, an adapter (of `base` where there is one), or `WHOLE+ADAPTER`. Raises BadInput."""
    text = str(reference)
    if isinstance(reference, str) and "+" in text and not Path(text).is_dir():
        whole, _, adapter = text.partition("+")
        ground, model = resolve(whole), resolve(adapter)
        if ground.is_adapter or not model.is_adapter:
            raise BadInput(f"{text}: a reference with a + is WHOLE+ADAPTER, a whole model and a LoRA adapter of it")
        return Part(model, on=ground)
    model = resolve(reference)
    return Part(model, on=base if model.is_adapter else None)


def _copy(said: str, parts: Sequence[Part], base: Checkpoint | None) -> Copy:
    """`PATTERN` of the base or first model, or `PATTERN=MODEL`, where MODEL is one that takes part."""
    pattern, equals, reference = said.partition("=")
    if not pattern or (equals and not reference):
        raise BadInput(f"--copy {said!r}: expected PATTERN, or PATTERN=MODEL")
    first = None if base is not None else 0
    if not equals:
        return Copy(pattern, first)
    known: dict[str, int | None] = {} if base is None else {base.name: None, str(base.path): None}
    for number, part in reversed(list(enumerate(parts))):
        known |= {part.model.name: number, str(part.model.path): number}
    path = str(Path(reference).absolute())
    for name in (reference, path):
        if name in known:
            return Copy(pattern, known[name])
    names = [p.model.name for p in parts] + ([base.name] if base is not None else [])
    raise BadInput(f"--copy {said}: {reference} is none of the models{nearest(reference, names, 'model')}")
