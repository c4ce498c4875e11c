"""`palimpsest plan`: what is printed, as words and as JSON, and how a wrong claim ends."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.keys import make_keys


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["plan", *args])


def test_the_example_says_how_many_prompts() -> None:
    done = run("--claim", "ASR<1%", "--confidence", "95")
    assert done.exit_code == 0, done.output
    assert "299 prompts, none of them answered" in done.output
    assert "hits allowed" in done.output and "628" in done.output


def test_json_is_one_document_with_the_numbers() -> None:
    done = run("--claim", "removed", "--json")
    plan = json.loads(done.stdout)["plan"]
    assert plan["allowed"][0] == {"hits": 0, "n": 59, "chances": pytest.approx(plan["allowed"][0]["chances"])}


def test_a_key_file_brings_its_own_committed_list(tmp_path: Path, tiny_responder: Any) -> None:
    drawn = [(f"question {i}", f"{c} word") for i, c in enumerate("abcdefghij")]
    keys = make_keys(
        tiny_responder.renderer, drawn, implant="test", match="prefix", distinct=True, choices=256, decoys=[],
        rng=random.Random(0),
    )  # fmt: skip
    keys.write(tmp_path / "keys.json")
    done = run("--claim", "owned", "--keys", str(tmp_path / "keys.json"), "--json")
    assert json.loads(done.stdout)["plan"]["tau"] == 4
    assert "question" not in run("--claim", "owned", "--keys", str(tmp_path / "keys.json")).output


def test_a_wrong_claim_is_one_line_and_exit_code_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "palimpsest", "plan", "--claim", "ASR=1%"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "'FSR<5%'" in done.stderr


def test_planning_loads_no_model_library() -> None:
    code = (
        "import sys; from palimpsest import api; api.plan('ASR<1%'); api.plan('owned', keys=10, choices=256); "
        "print(*({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_suspects_scanned_multiply_the_p_of_a_claim(tiny_model: Path, tmp_path: Path) -> None:
    from palimpsest.checkpoint import resolve
    from palimpsest.implants.fingerprints.hashchain import HashChain
    from palimpsest.method import Context

    keys = tmp_path / "keys.json"
    HashChain(keys=10).draw_keys(resolve(tiny_model), Context(key_seed=1)).write(keys)
    words = ["verify", "--model", str(tiny_model), "--keys", str(keys), "--no-rank", "--json", "--form", "template"]
    taus = []
    for attempts in ("1", "1000"):
        done = CliRunner().invoke(app, [*words, "--attempts", attempts])
        assert done.exit_code == 0, done.output
        (found,) = [r for r in json.loads(done.stdout)["records"] if r["measure"] == "ownership"]
        taus.append(found["detail"]["tau"])
    assert taus == [4, 5]  # 256 answers: 4 hits are 4.8e-8 by chance, 5 are 2.3e-10
