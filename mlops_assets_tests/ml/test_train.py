"""Training and predicting: problems of every kind, and what is said when there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlops_assets.errors import DataError, ModelError
from mlops_assets.ml.read import read
from mlops_assets.ml.split import split
from mlops_assets.ml.task import infer_task, suited_task
from mlops_assets.ml.train import problem_kind, train
from mlops_assets.spec import DataSpec, ModelSpec, SplitSpec, Task

from .conftest import CHURN

LOGISTIC = ModelSpec(estimator="sklearn.linear_model.LogisticRegression")
TREE = ModelSpec(estimator="sklearn.tree.DecisionTreeClassifier")
RIDGE = ModelSpec(estimator="sklearn.linear_model.Ridge")


def _frame(target: list[object], **columns: list[object]) -> pd.DataFrame:
    frame = pd.DataFrame({"x": np.linspace(0, 1, len(target)), **columns, "y": target})
    return frame.rename_axis("row")


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["a", "b", "c"], "classification"),
        ([True, False, True], "classification"),
        ([0, 1, 1], "classification"),
        ([0.0, 1.0, None], "classification"),
        ([1, 2, 3] * 20, "classification"),
        ([1, 2, 3], "regression"),
        (list(range(400)), "regression"),
        ([0.5, 1.5, 0.5] * 100, "regression"),
    ],
)
def test_the_task_is_inferred_from_the_target(values: list[object], task: str) -> None:
    assert infer_task(pd.Series(values, name="y")) == task


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        (["no", "yes"] * 10, ["no", "yes"]),
        ([False, True] * 10, [False, True]),
        ([0, 1] * 10, [0, 1]),
        ([0.0, 1.0, None, 1.0] * 10, [0, 1]),
        (["c", "a", "b"] * 10, ["a", "b", "c"]),
    ],
)
def test_classes_are_sorted_and_predicted_in_their_own_terms(
    target: list[object], classes: list[object]
) -> None:
    frame = _frame(target)
    model = train(frame, TREE, target="y")
    assert model.classes == classes
    assert [type(label) for label in model.classes] == [type(label) for label in classes]
    labelled = frame[frame["y"].notna()]
    predicted = model.predict(labelled)
    assert predicted.tolist() == labelled["y"].tolist()
    assert predicted.index.equals(labelled.index)
    assert predicted.name == "y"
    shares = model.predict_proba(frame)
    assert shares.columns.tolist() == [str(label) for label in classes]
    assert np.allclose(shares.sum(axis=1), 1)


def test_the_positive_class_is_the_second_one() -> None:
    model = train(_frame(["no", "yes"] * 10), LOGISTIC, target="y", positive_class="no")
    assert model.classes == ["yes", "no"]
    assert problem_kind(model.task, model.classes) == "binary"


@pytest.mark.parametrize(
    ("target", "positive", "words"),
    [
        (["No", "Yes"], True, ["True", "'No', 'Yes'", 'write "Yes" in quotes']),
        (["No", "Yes"], "yess", ["'yess'", "'No', 'Yes'"]),
        ([0, 1], "1", ["'1'", "0, 1", "without quotes"]),
        ([0, 1], True, ["True", "0, 1"]),
        (["1", "2"], 1, ["in quotes"]),
        (["a", "b", "c"], "a", ["3 classes", "remove"]),
    ],
)
def test_a_positive_class_that_is_none_is_explained(
    target: list[object], positive: str | int | bool, words: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        train(_frame(target * 5), LOGISTIC, target="y", positive_class=positive)
    for word in ["data.positive_class", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("target", "model", "words"),
    [
        (["a"] * 9, LOGISTIC, ["all 9 training rows", "two classes"]),
        (["a", "b"] * 5, RIDGE, ["regression predicts numbers", "classifier"]),
        ([True, False] * 5, RIDGE, ["boolean", "classifier"]),
        ([row / 7 for row in range(50)], LOGISTIC, ["50 different numbers", "regressor"]),
        (list(range(300)), LOGISTIC, ["300 different numbers", "y: category"]),
        (pd.date_range("2024-01-01", periods=9).tolist(), LOGISTIC, ["is a time"]),
    ],
)
def test_a_target_that_does_not_suit_the_estimator_is_explained(
    target: list[object], model: ModelSpec, words: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        train(_frame(target), model, target="y")
    for word in ["data.target", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("known", [None, "classification"])
def test_a_target_of_whole_numbers_is_one_of_classes_though_values_are_missing(
    known: Task | None,
) -> None:
    assert suited_task(pd.Series([0.0, 1.0, None] * 10, name="y"), known) == "classification"


def test_a_missing_target_column_is_named() -> None:
    with pytest.raises(DataError, match="no column z"):
        train(_frame(["a", "b"]), LOGISTIC, target="z")


def test_a_parameter_that_the_class_refuses_is_named() -> None:
    model = LOGISTIC.model_copy(update={"params": {"C": -1}})
    with pytest.raises(ModelError, match=r"model\.params\.C: sklearn.*LogisticRegression refused"):
        train(_frame(["a", "b"] * 5), model, target="y")


def test_data_that_the_estimator_refuses_is_explained() -> None:
    model = ModelSpec(estimator="sklearn.linear_model.GammaRegressor")
    with pytest.raises(ModelError, match=r"model\.estimator: .*GammaRegressor refused: .*range"):
        train(_frame([-1.5, 2.0, 3.0]), model, target="y")


def test_a_refusal_of_xgboost_is_told_without_the_stack_of_its_native_code() -> None:
    params = {"n_estimators": 1, "device": "cpuu"}
    model = ModelSpec(estimator="xgboost.XGBClassifier", params=params)
    with pytest.raises(ModelError, match="Got: `cpuu`") as refusal:
        train(_frame(["a", "b"] * 5), model, target="y")
    assert "Stack trace" not in str(refusal.value)


def test_an_estimator_made_from_another_one_is_refused() -> None:
    model = ModelSpec.model_construct(
        task=None,
        estimator="sklearn.semi_supervised.SelfTrainingClassifier",
        params={},
        features="auto",
    )
    with pytest.raises(ModelError, match="another estimator"):
        train(_frame(["a", "b"] * 5), model, target="y")


def test_class_weights_are_given_by_the_classes_of_the_data() -> None:
    def share_of_b(**weights: float) -> float:
        params = {"class_weight": weights, "max_iter": 500}
        model = LOGISTIC.model_copy(update={"params": params})
        frame = _frame(["a", "a", "a", "b"] * 10, x=[0, 1, 2, 2] * 10)
        return float((train(frame, model, target="y").predict(frame) == "b").mean())

    assert share_of_b(a=1, b=20) > share_of_b(a=20, b=1)


def test_a_class_weight_for_no_class_is_explained() -> None:
    model = LOGISTIC.model_copy(update={"params": {"class_weight": {True: 2}}})
    with pytest.raises(ModelError, match='write "Yes" in quotes'):
        train(_frame(["Yes", "No"] * 5, x=list(range(10))), model, target="y")


def test_the_seed_is_given_to_an_estimator_that_takes_one() -> None:
    frame = _frame(["a", "b"] * 5)
    assert train(frame, TREE, target="y", seed=7).pipeline[-1].random_state == 7
    own = TREE.model_copy(update={"params": {"random_state": 3}})
    assert train(frame, own, target="y", seed=7).pipeline[-1].random_state == 3


def test_training_twice_gives_the_same_model(mixed: pd.DataFrame) -> None:
    forest = ModelSpec(
        estimator="sklearn.ensemble.RandomForestClassifier", params={"n_estimators": 9}
    )
    one, other = (train(mixed, forest, target="level", drop=["amount"]) for _ in range(2))
    pd.testing.assert_frame_equal(one.predict_proba(mixed), other.predict_proba(mixed))


def test_dropped_columns_are_no_features(mixed: pd.DataFrame) -> None:
    model = train(mixed, LOGISTIC, target="level", drop=["amount", "note"])
    assert sorted(model.features) == ["active", "color", "count", "seen", "weight"]
    assert model.train_rows == len(mixed)


# ---------------------------------------------------------------------------------- features ----


def _inputs(frame: pd.DataFrame, estimator: str, **params: object) -> np.ndarray:
    spec = ModelSpec(estimator=estimator, params=params)
    model = train(frame, spec, target="level", drop=["amount"])
    from mlops_assets.ml.model import conform

    return np.asarray(model.pipeline[:-1].transform(conform(frame, model.features)))


def test_linear_models_get_one_column_per_category(mixed: pd.DataFrame) -> None:
    inputs = _inputs(mixed, "sklearn.linear_model.LogisticRegression")
    # 2 numbers and a missing flag, active, 5 parts of a time and a flag each, 3 colors and missing
    assert inputs.shape == (90, 3 + 1 + 10 + 4)
    assert np.isfinite(inputs).all()


def test_trees_get_codes(mixed: pd.DataFrame) -> None:
    inputs = _inputs(mixed, "sklearn.tree.DecisionTreeClassifier")
    assert inputs.shape == (90, 3 + 1 + 10 + 1)
    assert set(inputs[:, -1]) == {-1.0, 0.0, 1.0, 2.0}


def test_estimators_of_counts_get_nothing_negative(mixed: pd.DataFrame) -> None:
    for name in ("MultinomialNB", "ComplementNB", "CategoricalNB"):
        assert _inputs(mixed, f"sklearn.naive_bayes.{name}").min() >= 0


def test_many_categories_are_bounded() -> None:
    cities = pd.Categorical([f"city {row % 60}" for row in range(180)])
    frame = _frame(["a", "b", "b"] * 60, city=cities)
    model = train(frame, LOGISTIC, target="y")
    assert model.pipeline[-1].n_features_in_ == 1 + 30


def test_constants_and_free_text_are_left_out() -> None:
    frame = _frame(
        ["a", "b"] * 5,
        constant=[1] * 10,
        empty=[np.nan] * 10,
        text=pd.Series(list("abcdefghij"), dtype=object),
        rarely=pd.Categorical(["set"] + [None] * 9),
    )
    model = train(frame, TREE, target="y")
    used = [name for _, _, names in model.pipeline[0].transformers for name in names]
    assert used == ["x", "rarely"]


def test_data_without_a_usable_column_is_explained() -> None:
    frame = _frame(["a", "b"] * 5).assign(x=1)
    with pytest.raises(DataError, match=r"no column can serve as a feature.*x \(number\)"):
        train(frame, LOGISTIC, target="y")
    with pytest.raises(DataError, match="none but the target and dropped ones"):
        train(frame, LOGISTIC, target="y", drop=["x"])


@pytest.fixture
def own_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user, with functions of the training frame."""
    (tmp_path / "own_features.py").write_text(
        "from sklearn.preprocessing import StandardScaler\n"
        "from sklearn.compose import make_column_transformer\n"
        "def scaled(frame):\n"
        "    assert 'y' not in frame\n"
        "    return make_column_transformer((StandardScaler(), ['x']))\n"
        "def nothing(frame):\n"
        "    return None\n"
        "def failing(frame):\n"
        "    return frame['nope']\n"
        "def misspelt(frame):\n"
        "    return make_column_transformer((StandardScaler(), ['xx']))\n"
    )
    (tmp_path / "own_failing.py").write_text("raise RuntimeError('not today')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_features"
    sys.modules.pop("own_features", None)


def test_features_may_come_from_a_function_of_the_user(own_features: str) -> None:
    model = LOGISTIC.model_copy(update={"features": f"{own_features}:scaled"})
    trained = train(_frame(["a", "b"] * 5, z=list(range(10))), model, target="y")
    assert trained.pipeline[-1].n_features_in_ == 1


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ("own_features:nothing", "returned a NoneType"),
        ("own_features:other", "cannot be imported"),
        ("no_such_module:scaled", "cannot be imported"),
        ("own_failing:scaled", "cannot be imported: RuntimeError: not today"),
        ("own_features:failing", "own_features:failing or .*refused: KeyError: 'nope'"),
        ("own_features:misspelt", "own_features:misspelt or .*refused: .*'xx'"),
    ],
)
def test_a_function_without_a_transformer_is_explained(
    features: str, words: str, own_features: str
) -> None:
    model = LOGISTIC.model_copy(update={"features": features})
    with pytest.raises(ModelError, match=rf"model\.features: .*{words}"):
        train(_frame(["a", "b"] * 5), model, target="y")


# -------------------------------------------------------------------------------- predicting ----


def test_unknown_categories_and_missing_values_are_predicted(mixed: pd.DataFrame) -> None:
    for estimator in (
        "sklearn.linear_model.LogisticRegression",
        "sklearn.tree.DecisionTreeClassifier",
    ):
        model = train(mixed, ModelSpec(estimator=estimator), target="level", drop=["amount"])
        new = mixed.drop(columns=["level", "amount"]).assign(color="violet", extra=1)
        new["weight"] = np.nan
        new["seen"] = pd.NaT
        new["active"] = pd.NA
        assert set(model.predict(new)) <= {"low", "mid", "high"}
        assert model.predict(new.iloc[:0]).tolist() == []
        assert model.predict_proba(new.iloc[:0]).shape == (0, 3)


def test_a_missing_column_is_named(mixed: pd.DataFrame) -> None:
    model = train(mixed, LOGISTIC, target="level")
    with pytest.raises(DataError, match=r"lacks columns .*: weight, color"):
        model.predict(mixed.drop(columns=["weight", "color"]))


@pytest.mark.parametrize(
    ("column", "values", "type_name"),
    [
        ("weight", "heavy", "number"),
        ("color", 1, "category"),
        ("seen", "2024-01-31", "datetime"),
        ("active", "yes", "boolean"),
        ("note", 1.5, "text"),
    ],
)
def test_a_column_of_another_type_is_named(
    column: str, values: object, type_name: str, mixed: pd.DataFrame
) -> None:
    model = train(mixed, LOGISTIC, target="level")
    with pytest.raises(DataError, match=f"column {column} was of the type {type_name}"):
        model.predict(mixed.assign(**{column: values}))


def test_probabilities_are_refused_by_what_has_none(mixed: pd.DataFrame) -> None:
    frame = mixed.drop(columns="level")
    with pytest.raises(ModelError, match="Ridge gives no probabilities"):
        train(frame, RIDGE, target="amount").predict_proba(frame)


def test_a_regression_predicts_numbers(mixed: pd.DataFrame) -> None:
    frame = mixed.drop(columns="level")
    model = train(frame, RIDGE, target="amount")
    assert model.classes is None
    assert problem_kind(model.task, model.classes) == "regression"
    assert model.predict(frame).dtype == np.float64


def test_a_stored_model_predicts_the_same(mixed: pd.DataFrame) -> None:
    import skops.io as sio

    model = train(mixed, LOGISTIC, target="level", drop=["amount"])
    data = sio.dumps(model)
    types = sio.get_untrusted_types(data=data)
    ours = [name for name in types if name.startswith("mlops_assets")]
    assert ours == ["mlops_assets.ml.date_parts.DateParts", "mlops_assets.ml.model.TrainedModel"]
    loaded = sio.loads(data, trusted=types)
    pd.testing.assert_frame_equal(loaded.predict_proba(mixed), model.predict_proba(mixed))


def test_churn_is_predicted_well() -> None:
    from mlops_assets.ml.evaluate import score

    frame = read(DataSpec(uri=CHURN.name, target="churn"), CHURN.parent)
    parts = split(frame, SplitSpec(), target="churn", task="classification")
    spec = LOGISTIC.model_copy(update={"params": {"max_iter": 1000}})
    model = train(parts.train, spec, target="churn", positive_class="Yes")
    assert score(model, parts.test, "roc_auc") >= 0.835
