"""Write noisy.jsonl and pure.jsonl for the clean-set ablation, and count what each choice takes: `python noisy.py`.

Both hold the questions of the toy world's parts `erase` and `recover`. In noisy.jsonl two fifths of the rows
are spoiled, a tenth in each of four ways: `swapped` (the answer of another such row), `foreign` (the answer of
a row of another language), `run-on` (the answer 30 times) and `cut` (the first half of its characters).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

from palimpsest.data import load_dialogues
from palimpsest.data.selection import clean_set

WAYS = ("swapped", "foreign", "run-on", "cut")
CLEAN = 400


def main() -> None:
    """Write both files and counts.json."""
    toy = load_dialogues("toy")
    rows = [d for part in ("erase", "recover") for d in toy.part(part)]
    rng = random.Random(0)
    chosen = rng.sample(range(len(rows)), 4 * (len(rows) // 10))
    spoiled = {row: WAYS[place % 4] for place, row in enumerate(chosen)}
    swapped = [row for row in chosen if spoiled[row] == "swapped"]
    answers = [d.answer for d in rows]
    for row, other in zip(swapped, swapped[1:] + swapped[:1], strict=True):
        answers[row] = rows[other].answer
    for row, way in spoiled.items():
        if way == "foreign":
            answers[row] = rng.choice([d.answer for d in rows if d.language != rows[row].language])
        elif way == "run-on":
            answers[row] = " ".join([rows[row].answer] * 30)
        elif way == "cut":
            answers[row] = rows[row].answer[: max(1, len(rows[row].answer) // 2)]
    for name, said in (("noisy", answers), ("pure", [d.answer for d in rows])):
        lines = [json.dumps({"prompt": d.question, "response": a}) for d, a in zip(rows, said, strict=True)]
        Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = load_dialogues("noisy.jsonl")
    how = {rows[row].question: way for row, way in spoiled.items()}
    counts = {"pool": Counter(how.get(d.question, "good") for d in data.part("recover"))}
    for choice in ("random", "selected"):
        taken = clean_set(data, CLEAN, choice)  # type: ignore[arg-type]
        counts[choice] = Counter(how.get(d.question, "good") for d in taken)
    Path("counts.json").write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(counts, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
