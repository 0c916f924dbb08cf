"""Test the drawing of the map: where points and names stand, and when the points become a picture."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageColor

from raycluster.results.report.charts import colors
from raycluster.results.report.scatter import MOST_CIRCLES, NARROW, WIDE, fit, scatter

NAMES = {0: "cat", 1: "dog", 2: "tree"}
HREFS = {cluster: f"#cluster-{cluster}" for cluster in NAMES}


def circles(svg: str) -> np.ndarray:
    return np.array(re.findall(r'<circle cx="([-\d.]+)%" cy="([-\d.]+)%"', svg), float)


def test_points_keep_their_distances_up_to_one_scale() -> None:
    points = np.random.default_rng(0).normal(size=(50, 2)) * [3, 1]
    places = circles(scatter(points, np.zeros(50, int), NAMES, colors(3), HREFS))
    scale = 92 / np.ptp(points[:, 0])
    np.testing.assert_allclose(
        places - places.mean(axis=0), (points - points.mean(axis=0)) * [scale, -scale], atol=0.02
    )
    assert places[:, 0].min() == pytest.approx(4, abs=0.01)
    assert places[:, 0].max() == pytest.approx(96, abs=0.01)


def test_each_cluster_has_its_color_its_title_and_a_link_to_its_card() -> None:
    points, clusters = np.random.default_rng(1).normal(size=(60, 2)), np.repeat([0, 1, 2], [10, 20, 30])
    svg = scatter(points, clusters, NAMES, colors(3), HREFS)
    groups = re.findall(
        r'<a href="#cluster-(\d)" tabindex="-1"><g fill="(#\w+)"><title>(\w+)</title>(.*?)</g></a>', svg
    )
    # The largest cluster is drawn first, so that small ones are on top.
    assert [(int(c), color, name) for c, color, name, _ in groups] == [(c, colors(3)[c], NAMES[c]) for c in (2, 1, 0)]
    assert [drawn.count("<circle") for *_, drawn in groups] == [30, 20, 10]


def test_many_points_become_a_picture_in_the_same_places(opened: Callable[[bytes], Image.Image]) -> None:
    points = np.concatenate([np.tile([[0.0, 0.0]], (MOST_CIRCLES, 1)), [[1.0, 1.0]]])
    clusters = np.array([0] * MOST_CIRCLES + [1])
    svg = scatter(points, clusters, NAMES, colors(3), HREFS)
    assert "<circle" not in svg
    encoded = re.search(r'href="data:image/png;base64,([^"]+)"', svg)
    assert encoded
    picture = opened(base64.b64decode(encoded[1])).convert("RGBA")
    side = picture.width
    assert picture.size == (2 * WIDE, 2 * WIDE)
    assert picture.getpixel((round(0.04 * side), round(0.96 * side))) == ImageColor.getcolor(colors(3)[0], "RGBA")
    assert picture.getpixel((round(0.96 * side), round(0.04 * side))) == ImageColor.getcolor(colors(3)[1], "RGBA")
    assert picture.getpixel((side // 2, side // 2))[3] == 0


@pytest.mark.parametrize("points", [np.zeros((1, 2)), np.zeros((5, 2)), np.full((3, 2), 7.5)])
def test_a_map_of_one_place_is_drawn_in_the_middle(points: np.ndarray) -> None:
    np.testing.assert_array_equal(circles(scatter(points, np.zeros(len(points), int), NAMES, colors(3), HREFS)), 50)


def test_names_never_overlap_at_either_width() -> None:
    rng = np.random.default_rng(2)
    centers = {c: rng.uniform(4, 96, 2) for c in range(200)}
    names = {c: "n" * int(rng.integers(2, 40)) for c in range(200)}
    labels = fit(centers, names)
    for side, shown in ((WIDE, labels), (NARROW, [label for label in labels if label.narrow])):
        assert len(shown) > 8
        boxes = [(label.x * side / 100, label.y * side / 100, 7 * len(label.text)) for label in shown]
        for i, (x, y, width) in enumerate(boxes):
            assert width / 2 - 1 <= x <= side - width / 2 + 1
            assert all(abs(x - ox) >= (width + ow) / 2 or abs(y - oy) >= 15 for ox, oy, ow in boxes[:i])


def test_long_names_are_cut_and_the_first_name_always_fits() -> None:
    labels = fit({3: np.array([0.0, 50.0])}, {3: "a very long name " * 20})
    assert len(labels) == 1
    assert labels[0].text.endswith("…")
    assert len(labels[0].text) <= 28


def test_name_stands_on_a_point_of_its_cluster() -> None:
    # The points form two islands, so their median lies in the empty middle.
    points = np.array([[0.0, 0.0], [0.0, 0.1], [1.0, 0.0], [1.0, 0.1]])
    svg = scatter(points, np.zeros(4, int), NAMES, colors(3), HREFS)
    text = re.search(r'<text x="([\d.]+)%" y="([\d.]+)%"[^>]*>cat</text>', svg)
    assert text
    assert np.abs(circles(svg) - np.array(text.groups(), float)).max(axis=1).min() < 0.02
