"""One tick of `run_failure_alerts`, as a process: `tick FILE URL`; the file holds the cursor."""

from __future__ import annotations

import sys
from pathlib import Path

from dagster import DagsterInstance, build_sensor_context

from mlops_assets.automation.alerts import alert_sensors


def main() -> None:
    _, file, url = sys.argv
    sensor = alert_sensors(["customers"], [url], "http://localhost:3000")[0]
    cursor = Path(file)
    with (
        DagsterInstance.get() as instance,
        build_sensor_context(instance, cursor.read_text() or None) as context,
    ):
        result = sensor.evaluate_tick(context)
    cursor.write_text(result.cursor or "")
    print(result.skip_message)
