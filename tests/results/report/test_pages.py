"""Test the report of very many clusters: its index, its pages, and that all links and pictures lead to files of the folder."""

from __future__ import annotations

import json
import posixpath
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from html_page import HOSTILE, Page, flat

from raycluster.config import StorageConfig
from raycluster.results.report.data import ClusterCard, ReportData, Thumb
from raycluster.results.report.pages import CARDS, picture_path, render_pages, write_files
from raycluster.storage.location import locate

BUCKET = "raycluster-test"
Make = Callable[..., ReportData]


@pytest.fixture(scope="module")
def data(make_data: Make) -> ReportData:
    """Report data of 230 clusters, whose pictures are files."""

    def relocated(card: ClusterCard) -> ClusterCard:
        def thumbs(some: tuple[Thumb, ...], start: int) -> tuple[Thumb, ...]:
            return tuple(
                replace(t, src=f"../{picture_path(20_000 * card.cluster + start + i)}") for i, t in enumerate(some)
            )

        return replace(card, typical=thumbs(card.typical[:6], 0), least_typical=thumbs(card.least_typical[:3], 6))

    made = make_data(230)
    return replace(made, cards=tuple(map(relocated, made.cards)))


@pytest.fixture(scope="module")
def pages(data: ReportData) -> dict[str, str]:
    return dict(render_pages(data))


def rows(index: str) -> list[dict[str, object]]:
    found = re.search(r'<script type="application/json" id="rows">(.*?)</script>', index, re.DOTALL)
    assert found
    return list(json.loads(found[1]))


def test_the_index_lists_every_cluster_and_each_is_on_the_page_it_names(
    data: ReportData, pages: dict[str, str]
) -> None:
    assert list(pages) == ["index.html", "clusters/0001.html", "clusters/0002.html", "clusters/0003.html"]
    ordered = sorted(data.cards, key=lambda card: (-card.size, card.cluster))
    listed = rows(pages["index.html"])
    assert [row["name"] for row in listed] == [card.name for card in ordered]
    assert [row["size"] for row in listed] == [card.size for card in ordered]
    for row, card in zip(listed, ordered, strict=True):
        path, _, anchor = str(row["href"]).partition("#")
        assert anchor == f"cluster-{card.cluster}"
        assert f'id="{anchor}"' in pages[path]
    assert [Page(pages[path]).count("article") for path in list(pages)[1:]] == [CARDS, CARDS, 30]


def test_all_links_lead_to_pages_and_all_pictures_are_in_the_folder(data: ReportData, pages: dict[str, str]) -> None:
    pictures = set()
    for path, source in pages.items():
        page = Page(source)
        anchors = {str(attributes["id"]) for _, attributes in page.tags if "id" in attributes}
        for tag, attributes in page.tags:
            for name in {"src", "href"} & set(attributes):
                target, _, anchor = str(attributes[name]).partition("#")
                target = posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) if target else path
                if tag == "img":
                    assert attributes["loading"] == "lazy"
                    pictures.add(target)
                else:
                    assert target in pages or target.startswith("data:image/png")
                    assert not anchor or target != path or anchor in anchors
        assert not re.search(r"url\(|@import|https?://", source)
    shown = {thumb.src for card in data.cards for thumb in card.typical + card.least_typical}
    assert pictures == {str(src).removeprefix("../") for src in shown}
    assert len(pictures) == 230 * 9


def test_pages_say_where_they_are_and_lead_to_their_neighbors(pages: dict[str, str]) -> None:
    text = flat(Page(pages["clusters/0002.html"]).text)
    assert "Clusters 101 to 200 of 230, the largest first." in text
    links = [str(a.get("href")) for tag, a in Page(pages["clusters/0002.html"]).tags if tag == "a"]
    assert links == ["../index.html", "0001.html", "../index.html#clusters", "0003.html"]
    assert "0000.html" not in pages["clusters/0001.html"]
    assert "0004.html" not in pages["clusters/0003.html"]
    assert "101–200" in Page(pages["index.html"]).text


def test_the_index_has_what_one_page_has_above_its_cards(data: ReportData, pages: dict[str, str]) -> None:
    text = flat(Page(pages["index.html"]).text)
    assert "Clusters 230 Method dxmc ACC 83.1% on 90 labeled Confidence 0.87" in text
    assert "Images that could not be used" in text
    assert "total 3 min 45 s" in text
    assert pages["index.html"].count('class="column"') == 230


def test_more_than_a_thousand_sizes_are_an_area(make_data: Make) -> None:
    index = dict(render_pages(make_data(1001, pixels=False)))["index.html"]
    assert index.count('class="column"') == index.count("<polygon") == 1
    assert "1001 values, the largest 116" in index


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_are_text(make_data: Make, text: str) -> None:
    made = make_data(3)
    thumbs = (Thumb(text, None, None), Thumb(text, 0.5, text))
    cards = tuple(replace(card, name=text, nouns=(text, text + "2"), typical=thumbs) for card in made.cards)
    hostile = dict(render_pages(replace(made, title=text, cards=cards)))
    harmless = dict(render_pages(replace(made, cards=tuple(replace(card, typical=thumbs) for card in made.cards))))
    for path, source in hostile.items():
        source.encode("utf-8")
        page = Page(source)
        assert page.count("script") == Page(harmless[path]).count("script")
        assert page.count("img") == Page(harmless[path]).count("img")
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert rows(hostile["index.html"])[0]["name"] == text


def test_a_report_of_nothing_is_an_index_alone() -> None:
    nothing = ReportData("t", "2026-01-01", {}, {}, {}, 0, (), {}, "", "", [], None, {}, None, None, [])
    assert list(dict(render_pages(nothing))) == ["index.html"]


def test_files_are_written_below_the_folder(tmp_path: Path) -> None:
    folder = locate(str(tmp_path / "report"))
    write_files(folder, ((picture_path(row), bytes([row % 7])) for row in range(0, 10**6, 9_999)))
    assert (tmp_path / "report" / "pictures" / "0" / "9999.jpg").read_bytes() == bytes([9_999 % 7])
    assert sum(1 for file in tmp_path.rglob("*.jpg") if file.is_file()) == 101


def test_files_are_written_to_a_bucket(s3: StorageConfig) -> None:
    folder = locate(f"s3://{BUCKET}/report-{time.time_ns()}", s3)
    write_files(folder, ((f"clusters/{number:04d}.html", str(number).encode()) for number in range(40)))
    found = folder.list(suffix=".html", recursive=True)
    assert [file.read_bytes() for file in found] == [str(number).encode() for number in range(40)]
