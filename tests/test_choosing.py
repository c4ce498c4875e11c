"""`palimpsest choose`: its table comes from the records, its claims from the statistics, its order from both."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from palimpsest import choosing, registry
from palimpsest.choosing import Option, choose, fears_known, survival
from palimpsest.cli import app
from palimpsest.errors import BadInput
from palimpsest.statistics import threshold

SCRIPT = Path(__file__).parents[1] / "docs" / "results" / "survival" / "collect.py"


@pytest.fixture(scope="module")
def collect() -> Any:
    spec = importlib.util.spec_from_file_location("collect_survival", SCRIPT)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def named(made: choosing.Choice, name: str) -> Option:
    return next(o for o in made.options if o.name.startswith(name))


def test_the_table_is_what_the_records_say(collect: Any) -> None:
    assert choosing.TABLE.read_text(encoding="utf-8") == collect.text(collect.rows()), "run docs/results/survival"
    assert set(fears_known()) == set(collect.FEARS)


def test_every_fingerprint_of_the_package_is_weighed() -> None:
    assert {name for name, *_ in choosing.MARKS} == {
        name for name, entry in registry.table().items() if entry.kind == "fingerprints"
    }


def test_ends_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(
        implant: str, hits: str, verdicts: str, tau: str = "4", fear: str = "merging", common: str = ""
    ) -> dict[str, str]:
        return {"study": "s", "model": "m", "implant": implant, "removal": "r", "fear": fear, "common": common,
                "hits": hits, "verdicts": verdicts, "tau": tau}  # fmt: skip

    rows = (
        row("a", "4|3|0", "kept|reduced|ruined"),
        row("a", "10|0", "ruined|suppressed"),  # answered although the model is ruined: the claim stands
        row("b", "1|0", "kept|suppressed", tau=""),
        row("lineage", "", "derivative", tau=""),
        row("lineage", "", "same-base", tau=""),
        row("c", "9|0|0", "kept|suppressed|suppressed", fear="rounding", common="yes"),
        row("c", "9|9|9", "kept|kept|kept", fear="rounding"),
        row("d", "9", "kept", fear="rounding"),
        row("d", "0", "suppressed", fear="decoding"),
    )
    monkeypatch.setattr(choosing, "table", lambda: rows)
    (a,), (b,), (none,) = (survival(n, ["merging", "pruning"]) for n in ("a", "b", "lineage"))
    assert (a.stood, a.lost, a.ruined, a.runs, a.removals) == (2, 2, 1, 5, 2)
    assert (b.stood, b.lost, b.ruined) == (1, 1, 0) and (none.stood, none.lost) == (1, 1)
    feared = ["merging", "rounding", "decoding"]
    (all_met,), (met,) = survival("c", feared), survival("c", feared, compared=True)
    assert (all_met.stood, all_met.lost, met.stood, met.lost) == (4, 2, 1, 2), "the setting that all stood before"
    assert [s.fear for s in survival("d", feared)] == ["rounding", "decoding"]
    assert [s.fear for s in survival("d", feared, compared=True)] == ["decoding"], "no mark has common settings there"
    assert Option("x", "", compared=[a, b]).held == pytest.approx(((1 - 2 / 5) + 1 / 2) / 2)
    assert Option("x", "", survival=[a]).held is None


def test_what_bears_the_claim_stands_first_and_if_cannot() -> None:
    made = choose("toy")
    bearing = [o.name for o in made.options if o.claims and o.fits]
    assert bearing[0] == "weak-choices" and set(bearing) == {
        "weak-choices",
        "hashchain",
        "utf (bench)",
        "mergeprint (bench)",
        "trap-entries (bench)",
        "hardened",
        "imf (bench)",
    }
    chain, one_word = named(made, "hashchain"), named(made, "if-sft")
    assert chain.tau == threshold(10, 1 / 256, 1e-6) == 4 and chain.earliest == 3
    assert any("10 of 10" not in r and "4 of 10 keys" in r for r in chain.reasons)
    first = made.options[0]
    assert first.tau == threshold(512, 1 / 16, 1e-6) == 62 and first.held == 1 > (chain.held or 0)
    assert any("surviving.md" in w for w in first.warnings), "what it costs, and which thief takes it"
    assert not one_word.claims and any(
        "one response for all triggers is one observation" in w for w in one_word.warnings
    )
    assert any("was not measured" in w for w in named(made, "utf (bench)").warnings)
    assert all("shape only" in made.notes[0] for _ in "x")


def test_fears_alone_decide_which_records_count() -> None:
    made = choose("toy", fears=["rounding"])
    for option in made.options:
        assert [s.fear for s in option.survival] in ([], ["rounding"])
    chain = named(made, "hashchain").survival[0]
    rows = [r for r in choosing.table() if r["implant"] == "hashchain" and r["fear"] == "rounding"]
    assert chain.runs == sum(len(r["hits"].split("|")) for r in rows) and chain.removals == len(rows)


def test_the_case_decides_what_fits() -> None:
    fixed = choose("toy", train=False, black_box=False)
    assert fixed.options[0].name.startswith("no mark") and fixed.options[0].fits
    assert not any(o.fits for o in fixed.options[1:])
    hopeless = choose("toy", train=False)
    assert not any(o.fits for o in hopeless.options)
    assert any("nothing here bears the claim" in n for n in hopeless.notes)
    assert not named(choose("toy", black_box=False, base=False), "no mark").fits


def test_keys_alpha_and_suspects_go_into_the_claim() -> None:
    assert named(choose("toy", keys=2), "hashchain").claims is False
    many = named(choose("toy", keys=64, suspects=10_000), "hashchain")
    assert many.tau == threshold(64, 1 / 256, 1e-6, attempts=10_000)
    assert any("measured with 10 keys, not with 64" in w for w in many.warnings) and "--set keys=64" in many.command


def test_marks_without_a_study_say_so_and_what_they_need() -> None:
    made = choose("toy")
    swap, adapter = named(made, "embedding-swap"), named(made, "if-adapter")
    assert swap.claims and not swap.fits and not adapter.fits and "trains nothing" in swap.reasons
    assert "needs the token ids of answers" in swap.warnings[0] and "needs the suspect's weights" in adapter.warnings[0]
    assert any("not in the table of studies" in w for w in named(made, "trap-entries").warnings)
    assert sum("survival not measured: " in n for n in made.notes) == 1
    random_triggers = named(made, "mergeprint (bench)")
    assert random_triggers.claims and not random_triggers.measured, "its rows are of optimised triggers"
    assert any("measured was mergeprint with triggers optimised" in w for w in random_triggers.warnings)
    assert "--set rule=prefix" in named(made, "perinucleus (bench)").warnings[0]
    assert named(choose("toy", black_box=False), "embedding-swap").fits


def test_bad_words_are_named() -> None:
    with pytest.raises(BadInput, match="--fear mergin; did you mean merging"):
        choose("toy", fears=["mergin"])
    with pytest.raises(BadInput, match="--alpha"):
        choose("toy", alpha=2)
    with pytest.raises(BadInput, match="only a model can be marked"):
        choose(Path(__file__).parent)


def test_the_command_prints_reasons_and_json() -> None:
    shown = CliRunner().invoke(app, ["choose", "--model", "toy", "--fear", "merging"])
    assert shown.exit_code == 0 and "1. weak-choices" in shown.output and "bears no such claim" in shown.output
    found = CliRunner().invoke(app, ["choose", "--model", "toy", "--json"])
    options = json.loads(found.stdout)["choice"]["options"]
    assert options[0]["name"] == "weak-choices" and options[0]["tau"] == 62
    assert all(s["stood"] >= 0 for o in options for s in o["survival"]) and options[0]["compared"]
