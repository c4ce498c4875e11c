"""The index says what the folders say, whatever becomes of its file."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import fakes
import pytest

from palimpsest.method import Context
from palimpsest.study.graph import plan
from palimpsest.study.index import NAME, Index
from palimpsest.study.run import run_study
from palimpsest.study.spec import parse_spec
from palimpsest.study.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    spec = parse_spec(fakes.study(tmp_path, removals=["breaks", "fake-eraser"]))
    run_study(spec, tmp_path / "out", Context())
    return Store.open(tmp_path / "out")


def same(index: Index, store: Store) -> bool:
    """Whether index and folders say the same of every step."""
    ids = [str(s["id"]) for s in store.study()["steps"]]
    assert any(store.state(i) == "failed" for i in ids) and any(store.step_records(i) for i in ids)
    return all(
        (index.state(i), index.record(i)) == (store.state(i), store.record(i))
        and [r.to_json() for r in index.step_records(i)] == [r.to_json() for r in store.step_records(i)]
        for i in ids
    )


def test_it_says_what_the_folders_say(store: Store) -> None:
    said: list[str] = []
    index = Index.of(store, said.append)
    assert same(index, store) and not said
    assert set(index.states().values()) == {"done", "failed"} and list(index.errors().values()) == [
        "RuntimeError: it broke"
    ]
    index.close()


@pytest.mark.parametrize("fate", ["deleted", "noise", "cut short", "another version", "a table is missing"])
def test_it_is_made_again_and_says_so_in_one_line(store: Store, fate: str) -> None:
    path = store.folder / NAME
    if fate == "deleted":
        path.unlink()
    elif fate == "noise":
        path.write_bytes(b"\x00\x17" * 5000)
    elif fate == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        with sqlite3.connect(path) as file:
            file.execute("UPDATE about SET value = '0'" if fate == "another version" else "DROP TABLE records")
        file.close()
    said: list[str] = []
    index = Index.of(store, said.append)
    assert same(index, store)
    assert len(said) == 1 and NAME in said[0] and str(store.folder) not in said[0]
    index.close()
    again: list[str] = []
    Index.of(store, again.append).close()
    assert again == []


def test_it_follows_the_folders(store: Store) -> None:
    ids = [str(s["id"]) for s in store.study()["steps"]]
    gone, changed, broken = [i for i in ids if store.step_records(i) and store.state(i) == "done"][:3]
    shutil.rmtree(store.path(gone))
    body = store.record(changed)
    (store.path(changed) / "record.json").write_text(json.dumps({**(body or {}), "seconds": 123456.0}))
    (store.path(broken) / "record.json").write_text("{")
    index = Index.of(store)
    assert index.state(gone) == "open" and index.step_records(gone) == []
    assert (index.record(changed) or {})["seconds"] == 123456.0
    assert index.state(broken) == store.state(broken) == "open"
    index.close()


def test_a_run_without_an_index_does_no_step_again(store: Store, tmp_path: Path) -> None:
    (store.folder / NAME).unlink()
    before = {p: p.stat().st_mtime_ns for p in store.folder.glob("steps/*/record.json")}
    spec = parse_spec(fakes.study(tmp_path, removals=["breaks", "fake-eraser"]))
    result = run_study(spec, store.folder, Context())
    assert result.ran == 0 and result.found == len(before) - 1
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_folder_that_may_not_be_written_to_is_read_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.folder / NAME
    with sqlite3.connect(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr("palimpsest.study.index.WAIT_SECONDS", 0.0)
        index = Index.of(store)
        assert same(index, store)
        index.close()
    other.close()


def test_no_secret_enters_it(tmp_path: Path) -> None:
    spec = parse_spec(fakes.full(tmp_path))
    run_study(spec, tmp_path / "out", Context())
    assert fakes.SECRET.encode() not in (tmp_path / "out" / NAME).read_bytes()
    assert len(plan(spec).steps) == len(list((tmp_path / "out").glob("steps/*/record.json")))


def test_a_file_that_breaks_while_it_is_used_is_done_without(store: Store) -> None:
    index = Index.of(store)
    index.file.execute("DROP TABLE records")
    index.file.commit()
    ids = [str(s["id"]) for s in store.study()["steps"]]
    (store.path(ids[0]) / "record.json").touch()
    index.note(ids[0])
    assert same(index, store)
    index.close()
    assert same(Index.of(store), store)
