"""A proxy before an HTTP server that does to requests what networks and busy servers do to them."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STATUSES = (401, 403, 429, 500, 502, 503)
FAULTS = (*map(str, STATUSES), "reset", "lost answer", "truncated", "no JSON", "never", "slow")

Fault = Callable[[int], str | None]
"""Says what is done to a request, by its number: one of `FAULTS`, or nothing."""

SLOW = 0.3
"""Seconds by which an answer is late."""


class Proxy(ThreadingHTTPServer):
    """`fault` may be set at any time; `requests` counts those since then."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = port
        self.is_over = threading.Event()
        self._lock = threading.Lock()
        self.set(lambda _: None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def set(self, fault: Fault) -> None:
        self.fault, self.requests = fault, 0

    def next_fault(self) -> str | None:
        with self._lock:
            self.requests += 1
            return self.fault(self.requests - 1)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that are gone."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.next_fault()
        if fault == "slow":
            time.sleep(SLOW)
        elif fault == "never":
            self.server.is_over.wait(60)
            self._reset()
            return
        elif fault == "reset":
            self._reset()
            return
        elif fault in map(str, STATUSES):
            self._answer(int(fault or 0), {"Retry-After": "3600"}, b"not now")
            return
        elif fault == "no JSON":
            self._answer(200, {"Content-Type": "text/html"}, b"<html>sign in</html>")
            return
        status, headers, content = self._forward(body)
        if fault == "lost answer":
            self._reset()
        elif fault == "truncated":
            self._answer(status, headers, content, sent=len(content) // 2)
        else:
            self._answer(status, headers, content)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=120)
        headers = {name: value for name, value in self.headers.items() if name != "Connection"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        kept = {"Content-Type": answer.getheader("Content-Type", "application/json")}
        content = answer.read()
        connection.close()
        return answer.status, kept, content

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, sent: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:sent])
        self.close_connection = sent is not None

    def _reset(self) -> None:
        """Break the connection off, without a goodbye."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.connection.close()


@contextmanager
def proxy_before(port: int) -> Iterator[Proxy]:
    with Proxy(port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.is_over.set()
            server.shutdown()
            thread.join()
