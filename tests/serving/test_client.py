"""Test the client with an endpoint that answers, and with servers that do not."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serving_kit import LocalEndpoint, free_port

from raycluster.serving import client as module
from raycluster.serving.client import Client, EndpointError
from raycluster.serving.live_model import LiveModel

TOKEN = "a-token-of-some-length"


def test_pictures_of_all_kinds_in_order(local: LocalEndpoint, files: list[Path], photos: Path, tmp_path: Path) -> None:
    client = Client(local.url, batch=3, parallel=2)
    pictures = [files[0], tmp_path / "gone.jpg", files[1].read_bytes(), str(photos / "text.jpg"), *files[2:7]]
    items = list(client.assign(pictures, top_k=1))
    assert [item["id"] for item in items] == [str(p) if not isinstance(p, bytes) else "2" for p in pictures]
    assert [item["error"] and item["error"]["code"] for item in items] == [
        None,
        "missing",
        None,
        "undecodable",
        *[None] * 5,
    ]
    assert all(len(item["top"]) == (item["error"] is None) for item in items)
    again = list(client.assign([files[0], *files[1:7]]))
    assert [item["cluster"] for item in items if not item["error"]] == [item["cluster"] for item in again]
    assert list(client.assign([])) == []


def test_a_folder_is_streamed(local: LocalEndpoint, photos: Path) -> None:
    items = Client(local.url, batch=4).assign_folder(photos)
    ids = [item["id"] for item in items]
    assert ids == sorted(str(p.relative_to(photos)) for p in photos.rglob("*") if p.suffix in (".jpg", ".png"))


def test_no_more_is_taken_than_is_being_sent(local: LocalEndpoint, files: list[Path]) -> None:
    taken: list[int] = []

    def source() -> Iterator[Path]:
        for index in range(10_000):
            taken.append(index)
            yield files[index % len(files)]

    items = Client(local.url, batch=2, parallel=3).assign(source())
    for _ in range(10):
        next(items)
    assert len(taken) <= 10 + 2 * (3 + 1)
    items.close()  # type: ignore[attr-defined]


def test_large_pictures_are_sent_in_smaller_requests(live: LiveModel, files: list[Path]) -> None:
    # Bytes after the end of a JPEG are ignored.
    large = [path.read_bytes() + bytes(2**20) for path in files[:5]] + [files[5].read_bytes() + bytes(4 * 2**20)]
    with LocalEndpoint(live, limits={"max_body_bytes": 3 * 2**20}) as endpoint:
        items = list(Client(endpoint.url, batch=6, patience=10).assign(large))
        assert [item["error"] and item["error"]["code"] for item in items] == [None] * 5 + ["too_large"]
        alone = list(Client(endpoint.url).assign(files[:5]))
    assert [item["cluster"] for item in items[:5]] == [item["cluster"] for item in alone]


def test_the_rest_of_the_api(live: LiveModel, files: list[Path], photos: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    with LocalEndpoint(live, tokens_file=str(tmp_path / "tokens"), allowed_prefixes=[str(photos)]) as endpoint:
        client = Client(endpoint.url, token=TOKEN)
        assert client.model()["n_clusters"] == 4
        assert [row["cluster"] for row in client.clusters()] == [0, 1, 2, 3]
        assert client.cluster(1)["cluster"] == 1
        by_uri = list(client.assign_uris(map(str, files[:5])))
        sent = list(client.assign(files[:5]))
        assert [(item["id"], item["cluster"]) for item in by_uri] == [(item["id"], item["cluster"]) for item in sent]
        rows = np.eye(20, live.info.dim, dtype=np.float32)
        assert [item["id"] for item in client.assign_embeddings(rows)] == [str(index) for index in range(20)]
        with pytest.raises(EndpointError, match="401") as caught:
            Client(endpoint.url, token="").model()
        assert caught.value.status == 401


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[int | None]]]:
    """A server that answers with the statuses of a list, one after the other; None closes the connection."""
    moods: list[int | None] = []

    class Moody(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = moods.pop(0) if moods else 200
            if status is None:
                self.connection.close()
                return
            self.send_response(status)
            body = json.dumps({"n_clusters": 4} if status == 200 else {"error": {"code": "x", "message": "because"}})
            self.send_header("content-length", str(len(body)))
            self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.01)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Moody) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", moods
        server.shutdown()


def test_what_can_pass_is_tried_again(moody: tuple[str, list[int | None]]) -> None:
    url, moods = moody
    moods += [503, None, 500, 502, 408, 200]
    assert Client(url).model() == {"n_clusters": 4}
    assert moods == []


@pytest.mark.parametrize("status", [400, 401, 404, 413, 415, 422])
def test_what_will_not_pass_is_not(moody: tuple[str, list[int | None]], status: int) -> None:
    url, moods = moody
    moods += [status, 200]
    with pytest.raises(EndpointError, match="because") as caught:
        Client(url).model()
    assert caught.value.status == status
    assert moods == [200]


def test_patience_ends(moody: tuple[str, list[int | None]]) -> None:
    url, moods = moody
    moods += [503] * 10_000
    with pytest.raises(EndpointError, match="503"):
        Client(url, patience=0.2).model()
    with pytest.raises(EndpointError):
        Client(f"http://127.0.0.1:{free_port()}", patience=0.2).model()
