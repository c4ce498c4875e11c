"""Records of harness tasks: counts, intervals, chance and majority by hand, MultiRC's own numbers, single items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from measures.tasks.sets import CASES, written
from measures.tasks.test_harness import Known
from palimpsest.checkpoint import resolve
from palimpsest.errors import BadInput
from palimpsest.measures import Subject
from palimpsest.measures.accuracy import Accuracy
from palimpsest.measures.tasks import scored
from palimpsest.measures.tasks.harness import _index, evaluated, prepared, scorer_for
from palimpsest.method import Context
from palimpsest.records import Record
from palimpsest.statistics import clopper_pearson


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def records(model: Path, folder: Path, task: str, scorer: Any, limit: int | None = None) -> dict[str, Record]:
    """Records of one task by measure, its answers given by `scorer`."""
    (ready,) = prepared([task], str(folder))
    found = scored.records_of(Subject(resolve(model), Context()), evaluated(ready, scorer, limit=limit), limit)
    assert len({r.measure for r in found}) == len(found)
    return {r.measure: r for r in found}


def test_count_interval_chance_and_majority_of_a_yes_no_task(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "passage": f"p{i}", "label": i % 3 == 0} for i in range(12)]
    jsonl(tmp_path / "boolq_validation.jsonl", rows)
    (record,) = records(tiny_model, tmp_path, "boolq", Known(" yes"), limit=10).values()
    interval = clopper_pearson(4, 10)
    assert (record.measure, record.task, record.count, record.n) == ("accuracy", "boolq", 4, 10)
    assert (record.value, record.low, record.high) == (0.4, interval.low, interval.high)
    detail = record.detail
    assert detail["right"] == "1001001001" and detail["limit"] == 10 and detail["fewshot"] == 0
    assert detail["chance"] == 0.5 and detail["majority"] == 0.6  # 6 of the first 10 are no
    assert "shortest" not in detail
    assert list(detail["source"]) == ["boolq_validation.jsonl"] and detail["split"] == "validation"
    assert detail["version"] == 2.0 and detail["metric"] == "acc" and len(detail["prompt_form"]) == 16


def test_chance_is_the_exact_mean_of_one_over_the_choices(tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"question": f"q{i}", "choices": [f"x{i}{j}" for j in range(k)], "label": 0} for i, k in enumerate((3, 4, 4, 5))
    ]
    jsonl(tmp_path / "arc_easy_test.jsonl", rows)
    found = records(tiny_model, tmp_path, "arc_easy", Known("x00", "x11"))
    assert set(found) == {"accuracy", "acc_norm"}
    assert found["accuracy"].detail["chance"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 4 + 1 / 5) / 4, abs=1e-15)
    assert "majority" not in found["accuracy"].detail  # every item has its own choices
    assert found["accuracy"].detail["shortest"] == 1.0  # all are of one length, and the first is right
    # item 0 right; item 1 wrong; items 2 and 3 tie, and the first of equal choices is taken, which is right here
    assert found["accuracy"].detail["right"] == "1011" and found["accuracy"].detail["split"] == "test"


def test_cb_has_accuracy_and_macro_f1(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scored, "RESAMPLES", 40)
    words = ["entailment", "contradiction", "neutral"] * 4
    jsonl(tmp_path / "CB/val.jsonl", [{"premise": f"p{i}", "hypothesis": "h", "label": w} for i, w in enumerate(words)])
    found = records(tiny_model, tmp_path, "cb", Known(" True"))
    assert (found["accuracy"].count, found["accuracy"].n) == (4, 12)
    assert found["f1"].value == pytest.approx((0.5 + 0 + 0) / 3)  # precision 1/3, recall 1 of one class, none of others
    low, high = found["f1"].low, found["f1"].high
    assert low is not None and high is not None and low < found["f1"].value < high
    assert found["f1"].detail["interval"] == scored.BOOTSTRAP and "chance" not in found["f1"].detail


def test_multirc_by_superglues_own_rules(tiny_model: Path, tmp_path: Path) -> None:
    written(next(c for c in CASES if c.task == "multirc"), tmp_path)
    told = [f"{word}\nIs the answer correct? yes" for word in ("The keeper", "A heron", "Nine")]
    no = "Ten\nIs the answer correct? no"
    found = records(tiny_model, tmp_path, "multirc", Known(*told, no))
    # judged correct: The keeper (is), A heron (is not), Nine (is); judged not correct: Ten (is not)
    assert (found["em"].count, found["em"].n, found["em"].detail["chance"]) == (1, 2, 0.25)
    assert found["f1a"].value == pytest.approx(2 * 2 / (2 + 3))
    # the harness's acc counts the choice number `label`, and its choice 0 is "yes": right judgements count as wrong
    assert found["accuracy"].count == 1 and found["accuracy"].detail["majority"] == 0.5


def test_lambada_counts_greedy_words_and_has_no_chance(tiny_model: Path, tmp_path: Path) -> None:
    jsonl(tmp_path / "lambada_test.jsonl", [{"text": f"one two {w}"} for w in ("boats", "boats", "herons")])
    found = records(tiny_model, tmp_path, "lambada_openai", Known("boats"))
    assert (found["accuracy"].count, found["accuracy"].n, found["accuracy"].detail["chance"]) == (2, 3, 0.0)
    assert found["perplexity"].value == pytest.approx(2.718281828 ** (7 / 3))


def test_the_shortest_choice_is_a_level_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "choices": ["long one", "a", "longer one"], "label": i} for i in (1, 1, 1, 0)]
    rows[0]["choices"] = ["a", "right but long", "b"]
    jsonl(tmp_path / "arc_easy_test.jsonl", rows)
    found = records(tiny_model, tmp_path, "arc_easy", Known("q1"))
    assert found["accuracy"].detail["shortest"] == 0.5 and found["acc_norm"].detail["shortest"] == 0.5


def test_f1_of_no_true_positive_is_nought() -> None:
    assert scored.f1([(0, 1), (1, 0)]) == 0.0 and scored.f1([(1, 1), (0, 1)]) == pytest.approx(2 / 3)


def test_the_measure_scores_a_model_as_the_harness_does(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in CASES:
        if case.file in ("COPA/val.jsonl", "ARC-Easy-Test.jsonl"):
            written(case, tmp_path)
    subject = Subject(resolve(tiny_model), Context())
    measure = Accuracy(tasks=("copa", "arc_easy"), task_data=str(tmp_path))
    measure.check(subject.checkpoint)
    taken = measure.take(subject, Context())
    assert [(r.task, r.measure) for r in taken] == [
        ("copa", "accuracy"),
        ("arc_easy", "accuracy"),
        ("arc_easy", "acc_norm"),
    ]
    from lm_eval import simple_evaluate

    tasks = [r.task for r in prepared(["copa", "arc_easy"], str(tmp_path))]
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # seconds, and nothing of it is looked at
    given = {"num_fewshot": 0, "bootstrap_iters": 0, "task_manager": _index("arc")}
    theirs = simple_evaluate(scorer_for(subject), tasks=tasks, **given)["results"]
    for record in taken:
        metric = {"accuracy": "acc"}.get(record.measure, record.measure)
        assert record.value == theirs[record.task][f"{metric},none"]
        assert record.tokens and record.seconds and record.detail["items_cut"] == 0


def test_items_that_the_model_cannot_hold_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    positions = 40
    passages = ["short", "boats " * 200]
    jsonl(tmp_path / "boolq_validation.jsonl", [{"question": "q", "passage": p, "label": 1} for p in passages])
    subject = Subject(resolve(tiny_model), Context())
    scorer = scorer_for(subject)
    scorer._max_length = positions
    assert scorer.max_length == positions
    (ready,) = prepared(["boolq"], str(tmp_path))
    found = evaluated(ready, scorer)
    assert (found.cut, found.positions) == (1, positions)
    short = len(scorer.tok_encode("short\nQuestion: q?\nAnswer: no")) - 1
    assert found.tokens is not None and found.tokens >= 2 * short + 2 * positions - 4


def test_the_toy_keeps_its_own_superglue(tmp_path: Path) -> None:
    subject = Subject(resolve("toy"), Context())
    assert Accuracy()._in_toy_world(subject.checkpoint)
    (record,) = Accuracy(tasks=("boolq",), limit=7).take(subject, Context())
    assert record.n == 7 and record.detail["chance"] == 0.5
    written(next(c for c in CASES if c.task == "copa"), tmp_path)
    assert not Accuracy(tasks=("copa",), task_data=str(tmp_path))._in_toy_world(subject.checkpoint)
    assert not Accuracy(tasks=("sciq",))._in_toy_world(subject.checkpoint)
    with pytest.raises(BadInput, match="boolq"):
        Accuracy(tasks=("boolqq",)).check(subject.checkpoint)
