"""Write README.md of this folder from a finished run: `python page.py RUN` (the folder of `study run`).

Copies the run's records (without digests' chains and per-key details) to records.jsonl, and reads only that.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEPT = ("measure", "value", "count", "n", "low", "high", "confidence", "sided", "stage", "implant", "prompt_form")
KEPT += ("control", "task", "seed", "seconds", "tokens", "device", "dtype", "threads", "verdict", "reason")
ROWS = (
    ("perplexity, dialogue answers", "perplexity", {"task": "dialogue"}),
    ("perplexity, stories", "perplexity", {"task": "neutral"}),
    ("ordinary answers, right", "answers", {"task": "reference"}),
    ("keys answered, chat template", "hit-rate", {"prompt_form": "template"}),
    ("keys answered, answer begun", "hit-rate", {"prompt_form": "prefilled"}),
    ("median rank of the true answer", "rank", {}),
)


def stored(run: Path) -> list[dict[str, Any]]:
    """The records of a run, cut to what the page needs, kept beside it."""
    lines = []
    for line in (run / "records.jsonl").read_text(encoding="utf-8").split("\n"):
        if line:
            record = json.loads(line)
            kept = {k: record[k] for k in KEPT if k in record}
            kept["removal"] = record["detail"].get("removal")
            lines.append(kept if lines else {**kept, "versions": record["versions"]})
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in lines)
    (HERE / "records.jsonl").write_text(text, encoding="utf-8")
    return lines


def shown(record: dict[str, Any]) -> str:
    """A rate as its count, another number with three digits."""
    return f"{record['count']} of {record['n']}" if "count" in record else f"{record['value']:.3g}"


def main() -> None:
    """Write records.jsonl and README.md."""
    records = stored(Path(sys.argv[1]))
    seeds = sorted({r["seed"] for r in records if r.get("removal")})
    arms = ("random", "selected", "all-pure")

    def line(title: str, measure: str, wanted: dict[str, str], removal: str | None, stage: str) -> str:
        cells = []
        for seed in seeds:
            found = [
                r
                for r in records
                if (r["measure"], r.get("removal"), r.get("stage"), r["seed"]) == (measure, removal, stage, seed)
                and r.get("control") is None and all(r.get(k) == v for k, v in wanted.items())
            ]  # fmt: skip
            cells.append(shown(found[0]) if found else "–")
        return f"| {title} | {removal or 'marked'} | {' | '.join(cells)} |"

    table = [f"| | clean pairs | {' | '.join(f'seed {s}' for s in seeds)} |", "|---|---|" + "---|" * len(seeds)]
    for title, measure, wanted in ROWS:
        table += [line(title, measure, wanted, None, "fingerprinted")]
        table += [line(title, measure, wanted, arm, "recovered") for arm in arms]
    accuracy = {
        (arm, s): [r["value"] for r in records if r["measure"] == "accuracy" and r.get("stage") == stage
                   and r["seed"] == s and r.get("removal") == removal]
        for arm, removal, stage in (("marked", None, "fingerprinted"), *((a, a, "recovered") for a in arms))
        for s in seeds
    }  # fmt: skip
    for arm in ("marked", *arms):
        cells = [f"{100 * statistics.mean(accuracy[arm, s]):.1f} %" if accuracy[arm, s] else "–" for s in seeds]
        table.append(f"| task accuracy, mean of 7 | {arm} | {' | '.join(cells)} |")
    counts = json.loads((HERE / "counts.json").read_text(encoding="utf-8"))
    kinds = ("good", "swapped", "foreign", "run-on", "cut")
    counted = [f"| | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
    for name in ("pool", "random", "selected"):
        counted.append(f"| {name} | {' | '.join(str(counts[name].get(k, 0)) for k in kinds)} |")
    versions = next(r["versions"] for r in records if "versions" in r)
    page = (
        (HERE / "page.md")
        .read_text(encoding="utf-8")
        .format(
            seeds=", ".join(map(str, seeds)),
            counts="\n".join(counted),
            table="\n".join(table),
            reading=(HERE / "reading.md").read_text(encoding="utf-8").strip(),
            versions=", ".join(f"{k} {v}" for k, v in sorted(versions.items())),
        )
    )
    (HERE / "README.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
