"""What a run would execute, what it would reuse, and why: decided without running anything.

The decisions are those that the steps themselves make when they start (`mlops_assets.store.reuse`),
from the same stages and the same memo. Nothing here imports Dagster or anything else that is slow
to import, so that the answer takes a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, partial
from graphlib import TopologicalSorter
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from mlops_assets.dagster_internals.database import Recorded
from mlops_assets.errors import DataError, UserError
from mlops_assets.spec import Pipeline, Upstream, dotted
from mlops_assets.stages import Stage, stages
from mlops_assets.store.artifacts import ArtifactStore
from mlops_assets.store.memo import Computation, Computed, Memo, Outside, differences

READERS = 64
"""Requests at once to a store over the network, which answers each in tens of milliseconds."""

T = TypeVar("T")


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


class Lookups:
    """Has things looked up before they are asked for, where the store is reached over the network.

    Not where there are as many pipelines as readers: each of those has a request under way anyhow.
    """

    def __init__(self, store: ArtifactStore, pipelines: int = 1) -> None:
        """Begin for a number of pipelines that are planned at the same time."""
        ahead = "://" in store.url and pipelines < READERS
        self._pool = ThreadPoolExecutor(READERS) if ahead else None

    def start(self, look: Callable[[], T]) -> Callable[[], T]:
        """Return what gives the answer, or raises why there is none."""
        return cache(look) if self._pool is None else self._pool.submit(look).result

    def close(self) -> None:
        """Let go of what was not asked for."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


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
        return _plan(by_name[name], outside, recorded, refresh, above, lookups)

    with (
        closing(Lookups(outside.store, len(by_name))) as lookups,
        readers_of(outside.store) as pool,
    ):
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
    with closing(Lookups(outside.store)) as lookups:
        return _plan(spec, outside, recorded, frozenset(refresh), upstreams, lookups)


def _plan(
    spec: Pipeline,
    outside: Outside,
    recorded: Mapping[str, Recorded],
    refresh: frozenset[str],
    upstreams: Mapping[str, PipelinePlan],
    lookups: Lookups,
) -> PipelinePlan:
    assets = [f"{spec.name}/{asset}" for asset in spec.made_once]
    plan = PipelinePlan(spec.name, assets, upstreams=upstreams)
    versions: dict[str, str | None] = {}
    try:
        for location, upstream in spec.upstreams.items():
            try:
                versions |= _versions_of(upstream, upstreams.get(upstream.pipeline), recorded)
            except DataError as error:
                raise DataError(f"{dotted(location)}: {error}") from error
        planner = _Planner(plan, outside, recorded, refresh, lookups, versions)
        looked: list[_Looked] = []
        try:
            for found in planner.look_up(list(stages(spec).values())):
                looked.append(found)
        finally:
            for found in looked:
                planner.decide(found)
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


class _Looked(NamedTuple):
    """What is known of a stage before it is known whether those above it are hits."""

    stage: Stage
    forced: str | None
    """Why it is computed whatever is known of it."""
    computations: dict[str, Computation]
    """By asset."""
    found: dict[str, Computed | None]
    """By asset; nothing if that depends on what is executed."""
    are_intact: dict[str, Callable[[], bool]]


class _Planner:
    """Decides about the stages of one pipeline.

    First all records are looked up, as if every artefact that they name was intact, and whether it
    is, meanwhile. So the answers to most questions are on their way at the same time.
    """

    def __init__(
        self,
        plan: PipelinePlan,
        outside: Outside,
        recorded: Mapping[str, Recorded],
        refresh: frozenset[str],
        lookups: Lookups,
        versions: dict[str, str | None],
    ) -> None:
        self._plan = plan
        self._outside = outside
        self._recorded = recorded
        self._refresh = refresh
        self._lookups = lookups
        self._versions = versions  # of the assets so far; None for one that stays without a value
        self._memo = Memo(outside.store)
        self._records: dict[str, Callable[[], Computed | None]] = {}

    def look_up(self, stages: list[Stage]) -> Iterator[_Looked]:
        """Look up the stages in their order."""
        seen = [self._lookups.start(partial(stage.look, self._outside, None)) for stage in stages]
        for asset in self._plan.assets:  # most likely nothing has changed since
            if (known := self._recorded.get(asset)) is not None and known.fingerprint:
                self._record(known.fingerprint)
        executed: set[str] = set()
        for stage, look in zip(stages, seen, strict=True):
            inputs = {name: one.version for name, one in look().items()}
            found = self._look_up_stage(stage, inputs, executed)
            if found.forced or not all(found.found.get(asset) for asset in stage.outputs):
                executed.update(stage.outputs)
            yield found

    def _look_up_stage(self, stage: Stage, seen: dict[str, str], executed: set[str]) -> _Looked:
        inputs = seen | {
            name: version
            for name, version in self._versions.items()
            if version and name.partition("[")[0] in stage.inputs
        }
        computations = {
            asset: Computation(asset, None, stage.code, None, inputs) for asset in stage.outputs
        }
        forced = self._forced(stage)
        if forced or any(name in executed or self._plan.executes(name) for name in stage.inputs):
            return _Looked(stage, forced, computations, {}, {})
        records = {asset: self._record(c.fingerprint) for asset, c in computations.items()}
        found = {asset: record() for asset, record in records.items()}
        hits = {asset: computed for asset, computed in found.items() if computed}
        if len(hits) == len(stage.outputs):
            self._versions |= {
                asset: computed.artifact.version if computed.artifact else None
                for asset, computed in hits.items()
            }
        are_intact = {
            asset: self._lookups.start(partial(self._memo.is_intact, computed))
            for asset, computed in hits.items()
        }
        return _Looked(stage, forced, computations, found, are_intact)

    def _record(self, fingerprint: str) -> Callable[[], Computed | None]:
        """Look up what a computation produced, once."""
        if fingerprint not in self._records:
            self._records[fingerprint] = self._lookups.start(partial(self._memo.get, fingerprint))
        return self._records[fingerprint]

    def _forced(self, stage: Stage) -> str | None:
        if "true" in self._refresh or not self._refresh.isdisjoint(stage.outputs):
            return "a refresh was asked for"
        return "the pipeline file lists it under recompute" if stage.recompute else None

    def decide(self, looked: _Looked) -> None:
        """Say of a stage what a run would do, after those above it."""
        plan, stage = self._plan, looked.stage
        changing = [name for name in stage.inputs if plan.executes(name)]
        hits = {
            asset: computed
            for asset, computed in looked.found.items()
            if computed and not changing and looked.are_intact[asset]()
        }
        if len(hits) < len(stage.outputs):
            for asset in stage.outputs:
                why = [looked.forced] if looked.forced else self._why(asset, looked, changing)
                plan.execute.append((asset, "; ".join(why)))
            return
        for asset, computed in hits.items():
            plan.reuse.append(asset)
            plan.computed[asset] = computed
            inputs, known = looked.computations[asset].inputs, self._recorded.get(asset)
            if computed.artifact and not _is_recorded(stage, computed, inputs, known):
                plan.unrecorded.append(asset)

    def _why(self, asset: str, looked: _Looked, changing: list[str]) -> list[str]:
        """Say how a computation differs from the one before."""
        now, before = looked.computations[asset], self._before(asset)
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
        found = looked.found.get(asset)
        if found is not None and found.artifact is not None:
            return [f"missing or damaged: {self._outside.store.url_of(found.artifact)}"]
        return ["the record of its computation is missing or damaged"]

    def _before(self, asset: str) -> Computed | None:
        """Return the latest computation of an asset in this instance, or else by anybody."""
        known = self._recorded.get(asset)
        if (
            known is not None
            and known.fingerprint
            and (latest := self._record(known.fingerprint)())
        ):
            return latest
        newest = self._memo.newest(asset, None)
        return self._record(newest)() if newest is not None else None


def _is_recorded(
    stage: Stage,
    computed: Computed,
    inputs: Mapping[str, str],
    recorded: Recorded | None,
) -> bool:
    if (
        recorded is None
        or computed.artifact is None
        or recorded.version != computed.artifact.version
        or recorded.code_version != stage.code.version
    ):
        return False
    # of a daily input Dagster records a digest, and the fingerprint says the same
    return recorded.fingerprint == computed.fingerprint or all(
        recorded.inputs.get(name) == inputs.get(name) for name in stage.inputs
    )
