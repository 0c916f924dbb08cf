"""Test the charts of the report: their proportions, their ticks, and their colors."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest

from raycluster.results.report.charts import HEADROOM, Column, area, bar, colors, columns, curve, ticks


def numbers(svg: str, element: str, attribute: str) -> list[float]:
    found = re.findall(rf"<{element}[^>]*>", svg)
    return [float(value) for tag in found for value in re.findall(rf' {attribute}="([\d.]+)%"', tag)]


@pytest.mark.parametrize("share", [0, 0.005, 0.25, 0.5, 1])
def test_bar_is_as_wide_as_its_share(share: float) -> None:
    assert numbers(bar(share), "rect", "width") == [100 * share]


def test_a_tiny_share_is_seen_and_none_is_not() -> None:
    assert '<rect width="2" ' in bar(1e-6)
    assert '<rect width="0.000%" ' in bar(0)


@pytest.mark.parametrize("n", [31, 200, 1000])
def test_columns_are_proportional_and_side_by_side(n: int) -> None:
    values = np.sort(np.random.default_rng(n).integers(0, 500, n))[::-1]
    svg = columns([Column(int(v), f"n{i}", f"#c{i}") for i, v in enumerate(values)], float(values.mean()))
    drawn = re.findall(r'<rect class="column" x="([\d.]+)%" y="([\d.]+)%" width="([\d.]+)%" height="([\d.]+)%"/>', svg)
    x, y, width, height = np.array(drawn, float).T
    np.testing.assert_allclose(height, 100 * HEADROOM * values / values.max(), atol=0.006)
    np.testing.assert_allclose(y + height, 100, atol=0.011)
    np.testing.assert_allclose(x, np.arange(n) * 100 / n, atol=0.001)
    assert (width <= 100 / n + 0.001).all()
    mean = re.search(r'class="mean"[^>]* y1="([\d.]+)%"', svg)
    assert mean
    assert float(mean[1]) == pytest.approx(100 - 100 * HEADROOM * values.mean() / values.max(), abs=0.006)


def test_an_area_has_a_logarithmic_scale_and_ends_at_its_values() -> None:
    values = [999, *[99] * 500, *[9] * 500, 0]
    svg = area(values, 53.9)
    points = np.array([point.split(",") for point in re.findall(r'points="([^"]+)"', svg)[0].split()], float)
    assert points[0].tolist() == [0, 100]
    assert points[-1].tolist() == [100, 100]
    x, y = points[1:-1].T
    assert (np.diff(x) > 0).all()
    # A tenth is one of three equal steps down.
    np.testing.assert_allclose(
        100 - y[[0, 100, 300, -1]], [100 * HEADROOM, 200 * HEADROOM / 3, 100 * HEADROOM / 3, 0], atol=0.01
    )
    assert re.findall(r'dy="-4">([\d,]+)<', svg) == ["10", "100"]
    assert "polygon" in area([0, 0], 0)


def test_columns_of_nothing_and_of_zeros_are_drawn() -> None:
    assert "<svg" in columns([], 0)
    assert numbers(columns([Column(0, "", "#")] * 3, 0), 'rect class="column"', "height") == [0, 0, 0]


def test_a_curve_goes_through_its_values_from_edge_to_edge() -> None:
    drawing = str(curve([3.0, 1.0, 2.0]))
    assert 'points="0.00,0.00 50.00,40.00 100.00,20.00"' in drawing
    assert 'points="0.00,0.00 100.00,0.00"' in str(curve([2.0, 2.0]))


def test_titles_are_escaped() -> None:
    assert "<b>" not in columns([Column(1, "<b>", '"><b>')], 1)


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(0, ()), (1, (1,)), (5, (1, 2, 3, 4, 5)), (7, (2, 4, 6)), (466, (100, 200, 300, 400)), (12_345, (5000, 10_000))],
)
def test_ticks_are_few_and_round(largest: int, expected: tuple[int, ...]) -> None:
    assert ticks(largest) == expected


@pytest.mark.parametrize("n", [0, 1, 10, 11, 200, 1000])
def test_colors_are_as_many_as_asked_and_hardly_repeat(n: int) -> None:
    palette = colors(n)
    assert len(palette) == n
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in palette)
    assert len(set(palette)) >= 0.9 * n


def luminance(color: str) -> float:
    if len(color) == 4:
        color = "#" + "".join(2 * digit for digit in color[1:])
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_marks_contrast_with_the_page_in_light_and_dark_and_on_paper() -> None:
    style = (files("raycluster.results.report") / "style.css").read_text(encoding="utf-8")
    themes = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)]
    assert len(themes) == 3
    for theme in themes:
        for ground in ("paper", "panel"):
            # WCAG 2.2 AA: 4.5 for text, 3 for graphical objects.
            assert all(contrast(theme[name], theme[ground]) >= 4.5 for name in ("ink", "muted", "lost", "link"))
            assert contrast(theme["bar"], theme[ground]) >= 3


def test_map_colors_stand_out_on_both_grounds() -> None:
    assert min(contrast(color, ground) for color in colors(200) for ground in ("#fff", "#1b1e21")) >= 2
