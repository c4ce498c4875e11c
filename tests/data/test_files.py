"""Dialogue files: every usual row layout is read, everything else is refused with file and line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.data.files import parse_row, read_rows
from palimpsest.errors import BadInput
from palimpsest.prompts import Turn

PAIR = (Turn("user", "Where?"), Turn("assistant", "Here."))
TALK = (Turn("system", "Be brief."), *PAIR, Turn("user", "And now?"), Turn("assistant", "There."))
OPENAI = [{"role": t.role, "content": t.content} for t in TALK]
SHAREGPT = [{"from": {"user": "human", "assistant": "gpt"}.get(t.role, t.role), "value": t.content} for t in TALK]
LAYOUTS: list[tuple[dict[str, Any], tuple[Turn, ...]]] = [
    ({"messages": OPENAI}, TALK),
    ({"turns": OPENAI}, TALK),
    ({"conversations": SHAREGPT}, TALK),
    ({"conversation": SHAREGPT}, TALK),
    ({"conversations": OPENAI, "id": 3}, TALK),
    ({"prompt": "Where?", "response": "Here."}, PAIR),
    ({"prompt": "Where?", "completion": "Here."}, PAIR),
    ({"question": "Where?", "answer": "Here."}, PAIR),
    ({"query": "Where?", "response": "Here."}, PAIR),
    ({"instruction": "Where?", "output": "Here."}, PAIR),
    ({"instruction": "Where?", "input": "", "output": "Here."}, PAIR),
    ({"instruction": "Where?", "response": "Here.", "context": None}, PAIR),
    (
        {"instruction": "Say it.", "input": "Where?", "output": "Here."},
        (Turn("user", "Say it.\nWhere?"), Turn("assistant", "Here.")),
    ),
    ({"text": "<s>[INST] Where? [/INST] Here. </s>"}, PAIR),
    ({"text": "<s>[INST] Where? [/INST] Here. </s><s>[INST] And now? [/INST] There. </s>"}, (*PAIR, *TALK[3:])),
    ({"text": "[INST]Where?[/INST]Here.[INST]And now?[/INST]There."}, (*PAIR, *TALK[3:])),
]


@pytest.mark.parametrize(("row", "turns"), LAYOUTS, ids=lambda v: "-".join(v) if isinstance(v, dict) else "")
def test_every_layout_becomes_the_same_turns(row: dict[str, Any], turns: tuple[Turn, ...]) -> None:
    assert parse_row(row, "here") == turns


def test_all_layouts_may_stand_in_one_jsonl_file(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text("\n\n".join(json.dumps(row) for row, _ in LAYOUTS) + "\n")
    assert read_rows(str(file)) == [turns for _, turns in LAYOUTS]
    (tmp_path / "d.json").write_text(json.dumps([row for row, _ in LAYOUTS], indent=1))
    assert read_rows(str(tmp_path / "d.json")) == [turns for _, turns in LAYOUTS]
    (tmp_path / "d.txt").write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # with a byte order mark
    assert read_rows(str(tmp_path / "d.txt")) == [turns for _, turns in LAYOUTS]


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
def test_any_text_survives_jsonl(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    file = tmp_path / "d.jsonl"
    lines = (json.dumps({"prompt": q, "response": a}, ensure_ascii=False) for q, a in pairs)
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    assert read_rows(str(file)) == [(Turn("user", q), Turn("assistant", a)) for q, a in pairs]


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1)] * 2),
        min_size=1,
        max_size=5,
    )
)
def test_any_text_survives_csv_line_breaks_and_quotes_too(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    file = tmp_path / "d.csv"
    with file.open("w", encoding="utf-8-sig", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["question", "answer"])
        writer.writerows(pairs)
    assert read_rows(str(file)) == [(Turn("user", q), Turn("assistant", a)) for q, a in pairs]


def test_parquet_is_read_flat_and_nested(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"prompt": ["Where?"] * 2, "response": ["Here."] * 2}), tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"messages": [OPENAI, OPENAI[:3]]}), tmp_path / "b.parquet")
    assert read_rows(str(tmp_path / "a.parquet")) == [PAIR, PAIR]
    assert read_rows(str(tmp_path / "b.parquet")) == [TALK, TALK[:3]]
    parquet.write_table(pyarrow.table({"prompt": ["Where?"], "response": [None]}), tmp_path / "c.parquet")
    with pytest.raises(BadInput, match=r"c\.parquet: row 1: question and answer must be text"):
        read_rows(str(tmp_path / "c.parquet"))
    (tmp_path / "d.parquet").write_text("no parquet")
    with pytest.raises(BadInput, match=r"d\.parquet: is no Parquet file"):
        read_rows(str(tmp_path / "d.parquet"))


GOOD = '{"prompt": "a", "response": "b"}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", f"{GOOD}\n\n{{broken", r"d\.jsonl:3: is no JSON: .* at column 2"),
        ("d.jsonl", f"{GOOD}\n[1]", r"d\.jsonl:2: is no object but list"),
        ("d.jsonl", '{"prompt": "a"}', r"d\.jsonl:1: has none of the known fields .*; it has prompt"),
        ("d.jsonl", "{}", r"d\.jsonl:1: has none of the known fields .*; it has none"),
        ("d.jsonl", '{"prompt": "a", "response": 3}', r"d\.jsonl:1: question and answer must be text"),
        ("d.jsonl", '{"messages": "hello"}', r"d\.jsonl:1: messages: is no list of turns"),
        ("d.jsonl", '{"messages": ["hello"]}', r"d\.jsonl:1: messages\[0\]: is no object"),
        ("d.jsonl", '{"messages": [{"role": "wizard", "content": "a"}]}', r"d\.jsonl:1: messages\[0\]: needs role"),
        ("d.jsonl", '{"messages": [{"role": ["user"], "content": "a"}]}', r"d\.jsonl:1: messages\[0\]: needs role"),
        ("d.jsonl", '{"messages": [{"role": "user", "content": [1]}]}', r"messages\[0\]: needs role .* and content"),
        ("d.jsonl", '{"text": "just text"}', r"d\.jsonl:1: its text has no \[INST\]"),
        ("d.jsonl", "", "holds no row"),
        ("d.jsonl", " \n\n", "holds no row"),
        ("d.json", "{", r"d\.json:1: is no JSON"),
        ("d.json", "{}", "holds no list of rows"),
        ("d.json", "[]", "holds no row"),
        ("d.json", f"[{GOOD}, 3]", r"d\.json: row 2: is no object but int"),
        ("d.csv", "", "holds no row"),
        ("d.csv", "prompt,response\n", "holds no row"),
        ("d.csv", 'prompt,response\n"a\nb",c\nonly\n', r"d\.csv:4: question and answer must be text"),
        ("d.csv", "first,second\na,b\n", r"d\.csv:2: has none of the known fields .*; it has first, second"),
        ("d.csv", "prompt,response\na," + "b" * 200_000, r"d\.csv:.*is no CSV: field larger"),
        ("d.jsonl", b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=message) as caught:
        read_rows(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such.jsonl", "./no", "missing.jsonl", "missing.csv", "~/x", "."])
def test_a_missing_file_is_never_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(BadInput, match="there is no such file"):
        read_rows(name)


def test_a_data_set_name_without_a_network_is_one_line() -> None:
    with pytest.raises(BadInput, match="is no file") as caught:
        read_rows("somebody/no-such-data-set")
    assert "\n" not in str(caught.value)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "messages",
                        "text",
                        "prompt",
                        "response",
                        "role",
                        "content",
                        "instruction",
                        "output",
                        "from",
                        "value",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_no_row_raises_anything_but_bad_input(row: Any) -> None:
    try:
        turns = parse_row(row, "here")
    except BadInput as error:
        assert str(error).startswith("here")
    else:
        assert turns and all(isinstance(t, Turn) for t in turns)
