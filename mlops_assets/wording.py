"""Words that messages have in common. No rule of any field belongs here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 80

# With limits, and without a scheme of any length: texts of errors can be long, and quote anything.
# Up to the last @ before a path; or, where a password has a / in it, up to the next @.
_USER = re.compile(r"://(?:([^/\s]+)|[^/\s:@]{0,100}:(?!\d+(?:/|\s|$))[^\s@]{0,200})@")
# What follows a ? is a glob, and no secret, unless it has names and values.
_QUERY = re.compile(
    r"""((?:https?://|\burl: /)[^\s?]{0,500}\?|://[^\s?]{0,500}\?(?=[^\s'"`]{0,500}=))"""
    r"""[^\s'"`]+"""
)
_CONTAINERS = ("abfs", "abfss")  # abfs://container@account


def redacted(text: str) -> str:
    """Hide what may be secret in the URLs of a text: user and password, and what follows a `?`.

    A secret in the path of a URL cannot be told from the rest of the path, and stays.
    """
    return _QUERY.sub(r"\1…", _USER.sub(_without_user, text))


def _without_user(found: re.Match[str]) -> str:
    user, before = found[1], found.string[max(found.start() - 5, 0) : found.start()]
    is_container = before.endswith(_CONTAINERS) and user and not set(user) & set(":@")
    return found[0] if is_container else "://…@"


def shown(value: object) -> str:
    """Return the value in quotes, on one line, without secrets and cut where it gets too long."""
    text = redacted(str(value))
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
