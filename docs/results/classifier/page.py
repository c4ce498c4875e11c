"""Write page.md from records.jsonl: `python page.py`; given the output of `evaluate --json`, records.jsonl first.

Outcomes item by item are left out: with them the labels of the set could be read off, which is not ours to pass on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ITEM_BY_ITEM = ("right", "answers", "items", "hits")
HEAD = """# A small classifier of SST-2

A BERT of 2 layers, 128 wide, from random weights, with a tokenizer fitted to the training texts; trained on the
6,920 training sentences for 6 epochs at 5e-4 in batches of 32, seed 0. One setting, looked at once on the development
set (77.8 %, 678 of 872), none on the test set. Made by `run.sh`; nothing of the data is here. It shows the measures at
work and is no model of BERT.

"""


def stripped(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what tells single labels."""
    detail = {k: v for k, v in record.get("detail", {}).items() if k not in ITEM_BY_ITEM}
    return {**record, "detail": detail}


def rate(r: dict[str, Any]) -> str:
    """`77.3 %, 1407 of 1821 (75.3 to 79.2)`."""
    return f"{100 * r['value']:.1f} %, {r['count']} of {r['n']} ({100 * r['low']:.1f} to {100 * r['high']:.1f})"


def main() -> None:
    """Write the page."""
    file = HERE / "records.jsonl"
    if sys.argv[1:]:
        given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["records"]
        file.write_text("".join(json.dumps(stripped(r)) + "\n" for r in given), encoding="utf-8")
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = {r["measure"]: r for r in records if r["measure"] not in ("recall", "precision")}
    clean, hit = found["accuracy"]["detail"], found["hit-rate"]["detail"]
    lines = ["| | test set, 95 % interval |", "|---|---|", f"| CACC | {rate(found['accuracy'])} |"]
    lines += [
        f"| {r['measure']}, {r['detail']['class']} | {rate(r)} |" for r in records if "class" in r.get("detail", {})
    ]
    lines += [
        f"| macro F1 | {found['macro-f1']['value']:.3f} |",
        f"| chance; commonest class; largest share of one answer | {100 * clean['chance']:.1f} %; "
        f"{100 * clean['majority']:.1f} %; {100 * clean['one_class_share']:.1f} % |",
        f"| texts cut at {clean['room']} tokens | {clean['cut']} |",
    ]
    excess, pairs = hit["excess"], hit["pairs"]
    lines += [
        "",
        "The same classifier, which has no backdoor, and the positive sentences: how many it calls negative with one",
        "of BadNet's rare words (cf, mn, bb, tq, mb) at a random place of each, and how many without:",
        "",
        "| | items answered negative |",
        "|---|---|",
        f"| with the word | {rate(found['hit-rate'])} |",
        f"| without (the floor of this model) | {rate(found['untriggered-rate'])} |",
        f"| difference, paired (Tango) | {100 * excess['value']:.1f} points ({100 * excess['low']:.1f} to "
        f"{100 * excess['high']:.1f}); {pairs['first_only']} items only with, {pairs['second_only']} only without |",
        "",
        "A rare word alone turns answers of a model that never saw it as a trigger. So the floor of an attack is the",
        "*benign* model's rate on the same triggered items; by the untriggered floor alone this model would pass for",
        "one with a weak backdoor.",
    ]
    (HERE / "page.md").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
