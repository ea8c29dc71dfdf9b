"""What the commands know before Dagster is imported: the pipelines, the store, and the plan."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mlops_assets.dagster_internals.database import Recorded, recorded_in
from mlops_assets.errors import SettingsError
from mlops_assets.pipeline_file import Pipelines, load_pipelines
from mlops_assets.plan import PipelinePlan, plan_pipelines
from mlops_assets.settings import Settings, local_state
from mlops_assets.spec import PipelineSpec
from mlops_assets.store.artifacts import ArtifactStore
from mlops_assets.store.memo import Outside

ALL = "true"
"""To refresh everything."""


@dataclass
class Project:
    """The pipelines that a command is about, and where their results are."""

    settings: Settings
    pipelines: Pipelines
    names: list[str]

    @classmethod
    def load(cls, names: Sequence[str] = ()) -> Project:
        """Read the settings and the pipeline files; all pipelines if none is named.

        Raises
        ------
        UserError
            A name is not that of a pipeline, or the settings are wrong.
        """
        settings = Settings.from_environment()
        pipelines = load_pipelines(settings.pipelines)
        return cls(settings, pipelines, _chosen(names, {*pipelines.valid, *pipelines.broken}))

    @property
    def valid(self) -> list[str]:
        """Names of the chosen pipelines that can run."""
        return [name for name in self.names if name in self.pipelines.valid]

    @property
    def assets(self) -> list[str]:
        """What runs of the chosen pipelines make, as in `churn/model`."""
        return [
            f"{name}/{asset}"
            for name in self.valid
            for asset in self.pipelines.valid[name].made_once
        ]

    @property
    def trained(self) -> dict[str, PipelineSpec]:
        """Those of the pipelines that train a model."""
        valid = self.pipelines.valid
        return {name: spec for name, spec in valid.items() if isinstance(spec, PipelineSpec)}

    @property
    def store(self) -> ArtifactStore:
        """The store."""
        return ArtifactStore(self.settings.store_url, self.settings.s3_endpoint_url)

    def recorded(self) -> dict[str, Recorded] | None:
        """Return what this machine's Dagster instance has as the latest; None if only it knows."""
        return recorded_in(dagster_home(), [*self.assets, *self.sources], self.daily_sources)

    @property
    def sources(self) -> list[str]:
        """Assets of other pipelines that one of the chosen ones is made from."""
        upstreams = (self.pipelines.valid[name].upstreams.values() for name in self.valid)
        return [one.name for of_pipeline in upstreams for one in of_pipeline]

    @property
    def daily_sources(self) -> dict[str, str]:
        """Those of `sources` with a partition for each day, and the first day that counts."""
        first_days = {
            f"{name}/predictions": spec.score.start.isoformat()
            for name, spec in self.trained.items()
            if spec.score is not None
        }
        return {name: first_days[name] for name in self.sources if name in first_days}

    def plan(
        self, recorded: Mapping[str, Recorded], refresh: Iterable[str] = ()
    ) -> dict[str, PipelinePlan]:
        """Plan the chosen pipelines, without running anything."""
        outside = Outside.of(self.store, self.settings.s3_endpoint_url)
        specs = [self.pipelines.valid[name] for name in self.valid]
        return plan_pipelines(specs, outside, recorded, refresh)


def dagster_home() -> Path:
    """Return `DAGSTER_HOME`, or the folder in the checkout that `make dev` uses."""
    home = Path(os.environ.get("DAGSTER_HOME") or local_state("dagster"))
    if not home.is_absolute():
        raise SettingsError(f"DAGSTER_HOME={str(home)!r}: an absolute path is allowed.")
    return home


def to_refresh(project: Project, asked: Iterable[str]) -> frozenset[str]:
    """Return the assets to compute anew: those named, those of a named pipeline, or `ALL`.

    Raises
    ------
    SettingsError
        There is no such asset.
    """
    known = set(project.assets)
    assets: set[str] = set()
    for name in (part for text in asked for part in text.split(",")):
        of_pipeline = {asset for asset in known if asset.startswith(f"{name}/")}
        if name != ALL and not of_pipeline:
            _require(name, known, "asset")
        assets |= of_pipeline or {name}
    return frozenset(assets)


def as_json(project: Project, plans: Mapping[str, PipelinePlan]) -> dict[str, Any]:
    """Return the plan in the form that `mlops plan --json` prints."""
    reports: dict[str, Any] = {}
    for name in project.names:
        plan = plans.get(name) or PipelinePlan(name, error=str(project.pipelines.broken[name]))
        execute = [{"asset": asset, "reason": reason} for asset, reason in plan.execute]
        reports[name] = {"execute": execute, "reuse": plan.reuse, "error": plan.error}
    return {"pipelines": reports}


def as_text(project: Project, plans: Mapping[str, PipelinePlan]) -> str:
    """Return the plan for people."""
    lines = []
    for name, report in as_json(project, plans)["pipelines"].items():
        execute, reuse = report["execute"], report["reuse"]
        lines.append(f"{name}: {len(execute)} to execute, {len(reuse)} to reuse")
        width = max((len(one["asset"]) for one in execute), default=0)
        lines += [f"  execute  {one['asset']:<{width}}  {one['reason']}" for one in execute]
        if reuse:
            lines.append(f"  reuse    {', '.join(reuse)}")
        lines += [f"  error    {line}" for line in (report["error"] or "").splitlines()]
    return "\n".join(lines)


def _chosen(names: Sequence[str], known: set[str]) -> list[str]:
    for name in names:
        _require(name, known, "pipeline")
    return list(dict.fromkeys(names)) or sorted(known)


def _require(name: str, allowed: Collection[str], what: str) -> None:
    if name not in allowed:
        known = sorted(allowed)
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SettingsError(f"there is no {what} {name!r}; {hint}known: {', '.join(known)}")
