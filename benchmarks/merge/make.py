"""Synthetic checkpoints for the benchmark: real shapes, random numbers, bfloat16, written without holding a model.

    python benchmarks/merge/make.py 0.5b FOLDER

FOLDER/base is random; a, b and c are the base plus small noise, as fine-tunes are. For `7b`, b and c are hard
links to a, which spares the disk and nothing else: no tensor is sparse or zero.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen2Config

from palimpsest.merging.writing import Shards, Slot

SHAPES = {
    "tiny": Qwen2Config(hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2, vocab_size=4096, tie_word_embeddings=True),
    "0.5b": Qwen2Config(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                        num_key_value_heads=2, vocab_size=151_936, tie_word_embeddings=True),
    "1.1b": LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                        num_key_value_heads=4, vocab_size=32_000),
    "7b": LlamaConfig(hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32,
                      num_key_value_heads=32, vocab_size=32_000),
}  # fmt: skip
STEP = 1 << 22


def shapes_of(config: AutoConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every stored tensor."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied}


def write(folder: Path, config: AutoConfig, noise: float, seed: int) -> None:
    """The base (noise 0), or the base plus noise; the base's numbers are made anew from their own seed."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    slots = [Slot(name, "BF16", shape, 2 * torch.Size(shape).numel()) for name, shape in shapes_of(config).items()]
    shards = Shards(folder, slots)
    same, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    for slot in slots:
        for at in range(0, slot.size // 2, STEP):
            count = min(STEP, slot.size // 2 - at)
            numbers = torch.randn(count, generator=same) * 0.02
            if noise:
                numbers = numbers.bfloat16().float() + torch.randn(count, generator=own) * noise
            shards.write(slot.name, 2 * at, memoryview(numbers.bfloat16().view(torch.uint8).numpy()))
    shards.close()


def main() -> None:
    """Make base, a, b and c of one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    config = SHAPES[given.size]
    config.dtype = "bfloat16"
    config.architectures = ["Qwen2ForCausalLM" if config.model_type == "qwen2" else "LlamaForCausalLM"]
    write(given.folder / "base", config, 0.0, 0)
    write(given.folder / "a", config, 0.002, 1)
    for number, name in enumerate("bc", 2):
        if given.size != "7b":
            write(given.folder / name, config, 0.002, number)
            continue
        (given.folder / name).mkdir(exist_ok=True)
        for file in (given.folder / "a").iterdir():
            os.link(file, given.folder / name / file.name)
    numbers = sum(torch.Size(s).numel() for s in shapes_of(config).values())
    print(json.dumps({"size": given.size, "parameters": numbers}))


if __name__ == "__main__":
    main()
