"""`p/best_params`: the parameters that a search has found, with an MLflow run for every trial.

A graph of steps: one for each trial, which may run at the same time as the others of its round, and
one that looks for the best. What a trial does is `mlops_assets.ml.tune`; where a finished one is
kept, `mlops_assets.store.trials`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from statistics import fmean
from time import time
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetIn,
    AssetKey,
    AssetsDefinition,
    In,
    MetadataValue,
    Nothing,
    OpDefinition,
    OpExecutionContext,
    Out,
    Output,
    TableColumn,
    TableMetadataValue,
    TableRecord,
    TableSchema,
    graph_asset,
    op,
)

from mlops_assets.assets.common import (
    MLFLOW,
    STORE,
    as_markdown,
    key_of,
    link_of,
    step_settings,
    warnings_logged,
)
from mlops_assets.dagster_internals.steps import version_for
from mlops_assets.errors import UserError
from mlops_assets.spec import PipelineSpec
from mlops_assets.stages import Stage, study
from mlops_assets.store.artifacts import Artifact, ArtifactStore
from mlops_assets.store.io_manager import LOAD_AS
from mlops_assets.store.memo import Outside
from mlops_assets.store.reuse import defined_by, forced, known_by
from mlops_assets.store.trials import Trials
from mlops_assets.tracking import MlflowTracking, TrialRun

if TYPE_CHECKING:
    from dagster._core.execution.context.system import StepExecutionContext

    from mlops_assets.ml.tune import Trial


def build_best_params(spec: PipelineSpec, stage: Stage) -> AssetsDefinition:
    """Return the asset `p/best_params`."""
    search = _Search(spec, stage)
    trials = [_trial(search, number) for number in range(spec.tune.trials)]
    choose = _choose(search)

    @graph_asset(
        key=search.key,
        ins={"train": AssetIn(key_of(spec, "train"))},
        description=f"The best of {len(trials)} sets of parameters, by cross-validation.",
        owners=spec.owners,
        kinds={"optuna", "json"},
        metadata={"space": spec.tune.model_dump(mode="json")["space"]},
        group_name=spec.name,
        code_version=stage.code.version,
    )
    def best_params(train: Any) -> Any:
        finished: list[Any] = []
        for number, trial in enumerate(trials):
            first = spec.tune.first_of_round(number)
            before = {"before": finished[first - spec.tune.parallel : first]} if first else {}
            finished.append(trial.alias(f"trial_{number:03d}")(train=train, **before))
        return choose.alias("choose")(train=train, trials=finished)

    return best_params


def _trial(search: "_Search", number: int) -> OpDefinition:
    spec = search.spec
    first = spec.tune.first_of_round(number)
    step = step_settings(spec, "best_params", trains=True)

    @op(
        name=f"{spec.name}__trial_{number:03d}",
        ins={"train": _REFERENCE, **({"before": In(Nothing)} if first else {})},
        out=Out(Nothing, io_manager_key=STORE),
        required_resource_keys={STORE},
        retry_policy=step["retry_policy"],
        tags=step["op_tags"],
        pool=step["pool"],
        description="One set of parameters, measured by cross-validation.",
    )
    @known_by(lambda step, outside: search.is_known(step, outside, number))
    def trial(context: OpExecutionContext, train: Any) -> None:
        search.finished(context, train, [*range(first), number], anew=number)

    return trial


def _choose(search: "_Search") -> OpDefinition:
    spec = search.spec
    step = step_settings(spec, "best_params")

    @op(
        name=f"{spec.name}__choose",
        ins={"train": _REFERENCE, "trials": In(Nothing)},
        out=Out(io_manager_key=STORE),
        required_resource_keys={STORE, MLFLOW},
        retry_policy=step["retry_policy"],
        tags=step["op_tags"],
        pool=step["pool"],
        description="The trial with the best mean over its folds.",
    )
    @defined_by(search.stage)
    def choose(context: OpExecutionContext, train: Any) -> Output[Any]:
        from mlops_assets.ml.figures import search_figure
        from mlops_assets.ml.tune import best_of, importances

        tracking: MlflowTracking = context.resources.mlflow
        found = search.finished(context, train, range(spec.tune.trials))
        study = search.id_of(train.version)
        with tracking.searching(context.log, spec.name, study, context.run_id) as run:
            run.log_trials([one.tracked() for one in found], tracking.tags(spec.name))
            trials = [one.trial for one in found]
            best = best_of(trials)
            with warnings_logged(context.log):
                shares = importances(spec, trials)
            by, value = str(best.by), fmean(best.folds)
            figures = {"search": search_figure([trial.value for trial in trials], by)}
            run.log(
                metrics={f"best_{by}": value},
                tags={f"best.{name}": str(it) for name, it in best.params.items()},
                figures=figures,
                texts={"pipeline.json": spec.model_dump_json(indent=2)},
            )
        context.log.info("the best is %s", best)
        return Output(
            {"params": best.params, "by": by, "value": value, "trial": best.number},
            metadata={
                "best_params": MetadataValue.json(dict(best.params)),
                by: value,
                "trials": _as_table(trials),
                "search": MetadataValue.md(as_markdown(figures)),
                **({"importances": MetadataValue.json(shares)} if shares else {}),
                **({"mlflow_run": link_of(run.link)} if run.link else {}),
            },
        )

    return choose


_REFERENCE = In(metadata={LOAD_AS: "artifact"})
"""The training set is read only where a trial has to run."""


@dataclass(frozen=True)
class _Finished:
    """A trial, and when and by whom it was made."""

    trial: "Trial"
    run_id: str
    at: str  # ISO 8601 with time zone
    seconds: float

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> "_Finished | None":
        """Return None for a record that is not there or damaged."""
        from mlops_assets.ml.tune import Trial

        try:
            facts = dict(record or {})
            trial = Trial(**{part.name: facts.pop(part.name) for part in fields(Trial)})
            return cls(trial, **facts)
        except (KeyError, TypeError):
            return None

    def record(self) -> dict[str, Any]:
        return {**asdict(self.trial), "run_id": self.run_id, "at": self.at, "seconds": self.seconds}

    def tracked(self) -> TrialRun:
        trial, ended = self.trial, datetime.fromisoformat(self.at).timestamp()
        return TrialRun(
            number=trial.number,
            params=trial.params,
            metric=str(trial.by),
            folds=trial.folds,
            value=trial.value,
            state=trial.state,
            message=trial.message or "",
            begun=int((ended - self.seconds) * 1000),
            ended=int(ended * 1000),
        )


@dataclass
class _Search:
    """The search of one pipeline: finds finished trials in the store, and makes the others."""

    spec: PipelineSpec
    stage: Stage
    study: str = field(init=False)
    _is_loaded: bool = False

    def __post_init__(self) -> None:
        """Keep what the trials are decided by, as it is when the process begins."""
        self.study = study(self.spec)

    @property
    def key(self) -> AssetKey:
        return key_of(self.spec, "best_params")

    def id_of(self, train_version: str) -> str:
        return f"{train_version}-{self.study}"

    def is_known(self, step: "StepExecutionContext", outside: Outside, number: int) -> bool:
        """Whether a trial is finished, and nobody wants it to be made again."""
        train_version = version_for(step, key_of(self.spec, "train"))
        if train_version is None or self._is_forced(step):
            return False
        return _Finished.of(self._trials(outside.store, train_version).get(number)) is not None

    def finished(
        self,
        context: OpExecutionContext,
        train: Artifact,
        numbers: Iterable[int],
        anew: int | None = None,
    ) -> list[_Finished]:
        """Return trials, in the order of their numbers, which begin with 0 and may have a gap.

        The ones that are not in the store are made: usually `anew` alone; others too if they were
        deleted meanwhile, or if `p/train` was made again since the first trial began.
        """
        numbers = list(numbers)
        trials = self._trials(context.resources.store.artifacts, train.version)
        records = dict(zip(numbers, trials.get_all(numbers), strict=True))
        found: dict[int, _Finished] = {}
        forced = self._is_forced(context.get_step_execution_context())
        for number, record in records.items():
            known = None if forced and number == anew else _Finished.of(record)
            if known is None:
                first = self.spec.tune.first_of_round(number)
                known = self._run(context, train, number, [found[n].trial for n in range(first)])
                trials.put(number, known.record())
            found[number] = known
        return list(found.values())

    def _run(
        self, context: OpExecutionContext, train: Artifact, number: int, before: list["Trial"]
    ) -> _Finished:
        from mlops_assets.ml.tune import run_trial

        frame = context.resources.store.artifacts.read(train)
        begun = time()
        with warnings_logged(context.log):
            trial = run_trial(number, frame, self.spec, before)
        self._require_current_code()
        context.log.info("%s", trial)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return _Finished(trial, context.run_id, at, round(time() - begun, 3))

    def _require_current_code(self) -> None:
        """Refuse a trial by other code than the study is named after.

        A process imports modules when it first needs them; once it has made a trial it has them
        all, and an edit changes nothing until the next process.
        """
        if not self._is_loaded and not self.stage.is_current():
            raise UserError(
                "the source was changed since this process began, so that it is not known which "
                "code ran: start the search again"
            )
        self._is_loaded = True

    def _is_forced(self, step: "StepExecutionContext") -> bool:
        return self.stage.recompute or forced(step, [self.key]) is not None

    def _trials(self, store: ArtifactStore, train_version: str) -> Trials:
        return Trials(store, self.spec.name, train_version, self.study)


def _as_table(trials: Iterable["Trial"]) -> TableMetadataValue:
    trials = list(trials)
    names = sorted({name for trial in trials for name in trial.params})
    columns = ["trial", "state", "value", *names, "message"]
    records = [
        TableRecord(
            {
                "trial": trial.number,
                "state": trial.state,
                "value": "" if trial.value is None else trial.value,
                **{name: str(trial.params[name]) for name in names},
                "message": trial.message or "",
            }
        )
        for trial in trials
    ]
    return MetadataValue.table(records, TableSchema([TableColumn(name) for name in columns]))
