"""Test the report page: what it shows, that it needs nothing outside itself, and that hostile strings stay text."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from html_page import HOSTILE, Page, flat

from raycluster.results.report.data import ClusterCard, ReportData, Thumb
from raycluster.results.report.html import duration, grouped, render, share

Make = Callable[..., ReportData]


def test_every_cluster_is_there_with_name_size_and_pictures(make_data: Make) -> None:
    data = make_data(7)
    source = render(data)
    page = Page(source)
    for card in data.cards:
        assert card.name in page.text
        article = flat(
            Page(
                source[source.index(f'<article class="card" id="cluster-{card.cluster}"') :].split("</article>")[0]
                + "</article>"
            ).text
        )
        assert f"{card.size} images" in article
        assert f"confidence {card.mean_confidence:.2f}" in article
        assert f"other-{card.cluster}" in article
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 7 * 18
    assert images[0]["loading"] == "lazy"
    first = max(data.cards, key=lambda card: card.size)
    assert [image["alt"] for image in images[:18]] == [thumb.image_id for thumb in first.typical + first.least_typical]
    assert images[0]["src"] == first.typical[0].src
    assert base64.b64decode(str(images[0]["src"]).split(",")[1]).startswith(b"\xff\xd8")


def test_first_screen_has_the_key_numbers_and_the_funnel(make_data: Make) -> None:
    data = make_data(5)
    text = flat(Page(render(data)).text)
    assigned = sum(card.size for card in data.cards)
    assert f"Images {assigned + 6} Assigned {assigned} {assigned / (assigned + 6):.1%}" in text
    assert "Clusters 5 Method dxmc ACC 83.1% on 90 labeled Confidence 0.87" in text
    funnel = f"Listed{assigned + 6}100%undecodable4{4 / (assigned + 6):.1%}missing2{2 / (assigned + 6):.1%}Embedded{assigned}"
    assert funnel in text.replace(" ", "")


def test_failures_show_at_most_three_examples_with_reasons(make_data: Make) -> None:
    text = Page(render(make_data())).text
    assert all(f"broken-{i}.jpg" in text and f"reason {i}" in text for i in range(3))
    assert "broken-3.jpg" not in text


def test_scores_say_how_many_rows_were_labelled_or_that_none_were(make_data: Make) -> None:
    data = make_data()
    with_labels = flat(Page(render(data)).text)
    assert f"on 90 labeled of {data.n_images} images" in with_labels
    assert "83.1%" in with_labels
    assert "−0.091" in with_labels
    without = flat(Page(render(replace(data, metrics={**data.metrics, "acc": None, "nmi": None, "ari": None}))).text)
    assert "have no labels" in without
    assert "Adjusted Rand" not in without


def test_training_is_drawn_term_by_term_and_the_advice_is_a_sentence(make_data: Make) -> None:
    page = render(make_data())
    assert page.count('class="curve"') == 3
    text = flat(Page(page).text)
    assert "cluster contrast 2.000 −0.925".replace("−", "-") in text
    assert "Text helps: the nouns explain the images (asymmetry 1.52)." in text
    without = render(make_data(training=[{"mean_cosine": 0.8}], advice=""))
    fitted = Page(render(make_data(training=[{"views": 3.0}], fit="9 labelings voted, <b>3</b> of each view.")))
    assert "9 labelings voted, <b>3</b> of each view." in fitted.text
    assert "epochs. If a curve" not in fitted.text
    assert 'id="training"' not in without
    assert "asymmetry" not in without


def test_stages_and_facts_are_listed(make_data: Make) -> None:
    text = flat(Page(render(make_data())).text)
    assert "embed 1 min 15 s" in text
    assert "total 3 min 45 s" in text
    assert "images /data/pictures" in text


def test_page_refers_to_nothing_outside_itself(make_data: Make) -> None:
    source = render(make_data(40))
    for _, attributes in Page(source).tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert str(attributes.get(name) or "#").startswith(("#", "data:image/"))
    assert not re.search(r"url\(|@import|https?://", source)


def test_policy_admits_exactly_the_script_of_the_page(make_data: Make) -> None:
    source = render(make_data())
    scripts = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in source.replace("&#39;", "'")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_are_text_wherever_they_stand(make_data: Make, text: str) -> None:
    data = make_data(3)
    thumbs = (Thumb(text, None, None), Thumb(text, 0.5, data.cards[0].typical[0].src))
    cards = tuple(replace(card, name=text, nouns=(text, text + "2"), typical=thumbs) for card in data.cards)
    hostile = replace(
        data, title=text, cards=cards, facts={"Method": text, text: text}, statuses={"ok": 1, text: 2}, warnings=[text],
        failures={text: [(text, text)]}, stages={text: 1.0},
    )  # fmt: skip
    source = render(hostile)
    source.encode("utf-8")
    page, harmless = (
        Page(source),
        Page(render(replace(data, cards=tuple(replace(card, typical=thumbs) for card in data.cards)))),
    )
    assert page.count("script") == harmless.count("script") == 1
    assert page.count("img") == harmless.count("img")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert flat(text.replace("\ud800", "?")) in flat(page.text)


def test_without_pixels_ids_take_the_place_of_pictures(make_data: Make) -> None:
    data = make_data(3, pixels=False)
    page = Page(render(data))
    assert page.count("img") == 0
    assert all(thumb.image_id in page.text for card in data.cards for thumb in card.typical + card.least_typical)


def test_a_picture_that_is_gone_leaves_a_placeholder_among_the_others(make_data: Make) -> None:
    data = make_data(1)
    card = data.cards[0]
    gone = replace(card, typical=(replace(card.typical[0], src=None), *card.typical[1:]))
    page = Page(render(replace(data, cards=(gone,))))
    assert page.count("img") == 17
    assert card.typical[0].image_id in page.text


def test_empty_cluster_is_shown_as_such(make_data: Make) -> None:
    data = make_data(3)
    empty = ClusterCard(3, "cluster 3", (), 0, None, (), ())
    text = flat(Page(render(replace(data, cards=(*data.cards, empty)))).text)
    assert "Clusters 4 1 empty" in text
    assert "No image was assigned to this cluster." in text
    assert "nan" not in text.lower()


def test_a_run_of_nothing_still_gives_a_page() -> None:
    page = Page(render(ReportData("t", "2026-01-01", {}, {}, {}, 0, (), {}, "", "", [], None, {}, None, None, [])))
    assert page.count("svg") == 3


def test_sizes_are_named_bars_up_to_thirty_clusters_and_columns_beyond(make_data: Make) -> None:
    few, many = render(make_data(30)), render(make_data(31))
    assert 'class="columns"' not in few
    assert few.count('class="label" href="#cluster-') == 30
    assert many.count('class="column"') == 31


def test_two_hundred_clusters_render_fast_and_small(make_data: Make) -> None:
    data = make_data(200)
    started = time.perf_counter()
    source = render(data)
    assert time.perf_counter() - started < 5
    assert Page(source).count("article") == 200
    assert len(source.encode()) < 25 * 2**20


@pytest.mark.slow
def test_a_thousand_clusters_do_not_break_the_page(make_data: Make) -> None:
    page = Page(render(make_data(1000, pixels=False)))
    assert page.count("article") == 1000


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        (0, 9, "0%"),
        (9, 9, "100%"),
        (1, 3, "33.3%"),
        (1, 10**6, "<0.1%"),
        (10**6 - 1, 10**6, ">99.9%"),
        (999, 1000, "99.9%"),
        (0, 0, "–"),
    ],
)
def test_shares_say_none_and_all_only_when_exact(part: int, whole: int, expected: str) -> None:
    assert share(part, whole) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125.4, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7384, "2 h 03 min"),
    ],
)
def test_durations_read_like_speech(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_numbers_are_grouped() -> None:
    assert [grouped(n) for n in (None, 0, 1234567, 10.5)] == ["–", "0", "1,234,567", "10.5"]
