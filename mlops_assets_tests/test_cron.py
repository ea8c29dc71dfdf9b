"""Cron strings: what is accepted here must be accepted by Dagster."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.cron import ALIASES, check_cron

GOOD = [
    *ALIASES,
    "0 6 * * *",
    "*/15 * * * *",
    "0 0,12 1-7 jan-MAR mon",
    "59 23 31 12 7",
    "5/10 * * * *",
    "0 0 29 2 *",
]


@pytest.mark.parametrize("text", GOOD)
def test_a_cron_string_is_accepted(text):
    from dagster._utils.schedules import is_valid_cron_schedule

    assert check_cron(text) == text
    assert is_valid_cron_schedule(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "five fields"),
        ("daily", "five fields"),
        ("@reboot", "@hourly, @daily"),
        ("@daily extra words that count five", "five fields"),
        ("* * * * * *", "five fields"),
        ("61 * * * *", "'61' is not a minute: allowed are 0 to 59"),
        ("* 24 * * *", "'24' is not a hour: allowed are 0 to 23"),
        ("* * 0 * *", "'0' is not a day of month"),
        ("* * * foo *", "'foo' is not a month: allowed are 1 to 12 or jan to dec"),
        ("* * * * 8", "'8' is not a day of week: allowed are 0 to 7 or sun to sat"),
        ("*/0 * * * *", "the step of '*/0'"),
        ("30-10 * * * *", "runs backwards"),
        ("1,,2 * * * *", "'' is not a minute"),
        ("-1 * * * *", "'-1' is not a minute"),
        ("1.5 * * * *", "'1.5' is not a minute"),
        ("٣ * * * *", "is not a minute"),
        (f"{'9' * 5000} * * * *", "is not a minute"),
        ("0 0 31 2 *", "no month that it names has a day 31"),
        ("0 0 31 apr,jun *", "no month that it names has a day 31"),
    ],
)
def test_a_bad_cron_string_is_refused_with_what_is_allowed(text, why):
    with pytest.raises(ValueError, match=r".") as caught:
        check_cron(text)
    assert why in str(caught.value)


def fields(lowest, highest, names=()):
    """Items of a field, some beyond its limits."""
    number = st.integers(lowest, highest + 1).map(str) | st.sampled_from(["*", *names])
    ranged = st.builds("{}-{}".format, number, number)
    item = number | ranged
    stepped = item | st.builds("{}/{}".format, item, st.integers(0, highest + 1))
    return st.lists(stepped, min_size=1, max_size=2).map(",".join)


@given(
    st.tuples(
        fields(0, 59),
        fields(0, 23),
        fields(1, 31),
        fields(1, 12, ["jan", "Feb", "DEC"]),
        fields(0, 7, ["sun", "Sat"]),
    ).map(" ".join)
    | st.text(max_size=20)
)
@settings(max_examples=500)
def test_what_is_accepted_is_accepted_by_dagster(text):
    from dagster._utils.schedules import is_valid_cron_schedule

    try:
        check_cron(text)
    except ValueError:
        return
    assert is_valid_cron_schedule(text)
