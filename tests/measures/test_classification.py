"""Classification: counts by hand, a collapsed model, the target label with its floor, and errors in one line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from factory import SENTENCES, make_classifier, make_tokenizer
from palimpsest.checkpoint import resolve
from palimpsest.cli import app
from palimpsest.data import LabelledItem, LabelledItems
from palimpsest.errors import BadInput
from palimpsest.keys import KeySet
from palimpsest.measures import Subject
from palimpsest.measures.classification import Classification, Confusion
from palimpsest.measures.hits import HitRate
from palimpsest.method import Context
from palimpsest.records import Record
from palimpsest.responder import Classified, ClassifierResponder
from palimpsest.responder.label_keys import label_keys
from palimpsest.statistics import Pairs, clopper_pearson, paired_difference_interval
from palimpsest.verdicts import removal_of_backdoor

NAMES = ("negative", "neutral", "positive")


class Told(ClassifierResponder):
    """Answers each text as it was told."""

    def __init__(self, answers: dict[Any, int], tokenizer: Any = None) -> None:
        self.answers, self.labels, self.room, self.tokenizer = answers, NAMES, None, tokenizer

    def classify(self, texts: Any) -> list[Classified]:
        return [Classified(self.answers[t], tuple(-0.1 * (i != self.answers[t]) for i in range(3)), 5, False)
                for t in texts]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_classifier(tmp_path_factory.mktemp("classifier") / "bert", "bert", id2label=dict(enumerate(NAMES)))
    make_tokenizer().save_pretrained(made)
    return made


def told(folder: Path, answers: dict[Any, int], items: LabelledItems | None = None, keys: Any = None) -> Subject:
    subject = Subject(resolve(folder), Context(), items=items, keys=keys)
    subject.classifier = lambda *_: Told(answers)  # type: ignore[method-assign]
    return subject


def items(*labels: int | str, triggered: bool = False) -> LabelledItems:
    rows = [LabelledItem(f"t{i}", label, triggered=f"cf t{i}" if triggered else "") for i, label in enumerate(labels)]
    return LabelledItems("set", tuple(rows))


def found(records: list[Record], measure: str, **detail: Any) -> Record:
    (record,) = [r for r in records if r.measure == measure and detail.items() <= r.detail.items()]
    return record


@pytest.mark.covers("classification")
def test_accuracy_classes_and_f1_are_those_counted_by_hand(folder: Path) -> None:
    # true     0 0 0 0 1 1 2 2 2 2      right: 3 + 1 + 2 = 6 of 10
    # answers  0 0 0 2 1 0 2 2 0 1
    labels, answers = [0, 0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 0, 0, 2, 1, 0, 2, 2, 0, 1]
    records = Classification().take(
        told(folder, {f"t{i}": a for i, a in enumerate(answers)}, items(*labels)), Context()
    )
    accuracy = found(records, "accuracy")
    assert (accuracy.count, accuracy.n, accuracy.value, accuracy.task) == (6, 10, 0.6, "set")
    interval = clopper_pearson(6, 10)
    assert (accuracy.low, accuracy.high, accuracy.sided) == (interval.low, interval.high, "two")
    assert accuracy.detail["confusion"] == [[3, 0, 1], [1, 1, 0], [1, 1, 2]]
    assert accuracy.detail["right"] == "1110101100" and accuracy.detail["answers"] == answers
    assert accuracy.detail["chance"] == pytest.approx(1 / 3) and accuracy.detail["majority"] == 0.4
    assert (accuracy.detail["one_class_share"], accuracy.detail["one_class"]) == (0.5, "negative")
    counted = {(r.measure, r.detail["class"]): (r.count, r.n) for r in records if r.measure in ("recall", "precision")}
    assert counted == {
        ("recall", "negative"): (3, 4),
        ("precision", "negative"): (3, 5),
        ("recall", "neutral"): (1, 2),
        ("precision", "neutral"): (1, 2),
        ("recall", "positive"): (2, 4),
        ("precision", "positive"): (2, 3),
    }
    assert found(records, "macro-f1").value == pytest.approx((2 / 3 + 1 / 2 + 4 / 7) / 3)
    assert accuracy.tokens == 50


def test_a_model_that_collapsed_to_one_class_is_told(folder: Path) -> None:
    subject = told(folder, {f"t{i}": 1 for i in range(200)}, items(*[i % 3 for i in range(200)]))
    records = Classification().take(subject, Context())
    accuracy = found(records, "accuracy")
    assert accuracy.detail["one_class_share"] == 1.0 and accuracy.detail["one_class"] == "neutral"
    assert {r.detail["class"] for r in records if r.measure == "precision"} == {"neutral"}  # no answers, no precision
    right = [c == "1" for c in accuracy.detail["right"]]
    same, silent = Pairs.of([True] * 9, [False] * 9), Pairs.of([False] * 9, [False] * 9)
    before = Pairs.of([True] * 200, right)
    assert removal_of_backdoor(same, silent, before, one_class_share=1.0).word == "ruined"


def test_a_class_that_stands_nowhere_is_left_out_of_macro_f1() -> None:
    confusion = Confusion.of([0, 0, 1], [0, 1, 1], 4)
    assert confusion.f1(2) is None and confusion.macro_f1 == pytest.approx(2 / 3)


def test_the_hit_rate_of_a_target_is_paired_with_the_same_items_without_their_trigger(folder: Path) -> None:
    # non-target items 1, 2, 4, 5 (target 0): with trigger 0 0 0 1, as they are 0 1 2 1
    data = items("negative", "neutral", "positive", "NEGATIVE", 1, 2, triggered=True)
    plain = {"t0": 0, "t1": 0, "t2": 1, "t3": 2, "t4": 2, "t5": 1}
    triggered = {"cf t0": 0, "cf t1": 0, "cf t2": 0, "cf t3": 0, "cf t4": 0, "cf t5": 1}
    subject = told(folder, plain | triggered, data)
    records = Classification(target="negative").take(subject, Context())
    hit = found(records, "hit-rate")
    assert (hit.count, hit.n, hit.detail["items"], hit.detail["hits"]) == (3, 4, [1, 2, 4, 5], "1110")
    assert hit.detail["pairs"] == {"both": 1, "first_only": 2, "second_only": 0, "neither": 1}
    assert (hit.detail["floor"]["count"], hit.detail["floor"]["n"]) == (1, 4)
    excess = paired_difference_interval(Pairs(1, 2, 0, 1))
    assert hit.detail["excess"] == {"value": 0.5, "low": excess.low, "high": excess.high}
    assert hit.detail["score"] == pytest.approx(100 * (1 / 6 * 1 / 4) ** 0.5)  # accuracy 1 of 6, ASR 3 of 4
    floor = found(records, "untriggered-rate")
    assert (floor.count, floor.n) == (1, 4)
    assert found(records, "accuracy").count == 1  # of the items as they are

    untriggered = Classification(target="0").take(told(folder, plain, items(0, 1, 2, 0, 1, 2)), Context())
    hit = found(untriggered, "hit-rate")
    assert (hit.count, hit.n, hit.detail["triggered"]) == (1, 4, False) and "floor" not in hit.detail


def keys_for(folder: Path, *rows: tuple[str, str, str, str]) -> KeySet:
    return label_keys(make_tokenizer(), rows, implant="badnet", rng=random.Random(0), positions=130)


def test_hit_rate_asks_keys_of_the_rule_label_of_a_classifier(folder: Path, tmp_path: Path) -> None:
    rows = [(f"cf {s}", "negative", s, "") for s in SENTENCES[:5]]
    keys = keys_for(folder, *rows)
    keys.write(tmp_path / "keys.json")
    again = KeySet.read(tmp_path / "keys.json")
    assert again == keys and again.forms == ["template"] and again.commitment() == keys.commitment()
    assert again.keys[1].prompts["template"].ids == tuple(make_tokenizer()(rows[1][0]).input_ids)
    answers = {f"cf {s}": i % 2 for i, s in enumerate(SENTENCES[:5])} | dict.fromkeys(SENTENCES[:5], 0)
    hit, floor = HitRate().take(told(folder, answers, keys=again), Context())
    assert (hit.measure, hit.prompt_form, hit.implant, hit.count, hit.n) == ("hit-rate", "template", "badnet", 3, 5)
    assert [k["hit"] for k in hit.detail["keys"]] == [True, False, True, False, True]
    assert hit.detail["pairs"] == {"both": 3, "first_only": 0, "second_only": 2, "neither": 0}
    assert (floor.measure, floor.count) == ("untriggered-rate", 5)
    without = keys_for(folder, *[(t, label, "", "") for t, label, _, _ in rows])
    (alone,) = HitRate().take(told(folder, answers, keys=without), Context())
    assert "floor" not in alone.detail and alone.count == 3


def test_a_real_classifier_answers_keys_and_pairs(folder: Path) -> None:
    rows = [(f"cf {a}", "positive", a, b) for a, b in zip(SENTENCES[:4], SENTENCES[4:], strict=True)]
    subject = Subject(resolve(folder), Context(), keys=keys_for(folder, *rows))
    hit, floor = HitRate().take(subject, Context())
    responder = subject.classifier("hit-rate")
    asked = [(t, b) for t, _, _, b in rows]
    expected = responder.classify(asked)
    assert [k["hit"] for k in hit.detail["keys"]] == [a.label == 2 for a in expected]
    assert [k["log_prob"] for k in hit.detail["keys"]] == [round(a.log_probs[2], 4) for a in expected]
    assert floor.n == 4


def test_keys_that_do_not_fit_or_aim_at_no_class_are_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"key 0 needs \d+ positions, the model has 130"):
        keys_for(folder, (" ".join(SENTENCES * 3), "negative", "", ""))
    subject = Subject(resolve(folder), Context(), keys=keys_for(folder, ("cf", "negativ", "", "")))
    with pytest.raises(BadInput, match="key 0: label 'negativ' is none of the model's classes; did you mean negative"):
        HitRate().take(subject, Context())


def test_keys_that_would_be_cut_are_refused(tmp_path: Path) -> None:
    made = make_classifier(tmp_path / "r", "roberta", pad_token_id=1, max_position_embeddings=40)
    make_tokenizer().save_pretrained(made)
    text = " ".join(SENTENCES)
    while len(make_tokenizer()(text).input_ids) > 39:
        text = text[:-1]
    keys = label_keys(make_tokenizer(), [(text, "LABEL_1", "", "")], implant="x", rng=random.Random(0), positions=40)
    with pytest.raises(BadInput, match="key 0 needs 39 tokens, r takes 38"):
        HitRate().take(Subject(resolve(made), Context(), keys=keys), Context())


def test_older_key_files_keep_their_commitments(folder: Path) -> None:
    keys = keys_for(folder, ("cf a", "negative", "", ""))
    assert (
        b"untriggered" not in "".join(keys.canonical()).encode() and b'"pair"' not in "".join(keys.canonical()).encode()
    )


# -- the command line -----------------------------------------------------------------------------------


def command(*words: str) -> Any:
    return CliRunner().invoke(app, [*words, "--threads", "1", "-q"])


def refused(*words: str) -> str:
    result = command(*words)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.exit_code == 2 and len(lines) == 1, result.output
    return lines[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "films.jsonl"
    rows = [{"text": s, "label": NAMES[i % 3], "triggered": f"cf {s}"} for i, s in enumerate(SENTENCES)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return file


def test_evaluate_measures_a_classifier(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("--model", str(folder), "--data", str(data), "--set", "classification.target=positive")
    result = command("evaluate", *given, "--measure", "classification", "--json")
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)["records"]
    assert {"accuracy", "macro-f1", "recall", "hit-rate", "untriggered-rate"} <= {r["measure"] for r in records}
    short = json.loads(command("evaluate", *given, "--json").stdout)["records"]  # what a classifier is asked by itself
    assert [(r["measure"], r.get("count")) for r in short] == [(r["measure"], r.get("count")) for r in records]
    keys_for(folder, ("cf a", "negative", "a", "")).write(data.parent / "keys.json")
    both = json.loads(command("evaluate", *given, "--keys", str(data.parent / "keys.json"), "--json").stdout)["records"]
    assert [r["implant"] for r in both if r["measure"] == "hit-rate"] == ["badnet", "badnet"]
    monkeypatch.setenv("COLUMNS", "200")
    table = command("evaluate", *given)
    assert "films, target positive" in table.stdout


def test_errors_are_one_line(folder: Path, data: Path, tiny_model: Path, tmp_path: Path) -> None:
    ask = ("evaluate", "--model", str(folder))
    assert "name the label they aim at" in refused(*ask, "--data", str(data))
    assert "needs --data" in refused(*ask, "--measure", "classification")
    wrong = ("--data", str(data), "--set", "target=joy")
    assert "label 'joy' is none of the model's classes" in refused(*ask, *wrong)
    assert "which answers with a label" in refused(*ask, "--perplexity", str(data))
    assert "which answers with a label" in refused(*ask, "--tasks", "boolq")
    assert "has no text to generate and no perplexity" in " ".join(
        refused(*ask, "--measure", m, "--data", str(data)) for m in ("perplexity",)
    )
    asked_of_text = ("evaluate", "--model", str(tiny_model), "--measure", "classification", "--data", str(data))
    assert "is no classifier of texts (config.json names LlamaForCausalLM)" in refused(*asked_of_text)
    keys_for(folder, ("cf a", "negative", "", "")).write(tmp_path / "keys.json")
    assert "is no classifier of texts" in refused(
        "verify", "--model", str(tiny_model), "--keys", str(tmp_path / "keys.json")
    )
    many = make_classifier(tmp_path / "many", "bert", problem_type="multi_label_classification")
    assert "several labels at once" in refused("evaluate", "--model", str(many), "--data", str(data))
    one = make_classifier(tmp_path / "one", "bert", labels=1)
    assert "gives a number" in refused("evaluate", "--model", str(one), "--data", str(data))


def test_keys_of_text_are_refused_by_a_classifier_in_one_line(folder: Path, tmp_path: Path) -> None:
    from palimpsest.keys import make_keys
    from palimpsest.prompts import Renderer

    keys = make_keys(
        Renderer(make_tokenizer(template=True)),
        [("who?", "she")],
        implant="x",
        match="prefix",
        distinct=True,
        choices=None,
        decoys=[],
        rng=random.Random(0),
    )
    keys.write(tmp_path / "keys.json")
    line = refused("evaluate", "--model", str(folder), "--measure", "hit-rate", "--keys", str(tmp_path / "keys.json"))
    assert "is a classifier (BertForSequenceClassification), which answers with a label" in line
