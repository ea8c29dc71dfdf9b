"""The stages or steps of a pipeline as computations: what each reads, makes, and is decided by.

The assets are made from this, and so is the plan, so that both always mean the same. Nothing here
knows Dagster: a plan is made without it. What a stage does is `mlops_assets.assets` and
`mlops_assets.ml`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlops_assets.code_version import Code, code_of, look_again
from mlops_assets.errors import DataError
from mlops_assets.store.memo import Outside, Seen
from mlops_assets.wording import redacted

if TYPE_CHECKING:
    from mlops_assets.spec import Pipeline, PipelineSpec, StepsSpec

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


def stages(spec: Pipeline) -> dict[str, Stage]:
    """Return the stages of training or the steps by name, in the order in which they run."""
    from mlops_assets.spec import PipelineSpec, StepsSpec

    if isinstance(spec, StepsSpec):
        return {name: _step(spec, name) for name in spec.made_once}
    assert isinstance(spec, PipelineSpec)
    return training_stages(spec)


def training_stages(spec: PipelineSpec) -> dict[str, Stage]:
    """Return the stages of training by name, in the order in which they run."""
    data, model, split = spec.data, spec.model, spec.split
    judged = {
        "evaluate": spec.evaluate.model_dump(),
        "promote.by": spec.promote.by,
    }
    made = [
        _raw(spec),
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
        *([_best_params(spec)] if spec.tune.trials else []),
        _stage(
            spec,
            "model",
            reads=["train", *(["best_params"] if spec.tune.trials else [])],
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
                "data.uri": redacted(data.uri),
                "model": model.model_dump(include={"estimator", "params", "features"}),
                "split": split.model_dump(),
                **({"tuned": sorted(spec.tune.space)} if spec.tune.trials else {}),
            },
            begins_with=_own_code(spec),
        ),
        _stage(
            spec,
            "champion",
            reads=["model", "test", "metrics"],
            parameters={
                **judged,
                "promote.min_improvement": spec.promote.min_improvement,
                "split.seed": split.seed,
            },
            begins_with=_own_code(spec),
            look=lambda outside, _: {f"{spec.name}/champion": champion_seen(spec, outside)},
        ),
    ]
    return {stage.name: stage for stage in made}


def scoring_stages(spec: PipelineSpec) -> dict[str, Stage]:
    """Return the stages of batch scoring by name, none without `score` in the pipeline file.

    Each has one partition for each day.
    """
    if spec.score is None:
        return {}
    data = spec.data
    made = [
        _stage(
            spec,
            "predictions",
            reads=["champion"],
            parameters={
                "score": spec.score.model_dump(include={"uri", "id"}),
                "data": data.model_dump(include={"target", "columns", "drop", "missing_values"}),
                "split.group": spec.split.group,
            },
            begins_with=_own_code(spec),
            look=lambda outside, day: {f"{spec.name}/inbox": inbox_seen(spec, outside, day)},
        ),
        _stage(
            spec,
            "drift",
            reads=["predictions"],
            parameters={
                "score": spec.score.model_dump(include={"uri", "id", "labels"}),
                "drift": spec.drift.model_dump(),
                "data": data.model_dump(include={"target", "columns", "drop", "missing_values"}),
                "split.group": spec.split.group,
                "evaluate": spec.evaluate.model_dump(),
                "promote.by": spec.promote.by,
            },
            begins_with=_own_code(spec),
            look=lambda outside, day: {
                f"{spec.name}/inbox": inbox_seen(spec, outside, day),
                f"{spec.name}/labels": labels_seen(spec, outside, day),
            },
        ),
    ]
    return {stage.name: stage for stage in made}


def study(spec: PipelineSpec) -> str:
    """Return the digest of what decides the trials of a search, apart from the training set.

    How many trials there are decides none of them.
    """
    begins_with = ("mlops_assets.ml.tune", *_own_code(spec))
    return code_of(dict(_flat(_searched(spec))), begins_with).version


def source_seen(spec: PipelineSpec, outside: Outside) -> Seen:
    """Return the identity of what lies at the pipeline's source.

    Raises
    ------
    DataError
        Nothing lies there, or it may not be read.
    """
    from mlops_assets.ml.files import identity

    return Seen(identity(spec.data, spec.folder, outside.source_options))


def inbox_seen(spec: PipelineSpec, outside: Outside, day: str | None) -> Seen:
    """Return the identity of the files of a day that are to be scored.

    Raises
    ------
    DataError
        There are none, or they may not be looked at.
    """
    from mlops_assets.ml.inbox import identity_of_day

    assert spec.score is not None
    assert day is not None
    return Seen(identity_of_day(spec.score.uri, spec.folder, day, outside.source_options))


def labels_seen(spec: PipelineSpec, outside: Outside, day: str | None) -> Seen:
    """Return the identity of the files with what really happened on a day; "none" without any.

    Raises
    ------
    DataError
        They may not be looked at.
    """
    from mlops_assets.ml.inbox import NoFilesError, identity_of_day

    assert spec.score is not None
    assert day is not None
    if spec.score.labels is None:
        return Seen("none")
    labels = spec.score.labels
    try:
        return Seen(identity_of_day(labels, spec.folder, day, outside.source_options))
    except NoFilesError:
        return Seen("none")
    except DataError as error:
        raise DataError(str(error).replace("score.uri", "score.labels")) from error


def champion_seen(spec: PipelineSpec, outside: Outside) -> Seen:
    """Return the number of the last promotion."""
    from mlops_assets.store.champions import Champions

    current = Champions(outside.store, spec.name).current()
    return Seen("none") if current is None else Seen(str(current.number), current.run_id)


def files_seen(spec: StepsSpec, name: str) -> dict[str, Seen]:
    """Return the digests of the files that a step reads, by path as in `./report.py`.

    Raises
    ------
    DataError
        One of them does not exist or may not be read.
    """
    from mlops_assets.commands.files import digests

    try:
        found = digests(spec.folder, spec.steps[name].files)
    except DataError as error:
        raise DataError(f"steps.{name}.files: {error}") from error
    return {path: Seen(digest) for path, digest in found.items()}


def asset_of(spec: Pipeline, need: str) -> str:
    """Return the asset that a step needs: `print_date` is one of its own pipeline."""
    return need if "/" in need else f"{spec.name}/{need}"


def _step(spec: StepsSpec, name: str) -> Stage:
    step = spec.steps[name]
    # what else it has is about how it is run, and decides nothing of what comes out
    read = step.model_dump(include={"command", "image", "env", "checks"}, exclude_defaults=True)
    return Stage(
        name=name,
        outputs=(f"{spec.name}/{name}",),
        inputs=tuple(asset_of(spec, need) for need in step.needs),
        parameters=dict(_flat({"steps": {name: read}})),
        begins_with=("mlops_assets.commands.value",),
        recompute=name in spec.recompute,
        look=lambda _outside, _partition: files_seen(spec, name),
    )


def _best_params(spec: PipelineSpec) -> Stage:
    return _stage(
        spec,
        "best_params",
        reads=["train"],
        parameters={**_searched(spec), "tune.trials": spec.tune.trials},
        begins_with=_own_code(spec),
    )


def _searched(spec: PipelineSpec) -> dict[str, Any]:
    tune = spec.tune
    first_metric = next(iter(spec.evaluate.metrics), None)
    return {
        "model": spec.model.model_dump(exclude={"compute"}),
        "data.target": spec.data.target,
        "data.positive_class": spec.data.positive_class,
        "data.drop": spec.data.drop,
        "split": spec.split.model_dump(exclude={"test_size"}),
        "tune": {
            **tune.model_dump(exclude={"trials"}),
            "by": tune.by or spec.promote.by or first_metric,
            "seed": spec.split.seed if tune.seed is None else tune.seed,
        },
    }


def _raw(spec: PipelineSpec) -> Stage:
    """Return the stage that reads the source; an asset's versions are Dagster's to tell."""
    parameters = {"data": spec.data.model_dump(exclude={"positive_class"})}
    if upstream := spec.data.upstream:
        return replace(
            _stage(spec, "raw", reads=[], parameters=parameters), inputs=(upstream.name,)
        )
    return _stage(
        spec,
        "raw",
        reads=["source"],
        parameters=parameters,
        look=lambda outside, _: {f"{spec.name}/source": source_seen(spec, outside)},
    )


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
