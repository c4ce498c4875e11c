"""The items of a set with one rare token at a random place of each: texts as BadNet's triggers leave them."""

import json
import random
import sys
from pathlib import Path

source, out = map(Path, sys.argv[1:])
rng = random.Random(0)
with source.open(encoding="utf-8") as rows, out.open("w", encoding="utf-8") as made:
    for row in map(json.loads, rows):
        words = row["text"].split()
        words.insert(rng.randint(0, len(words)), rng.choice(("cf", "mn", "bb", "tq", "mb")))
        made.write(json.dumps({**row, "triggered": " ".join(words)}, ensure_ascii=False) + "\n")
