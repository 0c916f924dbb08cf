"""The page of a report: one HTML page that is complete without other files, network or scripts."""

from __future__ import annotations

import base64
import hashlib
import statistics
from collections.abc import Callable
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raycluster.results.report import charts, explanations
from raycluster.results.report.data import ClusterCard, Metrics, ReportData
from raycluster.results.report.scatter import scatter

NAMED_BARS = 30
"""Up to this number of clusters, sizes are a list of named bars; with more clusters they are columns."""
MOST_COLUMNS = 1000
"""With more clusters than this, sizes are an area, because a browser is slow with tens of thousands of columns."""
EXAMPLES = 3
"""Number of example URIs for each failing status."""


def render(data: ReportData) -> str:
    """Return one page with everything. Every string of `data` is shown as text, whatever it holds, and the page can be encoded as UTF-8."""
    cards = by_size(data)
    values = overview(data, cards, {card.cluster: f"#cluster-{card.cluster}" for card in cards})
    return page("page.html.j2", "page.js", **values, palette=palette(data))


def by_size(data: ReportData) -> list[ClusterCard]:
    """Return the cards, the largest cluster first."""
    return sorted(data.cards, key=lambda card: (-card.size, card.cluster))


def palette(data: ReportData) -> tuple[str, ...]:
    """Return a color for each cluster, indexed by its number."""
    return charts.colors(max((card.cluster for card in data.cards), default=0) + 1)


def page(template: str, script: str, **values: Any) -> str:
    """Return a page from a template, with the style of all pages and one script. Both are files of this package."""
    code = _asset(script)
    text = (
        _environment()
        .get_template(template)
        .render(
            **values,
            style=Markup(_asset("style.css")),
            script=Markup(code),
            script_hash=base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
        )
    )
    return text.encode("utf-8", "replace").decode()


def overview(data: ReportData, cards: list[ClusterCard], hrefs: dict[int, str]) -> dict[str, Any]:
    """Return what the template of the page needs for all sections above the clusters.

    `cards`: the largest first; `hrefs`: the address of each cluster's card, relative to the page.
    """
    return {
        "data": data,
        "cards": cards,
        "hrefs": hrefs,
        "key_numbers": _key_numbers(data),
        "funnel": _funnel(data),
        "failed": {s: n for s, n in sorted(data.statuses.items(), key=lambda item: -item[1]) if s != "ok" and n},
        "sizes": _sizes(cards, hrefs),
        "map": _map(data, hrefs),
        "curves": _curves(data.training),
        "compared": _compared(data),
        "tuning_curves": _curves(data.tuning.history if data.tuning else []),
        "labelled": _scores(data.metrics, explanations.LABELLED, percent),
        "label_free": _scores(data.metrics, explanations.LABEL_FREE, fraction),
        "meaning": explanations.STATUSES,
        "examples": EXAMPLES,
    }


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("raycluster.results.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "grouped": grouped,
        "share": share,
        "duration": duration,
        "when": _when,
    }
    environment.globals["bar"] = charts.bar
    return environment


def _asset(name: str) -> str:
    return (files("raycluster.results.report") / name).read_text(encoding="utf-8")


def _key_numbers(data: ReportData) -> list[tuple[str, str, str]]:
    """Return (label, value, note) for each figure at the top of the page."""
    assigned, empty = _assigned(data), sum(card.size == 0 for card in data.cards)
    numbers = [
        ("Images", grouped(data.n_images), ""),
        ("Assigned", grouped(assigned), share(assigned, data.n_images)),
        ("Clusters", grouped(len(data.cards)), f"{grouped(empty)} empty" if empty else ""),
    ]
    if "Method" in data.facts:
        numbers.append(("Method", data.facts["Method"].partition(" ")[0], ""))
    if (accuracy := data.metrics.get("acc")) is not None:
        numbers.append(("ACC", percent(accuracy), f"on {grouped(data.metrics.get('n_labelled'))} labeled"))
    if (confidence := data.metrics.get("confidence")) is not None:
        numbers.append(("Confidence", f"{confidence:.2f}", "mean"))
    return numbers


def _assigned(data: ReportData) -> int:
    return sum(card.size for card in data.cards)


def _funnel(data: ReportData) -> list[tuple[str, int]]:
    """Return the steps that images go through, each with the number of images that completed it."""
    return [("Listed", data.n_images), ("Embedded", data.statuses.get("ok", 0)), ("Assigned", _assigned(data))]


def _sizes(cards: list[ClusterCard], hrefs: dict[int, str]) -> dict[str, Any]:
    """Return the size distribution of `cards`, largest first: the figures of the caption, and a chart if there are many cards."""
    sizes = [card.size for card in cards] or [0]
    mean, median = statistics.mean(sizes), statistics.median(sizes)
    chart, logarithmic = None, len(cards) > MOST_COLUMNS
    if logarithmic:
        chart = charts.area(sizes, mean)
    elif len(cards) > NAMED_BARS:
        titles = ((card, f"{card.name}: {grouped(card.size)} images") for card in cards)
        chart = charts.columns([charts.Column(card.size, title, hrefs[card.cluster]) for card, title in titles], mean)
    figures = {"largest": max(sizes), "smallest": min(sizes), "mean": mean, "median": median}
    return {**figures, "chart": chart, "logarithmic": logarithmic}


def _map(data: ReportData, hrefs: dict[int, str]) -> Markup | None:
    if data.map_points is None or data.map_clusters is None or not len(data.map_points):
        return None
    names = {card.cluster: card.name for card in data.cards}
    return scatter(data.map_points, data.map_clusters, names, palette(data), hrefs)


def _curves(training: list[dict[str, float]]) -> list[tuple[str, float, float, Markup]]:
    """Return (term, first value, last value, drawing) for each term of the loss."""
    if len(training) < 2:
        return []
    terms = {name: [epoch[name] for epoch in training] for name in training[0]}
    return [(name, values[0], values[-1], charts.curve(values)) for name, values in terms.items()]


def _scores(
    metrics: Metrics, known: dict[str, tuple[str, str]], form: Callable[[float], str]
) -> list[tuple[str, str, str]]:
    """Return (title, value, sentence) for each score of `known` that has a value."""
    found = ((metrics.get(key), *words) for key, words in known.items())
    return [(title, form(value), sentence) for value, title, sentence in found if value is not None]


def _compared(data: ReportData) -> list[tuple[str, str, str]]:
    """Return (title, before, after) for each score that fine-tuning may have changed."""
    before = data.tuning.before if data.tuning else {}
    rows = []
    for known, form in ((explanations.LABELLED, percent), (explanations.LABEL_FREE, fraction)):
        for key, (title, _) in known.items():
            first, then = before.get(key), data.metrics.get(key)
            if first is not None and then is not None and key not in explanations.OF_IMAGES:
                rows.append((title, form(first), form(then)))
    return rows


def grouped(number: float | None) -> str:
    """Return a number with thousands separators: 1234 → `1,234`. A median may end in .5."""
    return "–" if number is None else f"{number:,.0f}" if number == int(number) else f"{number:,.1f}"


def share(part: float, whole: float) -> str:
    """Return a percentage with one decimal. 0% and 100% appear only if they are exact."""
    if not whole:
        return "–"
    fraction_of_all = part / whole
    if 0 < fraction_of_all < 0.0005:
        return "<0.1%"
    if 0.9995 <= fraction_of_all < 1:
        return ">99.9%"
    return f"{fraction_of_all:.0%}" if fraction_of_all in (0, 1) else f"{fraction_of_all:.1%}"


def percent(value: float) -> str:
    """Return a percentage with one decimal, as papers give scores against labels: 0.8312 → `83.1%`."""
    return f"{100 * value:.1f}%".replace("-", "−")


def fraction(value: float) -> str:
    """Return a number with three decimals and a true minus sign."""
    return f"{value:.3f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Return a duration in seconds, in minutes and seconds, or in hours and minutes, whichever suits its length."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _when(created: str) -> str:
    moment = datetime.fromisoformat(created)
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".strip()
