"""A step of a pipeline of commands: what it printed and reported, kept like any other asset.

How a command is run is `mlops_assets.commands`.
"""

from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    AssetsDefinition,
    Failure,
    MaterializeResult,
    MetadataValue,
    Output,
    asset,
)

from mlops_assets.assets.common import STORE, key_of, retry_policy
from mlops_assets.commands.ending import CommandError
from mlops_assets.commands.lines import Lines
from mlops_assets.commands.runners import Ran, Work, runner_for
from mlops_assets.commands.value import as_variable, value_of
from mlops_assets.execution.compute import (
    K8S_CONFIG,
    StepOptions,
    labels_of,
    pod_config,
    step_options,
)
from mlops_assets.execution.kubernetes import PIPES_ACCOUNT
from mlops_assets.settings import Settings
from mlops_assets.spec import ComputeSpec, StepSpec, StepsSpec, variable_of
from mlops_assets.stages import Stage, asset_of
from mlops_assets.store.artifacts import Artifact, ArtifactStore
from mlops_assets.store.io_manager import LOAD_AS
from mlops_assets.store.reuse import MEMOIZED, PRODUCED_BY, SAVED, defined_by

PREVIEW = 2000
"""Characters of the output that the UI shows."""

WAITS = ComputeSpec(cpu=0.1, memory="512Mi")
"""What a step asks for that only waits for a pod of its own."""

_OURS = frozenset(
    (
        *(MEMOIZED, PRODUCED_BY, SAVED, "location", "size_bytes"),
        *("command", "exit_code", "duration_seconds", "output"),
    )
)
"""Metadata that is not the command's to report."""


def build_step(spec: StepsSpec, name: str, stage: Stage) -> AssetsDefinition:
    """Return the asset of a step, with the checks that it declares."""
    key, step = key_of(spec, name), spec.steps[name]

    @asset(
        key=key,
        ins={
            _input_of(need): AssetIn(
                AssetKey(asset_of(spec, need).split("/")), metadata={LOAD_AS: "artifact"}
            )
            for need in step.needs
        },
        io_manager_key=STORE,
        required_resource_keys={STORE},
        description=step.description or f"What this prints:\n\n```\n{_shown(step)}\n```",
        owners=spec.owners,
        kinds={"docker" if step.image else "shell", "json"},
        metadata=_definition_metadata(step),
        check_specs=[
            AssetCheckSpec(
                check,
                asset=key,
                blocking=True,
                description="Reported by the command; a warning stops nothing.",
            )
            for check in step.checks
        ],
        group_name=spec.name,
        retry_policy=retry_policy(spec.retries),
        **_options(spec, name),
        code_version=stage.code.version,
    )
    @defined_by(stage)
    def command(
        context: AssetExecutionContext, **needs: Any
    ) -> Iterator[Output[Any] | AssetCheckResult]:
        artifacts = {need: needs[_input_of(need)] for need in step.needs}
        begun = monotonic()
        stage.look(context.resources.store.outside, None)  # a missing file is said at once
        work = _work(spec, name, artifacts, context.resources.store.artifacts)
        lines = Lines(context.log)
        ran = runner_for(step, Settings.from_environment().deployment)(context, work, lines)
        lines.end()
        if not ran.ending.succeeded:
            raise _failure(ran, lines)
        made, checks = _sorted(ran, step, key)
        metadata = _reported(context, made)
        value = value_of(
            lines.output,
            {label: one.value for label, one in metadata.items()},
            made.data_version.value if made and made.data_version else None,
        )
        yield Output(
            value,
            metadata={
                "command": MetadataValue.text(_shown(step)),
                "exit_code": ran.ending.code,
                "duration_seconds": round(monotonic() - begun, 3),
                "output": MetadataValue.text(_preview(value["output"])),
                **metadata,
            },
        )
        yield from checks

    return command


def _input_of(need: str) -> str:
    """Return a name for an input: those of steps may mean something in Python or to Dagster."""
    return f"need_{need.replace('/', '__')}"


def _shown(step: StepSpec) -> str:
    """Return what is run, as the pipeline file has it."""
    command = step.command
    text = command if isinstance(command, str) or command is None else " ".join(command)
    return "\n".join(filter(None, [step.image and f"image {step.image}", text and text.strip()]))


def _definition_metadata(step: StepSpec) -> dict[str, Any]:
    return {
        "command": MetadataValue.text(_shown(step)),
        **({"files": step.files} if step.files else {}),
        **({"timeout_seconds": step.timeout} if step.timeout is not None else {}),
    }


def _options(spec: StepsSpec, name: str) -> StepOptions:
    """Return what a step asks for; one with an image waits for a pod, which it starts by itself."""
    step = spec.steps[name]
    if step.image is None:
        return step_options(spec.name, name, step.compute)
    options = step_options(spec.name, name, WAITS)
    options["op_tags"][K8S_CONFIG]["pod_spec_config"] |= {
        "service_account_name": PIPES_ACCOUNT,
        "automount_service_account_token": True,
    }
    return {**options, "pool": step_options(spec.name, name, step.compute)["pool"]}


def _work(
    spec: StepsSpec, name: str, artifacts: Mapping[str, Artifact], store: ArtifactStore
) -> Work:
    """Say what is run, with what the step was given."""
    step = spec.steps[name]
    variables, extras = dict(step.env), {}
    for need, artifact in artifacts.items():
        is_step = "/" not in need
        given = as_variable(store.read(artifact)) if is_step else store.url_of(artifact)
        variables[variable_of(need)] = given
        extras[need] = {
            "asset": asset_of(spec, need),
            "version": artifact.version,
            "output" if is_step else "url": given,
        }
    return Work(
        pipeline=spec.name,
        name=name,
        step=step,
        folder=spec.folder,
        variables=variables,
        extras={"needs": extras},
        labels=labels_of(spec.name, name),
        pod=pod_config(spec.name, name, step.compute),
    )


def _failure(ran: Ran, lines: Lines) -> Failure:
    last = f"\n{lines.last}" if lines.last else ""
    return Failure(
        description=f"{ran.ending}{last}",
        metadata={"exit_code": ran.ending.code},
        allow_retries=not ran.ending.is_final,
    )


def _sorted(
    ran: Ran, step: StepSpec, key: AssetKey
) -> tuple[MaterializeResult[Any] | None, list[AssetCheckResult]]:
    """Return what a command said of the asset and of each declared check.

    Raises
    ------
    CommandError
        It said something of a check that the pipeline file does not declare.
    """
    made = [one for one in ran.reported if isinstance(one, MaterializeResult)]
    checks = {one.check_name: one for one in ran.reported if isinstance(one, AssetCheckResult)}
    for name in checks:
        if name not in step.checks:
            raise CommandError(
                f"the command reported the check {name}, which the pipeline file does not have: "
                f"add it to `checks` of the step {key.path[-1]}"
            )
    return made[-1] if made else None, [
        checks.get(name) or _unreported(key, name) for name in step.checks
    ]


def _unreported(key: AssetKey, name: str) -> AssetCheckResult:
    return AssetCheckResult(
        asset_key=key,
        check_name=name,
        passed=False,
        severity=AssetCheckSeverity.ERROR,
        description="the command did not report it",
    )


def _reported(
    context: AssetExecutionContext, made: MaterializeResult[Any] | None
) -> dict[str, MetadataValue[Any]]:
    """Return the metadata that a command reported, without what is the store's to say."""
    metadata: dict[str, Any] = {**((made.metadata or {}) if made is not None else {})}
    ours = [name for name in metadata if name in _OURS or name.startswith(("mlops/", "dagster/"))]
    for name in ours:
        context.log.warning("metadata %s is not the command's to report, and is left out", name)
    return {name: one for name, one in metadata.items() if name not in ours}


def _preview(text: str) -> str:
    return text if len(text) <= PREVIEW else f"…{text[-PREVIEW:]}"
