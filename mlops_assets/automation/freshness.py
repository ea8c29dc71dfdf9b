"""By when an asset must have been made again, or been confirmed: its freshness policy.

Dagster's daemon compares the policy with the latest materialisation. A reuse is one: it says that
the asset is what it would be if it were made now. Who launches it is `schedules`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from dagster import AssetKey, DagsterInstance, FreshnessPolicy

from mlops_assets.assets.common import key_of
from mlops_assets.dagster_internals.many_assets import changing
from mlops_assets.dagster_internals.ticks import ticks_after
from mlops_assets.durations import in_words
from mlops_assets.spec import PipelineSpec, Timing

if TYPE_CHECKING:
    from dagster import AssetsDefinition

    from mlops_assets.spec import Pipeline

INTERVALS = 3
"""Of a schedule: the second tick in a row that brought nothing has had its time to bring it."""

SHORTEST = timedelta(hours=1)
"""Of a window that follows from a schedule: what is confirmed more often is only noise."""

# A Friday. From here on 1500 ticks have in them the longest gap of every schedule in use: after a
# month, after a weekend, and after a working day of a tick a minute.
_START = datetime(2027, 1, 1, tzinfo=UTC)
_TICKS, _YEARS = 1500, timedelta(days=10 * 366)


def with_freshness(assets: AssetsDefinition, spec: Pipeline) -> AssetsDefinition:
    """Give assets that were just made a policy: `p/model` and `p/predictions`, or the last steps.

    Others stay as they are.
    """
    windows = {key_of(spec, asset): main_window(spec) for asset in spec.kept_fresh}
    if isinstance(spec, PipelineSpec) and spec.score is not None:
        windows[key_of(spec, "predictions")] = _window(
            Timing(spec.score.schedule, spec.train.timezone, spec.score.fresh_within)
        )
    policies = {
        key: FreshnessPolicy.time_window(window) for key, window in windows.items() if window
    }
    if policies.keys().isdisjoint(assets.keys):
        return assets
    return changing(assets, lambda one: {"freshness_policy": policies.get(one.key)})


def main_window(spec: Pipeline) -> timedelta | None:
    """Return how old the model, or the last steps, may get; None for any age."""
    return _window(spec.timing)


def confirmation_due(spec: Pipeline, instance: DagsterInstance, now: datetime) -> str | None:
    """Say why a tick with nothing to do should launch all the same; None if it can wait.

    It cannot when a run that is launched two ticks from now would begin too late: each run has the
    time to the next tick.

    Parameters
    ----------
    spec : Pipeline
        With a schedule.
    instance : DagsterInstance
        With what has been materialised.
    now : datetime
        Of the tick.
    """
    window, timing = main_window(spec), spec.timing
    if window is None or timing.schedule is None:
        return None
    *_, last = islice(ticks_after(timing.schedule, timing.timezone, now), INTERVALS - 1)
    for key in (key_of(spec, asset) for asset in spec.kept_fresh):
        made = _made_at(instance, key)
        if made is not None and last - made > window:
            within = in_words(window.total_seconds())
            return f"{key.to_user_string()} is to be confirmed within {within}"
    return None


def _made_at(instance: DagsterInstance, key: AssetKey) -> datetime | None:
    records = instance.fetch_materializations(key, limit=1).records
    return datetime.fromtimestamp(records[0].timestamp, UTC) if records else None


def _window(timing: Timing) -> timedelta | None:
    if timing.fresh_within is not None:
        return timedelta(seconds=timing.fresh_within)
    if timing.schedule is None:
        return None
    return _window_of_schedule(timing.schedule, timing.timezone)


@lru_cache
def _window_of_schedule(schedule: str, timezone: str) -> timedelta | None:
    """Return the longest time that three intervals take; None for a schedule once in years."""
    ticks = islice(ticks_after(schedule, timezone, _START), _TICKS)
    times = list(takewhile(lambda tick: tick < _START + _YEARS, ticks))
    spans = [last - first for first, last in zip(times, times[INTERVALS:], strict=False)]
    return max(SHORTEST, *spans) if spans else None
