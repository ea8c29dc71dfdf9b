"""Counting what is done instead of timing it: the same on any machine, however busy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType


def calls_of(function: Callable[[], object]) -> int:
    """Count the functions that are called, which unlike the time is the same on any machine."""
    count = 0

    def count_it(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_it)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count
