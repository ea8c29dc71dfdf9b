"""A Kubernetes API server for tests that runs the command of each pod as a local process.

Not for: `restartPolicy` other than `Never`, parallel or indexed jobs, sidecars, probes, exec,
affinity, priorities. What would be silently wrong without them is refused.
"""

from mlops_assets_tests.kubernetes.cluster import Node
from mlops_assets_tests.kubernetes.double import KubernetesDouble

__all__ = ["KubernetesDouble", "Node"]
