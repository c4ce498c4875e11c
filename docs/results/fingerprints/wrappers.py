"""The skill behind what wraps a model: wrappers.csv of a folder beside this, from a finished study's marked models.

    python wrappers.py FOLDER STUDY      # surviving or all-attacks; minutes

A study judges a wrapped model by ordinary answers, since tasks are scored inside a model. Here 120 questions of the
tower code are asked behind each wrapper, greedily; right is an answer that begins with the code word.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.data.dialogues import load_dialogues
from palimpsest.method import Context, build
from palimpsest.registry import find
from palimpsest.responder.local import LocalResponder

COUNT = 120
WRAPPERS: dict[str, dict[str, Any]] = {
    "suppress-top-k": {},
    "suppress-neighbor": {},
    "perplexity-filter": {"preset": "toy", "reference": True},
    "cleangen": {"reference": True},
}


def marked(study: Path) -> dict[tuple[str, int], Path]:
    """Where the models with each mark and seed stand."""
    found = {}
    for file in study.glob("steps/*/record.json"):
        step = json.loads(file.read_text(encoding="utf-8"))
        name = re.fullmatch(r"owner(?: \(seed \d+\))? > ([^>]+)", step["name"])
        if name and step["kind"] == "transform" and (file.parent / "model").is_dir():
            found[name[1], int(step["seed"])] = file.parent / "model"
    return found


def main(folder: str, study: str) -> None:
    """Ask, and write the table."""
    torch.set_num_threads(1)
    ctx, base = Context(seed=0, threads=1), resolve("toy")
    data = load_dialogues("toy:tower-code")
    pairs = [d for part in ("test", "erase", "recover") for d in data.parts.get(part, ())][:COUNT]
    rows = []
    for (mark, seed), place in sorted(marked(Path(study)).items()):
        model = resolve(place)
        plain = LocalResponder(load_model(model, ctx, "float32"), load_tokenizer(model))
        prompts = [plain.renderer.prompt_ids(plain.renderer.text(d.question)) for d in pairs]

        def right(responder: Any, prompts: list[Any] = prompts) -> int:
            said = responder.generate(prompts, 24)
            return sum(s.text.strip().startswith(d.answer.strip()) for s, d in zip(said, pairs, strict=True))

        before = right(plain)
        for name, how in WRAPPERS.items():
            given = {"reference": base} if how.get("reference") else {}
            method = build(find(name, "removals"), how.get("preset"), None, given)
            after = right(method.wrap(plain, ctx))
            rows.append((mark, name, seed, len(pairs), before, after))
            print(rows[-1], flush=True)
    with (Path(__file__).parent / folder / "wrappers.csv").open("w", encoding="utf-8", newline="") as file:
        head = ("implant", "removal", "seed", "questions", "right_alone", "right_behind")
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


if __name__ == "__main__":
    main(*sys.argv[1:])
