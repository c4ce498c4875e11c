"""Tasks on local files are the harness's own: the requests of its own configuration, its metrics, no noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.model import LM

from measures.tasks.sets import CASES, Case, written
from palimpsest.errors import BadInput
from palimpsest.measures.tasks import harness
from palimpsest.measures.tasks.harness import Ready, evaluated, prepared


class Known(LM):
    """Knows every answer: the continuation (or for WinoGrande the context) that holds one of `right` is likelier."""

    def __init__(self, *right: str) -> None:
        super().__init__()
        self.right = right
        self.asked: list[tuple[str, str]] = []

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        print("noise on standard output")
        self.asked += [r.args for r in requests]
        return [(-1.0, True) if any(w in c + k for w in self.right) else (-5.0, False) for c, k in self.asked]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError


def requests(ready: Ready, fewshot: int = 0) -> list[tuple[str, str]]:
    """All requests of a task, as the harness builds them."""
    scorer = Known()
    evaluated(ready, scorer, fewshot=fewshot)
    return scorer.asked


def of_the_hub(case: Case, monkeypatch: pytest.MonkeyPatch, training: list[dict[str, Any]] | None = None) -> Ready:
    """The harness's task as it is, its Hub data set replaced by the same rows in the Hub's fields."""
    import datasets

    def load(**_: Any) -> dict[str, Any]:
        rows = datasets.Dataset.from_list(case.hub)
        train = datasets.Dataset.from_list(training) if training is not None else rows
        names = [f"{s}{r}" for s in ("train", "validation", "dev", "test") for r in ("", "_r1", "_r2", "_r3")]
        return {name: train if name.startswith("train") else rows for name in names}

    monkeypatch.setattr(datasets, "load_dataset", load)
    harness._from_hub.cache_clear()
    (ready,) = prepared([case.task])
    harness._from_hub.cache_clear()
    return ready


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.file)
def test_requests_from_files_are_those_of_the_harness_on_the_same_rows(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(case, tmp_path)
    (local,) = prepared([case.task], str(tmp_path))
    theirs = of_the_hub(case, monkeypatch)
    asked = requests(local)
    assert asked == requests(theirs) and asked
    assert local.prompt_form == theirs.prompt_form
    assert local.task.VERSION == theirs.task.VERSION
    assert list(local.task.aggregation()) == list(theirs.task.aggregation())


def test_prompts_as_written_by_hand(tmp_path: Path) -> None:
    passage = "The lantern keeper counts the boats. He has counted nine."
    for case in CASES:
        if case.file in ("BoolQ/val.jsonl", "COPA/val.jsonl", "winogrande_validation.jsonl", "lambada_test.jsonl"):
            written(case, tmp_path)
    boolq, copa, winogrande, lambada = prepared(["boolq", "copa", "winogrande", "lambada_openai"], str(tmp_path))
    context = f"{passage}\nQuestion: does he count boats?\nAnswer:"
    assert requests(boolq) == [(context, " no"), (context, " yes")]
    assert requests(copa) == [("The bell rang because", "  it was noon."), ("The bell rang because", "  it snowed.")]
    assert requests(winogrande) == [("Tam saw Osk, so Tam", " hid."), ("Tam saw Osk, so Osk", " hid.")]
    assert requests(lambada) == [("He counted the", " boats")]


def test_examples_are_the_harness_own_choice_of_the_training_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(c for c in CASES if c.task == "boolq")
    written(case, tmp_path)
    with pytest.raises(BadInput, match="--fewshot needs its training rows"):
        prepared(["boolq"], str(tmp_path), 2)
    training = [{"question": f"is it {i}", "passage": f"It is {i}.", "label": i % 2} for i in range(20)]
    (tmp_path / "BoolQ/train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in training))
    (local,) = prepared(["boolq"], str(tmp_path), 2)
    asked = requests(local, 2)
    assert asked == requests(of_the_hub(case, monkeypatch, training), 2) == requests(local, 2)
    assert asked[0][0].count("Answer:") == 3


def items(n: int = 12) -> str:
    rows = [{"question": f"q{i}", "passage": f"p{i}", "label": i % 3 == 0} for i in range(n)]
    return "".join(json.dumps(r) + "\n" for r in rows)


def test_known_answers_are_counted_and_the_limit_takes_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "boolq_validation.jsonl").write_text(items())
    (ready,) = prepared(["boolq"], str(tmp_path))
    found = evaluated(ready, Known(" yes"))
    assert found.results["acc,none"] == pytest.approx(4 / 12)  # labels are yes for 0, 3, 6, 9
    assert [s["acc"] for s in found.samples] == [1, 0, 0] * 4
    assert len(evaluated(ready, Known(" yes"), limit=5).samples) == 5
    assert evaluated(ready, Known("p1\n", "p4")).results["acc,none"] == pytest.approx(8 / 12)  # ties go to the first
    assert "noise" not in capsys.readouterr().out
    (tmp_path / "boolq_validation.jsonl").write_text(items(3))
    (changed,) = prepared(["boolq"], str(tmp_path))
    assert len(evaluated(changed, Known(" yes")).samples) == 3


def test_progress_moves_with_the_harness_bars(tmp_path: Path) -> None:
    moved: list[float] = []

    class Task:
        def advance(self, amount: float = 1, note: str = "") -> None:
            moved.append(amount)

    import sys
    import types

    module = types.ModuleType("lm_eval.some_scorer")
    from tqdm import tqdm

    module.tqdm = tqdm  # type: ignore[attr-defined]
    sys.modules["lm_eval.some_scorer"] = module
    try:
        with harness.quiet(Task()):
            bar = module.tqdm(total=4, desc="requests", disable=False)
            for _ in range(4):
                bar.update(1)
            bar.set_postfix(a=1)
            bar.close()
            assert list(module.tqdm([1, 2])) == [1, 2]
        assert module.tqdm is tqdm
    finally:
        del sys.modules["lm_eval.some_scorer"]
    assert moved == [0.25] * 4


def test_a_task_that_is_not_there_says_what_to_look_for_and_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        prepared(["copa", "sciq"], str(tmp_path))
    told = str(error.value)
    assert "COPA/val.jsonl or copa_validation.jsonl" in told and "super.gluebenchmark.com" in told
    assert "1 more of 2 tasks" in told and "\n" not in told


def test_without_a_network_the_message_names_the_folder_option() -> None:
    harness._from_hub.cache_clear()
    with pytest.raises(BadInput) as error:
        prepared(["boolq"])
    told = str(error.value)
    assert "aps/super_glue boolq could not be had from the Hub" in told and "--task-data" in told
    assert "\n" not in told


def test_names_that_nobody_knows_get_the_nearest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Index:
        all_tasks = ("gsm8k", "boolq")
        task_index: ClassVar[dict[str, Any]] = {"gsm8k": None}

    monkeypatch.setattr(harness, "_index", lambda folder=None: Index())
    with pytest.raises(BadInput, match="did you mean boolq"):
        prepared(["bolq"])
    with pytest.raises(BadInput, match="did you mean gsm8k"):
        prepared(["gsm8"], str(tmp_path))
    with pytest.raises(BadInput, match="gsm8k: has no form for local files"):
        prepared(["gsm8k"], str(tmp_path))


def test_a_missing_harness_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(BadInput, match=r"needs lm-eval.*pip install 'palimpsest-lm\[eval\]'"):
        prepared(["boolq"])
