"""The plan says what a run does, and why, before it does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, ExecuteInProcessResult

from mlops_assets.automation.staleness import recorded_in
from mlops_assets.pipeline_file import load_pipelines
from mlops_assets.plan import PipelinePlan, plan_pipeline
from mlops_assets.store.memo import Outside
from mlops_assets.store.reuse import MEMOIZED
from mlops_assets_tests.conftest import CUSTOMERS, DUMMY, Project, write_customers

ASSETS = ("raw", "train", "test", "model", "metrics", "champion")


def plan(project: Project, *refresh: str) -> PipelinePlan:
    spec = load_pipelines(project.settings.pipelines).valid["customers"]
    keys = [AssetKey(["customers", asset]) for asset in ASSETS]
    recorded = recorded_in(project.instance, keys)
    return plan_pipeline(spec, Outside(project.store, {}), recorded, refresh)


def names(assets: Iterable[str]) -> set[str]:
    return {asset.removeprefix("customers/") for asset in assets}


def executed(result: ExecuteInProcessResult) -> set[str]:
    assert result.success
    return {
        event.asset_key.path[-1]
        for event in result.get_asset_materialization_events()
        if MEMOIZED not in event.step_materialization_data.materialization.metadata
    }


def data(project: Project) -> Path:
    return project.folder / "pipelines" / "customers.csv"


def test_a_new_project_is_all_to_be_executed(customers: Project) -> None:
    planned = plan(customers)

    assert [asset for asset, _ in planned.execute] == [f"customers/{name}" for name in ASSETS]
    assert {reason for _, reason in planned.execute} == {"never materialised"}
    assert planned.reuse == planned.unrecorded == []


def test_nothing_is_to_be_done_after_a_run(customers: Project) -> None:
    customers.train("customers")
    planned = plan(customers)

    assert planned.is_empty
    assert names(planned.reuse) == set(ASSETS)


EDITS: dict[str, tuple[Callable[[Project], object], set[str], str]] = {
    "a parameter of the model": (
        lambda p: p.add("customers", CUSTOMERS.replace("500", "400")),
        {"model", "metrics", "champion"},
        "customers/model: parameters changed: model.params.max_iter 500 → 400",
    ),
    "a gate": (
        lambda p: p.add("customers", CUSTOMERS + "evaluate: {gates: {accuracy: '>= 0.1'}}\n"),
        {"metrics", "champion"},
        "customers/metrics: parameters changed: evaluate.gates.accuracy not set → >= 0.1",
    ),
    "the improvement asked for": (
        lambda p: p.add("customers", CUSTOMERS + "promote: {min_improvement: 0.01}\n"),
        {"champion"},
        "customers/champion: parameters changed: promote.min_improvement 0.0 → 0.01",
    ),
    "the split": (
        lambda p: p.add("customers", CUSTOMERS + "split: {seed: 7}\n"),
        {"train", "test", "model", "metrics", "champion"},
        "customers/train: parameters changed: split.seed 42 → 7",
    ),
    "the data": (
        lambda p: write_customers(data(p), rows=130),
        set(ASSETS),
        "customers/raw: input content changed: customers/source",
    ),
    "a stage that runs every time": (
        lambda p: p.add("customers", CUSTOMERS + "recompute: [raw]\n"),
        set(ASSETS),
        "customers/raw: the pipeline file lists it under recompute",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_executes_what_depends_on_it_and_going_back_executes_nothing(
    customers: Project, edit: str
) -> None:
    change, stages, reason = EDITS[edit]
    customers.train("customers")
    original = {path: path.read_bytes() for path in (customers.folder / "pipelines").iterdir()}
    change(customers)
    planned = plan(customers)

    assert names(asset for asset, _ in planned.execute) == stages
    assert names(planned.reuse) == set(ASSETS) - stages
    assert reason in [f"{asset}: {why}" for asset, why in planned.execute]
    ran = executed(customers.train("customers"))
    assert ran <= stages
    assert ran or edit == "a stage that runs every time"
    if edit != "a stage that runs every time":
        assert plan(customers).is_empty

    for path, content in original.items():
        path.write_bytes(content)
    back = plan(customers)
    # who is champion depends on the champion before, which may be another one by now
    assert names(asset for asset, _ in back.execute) <= {"champion"}
    assert executed(customers.train("customers")) <= {"champion"}
    assert plan(customers).is_empty


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("data:", "# a comment\ndata:"),
        lambda text: text.replace("{max_iter: 500}", "\n    max_iter: 500"),
        lambda text: text + "owners: [team:ml]\n",
        lambda text: text + "train: {schedule: '@daily'}\n",
        lambda text: text.replace("params:", "compute: {memory: 8Gi}\n  params:"),
    ],
)
def test_what_decides_no_result_executes_nothing(
    customers: Project, edit: Callable[[str], str]
) -> None:
    customers.train("customers")
    customers.add("customers", edit(CUSTOMERS))

    assert plan(customers).is_empty


def test_a_source_that_is_written_again_with_the_same_content_executes_nothing(
    customers: Project,
) -> None:
    customers.train("customers")
    content = data(customers).read_bytes()
    data(customers).unlink()
    data(customers).write_bytes(content)

    assert plan(customers).is_empty


def test_a_change_that_ends_in_the_same_data_stops_there(customers: Project) -> None:
    customers.train("customers")
    write_customers(data(customers))
    data(customers).write_text(data(customers).read_text().replace("\n", "\r\n"))
    planned = plan(customers)

    assert names(asset for asset, _ in planned.execute) == set(ASSETS)
    assert dict(planned.execute)["customers/train"] == (
        "depends on what is executed: customers/raw"
    )
    assert executed(customers.train("customers")) == {"raw"}
    assert plan(customers).is_empty


@pytest.mark.parametrize("stage", ["raw", "train", "test", "model", "metrics", "champion"])
@pytest.mark.parametrize(
    "damage",
    [Path.unlink, lambda path: path.write_bytes(b"?" * path.stat().st_size)],
    ids=["deleted", "overwritten"],
)
def test_a_missing_or_damaged_object_is_named_and_healed(
    customers: Project, stage: str, damage: Callable[[Path], object]
) -> None:
    customers.train("customers")
    (held,) = (customers.folder / "store" / "customers" / stage).iterdir()
    damage(held)
    planned = plan(customers)

    assert dict(planned.execute)[f"customers/{stage}"] == f"missing or damaged: {held}"
    ran = executed(customers.train("customers"))
    assert ran == ({"train", "test"} if stage in {"train", "test"} else {stage})
    assert plan(customers).is_empty


def test_another_instance_has_nothing_to_execute_and_everything_to_record(
    customers: Project,
) -> None:
    customers.train("customers")
    with DagsterInstance.ephemeral() as other:
        here = Project(customers.folder, other)
        planned = plan(here)
        assert planned.execute == []
        assert names(planned.unrecorded) == set(ASSETS)
        assert not planned.is_empty
        assert executed(here.train("customers")) == set()
        assert plan(here).is_empty


def test_going_back_is_recorded_as_the_latest(customers: Project) -> None:
    customers.train("customers")
    customers.add("customers", CUSTOMERS + "split: {seed: 7}\n")
    customers.train("customers")
    customers.add("customers", CUSTOMERS)
    planned = plan(customers)

    assert {"train", "test", "model", "metrics"} <= names(planned.unrecorded)


def test_what_a_refresh_computes_from_new_inputs_is_remembered(customers: Project) -> None:
    customers.train("customers")
    customers.add("customers", DUMMY)
    assert customers.train("customers", refresh="true").success

    assert plan(customers).is_empty


def test_a_refresh_is_planned_with_all_below(customers: Project) -> None:
    customers.train("customers")
    planned = plan(customers, "customers/model")

    assert dict(planned.execute)["customers/model"] == "a refresh was asked for"
    assert names(planned.reuse) == {"raw", "train", "test"}
    assert names(asset for asset, _ in plan(customers, "true").execute) == set(ASSETS)


def test_a_model_that_never_became_champion_is_not_compared_again(customers: Project) -> None:
    customers.add("customers", CUSTOMERS + "evaluate: {gates: {accuracy: '>= 0.999'}}\n")
    customers.train("customers")

    assert plan(customers).is_empty
    assert executed(customers.train("customers")) == set()


def test_a_source_that_is_gone_is_an_error_of_the_plan(customers: Project) -> None:
    customers.train("customers")
    data(customers).unlink()
    planned = plan(customers)

    assert "customers.csv does not exist" in (planned.error or "")
    assert not planned.is_empty
