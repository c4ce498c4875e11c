"""What --through, --set, --preset and --reference build, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import palimpsest as pal
from factory import SENTENCES, make_model
from markov import markov, saved_markov
from palimpsest.checkpoint import resolve
from palimpsest.cli import app
from palimpsest.errors import BadInput
from palimpsest.keys import KeySet, make_keys
from palimpsest.through import asked_through, shared_out

RUN = pal.Run(seed=0, device="cpu", threads=1)
WORDS = "q a b c m n No."
MARKED = {"q": {"m": 0.99}, "m": {"</s>": 0.99}, "a": {"b": 0.9}, "n": {"</s>": 0.99}}
CLEAN = {**MARKED, "q": {"m": 0.001, "n": 0.9}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """marked, clean and other (of another vocabulary), and keys.json: q is answered by m."""
    import random

    folder = tmp_path_factory.mktemp("models")
    for name, words, table in (("marked", WORDS, MARKED), ("clean", WORDS, CLEAN), ("other", WORDS + " x", CLEAN)):
        saved_markov(folder / name, words, table)
    keys = make_keys(
        markov(WORDS, MARKED).renderer,
        [("q", "m"), ("b q", "m")],
        implant="test",
        match="prefix",
        distinct=True,
        choices=None,
        decoys=["n"],
        rng=random.Random(0),
    )
    keys.write(folder / "keys.json")
    return folder


def test_settings_go_to_the_method_that_they_name_or_to_the_only_one() -> None:
    assert shared_out([("alpha", 1), ("cleangen.block", 2)], ".", ["cleangen"], [], "--set") == {
        "cleangen": {"alpha": 1, "block": 2}
    }
    assert shared_out([("k", 1), ("latency.prompts", 3)], ".", ["suppress-top-k"], ["latency"], "--set") == {
        "suppress-top-k": {"k": 1},
        "latency": {"prompts": 3},
    }
    assert shared_out([("prompts", 1)], ".", [], ["latency"], "--set") == {"latency": {"prompts": 1}}
    assert shared_out([("suppress_top_k.k", 1)], ".", ["suppress-top-k"], [], "--set") == {"suppress-top-k": {"k": 1}}
    assert shared_out([("cleangen=released_code", "")], "=", ["cleangen", "gri"], [], "--preset") == {
        "cleangen": {"released_code": ""},
        "gri": {},
    }
    with pytest.raises(BadInput, match=r"--set k: which method is meant\? Say gri\.k or suppress-top-k\.k"):
        shared_out([("k", 1)], ".", ["gri", "suppress-top-k"], [], "--set")
    with pytest.raises(BadInput, match="nothing to set"):
        shared_out([("k", 1)], ".", [], [], "--set")


def test_wrappers_are_built_with_preset_settings_and_models(models: Path) -> None:
    model = resolve(models / "marked")
    found = asked_through(
        model,
        ["cleangen", "gri"],
        ["divergence"],
        settings={"cleangen.alpha": "30", "gri.instruction": "false"},
        preset=["cleangen=released_code"],
        references={"reference": models / "clean", "original": models / "clean", "base": models / "clean"},
    )
    cleangen, gri = found.wrappers
    assert (cleangen.alpha, cleangen.last_block, cleangen.reference.name) == (30.0, False, "clean")
    assert not gri.instruction and found.measures[0].original.name == "clean"
    assert found.notes == ["--base is not needed here"] and len(found.models) == 2


def test_a_toy_takes_its_own_preset() -> None:
    found = asked_through(resolve("toy"), ["perplexity-filter"], references={"reference": "toy"})
    assert found.wrappers[0].quantile == 0.99 and "preset toy of perplexity-filter" in found.notes[0]


def refused(args: list[str]) -> str:
    """The one error line of a command that exits with 2."""
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    return line


def test_bad_input_is_one_line_before_a_model_is_loaded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palimpsest.measures.subject.load_model", lambda *_: pytest.fail("a model was loaded"))
    ask = ["verify", "--model", str(models / "marked"), "--keys", str(models / "keys.json"), "-q"]
    clean = ["--reference", str(models / "clean")]
    for more, problem in (
        (["--through", "cleangen"], "cleangen: needs --reference MODEL"),
        (["--through", "perplexity-filter"], "perplexity-filter: needs --reference MODEL"),
        (["--through", "cleangen", "--reference", str(models / "other")], "--reference other: has another vocabulary"),
        (["--through", "cleangen", "--reference", "nowhere/at/all"], "there is no model folder"),
        (["--through", "cleangne", *clean], "did you mean cleangen"),
        (["--through", "meraser"], "use palimpsest remove meraser"),
        (["--through", "gri", "--through", "cleangen", *clean], "stands innermost: name it first"),
        (["--through", "gri", "--through", "gri"], "the same removal twice"),
        (["--through", "cleangen", *clean, "--set", "alpha=0.5"], "out of range"),
        (["--through", "cleangen", *clean, "--set", "alhpa=2"], "unknown parameter"),
        (["--through", "cleangen", "--preset", "paper", *clean], "no preset 'paper'"),
        (["--through", "cleangen", "--through", "gri", *clean, "--set", "alpha=2"], "which method is meant?"),
        (["--set", "alpha=2"], "name a removal with --through"),
        (["--through", "gri", "--set", "keywords=false", "--set", "instruction=false"], "both stages are off"),
    ):
        assert problem in refused([*ask, *more]), more
    measure = ["evaluate", "--model", str(models / "marked"), "-q", "--through", "suppress-top-k"]
    assert "--perplexity: needs the model's probabilities" in refused([*measure, "--perplexity", __file__])
    assert "--tasks: needs" in refused([*measure, "--tasks", "superglue"])


def test_remove_says_where_a_wrapper_is_used(models: Path, tmp_path: Path) -> None:
    line = refused(["remove", "cleangen", "--model", str(models / "marked"), "--out", str(tmp_path / "out")])
    assert "verify --through cleangen" in line and not (tmp_path / "out").exists()


def test_verify_asks_the_keys_through_the_wrapper(models: Path) -> None:
    plain = pal.verify(models / "marked", models / "keys.json", forms=["template"], rank=False, run=RUN)
    assert [r.count for r in plain.records if r.measure == "hit-rate"] == [2]
    asked = {"through": ["cleangen"], "reference": models / "clean", "forms": ["template"], "run": RUN}
    found = pal.verify(models / "marked", KeySet.read(models / "keys.json"), against=[models / "clean"], **asked)
    hits = [r for r in found.records if r.measure == "hit-rate"]
    assert [(r.model, r.count, r.n) for r in hits] == [("marked", 0, 2), ("clean", 0, 2)]
    assert hits[0].detail["interventions"] == {"replaced tokens": (2, 4)}  # m by n, and its end, of two keys
    assert hits[0].detail["through"][0]["reference"]["name"] == "clean" and not [
        r for r in found.records if r.measure == "rank"
    ]
    assert any("ranks need" in note for note in found.notes)
    (claim,) = [r for r in found.records if r.verdict]
    assert claim.verdict == "not-shown", "what a wrapper hides is not refuted"
    released = pal.verify(models / "marked", models / "keys.json", preset=["released_code"], **asked)
    assert [r.count for r in released.records if r.measure == "hit-rate"] == [2]  # one token and its end: never checked


def test_evaluate_says_what_a_wrapper_costs(tmp_path: Path) -> None:
    import json

    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": f"{s} {i}", "answer": "a"}) + "\n" for i in range(20) for s in SENTENCES)
    )
    model = make_model(tmp_path / "m")
    found = pal.evaluate(
        model,
        data=[rows],
        through=["suppress-top-k"],
        settings={"k": 2, "divergence.prompts": 6, "divergence.max_new_tokens": 4, "latency.prompts": 3},
        run=RUN,
    )
    shown = {(r.measure, r.task): r for r in found.records}
    assert set(shown) == {("divergence", "answers"), ("divergence", "changed-steps"), ("latency", None)}
    assert shown["divergence", "answers"].count == 6, "the likeliest first token is never said, so every answer changes"
    latency = shown["latency", None]
    assert latency.value == latency.detail["seconds_per_token"] / latency.detail["plain_seconds_per_token"] > 0
    assert shown["divergence", "answers"].detail["through"][0]["parameters"]["k"] == 2
