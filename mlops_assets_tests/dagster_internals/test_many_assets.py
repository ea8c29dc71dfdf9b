"""What keeps thousands of assets quick to load changes nothing of what is loaded."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetIn,
    AssetKey,
    AssetOut,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    AutomationCondition,
    Definitions,
    Output,
    asset,
    asset_check,
    define_asset_job,
    multi_asset,
)
from dagster._core.decorator_utils import get_type_hints

from mlops_assets.dagster_internals.many_assets import (
    asset_job,
    changing,
    exactly,
    with_signature,
)
from mlops_assets_tests.counting import calls_of


def pipeline(name: str, *above: AssetKey) -> list[AssetsDefinition]:
    """Return a chain of assets, two of them of one step, with checks in it and beside it."""

    @asset(key=[name, "raw"], deps=above)
    def raw() -> int:
        return 1

    @multi_asset(
        name=f"{name}_split",
        ins={"raw": AssetIn(AssetKey([name, "raw"]))},
        outs={part: AssetOut(key=AssetKey([name, part])) for part in ("train", "test")},
        check_specs=[AssetCheckSpec("within", asset=AssetKey([name, "test"]))],
    )
    def split(raw: int) -> Iterator[Output[int] | AssetCheckResult]:
        yield from (Output(raw, "train"), Output(raw, "test"))

    @asset_check(asset=AssetKey([name, "train"]), name="beside")
    def beside() -> AssetCheckResult:
        return AssetCheckResult(passed=True)

    return [raw, split, beside]


def project(pipelines: int) -> Definitions:
    names = [f"p{number}" for number in range(pipelines)]
    above = {"p1": AssetKey(["p0", "train"]), "p2": AssetKey(["elsewhere", "raw"])}
    return Definitions(
        [one for name in names for one in pipeline(name, *filter(None, [above.get(name)]))]
    )


def test_attributes_changed_in_place_are_those_of_dagsters_copy() -> None:
    def owned(spec: AssetSpec) -> dict[str, Any]:
        return {"owners": ["team:ml"], "automation_condition": AutomationCondition.eager()}

    for one in pipeline("p", AssetKey("above"))[:2]:
        copied = one.map_asset_specs(lambda spec: spec.replace_attributes(**owned(spec)))

        assert changing(one, owned) is one
        assert list(one.specs) == list(copied.specs)
        assert one.automation_conditions_by_key == copied.automation_conditions_by_key


def keys(name: str) -> list[AssetKey]:
    return [AssetKey([name, part]) for part in ("raw", "train", "test")]


@pytest.mark.parametrize("name", ["p0", "p1", "p2"])
def test_a_job_is_the_one_that_dagster_makes_of_the_same_assets(name: str) -> None:
    graph = project(4).resolve_asset_graph()
    tags = {"mlops/pipeline": name}

    ours = asset_job("job", keys(name), "What it does", tags).resolve(graph)
    theirs = define_asset_job(
        "job", AssetSelection.assets(*keys(name)), description="What it does", tags=tags
    ).resolve(graph)

    assert ours.get_job_snapshot_id() == theirs.get_job_snapshot_id()
    assert ours.asset_layer.selected_asset_keys == set(keys(name))
    assert set(ours.asset_layer.asset_graph.asset_check_keys) == set(
        theirs.asset_layer.asset_graph.asset_check_keys
    )


def test_a_part_of_a_job_can_be_run() -> None:
    definitions = Definitions(
        pipeline("p0") + pipeline("p1", AssetKey(["p0", "train"])),
        jobs=[asset_job("job", keys("p1"), None, {})],
    )

    done = definitions.resolve_job_def("job").execute_in_process(
        asset_selection=[AssetKey(["p1", "raw"])]
    )

    made = [one.asset_key for one in done.get_asset_materialization_events()]
    assert made == [AssetKey(["p1", "raw"])]


def test_resolving_a_job_does_not_look_at_other_pipelines() -> None:
    job = asset_job("job", keys("p1"), None, {})
    few, many = project(4).resolve_asset_graph(), project(40).resolve_asset_graph()
    job.resolve(few)  # what is found once per process

    assert calls_of(lambda: job.resolve(many)) < 1.1 * calls_of(lambda: job.resolve(few))


def test_a_selection_is_the_one_that_dagster_makes_of_the_same_assets() -> None:
    graph = project(4).resolve_asset_graph()
    ours, theirs = exactly(keys("p1")), AssetSelection.assets(*keys("p1"))

    assert ours.resolve(graph) == theirs.resolve(graph) == set(keys("p1"))
    assert ours.resolve_checks(graph) == theirs.resolve_checks(graph)
    assert {check.name for check in ours.resolve_checks(graph)} == {"within", "beside"}
    assert type(ours.to_serializable_asset_selection(graph)) is type(theirs)
    assert ours.to_serializable_asset_selection(graph) == theirs


def test_a_signature_has_the_types_that_dagster_finds_by_itself() -> None:
    def plain(context: "AssetKey", frame: "Iterator[Any]", *, n: int = 3) -> "Output[int] | None":
        raise NotImplementedError

    expected = get_type_hints(plain)
    assert not hasattr(plain, "__signature__")

    assert dict(get_type_hints(with_signature(plain))) == expected


def test_functions_of_one_source_that_differ_have_their_own_signatures() -> None:
    def made_for(kind: type) -> Callable[..., None]:
        def function(value: Any) -> None:
            raise NotImplementedError

        function.__annotations__["value"] = kind
        return with_signature(function)

    hints = [get_type_hints(made_for(kind))["value"] for kind in (int, str, int)]

    assert hints == [int, str, int]
