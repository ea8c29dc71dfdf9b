"""The stages of a pipeline as computations: what each reads, makes, and is decided by.

The assets are made from this, and so is the plan, so that both always mean the same. Nothing here
knows Dagster: a plan is made without it. What a stage does is `mlops_assets.assets` and
`mlops_assets.ml`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlops_assets.code_version import Code, code_of, look_again
from mlops_assets.store.memo import Outside, Seen

if TYPE_CHECKING:
    from mlops_assets.spec import PipelineSpec

Look = Callable[[Outside, str | None], Mapping[str, Seen]]
"""What a computation reads that is no asset, for the partition that it is about."""

_MODULES = "mlops_assets.assets"


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    Parameters
    ----------
    name : str
        Of the step: `split`.
    outputs, inputs : tuple of str
        Assets that it makes and reads, as in `churn/train`.
    parameters : mapping of str to JSON value
        The fields of the pipeline file that it reads.
    begins_with : tuple of str
        Modules and names from which its code is found.
    recompute : bool
        Whether it runs every time, whatever was computed before.
    look : callable
        Says what the stage reads that is no asset of the pipeline, for a partition or for None.
    """

    name: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    parameters: Mapping[str, Any]
    begins_with: tuple[str, ...]
    recompute: bool
    look: Look = field(default=lambda _outside, _partition: {})
    code: Code = field(init=False)

    def __post_init__(self) -> None:
        """Keep the code as it is now, which is the code that this process runs."""
        object.__setattr__(self, "code", code_of(self.parameters, self.begins_with))

    def is_current(self) -> bool:
        """Whether the source on disk is still what it was when the stage was made.

        A process imports modules when they are first used: after an edit it may run other code than
        it was started with.
        """
        look_again()
        return code_of(self.parameters, self.begins_with).version == self.code.version


def stages(spec: PipelineSpec) -> dict[str, Stage]:
    """Return the stages of training by name, in the order in which they run."""
    data, model, split = spec.data, spec.model, spec.split
    judged = {
        "evaluate": spec.evaluate.model_dump(),
        "promote.by": spec.promote.by,
    }
    made = [
        _stage(
            spec,
            "raw",
            reads=["source"],
            parameters={"data": data.model_dump(exclude={"positive_class"})},
            look=lambda outside, _: {f"{spec.name}/source": source_seen(spec, outside)},
        ),
        _stage(
            spec,
            "split",
            makes=["train", "test"],
            reads=["raw"],
            parameters={
                "split": split.model_dump(),
                "data.target": data.target,
                "model.task": model.known_task,
            },
        ),
        _stage(
            spec,
            "model",
            reads=["train"],
            parameters={
                "model": model.model_dump(exclude={"compute"}),
                "data.target": data.target,
                "data.positive_class": data.positive_class,
                "data.drop": data.drop,
                "split.group": split.group,
                "split.seed": split.seed,
            },
            begins_with=_own_code(spec),
        ),
        _stage(
            spec,
            "metrics",
            reads=["model", "test"],
            parameters={
                **judged,
                # for the model card
                "description": spec.description,
                "data.uri": data.uri,
                "model": model.model_dump(include={"estimator", "params", "features"}),
                "split": split.model_dump(),
            },
            begins_with=_own_code(spec),
        ),
        _stage(
            spec,
            "champion",
            reads=["model", "test", "metrics"],
            parameters={**judged, "promote.min_improvement": spec.promote.min_improvement},
            begins_with=_own_code(spec),
            look=lambda outside, _: {f"{spec.name}/champion": champion_seen(spec, outside)},
        ),
    ]
    return {stage.name: stage for stage in made}


def scoring_stages(spec: PipelineSpec) -> dict[str, Stage]:
    """Return the stages of batch scoring by name, none without `score` in the pipeline file.

    Each has one partition for each day.
    """
    return {}


def training_assets(spec: PipelineSpec) -> list[str]:
    """Return what training makes, in the order in which it is made: `raw`, `train`, …."""
    return ["raw", "train", "test", "model", "metrics", "champion"]


def source_seen(spec: PipelineSpec, outside: Outside) -> Seen:
    """Return the identity of what lies at the pipeline's source.

    Raises
    ------
    DataError
        Nothing lies there, or it may not be read.
    """
    from mlops_assets.ml.files import identity

    return Seen(identity(spec.data, spec.folder, outside.source_options))


def champion_seen(spec: PipelineSpec, outside: Outside) -> Seen:
    """Return the number of the last promotion."""
    from mlops_assets.store.champions import Champions

    current = Champions(outside.store, spec.name).current()
    return Seen("none") if current is None else Seen(str(current.number), current.run_id)


def _stage(
    spec: PipelineSpec,
    name: str,
    *,
    reads: list[str],
    parameters: Mapping[str, Any],
    makes: list[str] | None = None,
    begins_with: list[str] | None = None,
    look: Look = lambda _outside, _partition: {},
) -> Stage:
    return Stage(
        name=name,
        outputs=tuple(f"{spec.name}/{asset}" for asset in makes or [name]),
        inputs=tuple(f"{spec.name}/{asset}" for asset in reads),
        parameters=dict(_flat(parameters)),
        begins_with=(f"{_MODULES}.{name}", *(begins_with or [])),
        recompute=name in spec.recompute,
        look=look,
    )


def _own_code(spec: PipelineSpec) -> list[str]:
    """Names of code that the pipeline file chooses."""
    features = spec.model.features
    return [spec.model.estimator, *([] if features == "auto" else [features.partition(":")[0]])]


def _flat(values: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Give every value a name of its own, `model.params.n_estimators`."""
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}" if isinstance(key, str) else f"{prefix}{key!r}"
        flat += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, _as_json(value))]
    return flat


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    if isinstance(value, dict):
        return {repr(key): _as_json(one) for key, one in value.items()}
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
