"""Test that captions of drawn pictures say what is in the picture, and that the vocabulary is the nouns of the captions."""

from __future__ import annotations

import re
from random import Random

import pytest

from raycluster.demo.captions import FRAMES, caption, caption_nouns, name_caption
from raycluster.demo.drawing import BACKGROUNDS, HUES, SIZES, imagine
from raycluster.demo.kinds import KINDS

NO_NOUNS = {"a", "an", "of", "on", "the", "with", "in", "itap", "bad", *HUES, *BACKGROUNDS, *SIZES}


@pytest.fixture(scope="module")
def full() -> list[str]:
    random = Random(0)
    return [caption(imagine(kind, seed), random) for kind in sorted(KINDS) for seed in range(60)]


@pytest.fixture(scope="module")
def names() -> list[str]:
    random = Random(0)
    return [name_caption(kind, random) for kind in sorted(KINDS) for _ in range(60)]


def test_the_vocabulary_is_every_noun_of_the_captions_and_nothing_else(full: list[str], names: list[str]) -> None:
    nouns = caption_nouns()
    assert nouns == sorted(set(nouns))
    assert len(nouns) > 100
    assert set(KINDS) <= set(nouns)
    pattern = re.compile(r"\b(" + "|".join(sorted(map(re.escape, nouns), key=len, reverse=True)) + r")\b")
    used: set[str] = set()
    for text in full + names:
        used.update(pattern.findall(text))
        assert set(re.findall(r"[a-z]+", pattern.sub(" ", text))) <= NO_NOUNS, text
    assert used == set(nouns)


def test_captions_say_what_is_in_the_picture_and_nothing_that_is_not() -> None:
    for seed in range(200):
        scene = imagine("fish", seed)
        text = caption(scene, Random(seed))
        assert re.search(r"\b(fish|animal)\b", text)
        said = set(re.findall(r"[a-z]+", text))
        assert said & set(HUES) <= {scene.color, scene.background_color}
        assert said & set(BACKGROUNDS) <= {scene.background}


def test_full_captions_mostly_mention_the_background_and_names_never_do(full: list[str], names: list[str]) -> None:
    assert 0.7 < sum(" on " in text for text in full) / len(full) < 0.8
    assert not [text for text in names if " on " in text or set(text.split()) & {*HUES, *BACKGROUNDS}]


def test_captions_use_the_right_article_and_every_frame(full: list[str]) -> None:
    assert not [text for text in full if re.search(r"\ba [aeiou]|\ban [^aeiou]", text)]
    for frame in FRAMES[1:]:
        assert any(text.startswith(frame.replace("{}", "")) for text in full)
