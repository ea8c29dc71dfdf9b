"""How a command ended, in words, and whether another try may end otherwise."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from mlops_assets.durations import in_words
from mlops_assets.errors import UserError

CANNOT_RUN, NOT_FOUND = 126, 127
"""Exit codes by which shells and container engines say that there was nothing to run."""

_HINTS = {
    "SIGKILL": "out of memory?",
    "SIGSEGV": "a crash in native code",
    "SIGBUS": "a crash in native code, or no room on the disk behind a memory map",
    "SIGABRT": "it gave up by itself",
    "SIGILL": "built for another processor?",
    "SIGPIPE": "what it wrote to was closed",
}


class CommandError(UserError):
    """A command that cannot be run, however often it is tried."""


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Parameters
    ----------
    code : int
        Its exit code; negative: the signal that killed it.
    timeout : float or None
        Seconds after which it was ended for taking too long.
    why : str or None
        What its surroundings say of the end: a cluster of a pod that was killed.
    final : bool
        Whether they say that another try would end the same.
    """

    code: int
    timeout: float | None = None
    why: str | None = None
    final: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether it did what it should."""
        return self.code == 0 and self.timeout is None and self.why is None

    @property
    def is_final(self) -> bool:
        """Whether another try would end the same."""
        return self.final or (self.timeout is None and self.code in (CANNOT_RUN, NOT_FOUND))

    def __str__(self) -> str:
        """Say how it ended."""
        killed_by = _signal(self.code)
        if self.timeout is not None:
            harder = ", after it had ignored SIGTERM" if killed_by == "SIGKILL" else ""
            return f"the command took longer than {in_words(self.timeout)} and was ended{harder}"
        if self.why is not None:
            return self.why
        if killed_by is not None:
            code = f" (exit code {self.code})" if self.code > 0 else ""
            hint = f": {_HINTS[killed_by]}" if killed_by in _HINTS else ""
            return f"the command was killed by {killed_by}{code}{hint}"
        said = {
            CANNOT_RUN: ": a program was found that cannot be run; is it executable?",
            NOT_FOUND: ": a program was not found",
        }
        return f"the command ended with exit code {self.code}{said.get(self.code, '')}"


def _signal(code: int) -> str | None:
    """Return the name of the signal that killed a process, or one that a shell waited for."""
    try:
        return signal.Signals(-code if code < 0 else code - 128 if code > 128 else 0).name
    except ValueError:
        return None
