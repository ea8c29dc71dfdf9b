"""Alerts by two daemons at once, and by one that is killed: none is lost, none is sent twice."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from dagster import DagsterInstance, job, op

from mlops_assets_tests.automation.channels import Webhook
from mlops_assets_tests.faults.sites import Site, Sites
from mlops_assets_tests.faults.trials import Trials
from mlops_assets_tests.warm import Command


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as webhook:
        yield webhook


def fail(instance: DagsterInstance, *names: str) -> None:
    for name in names:

        @op(name=f"step_{name}")
        def fails() -> None:
            raise RuntimeError("as expected")

        @job(name=name)
        def failing() -> None:
            fails()

        failing.execute_in_process(instance=instance, raise_on_error=False)


def told(webhook: Webhook) -> Counter[str]:
    return Counter(message["title"] for message in webhook.received)


def tick(site: Site, webhook: Webhook, daemon: int) -> Command:
    cursor = site.folder / f"cursor-{daemon}"
    cursor.touch()
    return site.start("tick", str(cursor), webhook.url)


def test_two_daemons_that_tick_at_once_send_every_alert_once(
    trials: Trials, sites: Sites, webhook: Webhook
) -> None:
    with sites.copy() as site:
        for trial in trials("alerts: two daemons tick at once", 12):
            with trial:
                webhook.received.clear()
                names = [f"job_{trial.number}_{number}" for number in range(3)]
                with site.instance() as instance:
                    fail(instance, *names)
                both = [tick(site, webhook, daemon) for daemon in (1, 2)]
                assert [one.wait() for one in both] == [0, 0], [one.output for one in both]
                assert tick(site, webhook, 1).wait() == 0
                assert told(webhook) == dict.fromkeys(
                    (f"step_{it} of {it} failed" for it in names), 1
                )
                trial.outcome = "each told once"


def test_a_daemon_that_is_killed_as_it_sends_loses_no_alert(
    trials: Trials, sites: Sites, webhook: Webhook
) -> None:
    with sites.copy() as site:
        usual = sites.usual / 4
        for trial in trials("alerts: SIGKILL to the process that sends", 12):
            with trial:
                webhook.received.clear()
                names = [f"job_{trial.number}_{number}" for number in range(3)]
                with site.instance() as instance:
                    fail(instance, *names)
                begun = time.monotonic()
                killed = tick(site, webhook, 1)
                time.sleep(trial.random.uniform(0.3, 1) * usual)
                killed.send_signal(signal.SIGKILL)
                if killed.wait() == 0:
                    usual = time.monotonic() - begun
                assert tick(site, webhook, 1).wait() == 0
                found = told(webhook)
                assert set(found) == {f"step_{it} of {it} failed" for it in names}
                assert max(found.values()) <= 2
                trial.outcome = "some told twice" if max(found.values()) > 1 else "each told once"
