"""Whether a process of this machine that was written down is still there.

A process number alone says little: it is given again, and means another process in another
container or after a restart. What cannot be told for sure is taken for alive. Elsewhere than on
Linux nothing can be told.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

_PROC = Path("/proc")


def this_process() -> str | None:
    """Return what tells this process from all others, in one line; None if nothing does."""
    return _described(os.getpid())


def is_gone(process: str) -> bool:
    """Say whether a process that `this_process` described ran here, and does no longer.

    False for one of another machine, of another container, or from before a restart.
    """
    here = this_process()
    match process.split(" "):
        case *place, number, _ if here and place == here.split(" ")[:-2] and number.isdecimal():
            found = _described(int(number))
            return found != process if found is not None else _is_free(int(number))
    return False


def _described(number: int) -> str | None:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        container = (_PROC / "self/ns/pid").stat().st_ino
        # behind the program's name, which may have anything in it
        state, *facts = (_PROC / str(number) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    begun = "over" if state in ("Z", "X") else facts[18]
    return f"{socket.gethostname()} {boot} {container} {number} {begun}"


def _is_free(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
