"""`palimpsest protect`: what it writes and prints, exit codes, secrets, interruptions."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from factory import make_model
from kin import moved
from palimpsest import api
from palimpsest.checkpoint.lineage import FILE
from palimpsest.cli import app
from palimpsest.protections.secret import read_secret

SEED = 918273645


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    base = make_model(folder / "base", num_key_value_heads=2)
    return base, moved(base, folder / "expert", (1, 0.05))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q {i}?", "response": f"a {i}"}) + "\n" for i in range(40)))
    return file


def run(*args: Any) -> Any:
    return CliRunner().invoke(app, ["protect", *map(str, args)])


def refused(folder: Path, *args: Any) -> str:
    before = sorted(p.name for p in folder.iterdir())
    result = run(*args)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert len(lines) == 1 and lines[0].startswith("palimpsest: error: "), result.stderr
    assert sorted(p.name for p in folder.iterdir()) == before, "something was written"
    return lines[0]


def test_model_and_secret_appear_and_the_records_say_what_was_done(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, expert = pair
    result = run("params", "--model", expert, "--base", base, "--out", tmp_path / "p", "--seed", SEED, "--json", "-q")
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["model", "secret.safetensors"]
    assert stat.S_IMODE((tmp_path / "p/secret.safetensors").stat().st_mode) == 0o600
    assert body["path"].endswith("p/model") and body["secret"].endswith("p/secret.safetensors")
    protection, agreement = body["records"]
    assert protection["measure"] == "protection" and protection["task"] == "params" and protection["seconds"] > 0
    assert protection["value"] == protection["detail"]["weight_change"] > 0.1
    assert protection["detail"]["base"] == "needed" and protection["detail"]["exact"] is True
    assert agreement["measure"] == "agreement" and agreement["count"] == agreement["n"] > 100
    assert agreement["detail"]["relative_error"] < 1e-4 and agreement["low"] < 1
    secret = read_secret(tmp_path / "p/secret.safetensors")
    assert secret.facts["method"] == "params" and secret.facts["protected"] == protection["digest"]
    assert secret.gauge().layers[1].neurons is not None


def test_neither_the_model_nor_what_is_printed_holds_the_secret(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for method, given in (("params", ["--base", pair[0]]), ("mergelock", []), ("mergebarrier", [])):
        result = run(method, "--model", pair[1], *given, "--out", tmp_path / method, "--seed", SEED, "--json")
        assert result.exit_code == 0, result.output
        assert str(SEED) not in result.output, "the seed makes the secret again"
        folder = tmp_path / method / "model"
        assert str(SEED).encode() not in (folder / FILE).read_bytes() + (folder / "config.json").read_bytes()
        entry = json.loads((folder / FILE).read_text())["chain"][-1]
        assert set(entry) == {"method", "parents", "palimpsest"} and entry["method"] == method
        assert not list(folder.glob("*secret*")) and not list(folder.glob(".*"))


def test_a_person_is_told_which_file_to_keep(pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = run("mergelock", "--model", pair[1], "--out", tmp_path / "p")
    assert result.exit_code == 0 and "mode 0600: keep it, publish only the model" in result.output
    assert "agreement" in result.output and "100.0 %" in result.output
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "p")])
    assert shown.exit_code == 0 and "secret.safetensors" in shown.output
    used = CliRunner().invoke(app, ["evaluate", "--model", str(tmp_path / "p")])
    assert used.exit_code == 2 and "holds a secret beside a model" in used.output


def test_without_the_check_no_model_is_loaded(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: Any) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("palimpsest.checkpoint.load._whole", load)
    for method, base in (("mergebarrier", None), ("mergelock", None), ("params", pair[0])):
        result = api.protect(method, pair[1], tmp_path / method, base=base, check=False)
        assert [r.measure for r in result.records] == ["protection"] and result.secret is not None


def test_bad_input_is_one_line_and_nothing_is_written(pair: tuple[Path, Path], tmp_path: Path, rows: Path) -> None:
    base, expert = pair
    out = ["--out", tmp_path / "out", "-q"]
    other = make_model(tmp_path / "other", "gpt2")
    assert "there is no protection 'mergebarier'" in refused(tmp_path, "mergebarier", "--model", expert, *out)
    assert "params: needs --base" in refused(tmp_path, "params", "--model", expert, *out)
    line = refused(tmp_path, "params", "--model", expert, "--base", other, *out)
    assert "is a gpt2 model, expert a llama model" in line
    assert "trap2: needs --data" in refused(tmp_path, "trap2", "--model", expert, "--base", base, *out)
    assert "mergeguard: needs --data" in refused(tmp_path, "mergeguard", "--model", expert, "--base", base, *out)
    line = refused(tmp_path, "trap2", "--model", expert, "--data", rows, *out)
    assert "needs the base that the model was fine-tuned from" in line
    line = refused(tmp_path, "mergebarrier", "--model", expert, "--preset", "literal", *out)
    assert "mixes rotary pairs" in line
    assert "out of range" in refused(tmp_path, "mergebarrier", "--model", expert, "--set", "k=1.5", *out)
    assert "not of the protections" in refused(tmp_path, "finetune", "--model", expert, *out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    assert "is not empty" in refused(tmp_path, "mergelock", "--model", expert, "--out", tmp_path / "full")


def test_a_function_that_was_not_kept_is_exit_code_1_and_leaves_nothing(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    from palimpsest.protections import applying

    edit_for = applying.edit_for

    def wrong(*args: Any, **more: Any) -> Any:
        edit, names, config = edit_for(*args, **more)

        def also(name: str, tensor: Any) -> None:
            edit(name, tensor)
            tensor.mul_(1.01)

        return also, names, config

    monkeypatch.setattr(applying, "edit_for", wrong)
    result = run("mergelock", "--model", pair[1], "--out", tmp_path / "p")
    assert result.exit_code == 1 and "computes another function" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: Any) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for place in ("palimpsest.protecting.agreement", "palimpsest.protections.secret.write_secret"):
        with monkeypatch.context() as patch:
            patch.setattr(place, stopped)
            result = run("mergelock", "--model", pair[1], "--out", tmp_path / "p")
        assert result.exit_code == 130 and list(tmp_path.iterdir()) == []


def test_a_method_that_trains_says_that_it_has_no_secret(pair: tuple[Path, Path], tmp_path: Path, rows: Path) -> None:
    base, expert = pair
    settings = ["--set", "tuning.epochs=1", "--set", "tuning.lr=1e-3", "--set", "tuning.batch=8"]
    result = run(
        "trap2", "--model", expert, "--base", base, "--data", rows, "--out", tmp_path / "p", "--json", *settings
    )
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert "secret" not in body and [p.name for p in (tmp_path / "p").iterdir()] == ["model"]
    assert [r["measure"] for r in body["records"]] == ["training", "protection", "agreement"]
    assert any("has no secret" in note for note in body["notes"])
    agreement = body["records"][2]
    assert agreement["detail"]["exact"] is False and agreement["detail"]["relative_error"] > 1e-4


def test_an_expansion_is_written_beside_its_secret_and_judged_by_its_own_code(
    pair: tuple[Path, Path], tmp_path: Path, rows: Path
) -> None:
    settings = ["--set", "neurons=16", "--set", "samples=4", "--set", "tokens=24"]
    result = run("mergebarrier-ffn", "--model", pair[1], "--data", rows, "--out", tmp_path / "p", "--json", *settings)
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert [r["measure"] for r in body["records"]] == ["protection", "agreement", "recovery"]
    assert body["records"][0]["detail"]["stock"] is False and body["records"][2]["n"] == 32
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["model", "secret.safetensors"]
