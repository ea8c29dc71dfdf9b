"""From columns to numbers: the transformer in front of the estimator.

Either `auto_features`, or what the user's function of the training frame returns. Only
scikit-learn's own transformers and `date_parts.DateParts` take part, so that a stored model needs
no code but theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlops_assets.errors import DataError, ModelError
from mlops_assets.ml.estimators import import_name, is_tree_based, refusals_explained
from mlops_assets.ml.schema import schema_of
from mlops_assets.spec import ColumnType, ModelSpec

if TYPE_CHECKING:
    import pandas as pd

_MOST_CATEGORIES = 30


def build_features(frame: pd.DataFrame, model: ModelSpec, estimator: Any) -> Any:
    """Make the unfitted transformer that a pipeline file asks for.

    Parameters
    ----------
    frame
        The training set's features (no target).
    model
        Its `features` is ``auto`` or ``module.path:function``.
    estimator
        The unfitted estimator that gets the numbers.

    Raises
    ------
    ModelError
        The function cannot be imported, fails, or returns something else than a transformer.
    DataError
        No column is usable as a feature.
    """
    if model.features == "auto":
        return auto_features(frame, estimator)
    function = import_name(model.features.replace(":", "."), "model.features")
    if not callable(function):
        raise ModelError(f"model.features: {model.features} is no function")
    with refusals_explained(model):
        transformer = function(frame)
    if not (hasattr(transformer, "fit") and hasattr(transformer, "transform")):
        raise ModelError(
            f"model.features: {model.features} returned a {type(transformer).__name__}; it must "
            "return a scikit-learn transformer, which has fit and transform"
        )
    return transformer


def auto_features(frame: pd.DataFrame, estimator: Any) -> Any:
    """Choose a transformer by the columns' types and what the estimator profits from.

    ========  ================================  ================================================
    column    trees and ensembles of trees      other estimators
    ========  ================================  ================================================
    number    median imputed, missing flagged   the same, standardised; scaled to [0, 1] where
                                                nothing negative is allowed; in 10 bins where
                                                only codes are (CategoricalNB)
    boolean   most frequent value imputed       the same
    datetime  `DateParts` as numbers            the same, as numbers
    category  codes, unknown and missing -1     one-hot; beyond 30 categories the rarest share
                                                a column, which is also that of unknown ones
    text      left out                          left out
    ========  ================================  ================================================

    Constant columns are left out.

    Parameters
    ----------
    frame
        The training set's features, with the dtypes of `read`.
    estimator
        An unfitted scikit-learn compatible estimator.

    Returns
    -------
    sklearn.compose.ColumnTransformer
        Unfitted; its output is dense float64.

    Raises
    ------
    DataError
        No column is left.
    """
    from sklearn.compose import ColumnTransformer

    types = schema_of(frame)
    encoders = _encoders(estimator)
    columns = {
        kind: [name for name in types if types[name] == kind and _varies(frame[name])]
        for kind in encoders
    }
    if not any(columns.values()):
        described = ", ".join(f"{name} ({kind})" for name, kind in list(types.items())[:10])
        raise DataError(
            "no column can serve as a feature: constant columns and free text are left out; the "
            f"columns are {described or 'none but the target and dropped ones'}"
        )
    return ColumnTransformer(
        [(kind, encoders[kind], names) for kind, names in columns.items() if names],
        sparse_threshold=0,
    )


def _varies(column: pd.Series) -> bool:
    # a missing category is one of its own
    return bool(column.nunique(dropna=column.dtype != "category") > 1)


def _encoders(estimator: Any) -> dict[ColumnType, Any]:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    from mlops_assets.ml.date_parts import DateParts

    one_hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist", max_categories=_MOST_CATEGORIES, sparse_output=False
    )
    codes = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1
    )
    return {
        "number": _number_encoder(estimator),
        "boolean": SimpleImputer(strategy="most_frequent"),
        "datetime": make_pipeline(DateParts(), _number_encoder(estimator)),
        "category": codes if is_tree_based(estimator) else one_hot,
    }


def _number_encoder(estimator: Any) -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import KBinsDiscretizer, MinMaxScaler, StandardScaler
    from sklearn.utils import get_tags

    accepts = get_tags(estimator).input_tags
    imputer = SimpleImputer(strategy="median", add_indicator=True)
    if is_tree_based(estimator):
        return imputer
    if accepts.positive_only and accepts.categorical:
        bins = KBinsDiscretizer(n_bins=10, encode="ordinal", strategy="uniform")
        return make_pipeline(SimpleImputer(strategy="median"), bins)
    # clipped: a value below all of the training set's would become negative
    scaler = MinMaxScaler(clip=True) if accepts.positive_only else StandardScaler()
    return make_pipeline(imputer, scaler)
