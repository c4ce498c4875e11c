"""The threat model's constraints by hand; and published rows under the removals they belong to."""

from __future__ import annotations

from pathlib import Path

import fakes
import pytest

from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.records import Record
from palimpsest.study import published
from palimpsest.study.constraints import COST_LIMIT, LATENCY_LIMIT, of_cell, training_tokens
from palimpsest.verdicts import Utility


def kept(value: float | None) -> Utility:
    return Utility(value, None, None, ("boolq",), ())


def cost(tokens: int | None, rows: int = 0) -> Record:
    return Record("cost", tokens=tokens, detail={"rows": rows} if rows else {})


@pytest.mark.parametrize(
    ("utility", "ratio", "word"),
    [
        (0.9, 1.1, "pass"),
        (0.899, 1.0, "fail"),
        (0.95, 1.11, "fail"),
        (None, 1.05, "pass"),
        (None, 1.2, "fail"),
        (0.95, None, "pass"),
        (None, None, "not-known"),
    ],
)
def test_utility_must_be_kept_on_tasks_and_on_neutral_text(
    utility: float | None, ratio: float | None, word: str
) -> None:
    found = of_cell([], [], kept(utility), ratio, None)
    assert (found[0]["task"], found[0]["value"], found[0]["verdict"]) == ("utility", utility, word)


@pytest.mark.parametrize(
    ("tokens", "base", "share", "word"),
    [
        ([66_975, 44_910], 8_000_000, 111_885 / 8_000_000, "pass"),
        ([50_000, 50_000], 1_000_000, COST_LIMIT, "fail"),  # below 10 %, not at it
        ([99_999], 1_000_000, 0.099999, "pass"),
        ([900], None, None, "not-known"),
        ([None], None, 0.0, "pass"),
    ],
)
def test_cost_is_all_tokens_of_all_phases_over_the_base_s(
    tokens: list[int | None], base: int | None, share: float | None, word: str
) -> None:
    found = {f["task"]: f for f in of_cell([cost(t) for t in tokens], [], None, None, base)}["cost"]
    assert found["value"] == pytest.approx(share) and found["verdict"] == word


def test_samples_and_moved_answers_are_numbers_without_a_verdict() -> None:
    last = [
        Record("answers", 0.8, task="reference"),
        Record("answers", 0.7, task="before"),
        Record("divergence", 0.02, task="kl-per-token"),
        Record("divergence", 0.5, task="first-token"),
    ]
    found = {f["task"]: f for f in of_cell([cost(1, 300), cost(2, 600)], last, None, None, None)}
    assert (
        found["samples"]["value"] == 900 and found["answers"]["value"] == 0.7 and found["divergence"]["value"] == 0.02
    )
    for task in ("samples", "answers", "divergence"):
        assert "verdict" not in found[task] and "no paper gives a limit" in found[task]["reason"]


def test_latency_has_a_limit_that_says_it_is_ours() -> None:
    for ratio, word in ((LATENCY_LIMIT, "pass"), (LATENCY_LIMIT + 0.01, "fail")):
        found = {f["task"]: f for f in of_cell([], [Record("latency", ratio)], None, None, None)}["latency"]
        assert (found["value"], found["verdict"]) == (ratio, word) and "(ours)" in found["reason"]
    assert "latency" not in {f["task"] for f in of_cell([], [], None, None, None)}


def test_the_base_s_training_is_known_of_the_toy_and_of_what_was_pretrained_here(tmp_path: Path) -> None:
    assert training_tokens(resolve("toy")) == 8_000_000
    folder = fakes.tiny_folder(tmp_path / "base")
    assert training_tokens(Checkpoint(folder, "base")) is None
    (folder / "training.json").write_text('{"tokens": 16000000, "seconds": 1.0}')
    assert training_tokens(Checkpoint(folder, "base")) == 16_000_000
    (folder / "training.json").write_text("[]")
    assert training_tokens(Checkpoint(folder, "base")) is None


def row(removal: str, measure: str, value: str, beside: str = "", model: str = "Llama-2-7B") -> dict[str, str]:
    plain = {"paper": "2506.12551", "table": "2", "fingerprint": "utf", "note": ""}
    return {**plain, "model": model, "removal": removal, "measure": measure, "value": value, "beside": beside}


def test_published_rows_stand_beside_the_removals_that_they_name() -> None:
    rows = [
        row("none", "FSR %", "100"),
        row("none", "PPL", "9.31"),
        row("prune-l1 5%", "FSR %", "3.125", "a|b"),
        row("prune-l1 5%", "PPL", "12.37", "a|b"),
        row("token-forcing", "FSR %", "0", "none"),
        row("meraser", "FSR %", "0"),
        row("meraser", "FSR %", "1", model="Mistral-7B"),
    ]
    assert published.beside(rows, "utf", "a") == ("FSR 3.125 %, PPL 12.37", "Llama-2-7B")
    assert published.beside(rows, "utf", "b") == published.beside(rows, "utf", "a")
    assert published.beside(rows, "utf", None) == ("FSR 100 %, PPL 9.31, token-forcing FSR 0 %", "Llama-2-7B")
    assert published.beside(rows, "utf", "meraser") == ("FSR 0 %", "Llama-2-7B (and 1 more)")
    assert published.beside(rows, "if-sft", "a") == ("", "") == published.beside(rows, "utf", "c")
    assert published.published_stage(rows[2], "a", "erased") == "erased"
    assert published.published_stage(rows[2], "c", "erased") == "" == published.published_stage(rows[4], "a", "erased")
    assert published.published_stage(rows[5], "x", "erased") == "recovered"
