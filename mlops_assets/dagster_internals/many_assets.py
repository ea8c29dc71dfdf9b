"""What keeps a code location of thousands of assets quick to load.

Dagster looks at every asset and every check of a code location for each job and for each automation
sensor, so that a job and a sensor for each pipeline cost the square of the pipelines; and it looks
some twenty times at the annotations of each function; and it checks all attributes of an asset anew
when one of them changes. What comes out is the same here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from inspect import Signature, signature
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_type_hints

from dagster import AssetCheckKey, AssetKey, AssetSelection, define_asset_job
from dagster._core.definitions.asset_selection import KeysAssetSelection
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

if TYPE_CHECKING:
    from collections.abc import Set

    from dagster import (
        AssetsDefinition,
        AssetSpec,
        ExecutorDefinition,
        JobDefinition,
        ResourceDefinition,
    )
    from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _AssetJob(UnresolvedAssetJobDefinition):
    """A job that is resolved among the assets that it can have to do with."""

    def resolve(
        self,
        asset_graph: AssetGraph,
        default_executor_def: ExecutorDefinition | None = None,
        resource_defs: Mapping[str, ResourceDefinition] | None = None,
    ) -> JobDefinition:
        part = _around(asset_graph, self.selection.resolve(asset_graph))
        return super().resolve(part, default_executor_def, resource_defs)


def asset_job(
    name: str, keys: Iterable[AssetKey], description: str | None, tags: Mapping[str, str]
) -> UnresolvedAssetJobDefinition:
    """Return the job that `dagster.define_asset_job` makes of these assets."""
    job = define_asset_job(name, AssetSelection.assets(*keys), description=description, tags=tags)
    return _AssetJob(
        name=job.name, selection=job.selection, description=job.description, tags=job.tags
    )


def _around(graph: AssetGraph, keys: Iterable[AssetKey]) -> AssetGraph:
    """Return assets, what is made together with them, and what these are made from."""
    made = {key for assets in graph.assets_defs_for_keys(keys) for key in assets.keys}
    parents = {parent for key in made for parent in graph.get(key).parent_keys}
    definitions = graph.assets_defs_for_keys(made | parents)
    nodes = [graph.get(key) for assets in definitions for key in assets.keys]
    checks = {check for node in nodes for check in node.check_keys}
    return AssetGraph(
        {node.key: node for node in nodes},
        {check: graph.assets_def_for_key(check) for check in checks},
    )


class _Exactly(KeysAssetSelection):
    """A selection that finds the checks of its assets without going through all there are."""

    def resolve_checks_inner(
        self, asset_graph: BaseAssetGraph[Any], allow_missing: bool
    ) -> Set[AssetCheckKey]:
        keys = self.resolve_inner(asset_graph, allow_missing)
        return {check for key in keys for check in asset_graph.get(key).check_keys}

    def to_serializable_asset_selection(self, asset_graph: BaseAssetGraph[Any]) -> AssetSelection:
        return AssetSelection.assets(*self.selected_keys)


def exactly(keys: Iterable[AssetKey]) -> AssetSelection:
    """Return the selection that `AssetSelection.assets` makes of these assets."""
    return _Exactly(selected_keys=list(keys))


def changing(
    assets: AssetsDefinition, change: Callable[[AssetSpec], Mapping[str, Any]]
) -> AssetsDefinition:
    """Give assets that were just made other attributes, in place, and return them.

    `AssetsDefinition.map_asset_specs` checks all attributes anew, and makes another definition.

    Parameters
    ----------
    assets : AssetsDefinition
        Made by who calls this, and known to nobody else.
    change : callable
        Returns the attributes of an asset's spec that are to be others, by name.
    """
    specs = cast(Any, assets)._specs_by_key
    for key, spec in specs.items():
        specs[key] = spec._replace(**change(spec))
    return assets


def with_signature(function: _Function) -> _Function:
    """Tell a function's signature, with types in place of their names, to whoever asks for it.

    It is found once for all functions that the same `def` has made.
    """
    asked = cast(Any, function)
    looks_like = (asked.__module__, asked.__annotations__, asked.__defaults__)
    known = _signatures.get(asked.__code__)
    if known is None or known[0] != looks_like:
        known = _signatures[asked.__code__] = (looks_like, _signature_of(function))
    asked.__signature__ = known[1]
    return function


_signatures: dict[CodeType, tuple[tuple[Any, ...], Signature]] = {}


def _signature_of(function: Callable[..., Any]) -> Signature:
    hints, found = get_type_hints(function, include_extras=True), signature(function)
    return found.replace(
        parameters=[
            one.replace(annotation=hints.get(one.name, one.annotation))
            for one in found.parameters.values()
        ],
        return_annotation=hints.get("return", found.return_annotation),
    )
