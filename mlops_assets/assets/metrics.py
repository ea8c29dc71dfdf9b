"""`p/metrics`: what the model is worth on rows that it has not seen; figures, model card, gates."""

from collections.abc import Iterator
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetIn,
    AssetsDefinition,
    MetadataValue,
    Output,
    asset,
)

from mlops_assets.assets.common import (
    MLFLOW,
    STORE,
    as_markdown,
    key_of,
    step_settings,
    warnings_logged,
)
from mlops_assets.dagster_internals.steps import recorded_input_version
from mlops_assets.spec import PipelineSpec
from mlops_assets.stages import Stage
from mlops_assets.store.reuse import defined_by
from mlops_assets.tracking import MlflowTracking


def build_metrics(spec: PipelineSpec, stage: Stage) -> AssetsDefinition:
    """Return the asset `p/metrics`, with one check per gate."""
    key = key_of(spec, "metrics")

    @asset(
        key=key,
        ins={"model": AssetIn(key_of(spec, "model")), "test": AssetIn(key_of(spec, "test"))},
        io_manager_key=STORE,
        required_resource_keys={MLFLOW},
        description="Metrics of the model on the test set, with what the figures are drawn from.",
        owners=spec.owners,
        kinds={"scikitlearn", "json"},
        check_specs=[
            AssetCheckSpec(
                f"gate_{gate.metric}",
                asset=key,
                description=f"{gate}: below it a model is kept, but never promoted.",
            )
            for gate in spec.evaluate.conditions
        ],
        group_name=spec.name,
        **step_settings(spec, "metrics"),
        code_version=stage.code.version,
    )
    @defined_by(stage)
    def metrics(
        context: AssetExecutionContext, model: Any, test: Any
    ) -> Iterator[Output[Any] | AssetCheckResult]:
        from mlops_assets.ml.evaluate import evaluate
        from mlops_assets.ml.figures import figures
        from mlops_assets.ml.model import problem_kind
        from mlops_assets.ml.model_card import model_card

        tracking: MlflowTracking = context.resources.mlflow
        model_version = str(recorded_input_version(context, key_of(spec, "model")))
        test_version = str(recorded_input_version(context, key_of(spec, "test")))
        with tracking.trained(context.log, spec.name, model_version) as run:
            names = spec.metrics_for(problem_kind(model.task, model.classes))
            with warnings_logged(context.log):
                evaluation = evaluate(model, test, names, seed=spec.split.seed)
                drawn = figures(evaluation)
            card = model_card(spec, model, evaluation)
            run.log(
                metrics=evaluation["metrics"],
                tags={"mlops.test_version": test_version},
                figures=drawn,
                texts={"model_card.md": card},
            )
        yield Output(
            evaluation,
            metadata={
                **evaluation["metrics"],
                "metrics": evaluation["metrics"],
                "test_rows": evaluation["rows"],
                "model_card": MetadataValue.md(card),
                "figures": MetadataValue.md(as_markdown(drawn)),
            },
        )
        for gate in spec.evaluate.conditions:
            value = evaluation["metrics"][gate.metric]
            yield AssetCheckResult(
                check_name=f"gate_{gate.metric}",
                passed=gate.passes(value),
                description=f"{gate.metric} is {value:.4g}, the gate is {gate}",
                metadata={gate.metric: value, "threshold": gate.threshold},
            )

    return metrics
