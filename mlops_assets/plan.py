"""What a run would execute, what it would reuse, and why: decided without running anything.

The decisions are those that the steps themselves make when they start (`mlops_assets.store.reuse`),
from the same stages and the same memo. Nothing here imports Dagster or anything else that is slow
to import, so that the answer takes a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from types import MappingProxyType

from mlops_assets.dagster_internals.database import Recorded
from mlops_assets.errors import DataError, UserError
from mlops_assets.spec import Pipeline, Upstream, dotted
from mlops_assets.stages import Stage, stages
from mlops_assets.store.artifacts import ArtifactStore
from mlops_assets.store.memo import Computation, Computed, Memo, Outside, differences

READERS = 16  # pipelines that are looked up at the same time in a store over the network


@dataclass
class PipelinePlan:
    """What a run of one pipeline would do."""

    pipeline: str
    assets: list[str] = field(default_factory=list)
    """All that a run of it makes."""
    execute: list[tuple[str, str]] = field(default_factory=list)
    """Assets in the order of the pipeline, and why."""
    reuse: list[str] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)
    """Those to reuse that this Dagster instance has not as the latest: it has to be told."""
    error: str | None = None
    """Why nothing could be decided: the source or the store cannot be looked at."""
    computed: dict[str, Computed] = field(default_factory=dict)
    """What is known of the assets to reuse."""
    upstreams: Mapping[str, PipelinePlan] = field(default_factory=dict)
    """Of the pipelines that it is made from, as far as they are planned at the same time."""

    @property
    def is_empty(self) -> bool:
        """Whether a run would change nothing, in the store or in this instance."""
        return not (self.execute or self.unrecorded or self.error)

    def executes(self, asset: str) -> bool:
        """Whether an asset of this pipeline, or of one that it is made from, would run."""
        above = any(plan.executes(asset) for plan in self.upstreams.values())
        return above or any(asset == name for name, _ in self.execute)


def readers_of(store: ArtifactStore) -> ThreadPoolExecutor:
    """Return what looks several things up at a time in a store over the network, else one."""
    return ThreadPoolExecutor(READERS if "://" in store.url else 1)


def plan_pipelines(
    specs: Iterable[Pipeline],
    outside: Outside,
    recorded: Mapping[str, Recorded],
    refresh: Iterable[str] = (),
) -> dict[str, PipelinePlan]:
    """Plan pipelines; several at a time where the store is reached over the network."""
    by_name, refresh = {spec.name: spec for spec in specs}, frozenset(refresh)
    plans: dict[str, PipelinePlan] = {}

    def plan(name: str) -> PipelinePlan:
        needed = {upstream.pipeline for upstream in by_name[name].upstreams.values()}
        above = {other: plans[other] for other in needed if other in plans}
        return plan_pipeline(by_name[name], outside, recorded, refresh, above)

    with readers_of(outside.store) as pool:
        for group in _upstream_first(by_name):
            plans |= zip(group, pool.map(plan, group), strict=True)
    return {name: plans[name] for name in by_name}


def _upstream_first(specs: Mapping[str, Pipeline]) -> Iterator[tuple[str, ...]]:
    """Group the names of pipelines so that each comes after those that it is made from."""
    order = TopologicalSorter(
        {
            name: [it.pipeline for it in spec.upstreams.values() if it.pipeline in specs]
            for name, spec in specs.items()
        }
    )
    order.prepare()
    while order.is_active():
        group = order.get_ready()
        yield group
        order.done(*group)


def plan_pipeline(
    spec: Pipeline,
    outside: Outside,
    recorded: Mapping[str, Recorded],
    refresh: Iterable[str] = (),
    upstreams: Mapping[str, PipelinePlan] = MappingProxyType({}),
) -> PipelinePlan:
    """Decide for each asset of a pipeline whether a run would execute or reuse it.

    Parameters
    ----------
    spec : Pipeline
        The pipeline.
    outside : Outside
        The store, and how sources are reached.
    recorded : mapping of str to Recorded
        What this Dagster instance has as the latest materialisation, by asset; empty for an
        instance that has none.
    refresh : iterable of str
        Assets to compute whatever is known of them; "true" for all.
    upstreams : mapping of str to PipelinePlan
        What the same run does in the pipelines that it is made from.
    """
    assets = [f"{spec.name}/{asset}" for asset in spec.made_once]
    plan = PipelinePlan(spec.name, assets, upstreams=upstreams)
    versions: dict[str, str | None] = {}
    """Of the assets so far; None for one that stays without a value."""
    try:
        for location, upstream in spec.upstreams.items():
            try:
                versions |= _versions_of(upstream, upstreams.get(upstream.pipeline), recorded)
            except DataError as error:
                raise DataError(f"{dotted(location)}: {error}") from error
        for stage in stages(spec).values():
            _plan_stage(plan, stage, outside, recorded, frozenset(refresh), versions)
    except (UserError, OSError) as error:
        plan.error = str(error)
    return plan


def _versions_of(
    source: Upstream, plan: PipelinePlan | None, recorded: Mapping[str, Recorded]
) -> dict[str, str]:
    """Return the versions of another pipeline's asset, by day if it is daily; none if it will run.

    A plan is about training, which makes nothing that is daily.
    """
    if plan is not None and not source.is_daily:
        if plan.error is not None:
            raise DataError(f"{source.pipeline} could not be planned, which makes it")
        if plan.executes(source.name):
            return {}
        computed = plan.computed.get(source.name)
        found = {source.name: computed.artifact.version if computed and computed.artifact else None}
    else:
        found = {name: known.version for name, known in recorded.items() if _is_of(source, name)}
    versions = {name: version for name, version in found.items() if version}
    if not versions:
        raise DataError(f"{source.name} has never been materialised in this Dagster instance")
    return versions


def _is_of(source: Upstream, name: str) -> bool:
    """Whether a name is that of an asset or, for a daily one, of a day of it."""
    asset, day, _ = name.partition("[")
    return asset == source.name and bool(day) == source.is_daily


def _plan_stage(
    plan: PipelinePlan,
    stage: Stage,
    outside: Outside,
    recorded: Mapping[str, Recorded],
    refresh: frozenset[str],
    versions: dict[str, str | None],
) -> None:
    memo = Memo(outside.store)
    changing = [name for name in stage.inputs if plan.executes(name)]
    inputs = {name: seen.version for name, seen in stage.look(outside, None).items()}
    inputs |= {
        name: version
        for name, version in versions.items()
        if version and name.partition("[")[0] in stage.inputs
    }
    computations = {
        asset: Computation(asset, None, stage.code, None, inputs) for asset in stage.outputs
    }
    found = {} if changing else {a: memo.get(c.fingerprint) for a, c in computations.items()}
    hits = {a: computed for a, computed in found.items() if computed and memo.is_intact(computed)}
    forced = (
        "a refresh was asked for"
        if "true" in refresh or not refresh.isdisjoint(stage.outputs)
        else "the pipeline file lists it under recompute"
        if stage.recompute
        else None
    )
    if forced or len(hits) < len(stage.outputs):
        for asset, computation in computations.items():
            reasons = [forced] if forced else []
            if not forced:
                before = _before(memo, outside, asset, recorded)
                reasons += _why(computation, before, found.get(asset), changing, outside)
            plan.execute.append((asset, "; ".join(reasons)))
        return
    for asset, computed in hits.items():
        version = computed.artifact.version if computed.artifact else None
        versions[asset] = version
        plan.reuse.append(asset)
        plan.computed[asset] = computed
        if version is None:
            continue
        if not _is_recorded(stage, computed, version, inputs, recorded.get(asset)):
            plan.unrecorded.append(asset)


def _why(
    now: Computation,
    before: Computed | None,
    found: Computed | None,
    changing: list[str],
    outside: Outside,
) -> list[str]:
    if before is None:
        return differences(None, now)
    known = {name: version for name, version in now.inputs.items() if name not in changing}
    unknown = {name: version for name, version in before.inputs.items() if name in changing}
    same = Computation(now.asset, now.partition, now.code, now.config, {**known, **unknown})
    reasons = differences(before, same)
    if changing:
        reasons.append(f"depends on what is executed: {', '.join(changing)}")
    if reasons:
        return reasons
    if found is not None and found.artifact is not None:
        return [f"missing or damaged: {outside.store.url_of(found.artifact)}"]
    return ["the record of its computation is missing or damaged"]


def _before(
    memo: Memo, outside: Outside, asset: str, recorded: Mapping[str, Recorded]
) -> Computed | None:
    """Return the latest computation of an asset in this instance, or else by anybody."""
    known = recorded.get(asset)
    if known is not None and known.fingerprint and (latest := memo.get(known.fingerprint)):
        return latest
    newest = memo.newest(asset, None)
    return memo.get(newest) if newest is not None else None


def _is_recorded(
    stage: Stage,
    computed: Computed,
    version: str,
    inputs: Mapping[str, str],
    recorded: Recorded | None,
) -> bool:
    if (
        recorded is None
        or recorded.version != version
        or recorded.code_version != stage.code.version
    ):
        return False
    # of a daily input Dagster records a digest, and the fingerprint says the same
    return recorded.fingerprint == computed.fingerprint or all(
        recorded.inputs.get(name) == inputs.get(name) for name in stage.inputs
    )
