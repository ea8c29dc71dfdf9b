"""The types that a stored model may be made of, beside those that skops itself trusts.

skops trusts plain Python and NumPy values, NumPy's and SciPy's ufuncs and the estimators that
scikit-learn exports. Here are the parts that fitted estimators have beside these, by exact name:
skops only looks at names, it calls nothing and imports nothing before the whole file was checked.
Two of them, the trees, hold indices that scikit-learn follows unchecked; a file only gets that far
when its digest is the one that the run recorded.

To store a model with classes or functions of your own, add their full names here: loading a file
may then create such objects, set their attributes and call their ``__setstate__``.
"""

from __future__ import annotations

_OURS = (
    "mlops_assets.ml.date_parts.DateParts",
    "mlops_assets.ml.model.TrainedModel",
)

# XGBoost's estimators are stored by their attributes. Its Booster is not in the list: its state is
# a memory image, which XGBoost reads unchecked. The function checks what it loads.
_OF_XGBOOST = (
    "mlops_assets.store.boosters.load_booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRFClassifier",
    "xgboost.sklearn.XGBRFRegressor",
    "xgboost.sklearn.XGBRegressor",
)

_PARTS_OF_ESTIMATORS = (
    "numpy.dtype",
    "scipy.sparse._csc.csc_array",
    "scipy.sparse._csc.csc_matrix",
    "scipy.sparse._csr.csr_array",
    "scipy.sparse._csr.csr_matrix",
    "sklearn._loss.loss.HalfTweedieLoss",
    "sklearn._loss.loss.HalfTweedieLossIdentity",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.calibration._TemperatureScaling",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.feature_selection._univariate_selection.chi2",
    "sklearn.feature_selection._univariate_selection.f_classif",
    "sklearn.feature_selection._univariate_selection.f_regression",
    "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
    "sklearn.impute._iterative.IterativeImputer",
    "sklearn.impute._iterative._ImputerTriplet",
    "sklearn.multiclass._ConstantPredictor",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._ball_tree.BallTree32",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neighbors._kd_tree.KDTree32",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils._metadata_requests.MetadataRequest",
    "sklearn.utils._metadata_requests.MethodMetadataRequest",
)

# Parts of SplineTransformer, whose private names depend on the version of SciPy.
SPLINES_OF_SCIPY_1_17 = (
    "scipy._lib.array_api_compat.numpy._aliases.asarray",
    "scipy.interpolate._bsplines.BSpline",
)
SPLINES_OF_SCIPY_1_18 = ("scipy.interpolate._bsplines._BSpline",)

_KERNELS = tuple(
    f"sklearn.gaussian_process.kernels.{name}"
    for name in (
        "CompoundKernel",
        "ConstantKernel",
        "DotProduct",
        "ExpSineSquared",
        "Exponentiation",
        "Matern",
        "PairwiseKernel",
        "Product",
        "RBF",
        "RationalQuadratic",
        "Sum",
        "WhiteKernel",
    )
)

# Not PyFuncDistance, which calls a function.
_DISTANCES = tuple(
    f"sklearn.metrics._dist_metrics.{name}Distance{bits}"
    for name in (
        "BrayCurtis",
        "Canberra",
        "Chebyshev",
        "Dice",
        "Euclidean",
        "Hamming",
        "Haversine",
        "Jaccard",
        "Mahalanobis",
        "Manhattan",
        "Minkowski",
        "RogersTanimoto",
        "RussellRao",
        "SEuclidean",
        "SokalMichener",
        "SokalSneath",
    )
    for bits in (32, 64)
)

_SCORERS = tuple(
    f"sklearn.metrics.{name}"
    for name in (
        "_classification.accuracy_score",
        "_classification.balanced_accuracy_score",
        "_classification.brier_score_loss",
        "_classification.f1_score",
        "_classification.jaccard_score",
        "_classification.log_loss",
        "_classification.matthews_corrcoef",
        "_classification.precision_score",
        "_classification.recall_score",
        "_ranking.average_precision_score",
        "_ranking.roc_auc_score",
        "_regression.explained_variance_score",
        "_regression.max_error",
        "_regression.mean_absolute_error",
        "_regression.mean_absolute_percentage_error",
        "_regression.mean_squared_error",
        "_regression.median_absolute_error",
        "_regression.r2_score",
        "_regression.root_mean_squared_error",
        "_scorer._CurveScorer",
        "_scorer._PassthroughScorer",
        "_scorer._Scorer",
    )
)

TRUSTED_TYPES = (
    *_OURS,
    *_OF_XGBOOST,
    *_PARTS_OF_ESTIMATORS,
    *SPLINES_OF_SCIPY_1_17,
    *SPLINES_OF_SCIPY_1_18,
    *_KERNELS,
    *_DISTANCES,
    *_SCORERS,
)
