"""The counting of faults, which the figures in the documentation come from."""

from __future__ import annotations

import json

import pytest

from mlops_assets_tests.faults.report import BEGIN, END, PAGE, with_figures
from mlops_assets_tests.faults.trials import Trial, table


def test_a_trial_that_raises_is_counted_as_failed_and_still_raises() -> None:
    told: list[str] = []
    with (
        pytest.raises(AssertionError, match="lost"),
        Trial("kill", 0, lambda _, value: told.append(str(value))),
    ):
        raise AssertionError("lost an artefact")
    [trial] = map(json.loads, told)
    assert (trial["outcome"], trial["error"]) == ("FAILED", "AssertionError: lost an artefact")


def test_the_table_counts_the_outcomes_of_every_scenario() -> None:
    trials = [
        {"scenario": "kill", "outcome": outcome, "seconds": seconds}
        for outcome, seconds in [("recovered", 1), ("FAILED", 2), ("recovered", 3)]
    ]
    assert table(trials)[2:] == [
        "| kill | 3 | 2 recovered, 1 FAILED | 3.0 s |",
        "",
        "3 trials, 1 failed",
    ]


def test_the_chance_of_a_trial_is_the_same_in_every_run() -> None:
    first, again, other = (Trial("kill", number, lambda *_: None) for number in (0, 0, 1))
    assert first.random.random() == again.random.random() != other.random.random()


def test_the_figures_in_the_documentation_are_replaced_and_all_else_stays() -> None:
    page = f"What is promised.\n{BEGIN}\nold figures\n{END}\nWhat is not.\n"
    trials = [{"scenario": "kill", "outcome": "recovered", "seconds": 1}]
    once = with_figures(page, trials, "Measured here.")

    assert once == (
        f"What is promised.\n{BEGIN}\n1 trials, 0 failed. Measured here.\n\n"
        "| scenario | trials | outcomes | slowest |\n|---|---:|---|---:|\n"
        f"| kill | 1 | 1 recovered | 1.0 s |\n{END}\nWhat is not.\n"
    )
    assert with_figures(once, trials, "Measured here.") == once


def test_the_page_of_the_documentation_has_a_place_for_the_figures() -> None:
    page = PAGE.read_text()
    assert with_figures(page, [], "").count(BEGIN) == page.count(BEGIN) == 1
