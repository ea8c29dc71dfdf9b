"""Every classifier and regressor of scikit-learn, through training and evaluation."""

from __future__ import annotations

import json
import warnings

import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.utils import all_estimators

from mlops_assets.errors import UserError
from mlops_assets.ml.evaluate import evaluate
from mlops_assets.ml.train import train
from mlops_assets.spec import ModelSpec

MADE_OF_OTHERS = [
    "ClassifierChain",
    "FixedThresholdClassifier",
    "MultiOutputClassifier",
    "MultiOutputRegressor",
    "OneVsOneClassifier",
    "OneVsRestClassifier",
    "OutputCodeClassifier",
    "RegressorChain",
    "SelfTrainingClassifier",
    "StackingClassifier",
    "StackingRegressor",
    "TunedThresholdClassifierCV",
    "VotingClassifier",
    "VotingRegressor",
]
"""A pipeline file holds plain values, no estimators."""

FOR_SEVERAL_TARGETS = [
    "MultiTaskElasticNet",
    "MultiTaskElasticNetCV",
    "MultiTaskLasso",
    "MultiTaskLassoCV",
]
FOR_A_SINGLE_FEATURE = ["IsotonicRegression"]

NEEDED_PARAMS = {
    "CCA": {"n_components": 1},
    "OrthogonalMatchingPursuitCV": {"max_iter": 5},
    "PLSCanonical": {"n_components": 1},
    # the parts of a time depend on each other linearly
    "QuadraticDiscriminantAnalysis": {"reg_param": 0.5},
    "RadiusNeighborsClassifier": {"radius": 100.0},
    "RadiusNeighborsRegressor": {"radius": 100.0},
}
FASTER_PARAMS = {"n_estimators": 5, "max_iter": 20, "max_subpopulation": 50}

CLASSIFIERS = dict(all_estimators("classifier"))
ESTIMATORS = CLASSIFIERS | dict(all_estimators("regressor"))


def _spec(name: str) -> ModelSpec:
    cls = ESTIMATORS[name]
    names = cls._get_param_names()
    params = {key: value for key, value in FASTER_PARAMS.items() if key in names}
    path = f"{cls.__module__}.{name}"
    return ModelSpec(estimator=path, params=params | NEEDED_PARAMS.get(name, {}))


@pytest.mark.parametrize(
    "name",
    sorted(set(ESTIMATORS) - {*MADE_OF_OTHERS, *FOR_SEVERAL_TARGETS, *FOR_A_SINGLE_FEATURE}),
)
def test_every_estimator_learns_and_is_measured(name: str, mixed: pd.DataFrame) -> None:
    is_classifier = name in CLASSIFIERS
    target, other = ("level", "amount") if is_classifier else ("amount", "level")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few rows and iterations do not converge
        model = train(mixed, _spec(name), target=target, drop=[other])
        evaluation = evaluate(model, mixed.iloc[:40])
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    assert evaluation["kind"] == ("multiclass" if is_classifier else "regression")


@pytest.mark.parametrize("name", [*MADE_OF_OTHERS, *FOR_SEVERAL_TARGETS, *FOR_A_SINGLE_FEATURE])
def test_an_estimator_that_cannot_be_used_is_refused(name: str, mixed: pd.DataFrame) -> None:
    is_classifier = name in CLASSIFIERS
    target, other = ("level", "amount") if is_classifier else ("amount", "level")
    with pytest.raises((UserError, ValidationError)):
        train(mixed, _spec(name), target=target, drop=[other])
