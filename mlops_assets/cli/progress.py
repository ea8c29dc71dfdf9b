"""Progress on the terminal: one line when a step begins and one when it ends, and what was said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from dagster import DagsterEventType, LoggerDefinition, logger

from mlops_assets.failures import reason_of, said_of
from mlops_assets.store.reuse import MEMOIZED
from mlops_assets.wording import first_line, size

if TYPE_CHECKING:
    from dagster import AssetCheckEvaluation, AssetKey, AssetMaterialization, DagsterEvent


_TOLD = frozenset(
    {
        DagsterEventType.STEP_START,
        DagsterEventType.STEP_RESTARTED,
        DagsterEventType.ASSET_MATERIALIZATION,
        DagsterEventType.ASSET_CHECK_EVALUATION,
        DagsterEventType.STEP_UP_FOR_RETRY,
        DagsterEventType.STEP_FAILURE,
        DagsterEventType.STEP_SUCCESS,
    }
)


class ProgressHandler(logging.Handler):
    """Prints what a person waiting for a run wants to know.

    Parameters
    ----------
    steps : mapping of str to sequence of AssetKey
        The assets of every step of the run.
    echo : callable
        Prints one line.
    """

    def __init__(
        self, steps: Mapping[str, Sequence[AssetKey]], echo: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._steps = steps
        self._echo = echo
        self._position = 0
        self._begun: dict[str, float] = {}
        self._begun_parts: set[str] = set()
        self._made: set[str] = set()
        self._broken: dict[str, list[AssetCheckEvaluation]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line for one of Dagster's events, or what a step has said.

        Of a step only warnings; of the parts of a graph everything. Nothing of what never begins,
        because something that it needs has failed: the summary counts that. A terminal that went
        away fails no step.
        """
        try:
            self._emit(record)
        except Exception:  # told on stderr and not raised, as `logging`'s own handlers do
            self.handleError(record)

    def _emit(self, record: logging.LogRecord) -> None:
        event: DagsterEvent | None = getattr(record, "dagster_event", None)
        if event is not None:
            self._emit_event(event)
            return
        said = getattr(record, "dagster_meta", {})
        key = said.get("step_key") or ""
        if key not in self._begun_parts:
            return
        if record.levelno >= logging.WARNING:
            self._echo(f"        {record.levelname.lower()}: {said['orig_message']}")
        elif "." in key and record.levelno == logging.INFO:
            self._echo(f"        {said['orig_message']}")

    def _emit_event(self, event: DagsterEvent) -> None:
        step, _, part = (event.step_key or "").partition(".")
        if step not in self._steps or event.event_type not in _TOLD:
            return
        self._begun_parts.add(str(event.step_key))
        # a graph begins with the first of its parts and ends with the one that makes its asset
        if part and event.is_step_success and step not in self._made:
            return
        # an attempt may fail before it begins: when the database cannot be reached
        if step not in self._begun:
            self._begin(step)
        if event.is_step_materialization:
            self._made.add(step)
            self._echo(f"        {_facts(event.step_materialization_data.materialization)}")
        elif event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            if not check.passed:
                self._broken.setdefault(step, []).append(check)
                severity = check.severity.value.lower()
                self._echo(f"        {severity}: {said_of(check)}")
        elif event.is_step_up_for_retry:
            error = event.step_retry_data.error
            cause = (error.cause or error) if error else None
            message = cause.message if cause else "failed"
            if cause and cause.cls_name == "Failure":  # explained: its class says nothing more
                message = message.partition(": ")[2]
            self._echo(f"        retried: {first_line(message)}")
            if not part:
                del self._begun[step]
                self._position -= 1
        elif event.is_step_failure:
            self._echo(
                f"        FAILED: {first_line(reason_of(event, self._broken.get(step, ())))}"
            )
        elif event.is_step_success:
            self._echo(f"        done in {monotonic() - self._begun[step]:.1f} s")

    def _begin(self, step: str) -> None:
        self._position += 1
        self._begun[step] = monotonic()
        names = ", ".join(key.to_user_string() for key in self._steps[step])
        self._echo(f"[{self._position:>{self._width}}/{len(self._steps)}] {names}")

    @property
    def _width(self) -> int:
        return len(str(len(self._steps)))


def progress_logger(
    steps: Mapping[str, Sequence[AssetKey]], echo: Callable[[str], None]
) -> LoggerDefinition:
    """Return a logger that takes the place of Dagster's own console logger."""

    @logger(config_schema={})
    def console(_: Any) -> logging.Logger:
        progress = logging.Logger("mlops")
        progress.addHandler(ProgressHandler(steps, echo))
        return progress

    return console


def _facts(materialization: AssetMaterialization) -> str:
    metadata = {name: value.value for name, value in materialization.metadata.items()}
    reused = "reused: " if MEMOIZED in metadata else ""
    parts = [f"{reused}{materialization.asset_key.to_user_string()}"]
    if "dagster/row_count" in metadata:
        parts.append(f"{metadata['dagster/row_count']:,} rows")
    if "size_bytes" in metadata:
        parts.append(size(cast(int, metadata["size_bytes"])))
    version = (materialization.tags or {}).get("dagster/data_version")
    if version:
        parts.append(f"version {version}")
    return ", ".join(parts)
