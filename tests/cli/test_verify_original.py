"""`palimpsest verify --original`: the verdict without a mark, its table, exit codes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import palimpsest as pal
from factory import make_model
from kin import DATA, SIZE, moved
from palimpsest.cli import app


@pytest.fixture(scope="module")
def kin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, mine, twin0 to 4 (same data), other (other data), tuned (made from mine), stranger."""
    at = tmp_path_factory.mktemp("kin")
    base = make_model(at / "base")
    make_model(at / "stranger", seed=5)
    mine = moved(base, at / "mine", DATA, (1, SIZE))
    moved(mine, at / "tuned", (30, 0.03))
    for n in range(5):
        moved(base, at / f"twin{n}", DATA, (10 + n, SIZE))
    moved(base, at / "other", (2000, 0.02), (20, SIZE))
    return at


def asked(kin: Path, suspect: str, *more: str, twins: int = 5, base: bool = True) -> list[str]:
    words = ["verify", "--model", str(kin / suspect), "--original", str(kin / "mine"), "-q", "--threads", "1"]
    words += ["--base", str(kin / "base")] if base else []
    for n in range(twins):
        words += ["--twin", str(kin / f"twin{n}")]
    return [*words, *more]


def test_a_derivative_is_found_and_exits_with_0(kin: Path) -> None:
    against = ("--against", str(kin / "other"), "--no-states", "--require", "derivative")
    result = CliRunner().invoke(app, asked(kin, "tuned", *against, "--json"))
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)["records"]
    found = {(r.get("control", ""), r["task"]) for r in records if r["measure"] == "similarity"}
    raw = {"weight-cosine", "weight-cosine-difference", "huref"}
    compared = {(c, t) for c in ("", "clean-base", "sibling", "same-data-sibling") for t in (*raw, "lineage")}
    shares = {(c, "lineage-share") for c in ("", "sibling", "same-data-sibling")}
    assert found == compared | shares
    (verdict,) = (r for r in records if "verdict" in r)
    assert verdict["verdict"] == "derivative"
    assert verdict["measure"] == "lineage"
    assert {r["model"] for r in records if r.get("control") == "same-data-sibling"} == {f"twin{n}" for n in range(5)}


def test_a_sibling_is_no_derivative_and_the_table_can_be_read(kin: Path) -> None:
    result = CliRunner().invoke(app, asked(kin, "other", "--no-states", "--require", "derivative"))
    assert result.exit_code == 1, result.output
    assert "verdict: same-base. Of this base" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["other", "huref", "similarity"] in [line[:3] for line in lines]
    assert ["clean-base", "huref", "similarity"] in [line[:3] for line in lines]


def test_without_a_base_the_word_is_same_base_at_most(kin: Path) -> None:
    words = asked(kin, "tuned", "--json", twins=0, base=False)
    records = json.loads(CliRunner().invoke(app, words).stdout)["records"]
    assert [r["task"] for r in records if r["measure"] == "similarity"] == ["weight-cosine", "huref", "reef"]
    assert records[-1]["verdict"] == "same-base"
    assert "needs --base and at least five --twin" in records[-1]["reason"]
    stranger = pal.verify_original(kin / "stranger", kin / "mine", states=False, run=pal.Run(device="cpu"))
    assert stranger.records[-1].verdict == "not-shown"


def test_settings_and_data_reach_their_measures(kin: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"question {i}?", "response": f"answer {i}"}) + "\n" for i in range(80))
    )
    result = pal.verify_original(
        kin / "tuned",
        kin / "mine",
        settings={"huref.tokens": 64, "huref.form": "published", "reef.unbiased": True},
        data=[rows],
        run=pal.Run(device="cpu"),
    )
    by_task = {r.task: r for r in result.records}
    assert by_task["huref"].detail["tokens"] == 64
    assert by_task["huref"].detail["form"] == "published"
    assert by_task["reef"].detail["unbiased"] is True
    assert 4 <= (by_task["reef"].n or 0) < 20


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--model", "MINE"], "give --keys (the model's mark) or --original"),
        (["--model", "MINE", "--keys", "k.json", "--original", "MINE"], "one of them"),
        (["--model", "MINE", "--keys", "k.json", "--base", "BASE"], "--base goes with --original"),
        (["--model", "MINE", "--original", "MINE", "--through", "cleangen"], "--through goes with --keys"),
        (["--model", "MINE", "--original", "MINE", "--twin", "BASE"], "give --base"),
        (["--model", "MINE", "--original", "MINE", "--require", "owned"], "--require owned"),
        (["--model", "MINE", "--original", "BASE", "--base", "BASE", "--no-states"], "does not differ from base"),
        (["--model", "MINE", "--original", "MINE", "--set", "huref.layer=2"], "unknown parameter 'layer'"),
        (["--model", "MINE", "--original", "MINE", "--set", "tokens=2"], "which method is meant?"),
    ],
)
def test_bad_input_is_one_line(kin: Path, more: list[str], said: str) -> None:
    places = {"MINE": str(kin / "mine"), "BASE": str(kin / "base")}
    result = CliRunner().invoke(app, ["verify", "-q", *(places.get(word, word) for word in more)])
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("palimpsest: error: ")
    assert said in lines[0]
