"""What tests of merging requests share: small folders of any tensors, and models read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 4}


def tensors_of(layers: int = 2, rows: int = 6, width: int = 4, seed: int = 0, head: bool = True) -> dict[str, Tensor]:
    """Random tensors under Llama's names: embedding, one projection a layer, final norm, head."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    found = {"model.embed_tokens.weight": draw(rows, width), "model.norm.weight": draw(width)}
    for layer in range(layers):
        found[f"model.layers.{layer}.self_attn.q_proj.weight"] = draw(width, width)
        found[f"model.layers.{layer}.mlp.up_proj.weight"] = draw(3, width)
    if head:
        found["lm_head.weight"] = draw(rows, width)
    return found


def make_folder(
    folder: Path,
    tensors: dict[str, Tensor] | None = None,
    *,
    tokens: list[str] | dict[str, int] | None = None,
    config: dict[str, Any] | None = None,
    **drawn: Any,
) -> Path:
    """A model folder of these tensors (or of `tensors_of(**drawn)`), with a tokenizer.json of these tokens."""
    folder.mkdir(parents=True)
    weights = tensors if tensors is not None else tensors_of(**drawn)
    save_file({n: t.contiguous() for n, t in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    rows = weights.get("model.embed_tokens.weight")
    said = {**LLAMA, **({"vocab_size": len(rows)} if rows is not None else {}), **(config or {})}
    (folder / "config.json").write_text(json.dumps(said))
    if tokens is not None:
        numbers = tokens if isinstance(tokens, dict) else {t: i for i, t in enumerate(tokens)}
        said = {"version": "1.0", "model": {"type": "WordLevel", "vocab": numbers, "unk_token": "<unk>"}}
        (folder / "tokenizer.json").write_text(json.dumps({**said, "added_tokens": []}))
    return folder


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from all its files."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def config_of(folder: Path) -> dict[str, Any]:
    """The configuration of a folder."""
    return dict(json.loads((folder / "config.json").read_text()))
