"""What the estimator and the features function named by a pipeline file must be.

Checked against their source (`mlops_assets.source`), so neither scikit-learn nor the user's module
is imported. Making and training an estimator is `mlops_assets.ml`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_assets import source
from mlops_assets.wording import nearest, shown

if TYPE_CHECKING:
    from mlops_assets.spec import Task

_TASK_OF_MIXIN: dict[str, Task] = {
    "sklearn.base.ClassifierMixin": "classification",
    "sklearn.base.RegressorMixin": "regression",
}
_OTHER_ROLES = {
    "sklearn.base.TransformerMixin": "a transformer",
    "sklearn.base.ClusterMixin": "a clusterer",
    "sklearn.base.BiclusterMixin": "a clusterer",
    "sklearn.base.OutlierMixin": "an outlier detector",
    "sklearn.base.DensityMixin": "a density estimator",
}
_HOLDS_ESTIMATORS = frozenset({"estimator", "estimators", "steps"})
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_MAX_LENGTH = 200
_EXAMPLE = "sklearn.linear_model.LogisticRegression"


def check_estimator(dotted: str) -> source.ClassFacts:
    """Describe an estimator class.

    Parameters
    ----------
    dotted
        Dotted path of a class with `fit` and `predict`, of scikit-learn, another package or the
        user's own module.

    Raises
    ------
    ValueError
        There is no such class, it is not a classifier or regressor, or it cannot be made from the
        plain values of a pipeline file. The message says which and what to give instead.
    """
    not_one = (
        f"{shown(dotted)} is not an estimator: give the dotted path of a classifier or regressor"
    )
    if len(dotted) > _MAX_LENGTH or not _DOTTED.fullmatch(dotted):
        raise ValueError(f"{not_one} class, such as {_EXAMPLE}")
    if source.is_stdlib(dotted):
        raise ValueError(f"{not_one}; this is a part of Python itself")
    with _lookup_explained(dotted, dotted):
        facts = source.class_facts(dotted)
    if facts is None:
        raise ValueError(f"{not_one}; this is not a class")
    if task_of(facts) is None:
        roles = [role for mixin, role in _OTHER_ROLES.items() if mixin in facts.ancestors]
        if roles:
            raise ValueError(f"{not_one}; this is {roles[0]}")
    wrapped = [name for name in facts.parameters.required if name in _HOLDS_ESTIMATORS]
    if wrapped:
        raise ValueError(
            f"{shown(dotted)} is made from other estimators ({', '.join(wrapped)}), which a "
            "pipeline file cannot hold: name a class of your own that makes them"
        )
    missing = [method for method in ("fit", "predict") if method not in facts.attributes]
    if missing:
        raise ValueError(f"{not_one}; this class has no method {' and no '.join(missing)}")
    if task_of(facts) is None and facts.name.startswith("sklearn."):
        raise ValueError(f"{not_one}; this is neither")
    return facts


def task_of(facts: source.ClassFacts) -> Task | None:
    """The task an estimator class is for; None if it does not derive from scikit-learn's mixins."""
    tasks = {task for mixin, task in _TASK_OF_MIXIN.items() if mixin in facts.ancestors}
    return tasks.pop() if len(tasks) == 1 else None


def unknown_parameter(facts: source.ClassFacts, name: str) -> str | None:
    """What to say of a parameter that the constructor does not have; None if it has it."""
    parameters = facts.parameters
    if parameters.accepts_any or name in parameters.names:
        return None
    allowed = (
        f"allowed are {', '.join(sorted(parameters.names))}" if parameters.names else "it has none"
    )
    short = facts.name.rpartition(".")[2]
    return f"{short} has no parameter {shown(name)}{nearest(name, parameters.names)}; {allowed}"


def missing_parameters(facts: source.ClassFacts, given: Collection[str]) -> list[str]:
    """Names of parameters that the constructor requires and that are not given."""
    return [name for name in facts.parameters.required if name not in given]


def check_features(text: str) -> str:
    """Return `module.path:function`, or raise a ValueError if it isn't a function of the user's."""
    expected = "'auto' or module.path:function, a function in a module of your own"
    module, colon, function = text.partition(":")
    dotted = f"{module}.{function}"
    valid = colon and len(text) <= _MAX_LENGTH
    if not valid or not all(part.isidentifier() for part in dotted.split(".")):
        raise ValueError(f"{shown(text)} must be {expected}")
    if source.is_stdlib(module) or _is_library(module):
        raise ValueError(f"{shown(text)} must be {expected}; {module} is a library")
    try:
        with _lookup_explained(dotted, text):
            found = source.resolve(dotted)
    except source.UnresolvedName:  # made at run time, by a decorator or `partial`
        return text
    if isinstance(found, str) or isinstance(found.node, ast.ClassDef):
        raise ValueError(f"{shown(text)} must be {expected}; this is not a function")
    return text


def _is_library(module: str) -> bool:
    """Whether a package installer put the module there; this project counts as the user's own."""
    spec = source.find_module(module)
    installed = spec and spec.origin and source.is_third_party(Path(spec.origin))
    return bool(installed) and module.partition(".")[0] != __package__


@contextmanager
def _lookup_explained(dotted: str, text: str) -> Iterator[None]:
    """Say of a name that is not in the source, written as `text` in the file, what is wrong."""
    try:
        yield
    except source.NotFoundInSource as error:
        raise ValueError(_not_found(dotted, error)) from None
    except source.UnreadableSource as error:
        raise ValueError(f"{shown(text)} cannot be used: {error}") from None


def _not_found(dotted: str, error: source.NotFoundInSource) -> str:
    """Say which part of a dotted path is not there, and what is."""
    parent, _, name = error.missing.rpartition(".")
    hint = nearest(name, (known for known in error.known if not known.startswith("_")))
    if parent:
        return f"{shown(dotted)} was not found: {parent} has no {shown(name)}{hint}"
    return (
        f"{shown(dotted)} was not found: there is no module {shown(name)}{hint}; is it installed?"
    )
