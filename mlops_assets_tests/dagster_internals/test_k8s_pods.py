"""Whose fault the end of a pod was, for states of pods as clusters report them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kubernetes.client import (
    V1ContainerState,
    V1ContainerStateTerminated,
    V1ContainerStateWaiting,
    V1ContainerStatus,
    V1JobStatus,
    V1ObjectMeta,
    V1Pod,
    V1PodCondition,
    V1PodStatus,
)

from mlops_assets.dagster_internals.k8s_pods import trouble_of, waiting_for

PATIENCE = timedelta(minutes=2)
FAILED, ACTIVE = V1JobStatus(failed=1), V1JobStatus(active=1)


def pod(
    state: V1ContainerState | None = None,
    condition: V1PodCondition | None = None,
    age: timedelta = timedelta(),
    **status: Any,
) -> V1Pod:
    statuses = [
        V1ContainerStatus(
            name="dagster", image="i", image_id="i", ready=False, restart_count=0, state=state
        )
    ]
    return V1Pod(
        metadata=V1ObjectMeta(name="p", creation_timestamp=datetime.now(UTC) - age),
        status=V1PodStatus(
            container_statuses=statuses if state else None,
            conditions=[condition] if condition else None,
            **status,
        ),
    )


def ended(code: int, reason: str = "Error") -> V1ContainerState:
    return V1ContainerState(terminated=V1ContainerStateTerminated(exit_code=code, reason=reason))


def waits(reason: str, message: str | None = "details") -> V1ContainerState:
    return V1ContainerState(waiting=V1ContainerStateWaiting(reason=reason, message=message))


@pytest.mark.parametrize(
    ("pods", "kind", "reason"),
    [
        ([], "platform", "its pod was deleted"),
        ([pod(ended(137, "OOMKilled"))], "memory", "want of memory"),
        ([pod(reason="Evicted", message="low on disk")], "platform", "Evicted: low on disk"),
        ([pod(ended(143), reason="Evicted", message="low")], "platform", "Evicted: low"),
        ([pod(reason="OutOfcpu")], "platform", "OutOfcpu"),
        ([pod(ended(137, "ContainerStatusUnknown"))], "platform", "ContainerStatusUnknown"),
        (
            [
                pod(
                    ended(143),
                    V1PodCondition(
                        type="DisruptionTarget",
                        status="True",
                        reason="PreemptionByScheduler",
                        message="for a pod that matters more",
                    ),
                )
            ],
            "platform",
            "PreemptionByScheduler: for a pod that matters more",
        ),
        ([pod(ended(128, "StartError"))], "setup", "could not be started"),
        ([pod(ended(1))], "process", "exit code 1"),
        ([pod(ended(137))], "process", "killed by SIGKILL (exit code 137)"),
        ([pod(ended(139))], "process", "killed by SIGSEGV (exit code 139)"),
        ([pod(ended(255))], "process", "exit code 255"),
        ([pod()], "platform", "without a word"),
    ],
)
def test_a_failed_pod_tells_whose_fault_it_was(pods: list[V1Pod], kind: str, reason: str) -> None:
    trouble = trouble_of(FAILED, pods, PATIENCE)

    assert trouble is not None
    assert trouble.kind == kind
    assert reason in trouble.reason


def test_of_several_pods_the_last_one_counts() -> None:
    pods = [pod(ended(1)), pod(ended(137, "OOMKilled"), age=timedelta(hours=1))]

    trouble = trouble_of(FAILED, pods, PATIENCE)
    assert trouble is not None
    assert trouble.kind == "process"


@pytest.mark.parametrize(
    ("state", "early", "late"),
    [
        (waits("ErrImagePull"), None, "platform"),
        (waits("ImagePullBackOff"), None, "platform"),
        (waits("CreateContainerConfigError"), None, "setup"),
        (waits("InvalidImageName"), "setup", "setup"),
        (waits("ContainerCreating"), None, None),
        (V1ContainerState(), None, None),
    ],
)
def test_a_pod_that_cannot_begin_is_given_up_when_waiting_does_not_help(
    state: V1ContainerState, early: str | None, late: str | None
) -> None:
    found = [
        trouble_of(ACTIVE, [pod(state, age=age)], PATIENCE) for age in (timedelta(), 2 * PATIENCE)
    ]

    assert [trouble and trouble.kind for trouble in found] == [early, late]


def test_what_a_pod_waits_for_is_told() -> None:
    unschedulable = V1PodCondition(
        type="PodScheduled", status="False", message="0/3 nodes are available"
    )

    assert waiting_for([pod(condition=unschedulable)]) == (
        "no node takes its pod: 0/3 nodes are available"
    )
    assert waiting_for([pod(waits("ErrImagePull", None))]) == "ErrImagePull: no message"
    assert waiting_for([pod(waits("ContainerCreating"))]) is None
    assert waiting_for([]) is None
