"""A command as a process: watched until it has ended, with all that it started.

It leads a process group of its own, so that whatever ends it ends all of it. What its output means
is not known here.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from time import monotonic
from typing import Literal

from mlops_assets.commands.ending import CommandError, Ending
from mlops_assets.wording import shown

Stream = Literal["stdout", "stderr"]
Take = Callable[[Stream, bytes], None]
"""Is given what a command writes as it comes, and nothing, now and then, while it is silent."""

GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL."""
LEFT_BEHIND = 2.0
"""The same for what is left of the group when the command itself has ended."""
_INTERVAL = 0.1
_CHUNK = 64 * 1024

# Ends the group when this process is gone and cannot do so itself: that closes the other end of
# the watchdog's standard input.
_WATCHDOG = 'read _; kill -s TERM -- "-$0"; sleep 10; kill -s KILL -- "-$0"; "$@"'


def run_process(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    take: Take,
    folder: Path | None = None,
    timeout: float | None = None,
    abandon: Sequence[str] = (),
) -> Ending:
    """Run a command to its end.

    Nothing of it is left when this returns or raises, and not even if this process is killed: what
    it has started is ended with it, unless that has left its process group.

    Parameters
    ----------
    argv : sequence of str
        The program and its arguments.
    env : mapping of str to str
        Its whole environment.
    take : callable
        Is given what it writes.
    folder : Path, optional
        Where it runs.
    timeout : float, optional
        Seconds that it may take.
    abandon : sequence of str
        Another command, which is run when this one had to be ended.

    Raises
    ------
    CommandError
        The program cannot be started.
    """
    process = _start(argv, env, folder)
    in_time = False
    try:
        pipes = _Pipes(process, take)
        with _watchdog(process, abandon):
            try:
                in_time = pipes.follow(timeout)
            finally:
                _end_group(process, LEFT_BEHIND if in_time else GRACE, pipes)
    finally:
        # all the same after a second interrupt, which is one too many to wait for anything
        _signal_group(process, signal.SIGKILL)
        process.wait()
        if not in_time and abandon:
            subprocess.run(abandon, env={**env}, capture_output=True, check=False)  # noqa: S603
    pipes.drain()
    return Ending(process.returncode, timeout=None if in_time else timeout)


def _start(
    argv: Sequence[str], env: Mapping[str, str], folder: Path | None
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603
            argv,
            env={**env},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise CommandError(f"{shown(argv[0])} cannot be started: {_why(error, folder)}") from error


def _why(error: OSError | ValueError, folder: Path | None) -> str:
    match error:
        case FileNotFoundError() if folder is not None and not folder.is_dir():
            return f"there is no folder {folder}"
        case FileNotFoundError():
            return "there is no such program; install it, or correct its name"
        case PermissionError():
            return "it may not be executed"
        case OSError(errno=errno.E2BIG):
            return (
                "its arguments and variables are longer than the system allows; if that is what "
                "another step prints, let that one write it to a file and print the file's name"
            )
        case OSError(strerror=str(text)):
            return text
    return str(error)


class _Pipes:
    """The ends at which the output of a process arrives."""

    def __init__(self, process: subprocess.Popen[bytes], take: Take) -> None:
        self._process, self._take = process, take
        self._selector = DefaultSelector()
        streams: dict[Stream, object] = {"stdout": process.stdout, "stderr": process.stderr}
        for name, stream in streams.items():
            os.set_blocking(stream.fileno(), False)  # type: ignore[attr-defined]
            self._selector.register(stream, EVENT_READ, name)  # type: ignore[arg-type]

    def follow(self, timeout: float | None) -> bool:
        """Hand on what arrives until the process has ended; False if that takes too long."""
        until = None if timeout is None else monotonic() + timeout
        while self._process.poll() is None:
            if until is not None and monotonic() >= until:
                return False
            self.read(_INTERVAL if until is None else min(_INTERVAL, max(0, until - monotonic())))
        return True

    def drain(self) -> None:
        """Hand on what is left; a process that got away may hold an end open forever."""
        while self._selector.get_map() and self.read(1.0):
            pass

    def read(self, seconds: float) -> bool:
        """Hand on what is there or arrives in this time; whether that was anything."""
        ready = self._selector.select(seconds)
        for key, _ in ready:
            if data := os.read(key.fd, _CHUNK):
                self._take(key.data, data)
            else:
                self._selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
        if not ready:
            self._take("stdout", b"")
        return bool(ready)


@contextmanager
def _watchdog(process: subprocess.Popen[bytes], abandon: Sequence[str]) -> Iterator[None]:
    """End the group of a process if this process is killed meanwhile."""
    with subprocess.Popen(  # noqa: S603
        ["sh", "-c", _WATCHDOG, str(process.pid), *abandon],  # noqa: S607
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as watchdog:
        try:
            yield
        finally:
            watchdog.kill()


def _end_group(process: subprocess.Popen[bytes], grace: float, pipes: _Pipes) -> None:
    """End what is left of the group of a process, the process included."""
    until = monotonic() + grace
    _signal_group(process, signal.SIGTERM)
    while process.poll() is None or _signal_group(process, 0):
        if monotonic() >= until:
            return
        pipes.read(_INTERVAL / 2)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to all that is left of a group; whether there was anything."""
    with suppress(ProcessLookupError, PermissionError):  # the latter is macOS' for zombies
        os.killpg(process.pid, number)
        return True
    return False
