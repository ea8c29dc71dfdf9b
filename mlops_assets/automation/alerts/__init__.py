"""The sensors that send alerts: `run_failure_alerts`, and `asset_alerts` for all the rest.

Here is only what a tick does. What is told is `runs` and `assets`, how often `outbox`, and by which
way `channels`.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import gettempdir

from dagster import (
    DagsterInstance,
    DefaultSensorStatus,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    sensor,
)
from filelock import FileLock, Timeout

from mlops_assets.automation.alerts.assets import champion_changes, drift, overdue_assets
from mlops_assets.automation.alerts.channels import Channels
from mlops_assets.automation.alerts.incidents import Look, Watch
from mlops_assets.automation.alerts.outbox import Outbox
from mlops_assets.automation.alerts.runs import failed_runs
from mlops_assets.dagster_internals.events import remember, remembered

INTERVAL = 30  # seconds between two ticks

BUSY = "Another daemon sends the alerts of this sensor just now."

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
        try:
            with _alone(context.instance, name):
                return tick(context)
        except Timeout:
            return SensorResult(skip_reason=BUSY, cursor=context.cursor)

    def tick(context: SensorEvaluationContext) -> SensorResult:
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
        memory = f"mlops/alerts/{watch.location or ''}/{name}"
        turn, positions, outbox = _newest(context, remembered(context.instance, memory))
        incidents = []
        for what, look in looks.items():
            found, positions[what] = look(watch, positions.get(what))
            incidents += found
        # Everything is read before anything is sent: a tick that fails has sent nothing.
        suppressed = outbox.add(incidents, range(len(urls)), now)
        delivered, given_up = outbox.send(Channels(urls, context.log).deliver, now)
        for message in given_up:
            context.log.error(f"given up: {message.title!r}")
        cursor = json.dumps({"turn": turn + 1, "after": positions, **outbox.dump()})
        remember(context.instance, memory, cursor)
        return SensorResult(
            cursor=cursor,
            skip_reason=f"{delivered} sent, {len(outbox.waiting)} waiting, "
            f"{suppressed} told already, {len(given_up)} given up",
        )

    return alerts


@contextmanager
def _alone(instance: DagsterInstance, name: str) -> Iterator[None]:
    """Let one process at a time of this machine send the alerts of a sensor.

    Raises
    ------
    filelock.Timeout
        Another one is at it.
    """
    which = sha256(f"{instance.root_directory}\n{name}".encode()).hexdigest()[:16]
    with FileLock(Path(gettempdir(), f"mlops-alerts-{which}.lock"), timeout=0):
        yield


State = tuple[int, dict[str, int], Outbox]
"""The number of ticks so far, the event after which each look goes on, and the messages."""


def _newest(context: SensorEvaluationContext, memory: str | None) -> State:
    """Return what the last tick of all has left.

    The cursor that a daemon hands over is that of its own last tick, or an older one where two
    daemons work at once. So every tick is remembered in the instance as soon as it has sent.
    """
    states = [_state(context, text) for text in (context.cursor, memory) if text]
    return max(states, key=lambda state: state[0], default=(0, {}, Outbox()))


def _state(context: SensorEvaluationContext, cursor: str) -> State:
    try:
        state = json.loads(cursor)
        after = {what: int(event) for what, event in state.get("after", {}).items()}
        return int(state.get("turn", 0)), after, Outbox.load(state)
    except (ValueError, TypeError, AttributeError):
        context.log.warning("the cursor is none of this sensor's: beginning anew")
        return 0, {}, Outbox()
