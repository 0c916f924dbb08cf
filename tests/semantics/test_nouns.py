"""Test the built-in list of nouns."""

from __future__ import annotations

import re

import pytest

from raycluster.config import StorageConfig, VocabularyConfig
from raycluster.semantics.vocabulary import load_nouns


@pytest.fixture(scope="module")
def nouns() -> list[str]:
    return load_nouns(VocabularyConfig(), StorageConfig())


def test_the_list_is_long_sorted_and_unique(nouns: list[str]) -> None:
    assert len(nouns) >= 4000
    assert nouns == sorted(set(nouns))


def test_a_noun_is_a_few_plain_words_in_lower_case(nouns: list[str]) -> None:
    plain = re.compile(r"[a-z0-9-]+( [a-z0-9-]+){0,4}")
    assert [noun for noun in nouns if not plain.fullmatch(noun)] == []


def test_spellings_that_differ_only_in_spaces_do_not_repeat_a_noun(nouns: list[str]) -> None:
    seen: dict[str, str] = {}
    repeats = [
        (noun, seen[joined])
        for noun in nouns
        if seen.setdefault(joined := noun.replace(" ", "").replace("-", ""), noun) != noun
    ]
    assert repeats == []


@pytest.mark.parametrize(
    "some",
    [
        "dog cat siberian_husky owl salmon butterfly gecko",
        "oak sunflower mushroom grass",
        "pizza sushi coffee strawberry",
        "dress sneaker necklace hammer kettle sofa laptop",
        "truck airliner sailboat church kitchen beach rainbow",
        "soccer_ball grand_piano teddy_bear painting passport stop_sign tractor granite",
        "firefighter hand stethoscope hay_bale stapler blackboard missile galaxy bacterium stripe_pattern",
    ],
)
def test_every_field_of_visible_things_is_there(nouns: list[str], some: str) -> None:
    assert {noun.replace("_", " ") for noun in some.split()} <= set(nouns)


def test_ideas_are_not_things_one_can_see(nouns: list[str]) -> None:
    assert not {"freedom", "idea", "thing", "entity", "happiness", "time", "love", "justice", "theory"} & set(nouns)


def test_most_kinds_of_cifar10_and_stl10_are_named(nouns: list[str]) -> None:
    kinds = "airplane car bird cat deer dog frog horse ship truck monkey"
    assert set(kinds.split()) <= set(nouns)
