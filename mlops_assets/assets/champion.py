"""`p/champion`: the model that is used, and the decision whether a new one takes its place."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetIn,
    AssetsDefinition,
    Output,
    asset,
)

from mlops_assets.assets.common import MLFLOW, STORE, key_of, retry_policy
from mlops_assets.errors import DataError, ModelError, StoreError
from mlops_assets.failures import explained
from mlops_assets.spec import PipelineSpec
from mlops_assets.stages import Stage
from mlops_assets.store.artifacts import (
    Artifact,
    ArtifactStore,
    CorruptArtifactError,
    MissingArtifactError,
)
from mlops_assets.store.champions import Champion, ChampionChangedError, Champions
from mlops_assets.store.io_manager import LOAD_AS, StoreIOManager
from mlops_assets.store.reuse import defined_by
from mlops_assets.tracking import MlflowTracking

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
                EXISTS, asset=key, description="A model has passed its gates at least once."
            )
        ],
        description=(
            "The newest model that passed its gates and is not worse than the champion before it "
            f"on the same test set, by {spec.promote.by or 'its first metric'}."
        ),
        owners=spec.owners,
        kinds={"scikitlearn", "mlflow"},
        group_name=spec.name,
        retry_policy=retry_policy(spec.retries),
        code_version=stage.code.version,
    )
    @defined_by(stage)
    def champion(
        context: AssetExecutionContext, model: Any, test: Any, metrics: Any
    ) -> Iterator[Output[Any] | AssetCheckResult]:
        store: StoreIOManager = context.resources.store
        tracking: MlflowTracking = context.resources.mlflow
        with explained():
            current, decision = promote_if_better(
                spec, store.artifacts, model, test, metrics, run_id=context.run.run_id
            )
            held = current and champion_artifact(spec, store.artifacts, current.version)
        context.log.info(decision.reason)
        facts: dict[str, Any] = {"reason": decision.reason}
        with tracking.trained(context.log, spec.name, model.version) as run:
            is_champion = current is not None and current.version == model.version
            run.register(
                model,
                store.artifacts.url_of(model),
                "champion" if is_champion else "challenger",
            )
            run.log(tags={"mlops.promotion": decision.reason})
        if current is not None:
            facts |= {
                "version": current.version,
                "promotion": current.number,
                "promoted_by_run": current.run_id,
            }
            yield Output(held, metadata=facts)
        yield AssetCheckResult(
            check_name=EXISTS,
            passed=current is not None,
            severity=AssetCheckSeverity.WARN,
            description=decision.reason,
            metadata=facts,
        )

    return champion


def champion_artifact(spec: PipelineSpec, store: ArtifactStore, version: str) -> Artifact:
    """Return the object of a champion, restored from `p/model` if it is missing or damaged.

    Raises
    ------
    StoreError
        It is neither here nor there.
    """
    key = key_of(spec, "champion").path
    try:
        return store.copy(store.find(key, version), key)
    except (MissingArtifactError, CorruptArtifactError):
        return store.copy(store.find(key_of(spec, "model").path, version), key)


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
        current = champions.current()
        if current is not None and current.version == model.version:
            return current, Decision(False, f"the model is the champion already: {current.reason}")
        decision = _compare(spec, store, current, test, metrics, by)
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
                at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            return promoted, decision


def _compare(
    spec: PipelineSpec,
    store: ArtifactStore,
    current: Champion | None,
    test: "pd.DataFrame",
    metrics: Mapping[str, float],
    by: str,
) -> "Decision":
    from mlops_assets.ml.evaluate import score
    from mlops_assets.ml.promote import Decision, decide

    def decide_against(champion_score: float | None) -> "Decision":
        return decide(
            metrics,
            spec.evaluate.conditions,
            by=by,
            challenger_score=metrics[by],
            champion_score=champion_score,
            min_improvement=spec.promote.min_improvement,
        )

    alone = decide_against(None)
    if current is None or not alone.promote:
        return alone
    try:
        champion = store.read(champion_artifact(spec, store, current.version))
        return decide_against(score(champion, test, by))
    except (DataError, ModelError, StoreError) as error:
        return Decision(True, f"the champion cannot be judged on this test set: {error}")
