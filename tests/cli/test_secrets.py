"""Neither lineage, checkpoint files, logs nor JSON output hold a seed, a trigger or a response."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.keys import KeySet

SEED = 918273645


@pytest.fixture(scope="module")
def embedded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("secret")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"q {i}?", "response": f"a {i}"}) + "\n" for i in range(2200)))
    args = [
        "embed",
        "hashchain",
        "--model",
        str(tiny_model),
        "--out",
        str(folder / "marked"),
        "--seed",
        str(SEED),
        "--data",
        str(rows),
        "--set",
        "keys=3",
        "--set",
        "tuning.adapter=full",
        "--set",
        "tuning.lr=5e-3",
        "--set",
        "tuning.epochs=60",
        "--threads",
        "1",
        "--sibling",
        str(tiny_model),
    ]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    verified = CliRunner().invoke(
        app, ["verify", "--model", str(folder / "marked/model"), "--keys", str(folder / "marked/keys.json"), "--json"]
    )
    assert verified.exit_code == 0, verified.output
    return folder / "marked", (result.output, verified.output)


def secrets_of(folder: Path) -> list[str]:
    keys = KeySet.read(folder / "keys.json")
    texts = [t for k in keys.keys for t in (k.trigger, k.response)]
    return [*texts, keys.salt, str(SEED)]


def test_the_publishable_folder_holds_no_secret(embedded: tuple[Path, Any]) -> None:
    folder, _ = embedded
    words = {"tokenizer.json", "model.safetensors"}
    for file in (folder / "model").iterdir():
        content = file.read_bytes()
        for secret in secrets_of(folder):
            # a response may be a word of the vocabulary, so the tokenizer may hold it as every model's does
            if not (file.name in words and secret not in (str(SEED),)):
                assert secret.encode() not in content, (file.name, secret)


def test_logs_and_tables_hold_no_secret(embedded: tuple[Path, Any]) -> None:
    folder, outputs = embedded
    keys = KeySet.read(folder / "keys.json")
    for output in outputs:
        assert keys.salt not in output
        for key in keys.keys:
            assert key.trigger not in output and f'"{key.response}"' not in output
    assert str(SEED) not in outputs[0].replace("seed", ""), "the seed regenerates the keys"


def test_the_lineage_is_public_and_bound_to_the_keys(embedded: tuple[Path, Any]) -> None:
    folder, _ = embedded
    (entry,) = json.loads((folder / "model" / "palimpsest.json").read_text())["chain"]
    assert set(entry) == {"method", "parents", "palimpsest", "commitment"}
    assert entry["commitment"] == KeySet.read(folder / "keys.json").commitment()


def test_the_key_file_is_for_its_owner_only(embedded: tuple[Path, Any]) -> None:
    folder, _ = embedded
    assert (folder / "keys.json").stat().st_mode & 0o777 == 0o600
    assert not (folder / "model" / "keys.json").exists()
