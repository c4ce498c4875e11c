"""How much memory a piece of work takes, from the model's config alone. An estimate, not a measurement.

With P parameters, t of them trained, L layers, width h, queries q and keys k wide, feed-forward i, vocabulary V,
n = rows * tokens of one forward pass, and b bytes a number (4 in float32, 2 in bfloat16):

- weights      P b
- trained      16 t for adapters (float32 weights, gradients and both moments of AdamW); 12 P for all weights
- activations  n L b (what the backward pass of one layer needs, in numbers a token: `_kept`), one layer more for
               what is at work, and the attention mask of padded rows, 4 rows tokens^2
- logits       16 n V: four float32 copies (head, loss, gradients), at worst of every position
- program      what Python, torch and transformers take themselves

Asking keeps the keys and values of every layer while it generates, 2 n L k b, or a few pieces of logits while it
scores; the larger of the two counts.
Attention is the fused kernel (no scores of time x time are kept), save where an architecture has none.
`benchmarks/memory` holds measured peaks beside these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from palimpsest.errors import BadInput
from palimpsest.families.sizes import Sizes, sizes_of
from palimpsest.machine import in_words
from palimpsest.training.settings import Tuning

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ASK_TOKENS = 8192  # rows times tokens of one pass: the default of responder.LocalResponder
PIECE = 1 << 25  # float32 numbers of one piece of logits: responder.logits
PROGRAM = 400 << 20  # resident after importing torch, transformers and peft, as benchmarks/memory measured it


@dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for. what: the work, in words. device: where they are taken.

    certain: what no setting of batch or length makes smaller. total: the peak. rough: the architecture is not in
    the table, and Llama's habits were taken. shards: processes that share weights and trained states.
    """

    what: str
    device: str
    dtype: str
    parts: dict[str, int] = field(default_factory=dict)
    rough: bool = False
    shards: int = 1

    @property
    def certain(self) -> int:
        """Weights, gradients and the optimiser's state."""
        return self._held // self.shards

    @property
    def _held(self) -> int:
        return self.parts.get("weights", 0) + self.parts.get("trained", 0)

    @property
    def total(self) -> int:
        """The peak."""
        return sum(self.parts.values()) - self._held + self.certain

    def __str__(self) -> str:
        spent = ", ".join(f"{name} {in_words(size)}" for name, size in self.parts.items() if size)
        return f"{self.what}: about {in_words(self.total)} ({spent})"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"what": self.what, "device": self.device, "dtype": self.dtype, "bytes": self.total, "parts": self.parts}


def dtype_in_memory(device: str, tuning: Tuning | None = None) -> str:
    """The dtype that weights are loaded in: float32 on a CPU and for full fine-tuning, else bfloat16."""
    full = tuning is not None and tuning.adapter == "full"
    return "float32" if full or not device.startswith("cuda") else "bfloat16"


def micro_rows(tuning: Tuning) -> int:
    """Rows of one forward pass: the batch in equal parts of at most `micro_batch`."""
    return math.ceil(tuning.batch / math.ceil(tuning.batch / tuning.micro_batch))


def estimate_memory(
    config: Mapping[str, Any],
    what: str = "",
    tuning: Tuning | None = None,
    *,
    rows: int | None = None,
    tokens: int | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    parameters: int | None = None,
    supervised: float = 1.0,
) -> Estimate:
    """Peak memory of fine-tuning a model as `tuning` says, or without one of asking and scoring it.

    rows, tokens: shape of one forward pass; by default the micro-batch and the longest row that settings and
    positions allow, and for asking the responder's budget. dtype: of the weights in memory. parameters: where they
    are known better than by the config. supervised: share of positions whose logits are computed in training.
    Raises BadInput where the config lacks a number.
    """
    sizes = sizes_of(config)
    count = parameters or sizes.parameters
    dtype = dtype or dtype_in_memory(device, tuning)
    b = BYTES[dtype]
    parts = {"weights": count * b}
    if tuning is None:
        n = rows * tokens if rows and tokens else ASK_TOKENS
        cache = 2 * n * sizes.layers * sizes.key_width * b  # while generating
        pieces = 3 * 4 * min(n * sizes.vocabulary, PIECE)  # while scoring: logits, their logarithms, one more at work
        at_work = n * b * (4 * sizes.hidden + 2 * sizes.query_width + 3 * sizes.intermediate)
        parts |= {"activations": at_work, "keys and values" if cache > pieces else "logits": max(cache, pieces)}
    else:
        rows = rows or micro_rows(tuning)
        tokens = tokens or min(tuning.max_tokens, sizes.positions or tuning.max_tokens)
        parts |= _training(sizes, count, tuning, rows, tokens, b, device, supervised)
    parts["program"] = PROGRAM
    return Estimate(what or ("asking" if tuning is None else "training"), device, dtype, parts, not sizes.known)


def _training(
    s: Sizes, count: int, tuning: Tuning, rows: int, tokens: int, b: int, device: str, supervised: float
) -> dict[str, int]:
    full = tuning.adapter == "full"
    n = rows * tokens
    trained = 12 * count if full else 16 * s.adapter_parameters(tuning.rank, tuning.targets)
    computed = 2 if full and device.startswith("cuda") else b  # autocast: float32 weights, bfloat16 products
    kept = _kept(s, computed, full or tuning.targets == "all-linear", full)
    blocks = 1 if tuning.checkpointing else s.layers  # one block at a time is computed again from its input
    activations = n * (blocks + 1) * kept + 4 * rows * tokens**2
    if tuning.checkpointing:
        activations += n * s.layers * s.hidden * b
    if s.scores:
        activations += 3 * b * blocks * rows * s.heads * tokens**2
    logits = round(16 * n * supervised * s.vocabulary)
    parts = {"weights": count * b, "trained": trained, "activations": activations, "logits": logits}
    if full and device.startswith("cuda"):
        parts["casts"] = 2 * count  # bfloat16 copies of the weights that autocast keeps until the step ends
        # AdamW works on all parameters at once there, with one more float32 copy, when activations are gone.
        parts["activations"] = max(activations, 4 * count - logits)
    return parts


def _kept(s: Sizes, b: int, inputs: bool, full: bool) -> int:
    """Bytes a token that one layer keeps for its backward pass.

    inputs: of every projection are kept (all of them are trained, or have adapters). full: norms are trained.
    Norms keep what comes in, in float32; attention its queries, keys, values (repeated for grouped queries) and
    output; the feed-forward what its activation function and its gate multiply.
    """
    h, q, i = s.hidden, s.query_width, s.intermediate
    numbers = h + 4 * q + (3 if s.gate else 1) * i  # projections' input, attention, feed-forward
    if inputs:
        numbers += h + q + i
    if full:
        numbers += s.norms * h
    return s.norms * h * 4 + numbers * b


def state_bytes(config: Mapping[str, Any], tuning: Tuning, parameters: int | None = None) -> int:
    """Size on disk of what a killed run goes on from: trained weights and both moments, float32."""
    try:
        sizes = sizes_of(config)
    except BadInput:
        return 12 * (parameters or 0) if tuning.adapter == "full" else 0
    full = tuning.adapter == "full"
    return 12 * ((parameters or sizes.parameters) if full else sizes.adapter_parameters(tuning.rank, tuning.targets))
