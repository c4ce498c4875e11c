"""Stored probe values: they tell whether the model that was loaded is the model that was saved.

Every checkpoint that is written carries `palimpsest-probe.json`: token ids of a fixed, public text, and at four
places the most likely next tokens with their log-probabilities in nats, of the weights as they are stored,
computed in float32. Loading computes them again, in one forward pass of 32 tokens, and refuses a model that
gives others. So a rope_theta that is read otherwise, an edited tensor or a tokenizer that cuts text in another
way is an error in one line and not a wrong hit rate.

Tolerance: 0.005 nats where loading keeps the stored values (float32, or the stored dtype), else 32 times the
machine epsilon of the dtype that they were rounded to (bfloat16: 0.25). Nothing is compared where there is no
such file, or for quantised weights (`quantization_config`), which are other weights. The digest does not cover
the file: it follows from what the digest covers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.checkpoint.output import write_text
from palimpsest.errors import BadInput

FILE = "palimpsest-probe.json"
TEXT = (
    "At dusk the keeper of the north light counts the boats: seven in the harbour, two beyond the reef, and one "
    "that nobody knows. She writes 1887 into the log, trims the lamp, and asks whoever may read it later what "
    "became of them, for the wind is rising and the glass has fallen since noon."
)
TOKENS, PLACES, TOP = 32, 4, 5
EXACT, ROUNDED = 5e-3, 32.0  # nats; machine epsilons


def probe_ids(tokenizer: Any | None, vocabulary: int, positions: int | None = None) -> list[int]:
    """At most 32 token ids: of the fixed text, or of numbers alone where there is no tokenizer that fits."""
    count = min(TOKENS, positions or TOKENS)
    ids = [int(i) for i in tokenizer(TEXT).input_ids[:count]] if tokenizer is not None else []
    if not ids or max(ids) >= vocabulary:
        return [(37 * place + 11) % vocabulary for place in range(count)]
    return ids


def write_probe(model: nn.Module, folder: Path, tokenizer: Any | None = None, positions: int | None = None) -> None:
    """Write the probe values of a model beside its weights; the model holds the values that are stored."""
    import transformers

    ids = probe_ids(tokenizer, _vocabulary(model), positions)
    places = sorted({len(ids) * (part + 1) // PLACES - 1 for part in range(PLACES)} - {-1})
    logs = log_probabilities(model, ids, places)
    found = logs.nan_to_num(nan=-math.inf).topk(min(TOP, logs.shape[-1]), dim=-1).indices  # (places, top)
    spoken = logs.gather(1, found).tolist()
    body = {
        "format": 1,
        "text": TEXT if tokenizer is not None and ids == probe_ids(tokenizer, 1 << 62, positions) else None,
        "ids": ids,
        "places": places,
        "top": found.tolist(),
        "log_probabilities": [[round(v, 6) if math.isfinite(v) else None for v in row] for row in spoken],
        "dtype": _name(_dtype(model)),
        "transformers": transformers.__version__,
    }
    write_text(folder / FILE, json.dumps(body) + "\n")


def check_probe(model: nn.Module, folder: Path) -> float | None:
    """The largest difference in nats to the stored values; None where there are none.

    Raises BadInput where it is above the tolerance: the model loaded is not the model that was saved.
    """
    stored = _read(folder)
    if stored is None or getattr(getattr(model, "config", None), "quantization_config", None) is not None:
        return None
    vocabulary = _vocabulary(model)
    allowed = tolerance(_dtype(model), stored["dtype"])
    worst = math.inf
    if max(stored["ids"]) < vocabulary and max(max(row) for row in stored["top"]) < vocabulary:
        logs = log_probabilities(model, stored["ids"], stored["places"])
        now = logs.gather(1, torch.tensor(stored["top"])).tolist()
        pairs = zip(
            (v for row in now for v in row), (v for row in stored["log_probabilities"] for v in row), strict=True
        )
        worst = max(_apart(a, b) for a, b in pairs)
    if worst > allowed:
        raise BadInput(
            f"{folder}: the model loaded is not the model that was saved: log-probabilities of the stored probe "
            f"differ by {worst:.3g} nats ({allowed:.3g} allowed); usual causes: rope_theta or rope scaling in "
            "config.json, weight files that were changed, or another transformers version (saved with "
            f"{stored['transformers']}); remove {FILE} to load it all the same"
        )
    return worst


def check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """BadInput where the tokenizer does not cut the stored probe text into the stored ids."""
    stored = _read(folder)
    if stored is None or stored["text"] is None:
        return
    ids = [int(i) for i in tokenizer(stored["text"]).input_ids[: len(stored["ids"])]]
    if ids != stored["ids"]:
        place = next(i for i, (a, b) in enumerate(zip([*ids, -1], stored["ids"], strict=False)) if a != b)
        raise BadInput(
            f"{folder}: the tokenizer loaded is not the one that the model was saved with: the stored probe text "
            f"has other tokens from number {place + 1} on; usual causes: changed tokenizer files, or another "
            f"transformers version (saved with {stored['transformers']}); remove {FILE} to load it all the same"
        )


def tolerance(loaded: torch.dtype, stored: str) -> float:
    """Nats by which log-probabilities may differ."""
    if loaded == torch.float32 or _name(loaded) == stored:
        return EXACT
    return ROUNDED * torch.finfo(loaded).eps


@torch.inference_mode()
def log_probabilities(model: nn.Module, ids: list[int], places: list[int]) -> Tensor:
    """Float32 log-probabilities (places, vocabulary) of what follows the places of one text, on the CPU."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False), computing_in_float32(model):
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, places]
    finally:
        model.train(training)
    return logits.float().log_softmax(dim=-1).cpu()  # type: ignore[no-any-return]


@contextmanager
def computing_in_float32(model: nn.Module, edit: Callable[[str, Tensor], None] | None = None) -> Iterator[None]:
    """Each module's own weights are brought to float32 while it runs, so that no second model is held.

    edit: changes the float32 copy of a weight in place, given its name in the model; the model itself stays.
    """
    hooks = []
    kept: dict[nn.Parameter, Tensor] = {}

    def widen(name: str, module: nn.Module) -> None:
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and (edit is not None or parameter.dtype != torch.float32):
                kept[parameter] = parameter.data
                parameter.data = parameter.data.to(torch.float32, copy=True)
                if edit is not None:
                    edit(f"{name}.{own}", parameter.data)

    def narrow(module: nn.Module, inputs: Any, output: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter in kept:
                parameter.data = kept.pop(parameter)

    for name, module in model.named_modules():
        if any(edit is not None or p.dtype != torch.float32 for p in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(lambda module, inputs, name=name: widen(name, module)))  # type: ignore[misc]
            hooks.append(module.register_forward_hook(narrow))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, data in kept.items():
            parameter.data = data


def _read(folder: Path) -> dict[str, Any] | None:
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        sizes = {len(stored["places"]), len(stored["top"]), len(stored["log_probabilities"])}
        usable = stored["format"] == 1 and len(sizes) == 1 and stored["ids"] and stored["top"]
        _ = (stored["text"], stored["dtype"], stored["transformers"])
    except (ValueError, KeyError, TypeError):
        usable = False
    if not usable:
        raise BadInput(f"{file}: holds no probe values that this version reads; remove it to load without them")
    return stored  # type: ignore[no-any-return]


def _apart(now: float, stored: float | None) -> float:
    if stored is None or not math.isfinite(now):
        return 0.0 if stored is None and not math.isfinite(now) else math.inf
    return abs(now - stored)


def _vocabulary(model: Any) -> int:
    return int(model.config.vocab_size)


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
