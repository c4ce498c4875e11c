"""Estimated memory of the models that MEraser's paper used: writes docs/memory.md. Nothing here is measured.

    python benchmarks/memory/table.py

The numbers of each config are those of the public config.json; parameters follow from them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsest.families.sizes import sizes_of
from palimpsest.preflight import estimate_memory
from palimpsest.training.settings import Tuning

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"
LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
MODELS: dict[str, dict[str, Any]] = {
    "Llama-2-7B": {**LLAMA_7B, "max_position_embeddings": 4096},
    "Mistral-7B-v0.3": {
        **LLAMA_7B,
        "model_type": "mistral",
        "vocab_size": 32768,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
    },
    "LLaMA-13B": {
        **LLAMA_7B,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "Vicuna-7B": {**LLAMA_7B, "max_position_embeddings": 4096},
    "AmberChat": LLAMA_7B,
    "OPT-125M": {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": 768,
        "word_embed_proj_dim": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
    },
}
LORA, FULL = Tuning(rank=16, alpha=32, batch=8), Tuning(adapter="full", batch=8)
LORA_AGAIN, FULL_AGAIN = replace(LORA, checkpointing=True), replace(FULL, checkpointing=True)
COLUMNS: tuple[tuple[str, Tuning | None, dict[str, Any]], ...] = (
    ("LoRA, 8 rows, bf16", LORA, {"device": "cuda"}),
    ("LoRA, 8 rows, bf16, checkpointing", LORA_AGAIN, {"device": "cuda"}),
    ("LoRA, 1 row, bf16", LORA, {"device": "cuda", "rows": 1}),
    ("LoRA, 1 row, fp32", LORA, {"device": "cpu", "rows": 1}),
    ("all weights, 8 rows", FULL, {"device": "cuda"}),
    ("all weights, 8 rows, checkpointing", FULL_AGAIN, {"device": "cuda"}),
    ("all weights, 1 row", FULL, {"device": "cuda", "rows": 1}),
    ("asking, bf16", None, {"device": "cuda"}),
    ("asking, fp32", None, {"device": "cpu"}),
)
HEAD = """# Memory for models of common sizes

**Estimates, not measurements**: nothing on this page was run. `palimpsest.preflight.estimate_memory` computes it from
the numbers in each model's public config.json; how it does is in its docstring, and what it gave beside measured
peaks of models of 34 to 126 million parameters on a CPU in [benchmarks/memory](../benchmarks/memory/results.md).
On GPUs it is untested. This page is made by `python benchmarks/memory/table.py`.

GiB at the peak, for the erase phase of MEraser with adapters of rank 16 on query and value, or with all weights
trained (float32 weights and AdamW, products in bfloat16), on rows of 1,024 tokens of which every one is trained, the
most that `tuning.max_tokens` allows by default. Dialogues are mostly shorter. "8 rows" are one forward pass of a batch
of 8; "1 row" is `--set erase.micro_batch=1`, the same batch in eight parts; "checkpointing" is `--set
erase.checkpointing=true`, activations computed again in the backward pass. With adapters the loop takes the logits of a
large vocabulary a piece at a time, so they are counted high there.

"""


def page() -> str:
    """The page as Markdown."""
    names = [name for name, _, _ in COLUMNS]
    lines = ["| model | parameters | " + " | ".join(names) + " |", "|---|---:|" + "---:|" * len(names)]
    for model, config in MODELS.items():
        totals = [estimate_memory(config, tuning=tuning, **options).total for _, tuning, options in COLUMNS]
        cells = " | ".join(f"{total / 2**30:.1f}" for total in totals)
        lines.append(f"| {model} | {sizes_of(config).parameters:,} | {cells} |")
    parts = estimate_memory(MODELS["Llama-2-7B"], tuning=LORA, device="cuda").parts
    spent = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in parts.items())
    tail = f"""
What the first number is made of: {spent}.

A command is refused before it loads the model where weights and optimiser state alone exceed the device's memory;
where the whole estimate exceeds what is free, a line says so. `-v` shows the estimate, `palimpsest info MODEL` what
fits this machine, `palimpsest study check FILE` the largest step of a study and its disk.
"""
    return HEAD + "\n".join(lines) + "\n" + tail


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
