"""`p/model`: the trained model, with an MLflow run of its own."""

from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetIn,
    AssetsDefinition,
    Output,
    asset,
)

from mlops_assets.assets.common import (
    MLFLOW,
    STORE,
    key_of,
    link_of,
    step_settings,
    warnings_logged,
)
from mlops_assets.dagster_internals.steps import recorded_input_version
from mlops_assets.spec import PipelineSpec
from mlops_assets.stages import Stage
from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets.store.reuse import defined_by
from mlops_assets.tracking import MODEL_VERSION, MlflowTracking


def build_model(spec: PipelineSpec, stage: Stage) -> AssetsDefinition:
    """Return the asset `p/model`."""
    key = key_of(spec, "model")
    estimator = spec.model.estimator.rpartition(".")[2]

    @asset(
        key=key,
        ins={
            "train": AssetIn(key_of(spec, "train")),
            **({"best_params": AssetIn(key_of(spec, "best_params"))} if spec.tune.trials else {}),
        },
        io_manager_key=STORE,
        required_resource_keys={STORE, MLFLOW},
        description=f"A {estimator} that predicts `{spec.data.target}`, with its preprocessing.",
        owners=spec.owners,
        kinds={"scikitlearn", "mlflow"},
        metadata={"estimator": spec.model.estimator, "params": spec.model.params},
        group_name=spec.name,
        **step_settings(spec, "model", trains=True),
        code_version=stage.code.version,
    )
    @defined_by(stage)
    def model(context: AssetExecutionContext, train: Any, **tuned: Any) -> Output[Any]:
        from mlops_assets.ml.train import train_and_tell

        found = tuned["best_params"]["params"] if tuned else {}
        params = {**spec.model.params, **found}
        store: StoreIOManager = context.resources.store
        tracking: MlflowTracking = context.resources.mlflow

        def is_over(run_id: str) -> bool:
            run = context.instance.get_run_by_id(run_id)
            return run is not None and run.is_finished

        with tracking.training(context.log, spec.name, context.run.run_id, is_over) as run:
            with warnings_logged(context.log):
                trained, used = train_and_tell(
                    train,
                    spec.model.model_copy(update={"params": params}),
                    target=spec.data.target,
                    positive_class=spec.data.positive_class,
                    drop=[*spec.data.drop, *([spec.split.group] if spec.split.group else [])],
                    seed=spec.split.seed,
                )
            artifact = store.artifacts.write(key.path, trained)
            context.log.info("trained a %s on %d rows (%s)", estimator, len(train), used.name)
            run.log(
                params={"estimator": spec.model.estimator, **params},
                metrics=used.facts,
                tags={
                    MODEL_VERSION: artifact.version,
                    "mlops.device": used.name,
                    "mlops.asset": key.to_user_string(),
                    "mlops.url": store.artifacts.url_of(artifact),
                    "mlops.train_version": str(
                        recorded_input_version(context, key_of(spec, "train"))
                    ),
                },
                texts={"pipeline.json": spec.model_dump_json(indent=2)},
            )
            return Output(
                artifact,
                metadata={
                    "estimator": spec.model.estimator,
                    "train_rows": len(train),
                    "features": len(trained.features),
                    "device": used.name,
                    **used.facts,
                    **({"params": params} if tuned else {}),
                    **({"mlflow_run": link_of(run.link)} if run.link else {}),
                },
            )

    return model
