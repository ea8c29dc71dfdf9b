"""The model card: what a model is and how good it is, as a page of Markdown for people.

Wording only: every number comes from `evaluate`. The form follows Mitchell et al., "Model Cards for
Model Reporting" (2019), in short.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlops_assets.ml.model import TrainedModel
from mlops_assets.spec import PipelineSpec, SplitSpec
from mlops_assets.wording import redacted

_TOP_COLUMNS = 10


def model_card(spec: PipelineSpec, model: TrainedModel, evaluation: Mapping[str, Any]) -> str:
    """Describe a model.

    Parameters
    ----------
    spec
        The pipeline that the model is of.
    model
        The model.
    evaluation
        What `evaluate` returned for it.
    """
    sections = [
        f"# {spec.name}",
        spec.description,
        _purpose(model, evaluation),
        "## Model",
        f"`{spec.model.estimator}` with {_parameters(_params(spec, model))}; features: "
        f"`{spec.model.features}`.",
        "## Data",
        f"`{redacted(spec.data.uri)}`: {model.train_rows:,} rows and {len(model.features)} columns "
        f"to learn from, {evaluation['rows']:,} rows to be judged on. {_division(spec.split)}",
        "## Metrics on the test set",
        _table(("metric", "value"), _rounded(evaluation["metrics"].items())),
        *_gates(spec, evaluation["metrics"]),
        *_classes(evaluation),
        "## What it depends on most",
        f"Loss of {evaluation['importance_metric']} when a column's values are permuted.",
        _table(
            ("column", "loss"),
            _rounded(
                (one["column"], one["mean"])
                for one in evaluation["feature_importance"][:_TOP_COLUMNS]
            ),
        ),
        "## Limits",
        "The metrics hold for rows like those of the test set. Categories that training never saw "
        "count as rare ones, and missing values are filled in. The importance of a column does not "
        "say that it is a cause.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _purpose(model: TrainedModel, evaluation: Mapping[str, Any]) -> str:
    if model.classes is None:
        return f"Predicts the number `{_plain(model.target)}`."
    listed = ", ".join(f"`{_plain(label)}`" for label in model.classes[:20])
    more = f" and {len(model.classes) - 20} more" if len(model.classes) > 20 else ""
    text = f"Predicts which of {len(model.classes)} classes `{_plain(model.target)}` is: {listed}"
    positive = f"; metrics are about `{_plain(model.classes[1])}`"
    return text + more + (positive if evaluation["kind"] == "binary" else "") + "."


def _division(split: SplitSpec) -> str:
    share = f"{split.test_size:.0%}"
    if split.by_time is not None:
        return f"The latest {share} by `{_plain(split.by_time)}` are the test set."
    if split.group is not None:
        return f"About {share} were drawn in whole groups of `{_plain(split.group)}`."
    return f"{share} were drawn at random (seed {split.seed})."


def _params(spec: PipelineSpec, model: TrainedModel) -> dict[str, Any]:
    """Return the parameters that were given, and those that a search has found."""
    own = model.pipeline[-1].get_params()
    return {**spec.model.params, **{name: own[name] for name in spec.tune.space if name in own}}


def _parameters(params: Mapping[str, Any]) -> str:
    if not params:
        return "its default parameters"
    return ", ".join(f"`{name}={_plain(value)}`" for name, value in params.items())


def _gates(spec: PipelineSpec, metrics: Mapping[str, float]) -> list[str]:
    if not spec.evaluate.gates:
        return []
    rows = [
        (str(gate), "passed" if gate.passes(metrics[gate.metric]) else "**failed**")
        for gate in spec.evaluate.conditions
        if gate.metric in metrics
    ]
    return ["## Gates", _table(("gate", "result"), rows)]


def _classes(evaluation: Mapping[str, Any]) -> list[str]:
    if evaluation["classes"] is None:
        return []
    columns = ("class", "precision", "recall", "f1", "support")
    rows = [[one[column] for column in columns] for one in evaluation["per_class"]]
    return ["## Classes", _table(columns, _rounded(rows))]


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _rounded(rows: Iterable[Iterable[object]]) -> list[list[object]]:
    return [
        [f"{cell:.4g}" if isinstance(cell, float) else cell for cell in cells] for cells in rows
    ]


def _plain(value: object) -> str:
    """Keep a name from ending a table's cell or a line of code, and from being a link or a tag."""
    text = " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")
    return text.replace("[", "\\[").replace("<", "&lt;")
