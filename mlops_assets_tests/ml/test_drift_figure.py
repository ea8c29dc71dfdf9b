"""Figures of drift: drawn from the result alone, whatever is in it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes

from mlops_assets.ml.distribution import Bins
from mlops_assets.ml.drift import Profile, compare, judge, profiles, reference
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


def test_a_range_of_time_is_named_with_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []
    hours = pd.Series(pd.date_range("2026-01-01", periods=500, freq="h"), name="when")
    bins = Bins.of(hours, "datetime")
    profile = Profile([bins])
    profile.add(hours.to_frame())
    made = {"columns": [{"bins": bins.as_json(), "counts": bins.count(hours)}]}
    set_xticks = Axes.set_xticks

    def noted(axes: Axes, positions: Any, names: Any = None, **more: Any) -> Any:
        labels.extend(names or [])
        return set_xticks(axes, positions, names, **more)

    monkeypatch.setattr(Axes, "set_xticks", noted)
    drift_figures(judge(compare(made, profile), DriftSpec(), 500), [], Levels())

    assert labels[1] == "2026-01-03 01:00 to 2026-01-05 03:00"


def test_nothing_to_compare_is_an_empty_figure() -> None:
    assert list(drift_figures([], [], Levels(warn=0.1))) == ["stability"]
