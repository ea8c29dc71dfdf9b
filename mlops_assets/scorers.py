"""The scikit-learn scorers a pipeline file may name, and the problems each of them fits.

A table, so that a file is checked without importing scikit-learn; a test compares it with the
installed one. Computing the scores is `mlops_assets.ml.evaluate`.

Left out are the scorers of clusterings (such as `rand_score`) and of several labels per row
(`f1_samples` and the like): a pipeline predicts one target.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

Kind = Literal["binary", "multiclass", "regression"]

_BINARY: tuple[Kind, ...] = ("binary",)
_CLASSES: tuple[Kind, ...] = ("binary", "multiclass")
_MULTICLASS: tuple[Kind, ...] = ("multiclass",)
_REGRESSION: tuple[Kind, ...] = ("regression",)

_PREDICT = ("predict",)
_RANKING = ("decision_function", "predict_proba")
_PROBABILITIES = ("predict_proba",)


class Scorer(NamedTuple):
    """What a scorer fits: kinds of problem, and the methods of which an estimator needs one."""

    kinds: tuple[Kind, ...]
    methods: tuple[str, ...]


SCORERS: dict[str, Scorer] = {
    "accuracy": Scorer(_CLASSES, _PREDICT),
    "average_precision": Scorer(_CLASSES, _RANKING),
    "balanced_accuracy": Scorer(_CLASSES, _PREDICT),
    "d2_absolute_error_score": Scorer(_REGRESSION, _PREDICT),
    "d2_brier_score": Scorer(_CLASSES, _PROBABILITIES),
    "d2_log_loss_score": Scorer(_CLASSES, _PROBABILITIES),
    "explained_variance": Scorer(_REGRESSION, _PREDICT),
    "f1": Scorer(_BINARY, _PREDICT),
    "f1_macro": Scorer(_CLASSES, _PREDICT),
    "f1_micro": Scorer(_CLASSES, _PREDICT),
    "f1_weighted": Scorer(_CLASSES, _PREDICT),
    "jaccard": Scorer(_BINARY, _PREDICT),
    "jaccard_macro": Scorer(_CLASSES, _PREDICT),
    "jaccard_micro": Scorer(_CLASSES, _PREDICT),
    "jaccard_weighted": Scorer(_CLASSES, _PREDICT),
    "matthews_corrcoef": Scorer(_CLASSES, _PREDICT),
    "neg_brier_score": Scorer(_CLASSES, _PROBABILITIES),
    "neg_log_loss": Scorer(_CLASSES, _PROBABILITIES),
    "neg_max_error": Scorer(_REGRESSION, _PREDICT),
    "neg_mean_absolute_error": Scorer(_REGRESSION, _PREDICT),
    "neg_mean_absolute_percentage_error": Scorer(_REGRESSION, _PREDICT),
    "neg_mean_gamma_deviance": Scorer(_REGRESSION, _PREDICT),
    "neg_mean_poisson_deviance": Scorer(_REGRESSION, _PREDICT),
    "neg_mean_squared_error": Scorer(_REGRESSION, _PREDICT),
    "neg_mean_squared_log_error": Scorer(_REGRESSION, _PREDICT),
    "neg_median_absolute_error": Scorer(_REGRESSION, _PREDICT),
    "neg_negative_likelihood_ratio": Scorer(_BINARY, _PREDICT),
    "neg_root_mean_squared_error": Scorer(_REGRESSION, _PREDICT),
    "neg_root_mean_squared_log_error": Scorer(_REGRESSION, _PREDICT),
    "positive_likelihood_ratio": Scorer(_BINARY, _PREDICT),
    "precision": Scorer(_BINARY, _PREDICT),
    "precision_macro": Scorer(_CLASSES, _PREDICT),
    "precision_micro": Scorer(_CLASSES, _PREDICT),
    "precision_weighted": Scorer(_CLASSES, _PREDICT),
    "r2": Scorer(_REGRESSION, _PREDICT),
    "recall": Scorer(_BINARY, _PREDICT),
    "recall_macro": Scorer(_CLASSES, _PREDICT),
    "recall_micro": Scorer(_CLASSES, _PREDICT),
    "recall_weighted": Scorer(_CLASSES, _PREDICT),
    "roc_auc": Scorer(_BINARY, _RANKING),
    "roc_auc_ovo": Scorer(_CLASSES, _PROBABILITIES),
    "roc_auc_ovo_weighted": Scorer(_CLASSES, _PROBABILITIES),
    "roc_auc_ovr": Scorer(_CLASSES, _PROBABILITIES),
    "roc_auc_ovr_weighted": Scorer(_CLASSES, _PROBABILITIES),
    # With two classes the top two are always right.
    "top_k_accuracy": Scorer(_MULTICLASS, _RANKING),
}

_DEFAULTS: dict[Kind, tuple[str, ...]] = {
    "binary": ("roc_auc", "average_precision", "accuracy", "balanced_accuracy", "f1"),
    "multiclass": ("accuracy", "balanced_accuracy", "f1_macro"),
    "regression": ("r2", "neg_root_mean_squared_error", "neg_mean_absolute_error"),
}


def default_metrics(kind: Kind, methods: Collection[str] | None = None) -> list[str]:
    """Metrics for a pipeline that names none; the first one decides on promotion.

    Parameters
    ----------
    kind
        What is predicted.
    methods
        The estimator's methods: metrics that it cannot be measured by are left out. By default
        none is left out.
    """
    return [name for name in _DEFAULTS[kind] if methods is None or serves(methods, name)]


def serves(methods: Collection[str], name: str) -> bool:
    """Whether an estimator with these methods can be measured by a scorer."""
    return not set(SCORERS[name].methods).isdisjoint(methods)
