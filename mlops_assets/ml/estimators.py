"""Making the estimator that a pipeline file names, and telling what kind of estimator it is.

The only place that imports code by the name a user wrote; what the class refuses becomes a
`ModelError` in the terms of the pipeline file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from mlops_assets.errors import ModelError
from mlops_assets.spec import ModelSpec, Task

# splits at thresholds, so that neither the scale of a number nor the order of codes matters
_TREE_MODULES = ("sklearn.tree.", "sklearn.ensemble.", "xgboost.", "lightgbm.", "catboost.")

# in XGBoost's errors, which are ValueErrors, whatever their reason is
_OF_A_GPU = re.compile(r"\bcudaError[A-Z]|\bCUDA error|\bCUDA out of memory")


def build_estimator(model: ModelSpec, seed: int) -> Any:
    """Make the unfitted estimator of a pipeline file.

    Parameters
    ----------
    model
        Names the class and its parameters.
    seed
        Becomes `random_state` if the class has this parameter and the file does not set it.

    Raises
    ------
    ModelError
        The class cannot be imported, or refuses its parameters.
    """
    estimator = import_name(model.estimator, "model.estimator")
    params = dict(model.params)
    if "random_state" in inspect.signature(estimator).parameters:
        params.setdefault("random_state", seed)
    with refusals_explained(model):
        made = estimator(**params)
        # XGBoost's constructors take it among their keywords
        if "random_state" not in params and "random_state" in parameters_of(made):
            made.set_params(random_state=seed)
    return made


def parameters_of(estimator: Any) -> dict[str, Any]:
    """Return the parameters of an estimator; none if it does not tell."""
    return estimator.get_params(deep=False) if hasattr(estimator, "get_params") else {}


def import_name(dotted: str, field: str) -> Any:
    """Import what a field of the pipeline file names as ``module.name``.

    Raises
    ------
    ModelError
        There is no such module, or no such name in it.
    """
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except Exception as error:  # a module may do anything when it is imported
        raise ModelError(f"{field}: {dotted} cannot be imported: {_told(error)}") from error


@contextmanager
def refusals_explained(model: ModelSpec) -> Iterator[None]:
    """Say which field of the pipeline file to change when its code refuses the input or fails.

    Other errors, such as those of files, of memory and of a GPU, may pass by themselves and stay as
    they are.
    """
    try:
        yield
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        if _OF_A_GPU.search(str(error)):
            raise
        message = _told(error)
        named = re.search(r"[Tt]he '(\w+)' parameter of|argument '(\w+)'", message)
        param = next(filter(None, named.groups()), None) if named else None
        field, code = "model.estimator", model.estimator
        if param is not None:
            field = f"model.params.{param}"
        elif model.features != "auto":
            field, code = "model.features", f"{model.features} or {model.estimator} after it"
        raise ModelError(f"{field}: {code} refused: {message}") from error


def _told(error: Exception) -> str:
    """Return the error's message on one line, with its kind where the message alone says little."""
    text, *_ = str(error).split("\nStack trace:")  # of XGBoost's C++
    message = " ".join(text.split())[:500]
    speaks = isinstance(error, TypeError | ValueError | ArithmeticError | ImportError)
    return message if speaks else f"{type(error).__name__}: {message}"


def estimator_task(model: ModelSpec, estimator: Any) -> Task | None:
    """Tell what the estimator is made for; None if it does not say.

    Raises
    ------
    ModelError
        It depends on another estimator that it was not given.
    """
    from sklearn.base import is_classifier, is_regressor
    from sklearn.utils import get_tags

    try:
        get_tags(estimator)
    except AttributeError as error:
        raise ModelError(
            f"model.estimator: {model.estimator} is made from another estimator, which a pipeline "
            "file cannot hold; choose one that stands alone"
        ) from error
    if is_classifier(estimator):
        return "classification"
    return "regression" if is_regressor(estimator) else None


def is_tree_based(estimator: Any) -> bool:
    """Whether the estimator is a decision tree or an ensemble of them."""
    return any(f"{cls.__module__}.".startswith(_TREE_MODULES) for cls in type(estimator).__mro__)
