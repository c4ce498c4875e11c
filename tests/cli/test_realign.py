"""`palimpsest realign` and `api.realign`: a whole run, its words and its JSON, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import palimpsest as pal
from factory import make_model
from palimpsest.cli import app
from realignments.protected import Case, case

RUN = CliRunner()


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(tmp_path_factory.mktemp("realign"), "llama", components=["value-output", "neurons", "up-scale"])


def test_a_run_says_what_it_found(at: Case, tmp_path: Path) -> None:
    call = [
        "realign",
        "-q",
        "--model",
        str(at.protected.path),
        "--base",
        str(at.base.path),
        "--out",
        str(tmp_path / "r"),
    ]
    done = RUN.invoke(app, call)
    assert done.exit_code == 0, done.output
    assert "changed: value-output, neurons, up-scale" in done.output
    assert "same choice at 100.0 %" in done.output
    assert (tmp_path / "r" / "palimpsest.json").is_file() and not list(tmp_path.glob(".r*"))
    as_json = RUN.invoke(app, [*call[:-1], str(tmp_path / "again"), "--json"])
    record = json.loads(as_json.stdout)["records"][0]
    assert record["measure"] == "realignment" and record["task"] == "joint" and record["stage"] == "realigned"
    assert record["value"] < 0.2 < 0.9 < record["detail"]["distance_before"]
    assert [step["method"] for step in record["chain"]] == ["protection", "joint"]


def test_the_call_from_python_is_the_same(at: Case, tmp_path: Path) -> None:
    result = pal.realign("aga", at.protected.path, at.base.path, tmp_path / "made", settings={"verify": "false"})
    assert result.path == tmp_path / "made" and result.records[0].task == "aga"
    assert "function" not in result.records[0].detail


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--base": "GPT2"}, "is a gpt2 model"),
        ({"--base": None}, "needs an anchor"),
        ({"--set": "rounds=0"}, "rounds"),
        ({"METHOD": "jont"}, "joint"),
    ],
)
def test_what_is_wrong_is_one_line_and_writes_nothing(
    change: dict[str, str | None], said: str, at: Case, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "gpt2", "gpt2")
    options: dict[str, str | None] = {
        "--model": str(at.protected.path), "--base": str(at.base.path), "--out": str(tmp_path / "out"), **change
    }  # fmt: skip
    method = options.pop("METHOD", None)
    words = [w for k, v in options.items() if v is not None for w in (k, str(other) if v == "GPT2" else v)]
    done = RUN.invoke(app, ["realign", *([method] if method else []), *words])
    assert done.exit_code == 2 and said in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
