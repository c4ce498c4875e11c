"""Two studies compared: hand-worked p-values, what is not tested and why, what only one of them has."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import fakes
import pytest

from palimpsest import api
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.records import Record
from palimpsest.study.compare import Comparison, Row, compare_records
from palimpsest.study.compare_text import csv_text, markdown, terminal, write_comparison
from palimpsest.study.run import run_study
from palimpsest.study.spec import parse_spec

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))


def hits(model: str, which: set[int], seed: int = 1, n: int = 10, form: str = "template", **detail: Any) -> Record:
    """A hit rate of keys 0 to n - 1; model: what it is a digest of."""
    rows = [{"number": i, "hit": i in which} for i in range(n)]
    return Record(
        *("hit-rate", len(which) / n, len(which), n),
        **{"model": "toy", "seed": seed, "stage": "erased", "prompt_form": form, "digest": f"{model} {seed}"},
        detail={"implant": "utf", "removal": "meraser", "keys": rows, "independent": True, **detail},
    )


def keys(commitment: str = "c", seed: int = 1) -> Record:
    """What says which keys a mark has."""
    of = {"implant": "utf", "keys": {"commitment": f"{commitment} {seed}"}}
    return Record("cost", 3.0, model="toy", seed=seed, stage="fingerprinted", detail=of)


def value(model: str, at: float, seed: int, measure: str = "perplexity", **fields: Any) -> Record:
    own = {"implant": "utf", "removal": "meraser"}
    return Record(measure, at, model="toy", seed=seed, stage="erased", digest=f"{model} {seed}", detail=own, **fields)


def only_row(made: Comparison) -> Row:
    assert len(made.rows) == 1
    return made.rows[0]


def test_hits_of_the_same_keys_by_mcnemar_with_holm() -> None:
    """6 keys fell silent and none began to speak: 2 * (1/2)^6 = 1/32; the other test has p = 1."""
    one = [keys(), hits("a", set(range(8))), hits("a", {0}, form="bare")]
    other = [keys(), hits("b", {0, 1}), hits("b", {1}, form="bare")]
    made = compare_records(one, other)
    first, second = made.rows
    assert (first.first, first.second, first.difference) == ((0.8,), (0.2,), pytest.approx(-0.6))
    (test,) = first.tests
    assert (test.name, test.p, test.more, test.fewer, test.n) == ("McNemar", 1 / 32, 0, 6, 10)
    assert test.adjusted == 2 / 32 and not test.significant and first.word == "no difference shown"
    assert second.tests[0].p == 1.0 and second.tests[0].adjusted == 1.0
    alone = compare_records(one[:2], other[:2])  # one test alone needs no adjusting
    assert only_row(alone).tests[0].adjusted == 1 / 32 and only_row(alone).word == "lower"


def test_right_answers_of_the_same_items_by_mcnemar() -> None:
    """Of 12 items 9 became wrong and 1 right: 2 * (C(10,0) + C(10,1)) / 2^10 = 22/1024."""
    one = value("a", 9 / 12, 1, "accuracy", task="boolq", count=9, n=12)
    other = value("b", 1 / 12, 1, "accuracy", task="boolq", count=1, n=12)
    one.detail |= {"right": "111111111000", "chance": 0.5}
    other.detail |= {"right": "000000000100", "chance": 0.5}
    assert only_row(compare_records([one], [other])).tests[0].p == pytest.approx(22 / 1024)
    other.detail["chance"] = 0.25
    assert only_row(compare_records([one], [other])).note == "1 seed describes; the task was asked otherwise"
    other.detail |= {"chance": 0.5, "right": "0000000001"}
    assert only_row(compare_records([one], [other])).note == "1 seed describes; not the same items: 12 and 10"


def test_ranks_by_the_sign_test() -> None:
    """Ranks of 5 keys: 4 lower, 1 the same: 2 * (1/2)^4 = 1/8."""

    def ranks(model: str, found: list[int]) -> Record:
        rows = [{"number": i, "rank": r, "decoys": 100} for i, r in enumerate(found)]
        record = value(model, sorted(found)[2], 1, "rank", prompt_form="template", n=5)
        record.detail |= {"keys": rows, "independent": True}
        return record

    made = compare_records([keys(), ranks("a", [50, 60, 70, 80, 1])], [keys(), ranks("b", [1, 2, 3, 4, 1])])
    (test,) = only_row(made).tests
    assert (test.name, test.p, test.more, test.fewer) == ("sign test", 1 / 8, 0, 4)


def test_five_seeds_by_sign_flips() -> None:
    """Gaps 4, 3, 2, 1, -1, sum 9 of 11: sums of 9 or more come of 3 of the 32 flips, and as many below: 6/32."""
    gaps = [4.0, 3.0, 2.0, 1.0, -1.0]
    one = [value("a", 10.0, seed) for seed in range(5)]
    other = [value("b", 10.0 + gap, seed) for seed, gap in enumerate(gaps)]
    made = compare_records(one, other)
    (test,) = only_row(made).tests
    assert (test.name, test.seed, test.p) == ("sign flips", None, 6 / 32)
    assert only_row(made).difference == pytest.approx(9 / 5)
    assert made.notes == [
        "with 5 seeds sign flips come to p = 0.062 at the least, which 1 tests take beyond 0.05: nothing could be "
        "shown so; --test t supposes normal differences, or take more seeds"
    ]


def test_five_seeds_by_t() -> None:
    """Gaps 1 to 5: t = 3 / (sqrt(2.5) / sqrt(5)) = sqrt(18), 4 degrees of freedom: with sin^2 = 18/22, cos^2 = 4/22,
    p = 1 - sin (1 + cos^2 / 2) = 0.013236."""
    one = [value("a", 10.0, seed) for seed in range(5)]
    other = [value("b", 11.0 + seed, seed) for seed in range(5)]
    made = compare_records(one, other, seed_test="t")
    (test,) = only_row(made).tests
    expected = 1 - (18 / 22) ** 0.5 * (1 + 4 / 22 / 2)
    assert test.name == "paired t" and test.p == pytest.approx(expected) == pytest.approx(0.013236, abs=1e-6)
    assert only_row(made).word == "higher" and made.notes == []


def test_equal_gaps_go_to_the_sign_flips_and_no_gap_is_no_difference() -> None:
    one = [value("a", 10.0, seed) for seed in range(6)]
    all_up = compare_records(one, [value("b", 11.0, seed) for seed in range(6)], seed_test="t")
    assert [(t.name, t.p) for t in only_row(all_up).tests] == [("sign flips", 2 / 64)]
    none = compare_records(one, [value("b", 10.0, seed) for seed in range(6)])
    assert [t.p for t in only_row(none).tests] == [1.0] and only_row(none).alike


def test_three_seeds_describe_and_items_are_tested_a_seed() -> None:
    seeds = (1, 2, 3)
    one = [*(keys(seed=s) for s in seeds), *(hits("a", set(range(10)), s) for s in seeds)]
    other = [*(keys(seed=s) for s in seeds), *(hits("b", set(), s) for s in seeds)]
    row = only_row(compare_records(one, other))
    assert [t.seed for t in row.tests] == [1, 2, 3] and row.note == "3 seeds describe"
    assert [t.p for t in row.tests] == [2 / 1024] * 3 and [t.adjusted for t in row.tests] == [6 / 1024] * 3
    assert row.word == "lower in 3 of 3 seeds"
    smooth = compare_records([value("a", 1.0, s) for s in seeds], [value("b", 9.0, s) for s in seeds])
    assert only_row(smooth).tests == () and only_row(smooth).word == "described"
    assert only_row(smooth).note == "3 seeds describe; no item-wise outcomes"


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [([keys("c")], [keys("d")], "other keys"), ([], [keys("c")], "whether the keys are the same is not known")],
)
def test_other_keys_are_not_paired(one: list[Record], other: list[Record], why: str) -> None:
    made = compare_records([*one, hits("a", {1, 2})], [*other, hits("b", {1})])
    assert only_row(made).tests == () and only_row(made).note == f"1 seed describes; {why}"


def test_keys_of_a_many_to_one_mark_are_not_paired() -> None:
    made = compare_records(
        [keys(), hits("a", {1, 2}, independent=False)], [keys(), hits("b", set(), independent=False)]
    )
    assert only_row(made).note == "1 seed describes; keys of a many-to-one mark are not independent"


def test_one_model_measured_twice_is_not_tested() -> None:
    made = compare_records([keys(), hits("a", {1})], [keys(), hits("a", {1})])
    assert only_row(made).same and only_row(made).word == "same model" and made.tests == []
    drawn = compare_records([value("a", 1.0, 1, "latency")], [value("a", 1.1, 1, "latency")])
    assert "one and the same model" in only_row(drawn).note and drawn.tests == []


def test_what_only_one_has_and_what_was_set_otherwise() -> None:
    lone = value("a", 2.0, 1, "perplexity", task="dialogue")
    elsewhere = value("b", 2.0, 1)
    elsewhere.detail["removal"] = "prune"
    one = {"spec": {"seeds": [1], "removals": [{"id": "meraser", "name": "meraser", "settings": {"clean": 300}}]}}
    changed = {"id": "meraser", "name": "meraser", "settings": {"clean": 600}}
    other = {"spec": {"seeds": [1, 2], "removals": [changed, {"id": "prune", "name": "prune-l1"}]}}
    made = compare_records(
        [value("a", 1.0, 1, task="neutral"), lone],
        [value("b", 1.0, 1, task="neutral"), elsewhere, value("b", 3.0, 2), value("b", 3.0, 2, "latency")],
        one,
        other,
    )
    assert made.only == (
        ["toy > utf > meraser: erased: perplexity, dialogue (seed 1)"],
        ["all of seed 2 (2 numbers)", "toy > utf > prune (seed 1)"],
    )
    assert made.settings == [
        ("seeds", "[1]", "[1, 2]"),
        ("removals[meraser].settings.clean", "300", "600"),
        ("removals[prune]", "–", "there"),
    ]


def test_verdicts_that_differ_are_told_in_words() -> None:
    own = {"implant": "utf", "removal": "meraser"}
    one, other = (
        Record("removal", model="toy", seed=1, stage="erased", verdict=word, detail=own)
        for word in ("claim-lost", "kept")
    )
    made = compare_records([one], [other])
    assert [v.changed for v in made.verdicts] == [((1, "claim-lost", "kept"),)] and made.rows == []
    assert compare_records([one], [one]).verdicts == []


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """One study twice: the second erases nothing, and has another removal."""
    given: list[tuple[str, list[Any]]] = [
        ("one", ["none", "fake-eraser"]),
        ("other", ["none", {"fake-eraser": {"pairing": "matched"}}, "finetune"]),
    ]
    for name, removals in given:
        values = fakes.study(tmp_path, title=f"Study {name}", removals=removals, measures=["hit-rate", "perplexity"])
        run_study(parse_spec(values), tmp_path / name, Context(threads=1))
    return tmp_path / "one", tmp_path / "other"


def test_two_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """After matched pairs 9 of 10 keys answer, after mismatched ones none: 2 / 2^9 by McNemar, under each form."""
    made = api.study_compare(*folders, out=tmp_path / "compared")
    erased = [r for r in made.rows if r.place.measure == "hit-rate" and r.place.stage in ("erased", "recovered")]
    assert len(erased) == 8 and all(r.first == (0.0,) and r.second == (0.9,) for r in erased)
    assert all(t.p == 2 / 2**9 and t.more == 9 and t.fewer == 0 for r in erased for t in r.tests)
    assert len(made.tests) == 8 and all(r.tests[0].adjusted == pytest.approx(16 / 2**9) for r in erased)
    assert {r.word for r in erased} == {"higher"} and {v.place.measure for v in made.verdicts} == {
        "ownership",
        "removal",
    }
    assert made.only == ([], ["tiny > fake-mark > finetune (seed 0)"])
    assert ("removals[finetune]", "–", "there") in made.settings
    marked = [r for r in made.rows if r.place.stage == "fingerprinted"]
    assert marked and all(r.same for r in marked)
    text = (tmp_path / "compared" / "comparison.md").read_text()
    lines = list(csv.DictReader(io.StringIO((tmp_path / "compared" / "comparison.csv").read_text())))
    assert text == markdown(made) and len(lines) == len(made.rows)
    row = next(r for r in lines if r["stage"] == "erased" and r["prompt_form"] == "bare")
    assert (row["p"], row["more"], row["fewer"], row["result"]) == (str(2 / 2**9), "9", "0", "higher")
    for said in (text, csv_text(made), json.dumps(made.to_json())):
        assert fakes.SECRET not in said
    write_comparison(made, tmp_path / "compared")  # its own files may be written again
    (tmp_path / "compared" / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        api.study_compare(*folders, out=tmp_path / "compared")


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminals_table_shows_what_differs(folders: tuple[Path, Path], width: int) -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    console.print(terminal(api.study_compare(*folders)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert "tiny > fake-mark > fake-eraser" in text and "+90 points" in text and "0.031" in text
    assert "only in the second: tiny > fake-mark > finetune (seed 0)" in text


def test_the_command(folders: tuple[Path, Path], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from palimpsest.cli import app

    def called(*words: Any) -> Any:
        return CliRunner().invoke(app, ["study", "compare", *map(str, words)])

    plain = called(*folders, "--out", tmp_path / "compared")
    assert plain.exit_code == 0 and "verdicts differ" in plain.stdout and "comparison.csv" in plain.stdout
    found = json.loads(called(*folders, "--json").stdout)
    assert found["correction"] == "Holm" and found["tests"] == 8 and found["first"]["title"] == "Study one"
    for words, said in [
        ((folders[0], tmp_path), "holds no study"),
        ((tmp_path / "nowhere", folders[1]), "holds no study"),
        ((*folders, "--out", tmp_path), "not empty"),
    ]:
        refused = called(*words)
        assert refused.exit_code == 2 and said in refused.stderr and len(refused.stderr.splitlines()) == 1
