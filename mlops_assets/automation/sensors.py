"""The sensors of a pipeline: what looks at its source, and what launches its stale assets.

Both start switched off, as Dagster's do. What is stale is `staleness`; when a stale asset is
requested is `conditions`.
"""

from __future__ import annotations

import os
from hashlib import sha256
from typing import TYPE_CHECKING

from dagster import (
    AssetKey,
    AssetObservation,
    AssetSelection,
    DagsterInstance,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    sensor,
)

from mlops_assets.assets.common import STORE, key_of
from mlops_assets.automation.conditions import reuse_sensor
from mlops_assets.automation.staleness import UndecidedError
from mlops_assets.errors import UserError
from mlops_assets.stages import source_seen

if TYPE_CHECKING:
    from mlops_assets.spec import PipelineSpec

INTERVAL = 60  # seconds between two looks at a source


def pipeline_sensors(spec: PipelineSpec) -> list[SensorDefinition]:
    """Return `p_source_sensor` and `p_automation_sensor`."""
    return [
        source_sensor(spec),
        reuse_sensor(f"{spec.name}_automation_sensor", AssetSelection.groups(spec.name)),
    ]


def source_sensor(spec: PipelineSpec) -> SensorDefinition:
    """Return the sensor that records an observation of `p/source` when its content is new.

    It launches no run, and content is read only when a file has been touched. A source that cannot
    be looked at is a failed tick with the reason.
    """
    key = key_of(spec, "source")

    @sensor(
        name=f"{spec.name}_source_sensor",
        minimum_interval_seconds=INTERVAL,
        required_resource_keys={STORE},
        description=f"Observes {key.to_user_string()} when its content has changed.",
    )
    def look(context: SensorEvaluationContext) -> SensorResult:
        try:
            touched = _touched(spec)
            if touched is not None and touched == context.cursor:
                return SensorResult(skip_reason="no file was touched", cursor=touched)
            version = source_seen(spec, context.resources.store.outside).version
        except (UserError, OSError) as error:
            raise UndecidedError(f"{spec.name}: {error}") from error
        if version == _latest_observed(context.instance, key):
            return SensorResult(skip_reason=f"the content is still {version}", cursor=touched)
        observed = AssetObservation(key, tags={"dagster/data_version": version})
        return SensorResult(asset_events=[observed], cursor=touched)

    return look


def _touched(spec: PipelineSpec) -> str | None:
    """Return what changes with every write to the files of a source; None if they are not local."""
    from mlops_assets.ml.files import find

    uri = spec.data.uri
    if "://" in uri and not uri.startswith("file://"):
        return None
    digest = sha256()
    for file in find(uri, spec.folder):
        stat = os.stat(file.name)
        digest.update(f"{file.part}\0{stat.st_size} {stat.st_ctime_ns} {stat.st_ino}\n".encode())
    return digest.hexdigest()


def _latest_observed(instance: DagsterInstance, key: AssetKey) -> str | None:
    for record in instance.fetch_observations(key, limit=1).records:
        if record.asset_observation is not None:
            return record.asset_observation.data_version
    return None
