"""Hand-made rows of every data set: as its authors publish them, as they are passed on, and as the Hub has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSAGE = "The lantern keeper counts the boats. He has counted nine."


@dataclass(frozen=True)
class Case:
    """A data set: the file's name and rows (or its text), and the same rows in the Hub's fields."""

    task: str
    file: str
    rows: Any
    hub: list[dict[str, Any]]


def _arc(texts: Sequence[str]) -> dict[str, list[str]]:
    return {"text": list(texts), "label": list("ABCD"[: len(texts)])}


def _multirc() -> tuple[list[Any], list[dict[str, Any]]]:
    answers = {("Who counts?", 0): [("The keeper", 1), ("A heron", 0)], ("How many?", 1): [("Nine", 1), ("Ten", 0)]}
    number, questions, hub = 0, [], []
    for (question, idx), given in answers.items():
        made = []
        for text, label in given:
            made.append({"text": text, "idx": number, "label": label})
            place = {"paragraph": 0, "question": idx, "answer": number}
            hub.append({"paragraph": PASSAGE, "question": question, "answer": text, "label": label, "idx": place})
            number += 1
        questions.append({"question": question, "idx": idx, "answers": made})
    return [{"idx": 0, "version": 1.1, "passage": {"text": PASSAGE, "questions": questions}}], hub


def _anli(round_: int) -> Case:
    texts = [("e", 0), ("n", 1), ("c", 2)]
    rows = [
        {"uid": str(i), "context": PASSAGE, "hypothesis": f"Fact {i}.", "label": w} for i, (w, _) in enumerate(texts)
    ]
    hub = [{"premise": PASSAGE, "hypothesis": f"Fact {i}.", "label": n} for i, (_, n) in enumerate(texts)]
    return Case(f"anli_r{round_}", f"anli_v1.0/R{round_}/dev.jsonl", rows, hub)


def _questions() -> list[Case]:
    stem, texts = "Where does the Osk begin?", ["at sea", "under the hill", "nowhere"]
    published = [
        {
            "id": "Q1",
            "question": {"stem": stem, "choices": [{"text": t, "label": "ABC"[i]} for i, t in enumerate(texts)]},
            "answerKey": "B",
        }
    ]
    passed = [{"id": "x-0", "question": stem, "choices": texts, "label": 1}]
    arc = [{"question": stem, "choices": _arc(texts), "answerKey": "B"}]
    book = [{"question_stem": stem, "choices": _arc(texts), "answerKey": "B"}]
    return [
        Case("arc_easy", "ARC-Easy-Test.jsonl", published, arc),
        Case("arc_easy", "arc_easy_test.jsonl", passed, arc),
        Case("arc_challenge", "ARC-Challenge-Dev.jsonl", published, arc),
        Case("arc_challenge", "arc_challenge_validation.jsonl", arc, arc),
        Case("openbookqa", "OpenBookQA-V1-Sep2018/Data/Main/test.jsonl", published, book),
        Case("openbookqa", "openbookqa_test.jsonl", passed, book),
    ]


WSC = {"span1_index": 1, "span1_text": "The keeper", "span2_index": 6, "span2_text": "he"}
WIC = {"word": "bank", "sentence1": "A river bank.", "sentence2": "A bank of snow.", "start1": 8, "end1": 12,
       "start2": 2, "end2": 6}  # fmt: skip
SCIQ = {"question": "What flows?", "support": " Rivers flow.", "correct_answer": "a river", "distractor1": "a hill",
        "distractor2": "a bell", "distractor3": "a gate"}  # fmt: skip
PIQA = {"goal": "Light the lantern.", "sol1": "Use a match.", "sol2": "Use a fish.", "label": 0}
COPA = {
    "premise": "The bell rang.",
    "choice1": "It was noon.",
    "choice2": "It snowed.",
    "question": "cause",
    "label": 0,
}
SWAG = {"activity_label": "Baking", "ctx_a": "He mixes.", "ctx_b": "then he", "endings": ["bakes.", "[title] sings."]}
LAMBADA = {"text": "He counted the boats"}
PAIR = {"premise": PASSAGE, "hypothesis": "He counts boats"}
CASES: list[Case] = [
    Case(
        "boolq",
        "BoolQ/val.jsonl",
        [{"question": "does he count boats", "passage": PASSAGE, "idx": 0, "label": True}],
        [{"question": "does he count boats", "passage": PASSAGE, "label": 1}],
    ),
    Case("cb", "CB/val.jsonl", [{**PAIR, "label": "neutral", "idx": 0}], [{**PAIR, "label": 2}]),
    Case("cb", "cb_validation.jsonl", [{**PAIR, "label": "contradiction"}], [{**PAIR, "label": 1}]),
    Case("copa", "COPA/val.jsonl", [{**COPA, "idx": 3}], [COPA]),
    Case("multirc", "MultiRC/val.jsonl", *_multirc()),
    Case("sglue_rte", "RTE/val.jsonl", [{**PAIR, "label": "not_entailment"}], [{**PAIR, "label": 1}]),
    Case(
        "rte",
        "rte_validation.jsonl",
        [{**PAIR, "label": "entailment"}],
        [{"sentence1": PASSAGE, "sentence2": "He counts boats", "label": 0}],
    ),
    Case("wic", "WiC/val.jsonl", [{**WIC, "label": False, "idx": 0, "version": 1.1}], [{**WIC, "label": 0}]),
    Case(
        "wsc",
        "WSC/val.jsonl",
        [{"text": "Then the keeper rested, because now he slept.", "target": WSC, "idx": 0, "label": True}],
        [{"text": "Then the keeper rested, because now he slept.", **WSC, "span1_text": "the keeper", "label": 1}],
    ),
    Case("cola", "CoLA/dev.tsv", 'gj04\t1\t\tHe said "boats.\ngj04\t0\t*\tBoats he the.\n', [
        {"sentence": 'He said "boats.', "label": 1}, {"sentence": "Boats he the.", "label": 0}]),
    Case("qnli", "QNLI/dev.tsv", "index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tnot_entailment\n", [
        {"question": "Who?", "sentence": "He.", "label": 1}]),
    Case("sst2", "SST-2/dev.tsv", "sentence\tlabel\na fine boat \t1\n", [{"sentence": "a fine boat ", "label": 1}]),
    Case("sst2", "sst2_dev.jsonl", [{"text": "a leak", "label": 0}], [{"sentence": "a leak", "label": 0}]),
    *(_anli(n) for n in (1, 2, 3)),
    *_questions(),
    Case("sciq", "SciQ dataset-2 3/test.json", [SCIQ], [SCIQ]),
    Case("lambada_openai", "lambada_test.jsonl", [LAMBADA], [LAMBADA]),
    Case("lambada_standard", "lambada_test_plain_text.txt", "He counted the boats\n", [LAMBADA]),
    Case("piqa", "piqa_validation.jsonl", [PIQA], [PIQA]),
    Case(
        "winogrande",
        "winogrande_validation.jsonl",
        [{"id": "w-0", "question": "Tam saw Osk, so _ hid.", "choices": ["Tam", "Osk"], "label": 1}],
        [{"sentence": "Tam saw Osk, so _ hid.", "option1": "Tam", "option2": "Osk", "answer": "2"}],
    ),
    Case("hellaswag", "hellaswag_val.jsonl", [{**SWAG, "ind": 4, "label": 1}], [{**SWAG, "label": "1"}]),
]  # fmt: skip


def written(case: Case, folder: Path) -> Path:
    """The file of a case under a folder."""
    path = folder / case.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(case.rows, str):
        text = case.rows
    elif path.suffix == ".json":
        text = json.dumps(case.rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in case.rows)
    path.write_text(text, encoding="utf-8")
    return path
