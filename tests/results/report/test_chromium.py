"""Test the report page in a real browser. The tests are skipped where there is no Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycluster.results.report.data import ReportData
from raycluster.results.report.html import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the report is not opened in a browser")

# A window of headless Chromium cannot be narrower than about 500 pixels, but a frame can have any width.
FRAME = """<!doctype html><body style="margin:0"><iframe src="page.html" style="border:0;width:{width}px;height:{height}px"></iframe>
<script>
document.querySelector("iframe").onload = ({{ target }}) => {{
  const page = target.contentDocument, root = page.documentElement, byId = (id) => page.getElementById(id);
  const names = () => [...byId("cards").children].filter((card) => !card.hidden).map((card) => card.dataset.name);
  const found = {{ width: target.clientWidth, scroll: root.scrollWidth, controls: !byId("controls").hidden, first: names() }};
  const beyond = [...page.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > target.clientWidth + 1);
  found.outside = beyond.map((e) => e.className?.baseVal ?? e.className ?? e.tagName);
  found.images = [...page.images].filter((image) => image.complete && !image.naturalWidth).length;
  for (const [key, order] of [["byName", "name"], ["bySurest", "surest"]]) {{
    byId("sort").value = order; byId("sort").dispatchEvent(new Event("change")); found[key] = names();
  }}
  byId("search").value = "OTHER-3"; byId("search").dispatchEvent(new Event("input")); found.searched = names();
  document.body.append(Object.assign(document.createElement("pre"), {{ textContent: JSON.stringify(found) }}));
}};
</script>"""


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files",
        "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def console(done: subprocess.CompletedProcess[str]) -> list[str]:
    return re.findall(r".*CONSOLE.*", done.stderr)


def opened(folder: Path, page: str, width: int) -> dict:
    (folder / "page.html").write_text(page, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width, height=900), encoding="utf-8")
    done = chromium(folder, "--window-size=1400,1000", "--dump-dom", (folder / "frame.html").as_uri())
    assert console(done) == []
    found = re.search(r"<pre>(.*?)</pre>", done.stdout)
    assert found, done.stdout[-500:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("clusters", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_page_fits_its_width_and_search_and_sort_work(
    make_data: Callable[..., ReportData], tmp_path: Path, clusters: int, width: int
) -> None:
    data = make_data(clusters)
    found = opened(tmp_path, render(data), width)
    assert found["width"] == width
    assert found["scroll"] <= width
    assert found["outside"] == []
    assert found["images"] == 0
    assert found["controls"]
    assert found["first"] == [c.name for c in sorted(data.cards, key=lambda c: (-c.size, c.cluster))]
    assert sorted(found["byName"]) == sorted(found["first"])
    assert found["byName"][:2] == ["noun-0", "noun-1"]
    confidence = {card.name: card.mean_confidence for card in data.cards}
    assert [confidence[n] for n in found["bySurest"]] == sorted(confidence.values(), reverse=True)
    assert set(found["searched"]) == {n for n in found["first"] if n.startswith("noun-3")}


def test_long_and_hostile_strings_do_not_widen_a_phone(make_data: Callable[..., ReportData], tmp_path: Path) -> None:
    text = "<script>document.title='owned';throw 1</script><img src=x onerror='throw 2'>" + "x" * 300
    data = make_data(
        3,
        title=text,
        facts={"Method": text, text: text},
        stages={text: 1e6},
        warnings=[text],
        failures={"missing": [(text, text)]},
    )
    found = opened(tmp_path, render(data), 375)
    assert found["scroll"] <= 375
    assert found["outside"] == []


@pytest.mark.parametrize("width", [1280, 375])
def test_screenshot_shows_a_page(make_data: Callable[..., ReportData], tmp_path: Path, width: int) -> None:
    (tmp_path / "page.html").write_text(render(make_data(10)), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width, height=1500), encoding="utf-8")
    picture = tmp_path / "page.png"
    chromium(tmp_path, "--window-size=1280,1500", f"--screenshot={picture}", (tmp_path / "frame.html").as_uri())
    pixels = np.asarray(Image.open(picture).convert("RGB"))[:, :width]
    ground = (pixels == pixels[2, 2]).all(axis=2).mean()
    assert 0.4 < ground < 0.97
    assert len(np.unique(pixels[::3, ::3].reshape(-1, 3), axis=0)) > 30


def test_a_console_error_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "broken.html").write_text("<script>throw Error('seen')</script>", encoding="utf-8")
    assert "seen" in "".join(console(chromium(tmp_path, "--dump-dom", (tmp_path / "broken.html").as_uri())))
