"""Test what the API answers, over real HTTP but without Ray."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import socket
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from drawn_run import READABLE
from flaky_server import FlakyServer
from PIL import Image
from serving_kit import LocalEndpoint, LocalModel, post, wait_until

import raycluster
from raycluster.config import StorageConfig
from raycluster.pipeline.run import RunResult
from raycluster.serving import service
from raycluster.serving.live_model import LiveModel
from raycluster.serving.service import Service
from raycluster.serving.settings import ServeSettings
from raycluster.storage.location import locate

TOKEN = "a-token-of-some-length"


def post_json(url: str, body: Any, path: str = "/v1/assign", **options: Any) -> requests.Response:
    return requests.post(url + path, json=body, timeout=20, **options)


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def check_error(reply: requests.Response, status: int, code: str) -> str:
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert set(body) == {"model", "error"}
    assert body["error"]["code"] == code
    return str(body["error"]["message"])


def test_form_and_json_say_what_predict_says(
    local: LocalEndpoint, run: RunResult, files: list[Path], photos: Path
) -> None:
    expected = raycluster.load_model(run.output).predict(files[:4])
    form = post(local.url, [files[0], photos / "text.jpg", *files[1:4]], data={"top_k": "2"})
    items: list[dict[str, Any]] = [{"image_base64": encoded(path)} for path in files[:4]]
    items.insert(1, {"image_base64": encoded(photos / "text.jpg"), "id": "bad"})
    sent = post_json(local.url, {"items": items, "top_k": 2})
    for reply, ids in ((form, ["0000.jpg", "text.jpg"]), (sent, ["0", "bad"])):
        assert reply.status_code == 200, reply.text
        assert reply.headers["x-model-version"] == reply.json()["model"]["version"]
        bad, good = reply.json()["items"][1], [item for item in reply.json()["items"] if item["error"] is None]
        assert [item["id"] for item in reply.json()["items"]][:2] == ids
        assert bad["error"]["code"] == "undecodable"
        assert bad["cluster"] is bad["name"] is bad["confidence"] is bad["margin"] is bad["outlier"] is None
        assert [item["cluster"] for item in good] == expected.cluster.tolist()
        assert [item["name"] for item in good] == expected.name
        assert [item["outlier"] for item in good] == expected.outlier.tolist()
        np.testing.assert_allclose([item["confidence"] for item in good], expected.confidence, atol=1e-4)
        np.testing.assert_allclose([item["margin"] for item in good], expected.margin, atol=1e-4)
        assert all(len(item["top"]) == 2 for item in good)
        assert [item["top"][1]["cluster"] for item in good] == expected.runner_up.tolist()


def test_embeddings(local: LocalEndpoint, run: RunResult, files: list[Path], live: LiveModel) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, live.info.dim)).astype(np.float16)
    items: list[dict[str, Any]] = [{"embedding": row} for row in rows.astype(float).tolist()]
    items[1]["embedding"] = items[1]["embedding"][:-1]
    items.append({"embedding": [1e6] + [0.0] * (live.info.dim - 1), "id": "far"})
    items.append({"embedding": [0.0] * live.info.dim})
    reply = post_json(local.url, {"items": items, "top_k": 50}, "/v1/assign/embeddings")
    assert reply.status_code == 200, reply.text
    found = reply.json()["items"]
    assert [item["error"] and item["error"]["code"] for item in found] == [
        None,
        "wrong_dimension",
        None,
        "out_of_range",
        None,
    ]
    assert [item["id"] for item in found] == ["0", "1", "2", "far", "4"]
    expected = raycluster.load_model(run.output).predict(rows)
    assert found[2]["cluster"] == expected.cluster[2]
    assert abs(found[2]["confidence"] - expected.confidence[2]) < 1e-4
    assert len(found[2]["top"]) == 4  # all clusters


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"\xff\xfe", "body"),
        (b'{"items": []}', "items"),
        (b'{"items": [{}]}', "exactly one"),
        (b'{"items": [{"image_base64": "", "uri": "/a"}]}', "exactly one"),
        (b'{"items": [{"uri": null}]}', "uri"),
        (b'{"items": [{"uri": "/a", "extra": 1}]}', "extra"),
        (b'{"items": [{"uri": "/a"}], "top_k": 0}', "top_k"),
        (b'{"items": [{"uri": "/a"}], "top_k": 101}', "top_k"),
        (b'{"items": [{"uri": "/a"}], "top_k": "3"}', "top_k"),
        (b'{"items": [{"uri": "/a"}], "top_k": true}', "top_k"),
        (b'{"items": [{"uri": 5}]}', "uri"),
        (b'{"items": [{"uri": "/a"}], "other": 1}', "other"),
        (b'{"items": [{"uri": "/a", "id": "\\ud800"}]}', "body"),
        (b'{"items": ' + b"[" * 100_000, "body"),
    ],
)
def test_json_that_is_not_as_described(local: LocalEndpoint, body: bytes, part: str) -> None:
    reply = requests.post(f"{local.url}/v1/assign", data=body, headers={"content-type": "application/json"}, timeout=20)
    assert part in check_error(reply, 422, "invalid")


def test_what_was_sent_is_not_repeated(local: LocalEndpoint) -> None:
    hostile = "<script>alert(1)</script>\x1b[31m"
    reply = post_json(local.url, {"items": [{"uri": hostile, "extra": hostile}], hostile: hostile})
    assert "\x1b" not in check_error(reply, 422, "invalid")
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_too_many_items(local: LocalEndpoint, files: list[Path]) -> None:
    check_error(post(local.url, files[:9]), 422, "too_many_items")
    check_error(post_json(local.url, {"items": [{"uri": "/a"}] * 9}), 422, "too_many_items")


@pytest.mark.parametrize(
    "form",
    [
        {"files": {"other": b"x"}},
        {"data": {"files": "text"}},
        {"files": {"files": b"x"}, "data": {"top_k": "0"}},
        {"files": {"files": b"x"}, "data": {"top_k": "1e3"}},
        {"files": {"files": b"x"}, "data": {"more": "1"}},
        {"files": {"files": b"x"}, "data": {"top_k": ["1", "2"]}},
    ],
)
def test_forms_that_are_not_as_described(local: LocalEndpoint, form: dict[str, Any]) -> None:
    boundary = {} if "files" in form else {"headers": {"content-type": "multipart/form-data; boundary=x"}}
    check_error(requests.post(f"{local.url}/v1/assign", timeout=20, **form, **boundary), 422, "invalid")


@pytest.mark.parametrize("header", ["text/plain", "application/xml", "application/jsonx", "", "multipart/mixed"])
def test_other_kinds_of_bodies(local: LocalEndpoint, header: str) -> None:
    for path in ("/v1/assign", "/v1/assign/embeddings"):
        reply = requests.post(local.url + path, data=b"{}", headers={"content-type": header}, timeout=20)
        check_error(reply, 415, "unsupported_media_type")


def test_compressed_bodies(local: LocalEndpoint) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    reply = requests.post(f"{local.url}/v1/assign", data=b"\x1f\x8b", headers=headers, timeout=20)
    check_error(reply, 415, "unsupported_media_type")


def test_bodies_that_are_too_large(local: LocalEndpoint) -> None:
    message = check_error(
        requests.post(f"{local.url}/v1/assign", files={"files": b"x" * 2**21}, timeout=20), 413, "too_large"
    )
    assert str(2**20) in message

    def endless() -> Any:
        for _ in range(64):
            yield b"x" * 2**16

    kind = {"content-type": "application/json"}
    check_error(requests.post(f"{local.url}/v1/assign", data=endless(), headers=kind, timeout=20), 413, "too_large")
    assert local.service.gate.bytes == 0


def png_bomb(width: int, height: int) -> bytes:
    """A small file that announces, and holds, very many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(2**20))) + chunk(b"IEND", b"")
    )


def jpeg_of_many_scans(path: Path) -> bytes:
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 200 + b"\xff\xd9"


def test_bombs_are_refused_before_decoding(local: LocalEndpoint, files: list[Path]) -> None:
    pictures = {
        "wide.png": png_bomb(60_000, 60_000),
        "thin.png": png_bomb(10_000_000, 1),
        "scans.jpg": jpeg_of_many_scans(files[0]),
    }
    started = time.monotonic()
    form = [("files", (name, data, "image/png")) for name, data in [*pictures.items(), ("good", files[0].read_bytes())]]
    reply = requests.post(f"{local.url}/v1/assign", files=form, timeout=20)
    codes = [item["error"] and item["error"]["code"] for item in reply.json()["items"]]
    assert codes == ["too_large", "too_large", "too_large", None]
    assert time.monotonic() - started < 5


def test_limits_of_one_picture(live: LiveModel, files: list[Path]) -> None:
    sizes = [path.stat().st_size for path in files[:2]]
    limit = max(1024, min(sizes))
    large = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(large, "PNG")
    with LocalEndpoint(live, limits={"max_image_bytes": limit, "max_image_pixels": 100}) as endpoint:
        text = base64.b64encode(large.getvalue()).decode()
        reply = post_json(
            endpoint.url, {"items": [{"image_base64": text}, {"image_base64": "AAAA"}, {"image_base64": "*"}]}
        )
        codes = [item["error"]["code"] for item in reply.json()["items"]]
        assert codes == ["too_large", "undecodable", "invalid_base64"]
        form = requests.post(f"{endpoint.url}/v1/assign", files={"files": large.getvalue()}, timeout=20)
        assert form.json()["items"][0]["error"]["code"] == "too_large"
        empty = requests.post(f"{endpoint.url}/v1/assign", files={"files": ("a", b"")}, timeout=20)
        assert empty.json()["items"][0]["error"]["code"] == "empty"


def test_uris_only_below_allowed_places(
    live: LiveModel, local: LocalEndpoint, files: list[Path], photos: Path, tmp_path: Path
) -> None:
    inside, outside = files[0], tmp_path / "secret.jpg"
    outside.write_bytes(inside.read_bytes())
    os.mkfifo(photos / "pipe.jpg")
    uris = [str(inside), f"file://{inside}", str(outside), f"{photos}/../{tmp_path.name}/secret.jpg", f"{photos}/gone.jpg",
            str(photos / "pipe.jpg"), "http://169.254.169.254/latest", "s3://bucket/key",
            f"{photos}/x.tar#bytes=1-0", f"{photos}/x.tar#bytes=0-9/10"]  # fmt: skip
    body = {"items": [{"uri": uri} for uri in uris]}
    try:
        with LocalEndpoint(live, allowed_prefixes=[str(photos)]) as endpoint:
            items = post_json(endpoint.url, body).json()["items"]
    finally:
        (photos / "pipe.jpg").unlink()
    codes = [item["error"] and item["error"]["code"] for item in items]
    assert codes == [
        None,
        None,
        "forbidden",
        "forbidden",
        "missing",
        "failed",
        "forbidden",
        "forbidden",
        "failed",
        "missing",
    ]
    items = post_json(local.url, {"items": body["items"][:8]}).json()["items"]
    assert {item["error"]["code"] for item in items} == {"forbidden"}


def test_pictures_in_a_bucket(live: LiveModel, files: list[Path], s3: StorageConfig) -> None:
    root = locate(f"s3://raycluster-test/serving-{time.time_ns()}", s3)
    for name in ("open/a.jpg", "secret/a.jpg"):
        (root / name).write_bytes(files[0].read_bytes())
    names = ("open/a.jpg", "open/gone.jpg", "secret/a.jpg", "open/../secret/a.jpg", "open")
    body = {"items": [{"uri": f"{root.uri}/{name}"} for name in names]}
    with LocalEndpoint(live, storage=s3.model_dump(), allowed_prefixes=[f"{root.uri}/open/"]) as endpoint:
        items = post_json(endpoint.url, body).json()["items"]
    assert [item["error"] and item["error"]["code"] for item in items] == [None, "missing", *["forbidden"] * 3]
    away = {"endpoint_url": "http://127.0.0.1:1", "region": "x"}
    body["items"].append({"image_base64": encoded(files[0])})
    with LocalEndpoint(
        live, storage=away, allowed_prefixes=[f"{root.uri}/open/"], limits={"fetch_seconds": 1.0}
    ) as endpoint:
        items = post_json(endpoint.url, body).json()["items"]
    assert items[0]["error"]["code"] == "unavailable"
    assert items[-1]["error"] is None


def test_tokens_are_asked_for(live: LiveModel, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    with LocalEndpoint(live, tokens_file=str(tmp_path / "tokens")) as endpoint:
        for path in ("/v1/model", "/v1/clusters", "/metrics", "/v1/nothing"):
            check_error(requests.get(endpoint.url + path, timeout=20), 401, "unauthorized")
        reply = post(endpoint.url, files[:1], headers={"authorization": "Bearer wrong"})
        check_error(reply, 401, "unauthorized")
        assert reply.headers["www-authenticate"] == "Bearer"
        assert post(endpoint.url, files[:1], headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        for path in ("/", "/healthz", "/readyz", "/openapi.json"):
            assert requests.get(endpoint.url + path, timeout=20).status_code == 200
        described = requests.get(endpoint.url + "/openapi.json", timeout=20).json()
        assert described["paths"]["/v1/assign"]["post"]["security"] == [{"token": []}]
        assert "401" in described["paths"]["/v1/assign"]["post"]["responses"]


def test_other_host_names_are_refused(live: LiveModel) -> None:
    with LocalEndpoint(live, allowed_hosts=["127.0.0.1", "[::1]"]) as endpoint:
        assert requests.get(endpoint.url + "/healthz", timeout=20).status_code == 200
        assert requests.get(endpoint.url + "/healthz", headers={"host": "[::1]:8000"}, timeout=20).status_code == 200
        for name in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
            reply = requests.get(endpoint.url + "/v1/model", headers={"host": name}, timeout=20)
            check_error(reply, 421, "unknown_host")


def test_clusters(local: LocalEndpoint, run: RunResult) -> None:
    page = requests.get(f"{local.url}/v1/clusters?offset=1&limit=2", timeout=20).json()
    assert (page["total"], page["offset"], page["limit"]) == (4, 1, 2)
    assert [row["cluster"] for row in page["clusters"]] == [1, 2]
    assert page["model"]["version"] == local.model.live.info.version
    assert requests.get(f"{local.url}/v1/clusters?offset=9", timeout=20).json()["clusters"] == []
    everything = requests.get(f"{local.url}/v1/clusters", timeout=20).json()["clusters"]
    assert sum(row["size"] for row in everything) == READABLE
    one = requests.get(f"{local.url}/v1/clusters/2", timeout=20).json()
    assert {key: one[key] for key in everything[2]} == everything[2]
    assert len(one["exemplars"]) == min(12, one["size"])
    small = base64.b64decode(one["exemplars"][0]["thumbnail"].removeprefix("data:image/jpeg;base64,"))
    assert max(Image.open(io.BytesIO(small)).size) <= 128
    check_error(requests.get(f"{local.url}/v1/clusters/4", timeout=20), 404, "no_such_cluster")
    for bad in ("/v1/clusters/x", "/v1/clusters/-1", "/v1/clusters?limit=0", "/v1/clusters?offset=x"):
        check_error(requests.get(local.url + bad, timeout=20), 422, "invalid")


@pytest.mark.slow  # about a minute of waiting
@pytest.mark.timeout(600)
def test_thumbnails_that_the_storage_did_not_give_are_asked_for_again(
    live: LiveModel, files: list[Path], s3: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = locate(f"s3://raycluster-test/shown-{time.time_ns()}", s3)
    (root / "a.jpg").write_bytes(files[0].read_bytes())
    names = ("a.jpg", "gone.jpg")
    images = [{"image_id": name, "uri": f"{root.uri}/{name}", "confidence": 0.5} for name in names]
    monkeypatch.setattr(service, "SHOWN_RETRY_S", 0.0)
    with FlakyServer(str(s3.endpoint_url)) as flaky:
        storage = {"endpoint_url": flaky.url, "region": "us-east-1"}
        limits = {"fetch_seconds": 1.0}
        settings = ServeSettings.model_validate({"run": live.info.folder, "storage": storage, "limits": limits})

        served = Service(settings, LocalModel(live), threads=1)

        async def shown() -> list[bool]:
            exemplars = await served.exemplars("v", {"cluster": 0, "exemplars": images})
            return [exemplar.thumbnail is not None for exemplar in exemplars]

        async def views() -> None:
            flaky.fails = lambda path: True
            assert await shown() == [False, False]
            flaky.fails = lambda path: False
            # A picture that exists is found once the storage answers, however long that takes on a busy machine.
            end = time.monotonic() + 400
            while await shown() != [True, False]:
                assert time.monotonic() < end
            # A picture that is gone stays gone, and neither of the two is asked for again.
            flaky.fails = lambda path: True
            assert await shown() == [True, False]

        asyncio.run(views())


def test_credentials_that_died_are_no_fault_of_the_picture(
    live: LiveModel, monkeypatch: pytest.MonkeyPatch, s3: StorageConfig
) -> None:
    # Another region makes a new client, which has the bad key.
    other = s3.model_copy(update={"region": "eu-west-1"})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a wrong secret")
    prefix = "s3://raycluster-test/shown"
    with LocalEndpoint(live, storage=other.model_dump(), allowed_prefixes=[prefix]) as endpoint:
        items = post_json(endpoint.url, {"items": [{"uri": f"{prefix}/a.jpg"}]}).json()["items"]
    assert items[0]["error"]["code"] == "unavailable"


def test_state(local: LocalEndpoint, run: RunResult, live: LiveModel) -> None:
    model = requests.get(f"{local.url}/v1/model", timeout=20).json()
    assert model["folder"] == run.model
    assert (model["method"], model["n_clusters"], model["takes_pictures"]) == ("kmeans", 4, True)
    assert model["limits"]["max_items"] == 8
    assert model["refused"] is None
    for path in ("/healthz", "/readyz"):
        reply = requests.get(local.url + path, timeout=20)
        assert reply.json() == {"status": "ok", "model": {"version": live.info.version}}
    assert "nothing 1" in requests.get(f"{local.url}/metrics", timeout=20).text
    check_error(requests.get(f"{local.url}/nowhere", timeout=20), 404, "not_found")
    check_error(requests.delete(f"{local.url}/v1/assign", timeout=20), 405, "method_not_allowed")


def test_every_request_is_counted(local: LocalEndpoint, files: list[Path], photos: Path) -> None:
    local.observed.clear()
    post(local.url, [files[0], photos / "text.jpg"])
    post_json(local.url, {})
    assert local.observed == [("/v1/assign", 200, ["ok", "undecodable"]), ("/v1/assign", 422, [])]


def raw(url: str, data: bytes) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(data)
    return connection


HEAD = b"POST /v1/assign HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"


def test_slow_clients_and_those_that_hang_up_hold_nothing(local: LocalEndpoint, files: list[Path]) -> None:
    slow = [raw(local.url, HEAD + b'{"items"') for _ in range(50)]
    gone = [raw(local.url, HEAD + b'{"items"') for _ in range(50)]
    wait_until(lambda: local.service.gate.bytes >= 100 * 8)
    for connection in gone:
        connection.close()
    assert post(local.url, files[:2]).status_code == 200
    wait_until(lambda: local.service.gate.bytes == 0, 10)
    for connection in slow:
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        connection.close()


def test_too_much_at_once_is_told_to_come_back(live: LiveModel, files: list[Path]) -> None:
    with LocalEndpoint(live, limits={"max_waiting_items": 4, "max_waiting_bytes": 2**20}) as endpoint:
        hold = threading.Event()
        assign = endpoint.model.assign

        async def slowly(*arguments: Any) -> Any:
            import asyncio

            await asyncio.to_thread(hold.wait, 20)
            return await assign(*arguments)

        endpoint.model.assign = slowly  # type: ignore[method-assign]
        replies: list[requests.Response] = []
        threads = [threading.Thread(target=lambda: replies.append(post(endpoint.url, files[:2]))) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: endpoint.service.gate.items == 4)
        refused = post(endpoint.url, files[:1])
        check_error(refused, 503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        upload = {"content-type": "application/json"}
        full = requests.post(f"{endpoint.url}/v1/assign", data=b"x" * (2**20), headers=upload, timeout=20)
        check_error(full, 503, "overloaded")
        hold.set()
        for thread in threads:
            thread.join(20)
        assert [reply.status_code for reply in replies] == [200, 200]
        assert endpoint.service.gate.items == endpoint.service.gate.bytes == 0


def test_no_answer_in_time(live: LiveModel, files: list[Path]) -> None:
    with LocalEndpoint(live, limits={"request_seconds": 0.5}) as endpoint:

        async def never(*_: Any) -> Any:
            import asyncio

            await asyncio.sleep(60)

        endpoint.model.assign = never  # type: ignore[method-assign]
        check_error(post(endpoint.url, files[:1]), 503, "overloaded")
        endpoint.model.model_info = never  # type: ignore[method-assign]
        endpoint.service._info = None
        check_error(requests.get(f"{endpoint.url}/readyz", timeout=20), 503, "overloaded")
        assert requests.get(f"{endpoint.url}/healthz", timeout=20).json() == {
            "status": "ok",
            "model": {"version": None},
        }


def test_odd_file_names_come_back_whole(local: LocalEndpoint, files: list[Path]) -> None:
    names = ["ü ß.jpg", "<b>&amp;", 'a"b', "x" * 3000]
    form = [("files", (name, files[0].read_bytes(), "image/png")) for name in names]
    items = requests.post(f"{local.url}/v1/assign", files=form, timeout=20).json()["items"]
    assert [item["error"] for item in items] == [None] * 4
    assert [len(item["id"]) for item in items][3] == 1024
    assert items[0]["id"] == names[0]
    boundary = b"--b\r\nContent-Disposition: form-data; name=files; filename=+2AA-.jpg\r\n\r\nx\r\n--b--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=b; charset=utf-7"}
    assert requests.post(f"{local.url}/v1/assign", data=boundary, headers=kind, timeout=20).status_code == 200


def test_the_model_changes_under_a_request(local: LocalEndpoint, live: LiveModel, files: list[Path]) -> None:
    from dataclasses import replace

    from raycluster.serving.live_model import Stale

    first = post(local.url, files[:2]).json()
    local.model.calls.clear()
    local.service._info = replace(live.info, pixels="another preprocessing")
    assert post(local.url, files[:2]).json() == first
    assert [job.pixels for job in local.model.calls] == ["another preprocessing", live.info.pixels]
    assert isinstance(live.answer([local.model.calls[0]])[0], Stale)
