"""What a pipeline is: `PipelineSpec` and its parts, the Python form of one pipeline file.

The shape, the meaning and the rules of the fields live here, so that a spec made in Python is
checked like a file. Reading the file and reporting its mistakes by line and column is
`mlops_assets.pipeline_file`; nothing here knows Dagster or imports scikit-learn.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from mlops_assets.cron import check_cron
from mlops_assets.estimators import (
    check_estimator,
    check_features,
    missing_parameters,
    task_of,
    unknown_parameter,
)
from mlops_assets.scorers import SCORERS, Kind, default_metrics, serves
from mlops_assets.source import ClassFacts
from mlops_assets.wording import nearest, shown

Task = Literal["classification", "regression"]
StageName = Literal["raw", "split", "model", "metrics", "champion"]
ColumnType = Literal["number", "category", "boolean", "datetime", "text"]
Location = tuple[Any, ...]
"""Where a value is in a spec: names of fields, keys of maps and indices of lists."""

BUNDLED_SETS = ("breast_cancer", "diabetes", "digits", "iris", "wine")
FILE_FORMATS = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")
# The rest of fsspec's registry is asked only when needed: importing it takes 0.1 s.
_USUAL_SCHEMES = ("file", "s3", "gs", "abfs", "http", "https", "memory")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*(>=|>|<=|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)\s*")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|m|h)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
_MEMORY = re.compile(r"[1-9][0-9]{0,17}(Ki|Mi|Gi|Ti|k|M|G|T)?")
# What Dagster accepts as the owner of an asset.
_OWNER = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}|team:\S.*")


# --- rules of single values ---------------------------------------------------------------------


def _check_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{shown(text)} cannot name a pipeline: allowed are up to 60 lower-case letters, "
            "digits and underscores, beginning with a letter"
        )
    return text


def _check_memory(text: str) -> str:
    if not _MEMORY.fullmatch(text):
        raise ValueError(f"{shown(text)} is not an amount of memory: write it like 512Mi or 2Gi")
    return text


def _check_owner(text: str) -> str:
    if not _OWNER.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is not an owner: allowed are an e-mail address and team:NAME"
        )
    return text


def _check_timezone(text: str) -> str:
    from zoneinfo import ZoneInfo, available_timezones

    try:
        ZoneInfo(text)
    except (LookupError, ValueError, OSError):
        raise ValueError(
            f"{shown(text)} is not a time zone{nearest(text, available_timezones())}; allowed are "
            "UTC and the names of the IANA database such as Europe/Berlin"
        ) from None
    return text


def _check_scorer(name: str) -> str:
    if name not in SCORERS:
        raise ValueError(
            f"{shown(name)} is not a metric{nearest(name, SCORERS)}; allowed are the "
            f"scikit-learn scorers {', '.join(SCORERS)}"
        )
    return name


def _check_condition(text: object) -> str:
    match = _CONDITION.fullmatch(text) if isinstance(text, str) else None
    if not isinstance(text, str) or match is None or not math.isfinite(float(match[2])):
        raise ValueError(
            f"{shown(text)} is not a condition: write >=, >, <= or < and a number, in quotes, such "
            'as ">= 0.80"'
        )
    return text


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError(
            f"{shown(value)} is not a duration: write seconds, or a number with ms, s, m or h such "
            "as 5s"
        )
    return float(match[1]) * _SECONDS[match[2]]


def _as_pair(value: object) -> object:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("must be a list of two numbers, [lowest, highest]")
    return tuple(value)


def _check_range(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] <= limits[1]:
        raise ValueError(f"the lowest value {limits[0]} is above the highest {limits[1]}")
    return limits


def _check_uri(uri: str) -> str:
    """Check the scheme and the format of a source, not that there is something."""
    if not uri.isprintable():
        raise ValueError(f"{shown(uri)} has invisible characters in it")
    if uri.startswith("sklearn://"):
        name = uri.removeprefix("sklearn://")
        if name not in BUNDLED_SETS:
            raise ValueError(
                f"scikit-learn bundles no data set {shown(name)}{nearest(name, BUNDLED_SETS)}; "
                f"allowed are {', '.join(BUNDLED_SETS)}"
            )
        return uri
    scheme, separator, _ = uri.partition("://")
    if separator and scheme not in _USUAL_SCHEMES:
        from fsspec.registry import known_implementations

        known = sorted({"sklearn", *_USUAL_SCHEMES, *known_implementations})
        if scheme not in known:
            raise ValueError(
                f"'{scheme}://' is not a known kind of address{nearest(scheme, known)}; allowed "
                f"are a path and {', '.join(f'{name}://' for name in known)}"
            )
    address = uri.partition("?")[0] if scheme in ("http", "https") else uri
    if not address.lower().endswith(FILE_FORMATS):
        raise ValueError(f"{shown(uri)} must end with one of {', '.join(FILE_FORMATS)}")
    return uri


def _check_dated_uri(uri: str) -> str:
    if re.findall(r"\{.*?\}", uri) != ["{date}"]:
        raise ValueError(f"{shown(uri)} must contain {{date}}, once, for the day that is scored")
    if uri.startswith("sklearn://"):
        raise ValueError(f"{shown(uri)} is a fixed data set: give files of the day that is scored")
    return _check_uri(uri)


ColumnName = Annotated[str, Field(min_length=1)]
Metric = Annotated[
    str, AfterValidator(_check_scorer), WithJsonSchema({"type": "string", "enum": [*SCORERS]})
]
Condition = Annotated[
    str,
    BeforeValidator(_check_condition),
    WithJsonSchema(
        {"type": "string", "pattern": f"^{_CONDITION.pattern}$", "examples": [">= 0.80"]}
    ),
]
Cron = Annotated[str, AfterValidator(check_cron)]
Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "string", "pattern": f"^{_DURATION.pattern}$"}]}
    ),
]
Range = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=True)], Annotated[float, Field(allow_inf_nan=True)]],
    BeforeValidator(_as_pair),
    AfterValidator(_check_range),
]


# --- the parts of a pipeline --------------------------------------------------------------------


class _Part(BaseModel):
    """A part of a pipeline file: unknown fields are mistakes, values never change.

    Strict, because a text where a number belongs is a mistake that would surface much later.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        ser_json_inf_nan="strings",
    )


def _mistakes(found: Iterable[tuple[Location, str]]) -> None:
    """Raise what was found, each mistake at its own place below the field being validated."""
    errors: list[InitErrorDetails] = [
        {
            "type": PydanticCustomError("mistake", "{why}", {"why": why}),
            "loc": location,
            "input": None,
        }
        for location, why in found
    ]
    if errors:
        raise ValidationError.from_exception_data("pipeline", errors)


class DataChecks(_Part):
    """Rules that the raw data must satisfy; a broken rule stops the pipeline."""

    unique: list[ColumnName] = Field(default=[], description="Columns without a repeated value.")
    not_null: list[ColumnName] = Field(default=[], description="Columns without a missing value.")
    between: dict[ColumnName, Range] = Field(
        default={}, description="Column -> [lowest, highest] allowed value, both included."
    )


class DataSpec(_Part):
    """Where the data is and what is in it."""

    uri: Annotated[str, AfterValidator(_check_uri)] = Field(
        description="A path relative to the pipeline file, an fsspec URL or a glob of files that "
        f"end with {', '.join(FILE_FORMATS)}; or sklearn://NAME for a data set bundled with "
        f"scikit-learn: {', '.join(BUNDLED_SETS)}."
    )
    target: ColumnName = Field(description="The column to predict.")
    positive_class: str | int | bool | None = Field(
        default=None, description="Binary classification: the class that metrics are about."
    )
    columns: dict[ColumnName, ColumnType] = Field(
        default={}, description="Declared types; those of the other columns are inferred."
    )
    drop: list[ColumnName] = Field(
        default=[], description="Columns that are not features, such as row ids."
    )
    missing_values: list[str] = Field(
        default=[], description="Texts that stand for a missing value, beside the usual ones."
    )
    checks: DataChecks = DataChecks()

    @field_validator("drop")
    @classmethod
    def _keeps_the_target(cls, drop: list[str], info: ValidationInfo) -> list[str]:
        target = info.data.get("target")
        _mistakes(
            ((i,), f"{shown(column)} is the target and cannot be dropped")
            for i, column in enumerate(drop)
            if column == target
        )
        return drop


class SplitSpec(_Part):
    """How rows are divided into train and test: at random, by time or by group."""

    test_size: float = Field(default=0.2, gt=0, lt=1, description="Share of rows for the test set.")
    seed: int = Field(
        default=42, ge=0, le=2**32 - 1, description="Makes the division, and training, repeatable."
    )
    stratify: bool = Field(
        default=True,
        description="Classification: keep the share of each class equal. Without effect by_time.",
    )
    by_time: ColumnName | None = Field(
        default=None, description="Column to order by: the latest rows become the test set."
    )
    group: ColumnName | None = Field(
        default=None,
        description="Column whose values are never in both train and test. Not with by_time: a "
        "group may last longer than the point in time.",
    )

    @field_validator("group")
    @classmethod
    def _either_time_or_group(cls, group: str | None, info: ValidationInfo) -> str | None:
        if group is not None and info.data.get("by_time") is not None:
            raise ValueError("by_time and group exclude each other: keep one of them")
        return group


class ComputeSpec(_Part):
    """What a training step asks for where steps have machines of their own."""

    cpu: float = Field(default=1, gt=0, description="Processor cores.")
    memory: Annotated[str, AfterValidator(_check_memory)] = Field(
        default="2Gi", description="Bytes, as Kubernetes writes them: 512Mi, 2Gi."
    )
    gpu: int = Field(default=0, ge=0, description="Accelerators.")


class ModelSpec(_Part):
    """What is trained."""

    task: Task | None = Field(default=None, description="Inferred from the target when left out.")
    estimator: str = Field(
        description="Dotted path of a scikit-learn compatible classifier or regressor class, of "
        "scikit-learn, another installed package or a module of your own.",
        examples=[
            "sklearn.ensemble.RandomForestClassifier",
            "sklearn.linear_model.LogisticRegression",
            "sklearn.linear_model.Ridge",
        ],
    )
    params: dict[str, Any] = Field(
        default={}, description="The estimator's parameters.", validate_default=True
    )
    features: str = Field(
        default="auto",
        description="'auto', or module.path:function, a function of the training frame that "
        "returns a scikit-learn transformer.",
    )
    compute: ComputeSpec = ComputeSpec()

    @field_validator("estimator")
    @classmethod
    def _is_an_estimator(cls, estimator: str, info: ValidationInfo) -> str:
        offered, wanted = task_of(check_estimator(estimator)), info.data.get("task")
        if wanted and offered and wanted != offered:
            raise ValueError(f"'{estimator}' is for {offered}, but model.task is {wanted}")
        return estimator

    @field_validator("params")
    @classmethod
    def _are_parameters(cls, params: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        _mistakes(_not_plain(params, ()))
        if "estimator" in info.data:
            _mistakes(_parameter_mistakes(check_estimator(info.data["estimator"]), params))
        return params

    @field_validator("features")
    @classmethod
    def _are_features(cls, features: str) -> str:
        return features if features == "auto" else check_features(features)

    @property
    def estimator_facts(self) -> ClassFacts:
        """What the source of the estimator tells about it."""
        return check_estimator(self.estimator)

    @property
    def known_task(self) -> Task | None:
        """The task as far as it is known without the data: declared, or the estimator's."""
        return self.task or task_of(self.estimator_facts)


class TuneSpec(_Part):
    """A search for better parameters; none when `trials` is 0."""

    trials: int = Field(default=0, ge=0, description="How many sets of parameters are tried.")


@dataclass(frozen=True)
class Gate:
    """A condition that a model must meet to be promoted, such as `roc_auc >= 0.8`."""

    metric: str
    operator: str
    threshold: float

    @classmethod
    def parse(cls, metric: str, condition: str) -> Gate:
        """Read a condition such as `>= 0.80`; a ValueError says what is allowed instead."""
        match = _CONDITION.fullmatch(_check_condition(condition))
        assert match is not None
        return cls(metric, match[1], float(match[2]))

    def passes(self, value: float) -> bool:
        """Whether a measured value meets the condition; NaN meets none."""
        return _OPERATORS[self.operator](value, self.threshold)

    def __str__(self) -> str:
        """Return the gate as it reads in the pipeline file."""
        return f"{self.metric} {self.operator} {self.threshold}"


class EvaluateSpec(_Part):
    """How a model is measured and which measurements it must reach."""

    metrics: list[Metric] = Field(
        default=[], description="Names of scikit-learn scorers; chosen by task when left out."
    )
    gates: dict[Metric, Condition] = Field(
        default={}, description="Metric -> condition such as '>= 0.80' for a model to be promoted."
    )

    @property
    def conditions(self) -> tuple[Gate, ...]:
        """The gates, parsed."""
        return tuple(Gate.parse(metric, text) for metric, text in self.gates.items())


class PromoteSpec(_Part):
    """When a new model replaces the champion."""

    by: Metric | None = Field(
        default=None, description="Metric to compare; default: the first one."
    )
    min_improvement: float = Field(
        default=0.0, ge=0, description="By how much a new model must be better."
    )


class ScoreSpec(_Part):
    """Batch inference."""

    uri: Annotated[str, AfterValidator(_check_dated_uri)] = Field(
        description="Input files; {date} stands for the partition's day."
    )
    schedule: Cron | None = Field(
        default=None, description="Cron string, or @daily and the like.", examples=["0 6 * * *"]
    )


class TrainSpec(_Part):
    """When the pipeline trains by itself."""

    schedule: Cron | None = Field(
        default=None, description="Cron string, or @daily and the like.", examples=["@daily"]
    )
    timezone: Annotated[str, AfterValidator(_check_timezone)] = Field(
        default="UTC", description="IANA time zone of the schedules."
    )
    on_new_data: bool = Field(default=False, description="Train when the source changed.")


class RetrySpec(_Part):
    """How often a step that failed for a passing reason is tried again."""

    max: int = Field(default=3, ge=0, le=100, description="Tries after the first one.")
    delay: Seconds = Field(
        default=5.0, ge=0, le=86_400, description="Seconds, or a text such as 500ms, 5s, 2m, 1h."
    )
    backoff: Literal["exponential", "linear", "constant"] = Field(
        default="exponential", description="How the delay grows from one try to the next."
    )
    jitter: bool = Field(default=True, description="Spread the tries of many steps over time.")


class PipelineSpec(_Part):
    """One pipeline: from the data to the promoted model and its predictions."""

    name: Annotated[str, AfterValidator(_check_name)]
    description: str = Field(default="", description="What is predicted, for whom.")
    data: DataSpec = Field(description="Where the data is and what is in it.")
    split: SplitSpec = SplitSpec()
    model: ModelSpec = Field(description="What is trained.")
    tune: TuneSpec = TuneSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    promote: PromoteSpec = PromoteSpec()
    score: ScoreSpec | None = None
    train: TrainSpec = TrainSpec()
    retries: RetrySpec = RetrySpec()
    recompute: list[StageName] = Field(
        default=[],
        description="Stages that run every time; the others are reused unless their code, their "
        "parameters or the content of their inputs changed.",
    )
    owners: list[Annotated[str, AfterValidator(_check_owner)]] = Field(
        default=[], description="E-mail addresses, or team:NAME."
    )
    folder: Path = Field(
        default=Path(), exclude=True, description="What a relative data.uri is relative to."
    )

    @field_validator("split")
    @classmethod
    def _splits_by_another_column(cls, split: SplitSpec, info: ValidationInfo) -> SplitSpec:
        target = info.data["data"].target if "data" in info.data else None
        _mistakes(
            ((field,), f"'{target}' is the target and cannot also divide the rows")
            for field in ("by_time", "group")
            if target is not None and getattr(split, field) == target
        )
        return split

    @field_validator("model")
    @classmethod
    def _has_a_positive_class_only_if_it_classifies(
        cls, model: ModelSpec, info: ValidationInfo
    ) -> ModelSpec:
        positive = info.data["data"].positive_class if "data" in info.data else None
        if positive is not None and model.known_task == "regression":
            why = "a regression has no classes: remove data.positive_class or take a classifier"
            _mistakes([(("estimator",), why)])
        return model

    @field_validator("evaluate")
    @classmethod
    def _measures_what_is_predicted(
        cls, evaluate: EvaluateSpec, info: ValidationInfo
    ) -> EvaluateSpec:
        named: list[tuple[Location, str]] = [
            *((("metrics", i), name) for i, name in enumerate(evaluate.metrics)),
            *((("gates", name), name) for name in evaluate.gates),
        ]
        _mistakes(_unfit_metrics(named, info))
        return evaluate

    @field_validator("promote")
    @classmethod
    def _promotes_by_what_is_predicted(
        cls, promote: PromoteSpec, info: ValidationInfo
    ) -> PromoteSpec:
        if promote.by is not None:
            _mistakes(_unfit_metrics([(("by",), promote.by)], info))
        return promote

    def metrics_for(self, kind: Kind) -> list[str]:
        """Names of the metrics to measure, the one that decides on promotion first.

        The ones listed, or the default ones for this kind of problem; and those that the gates and
        `promote.by` need.
        """
        methods = self.model.estimator_facts.attributes
        listed = self.evaluate.metrics or default_metrics(kind, methods)
        first = [self.promote.by] if self.promote.by else []
        return list(dict.fromkeys([*first, *listed, *self.evaluate.gates]))


# --- rules of several values --------------------------------------------------------------------


def _not_plain(value: object, location: Location) -> Iterator[tuple[Location, str]]:
    """Parts of a parameter's value that a YAML file could not hold."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_plain(key, (*location, "[key]"))
            yield from _not_plain(inner, (*location, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _not_plain(inner, (*location, i))
    elif not isinstance(value, str | int | float | None):
        kind = type(value).__name__
        why = f"a parameter must be text, a number, true, false, null, a list or a map, not {kind}"
        yield location, why


def _parameter_mistakes(
    facts: ClassFacts, params: dict[str, Any]
) -> Iterator[tuple[Location, str]]:
    for name in params:
        if why := unknown_parameter(facts, name):
            yield (name,), why
    for name in missing_parameters(facts, params):
        yield (), f"{facts.name} needs the parameter {shown(name)}"


def _unfit_metrics(
    named: Iterable[tuple[Location, str]], info: ValidationInfo
) -> Iterator[tuple[Location, str]]:
    """Metrics that cannot measure this pipeline, as far as it is known without the data."""
    if "model" not in info.data:
        return
    model: ModelSpec = info.data["model"]
    positive_class = info.data["data"].positive_class if "data" in info.data else None
    kinds: set[Kind] = {"binary", "multiclass", "regression"}
    if model.known_task == "regression":
        kinds = {"regression"}
    elif positive_class is not None:
        kinds = {"binary"}
    elif model.known_task == "classification":
        kinds = {"binary", "multiclass"}
    methods = model.estimator_facts.attributes
    for location, name in named:
        fitting = [other for other in SCORERS if not kinds.isdisjoint(SCORERS[other].kinds)]
        if name not in fitting:
            measured, predicted = " or ".join(SCORERS[name].kinds), " or ".join(sorted(kinds))
            why = f"{shown(name)} measures {measured} models, and this is {predicted}"
            yield location, f"{why}; allowed are {', '.join(fitting)}"
        elif not serves(methods, name):
            needed = " or ".join(SCORERS[name].methods)
            yield location, f"{shown(name)} needs {needed}, which {model.estimator} does not have"
