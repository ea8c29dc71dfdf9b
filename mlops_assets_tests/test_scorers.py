"""The table of scorers against the installed scikit-learn."""

import warnings

import pytest

from mlops_assets.scorers import SCORERS, Kind, default_metrics, serves

KINDS: tuple[Kind, ...] = ("binary", "multiclass", "regression")
OF_CLUSTERINGS = {
    "adjusted_mutual_info_score",
    "adjusted_rand_score",
    "completeness_score",
    "fowlkes_mallows_score",
    "homogeneity_score",
    "mutual_info_score",
    "normalized_mutual_info_score",
    "rand_score",
    "v_measure_score",
}
OF_SEVERAL_LABELS = {"f1_samples", "jaccard_samples", "precision_samples", "recall_samples"}


@pytest.fixture(scope="module")
def fitted():
    """A tree fitted on each kind of problem, with the data it was fitted on."""
    from sklearn import datasets, tree

    data = {
        "binary": datasets.load_breast_cancer(return_X_y=True),
        "multiclass": datasets.load_iris(return_X_y=True),
        "regression": datasets.load_diabetes(return_X_y=True),
    }
    return {
        kind: (
            (tree.DecisionTreeRegressor if kind == "regression" else tree.DecisionTreeClassifier)(
                max_depth=3, random_state=0
            ).fit(features, target),
            features,
            target,
        )
        for kind, (features, target) in data.items()
    }


def test_the_table_names_all_scorers_but_those_of_clusterings_and_of_several_labels():
    from sklearn.metrics import get_scorer_names

    assert set(SCORERS) == set(get_scorer_names()) - OF_CLUSTERINGS - OF_SEVERAL_LABELS


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_fits_exactly_the_kinds_of_problem_that_it_can_score(fitted, name):
    import numpy
    from sklearn.metrics import get_scorer

    def scores(kind):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                return bool(numpy.isfinite(get_scorer(name)(*fitted[kind])))
            except (ValueError, AttributeError, UserWarning):
                return False

    can_score = tuple(kind for kind in KINDS if scores(kind))
    # Classes that are numbers can be scored like amounts, which says nothing.
    assert SCORERS[name].kinds == (("regression",) if "regression" in can_score else can_score)


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_asks_the_estimator_for_the_methods_that_scikit_learn_asks_for(name):
    from sklearn.metrics import get_scorer

    methods = get_scorer(name)._response_method
    assert SCORERS[name].methods == ((methods,) if isinstance(methods, str) else methods)


@pytest.mark.parametrize("kind", KINDS)
def test_default_metrics_fit_their_kind_and_need_no_probabilities(kind):
    metrics = default_metrics(kind)
    assert metrics
    assert all(kind in SCORERS[name].kinds for name in metrics)
    assert all(serves({"predict", "decision_function"}, name) for name in metrics)


def test_default_metrics_leave_out_what_an_estimator_cannot_be_measured_by():
    assert default_metrics("binary")[0] == "roc_auc"
    assert default_metrics("binary", {"fit", "predict"})[0] == "accuracy"
    assert default_metrics("binary", {"predict", "decision_function"})[0] == "roc_auc"


def test_probabilities_are_needed_where_a_decision_function_is_not_enough():
    assert serves({"decision_function"}, "roc_auc")
    assert not serves({"decision_function"}, "neg_log_loss")
