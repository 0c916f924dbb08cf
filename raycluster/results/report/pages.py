"""The report of very many clusters: an index with a table of all clusters, and pages with the pictures of a hundred clusters each.

Nothing needs a server: the folder can be opened from a disk. Pictures are files beside the pages, and a browser loads those in view.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from raycluster.results.report.data import ClusterCard, ReportData
from raycluster.results.report.html import by_size, overview, page, palette
from raycluster.storage.location import Location
from raycluster.storage.parallel import map_threads
from raycluster.tables.names import PARTITION_ROWS

ONE_PAGE = 500
"""Up to this number of clusters the report is one page."""
CARDS = 100
"""Number of clusters on a page."""
TYPICAL, LEAST_TYPICAL = 6, 3
"""Most pictures of a cluster: a row of typical ones and half a row of others. 10,000 clusters have 90,000 of them."""
INDEX = "index.html"


@dataclass(frozen=True)
class Page:
    """A page of clusters."""

    href: str
    """Its path in the folder of the report."""
    first: int
    last: int
    """Ranks of its first and of its last cluster by size, from 1."""
    largest: int
    smallest: int
    """Sizes of these two clusters."""


def picture_path(row_id: int) -> str:
    """Return the path of a row's picture in the folder of the report."""
    return f"pictures/{row_id // PARTITION_ROWS}/{row_id}.jpg"


def render_pages(data: ReportData) -> Iterator[tuple[str, str]]:
    """Yield the path of each page in the folder of the report, and the page.

    Addresses of pictures in `data` are relative to a page of clusters, which is in a folder: they begin with `../`.
    """
    cards, colors = by_size(data), palette(data)
    starts = range(0, len(cards), CARDS)
    groups = [cards[start : start + CARDS] for start in starts]
    pages = [
        Page(f"clusters/{number:04d}.html", start + 1, start + len(group), group[0].size, group[-1].size)
        for number, (start, group) in enumerate(zip(starts, groups, strict=True), start=1)
    ]
    hrefs = {
        card.cluster: f"{each.href}#cluster-{card.cluster}"
        for each, group in zip(pages, groups, strict=True)
        for card in group
    }
    values = overview(data, cards, hrefs)
    yield INDEX, page("index.html.j2", "index.js", **values, pages=pages, rows=_rows(values["cards"], hrefs))
    names = ["", *(each.href.rpartition("/")[2] for each in pages), ""]
    for number, (each, group) in enumerate(zip(pages, groups, strict=True), start=1):
        beside = {"before": names[number - 1], "after": names[number + 1]}
        yield (
            each.href,
            page("clusters.html.j2", "page.js", data=data, page=each, cards=group, palette=colors, **beside),
        )


def _rows(cards: list[ClusterCard], hrefs: dict[int, str]) -> Markup:
    """Return the rows of the table as JSON in which no text can end the script that holds it."""
    return htmlsafe_json_dumps(
        [
            {
                "name": card.name,
                "nouns": ", ".join(noun for noun in card.nouns if noun != card.name),
                "size": card.size,
                "confidence": card.mean_confidence,
                "href": hrefs[card.cluster],
            }
            for card in cards
        ]
    )


def write_files(folder: Location, contents: Iterable[tuple[str, bytes]]) -> None:
    """Write files, each given by its path in the folder and its content, several at a time."""
    for _ in map_threads(lambda item: (folder / item[0]).write_bytes(item[1]), contents):
        pass
