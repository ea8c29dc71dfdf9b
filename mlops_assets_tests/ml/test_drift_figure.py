"""Figures of drift: drawn from the result alone, whatever is in it."""

from __future__ import annotations

from typing import Any

import pytest

from mlops_assets.ml.drift import compare, judge, profiles, reference
from mlops_assets.ml.drift_figure import drift_figures
from mlops_assets.spec import DriftSpec, Levels
from mlops_assets_tests.ml.test_drift import rows, trained


@pytest.fixture(scope="module")
def judged() -> list[dict[str, Any]]:
    frame = rows(500, seed=0).rename(columns={"color": "a very long name of a $column$ — 色"})
    made = reference(trained(frame, "bought"), frame, frame)
    profile, _ = profiles(made)
    profile.add(frame.assign(n0=9.0))
    return judge(compare(made["features"], profile), DriftSpec(), 500)


def test_the_worst_columns_have_a_figure_each(judged: list[dict[str, Any]]) -> None:
    figures = drift_figures(judged, judged[-1:], DriftSpec().psi)

    assert list(figures)[:2] == ["stability", "n0"]
    assert len(figures) == 5
    assert all(png.startswith(b"\x89PNG") for png in figures.values())


def test_equal_results_give_equal_bytes_and_limits_may_be_missing(
    judged: list[dict[str, Any]],
) -> None:
    assert drift_figures(judged, [], Levels()) == drift_figures(judged, [], Levels())


def test_nothing_to_compare_is_an_empty_figure() -> None:
    assert list(drift_figures([], [], Levels(warn=0.1))) == ["stability"]
