"""Which estimators and features functions a pipeline may name."""

from inspect import signature

import pytest
from sklearn.utils import all_estimators

from mlops_assets.estimators import (
    check_estimator,
    check_features,
    missing_parameters,
    task_of,
    unknown_parameter,
)


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Write a module of the user's own under a name that no other test uses."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_{abs(hash(request.node.nodeid))}"

    def write(text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.mark.parametrize(
    ("role", "task"), [("classifier", "classification"), ("regressor", "regression")]
)
def test_every_predictor_of_scikit_learn_is_accepted_unless_it_needs_other_estimators(role, task):
    predictors = all_estimators(type_filter=role)
    assert len(predictors) > 40
    for name, cls in predictors:
        try:
            facts = check_estimator(f"{cls.__module__}.{name}")
        except ValueError as error:
            refusal = str(error)
        else:
            assert task_of(facts) == task
            continue
        assert "is made from other estimators" in refusal
        assert {"estimator", "estimators"} & set(signature(cls).parameters)


@pytest.mark.parametrize(
    ("dotted", "why"),
    [
        ("", "give the dotted path of a classifier or regressor class, such as sklearn."),
        ("RandomForestClassifier", "give the dotted path"),
        ("sklearn.svm.", "give the dotted path"),
        ("sklearn..SVC", "give the dotted path"),
        ("sklearn.svm.SVC()", "give the dotted path"),
        ("a." * 5000 + "b", "give the dotted path"),
        ("os.system", "a part of Python itself"),
        ("subprocess.Popen", "a part of Python itself"),
        ("builtins.eval", "a part of Python itself"),
        ("__main__.Model", "was not found"),
        ("sklearn.svm.SVCC", "sklearn.svm has no 'SVCC' (did you mean 'SVC'?)"),
        ("sklearn.ensembel.X", "sklearn has no 'ensembel' (did you mean 'ensemble'?)"),
        ("sklern.svm.SVC", "there is no module 'sklern' (did you mean 'sklearn'?)"),
        ("sklearn.svm", "this is not a class"),
        ("sklearn.datasets.load_iris", "this is not a class"),
        ("sklearn.preprocessing.StandardScaler", "this is a transformer"),
        ("sklearn.cluster.KMeans", "this is a transformer"),
        ("sklearn.cluster.DBSCAN", "this is a clusterer"),
        ("sklearn.ensemble.IsolationForest", "this is an outlier detector"),
        ("sklearn.mixture.GaussianMixture", "this is a density estimator"),
        ("sklearn.base.ClassifierMixin", "no method fit and no predict"),
        ("sklearn.base.BaseEstimator", "no method fit and no predict"),
        ("sklearn.ensemble.VotingClassifier", "is made from other estimators (estimators)"),
        ("sklearn.model_selection.GridSearchCV", "is made from other estimators (estimator)"),
        ("sklearn.pipeline.Pipeline", "is made from other estimators (steps)"),
        ("fsspec.AbstractFileSystem", "no method fit"),
    ],
)
def test_what_is_no_estimator_is_refused_with_the_reason(dotted, why):
    with pytest.raises(ValueError, match=r"^'") as caught:
        check_estimator(dotted)
    assert why in str(caught.value)


OWN = """
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import Ridge

class Mine(ClassifierMixin, BaseEstimator):
    def __init__(self, *, depth, alpha=1): ...
    def fit(self, X, y): ...
    def predict(self, X): ...

class Shifted(Ridge): ...

class Plain:
    def __init__(self, **anything): ...
    def fit(self, X, y): ...
    def predict(self, X): ...

try:
    from sklearn.base import ClassifierMixin as Mixin
except ImportError:
    Mixin = object

class Boosted(Plain, Mixin):
    def __init__(self, *, rounds=10, **more): ...

def make_features(frame): ...
Number = 3
"""


def test_a_class_of_the_users_own_is_accepted_with_its_own_parameters(module):
    facts = check_estimator(f"{module(OWN)}.Mine")
    assert task_of(facts) == "classification"
    assert unknown_parameter(facts, "depth") is None
    assert "did you mean 'depth'?" in unknown_parameter(facts, "deph")
    assert missing_parameters(facts, {"alpha": 1}) == ["depth"]


def test_a_class_derived_from_scikit_learns_has_its_task_and_parameters(module):
    facts = check_estimator(f"{module(OWN)}.Shifted")
    assert task_of(facts) == "regression"
    assert unknown_parameter(facts, "alpha") is None
    assert "no parameter 'Alpha' (did you mean 'alpha'?)" in unknown_parameter(facts, "Alpha")


def test_a_class_that_takes_any_parameter_and_has_no_mixin_is_accepted(module):
    facts = check_estimator(f"{module(OWN)}.Plain")
    assert task_of(facts) is None
    assert unknown_parameter(facts, "whatever") is None


def test_a_mixin_that_is_imported_only_if_installed_tells_the_task(module):
    facts = check_estimator(f"{module(OWN)}.Boosted")
    assert task_of(facts) == "classification"
    assert facts.parameters == (("rounds",), (), True)


def test_a_features_function_of_the_users_own_is_accepted(module):
    text = f"{module(OWN)}:make_features"
    assert check_features(text) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must be 'auto' or module.path:function"),
        ("{}.make_features", "must be 'auto' or module.path:function"),
        ("{}:", "must be 'auto'"),
        (":make_features", "must be 'auto'"),
        ("{}:make_features()", "must be 'auto'"),
        ("{}:a:b", "must be 'auto'"),
        ("a." * 5000 + "a:b", "must be 'auto'"),
        ("{}:make_feature", "has no 'make_feature' (did you mean 'make_features'?)"),
        ("{}_:make_features", "there is no module"),
        ("{}:Mine", "this is not a function"),
        ("os:system", "os is a library"),
        ("builtins:eval", "builtins is a library"),
        ("sklearn.preprocessing:scale", "sklearn.preprocessing is a library"),
        ("numpy.random.mtrand:beta", "numpy.random.mtrand is a library"),
    ],
)
def test_what_is_no_features_function_of_the_users_own_is_refused(module, text, why):
    with pytest.raises(ValueError, match=r"^'") as caught:
        check_features(text.format(module(OWN)))
    assert why in str(caught.value)


@pytest.mark.parametrize(("check", "separator"), [(check_estimator, "."), (check_features, ":")])
def test_a_broken_module_of_the_users_own_is_named_with_its_line(module, check, separator):
    name = module("x = 1\ndef broken(:")
    with pytest.raises(ValueError, match=r"cannot be used: .*cannot be read as Python.*line 2"):
        check(f"{name}{separator}broken")
