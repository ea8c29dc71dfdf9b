"""What the sensors of a pipeline record and launch, and that they do neither without cause."""

import os
import shutil
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterRunStatus, RunRequest, build_sensor_context
from dagster._core.definitions.sensor_definition import SensorExecutionData

from mlops_assets.automation import sensors
from mlops_assets.automation.schedules import REASON
from mlops_assets.automation.sensors import NEW_DATA, source_sensor
from mlops_assets.automation.staleness import UndecidedError
from mlops_assets.ml import files, listing
from mlops_assets.pipeline_file import load_pipelines
from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets_tests.conftest import CUSTOMERS, DUMMY, Project, write_customers

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


def sensors_of(project: Project) -> set[str]:
    sensors = project.definitions().sensors or ()
    assert all(one.default_status.value == "STOPPED" for one in sensors)
    return {one.name for one in sensors if one.name.startswith("customers")}


def test_a_source_is_listed_by_one_sensor_and_all_start_switched_off(customers: Project) -> None:
    source, automation, new_data = (
        f"customers_{name}_sensor" for name in ("source", "automation", "new_data")
    )
    assert sensors_of(customers) == {source, automation}
    customers.add("customers", ON_NEW_DATA)
    assert sensors_of(customers) == {automation, new_data}
    customers.add("customers", DUMMY + SCORE)
    assert sensors_of(customers) == {source, automation, new_data}
    customers.add("customers", ON_NEW_DATA + SCORE)
    assert sensors_of(customers) == {automation, new_data}


# --- p_new_data_sensor ----------------------------------------------------------------------------


class NewData:
    """The new-data sensor, tick by tick; what it asks for is run at once, or later by the test."""

    def __init__(self, project: Project, name: str = "customers") -> None:
        self.project, self.name, self.cursor = project, name, None
        self.run_keys: set[str] = set()

    def tick(self) -> list[RunRequest]:
        definitions = self.project.definitions()
        store = StoreIOManager(url=self.project.settings.store_url)
        sensor = definitions.resolve_sensor_def(f"{self.name}_new_data_sensor")
        with build_sensor_context(
            self.project.instance, self.cursor, definitions=definitions, resources={"store": store}
        ) as context:
            result = sensor.evaluate_tick(context)
        self.cursor, self.skip_message = result.cursor, result.skip_message
        assert len(self.cursor or "") < 300
        return [one for one in result.run_requests or () if one.run_key not in self.run_keys]

    def run(self, request: RunRequest) -> bool:
        assert request.run_key not in self.run_keys
        self.run_keys.add(str(request.run_key))
        job = self.project.definitions().resolve_job_def(str(request.job_name))
        return job.execute_in_process(
            instance=self.project.instance,
            raise_on_error=False,
            asset_selection=list(request.asset_selection or ()) or None,
            partition_key=request.partition_key,
            tags=dict(request.tags),
        ).success

    def train(self) -> list[str]:
        """Tick, and run what is asked for; return why."""
        requests = self.tick()
        assert all(self.run(one) for one in requests)
        return [one.tags[REASON] for one in requests]


ON_NEW_DATA = DUMMY + "train: {on_new_data: true}\n"
SCORE = "score: {uri: 'inbox/{date}.csv', start: 2026-01-01}\n"
HOUR = 3600


@pytest.fixture(autouse=True)
def _settles_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "SETTLE_SECONDS", -HOUR)


@pytest.fixture
def new_data(customers: Project) -> NewData:
    customers.add("customers", ON_NEW_DATA.replace("customers.csv", "custom*.csv"))
    return NewData(customers)


@pytest.fixture
def trained(new_data: NewData) -> NewData:
    [reason] = new_data.train()
    assert "customers/raw: never materialised" in reason
    return new_data


def more(data: Path, name: str = "customers_too.csv", rows: int = 30) -> Path:
    write_customers(data.parent / name, rows=rows)
    return data.parent / name


def test_a_new_file_launches_one_run_that_names_it(trained: NewData, data: Path) -> None:
    assert trained.train() == []
    more(data)
    [request] = trained.tick()

    assert request.job_name == "customers_training"
    assert "input content changed: customers/source" in request.tags[REASON]
    assert request.tags[NEW_DATA] == "new or changed: customers_too.csv"
    assert trained.run(request)
    assert trained.tick() == []
    assert "nothing new among 2" in trained.skip_message


def test_the_first_tick_launches_nothing_where_the_model_is_up_to_date(
    new_data: NewData, customers: Project
) -> None:
    assert customers.train("customers").success

    assert new_data.tick() == []
    assert "fresh: customers/champion" in new_data.skip_message


def test_files_that_come_with_an_older_time_are_seen(trained: NewData, data: Path) -> None:
    outside = data.parent.parent / "outside.csv"
    write_customers(outside, rows=30)
    os.utime(outside, (1, 1))
    outside.rename(data.parent / "customers_moved.csv")
    assert len(trained.train()) == 1

    shutil.copy2(data.parent / "customers_moved.csv", data.parent / "customers_copied.csv")
    os.utime(data.parent / "customers_copied.csv", (1, 1))
    assert len(trained.train()) == 1


def test_a_file_that_is_removed_or_renamed_is_a_change(trained: NewData, data: Path) -> None:
    late = more(data)
    assert len(trained.train()) == 1
    late.rename(late.with_name("customers_renamed.csv"))
    assert len(trained.train()) == 1
    late.with_name("customers_renamed.csv").unlink()
    # the data of the first run again: reused, and told to this instance
    assert len(trained.train()) == 1
    assert trained.train() == []


def test_a_file_that_was_touched_without_a_change_launches_nothing(
    trained: NewData, data: Path
) -> None:
    data.touch()

    assert trained.tick() == []
    assert "fresh: customers/champion" in trained.skip_message
    assert trained.tick() == []
    assert "nothing new among 1" in trained.skip_message


def test_a_tick_that_is_evaluated_again_asks_for_the_same_run(trained: NewData, data: Path) -> None:
    before = trained.cursor
    more(data)
    [first] = trained.tick()
    trained.cursor = before
    [again] = trained.tick()

    assert first.run_key == again.run_key
    assert trained.run(first)
    trained.cursor = before
    assert trained.tick() == []


def test_what_changes_during_a_run_is_launched_after_it(
    trained: NewData, data: Path, customers: Project
) -> None:
    more(data)
    [request] = trained.tick()
    job = customers.definitions().resolve_job_def("customers_training")
    run = customers.instance.create_run_for_job(
        job,
        asset_selection=frozenset(request.asset_selection or ()),
        status=DagsterRunStatus.STARTED,
    )
    more(data, "customers_three.csv")
    for _ in range(2):
        assert trained.tick() == []
        assert "a run is at work on it" in trained.skip_message
    customers.instance.report_run_canceled(run)

    assert len(trained.train()) == 1
    assert trained.train() == []


def test_a_file_that_is_still_written_waits(
    trained: NewData, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "SETTLE_SECONDS", HOUR)
    late = more(data)
    assert trained.tick() == []
    assert "customers_too.csv may not be complete" in trained.skip_message
    with late.open("a") as file:
        file.write("30,basic,no\n")
    assert trained.tick() == []

    assert len(trained.tick()) == 1, "the same at two ticks in a row is complete"


def test_a_source_that_is_away_is_a_failed_tick_and_nothing_is_forgotten(
    trained: NewData, data: Path
) -> None:
    before, content = trained.cursor, data.read_text()
    data.unlink()
    with pytest.raises(UndecidedError, match=r"customers: .*no file matches"):
        trained.tick()
    assert trained.cursor == before

    data.write_text(content)
    assert trained.tick() == []
    more(data)
    assert len(trained.tick()) == 1


@pytest.mark.parametrize("cursor", ["", "[]", "0" * 64, '["a", 1, 2, 3]', "null", '"\u0000"'])
def test_a_cursor_that_was_edited_is_taken_for_none(
    new_data: NewData, customers: Project, cursor: str
) -> None:
    new_data.cursor = cursor

    assert len(new_data.tick()) == 1


def test_a_bucket_that_becomes_what_it_was_before_is_a_change_each_time(
    customers: Project, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # objects have no times that tell their second coming from the first
    def as_object(name: str, stat: os.stat_result) -> listing.Object:
        return listing.Object(name, str(stat.st_size), 0, may_grow=False)

    monkeypatch.setattr(listing, "_local_object", as_object)
    customers.add("customers", ON_NEW_DATA)
    sensor = NewData(customers)
    for rows in (120, 130, 120, 130, 120):
        write_customers(data, rows=rows)
        assert len(sensor.train()) == 1


def test_files_of_a_day_are_scored_once_for_each_change(customers: Project) -> None:
    customers.add("customers", DUMMY + SCORE)
    sensor = NewData(customers)
    inbox = customers.folder / "pipelines" / "inbox"
    inbox.mkdir()

    def arrives(day: str, rows: int) -> None:
        file = inbox / f"{day}.csv"
        file.write_text("age,plan\n" + "30,basic\n" * rows)
        os.utime(file, (HOUR, HOUR + rows))

    arrives("2026-01-05", 2)
    assert sensor.tick() == []
    assert "there is no champion yet" in sensor.skip_message
    assert customers.train("customers").success
    [request] = sensor.tick()
    assert (request.job_name, request.partition_key) == ("customers_scoring", "2026-01-05")
    assert sensor.run(request)
    assert sensor.tick() == []

    for rows in (3, 2, 3, 2):
        arrives("2026-01-05", rows)
        [request] = sensor.tick()
        assert sensor.run(request)
        assert sensor.tick() == []
    arrives("2026-01-05", 3)
    arrives("2026-01-06", 1)
    assert sorted(str(one.partition_key) for one in sensor.tick()) == ["2026-01-05", "2026-01-06"]


def test_scoring_goes_on_while_the_source_of_training_is_away(
    customers: Project, data: Path
) -> None:
    customers.add("customers", ON_NEW_DATA + SCORE)
    sensor = NewData(customers)
    assert len(sensor.train()) == 1
    data.unlink()
    inbox = customers.folder / "pipelines" / "inbox"
    inbox.mkdir()
    (inbox / "2026-01-05.csv").write_text("age,plan\n30,basic\n")
    os.utime(inbox / "2026-01-05.csv", (HOUR, HOUR))

    [request] = sensor.tick()
    assert request.job_name == "customers_scoring"
    assert sensor.run(request)
    with pytest.raises(UndecidedError, match=r"customers\.csv does not exist"):
        sensor.tick()


def test_a_new_version_of_another_pipelines_asset_is_new_data(
    customers: Project, data: Path
) -> None:
    customers.add("customers", DUMMY)
    customers.add("second", ON_NEW_DATA.replace("customers.csv", "asset://customers/train"))
    sensor = NewData(customers, "second")
    with pytest.raises(UndecidedError, match="customers/train has never been materialised"):
        sensor.tick()
    assert customers.train("customers").success
    assert len(sensor.train()) == 1
    assert sensor.train() == []

    write_customers(data, rows=130)
    assert customers.train("customers").success
    [reason] = sensor.train()
    assert "input content changed: customers/train" in reason
