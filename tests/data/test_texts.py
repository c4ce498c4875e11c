"""Texts to read: files, folders and corpora, as documents or as one stream; what cannot be read says why."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest

from palimpsest.data.texts import articles, read_texts
from palimpsest.errors import BadInput

WIKI = " \n = Osk = \n \n The river . \n \n = = Course = = \n \n It runs . \n \n = Veldt = \n \n A town . \n"


def write_parquet(path: Path, **columns: list[Any]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(columns), path)
    return path


def test_a_text_file_is_one_stream_or_pieces_of_paragraphs(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    text = "\n\n".join("x" * 1500 for _ in range(7)) + "\nend"
    file.write_text(text)
    assert read_texts(file, "stream") == [text]
    pieces = read_texts(file, "documents")
    assert len(pieces) == 3 and "".join(pieces) == text + "\n\n" and min(map(len, pieces[:-1])) > 4000
    assert read_texts(file, "auto") == pieces == read_texts(str(file))


def test_wikitext_is_split_into_its_articles_and_not_at_section_headings(tmp_path: Path) -> None:
    found = articles(WIKI)
    assert found is not None and "".join(found) == WIKI[WIKI.index(" = Osk") :]
    assert [f.partition("\n")[0] for f in found] == [" = Osk = ", " = Veldt = "] and "Course" in found[0]
    assert articles("a = b\n= c =\n = = d = = \n") is None
    (tmp_path / "w.txt").write_text(WIKI)
    assert read_texts(tmp_path / "w.txt") == found and read_texts(tmp_path / "w.txt", "stream") == [WIKI]


def test_rows_are_documents_and_joined_by_an_empty_line_as_a_stream(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n\n{"text": " "}\n{"text": "two\\nlines"}\n')
    assert read_texts(file) == ["one", "two\nlines"]
    assert read_texts(file, "stream") == ["one\n\n \n\ntwo\nlines"]


def test_a_folder_of_parquet_files_is_read_by_split_and_is_a_stream_by_itself(tmp_path: Path) -> None:
    rows = [line + "\n" for line in WIKI.splitlines()]
    write_parquet(tmp_path / "wiki" / "test-00000-of-00002.parquet", text=rows[:4])
    write_parquet(tmp_path / "wiki" / "test-00001-of-00002.parquet", text=rows[4:])
    write_parquet(tmp_path / "wiki" / "train-00000-of-00001.parquet", text=["other"], number=[1])
    assert read_texts(tmp_path / "wiki", "auto") == ["\n\n".join(rows)]
    assert read_texts(tmp_path / "wiki", "documents") == articles(WIKI)
    assert read_texts(f"{tmp_path / 'wiki'}:train", "documents") == ["other"]
    with pytest.raises(BadInput, match="no split 'dev'; its files are of test, train"):
        read_texts(f"{tmp_path / 'wiki'}:dev")


def test_a_saved_data_set_and_one_parquet_file_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(str(tmp_path / "saved"))
    assert read_texts(tmp_path / "saved", "documents") == ["one", "two"]
    assert read_texts(write_parquet(tmp_path / "p.parquet", page=["three"], n=[1]), "auto") == ["three"]
    with pytest.raises(BadInput, match="has no column text or page or content; it has a, b"):
        read_texts(write_parquet(tmp_path / "q.parquet", a=["x"], b=["y"]))


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("wikitext", ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")),
        ("wikitext:wikitext-103-raw-v1:validation", ("Salesforce/wikitext", "wikitext-103-raw-v1", "validation")),
        ("owner/corpus", ("owner/corpus", None, "test")),
        ("owner/corpus:part", ("owner/corpus", "part", "test")),
    ],
)
def test_a_name_is_a_corpus_of_the_hub(said: str, asked: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    calls = []

    def load(name: str, config: str | None, split: str) -> Any:
        calls.append((name, config, split))
        return datasets.Dataset.from_dict({"text": [" = Osk = \n", " The river . \n"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_texts(said, "auto") == [" = Osk = \n\n\n The river . \n"]
    assert read_texts(said, "documents") == [" = Osk = \n The river . \n"] and calls == [asked, asked]


def test_a_corpus_that_is_not_to_be_had_is_one_line() -> None:
    pytest.importorskip("datasets")  # the tests have no network
    with pytest.raises(BadInput, match="--perplexity wikitext: is no file, and neither the Hub nor") as caught:
        read_texts("wikitext")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.txt", "./corpus", "/a/b", "some folder/x", "a/b/c"])
def test_what_looks_like_a_file_is_not_asked_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", types.ModuleType("datasets"))
    with pytest.raises(BadInput, match="there is no such file"):
        read_texts(name)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", b"  \n", "no text"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{oops', ":2: is no JSON"),
        ("a.jsonl", json.dumps({"t": 1}).encode(), ":1:"),
        ("a.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read_name_file_and_line(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=problem):
        read_texts(tmp_path / name)


def test_an_empty_folder_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no \.parquet or \.arrow file"):
        read_texts(tmp_path)
