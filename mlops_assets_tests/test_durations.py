"""Durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mlops_assets.durations import seconds


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
