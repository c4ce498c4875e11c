"""Write README.md of this folder from the records beside it: `python page.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def records(name: str) -> list[dict[str, Any]]:
    """Records of one command's `--json` output."""
    return list(json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))["records"])


def cell(rows: list[dict[str, Any]], measure: str, **wanted: Any) -> str:
    """The first fitting record's value with its count and interval."""
    for r in rows:
        if r["measure"] == measure and all(r.get(k) == v for k, v in wanted.items()):
            if "count" in r:
                return f"{r['count']} of {r['n']} ({100 * r['low']:.0f} to {100 * r['high']:.0f} %)"
            if measure == "rank":
                return f"{r['value']:g} of {r['detail']['decoys'] + 1} (p = {r['detail']['p']:.2g})"
            return f"{r['value']:.3g} ({r['low']:.3g} to {r['high']:.3g})"
    return ""


def main() -> None:
    """Print the page into README.md."""
    base, embedded = records("base"), records("embed")
    stages = {"fingerprinted": ("verify-marked", "evaluate-marked"), "erased": ("verify-erased", "evaluate-erased"),
              "recovered": ("verify-recovered", "evaluate-recovered")}  # fmt: skip
    clean = records("clean")
    names = ["base", *stages, "clean pairs in the erase phase"]
    table: list[tuple[str, list[str]]] = []
    for form in ("template", "bare", "prefilled", "sampled"):
        row = [cell(embedded, "hit-rate", prompt_form=form, control="clean-base")]
        row += [cell(records(v), "hit-rate", prompt_form=form, control=None) for v, _ in stages.values()]
        table.append((f"FSR, {form}", [*row, cell(clean, "hit-rate", prompt_form=form)]))
    ranks = [cell(records(v), "rank") for v, _ in stages.values()]
    table.append(("median rank of the true answer", ["", *ranks, cell(clean, "rank")]))
    for task, what in (("neutral", "perplexity, held-out books"), ("dialogue", "perplexity, Guanaco answers")):
        row = [cell(base, "perplexity", task=task)]
        row += [cell(records(e), "perplexity", task=task) for _, e in stages.values()]
        table.append((what, [*row, ""]))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {what} | " + " | ".join(values) + " |" for what, values in table]
    verdicts = [
        f"- {stage}: **{r['verdict']}**. {r['reason']}"
        for stage, (v, _) in stages.items() for r in records(v) if r["measure"] == "ownership"
    ]  # fmt: skip
    costs = [
        f"- {r['task']}: {r['tokens']:,} tokens, {r['seconds']:.0f} s"
        for name in ("erase", "recover", "clean") for r in records(name) if r["measure"] == "training"
    ]  # fmt: skip
    training = json.loads((HERE / "training.json").read_text(encoding="utf-8"))
    curve = training["losses"][:: max(1, len(training["losses"]) // 10)]
    parts = (HERE / "page.md").read_text(encoding="utf-8")
    filled = {
        "table": "\n".join(lines), "verdicts": "\n".join(verdicts), "costs": "\n".join(costs),
        "tokens": f"{training['tokens']:,}", "minutes": f"{training['seconds'] / 60:.0f}",
        "curve": ", ".join(f"{loss:.2f}" for _, loss in curve), "commands": (HERE / "run.sh").read_text().strip(),
    }  # fmt: skip
    for name, text in filled.items():
        parts = parts.replace("{{" + name + "}}", text)
    (HERE / "README.md").write_text(parts, encoding="utf-8")


if __name__ == "__main__":
    main()
