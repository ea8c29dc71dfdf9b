"""The executor of the project on Kubernetes: every step that has to run in a pod of its own.

dagster-k8s and the Kubernetes client take seconds to import. They are imported where a run is
orchestrated, and not by the code location or by the steps.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from dagster import (
    DagsterInvariantViolationError,
    Executor,
    Field,
    InitExecutorContext,
    Permissive,
    executor,
    multiple_process_executor_requirements,
    multiprocess_executor,
)

from mlops_assets.dagster_internals.orchestration import (
    checking_health_every,
    config_fields,
    ending_steps_once,
    wrap_step_handler,
)
from mlops_assets.execution.compute import MEMORY_LIMIT
from mlops_assets.execution.step_handler import MemoisingStepHandler

STEP_ACCOUNT = "dagster-step"
"""Service account of step pods. They are given no token: they never talk to the API server."""

PIPES_ACCOUNT = "dagster-pipes"
"""Service account of the steps that start a container: they make pods, and nothing else."""

PLATFORM_RETRIES = 5

PATIENCE_SECONDS = 120
"""The kubelet tries again by itself, after 10 s, 20 s and so on: passing trouble with a registry
ends within this time, and a wrong name of an image does not."""

HEALTH_CHECK_SECONDS = 5
"""How often the pods of a run are looked after: dagster-k8s' own 20 s would be most of a retry."""

LOST_NODE_SECONDS = 60
"""How long a node may be silent before its pods are given up; Kubernetes' default is 300 s."""

_any: Any = Permissive  # its constructor has no types
_SILENT_NODE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_SHARED = ("max_concurrent", "retries", "tag_concurrency_limits", "step_dependency_config")


@executor(
    name="kubernetes",
    config_schema={
        **{
            name: field
            for name, field in config_fields(multiprocess_executor, without="start_method").items()
            if name in _SHARED
        },
        "platform_retries": Field(
            int,
            default_value=PLATFORM_RETRIES,
            description="How often one attempt of a step is launched again after an eviction, the "
            "loss of its node, or another failure of the platform.",
        ),
        "patience_seconds": Field(
            int,
            default_value=PATIENCE_SECONDS,
            description="How long a container may fail to be created, for want of its image say, "
            "before its pod is given up.",
        ),
        "step_k8s_config": Field(
            _any(),
            default_value={},
            description="What all step pods have, as dagster-k8s takes it.",
        ),
    },
    requirements=multiple_process_executor_requirements(),
)
def kubernetes_executor(context: InitExecutorContext) -> Executor:
    """Run every step in a pod of its own, but no pod for a step whose result is known already.

    What a pod asks for is the `compute` of its pipeline file.

    Raises
    ------
    DagsterInvariantViolationError
        The instance launches its runs elsewhere than on Kubernetes.
    """
    from dagster_k8s import k8s_job_executor

    from mlops_assets.dagster_internals.k8s_run_launcher import WatchedK8sRunLauncher
    from mlops_assets.dagster_internals.k8s_steps import WatchedK8sStepHandler

    launcher = context.instance.run_launcher
    if not isinstance(launcher, WatchedK8sRunLauncher):
        raise DagsterInvariantViolationError(
            "MLOPS_DEPLOYMENT=k8s runs steps as pods, which needs an instance that launches runs "
            "as pods, as k8s/base/dagster.yaml does. On one machine, leave MLOPS_DEPLOYMENT out."
        )
    config: dict[str, Any] = dict(context.executor_config)
    create = k8s_job_executor.executor_creation_fn
    assert create is not None
    made = create(
        context._replace(
            executor_config={
                **{name: config[name] for name in _SHARED if name in config},
                "load_incluster_config": launcher.load_incluster_config,
                "kubeconfig_file": launcher.kubeconfig_file,
                "service_account_name": STEP_ACCOUNT,
                "step_k8s_config": _with_defaults(config["step_k8s_config"]),
            }
        )
    )
    watched = wrap_step_handler(
        made,
        lambda handler: MemoisingStepHandler(
            WatchedK8sStepHandler(
                cast(Any, handler),
                platform_retries=config["platform_retries"],
                patience=timedelta(seconds=config["patience_seconds"]),
                memory_tag=MEMORY_LIMIT,
            )
        ),
    )
    return ending_steps_once(checking_health_every(watched, HEALTH_CHECK_SECONDS))


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    pod_spec = config.get("pod_spec_config", {})
    tolerations = [
        {
            "key": key,
            "operator": "Exists",
            "effect": "NoExecute",
            "toleration_seconds": LOST_NODE_SECONDS,
        }
        for key in _SILENT_NODE
    ]
    return {
        **config,
        "pod_spec_config": {
            "automount_service_account_token": False,
            **pod_spec,
            "tolerations": [*tolerations, *pod_spec.get("tolerations", [])],
        },
    }
