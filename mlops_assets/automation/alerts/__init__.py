"""The sensors that send alerts: `run_failure_alerts`, and `asset_alerts` for all the rest.

Here is only what a tick does. What is told is `runs` and `assets`, how often `outbox`, and by which
way `channels`.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence

from dagster import (
    DefaultSensorStatus,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    sensor,
)

from mlops_assets.automation.alerts.assets import champion_changes, drift, overdue_assets
from mlops_assets.automation.alerts.channels import Channels
from mlops_assets.automation.alerts.incidents import Look, Watch
from mlops_assets.automation.alerts.outbox import Outbox
from mlops_assets.automation.alerts.runs import failed_runs

INTERVAL = 30  # seconds between two ticks

SWITCHED_OFF = (
    "Switched off, because no channel is set: set MLOPS_ALERT_URLS to Apprise URLs, separated by "
    "commas, and load the code location again."
)


def alert_sensors(
    pipelines: Iterable[str], urls: Sequence[str], ui_url: str
) -> list[SensorDefinition]:
    """Return `run_failure_alerts` and `asset_alerts`; they are on when there is a channel.

    Parameters
    ----------
    pipelines : iterable of str
        Names of the pipelines whose champions and drift are told.
    urls : sequence of str
        Apprise URLs of the channels.
    ui_url : str
        Address of Dagster's web server, for links.
    """
    watched = tuple(pipelines)
    return [
        _alert_sensor(
            "run_failure_alerts",
            "Tells of failed runs, also of those whose worker was killed.",
            {"failed runs": failed_runs},
            watched,
            tuple(urls),
            ui_url,
        ),
        _alert_sensor(
            "asset_alerts",
            "Tells of new champions, of drift, and of assets that are overdue.",
            {"champions": champion_changes, "drift": drift, "freshness": overdue_assets},
            watched,
            tuple(urls),
            ui_url,
        ),
    ]


def _alert_sensor(
    name: str,
    description: str,
    looks: Mapping[str, Look],
    pipelines: tuple[str, ...],
    urls: tuple[str, ...],
    ui_url: str,
) -> SensorDefinition:
    @sensor(
        name=name,
        minimum_interval_seconds=INTERVAL,
        default_status=DefaultSensorStatus.RUNNING if urls else DefaultSensorStatus.STOPPED,
        description=description if urls else f"{description} {SWITCHED_OFF}",
    )
    def alerts(context: SensorEvaluationContext) -> SensorResult:
        if not urls:
            return SensorResult(skip_reason=SWITCHED_OFF, cursor=context.cursor)
        now = time.time()
        origin = context.code_location_origin
        watch = Watch(
            instance=context.instance,
            repository=context.repository_def,
            location=origin.location_name if origin is not None else None,
            pipelines=pipelines,
            ui_url=ui_url,
            now=now,
        )
        positions, outbox = _remembered(context)
        incidents = []
        for what, look in looks.items():
            found, positions[what] = look(watch, positions.get(what))
            incidents += found
        # Everything is read before anything is sent: a tick that fails has sent nothing.
        suppressed = outbox.add(incidents, range(len(urls)), now)
        delivered, given_up = outbox.send(Channels(urls, context.log).deliver, now)
        for message in given_up:
            context.log.error(f"given up: {message.title!r}")
        return SensorResult(
            cursor=json.dumps({"after": positions, **outbox.dump()}),
            skip_reason=f"{delivered} sent, {len(outbox.waiting)} waiting, "
            f"{suppressed} told already, {len(given_up)} given up",
        )

    return alerts


def _remembered(context: SensorEvaluationContext) -> tuple[dict[str, int], Outbox]:
    try:
        state = json.loads(context.cursor) if context.cursor else {}
        after = {what: int(event) for what, event in state.get("after", {}).items()}
        return after, Outbox.load(state)
    except (ValueError, TypeError, AttributeError):
        context.log.warning("the cursor is none of this sensor's: beginning anew")
        return {}, Outbox()
