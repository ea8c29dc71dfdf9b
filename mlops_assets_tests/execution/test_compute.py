"""What steps ask for, as it stands in their tags; that pods have it is in `e2e/`."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from mlops_assets.execution.compute import ASSET, GPU, GPU_POOL, K8S_CONFIG, PIPELINE, pod_config
from mlops_assets.spec import ComputeSpec
from mlops_assets_tests.conftest import CUSTOMERS, Project

EVERYTHING = "everything"
"""The job of what is materialised in the UI, by backfills and by automation."""

ON_A_GPU = (
    CUSTOMERS
    + """\
  compute: {cpu: 1.5, memory: 4Gi, max_memory: 6Gi, gpu: 1, gpu_type: NVIDIA-L4}
tune: {trials: 2, space: {C: [0.1, 1.0]}, folds: 2}
score: {uri: "{date}.csv"}
"""
)


def asked_by_steps(project: Project, job: str) -> dict[str, dict[str, Any]]:
    """Return the pods of a job's steps, by step."""
    definitions = project.definitions()
    definition = (
        definitions.resolve_implicit_global_asset_job_def()
        if job == EVERYTHING
        else definitions.resolve_job_def(job)
    )
    return {
        str(handle): json.loads(definition.get_node(handle).definition.tags[K8S_CONFIG])
        for handle in definition.graph.iterate_node_handles()
        if definition.get_node(handle).definition.node_type_str == "op"
    }


@pytest.mark.parametrize("job", ["customers_training", EVERYTHING])
def test_every_step_asks_for_what_the_file_says_however_its_run_is_started(
    customers: Project, job: str
) -> None:
    customers.add("customers", ON_A_GPU)
    asked = asked_by_steps(customers, job)

    trains = {name for name in asked if "trial_" in name} | {"customers__model"}
    assert len(trains) == 3
    for name, pod in asked.items():
        resources = pod["container_config"]["resources"]
        assert resources["limits"]["memory"] == resources["requests"]["memory"] == "4Gi"
        assert resources["limits"]["cpu"] == "1500m"
        assert (GPU in resources["limits"]) == (name in trains), name


def test_pods_say_whose_costs_they_are_and_are_not_moved(customers: Project) -> None:
    asked = asked_by_steps(customers, EVERYTHING)

    labels = [pod["pod_template_spec_metadata"]["labels"] for pod in asked.values()]
    assert {label[PIPELINE] for label in labels} == {"customers"}
    assert {label[ASSET] for label in labels} == {
        "source",
        "raw",
        "train.test",
        "model",
        "metrics",
        "champion",
    }
    for pod in asked.values():
        annotations = pod["pod_template_spec_metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


def test_labels_are_ones_that_kubernetes_takes_for_any_name_of_a_pipeline_and_its_assets() -> None:
    pod = pod_config("churn_", ".".join(["asset" * 8 + "_"] * 2), ComputeSpec())

    for label in pod["job_metadata"]["labels"].values():
        assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", label)


def test_steps_with_a_gpu_queue_in_one_pool(customers: Project) -> None:
    customers.add("customers", ON_A_GPU)
    job = customers.definitions().resolve_job_def("customers_training")
    pools = {
        str(handle): job.get_node(handle).definition.pool
        for handle in job.graph.iterate_node_handles()
        if job.get_node(handle).definition.node_type_str == "op"
    }

    assert {name for name, pool in pools.items() if pool == GPU_POOL} == {
        "customers__model",
        "customers__best_params.trial_000",
        "customers__best_params.trial_001",
    }


def test_a_pod_is_sent_to_the_nodes_that_were_asked_for() -> None:
    pod = pod_config(
        "churn",
        "model",
        ComputeSpec.model_validate(
            {
                "gpu": "required",
                "gpu_type": "NVIDIA-L4",
                "ephemeral_storage": "20Gi",
                "node_selector": {"disk": "ssd"},
                "tolerations": [{"key": "spot", "effect": "NoSchedule"}],
            }
        ),
    )

    limits = pod["container_config"]["resources"]["limits"]
    assert (limits[GPU], limits["ephemeral-storage"]) == ("1", "20Gi")
    spec = pod["pod_spec_config"]
    assert spec["node_selector"] == {"disk": "ssd", "nvidia.com/gpu.product": "NVIDIA-L4"}
    assert [one["key"] for one in spec["tolerations"]] == ["spot", GPU]
