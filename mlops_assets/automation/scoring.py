"""Which days are to be scored now, and the schedule that launches them.

A day is to be scored when it has files and was never scored, or when its files are others than
those that were: a late file, a changed one. Labels that came since, or were changed, have the day
compared with them, and not scored again. A new champion or new code scores nothing again by itself;
a person who wants that launches a backfill.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from dagster import (
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    partition_loading_context,
    schedule,
)

from mlops_assets.assets.common import STORE, key_of
from mlops_assets.assets.drift import LABELS
from mlops_assets.assets.predictions import INBOX
from mlops_assets.automation.schedules import REASON
from mlops_assets.automation.staleness import UndecidedError
from mlops_assets.dagster_internals.automation import Lineage
from mlops_assets.errors import UserError
from mlops_assets.wording import listed, redacted

if TYPE_CHECKING:
    from dagster import UnresolvedAssetJobDefinition

    from mlops_assets.spec import PipelineSpec
    from mlops_assets.store.io_manager import StoreIOManager
    from mlops_assets.store.memo import Outside

MOST_LAUNCHES = 50
"""Runs that one tick launches; the other days are launched by the ticks after it."""


class DaysToScore(NamedTuple):
    """What there is to score, the newest day first, and what not, the oldest first."""

    launch: Mapping[str, RunRequest]
    """One run for each day; at most `MOST_LAUNCHES`."""
    later: Sequence[str]
    """Days that are to be scored and are too many for now."""
    in_progress: Sequence[str]
    """Days that a run or a backfill is at work on."""
    fresh: Sequence[str]
    """Days that were scored with the files that they have now."""
    without_files: Sequence[str]
    """Days between the first one with files and today that have none, or unfinished ones."""

    def skip_reason(self, uri: str) -> str:
        """Say why nothing is launched."""
        groups = {
            "fresh": self.fresh,
            "a run is at work on": self.in_progress,
            "without finished files": self.without_files,
        }
        lines = [f"{what}: {listed(reversed(days))}" for what, days in groups.items() if days]
        return "\n".join(lines) or f"no finished file matches {redacted(uri)} for any day so far"


def days_to_score(
    spec: PipelineSpec, lineage: Lineage, outside: Outside, now: datetime
) -> DaysToScore | SkipReason:
    """Compare the files of all days, in one listing, with what was scored; and so the labels.

    Parameters
    ----------
    spec : PipelineSpec
        A pipeline with `score`.
    lineage : Lineage
        What the Dagster instance has recorded; takes a `dagster.partition_loading_context`.
    outside : Outside
        How files are reached.
    now : datetime
        With time zone. Days after it, in the pipeline's time zone, are left alone.

    Returns
    -------
    DaysToScore or SkipReason
        A reason as long as there is no champion to score with.

    Raises
    ------
    UndecidedError
        The files cannot be listed.
    """
    from mlops_assets.ml.inbox import QUIET_SECONDS, days

    score = spec.score
    assert score is not None
    if not lineage.latest(key_of(spec, "champion")):
        return SkipReason(
            f"there is no champion yet: train {spec.name} until a model passes its gates"
        )

    def listed(uri: str) -> dict[str, str]:
        return days(uri, spec.folder, outside.source_options, quiet_seconds=QUIET_SECONDS)

    try:
        found = listed(score.uri)
        labels = listed(score.labels) if score.labels is not None else {}
    except (UserError, OSError) as error:
        raise UndecidedError(f"{spec.name}: {error}") from error
    today = now.astimezone(ZoneInfo(spec.train.timezone)).date()
    found = {
        day: identity
        for day, identity in found.items()
        if score.start <= date.fromisoformat(day) <= today
    }
    return _compared(spec, lineage, found, labels, today)


def _compared(
    spec: PipelineSpec,
    lineage: Lineage,
    found: Mapping[str, str],
    labels: Mapping[str, str],
    today: date,
) -> DaysToScore:
    predictions, drift = key_of(spec, "predictions"), key_of(spec, "drift")
    scored, compared = lineage.latest(predictions), lineage.latest(drift)
    busy = {*lineage.in_progress(predictions), *lineage.in_progress(drift)}
    requests: dict[str, RunRequest] = {}
    # The keys name the latest event, as files may become again what they were before: a sensor
    # launches a key once, ever.
    fresh, in_progress = [], []
    for day, identity in found.items():
        before = scored.get(day)
        report = compared.get(day)
        told = report.tags.get(LABELS) if report else None
        if before is None or before.tags.get(INBOX) != identity:
            reason = "never scored" if before is None else "other files than when it was scored"
            request = RunRequest(
                run_key=f"{day} {identity} after {before and before.event}",
                partition_key=day,
                tags={INBOX: identity, REASON: f"{predictions.to_user_string()} {day}: {reason}"},
            )
        elif told is None or labels.get(day, told) != told:
            reason = "never compared" if told is None else "other labels than it was made with"
            # by itself: a new champion would score the day again
            request = RunRequest(
                run_key=f"{day} {identity} {labels.get(day)} after {report and report.event}",
                partition_key=day,
                asset_selection=[drift],
                tags={
                    LABELS: labels.get(day, "none"),
                    REASON: f"{drift.to_user_string()} {day}: {reason}",
                },
            )
        else:
            fresh.append(day)
            continue
        if day in busy:
            in_progress.append(day)
        else:
            requests[day] = request
    # The newest first: days that fail again and again never keep today from being scored.
    newest_first = sorted(requests, reverse=True)
    return DaysToScore(
        {day: requests[day] for day in newest_first[:MOST_LAUNCHES]},
        newest_first[MOST_LAUNCHES:],
        in_progress,
        fresh,
        _gaps(found, today),
    )


def _gaps(found: Mapping[str, str], today: date) -> list[str]:
    if not found:
        return []
    first = date.fromisoformat(min(found))
    calendar = [(first + timedelta(n)).isoformat() for n in range((today - first).days + 1)]
    return [day for day in calendar if day not in found]


def scoring_schedule(
    spec: PipelineSpec, job: UnresolvedAssetJobDefinition | None
) -> ScheduleDefinition | None:
    """Return `p_scoring_schedule`; None when the pipeline file has no `score.schedule`.

    It launches one run for each day of `days_to_score`, and skips when that is none. Files that
    cannot be listed are a failed tick with the reason.
    """
    if job is None or spec.score is None or spec.score.schedule is None:
        return None
    uri = spec.score.uri

    @schedule(
        name=f"{spec.name}_scoring_schedule",
        job=job,
        cron_schedule=spec.score.schedule,
        execution_timezone=spec.train.timezone,
        required_resource_keys={STORE},
        description="Launches a run for each day with files that were not scored as they are now.",
    )
    def scoring(context: ScheduleEvaluationContext) -> Iterator[RunRequest | SkipReason]:
        store: StoreIOManager = context.resources.store
        now = context.scheduled_execution_time
        with partition_loading_context(now, context.instance):
            days = days_to_score(spec, Lineage.of_schedule(context), store.outside, now)
        if isinstance(days, SkipReason):
            yield days
            return
        yield from days.launch.values()
        if days.later:
            context.log.info(f"left for the next ticks: {len(days.later)} days")
        if not days.launch:
            yield SkipReason(days.skip_reason(uri))

    return scoring
