"""`p/champion`: the model that is used, and the decision whether a new one takes its place."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetIn,
    AssetsDefinition,
    MetadataValue,
    Output,
    asset,
)

from mlops_assets.assets.common import MLFLOW, STORE, as_markdown, key_of, step_settings
from mlops_assets.errors import DataError, ModelError, StoreError
from mlops_assets.spec import PipelineSpec
from mlops_assets.stages import Stage
from mlops_assets.store.artifacts import (
    Artifact,
    ArtifactStore,
    CorruptArtifactError,
    MissingArtifactError,
)
from mlops_assets.store.champions import (
    Champion,
    ChampionChangedError,
    Champions,
    passed_over,
    standings,
)
from mlops_assets.store.io_manager import LOAD_AS, StoreIOManager
from mlops_assets.store.reuse import defined_by
from mlops_assets.tracking import (
    DECIDED_AT,
    REASON,
    STATUS,
    MlflowTracking,
    ModelRun,
    Verdicts,
)

if TYPE_CHECKING:
    import pandas as pd

    from mlops_assets.ml.promote import Decision


EXISTS = "champion_exists"
"""Name of the check; its metadata say how the last comparison went, also when nothing changed."""


def build_champion(spec: PipelineSpec, stage: Stage) -> AssetsDefinition:
    """Return the asset `p/champion`; it stays without a value until a model passes its gates."""
    key = key_of(spec, "champion")

    @asset(
        key=key,
        ins={
            "model": AssetIn(key_of(spec, "model"), metadata={LOAD_AS: "artifact"}),
            "test": AssetIn(key_of(spec, "test")),
            "metrics": AssetIn(key_of(spec, "metrics")),
        },
        io_manager_key=STORE,
        required_resource_keys={STORE, MLFLOW},
        output_required=False,
        check_specs=[
            AssetCheckSpec(
                EXISTS,
                asset=key,
                description="A model has passed its gates, or was promoted by hand.",
            )
        ],
        description=(
            "The newest model that passed its gates and is not worse than the champion before it "
            f"on the same test set, by {spec.promote.by or 'its first metric'}; or the model that "
            "was promoted by hand."
        ),
        owners=spec.owners,
        kinds={"scikitlearn", "mlflow"},
        group_name=spec.name,
        **step_settings(spec, "champion"),
        code_version=stage.code.version,
    )
    @defined_by(stage)
    def champion(
        context: AssetExecutionContext, model: Any, test: Any, metrics: Any
    ) -> Iterator[Output[Any] | AssetCheckResult]:
        store: StoreIOManager = context.resources.store
        tracking: MlflowTracking = context.resources.mlflow
        current, decision = promote_if_better(
            spec, store.artifacts, model, test, metrics, run_id=context.run.run_id
        )
        is_champion = current is not None and current.version == model.version
        refused = None if is_champion else decision.reason
        context.log.info(decision.reason)
        numbers, figures = _numbers(decision), _figures(decision)
        # the latest materialisation is to be the latest champion: another run may have promoted
        # while this was drawn, and MLflow is waited for later
        current = Champions(store.artifacts, spec.name).current()
        held = current and _held(spec, store.artifacts, current, decision)
        facts: dict[str, Any] = {"reason": decision.reason, **numbers}
        if figures:
            facts["comparison"] = MetadataValue.md(as_markdown(figures))
        if current is not None:
            facts |= {
                "version": current.version,
                "promotion": current.number,
                "promoted_by": current.by,
                "promoted_by_run": current.run_id,
            }
            yield Output(held, metadata=facts)
        with tracking.trained(context.log, spec.name, model.version) as run:
            run.log(
                metrics={f"promotion_{name}": value for name, value in numbers.items()},
                tags={"mlops.promotion": decision.reason},
                figures=figures,
            )
            registered(run, spec, store.artifacts, [model, *([held] if held else [])], refused)
        yield AssetCheckResult(
            check_name=EXISTS,
            passed=current is not None,
            severity=AssetCheckSeverity.WARN,
            description=decision.reason,
            metadata=facts,
        )

    return champion


def registered(
    run: ModelRun,
    spec: PipelineSpec,
    store: ArtifactStore,
    models: Sequence[Artifact],
    refused: str | None = None,
) -> None:
    """Tell MLflow's registry of models, and of all that was decided about champions so far.

    Parameters
    ----------
    run
        Of the first of the models.
    models
        The first one becomes the challenger unless it is the champion.
    refused
        Why a run did not promote the first one. All other decisions are in the log of champions.
    """
    champions = Champions(store, spec.name)
    for model in models:
        run.register(model, store.url_of(model))
    at = now()

    def verdicts() -> Verdicts:
        history = champions.history()
        tags = {
            version: {STATUS: status, REASON: by.reason, DECIDED_AT: by.at}
            for version, (status, by) in standings(history).items()
        }
        champion = history[-1].version if history else None
        aliases: dict[Literal["champion", "challenger"], str] = {}
        if champion is not None:
            aliases["champion"] = champion
        if models[0].version != champion:
            aliases["challenger"] = models[0].version
            if refused and models[0].version not in passed_over(history):
                tags[models[0].version] = {STATUS: "refused", REASON: refused, DECIDED_AT: at}
        return Verdicts(aliases, tags)

    run.follow(spec.name, verdicts)


def champion_artifact(spec: PipelineSpec, store: ArtifactStore, version: str) -> Artifact:
    """Return the object of a champion, restored from `p/model` if it is missing or damaged.

    Raises
    ------
    MissingArtifactError
        It is neither here nor there.
    """
    champion, model = key_of(spec, "champion"), key_of(spec, "model")
    for key in (champion, model):
        with suppress(MissingArtifactError, CorruptArtifactError):
            return store.copy(store.find(key.path, version), champion.path)
    raise MissingArtifactError(
        f"{version} is missing or damaged under both {champion.to_user_string()} and "
        f"{model.to_user_string()} in {store.url}"
    )


def promote_if_better(
    spec: PipelineSpec,
    store: ArtifactStore,
    model: Artifact,
    test: "pd.DataFrame",
    evaluation: Mapping[str, Any],
    *,
    run_id: str | None,
) -> tuple[Champion | None, "Decision"]:
    """Compare a model with the champion, and make it the champion if it deserves it.

    When another run promotes its model meanwhile, the comparison is made again with that one. The
    bytes are copied under the champion's key before the promotion is recorded, so that a recorded
    champion can always be loaded.

    Returns
    -------
    champion, decision
        The champion after the comparison, None as long as there is none, and why.
    """
    from mlops_assets.ml.promote import Decision

    champions = Champions(store, spec.name)
    metrics: Mapping[str, float] = evaluation["metrics"]
    by = spec.metrics_for(evaluation["kind"])[0]
    while True:
        history = champions.history()
        current = history[-1] if history else None
        if current is not None and current.version == model.version:
            return current, Decision(False, f"the model is the champion already: {current.reason}")
        if by_hand := passed_over(history).get(model.version):
            return current, Decision(False, _passed_over(spec, model, by_hand))
        decision = _compare(spec, store, current, model, test, metrics, by)
        if not decision.promote:
            return current, decision
        store.copy(model, key_of(spec, "champion").path)
        with suppress(ChampionChangedError):
            promoted = champions.promote(
                model.version,
                expected=current,
                metrics=metrics,
                reason=decision.reason,
                run_id=run_id,
                at=now(),
            )
            return promoted, decision


def now() -> str:
    """Return the time of a decision, such that texts are in the order of times."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _compare(
    spec: PipelineSpec,
    store: ArtifactStore,
    current: Champion | None,
    model: Artifact,
    test: "pd.DataFrame",
    metrics: Mapping[str, float],
    by: str,
) -> "Decision":
    from mlops_assets.ml.promote import Decision, compare, decide, judge

    gates = spec.evaluate.conditions
    alone = decide(metrics, gates, by=by)
    if current is None or not alone.promote:
        return alone
    challenger = judge(store.read(model), test, by)
    try:
        held = champion_artifact(spec, store, current.version)
        champion = judge(store.read(held), test, by)
    except (DataError, ModelError, StoreError) as error:
        return Decision(True, f"the champion cannot be judged on this test set: {error}")
    comparison = compare(challenger, champion, seed=spec.split.seed)
    least = spec.promote.min_improvement
    return decide(metrics, gates, by=by, comparison=comparison, min_improvement=least)


def _held(
    spec: PipelineSpec, store: ArtifactStore, current: Champion, decision: "Decision"
) -> Artifact:
    try:
        return champion_artifact(spec, store, current.version)
    except MissingArtifactError as error:
        raise MissingArtifactError(
            f"the champion of {spec.name} is lost ({error}), and the new model does not take its "
            f"place: {decision.reason}; to choose one: `mlops promote {spec.name}`"
        ) from error


def _passed_over(spec: PipelineSpec, model: Artifact, by_hand: Champion) -> str:
    what = "rolled back" if by_hand.by == "rollback" else "passed over"
    return (
        f"the model {model.version} was {what} by hand at {by_hand.at} (promotion "
        f"{by_hand.number}), and no run promotes it again; to make it the champion: "
        f"mlops promote {spec.name} --version {model.version}"
    )


def _numbers(decision: "Decision") -> dict[str, float]:
    """Return what a comparison came to, by name; empty when there was none."""
    compared = decision.comparison
    if compared is None:
        return {}
    numbers: dict[str, float] = {"difference": compared.difference}
    if compared.interval is not None:
        numbers |= {"lower": compared.interval[0], "upper": compared.interval[1]}
    return numbers | {
        "resamples": len(compared.differences),
        "undefined_resamples": compared.undefined,
    }


def _figures(decision: "Decision") -> dict[str, bytes]:
    from mlops_assets.ml.figures import comparison_figure

    return {"promotion": comparison_figure(decision.comparison)} if decision.comparison else {}
