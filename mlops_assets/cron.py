"""Is a text a cron string? A check for pipeline files that costs no import.

Five fields (minute, hour, day of month, month, day of week) of `*`, numbers, names, ranges, steps
and lists of these, or one of `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. That is less
than Dagster accepts and nothing that it refuses; when a schedule fires is Dagster's business.
"""

from __future__ import annotations

import re

from mlops_assets.wording import shown

ALIASES = ("@hourly", "@daily", "@weekly", "@monthly", "@yearly")

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: i for i, name in enumerate(_MONTHS, start=1)}),
    ("day of week", 0, 7, {name: i for i, name in enumerate(_WEEKDAYS)}),
)
_ITEM = re.compile(r"(?:\*|(?P<low>\w+)(?:-(?P<high>\w+))?)(?:/(?P<step>\d{1,2}))?", re.ASCII)
_LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def check_cron(text: str) -> str:
    """Return the cron string, or raise a ValueError that says what is wrong with it."""
    if text in ALIASES:
        return text
    fields = text.split()
    if text.startswith("@") or len(fields) != len(_FIELDS):
        raise ValueError(
            f"{shown(text)} is not a cron string: give five fields (minute, hour, day of "
            f"month, month, day of week) such as '0 6 * * *', or one of {', '.join(ALIASES)}"
        )
    _, _, days, months, _ = (
        _values(field, *limits) for field, limits in zip(fields, _FIELDS, strict=True)
    )
    if all(min(days) > _LONGEST_MONTH[month - 1] for month in months):
        raise ValueError(f"{shown(text)}: no month that it names has a day {min(days)}")
    return text


def _values(field: str, what: str, lowest: int, highest: int, names: dict[str, int]) -> set[int]:
    values: set[int] = set()
    for item in field.lower().split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ValueError(f"{shown(item)} is not a {what}: allowed are *, a number, a-b and */n")
        low, high, step = match["low"], match["high"], match["step"]
        first = lowest if low is None else _number(low, what, lowest, highest, names)
        last = _number(high, what, lowest, highest, names) if high else first
        last = highest if low is None or (step and not high) else last
        if first > last:
            raise ValueError(f"{shown(item)} runs backwards: write the smaller {what} first")
        if step is not None and not 1 <= int(step) <= highest:
            raise ValueError(f"the step of {shown(item)} must be from 1 to {highest}")
        values.update(range(first, last + 1, int(step or 1)))
    return values


def _number(text: str, what: str, lowest: int, highest: int, names: dict[str, int]) -> int:
    value = names.get(text, int(text) if text.isdigit() and len(text) < 4 else -1)
    if not lowest <= value <= highest:
        also = f" or {next(iter(names))} to {list(names)[-1]}" if names else ""
        raise ValueError(f"{shown(text)} is not a {what}: allowed are {lowest} to {highest}{also}")
    return value
