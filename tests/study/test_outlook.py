"""`study check`: what a study will do in ten lines, how long it will take and how that is known, what cannot run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fakes
import pytest
import yaml
from typer.testing import CliRunner

from factory import make_model
from palimpsest.cli import app
from palimpsest.data import Dialogues
from palimpsest.data.dialogues import Dialogue, Turn
from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.study import timing
from palimpsest.study.graph import plan
from palimpsest.study.needs import needs_of
from palimpsest.study.outlook import outlook
from palimpsest.study.run import run_study
from palimpsest.study.spec import parse_spec
from palimpsest.study.timing import rows_of, times_of

REMOVALS: list[Any] = ["none", "fake-eraser", {"averaging": {"expert": "base", "share": [0.4, 0.6]}}]


def called(*words: Any) -> Any:
    return CliRunner().invoke(app, ["study", "check", *(str(w) for w in words)])


def test_ten_lines_say_what_will_happen(tmp_path: Path) -> None:
    values = fakes.study(
        tmp_path,
        title="Mine",
        models=[{"id": "tiny", "path": str(tmp_path / "base")}, {"id": "guild", "from": ["tiny", "finetune"]}],
        on="tiny",
        implants=["fake-mark", "none"],
        removals=[*REMOVALS, {"breaks": {"controls": []}}],
        controls=["revival"],
        negatives=["clean-base"],
        seeds=[1, 2],
        exclude={"implant": "none", "removal": "averaging*"},
    )
    found = outlook(parse_spec(values))
    lines = dict(line.split(":", 1) for line in found.lines())
    assert {
        name: said.strip() for name, said in lines.items() if name not in ("memory", "disk", "models", "steps")
    } == {
        "study": "Mine",
        "grid": "fake-mark, no mark under 4 removals on tiny, seeds 1, 2: 12 cells (4 excluded)",
        "measured": "hit-rate, perplexity",
        "beside": "controls revival, and 1 removals with controls of their own; negatives clean-base",
        "time": "not known; --like DIR takes it from an earlier study",
        "note": "without a mark there is nothing that revival would tell",
    }
    assert lines["models"].strip() == f"tiny ({tmp_path / 'base'}); made once a seed: guild (of tiny > finetune)"
    # A seed: a mark, two phases with a revival, two merges with theirs, `breaks`: 9; without the mark two phases and
    # `breaks`: 3. Hits of base, mark and the eight made of it; perplexity of these nine and three, of the base once.
    steps, requested = len(found.plan.steps), found.plan.requested
    assert steps == 2 * (9 + 3) + 2 * 10 + 2 * (9 + 3) + 1
    assert lines["steps"].strip() == f"69: 24 make a model, 45 measure one; sharing saves {found.saved} of {requested}"
    assert len(found.steps()) == steps and found.saved == requested - steps > 0


def test_json_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(fakes.study(tmp_path, removals=REMOVALS)))
    values = json.loads(called(file, "--json").stdout)
    assert (values["cells"], values["excluded"], values["done"], len(values["steps"])) == (3, 0, 0, 17)
    assert values["saved"] == values["requested"] - 17
    assert values["time"] == {"seconds": None, "known": 0, "unknown": 17, "how": {}}
    assert set(values) >= {"memory", "disk", "notes", "title"}
    assert len(called(file).stdout.splitlines()) < 11 and len(called(file, "--steps").stdout.splitlines()) > 17
    assert called(file, "-v").stdout == called(file, "--steps").stdout


def test_time_is_that_of_like_steps_in_an_earlier_study(tmp_path: Path) -> None:
    values = fakes.study(tmp_path, removals=REMOVALS, measures=["perplexity"])
    run_study(parse_spec(values), tmp_path / "old", Context(threads=1))
    seconds = {}
    for number, record in enumerate(sorted((tmp_path / "old" / "steps").glob("*/record.json"))):
        body = json.loads(record.read_text())
        seconds[body["id"]] = body["seconds"] = 100.0 + number
        record.write_text(json.dumps(body))

    again = plan(parse_spec(values))
    times = times_of(again, again.steps, [tmp_path / "old"])
    assert times.seconds == seconds and set(times.how.values()) == {"same"} and not times.unknown
    assert str(times).startswith(
        "about "
    ) and f"{len(seconds)} steps as they took in old (cpu, 1 thread a step)" in str(times)

    other = plan(parse_spec({**values, "removals": [{"averaging": {"expert": "base", "share": 0.9}}, "breaks"]}))
    times = times_of(other, other.steps, [tmp_path / "old"])
    assert {other.steps[id].name: how for id, how in times.how.items()} == {
        "perplexity: tiny": "same",
        "tiny > fake-mark": "same",
        "perplexity: tiny > fake-mark": "same",
        "tiny > fake-mark > averaging": "method",
        "perplexity: tiny > fake-mark > averaging": "like",
        "perplexity: tiny > fake-mark > breaks": "like",
    }, "the same step, the same parameters, or at least the same method"
    merges = [seconds[s.id] for s in again.steps.values() if s.method_name == "averaging"]
    (merge,) = [s for id, s in times.seconds.items() if other.steps[id].method_name == "averaging"]
    assert merge == sum(merges) / 2, "the median of two"
    assert [other.steps[id].method_name for id in times.unknown] == ["breaks"]
    assert str(times).startswith("at least ") and "of 1 more not known" in str(times)

    seeds = plan(parse_spec({**values, "seeds": [7]}))
    assert set(times_of(seeds, seeds.steps, [tmp_path / "old"]).how.values()) == {"same", "like"}
    stranger = plan(parse_spec({**values, "models": [{"id": "tiny", "path": str(tmp_path / "stranger")}]}))
    assert not times_of(stranger, stranger.steps, [tmp_path / "old"]).seconds, "of another model nothing is known"


def test_what_is_done_in_the_study_s_own_folder_takes_no_time(tmp_path: Path) -> None:
    values = fakes.study(tmp_path, removals=["none", "fake-eraser"])
    run_study(parse_spec(values), tmp_path / "out", Context())
    found = outlook(parse_spec(values), tmp_path / "out")
    assert not found.todo and found.times.total is None and "nothing is left to do" in str(found.times)
    assert any(line.startswith("done:") and f"11 of these, in {tmp_path / 'out'}" in line for line in found.lines())
    more = outlook(parse_spec({**values, "seeds": [0, 1]}), tmp_path / "out")
    assert len(more.todo) == 10 and not more.times.unknown, "from the like steps of the folder itself"
    with pytest.raises(BadInput, match="holds no study"):
        outlook(parse_spec(values), like=[tmp_path])


def test_training_without_a_like_step_is_estimated_by_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real methods
    values = {
        "models": ["toy"],
        "implants": ["none"],
        "removals": [{"finetune": {"part": "recover", "samples": 100, "tuning": {"epochs": [2, 4], "lr": 0.001}}}],
        "measures": [{"accuracy": {"items": 5}}],
    }
    monkeypatch.setattr(timing, "operations_a_second", lambda model, tokens, device: 1e9)
    made = plan(parse_spec(values))
    times = times_of(made, made.steps)
    short, long = (times.seconds[s.id] for s in made.steps.values() if s.kind == "transform")
    assert long == pytest.approx(2 * short) and set(times.how.values()) == {"tokens"}
    rows = made.data[("toy",)].parts["recover"][: timing.ROWS]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(made.models["toy"].path / "tokenizer.json"))
    lengths = [len(tokenizer.encode("\n".join(t.content for t in d.turns)).ids) for d in rows]
    operations = 4 * 1_049_728 * 100 * 2 * sum(lengths) / len(lengths)  # adapters: 4 a weight and token
    assert short == pytest.approx(timing.BESIDE * operations / 1e9, rel=0.01)
    assert len(times.unknown) == 3 and "2 by tokens and this machine's speed, within a factor of 5" in str(times)


def test_rows_that_a_method_reads() -> None:
    pair = Dialogue((Turn("user", "a"), Turn("assistant", "b")))
    data = Dialogues("d", {"erase": (pair,) * 3, "recover": (pair,) * 4})

    def method(**fields: Any) -> Any:
        return type("Method", (), fields)()

    assert rows_of(method(samples=2, part="erase"), data) == 2
    assert rows_of(method(samples=None, part="erase"), data) == 3
    assert rows_of(method(part="all"), data) == 7
    assert rows_of(method(mismatched=300), data) == 300
    assert rows_of(method(strength=1.0), data) is None


def test_the_speed_of_this_machine_is_that_of_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    from palimpsest.checkpoint import resolve

    monkeypatch.setattr(timing, "PROBE_SECONDS", 0.01)
    speed = timing.operations_a_second(resolve("toy"), 100, "cpu")
    assert 1e6 < speed < 1e15, "somewhere between a pocket calculator and a cluster"


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"hidden_size": 32}, "expert-merge: base toy: "), ({"vocab": "other"}, "has another vocabulary than")],
)
def test_models_that_do_not_fit_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], expected: str
) -> None:
    monkeypatch.undo()
    first = make_model(tmp_path / "first")
    second = make_model(tmp_path / "second")
    if "vocab" in change:
        file = second / "tokenizer.json"
        said = json.loads(file.read_text())
        names = list(said["model"]["vocab"])
        said["model"]["vocab"][names[-1]], said["model"]["vocab"][names[-2]] = (
            said["model"]["vocab"][names[-2]],
            said["model"]["vocab"][names[-1]],
        )
        file.write_text(json.dumps(said))
        base = {"id": "second", "path": str(second)}
    else:
        base = {"id": "toy", "path": "toy"}
    values = {
        "models": [{"id": "first", "path": str(first)}, base],
        "on": "first",
        "implants": ["none"],
        "removals": [{"expert-merge": {"expert": "first", "base": base["id"]}}],
        "measures": [{"perplexity": {}}],
    }
    with pytest.raises(BadInput) as refused:
        needs_of(plan(parse_spec(values, "s.yaml")))
    assert str(refused.value).startswith("s.yaml: ") and expected in str(refused.value)


def test_errors_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    values = fakes.study(tmp_path, removals=["fake-eraser"])
    for change, expected in (
        ({"removals": [["fake-erasr", "breaks"]]}, "removals[0][0]: there is no"),
        ({"data": str(tmp_path / "none.jsonl")}, "data: "),
        ({"exclude": [{"removal": "nothing"}]}, "exclude[0].removal: nothing of the grid fits"),
        ({"models": [{"id": "x", "from": ["y", "finetune"]}]}, "models[0].from: there is no model 'y'"),
    ):
        file = tmp_path / "s.yaml"
        file.write_text(yaml.safe_dump({**values, **change}))
        result = called(file)
        assert result.exit_code == 2 and not result.stdout
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"palimpsest: error: {file}: {expected}"), line
