"""Write README.md of this folder from a run, finished or not: `python page.py RUN` (the folder of `study run`).

Copies what the page needs of the run's records to records.jsonl and reads only that: no key, no text is in it.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from palimpsest.statistics import clopper_pearson

HERE = Path(__file__).parent
KEPT = ("measure", "value", "count", "n", "low", "high", "confidence", "sided", "stage", "implant", "prompt_form")
KEPT += ("control", "task", "seed", "seconds", "tokens", "device", "dtype", "threads", "verdict", "reason")


def stored(run: Path) -> list[dict[str, Any]]:
    """The records of a run, cut to what the page needs, kept beside it."""
    lines = []
    for line in (run / "records.jsonl").read_text(encoding="utf-8").split("\n"):
        if line:
            record = json.loads(line)
            kept = {k: record[k] for k in KEPT if k in record}
            if record["measure"] == "strength-search":
                kept["detail"] = {k: v for k, v in record["detail"].items() if k not in ("step", "implant")}
            kept["removal"] = record["detail"].get("removal")
            lines.append(kept if lines else {**kept, "versions": record["versions"]})
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in lines)
    (HERE / "records.jsonl").write_text(text, encoding="utf-8")
    return lines


def row(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def rung(shown: dict[str, Any], before: float) -> str:
    """A rung's outcome in a few characters."""
    if "hits" not in shown:
        return f"{shown['hits_erased']}"
    return f"{shown['hits_erased']} → {shown['hits']}; {shown['perplexity'] / before:.2f}"


def of(count: int, n: int) -> str:
    """A count with its exact interval: "2 of 9 (3 to 60 %)"."""
    interval = clopper_pearson(count, n)
    return f"{count} of {n} ({100 * interval.low:.0f} to {100 * interval.high:.0f} %)"


def between(values: list[float], form: str) -> str:
    """Least and greatest."""
    return f"{min(values):{form}} to {max(values):{form}}"


def name_of(strength: dict[str, Any]) -> str:
    """A strength as the ladder writes it: 20x0.001."""
    return f"{strength['epochs']}x{strength['lr']:g}"


def told(found: list[dict[str, Any]], get: Any, records: list[dict[str, Any]], ratios: list[float]) -> dict[str, str]:
    """What reading.md speaks of, counted over the cells (one mark on one seed each)."""
    judged = {(r["implant"], r["seed"]) for r in records if r["measure"] == "removal" and r.get("removal") == "auto"}
    ratios = [r for f, r in zip(found, ratios, strict=True) if (f["implant"], f["seed"]) in judged]
    found = [f for f in found if (f["implant"], f["seed"]) in judged]
    n = len(found)
    first = [next(s for s in f["detail"]["rungs"] if s["hits_erased"] == 0) for f in found]
    back = [s["hits"] for s in first if s["hits"]]
    taken = [{s["rung"]: s for s in f["detail"]["rungs"]}[name_of(f["detail"])] for f in found]
    silent = [(s, f) for s, f in zip(taken, found, strict=True) if s.get("hits") == 0]
    costs = [s["perplexity"] / f["detail"]["perplexity_before"] for s, f in silent]
    unsilenced = [
        f"{f['implant']} on seed {f['seed']}" for s, f in zip(taken, found, strict=True) if s.get("hits") != 0
    ]
    strengths = Counter(f"{f['detail']['epochs']} epochs at {f['detail']['lr']:g}" for f in found)

    def answered(removal: str, forms: tuple[str, ...]) -> int:
        """Cells in which any key is answered after the recovery under any of the forms."""
        return sum(
            any(h["count"] for form in forms for h in get("hit-rate", f, removal, "recovered", prompt_form=form))
            for f in found
        )

    def mean(f: dict[str, Any], removal: str) -> float:
        return statistics.mean(r["value"] for r in get("accuracy", f, removal, "recovered"))

    def verdicts(removal: str) -> str:
        given = Counter(r["verdict"] for r in records if r["measure"] == "removal" and r.get("removal") == removal)
        return ", ".join(f"{count} {verdict}" for verdict, count in given.most_common())

    forms = ("template", "bare", "prefilled", "sampled")
    return {
        "cells": str(n),
        "back": of(len(back), n),
        "back_range": between(back, "d") if back else "none",
        "first_rungs": ", ".join(sorted({s["rung"] for s in first})),
        "met": of(sum(f["detail"]["met"] for f in found), n),
        "taken_perplexity": between(costs, ".1f"),
        "silent": of(len(silent), n),
        "unsilenced": ", ".join(unsilenced) or "none",
        "strengths": ", ".join(f"{name} ({count})" for name, count in strengths.most_common()),
        "auto_verdicts": verdicts("auto"),
        "fixed_verdicts": verdicts("fixed"),
        "auto_template": of(answered("auto", ("template",)), n),
        "fixed_template": of(answered("fixed", ("template",)), n),
        "auto_any": of(answered("auto", forms), n),
        "fixed_any": of(answered("fixed", forms), n),
        "better": str(sum(mean(f, "auto") > mean(f, "fixed") for f in found)),
        "accuracy_auto": between([100 * mean(f, "auto") for f in found], ".0f"),
        "accuracy_fixed": between([100 * mean(f, "fixed") for f in found], ".0f"),
        "ratios": between(ratios, ".1f"),
        "first_ranked": str(sum(r["value"] <= 2 for f in found for r in get("rank", f, "auto", "recovered"))),
        "dialogue_lower": str(
            sum(
                get("perplexity", f, "auto", "recovered", task="dialogue")[0]["value"]
                < get("perplexity", f, "fixed", "recovered", task="dialogue")[0]["value"]
                for f in found
            )
        ),
    }


def main() -> None:
    """Write records.jsonl and README.md."""
    every = stored(Path(sys.argv[1]))
    records = [r for r in every if r.get("control") is None]
    found = [r for r in records if r["measure"] == "strength-search"]

    def get(measure: str, of: dict[str, Any], removal: str | None, stage: str, **wanted: Any) -> list[dict[str, Any]]:
        return [
            r
            for r in records
            if (r["measure"], r.get("implant"), r["seed"], r.get("removal"), r.get("stage"))
            == (measure, of["implant"], of["seed"], removal, stage)
            and all(r.get(k) == v for k, v in wanted.items())
        ]

    rungs = list(dict.fromkeys(s["rung"] for f in found for s in f["detail"]["rungs"]))
    ratios: list[float] = []
    ladder = [row(["mark", "seed", *rungs, "taken"]), row(["---"] * (len(rungs) + 3))]
    costs = [row(["mark", "seed", "planting", "whole search", "the run itself", "fixed", "search / run"])]
    costs.append(row(["---"] * 7))
    marks = [row(["mark", "seed", "run", "template", "bare", "begun", "sampled", "rank", "PPL dialogue", "PPL stories",
                  "accuracy", "verdict"]), row(["---"] * 12)]  # fmt: skip
    for f in found:
        detail = f["detail"]
        by_rung = {s["rung"]: rung(s, detail["perplexity_before"]) for s in detail["rungs"]}
        taken = f"{detail['epochs']} at {detail['lr']:g}" + ("" if detail["met"] else " (not all met)")
        ladder.append(row([f["implant"], str(f["seed"]), *(by_rung.get(r, "") for r in rungs), taken]))
        tokens = {
            removal: sum(r["tokens"] for s in ("erased", "recovered") for r in get("cost", f, removal, s))
            for removal in ("auto", "fixed")
        }
        own = tokens["auto"] - f["tokens"]
        ratios.append(f["tokens"] / own)
        costs.append(
            row([f["implant"], str(f["seed"]), f"{detail['planting']['tokens']:,}", f"{f['tokens']:,}", f"{own:,}",
                 f"{tokens['fixed']:,}", f"{f['tokens'] / own:.1f}"])
        )  # fmt: skip
        for name, removal, stage in (("marked", None, "fingerprinted"), ("fixed", "fixed", "recovered"),
                                     ("auto", "auto", "recovered")):  # fmt: skip
            cells = []
            for form in ("template", "bare", "prefilled", "sampled"):
                hit = get("hit-rate", f, removal, stage, prompt_form=form)
                cells.append(f"{hit[0]['count']} of {hit[0]['n']}" if hit else "–")
            for measure, wanted in (
                ("rank", {}),
                ("perplexity", {"task": "dialogue"}),
                ("perplexity", {"task": "neutral"}),
            ):
                number = get(measure, f, removal, stage, **wanted)
                cells.append(f"{number[0]['value']:.3g}" if number else "–")
            accuracy = [r["value"] for r in get("accuracy", f, removal, stage)]
            cells.append(f"{100 * statistics.mean(accuracy):.0f} %" if accuracy else "–")
            verdict = [r for r in records if r["measure"] == "removal" and r.get("removal") == removal
                       and r["seed"] == f["seed"] and r.get("implant") == f["implant"]]  # fmt: skip
            cells.append(verdict[0]["verdict"] if verdict and removal else "")
            marks.append(row([f["implant"], str(f["seed"]), name, *cells]))
    done = {(f["implant"], f["seed"]) for f in found}
    wanted = {(i, s) for i in ("hashchain", "if-sft", "utf") for s in (21, 22, 23)}
    left = ", ".join(f"{i} on seed {s}" for i, s in sorted(wanted - done))
    versions = every[0]["versions"]
    page = (
        (HERE / "page.md")
        .read_text(encoding="utf-8")
        .format(
            missing=f"\nNot run: {left}. The command below goes on with them.\n" if left else "",
            ladder="\n".join(ladder),
            marks="\n".join(marks),
            costs="Tokens trained (recovery included in both runs).\n\n" + "\n".join(costs),
            reading=(HERE / "reading.md")
            .read_text(encoding="utf-8")
            .strip()
            .format(**told(found, get, records, ratios)),
            versions=", ".join(f"{k} {v}" for k, v in sorted(versions.items())),
        )
    )
    (HERE / "README.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
