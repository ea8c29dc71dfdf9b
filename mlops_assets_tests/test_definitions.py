import logging
import subprocess
import sys
from pathlib import Path

import pytest
from dagster import AssetKey, Definitions

from mlops_assets.definitions import BROKEN, build_defs
from mlops_assets.errors import UserError
from mlops_assets_tests.conftest import CUSTOMERS, Project

STAGES = {"source", "raw", "train", "test", "model", "metrics", "champion"}
HEAVY = (
    "alembic",
    "apprise",
    "dagster_k8s",
    "dagster_mlflow",
    "fsspec",
    "kubernetes",
    "matplotlib",
    "mlflow",
    "numpy",
    "obstore",
    "pandas",
    "pyarrow",
    "scipy",
    "skops",
    "sklearn",
)


def keys_of(definitions: Definitions) -> set[AssetKey]:
    return definitions.resolve_asset_graph().get_all_asset_keys()


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(shown.stdout.split())


def test_loading_the_project_imports_nothing_heavy() -> None:
    assert loaded_after("import mlops_assets.definitions").isdisjoint(HEAVY)


def test_the_store_and_the_pipeline_files_do_without_dagster() -> None:
    statement = "import mlops_assets.store.artifacts, mlops_assets.pipeline_file"
    assert loaded_after(statement).isdisjoint({*HEAVY, "dagster"})


def test_a_process_of_the_code_location_ends_without_looking_for_garbage() -> None:
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() - before))
import mlops_assets.definitions
before, kept = gc.get_freeze_count(), [[] for _ in range(10_000)]
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ended.stdout) > 9_000


def test_a_pipeline_file_becomes_a_lineage_graph_with_job_and_schedule(project: Project) -> None:
    project.add_shipped("churn")
    definitions = project.definitions()
    graph = definitions.resolve_asset_graph()

    assert keys_of(definitions) == {AssetKey(["churn", stage]) for stage in STAGES}
    upstream = {
        key.path[-1]: {parent.path[-1] for parent in graph.get(key).parent_keys}
        for key in keys_of(definitions)
    }
    assert upstream == {
        "source": set(),
        "raw": {"source"},
        "train": {"raw"},
        "test": {"raw"},
        "model": {"train"},
        "metrics": {"model", "test"},
        "champion": {"model", "metrics", "test"},
    }
    job = definitions.resolve_job_def("churn_training")
    assert {key.path[-1] for key in job.asset_layer.executable_asset_keys} == STAGES - {"source"}
    schedule = definitions.resolve_schedule_def("churn_training_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("@daily", "UTC")


def test_every_asset_has_what_makes_the_ui_read_like_documentation(project: Project) -> None:
    project.add_shipped("iris")
    graph = project.definitions().resolve_asset_graph()

    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.group_name == "iris"
        assert node.owners == ["team:ml"], key
        assert node.kinds, key


def test_a_pipeline_without_a_schedule_has_none(customers: Project) -> None:
    assert not customers.definitions().schedules


def test_one_broken_file_leaves_the_others_usable_and_is_visible(
    customers: Project, caplog: pytest.LogCaptureFixture
) -> None:
    broken = customers.add("broken", "data: {uri: x.csv}\n")
    with caplog.at_level(logging.ERROR):
        definitions = customers.definitions()

    shown = definitions.resolve_asset_graph().get(AssetKey([BROKEN, "broken"]))
    assert AssetKey(["customers", "model"]) in keys_of(definitions)
    assert f"{broken}:1:" in (shown.description or "")
    assert f"{broken}:1:" in caplog.text


def test_on_kubernetes_steps_run_in_pods_and_nothing_heavier_is_imported(
    customers: Project,
) -> None:
    environment = {**customers.environment(customers.folder), "MLOPS_DEPLOYMENT": "k8s"}
    code = (
        "import sys; from mlops_assets.definitions import defs; print(defs.executor.name, sorted("
        "{'kubernetes', 'dagster_k8s', 'sklearn', 'pandas', 'mlflow'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )

    assert ended.stdout.strip() == "kubernetes []"


def test_a_hundred_pipelines_are_a_hundred_groups(project: Project) -> None:
    for number in range(100):
        project.add(f"p{number}", CUSTOMERS)

    assert len(keys_of(project.definitions())) == 100 * len(STAGES)


def test_no_pipeline_file_at_all_is_said(project: Project) -> None:
    with pytest.raises(UserError, match="pipelines"):
        build_defs(project.settings)


def test_a_password_in_the_tracking_uri_is_not_in_the_configuration_that_the_ui_shows(
    customers: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    uri = "https://user:hunter2@mlflow.example.org"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    definitions = build_defs(replace(customers.settings, tracking_uri=uri))
    job = definitions.resolve_implicit_global_asset_job_def()

    assert "hunter2" not in repr(job.resource_defs["mlflow"].config_schema.default_value)


def test_the_shipped_workspace_points_at_these_definitions() -> None:
    import yaml

    root = Path(__file__).parents[1]
    workspace = yaml.safe_load((root / "workspace.yaml").read_text())
    assert workspace["load_from"][0]["python_module"]["module_name"] == "mlops_assets.definitions"
