"""Each use of Dagster that is not public: these fail loudly when a new version moves one."""

from collections.abc import Iterator

import pytest
from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    AssetSelection,
    AssetSpec,
    AutomationCondition,
    AutomationContext,
    AutomationResult,
    DagsterInstance,
    DataVersion,
    Definitions,
    Output,
    StaticPartitionsDefinition,
    asset,
    evaluate_automation_conditions,
    materialize,
)

from mlops_assets.dagster_internals.automation import (
    NO_VERSION,
    Lineage,
    candidates,
    requested_before,
    result,
    version_of_partitions,
)

LETTERS = StaticPartitionsDefinition(["a", "b"])
UP, DOWN = AssetKey("up"), AssetKey("down")
SOURCE = AssetSpec("source")


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def lineage(instance: DagsterInstance, *assets: object) -> Lineage:
    return Lineage(instance, Definitions([*assets]).resolve_asset_graph())


@asset(partitions_def=LETTERS, deps=[SOURCE], code_version="1")
def up() -> Output[None]:
    return Output(None, data_version=DataVersion("content"))


@asset(deps=[up], code_version="2")
def down() -> None: ...


def test_what_dagster_records_with_a_materialisation_is_read(instance: DagsterInstance) -> None:
    instance.report_runless_asset_event(
        AssetObservation("source", tags={"dagster/data_version": "seen"})
    )
    for letter in ("a", "b"):
        materialize([SOURCE, up], instance=instance, partition_key=letter)
    assert materialize([up, down], instance=instance, selection=[down]).success
    read = lineage(instance, SOURCE, up, down)

    made = read.latest(UP)
    assert set(made) == {"a", "b"}
    assert (made["a"].version, made["a"].code_version) == ("content", "1")
    assert made["a"].inputs == {"source": "seen"}
    assert made["a"].input_event(SOURCE.key) == read.latest(SOURCE.key)[None].event
    assert made["b"].event > made["a"].event
    below = read.latest(DOWN)[None]
    assert below.inputs == {"up": version_of_partitions({"b": "content", "a": "content"})}
    assert below.input_event(UP) == made["b"].event
    assert read.targets_of(below.run_id) == {DOWN}


def test_an_input_without_events_is_recorded_with_no_version(instance: DagsterInstance) -> None:
    materialize([SOURCE, up], instance=instance, partition_key="a")
    made = lineage(instance, SOURCE, up).latest(UP)["a"]

    assert made.inputs == {"source": NO_VERSION}
    assert made.input_event(SOURCE.key) is None


def test_the_versions_of_partitions_at_an_earlier_time_are_found(instance: DagsterInstance) -> None:
    events = []
    for letter, version in (("a", "first"), ("b", "first"), ("a", "second")):
        instance.report_runless_asset_event(
            AssetMaterialization("up", partition=letter, tags={"dagster/data_version": version})
        )
        events.append(lineage(instance, SOURCE, up).latest(UP)[letter].event)
    first, second, _ = events
    read = lineage(instance, SOURCE, up)

    assert read.versions_as_of(UP, first, ["a", "b"]) == {"a": "first"}
    assert read.versions_as_of(UP, second, ["a", "b"]) == {"a": "first", "b": "first"}
    assert read.versions_as_of(UP, None, ["a"]) == {}
    assert read.latest(UP)["a"].version == "second"


def test_the_partitions_that_a_run_is_at_work_on_are_known(instance: DagsterInstance) -> None:
    seen = []

    @asset(partitions_def=LETTERS)
    def working() -> None:
        seen.append(lineage(instance, working).in_progress(AssetKey("working")))

    materialize([working], instance=instance, partition_key="a")

    assert seen == [{"a"}]
    assert lineage(instance, working).in_progress(AssetKey("working")) == set()


def test_blocking_checks_that_did_not_pass_are_named(instance: DagsterInstance) -> None:
    specs = [AssetCheckSpec(name, asset="checked", blocking=name != "d") for name in "abcd"]

    @asset(check_specs=specs)
    def checked() -> Iterator[Output[None] | AssetCheckResult]:
        yield Output(None)
        for name in "abcd":
            yield AssetCheckResult(check_name=name, passed=name == "a")

    key = AssetKey("checked")
    assert lineage(instance, checked).blocking_checks_not_passed(key) == ["a", "b", "c"]
    materialize([checked], instance=instance, raise_on_error=False)
    assert lineage(instance, checked).blocking_checks_not_passed(key) == ["b", "c"]


def test_a_selection_is_resolved_to_what_can_be_made(instance: DagsterInstance) -> None:
    read = lineage(instance, SOURCE, up, down)

    assert read.resolve(AssetSelection.all(include_sources=True)) == {UP, DOWN}
    assert read.parent_partitions(DOWN, None, UP) == ["a", "b"]
    assert (read.partitions(UP), read.partitions(DOWN)) == (["a", "b"], [None])


def test_a_condition_knows_what_it_is_asked_and_what_was_requested_before(
    instance: DagsterInstance,
) -> None:
    seen = []

    class First(AutomationCondition[AssetKey]):
        def evaluate(self, context: AutomationContext[AssetKey]) -> AutomationResult[AssetKey]:
            seen.append((candidates(context), requested_before(context), context.cursor))
            return result(context, {"a"}, "remembered")

    @asset(partitions_def=LETTERS, automation_condition=First())
    def conditioned() -> None: ...

    ticked = evaluate_automation_conditions([conditioned], instance)
    assert ticked.get_requested_partitions(AssetKey("conditioned")) == {"a"}
    evaluate_automation_conditions([conditioned], instance, cursor=ticked.cursor)
    assert seen == [({"a", "b"}, set(), None), ({"a", "b"}, {"a"}, "remembered")]
