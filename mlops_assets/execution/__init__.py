"""Where steps run: the executors and the way they are configured.

Whether a step has to run at all is known to the store; how Dagster's executors are made to ask it
before they start a process or a pod is in `mlops_assets.dagster_internals.orchestration`.
"""
