"""How long one attempt of a step may take, and that no process of a step outlives its run.

In the main thread of its process a step is interrupted as by a signal, wherever it is in Python.
Elsewhere, and while compiled code does not return, nobody can: such an attempt fails when it goes
on, and is ended with its process where it has one of its own, under forkserver and in pods.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING

from mlops_assets.durations import in_words

if TYPE_CHECKING:
    from dagster import DagsterEvent
    from dagster._core.execution.context.system import StepExecutionContext

TIMEOUT = "mlops/timeout"
"""Tag of a step: the seconds that an attempt may take."""

GRACE_SECONDS = 10.0
"""How long a step may go on once it was interrupted, before its process is ended."""

# that of no other timer: SIGALRM is the one of `tune.timeout`
_SIGNAL = signal.SIGVTALRM


class TimeIsUp(BaseException):
    """Interrupts a step. No error, so that none of its code takes it for one."""


class StepTimeoutError(TimeoutError):
    """An attempt of a step took longer than it may."""


def bounded(step: StepExecutionContext, events: Iterator[DagsterEvent]) -> Iterator[DagsterEvent]:
    """Run a step within the time that its tag `TIMEOUT` allows.

    Raises
    ------
    TimeIsUp
        The time is up before the step has succeeded.
    """
    has_own_process = step.retry_mode.deferred
    if has_own_process:
        _end_with_the_run()
    if TIMEOUT not in step.step.tags:
        yield from events
        return
    clock = _Clock(step.step.key, float(step.step.tags[TIMEOUT]), step.log, has_own_process)
    with clock.running():
        while (event := clock.next_of(events)) is not None:
            yield event
            if event.is_step_success:
                yield from events
                return


@cache
def _end_with_the_run() -> None:
    """End this process when the one that has started it is gone, which was to tell of the step."""
    run = multiprocessing.parent_process()
    if run is not None:

        def wait() -> None:
            run.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()


class _Clock:
    def __init__(
        self, step: str, seconds: float, log: logging.Logger, has_own_process: bool
    ) -> None:
        limit = in_words(seconds)
        self._message = (
            f"{step} took longer than the {limit} that `timeout` in the pipeline file allows an "
            "attempt: allow more, or give it less to do"
        )
        self._seconds = seconds
        self._end = monotonic() + seconds
        self._log = log
        self._has_own_process = has_own_process
        self._is_in_main_thread = threading.current_thread() is threading.main_thread()
        self._is_in_step = False
        self._is_over = threading.Event()

    def next_of(self, events: Iterator[DagsterEvent]) -> DagsterEvent | None:
        """Let the step go on to its next event; None after the last one."""
        self._is_in_step = True
        try:
            self._check()
            return next(events, None)
        finally:
            self._is_in_step = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have the step interrupted when the time is up."""
        before = signal.signal(_SIGNAL, self._check) if self._is_in_main_thread else None
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        if self._has_own_process:
            # needs no interpreter, which compiled code may hold
            latest = self._seconds + 2 * GRACE_SECONDS
            faulthandler.dump_traceback_later(latest, exit=True, file=2)
        try:
            yield
        finally:
            self._is_over.set()
            watch.join()  # no signal comes once its handler is gone
            if self._has_own_process:
                faulthandler.cancel_dump_traceback_later()
            if self._is_in_main_thread:
                signal.signal(_SIGNAL, before)

    def _check(self, *_: object) -> None:
        # between two events it is Dagster that runs, and must not be interrupted
        if self._is_in_step and monotonic() >= self._end:
            raise TimeIsUp(self._message)

    def _watch(self) -> None:
        if self._is_over.wait(self._seconds):
            return
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        while True:
            if self._is_in_main_thread:
                signal.pthread_kill(main_thread, _SIGNAL)
            if self._is_over.wait(GRACE_SECONDS):
                return
            if self._has_own_process:
                self._log.error(
                    "%s. It went on for %s when it was interrupted: its process is ended",
                    self._message,
                    in_words(GRACE_SECONDS),
                )
                os._exit(1)
