"""The endpoint on a real Ray Serve."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from serving_kit import post

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def test_a_picture_and_its_neighbors(endpoint: str, files: list[Path], photos: Path) -> None:
    reply = post(endpoint, [files[0], photos / "text.jpg", files[1]])
    assert reply.status_code == 200, reply.text
    print(reply.json())
    print(requests.get(endpoint + "/v1/model").json())
    print(requests.get(endpoint + "/v1/clusters/0").text[:500])
