"""The report of a run: one HTML page that is complete without other files, network or scripts."""

from __future__ import annotations

import base64
import hashlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raycluster.results.report import charts, explanations
from raycluster.results.report.scatter import scatter

NAMED_BARS = 30
"""Up to this number of clusters, sizes are a list of named bars; with more clusters they are columns."""
EXAMPLES = 3
"""Number of example URIs for each failing status."""

Metrics: TypeAlias = dict[str, float | int | None]


@dataclass(frozen=True)
class Thumb:
    """One exemplar image."""

    image_id: str
    confidence: float | None
    jpeg: bytes | None
    """None if there are no pixels (ready-made embeddings, a file that is gone); the page then shows the id."""


@dataclass(frozen=True)
class ClusterCard:
    """What the page shows of one cluster."""

    cluster: int
    name: str
    nouns: tuple[str, ...]
    size: int
    mean_confidence: float | None
    typical: tuple[Thumb, ...]
    least_typical: tuple[Thumb, ...]


@dataclass(frozen=True)
class Tuning:
    """What fine-tuning the encoder did."""

    summary: str
    """What was trained and with which outcome, in sentences."""
    before: Metrics
    """Metrics of the model before fine-tuning; empty if the tuned encoder was refused."""
    history: list[dict[str, float]]
    """The means of the loss and its terms in each epoch."""


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows."""

    title: str
    created: str
    """Date and time in ISO 8601."""
    facts: dict[str, str]
    """Facts about the run, in the order in which they are shown. The first word of `Method`, if present, is also a key number."""
    statuses: dict[str, int]
    """Number of images by status."""
    failures: dict[str, list[tuple[str, str]]]
    """Status → examples (URI, reason)."""
    n_images: int
    cards: tuple[ClusterCard, ...]
    """One card for each cluster, also for empty ones."""
    metrics: Metrics
    """The content of `metrics.json`."""
    advice: str
    """Whether text helps, in words; empty for methods without text."""
    fit: str
    """How a method that is fitted in one go explains its fit, in sentences; empty for other methods."""
    training: list[dict[str, float]]
    """The means of the loss and its terms in each epoch. With fewer than two epochs there are no curves."""
    tuning: Tuning | None
    """None without fine-tuning."""
    stages: dict[str, float]
    """Seconds by stage, in order."""
    map_points: np.ndarray | None
    """[n, 2] from :func:`raycluster.results.report.projection.project`, or None to leave the map out."""
    map_clusters: np.ndarray | None
    """[n] cluster of each point."""
    warnings: list[str]


def render(data: ReportData) -> str:
    """Return the page. Every string of `data` is shown as text, whatever it holds, and the page can always be encoded as UTF-8."""
    script = _asset("page.js")
    cards = sorted(data.cards, key=lambda card: (-card.size, card.cluster))
    # The palette is indexed by cluster number.
    palette = charts.colors(max((card.cluster for card in cards), default=0) + 1)
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            data=data,
            cards=cards,
            palette=palette,
            style=Markup(_asset("style.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            key_numbers=_key_numbers(data),
            funnel=_funnel(data),
            failed={s: n for s, n in sorted(data.statuses.items(), key=lambda item: -item[1]) if s != "ok" and n},
            sizes=_sizes(cards),
            map=_map(data, palette),
            curves=_curves(data.training),
            compared=_compared(data),
            tuning_curves=_curves(data.tuning.history if data.tuning else []),
            labelled=_scores(data.metrics, explanations.LABELLED, percent),
            label_free=_scores(data.metrics, explanations.LABEL_FREE, fraction),
            meaning=explanations.STATUSES,
            examples=EXAMPLES,
        )
    )
    return page.encode("utf-8", "replace").decode()


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
        "data_uri": _data_uri,
        "when": _when,
    }
    environment.globals["bar"] = charts.bar
    return environment


def _asset(name: str) -> str:
    return (files("raycluster.results.report") / name).read_text(encoding="utf-8")


def _data_uri(jpeg: bytes) -> Markup:
    # Return Markup, because escaping megabytes of base64 would take most of the rendering time.
    return Markup("data:image/jpeg;base64," + base64.b64encode(jpeg).decode())


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


def _sizes(cards: list[ClusterCard]) -> dict[str, Any]:
    """Return the size distribution of `cards`, largest first: the figures of the caption, and a chart if there are many cards."""
    sizes = [card.size for card in cards] or [0]
    mean, median = statistics.mean(sizes), statistics.median(sizes)
    chart = None
    if len(cards) > NAMED_BARS:
        chart = charts.columns(
            [charts.Column(c.size, f"{c.name}: {grouped(c.size)} images", f"#cluster-{c.cluster}") for c in cards], mean
        )
    return {"largest": max(sizes), "smallest": min(sizes), "mean": mean, "median": median, "chart": chart}


def _map(data: ReportData, palette: tuple[str, ...]) -> Markup | None:
    if data.map_points is None or data.map_clusters is None or not len(data.map_points):
        return None
    return scatter(data.map_points, data.map_clusters, {card.cluster: card.name for card in data.cards}, palette)


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
