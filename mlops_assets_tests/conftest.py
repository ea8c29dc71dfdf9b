"""A project of its own for every test: pipelines, store, tracking and instance below tmp_path."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, Definitions, ExecuteInProcessResult
from hypothesis import settings

from mlops_assets.definitions import build_defs
from mlops_assets.settings import Settings
from mlops_assets.store.artifacts import ArtifactStore
from mlops_assets.store.reuse import REFRESH
from mlops_assets_tests.faults.trials import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]

settings.register_profile("ours", deadline=None)  # a busy machine is no defect
settings.load_profile("ours")

OURS = ("MLOPS_", "MLFLOW_", "DAGSTER_", "AWS_")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(OURS) and not name.startswith("MLOPS_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "yes")


@pytest.fixture(scope="session")
def _empty_tracking_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to create its tables; once per session is enough."""
    from mlflow import MlflowClient

    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


def instance_of(home: Path) -> DagsterInstance:
    """Open the instance of a process that has this `DAGSTER_HOME`."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DAGSTER_HOME", str(home))
        return DagsterInstance.get()


@dataclass
class Project:
    """A folder with pipeline files, and everything that running them needs."""

    folder: Path
    instance: DagsterInstance

    @property
    def settings(self) -> Settings:
        return Settings(
            deployment="local",
            store_url=str(self.folder / "store"),
            s3_endpoint_url=None,
            tracking_uri=f"sqlite:///{self.folder / 'mlflow.db'}",
            pipelines=str(self.folder / "pipelines"),
        )

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment of a process that works on this project."""
        return {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "MLOPS_PIPELINES": self.settings.pipelines,
            "MLOPS_STORE_URL": self.settings.store_url,
            "MLFLOW_TRACKING_URI": self.settings.tracking_uri,
        }

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.settings.store_url)

    def add(self, name: str, text: str) -> Path:
        """Write a pipeline file; retries wait for nothing unless the text says otherwise."""
        path = self.folder / "pipelines" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        if "retries:" not in text:
            text += "\nretries: {max: 2, delay: 0}\n"
        path.write_text(text)
        return path

    def add_shipped(self, name: str) -> None:
        """Take over a pipeline file of the package, and the bundled data."""
        import mlops_assets

        package = Path(mlops_assets.__file__).parent
        (self.folder / "pipelines").mkdir(exist_ok=True)
        shutil.copy(package / "pipelines" / f"{name}.yaml", self.folder / "pipelines")
        if not (self.folder / "data").exists():
            shutil.copytree(package / "data", self.folder / "data")

    def definitions(self) -> Definitions:
        return build_defs(self.settings)

    def train(
        self, pipeline: str, *stages: str, refresh: str | None = None
    ) -> ExecuteInProcessResult:
        """Run a pipeline's training job, or some of its stages; see `mlops/refresh`."""
        job = self.definitions().resolve_job_def(f"{pipeline}_training")
        return job.execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            asset_selection=[AssetKey([pipeline, stage]) for stage in stages] or None,
            tags={REFRESH: refresh} if refresh else None,
        )


@pytest.fixture
def project(tmp_path: Path, _empty_tracking_database: Path) -> Iterator[Project]:
    shutil.copy(_empty_tracking_database, tmp_path / "mlflow.db")
    with DagsterInstance.ephemeral() as instance:
        yield Project(tmp_path, instance)


CUSTOMERS = """\
data:
  uri: customers.csv
  target: left
model:
  estimator: sklearn.linear_model.LogisticRegression
  params: {max_iter: 500}
"""

DUMMY = CUSTOMERS.replace("linear_model.LogisticRegression", "dummy.DummyClassifier").replace(
    "{max_iter: 500}", "{}"
)
"""The same with a model that learns nothing."""


@pytest.fixture
def customers(project: Project) -> Project:
    """A project with one small pipeline, `customers`, whose data are in `pipelines/`."""
    project.add("customers", CUSTOMERS)
    write_customers(project.folder / "pipelines" / "customers.csv")
    return project


@pytest.fixture(scope="session")
def trained_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `train_once` keeps what it has trained."""
    return tmp_path_factory.mktemp("trained") / "store"


def train_once(customers: Project, trained_store: Path) -> None:
    """Train the pipeline `CUSTOMERS` in this test's instance, by reuse but for the first time."""
    store = customers.folder / "store"
    if trained_store.exists():
        shutil.copytree(trained_store, store)
    assert customers.train("customers").success
    if not trained_store.exists():
        shutil.copytree(store, trained_store)


def write_customers(path: Path, rows: int = 120, noise: int = 7) -> None:
    """Write customers who leave when they are young, but for every `noise`-th one."""
    lines = ["age,plan,left"]
    for row in range(rows):
        age = 20 + (row * 37) % 50
        left = (age < 45) != (row % noise == 0)
        lines.append(f"{age},{'basic' if row % 3 else 'plus'},{'yes' if left else 'no'}")
    path.write_text("\n".join(lines) + "\n")
