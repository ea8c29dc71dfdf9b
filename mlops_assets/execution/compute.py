"""What `compute` in a pipeline file means to Dagster: tags of the step, and its place in a queue.

The tags are the step's own. Dagster gives the tags of a job to the pod of the run alone, and they
are lost when the run is started from the UI or by a backfill (dagster-io/dagster#33430, #26720,
#22865).
"""

from __future__ import annotations

import math
from typing import Any, TypedDict

from mlops_assets.spec import ComputeSpec

K8S_CONFIG = "dagster-k8s/config"
"""Tag that dagster-k8s reads for the pod of a step."""

MEMORY_LIMIT = "mlops/memory_limit"
"""Tag with the bytes beyond which a step that ran out of memory is not tried again."""

PIPELINE, ASSET = "mlops/pipeline", "mlops/asset"
"""Labels of the pods, by which costs are attributed."""

GPU = "nvidia.com/gpu"
GPU_POOL = "gpu"
"""Pool of the steps that take a GPU: its limit is how many of them run at once, in all runs."""

_GPU_TYPE = "nvidia.com/gpu.product"
_STAYS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
"""A step starts from the beginning when it is moved, which costs more than a node for a while."""


class StepOptions(TypedDict):
    """Keyword arguments of Dagster's decorators for assets and ops."""

    op_tags: dict[str, Any]
    pool: str | None


def step_options(pipeline: str, asset: str, compute: ComputeSpec) -> StepOptions:
    """Return how a step is to be run that asks for this.

    Parameters
    ----------
    pipeline, asset : str
        What the step makes, `churn` and `model`; several assets are separated by a full stop.
    compute : ComputeSpec
        What it asks for.
    """
    return {
        "op_tags": {
            K8S_CONFIG: pod_config(pipeline, asset, compute),
            MEMORY_LIMIT: str(compute.memory_limit),
        },
        "pool": GPU_POOL if compute.gpus else None,
    }


def without_gpu(compute: ComputeSpec) -> ComputeSpec:
    """Return what a step asks for that holds the same data and trains nothing."""
    return compute.model_copy(update={"gpu": 0, "gpu_type": None})


def labels_of(pipeline: str, asset: str) -> dict[str, str]:
    """Return whose costs a pod is; a label ends with a letter or a digit, as a name need not."""
    return {PIPELINE: pipeline.strip("_"), ASSET: asset[:63].strip("._-")}


def pod_config(pipeline: str, asset: str, compute: ComputeSpec) -> dict[str, Any]:
    """Return the pod of a step as dagster-k8s takes it.

    What is asked for is also the limit: a step is then never killed for what it asked for, and
    libraries that count processors count those that the step may use.
    """
    resources = {
        "cpu": f"{max(1, round(compute.cpu * 1000))}m",
        "memory": compute.memory,
        **({"ephemeral-storage": compute.ephemeral_storage} if compute.ephemeral_storage else {}),
        **({GPU: str(compute.gpus)} if compute.gpus else {}),
    }
    labels = labels_of(pipeline, asset)
    nodes = {**compute.node_selector, **({_GPU_TYPE: compute.gpu_type} if compute.gpu_type else {})}
    tolerations = [it.model_dump(exclude_none=True) for it in compute.tolerations]
    if compute.gpus:
        tolerations.append({"key": GPU, "operator": "Exists", "effect": "NoSchedule"})
    return {
        "container_config": {
            "resources": {"requests": resources, "limits": resources},
            # BLAS and OpenMP count the node's processors, whatever the container may use.
            "env": [{"name": "OMP_NUM_THREADS", "value": str(math.ceil(compute.cpu))}],
        },
        "pod_spec_config": {
            **({"node_selector": nodes} if nodes else {}),
            **({"tolerations": tolerations} if tolerations else {}),
        },
        "pod_template_spec_metadata": {"labels": labels, "annotations": _STAYS},
        "job_metadata": {"labels": labels},
    }
