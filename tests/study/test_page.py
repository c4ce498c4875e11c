"""The page in a real browser: it asks nothing of the network, its cells open and close, and it fits phone and paper."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import fakes
import pytest
from browser import Browser, Page, browser, chromium

from palimpsest.method import Context
from palimpsest.records import Record
from palimpsest.study.report import write_report
from palimpsest.study.run import run_study
from palimpsest.study.spec import parse_spec
from palimpsest.study.store import Store

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
OPEN = "document.getElementById('cell').open"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two marks, a removal and its sweep, and two seeds."""
    tmp = tmp_path_factory.mktemp("page")
    removals = ["none", "fake-eraser", {"averaging": {"expert": "sibling", "sweep": {"share": [0.2, 0.6]}}}]
    with pytest.MonkeyPatch.context() as patch:
        fakes.install(patch.setattr)
        few = {"controls": ["clean-same-schedule"], "negatives": ["clean-base"], "seeds": [4, 9]}
        run_study(parse_spec(fakes.full(tmp, removals=removals, **few)), tmp / "out", Context())
    store = Store.open(tmp / "out")
    records = store.records()
    for r in _of(records, "other-mark", "fake-eraser", 9):
        if r.measure == "constraint" and r.task == "utility":
            r.verdict = "fail"
    store.write_records(records)
    write_report(tmp / "out")
    return tmp / "out"


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture
def page(chrome: Browser, folder: Path) -> Iterator[Page]:
    made = chrome.page(folder / "report.html")
    yield made
    assert made.complaints() == []
    assert made.requests() == [(folder / "report.html").as_uri()]
    made.close()


def test_a_cell_opens_by_click_and_closes_by_escape_and_by_its_button(page: Page) -> None:
    assert page.run(OPEN) is False
    page.click("[data-cell='1'] ")
    assert page.run(OPEN) and page.run("document.activeElement.id") == "cell-close"
    page.press("Escape")
    assert page.run(OPEN) is False
    assert page.run("document.activeElement.dataset.cell") == "1"  # where one was before
    page.click("[data-cell='0']")
    page.click("#cell-close")
    assert page.run(OPEN) is False


def test_a_cell_is_reached_and_opened_by_the_keyboard_alone(page: Page) -> None:
    seen = []
    for _ in range(40):
        page.press("Tab")
        seen.append(page.run("document.activeElement.dataset.cell ?? document.activeElement.className"))
        if seen[-1] == "0":
            break
    assert seen[0] == "skip" and seen[-1] == "0"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("ArrowRight")
    assert page.run("document.activeElement.dataset.cell") == "1"
    page.press("ArrowDown")
    assert page.run("document.activeElement.closest('tr').rowIndex") == 2
    number = page.run("document.activeElement.dataset.cell")
    page.press("Enter")
    assert page.run(OPEN)
    page.press("Escape")
    assert page.run("document.activeElement.dataset.cell") == number


def test_the_matrix_and_what_its_cells_open_equal_the_records(page: Page, folder: Path) -> None:
    records = Store.open(folder).records()
    heads = page.run("[...document.querySelectorAll('.matrix thead th')].map(e => e.firstChild.textContent.trim())")
    assert heads[1:] == ["fake-mark", "other-mark"]
    rows = page.run(
        "[...document.querySelectorAll('table.matrix tr.mark, table.matrix tr.removal')].map(row => "
        "[...row.cells].map(cell => cell.tagName === 'TH' ? cell.lastChild.textContent.trim() : "
        "{number: cell.querySelector('button').dataset.cell, hatched: cell.querySelectorAll('.spoiled').length, "
        "tiles: [...cell.querySelectorAll('.tile')].map(t => [...t.children].map(e => e.textContent))}))"
    )
    assert [row[0] for row in rows] == ["no removal", "fake-eraser", "averaging share=0.2", "averaging share=0.6"]
    for title, *cells in rows:
        removal = None if title == "no removal" else title
        for implant, cell in zip(heads[1:], cells, strict=True):
            for seed, (count, bounds) in zip((4, 9), cell["tiles"], strict=True):
                hits = [r for r in _of(records, implant, removal, seed) if r.measure == "hit-rate"]
                last = [r for r in hits if r.prompt_form == "template"][-1]
                assert int(count) == last.count
                assert bounds == f"{100 * (last.low or 0):.0f}–{100 * (last.high or 0):.0f}"
            limits = [r for s in (4, 9) for r in _of(records, implant, removal, s) if r.measure == "constraint"]
            words = [r.verdict for s in (4, 9) for r in _of(records, implant, removal, s) if r.measure == "removal"]
            broken = any(r.verdict == "fail" for r in limits) or "ruined" in words
            assert bool(cell["hatched"]) == broken, (title, implant)
            page.click(f"[data-cell='{cell['number']}']")
            told = page.run("document.getElementById('cell').innerText")
            assert told.startswith(f"{implant}, {title}")
            for r in _of(records, implant, removal, 4) + _of(records, implant, removal, 9):
                if r.measure == "hit-rate" and r.count is not None:
                    assert f"{r.count} of {r.n} (" in told
                if r.measure == "removal" and r.control is None:
                    assert str(r.verdict) in told
            page.press("Escape")


def test_single_keys_show_hit_rank_and_log_probability(page: Page, folder: Path) -> None:
    records = Store.open(folder).records()
    page.click("tr.removal [data-cell]")
    found = page.run(
        "[...document.querySelector('#cell-body section').querySelectorAll('details')].map(d => "
        "[d.firstChild.textContent, [...d.querySelectorAll('tr')].map(row => "
        "[...row.cells].map(cell => cell.textContent))])"
    )
    tables = {title: rows for title, rows in found if title.startswith("Keys")}
    assert {"Keys, fingerprinted", "Keys, erased", "Keys, recovered"} <= set(tables)
    rows = _of(records, "fake-mark", "fake-eraser", 4)
    hits = [r for r in rows if r.measure == "hit-rate" and r.stage == "erased" and r.prompt_form == "template"]
    ranks = [r for r in rows if r.measure == "rank" and r.stage == "erased"]
    head, *keys = tables["Keys, erased"]
    assert head[:3] == ["key", "rank", "chat template"] and len(keys) == fakes.N
    for row, key, rank in zip(keys, hits[0].detail["keys"], ranks[0].detail["keys"], strict=True):
        assert row[0] == str(key["number"]) and row[1] == f"{rank['rank']:,}"
        nats = f"{-key['log_prob']:.2f}" if key["log_prob"] > -10 else f"{-key['log_prob']:.1f}"
        assert row[2] == f"{'hit' if key['hit'] else 'miss'} −{nats}"


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_runs_over_the_edge_of_a_phone(chrome: Browser, folder: Path, dark: bool) -> None:
    page = chrome.page(folder / "report.html", 360, 740, dark)
    assert page.run("matchMedia('(prefers-color-scheme: dark)').matches") == dark
    assert page.run("document.documentElement.scrollWidth") == 360
    page.click("tr.removal [data-cell]")
    assert page.run("document.documentElement.scrollWidth") == 360
    inside = "(d => d.scrollWidth <= d.clientWidth && d.getBoundingClientRect().right <= 360)"
    assert page.run(f"{inside}(document.getElementById('cell'))")
    assert page.complaints() == []
    ink, paper = (
        [int(v) for v in re.findall(r"\d+", page.run(f"getComputedStyle(document.body).{name}"))[:3]]
        for name in ("color", "backgroundColor")
    )
    assert (sum(ink) > sum(paper)) == dark
    page.close()


def test_on_paper_everything_is_open_and_the_paper_is_white(page: Page, folder: Path, tmp_path: Path) -> None:
    page.send("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    spoiled = page.run("getComputedStyle(document.querySelector('.matrix .spoiled')).printColorAdjust")
    assert spoiled == "exact"
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("document.querySelectorAll('details:not([open])').length") == 0
    cells = len(json.loads(page.run("document.getElementById('details').textContent"))["cells"])
    assert page.run("document.querySelectorAll('#printed > div').length") == cells == 8
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run("document.querySelectorAll('#printed > div').length") == 0
    assert page.run("document.querySelectorAll('details:not([open])').length") > 0
    page.send("Emulation.setEmulatedMedia", media="")
    paper = page.printed(tmp_path / "report.pdf").read_bytes()
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) >= 4
    assert b"Shading" in paper or b"Pattern" in b"".join(_streams(paper)) or b"/Pattern" in paper


def test_the_pages_own_policy_stops_other_scripts(page: Page) -> None:
    page.run("(() => { const s = document.createElement('script'); s.textContent = 'window.other = 1'; "
             "document.body.append(s); })()")  # fmt: skip
    assert page.run("window.other === undefined")
    refused = [c for c in page.complaints() if "Content Security Policy" in c]
    assert refused
    page.browser.events.clear()
    page.send("Page.reload")
    page.wait("window.matrix === undefined || document.readyState === 'complete'")


def _of(records: list[Record], implant: str, removal: str | None, seed: int) -> list[Record]:
    return [
        r
        for r in records
        if r.detail.get("implant") == implant
        and r.detail.get("removal") == removal
        and r.seed == seed
        and r.control is None
    ]


def _streams(paper: bytes) -> Iterator[bytes]:
    """What the compressed parts of a PDF hold."""
    for found in re.finditer(rb"stream\r?\n(.*?)endstream", paper, re.DOTALL):
        try:
            yield zlib.decompress(found.group(1))
        except zlib.error:
            continue
