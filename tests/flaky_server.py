"""An HTTP server in front of another one. It counts requests and passes them on, or answers 503 while it is told to fail."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FlakyServer:
    """A context in which the server runs, in threads of this process."""

    def __init__(self, behind: str) -> None:
        """`behind`: URL of the other server."""
        self.behind = behind.removeprefix("http://")
        self.fails: Callable[[str], bool] = lambda path: False
        """Whether a request for this path is answered 503."""
        self.counting = threading.Lock()
        self.refused = 0
        self.counts: Counter[str] = Counter()
        """Number of requests of each method; `LIST` are those for a page of keys, which are GETs too."""

    def __enter__(self) -> FlakyServer:
        flaky = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                with flaky.counting:
                    flaky.counts["LIST" if "list-type=2" in self.path else self.command] += 1
                if flaky.fails(self.path):
                    flaky.refused += 1
                    return self.reply(503, [], b"")
                other = http.client.HTTPConnection(flaky.behind, timeout=60)
                # The signature covers the host name that the client used, so all headers are passed on unchanged.
                other.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    other.putheader(name, value)
                other.endheaders(body)
                answer = other.getresponse()
                self.reply(answer.status, answer.getheaders(), answer.read())
                other.close()

            def reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response_only(status)
                kept = [each for each in headers if each[0].lower() not in ("connection", "transfer-encoding")]
                if self.command != "HEAD":
                    kept = [each for each in kept if each[0].lower() != "content-length"]
                    kept.append(("content-length", str(len(body))))
                for name, value in kept:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body if self.command != "HEAD" else b"")

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
