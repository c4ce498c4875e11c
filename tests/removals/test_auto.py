"""`auto` of MEraser: decoys take, the search is what its runs would be, counts all it trains and asks no key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from palimpsest import keys
from palimpsest.checkpoint import Checkpoint, resolve
from palimpsest.checkpoint.load import load_model, load_tokenizer
from palimpsest.cli import app
from palimpsest.data.dialogues import Dialogues, pair
from palimpsest.data.mismatched import mismatch
from palimpsest.errors import BadInput, CheckFailed
from palimpsest.method import Context, build
from palimpsest.prompts import Renderer
from palimpsest.records import Record
from palimpsest.removals.tuning import decoys, search
from palimpsest.removals.tuning.meraser import AUTO_ERASE, MEraser, MEraserErase, MEraserEraseAuto, MEraserRecover
from palimpsest.removals.tuning.search import Trial, find_strength
from palimpsest.removals.tuning.strength import Found, StrengthSearch
from palimpsest.responder import LocalResponder
from palimpsest.training.planting import strength
from palimpsest.training.settings import Tuning

PLANT = Tuning(adapter="full", epochs=80, lr=3e-3, batch=8)
RECOVER = Tuning(epochs=2, lr=1e-3, batch=8)
LADDER = ("1x1e-3", "2x1e-3", "5x1e-1", "8x1e-1")
SEARCH = StrengthSearch(ladder=LADDER, decoys=2, plant=PLANT, documents=6)
TEXT = (
    "lantern keeper counts boats every evening widow mends nets harbour river begins under white hill grey heron "
    "stood water waited fish tower empty bell sold long ago barley bread knead bake colour gate green answer"
)
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def data() -> Dialogues:
    def rows(part: str) -> tuple[Any, ...]:
        return tuple(
            pair(f"{part} {WORDS[i % 31]} {WORDS[(7 * i + 3) % 31]}?", f"{WORDS[(5 * i + 1) % 31]} {i}")
            for i in range(24)
        )

    return Dialogues("made", {part: rows(part) for part in ("erase", "recover", "revival", "test", "embed")})


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Checkpoint:
    return resolve(tiny_model)


def trial(data: Dialogues, seed: int = 3, **changes: Any) -> Trial:
    wrong = mismatch(data.part("erase", 16), "derangement", seed)
    return replace(Trial(wrong, data.part("recover", 16), data, AUTO_ERASE, RECOVER, SEARCH), **changes)


@pytest.fixture(scope="module")
def found(base: Checkpoint, data: Dialogues, tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Path]:
    """One search and its scratch folder, which holds the decoyed copy."""
    scratch = tmp_path_factory.mktemp("search")
    return find_strength(base, trial(data), Context(seed=3, threads=1, scratch=scratch)), scratch


def test_decoys_are_drawn_from_the_seed_and_the_thiefs_data_alone(base: Checkpoint, data: Dialogues) -> None:
    renderer = Renderer(load_tokenizer(base))
    phrase, pairs = decoys.draw_decoys(renderer, data, 6, 5, 256)
    again = decoys.draw_decoys(renderer, data, 6, 5, 256)
    other = decoys.draw_decoys(renderer, data, 6, 6, 256)
    assert [k.digest() for k in (phrase, pairs)] == [k.digest() for k in again]
    assert phrase.digest() != other[0].digest()
    assert len({k.response for k in phrase.keys}) == 1 and not phrase.distinct, "many to one"
    assert len({k.trigger for k in (*phrase.keys, *pairs.keys)}) == 12
    known = {w for d in data.part("erase") for w in f"{d.question} {d.answer}".replace("?", "").lower().split()}
    assert pairs.distinct and all(k.response in known and k.response in pairs.decoys for k in pairs.keys)
    with pytest.raises(BadInput, match="words to draw decoys from, at least 20 are needed"):
        decoys.draw_decoys(renderer, Dialogues("few", {"erase": (pair("what?", "that"),)}), 2, 0, None)


def test_planted_decoys_have_their_probability_and_margin_and_all_attempts_are_counted(
    base: Checkpoint, data: Dialogues, tmp_path: Path
) -> None:
    marks = decoys.draw_decoys(Renderer(load_tokenizer(base)), data, 2, 3, 256)
    slow = replace(PLANT, lr=PLANT.lr / 5)  # at this rate 20 epochs are not enough, at five times it they are
    ctx = Context(seed=3, threads=1)
    made = decoys.plant(base, marks, data, slow, 0.5, tmp_path / "planted", ctx)
    straight = decoys.plant(base, marks, data, PLANT, 0.5, tmp_path / "straight", ctx)
    assert (made.lr, made.epochs) == (pytest.approx(straight.lr), straight.epochs) and made.tokens > straight.tokens
    planted = resolve(tmp_path / "planted")
    responder = LocalResponder(load_model(planted, ctx), load_tokenizer(planted))
    for part in marks:
        measured = strength(responder, part)
        assert min(measured.probabilities) >= 0.9 and all(measured.answered)
    assert decoys.trace(responder, marks, ranks=True).hits == 4
    assert planted.chain()[-1] == {**planted.chain()[-1], "method": "decoys", "parents": {"model": base.digest()}}


def test_decoys_that_do_not_take_fail_in_one_line_and_leave_nothing(
    base: Checkpoint, data: Dialogues, tmp_path: Path
) -> None:
    weak = replace(SEARCH, plant=replace(PLANT, epochs=1))
    with pytest.raises(CheckFailed, match=r"decoys did not take: .*--preset paper"):
        find_strength(base, trial(data, search=weak), Context(seed=3, scratch=tmp_path / "s"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_rung_of_the_search_is_what_the_run_of_that_strength_makes(
    found: tuple[Found, Path], data: Dialogues, tmp_path: Path
) -> None:
    result, scratch = found
    recovered = [o for o in result.outcomes if o.hits is not None]
    assert recovered, "the ladder reaches a rung that silences the decoys in the erase phase"
    last = recovered[-1]
    ctx = Context(seed=3, threads=1)
    tuning = replace(AUTO_ERASE, epochs=last.rung.epochs, lr=last.rung.lr)
    erased = MEraserErase(data, 16, "derangement", tuning).apply(resolve(scratch / "decoyed"), tmp_path / "e", ctx)
    made = MEraserRecover(data, 16, RECOVER).apply(erased.checkpoint, tmp_path / "r", ctx)
    responder = LocalResponder(load_model(made.checkpoint, ctx), load_tokenizer(made.checkpoint))
    marks = decoys.draw_decoys(responder.renderer, data, 2, 3, 256)
    after = decoys.trace(responder, marks, ranks=True)
    assert (after.hits, after.p) == (last.hits, pytest.approx(last.p))
    rows = [(d.question, d.answer) for d in data.part("test", 6)]
    scored = search.answer_likelihoods(responder, rows, 256)
    nll = sum(s.nll for s in scored) / sum(s.tokens for s in scored)
    assert last.perplexity == pytest.approx(2.718281828459045**nll, rel=1e-4)


def test_every_token_trained_is_counted(
    found: tuple[Found, Path], base: Checkpoint, data: Dialogues, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def counting(true: Any) -> Any:
        def tune(*args: Any, **named: Any) -> Any:
            model, log = true(*args, **named)
            trained.append(log.tokens)
            return model, log

        return tune

    for module in (search, decoys):
        monkeypatch.setattr(module, "tune", counting(module.tune))
    again = find_strength(base, trial(data), Context(seed=3, threads=1))
    assert again.tokens == sum(trained) and len(trained) >= 3
    first, _ = found
    assert [replace(o, seconds=0) for o in again.outcomes] == [replace(o, seconds=0) for o in first.outcomes]
    assert again.choice.outcome.rung == first.choice.outcome.rung, "the same seed finds the same strength"


def test_a_killed_search_goes_on_where_it_was(
    found: tuple[Found, Path], base: Checkpoint, data: Dialogues, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_try, tried = search._Search._try, []

    def killed(self: Any, *args: Any) -> Any:
        tried.append(str(args[1]))
        if len(tried) == 3:
            raise KeyboardInterrupt
        return true_try(self, *args)

    monkeypatch.setattr(search._Search, "_try", killed)
    ctx = Context(seed=3, threads=1, scratch=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        find_strength(base, trial(data), ctx)
    monkeypatch.setattr(search, "plant", None)  # what is planted stays planted
    resumed = find_strength(base, trial(data), ctx)
    assert tried[:4] == ["1x0.001", "2x0.001", "5x0.1", "5x0.1"], "finished rungs are not tried again"
    whole, _ = found
    assert [replace(o, seconds=0) for o in resumed.outcomes] == [replace(o, seconds=0) for o in whole.outcomes]
    known = search._Memory(tmp_path / "strength-search.json", "another search")
    assert not known.facts and not known.outcomes, "another search's memory is not read"


@pytest.mark.covers("meraser-erase-auto")
def test_auto_erases_at_the_strength_found_and_a_control_takes_the_same(
    found: tuple[Found, Path], base: Checkpoint, data: Dialogues, tmp_path: Path
) -> None:
    ctx = Context(seed=3, threads=1)
    method = MEraser(data, 16, 16, "derangement", AUTO_ERASE, RECOVER, strength="auto", search=SEARCH)
    (name, erase), (_, recover) = method.steps()
    assert name == "meraser-erase" and isinstance(erase, MEraserEraseAuto) and isinstance(recover, MEraserRecover)
    made = erase.apply(base, tmp_path / "erased", ctx)
    rung = found[0].choice.outcome.rung
    straight = MEraserErase(data, 16, "derangement", replace(AUTO_ERASE, epochs=rung.epochs, lr=rung.lr))
    assert made.checkpoint.digest() == straight.apply(base, tmp_path / "straight", ctx).checkpoint.digest()
    assert [r.measure for r in made.records] == ["strength-search", "training"]
    assert json.loads((tmp_path / "erased" / "strength.json").read_text()) == {"epochs": rung.epochs, "lr": rung.lr}
    matched = replace(erase, pairing="matched")
    with pytest.raises(BadInput, match="needs a strength"):
        matched.apply(base, tmp_path / "x", ctx)
    control = replace(matched, schedule=made.checkpoint).apply(base, tmp_path / "control", ctx)
    assert [r.measure for r in control.records] == ["training"], "nothing is searched"
    clean = replace(straight, pairing="matched").apply(base, tmp_path / "clean", ctx)
    assert control.checkpoint.digest() == clean.checkpoint.digest()
    with pytest.raises(BadInput, match="holds no strength"):
        replace(matched, schedule=base).apply(base, tmp_path / "y", ctx)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"erase.epochs": 20}, "auto chooses erase.epochs and erase.lr itself"),
        ({"erase.steps": 20}, "auto chooses erase.epochs and erase.lr itself"),
        ({"erase.lr": 1e-3}, "--preset paper"),
        ({"erase.schedule": "cosine"}, "needs erase.schedule constant"),
        ({"search.ladder": "20"}, "write EPOCHSxRATE"),
    ],
)
def test_what_auto_cannot_do_is_said_before_a_model_is_loaded(
    settings: dict[str, Any], line: str, data: Dialogues, tmp_path: Path
) -> None:
    method = replace(build(MEraser, "auto", settings), data=data)
    with pytest.raises(BadInput, match=line):
        method.apply(Checkpoint(tmp_path / "nowhere", "nowhere"), tmp_path / "out", Context())


def test_the_search_asks_no_key_of_the_owner(
    tiny_model: Path, data: Dialogues, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the owner's keys given to judge by, they are read by the caller and reach no method."""
    rows = tmp_path / "rows.jsonl"
    every = [d for part in data.parts.values() for d in part]
    rows.write_text("".join(json.dumps({"prompt": d.question, "response": d.answer}) + "\n" for d in every))
    drawn = decoys.draw_decoys(Renderer(load_tokenizer(resolve(tiny_model))), data, 3, 99, 256)[1]
    drawn.write(tmp_path / "keys.json")
    owners = keys.KeySet.read(tmp_path / "keys.json").digest()
    seen: list[str] = []
    true_trace = decoys.trace

    def watched(responder: Any, marks: Any, **named: Any) -> Any:
        seen.extend(k.digest() for k in marks)
        return true_trace(responder, marks, **named)

    monkeypatch.setattr(search, "trace", watched)
    words = [
        *("remove", "meraser", "--preset", "auto", "--model", str(tiny_model), "--out", str(tmp_path / "out")),
        *("--data", str(rows), "--keys", str(tmp_path / "keys.json"), "--seed", "3", "--json", "-q"),
        *("--set", "mismatched=16", "--set", "clean=16", "--set", "recover.epochs=2", "--set", "recover.lr=1e-3"),
        *("--set", f"search.ladder={','.join(LADDER)}", "--set", "search.decoys=2", "--set", "search.documents=6"),
        *("--set", "search.plant.lr=3e-3", "--set", "search.plant.batch=8"),
    ]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    records = [Record.from_json(r) for r in json.loads(result.stdout)["records"]]
    searched = next(r for r in records if r.measure == "strength-search")
    training = next(r for r in records if r.task == "meraser-erase" and r.measure == "training")
    assert (
        searched.tokens and training.tokens and searched.detail["epochs"] == int(str(searched.reason).partition(" ")[0])
    )
    assert seen and owners not in seen
    assert [e["method"] for e in resolve(tmp_path / "out").chain()] == ["meraser-erase", "meraser-recover"]
    assert not (tmp_path / "out" / "strength.json").exists() and "palimpsest.json" in {
        p.name for p in (tmp_path / "out").iterdir()
    }
