"""`p/train` and `p/test`: the rows to learn from and the rows to be judged on."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    AssetOut,
    AssetsDefinition,
    MetadataValue,
    Output,
    multi_asset,
)

from mlops_assets.assets.common import STORE, key_of, step_settings
from mlops_assets.spec import PipelineSpec, Task
from mlops_assets.stages import Stage
from mlops_assets.store.reuse import defined_by

if TYPE_CHECKING:
    import pandas as pd


RARE_CLASS = 0.01
"""Share of the rows below which a class is reported as rare: at 1 % a usual 20 % test set of
thousands of rows holds only a handful of its rows, too few for a stable metric."""


REPEATED = 0.05
"""Share of test rows that are repeated in the training set from which on it is reported."""


def build_split(spec: PipelineSpec, stage: Stage) -> AssetsDefinition:
    """Return the assets `p/train` and `p/test`, one step, with their checks."""
    train_key, test_key = key_of(spec, "train"), key_of(spec, "test")

    def part(key: AssetKey, description: str) -> AssetOut:
        return AssetOut(
            key=key,
            description=description,
            io_manager_key=STORE,
            owners=spec.owners,
            kinds={"pandas", "parquet"},
            code_version=stage.code.version,
        )

    @multi_asset(
        name=f"{spec.name}__split",
        ins={"raw": AssetIn(key_of(spec, "raw"))},
        outs={
            "train": part(train_key, "The rows to learn from."),
            "test": part(test_key, "The rows that no training has seen."),
        },
        check_specs=[
            AssetCheckSpec(
                "no_overlap",
                asset=test_key,
                blocking=True,
                description="No row, group or later time of the test set is in the training set.",
            ),
            AssetCheckSpec(
                "no_repeated_rows",
                asset=test_key,
                description=f"Less than {REPEATED:.0%} of the test rows are also training rows.",
            ),
            AssetCheckSpec(
                "class_balance",
                asset=train_key,
                description=f"No class has less than {RARE_CLASS:.0%} of the rows.",
            ),
        ],
        group_name=spec.name,
        **step_settings(spec, "train", "test"),
    )
    @defined_by(stage)
    def split(context: AssetExecutionContext, raw: Any) -> Iterator[Output[Any] | AssetCheckResult]:
        from mlops_assets.ml.split import overlap, repeated_rows
        from mlops_assets.ml.split import split as split_rows
        from mlops_assets.ml.task import suited_task

        task = suited_task(raw[spec.data.target], spec.model.known_task)
        parts = split_rows(raw, spec.split, target=spec.data.target, task=task)
        problems = overlap(parts, spec.split)
        unlabelled = len(raw) - len(parts.train) - len(parts.test)
        if unlabelled:
            context.log.warning("%d rows have no %s and are left out", unlabelled, spec.data.target)
        yield Output(parts.train, "train", metadata={"rows_without_target": unlabelled})
        yield Output(parts.test, "test")
        yield AssetCheckResult(
            asset_key=test_key,
            check_name="no_overlap",
            passed=not problems,
            description="; ".join(problems) or "nothing is shared",
        )
        repeated = repeated_rows(parts)
        yield AssetCheckResult(
            asset_key=test_key,
            check_name="no_repeated_rows",
            passed=repeated < REPEATED * len(parts.test),
            severity=AssetCheckSeverity.WARN,
            description=f"{repeated} of {len(parts.test)} test rows have the content of a training "
            "row, which flatters the metrics",
            metadata={"repeated_rows": repeated},
        )
        yield _class_balance(parts.train, task, spec)

    return split


def _class_balance(train: "pd.DataFrame", task: Task, spec: PipelineSpec) -> AssetCheckResult:
    from mlops_assets.ml.checks import class_balance

    shares = class_balance(train, spec.data.target) if task == "classification" else {}
    rare = {name: share for name, share in shares.items() if share < RARE_CLASS}
    return AssetCheckResult(
        asset_key=key_of(spec, "train"),
        check_name="class_balance",
        passed=not rare,
        severity=AssetCheckSeverity.WARN,
        description=(
            "rare: " + ", ".join(f"{name} ({share:.2%})" for name, share in rare.items())
            if rare
            else "no class is rare"
            if shares
            else "a regression has no classes"
        ),
        metadata={str(name): MetadataValue.float(share) for name, share in shares.items()},
    )
