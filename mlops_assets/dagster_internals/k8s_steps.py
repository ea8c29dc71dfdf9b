"""Steps as pods: dagster-k8s' step handler, which also tells what became of a pod and mends it.

A failure of the platform (an eviction, a node that is lost, a registry that is away) has a budget
of its own and leaves the step's retries untouched; a step that ran out of memory is given more. The
step is launched again in the same attempt, by a job of another name, and the log says why.

Nothing is remembered here that a run worker could take with it when it dies: the jobs' labels hold
it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from dagster import DagsterEvent, DagsterEventType, DagsterRunStatus
from dagster._core.events import EngineEventData
from dagster._core.execution.plan.objects import StepFailureData, UserFailureData
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepHandlerContext
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.executor import K8sStepHandler
from dagster_k8s.job import UserDefinedDagsterK8sConfig
from dagster_shared.error import SerializableErrorInfo
from dagster_shared.record import replace
from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError

from mlops_assets.dagster_internals.k8s_client import AWAY_AT_MOST, TIMEOUT, PatientClient, is_away
from mlops_assets.dagster_internals.k8s_pods import Trouble, trouble_of, waiting_for

if TYPE_CHECKING:
    from dagster._core.execution.context.system import IStepContext
    from dagster_k8s.client import DagsterKubernetesClient
    from kubernetes.client import V1Job, V1Pod

STEP, LAUNCH, LOST = "mlops/step", "mlops/launch", "mlops/lost"
"""Labels of a step's jobs: of which attempt of which step, the how many-th, how many of the ones
before were lost to the platform."""

LOG_LINES = 20
"""How much of the log of a pod that failed is kept in the run's log; its pod is deleted."""

_FORBIDDEN = (401, 403)

_TOLD = {
    DagsterEventType.STEP_SUCCESS,
    DagsterEventType.STEP_FAILURE,
    DagsterEventType.STEP_UP_FOR_RETRY,
}


class _Launch(NamedTuple):
    """One of the jobs of one attempt of a step."""

    number: int = 0
    lost: int = 0
    memory: int | None = None  # bytes; None: what the step asks for


class WatchedK8sStepHandler(K8sStepHandler):
    """Launches steps as Kubernetes jobs, and launches those again that the platform lost.

    Parameters
    ----------
    handler : K8sStepHandler
        As dagster-k8s' executor makes it.
    platform_retries : int
        How often one attempt of a step is launched again after a failure of the platform.
    patience : datetime.timedelta
        How long a container may fail to be created before its pod is given up.
    memory_tag : str
        Tag of a step with the bytes beyond which one that ran out of memory is not tried again.
    """

    _api_client: PatientClient | DagsterKubernetesClient

    def __init__(
        self,
        handler: K8sStepHandler,
        platform_retries: int,
        patience: timedelta,
        memory_tag: str,
    ) -> None:
        # in place of dagster-k8s' own, which would read its configuration a second time
        vars(self).update(vars(handler))
        self._client = self._api_client = PatientClient.of(handler._api_client)
        self._platform_retries = platform_retries
        self._patience = patience
        self._memory_tag = memory_tag
        self._launches: dict[str, _Launch] = {}  # of what is being launched, by attempt
        self._said: set[tuple[str, str]] = set()
        self._silent: Counter[str] = Counter()
        self._forbidden_since: dict[str, float] = {}

    @property
    def name(self) -> str:
        """Name in the run's log."""
        return "WatchedK8sStepHandler"

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        """Create the step's job, under the next name if one of an earlier worker has its own."""
        attempt = self._attempt(step_handler_context)
        if self._attempts_before(step_handler_context):
            # Dagster takes every start for an attempt, those of what was launched again too, and
            # would end a retry after them without a word.
            step_handler_context = _unverified(step_handler_context)
        while True:
            try:
                yield from super().launch_step(step_handler_context)
            except ApiException as error:
                if error.status != 409:
                    raise
                launch = self._launches.get(attempt, _Launch())
                self._launches[attempt] = launch._replace(number=launch.number + 1)
                step_handler_context = _unverified(step_handler_context)
            else:
                break
        if self._is_ending(step_handler_context):  # who cancels it may have been here before
            self._client.remove(
                self._namespace(step_handler_context), self._jobs(step_handler_context)
            )

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Look what became of the step's pod, and launch the step again where that mends it."""
        try:
            result = self._looked_after(step_handler_context)
        except (ApiException, HTTPError) as error:
            if isinstance(error, ApiException) and error.status in _FORBIDDEN:
                return self._forbidden(step_handler_context, error)
            if not is_away(error):
                raise
            why = f"the Kubernetes API server does not answer: {error}"
            self._say_once(step_handler_context, "away", why)
            return CheckStepHealthResult.healthy()
        self._forbidden_since.pop(self._attempt(step_handler_context), None)
        return result

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        """Delete the step's jobs with their pods."""
        jobs = self._jobs(step_handler_context)
        yield DagsterEvent.engine_event(
            self._step(step_handler_context),
            f"Deleting {', '.join(job.metadata.name for job in jobs) or 'no Kubernetes job'}",
            EngineEventData(),
        )
        self._client.remove(self._namespace(step_handler_context), jobs)

    def _looked_after(self, context: StepHandlerContext) -> CheckStepHealthResult:
        jobs = self._jobs(context)
        job = jobs[-1] if jobs else None
        # a pod that is ready needs no look, which spares the API server half of the questions
        pods = self._pods(job) if job and not job.status.ready else []
        trouble = (
            trouble_of(job.status, pods, self._patience)
            if job
            else Trouble("platform", "its job was deleted")
        )
        if trouble is None:
            if waits := waiting_for(pods):
                self._say_once(context, "waits", f"{self._step(context).step.key} waits: {waits}")
            return self._ended_silently(context, job)
        # The executor reads how it ended next; or is told to end, and its jobs are deleted by then.
        if self._has_told(context) or self._is_ending(context):
            return CheckStepHealthResult.healthy()
        launch = self._launch_of(context, job)
        if trouble.kind == "memory":
            return self._given_more(context, job, pods, launch, trouble)
        if trouble.kind == "platform":
            return self._replaced(context, job, pods, launch, trouble)
        if trouble.kind == "setup":
            return self._failed(context, job, f"{trouble.reason}.")
        reason = f"{trouble.reason}.{self._log_of(pods)}"
        return CheckStepHealthResult.unhealthy(reason)

    def _forbidden(self, context: StepHandlerContext, error: ApiException) -> CheckStepHealthResult:
        """Wait a while for what the run may not do, and fail the step then."""
        if self._has_told(context):
            return CheckStepHealthResult.healthy()
        why = (
            f"the Kubernetes API server refuses what the run asks of it: {error.reason}: "
            f"{error.body}. What its service account needs is in k8s/base/access.yaml."
        )
        since = self._forbidden_since.setdefault(self._attempt(context), time.monotonic())
        if time.monotonic() - since < AWAY_AT_MOST:
            self._say_once(context, "forbidden", why)
            return CheckStepHealthResult.healthy()
        with suppress(ApiException, HTTPError):
            list(self.terminate_step(context))
        return self._failed(context, None, why)

    def _replaced(
        self,
        context: StepHandlerContext,
        job: V1Job | None,
        pods: list[V1Pod],
        launch: _Launch,
        trouble: Trouble,
    ) -> CheckStepHealthResult:
        if launch.lost >= self._platform_retries:
            return self._failed(
                context,
                job,
                f"{trouble.reason}. The platform lost this step {launch.lost + 1} times, and "
                f"{self._platform_retries} are made good (execution.config.platform_retries).",
            )
        return self._launch_again(
            context,
            job,
            launch._replace(lost=launch.lost + 1),
            f"{trouble.reason}. Launching it again, which is not one of its retries: "
            f"{launch.lost + 1} of {self._platform_retries} for failures of the platform."
            f"{self._log_of(pods)}",
        )

    def _given_more(
        self,
        context: StepHandlerContext,
        job: V1Job | None,
        pods: list[V1Pod],
        launch: _Launch,
        trouble: Trouble,
    ) -> CheckStepHealthResult:
        tag = self._step(context).step.tags.get(self._memory_tag)
        had = _memory_of(job)
        log = self._log_of(pods)
        if tag is None or had is None:
            return CheckStepHealthResult.unhealthy(
                f"{trouble.reason}; the step says nothing of `compute.memory`.{log}"
            )
        more = min(2 * had, int(tag))
        if more <= had:
            return self._failed(
                context,
                job,
                f"{trouble.reason} at {_readable(had)}, the most that it may have: raise "
                f"compute.max_memory.{log}",
            )
        return self._launch_again(
            context,
            job,
            launch._replace(memory=more),
            f"{trouble.reason} at {_readable(had)}. Launching it again with {_readable(more)}, "
            f"which is not one of its retries; the most is {_readable(int(tag))}.{log}",
        )

    def _launch_again(
        self, context: StepHandlerContext, job: V1Job | None, launch: _Launch, why: str
    ) -> CheckStepHealthResult:
        step = self._step(context)
        DagsterEvent.engine_event(step, f"{step.step.key}: {why}", EngineEventData())
        if job is not None:
            self._client.remove(self._namespace(context), [job])
        self._launches[self._attempt(context)] = launch._replace(number=launch.number + 1)
        list(self.launch_step(_unverified(context)))
        return CheckStepHealthResult.healthy()

    def _failed(
        self, context: StepHandlerContext, job: V1Job | None, why: str
    ) -> CheckStepHealthResult:
        """Fail the step for good: no retry would mend it."""
        DagsterEvent.step_failure_event(
            self._step(context),
            StepFailureData(  # type: ignore[no-untyped-call]
                error=SerializableErrorInfo(why, [], None),
                user_failure_data=UserFailureData("Failure", why),  # type: ignore[no-untyped-call]
            ),
        )
        if job is not None and not job.status.failed:
            self._client.remove(self._namespace(context), [job])
        return CheckStepHealthResult.healthy()

    def _ended_silently(
        self, context: StepHandlerContext, job: V1Job | None
    ) -> CheckStepHealthResult:
        """Notice a pod that ended well and never told how; dagster-k8s waits for it forever."""
        if job is None or not job.status.succeeded or self._has_told(context):
            return CheckStepHealthResult.healthy()
        self._silent[job.metadata.name] += 1
        if self._silent[job.metadata.name] < 3:  # what it told may be on its way
            return CheckStepHealthResult.healthy()
        return CheckStepHealthResult.unhealthy("its pod ended without saying how the step did")

    def _is_ending(self, context: StepHandlerContext) -> bool:
        """Whether the run was cancelled, or is over."""
        run = context.instance.get_run_by_id(context.execute_step_args.run_id)
        return run is None or run.is_finished or run.status is DagsterRunStatus.CANCELING

    def _has_told(self, context: StepHandlerContext) -> bool:
        """Whether the log has the end of this attempt."""
        step = self._step(context).step.key
        told = context.instance.all_logs(context.execute_step_args.run_id, of_type=_TOLD)
        return sum(entry.step_key == step for entry in told) > self._attempts_before(context)

    def _attempts_before(self, context: StepHandlerContext) -> int:
        known = context.execute_step_args.known_state
        step = self._get_step_key(context)
        return known.get_retry_state().get_attempt_count(step) if known else 0

    def _launch_of(self, context: StepHandlerContext, job: V1Job | None) -> _Launch:
        """Return what is known of the latest launch: from its job, or from memory if it is gone."""
        remembered = self._launches.get(self._attempt(context), _Launch())
        if job is None:
            return remembered
        labels = job.metadata.labels
        return _Launch(int(labels[LAUNCH]), int(labels[LOST]), _memory_of(job))

    def _get_k8s_step_job_name(self, step_handler_context: StepHandlerContext) -> str:
        attempt = self._attempt(step_handler_context)
        number = self._launches.get(attempt, _Launch()).number
        return f"{attempt}-r{number}" if number else attempt

    def _get_container_context(
        self, step_handler_context: StepHandlerContext
    ) -> K8sContainerContext:
        attempt = self._attempt(step_handler_context)
        launch = self._launches.get(attempt, _Launch())
        labels = {STEP: attempt, LAUNCH: str(launch.number), LOST: str(launch.lost)}
        added: dict[str, Any] = {
            "job_metadata": {"labels": labels},
            "pod_template_spec_metadata": {"labels": labels},
        }
        if launch.memory is not None:
            memory = {"memory": str(launch.memory)}
            added["container_config"] = {"resources": {"requests": memory, "limits": memory}}
        config = UserDefinedDagsterK8sConfig.from_dict(added)  # type: ignore[no-untyped-call]
        asked = super()._get_container_context(step_handler_context)
        return asked.merge(K8sContainerContext(run_k8s_config=config))

    def _attempt(self, context: StepHandlerContext) -> str:
        """Return what names an attempt of a step in all runs."""
        return str(super()._get_k8s_step_job_name(context))

    def _jobs(self, context: StepHandlerContext) -> list[V1Job]:
        selector = f"{STEP}={self._attempt(context)}"
        jobs = self._client.jobs(self._namespace(context), selector)
        return sorted(jobs, key=lambda job: int(job.metadata.labels[LAUNCH]))

    def _pods(self, job: V1Job) -> list[V1Pod]:
        return list(
            self._client.core_api.list_namespaced_pod(
                job.metadata.namespace,
                label_selector=f"job-name={job.metadata.name}",
                _request_timeout=TIMEOUT,
            ).items
        )

    def _log_of(self, pods: list[V1Pod]) -> str:
        """Return the end of what a pod wrote, as a part of a message; empty if there is none."""
        for pod in pods:
            try:
                answer = self._client.core_api.read_namespaced_pod_log(
                    pod.metadata.name,
                    pod.metadata.namespace,
                    tail_lines=LOG_LINES,
                    _request_timeout=TIMEOUT,
                    _preload_content=False,  # else the client returns the text as Python's b'...'
                )
                text = answer.data.decode(errors="replace")
            except (ApiException, HTTPError):
                continue
            if text.strip():
                return f"\nThe end of its log:\n{text.strip()}"
        return ""

    def _namespace(self, context: StepHandlerContext) -> str:
        return str(self._get_container_context(context).namespace)

    def _say_once(self, context: StepHandlerContext, about: str, what: str) -> None:
        """Say something in the run's log; the same of the same attempt only once."""
        said = (f"{self._attempt(context)} {about}", what)
        if said not in self._said:
            self._said.add(said)
            self._step(context).log.warning(what)

    def _step(self, context: StepHandlerContext) -> IStepContext:
        return context.get_step_context(self._get_step_key(context))


def _unverified(context: StepHandlerContext) -> StepHandlerContext:
    """Let a step begin although it had begun before; Dagster would end it without a word."""
    return StepHandlerContext(
        instance=context.instance,
        plan_context=context._plan_context,
        steps=list(context._steps_by_key.values()),
        execute_step_args=replace(context.execute_step_args, should_verify_step=False),
        dagster_run=context.dagster_run,
    )


def _memory_of(job: V1Job | None) -> int | None:
    """Return the bytes that a step's container may use; None without a limit."""
    from kubernetes.utils import parse_quantity

    if job is None:
        return None
    resources = job.spec.template.spec.containers[0].resources
    limit = ((resources and resources.limits) or {}).get("memory")
    return int(parse_quantity(limit)) if limit else None


def _readable(memory: int) -> str:
    for unit, name in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if memory >= unit and memory % unit == 0:
            return f"{memory // unit}{name}"
    return f"{memory} bytes"
