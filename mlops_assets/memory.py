"""How much memory a process may have, so that what cannot fit is refused at once.

A small file can stand for any number of rows or bytes. What is refused here could not have been
held; what is not refused may still be too much.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_assets.wording import size

if TYPE_CHECKING:
    import pyarrow as pa

_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_VARIABLE_WIDTH = 4  # bytes: the offset of a text or a list


def limit() -> int:
    """Return the bytes of this machine, of its container, or those that `ulimit` allows."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _CGROUP:
        with suppress(OSError, ValueError):  # no container, or "max"
            limits.append(int(Path(file).read_text()))
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min([*limits, *([allowed] if allowed != resource.RLIM_INFINITY else [])])


def too_much(schema: pa.Schema, rows: int) -> str | None:
    """Say that so many rows cannot be held in memory; None if they may fit."""
    needed = rows * sum(_width(field.type) for field in schema)
    if needed <= (most := limit()):
        return None
    return (
        f"{rows:,} rows of {len(schema)} columns take {size(int(needed))} of memory at the least, "
        f"and {size(most)} are allowed here"
    )


def _width(kind: pa.DataType) -> float:
    """Return the bytes that a value takes at the least."""
    try:
        return float(kind.bit_width) / 8
    except ValueError:  # a type without a fixed width, or without values
        return _VARIABLE_WIDTH if str(kind) != "null" else 0
