"""Real servers that alerts are sent to, and what they have received."""

from __future__ import annotations

import json
import threading
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller

from mlops_assets_tests.servers import free_port


class Webhook:
    """An HTTP server on a free port; it keeps what it takes, and takes it when `answer` is 200."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.answer = 200
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if webhook.answer == 200:
                    webhook.received.append(json.loads(body))
                self.send_response(webhook.answer)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> Webhook:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self._server.server_address[1]}/"

    @property
    def titles(self) -> list[str]:
        return [message["title"] for message in self.received]


class Mailbox:
    """An SMTP server on a free port."""

    def __init__(self) -> None:
        self.received: list[EmailMessage] = []
        self._port = free_port()
        self._controller = Controller(self, hostname="127.0.0.1", port=self._port)

    async def handle_DATA(self, _server: object, _session: object, envelope: Any) -> str:
        mail = message_from_bytes(envelope.content, EmailMessage, policy=policy.default)
        self.received.append(mail)
        return "250 OK"

    def __enter__(self) -> Mailbox:
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()

    @property
    def url(self) -> str:
        return (
            f"mailto://127.0.0.1:{self._port}?mode=insecure"
            "&from=dagster@example.org&to=team@example.org"
        )
