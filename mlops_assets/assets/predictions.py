"""`p/predictions`: what the champion says of the files of a day, one partition for each day."""

import time
from collections.abc import Iterator
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetExecutionContext,
    AssetIn,
    AssetsDefinition,
    DailyPartitionsDefinition,
    Output,
    asset,
)

from mlops_assets.assets.common import (
    STORE,
    check_of_partitions,
    in_one_run,
    key_of,
    step_settings,
    warnings_logged,
)
from mlops_assets.dagster_internals.steps import recorded_input_version
from mlops_assets.spec import PipelineSpec
from mlops_assets.stages import Stage
from mlops_assets.store.io_manager import READ_ONCE, StoreIOManager
from mlops_assets.store.reuse import defined_by
from mlops_assets.wording import redacted

INBOX = "mlops/inbox"
"""Tag of a materialisation and of a run: the identity of the files that were scored."""

UNIQUE_IDS = "unique_ids"


def scoring_days(spec: PipelineSpec) -> DailyPartitionsDefinition:
    """Return the days that can be scored: from `score.start` to today, in `train.timezone`.

    Raises
    ------
    ValueError
        The pipeline file has no `score`.
    """
    if spec.score is None:
        raise ValueError(f"{spec.name} has no score section")
    return DailyPartitionsDefinition(
        spec.score.start.isoformat(), timezone=spec.train.timezone, end_offset=1
    )


def not_asked(spec: PipelineSpec) -> list[str]:
    """Return the columns of the data that are no features, and may be in the files of a day."""
    return [spec.data.target, *spec.data.drop, *([spec.split.group] if spec.split.group else [])]


def build_predictions(spec: PipelineSpec, stage: Stage) -> AssetsDefinition:
    """Return the asset `p/predictions`, with a check that no id is there twice if ids are named.

    Days that are launched together are one run, in which each has its own version and fails by
    itself: see `mlops_assets.store.ranges`.
    """
    score = spec.score
    assert score is not None
    key = key_of(spec, "predictions")

    @asset(
        key=key,
        ins={"model": AssetIn(key_of(spec, "champion"), metadata={READ_ONCE: True})},
        partitions_def=scoring_days(spec),
        io_manager_key=STORE,
        required_resource_keys={STORE},
        description=(
            f"`{spec.data.target}` as the champion predicts it for `{redacted(score.uri)}`."
        ),
        owners=spec.owners,
        kinds={"scikitlearn", "parquet"},
        check_specs=[
            check_of_partitions(
                UNIQUE_IDS, key, f"{', '.join(score.id)}: no two rows have it.", scoring_days(spec)
            )
        ]
        if score.id
        else [],
        group_name=spec.name,
        **step_settings(spec, "predictions"),
        code_version=stage.code.version,
    )
    @defined_by(stage)
    def predictions(
        context: AssetExecutionContext, model: Any
    ) -> Iterator[Output[Any] | AssetCheckResult]:
        from mlops_assets.ml.inbox import files_of_day, identity_of
        from mlops_assets.ml.score import Tally, score_batches

        store: StoreIOManager = context.resources.store
        day, tally, begun = context.partition_key, Tally(), time.monotonic()
        model_version = str(recorded_input_version(context, key_of(spec, "champion")))
        with warnings_logged(context.log):
            files = files_of_day(score.uri, spec.folder, day, store.outside.source_options)
            batches = score_batches(
                model,
                files,
                spec.data,
                model_version=model_version,
                ids=score.id,
                known=not_asked(spec),
                tally=tally,
                report=context.log.info,
            )
            artifact = store.artifacts.write(key.path, batches, day)
        seconds = time.monotonic() - begun
        speed = tally.rows / seconds
        context.log.info(f"{len(files)} files, {tally.rows:,} rows scored, {speed:,.0f} rows/s")
        yield Output(
            artifact,
            metadata={
                "files": len(files),
                "model_version": model_version,
                "seconds": round(seconds, 3),
                "rows_per_second": round(speed),
                **tally.summary(),
            },
            tags={INBOX: identity_of(files)},
        )
        if score.id:
            repeated = tally.repeated_ids()
            yield AssetCheckResult(
                check_name=UNIQUE_IDS,
                passed=not repeated,
                severity=AssetCheckSeverity.WARN,
                description=f"{repeated} of {tally.rows} rows repeat the id of another one",
                metadata={"repeated_ids": repeated, "partition": day},
            )

    return in_one_run(predictions)
