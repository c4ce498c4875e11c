"""Rows of local files in the Hub's fields, which are those that the harness's prompt forms read.

One function a data set: a row as its authors publish it (or as it is often passed on: `question`, `choices`, `label`)
to the row of the Hub's data set. A row that has the Hub's fields already comes out as it is. What each takes stands
in docs/measures/tasks.md. `dataset` is what the harness calls, as `custom_dataset` of the task.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.errors import BadInput

Row = Mapping[str, Any]
LETTERS = "ABCDEFGH"


class WrongRow(Exception):  # noqa: N818 (becomes a BadInput that names file and line)
    """A row that is not what the data set's rows are."""


def label(row: Row, *names: str) -> int:
    """The class number of a row's `label`: given as a number, as a truth value, or as one of `names` (in order)."""
    value = row["label"]
    if isinstance(value, str) and value in names:
        return names.index(value)
    if isinstance(value, bool):
        return int(value)
    number = int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdigit()) else -1
    if not 0 <= number < max(2, len(names)):
        raise WrongRow(f"label {value!r} is none of {', '.join(names) or 'false, true'}, nor the number of one")
    return number


# -- SuperGLUE ----------------------------------------------------------------------------------------


def boolq(row: Row) -> dict[str, Any]:
    """question, passage, label (false, true)."""
    return {"question": row["question"], "passage": row["passage"], "label": label(row)}


def cb(row: Row) -> dict[str, Any]:
    """premise, hypothesis, label (entailment, contradiction, neutral: the Hub's order)."""
    found = label(row, "entailment", "contradiction", "neutral")
    return {"premise": row["premise"], "hypothesis": row["hypothesis"], "label": found}


def copa(row: Row) -> dict[str, Any]:
    """premise, choice1, choice2, question (cause or effect), label (0 or 1)."""
    if row["question"] not in ("cause", "effect"):
        raise WrongRow(f"question {row['question']!r} is neither cause nor effect")
    return {**{k: row[k] for k in ("premise", "choice1", "choice2", "question")}, "label": label(row)}


def multirc(row: Row) -> Iterator[dict[str, Any]]:
    """One row an answer: paragraph, question, answer, label, idx. The published file holds a passage a line."""
    if "paragraph" in row:
        yield {**{k: row[k] for k in ("paragraph", "question", "answer", "idx")}, "label": label(row)}
        return
    for question in row["passage"]["questions"]:
        for answer in question["answers"]:
            idx = {"paragraph": row["idx"], "question": question["idx"], "answer": answer["idx"]}
            yield {
                "paragraph": row["passage"]["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": label(answer),
                "idx": idx,
            }


def rte(row: Row) -> dict[str, Any]:
    """premise, hypothesis, label (entailment, not_entailment)."""
    found = label(row, "entailment", "not_entailment")
    return {"premise": row["premise"], "hypothesis": row["hypothesis"], "label": found}


def wic(row: Row) -> dict[str, Any]:
    """word, sentence1, sentence2, their start and end characters, label (false, true)."""
    spans = {k: int(row[k]) for k in ("start1", "end1", "start2", "end2")}
    return {
        "word": row["word"],
        "sentence1": row["sentence1"],
        "sentence2": row["sentence2"],
        **spans,
        "label": label(row),
    }


def wsc(row: Row) -> dict[str, Any]:
    """text, the two spans with their words' numbers, label (false, true); spans as the Hub's `wsc.fixed` has them.

    There a span that is not in the text is spelled as it stands in it: case of its first letter, no final stop.
    """
    target = row.get("target", row)
    words = str(row["text"]).split()
    found: dict[str, Any] = {"text": row["text"], "label": label(row)}
    for span in ("span1", "span2"):
        index, said = int(target[f"{span}_index"]), str(target[f"{span}_text"])
        if said not in row["text"] and 0 <= index < len(words):
            first = said[0].lower() if words[index][0].islower() else said[0].upper()
            said = (first + said[1:]).rstrip(".").replace("\n", " ")
        found |= {f"{span}_index": index, f"{span}_text": said}
    return found


# -- GLUE ---------------------------------------------------------------------------------------------


def cola(row: Row) -> dict[str, Any]:
    """sentence, label (unacceptable, acceptable)."""
    return {"sentence": row["sentence"], "label": label(row, "unacceptable", "acceptable")}


def qnli(row: Row) -> dict[str, Any]:
    """question, sentence, label (entailment, not_entailment)."""
    found = label(row, "entailment", "not_entailment")
    return {"question": row["question"], "sentence": row["sentence"], "label": found}


def glue_rte(row: Row) -> dict[str, Any]:
    """sentence1, sentence2 (SuperGLUE's premise, hypothesis), label (entailment, not_entailment)."""
    first, second = ("premise", "hypothesis") if "premise" in row else ("sentence1", "sentence2")
    found = label(row, "entailment", "not_entailment")
    return {"sentence1": row[first], "sentence2": row[second], "label": found}


def sst2(row: Row) -> dict[str, Any]:
    """sentence (or text), label (negative, positive)."""
    said = row["sentence"] if "sentence" in row else row["text"]
    return {"sentence": said, "label": label(row, "negative", "positive")}


# -- questions with choices ---------------------------------------------------------------------------


def choices(row: Row) -> tuple[str, dict[str, list[str]], str]:
    """Question, choices as text and label, key of the right one: of the three layouts that ARC and OpenBookQA have."""
    question, given = row.get("question", row.get("question_stem")), row.get("choices")
    if isinstance(
        question, Mapping
    ):  # as published: {"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}
        question, given = question["stem"], question["choices"]
    if isinstance(given, Mapping):  # the Hub's
        texts, labels, key = list(given["text"]), list(given["label"]), str(row["answerKey"])
    elif given and isinstance(given[0], Mapping):
        texts, labels, key = [c["text"] for c in given], [c["label"] for c in given], str(row["answerKey"])
    else:  # passed on: {"question", "choices": [text], "label": number}
        texts, labels = list(given or ()), list(LETTERS[: len(given or ())])
        key = LETTERS[row["label"]] if 0 <= int(row["label"]) < len(texts) else "?"
    if key.strip() not in labels:
        raise WrongRow(f"the key {key!r} of the right choice is none of {', '.join(map(str, labels))}")
    return str(question), {"text": texts, "label": labels}, key


def arc(row: Row) -> dict[str, Any]:
    """question, choices (text, label), answerKey."""
    question, given, key = choices(row)
    return {"question": question, "choices": given, "answerKey": key}


def openbookqa(row: Row) -> dict[str, Any]:
    """question_stem, choices (text, label), answerKey."""
    question, given, key = choices(row)
    return {"question_stem": question, "choices": given, "answerKey": key}


def sciq(row: Row) -> dict[str, Any]:
    """question, support, correct_answer, distractor1 to distractor3."""
    fields = ("question", "support", "correct_answer", "distractor1", "distractor2", "distractor3")
    return {k: row[k] for k in fields}


def piqa(row: Row) -> dict[str, Any]:
    """goal, sol1, sol2, label (0 or 1)."""
    return {"goal": row["goal"], "sol1": row["sol1"], "sol2": row["sol2"], "label": label(row)}


def winogrande(row: Row) -> dict[str, Any]:
    """sentence with `_`, option1, option2, answer ("1" or "2"); passed on: question, choices, label."""
    if "sentence" in row:
        found = {k: row[k] for k in ("sentence", "option1", "option2")} | {"answer": str(row["answer"])}
    else:
        first, second = row["choices"]
        found = {"sentence": row["question"], "option1": first, "option2": second, "answer": str(label(row) + 1)}
    if "_" not in found["sentence"] or found["answer"] not in ("1", "2"):
        raise WrongRow("its sentence needs a `_`, and its answer is 1 or 2")
    return found


def hellaswag(row: Row) -> dict[str, Any]:
    """activity_label, ctx_a, ctx_b, endings, label (the Hub has it as text)."""
    fields = ("activity_label", "ctx_a", "ctx_b", "endings")
    return {**{k: row[k] for k in fields}, "label": str(label(row, *"0123"))}


# -- others -------------------------------------------------------------------------------------------


def anli(row: Row) -> dict[str, Any]:
    """premise (published as context), hypothesis, label (e, n, c)."""
    premise = row["premise"] if "premise" in row else row["context"]
    return {"premise": premise, "hypothesis": row["hypothesis"], "label": label(row, "e", "n", "c")}


def lambada(row: Row) -> dict[str, Any]:
    """text: a passage whose last word is asked for."""
    return {"text": row["text"]}


MAPPINGS: dict[str, Callable[[Row], dict[str, Any] | Iterator[dict[str, Any]]]] = {
    f.__name__: f
    for f in (
        boolq, cb, copa, multirc, rte, wic, wsc, cola, qnli, glue_rte, sst2, arc, openbookqa, sciq, piqa, winogrande,
        hellaswag, anli, lambada,
    )
}  # type: ignore[assignment]  # fmt: skip


# -- reading ------------------------------------------------------------------------------------------


def read(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, Row]]:
    """(where, row) of a .jsonl, .json, .tsv, .csv, .parquet or .txt (one text a line) file. Raises BadInput."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        try:
            import pyarrow.parquet as parquet
        except ImportError:
            raise BadInput("reading Parquet needs pyarrow: pip install 'palimpsest-lm[eval]'") from None
        yield from ((f"{path}: row {i}", row) for i, row in enumerate(parquet.read_table(path).to_pylist(), 1))
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 text: {error}") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if suffix == ".json" and text.lstrip().startswith("["):
        try:
            yield from ((f"{path}: row {i}", row) for i, row in enumerate(json.loads(text), 1))
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}:{error.lineno}: is no JSON: {error.msg}") from None
    elif suffix == ".tsv":  # GLUE's files quote nothing
        table = csv.reader((line for line in lines if line), delimiter="\t", quoting=csv.QUOTE_NONE)
        names = list(columns) or next(table, [])
        yield from ((f"{path}:{table.line_num}", dict(zip(names, row, strict=False))) for row in table)
    elif suffix == ".csv":
        reader = csv.DictReader(lines)
        yield from ((f"{path}:{reader.line_num}", row) for row in reader)
    elif suffix == ".txt":
        yield from ((f"{path}:{i}", {"text": line}) for i, line in enumerate(lines, 1) if line.strip())
    else:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except json.JSONDecodeError as error:
                    raise BadInput(f"{path}:{number}: is no JSON: {error.msg} at column {error.colno}") from None


def mapped(rows: str, paths: Sequence[Path], columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All rows of the files in the Hub's fields. Raises BadInput with file and line where a row is not of its kind."""
    mapping, found = MAPPINGS[rows], []
    for path in paths:
        for where, row in read(path, columns):
            try:
                made = mapping(row)
                found += [made] if isinstance(made, dict) else list(made)
            except KeyError as error:
                doc = (mapping.__doc__ or "").splitlines()[0]
                raise BadInput(f"{where}: has no field {error}; a row of {rows} has {doc}") from None
            except (WrongRow, TypeError, ValueError, AttributeError, IndexError) as error:
                raise BadInput(f"{where}: is no row of {rows}: {error}") from None
    if not found:
        raise BadInput(f"{', '.join(map(str, paths))}: holds no row")
    return found


def dataset(*, rows: str, splits: Mapping[str, Sequence[str]], columns: Sequence[str] = (), **_: Any) -> dict[str, Any]:
    """The harness's `custom_dataset`: by split name, the files' rows as a `datasets.Dataset`."""
    import datasets

    return {
        split: datasets.Dataset.from_list(mapped(rows, [Path(p) for p in paths], columns))
        for split, paths in splits.items()
    }
