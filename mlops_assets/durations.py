"""How people write durations: `30d`, `12h`, `1.5h`, `500ms`. Nothing else."""

import re

PATTERN = r"(\d{1,8}(?:\.\d{1,9})?)\s*(ms|s|m|h|d|w)"

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def seconds(text: str) -> float:
    """Return the seconds that a duration means.

    Raises
    ------
    ValueError
        It is none; the message says what one looks like.
    """
    match = re.fullmatch(PATTERN, text.strip(), re.ASCII)
    if match is None:
        raise ValueError(
            f"{text[:50]!r} is no duration: write a number with {', '.join(_SECONDS)} such as 30d"
        )
    return float(match[1]) * _SECONDS[match[2]]


def in_words(number: float) -> str:
    """Write seconds as people do, in the largest unit that leaves no rest: `90m`, `2d`."""
    units = [unit for unit in ("d", "h", "m") if number >= _SECONDS[unit]]
    unit = next((unit for unit in units if number % _SECONDS[unit] == 0), "s")
    return f"{number / _SECONDS[unit]:g}{unit}"
