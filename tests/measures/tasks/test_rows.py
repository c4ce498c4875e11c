"""Local rows become the Hub's, by every data set's published layout; what is wrong is named with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from measures.tasks.sets import CASES, Case, written
from palimpsest.errors import BadInput
from palimpsest.measures.tasks import files
from palimpsest.measures.tasks.rows import MAPPINGS, mapped, wsc


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.file)
def test_published_rows_become_the_hubs(case: Case, tmp_path: Path) -> None:
    written(case, tmp_path)
    local = files.local_tasks()[case.task]
    (paths,) = files.found_files(local, files.listing(tmp_path)).values()
    assert mapped(local.rows, paths, local.columns) == case.hub


@pytest.mark.parametrize("case", [c for c in CASES if c.task != "multirc"], ids=lambda c: c.file)
def test_rows_in_the_hubs_fields_stay_as_they_are(case: Case) -> None:
    mapping = MAPPINGS[files.local_tasks()[case.task].rows]
    assert [mapping(row) for row in case.hub] == case.hub


def test_every_task_has_a_case_and_every_mapping_a_task() -> None:
    assert {c.task for c in CASES} == set(files.local_tasks())
    assert {t.rows for t in files.local_tasks().values()} == set(MAPPINGS)


def test_two_files_of_one_split_are_read_together(tmp_path: Path) -> None:
    for name, word in (("cola_in_domain_dev.jsonl", "in"), ("cola_out_of_domain_dev.jsonl", "out")):
        (tmp_path / name).write_text(json.dumps({"sentence": word, "label": 1}) + "\n")
    local = files.local_tasks()["cola"]
    (paths,) = files.found_files(local, files.listing(tmp_path)).values()
    assert [r["sentence"] for r in mapped(local.rows, paths, local.columns)] == ["in", "out"]
    (tmp_path / "cola_out_of_domain_dev.jsonl").unlink()
    assert files.found_files(local, files.listing(tmp_path)) == {}


def test_the_test_split_goes_before_the_validation_split(tmp_path: Path) -> None:
    for name in ("dev", "test"):
        (tmp_path / "R1").mkdir(exist_ok=True)
        (tmp_path / "R1" / f"{name}.jsonl").write_text("{}\n")
    found = files.found_files(files.local_tasks()["anli_r1"], files.listing(tmp_path))
    assert list(found) == ["test"] and found["test"][0].name == "test.jsonl"


def test_a_name_that_is_there_twice_must_be_the_same_file(tmp_path: Path) -> None:
    local = files.local_tasks()["copa"]
    for folder, text in (("a", "{}\n"), ("b", "{}\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "copa_validation.jsonl").write_text(text)
    assert len(files.found_files(local, files.listing(tmp_path))["validation"]) == 1
    (tmp_path / "b" / "copa_validation.jsonl").write_text("{}\n{}\n")
    with pytest.raises(BadInput, match="there more than once and not the same"):
        files.found_files(local, files.listing(tmp_path))


@pytest.mark.parametrize(
    ("rows", "line", "told"),
    [
        (
            "boolq",
            '{"question": "q", "passage": "p"}',
            r"no field 'label'; a row of boolq has question, passage, label",
        ),
        ("cb", '{"premise": "p", "hypothesis": "h", "label": "maybe"}', "'maybe' is none of entailment, contradiction"),
        ("boolq", '{"question": "q", "passage": "p", "label": 2}', "label 2 is none of"),
        ("copa", '{"premise": "", "choice1": "", "choice2": "", "question": "why", "label": 0}', "neither cause nor"),
        ("arc", '{"question": "q", "choices": ["a", "b"], "label": 4}', "the key"),
        ("winogrande", '{"question": "no blank", "choices": ["a", "b"], "label": 0}', "needs a `_`"),
        ("boolq", '["q"]', "is no row of boolq"),
        ("boolq", "{not json", "is no JSON"),
    ],
)
def test_wrong_rows_are_named_with_file_and_line(rows: str, line: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text("\n" + line + "\n")
    with pytest.raises(BadInput, match=told) as error:
        mapped(rows, [path])
    assert f"{path}:2" in str(error.value)


def test_a_span_of_wsc_that_stands_in_the_text_is_left_alone() -> None:
    target = {"span1_index": 0, "span1_text": "Ann", "span2_index": 2, "span2_text": "she."}
    made = wsc({"text": "Ann said she\nslept.", "target": target, "label": 0})
    assert made["span1_text"] == "Ann" and made["span2_text"] == "she"


def test_an_empty_file_and_a_missing_folder_are_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(BadInput, match="holds no row"):
        mapped("boolq", [tmp_path / "e.jsonl"])
    with pytest.raises(BadInput, match="no such folder"):
        files.data_folder(str(tmp_path / "none"))
    with pytest.raises(BadInput, match="the environment has no TASK_FILES"):
        files.data_folder("${TASK_FILES}/bench")
    monkeypatch.setenv("TASK_FILES", str(tmp_path))
    assert files.data_folder("${TASK_FILES}") == tmp_path
