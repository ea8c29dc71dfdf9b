"""The step handler on the double, asked as an executor asks it; whole runs are in `e2e/`."""

from __future__ import annotations

import zlib
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRun, job, op, reconstructable
from dagster._core.execution.api import create_execution_plan
from dagster._core.execution.context_creation_job import (
    PlanOrchestrationContextManager,
    orchestration_context_event_generator,
)
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepHandlerContext
from dagster._core.test_utils import instance_for_test
from dagster._grpc.types import ExecuteStepArgs
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.executor import K8sStepHandler
from dagster_shared.serdes import deserialize_value

from mlops_assets.dagster_internals import k8s_steps
from mlops_assets.dagster_internals.k8s_steps import LAUNCH, LOST, WatchedK8sStepHandler
from mlops_assets_tests.kubernetes import KubernetesDouble

MEMORY_LIMIT = "memory_limit"
EATS = """\
echo hungry; echo more
python -c 'import time; food = bytes([1]) * (150 * 2**20); time.sleep(60)'
"""


@op(
    tags={
        MEMORY_LIMIT: str(400 * 2**20),
        "dagster-k8s/config": {
            "container_config": {
                "command": ["sh", "-c", EATS],
                "resources": {"requests": {"memory": "100Mi"}, "limits": {"memory": "100Mi"}},
            }
        },
    }
)
def hungry() -> None: ...


@job
def one_step() -> None:
    hungry()


@dataclass
class Run:
    """A run whose only step is looked after."""

    cluster: KubernetesDouble
    instance: DagsterInstance
    run: DagsterRun
    plan_context: Any
    plan: Any

    def handler(self) -> WatchedK8sStepHandler:
        """Return the handler of a new run worker."""
        launching = K8sStepHandler(
            None, K8sContainerContext(), False, str(self.cluster.kubeconfig())
        )
        return WatchedK8sStepHandler(
            launching, platform_retries=5, patience=timedelta(minutes=1), memory_tag=MEMORY_LIMIT
        )

    def context(self, attempts_before: int = 0) -> StepHandlerContext:
        origin = self.plan_context.reconstructable_job.get_python_origin()
        known = KnownExecutionState(
            previous_retry_attempts={"hungry": attempts_before} if attempts_before else {}
        )
        return StepHandlerContext(
            instance=self.instance,
            plan_context=self.plan_context,
            steps=[self.plan.get_step_by_key("hungry")],
            execute_step_args=ExecuteStepArgs(
                job_origin=origin,
                run_id=self.run.run_id,
                step_keys_to_execute=["hungry"],
                instance_ref=None,
                retry_mode=RetryMode.DEFERRED,
                known_state=known,
                should_verify_step=True,
            ),
        )

    def launch(self, handler: WatchedK8sStepHandler, attempts_before: int = 0) -> None:
        list(handler.launch_step(self.context(attempts_before)))

    def look(self, handler: WatchedK8sStepHandler) -> CheckStepHealthResult:
        return handler.check_step_health(self.context())

    def relaunched(self, handler: WatchedK8sStepHandler, number: int) -> dict[str, Any]:
        """Look until the step is launched for the n-th time again; return its only job."""
        self.cluster.wait(lambda: self.look(handler) and self.numbers() == [str(number)])
        (job,) = self.cluster.jobs()
        return job

    def numbers(self) -> list[str]:
        return [job["metadata"]["labels"][LAUNCH] for job in self.cluster.jobs()]

    def log(self) -> str:
        return "\n".join(entry.message for entry in self.instance.all_logs(self.run.run_id))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with KubernetesDouble(tmp_path / "cluster", longest_grace=0) as cluster:
        launcher = {
            "module": "mlops_assets.dagster_internals.k8s_run_launcher",
            "class": "WatchedK8sRunLauncher",
            "config": {
                "job_image": "image",
                "job_namespace": "default",
                "service_account_name": "default",
                "instance_config_map": "none",
                "dagster_home": str(tmp_path),
                "load_incluster_config": False,
                "kubeconfig_file": str(cluster.kubeconfig()),
            },
        }
        with instance_for_test({"run_launcher": launcher}, temp_dir=str(tmp_path)) as instance:
            dagster_run = instance.create_run_for_job(one_step)
            executable = reconstructable(one_step)
            plan = create_execution_plan(executable)
            contexts = PlanOrchestrationContextManager(
                orchestration_context_event_generator, executable, plan, {}, dagster_run, instance
            )
            list(contexts.prepare_context())
            yield Run(cluster, instance, dagster_run, contexts.get_context(), plan)


def arguments_of(job: dict[str, Any]) -> ExecuteStepArgs:
    """Return what the step of a job is told."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    packed = b64decode(variables["DAGSTER_COMPRESSED_EXECUTE_STEP_ARGS"])
    return deserialize_value(zlib.decompress(packed).decode(), ExecuteStepArgs)


def memory_of(job: dict[str, Any]) -> str:
    return str(job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"])


def test_a_retry_runs_although_what_was_launched_again_has_begun_more_often(run: Run) -> None:
    handler = run.handler()
    run.launch(handler)
    run.launch(handler, attempts_before=1)

    verified = [arguments_of(job).should_verify_step for job in run.cluster.jobs()]
    assert verified == [True, False]


def test_a_step_with_more_memory_keeps_it_when_another_worker_launches_it_again(run: Run) -> None:
    handler = run.handler()
    run.launch(handler)
    given_more = run.relaunched(handler, 1)
    assert memory_of(given_more) == str(200 * 2**20)

    (pod,) = run.cluster.pods(f"job-name={given_more['metadata']['name']}")
    run.cluster.evict(pod)
    again = run.relaunched(run.handler(), 2)

    assert memory_of(again) == str(200 * 2**20)
    assert again["metadata"]["labels"][LOST] == "1"


def test_the_end_of_a_log_is_told_line_by_line(run: Run) -> None:
    handler = run.handler()
    run.launch(handler)
    run.relaunched(handler, 1)

    assert "The end of its log:\nhungry\nmore" in run.log()


def test_a_step_whose_job_goes_because_its_run_is_cancelled_is_not_launched_again(
    run: Run,
) -> None:
    handler = run.handler()
    run.launch(handler)
    run.instance.report_run_canceling(run.run)
    handler._client.remove("default", handler._jobs(run.context()))

    assert run.look(handler).is_healthy
    assert run.cluster.jobs() == []
    assert "Launching it again" not in run.log()


def test_a_step_that_is_launched_while_its_run_is_cancelled_leaves_no_job(run: Run) -> None:
    run.instance.report_run_canceling(run.run)
    run.launch(run.handler())

    assert run.cluster.jobs() == []


def test_an_api_server_that_forbids_to_look_fails_the_step_after_a_while_and_says_why(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = run.handler()
    run.launch(handler)
    run.cluster.failing(403, 2, method="GET", path="jobs")

    assert run.look(handler).is_healthy
    assert run.look(handler).is_healthy
    assert run.log().count("k8s/base/access.yaml") == 1
    assert run.look(handler).is_healthy  # it may look again, and the while begins anew

    run.cluster.failing(403, 1, method="GET", path="jobs")
    monkeypatch.setattr(k8s_steps, "AWAY_AT_MOST", 0)
    run.look(handler)
    (failed,) = run.instance.all_logs(run.run.run_id, of_type=DagsterEventType.STEP_FAILURE)
    failure = failed.get_dagster_event().step_failure_data.user_failure_data
    assert failure is not None
    assert "k8s/base/access.yaml" in str(failure.description)
    assert run.cluster.jobs() == []
