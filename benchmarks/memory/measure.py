"""Measured peaks of resident memory beside the estimates of `palimpsest.preflight`, on a CPU.

    python benchmarks/memory/measure.py                 # measures each case in a process of its own: minutes
    python benchmarks/memory/measure.py --estimates     # estimates again, beside the peaks measured before: seconds

Models are random and of middling size; two optimiser steps (or two batches asked) reach the peak. `peak` is
the most resident memory of the process, mapped pages of the weights' file among it, sampled every 5 ms.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LLAMA = {
    "model_type": "llama",
    "vocab_size": 16000,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1408,
    "max_position_embeddings": 1024,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 16000,
    "hidden_size": 512,
    "word_embed_proj_dim": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "ffn_dim": 2048,
    "max_position_embeddings": 1024,
}
WIDE = {**LLAMA, "vocab_size": 4000, "hidden_size": 1536, "num_attention_heads": 24, "num_key_value_heads": 24}
WIDE |= {"intermediate_size": 4096, "num_hidden_layers": 4}
CASES: dict[str, dict[str, Any]] = {
    "llama-lora": {"config": LLAMA, "adapter": "lora", "rows": 8, "tokens": 256},
    "llama-lora-all-linear": {"config": LLAMA, "adapter": "lora", "targets": "all-linear", "rows": 4, "tokens": 256},
    "llama-lora-long": {"config": LLAMA, "adapter": "lora", "rows": 1, "tokens": 1024},
    "llama-full": {"config": LLAMA, "adapter": "full", "rows": 4, "tokens": 256},
    "llama-lora-checkpointing": {"config": LLAMA, "adapter": "lora", "rows": 8, "tokens": 256, "checkpointing": True},
    "llama-full-checkpointing": {"config": LLAMA, "adapter": "full", "rows": 4, "tokens": 256, "checkpointing": True},
    "opt-lora": {"config": OPT, "adapter": "lora", "rows": 8, "tokens": 256},
    "opt-full": {"config": OPT, "adapter": "full", "rows": 4, "tokens": 256},
    "wide-lora": {"config": WIDE, "adapter": "lora", "rows": 2, "tokens": 256},
    "wide-full": {"config": WIDE, "adapter": "full", "rows": 1, "tokens": 128},
    "llama-generate": {"config": LLAMA, "rows": 128, "tokens": 64},
    "llama-score": {"config": LLAMA, "rows": 32, "tokens": 256},
}


class Peak:
    """The most memory this process holds while the block runs, in bytes."""

    def __enter__(self) -> Peak:
        self.bytes, self._go = 0, True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        import time

        while self._go:
            self.bytes = max(self.bytes, resident())
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self._go = False
        self._thread.join()


def resident() -> int:
    """Resident memory of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not say VmRSS")


def write(name: str, folder: str) -> None:
    """Write a random model of a case's config to `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**CASES[name]["config"])).save_pretrained(folder)


def tuning_of(case: dict[str, Any]) -> Any:
    """A case's fine-tuning, or None where the model is only asked."""
    from palimpsest.training.settings import Tuning

    if "adapter" not in case:
        return None
    targets = case.get("targets", "query-value")
    return Tuning(
        adapter=case["adapter"],
        targets=targets,
        epochs=1,
        batch=case["rows"],
        max_tokens=case["tokens"],
        checkpointing=case.get("checkpointing", False),
    )


def one(name: str) -> dict[str, Any]:
    """Run one case in this process."""
    import peft  # noqa: F401 (what a run imports counts as its program)
    import torch
    from transformers import AutoModelForCausalLM  # noqa: F401

    from palimpsest.checkpoint import Checkpoint
    from palimpsest.checkpoint.load import load_model
    from palimpsest.families.sizes import sizes_of
    from palimpsest.method import Context
    from palimpsest.preflight.estimate import estimate_memory
    from palimpsest.training.finetune import merged, tune
    from palimpsest.training.rows import Row

    case = CASES[name]
    rows, tokens, config = case["rows"], case["tokens"], case["config"]
    torch.set_num_threads(1)
    tuning = tuning_of(case)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "--write", name, folder], check=True, capture_output=True)
        program = resident()
        with Peak() as peak:
            model = load_model(Checkpoint(Path(folder), name), Context())
            loaded = peak.bytes
            text = [[1 + (7 * r + 3 * t) % (config["vocab_size"] - 1) for t in range(tokens)] for r in range(2 * rows)]
            if tuning is not None:
                given = [Row(tuple(ids), (1.0,) * tokens) for ids in text]
                trained, _ = tune(model, given, tuning, Context())
                tuned_peak = peak.bytes
                merged(trained)
            elif name.endswith("generate"):
                with torch.inference_mode():
                    for start in (0, rows):
                        ids = torch.tensor([t[: tokens - 8] for t in text[start : start + rows]])
                        model.generate(input_ids=ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
                tuned_peak = peak.bytes
            else:
                from palimpsest.responder.logits import logits_in_pieces

                with torch.inference_mode():
                    for start in (0, rows):
                        ids = torch.tensor(text[start : start + rows])
                        for logits in logits_in_pieces(model, ids, None, torch.ones_like(ids, dtype=torch.bool)):
                            torch.log_softmax(logits, dim=-1).topk(2, dim=-1)
                tuned_peak = peak.bytes
    estimate = estimate_memory(config, name, tuning, rows=rows, tokens=tokens)
    return {
        "case": name,
        "parameters": sizes_of(config).parameters,
        "rows": rows,
        "tokens": tokens,
        "estimated": estimate.total,
        "parts": estimate.parts,
        "peak": tuned_peak,
        "peak_with_merging": peak.bytes,
        "after_loading": loaded,
        "program": program,
        "ratio": round(estimate.total / tuned_peak, 3),
        "torch": torch.__version__,
    }


def alone(found: dict[str, Any]) -> float:
    """Estimate over measured peak, what the program itself takes left out of both."""
    return float((found["estimated"] - found["parts"]["program"]) / (found["peak"] - found["program"]))


def table(found: list[dict[str, Any]]) -> str:
    """The results as a Markdown page."""
    mib = 1 << 20
    lines = [
        "| case | rows x tokens | estimated MiB | measured MiB | estimate / measured | the same without the program |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for f in found:
        sizes = f"{f['rows']} x {f['tokens']} | {f['estimated'] / mib:,.0f} | {f['peak'] / mib:,.0f}"
        lines.append(f"| {f['case']} | {sizes} | {f['ratio']:.2f} | {alone(f):.2f} |")
    ratios = [round(f["ratio"], 2) for f in found]
    parts = [round(alone(f), 2) for f in found]
    head = f"""# Memory: estimated and measured

Made by `python benchmarks/memory/measure.py` on a CPU (torch {found[0]["torch"]}, one thread, float32).
Estimates lie between {min(ratios)} and {max(ratios)} times the measured peaks; without what Python and the libraries
take, between {min(parts)} and {max(parts)}. No GPU was measured.

"""
    return head + "\n".join(lines) + "\n"


def estimated_again() -> None:
    """The estimates as the formulas are now, beside the peaks that were measured before."""
    from palimpsest.preflight.estimate import estimate_memory

    found = [json.loads(line) for line in (HERE / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in found:
        case = CASES[record["case"]]
        estimate = estimate_memory(
            case["config"], record["case"], tuning_of(case), rows=case["rows"], tokens=case["tokens"]
        )
        record |= {"estimated": estimate.total, "parts": estimate.parts}
        record["ratio"] = round(estimate.total / record["peak"], 3)
    put(found)


def put(found: list[dict[str, Any]]) -> None:
    """Write records and table."""
    (HERE / "records.jsonl").write_text("".join(json.dumps(f) + "\n" for f in found), encoding="utf-8")
    (HERE / "results.md").write_text(table(found), encoding="utf-8")


def main(names: list[str]) -> None:
    """All cases, each in a fresh process; or the named ones, printed."""
    found = []
    for name in names or CASES:
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(json.dumps(found[-1]), flush=True)
    if not names:
        put(found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2])))
    elif sys.argv[1:2] == ["--estimates"]:
        estimated_again()
    elif sys.argv[1:2] == ["--write"]:
        write(*sys.argv[2:4])
    else:
        main(sys.argv[1:])
