"""What `test_daemon` loads: the pipelines, and assets of a user's own, with everything on."""

from dagster import DefaultScheduleStatus, DefaultSensorStatus, Definitions

from mlops_assets.automation.conditions import reuse_sensor
from mlops_assets.automation.schedules import stale_assets_schedule
from mlops_assets.definitions import build_defs
from mlops_assets_tests.automation.conftest import made


def _pipelines() -> Definitions:
    definitions = build_defs()
    for schedule in definitions.schedules or ():
        schedule._default_status = DefaultScheduleStatus.RUNNING
    for sensor in definitions.sensors or ():
        if sensor.name.endswith("_new_data_sensor"):
            sensor._default_status, sensor._min_interval = DefaultSensorStatus.RUNNING, 1
    return definitions


def _own() -> Definitions:
    by_schedule = stale_assets_schedule(
        "own_schedule",
        ["by_schedule"],
        "* * * * *",
        default_status=DefaultScheduleStatus.RUNNING,
    )
    by_sensor = reuse_sensor(
        "own_sensor", ["by_sensor", "below"], default_status=DefaultSensorStatus.RUNNING
    )
    return Definitions(
        [made("by_sensor"), made("below", deps=["by_sensor"]), made("by_schedule", condition=None)],
        schedules=[by_schedule],
        sensors=[by_sensor],
    )


defs = Definitions.merge(_pipelines(), _own())
