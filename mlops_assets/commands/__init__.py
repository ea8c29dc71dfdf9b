"""Running commands: as a process, in a container, in a pod, and what they leave.

What a step of a pipeline file may say is `mlops_assets.spec`; what Dagster is told of it is
`mlops_assets.assets.command`.
"""
