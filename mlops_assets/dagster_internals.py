"""Every use of Dagster that is not public, in one place.

`pyproject.toml` pins Dagster's minor version because of this module, and
`mlops_assets_tests/test_dagster_internals.py` fails when one of these moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster import DagsterError, DagsterExecutionInterruptedError, InputContext

if TYPE_CHECKING:
    from dagster import AssetExecutionContext, AssetKey, OutputContext


class RunInterrupted(DagsterError, DagsterExecutionInterruptedError):
    """Ends the run at once.

    A step with a retry policy that is interrupted would be tried again, after Ctrl-C too. As a
    `DagsterError` this gets past the policy, and as an interrupt it stops all other steps.
    """


def record_data_version(context: OutputContext, key: AssetKey, version: str) -> None:
    """Give the materialisation that is being recorded its data version.

    Publicly only the asset's own function can do so, before the IO manager knows the content.
    """
    from dagster import DataVersion

    context.step_context.set_data_version(key, DataVersion(version))


def observe_input(context: AssetExecutionContext, key: AssetKey, version: str) -> None:
    """Record what an external upstream asset holds now, as the version that this step is given.

    Publicly the version of an input is that of the last observation before the step began.
    """
    from dagster import AssetObservation

    context.log_event(AssetObservation(key, tags={"dagster/data_version": version}))
    context.get_step_execution_context().wipe_input_asset_version_info(key)


def is_in_step(context: InputContext) -> bool:
    """Say whether an input is loaded for a running step, rather than by hand."""
    return context._step_context is not None


def recorded_input_version(
    context: InputContext | AssetExecutionContext, key: AssetKey
) -> str | None:
    """Return the data version of an input that Dagster records for the running step.

    None when the upstream asset has neither a materialisation nor an observation.
    """
    if isinstance(context, InputContext):
        step = context.step_context
    else:
        step = context.get_step_execution_context()
    info = step.maybe_fetch_and_get_input_asset_version_info(key)
    return info.data_version.value if info is not None and info.data_version else None
