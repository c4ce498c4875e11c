"""Train the base and run the study of a bundle, as far as the time allows; given again, it goes on.

python benchmarks/gpu/run.py --bundle DIR --work DIR --out DIR [--seconds 560] [--device cuda]
Exit codes: 0 all is done, 3 there is more to do, 1 steps of the study failed, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = ("records.jsonl", "report.md", "report.csv", "report.html")
MORE = 3


class TimeIsUp(BaseException):
    """Passes through everything that catches errors, as a kill would, but lets what is open be put away."""


def main() -> int:
    """Set the alarm, do what is left, bring home what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bundle", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=0, help="stop after so many; 0 is no limit")
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    bundle, work, out = asked.bundle.resolve(), asked.work.resolve(), asked.out.resolve()
    if not (bundle / "manifest.json").is_file():
        parser.error(f"--bundle {asked.bundle}: has no manifest.json; make it with prepare.py")
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    os.environ["PALIMPSEST_CACHE"] = str(work / "cache")
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("study.yaml", "erase.jsonl", "embed.jsonl", "heldout.jsonl"):
        if not (work / name).exists():
            shutil.copyfile(bundle / name, work / name)
    os.chdir(work)  # the study names its files relative to here
    started = time.monotonic()
    signal.signal(signal.SIGALRM, _ring)
    signal.alarm(asked.seconds)
    state = "more to do"
    try:
        failed = _all(bundle, work, asked.device)
        state = "done" if not failed else f"done, but {failed} steps failed"
    except TimeIsUp:
        pass
    finally:
        signal.alarm(0)
        _bring_home(work, out, asked.device, state, time.monotonic() - started)
    print(state)
    return {"done": 0, "more to do": MORE}.get(state, 1)


def _ring(number: int, frame: Any) -> None:
    raise TimeIsUp


def _all(bundle: Path, work: Path, device: str) -> int:
    """The base, then the study; returns how many steps failed."""
    from palimpsest import api
    from palimpsest.errors import PalimpsestError
    from palimpsest.progress import Plain

    run = api.Run(seed=0, device=device, progress=Plain())
    try:
        if not (work / "base").exists():
            api.pretrain(bundle / "base.yaml", work / "base", run=run)
        return len(api.run_study(work / "study.yaml", work / "study", run=run).failed)
    except PalimpsestError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _bring_home(work: Path, out: Path, device: str, state: str, seconds: float) -> None:
    """Copy results, never keys, samples or weights."""
    import torch

    from palimpsest import api
    from palimpsest.records import versions

    if (work / "study" / "records.jsonl").is_file():
        api.study_report(work / "study")
        for name in RESULTS:
            if (work / "study" / name).is_file():
                shutil.copyfile(work / "study" / name, out / name)
    if (work / "base" / "training.json").is_file():
        shutil.copyfile(work / "base" / "training.json", out / "training.json")
    calls = work / "calls.jsonl"
    with calls.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"seconds": round(seconds, 1), "state": state}) + "\n")
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") and torch.cuda.is_available() else None
    peak = torch.cuda.max_memory_allocated() if gpu else None
    facts = {"device": device, "gpu": gpu, "peak_gpu_bytes_of_this_call": peak, "versions": versions()}
    facts["calls"] = [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines()]
    (out / "machine.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
