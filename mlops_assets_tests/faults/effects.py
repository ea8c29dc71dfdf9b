"""Faults at exact points of what a process does to the file system: before its n-th effect.

An effect is a call of the store's that changes files or opens one. Nothing is replaced by a double:
the real calls are counted as Python makes them, and at the chosen one the process is killed, or the
call fails as the operating system would let it fail.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

KILL_AT = "MLOPS_TEST_KILL_AT"
OBJECTS = "mlops_assets.store.objects"
FILES = (io.BufferedWriter, io.BufferedRandom, io.FileIO)
CALLS = {
    "posix": {"open", "fsync", "replace", "link", "unlink", "rmdir", "mkdir", "utime"},
    "_io": {"open"},
}
AUDITED = {"open", "os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir"}
METHODS = {"write", "flush", "close"}

Fault = Callable[[], None]


class Effects:
    """Counts the effects of a process from now on, and brings a fault about before one of them."""

    def __init__(self, fault: Fault | None = None, at: int = -1) -> None:
        self.names: list[str] = []
        self._fault, self._at = fault, at

    def __enter__(self) -> Effects:
        self._armed_in = os.getpid()
        threading.setprofile(self._look)
        sys.setprofile(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _look(self, frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call" or not _is_effect(called) or os.getpid() != self._armed_in:
            return
        if not _is_by_the_store(frame):
            return
        self.names.append(called.__name__)
        if len(self.names) - 1 == self._at and self._fault is not None:
            self._fault()


def _is_effect(called: Any) -> bool:
    owner = called.__self__
    if isinstance(owner, FILES):
        return called.__name__ in METHODS
    return called.__name__ in CALLS.get(getattr(called, "__module__", None) or "", ())


def _is_by_the_store(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == OBJECTS:
            return True
        frame = frame.f_back
    return False


def die() -> None:
    """End this process as `kill -9` does: at this very instruction."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_when_asked(environment: Mapping[str, str]) -> None:
    """Let this process be killed at the effect that `KILL_AT` says; -1 only lists them all."""
    if KILL_AT not in environment:
        return
    process, names = os.getpid(), list[str]()

    def look(event: str, _: object) -> None:
        if event in AUDITED and os.getpid() == process and _is_by_the_store(sys._getframe(1)):
            names.append(event)
            if len(names) - 1 == int(environment[KILL_AT]):
                die()

    sys.addaudithook(look)  # sees less than a profile does, and does not make a whole run slow
    atexit.register(lambda: print(json.dumps(names), flush=True))


def effects_of(action: Callable[[], object]) -> list[str]:
    """Return the names of an action's effects, which it has in a child of this process."""
    there, here = os.pipe()
    child = in_child(lambda: _tell(action, here))
    os.close(here)
    with open(there) as answer:
        names: list[str] = json.loads(answer.read() or "[]")
    assert os.waitpid(child, 0)[1] == 0
    return names


def _tell(action: Callable[[], object], pipe: int) -> None:
    with Effects() as effects:
        action()
    os.write(pipe, json.dumps(effects.names).encode())


def kill_at(action: Callable[[], object], point: int) -> None:
    """Do something in a child that is killed before its effect `point`, or when it is through."""

    def act() -> None:
        with Effects(die, point):
            action()
        die()

    _, status = os.waitpid(in_child(act), 0)
    assert os.WIFSIGNALED(status), f"the child was not killed: {status}"


def in_child(action: Callable[[], object]) -> int:
    """Begin something in a child of this process, and return the child's id."""
    child = os.fork()
    if child:
        return child
    try:
        action()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
