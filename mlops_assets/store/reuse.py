"""Steps that are not run because what they would compute is known: the decision, and the telling.

A step that was computed before, by whatever run on whatever machine, ends as if it had run: the
same data version, the original's metadata and checks. Which computations are equal is `memo`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from dagster import (
    AssetCheckEvaluation,
    AssetCheckResult,
    AssetKey,
    AssetMaterialization,
    AssetRecordsFilter,
    DagsterEvent,
    DagsterEventType,
    MetadataValue,
    Output,
    UrlMetadataValue,
    deserialize_value,
    serialize_value,
)

from mlops_assets.code_version import Code
from mlops_assets.dagster_internals.database import FINGERPRINT
from mlops_assets.dagster_internals.many_assets import with_signature
from mlops_assets.dagster_internals.steps import (
    asset_outputs,
    captures_values,
    code_version,
    decorated_function,
    input_versions,
    instance_id,
    observed,
    op_config,
    outputs_without_value,
    partition_of,
    replay_step,
    run_step,
    together,
)
from mlops_assets.errors import StoreError, UserError
from mlops_assets.store.artifacts import Artifact
from mlops_assets.store.memo import Computation, Computed, Memo, Outside, Seen, differences

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from dagster._core.execution.context.system import StepExecutionContext

REFRESH = "mlops/refresh"
"""Run tag: "true", or asset keys separated by commas, to compute whatever is known of them."""

RECOMPUTE = "mlops/recompute"
"""Metadata of an asset: True for one that is computed by every run."""

MEMOIZED = "memoized"
"""Metadata of a materialisation that is a reuse."""

PRODUCED_BY = "produced_by_run"
"""Metadata of a materialisation or check that is a reuse: the run that computed it."""

SAVED = "saved_seconds"
"""The same: how long it took then."""

COMMAND = "mlops/command"
"""Run tag of runs that `mlops` started: nobody asks their results for values."""

IsKnown = Callable[["StepExecutionContext", Outside], bool]
"""Says whether what an op is to find was found before."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Definition(Protocol):
    """What is known of an asset's computation beyond its code version."""

    @property
    def code(self) -> Code:
        """What the code version was made of, for the reasons given to people."""

    @property
    def recompute(self) -> bool:
        """Whether it runs every time."""

    @property
    def look(self) -> Callable[[Outside, str | None], Mapping[str, Seen]]:
        """Says what it reads that no upstream asset of Dagster's gives it."""

    def is_current(self) -> bool:
        """Whether the code on disk is still the code of the definition."""


def defined_by(definition: Definition) -> Callable[[_Function], _Function]:
    """Decorate the function of an asset with what decides its result."""

    def decorate(function: _Function) -> _Function:
        cast(Any, function).defined_by = definition
        return with_signature(function)

    return decorate


def known_by(is_known: IsKnown) -> Callable[[_Function], _Function]:
    """Decorate the function of an op that makes no asset with what tells that it need not run.

    For the parts of a graph: they keep what they find by themselves, and say whether it is there.
    """

    def decorate(function: _Function) -> _Function:
        cast(Any, function).is_known = is_known
        return function

    return decorate


def harmless(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Show what is no web address as text: who may write to the store may have planted a script."""

    def is_address(value: UrlMetadataValue) -> bool:
        return str(value.url).startswith(("http://", "https://"))

    return {
        name: MetadataValue.text(str(value.url))
        if isinstance(value, UrlMetadataValue) and not is_address(value)
        else value
        for name, value in metadata.items()
    }


def nothing_to_do(step: StepExecutionContext, outside: Outside) -> Iterator[DagsterEvent] | None:
    """Return the events of a step that need not run; None if it has to, or makes an asset."""
    is_known: IsKnown | None = getattr(decorated_function(step), "is_known", None)
    if is_known is None or not is_known(step, outside):
        return None
    return replay_step(step, _finished_before(step), {})


def _finished_before(step: StepExecutionContext) -> Iterator[Output[None]]:
    """Say so once the step has begun: what is said earlier belongs to no step."""
    step.log.info(f"reused: {step.node_handle.name} was finished before")
    yield from (Output(None, name) for name in outputs_without_value(step))


def forced(step: StepExecutionContext, assets: Iterable[AssetKey]) -> str | None:
    """Return why a step for these assets runs whatever is known; None if it need not."""
    names = {name.strip() for name in step.dagster_run.tags.get(REFRESH, "").split(",")}
    if "true" in names or any(key.to_user_string() in names for key in assets):
        return "a refresh was asked for"
    layer = step.job_def.asset_layer
    if any(layer.get(key).metadata.get(RECOMPUTE) is True for key in assets):
        return "it is computed by every run"
    return None


@dataclass
class StepComputation:
    """A step, as the computation of one or more assets."""

    step: StepExecutionContext
    outside: Outside
    outputs: Mapping[AssetKey, str]
    definition: Definition | None
    begun: float = field(default_factory=perf_counter)
    seen: Mapping[str, Seen] = field(default_factory=dict)
    hits: Mapping[AssetKey, Computed] = field(default_factory=dict)
    written: dict[AssetKey, tuple[Computation | None, Artifact]] = field(default_factory=dict)

    @classmethod
    def of(cls, step: StepExecutionContext, outside: Outside) -> StepComputation | None:
        """Return None for a step that is no computation of assets with a code version."""
        outputs = asset_outputs(step)
        if not outputs or any(not code_version(step, key) for key in outputs):
            return None
        definition = getattr(decorated_function(step), "defined_by", None)
        if step.is_op_in_graph and definition is None:  # the ops before it may decide its result
            return None
        return cls(step, outside, outputs, definition)

    # --- looking up -----------------------------------------------------------------------------

    def reused(self) -> Iterator[DagsterEvent] | None:
        """Return the events of the step as if it had run; None if it has to run."""
        self.seen = self._look()
        if self._must_run():
            return None
        hits: dict[AssetKey, Computed] = {}
        for key in self.outputs:
            computation = self._computation(key, self.seen)
            computed = self._memo.find(computation) if computation is not None else None
            if computed is None:
                return None
            hits[key] = computed
        try:
            results = [
                result for key, computed in hits.items() for result in self._results(key, computed)
            ]
            values = self._values(hits)
        except Exception as error:
            self.step.log.warning(f"what an earlier run computed cannot be reused: {error}")
            return None
        self.hits = hits
        return self._replay(results, values)

    def _must_run(self) -> str | None:
        """Return why nothing is looked up: because somebody said so."""
        if self.definition is not None and self.definition.recompute:
            return "it is computed by every run"
        return forced(self.step, self.outputs)

    def _look(self) -> Mapping[str, Seen]:
        if self.definition is None:
            return {}
        # the outputs of a step have the same partition
        partition = partition_of(self.step, next(iter(self.outputs.values())))
        return self.definition.look(self.outside, partition)

    def _computation(self, key: AssetKey, seen: Mapping[str, Seen]) -> Computation | None:
        """Return the computation of an asset from its inputs as they are recorded for the step.

        None when an input has no version, so that nobody can know whether it changed.
        """
        inputs = {name: found.version for name, found in seen.items()}
        for parent, version in input_versions(self.step).items():
            name = parent.to_user_string()
            if isinstance(version, dict):
                inputs |= {f"{name}[{partition}]": one for partition, one in version.items()}
            elif name not in seen:
                if version is None:
                    return None
                inputs[name] = version
        code = self.definition.code if self.definition else None
        return Computation(
            asset=key.to_user_string(),
            partition=partition_of(self.step, self.outputs[key]),
            code=code or Code.named(str(code_version(self.step, key))),
            config=op_config(self.step),
            inputs=inputs,
        )

    @property
    def _memo(self) -> Memo:
        return Memo(self.outside.store)

    # --- telling --------------------------------------------------------------------------------

    def _results(
        self, key: AssetKey, computed: Computed
    ) -> Iterator[Output[Any] | AssetCheckResult]:
        events = self._memo.events(computed)
        if events is None:
            raise StoreError(f"what Dagster was told of {computed.asset} is lost")
        about: dict[str, Any] = {
            MEMOIZED: True,
            PRODUCED_BY: MetadataValue.dagster_run(computed.run_id),
            SAVED: computed.seconds,
        }
        if computed.artifact is not None:
            made = deserialize_value(events["materialization"], AssetMaterialization)
            metadata: dict[str, Any] = {**harmless(made.metadata), **about}
            tags = {name: tag for name, tag in (made.tags or {}).items() if not _is_dagsters(name)}
            yield Output(computed.artifact, self.outputs[key], metadata=metadata, tags=tags)
        for text in events["checks"]:
            check = deserialize_value(text, AssetCheckEvaluation)
            yield AssetCheckResult(
                asset_key=check.asset_key,
                check_name=check.check_name,
                passed=check.passed,
                severity=check.severity,
                description=check.description,
                metadata={**harmless(check.metadata), **about},
            )

    def _values(self, hits: Mapping[AssetKey, Computed]) -> dict[str, Any]:
        """Load what a test or a notebook would ask the run's result for."""
        if not captures_values(self.step) or COMMAND in self.step.dagster_run.tags:
            return {}
        return {
            self.outputs[key]: self.outside.store.read(computed.artifact)
            for key, computed in hits.items()
            if computed.artifact is not None
        }

    def _replay(
        self, results: Iterable[Output[Any] | AssetCheckResult], values: Mapping[str, Any]
    ) -> Iterator[DagsterEvent]:
        first = next(iter(self.hits.values()))
        for computed in self.hits.values():
            self._set_latest(computed, computed.artifact)
        with together(self.step.instance):
            self.step.log.info(
                f"reused: run {first.run_id} computed the same at {first.at}, "
                f"in {first.seconds:.1f} s"
            )
            for parent, version in input_versions(self.step).items():
                seen = self.seen.get(parent.to_user_string())
                if seen is not None and seen.version != version:
                    yield observed(self.step, parent, seen.version)
            yield from replay_step(self.step, results, values)

    # --- running --------------------------------------------------------------------------------

    def run(self) -> Iterator[DagsterEvent]:
        """Run the step, and remember what it produced if it succeeds."""
        self._say_why()
        told = (DagsterEventType.ASSET_MATERIALIZATION, DagsterEventType.ASSET_CHECK_EVALUATION)
        events: list[DagsterEvent] = []
        for event in run_step(self.step):
            if event.event_type in told:
                events.append(event)
            elif event.is_step_success:
                self._remember(events)
            yield event

    def wrote(self, key: AssetKey, artifact: Artifact) -> str | None:
        """Take note of an asset that the step has written; return its computation's fingerprint."""
        if key in self.hits:
            return self.hits[key].fingerprint
        computation = self._finished(key)
        self.written[key] = (computation, artifact)
        return computation.fingerprint if computation is not None else None

    def _finished(self, key: AssetKey) -> Computation | None:
        """Return the computation of an asset as it was made; None if its inputs changed meanwhile.

        What the step itself has changed, such as the champion, counts as it left it: the same
        step, run again, would leave it so.
        """
        try:
            seen = self._look()
        except (UserError, OSError):  # gone while the step ran
            return None
        recorded = {
            parent.to_user_string(): version
            for parent, version in input_versions(self.step).items()
        }
        run_id = self.step.dagster_run.run_id
        for name, found in seen.items():
            before = self.seen.get(name)
            expected = recorded.get(name) if name in recorded else before and before.version
            if found.version != expected and found.run_id != run_id:
                return None
        return self._computation(key, seen)

    def _say_why(self) -> None:
        try:
            reason = self._must_run() or "; ".join(self._reasons()) or "the result is gone"
        except (StoreError, OSError):  # says so itself, when the step writes
            return
        self.step.log.info(f"computed, because {reason}")

    def _reasons(self) -> list[str]:
        reasons: dict[str, None] = {}
        for key in self.outputs:
            now = self._computation(key, self.seen)
            if now is None:
                return ["an input has no data version"]
            latest = latest_materialization(self.step.instance, key, now.partition)
            fingerprint = latest.metadata.get(FINGERPRINT) if latest is not None else None
            before = self._memo.get(str(fingerprint.value)) if fingerprint is not None else None
            reasons |= dict.fromkeys(differences(before, now))
        return list(reasons)

    def _remember(self, events: Iterable[DagsterEvent]) -> None:
        """Write down what was computed; nothing about it can make the step fail."""
        try:
            if self.definition is not None and not self.definition.is_current():
                self.step.log.warning(
                    "the source of this step was changed since the process began: what was "
                    "computed is kept, and computed again when the new code is loaded"
                )
                return
            told = _told(events)
            for key in self.outputs:
                computation, artifact = self.written.get(key) or (self._finished(key), None)
                made, checks = told.get(key, (None, []))
                if computation is None or (made is None) != (artifact is None):
                    return
                self._memo.put(
                    computation,
                    artifact,
                    {"materialization": made, "checks": checks},
                    run_id=self.step.dagster_run.run_id,
                    seconds=perf_counter() - self.begun,
                )
                if artifact is None:
                    self._set_latest(computation, artifact)
        except (UserError, OSError) as error:
            self.step.log.warning(f"what was computed cannot be reused by later runs: {error}")

    def _set_latest(self, computation: Computation | Computed, artifact: Artifact | None) -> None:
        """Keep an outcome from being pruned; the IO manager does so with what it has written."""
        if instance := instance_id(self.step.instance):
            self._memo.set_latest(
                instance,
                computation.asset,
                computation.partition,
                version=artifact.version if artifact else None,
                fingerprint=computation.fingerprint,
                run_id=self.step.dagster_run.run_id,
            )


def latest_materialization(
    instance: DagsterInstance, key: AssetKey, partition: str | None
) -> AssetMaterialization | None:
    """Return the latest materialisation of an asset, or of a partition of it, in an instance."""
    records = instance.fetch_materializations(
        AssetRecordsFilter(key, asset_partitions=[partition] if partition else None), limit=1
    ).records
    return records[0].asset_materialization if records else None


def _is_dagsters(tag: str) -> bool:
    return tag.startswith("dagster/")


def _told(events: Iterable[DagsterEvent]) -> dict[AssetKey, tuple[str | None, list[str]]]:
    """Sort what Dagster was told by asset, in the form in which it is kept."""
    told: dict[AssetKey, tuple[str | None, list[str]]] = {}
    for event in events:
        if event.is_step_materialization:
            made = event.step_materialization_data.materialization
            _, checks = told.get(made.asset_key, (None, []))
            told[made.asset_key] = (serialize_value(made), checks)
        else:
            check = event.asset_check_evaluation_data
            told.setdefault(check.asset_key, (None, []))[1].append(serialize_value(check))
    return told
