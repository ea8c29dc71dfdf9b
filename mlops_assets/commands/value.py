"""What a command is given and what is kept of it: this decides its result, and counts as its code.

How it is run, how its end is explained and what is logged of it is the rest of this folder, and
counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

KEPT = 64 * 1024
"""Bytes of the output that are kept: its end."""


class Output:
    """What a command writes: its end, and the digest of all of it, in constant memory."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._end = b""
        self._size = 0
        self._digest = hashlib.sha256()

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self._size += len(data)
        self._digest.update(data)
        self._end = (self._end + data)[-self._kept :]

    @property
    def text(self) -> str:
        """The end of it; what is no text is replaced by U+FFFD."""
        text = self._end.decode(errors="replace")
        if self._size > len(self._end):
            text = text.lstrip("\N{REPLACEMENT CHARACTER}")  # half a character
        return text.replace("\0", "\N{REPLACEMENT CHARACTER}")

    @property
    def cut(self) -> dict[str, Any] | None:
        """Size and digest of the whole, if only the end is kept."""
        if self._size <= len(self._end):
            return None
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}


def value_of(
    output: Output, reported: Mapping[str, Any], data_version: str | None
) -> dict[str, Any]:
    """Return what is kept of a command that has succeeded.

    Equal for commands that wrote and reported the same: no time and no place is in it.

    Parameters
    ----------
    output : Output
        What it wrote to its standard output.
    reported : mapping of str to object
        Metadata that it reported by Dagster Pipes.
    data_version : str or None
        What it said of the version of data that it has written elsewhere.
    """
    value: dict[str, Any] = {"output": output.text}
    if output.cut is not None:
        value["cut"] = output.cut
    if reported:
        value["reported"] = {name: _plain(one) for name, one in reported.items()}
    if data_version is not None:
        value["data_version"] = data_version
    return value


def as_variable(value: Any) -> str:
    """Return what a step printed as the commands that need it are given it, as `$(…)` would."""
    return str(value["output"]).rstrip("\n")


def argv_of(command: str | list[str]) -> list[str]:
    """Return a program and its arguments; an error in any line of a text ends it."""
    return ["sh", "-ec", command] if isinstance(command, str) else list(command)


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    return _finite(json.loads(json.dumps(value, default=str)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
