"""The sensors of a pipeline: what looks at its data, and what launches its stale assets.

All start switched off, as Dagster's do. What is stale is `staleness` and, of days to score,
`scoring`; when a stale asset is requested is `conditions`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from textwrap import shorten
from typing import TYPE_CHECKING, NamedTuple

from dagster import (
    AssetKey,
    AssetObservation,
    DagsterInstance,
    RunRequest,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    partition_loading_context,
    sensor,
)

from mlops_assets.assets.common import STORE, key_of
from mlops_assets.automation.conditions import reuse_sensor
from mlops_assets.automation.schedules import (
    LONGEST_REASON,
    keys_of,
    request_of,
    skip_reason,
    stale_now,
)
from mlops_assets.automation.scoring import days_to_score
from mlops_assets.automation.staleness import UndecidedError, recorded_in
from mlops_assets.dagster_internals.automation import Lineage, versions_by_partition
from mlops_assets.dagster_internals.many_assets import exactly
from mlops_assets.errors import UserError
from mlops_assets.spec import PipelineSpec
from mlops_assets.stages import source_seen

if TYPE_CHECKING:
    from dagster import UnresolvedAssetJobDefinition

    from mlops_assets.ml.listing import Listing
    from mlops_assets.spec import Pipeline, Upstream
    from mlops_assets.store.memo import Outside

INTERVAL = 60  # seconds between two looks at a source

MOST_ASSETS = 500
"""Of an automation sensor, a limit of Dagster's."""

NEW_DATA = "mlops/new_data"
"""Tag of a run: what was new or changed, as far as it can be named."""

SETTLE_SECONDS = 10.0
"""How long a local file must have been left alone for a run to be launched for it."""


def pipeline_sensors(
    spec: Pipeline,
    main: UnresolvedAssetJobDefinition,
    scoring: UnresolvedAssetJobDefinition | None,
) -> list[SensorDefinition]:
    """Return `p_automation_sensor` and what looks at the pipeline's data, if it has any.

    Every further 500 steps have an automation sensor of their own, `p_automation_sensor_2`.

    That is `p_new_data_sensor` where new data is to launch runs. Where it is not to launch
    training, and the data is not the asset of another pipeline, it is `p_source_sensor`.

    Parameters
    ----------
    spec : Pipeline
        The pipeline.
    main, scoring : jobs
        `p_training` or `p_steps`, and `p_scoring` if there is one.
    """
    keys = keys_of(spec)
    sensors: list[SensorDefinition] = [
        reuse_sensor(
            f"{spec.name}_automation_sensor" + (f"_{number + 1}" if number else ""),
            exactly(keys[start : start + MOST_ASSETS]),
        )
        for number, start in enumerate(range(0, len(keys), MOST_ASSETS))
    ]
    if not isinstance(spec, PipelineSpec):
        return sensors
    if not spec.train.on_new_data and spec.data.upstream is None:
        sensors.append(source_sensor(spec))
    if spec.train.on_new_data or spec.score is not None:
        sensors.append(new_data_sensor(spec, [main, *([scoring] if scoring else [])]))
    return sensors


# --- what launches nothing ----------------------------------------------------------------------


def source_sensor(spec: PipelineSpec) -> SensorDefinition:
    """Return the sensor that records an observation of `p/source` when its content is new.

    It launches no run, and content is read only when a file has been touched. A source that cannot
    be looked at is a failed tick with the reason.
    """
    key = key_of(spec, "source")

    @sensor(
        name=f"{spec.name}_source_sensor",
        minimum_interval_seconds=INTERVAL,
        required_resource_keys={STORE},
        description=f"Observes {key.to_user_string()} when its content has changed.",
    )
    def look(context: SensorEvaluationContext) -> SensorResult:
        try:
            touched = _listing(spec, context, _Seen()).digest
            if touched == context.cursor:
                return SensorResult(skip_reason="no file was touched", cursor=touched)
            version = source_seen(spec, context.resources.store.outside).version
        except (UserError, OSError) as error:
            raise UndecidedError(f"{spec.name}: {error}") from error
        if version == _latest_observed(context.instance, key):
            return SensorResult(skip_reason=f"the content is still {version}", cursor=touched)
        observed = AssetObservation(key, tags={"dagster/data_version": version})
        return SensorResult(asset_events=[observed], cursor=touched)

    return look


def _latest_observed(instance: DagsterInstance, key: AssetKey) -> str | None:
    for record in instance.fetch_observations(key, limit=1).records:
        if record.asset_observation is not None:
            return record.asset_observation.data_version
    return None


# --- what launches runs -------------------------------------------------------------------------


class _Seen(NamedTuple):
    """What the sensor remembers of a source: the same few values for any number of objects."""

    digest: str = ""
    """Of the listing that was last acted on."""
    acted: float = 0
    """When that was, in seconds since 1970."""
    objects: int = 0
    newest: tuple[float, str] = (0, "")
    last: str = ""
    """Digest of the listing at the tick before."""

    @classmethod
    def load(cls, cursor: str | None) -> _Seen:
        with suppress(ValueError, TypeError):  # edited by hand: as if it had been reset
            digest, acted, objects, (modified, name), last = json.loads(cursor or "")
            newest = (float(modified), str(name))
            return cls(str(digest), float(acted), int(objects), newest, str(last))
        return cls()

    def dump(self) -> str:
        return json.dumps(self)


class _Decision(NamedTuple):
    """What a tick does about training: a run, or the reason for none; and what it remembers."""

    run: RunRequest | SkipReason
    seen: _Seen


def new_data_sensor(
    spec: PipelineSpec, jobs: Sequence[UnresolvedAssetJobDefinition]
) -> SensorDefinition:
    """Return `p_new_data_sensor`, which launches `p_training` and `p_scoring` when there is cause.

    With `train.on_new_data`, any appearance, change or removal of an object of the source makes a
    plan as `p_training_schedule` does, and launches what that names. With `score`, days with files
    that were not scored as they are now are launched as by `p_scoring_schedule`. What cannot be
    looked at is a failed tick with the reason, unless there was something to launch all the same.
    """

    @sensor(
        name=f"{spec.name}_new_data_sensor",
        jobs=jobs,
        minimum_interval_seconds=INTERVAL,
        required_resource_keys={STORE},
        description="Launches training on new data, and scoring of days with new files.",
    )
    def new_data(context: SensorEvaluationContext) -> SensorResult:
        seen = _Seen.load(context.cursor)
        decided: list[RunRequest | SkipReason] = []
        failures: list[UndecidedError] = []
        if spec.train.on_new_data:
            try:
                run, seen = _training(spec, context, seen)
                decided.append(run)
            except UndecidedError as error:
                failures.append(error)
        if spec.score is not None:
            try:
                decided += _scoring(spec, context)
            except UndecidedError as error:
                failures.append(error)
        runs = [one for one in decided if isinstance(one, RunRequest)]
        if failures and not runs:
            raise failures[0]
        for failure in failures:
            context.log.error(str(failure))
        reasons = [str(one.skip_message) for one in decided if isinstance(one, SkipReason)]
        return SensorResult(
            run_requests=runs,
            skip_reason=None if runs else "\n".join(reasons),
            cursor=seen.dump(),
        )

    return new_data


def _training(spec: PipelineSpec, context: SensorEvaluationContext, seen: _Seen) -> _Decision:
    try:
        found = _listing(spec, context, seen)
    except (UserError, OSError) as error:
        raise UndecidedError(f"{spec.name}: {error}") from error
    waiting = seen._replace(last=found.digest)
    if found.digest == seen.digest:
        return _Decision(SkipReason(f"training: nothing new among {found.objects}"), waiting)
    if found.unsettled is not None and found.digest != seen.last:
        return _Decision(SkipReason(f"training: {found.unsettled} may not be complete"), waiting)
    chosen = stale_now(spec, context)
    if chosen.later:  # a run is at work: what that leaves stale is launched when it has ended
        return _Decision(skip_reason(keys_of(spec), chosen), waiting)
    acted_on = _Seen(found.digest, time.time(), found.objects, found.newest, found.digest)
    if not chosen.now:
        return _Decision(skip_reason(keys_of(spec), chosen), acted_on)
    launch = request_of(chosen.now, {NEW_DATA: _news(found, seen)})
    run = RunRequest(
        # Of equal keys Dagster launches one, ever: the same when it evaluates this tick again, and
        # another one when a source becomes what it was before.
        run_key=f"{seen.digest} at {seen.acted} → {found.digest}",
        job_name=spec.job,
        asset_selection=launch.asset_selection,
        tags=launch.tags,
    )
    return _Decision(run, acted_on)


def _listing(spec: PipelineSpec, context: SensorEvaluationContext, seen: _Seen) -> Listing:
    from mlops_assets.ml.listing import look

    if spec.data.upstream is not None:
        return _versions(spec.data.upstream, context.instance)
    outside: Outside = context.resources.store.outside
    return look(
        spec.data.uri,
        spec.folder,
        outside.source_options,
        after=seen.newest,
        settled_before=time.time() - SETTLE_SECONDS,
    )


def _versions(upstream: Upstream, instance: DagsterInstance) -> Listing:
    """Return the versions of another pipeline's asset as if they were objects."""
    from mlops_assets.ml.listing import Listing

    key = AssetKey([upstream.pipeline, upstream.asset])
    if upstream.is_daily:
        versions: dict[str, str | None] = {**versions_by_partition(instance, key)}
    else:
        versions = {name: one.version for name, one in recorded_in(instance, [key]).items()}
    digest = sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:32]
    return Listing(digest, len(versions), (0, ""), 0, (), None)


def _news(found: Listing, seen: _Seen) -> str:
    """Say what is new, as far as it can be named."""
    if not found.news:
        return (
            f"{seen.objects} → {found.objects} objects"
            if seen.digest
            else f"{found.objects} objects"
        )
    more = f" and {found.news - len(found.examples)} more" * (found.news > len(found.examples))
    return shorten(f"new or changed: {', '.join(found.examples)}", LONGEST_REASON) + more


def _scoring(
    spec: PipelineSpec, context: SensorEvaluationContext
) -> Iterator[RunRequest | SkipReason]:
    assert spec.score is not None
    now, outside = datetime.now(UTC), context.resources.store.outside
    with partition_loading_context(now, context.instance):
        days = days_to_score(spec, Lineage.of_schedule(context), outside, now)
    if isinstance(days, SkipReason):
        yield days
    elif not days.launch:
        yield SkipReason(days.skip_reason(spec.score.uri))
    else:
        for run in days.launch.values():
            yield RunRequest(
                run_key=run.run_key,
                job_name=f"{spec.name}_scoring",
                partition_key=run.partition_key,
                asset_selection=run.asset_selection,
                tags=run.tags,
            )
