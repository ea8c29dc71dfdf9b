"""An HTTP server between a client and a real one, which answers some requests as a bad day would.

What becomes of a request is decided by chance from a seed; what was done is counted. Either the
request never reaches the server, or it does and its answer is lost, cut off or damaged on its way.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from urllib.parse import urlsplit

ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
ANSWERS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503 SlowDown": (503, "SlowDown", "Please reduce your request rate."),
    "429": (429, "TooManyRequests", "Please reduce your request rate."),
    "403 clock skew": (
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
    ),
    "400 RequestTimeout": (
        400,
        "RequestTimeout",
        "Your socket connection to the server was not read from or written to in time.",
    ),
}
TRANSIENT = (
    "500",
    "503 SlowDown",
    "429",
    "reset",
    "no answer",
    "answer lost",
    "500 after it was done",
    "cut off",
    "shorter",
    "slow",
)
"""What a server or a network does that may pass, each as likely as the others. `shorter` is cut off
by somebody who corrects the length, too. There is also `damaged`, of the right length."""


SPOILT = ("cut off", "shorter", "damaged")


class FlakyServer:
    """The server in between; `share` of the requests meet one of `faults`."""

    def __init__(self, upstream: str, *, hold: float) -> None:
        self.share, self.faults, self.random = 0.0, TRANSIENT, Random(0)
        self.times: int | None = None
        self.hold = hold
        """Seconds that `no answer` and `slow` take; the client should give up before."""
        self.requests = 0
        self.injected: Counter[str] = Counter()
        self._upstream = urlsplit(upstream)
        self._lock = threading.Lock()
        self._healed = threading.Event()

    def be_bad(
        self,
        share: float,
        seed: Random,
        faults: Sequence[str] = TRANSIENT,
        *,
        times: int | None = None,
    ) -> None:
        """From now on let a share of the requests fail, at most so many `times`."""
        with self._lock:
            self.share, self.faults, self.random, self.times = share, tuple(faults), seed, times
            self.requests, self.injected = 0, Counter()
            self._healed = threading.Event()

    def be_good(self) -> None:
        """From now on pass everything on."""
        with self._lock:
            self.share = 0
            self._healed.set()

    def next_fault(self, *, reads_object: bool) -> str | None:
        with self._lock:
            self.requests += 1
            if self.random.random() >= self.share or self.injected.total() == self.times:
                return None
            fault = self.random.choice(self.faults)
            if fault in SPOILT and not reads_object:
                return None
            self.injected[fault] += 1
            return fault

    def wait(self) -> None:
        self._healed.wait(self.hold)

    @contextmanager
    def started(self) -> Iterator[str]:
        """Serve on a free port; gives the URL."""
        server = _Server(("127.0.0.1", 0), _Handler)
        server.flaky = self
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            self.be_good()
            server.shutdown()
            server.server_close()

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        host, port = self._upstream.hostname, self._upstream.port
        connection = HTTPConnection(str(host), port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()


class Answer:
    def __init__(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.status, self.body = status, body
        dropped = ("transfer-encoding", "connection", "date", "server")
        self.headers = [(name, value) for name, value in headers if name.lower() not in dropped]


class _Server(ThreadingHTTPServer):
    flaky: FlakyServer
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Clients that have given up are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        flaky = self.server.flaky
        reads_object = self.command == "GET" and "?" not in self.path
        fault = flaky.next_fault(reads_object=reads_object)
        if fault in ANSWERS:
            status, code, message = ANSWERS[fault]
            return self._say(Answer(status, [], ERROR.format(code=code, message=message).encode()))
        if fault == "reset":
            return self._reset()
        if fault == "no answer":
            flaky.wait()
            return self._reset()
        # with the Host that was signed, whatever the address
        answer = flaky.forward(self.command, self.path, dict(self.headers.items()), body)
        if fault == "answer lost":
            return self._reset()
        if fault == "500 after it was done":
            _, code, message = ANSWERS["500"]
            return self._say(Answer(500, [], ERROR.format(code=code, message=message).encode()))
        if fault == "slow":
            return self._say(answer, slow=True)
        if fault in SPOILT and answer.status < 300 and answer.body:
            return self._spoil(fault, answer)
        return self._say(answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _spoil(self, fault: str, answer: Answer) -> None:
        if fault == "damaged":
            middle = len(answer.body) // 2
            flipped = bytes([answer.body[middle] ^ 1])
            answer.body = answer.body[:middle] + flipped + answer.body[middle + 1 :]
            return self._say(answer)
        half = answer.body[: len(answer.body) // 2]
        if fault == "cut off":
            self._say(answer, only=half)
            return self._reset()
        answer.body = half
        answer.headers = [
            (name, str(len(half)) if name.lower() == "content-length" else value)
            for name, value in answer.headers
        ]
        return self._say(answer)

    def _say(self, answer: Answer, *, only: bytes | None = None, slow: bool = False) -> None:
        self.send_response(answer.status)
        names = {name.lower() for name, _ in answer.headers}
        for name, value in answer.headers:
            self.send_header(name, value)
        if "content-length" not in names:
            self.send_header("Content-Length", str(len(answer.body)))
        with suppress(OSError):
            self.end_headers()
            if self.command == "HEAD":
                return
            if slow:
                half = len(answer.body) // 2
                self.wfile.write(answer.body[:half])
                time.sleep(min(0.05, self.server.flaky.hold))
                self.wfile.write(answer.body[half:])
            else:
                self.wfile.write(answer.body if only is None else only)

    def _reset(self) -> None:
        """End the connection as a crash does: with RST instead of FIN."""
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def log_message(self, *_: object) -> None:
        pass
