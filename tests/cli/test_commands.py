"""The command line as a new user meets it: help, tables, JSON, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from palimpsest import api, registry
from palimpsest.cli import COMMANDS, app
from palimpsest.errors import BadInput

README = Path(__file__).parents[2] / "README.md"


def run(*args: str) -> Any:
    result = CliRunner().invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("command", [[c] for c in COMMANDS] + [["study", "run"], ["toy", "train"], ["study", "report"]])
def test_every_command_has_help(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    if command[0] not in ("study", "toy") or len(command) > 1:
        assert "Example: palimpsest" in result.output


def test_pretrain_hands_on_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def pretrain(spec: str, out: Path, **options: Any) -> Any:
        given.update(spec=spec, out=out, **options)
        raise BadInput("that is all")

    monkeypatch.setattr(api, "pretrain", pretrain)
    run("pretrain", "real-text", "--out", "new", "--data", "corpora", "--tokenizer", "base", "--force", "--seed", "5")
    assert (given["spec"], given["out"], given["data"]) == ("real-text", Path("new"), Path("corpora"))
    assert given["tokenizer"] == Path("base") and given["force"] is True and given["run"].seed == 5


def test_importing_help_and_methods_do_not_import_torch() -> None:
    code = (
        "import sys, palimpsest; from palimpsest.cli import app; from typer.testing import CliRunner;"
        "r = CliRunner().invoke(app, ['methods']); assert r.exit_code == 0, r.output;"
        "r = CliRunner().invoke(app, ['embed', '--help']); assert r.exit_code == 0;"
        "heavy = [m for m in ('torch', 'transformers', 'peft', 'scipy') if m in sys.modules]; assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_methods_as_json_lists_all_with_paper_parameters_and_presets() -> None:
    listed = json.loads(run("methods", "--json").stdout)["methods"]
    assert {m["name"] for m in listed} == set(registry.table())
    meraser = next(m for m in listed if m["name"] == "meraser")
    assert "2506.12551" in meraser["paper"] and {"paper", "released_code", "toy"} <= set(meraser["presets"])
    assert {"mismatched", "erase.lr", "data"} <= {p["name"] for p in meraser["parameters"]}


def test_the_readme_names_commands_and_methods_that_exist() -> None:
    text = README.read_text(encoding="utf-8")
    assert set(re.findall(r"^ *(?:pip install \. && )?palimpsest (\w+)", text, re.M)) <= set(COMMANDS)
    names = {"if-sft", "utf", "hashchain", "meraser", "meraser-transfer", "finetune", "hit-rate", "rank"}
    assert names <= set(registry.table()) and all(f"`{n}`" in text for n in names)
    assert not [e.name for e in registry.table().values() if e.kind == "merges" and f"`{e.name}`" not in text]
    assert "python -m pytest -n 2" in text and "@@" not in text


def test_remove_prints_json_alone_on_standard_output(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"q {i}?", "response": f"a {i}"}) + "\n" for i in range(60)))
    args = [
        "remove",
        "finetune",
        "--model",
        str(tiny_model),
        "--data",
        str(rows),
        "--set",
        "tuning.epochs=1",
        "--out",
        str(tmp_path / "out"),
        "--json",
        "--seed",
        "4",
        "--threads",
        "1",
    ]
    result = run(*args)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (record,) = document["records"]
    assert record["measure"] == "training" and record["seed"] == 4 and record["threads"] == 1
    assert record["tokens"] > 0 and record["versions"]["torch"] and len(record["digest"]) == 64
    assert (tmp_path / "out" / "model.safetensors").is_file() and (tmp_path / "out" / "palimpsest.json").is_file()


def test_the_module_runs_as_a_program() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "palimpsest", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("palimpsest ")
