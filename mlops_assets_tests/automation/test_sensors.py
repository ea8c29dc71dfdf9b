"""What is recorded of a source, and that nothing is recorded of one that did not change."""

import os
from pathlib import Path

import pytest
from dagster import AssetKey, build_sensor_context
from dagster._core.definitions.sensor_definition import SensorExecutionData

from mlops_assets.automation.sensors import pipeline_sensors, source_sensor
from mlops_assets.automation.staleness import UndecidedError
from mlops_assets.ml import files
from mlops_assets.pipeline_file import load_pipelines
from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets_tests.conftest import CUSTOMERS, Project, write_customers

SOURCE = AssetKey(["customers", "source"])


def spec_of(project: Project, name: str = "customers"):
    return load_pipelines(project.settings.pipelines).valid[name]


class Looks:
    """The source sensor, tick by tick, as the daemon evaluates it."""

    def __init__(self, project: Project) -> None:
        self.project, self.cursor = project, None

    def look(self) -> SensorExecutionData:
        store = StoreIOManager(url=self.project.settings.store_url)
        with build_sensor_context(
            self.project.instance, self.cursor, resources={"store": store}
        ) as context:
            result = source_sensor(spec_of(self.project)).evaluate_tick(context)
        self.cursor = result.cursor or self.cursor
        for event in result.asset_events:
            self.project.instance.report_runless_asset_event(event)
        return result

    @property
    def observations(self) -> list[str]:
        records = self.project.instance.fetch_observations(SOURCE, limit=100).records
        return [record.asset_observation.data_version for record in reversed(records)]


@pytest.fixture
def looks(customers: Project) -> Looks:
    return Looks(customers)


@pytest.fixture
def data(customers: Project) -> Path:
    return customers.folder / "pipelines" / "customers.csv"


def test_a_source_is_observed_once_for_each_content(looks: Looks, data: Path) -> None:
    for _ in range(3):
        looks.look()
    assert len(looks.observations) == 1

    write_customers(data, rows=130)
    for _ in range(3):
        looks.look()
    assert len(set(looks.observations)) == 2

    write_customers(data)
    looks.look()
    first, _, third = looks.observations
    assert third == first


def test_a_file_that_was_not_touched_is_not_read(
    looks: Looks, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks.look()
    monkeypatch.setattr(files, "identity", None)

    assert looks.look().skip_message == "no file was touched"


def test_a_file_that_was_touched_but_not_changed_is_not_observed_again(
    looks: Looks, data: Path
) -> None:
    looks.look()
    data.touch()

    assert "the content is still" in looks.look().skip_message
    assert len(looks.observations) == 1


def test_a_change_that_keeps_size_and_time_is_seen(looks: Looks, data: Path) -> None:
    looks.look()
    before = data.stat()
    data.write_text(data.read_text().replace("basic", "basis"))
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert data.stat().st_size == before.st_size

    looks.look()
    assert len(set(looks.observations)) == 2


def test_what_a_run_has_observed_is_not_observed_again(customers: Project, looks: Looks) -> None:
    assert customers.train("customers", "raw").success
    looks.look()

    assert len(looks.observations) == 1


def test_a_new_file_of_a_glob_is_a_new_content(customers: Project, looks: Looks) -> None:
    customers.add("customers", CUSTOMERS.replace("customers.csv", "custom*.csv"))
    looks.look()
    write_customers(customers.folder / "pipelines" / "customers_too.csv")
    looks.look()

    assert len(set(looks.observations)) == 2


def test_a_bundled_data_set_is_observed_once(project: Project) -> None:
    project.add_shipped("iris")
    store = StoreIOManager(url=project.settings.store_url)
    for expected in (1, 0):
        context = build_sensor_context(project.instance, resources={"store": store})
        result = source_sensor(spec_of(project, "iris")).evaluate_tick(context)
        for event in result.asset_events:
            project.instance.report_runless_asset_event(event)
        assert len(result.asset_events) == expected


def test_a_source_that_is_gone_is_said_and_nothing_is_recorded(looks: Looks, data: Path) -> None:
    looks.look()
    data.unlink()
    with pytest.raises(UndecidedError, match=r"customers: .*customers\.csv does not exist"):
        looks.look()

    write_customers(data, rows=130)
    looks.look()
    assert len(set(looks.observations)) == 2


def test_both_sensors_of_a_pipeline_start_switched_off(customers: Project) -> None:
    sensors = pipeline_sensors(spec_of(customers))

    assert {sensor.name: sensor.default_status.value for sensor in sensors} == {
        "customers_source_sensor": "STOPPED",
        "customers_automation_sensor": "STOPPED",
    }
