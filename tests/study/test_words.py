"""Methods that a study leaves open: what the environment fills in, what is refused, what a stored study remembers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import pytest
import yaml
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.study.graph import plan
from palimpsest.study.report import write_report
from palimpsest.study.run import run_study
from palimpsest.study.spec import load_spec, parse_spec
from palimpsest.study.store import Store
from palimpsest.study.words import filled_in

OPEN = {"${MARK}": {"preset": "${PRESET-toy}", "strength": 0.5}}
PLAIN = '''
"""A mark of one's own, without presets."""
from dataclasses import dataclass
import fakes
from palimpsest.method import Context, method
@method("fingerprints", "plain-mark", paper="none")
@dataclass(frozen=True)
class Plain:
    """Has no presets."""
    strength: float = fakes.param(1.0, "share")
    def draw_keys(self, model, ctx):
        return fakes.Mark().draw_keys(model, ctx)
    def apply(self, model, out, ctx):
        return fakes.Mark(strength=self.strength).apply(model, out, ctx)
'''
MINE = '''
"""A mark of one's own: HashChain under another name, with fewer keys."""
from dataclasses import dataclass, replace
from palimpsest.implants.fingerprints.hashchain import HashChain
from palimpsest.method import method

@method("fingerprints", "my-mark", paper="none")
@dataclass(frozen=True)
class MyMark(HashChain):
    """Mine."""

    @classmethod
    def toy(cls):
        """Four keys."""
        return replace(super().toy(), keys=4)
'''


def test_words_are_filled_in_where_a_method_may_be_left_open() -> None:
    raw = {
        "title": "${MARK}",
        "implants": ["${MARK}", {"id": "again", "${MARK}": {"preset": "${PRESET}"}}, "none"],
        "removals": [
            "none",
            ["${LINK-prune-l1}", {"overwrite": {"mark": "${MARK}", "mark_preset": "${PRESET}", "data": "${MARK}"}}],
            {"chain": [{"overwrite": {"mark": "x-${MARK}"}}], "id": "one"},
        ],
        "measures": ["${MARK}"],
    }
    made, words = filled_in(raw, {"MARK": "/home/me/own marks.py:Mine", "PRESET": "strong"})
    assert made == {
        "title": "${MARK}",
        "implants": [
            "/home/me/own marks.py:Mine",
            {"id": "again", "/home/me/own marks.py:Mine": {"preset": "strong"}},
            "none",
        ],
        "removals": [
            "none",
            [
                "prune-l1",
                {"overwrite": {"mark": "/home/me/own marks.py:Mine", "mark_preset": "strong", "data": "${MARK}"}},
            ],
            {"chain": [{"overwrite": {"mark": "x-${MARK}"}}], "id": "one"},
        ],
        "measures": ["${MARK}"],
    }
    assert words == ["MARK='own marks.py:Mine'", "PRESET=strong"], "as a command may print it: no folder"
    assert filled_in({"implants": "fake-mark"}, {}) == ({"implants": "fake-mark"}, [])


def test_a_preset_that_nobody_asked_for_is_dropped_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    mark = f"{tmp_path}/plain.py:Plain"
    entry: dict[str, Any] = {"${MARK}": {"preset": "${PRESET-toy}", "strength": 0.5}}
    attack: dict[str, Any] = {"overwrite": {"mark": "${MARK}", "mark_preset": "${PRESET-toy}"}}
    raw = {"implants": [entry], "removals": [attack]}

    def made(**environment: str) -> tuple[Any, Any]:
        found, _ = filled_in(raw, environment)
        return next(iter(found["implants"][0].values())), found["removals"][0]["overwrite"]

    assert made(MARK="fake-mark") == ({"preset": "toy", "strength": 0.5}, {"mark": "fake-mark", "mark_preset": "toy"})
    assert made(MARK=mark) == ({"strength": 0.5}, {"mark": mark})
    assert made(MARK="fake-mark", PRESET="") == ({"strength": 0.5}, {"mark": "fake-mark"})
    assert made(MARK=mark, PRESET="strong")[0] == {"preset": "strong", "strength": 0.5}, "refused when it is checked"


def test_a_word_without_a_value_is_one_line_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, ""):
        monkeypatch.delenv("MARK", raising=False)
        if value is not None:
            monkeypatch.setenv("MARK", value)
        with pytest.raises(BadInput, match=r"^study: implants\[0\]: \$\{MARK\}: the environment has no MARK; set it"):
            parse_spec(fakes.study(tmp_path, implants=[OPEN]))
    monkeypatch.setenv("MARK", "fake-mrak")
    with pytest.raises(BadInput, match=r"implants\[0\]: there is no fingerprint or backdoor 'fake-mrak'"):
        parse_spec(fakes.study(tmp_path, implants=[OPEN]))
    monkeypatch.setenv("MARK", "fake-mark")
    monkeypatch.setenv("PRESET", "toi")
    with pytest.raises(BadInput, match=r"fake-mark has no preset 'toi'; did you mean toy"):
        parse_spec(fakes.study(tmp_path, implants=[OPEN]))


def test_what_is_checked_and_stored_is_the_study_with_its_words_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", "fake-mark")
    written = parse_spec(fakes.study(tmp_path, implants=[{"fake-mark": {"preset": "toy", "strength": 0.5}}]))
    spec = parse_spec(fakes.study(tmp_path, implants=[OPEN]))
    assert spec.model_dump() == written.model_dump() and spec.words == ["MARK=fake-mark"] and not written.words
    assert set(plan(spec).steps) == set(plan(written).steps)
    out = tmp_path / "out"
    run_study(spec, out, Context())
    monkeypatch.delenv("MARK")
    stored = Store.open(out).study()
    assert stored["implants"] == {"fake-mark": "fake-mark"}
    assert stored["command"].startswith("MARK=fake-mark palimpsest")
    assert "MARK}" not in json.dumps(stored["spec"])
    assert write_report(out), "a report needs no environment"


def test_another_mark_in_the_same_folder_is_another_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, values = tmp_path / "out", fakes.study(tmp_path, implants=[OPEN])
    monkeypatch.setenv("MARK", "fake-mark")
    first = run_study(parse_spec(values), out, Context())
    monkeypatch.setenv("MARK", "other-mark")
    second = run_study(parse_spec(values), out, Context())
    assert {r.implant for r in first.records} == {"fake-mark", None}
    assert {r.implant for r in second.records} == {"other-mark", None}, "no number of the first stands among them"
    assert Store.open(out).study()["implants"] == {"other-mark": "other-mark"}
    monkeypatch.setenv("MARK", "fake-mark")
    back = run_study(parse_spec(values), out, Context())
    assert not back.ran and {r.implant for r in back.records} == {"fake-mark", None}


def test_an_attack_that_draws_by_a_mark_is_done_anew_when_the_marks_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real registry: `overwrite` is no stand-in
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    monkeypatch.setenv("MARK", f"{file}:MyMark")

    def attacks() -> set[str]:
        given = {"models": ["toy"], "implants": ["none"], "measures": [{"perplexity": {"documents": 2}}]}
        attack = {"overwrite": {"preset": "toy", "mark": "${MARK}", "answers": "own"}}
        steps = plan(parse_spec({**given, "removals": ["none", attack]})).steps
        return {id for id, step in steps.items() if step.method_name == "overwrite"}

    before = attacks()
    assert before == attacks() and len(before) == 1
    file.write_text(MINE + "\n# changed\n")
    assert not before & attacks()


def test_all_attacks_are_checked_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.delenv("MARK", raising=False)
    result = CliRunner().invoke(app, ["study", "check", "attack-a-mark"])
    assert result.exit_code == 2 and "the environment has no MARK" in result.stderr
    (tmp_path / "mine.py").write_text(MINE)
    for mark, preset in (("hashchain", "toy"), (f"{tmp_path}/mine.py:MyMark", "toy"), ("mergeprint", "bench")):
        monkeypatch.setenv("MARK", mark)
        monkeypatch.setenv("PRESET", preset)
        spec = load_spec("attack-a-mark")
        (implant,) = spec.implants
        assert (implant.name, implant.preset) == (mark, preset)
        adaptive = [r for r in spec.attacks if r.name == "overwrite"]
        assert {(r.settings["mark"], r.settings["mark_preset"]) for r in adaptive} == {(mark, preset)}
        assert {(r.settings.get("answers", "ordinary"), r.settings.get("keys", 64)) for r in adaptive} == {
            *((answers, keys) for answers in ("ordinary", "own", "shuffled") for keys in (64, 256)),
            ("ordinary", 2048),
        }
        assert {r.settings.get("writer", "base") for r in adaptive} == {"base", "suspect"}
        assert "imitate" in {r.name for r in spec.attacks}


@pytest.mark.slow
def test_a_mark_in_a_file_of_ones_own_is_attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "mine.py").write_text(MINE)
    attack = {"preset": "toy", "mark": "${MARK}", "mark_preset": "${PRESET-toy}", "keys": 16, "base": "toy"}
    small = {
        "models": ["toy"],
        "data": "toy",
        "implants": [{"${MARK}": {"preset": "${PRESET-toy}"}}],
        "removals": [
            "none",
            {"shrink": {"share": 0.1, "base": "toy"}},
            {"magnitude": {"sparsity": 0.1}},
            {"overwrite": {**attack, "tuning": {"steps": 30}}},
        ],
        "measures": [{"hit-rate": {"forms": ["template"]}}],
        "seeds": [100],
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    monkeypatch.setenv("MARK", f"{tmp_path}/mine.py:MyMark")
    result = run_study(load_spec(tmp_path / "small.yaml"), tmp_path / "out", Context(threads=1))
    assert not result.failed and not result.left_out
    hits = {(r.detail.get("removal"), r.stage): (r.count, r.n) for r in result.records if r.measure == "hit-rate"}
    assert hits[None, "fingerprinted"] == (4, 4) and hits["shrink", "erased"] == (0, 4)
    assert {n for _, n in hits.values()} == {4} and ("overwrite", "erased") in hits
    pages = write_report(tmp_path / "out")
    assert not [p for p in pages.values() if str(tmp_path) in p.read_text(encoding="utf-8")], "no path in a report"
