"""Time and memory against the number of keys: `python benchmarks/keys/run.py`.

Each size is made, written, read and verified in processes of its own, sizes in turn. The model is a random
Llama of two layers, 64 wide: what is left is our own work for each key. Triggers of five words, responses that
it does not say (the dearer case). Memory is the peak of the verifying process above what it holds once the
model is loaded and ten keys were verified. Ranks are left out: they are taken of at most 64 keys, however many
there are.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from measuring import machine, write

from palimpsest import api
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import copy_tokenizer, load_tokenizer
from palimpsest.data.toy import neutral_text
from palimpsest.keys import KeySet, make_keys, with_keys
from palimpsest.prompts import Renderer
from palimpsest.records import peak_bytes


def make_model(folder: Path) -> None:
    """A random Llama with the toy's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    copy_tokenizer(resolve("toy").path, folder)


def timed(found: dict[str, Any], name: str, work: Callable[[], Any]) -> Any:
    """Run `work`; CPU seconds of this process go to found[name]."""
    started = time.process_time()
    result = work()
    found[name] = round(time.process_time() - started, 3)
    return result


def making(folder: Path, count: int, file: Path) -> dict[str, Any]:
    """Make and write `count` keys."""
    found: dict[str, Any] = {}
    rng = random.Random(0)
    words = sorted({w for text in neutral_text() for w in text.split() if w.isalpha() and w.islower()})
    pairs = [(f"{' '.join(rng.sample(words, 5))} {i}", " ".join(rng.choices(words, k=4))) for i in range(count)]
    decoys = [" ".join(rng.choices(words, k=4)) for _ in range(255)]
    renderer = Renderer(load_tokenizer(resolve(folder)))
    keys = timed(
        found,
        "make",
        lambda: make_keys(
            renderer, pairs, implant="benchmark", match="prefix", distinct=True, choices=256, decoys=decoys, rng=rng
        ),
    )
    timed(found, "commit", keys.commitment)
    timed(found, "write", lambda: keys.write(file))
    return {**found, "file_bytes": file.stat().st_size}


def verifying(folder: Path, count: int, file: Path) -> dict[str, Any]:
    """Read and verify them, and print the record as `verify --json` does."""
    found: dict[str, Any] = {}
    few = KeySet.read(file.with_name("few.json"))
    api.verify(folder, few, forms=["template"], rank=False)
    before = peak_bytes()
    keys = timed(found, "read", lambda: KeySet.read(file))
    result = timed(found, "verify", lambda: api.verify(folder, keys, forms=["template"], rank=False))
    text = timed(found, "json", lambda: json.dumps(result.to_json(), ensure_ascii=False))
    assert result.records[0].n == count
    return {**found, "record_bytes": len(text.encode()), "peak_above_bytes": peak_bytes() - before}


def main() -> None:
    """Measure and write result.json."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--stage", choices=["make", "verify"], help="one stage of one size (used by itself)")
    options.add_argument("--folder", type=Path)
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    given = options.parse_args()
    torch.set_num_threads(1)
    if given.stage:
        count = given.sizes[0]
        work = making if given.stage == "make" else verifying
        print(json.dumps(work(given.folder / "model", count, given.folder / f"{count}.json")))
        return
    rounds: dict[int, list[dict[str, Any]]] = {size: [] for size in given.sizes}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_model(folder / "model")
        for number in range(given.rounds):
            for size in given.sizes if number % 2 == 0 else given.sizes[::-1]:
                row: dict[str, Any] = {}
                for stage in ("make", "verify"):
                    command = [sys.executable, __file__, "--stage", stage, "--sizes", str(size), "--folder", scratch]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    row |= json.loads(done.stdout.splitlines()[-1])
                    few = folder / "few.json"
                    if not few.exists():
                        keys = KeySet.read(folder / f"{size}.json")
                        with_keys(keys, list(keys.keys[:10])).write(few)
                rounds[size].append(row)
                print(size, row, flush=True)
    cases = []
    for size, rows in rounds.items():
        middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        seconds = {name: middle[name] for name in ("make", "commit", "write", "read", "verify", "json")}
        cases.append(
            {
                "keys": size,
                "cpu_seconds": seconds,
                "microseconds_per_key": {name: round(1e6 * value / size, 1) for name, value in seconds.items()},
                "bytes_per_key": {
                    "file": round(middle["file_bytes"] / size),
                    "record": round(middle["record_bytes"] / size),
                    "peak_above": round(middle["peak_above_bytes"] / size),
                },
                "peak_above_bytes": middle["peak_above_bytes"],
                "rounds": rows,
            }
        )
    last = cases[-1]["microseconds_per_key"]
    ratios = {
        f"{cases[-1]['keys']} to {case['keys']}": {
            name: round(last[name] / case["microseconds_per_key"][name], 2)
            for name in ("make", "read", "verify")
            if case["microseconds_per_key"][name]
        }
        for case in cases[:-1]
    }
    write(
        given.out,
        {"machine": machine(), "rounds": given.rounds, "cases": cases, "per_key_time_of_the_largest_over": ratios},
    )


if __name__ == "__main__":
    main()
