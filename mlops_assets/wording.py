"""Words that messages have in common. No rule of any field belongs here."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 80


def shown(value: object) -> str:
    """Return the value in quotes, on one line and cut where it gets too long."""
    text = str(value)
    return repr(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the most similar of the known names, or nothing."""
    by_lower_case = {other.lower(): other for other in known}
    matches = get_close_matches(name[:_LONGEST].lower(), by_lower_case, n=1)
    return f" (did you mean '{by_lower_case[matches[0]]}'?)" if matches else ""


def listed(values: Iterable[object], limit: int = 10, total: int = 0) -> str:
    """Write values with commas between them, and how many are left out.

    `total` says how many there are, if they are more than the values given.
    """
    texts = [str(value) for value in values]
    more = max(total, len(texts)) - limit
    return ", ".join(texts[:limit]) + (f" and {more} more" if more > 0 else "")


def size(number: int) -> str:
    """Return a number of bytes in the unit that people would use."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def first_line(text: str) -> str:
    """Return the first line that has something in it."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
