"""What the stages of a pipeline have in common as steps: names, retries, warnings, pictures.

What one stage does belongs in its own module.
"""

from __future__ import annotations

import base64
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict

from dagster import (
    AssetCheckSpec,
    AssetKey,
    AssetsDefinition,
    BackfillPolicy,
    Backoff,
    Jitter,
    MetadataValue,
    PartitionsDefinition,
    PreviewWarning,
    RetryPolicy,
    TextMetadataValue,
    UrlMetadataValue,
)

from mlops_assets.execution.compute import step_options, without_gpu
from mlops_assets.time_limit import TIMEOUT

if TYPE_CHECKING:
    from mlops_assets.spec import Pipeline, PipelineSpec, RetrySpec

STORE = "store"
"""Resource key of the store, which is also the IO manager of every asset."""

MLFLOW = "mlflow"
"""Resource key of the tracking server."""


def key_of(spec: Pipeline, stage: str) -> AssetKey:
    """Return the asset key of a stage, `pipeline/stage`."""
    return AssetKey([spec.name, stage])


def retry_policy(retries: RetrySpec) -> RetryPolicy:
    """Translate a pipeline file's `retries` to Dagster's policy.

    It only ever applies to errors that may pass: `failures.explained` makes the others final.
    """
    backoff = {"exponential": Backoff.EXPONENTIAL, "linear": Backoff.LINEAR, "constant": None}
    return RetryPolicy(
        max_retries=retries.max,
        delay=retries.delay,
        backoff=backoff[retries.backoff],
        jitter=Jitter.PLUS_MINUS if retries.jitter else None,
    )


class StepSettings(TypedDict):
    """Keyword arguments of Dagster's decorators for assets."""

    retry_policy: RetryPolicy
    op_tags: dict[str, Any]
    pool: str | None


def step_settings(spec: PipelineSpec, *assets: str, trains: bool = False) -> StepSettings:
    """Return how the step that makes these assets is tried again, for how long, and what it needs.

    Every stage holds the same data and asks for the memory of `model.compute`; one that `trains`
    asks for the accelerator as well.
    """
    compute = spec.model.compute if trains else without_gpu(spec.model.compute)
    options = step_options(spec.name, ".".join(assets), compute)
    if spec.timeout is not None:
        options["op_tags"][TIMEOUT] = str(spec.timeout)
    return {"retry_policy": retry_policy(spec.retries), **options}


def in_one_run(asset: AssetsDefinition) -> AssetsDefinition:
    """Have partitions that are launched together be one run, and return the asset.

    Each of them is still by itself: see `mlops_assets.store.ranges`.
    """
    return asset.with_attributes(backfill_policy=BackfillPolicy.single_run())


def check_of_partitions(
    name: str, key: AssetKey, description: str, partitions: PartitionsDefinition[str]
) -> AssetCheckSpec:
    """Return a check of which every partition has its own result, also those of one run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PreviewWarning)
        return AssetCheckSpec(name, asset=key, description=description, partitions_def=partitions)


@contextmanager
def warnings_logged(log: logging.Logger) -> Iterator[None]:
    """Log what libraries warn of, once each, where the step's log is read."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        log.warning("%s", " ".join(text.split()))


def as_markdown(figures: Mapping[str, bytes]) -> str:
    """Put PNG images into Markdown, which Dagster's UI shows."""
    return "\n\n".join(
        f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})"
        for name, png in figures.items()
    )


def link_of(text: str) -> UrlMetadataValue | TextMetadataValue:
    """Show an address as a link, and anything else that leads there as it is."""
    return MetadataValue.url(text) if text.startswith("http") else MetadataValue.text(text)
