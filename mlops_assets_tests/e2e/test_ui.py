"""The UI of Dagster, driven in Chromium as a person would: what is seen, what its buttons do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import AssetKey
from playwright.sync_api import Page, expect, sync_playwright

from mlops_assets_tests.conftest import CUSTOMERS, Project, instance_of
from mlops_assets_tests.servers import free_port, stop_group, wait_for

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LOAD = 60_000
RUN = 180_000  # milliseconds


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    chromium = shutil.which("chromium")
    if chromium is None:
        reason = "the UI tests need Chromium: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=chromium,
            args=list(QUIET),
            viewport={"width": 1600, "height": 1000},
        )
        context.set_default_timeout(LOAD)
        yield context.pages[0]
        context.close()


@pytest.fixture
def ui(customers: Project) -> Iterator[str]:
    """Start `dagster dev` as `make dev` does, on this test's project."""
    home = customers.folder / "dagster"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    customers.add("broken", CUSTOMERS.replace("target: left", "targt: left"))
    port = free_port()
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("dagster")),
            *("dev", "--workspace", str(ROOT / "workspace.yaml"), "--port", str(port)),
        ],
        env=customers.environment(home),
        cwd=home,
        stdout=(customers.folder / "dev.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop_group(process)


def test_a_pipeline_is_seen_run_reused_and_judged_in_the_ui(
    ui: str, page: Page, customers: Project
) -> None:
    page.goto(f"{ui}/locations/mlops_assets/asset-groups/customers/lineage")
    for stage in ("source", "raw", "train", "test", "model", "metrics", "champion"):
        expect(page.get_by_text(stage, exact=True).first).to_be_visible()

    page.get_by_role("button", name="Materialize all").click()
    champion = AssetKey(["customers", "champion"])
    with instance_of(customers.folder / "dagster") as instance:
        deadline = time.monotonic() + RUN / 1000
        while instance.get_latest_materialization_event(champion) is None:
            assert time.monotonic() < deadline, (customers.folder / "dev.log").read_text()
            time.sleep(1)
    assert len(list((customers.folder / "store" / "customers" / "champion").iterdir())) == 1

    page.goto(f"{ui}/locations/mlops_assets/asset-groups/customers/lineage")
    page.get_by_role("button", name="Materialize all").click()
    with instance_of(customers.folder / "dagster") as instance:
        while len(runs := instance.get_runs()) < 2 or not all(run.is_finished for run in runs):
            assert time.monotonic() < deadline, (customers.folder / "dev.log").read_text()
            time.sleep(1)
        assert all(run.is_success for run in runs)
        event = instance.get_latest_materialization_event(champion)
        assert event is not None
        assert event.asset_materialization is not None
        again = event.asset_materialization.metadata
        assert again["produced_by_run"].value == runs[-1].run_id
    page.goto(f"{ui}/assets/customers/model?view=overview")
    expect(page.get_by_text("memoized", exact=True).first).to_be_visible()
    expect(page.get_by_text("saved_seconds", exact=True).first).to_be_visible()

    page.goto(f"{ui}/assets/customers/raw?view=overview")
    expect(page.get_by_text("Row count")).to_be_visible()
    expect(page.get_by_text("120", exact=True).first).to_be_visible()
    expect(page.get_by_text("plan", exact=True).first).to_be_visible()

    page.goto(f"{ui}/assets/customers/metrics?view=overview")
    expect(page.get_by_text("roc_auc", exact=True).first).to_be_visible()
    page.get_by_text("[Show Markdown]").first.click()
    expect(page.get_by_role("heading", name="Metrics")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_text("[Show Markdown]").nth(1).click()
    figure = page.locator("img[alt=roc]")
    expect(figure).to_be_visible()
    assert figure.evaluate("image => image.naturalWidth") > 100


def test_a_broken_pipeline_file_is_seen_with_its_mistake(ui: str, page: Page) -> None:
    page.goto(f"{ui}/assets/broken_pipeline_files/broken?view=overview")

    expect(page.get_by_text("broken.yaml:3:3").first).to_be_visible()
