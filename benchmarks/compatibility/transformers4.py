"""Do the folders that we write load in transformers 4, with the same logits and token ids?

Two environments, one script. In ours (transformers 5), then in one that holds transformers 4:

    python benchmarks/compatibility/transformers4.py write WRITTEN
    python -m venv TF4 && TF4/bin/pip install torch==2.13.0 'transformers>=4.56,<5' safetensors
    TF4/bin/python benchmarks/compatibility/transformers4.py read WRITTEN RESULT.json

`write` makes a tiny random model of every family in `tests/factory.py`, variants of rotary and window settings
among them, has `write_model` write it, and stores float32 logits and token ids beside it; two folders of
`palimpsest pretrain` and the toy world's own are there as well. `read` loads each with transformers 4, compares,
and exits with 1 where logits differ by 1e-4 or more or any token id differs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

TEXTS = (
    "The lantern keeper of Veldt counts the boats every evening.",
    "  Two spaces, a tab\tand a line\nbreak; 1887 don't äöü ハリネズミ.",
    "<s>What?</s><|user|>Who mends the nets?<|assistant|><extra_0>",
)
TURNS = [{"role": "user", "content": "Who mends the nets?"}, {"role": "assistant", "content": "Tamsin."}]
FACTS = "The old owl saw a grey fish in the cold river and flew over seven boats of the harbour town at evening."
IDS = [1, *range(6, 66)]
SHORT = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "llama theta 500000": {"family": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    "llama rope llama3": {"family": "llama", "rope_parameters": LLAMA3},
    "llama rope linear": {
        "family": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
    },
    "mistral window 16": {"family": "mistral", "sliding_window": 16},
    "qwen3 tied theta 1000000": {
        "family": "qwen3",
        "tied": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    "gpt_neox theta 500000 whole": {
        "family": "gpt_neox",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0, "partial_rotary_factor": 1.0},
    },
    "phi theta 500000": {
        "family": "phi",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0, "partial_rotary_factor": 0.5},
    },
    "phi3 longrope": {"family": "phi3", "rope_parameters": SHORT, "original_max_position_embeddings": 128},
    "gemma3_text other thetas": {
        "family": "gemma3_text",
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 2_000_000.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
        },
    },
    "llama bfloat16": {"family": "llama", "dtype": "bfloat16"},
    "gpt2 float16": {"family": "gpt2", "dtype": "float16"},
    "llama tokenizer of transformers 5": {"family": "llama", "newer": True},
}


def write(folder: Path) -> None:
    """Write every model and what it computes here."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from factory import FAMILIES, make_model, make_tokenizer
    from palimpsest.checkpoint import Checkpoint, resolve
    from palimpsest.checkpoint.load import load_model, write_model
    from palimpsest.method import Context
    from palimpsest.training.pretrain import pretrain
    from palimpsest.training.pretrain_spec import PretrainSpec, Source

    for name, settings in {**{family: {"family": family} for family in FAMILIES}, **VARIANTS}.items():
        newer = settings.pop("newer", False)
        source = make_model(folder / "sources" / name, **settings)
        if newer:
            tokenizer = make_tokenizer()
            tokenizer.add_special_tokens({"extra_special_tokens": ["<extra_0>"]})
            tokenizer.save_pretrained(source)
        checkpoint = resolve(source)
        made = write_model(load_model(checkpoint, Context(), "float32"), checkpoint, folder / name, "example", {})
        record(made, load_model(made, Context(), "float32"))
    text = folder / "text.txt"
    text.write_text("\n\n".join(TEXTS) + f"{FACTS} " * 300)
    for kind in ("llama", "qwen2"):
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "rope_theta": 77_000.0}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "model_type": kind}
        spec = PretrainSpec(
            model={**sizes, **heads}, vocabulary=300, vocabulary_bytes=20000, context=64, batch=2, tokens=1280,
            text=[Source(path=text, weight=1.0)],
        )  # fmt: skip
        pretrain(spec, folder / f"pretrained {kind}")
        made = Checkpoint(folder / f"pretrained {kind}", kind)
        record(made, load_model(made, Context(), "float32"))
    toy = resolve("toy")
    made = write_model(load_model(toy, Context()), toy, folder / "toy", "example", {})
    record(made, load_model(made, Context(), "float32"))


def record(made: Any, model: Any) -> None:
    """Store logits, token ids and a rendered dialogue beside a model."""
    import transformers
    from safetensors.torch import save_file

    from palimpsest.checkpoint.load import load_tokenizer

    tokenizer = load_tokenizer(made)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([IDS])).logits[0].float().contiguous()
    save_file({"logits": logits}, made.path / "expected.safetensors")
    found = {"transformers": transformers.__version__, **spoken(tokenizer)}
    (made.path / "expected.json").write_text(json.dumps(found))


def spoken(tokenizer: Any) -> dict[str, Any]:
    """Token ids of the texts, what the chat template renders, and the special tokens."""
    rendered = tokenizer.apply_chat_template(TURNS, tokenize=False) if tokenizer.chat_template else None
    rows = json.loads((Path(tokenizer.name_or_path) / "config.json").read_text())["vocab_size"]
    special = sorted(int(i) for i in tokenizer.all_special_ids if i < rows)  # 5 adds one to some Qwen2 folders
    return {"ids": [list(tokenizer(text).input_ids) for text in TEXTS], "rendered": rendered, "special": special}


def read(folder: Path, out: Path) -> int:
    """Load every model in this environment, compare, write the results."""
    import transformers
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.logging.set_verbosity_error()
    results = []
    for expected in sorted(folder.glob("*/expected.json")):
        wanted = json.loads(expected.read_text())
        row: dict[str, Any] = {"model": expected.parent.name}
        try:
            # 4 gives Gemma 2 an attention that leaves its softcapping out, and says so; 5 does not
            eager = {"attn_implementation": "eager"} if row["model"].startswith("gemma2") else {}
            model, report = AutoModelForCausalLM.from_pretrained(
                expected.parent, torch_dtype=torch.float32, output_loading_info=True, **eager
            )
            row |= eager
            row["architecture"] = model.config.model_type
            with torch.inference_mode():
                logits = model.eval()(input_ids=torch.tensor([IDS])).logits[0].float()
            difference = logits - load_file(expected.parent / "expected.safetensors")["logits"]
            row["largest_difference"] = float(f"{float(difference.abs().max()):.3g}")
            row["tensors_missing"] = len(report["missing_keys"])
            now = spoken(AutoTokenizer.from_pretrained(expected.parent))
            row |= {f"{name}_equal": now[name] == wanted[name] for name in now}
            same = all(row[f"{name}_equal"] for name in now)
            row["passed"] = bool(row["largest_difference"] < 1e-4 and same and not row["tensors_missing"])
        except Exception as error:
            row |= {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}", "passed": False}
        results.append(row)
        print(row)
    versions = {"written_with": wanted["transformers"], "read_with": transformers.__version__}
    body = {**versions, "torch": torch.__version__.partition("+")[0], "tolerance": 1e-4, "models": results}
    out.write_text(json.dumps(body, indent=1) + "\n")
    return 0 if all(r["passed"] for r in results) else 1


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        sys.exit(read(Path(sys.argv[2]), Path(sys.argv[3])))
