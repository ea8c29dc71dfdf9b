"""MLflow: one run per trained model, and the registry entries of a pipeline's models.

Built on dagster-mlflow's `MlFlow` class and configuration, with runs that are opened and closed
explicitly. As it stands that class opens one run per Dagster run and process, shares it between
pipelines, reopens a failed run and ends it as finished, and leaves others running.

Tracking is a record of the work and never a reason to lose it: when the server is away a step warns
and goes on, and the next step that reaches the server records what it knows.
Models are never deserialised from MLflow; a registry entry points at the version in the store.
"""

from __future__ import annotations

import logging
import os
import subprocess
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, wraps
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from time import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Concatenate, Literal, NamedTuple, ParamSpec
from urllib.parse import urlsplit

from dagster import BetaWarning, ConfigurableResource, DagsterExecutionInterruptedError
from filelock import FileLock
from pydantic import Field

from mlops_assets.settings import PACKAGE
from mlops_assets.wording import redacted

if TYPE_CHECKING:
    from dagster_mlflow.resources import MlFlow

    from mlops_assets.store.artifacts import Artifact

P = ParamSpec("P")
Status = Literal["FINISHED", "FAILED", "KILLED"]

MODEL_VERSION = "mlops.model_version"
PIPELINE = "mlops.pipeline"
STUDY = "mlops.study"
TRIAL = "mlops.trial"
PARENT = "mlflow.parentRunId"
DAGSTER_RUN = "dagster_run_id"
"""The tag that dagster-mlflow writes, too."""

REQUEST_LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}
"""MLflow's own defaults, 120 s and 7 retries, hold a step for minutes when the server is away; and
for as long as a server likes that is too busy."""

SILENCE = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
"""Otherwise MLflow prints the address of every run that ends, with the password that is in it."""

LONGEST_PARAM = 6000
"""Characters of a parameter's value that MLflow accepts."""

LONGEST_TAG = 5000
"""Characters of a tag's value that every MLflow server accepts."""

STATUS, REASON, DECIDED_AT = "mlops.status", "mlops.reason", "mlops.decided_at"
"""Tags of a registry entry: promoted, refused or rolled back; why; and when (ISO 8601)."""


def _never_fatal(
    request: Callable[Concatenate[ModelRun, P], None],
) -> Callable[Concatenate[ModelRun, P], None]:
    """Make a method of `ModelRun` warn instead of raise, and do nothing once one has failed."""

    @wraps(request)
    def attempt(run: ModelRun, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if run.lost:
            return
        try:
            request(run, *args, **kwargs)
        except Exception as error:  # whatever is wrong with tracking, the work goes on
            run.give_up(error)

    return attempt


class TrialRun(NamedTuple):
    """What is recorded of a trial of a search for parameters."""

    number: int
    params: Mapping[str, Any]
    metric: str
    folds: Sequence[float]
    value: float | None
    """Of all folds."""
    state: str
    """complete, pruned or failed"""
    message: str
    begun: int
    """Milliseconds since 1970."""
    ended: int


class Verdicts(NamedTuple):
    """What was decided about the models of a pipeline, by version of the model."""

    aliases: Mapping[Literal["champion", "challenger"], str]
    """The models that they belong to. An alias that is left out stays, but `challenger` leaves a
    model that is the champion now."""
    tags: Mapping[str, Mapping[str, str]]
    """`STATUS`, `REASON` and `DECIDED_AT` by version."""


class ModelRun:
    """The MLflow run of one model.

    After a request has failed the others are left out, but for the one that ends the run: one
    warning per step. `run_id` is None as long as there is no run.
    """

    def __init__(self, log: logging.Logger, tracking_uri: str) -> None:
        self._log = log
        self._tracking_uri = tracking_uri
        self._mlflow: Any = None
        self.run_id: str | None = None
        self.lost = False
        self._is_ours = False  # opened here, and hence in progress until it is closed

    def give_up(self, error: Exception) -> None:
        """Warn that this step is not tracked, and send nothing more."""
        self.lost = True
        self._log.warning(
            "MLflow at %s cannot be used, so this step is not tracked: %s",
            redacted(self._tracking_uri),
            redacted((str(error) or type(error).__name__).splitlines()[0]),
        )

    @_never_fatal
    def connect(self, config: dict[str, Any]) -> None:
        """Set up the server and the experiment; `config` is that of dagster-mlflow's resource."""
        for name, value in REQUEST_LIMITS.items():
            os.environ.setdefault(name, value)
        os.environ[SILENCE] = "true"
        for chatty in ("mlflow.store.db", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        context = SimpleNamespace(
            log=self._log,
            dagster_run=SimpleNamespace(job_name=config["experiment_name"]),
            run_id="",
            resource_config=config,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BetaWarning)
            self._mlflow = _explicit_runs()(context)

    @_never_fatal
    def create(self, name: str, tags: Mapping[str, str], identity: Mapping[str, str]) -> None:
        """Open a new run, and close its twins: `identity` are the tags that no other one has.

        The client sends a request again whose answer got lost; the server has opened two then.
        """
        run = self._client.create_run(self._experiment, tags=dict(tags), run_name=name)
        self.run_id, self._is_ours = run.info.run_id, True
        is_same = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in identity.items())
        for twin in self._search(f"{is_same} and attributes.status = 'RUNNING'"):
            if twin.info.run_id != self.run_id:
                self._client.set_terminated(twin.info.run_id, "KILLED")

    @_never_fatal
    def find(self, version: str) -> None:
        """Continue the newest run of the model with this version, if there is one."""
        found = self._search(f"tags.`{MODEL_VERSION}` = '{version}'")
        self.run_id = found[0].info.run_id if found else None

    @_never_fatal
    def find_study(self, study: str) -> None:
        """Continue the newest run of a search for parameters, if there is one."""
        found = self._search(f"tags.`{STUDY}` = '{study}'")
        self.run_id = found[0].info.run_id if found else None

    @_never_fatal
    def log_trials(self, trials: Sequence[TrialRun], tags: Mapping[str, str]) -> None:
        """Record trials as runs below this one, those that are not there yet."""
        from mlflow.entities import Metric, Param, RunTag

        known = {
            run.data.tags.get(TRIAL): run
            for run in self._search(f"tags.`{PARENT}` = '{self.run_id}'")
        }
        for trial in trials:
            run = known.get(str(trial.number)) or self._client.create_run(
                self._experiment,
                start_time=trial.begun,
                tags={**tags, PARENT: self.run_id, TRIAL: str(trial.number)},
                run_name=f"trial-{trial.number:03d}",
            )
            if run.info.status != "RUNNING":
                continue
            metrics = [(trial.metric, value, i) for i, value in enumerate(trial.folds)]
            metrics += [(f"mean_{trial.metric}", trial.value, 0)] if trial.value is not None else []
            self._client.log_batch(
                run.info.run_id,
                metrics=[Metric(name, it, trial.ended, step) for name, it, step in metrics],
                params=[Param(name, str(it)[:LONGEST_PARAM]) for name, it in trial.params.items()],
                tags=[RunTag("mlops.state", trial.state), RunTag("mlops.message", trial.message)],
            )
            status = "FAILED" if trial.state == "failed" else "FINISHED"
            self._client.set_terminated(run.info.run_id, status, trial.ended)

    @_never_fatal
    def close_leftovers(self, pipeline: str, is_over: Callable[[str], bool]) -> None:
        """Close the runs of a pipeline whose Dagster run `is_over`: it was killed meanwhile."""
        running = self._search(
            f"tags.`{PIPELINE}` = '{pipeline}' and attributes.status = 'RUNNING'"
        )
        for run in running:
            if DAGSTER_RUN in run.data.tags and is_over(run.data.tags[DAGSTER_RUN]):
                self._client.set_terminated(run.info.run_id, "KILLED")

    @_never_fatal
    def log(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        figures: Mapping[str, bytes] | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Record facts about the model; figures are PNG bytes, texts are files by name."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time() * 1000)
        # the tags first: they are what the run is found by, should the rest get lost
        self._client.log_batch(
            self.run_id,
            metrics=[Metric(name, value, now, 0) for name, value in (metrics or {}).items()],
            tags=[RunTag(name, value) for name, value in (tags or {}).items()],
        )
        for chunk in self._mlflow.chunks(dict(params or {})):
            entries = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in chunk.items()]
            self._client.log_batch(self.run_id, params=entries)
        with TemporaryDirectory() as folder:
            for name, png in (figures or {}).items():
                (figure := Path(folder, f"{name}.png")).write_bytes(png)
                self._client.log_artifact(self.run_id, figure, "figures")
        for name, text in (texts or {}).items():
            self._client.log_text(self.run_id, text, name)

    @_never_fatal
    def register(self, model: Artifact, url: str) -> None:
        """Make the model an entry of the registry, named like its pipeline, if it is none yet."""
        from mlflow.exceptions import MlflowException

        name = model.key[0]
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if model.version in self._entries(name):
            return
        run_id = self._run_of(model)
        pointer = {"url": url, "sha256": model.version}
        self._client.log_dict(run_id, pointer, "model/model.json")
        self._client.create_model_version(
            name,
            source=f"runs:/{run_id}/model",
            run_id=run_id,
            tags={MODEL_VERSION: model.version, "mlops.url": url},
            await_creation_for=0,  # it points to the store: there is nothing that a server copies
        )
        self._delete_twins(name, model.version)

    @_never_fatal
    def follow(self, pipeline: str, look: Callable[[], Verdicts]) -> None:
        """Let the registry's aliases and tags say what was decided about a pipeline's models.

        Where another process decides meanwhile, the last look is what counts: `look` is asked again
        after the aliases were set.
        """
        verdicts = look()
        while True:
            self._tell(pipeline, verdicts)
            before, verdicts = verdicts, look()
            if verdicts == before:
                return

    def _tell(self, pipeline: str, verdicts: Verdicts) -> None:
        client, entries = self._client, self._entries(pipeline)
        for version, tags in verdicts.tags.items():
            entry = entries.get(version)
            if entry is not None and entry.tags.get(DECIDED_AT, "") <= tags[DECIDED_AT]:
                for name, value in tags.items():
                    if entry.tags.get(name) != (value := value[:LONGEST_TAG]):
                        client.set_model_version_tag(pipeline, entry.version, name, value)
        for alias, version in verdicts.aliases.items():
            if version in entries:
                client.set_registered_model_alias(pipeline, alias, entries[version].version)
        if "challenger" not in verdicts.aliases:
            pointed = client.get_registered_model(pipeline).aliases
            if pointed.get("challenger") == pointed.get("champion") is not None:
                client.delete_registered_model_alias(pipeline, "challenger")

    def _delete_twins(self, pipeline: str, version: str) -> None:
        """Leave the oldest entry of a model that was registered by two processes at once."""
        oldest_first = self._newest_first(pipeline)[::-1]
        same = [entry for entry in oldest_first if entry.tags.get(MODEL_VERSION) == version]
        for entry in same[1:]:
            self._client.delete_model_version(pipeline, entry.version)

    def _entries(self, pipeline: str) -> dict[str, Any]:
        """Return the entries of the registry by version of the model; of two, the older one."""
        return {
            entry.tags[MODEL_VERSION]: entry
            for entry in self._newest_first(pipeline)
            if MODEL_VERSION in entry.tags
        }

    def _newest_first(self, pipeline: str) -> list[Any]:
        found = self._client.search_model_versions(f"name = '{pipeline}'")
        return sorted(found, key=lambda entry: int(entry.version), reverse=True)

    def _run_of(self, model: Artifact) -> str:
        """Return the newest run of a model; for one that this server does not know, a new one."""
        found = self._search(f"tags.`{MODEL_VERSION}` = '{model.version}'")
        if found:
            return str(found[0].info.run_id)
        tags = {PIPELINE: model.key[0], MODEL_VERSION: model.version}
        name = f"{model.key[0]}-{model.version[:8]}"
        run = self._client.create_run(self._experiment, tags=tags, run_name=name)
        self._client.set_terminated(run.info.run_id, "FINISHED")
        return str(run.info.run_id)

    def close(self, status: Status) -> None:
        """End the run, as killed if a request was lost: the record is not complete."""
        if self.run_id is None or (self.lost and not self._is_ours):
            return
        try:
            self._client.set_terminated(self.run_id, "KILLED" if self.lost else status)
        except Exception as error:  # as in all other requests
            if not self.lost:
                self.give_up(error)

    @property
    def link(self) -> str | None:
        """Address of the run in MLflow's UI, or the command that shows it; None without a run."""
        if self.run_id is None:
            return None
        uri = redacted(self._tracking_uri).replace("…@", "")  # an address to follow
        if urlsplit(uri).scheme in ("http", "https"):
            return f"{uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{self.run_id}"
        return f"run {self.run_id}: mlflow ui --backend-store-uri {uri}"

    @property
    def _client(self) -> Any:
        return self._mlflow.tracking_client

    @property
    def _experiment(self) -> str:
        return str(self._mlflow.experiment.experiment_id)

    def _search(self, condition: str) -> list[Any]:
        return list(
            self._client.search_runs([self._experiment], condition, order_by=["start_time DESC"])
        )


class MlflowTracking(ConfigurableResource):  # type: ignore[type-arg]
    """The tracking server; the fields are those of dagster-mlflow's resource.

    `experiment_name` left empty means one experiment per pipeline, named like it.
    """

    mlflow_tracking_uri: str
    experiment_name: str = ""
    env: dict[str, str] = Field(default={}, description="Environment variables for MLflow.")
    env_to_tag: list[str] = Field(default=[], description="Variables whose values become tags.")
    extra_tags: dict[str, str] = Field(default={}, description="Further tags of every run.")

    @contextmanager
    def training(
        self,
        log: logging.Logger,
        pipeline: str,
        dagster_run_id: str,
        is_over: Callable[[str], bool] = lambda _: False,
    ) -> Iterator[ModelRun]:
        """Open the run of a model that is about to be trained, and close it with its outcome.

        What an earlier attempt that was killed left open is closed as killed: one of the same
        Dagster run, or of another one that `is_over`.
        """
        run = self._connect(log, pipeline)
        run.close_leftovers(pipeline, lambda one: one == dagster_run_id or is_over(one))
        self._create(run, pipeline, {DAGSTER_RUN: dagster_run_id})
        with _closing(run):
            yield run

    @contextmanager
    def trained(self, log: logging.Logger, pipeline: str, version: str) -> Iterator[ModelRun]:
        """Continue the run of the trained model with this version.

        Where the tracking server does not know the model (it was away, or is another one than at
        training), a run is created for it.
        """
        run = self._connect(log, pipeline)
        run.find(version)
        if run.run_id is None:
            self._create(run, pipeline, {MODEL_VERSION: version})
        with _closing(run):
            yield run

    @contextmanager
    def searching(
        self, log: logging.Logger, pipeline: str, study: str, dagster_run_id: str
    ) -> Iterator[ModelRun]:
        """Continue the run of a search for parameters, or open it."""
        run = self._connect(log, pipeline)
        run.find_study(study)
        if run.run_id is None:
            self._create(run, pipeline, {STUDY: study, DAGSTER_RUN: dagster_run_id})
        with _closing(run):
            yield run

    def close_killed(
        self, log: logging.Logger, pipelines: Iterable[str], dagster_run_ids: Container[str]
    ) -> None:
        """Close what Dagster runs that were killed left open in the experiments of pipelines."""
        for pipeline in pipelines:
            run = self._connect(log, pipeline)
            run.close_leftovers(pipeline, lambda one: one in dagster_run_ids)

    def _connect(self, log: logging.Logger, pipeline: str) -> ModelRun:
        run = ModelRun(log, self.mlflow_tracking_uri)
        run.connect({**self.model_dump(), "experiment_name": self.experiment_name or pipeline})
        return run

    def _create(self, run: ModelRun, pipeline: str, identity: dict[str, str]) -> None:
        """Open the run that these tags identify; it is named by the first of them."""
        name = f"{pipeline}-{next(iter(identity.values()))[:8]}"
        run.create(name, {**self.tags(pipeline), **identity}, identity)

    def tags(self, pipeline: str) -> dict[str, str]:
        """Return the tags of every run of a pipeline."""
        from_environment = {
            variable: os.environ[variable] for variable in self.env_to_tag if variable in os.environ
        }
        return {PIPELINE: pipeline, **from_environment, **self.extra_tags, **git_tags()}


@cache
def _explicit_runs() -> type[MlFlow]:
    """Return dagster-mlflow's class without its implicit runs; imports MLflow, about 3 s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BetaWarning)  # all of dagster-mlflow is marked as beta
        import mlflow
        from dagster_mlflow.resources import MlFlow

    class ExplicitRuns(MlFlow):
        """Sets up the server and the experiment, and opens no run."""

        def __init__(self, context: Any) -> None:
            uri = context.resource_config["mlflow_tracking_uri"]
            mlflow.set_tracking_uri(uri)
            with _alone_on(uri):
                client = mlflow.tracking.MlflowClient()
                _create_experiment(client, context.resource_config["experiment_name"])
            super().__init__(context)  # type: ignore[no-untyped-call]

        def _setup(self) -> None:
            self.mlflow_run_id = None

    return ExplicitRuns


def _create_experiment(client: Any, name: str) -> None:
    """Keep the artifacts of a local database beside it; MLflow would use the working directory."""
    database = _local_database(client.tracking_uri)
    if database is not None and client.get_experiment_by_name(name) is None:
        artifacts = database.parent / "mlartifacts" / name
        client.create_experiment(name, artifact_location=artifacts.as_uri())


def _alone_on(tracking_uri: str) -> AbstractContextManager[object]:
    """Let one process at a time create the tables of a local database; MLflow breaks otherwise."""
    database = _local_database(tracking_uri)
    if database is None:
        return nullcontext()
    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(database.with_name(f"{database.name}.lock"))


def _local_database(tracking_uri: str) -> Path | None:
    uri = urlsplit(tracking_uri)
    return Path(uri.path.removeprefix("/")).absolute() if uri.scheme == "sqlite" else None


@contextmanager
def _closing(run: ModelRun) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, DagsterExecutionInterruptedError):
        run.close("KILLED")
        raise
    except BaseException:
        run.close("FAILED")
        raise
    run.close("FINISHED")


@cache
def git_tags() -> dict[str, str]:
    """Return the commit that the code runs from, as MLflow names it; nothing outside of git."""
    git = which("git")
    if git is None:
        return {}
    try:
        commit = subprocess.run(  # noqa: S603 - a fixed command
            [git, "rev-parse", "--verify", "--quiet", "HEAD"],
            cwd=PACKAGE,
            capture_output=True,
            text=True,
            timeout=5,
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"mlflow.source.git.commit": commit} if commit else {}
