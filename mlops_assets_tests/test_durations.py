"""Durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mlops_assets.durations import in_words, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30d", 2_592_000),
        ("12h", 43_200),
        ("2w", 1_209_600),
        ("1.5m", 90),
        (" 5 s ", 5),
        ("250ms", 0.25),
        ("0s", 0),
    ],
)
def test_a_number_and_a_unit_are_a_duration(text: str, expected: float) -> None:
    assert seconds(text) == expected


def test_the_longest_duration_is_still_one_for_python() -> None:
    assert timedelta(seconds=seconds("99999999w")) > timedelta(days=365)


@pytest.mark.parametrize(
    "text", ["", "30", "d", "-1d", "1e3s", "30 days", "1d12h", "9" * 9 + "w", "٣d", "x" * 99]
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no duration: .* such as 30d"):
        seconds(text)


@pytest.mark.parametrize(
    ("number", "text"),
    [(60, "1m"), (90, "90s"), (5400, "90m"), (7200, "2h"), (172_800, "2d"), (0.5, "0.5s")],
)
def test_seconds_are_written_in_the_largest_unit_that_leaves_no_rest(
    number: float, text: str
) -> None:
    assert in_words(number) == text
    assert seconds(text) == number
