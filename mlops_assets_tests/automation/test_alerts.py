"""Alerts as people receive them: real failing runs, a real HTTP server, a real SMTP server."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckResult,
    AssetCheckSeverity,
    AssetKey,
    AssetMaterialization,
    AssetsDefinition,
    DagsterRun,
    DailyPartitionsDefinition,
    DefaultSensorStatus,
    MetadataValue,
    Output,
    asset,
    build_sensor_context,
    job,
    materialize,
    op,
    resource,
)

from mlops_assets.assets.common import check_of_partitions
from mlops_assets.automation import alerts
from mlops_assets.automation.alerts import alert_sensors
from mlops_assets.automation.alerts.incidents import TOO_OLD
from mlops_assets.automation.alerts.outbox import TRIES, WINDOW
from mlops_assets.automation.alerts.runs import LOOK_BACK
from mlops_assets.definitions import build_defs
from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets.store.reuse import PRODUCED_BY
from mlops_assets_tests.automation.channels import Mailbox, Webhook
from mlops_assets_tests.conftest import CUSTOMERS, DUMMY, Project
from mlops_assets_tests.ranges import range_tags
from mlops_assets_tests.servers import free_port

UI = "http://dagster.example.org"
DAYS = DailyPartitionsDefinition("2026-01-01")


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as webhook:
        yield webhook


class Clock:
    """The time that the sensors see: the real one, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return datetime.now(UTC).timestamp() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(alerts, "time", clock)
    return clock


class Ticks:
    """One of the alert sensors, tick by tick, as the daemon evaluates it."""

    def __init__(self, project: Project, *urls: str, name: str = "run_failure_alerts") -> None:
        self.project, self.urls, self.name = project, urls, name
        self.cursor: str | None = None
        self.definitions = project.definitions()

    def tick(self) -> str:
        """Evaluate it once; return what the tick says."""
        sensors = {one.name: one for one in alert_sensors(["customers"], self.urls, UI)}
        with build_sensor_context(
            self.project.instance, self.cursor, definitions=self.definitions
        ) as context:
            result = sensors[self.name].evaluate_tick(context)
        self.cursor = result.cursor
        return str(result.skip_message)


@pytest.fixture
def failing(customers: Project) -> Project:
    """A project whose data is gone."""
    customers.add("customers", CUSTOMERS + "owners: [team:ml, anna@example.org]\n")
    (customers.folder / "pipelines" / "customers.csv").unlink()
    return customers


def fail(project: Project) -> DagsterRun:
    result = project.train("customers", "source")
    assert not result.success
    return result.dagster_run


def failure_time(project: Project, run: DagsterRun) -> str:
    stats = project.instance.get_run_stats(run.run_id)
    return datetime.fromtimestamp(stats.end_time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def test_a_failed_run_is_told_to_every_channel(failing: Project, webhook: Webhook) -> None:
    with Mailbox() as mailbox:
        run = fail(failing)
        said = Ticks(failing, webhook.url, mailbox.url).tick()

    data = failing.folder / "pipelines" / "customers.csv"
    body = f"""\
data.uri: {data} does not exist (did you mean 'customers.yaml'?)

step: customers__source
owners: team:ml, anna@example.org
time: {failure_time(failing, run)}
{UI}/runs/{run.run_id}"""
    assert webhook.received == [
        {
            "version": "1.0",
            "title": "customers/source failed",
            "message": body,
            "attachments": [],
            "type": "failure",
        }
    ]
    [mail] = mailbox.received
    assert mail["Subject"] == "customers/source failed"
    assert mail["To"] == "team@example.org"
    assert text_of(mail) == body.splitlines()
    assert said == "1 sent, 0 waiting, 0 told already, 0 given up"


def text_of(mail: EmailMessage) -> list[str]:
    part = mail.get_body(("plain",))
    assert part is not None
    return str(part.get_content()).strip().splitlines()


def test_a_run_that_succeeded_is_not_told(customers: Project, webhook: Webhook) -> None:
    assert customers.train("customers", "source", "raw").success
    Ticks(customers, webhook.url).tick()

    assert webhook.received == []


def test_nothing_is_told_twice(failing: Project, webhook: Webhook) -> None:
    fail(failing)
    ticks = Ticks(failing, webhook.url)
    for _ in range(3):
        ticks.tick()

    assert webhook.titles == ["customers/source failed"]


def test_the_same_failure_is_told_once_an_hour_with_how_often_it_happened(
    failing: Project, webhook: Webhook, clock: Clock
) -> None:
    ticks = Ticks(failing, webhook.url)
    fail(failing)
    ticks.tick()
    for _ in range(2):
        fail(failing)
        assert "1 told already" in ticks.tick()
    assert len(webhook.received) == 1

    clock.ahead = WINDOW + 1
    fail(failing)
    ticks.tick()
    assert webhook.titles == ["customers/source failed"] * 2
    assert "2 more since " in webhook.received[1]["message"]


def test_what_was_not_told_is_summed_up_at_the_end_of_the_hour(
    failing: Project, webhook: Webhook, clock: Clock
) -> None:
    ticks = Ticks(failing, webhook.url)
    for _ in range(2):
        last = fail(failing)
        ticks.tick()
    clock.ahead = WINDOW + 1
    for _ in range(3):
        ticks.tick()

    assert webhook.titles == ["customers/source failed", "customers/source failed again"]
    assert webhook.received[1]["message"].endswith(f"{UI}/runs/{last.run_id}")


def test_another_failure_of_the_same_step_is_told_at_once(
    failing: Project, webhook: Webhook
) -> None:
    ticks = Ticks(failing, webhook.url)
    fail(failing)
    ticks.tick()
    failing.add("customers", CUSTOMERS.replace("customers.csv", "clients.csv"))
    fail(failing)
    ticks.tick()

    assert webhook.titles == ["customers/source failed"] * 2


def test_a_failed_blocking_check_is_told_in_its_own_words(
    customers: Project, webhook: Webhook
) -> None:
    rules = "data:\n  checks: {between: {age: [0, 30]}}"
    customers.add("customers", CUSTOMERS.replace("data:", rules, 1))
    customers.train("customers")
    Ticks(customers, webhook.url).tick()

    [message] = webhook.received
    assert message["title"] == "customers/raw failed"
    assert message["message"].startswith("declared_rules: column age has values outside 0 to 30")


def test_an_error_of_the_code_is_told_by_its_first_lines_without_a_stack_trace(
    project: Project, webhook: Webhook
) -> None:
    @asset(owners=["team:data"])
    def features() -> None:
        lines = "\n".join(f"line {number}" for number in range(20))
        raise RuntimeError(f"postgresql://me:s3cret@db/x is away\n{lines}\n{'x' * 1000}")

    project.add_shipped("iris")
    ticks = Ticks(project, webhook.url)
    run = materialize([features], instance=project.instance, raise_on_error=False).dagster_run
    ticks.tick()

    [message] = webhook.received
    assert message["message"] == (
        "RuntimeError: postgresql://…@db/x is away\nline 0\nline 1\nline 2\nline 3\n"
        "… 17 more lines\n\nstep: features\n"
        f"time: {failure_time(project, run)}\n{UI}/runs/{run.run_id}"
    )


def test_a_job_without_assets_is_told_by_its_names(customers: Project, webhook: Webhook) -> None:
    @op
    def sweep() -> None:
        raise RuntimeError("no broom")

    @job
    def cleaning() -> None:
        sweep()

    cleaning.execute_in_process(instance=customers.instance, raise_on_error=False)
    Ticks(customers, webhook.url).tick()

    assert webhook.titles == ["sweep of cleaning failed"]


def test_a_run_that_cannot_begin_is_told_with_the_error(
    customers: Project, webhook: Webhook
) -> None:
    @resource
    def database() -> None:
        raise ConnectionError("the database is away")

    @op(required_resource_keys={"database"})
    def query() -> None: ...

    @job(resource_defs={"database": database})
    def report() -> None:
        query()

    report.execute_in_process(instance=customers.instance, raise_on_error=False)
    Ticks(customers, webhook.url).tick()

    [message] = webhook.received
    assert message["title"] == "a run of report failed"
    assert message["message"].startswith("ConnectionError: the database is away\n")


def lost_run(project: Project, reason: str, **tags: str) -> DagsterRun:
    """Return a run of the training job whose worker is gone, as run monitoring leaves it."""
    training = project.definitions().resolve_job_def("customers_training")
    run = project.instance.create_run_for_job(training, tags=tags)
    project.instance.report_run_failed(run, reason.format(run.run_id))
    return run


def test_a_run_whose_worker_is_gone_is_told_once_whatever_its_id(
    customers: Project, webhook: Webhook
) -> None:
    ticks = Ticks(customers, webhook.url)
    for _ in range(2):
        lost_run(customers, "Detected run worker status FAILED. Marking run {} as failed.")
        ticks.tick()

    [message] = webhook.received
    assert message["title"] == "a run of customers failed"
    assert message["message"].startswith("Detected run worker status FAILED. Marking run ")


def test_a_failure_that_is_retried_by_itself_is_a_warning_and_the_last_one_a_failure(
    customers: Project, webhook: Webhook
) -> None:
    ticks = Ticks(customers, webhook.url)
    for will_retry in ("true", "false"):
        lost_run(customers, "gone", **{"dagster/will_retry": will_retry})
        ticks.tick()

    assert [(message["title"], message["type"]) for message in webhook.received] == [
        ("a run of customers failed, will be retried", "warning"),
        ("a run of customers failed", "failure"),
    ]


def test_a_backfill_of_many_partitions_is_one_message(project: Project, webhook: Webhook) -> None:
    @asset(partitions_def=DAYS)
    def daily(context) -> None:
        raise RuntimeError(f"nothing for {context.partition_key}")

    project.add_shipped("iris")
    ticks = Ticks(project, webhook.url)
    days = [f"2026-01-{day:02d}" for day in range(1, 31)]
    for batch in (days[:28], days[28:]):
        for day in batch:
            materialize(
                [daily],
                instance=project.instance,
                partition_key=day,
                tags={"dagster/backfill": "kxtqmvja"},
                raise_on_error=False,
            )
        ticks.tick()

    [message] = webhook.received
    assert message["title"] == "daily failed (28 times)"
    assert (
        "partitions: 2026-01-01, 2026-01-02, 2026-01-03, 2026-01-04, 2026-01-05 and 23 more"
        in message["message"]
    )
    assert message["message"].endswith(f"{UI}/runs/b/kxtqmvja")


def test_runs_that_failed_shortly_before_the_first_tick_are_told_and_older_ones_are_not(
    failing: Project, webhook: Webhook, clock: Clock
) -> None:
    fail(failing)
    clock.ahead = LOOK_BACK + 1
    ticks = Ticks(failing, webhook.url)
    ticks.tick()
    assert webhook.received == []

    fail(failing)
    ticks.tick()
    assert len(webhook.received) == 1


def test_failures_while_the_sensor_was_off_for_days_are_passed_over(
    failing: Project, webhook: Webhook, clock: Clock
) -> None:
    ticks = Ticks(failing, webhook.url)
    ticks.tick()
    fail(failing)
    clock.ahead = TOO_OLD + 1
    ticks.tick()
    clock.ahead = 0
    ticks.tick()

    assert webhook.received == []


def test_an_unreachable_channel_keeps_no_other_from_its_message(
    failing: Project, webhook: Webhook
) -> None:
    fail(failing)
    said = Ticks(failing, f"json://127.0.0.1:{free_port()}/", webhook.url).tick()

    assert len(webhook.received) == 1
    assert said == "0 sent, 1 waiting, 0 told already, 0 given up"


def test_a_channel_that_comes_back_gets_what_it_missed_and_no_other_gets_it_again(
    failing: Project, webhook: Webhook, clock: Clock
) -> None:
    with Webhook() as away:
        away.answer = 503
        fail(failing)
        ticks = Ticks(failing, away.url, webhook.url)
        ticks.tick()
        away.answer = 200
        clock.ahead = 60
        assert ticks.tick() == "1 sent, 0 waiting, 0 told already, 0 given up"
        ticks.tick()

        assert away.received == webhook.received
        assert len(away.received) == 1


def test_a_message_that_is_never_taken_is_given_up(
    failing: Project, webhook: Webhook, clock: Clock
) -> None:
    webhook.answer = 503
    fail(failing)
    ticks = Ticks(failing, webhook.url)
    said = []
    while len(said) < 100 and not (said and said[-1].endswith("1 given up")):
        said.append(ticks.tick())
        clock.ahead += WINDOW

    assert len(said) == TRIES
    webhook.answer = 200
    clock.ahead += WINDOW
    assert ticks.tick() == "0 sent, 0 waiting, 0 told already, 0 given up"


def test_a_channel_that_never_answers_holds_nobody_up(failing: Project, webhook: Webhook) -> None:
    fail(failing)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"json://127.0.0.1:{silent.getsockname()[1]}/?cto=0.2&rto=0.2"
        said = Ticks(failing, url, webhook.url).tick()

    assert len(webhook.received) == 1
    assert "1 waiting" in said


SECRET = "s3cretT0ken"


@pytest.mark.parametrize(
    "url",
    [
        f"json://{SECRET}:{SECRET}@127.0.0.1:1/{SECRET}?+X-Token={SECRET}",
        f"mailto://{SECRET}:{SECRET}@127.0.0.1:1?from=a@example.org&to=b@example.org",
        f"slack://{SECRET}",
        f"nonsense://{SECRET}",
        f"://{SECRET}",
        f"json://[{SECRET}",
        f"json://127.0.0.1:{SECRET}/",
    ],
    ids=["unreachable", "mail", "malformed", "unknown", "no scheme", "bracket", "port"],
)
def test_no_address_is_shown_anywhere(
    failing: Project, url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(1)
    for library in ("apprise", "urllib3", "urllib3.connectionpool"):
        caplog.set_level(1, library)
    fail(failing)
    ticks = Ticks(failing, url, name="run_failure_alerts")
    said = ticks.tick()

    printed = capfd.readouterr()
    sensors = [
        repr((sensor.description, sensor.metadata)) for sensor in alert_sensors([], [url], UI)
    ]
    shown = [said, str(ticks.cursor), caplog.text, printed.out, printed.err, *sensors]
    assert "1 waiting" in said
    assert "channel 1 of 1" in printed.err + caplog.text
    assert [text for text in shown if SECRET in text] == []


SEND = """
import logging, sys
logging.basicConfig(level=1)
from mlops_assets.automation.alerts.channels import Channels
from mlops_assets.automation.alerts.outbox import Message
message = Message("title", "body", "failure", [0])
print(Channels([sys.argv[1]], logging.getLogger("tick")).deliver(message))
"""


def test_the_first_message_of_a_process_shows_no_address_either(webhook: Webhook) -> None:
    said = subprocess.run(
        [sys.executable, "-c", SEND, f"{webhook.url}{SECRET}/"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout == "{0}\n"
    assert SECRET not in said.stderr
    assert "POST" not in said.stderr


def test_other_users_of_the_libraries_are_not_silenced(
    failing: Project, caplog: pytest.LogCaptureFixture
) -> None:
    fail(failing)
    Ticks(failing, "json://127.0.0.1:1/").tick()
    logging.getLogger("urllib3.connectionpool").warning("of somebody else")

    assert "of somebody else" in caplog.text


def champion(version: str, reason: str = "better") -> AssetMaterialization:
    return AssetMaterialization(
        AssetKey(["customers", "champion"]),
        metadata={"reason": MetadataValue.text(reason)},
        tags={"dagster/data_version": version},
    )


def test_a_new_champion_is_told_with_its_reason_and_its_run(
    customers: Project, webhook: Webhook
) -> None:
    customers.add("customers", DUMMY)
    ticks = Ticks(customers, webhook.url, name="asset_alerts")
    ticks.tick()
    first = customers.train("customers")
    ticks.tick()
    customers.add("customers", CUSTOMERS + "owners: [team:ml]\n")
    ticks.definitions = customers.definitions()
    second = customers.train("customers")
    ticks.tick()

    versions = [
        made.asset_materialization.tags["dagster/data_version"]
        for made in customers.instance.fetch_materializations(
            AssetKey(["customers", "champion"]), limit=9, ascending=True
        ).records
    ]
    assert webhook.titles == [
        "customers/champion is there for the first time",
        "customers/champion changed",
    ]
    told, changed = (message["message"] for message in webhook.received)
    assert told.startswith(f"version {versions[0]}\n")
    assert told.endswith(f"{UI}/runs/{first.run_id}")
    assert changed.startswith(f"version {versions[0]} → {versions[-1]}\n")
    assert "owners: team:ml" in changed
    assert changed.endswith(f"{UI}/runs/{second.run_id}")


def test_every_change_of_the_champion_is_told_also_by_hand_and_back_and_nothing_else(
    customers: Project, webhook: Webhook
) -> None:
    ticks = Ticks(customers, webhook.url, name="asset_alerts")
    customers.instance.report_runless_asset_event(champion("a"))
    ticks.tick()
    for version in "bbaba":
        customers.instance.report_runless_asset_event(champion(version, "rolled back"))
    ticks.tick()

    changes = [message["message"].splitlines() for message in webhook.received]
    assert [lines[0] for lines in changes] == [
        "version a → b",
        "version b → a",
        "version a → b",
        "version b → a",
    ]
    assert changes[0][1:3] == ["rolled back", "by hand"]
    assert changes[0][-1] == f"{UI}/assets/customers/champion"


def drift_of(**checks: AssetCheckSeverity | None) -> AssetsDefinition:
    """Return `customers/drift`, whose checks fail with a severity, or pass."""

    @asset(
        key=["customers", "drift"],
        partitions_def=DAYS,
        check_specs=[
            check_of_partitions(name, AssetKey(["customers", "drift"]), "", DAYS) for name in checks
        ],
    )
    def drift() -> Iterator[Any]:
        yield Output({})
        for name, severity in checks.items():
            yield AssetCheckResult(
                check_name=name,
                passed=severity is None,
                severity=severity or AssetCheckSeverity.ERROR,
                description=f"the population stability index of {name} is 0.31",
            )

    return drift


def test_drift_is_told_once_for_all_checks_of_a_run(customers: Project, webhook: Webhook) -> None:
    drifting = drift_of(age=AssetCheckSeverity.WARN, plan=None, left=AssetCheckSeverity.ERROR)
    ticks = Ticks(customers, webhook.url, name="asset_alerts")
    ticks.tick()
    for _ in range(2):
        run = materialize([drifting], instance=customers.instance, partition_key="2026-01-03")
        ticks.tick()

    [message] = webhook.received
    assert (message["title"], message["type"]) == ("drift in customers", "failure")
    assert message["message"].splitlines()[:4] == [
        "age (warn): the population stability index of age is 0.31",
        "left (error): the population stability index of left is 0.31",
        "",
        "partition: 2026-01-03",
    ]
    assert run.success


def test_drift_of_several_days_of_one_run_is_one_message_that_names_the_days(
    customers: Project, webhook: Webhook
) -> None:
    ticks = Ticks(customers, webhook.url, name="asset_alerts")
    ticks.tick()
    materialize(
        [drift_of(age=AssetCheckSeverity.WARN)],
        instance=customers.instance,
        resources={"io_manager": StoreIOManager(url=customers.settings.store_url)},
        tags=range_tags("2026-01-03", "2026-01-04"),
    )
    ticks.tick()

    [message] = webhook.received
    assert message["message"].splitlines()[:4] == [
        "2026-01-03 age (warn): the population stability index of age is 0.31",
        "2026-01-04 age (warn): the population stability index of age is 0.31",
        "",
        "partition: 2026-01-03 to 2026-01-04",
    ]


def test_drift_that_is_reused_is_told_only_if_another_instance_found_it(
    customers: Project, webhook: Webhook
) -> None:
    ticks = Ticks(customers, webhook.url, name="asset_alerts")
    ticks.tick()
    known = lost_run(customers, "gone").run_id
    for found_by in (known, "of another instance"):
        customers.instance.report_runless_asset_event(
            AssetCheckEvaluation(
                asset_key=AssetKey(["customers", "drift"]),
                check_name="age",
                passed=False,
                metadata={PRODUCED_BY: MetadataValue.dagster_run(found_by)},
            )
        )
        ticks.tick()
        assert len(webhook.received) == (found_by != known)


def test_drift_that_only_warns_is_a_warning(customers: Project, webhook: Webhook) -> None:
    ticks = Ticks(customers, webhook.url, name="asset_alerts")
    ticks.tick()
    drifting = drift_of(age=AssetCheckSeverity.WARN)
    materialize([drifting], instance=customers.instance, partition_key="2026-01-03")
    ticks.tick()

    assert [message["type"] for message in webhook.received] == ["warning"]


def test_checks_of_other_assets_are_not_drift(customers: Project, webhook: Webhook) -> None:
    gate = "evaluate: {gates: {accuracy: '>= 0.99'}}\n"
    customers.add("customers", DUMMY + gate)
    ticks = Ticks(customers, webhook.url, name="asset_alerts")
    ticks.tick()
    assert customers.train("customers").success
    ticks.tick()

    assert webhook.received == []


def test_without_channels_the_sensors_are_off_and_say_how_they_are_switched_on(
    customers: Project,
) -> None:
    sensors = alert_sensors(["customers"], [], UI)

    assert {sensor.name for sensor in sensors} == {"run_failure_alerts", "asset_alerts"}
    for sensor in sensors:
        assert sensor.default_status is DefaultSensorStatus.STOPPED
        assert "set MLOPS_ALERT_URLS" in str(sensor.description)
    assert "set MLOPS_ALERT_URLS" in Ticks(customers).tick()


def test_with_a_channel_the_sensors_are_on(customers: Project, webhook: Webhook) -> None:
    definitions = build_defs(replace(customers.settings, alert_urls=(webhook.url,)))
    for name in ("run_failure_alerts", "asset_alerts"):
        sensor = definitions.resolve_sensor_def(name)
        assert sensor.default_status is DefaultSensorStatus.RUNNING


def test_an_error_with_half_a_character_reaches_every_channel(
    customers: Project, webhook: Webhook
) -> None:
    lost_run(customers, "column \udce9 <b>ist</b> *fort* 🙁\x00")
    with Mailbox() as mailbox:
        Ticks(customers, webhook.url, mailbox.url).tick()

    assert webhook.received[0]["message"].startswith("column ? <b>ist</b> *fort* 🙁")
    assert text_of(mailbox.received[0])[0].startswith("column ? <b>ist</b> *fort* 🙁")


@pytest.mark.parametrize(
    "cursor", ["", "nonsense", "[]", '{"told": {"a": 5}}', '{"after": {"failed runs": "x"}}', "5"]
)
def test_a_cursor_that_somebody_has_spoilt_is_begun_anew(
    failing: Project, webhook: Webhook, cursor: str
) -> None:
    fail(failing)
    ticks = Ticks(failing, webhook.url)
    ticks.cursor = cursor
    ticks.tick()

    assert len(webhook.received) == 1


def test_channels_that_were_taken_away_are_not_waited_for(
    failing: Project, webhook: Webhook, clock: Clock
) -> None:
    fail(failing)
    ticks = Ticks(failing, webhook.url, f"json://127.0.0.1:{free_port()}/")
    ticks.tick()
    ticks.urls = (webhook.url,)
    clock.ahead = 60

    assert ticks.tick() == "1 sent, 0 waiting, 0 told already, 0 given up"
    assert len(webhook.received) == 1
