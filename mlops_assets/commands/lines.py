"""What a command writes, as it is read by people: in the step's log, and in its compute logs."""

from __future__ import annotations

import json
import logging
import sys
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Protocol

from dagster_pipes import PIPES_PROTOCOL_VERSION_FIELD, PipesMessage

from mlops_assets.commands.process import Stream
from mlops_assets.commands.value import Output

LONGEST = 4096
"""Bytes of a line; a longer one is told in parts."""
AT_ONCE = 100
"""Lines of one event of the log; an event takes milliseconds to be recorded."""
PAUSE = 0.5
"""Seconds between two events, unless there are that many lines."""
MOST = 2000
"""Lines that the log of a step takes; the compute logs have all of them."""
LAST = 10
"""Lines that the explanation of a failure has."""


class Handler(Protocol):
    """Takes the messages of Dagster Pipes."""

    def handle_message(self, message: PipesMessage) -> None:
        """Take one message."""


class Lines:
    """Takes the output of a command while it runs.

    Parameters
    ----------
    log : logging.Logger
        Of the step.
    """

    def __init__(self, log: logging.Logger) -> None:
        self.handler: Handler | None = None
        """Takes messages of Pipes that come among the lines; None where they come another way."""
        self._log = log
        # as they are now: what is redirected later must not come back here
        self._compute_logs = {"stdout": sys.stdout, "stderr": sys.stderr}
        self.begin()

    def begin(self) -> None:
        """Forget what came before: a command is run, once more maybe."""
        self.output = Output()
        self._rest: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
        self._last: dict[Stream, deque[str]] = {
            "stdout": deque(maxlen=LAST),
            "stderr": deque(maxlen=LAST),
        }
        self._waiting: list[str] = []
        self._told, self._at = 0, monotonic() - PAUSE

    def take(self, stream: Stream, data: bytes) -> None:
        """Take what was written; nothing, when there is nothing for a while."""
        if data:
            *lines, rest = (self._rest[stream] + data).split(b"\n")
            parts = [(line, b"\n") for line in lines]
            while len(rest) > LONGEST:
                parts.append((rest[:LONGEST], b""))
                rest = rest[LONGEST:]
            self._add(stream, parts)
            self._rest[stream] = rest
        if monotonic() - self._at >= PAUSE:
            self._tell()

    def end(self) -> None:
        """Tell what is left."""
        for stream, rest in self._rest.items():
            if rest:
                self._add(stream, [(rest, b"")])
        self._rest = {"stdout": b"", "stderr": b""}
        self._tell()

    @property
    def seen(self) -> bool:
        """Whether there was anything."""
        return any(self._last.values())

    @property
    def last(self) -> str:
        """The last lines, of the standard error if there are any."""
        return "\n".join(self._last["stderr"] or self._last["stdout"])

    def _add(self, stream: Stream, parts: Sequence[tuple[bytes, bytes]]) -> None:
        """Take lines and what ends each; what comes at once is kept and written at once."""
        kept, written = [], []
        for line, end in parts:
            text = line.decode(errors="replace")
            if self._is_message(text):
                continue
            kept.append(line + end)
            written.append(text + end.decode())
            if shown := text.rstrip("\r").rpartition("\r")[2]:  # of a progress bar the last state
                self._last[stream].append(shown)
            self._waiting.append(shown)
            if len(self._waiting) >= AT_ONCE:
                self._tell()
        if stream == "stdout":
            self.output.add(b"".join(kept))
        self._compute_logs[stream].write("".join(written))
        self._compute_logs[stream].flush()

    def _tell(self) -> None:
        if not self._waiting:
            return
        lines, self._waiting = self._waiting[: max(0, MOST - self._told)], []
        if lines:
            self._log.info("%s", "\n".join(lines))
        self._told, self._at = self._told + len(lines), monotonic()
        if self._told >= MOST > self._told - len(lines):
            self._log.info("further lines are in the compute logs of the step")

    def _is_message(self, line: str) -> bool:
        if self.handler is None or PIPES_PROTOCOL_VERSION_FIELD not in line:
            return False
        try:
            message = json.loads(line)
        except ValueError:
            return False
        if not isinstance(message, dict) or PIPES_PROTOCOL_VERSION_FIELD not in message:
            return False
        self.handler.handle_message(message)  # type: ignore[arg-type]
        return True
