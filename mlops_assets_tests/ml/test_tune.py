"""What a trial tries and finds, and that it is the same wherever and whenever it runs."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mlops_assets.errors import DataError, ModelError
from mlops_assets.ml.tune import Trial, best_of, distributions, folds, importances, run_trial
from mlops_assets.spec import ParameterRange, PipelineSpec

TREE = "sklearn.tree.DecisionTreeClassifier"
SPACE: dict[str, Any] = {
    "max_depth": {"low": 1, "high": 10},
    "ccp_alpha": {"low": 1e-5, "high": 0.1, "log": True},
    "criterion": ["gini", "entropy"],
}


def pipeline(
    tune: dict[str, Any], estimator: str = TREE, target: str = "level", **parts: Any
) -> PipelineSpec:
    """Return a pipeline about the frame `mixed`."""
    other = "amount" if target == "level" else "level"
    return PipelineSpec.model_validate(
        {
            "name": "mixed",
            "data": {"uri": "mixed.csv", "target": target, "drop": [other]},
            "model": {"estimator": estimator},
            "tune": {"folds": 3, **tune},
            "evaluate": {"metrics": ["accuracy"] if target == "level" else ["r2"]},
            **parts,
        }
    )


def search(frame: pd.DataFrame, spec: PipelineSpec) -> list[Trial]:
    """Run all trials one after the other, each knowing the rounds before as JSON keeps them."""
    trials: list[Trial] = []
    for number in range(spec.tune.trials):
        before = [as_kept(trial) for trial in trials[: spec.tune.first_of_round(number)]]
        trials.append(run_trial(number, frame, spec, before))
    return trials


def as_kept(trial: Trial) -> Trial:
    return Trial(**json.loads(json.dumps(asdict(trial), sort_keys=True)))


def test_a_trial_is_the_same_whatever_runs_beside_it_or_after_it(mixed: pd.DataFrame) -> None:
    spec = pipeline({"trials": 9, "parallel": 3, "space": SPACE})
    trials = search(mixed, spec)

    assert [trial.number for trial in trials] == list(range(9))
    assert len({json.dumps(dict(trial.params)) for trial in trials}) > 5
    for number in (8, 7, 6, 1):
        before = trials[: spec.tune.first_of_round(number)]
        assert run_trial(number, mixed, spec, before) == trials[number]
    fewer = pipeline({"trials": 5, "parallel": 3, "space": SPACE})
    assert search(mixed, fewer) == trials[:5]
    assert search(mixed, pipeline({"trials": 3, "seed": 1, "space": SPACE})) != trials[:3]


def test_values_are_those_of_the_space(mixed: pd.DataFrame) -> None:
    weights = [None, "balanced", {"low": 3, "mid": 1, "high": 1}]
    space = {**SPACE, "min_samples_split": [2, 0.5], "class_weight": weights}
    for trial in search(mixed, pipeline({"trials": 8, "space": space, "prune": False})):
        assert trial.state == "complete", trial.message
        tried = trial.params
        assert isinstance(tried["max_depth"], int)
        assert 1 <= tried["max_depth"] <= 10
        assert 1e-5 <= tried["ccp_alpha"] <= 0.1
        assert tried["class_weight"] in weights
        assert len(trial.folds) == 3
        assert trial.value == pytest.approx(np.mean(trial.folds))


def test_a_refused_parameter_is_a_failed_trial_that_says_why(mixed: pd.DataFrame) -> None:
    space = {"criterion": ["gini", "nonsense"], "max_depth": [1, 2, 3]}
    trials = search(mixed, pipeline({"trials": 6, "space": space}))

    failed = [trial for trial in trials if trial.state == "failed"]
    assert {trial.params["criterion"] for trial in failed} == {"nonsense"}
    assert "model.params.criterion" in str(failed[0].message)
    assert best_of(trials).params["criterion"] == "gini"
    assert best_of(trials).value == max(trial.value or 0 for trial in trials)


def test_when_all_trials_fail_the_reasons_are_told_once_each(mixed: pd.DataFrame) -> None:
    trials = search(mixed, pipeline({"trials": 3, "space": {"criterion": ["wrong", "worse"]}}))

    with pytest.raises(ModelError, match="all 3 trials failed") as caught:
        best_of(trials)
    assert 1 <= str(caught.value).count("\n- model.params.criterion") <= 2


def test_of_equal_trials_the_first_is_the_best() -> None:
    trials = [Trial(n, "complete", {"a": n}, "r2", [0.5, 0.7]) for n in range(3)]
    assert best_of(trials[::-1]).number == 0


def test_parameters_that_were_tried_are_not_measured_again(mixed: pd.DataFrame) -> None:
    spec = pipeline({"trials": 2, "parallel": 1, "space": {"max_depth": [3]}})
    known = Trial(0, "complete", {"max_depth": 3}, "accuracy", [0.25, 0.25, 0.25])

    assert run_trial(1, mixed, spec, [known]).folds == known.folds
    assert run_trial(1, mixed, spec, []).folds != known.folds


def test_a_trial_worse_than_half_of_the_others_is_given_up(mixed: pd.DataFrame) -> None:
    spec = pipeline({"trials": 9, "parallel": 8, "space": {"max_depth": {"low": 1, "high": 999}}})
    good = [
        Trial(number, "complete", {"max_depth": number + 1}, "accuracy", [1.0, 1.0, 1.0])
        for number in range(8)
    ]

    trial = run_trial(8, mixed, spec, good)
    assert trial.state == "pruned"
    assert len(trial.folds) == 1
    assert trial.value is None
    kept = spec.model_copy(update={"tune": spec.tune.model_copy(update={"prune": False})})
    assert run_trial(8, mixed, kept, good).state == "complete"


def test_a_trial_that_takes_too_long_fails_whatever_thread_it_runs_in(mixed: pd.DataFrame) -> None:
    spec = pipeline(
        {"trials": 1, "timeout": "50ms", "space": {"n_estimators": [20_000]}},
        "sklearn.ensemble.RandomForestClassifier",
    )
    begun = time.monotonic()
    trial = run_trial(0, mixed, spec, [])
    took = time.monotonic() - begun

    assert trial.state == "failed"
    assert "tune.timeout: it took longer than 0.05 seconds" in str(trial.message)
    assert took < 10  # three folds of 20,000 trees take half a minute

    fast = pipeline({"trials": 1, "timeout": "1ms", "space": {"max_depth": [1]}})
    found: list[Trial] = []
    thread = threading.Thread(target=lambda: found.append(run_trial(0, mixed, fast, [])))
    thread.start()
    thread.join()
    assert [trial.state for trial in found] == ["failed"]
    assert run_trial(0, mixed, pipeline({"trials": 1, "space": SPACE}), []).state == "complete"


def test_a_regression_is_searched_too(mixed: pd.DataFrame) -> None:
    space = {"alpha": {"low": 0.01, "high": 100.0, "log": True}}
    spec = pipeline({"trials": 3, "space": space}, "sklearn.linear_model.Ridge", "amount")
    assert [trial.by for trial in search(mixed, spec)] == ["r2"] * 3


def test_the_metric_is_the_one_that_tune_or_else_promote_names(mixed: pd.DataFrame) -> None:
    promote = {"by": "f1_macro"}
    spec = pipeline({"trials": 1, "space": SPACE}, promote=promote)
    assert run_trial(0, mixed, spec, []).by == "f1_macro"
    spec = pipeline({"trials": 1, "space": SPACE, "by": "balanced_accuracy"}, promote=promote)
    assert run_trial(0, mixed, spec, []).by == "balanced_accuracy"


# --- folds --------------------------------------------------------------------------------------


def parts_of(frame: pd.DataFrame, count: int = 4, **split: Any) -> list[tuple[Any, Any]]:
    return folds(frame, pipeline({"trials": 1, "space": SPACE, "folds": count}, split=split))


def test_every_row_is_judged_once_and_never_by_a_model_that_has_seen_it(
    mixed: pd.DataFrame,
) -> None:
    parts = parts_of(mixed)
    assert sorted(np.concatenate([judged for _, judged in parts])) == list(range(len(mixed)))
    assert all(not set(learned) & set(judged) for learned, judged in parts)
    unstratified = parts_of(mixed, stratify=False)
    assert not np.array_equal(parts[0][1], unstratified[0][1])


def test_each_fold_has_the_share_of_each_class(mixed: pd.DataFrame) -> None:
    shares = mixed["level"].value_counts(normalize=True)
    for _, judged in parts_of(mixed):
        found = mixed["level"].iloc[judged].value_counts(normalize=True)
        assert (found - shares).abs().max() < 0.05


def test_no_group_is_on_both_sides(mixed: pd.DataFrame) -> None:
    mixed["house"] = np.arange(len(mixed)) % 7
    for learned, judged in parts_of(mixed, group="house"):
        assert not set(mixed["house"].iloc[learned]) & set(mixed["house"].iloc[judged])


def test_rows_are_judged_by_models_of_strictly_earlier_rows(mixed: pd.DataFrame) -> None:
    mixed["day"] = np.random.default_rng(0).permutation(len(mixed)) // 4
    for learned, judged in parts_of(mixed, by_time="day"):
        assert mixed["day"].iloc[learned].max() < mixed["day"].iloc[judged].min()


@pytest.mark.parametrize("split", [{}, {"group": "same"}, {"by_time": "same"}])
def test_too_few_rows_groups_or_times_are_a_mistake_of_the_pipeline_file(
    mixed: pd.DataFrame, split: dict[str, str]
) -> None:
    frame = mixed.head(3) if not split else mixed.assign(same=1)
    with pytest.raises(DataError, match=r"tune\.folds"):
        run_trial(0, frame, pipeline({"trials": 1, "space": SPACE, "folds": 4}, split=split), [])


# --- Optuna -------------------------------------------------------------------------------------


def test_importances_sum_to_one_and_need_some_trials(mixed: pd.DataFrame) -> None:
    spec = pipeline({"trials": 12, "space": SPACE, "prune": False})
    trials = search(mixed, spec)
    shares = importances(spec, trials)

    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) == set(SPACE)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert importances(spec, trials[:5]) == {}
    assert importances(spec, [Trial(n, "complete", {}, "r2", [1.0]) for n in range(20)]) == {}


numbers = st.integers(-100, 100) | st.floats(-100, 100).map(lambda number: round(number, 3))


@given(low=numbers, high=numbers, log=st.booleans(), step=st.none() | numbers)
def test_every_range_that_a_pipeline_file_may_have_is_one_that_optuna_takes_as_it_is(
    low: float, high: float, log: bool, step: float | None
) -> None:
    try:
        search = ParameterRange(low=low, high=high, log=log, step=step)
    except ValidationError:
        return
    spec = pipeline({"trials": 1, "space": {"ccp_alpha": search}})
    with warnings.catch_warnings(action="error"):
        made: Any = distributions(spec)["ccp_alpha"]
    assert (made.low, made.high, made.log) == (low, high, log)
    assert made.step == (step if step is not None or not search.is_whole else 1)


@settings(max_examples=25)  # each trains models
@given(
    choices=st.lists(
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers(), max_size=2),
        min_size=1,
        max_size=6,
        unique_by=json.dumps,
    )
)
def test_any_choices_are_drawn_and_recognised(choices: Sequence[Any]) -> None:
    frame = pd.DataFrame({"a": range(20), "level": ["x", "y"] * 10})
    space = {"constant": list(choices)}
    spec = pipeline({"trials": 3, "parallel": 1, "space": space}, "sklearn.dummy.DummyClassifier")
    texts = [json.dumps(choice) for choice in choices]
    trials = search(frame, spec)
    assert all(json.dumps(trial.params["constant"]) in texts for trial in trials)
