"""What the fields of a JSON record must be, so that a damaged one is known when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shape = Mapping[str, Any]
"""Types by field; the shape of a record where a field holds one."""


def require(record: Any, shape: Shape) -> None:
    """Check the fields of a record; others may be there.

    Raises
    ------
    KeyError, TypeError
        A field is missing, or of another type.
    """
    for name, kind in shape.items():
        value = record[name]
        if isinstance(kind, Mapping):
            require(value, kind)
        elif not isinstance(value, kind):
            raise TypeError(f"{name} is {value!r}, which is no {kind}")
