"""Where a command runs: as a process, in a container of this machine, or in a pod of its own."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dagster import (
    PipesContextInjector,
    PipesEnvContextInjector,
    PipesMessageReader,
    PipesTempFileContextInjector,
    PipesTempFileMessageReader,
    PreviewWarning,
    open_pipes_session,
)
from dagster_pipes import PipesDefaultMessageWriter

from mlops_assets.commands.ending import Ending
from mlops_assets.commands.engine import ENGINE_FAILED, container_argv, container_name, engine
from mlops_assets.commands.lines import Lines
from mlops_assets.commands.process import run_process
from mlops_assets.commands.value import argv_of

if TYPE_CHECKING:
    from dagster import AssetCheckResult, AssetExecutionContext, MaterializeResult, PipesSession
    from dagster_pipes import PipesParams

    from mlops_assets.settings import Deployment
    from mlops_assets.spec import StepSpec


@dataclass(frozen=True)
class Work:
    """What is to be run.

    Parameters
    ----------
    pipeline, name : str
        Of the step.
    step : StepSpec
        What the pipeline file says of it.
    folder : Path
        Where that lies.
    variables : mapping of str to str
        What the command is given as environment, apart from what it finds there.
    extras : mapping of str to JSON value
        The same for a command that uses Dagster Pipes.
    labels : mapping of str to str
        Of a container or pod.
    pod : mapping of str to JSON value
        What a pod asks for, as dagster-k8s takes it.
    """

    pipeline: str
    name: str
    step: StepSpec
    folder: Path
    variables: Mapping[str, str]
    extras: Mapping[str, Any]
    labels: Mapping[str, str]
    pod: Mapping[str, Any]


class Ran(NamedTuple):
    """How a command has ended, and what it has reported by Dagster Pipes."""

    ending: Ending
    reported: tuple[MaterializeResult[Any] | AssetCheckResult, ...] = ()


Runner = Callable[["AssetExecutionContext", Work, Lines], Ran]


def runner_for(step: StepSpec, deployment: Deployment) -> Runner:
    """Choose where a command runs."""
    if step.image is None:
        return in_process
    if deployment == "k8s":
        from mlops_assets.commands.pod import in_pod  # imports Kubernetes

        return in_pod
    return in_container


def in_process(context: AssetExecutionContext, work: Work, lines: Lines) -> Ran:
    """Run a command on this machine, in the folder of the pipeline file.

    Raises
    ------
    CommandError
        Its program cannot be started.
    """
    assert work.step.command is not None
    with session_of(
        context, work, PipesTempFileContextInjector(), PipesTempFileMessageReader()
    ) as session:
        ending = run_process(
            argv_of(work.step.command),
            env={**_surroundings(), **work.variables, **session.get_bootstrap_env_vars()},
            take=lines.take,
            folder=work.folder,
            timeout=work.step.timeout,
        )
    return Ran(ending, tuple(session.get_reported_results()))


def in_container(context: AssetExecutionContext, work: Work, lines: Lines) -> Ran:
    """Run an image with docker or podman.

    Raises
    ------
    CommandError
        There is neither.
    """
    assert work.step.image is not None
    program, name = engine(work.step.image), container_name()
    with session_of(context, work, PipesEnvContextInjector(), _AmongLines(lines)) as session:
        variables = {**work.variables, **session.get_bootstrap_env_vars()}
        ending = run_process(
            container_argv(program, name, work.step, variables, work.labels),
            env={**variables, **os.environ},
            take=lines.take,
            timeout=work.step.timeout,
            abandon=[program, "rm", "--force", name],
        )
        lines.end()
    if ending.code == ENGINE_FAILED and ending.timeout is None:
        why = f"{Path(program).name} could not run the image {work.step.image}"
        ending = Ending(ending.code, why=why)
    return Ran(ending, tuple(session.get_reported_results()))


def _surroundings() -> dict[str, str]:
    """Return the environment of this process, for a command.

    `python` is the one that runs this, with all that is installed beside it; and it writes what it
    prints when it prints it.
    """
    path = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), os.environ.get("PATH")]))
    return {"PYTHONUNBUFFERED": "1", **os.environ, "PATH": path}


@contextmanager
def session_of(
    context: AssetExecutionContext,
    work: Work,
    injector: PipesContextInjector,
    reader: PipesMessageReader,
) -> Iterator[PipesSession]:
    """Open the session by which a command reports."""
    with (
        quiet(context.log),
        open_pipes_session(context, injector, reader, dict(work.extras)) as session,
    ):
        yield session


@contextmanager
def quiet(log: logging.Logger) -> Iterator[None]:
    """Keep Dagster from warning of a command that reports nothing, as most do, and of its own use.

    Its sessions ask their readers something that it marks as preview.
    """

    def is_wanted(record: logging.LogRecord) -> bool:
        return "[pipes] did not receive any messages" not in record.getMessage()

    log.addFilter(is_wanted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PreviewWarning)
            yield
    finally:
        log.removeFilter(is_wanted)


class _AmongLines(PipesMessageReader):
    """Messages that are lines of the standard error: no file need be shared with a container."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    @contextmanager
    def read_messages(self, handler: Any) -> Iterator[PipesParams]:
        """See `PipesMessageReader`."""
        self._lines.handler = handler
        try:
            yield {PipesDefaultMessageWriter.STDIO_KEY: PipesDefaultMessageWriter.STDERR}
        finally:
            self._lines.handler = None

    def no_messages_debug_text(self) -> str:
        """See `PipesMessageReader`."""
        return "Looked for messages among the lines of the standard error."
