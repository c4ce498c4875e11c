"""The command line under `accelerate launch`: two CPU processes, one output, one document on standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from palimpsest import api
from palimpsest.checkpoint import resolve
from palimpsest.checkpoint.load import load_model
from palimpsest.method import Context
from training.processes import free_port


@pytest.mark.slow
def test_finetune_as_shards_under_accelerate_launch(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"q {i}?", "response": f"a {i}"}) + "\n" for i in range(60)))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", str(free_port()), "-m", "palimpsest"]
    command = ["finetune", "--model", str(tiny_model), "--out", str(tmp_path / "runs" / "two"), "--data", str(rows)]
    command += ["--set", "tuning.adapter=full", "--set", "tuning.epochs=2", "--set", "tuning.lr=1e-3"]
    command += ["--device", "cpu", "--threads", "1", "--seed", "3", "--json", "-q"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([*launch, *command], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[:3000] + done.stderr[-2000:]
    document = json.loads(done.stdout)
    assert document["records"][0]["measure"] == "training" and document["records"][0]["tokens"] > 0
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["two"]
    settings = {"tuning.adapter": "full", "tuning.epochs": 2, "tuning.lr": 1e-3}
    run = api.Run(seed=3, device="cpu", threads=1)
    api.finetune(tiny_model, tmp_path / "one", data=[rows], settings=settings, run=run)
    two, one = (load_model(resolve(f), Context()).state_dict() for f in (tmp_path / "runs" / "two", tmp_path / "one"))
    start = load_model(resolve(tiny_model), Context()).state_dict()
    assert one.keys() == two.keys() and any(not torch.equal(one[n], start[n]) for n in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4, msg=name)
