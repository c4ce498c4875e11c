"""Write README.md of this folder from the result files: `python benchmarks/page.py`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def times(ratio: dict[str, float]) -> str:
    """A ratio by CPU seconds, and by wall seconds in brackets."""
    return f"{ratio['cpu']:.2f} ({ratio['wall']:.2f})"


def training(result: dict[str, Any]) -> str:
    """Ours against both Trainers, with what shows that nothing was skipped."""
    rows = []
    for case in result["cases"]:
        for name, done in case["contestants"].items():
            ratio = times(case["times_as_fast"][name]) if name in case["times_as_fast"] else "1"
            seconds = case["seconds"][name]["cpu"]["median"]
            losses = [f"{done['mean_loss_of_training']:.3f}", f"{done['loss_after']:.3f}"]
            rows.append([case["shape"], name, ratio, f"{seconds:.1f}", done["steps"], f"{done['tokens']:,}", *losses])
    head = ["model", "loop", "ours is so many times as fast", "CPU s", "steps", "tokens", "mean loss", "loss after"]
    return table(head, rows)


def check(result: dict[str, Any]) -> str:
    """The check against generate(), by rule."""
    rows = []
    for case in result["cases"]:
        for rule in case["rules"]:
            rows.append(
                [
                    case["model"],
                    case["prompt_tokens"]["mean"],
                    rule["rule"],
                    f"{rule['hits']} of {case['keys']}",
                    times(rule["times_as_fast_as_batched"]),
                    times(rule["times_as_fast_as_one_by_one"]),
                    "all" if rule["same_outcome_on_every_key"] else "NO",
                ]
            )
    head = ["model", "prompt tokens", "rule", "hits", "against batched", "against one by one", "outcomes that agree"]
    return table(head, rows)


def keys(result: dict[str, Any]) -> str:
    """Time and memory a key."""
    rows = []
    for case in result["cases"]:
        micro, size = case["microseconds_per_key"], case["bytes_per_key"]
        cells = [f"{micro[name]:,.0f}" for name in ("make", "commit", "write", "read", "verify", "json")]
        rows.append(
            [f"{case['keys']:,}", *cells, f"{size['file']:,}", f"{size['record']:,}", f"{size['peak_above']:,}"]
        )
    head = ["keys", *(f"{n}, µs a key" for n in ("make", "commit", "write", "read", "verify", "JSON"))]
    return table([*head, "file, bytes a key", "record, bytes a key", "peak above baseline, bytes a key"], rows)


def bound(result: dict[str, Any]) -> str:
    """Misses of the toy by rule in the table's run, and in a later one with the bound on further tokens."""
    later = json.loads((HERE / "check" / "with-bound.json").read_text(encoding="utf-8"))

    def shown(run: dict[str, Any]) -> str:
        rules = next(c for c in run["cases"] if (c["model"], c["case"]) == ("toy", "misses"))["rules"]
        cells = [f"{r['times_as_fast_as_batched']['cpu']:.2f} under `{r['rule']}`" for r in rules]
        return f"{', '.join(cells)} (load {run['machine']['load']} at the start)"

    same = all(r["same_outcome_on_every_key"] for c in later["cases"] for r in c["rules"])
    agree = "all outcomes those of `generate()`" if same else "NOT all outcomes those of `generate()`"
    return f"misses of the toy were {shown(result)}, and with the bound {shown(later)}, {agree}"


def merging(result: dict[str, Any]) -> str:
    """CPU seconds, wall time and memory of merges against mergekit."""
    rows = []
    for case in sorted(result["cases"], key=lambda c: (c["size"], c["models"])):
        ours = case["contestants"]["ours"]["median"]
        for name, arithmetic in (("mergekit-float32", "float32"), ("mergekit-bfloat16", "bfloat16")):
            if name in case["contestants"]:
                theirs, ratio = case["contestants"][name]["median"], case["times_as_much"][name]
                seconds = [f"{m['cpu']:.1f} ({m['user']:.1f})" for m in (ours, theirs)]
                shown = [f"{ratio['cpu']:.1f} ({ratio['user']:.1f})", f"{ratio['wall']:.1f}"]
                memory = [f"{m['peak_growth'] / 2**20:,.0f}" for m in (ours, theirs)]
                rounds = len(case["contestants"]["ours"]["rounds"])
                rows.append(
                    [case["size"], case["method"], case["models"], arithmetic, rounds, *seconds, *shown, *memory]
                )
    head = [
        "size",
        "method",
        "models",
        "mergekit computes in",
        "rounds",
        "ours, CPU s (user)",
        "mergekit, CPU s (user)",
    ]
    return table([*head, "times, CPU (user)", "times, wall", "ours, MiB", "mergekit, MiB"], rows)


def startup(result: dict[str, Any]) -> str:
    """CPU seconds of imports, ours and mergekit's: medians over the cases."""
    found = {
        name: statistics.median(
            c["contestants"][name]["median"]["startup_cpu"] for c in result["cases"] if name in c["contestants"]
        )
        for name in ("ours", "mergekit-float32")
    }
    return f"{found['ours']:.1f} CPU seconds of ours, {found['mergekit-float32']:.1f} of mergekit's"


def merging_limits(result: dict[str, Any]) -> str:
    """Wall time of merges over that of reading and writing the same bytes."""
    rows = []
    for case in result["limits"]:
        for state, ours, limit in (("in memory", "ours", "limit"), ("on disk", "ours cold", "limit cold")):
            merge, bare = (case["contestants"][n]["median"] for n in (ours, limit))
            cells = [f"{merge['wall']:.2f}", f"{bare['wall']:.2f}", f"{merge['wall'] / bare['wall']:.2f}"]
            rows.append([case["size"], case["method"], state, *cells, f"{merge['cpu']:.2f}", f"{bare['cpu']:.2f}"])
    head = ["size", "method", "inputs", "merge, wall s", "reading and writing alone, wall s", "ratio"]
    return table([*head, "merge, CPU s", "reading and writing alone, CPU s"], rows)


def merging_growth(result: dict[str, Any]) -> str:
    """Memory of merges of three models by size."""
    rows = []
    for case in result["growth"]:
        found = case["contestants"]["ours"]["median"]
        cells = [f"{found[n] / 2**20:,.0f}" for n in ("peak", "peak_growth_over_torch")]
        rows.append([case["size"], case["method"], case["models"], *cells, f"{found['cpu']:.0f}"])
    return table(["size", "method", "models", "peak resident, MiB", "of it above `import torch`, MiB", "CPU s"], rows)


def scoring(result: dict[str, Any]) -> str:
    """FastLM against HFLM, by model and task."""
    rows = []
    for case in result["cases"]:
        shape = f"{case['model']}, {case['parameters'] / 1e6:.1f} M ({case['architecture']})"
        length = case["tokens_a_request"]
        cells = [f"{case['requests']:,} ({case['items']})", f"{length['mean']:g}", case["longer_than_positions"]]
        cells += [case["hflm_batch_size"], times(case["times_as_fast"])]
        cells += [f"{case['seconds'][name]['cpu']['median']:.1f}" for name in ("FastLM", "HFLM")]
        rows.append([shape, case["task"], *cells, f"{case['largest_difference']:.1e}", case["is_greedy_differs"]])
    head = [
        "model",
        "task",
        "requests (items)",
        "tokens a request",
        "of them cut",
        "HFLM's batch size",
        "times as fast",
    ]
    return table([*head, "FastLM, CPU s", "HFLM, CPU s", "largest difference", "`is_greedy` differs"], rows)


def studies() -> tuple[str, str]:
    """What the runner of studies was put to: a line a measurement, and what must be known of each."""
    found = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted((HERE / "study").glob("*.json"))}
    rows, notes = [], []
    for name, line in (
        ("overhead", _overhead), ("records", _records), ("report", _report), ("kills", _kills), ("ray-kill", _ray_kill),
        ("prefixes", _prefixes), ("workers", _workers),
    ):  # fmt: skip
        if name in found:
            what, came, note = line(found[name])
            load = f"{found[name]['machine']['load']} to {found[name]['load_after']}"
            rows.append([f"`{name}`", what, came, load])
            notes.append(f"`{name}`: {note}")
        else:
            notes.append(f"`{name}` was not measured: it trains the toy, and no machine was idle enough to trust it.")
    return table(["", "what", "result", "load, start to end"], rows), "\n\n".join(notes)


def _overhead(r: dict[str, Any]) -> tuple[str, str, str]:
    spent, again = r["milliseconds_a_step"], r["a_run_that_finds_all_done"]
    return (
        f"a step beside its work, {r['rounds'][0]['steps']} steps of stand-ins",
        f"{spent['cpu']:.1f} ms of CPU, {spent['wall']:.0f} ms of wall time",
        f"medians of {len(r['rounds'])} rounds; the goal is {r['goal_milliseconds']} ms. Most of the wall time is "
        f"waiting for the disk to hold the record. A run that finds all {again['steps']} steps done takes "
        f"{again['wall']:.1f} s.",
    )


def _records(r: dict[str, Any]) -> tuple[str, str, str]:
    return (
        f"a study of {r['records']:,} records",
        f"all found done in {r['a_run_that_finds_all_done']['cpu']:.0f} s of CPU",
        f"{r['steps']:,} steps. Planning it took {r['plan']['cpu']:.1f} s of CPU, making the index from the folders "
        f"{r['index_made']['cpu']:.1f} s, opening it {r['index_opened']['cpu']:.1f} s."
        + (f" {r['note']}" if "note" in r else ""),
    )


def _report(r: dict[str, Any]) -> tuple[str, str, str]:
    took, alone = r["report"], r["json_of_the_records_alone"]
    hundred = round(100_000 / r["records"] * took["wall"], 1)  # seconds for 100,000 of them
    met = "met" if hundred <= r["goal_seconds"] else "not met"
    return (
        f"report of {r['records']:,} records",
        f"{took['cpu']:.1f} s of CPU, {took['wall']:.1f} s of wall time",
        f"{'one round' if len(r['report_rounds']) == 1 else 'medians of rounds'}; the goal of {r['goal_seconds']} s of "
        f"wall time for 100,000 is {met} ({hundred} s). Python's own json needs {alone['cpu']:.1f} s of CPU "
        f"({alone['wall']:.1f} s of wall time) in turn with it for the same "
        f"{r['bytes']['records.jsonl'] / 1e6:.0f} MB: the report takes "
        f"{took['cpu'] / alone['cpu']:.1f} times that. Its page has {r['bytes']['report.html'] / 1e6:.1f} MB, the "
        f"process came to {r['peak_mib']:,} MiB.",
    )


def _kills(r: dict[str, Any]) -> tuple[str, str, str]:
    return (
        f"{r['kills_in_time']:,} kills by SIGKILL at random moments",
        f"{r['lost_or_rewritten']} finished steps lost or written again, {r['broken']} broken records",
        f"{r['of_runs']:,} kills of the run itself and {r['of_workers']} of a worker of its pool of two, in "
        f"{r['studies']} studies of cheap steps ({r['finished_steps']:,} in all), with `--keep all` and "
        "`--keep results` in turn. After every killed run the records of all steps that were "
        "finished before are compared byte by byte "
        f"and by inode; the numbers in the end are {r['numbers']}.",
    )


def _ray_kill(r: dict[str, Any]) -> tuple[str, str, str]:
    return (
        f"Ray, two nodes on one machine, one killed after {r['node_removed']['after_steps']} of {r['steps']} steps",
        "all steps done, the numbers of the serial run" if r["like_the_serial_run"] else "OTHER NUMBERS",
        "`ray.cluster_utils.Cluster`, one CPU a node; the second is removed without grace once a worker lives on it. "
        f"With start and end of the cluster {r['with_the_cluster']['wall']:.0f} s. Two machines with a shared disk: "
        "untested.",
    )


def _prefixes(r: dict[str, Any]) -> tuple[str, str, str]:
    shared, alone = r["shared"], r["each_removal_alone"]
    return (
        f"a toy study of {shared['steps']} steps; every line of it as a study of its own",
        f"{alone['cpu'] / shared['cpu']:.2f} times the CPU time, {alone['steps']} steps, where nothing is shared",
        f"{shared['cpu']:.0f} s of CPU ({shared['wall']:.0f} s of wall time) against {alone['cpu']:.0f} s "
        f"({alone['wall']:.0f} s), one round. {r['note']}",
    )


def _workers(r: dict[str, Any]) -> tuple[str, str, str]:
    return (
        f"a toy study of {r['steps']} steps with one worker and with two",
        f"{r['ratio']:.2f} times as fast with two (wall time)",
        f"rounds in turn, seconds: {r['wall']['1']} with one, {r['wall']['2']} with two. {r['note']}",
    )


def facts(result: dict[str, Any]) -> str:
    """One line about the machine."""
    m = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    return (
        f"{m['processor']} ({m['capability']}), {m['cores']} cores, {m['threads']} thread, load {m['load']} at the "
        f"start; rounds: {result['rounds']}; {versions}."
    )


def main() -> None:
    """Fill page.md."""
    text = (HERE / "page.md").read_text(encoding="utf-8")
    for name, make in (("training", training), ("check", check), ("keys", keys)):
        result = json.loads((HERE / name / "result.json").read_text(encoding="utf-8"))
        text = text.replace("{{" + name + "}}", make(result)).replace("{{" + name + " machine}}", facts(result))
        if name == "training":
            rows = result["rows"]
            told = (
                f"{rows['count']} rows of {rows['from']}, {rows['tokens']:,} tokens, {rows['supervised']:,} of them "
                f"supervised, {rows['length']['shortest']} to {rows['length']['longest']} a row (median "
                f"{rows['length']['median']:g}); batch {result['settings']['batch']}, epochs "
                f"{result['settings']['epochs']}"
            )
            text = text.replace("{{training rows}}", told)
        if name == "check":
            ratios = {
                (case["model"], "hits" if rule["hits"] else "misses", rule["rule"]): rule["times_as_fast_as_batched"]
                for case in result["cases"]
                for rule in case["rules"]
            }
            below = [
                f"{model}, {case} under `{rule}`: {ratio['cpu']:.2f}"
                for (model, case, rule), ratio in ratios.items()
                if round(ratio["cpu"], 2) < 1.5
            ]
            told = f"{len(ratios) - len(below)} of {len(ratios)} rows; below it are {'; '.join(below)}"
            text = text.replace("{{check goal}}", told).replace("{{check bound}}", bound(result))
        if name == "keys":
            told = "; ".join(
                f"{sizes} keys: " + ", ".join(f"{stage} {value:.2f}" for stage, value in stages.items())
                for sizes, stages in result["per_key_time_of_the_largest_over"].items()
            )
            text = text.replace("{{keys ratios}}", told)
    tasks = json.loads((HERE / "evaluate" / "result.json").read_text(encoding="utf-8"))
    text = text.replace("{{evaluate}}", scoring(tasks)).replace("{{evaluate machine}}", facts(tasks))
    merges = json.loads((HERE / "merge" / "result.json").read_text(encoding="utf-8"))
    for name, made in (
        ("merging", merging(merges)),
        ("merging limits", merging_limits(merges)),
        ("merging growth", merging_growth(merges)),
        ("merging machine", facts(merges)),
        ("merging startup", startup(merges)),
    ):
        text = text.replace("{{" + name + "}}", made)
    for name, made in zip(("studies", "studies notes"), studies(), strict=True):
        text = text.replace("{{" + name + "}}", made)
    (HERE / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
