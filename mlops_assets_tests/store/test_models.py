"""Models there and back: every classifier and regressor of scikit-learn, and nothing crafted."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from scipy import sparse  # type: ignore[import-untyped]
from sklearn import ensemble, linear_model, neighbors, neural_network, svm
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest
from sklearn.gaussian_process import GaussianProcessRegressor, kernels
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    OrdinalEncoder,
    SplineTransformer,
    StandardScaler,
    TargetEncoder,
)
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import all_estimators

from mlops_assets.errors import StoreError
from mlops_assets.store.codecs import codec_for
from mlops_assets.store.models import SkopsCodec
from mlops_assets.store.trusted_types import (
    SPLINES_OF_SCIPY_1_17,
    SPLINES_OF_SCIPY_1_18,
    TRUSTED_TYPES,
)

ROWS = 24
X = np.random.default_rng(0).random((ROWS, 4)).round(2)
CLASSES = np.arange(ROWS) % 2
NUMBERS = X @ [1.0, 2.0, 3.0, 4.0] + 1
TWO_TARGETS = {
    "MultiOutput",
    "ClassifierChain",
    "RegressorChain",
    "MultiTask",
    "CCA",
    "PLSCanonical",
}


def content_of(model: object) -> bytes:
    """The bytes that a model is stored as."""
    file = io.BytesIO()
    SkopsCodec().write(model, file)
    return file.getvalue()


def load(content: bytes, folder: Path) -> Any:
    """The model that bytes are loaded as."""
    file = folder / "model.skops"
    file.write_bytes(content)
    return SkopsCodec().read(file, None)


def built(name: str, kind: str, estimator: type) -> Any:
    """An estimator with the arguments that it insists on, and small enough for a test."""
    inner: Any = linear_model.LogisticRegression() if kind == "classifier" else linear_model.Ridge()
    if name.startswith(("Stacking", "Voting")):
        model = estimator([("a", inner), ("b", inner)])
    elif name.endswith("SearchCV"):
        grid = {"C": [1, 2]} if kind == "classifier" else {"alpha": [1, 2]}
        model = estimator(inner, grid, **({"n_iter": 2} if "Random" in name else {}))
    else:
        try:
            model = estimator()
            if name == "SelfTrainingClassifier":
                model = estimator(inner)
        except TypeError:
            model = estimator(inner)
    small = {"n_estimators": 3, "max_iter": 20, "random_state": 0, "reg_param": 0.1, "cv": 2}
    if name == "OrthogonalMatchingPursuitCV":
        small["max_iter"] = 3
    if name.startswith("Radius"):
        small["radius"] = 10
    names = model.get_params(deep=False)
    return model.set_params(**{key: value for key, value in small.items() if key in names})


def data_for(name: str, kind: str) -> tuple[Any, Any]:
    features = X[:, :1] if name == "IsotonicRegression" else X
    if name == "CategoricalNB":
        features = (X > 0.5).astype(int)
    target: Any = CLASSES if kind == "classifier" else NUMBERS
    if any(name.startswith(start) for start in TWO_TARGETS):
        target = np.column_stack([target, target[::-1]])
    return features, target


@functools.cache
def fitted(name: str, kind: str) -> tuple[Any, Any]:
    estimator = dict(all_estimators(kind))[name]
    features, target = data_for(name, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return built(name, kind, estimator).fit(features, target), features


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for kind in ("classifier", "regressor") for name, _ in all_estimators(kind)],
)
def test_every_estimator_comes_back_with_the_same_predictions(
    name: str, kind: str, tmp_path: Path
) -> None:
    model, features = fitted(name, kind)
    content = content_of(model)
    back = load(content, tmp_path)
    assert content_of(back) == content
    np.testing.assert_allclose(back.predict(features), model.predict(features), rtol=1e-12)


VARIANTS = {
    "boosting": ensemble.HistGradientBoostingClassifier(max_iter=3, early_stopping=True),
    "gamma": ensemble.HistGradientBoostingRegressor(loss="gamma", max_iter=3),
    "exponential": ensemble.GradientBoostingClassifier(loss="exponential", n_estimators=2),
    "first guess": ensemble.GradientBoostingClassifier(init=linear_model.LogisticRegression()),
    "own random state": ensemble.RandomForestClassifier(2, random_state=np.random.RandomState(0)),
    "class weights": svm.SVC(class_weight={0: 1, 1: 2.5}),
    "isotonic": CalibratedClassifierCV(method="isotonic", cv=2),
    "temperature": CalibratedClassifierCV(method="temperature", cv=2),
    "sgd": neural_network.MLPClassifier(solver="sgd", max_iter=3),
    "lbfgs": neural_network.MLPClassifier(solver="lbfgs", max_iter=3),
    "ball tree": neighbors.KNeighborsClassifier(algorithm="ball_tree", metric="manhattan"),
    "kd tree": neighbors.KNeighborsClassifier(algorithm="kd_tree", p=3),
    "cosine": neighbors.KNeighborsClassifier(metric="cosine"),
    "kernels": GaussianProcessRegressor(
        kernels.RBF() + kernels.WhiteKernel() * kernels.Matern() + kernels.RationalQuadratic() ** 2
    ),
    "tweedie": linear_model.TweedieRegressor(power=1.5),
    "scorer": linear_model.LogisticRegressionCV(
        scoring="roc_auc", cv=2, use_legacy_attributes=False
    ),
    **{
        loss: linear_model.SGDClassifier(loss=loss, random_state=0)
        for loss in ("hinge", "log_loss", "modified_huber", "squared_hinge", "huber")
    },
    "pipeline": make_pipeline(
        ColumnTransformer(
            [
                ("number", make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), [0]),
                ("bins", KBinsDiscretizer(2), [1]),
                ("spline", SplineTransformer(3), [1]),
                ("one hot", OneHotEncoder(handle_unknown="infrequent_if_exist"), [2]),
                ("codes", OrdinalEncoder(), [2]),
                ("target", TargetEncoder(), [3]),
                ("log", FunctionTransformer(np.log1p), slice(0, 2)),
            ]
        ),
        SelectKBest(k=3),
        linear_model.LogisticRegression(),
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_parts_that_options_bring_in_come_back_too(model: Any, tmp_path: Path) -> None:
    target = NUMBERS if "Regressor" in type(model).__name__ else CLASSES
    model.fit(X, target)
    content = content_of(model)
    back = load(content, tmp_path)
    assert content_of(back) == content
    np.testing.assert_allclose(back.predict(X), model.predict(X), rtol=1e-12)


def test_text_features_come_back(tmp_path: Path) -> None:
    texts = ["good service", "bad line", "good line"] * 4
    model = make_pipeline(TfidfVectorizer(), linear_model.LogisticRegression())
    model.fit(texts, [1, 0, 1] * 4)
    back = load(content_of(model), tmp_path)
    assert list(back.predict(texts)) == list(model.predict(texts))


FIT_AND_DIGEST = """
import hashlib, io, sys, numpy as np
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.pipeline import make_pipeline
from mlops_assets.store.models import SkopsCodec

texts = ["a b", "b c", "c d", "d a"] * 5
forest = RandomForestClassifier(5, random_state=0)
models = [("a", forest), ("b", GradientBoostingClassifier(random_state=0))]
vectorizer = CountVectorizer(stop_words=["x", "y", "z"], token_pattern="[a-z]")
model = make_pipeline(vectorizer, VotingClassifier(models)).fit(texts, [0, 1, 1, 0] * 5)
model.extra = {"beta", "alpha", "gamma", ("a", 1)}
file = io.BytesIO()
SkopsCodec().write(model, file)
print(hashlib.sha256(file.getvalue()).hexdigest())
"""


def test_equal_models_give_equal_bytes_in_every_process() -> None:
    digests = set()
    for seed, fill in (("1", "7"), ("2", "165")):  # glibc fills fresh memory with the second one
        environment = {**os.environ, "PYTHONHASHSEED": seed, "MALLOC_PERTURB_": fill}
        command = [sys.executable, "-c", FIT_AND_DIGEST]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


class Holder(BaseEstimator):  # type: ignore[misc] # scikit-learn is untyped
    """An estimator with whatever attributes a test needs."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


OF_HOLDER = f"{Holder.__module__}.{Holder.__qualname__}"


@pytest.fixture
def holder_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_assets.store.models.TRUSTED_TYPES", (*TRUSTED_TYPES, OF_HOLDER))


@pytest.mark.usefixtures("holder_is_trusted")
def test_shared_and_odd_attributes_come_back(tmp_path: Path) -> None:
    array = np.arange(3.0)
    shared = {"array": array, "file": 1, "__loader__": "x", "__id__": 2, "__class__": 3}
    model = Holder(
        one=shared,
        two=shared,
        array=array,
        numbers={1: "a", 2.5: "b", np.int64(3): "c"},
        ordered=OrderedDict(b=1, a=2),
        empty=[(), {}, [], "", None, b"", set()],
        objects=np.array(["a", None, 1.5], dtype=object),
        sparse=sparse.csr_matrix(np.zeros((1000, 1000))),
        raw=b"\0\xff",
        mixed={"b", "a", 3},
    )
    content = content_of(model)
    back = load(content, tmp_path)
    assert back.one is back.two
    assert back.one["array"] is back.array
    assert {**back.one, "array": 0} == {**shared, "array": 0}
    assert back.numbers == model.numbers
    assert list(back.ordered.items()) == [("b", 1), ("a", 2)]
    assert (back.empty, back.raw, back.mixed) == (model.empty, model.raw, model.mixed)
    assert back.objects.tolist() == ["a", None, 1.5]
    assert back.sparse.shape == (1000, 1000)
    assert content_of(back) == content


@pytest.mark.usefixtures("holder_is_trusted")
@pytest.mark.parametrize("key", [True, None, np.bool_(False)])
def test_keys_that_would_change_are_refused(key: Any) -> None:
    with pytest.raises(StoreError, match="keys True, False or None"):
        content_of(Holder(weights={key: 1}))


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.usefixtures("holder_is_trusted")
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (os.system, "system"),
        (lambda x: x, "<lambda>"),
        (functools.partial(eval, "1"), "eval"),
        (subprocess.Popen, "Popen"),
        (Path("x"), "Path"),
        (iter([1]), "list_iterator"),
        ({(1, 2): 3}, "cannot be stored"),
        (circular(), "recursion"),
    ],
)
def test_a_model_with_other_parts_is_refused_when_it_is_written(value: Any, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        content_of(Holder(part=value))


def test_a_type_that_is_not_trusted_is_named_with_the_place_to_add_it() -> None:
    with pytest.raises(StoreError, match=r"test_models\.Holder.*TRUSTED_TYPES.*trusted_types\.py"):
        content_of(Holder())


@pytest.mark.parametrize(
    "planted",
    [os.system, eval, subprocess.Popen, functools.partial(print, 1), Path("x"), Holder()],
    ids=["function", "builtin", "class", "partial", "object", "estimator"],
)
def test_a_file_with_a_type_that_is_not_trusted_is_refused_by_name(
    planted: Any, tmp_path: Path
) -> None:
    crafted = skops.io.dumps({"a": [planted]})
    with pytest.raises(StoreError, match=r"Untrusted types found.*TRUSTED_TYPES"):
        load(crafted, tmp_path)


def test_nothing_in_a_file_is_ever_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    with pytest.raises(StoreError):
        load(pickle.dumps(Bomb()), tmp_path)
    array = np.empty(1, dtype=object)
    array[0] = Bomb()
    pickled = io.BytesIO()
    np.save(pickled, array, allow_pickle=True)
    npz = io.BytesIO()
    np.savez(npz, format=array, data=array)
    honest = skops.io.dumps([np.zeros(2), sparse.csr_matrix(np.zeros((2, 2)))])
    crafted = {".npy": pickled.getvalue(), ".npz": npz.getvalue()}
    for suffix, content in crafted.items():
        with pytest.raises(StoreError):
            load(replaced(honest, suffix, content), tmp_path)
    assert not (tmp_path / "exploded").exists()


def replaced(content: bytes, suffix: str, member: bytes) -> bytes:
    """A skops file with other content in the members of a kind."""
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(output, "w") as new:
        for name in old.namelist():
            new.writestr(name, member if name.endswith(suffix) else old.read(name))
    return output.getvalue()


def test_a_zip_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b" " * 100_000_000)
    with pytest.raises(StoreError, match="would inflate from"):
        load(output.getvalue(), tmp_path)


def test_an_array_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**45,)}
    )
    honest = skops.io.dumps([np.zeros(2)])
    with pytest.raises(StoreError):
        load(replaced(honest, ".npy", header.getvalue()), tmp_path)


@pytest.mark.parametrize(
    "schema",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"[" * 100_000,
        json.dumps({"protocol": 2}).encode(),
        json.dumps({"protocol": 99, "__loader__": "ListNode"}).encode(),
        json.dumps(
            {"protocol": 2, "__loader__": "NoNode", "__class__": "a", "__module__": "b"}
        ).encode(),
    ],
)
def test_a_broken_schema_is_refused(schema: bytes, tmp_path: Path) -> None:
    honest = skops.io.dumps([1])
    with pytest.raises(StoreError):
        load(replaced(honest, ".json", schema), tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    content = content_of(linear_model.Ridge().fit(X, NUMBERS))
    for end in range(0, len(content), len(content) // 40):
        with pytest.raises(StoreError):
            load(content[:end], tmp_path)


def test_our_model_is_stored_without_the_store_knowing_it(tmp_path: Path) -> None:
    from mlops_assets.ml.model import TrainedModel

    pipeline = make_pipeline(StandardScaler(), DecisionTreeClassifier(max_depth=2)).fit(X, CLASSES)
    model = TrainedModel(
        pipeline=pipeline,
        task="classification",
        target="churn",
        classes=["No", "Yes"],
        features={"age": "number"},
        train_rows=ROWS,
    )
    content = content_of(model)
    back = load(content, tmp_path)
    assert codec_for(model).extension == "skops"
    assert (back.task, back.target, back.classes) == (model.task, model.target, model.classes)
    assert back.features == model.features
    assert list(back.pipeline.predict(X)) == list(pipeline.predict(X))
    assert hashlib.sha256(content_of(back)).digest() == hashlib.sha256(content).digest()
    assert SkopsCodec().write(model, io.BytesIO()) == {
        "class": "mlops_assets.ml.model.TrainedModel"
    }


def test_every_trusted_name_exists_and_none_is_listed_twice() -> None:
    import importlib

    import scipy

    of_another_scipy = (
        SPLINES_OF_SCIPY_1_18 if scipy.__version__.startswith("1.17.") else SPLINES_OF_SCIPY_1_17
    )
    for name in set(TRUSTED_TYPES) - set(of_another_scipy):
        module, _, attribute = name.rpartition(".")
        if not name.startswith("sklearn.impute._iterative"):
            assert hasattr(importlib.import_module(module), attribute), name
    assert len(set(TRUSTED_TYPES)) == len(TRUSTED_TYPES)
