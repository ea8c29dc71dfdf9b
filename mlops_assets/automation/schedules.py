"""The schedules: they launch what is stale with everything below it, and say why they do not.

All of them start switched off, as Dagster's do. What is stale is `staleness`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

from dagster import (
    AssetKey,
    AssetSelection,
    DefaultScheduleStatus,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    partition_loading_context,
    schedule,
)

from mlops_assets.assets.common import STORE, key_of
from mlops_assets.automation.freshness import confirmation_due
from mlops_assets.automation.staleness import (
    Launch,
    Staleness,
    Target,
    UndecidedError,
    launchable,
    name_of,
    recorded_in,
)
from mlops_assets.dagster_internals.automation import Lineage

if TYPE_CHECKING:
    from dagster import SensorEvaluationContext, UnresolvedAssetJobDefinition

    from mlops_assets.dagster_internals.automation import CoercibleToAssetSelection
    from mlops_assets.spec import Pipeline
    from mlops_assets.store.io_manager import StoreIOManager

REASON = "mlops/reason"
"""Tag of a run: why a schedule has launched it."""

LONGEST_REASON = 500  # characters, of what is shown whole in a list of runs
LONGEST_SKIP = 20  # lines


def main_schedule(spec: Pipeline, job: UnresolvedAssetJobDefinition) -> ScheduleDefinition | None:
    """Return `p_training_schedule` or `p_steps_schedule`; None when the file has no schedule.

    It launches what `mlops plan` would name, and skips when that is nothing, unless the freshness
    of what is made is to be confirmed before it is overdue. A source or a store that cannot be
    looked at is a failed tick with the reason: a skipped one would look as if there were nothing to
    do.
    """
    if spec.timing.schedule is None:
        return None

    @schedule(
        name=f"{spec.job}_schedule",
        job=job,
        cron_schedule=spec.timing.schedule,
        execution_timezone=spec.timing.timezone,
        required_resource_keys={STORE},
        description="Launches what is stale, with everything below it.",
    )
    def launch(context: ScheduleEvaluationContext) -> Iterator[RunRequest | SkipReason]:
        chosen = stale_now(spec, context)
        if not chosen.now and not chosen.later:
            now = context.scheduled_execution_time
            if due := confirmation_due(spec, context.instance, now):
                keys = keys_of(spec)
                chosen = launchable(Lineage.of_schedule(context), keys, lambda *_: due)
        yield request_of(chosen.now) if chosen.now else skip_reason(keys_of(spec), chosen)

    return launch


def keys_of(spec: Pipeline) -> list[AssetKey]:
    """Return what the job of a pipeline makes: `p_training` or `p_steps`."""
    return [key_of(spec, asset) for asset in spec.made_once]


def stale_now(
    spec: Pipeline, context: ScheduleEvaluationContext | SensorEvaluationContext
) -> Launch:
    """Choose what `mlops plan` names of a pipeline and can be launched now.

    Raises
    ------
    UndecidedError
        The source or the store cannot be looked at.
    """
    from mlops_assets.plan import plan_pipeline

    store: StoreIOManager = context.resources.store
    lineage, keys, daily = Lineage.of_schedule(context), keys_of(spec), {}
    above = []
    for upstream in spec.upstreams.values():
        above.append(AssetKey([upstream.pipeline, upstream.asset]))
        if upstream.is_daily:
            days = lineage.partitions(above[-1])
            daily[upstream.name] = str(days[0]) if days else ""
    recorded = recorded_in(context.instance, [*keys, *above], daily)
    plan = plan_pipeline(spec, store.outside, recorded)
    if plan.error is not None:
        raise UndecidedError(f"{spec.name}: {plan.error}")
    reasons = dict.fromkeys(plan.unrecorded, "computed before, but not the latest in this Dagster")
    reasons |= dict(plan.execute)
    return launchable(lineage, keys, lambda key, _: reasons.get(key.to_user_string()))


def stale_assets_schedule(
    name: str,
    selection: CoercibleToAssetSelection,
    cron_schedule: str | Sequence[str],
    *,
    execution_timezone: str = "UTC",
    description: str = "Launches what is stale, with everything below it.",
    tags: Mapping[str, str] | None = None,
    default_status: DefaultScheduleStatus = DefaultScheduleStatus.STOPPED,
) -> ScheduleDefinition:
    """Return a schedule for assets of any kind, one run for each stale partition.

    It compares the definitions with what Dagster recorded, so it takes assets of any store and IO
    manager; assets without a code version are stale only when missing or when an input changed.
    What failed is launched again at the next tick.

    Parameters
    ----------
    name : str
        Name of the schedule.
    selection : selection of assets
        What is launched; nothing else ever is, but what the same steps make. The partitioned ones
        must have the same partitions definition, as in every job.
    cron_schedule : str or sequence of str
        When.
    execution_timezone : str
        IANA name of the time zone.
    description : str
        For the UI.
    tags : mapping of str to str, optional
        Of the schedule, and of the runs that it launches.
    default_status : DefaultScheduleStatus
        Whether it is on before anybody switches it on or off.
    """

    @schedule(
        name=name,
        target=selection,
        cron_schedule=cron_schedule,
        execution_timezone=execution_timezone,
        description=description,
        tags=tags,
        default_status=default_status,
    )
    def stale_assets(context: ScheduleEvaluationContext) -> Iterator[RunRequest | SkipReason]:
        lineage = Lineage.of_schedule(context)
        keys = lineage.resolve(AssetSelection.from_coercible(selection))
        with partition_loading_context(context.scheduled_execution_time, context.instance):
            chosen = launchable(lineage, keys, Staleness(lineage).reason)
        for run in _by_partition(chosen.now).values():
            yield request_of(run, tags)
        if not chosen.now:
            yield skip_reason(keys, chosen)

    return stale_assets


def _by_partition(targets: Mapping[Target, str]) -> dict[str | None, dict[Target, str]]:
    runs: dict[str | None, dict[Target, str]] = defaultdict(dict)
    for target, why in targets.items():
        runs[target.partition][target] = why
    return runs


def request_of(targets: Mapping[Target, str], tags: Mapping[str, str] | None = None) -> RunRequest:
    """Return the run of what is to be made of one partition, with the reasons as a tag."""
    [partition] = {target.partition for target in targets}
    reasons = dict.fromkeys(f"{name_of(target)}: {why}" for target, why in targets.items())
    return RunRequest(
        # distinct within a tick: Dagster launches each once, also after an interruption
        run_key="unpartitioned" if partition is None else f"partition {partition}",
        partition_key=partition,
        asset_selection=[target.key for target in targets],
        tags={**(tags or {}), REASON: shorten("; ".join(reasons), LONGEST_REASON)},
    )


def skip_reason(keys: Iterable[AssetKey], chosen: Launch) -> SkipReason:
    """Say what is fresh, and what is not and has to wait."""
    waiting = {target.key for target in chosen.later}
    fresh = [key.to_user_string() for key in keys if key not in waiting]
    lines = [f"fresh: {', '.join(sorted(fresh))}"] if fresh else []
    lines += [f"waiting: {name_of(target)}: {why}" for target, why in chosen.later.items()]
    if len(lines) > LONGEST_SKIP:
        lines[LONGEST_SKIP:] = [f"and {len(lines) - LONGEST_SKIP} more"]
    return SkipReason("\n".join(lines))
