"""Test the page at `/` in a real browser. The test is skipped where there is no Chromium."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import requests
from browser import CHROMIUM, Tab, browser
from PIL import Image
from serving_kit import LocalEndpoint, wait_until

from raycluster.serving.live_model import LiveModel

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the endpoint's page is not opened in a browser")

HOSTILE = "<img src=x onerror=alert(1)>.png"
ROWS = """JSON.stringify([...document.querySelectorAll("#results > li")].map((row) => ({
  title: row.querySelector("h2").textContent, text: row.textContent, cluster: row.dataset.cluster ?? null,
  picture: row.querySelector(".picture").naturalWidth, bars: row.querySelectorAll("progress").length,
  shown: [...row.querySelectorAll(".exemplars img")].filter((image) => image.complete && image.naturalWidth).length,
})))"""

DROP = """{
  const bytes = Uint8Array.from(atob(document.querySelector(".exemplars img").src.split(",")[1]), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "dropped.jpg"));
  data.items.add(new File(["text"], "text.jpg"));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
}"""


def rows(tab: Tab) -> list[dict]:
    return list(json.loads(tab.evaluate(ROWS)))


def test_a_picture_its_cluster_and_its_exemplars(
    local: LocalEndpoint, files: list[Path], photos: Path, tmp_path: Path
) -> None:
    hostile = tmp_path / HOSTILE
    shutil.copy(files[0], hostile)
    items = requests.post(f"{local.url}/v1/assign", files={"files": files[0].read_bytes()}, timeout=20).json()["items"]
    with browser(tmp_path / "profile") as tab:
        tab.size(1100, 1400)
        tab.call("Page.navigate", url=local.url)
        wait_until(
            lambda: "clusters by kmeans" in (tab.evaluate("document.getElementById('model')?.textContent") or "")
        )
        tab.choose("#files", [hostile])
        wait_until(lambda: (found := rows(tab)) and found[0]["shown"])
        row = rows(tab)[0]
        assert row["cluster"] == str(items[0]["cluster"])
        assert items[0]["name"] in row["title"]
        assert f"{100 * items[0]['confidence']:.1f} %" in row["title"]
        assert (row["bars"], HOSTILE in row["text"]) == (3, True)
        assert row["shown"] == min(12, local.model.live.gallery.clusters[items[0]["cluster"]]["size"])
        # Two files are dropped at once, and one of them is no picture.
        tab.evaluate(DROP)
        wait_until(lambda: len(rows(tab)) == 3)
        assert {row["title"] for row in rows(tab)} >= {"undecodable"}
        wait_until(lambda: sum(bool(row["shown"]) for row in rows(tab)) == 2)
        tab.screenshot(tmp_path / "page.png")
        picture = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
        assert len(np.unique(picture[::3, ::3].reshape(-1, 3), axis=0)) > 100
        tab.size(375, 900)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 375
        assert tab.errors == []
        assert {url.split("/v1")[0].rstrip("/") for url in tab.requests if not url.startswith(("data:", "blob:"))} == {
            local.url
        }


def test_a_token_is_asked_for(live: LiveModel, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a-token-of-some-length")
    with LocalEndpoint(live, tokens_file=str(tmp_path / "tokens")) as endpoint, browser(tmp_path / "profile") as tab:
        tab.call("Page.navigate", url=endpoint.url)
        wait_until(lambda: tab.evaluate("document.getElementById('access')?.hidden === false"))
        tab.evaluate("""document.getElementById("token").value = "a-token-of-some-length";
          document.getElementById("access").requestSubmit()""")
        wait_until(lambda: "clusters by kmeans" in tab.evaluate("document.getElementById('model').textContent"))
        assert tab.evaluate("document.getElementById('access').hidden")
        tab.choose("#files", files[:1])
        wait_until(lambda: (found := rows(tab)) and found[0]["shown"])


def test_the_policy_lets_nothing_else_run(local: LocalEndpoint) -> None:
    reply = requests.get(local.url, timeout=20)
    assert reply.headers["content-type"].startswith("text/html")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in reply.text.replace("http-equiv", "")
