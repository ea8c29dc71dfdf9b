"""What a pipeline is: `PipelineSpec` and `StepsSpec`, the Python forms of one pipeline file.

The first trains a model, the second runs commands. The shape, the meaning and the rules of the
fields live here, so that a spec made in Python is checked like a file. Reading the file and
reporting its mistakes by line and column is `mlops_assets.pipeline_file`; nothing here knows
Dagster or imports scikit-learn.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from mlops_assets.cron import check_cron
from mlops_assets.durations import PATTERN, seconds
from mlops_assets.estimators import (
    check_estimator,
    check_features,
    missing_parameters,
    task_of,
    unknown_parameter,
)
from mlops_assets.scorers import SCORERS, Kind, default_metrics, serves
from mlops_assets.source import ClassFacts
from mlops_assets.wording import nearest, redacted, shown

Task = Literal["classification", "regression"]
StageName = Literal["raw", "split", "best_params", "model", "metrics", "champion"]
ColumnType = Literal["number", "category", "boolean", "datetime", "text"]
Location = tuple[Any, ...]
"""Where a value is in a spec: names of fields, keys of maps and indices of lists."""

FIRST_DAY = date(2020, 1, 1)
"""Of scoring, where a pipeline file names none: fixed, so that the set of days never moves."""

BUNDLED_SETS = ("breast_cancer", "diabetes", "digits", "iris", "wine")
FILE_FORMATS = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")
ASSET = "asset://"
"""What begins a `data.uri` that is the asset of another pipeline."""
READABLE_ASSETS = ("raw", "train", "test", "predictions")
"""Assets that other pipelines may have as their source: those that are tables."""
# The rest of fsspec's registry is asked only when needed: importing it takes 0.1 s.
_USUAL_SCHEMES = ("file", "s3", "gs", "abfs", "http", "https", "memory")
_BUCKETS = ("s3", "s3a", "gs", "gcs")
_CONTAINERS = ("abfs", "abfss", "az")  # abfs://container@account
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
_WIDEST_RANGE = 2**53  # beyond it floating point has gaps between whole numbers
_MEMORY = re.compile(r"([1-9][0-9]{0,17})(Ki|Mi|Gi|Ti|k|M|G|T)?", re.ASCII)
_UNITS: dict[str, int] = {
    "": 1,
    **{unit: 1000**n for n, unit in enumerate("kMGT", start=1)},
    **{f"{unit}i": 1024**n for n, unit in enumerate("KMGT", start=1)},
}
# What Kubernetes accepts as the name and the value of a label.
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,999}", re.ASCII)
_CHECK = re.compile(r"[A-Za-z0-9_]{1,60}", re.ASCII)
_OF_PIPES = "DAGSTER_PIPES_"
"""What the variables begin with by which Dagster Pipes tells a command where it is."""
_OF_THE_SHELL = frozenset(
    ("ENV", "HOME", "IFS", "LANG", "LD_PRELOAD", "PATH", "PWD", "PYTHONPATH", "SHELL", "TMPDIR")
)
"""Variables by which programs find what they need: no step's output may take their place."""
# What Dagster accepts as the owner of an asset.
_OWNER = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}|team:\S.*")


class Upstream(NamedTuple):
    """The asset of another pipeline that is a pipeline's source."""

    pipeline: str
    asset: str

    @classmethod
    def parse(cls, uri: str) -> Upstream:
        """Read `asset://churn/predictions`; no part of it is checked."""
        pipeline, _, asset = uri.removeprefix(ASSET).partition("/")
        return cls(pipeline, asset)

    @property
    def name(self) -> str:
        """As in the UI: `churn/predictions`."""
        return f"{self.pipeline}/{self.asset}"

    @property
    def is_daily(self) -> bool:
        """Whether it has a partition for each day, which are read one after the other."""
        return self.asset == "predictions"


def dotted(location: Location) -> str:
    """Write a location as people do: `data.checks.unique[0]`."""
    parts = [part for part in location if part != "[key]"]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return path.lstrip(".")


def variable_of(need: str) -> str:
    """Return the environment variable in which a command is given what it needs."""
    return need.replace("/", "_").upper()


# --- rules of single values ---------------------------------------------------------------------


def _check_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{shown(text)} cannot name a pipeline: allowed are up to 60 lower-case letters, "
            "digits and underscores, beginning with a letter"
        )
    return text


def _check_step_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"{shown(text)} cannot name a step: allowed are up to 60 lower-case letters, digits "
            "and underscores, beginning with a letter"
        )
    return text


def _check_command(value: object) -> object:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("the command is empty: write what is to be run")
    elif not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise ValueError(
            "must be a text, which `sh` runs, or a list of texts, a program and its arguments; "
            'numbers need quotes, as in [sleep, "5"]'
        )
    elif not value or not value[0].strip():
        raise ValueError("the list is empty: write a program and its arguments")
    return value


def _check_need(text: str) -> str:
    pipeline, separator, asset = text.rpartition("/")
    if not _NAME.fullmatch(asset) or (separator and not _NAME.fullmatch(pipeline)):
        raise ValueError(
            f"{shown(text)} is nothing that a step could need: write the name of another step of "
            "this file, or PIPELINE/ASSET"
        )
    if (variable := variable_of(text)) in _OF_THE_SHELL:
        raise ValueError(
            f"what {shown(text)} makes would be given in the variable {variable}, which programs "
            "use for something else: rename the step"
        )
    return text


def _check_image(text: str) -> str:
    if not _IMAGE.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is not a container image: write it like docker.io/library/busybox:1.37"
        )
    return text


def _check_variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is not the name of an environment variable: allowed are letters, "
            "digits and underscores, not beginning with a digit"
        )
    if text.startswith(_OF_PIPES):
        raise ValueError(f"{shown(text)} belongs to Dagster Pipes: choose another name")
    return text


def _check_file(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{shown(text)} is not a path")
    if text.startswith(("/", "~")) or "://" in text:
        raise ValueError(f"{shown(text)} must be a path relative to this file")
    return text


def _check_check(text: str) -> str:
    if not _CHECK.fullmatch(text):
        raise ValueError(
            f"{shown(text)} cannot name a check: allowed are up to 60 letters, digits and "
            "underscores"
        )
    return text


def _check_memory(text: str) -> str:
    if not _MEMORY.fullmatch(text):
        raise ValueError(f"{shown(text)} is not an amount of memory: write it like 512Mi or 2Gi")
    return text


def in_bytes(memory: str) -> int:
    """Return an amount of memory, such as 512Mi, in bytes."""
    match = _MEMORY.fullmatch(_check_memory(memory))
    assert match is not None
    number, unit = match.groups(default="")
    return int(number) * _UNITS[unit]


def _check_gpus(value: object) -> object:
    if value != "required" and not (type(value) is int and 0 <= value <= 64):
        raise ValueError(
            f"{shown(value)} is not a number of accelerators: allowed are 0 to 64, and required"
        )
    return value


def _check_label_key(text: str) -> str:
    prefix, separator, name = text.rpartition("/")
    if not _LABEL.fullmatch(name) or (separator and not _DOMAIN.fullmatch(prefix)):
        raise ValueError(
            f"{shown(text)} is not a label of a node: allowed are names like `disk` and "
            "`example.org/disk`, of letters, digits, -, _ and ."
        )
    return text


def _check_label_value(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is not a value of a label: allowed are up to 63 letters, digits, "
            "-, _ and ., beginning and ending with a letter or digit"
        )
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


def _duration(value: object) -> object:
    return seconds(value) if isinstance(value, str) else value


def _check_asset_uri(uri: str) -> str:
    upstream = Upstream.parse(uri)
    if not _NAME.fullmatch(upstream.pipeline):
        raise ValueError(
            f"{shown(uri)} names no asset of a pipeline: write it like asset://churn/predictions"
        )
    if upstream.asset not in READABLE_ASSETS:
        raise ValueError(
            f"{shown(uri)}: {shown(upstream.asset)} is no table of a pipeline"
            f"{nearest(upstream.asset, READABLE_ASSETS)}; allowed are {', '.join(READABLE_ASSETS)}"
        )
    return uri


def _check_uri(uri: str) -> str:
    """Check the scheme and the format of a source, not that there is something."""
    if not uri.isprintable():
        raise ValueError(f"{shown(uri)} has invisible characters in it")
    if uri.startswith(ASSET):
        return _check_asset_uri(uri)
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
    user, _, _ = uri.partition("://")[2].partition("/")[0].rpartition("@")
    if (user and scheme in _BUCKETS) or (":" in user and scheme in _CONTAINERS):
        raise ValueError(
            f"{shown(uri)}: credentials do not belong in the address; give them the cloud's "
            "standard way, to the environment"
        )
    address = uri.partition("?")[0] if scheme in ("http", "https") else uri
    if not address.lower().endswith(FILE_FORMATS):
        raise ValueError(f"{shown(uri)} must end with one of {', '.join(FILE_FORMATS)}")
    return uri


def _as_date(value: object) -> object:
    if type(value) is date:
        return value
    try:
        if len(str(value)) != len("2026-01-01"):  # the other forms of ISO 8601
            raise ValueError
        return date.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"{shown(value)} is not a day: write it like 2026-01-01") from None


def _check_dated_uri(uri: str) -> str:
    if re.findall(r"\{.*?\}", uri) != ["{date}"]:
        raise ValueError(
            f"{shown(uri)} must contain {{date}}, once, for the day that is scored, and nothing "
            "else in braces"
        )
    if uri.startswith("sklearn://"):
        raise ValueError(f"{shown(uri)} is a fixed data set: give files of the day that is scored")
    if uri.startswith(ASSET):
        raise ValueError(f"{shown(uri)} is an asset: give files of the day that is scored")
    if "{date}" in uri.partition("://")[2].partition("/")[0]:
        raise ValueError(f"{shown(uri)} must have {{date}} after the bucket or host")
    return _check_uri(uri)


ColumnName = Annotated[str, Field(min_length=1)]
Memory = Annotated[str, AfterValidator(_check_memory)]
Gpus = Annotated[
    int | Literal["required"],
    BeforeValidator(_check_gpus),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 64}, {"const": "required"}]}
    ),
]
LabelKey = Annotated[str, AfterValidator(_check_label_key)]
LabelValue = Annotated[str, AfterValidator(_check_label_value)]
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
Command = Annotated[
    str | list[str],
    BeforeValidator(_check_command),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }
    ),
]
Cron = Annotated[str, AfterValidator(check_cron)]
TimeZone = Annotated[str, AfterValidator(_check_timezone)]
Day = Annotated[
    date, BeforeValidator(_as_date), WithJsonSchema({"type": "string", "format": "date"})
]
Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "string", "pattern": f"^{_DURATION.pattern}$"}]}
    ),
]
Window = Annotated[
    float,
    BeforeValidator(_duration),
    # less than a minute is refused by Dagster
    Field(ge=60, le=10 * 366 * 86_400),
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "string", "pattern": f"^\\s*{PATTERN}\\s*$"}]}
    ),
]
"""Seconds, or a text such as 12h or 2d."""
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


Uri = Annotated[str, AfterValidator(_check_uri), PlainSerializer(redacted)]
DatedUri = Annotated[str, AfterValidator(_check_dated_uri), PlainSerializer(redacted)]
"""What is written down of them, in records of computations and in MLflow, is without secrets."""


class DataChecks(_Part):
    """Rules that the raw data must satisfy; a broken rule stops the pipeline."""

    unique: list[ColumnName] = Field(default=[], description="Columns without a repeated value.")
    not_null: list[ColumnName] = Field(default=[], description="Columns without a missing value.")
    between: dict[ColumnName, Range] = Field(
        default={}, description="Column -> [lowest, highest] allowed value, both included."
    )


class DataSpec(_Part):
    """Where the data is and what is in it."""

    uri: Uri = Field(
        description="A path relative to the pipeline file, an fsspec URL or a glob of files that "
        f"end with {', '.join(FILE_FORMATS)}; or sklearn://NAME for a data set bundled with "
        f"scikit-learn: {', '.join(BUNDLED_SETS)}; or asset://PIPELINE/ASSET for what another "
        f"pipeline makes: {', '.join(READABLE_ASSETS)}."
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

    @property
    def upstream(self) -> Upstream | None:
        """The asset of another pipeline that is the source; None for files and bundled sets."""
        return Upstream.parse(self.uri) if self.uri.startswith(ASSET) else None

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


class Toleration(_Part):
    """A taint of a node that does not keep a step away from it; as Kubernetes writes it."""

    key: str | None = Field(default=None, description="Of the taint; left out: of every taint.")
    operator: Literal["Exists", "Equal"] = Field(
        default="Exists", description="Whether the value counts."
    )
    value: str | None = Field(default=None, description="Of the taint, with `operator: Equal`.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Left out: every effect."
    )

    @field_validator("value")
    @classmethod
    def _is_compared(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("operator") == "Exists":
            raise ValueError("a value is compared with `operator: Equal` only")
        return value


class ComputeSpec(_Part):
    """What a step asks for where steps have machines of their own, and which processor it uses."""

    cpu: float = Field(default=1, gt=0, le=1024, description="Processor cores.")
    memory: Memory = Field(
        default="2Gi", description="Bytes, as Kubernetes writes them: 512Mi, 2Gi."
    )
    max_memory: Memory | None = Field(
        default=None,
        description="A step that is killed for want of memory is tried again with twice as much, "
        "up to this. Default: four times `memory`.",
        examples=["16Gi"],
    )
    gpu: Gpus = Field(
        default=0,
        description="Accelerators. An estimator that can use one does so; without one it is "
        "trained on the processor with a warning. 'required': one, and without it the step fails.",
    )
    gpu_type: LabelValue | None = Field(
        default=None,
        description="The nodes' label nvidia.com/gpu.product, which NVIDIA's feature discovery "
        "sets. Where nodes are labelled otherwise, use node_selector.",
        examples=["NVIDIA-L4"],
    )
    ephemeral_storage: Memory | None = Field(
        default=None, description="Scratch space on the node's disk.", examples=["20Gi"]
    )
    node_selector: dict[LabelKey, LabelValue] = Field(
        default={},
        description="Labels that a node must have.",
        examples=[{"cloud.google.com/gke-accelerator": "nvidia-l4"}],
    )
    tolerations: list[Toleration] = Field(
        default=[],
        description="Taints of nodes that do not keep the step away. For a step with a GPU, "
        "nvidia.com/gpu is among them already.",
    )

    @field_validator("max_memory")
    @classmethod
    def _is_not_less_than_memory(cls, limit: str | None, info: ValidationInfo) -> str | None:
        memory = info.data.get("memory")
        if limit is not None and memory is not None and in_bytes(limit) < in_bytes(memory):
            raise ValueError(f"must not be less than memory, which is {memory}")
        return limit

    @field_validator("gpu_type")
    @classmethod
    def _is_of_a_gpu(cls, gpu_type: str | None, info: ValidationInfo) -> str | None:
        if gpu_type is not None and info.data.get("gpu") == 0:
            raise ValueError("a type without an accelerator: set gpu to 1 or more, or remove it")
        return gpu_type

    @property
    def gpus(self) -> int:
        """How many accelerators the step asks for."""
        return 1 if self.gpu == "required" else self.gpu

    @property
    def memory_limit(self) -> int:
        """Bytes beyond which a step that ran out of memory is not tried again."""
        return in_bytes(self.max_memory) if self.max_memory else 4 * in_bytes(self.memory)


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


class ParameterRange(_Part):
    """The numbers from `low` to `high`, both included; whole ones when `low` and `high` are."""

    low: int | float = Field(description="The lowest number.")
    high: int | float = Field(description="The highest number.")
    log: bool = Field(
        default=False, description="Try as many numbers from 0.1 to 1 as from 1 to 10."
    )
    step: int | float | None = Field(
        default=None, gt=0, description="Try only low, low + step, and so on to high."
    )

    @field_validator("high")
    @classmethod
    def _is_above_low(cls, high: float, info: ValidationInfo) -> float:
        low = info.data.get("low")
        if low is not None:
            if not low < high:
                raise ValueError(f"must be more than low, which is {low}")
            if not high - low <= _WIDEST_RANGE:
                raise ValueError(f"must be at most 2^53 more than low, which is {low}")
        return high

    @field_validator("log")
    @classmethod
    def _has_logarithms(cls, log: bool, info: ValidationInfo) -> bool:
        if log and info.data.get("low", 1) <= 0:
            raise ValueError(f"low must be more than 0 for log, and is {info.data['low']}")
        return log

    @field_validator("step")
    @classmethod
    def _leads_to_high(cls, step: float | None, info: ValidationInfo) -> float | None:
        if step is None or not {"low", "high"} <= info.data.keys():
            return step
        if info.data.get("log"):
            raise ValueError("step and log exclude each other: keep one of them")
        # as decimal numbers: 0.3 / 0.1 is less than 3 in floating point
        low, high, exact = (Decimal(str(n)) for n in (info.data["low"], info.data["high"], step))
        if exact > high - low or (high - low) % exact:
            raise ValueError(f"steps of {step} do not lead from {low} to {high}")
        return step

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are tried."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))


def _as_search(value: object) -> object:
    if isinstance(value, dict):
        return ParameterRange.model_validate(value)
    if isinstance(value, list):
        _mistakes(_choice_mistakes(value))
    elif not isinstance(value, ParameterRange):
        raise ValueError("must be a list of values, or a map such as {low: 1, high: 10}")
    return value


Search = Annotated[list[Any] | ParameterRange, BeforeValidator(_as_search)]
"""What is tried for a parameter: each of the values of a list, or numbers of a range."""


class TuneSpec(_Part):
    """A search for better parameters of the estimator; none when `trials` is 0."""

    trials: int = Field(
        default=0, ge=0, le=1000, description="How many sets of parameters are tried."
    )
    parallel: int = Field(
        default=4,
        ge=1,
        le=64,
        description="How many trials run at once, learning from those before them but not from "
        "each other.",
    )
    space: dict[str, Search] = Field(
        default={},
        validate_default=True,
        description="Parameter -> list of values, or range of numbers. It takes precedence over "
        "model.params.",
        examples=[{"C": {"low": 0.01, "high": 100, "log": True}, "fit_intercept": [True, False]}],
    )
    by: Metric | None = Field(
        default=None,
        description="Metric to improve; default: promote.by, or else the first metric.",
    )
    folds: int = Field(
        default=5, ge=2, le=50, description="Parts of the training set for cross-validation."
    )
    seed: int | None = Field(
        default=None, ge=0, le=2**32 - 1, description="Of the search; default: split.seed."
    )
    prune: bool = Field(
        default=True,
        description="Give up a trial that after some folds is worse than half of the others.",
    )
    timeout: Seconds | None = Field(
        default=None, gt=0, description="Seconds that a trial may take, or a text such as 90s, 2m."
    )

    @field_validator("space")
    @classmethod
    def _is_searched(cls, space: dict[str, Search], info: ValidationInfo) -> dict[str, Search]:
        trials = info.data.get("trials")
        if trials and not space:
            raise ValueError("trials without a space: name the parameters to try values of")
        if trials == 0 and space:
            raise ValueError("a space without trials: set tune.trials, or remove the space")
        return space

    def first_of_round(self, number: int) -> int:
        """Return the first of the trials that run at the same time as the one of this number."""
        return number - number % self.parallel


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
    """Batch inference, one day at a time."""

    uri: DatedUri = Field(
        description="The files to score: a path relative to the pipeline file, an fsspec URL or a "
        "glob. {date} stands for the day, as in 2026-01-31.",
        examples=["../inbox/{date}/*.csv", "s3://bucket/inbox/{date}/*.parquet"],
    )
    schedule: Cron | None = Field(
        default=None, description="Cron string, or @daily and the like.", examples=["0 6 * * *"]
    )
    start: Day = Field(default=FIRST_DAY, description="The first day that can be scored.")
    id: list[ColumnName] = Field(
        default=[],
        description="Columns that tell which row a prediction is for; copied to the output. "
        "Default: the name of the file and the number of the row.",
    )
    labels: DatedUri | None = Field(
        default=None,
        description="Files with what really happened, by the columns of id; {date} is the day "
        "that was scored.",
    )
    fresh_within: Window | None = Field(
        default=None,
        description="How old the latest predictions may get before Dagster reports them as "
        "overdue: seconds, or a text such as 12h, 2d. Default: three intervals of the schedule; "
        "nothing is overdue without one.",
        examples=["2d"],
    )

    @field_validator("id")
    @classmethod
    def _leaves_the_names_of_the_output(cls, columns: list[str]) -> list[str]:
        _mistakes(
            ((i,), f"{shown(column)} is given twice, or the name of a column of the output")
            for i, column in enumerate(columns)
            if column in (*columns[:i], "prediction", "model_version")
        )
        return columns

    @field_validator("labels")
    @classmethod
    def _can_be_matched(cls, labels: str | None, info: ValidationInfo) -> str | None:
        if labels is not None and not info.data.get("id", True):
            raise ValueError("labels are matched by the columns of score.id: list at least one")
        return labels


class Levels(_Part):
    """From which value on something is worth a look, and from which it is wrong."""

    warn: float | None = Field(default=None, ge=0, description="From here on a warning.")
    error: float | None = Field(default=None, ge=0, description="From here on an error.")

    @field_validator("error")
    @classmethod
    def _is_not_below_the_warning(cls, error: float | None, info: ValidationInfo) -> float | None:
        warn = info.data.get("warn")
        if error is not None and warn is not None and error < warn:
            raise ValueError(f"must not be less than warn, which is {warn}")
        return error

    def level(self, value: float) -> Literal["ok", "warn", "error"]:
        """Return what a value means."""
        if self.error is not None and value >= self.error:
            return "error"
        return "warn" if self.warn is not None and value >= self.warn else "ok"


Share = Annotated[float, Field(gt=0, le=1)]


class ColumnDriftSpec(_Part):
    """What is different for one column."""

    psi: Levels | None = Field(default=None, description="In place of drift.psi.")
    p_value: Share | None = Field(default=None, description="In place of drift.p_value.")


class DriftSpec(_Part):
    """How far the scored rows, and the answers to them, may be from those of training."""

    # 0.1 and 0.25: Siddiqi, 2006, "Credit Risk Scorecards"
    psi: Levels = Field(
        default=Levels(warn=0.1, error=0.25),
        description="Population stability index of a column.",
    )
    p_value: Share | None = Field(
        default=0.01,
        description="A shift counts only if a chi-squared test, too, finds one on the rows of the "
        "day; how often it may be wrong, over all columns. null: the index alone decides.",
    )
    columns: dict[ColumnName, ColumnDriftSpec] = Field(
        default={},
        description="Features for which other limits hold.",
        examples=[{"age": {"psi": {"warn": 0.2, "error": 0.5}}}],
    )
    ignore: list[ColumnName] = Field(
        default=[], description="Features that are not compared, such as times that always move on."
    )
    min_rows: int = Field(
        default=100, ge=1, description="Rows, and labels, below which nothing is said of a day."
    )
    metrics: dict[Metric, Levels] = Field(
        default={},
        description="Metric -> by how much it may be lower than at promotion, once score.labels "
        "are there.",
        examples=[{"roc_auc": {"warn": 0.02, "error": 0.05}}],
    )


class TrainSpec(_Part):
    """When the pipeline trains by itself."""

    schedule: Cron | None = Field(
        default=None, description="Cron string, or @daily and the like.", examples=["@daily"]
    )
    timezone: TimeZone = Field(default="UTC", description="IANA time zone of the schedules.")
    on_new_data: bool = Field(default=False, description="Train when the source changed.")
    fresh_within: Window | None = Field(
        default=None,
        description="How old the latest training, or the confirmation that it would change "
        "nothing, may get before Dagster reports the model as overdue: seconds, or a text such as "
        "12h, 2d. Default: three intervals of the schedule; nothing is overdue without one.",
        examples=["2d"],
    )


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


class Timing(NamedTuple):
    """When a pipeline runs by itself, and how old what it makes may get."""

    schedule: str | None
    timezone: str
    fresh_within: float | None


class Pipeline(_Part):
    """What pipelines of every kind have: a name, retries and owners."""

    name: Annotated[str, AfterValidator(_check_name)]
    description: str = Field(default="", description="What it is for, and for whom.")
    retries: RetrySpec = RetrySpec()
    owners: list[Annotated[str, AfterValidator(_check_owner)]] = Field(
        default=[], description="E-mail addresses, or team:NAME."
    )
    folder: Path = Field(
        default=Path(), exclude=True, description="What relative paths are relative to."
    )

    @property
    def upstreams(self) -> dict[Location, Upstream]:
        """The assets of other pipelines that this one is made from, by where they are named."""
        raise NotImplementedError

    @property
    def made_once(self) -> list[str]:
        """What a run of it makes, in order, apart from what has a partition for each day."""
        raise NotImplementedError

    @property
    def job(self) -> str:
        """The name of the job that makes it."""
        raise NotImplementedError

    @property
    def timing(self) -> Timing:
        """When that job runs by itself."""
        raise NotImplementedError

    @property
    def kept_fresh(self) -> list[str]:
        """Of what it makes that for whose sake the rest is made."""
        raise NotImplementedError


class PipelineSpec(Pipeline):
    """A pipeline from the data to the promoted model and its predictions."""

    data: DataSpec = Field(description="Where the data is and what is in it.")
    split: SplitSpec = SplitSpec()
    model: ModelSpec = Field(description="What is trained.")
    tune: TuneSpec = TuneSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    promote: PromoteSpec = PromoteSpec()
    score: ScoreSpec | None = None
    drift: DriftSpec = DriftSpec()
    train: TrainSpec = TrainSpec()
    timeout: Seconds | None = Field(
        default=None,
        gt=0,
        le=366 * 86_400,
        description="Seconds that one try of a step may take, or a text such as 90s, 30m, 2h.",
        examples=["2h"],
    )
    recompute: list[StageName] = Field(
        default=[],
        description="Stages that run every time; the others are reused unless their code, their "
        "parameters or the content of their inputs changed.",
    )

    @property
    def upstreams(self) -> dict[Location, Upstream]:
        """The source, if it is the asset of another pipeline."""
        return {("data", "uri"): self.data.upstream} if self.data.upstream else {}

    @property
    def made_once(self) -> list[str]:
        """What training makes: `raw`, `train`, …."""
        tuned = ["best_params"] if self.tune.trials else []
        return ["raw", "train", "test", *tuned, "model", "metrics", "champion"]

    @property
    def job(self) -> str:
        """The name of the job that trains."""
        return f"{self.name}_training"

    @property
    def timing(self) -> Timing:
        """When training runs by itself."""
        return Timing(self.train.schedule, self.train.timezone, self.train.fresh_within)

    @property
    def kept_fresh(self) -> list[str]:
        """The model."""
        return ["model"]

    @field_validator("data")
    @classmethod
    def _is_not_made_of_itself(cls, data: DataSpec, info: ValidationInfo) -> DataSpec:
        if data.upstream is not None and data.upstream.pipeline == info.data.get("name"):
            why = f"{shown(data.uri)} is made by this pipeline: name another one"
            _mistakes([(("uri",), why)])
        return data

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

    @field_validator("tune")
    @classmethod
    def _tunes_the_estimator(cls, tune: TuneSpec, info: ValidationInfo) -> TuneSpec:
        if "model" in info.data:
            facts = info.data["model"].estimator_facts
            unknown = ((name, unknown_parameter(facts, name)) for name in tune.space)
            _mistakes((("space", name), why) for name, why in unknown if why)
        if tune.by is not None:
            _mistakes(_unfit_metrics([(("by",), tune.by)], info))
        return tune

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

    @field_validator("drift")
    @classmethod
    def _watches_what_is_scored(cls, drift: DriftSpec, info: ValidationInfo) -> DriftSpec:
        if "score" not in info.data:
            return drift
        score: ScoreSpec | None = info.data["score"]
        if score is None and drift != DriftSpec():
            raise ValueError("without score there are no predictions to watch: remove drift")
        if drift.metrics and score is not None and score.labels is None:
            _mistakes([(("metrics",), "realised metrics need the labels of score.labels")])
        _mistakes(_unfit_metrics([(("metrics", name), name) for name in drift.metrics], info))
        _mistakes(_unknown_at_promotion(drift, info))
        return drift

    def metrics_for(self, kind: Kind) -> list[str]:
        """Names of the metrics to measure, the one that decides on promotion first.

        The ones listed, or the default ones for this kind of problem; and those that the gates and
        `promote.by` need.
        """
        methods = self.model.estimator_facts.attributes
        listed = self.evaluate.metrics or default_metrics(kind, methods)
        first = [self.promote.by] if self.promote.by else []
        return list(dict.fromkeys([*first, *listed, *self.evaluate.gates]))


class StepSpec(_Part):
    """One step: a command, and what it needs."""

    command: Command | None = Field(
        default=None,
        description="A text is run by `sh -ec`; a list is a program and its arguments. Left out: "
        "what the image runs by itself.",
        examples=["date -u", ["python", "report.py", "--all"]],
    )
    needs: list[Annotated[str, AfterValidator(_check_need)]] = Field(
        default=[],
        description="Steps of this file, and assets of other pipelines such as churn/champion, "
        "that must be there first. The command finds what a step printed, or the URL of another "
        "asset, in a variable of its name in capitals: PRINT_DATE, CHURN_CHAMPION.",
    )
    image: Annotated[str, AfterValidator(_check_image)] | None = Field(
        default=None,
        description="Container image to run it in: a pod on a cluster, docker or podman elsewhere.",
        examples=["docker.io/library/busybox:1.37"],
    )
    env: dict[Annotated[str, AfterValidator(_check_variable)], str] = Field(
        default={}, description="Environment variables. Not for passwords: they are kept in clear."
    )
    files: list[Annotated[str, AfterValidator(_check_file)]] = Field(
        default=[],
        description="Files, folders and globs that the command reads, relative to this file: it "
        "runs again when their content changes.",
        examples=[["report.py", "sql/*.sql"]],
    )
    checks: list[Annotated[str, AfterValidator(_check_check)]] = Field(
        default=[],
        description="Asset checks that the command reports by Dagster Pipes. One that fails, "
        "unless reported as a warning, stops what needs the step.",
    )
    timeout: Seconds | None = Field(
        default=None, gt=0, description="Seconds that one try may take, or a text such as 90s, 10m."
    )
    compute: ComputeSpec = ComputeSpec()
    description: str = Field(default="", description="What it does, for the UI.")

    @field_validator("needs")
    @classmethod
    def _are_told_apart(cls, needs: list[str]) -> list[str]:
        variables = [variable_of(need) for need in needs]
        _mistakes(
            ((i,), f"{shown(need)} is the second one that is given in the variable {variables[i]}")
            for i, need in enumerate(needs)
            if variables[i] in variables[:i]
        )
        return needs

    @field_validator("env")
    @classmethod
    def _leaves_the_needs(cls, env: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        given = {variable_of(need): need for need in info.data.get("needs", [])}
        _mistakes(
            ((name,), f"{name} is the variable in which {given[name]} is given: choose another one")
            for name in env
            if name in given
        )
        return env

    @field_validator("files")
    @classmethod
    def _are_not_in_an_image(cls, files: list[str], info: ValidationInfo) -> list[str]:
        if files and info.data.get("image") is not None:
            raise ValueError("an image has its files in it and does not see these: remove them")
        return files

    @field_validator("checks")
    @classmethod
    def _are_different(cls, checks: list[str]) -> list[str]:
        _mistakes(
            ((i,), f"{shown(name)} is in the list twice")
            for i, name in enumerate(checks)
            if name in checks[:i]
        )
        return checks


class StepsSpec(Pipeline):
    """A pipeline of steps that are commands."""

    steps: dict[Annotated[str, AfterValidator(_check_step_name)], StepSpec] = Field(
        description="Name -> what is run."
    )
    schedule: Cron | None = Field(
        default=None, description="Cron string, or @daily and the like.", examples=["@daily"]
    )
    timezone: TimeZone = Field(default="UTC", description="IANA time zone of the schedule.")
    fresh_within: Window | None = Field(
        default=None,
        description="How old the last steps may get before Dagster reports them as overdue: "
        "seconds, or a text such as 12h, 2d. Default: three intervals of the schedule; nothing is "
        "overdue without one.",
        examples=["2d"],
    )
    recompute: list[str] = Field(
        default=[],
        description="Steps that run every time; the others are reused unless their command, their "
        "files or the content of their inputs changed.",
    )

    @field_validator("steps")
    @classmethod
    def _can_be_ordered(
        cls, steps: dict[str, StepSpec], info: ValidationInfo
    ) -> dict[str, StepSpec]:
        if not steps:
            raise ValueError("there is no step: write at least one, with its command")
        pipeline = info.data.get("name")
        _mistakes(
            mistake
            for name, step in steps.items()
            for mistake in _step_mistakes(name, step, steps, pipeline)
        )
        _mistakes(_circular(steps))
        return steps

    @field_validator("recompute")
    @classmethod
    def _are_steps(cls, recompute: list[str], info: ValidationInfo) -> list[str]:
        steps = info.data.get("steps")
        if steps is not None:
            _mistakes(
                ((i,), f"there is no step {shown(name)}{nearest(name, steps)}")
                for i, name in enumerate(recompute)
                if name not in steps
            )
        return recompute

    @property
    def upstreams(self) -> dict[Location, Upstream]:
        """The assets of other pipelines that steps need."""
        return {
            ("steps", name, "needs", i): Upstream(*need.split("/"))
            for name, step in self.steps.items()
            for i, need in enumerate(step.needs)
            if "/" in need
        }

    @property
    def made_once(self) -> list[str]:
        """The names of the steps, each after those that it needs, else as in the file."""
        order: list[str] = []
        while waiting := {name: step for name, step in self.steps.items() if name not in order}:
            order.append(next(n for n, it in waiting.items() if {*_own(it.needs)} <= {*order}))
        return order

    @property
    def job(self) -> str:
        """The name of the job that runs the steps."""
        return f"{self.name}_steps"

    @property
    def timing(self) -> Timing:
        """When the steps run by themselves."""
        return Timing(self.schedule, self.timezone, self.fresh_within)

    @property
    def kept_fresh(self) -> list[str]:
        """The names of the steps that no other one needs."""
        needed = {need for step in self.steps.values() for need in step.needs}
        return [name for name in self.steps if name not in needed]


# --- rules of several values --------------------------------------------------------------------


def _own(needs: Iterable[str]) -> list[str]:
    """Return those of the needs that are steps of the same file."""
    return [need for need in needs if "/" not in need]


def _step_mistakes(
    name: str, step: StepSpec, steps: Iterable[str], pipeline: str | None
) -> Iterator[tuple[Location, str]]:
    if step.command is None and step.image is None:
        yield (name,), "a step needs a command, or an image that runs something by itself"
    for i, need in enumerate(step.needs):
        of_pipeline, _, own = need.rpartition("/")
        if of_pipeline and of_pipeline == pipeline:
            yield (name, "needs", i), f"{shown(need)} is in this file: write {own}"
        elif need == name:
            yield (name, "needs", i), "a step cannot need itself"
        elif not of_pipeline and need not in steps:
            others = ", ".join(other for other in steps if other != name)
            yield (
                (name, "needs", i),
                f"there is no step {shown(need)}{nearest(need, steps)}; allowed are "
                f"{f'{others}, and ' * bool(others)}assets of other pipelines as PIPELINE/ASSET",
            )


def _circular(steps: dict[str, StepSpec]) -> Iterator[tuple[Location, str]]:
    """Find the steps that wait for themselves, each circle once."""
    seen: set[str] = set()
    for name in steps:
        if name not in seen and (circle := circle_of(name, lambda one: _own(steps[one].needs))):
            seen.update(circle)
            i = steps[name].needs.index(circle[1])
            yield (name, "needs", i), f"steps wait for each other: {' ← '.join(circle)}"


def circle_of(name: str, above: Callable[[str], Iterable[str]]) -> list[str]:
    """Return the way from a name over what is above it back to itself; none if there is no way."""
    ways, seen = [[name]], {name}
    while ways:
        way = ways.pop(0)
        for other in above(way[-1]):
            if other == name:
                return [*way, name]
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return []


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


def _choice_mistakes(choices: list[Any]) -> Iterator[tuple[Location, str]]:
    """What cannot be tried; trials are kept as JSON, which has no infinity and no keys but text."""
    if not choices:
        yield (), "an empty list has nothing to try: give values, or remove the parameter"
    seen: set[str] = set()
    for i, choice in enumerate(choices):
        try:
            text = json.dumps(choice, allow_nan=False, sort_keys=True)
            is_kept = json.loads(text) == choice
        except (TypeError, ValueError):
            text, is_kept = repr(choice), False
        if not is_kept:
            yield (i,), f"{shown(choice)} cannot be tried: give finite numbers, and text as keys"
        elif text in seen:
            yield (i,), f"{shown(choice)} is in the list twice"
        seen.add(text)


def _parameter_mistakes(
    facts: ClassFacts, params: dict[str, Any]
) -> Iterator[tuple[Location, str]]:
    for name in params:
        if why := unknown_parameter(facts, name):
            yield (name,), why
    for name in missing_parameters(facts, params):
        yield (), f"{facts.name} needs the parameter {shown(name)}"


def _unknown_at_promotion(drift: DriftSpec, info: ValidationInfo) -> Iterator[tuple[Location, str]]:
    """Metrics whose loss nobody could tell; what is measured by default depends on the data."""
    if not {"evaluate", "promote"} <= info.data.keys() or not info.data["evaluate"].metrics:
        return
    evaluate: EvaluateSpec = info.data["evaluate"]
    measured = {*evaluate.metrics, *evaluate.gates, info.data["promote"].by}
    for name in drift.metrics:
        if name not in measured:
            why = f"'{name}' is not measured before promotion: add it to evaluate.metrics"
            yield ("metrics", name), why


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
