"""Bad input: one line on standard error, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from factory import copy_of, make_model
from palimpsest.cli import app

GOOD_ROWS = "".join(json.dumps({"prompt": f"question {i}?", "response": f"answer {i}"}) + "\n" for i in range(60))


def refused(args: list[str], out: Path | None = None) -> str:
    """Run the command line; return its one error line after checking exit code, form and that nothing is there."""
    before = sorted(p.name for p in out.parent.iterdir()) if out else []
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("palimpsest: error: "), result.stderr
    assert "Traceback" not in result.output
    if out:
        assert sorted(p.name for p in out.parent.iterdir()) == before, "something was written"
    return lines[0]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text(GOOD_ROWS)
    return file


@pytest.fixture
def broken(tiny_model: Path, tmp_path: Path) -> Path:
    return copy_of(tiny_model, tmp_path / "broken")


def erase(model: Any, out: Path, *more: str) -> list[str]:
    return ["remove", "meraser", "--model", str(model), "--out", str(out), "-q", *more]


def test_a_missing_weights_file(broken: Path, tmp_path: Path) -> None:
    (broken / "model.safetensors").unlink()
    assert "has no model.safetensors" in refused(erase(broken, tmp_path / "out"), tmp_path / "out")


def test_a_truncated_weights_file(broken: Path, tmp_path: Path) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "is truncated" in refused(erase(broken, tmp_path / "out"), tmp_path / "out")


def test_a_missing_shard(tmp_path: Path) -> None:
    model = make_model(tmp_path / "sharded", shards=3)
    shard = sorted(model.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert f"{shard.name} is missing" in refused(erase(model, tmp_path / "out"), tmp_path / "out")


def test_pickled_weights_say_how_to_convert(broken: Path, tmp_path: Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    line = refused(erase(broken, tmp_path / "out"), tmp_path / "out")
    assert "pickled" in line and "safe_serialization=True" in line


def test_remote_code(broken: Path, tmp_path: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    assert "remote code" in refused(erase(broken, tmp_path / "out"), tmp_path / "out")


def test_an_empty_data_file(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    line = refused(erase(tiny_model, tmp_path / "out", "--data", str(tmp_path / "empty.jsonl")), tmp_path / "out")
    assert "empty.jsonl" in line and "holds no row" in line


def test_a_line_that_is_no_json_names_file_and_line(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    rows.write_text(GOOD_ROWS + "{oops\n")
    assert f"{rows}:61: is no JSON" in refused(
        erase(tiny_model, tmp_path / "out", "--data", str(rows)), tmp_path / "out"
    )


def test_a_row_of_unknown_layout_names_the_known_ones(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    rows.write_text('{"prompt": "a", "response": "b"}\n{"foo": 1}\n')
    line = refused(erase(tiny_model, tmp_path / "out", "--data", str(rows)), tmp_path / "out")
    assert f"{rows}:2" in line and "messages" in line and "foo" in line


def test_a_data_file_that_is_not_there(tiny_model: Path, tmp_path: Path) -> None:
    assert "no such file" in refused(erase(tiny_model, tmp_path / "out", "--data", "none.jsonl"), tmp_path / "out")


@pytest.mark.parametrize(("given", "nearest"), [("merazer", "meraser"), ("meraser_transfre", "meraser-transfer")])
def test_an_unknown_method_names_the_nearest(tiny_model: Path, tmp_path: Path, given: str, nearest: str) -> None:
    line = refused(["remove", given, "--model", str(tiny_model), "--out", str(tmp_path / "out")], tmp_path / "out")
    assert f"'{given}'" in line and nearest in line


def test_a_fingerprint_is_no_removal(tiny_model: Path, tmp_path: Path) -> None:
    line = refused(["remove", "utf", "--model", str(tiny_model), "--out", str(tmp_path / "out")], tmp_path / "out")
    assert "one of the fingerprints" in line


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("erase.epoch=3", "epochs"),
        ("erase.epochs=many", "whole number"),
        ("erase.lr=-1", "out of range"),
        ("pairing=crosstype", "cross-type"),
        ("mismatched", "NAME=VALUE"),
        ("erase=3", "erase.epochs"),
    ],
)
def test_a_wrong_parameter_says_what_is_right(tiny_model: Path, tmp_path: Path, setting: str, problem: str) -> None:
    assert problem in refused(erase(tiny_model, tmp_path / "out", "--set", setting), tmp_path / "out")


def test_an_unknown_preset_names_the_nearest(tiny_model: Path, tmp_path: Path) -> None:
    assert "paper" in refused(erase(tiny_model, tmp_path / "out", "--preset", "papre"), tmp_path / "out")


def test_an_unknown_phase_names_the_phases(tiny_model: Path, tmp_path: Path) -> None:
    assert "erase" in refused(erase(tiny_model, tmp_path / "out", "--until", "erased"), tmp_path / "out")


def test_a_non_empty_output_folder_is_left_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    assert "not empty" in refused(erase(tiny_model, out))
    assert "not made by palimpsest" in refused(erase(tiny_model, out, "--force"))
    assert (out / "mine.txt").read_text() == "precious"


def test_a_full_disk(tiny_model: Path, tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda p: real(p)._replace(free=1000))
    quick = [
        "--data",
        str(rows),
        "--set",
        "mismatched=8",
        "--set",
        "clean=8",
        "--set",
        "erase.epochs=1",
        "--set",
        "recover.epochs=1",
    ]
    assert "disk is full" in refused(erase(tiny_model, tmp_path / "out", *quick), tmp_path / "out")


def test_a_full_disk_found_out_by_the_writer(
    tiny_model: Path, tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palimpsest.checkpoint import load

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(load, "copy_tokenizer", full)
    quick = [
        "--data",
        str(rows),
        "--set",
        "mismatched=8",
        "--set",
        "erase.epochs=0",
        "--set",
        "recover.epochs=0",
        "--set",
        "clean=8",
    ]
    assert "disk is full" in refused(erase(tiny_model, tmp_path / "out", *quick), tmp_path / "out")


def test_keys_of_another_tokenizer(tiny_model: Path, tiny_responder: Any, tmp_path: Path) -> None:
    import random

    from palimpsest.keys import make_keys

    make_keys(
        tiny_responder.renderer,
        [("who?", "me")],
        implant="test",
        match="prefix",
        distinct=True,
        choices=None,
        decoys=[],
        rng=random.Random(0),
    ).write(tmp_path / "keys.json")
    other = make_model(tmp_path / "other", vocab=420)
    args = ["verify", "--model", str(other), "--keys", str(tmp_path / "keys.json"), "-q"]
    assert "another tokenizer" in refused(args)
    line = refused(erase(other, tmp_path / "out", "--keys", str(tmp_path / "keys.json")), tmp_path / "out")
    assert "another tokenizer" in line
    plain = make_model(tmp_path / "plain", template=False)
    assert "another chat template" in refused(
        ["verify", "--model", str(plain), "--keys", str(tmp_path / "keys.json"), "-q"]
    )


def test_key_files_that_are_missing_or_broken(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('{"format": 1, "implant": "x"}')
    assert "is missing" in refused(["verify", "--model", str(tiny_model), "--keys", str(tmp_path / "keys.json")])
    assert "there is no key file" in refused(["verify", "--model", str(tiny_model), "--keys", "none.json"])


def test_models_that_are_not_there(tmp_path: Path, tiny_model: Path) -> None:
    assert "there is no model folder" in refused(erase(tmp_path / "none", tmp_path / "out"), tmp_path / "out")
    assert "the hub is out of reach" in refused(erase("some/model", tmp_path / "out"), tmp_path / "out")
    marked = tmp_path / "marked"
    copy_of(tiny_model, marked / "model")
    assert f"use {marked / 'model'}" in refused(erase(marked, tmp_path / "out"), tmp_path / "out")


def test_a_device_that_is_not_there(tiny_model: Path, tmp_path: Path) -> None:
    assert "none of auto, cpu, cuda" in refused(
        erase(tiny_model, tmp_path / "out", "--device", "tpu"), tmp_path / "out"
    )


def test_unknown_tasks_measures_kinds_and_recipes(tiny_model: Path, tmp_path: Path) -> None:
    assert "boolq" in refused(["evaluate", "--model", str(tiny_model), "--tasks", "boolk"])
    assert "hit-rate" in refused(["evaluate", "--model", str(tiny_model), "--measure", "hit-rat"])
    assert "fingerprints" in refused(["methods", "--kind", "fingerprint"])
    assert "meraser-table1" in refused(["study", "check", "meraser-tabel1"])
    assert "nothing asked" in refused(["evaluate", "--model", str(tiny_model)])
    assert "owned" in refused(["verify", "--model", str(tiny_model), "--keys", "k", "--require", "ownd"])
