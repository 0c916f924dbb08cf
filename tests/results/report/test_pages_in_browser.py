"""Test the report of very many clusters in a real browser, opened from the disk. The tests are skipped where there is no Chromium."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import CHROMIUM, Tab, browser

from raycluster.results.report.data import ClusterCard, ReportData, Thumb
from raycluster.results.report.pages import picture_path, render_pages, write_files
from raycluster.storage.location import locate

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the report is not opened in a browser")

Make = Callable[..., ReportData]
ROWS = "[...document.querySelectorAll('#body tr')].map((row) => row.cells[0].textContent)"
OUTSIDE = """[...document.querySelectorAll("main *, header *")].filter((e) => !e.closest(".map")
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map((e) => e.outerHTML.slice(0, 80))"""
OVERLAPPING = """[...document.querySelectorAll(".bars .number, .bars .share, .key .value")].filter((e) => e.scrollWidth > e.clientWidth
  || e.clientHeight > 40).map((e) => e.textContent)"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """One browser for all tests, because it takes seconds to start and to end."""
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def write(folder: Path, data: ReportData) -> ReportData:
    """Write the report with a few of its pictures; the last picture of each cluster is missing."""
    contents: dict[str, bytes] = {}

    def relocated(card: ClusterCard) -> ClusterCard:
        thumbs = []
        for i, thumb in enumerate(card.typical[:6]):
            path = picture_path(card.cluster * 10 + i)
            if i < 5 and thumb.src and card.cluster < 2_000:
                contents[path] = base64.b64decode(thumb.src.partition(",")[2])
            thumbs.append(Thumb(thumb.image_id, thumb.confidence, f"../{path}" if i < 5 else None))
        return replace(card, typical=tuple(thumbs), least_typical=())

    data = replace(data, cards=tuple(map(relocated, data.cards)))
    contents |= {path: page.encode() for path, page in render_pages(data)}
    write_files(locate(str(folder)), contents.items())
    return data


def visit(tab: Tab, page: Path) -> float:
    """Open a page, and return the seconds until it has loaded and its script has run."""
    tab.call("Page.navigate", url="about:blank")
    started = time.perf_counter()
    tab.call("Page.navigate", url=page.as_uri())
    done = "document.readyState === 'complete' && location.protocol === 'file:' && !document.getElementById('controls').hidden"
    while not tab.evaluate(f"Boolean(document.getElementById('controls')) && {done}"):
        time.sleep(0.01)
    return time.perf_counter() - started


def test_the_table_is_searched_and_sorted_and_leads_to_pictures(make_data: Make, tmp_path: Path, tab: Tab) -> None:
    data = write(tmp_path / "report", make_data(530))
    visit(tab, tmp_path / "report" / "index.html")
    by_size = [card.name for card in sorted(data.cards, key=lambda card: (-card.size, card.cluster))]
    assert tab.evaluate(ROWS) == by_size[:200]
    tab.evaluate("document.getElementById('more').click()")
    assert tab.evaluate(ROWS) == by_size[:400]
    tab.evaluate("document.querySelector('[data-key=name]').click()")
    assert tab.evaluate(ROWS)[:3] == ["noun-0", "noun-1", "noun-2"]
    tab.evaluate("document.querySelector('[data-key=confidence]').click()")
    sure = {card.name: card.mean_confidence or 0 for card in data.cards}
    found = [sure[name] for name in tab.evaluate(ROWS)]
    assert found == sorted(sure.values(), reverse=True)[:200]
    tab.evaluate("document.getElementById('search').value = 'OTHER-52'")
    tab.evaluate("document.getElementById('search').dispatchEvent(new Event('input'))")
    assert sorted(tab.evaluate(ROWS)) == sorted(f"noun-{i}" for i in (52, *range(520, 530)))
    assert tab.evaluate("document.getElementById('shown').textContent") == "11 of 530 found"
    address = tab.evaluate("document.querySelector('#body a').href")
    visit(tab, Path(address.partition("#")[0].removeprefix("file://")))
    loaded = "[...document.images].slice(0, 5).every((image) => image.complete && image.naturalWidth > 0)"
    for _ in range(100):
        if tab.evaluate(loaded):
            break
        time.sleep(0.05)
    assert tab.evaluate(loaded)
    assert tab.errors == []
    assert all(url.startswith(("file:", "data:", "about:")) for url in tab.requests)


@pytest.mark.parametrize("width", [1280, 375])
def test_index_and_pages_fit_their_width(make_data: Make, tmp_path: Path, tab: Tab, width: int) -> None:
    long = "x" * 300
    data = make_data(520)
    large = replace(data.cards[1], size=9_999_000)
    cards = (replace(data.cards[0], name=long, nouns=(long, long)), large, *data.cards[2:])
    data = replace(data, cards=cards, n_images=10_070_000, statuses={"ok": 10_069_000, "undecodable": 1_000})
    write(tmp_path / "report", data)
    tab.size(width, 900)
    for page in ("index.html", "clusters/0001.html", "clusters/0006.html"):
        visit(tab, tmp_path / "report" / page)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(OUTSIDE) == []
        assert tab.evaluate(OVERLAPPING) == []


@pytest.mark.slow
def test_ten_thousand_clusters_open_within_three_seconds(make_data: Make, tmp_path: Path, tab: Tab) -> None:
    write(tmp_path / "report", make_data(10_000))
    tab.size(1280, 900)
    visit(tab, tmp_path / "report" / "clusters" / "0100.html")  # the browser itself has started then
    seconds = {page: visit(tab, tmp_path / "report" / page) for page in ("index.html", "clusters/0001.html")}
    print(json.dumps(seconds))
    assert max(seconds.values()) < 3
    typed = """new Promise((done) => { const start = performance.now(), search = document.getElementById("search");
    search.value = "noun-77"; search.dispatchEvent(new Event("input")); requestAnimationFrame(() => done(performance.now() - start)); })"""
    visit(tab, tmp_path / "report" / "index.html")
    assert tab.evaluate(typed) < 1000
    assert len(tab.evaluate(ROWS)) == 111
