"""Test that bad values of a configuration are named with their field, and that fingerprints follow the content."""

from __future__ import annotations

from typing import Any

import pytest

from raycluster.config import RunConfig
from raycluster.errors import ConfigError
from raycluster.section import fingerprint, validate

GOOD = {"images": "photos", "output": "out", "clusters": 10}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clusers": 3}, "unknown key `clusers`; known here: images"),
        ({"method": {"nam": "x"}}, None),
        ({"encoder": {"modle": "x"}}, "unknown key `encoder.modle`; known here: model"),
        ({"clusters": 1}, "`clusters`: Input should be greater than or equal to 2"),
        ({"clusters": 0}, "`clusters`"),
        ({"clusters": "many"}, "`clusters`: Input should be a valid integer"),
        ({"embeddings": "e.parquet"}, "exactly one of `images` and `embeddings`"),
        ({"images": None}, "exactly one of `images` and `embeddings`"),
        ({"max_failed_fraction": 2}, "`max_failed_fraction`"),
        ({"labels": "file"}, "`labels`"),
        ({"encoder": {"model": "ViT-B-32"}}, "needs `pretrained`"),
        ({"encoder": {"model": "builtin", "pretrained": "openai"}}, "brings its own weights"),
        ({"vocabulary": {"prompts": ["a photo"]}}, "exactly one `{}`"),
    ],
)
def test_bad_values_name_the_field(change: dict[str, Any], message: str | None) -> None:
    if message is None:  # the method checks its own constants (see tests/methods)
        validate({**GOOD, **change}, RunConfig)
        return
    with pytest.raises(ConfigError) as caught:
        validate({**GOOD, **change}, RunConfig)
    assert message in str(caught.value)


def test_every_bad_field_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"images": "a", "clusters": 1, "colour": 3}, RunConfig)
    assert all(word in str(caught.value) for word in ("`output` is missing", "`clusters`", "`colour`"))


def test_the_default_encoder_has_its_weights() -> None:
    config = validate(GOOD, RunConfig)
    assert (config.encoder.model, config.encoder.pretrained) == ("ViT-B-32-quickgelu", "openai")


def test_one_source_and_a_list_of_one_mean_the_same() -> None:
    assert (
        validate(GOOD, RunConfig).image_sources
        == validate({**GOOD, "images": ["photos"]}, RunConfig).image_sources
        == ("photos",)
    )


def test_fingerprints_follow_content_not_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    config = validate(GOOD, RunConfig)
    assert fingerprint(config) == fingerprint(RunConfig.model_validate(config.model_dump()))
