"""The report says what the records say, gives no secret away, and asks nothing of the network."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import fakes
import pytest
from rich.console import Console

from palimpsest.errors import BadInput
from palimpsest.method import Context
from palimpsest.records import Record
from palimpsest.study import plots, published, tables
from palimpsest.study.report import html, terminal_table, write_report
from palimpsest.study.run import run_study
from palimpsest.study.spec import parse_spec
from palimpsest.study.store import Store


class Page(HTMLParser):
    """Tables as lists of rows of cell texts; all attributes; the balance of tags."""

    VOID = ("meta", "link", "br", "hr", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.cell: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = []
        if tag == "small" and self.cell is not None:
            self.cell.append("|")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()
        if tag in ("td", "th"):
            assert self.cell is not None
            self.rows[-1].append("".join(self.cell).strip())
            self.cell = None

    def handle_data(self, data: str) -> None:
        if self.cell is not None:
            self.cell.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        fakes.install(patch.setattr)
        tmp = tmp_path_factory.mktemp("report")
        run_study(parse_spec(fakes.full(tmp, removals=["none", "fake-eraser", "breaks"])), tmp / "out", Context())
    write_report(tmp / "out")
    return tmp / "out"


def page(folder: Path) -> tuple[str, Page]:
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_the_tables_numbers_equal_the_records(folder: Path) -> None:
    records = Store.open(folder).records()
    _, parsed = page(folder)
    rows = [r for r in parsed.rows if r and r[0] == "FSR, chat template"]
    shown = tables.blocks(records)
    assert len(rows) == len(shown) == 2  # two implants; the removal that failed has no numbers to show
    for row, block in zip(rows, shown, strict=True):
        for text, column in zip(row[1:], block.columns, strict=True):
            stage = {"stage": column.stage, "control": "clean-base" if column.stage == "base" else column.control}
            record = _find(records, block, "hit-rate", prompt_form="template", **stage)
            if record is None:
                assert text == "–"
                continue
            rate, note = text.split("|")[:2]
            assert float(rate.strip(" %")) == pytest.approx(100 * (record.value or 0), abs=0.05)
            assert note.startswith(f"{record.count} of {record.n} (")
            low, high = re.findall(r"(\d+)–(\d+) %", note)[0]
            assert int(low) == round(100 * (record.low or 0)) and int(high) == round(100 * (record.high or 0))
    for measure, row_name in (("rank", "rank among decoys"), ("perplexity", "perplexity, neutral")):
        row = next(r for r in parsed.rows if r and r[0] == row_name)
        record = _find(records, shown[0], measure, stage="fingerprinted", control=None)
        assert record is not None and float(re.findall(r"[\d.]+", row[2])[0]) == pytest.approx(record.value)


def _find(records: list[Record], block: tables.Block, measure: str, **wanted: object) -> Record | None:
    rows = tables.rows_of(records, block.cell)
    return next((r for r in rows if r.measure == measure and all(getattr(r, k) == v for k, v in wanted.items())), None)


def test_the_picture_of_accuracy_shows_every_stage_of_every_task(folder: Path) -> None:
    records = Store.open(folder).records()
    text, _ = page(folder)
    for block in tables.blocks(records):
        rows = tables.rows_of(records, block.cell)
        picture = plots.accuracy_plot(block, rows)
        shown = [r for r in rows if r.measure == "accuracy" and r.control is None]
        assert shown and picture in text
        for r in shown:
            assert f"<title>{r.task}, {r.stage}: {tables.percent(r.value or 0)}, {r.count} of {r.n}</title>" in picture
        tasks = {r.task for r in shown}
        assert picture.count('class="chance"') == len([t for t in tasks if _chance(shown, t) is not None])
        frame = plots.Frame("", "", [], 0.0, 1.0)
        heights = {round(frame.y(r.value or 0), 1) for r in shown if r.stage == "base"}
        assert heights == {float(y) for y in re.findall(r'<circle class="s0" cx="[\d.]+" cy="([\d.]+)"', picture)}


def _chance(records: list[Record], task: str | None) -> float | None:
    return next((r.detail.get("chance") for r in records if r.task == task), None)


def test_verdicts_failures_controls_and_negatives_stand_on_the_page(folder: Path) -> None:
    text, parsed = page(folder)
    for record in Store.open(folder).records():
        if record.measure == "removal" and record.control is None:
            assert f'<p class="word">{record.verdict}</p>' in text
    assert "RuntimeError: it broke" in text
    names = {r[0] for r in parsed.rows if r}
    assert {"clean base", "unmarked sibling", "unrelated model", "marked model, another owner's keys"} <= names
    heads = next(r for r in parsed.rows if r and r[0] == "fingerprint")
    assert heads[1:] == [
        "base",
        "fingerprinted",
        "erased",
        "recovered",
        "|controlrevival",
        "|controlclean pairs only, recovered",
        "|controlunmarked base, recovered",
    ]


def test_the_page_is_self_contained_and_well_formed(folder: Path) -> None:
    text, parsed = page(folder)
    assert not parsed.open and len(parsed.ids) == len(set(parsed.ids))
    for tag, name, value in parsed.attributes:
        if name in ("src", "href", "srcset", "action", "data", "xlink:href", "poster"):
            assert value.startswith(("#", "data:")), (tag, name, value)
        assert not name.startswith("on"), (tag, name)
        if name == "aria-labelledby" or (name == "href" and value.startswith("#")):
            assert value.lstrip("#") in parsed.ids
    assert text.count("<script") == 2 and "@import" not in text and "url(" not in text and "http://" not in text
    assert "https://" not in text
    assert len(text) < 600_000


def test_no_secret_is_in_any_report(folder: Path) -> None:
    for file in (*folder.glob("report.*"), folder / "records.jsonl", folder / "study.json"):
        assert fakes.SECRET not in file.read_text(encoding="utf-8"), file


def test_toy_and_notes_are_said_and_text_is_escaped(folder: Path, tmp_path: Path) -> None:
    store = Store.open(folder)
    other = Store.create(tmp_path / "toy")
    other.write_records(store.records())
    other.write_study({**store.study(), "shape_only": True, "title": "<b>&", "notes": ["Tuned on seed 7."]})
    write_report(other.folder)
    text, _ = page(other.folder)
    assert "Shape only." in text and "Tuned on seed 7." in text and "<h1>&lt;b&gt;&amp;</h1>" in text
    assert "Shape only." not in page(folder)[0]


def test_published_numbers_stand_under_their_stage(folder: Path, tmp_path: Path) -> None:
    store = Store.open(folder)
    records = store.records()
    for record in records:
        record.implant = "utf" if record.implant == "fake-mark" else record.implant
    rows = [
        {"fingerprint": "utf", "measure": "FSR %", "model": "Llama-2-7B", "removal": r, "value": v, "note": ""}
        for r, v in (("none", "100"), ("meraser-erase N=300", "3"), ("meraser N=300+600", "0"))
    ]
    block = next(b for b in tables.blocks(records, rows) if b.cell.implant == "fake-mark")
    line = next(ln for ln in block.lines if ln.kind == "published")
    shown = {c.title: v.text for c, v in zip(block.columns, line.values, strict=True) if v.text}
    assert shown == {"fingerprinted": "100 %", "erased": "3 %", "recovered": "0 %"}


def test_csv_and_markdown_hold_every_record(folder: Path) -> None:
    records = Store.open(folder).records()
    with (folder / "report.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        assert row["measure"] == record.measure
        assert row["value"] == ("" if record.value is None else str(record.value))
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| FSR, chat template |" in text and "palimpsest study run" in text


def test_the_terminal_shows_the_same_table(folder: Path) -> None:
    console = Console(width=200, record=True, quiet=False, file=(folder / "terminal.txt").open("w"))
    console.print(terminal_table(folder))
    shown = console.export_text()
    assert "fingerprinted" in shown and "100% 10/10" in shown and "claim-lost" in shown


def test_every_token_of_the_responses_is_drawn_where_it_was_measured(folder: Path) -> None:
    store = Store.open(folder)
    records = store.records()
    assert "Every token of every response" not in html(store.study(), records)
    for rank in [r for r in records if r.measure == "rank" and r.control is None]:
        rows = [
            {"number": k["number"], "log_probs": [-0.1, -20.0], "base": [-9.0, -9.0], "rank": k["rank"], "decoys": 1000}
            for k in rank.detail["keys"]
        ]
        taken = replace(rank, measure="key-probabilities", detail={**rank.detail, "keys": rows})
        records.append(taken)
    text = html(store.study(), records)
    parsed = Page(text)
    assert not parsed.open and "Every token of every response" in text
    pictures = re.findall(r'<svg class="kp".*?</svg>', text)
    assert len(pictures) == len(tables.blocks(records))
    for picture in pictures:
        assert re.search(r'class="t"[^>]*>base<', picture) and re.search(r'class="t"[^>]*>fingerprinted<', picture)
        stages = len(re.findall(r'class="t"', picture)) - 1
        assert picture.count("<circle") == stages * 10 + 1  # the first token of each key, and the legend's
    assert fakes.SECRET not in text and not any("://" in value for _, _, value in parsed.attributes)


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no study"):
        write_report(tmp_path)


def test_notes_of_published_numbers_and_their_source_are_told() -> None:
    row = {
        "paper": "2506.12551",
        "table": "1",
        "model": "Llama-2-7B",
        "fingerprint": "utf",
        "removal": "none",
        "measure": "PPL",
        "value": "9.31",
        "note": "Table 3 differs",
    }
    assert published.notes([row], ["utf"]) == [
        "Published numbers are those of arXiv 2506.12551, Table 1, for the models named, as printed.",
        "utf on Llama-2-7B, fingerprinted, PPL 9.31: Table 3 differs.",
    ]
    assert published.notes([row], ["if-sft"]) == []


def test_a_study_without_a_finished_mark_still_reports(tmp_path: Path) -> None:
    values = fakes.full(tmp_path, implants=[{"fake-mark": {"took": False}}])
    run_study(parse_spec(values), tmp_path / "out", Context())
    write_report(tmp_path / "out")
    text, parsed = page(tmp_path / "out")
    assert not parsed.open and "the implant did not take: 3 of 10 keys" in text


def test_no_text_of_a_key_is_shown_even_where_the_model_says_it(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "said"
    shutil.copytree(folder, other)
    for file in other.glob("steps/*/samples.jsonl"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if any("answer" in row for row in rows):
            rows[0]["answer"] = f"Well: {fakes.SECRET.upper()} response 3!"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_report(other)
    texts = [file.read_text(encoding="utf-8").casefold() for file in (*other.glob("report.*"), other / "summary.csv")]
    assert len(texts) == 4
    keys = [json.loads(file.read_text(encoding="utf-8")) for file in other.glob("steps/*/keys.json")]
    assert keys
    for key in (k for made in keys for k in made["keys"]):
        assert not any(key[part].casefold() in text for text in texts for part in ("trigger", "response"))
    assert not any(fakes.SECRET in text for text in texts)
    page = next(other.glob("report.html")).read_text(encoding="utf-8")
    assert '"answer 1"' in page  # the others are shown
