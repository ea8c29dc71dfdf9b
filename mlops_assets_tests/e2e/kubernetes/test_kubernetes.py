"""Runs as pods and steps as pods: what starts, what is reused, what breaks and is mended.

One deployment serves all tests of this file, and most of them look at one of a few runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets_tests.e2e.kubernetes.runs import Deployment, wait_until
from mlops_assets_tests.kubernetes import KubernetesDouble

pytestmark = pytest.mark.kubernetes

RETRY = "ExecutionStepUpForRetryEvent"
SUCCESS = "ExecutionStepSuccessEvent"
FAILURE = "ExecutionStepFailureEvent"
STARTED = "EngineEvent"


def step(pipeline: str, name: str) -> str:
    return f"{pipeline}__{name}"


@pytest.fixture(scope="module", autouse=True)
def schedule(deployment: Deployment) -> Iterator[None]:
    """A schedule that is switched on while the other tests run."""
    deployment.start_schedule("every_minute_steps_schedule")
    yield
    deployment.stop_schedule("every_minute_steps_schedule")


# --- what starts --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def greeted(deployment: Deployment) -> str:
    run = deployment.launch("greeting_steps")
    deployment.succeeds(run)
    return run


def test_a_run_from_the_ui_has_a_pod_and_each_of_its_steps_has_one(
    deployment: Deployment, greeted: str
) -> None:
    assert deployment.phases(greeted, "run_worker") == ["Succeeded"]
    assert deployment.phases(greeted) == ["Succeeded", "Succeeded"]
    steps = deployment.pods(greeted)
    labels = [pod.metadata.labels for pod in steps]
    assert {label["mlops/pipeline"] for label in labels} == {"greeting"}
    assert {label["mlops/asset"] for label in labels} == {"print_date", "print_hello"}
    assert "Hello! It is" in deployment.messages(greeted, step("greeting", "print_hello"))


def test_step_pods_are_confined_and_have_no_token(deployment: Deployment, greeted: str) -> None:
    for pod in deployment.pods(greeted):
        (container,) = pod.spec.containers
        assert pod.spec.service_account_name == "dagster-step"
        assert pod.spec.automount_service_account_token is False
        assert pod.spec.security_context.run_as_non_root is True
        assert container.security_context.read_only_root_filesystem is True
        assert container.security_context.allow_privilege_escalation is False
        assert container.resources.limits["memory"] == "2Gi"


def test_a_step_whose_result_is_known_starts_no_pod(deployment: Deployment, greeted: str) -> None:
    again = deployment.launch("greeting_steps")
    deployment.succeeds(again)

    assert deployment.pods(again) == []
    told = [event for event in deployment.log(again) if event.kind == "MaterializationEvent"]
    assert [event.metadata["memoized"] for event in told] == [True, True]


def test_a_step_with_an_image_runs_it_in_a_pod_that_is_gone_when_the_step_ends(
    deployment: Deployment,
) -> None:
    run = deployment.launch("contained_steps")
    deployment.succeeds(run)

    (pod,) = deployment.pods(run)
    assert pod.spec.service_account_name == "dagster-pipes"
    assert "hello from" in deployment.messages(run, step("contained", "inside"))
    of_pipeline = deployment.core.list_namespaced_pod(
        deployment.namespace, label_selector="mlops/pipeline=contained"
    ).items
    assert [one.metadata.name for one in of_pipeline] == [pod.metadata.name]


def test_a_model_trained_in_pods_is_known_on_a_laptop_with_the_same_store(
    deployment: Deployment, faults: KubernetesDouble
) -> None:
    run = deployment.launch("iris_training")
    deployment.succeeds(run, within=300)

    environment = {
        **os.environ,
        **deployment.environment,
        "MLOPS_DEPLOYMENT": "local",
        "DAGSTER_HOME": str(faults.root / "laptop"),
    }
    (faults.root / "laptop").mkdir()
    planned = subprocess.run(
        [str(Path(sys.executable).with_name("mlops")), "plan", "iris", "--json"],
        env=environment,
        capture_output=True,
        text=True,
    )
    plan = json.loads(planned.stdout)["pipelines"]["iris"]
    assert plan["execute"] == [], planned.stderr
    assert "iris/champion" in plan["reuse"]


# --- what breaks and is mended ------------------------------------------------------------------


@pytest.fixture(scope="module")
def calamities(deployment: Deployment) -> str:
    run = deployment.launch("calamities_steps")
    evicted, deleted = step("calamities", "evicted"), step("calamities", "deleted")
    pod = deployment.pod_that_said(run, evicted, "begun")
    deployment.evict(pod.metadata.name)
    pod = deployment.pod_that_said(run, deleted, "begun")
    deployment.core.delete_namespaced_pod(pod.metadata.name, deployment.namespace)
    deployment.succeeds(run, within=300)
    return run


@pytest.mark.parametrize("name", ["evicted", "deleted"])
def test_a_step_that_the_platform_ended_is_launched_again_without_a_retry(
    deployment: Deployment, calamities: str, name: str
) -> None:
    kinds = deployment.kinds(calamities, step("calamities", name))

    assert RETRY not in kinds
    assert FAILURE not in kinds
    assert kinds.count(SUCCESS) == 1
    said = deployment.messages(calamities, step("calamities", name))
    assert "which is not one of its retries: 1 of 5 for failures of the platform" in said


def test_a_step_that_ran_out_of_memory_is_given_more_and_the_log_says_so(
    deployment: Deployment, calamities: str
) -> None:
    hungry = step("calamities", "hungry")
    kinds = deployment.kinds(calamities, hungry)

    assert RETRY not in kinds
    assert kinds.count(SUCCESS) == 1
    said = deployment.messages(calamities, hungry)
    assert "want of memory at 500Mi. Launching it again with 1000Mi" in said
    (pod,) = deployment.pods(calamities, step=hungry)
    assert deployment.bytes_of(pod.spec.containers[0].resources.limits["memory"]) == 1000 * 2**20


def test_a_step_with_a_gpu_gets_a_node_that_has_one(
    deployment: Deployment, calamities: str
) -> None:
    (pod,) = deployment.pods(calamities, step=step("calamities", "accelerated"))

    assert pod.spec.containers[0].resources.limits["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" in {toleration.key for toleration in pod.spec.tolerations}


def test_nothing_of_what_was_replaced_is_left(deployment: Deployment, calamities: str) -> None:
    assert deployment.phases(calamities) == ["Succeeded"] * 4


@pytest.fixture(scope="module")
def lost(deployment: Deployment, double: KubernetesDouble | None) -> str:
    if double is None:
        pytest.skip("cannot be done to a real cluster from outside")
    run = deployment.launch("calamities_of_nodes_steps")
    for name in ("preempted", "killed", "lost"):
        pod = deployment.pod_that_said(run, step("calamities_of_nodes", name), "begun")
        if name == "lost":
            double.lose_node("spare")
        else:
            (double.preempt if name == "preempted" else double.kill)(pod.metadata.name)
    wait_until(
        lambda: "no node takes its pod" in deployment.messages(run) or None,
        120,
        lambda: deployment.messages(run),
    )
    double.restore_node("spare")
    deployment.succeeds(run, within=300)
    return run


@pytest.mark.parametrize("name", ["preempted", "lost"])
def test_a_step_whose_node_is_taken_from_it_is_launched_again_without_a_retry(
    deployment: Deployment, lost: str, name: str
) -> None:
    kinds = deployment.kinds(lost, step("calamities_of_nodes", name))

    assert RETRY not in kinds
    assert FAILURE not in kinds
    assert kinds.count(SUCCESS) == 1


def test_a_step_whose_process_was_killed_uses_one_of_its_retries(
    deployment: Deployment, lost: str
) -> None:
    killed = step("calamities_of_nodes", "killed")

    assert deployment.kinds(lost, killed).count(RETRY) == 1
    assert "killed by SIGKILL" in deployment.messages(lost, killed)


# --- what cannot be mended ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def hopeless(deployment: Deployment) -> str:
    run = deployment.launch("hopeless_steps")
    assert deployment.finished(run) == "FAILURE"
    return run


def test_a_step_that_wants_more_memory_than_it_may_have_fails_and_says_what_to_raise(
    deployment: Deployment, hopeless: str
) -> None:
    insatiable = step("hopeless", "insatiable")

    assert RETRY not in deployment.kinds(hopeless, insatiable)
    assert FAILURE in deployment.kinds(hopeless, insatiable)
    assert "raise compute.max_memory" in deployment.messages(hopeless, insatiable)


def test_a_program_that_is_not_there_is_looked_for_once(
    deployment: Deployment, hopeless: str
) -> None:
    missing = step("hopeless", "missing")

    assert RETRY not in deployment.kinds(hopeless, missing)
    assert "there-is-no-such-program" in deployment.messages(hopeless, missing)


def test_an_image_that_cannot_be_pulled_ends_the_step_and_is_named(deployment: Deployment) -> None:
    container = {"image": "nowhere.invalid/none:1"}
    config = {
        "step_k8s_config": {"container_config": container},
        "platform_retries": 1,
        "patience_seconds": 5,
    }
    run = deployment.launch(
        "greeting_steps",
        config={"execution": {"config": config}},
        tags={"mlops/refresh": "true"},
    )

    assert deployment.finished(run) == "FAILURE"
    said = deployment.messages(run, step("greeting", "print_date"))
    assert "nowhere.invalid/none:1" in said
    assert "The platform lost this step 2 times" in said
    assert deployment.pods(run) == []


# --- the run itself -----------------------------------------------------------------------------


def test_a_run_that_is_cancelled_leaves_no_pod(deployment: Deployment) -> None:
    run = deployment.launch("long_steps")
    deployment.pod_that_said(run, step("long", "first"), "begun")
    deployment.terminate(run)

    assert deployment.finished(run) == "CANCELED"
    wait_until(
        lambda: True if not deployment.pods(run) else None,
        60,
        lambda: str([pod.metadata.name for pod in deployment.pods(run)]),
    )
    assert SUCCESS not in deployment.kinds(run, step("long", "first"))


def test_a_run_whose_worker_is_killed_goes_on_and_its_steps_with_it(deployment: Deployment) -> None:
    run = deployment.launch("long_steps")
    pod = deployment.pod_that_said(run, step("long", "first"), "begun")
    (worker,) = deployment.pods(run, "run_worker")
    deployment.core.delete_namespaced_pod(
        worker.metadata.name, deployment.namespace, grace_period_seconds=0
    )
    deployment.succeeds(run, within=240)

    (still,) = deployment.pods(run, step=step("long", "first"))
    assert still.metadata.uid == pod.metadata.uid
    assert "Resuming run" in deployment.messages(run)


def test_an_api_server_that_is_away_is_waited_for(
    deployment: Deployment, faults: KubernetesDouble
) -> None:
    run = deployment.launch("long_steps")
    deployment.pod_that_said(run, step("long", "first"), "begun")
    seconds = float(os.environ.get("MLOPS_TEST_AWAY_SECONDS", "25"))
    with faults.away():
        wait_until(
            lambda: "does not answer" in deployment.messages(run) or None,
            60,
            lambda: deployment.messages(run),
        )
        threading.Event().wait(seconds)
    deployment.succeeds(run, within=240)

    assert RETRY not in deployment.kinds(run, step("long", "first"))
    assert len(deployment.pods(run, "run_worker")) == 1
    assert len(deployment.pods(run)) == 2


def test_a_step_that_a_schedule_starts_asks_for_what_its_file_says(deployment: Deployment) -> None:
    run = wait_until(
        lambda: deployment.latest_run("every_minute_steps"), 90, lambda: "no run has been launched"
    )
    deployment.succeeds(run)

    (pod,) = deployment.pods(run)
    assert pod.spec.containers[0].resources.requests["memory"] == "1234Mi"
    assert pod.metadata.labels["mlops/pipeline"] == "every_minute"
