"""FastLM against lm-evaluation-harness's own HFLM on the same requests: `python benchmarks/evaluate/run.py`.

    python benchmarks/evaluate/run.py --task-data FOLDER [FOLDER ...] --model FOLDER

Requests are in the harness's prompt forms, made of local files (BoolQ, MultiRC and COPA of SuperGLUE, ARC-easy, PIQA;
few-shot is MMLU's form, lettered choices after one preamble, on ARC-easy). Both have the same model in memory, one CPU
thread, and the tokenizing of their requests in their time. HFLM runs with its defaults (`logits_cache` on: pairs that
differ in their last token are read once) and the batch size that was best for it on a part of the same requests.
`random` is a Llama of 110 million random parameters with the tokenizer of --model. Scores are compared on every
request.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from measuring import interleaved, machine, ratio, write

from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.measures.tasks import FastLM
from palimpsest.method import Context

Pair = tuple[str, str]
BATCHES = {"given": (1, 8, 64), "random": (1, 8)}  # on a CPU `auto` finds 64, its maximum, if memory holds that


def boolq(items: list[dict[str, Any]]) -> list[Pair]:
    """super_glue/boolq/default.yaml."""
    prompts = [f"{i['passage']}\nQuestion: {i['question']}?\nAnswer:" for i in items]
    return [(p, f" {c}") for p in prompts for c in ("no", "yes")]


def multirc(items: list[dict[str, Any]]) -> list[Pair]:
    """super_glue/multirc/default.yaml: one item of the file is a passage with its questions and their answers."""
    return [
        (f"{i['passage']['text']}\nQuestion: {q['question']}\nAnswer:", f" {a['text']}\nIs the answer correct? {said}")
        for i in items
        for q in i["passage"]["questions"]
        for a in q["answers"]
        for said in ("yes", "no")
    ]


def copa(items: list[dict[str, Any]]) -> list[Pair]:
    """super_glue/copa/default.yaml."""
    found = []
    for i in items:
        connector = {"cause": "because", "effect": "therefore"}[i["question"]]
        prompt = f"{i['premise'].strip()[:-1]} {connector}"
        found += [(prompt, f" {c[0].lower()}{c[1:]}") for c in (i["choice1"], i["choice2"])]
    return found


def arc_easy(items: list[dict[str, Any]]) -> list[Pair]:
    """arc/arc_easy.yaml."""
    return [(f"Question: {i['question']}\nAnswer:", f" {c}") for i in items for c in i["choices"]]


def piqa(items: list[dict[str, Any]]) -> list[Pair]:
    """piqa/piqa.yaml."""
    return [(f"Question: {i['goal']}\nAnswer:", f" {i[s]}") for i in items for s in ("sol1", "sol2")]


def few_shot(items: list[dict[str, Any]], shots: int = 3) -> list[Pair]:
    """MMLU's form (first_n shots, so that all items have one preamble) on items of ARC-easy."""

    def shown(item: dict[str, Any]) -> str:
        choices = "".join(f"{'ABCDE'[n]}. {c}\n" for n, c in enumerate(item["choices"]))
        return f"{item['question'].strip()}\n{choices}Answer:"

    solved = "\n\n".join(f"{shown(i)} {'ABCDE'[i['label']]}" for i in items[:shots])
    start = f"The following are multiple choice questions (with answers) about science.\n\n{solved}\n\n"
    return [(start + shown(i), f" {'ABCDE'[n]}") for i in items[shots:] for n in range(len(i["choices"]))]


Form = Callable[[list[dict[str, Any]]], list[Pair]]
# name: (file, prompt form, items for a model of some million parameters, items for one of a hundred million)
TASKS: dict[str, tuple[str, Form, int, int]] = {
    "boolq": ("boolq_validation.jsonl", boolq, 80, 8),
    "multirc": ("multirc_validation.jsonl", multirc, 4, 1),
    "few-shot": ("arc_easy_test.jsonl", few_shot, 63, 9),
    "arc_easy": ("arc_easy_test.jsonl", arc_easy, 80, 10),
    "piqa": ("piqa_validation.jsonl", piqa, 80, 8),
    "copa": ("copa_validation.jsonl", copa, 100, 12),
}


def read_items(folders: list[Path], name: str, most: int) -> list[dict[str, Any]]:
    """The first items of a task's file, wherever below the folders it lies."""
    for folder in folders:
        for file in sorted(folder.rglob(name)):
            with file.open(encoding="utf-8") as lines:
                return [json.loads(line) for line, _ in zip(lines, range(most), strict=False)]
    raise SystemExit(f"--task-data: no {name} below {', '.join(map(str, folders))}")


def instances(pairs: list[Pair]) -> list[Any]:
    """What the harness gives an `LM`."""
    from lm_eval.api.instance import Instance

    return [Instance(request_type="loglikelihood", doc={}, arguments=p, idx=i) for i, p in enumerate(pairs)]


def random_model() -> Any:
    """A random Llama of 110 million parameters: 12 layers of 768, 32,000 tokens, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        tie_word_embeddings=True,
        initializer_range=0.05,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).eval()


def scored(lm: Any, asked: list[Any]) -> Callable[[], list[tuple[float, bool]]]:
    """A contestant: all log-likelihoods."""
    return lambda: lm.loglikelihood(asked, disable_tqdm=True)


def best_batch(hflm: Callable[[Any], Any], asked: list[Any], batches: tuple[int, ...]) -> tuple[int, dict[str, float]]:
    """The batch size that takes HFLM the fewest CPU seconds, and the seconds of all."""
    seconds = {}
    for size in batches:
        begun = time.process_time()
        hflm(size).loglikelihood(asked, disable_tqdm=True)
        seconds[str(size)] = round(time.process_time() - begun, 3)
    return min(batches, key=lambda size: seconds[str(size)]), seconds


def compare(model: Any, tokenizer: Any, pairs: list[Pair], rounds: int, batches: tuple[int, ...]) -> dict[str, Any]:
    """Both on the same requests, in turn; scores compared on every one."""
    from lm_eval.models.huggingface import HFLM

    def hflm(size: Any) -> Any:
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)

    asked = instances(pairs)
    fast = FastLM(pretrained=model, tokenizer=tokenizer)
    part = asked[: max(16, len(asked) // 5)]
    fast.loglikelihood(part[:8], disable_tqdm=True)  # both warm
    size, tried = best_batch(hflm, part, batches)
    times, given = interleaved({"HFLM": scored(hflm(size), asked), "FastLM": scored(fast, asked)}, rounds)
    ours, theirs = given["FastLM"], given["HFLM"]
    lengths = [len(c) + len(k) for c, k in fast.pairs(pairs)]
    return {
        "requests": len(pairs),
        "tokens_a_request": {"mean": round(sum(lengths) / len(lengths), 1), "longest": max(lengths)},
        "longer_than_positions": sum(n > fast.max_length + 1 for n in lengths),
        "hflm_batch_size": size,
        "cpu_seconds_of_batch_sizes_on_a_part": tried,
        "largest_difference": max(abs(o[0] - t[0]) for o, t in zip(ours, theirs, strict=True)),
        "is_greedy_differs": sum(o[1] != t[1] for o, t in zip(ours, theirs, strict=True)),
        "times_as_fast": ratio(times, "HFLM", "FastLM"),
        "seconds": times,
    }


def main() -> None:
    """Measure and write result.json."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--task-data", type=Path, nargs="+", required=True, help="folders with the tasks' files")
    options.add_argument("--model", default="toy", help="a model folder or `toy`; its tokenizer serves `random` too")
    options.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    options.add_argument("--models", nargs="+", default=["given", "random"], choices=["given", "random"])
    options.add_argument("--scale", type=float, default=1.0, help="share of the items of each task")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    given = options.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lm_eval").setLevel("ERROR")
    source = resolve(given.model)
    tokenizer = load_tokenizer(source)
    result: dict[str, Any] = {"machine": machine(), "rounds": given.rounds, "cases": []}
    for name in given.models:
        model = load_model(source, Context(), "float32") if name == "given" else random_model()
        size = sum(p.numel() for p in model.parameters())
        for task in given.tasks:
            file, form, *counts = TASKS[task]
            items = read_items(given.task_data, file, max(1, round(counts[name == "random"] * given.scale)))
            found = compare(model, tokenizer, form(items), given.rounds, BATCHES[name])
            facts = {"model": name, "architecture": model.config.model_type, "parameters": size, "task": task}
            result["cases"].append({**facts, "items": len(items), **found})
            shown = ("requests", "hflm_batch_size", "largest_difference", "is_greedy_differs", "times_as_fast")
            print(name, task, {k: found[k] for k in shown}, flush=True)
            write(given.out, result)
        del model
        gc.collect()
    from lm_eval import __version__

    result["machine"]["versions"]["lm-eval"] = __version__
    result["machine"]["load at the end"] = machine()["load"]
    write(given.out, result)


if __name__ == "__main__":
    main()
