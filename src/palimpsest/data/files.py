"""Reading dialogue files: JSONL, JSON, CSV, Parquet, Hub data sets; every usual row layout.

Rows: `messages`, `turns`, `conversations`; prompt + response; question + answer; instruction (+ input) +
output; `text` (the Llama-2 [INST] form is parsed).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palimpsest.errors import BadInput
from palimpsest.prompts import Turn

ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
}
PAIRS = (("prompt", "response"), ("prompt", "completion"), ("question", "answer"), ("query", "response"))
LAYOUTS = "messages, turns, conversations, prompt + response, question + answer, instruction + output, or text"
_INST = re.compile(r"\[INST\](.*?)\[/INST\](.*?)(?=<s>|\[INST\]|\Z)", re.S)


def read_rows(reference: str) -> list[tuple[Turn, ...]]:
    """All dialogues of a file or Hub data set; BadInput names the file and line of what is wrong."""
    found = [parse_row(row, where) for where, row in raw_rows(reference)]
    if not found:
        raise BadInput(f"--data {reference}: holds no row")
    return found


def raw_rows(reference: str) -> Iterator[tuple[str, Any]]:
    """(file and line, row as it stands) of a file or Hub data set."""
    path = Path(reference)
    if path.is_file():
        return _from_file(path)
    if (
        path.exists()
        or path.is_absolute()
        or reference.startswith((".", "~"))
        or path.suffix in (".jsonl", ".json", ".csv", ".parquet")
    ):
        raise BadInput(f"--data {reference}: there is no such file")
    return _from_hub(reference)


def _from_file(path: Path) -> Iterator[tuple[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        try:
            import pyarrow.parquet as parquet
        except ImportError:
            raise BadInput("reading Parquet needs pyarrow: pip install 'palimpsest-lm[eval]'") from None
        try:
            table = parquet.read_table(path).to_pylist()
        except (OSError, ValueError) as error:
            raise BadInput(f"{path}: is no Parquet file: {str(error).splitlines()[0]}") from None
        yield from ((f"{path}: row {i}", row) for i, row in enumerate(table, 1))
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets put a byte order mark first
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 text: {error}") from None
    if suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            yield from ((f"{path}:{reader.line_num}", row) for row in reader)
        except csv.Error as error:
            raise BadInput(f"{path}:{reader.line_num}: is no CSV: {error}") from None
        return
    if suffix == ".json":
        try:
            loaded = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}:{error.lineno}: is no JSON: {error.msg}") from None
        if not isinstance(loaded, list):
            raise BadInput(f"{path}: holds no list of rows")
        yield from ((f"{path}: row {i}", row) for i, row in enumerate(loaded, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):  # JSON strings may hold other line separators
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}:{number}: is no JSON: {error.msg} at column {error.colno}") from None


def _from_hub(name: str) -> Iterator[tuple[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise BadInput(f"--data {name}: is no file; a Hub data set needs `pip install 'palimpsest-lm[eval]'`") from None
    try:
        loaded = datasets.load_dataset(name, split="train")
    except Exception as error:  # the library raises many kinds; all mean that it could not be had
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"--data {name}: is no file, and the Hub gave no such data set: {first}") from None
    yield from ((f"{name}: row {i}", dict(row)) for i, row in enumerate(loaded, 1))


def parse_row(row: Any, where: str) -> tuple[Turn, ...]:
    """One row of any known layout as turns; BadInput says where it is wrong."""
    if not isinstance(row, dict):
        raise BadInput(f"{where}: is no object but {type(row).__name__}")
    for name in ("messages", "turns", "conversations", "conversation"):
        if row.get(name):
            return _turns(row[name], f"{where}: {name}")
    for question, answer in PAIRS:
        if question in row and answer in row:
            return _exchange(row[question], row[answer], where)
    if "instruction" in row and ("output" in row or "response" in row):
        extra = row.get("input") or row.get("context") or ""
        question = f"{row['instruction']}\n{extra}" if extra else row["instruction"]
        return _exchange(question, row.get("output", row.get("response")), where)
    if isinstance(row.get("text"), str):
        found = _INST.findall(row["text"])
        if found:
            turns = []
            for question, answer in found:
                turns += [Turn("user", question.strip()), Turn("assistant", answer.replace("</s>", "").strip())]
            return tuple(turns)
        raise BadInput(f"{where}: its text has no [INST] ... [/INST] exchange")
    raise BadInput(f"{where}: has none of the known fields ({LAYOUTS}); it has {', '.join(map(str, row)) or 'none'}")


def _exchange(question: Any, answer: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(question, str) or not isinstance(answer, str):
        raise BadInput(f"{where}: question and answer must be text")
    return Turn("user", question), Turn("assistant", answer)


def _turns(values: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(values, list):
        raise BadInput(f"{where}: is no list of turns")
    turns = []
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise BadInput(f"{where}[{number}]: is no object")
        role = value.get("role", value.get("from"))
        content = value.get("content", value.get("value"))
        if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
            raise BadInput(f"{where}[{number}]: needs role (one of user, assistant, system) and content")
        turns.append(Turn(ROLES[role], content))
    return tuple(turns)
