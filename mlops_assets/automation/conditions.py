"""When an asset is materialised without anybody asking: the automation condition of the assets.

What stale means is `staleness`; here is only when a stale asset is requested, and how often.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from dagster import (
    AssetKey,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    AutomationCondition,
    AutomationConditionSensorDefinition,
    AutomationContext,
    AutomationResult,
    BetaWarning,
    DefaultSensorStatus,
)

from mlops_assets.automation.staleness import Staleness
from mlops_assets.dagster_internals.automation import (
    TAKES_WHAT_IS_THERE,
    Lineage,
    candidates,
    requested_before,
    result,
    tick_log,
)
from mlops_assets.dagster_internals.many_assets import changing

if TYPE_CHECKING:
    from mlops_assets.dagster_internals.automation import CoercibleToAssetSelection


def reuse_condition(
    optional: AssetSelection | None = None,
) -> AutomationCondition[AssetKey]:
    """Return the condition that requests an asset exactly when it is stale.

    Stale is missing, or made by other code or from other inputs than there are now; an input made
    again with the same content changes nothing. It waits while a run is at work on the asset or on
    one that it depends on, while one of these is missing, and until their blocking checks have
    passed. What fails, is cancelled or stays without a value is not requested again before its code
    or one of its inputs was made anew.

    It may be part of a larger condition, and needs a `reuse_sensor` that targets the asset.

    Parameters
    ----------
    optional : AssetSelection, optional
        Inputs of which any partition may be missing, but not all.
    """
    made_here = AssetSelection.all()
    required = made_here if optional is None else made_here - optional
    return (
        ~AutomationCondition.in_progress()
        & _Stale()
        & ~AutomationCondition.any_deps_missing().allow(required)
        & ~AutomationCondition.any_deps_in_progress().allow(made_here)
        & AutomationCondition.all_deps_blocking_checks_passed()
    )


def automated(assets: AssetsDefinition) -> AssetsDefinition:
    """Give assets that were just made `reuse_condition`; an observable source stays as it is."""
    if not assets.is_materializable:
        return assets
    return changing(assets, lambda spec: {"automation_condition": _condition_of(spec)})


def _condition_of(spec: AssetSpec) -> AutomationCondition[AssetKey]:
    if spec.metadata.get(TAKES_WHAT_IS_THERE) is not True:
        return _usual_condition()
    return reuse_condition(AssetSelection.assets(*(dep.asset_key for dep in spec.deps)))


@cache
def _usual_condition() -> AutomationCondition[AssetKey]:
    """Return the one object that thousands of assets share."""
    return reuse_condition()


def reuse_sensor(
    name: str,
    target: CoercibleToAssetSelection,
    default_status: DefaultSensorStatus = DefaultSensorStatus.STOPPED,
) -> AutomationConditionSensorDefinition:
    """Return the sensor that acts on `reuse_condition`.

    Parameters
    ----------
    name : str
        Name of the sensor.
    target : selection of assets
        At most 500 assets, a limit of Dagster's.
    default_status : DefaultSensorStatus
        Whether it is on before anybody switches it on or off.
    """
    with warnings.catch_warnings():
        # Dagster marks the one place where it evaluates conditions of one's own as beta.
        warnings.simplefilter("ignore", BetaWarning)
        return AutomationConditionSensorDefinition(
            name,
            target=target,
            default_status=default_status,
            use_user_code_server=True,
            description="Launches what is stale, one layer after the other.",
        )


class _Asked(NamedTuple):
    """When something was requested, and with which definition."""

    definition: str
    """Digest of the code version and the dependencies."""
    event: int
    """The latest event of the instance at that tick."""


_NEVER = _Asked("", 0)


class _Memory(NamedTuple):
    """What the condition remembers of an asset from one tick to the next."""

    definition: str
    asked: dict[str | None, _Asked]
    """What was requested and is not fresh since."""

    @classmethod
    def load(cls, cursor: str | None) -> _Memory:
        if cursor is None:
            return cls("", {})
        definition, groups = json.loads(cursor)
        return cls(definition, {name: _Asked(*when) for *when, names in groups for name in names})

    def dump(self) -> str:
        groups = defaultdict(list)
        for partition, when in self.asked.items():
            groups[when].append(partition)
        return json.dumps([self.definition, [[*when, names] for when, names in groups.items()]])


class _Stale(AutomationCondition[AssetKey]):
    """True for what is stale, and was not requested since it became so.

    A level, not an edge: `AutomationCondition.code_version_changed` is true at one tick only, and
    forgotten when a run that began before the change ends after it.
    """

    @property
    def name(self) -> str:
        return "stale"

    @property
    def description(self) -> str:
        return "Missing, or made by other code or from other inputs than there are now"

    def evaluate(self, context: AutomationContext[AssetKey]) -> AutomationResult[AssetKey]:
        key, lineage = context.key, Lineage.of_condition(context)
        before = _Memory.load(context.cursor)
        if lineage.takes_what_is_there(key) and not all(map(lineage.latest, lineage.parents(key))):
            return result(context, [], before.dump())
        staleness = Staleness(lineage)
        definition = _digest(lineage.code_version(key), lineage.parents(key))
        last_tick = _Asked(before.definition, context.previous_max_storage_id or 0)
        asked = before.asked | dict.fromkeys(requested_before(context), last_tick)
        stale = {}
        for partition in candidates(context):
            reason = staleness.reason(key, partition)
            if reason is None:
                asked.pop(partition, None)
                continue
            then = asked.get(partition, _NEVER)
            if then.definition != definition or staleness.has_news(key, partition, then.event):
                stale[partition] = reason
        _log(context, stale)
        return result(context, stale, _Memory(definition, asked).dump())


def _digest(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()[:8]


def _log(context: AutomationContext[AssetKey], stale: Mapping[str | None, str]) -> None:
    for reason, count in Counter(stale.values()).most_common():
        partitions = "" if stale.keys() == {None} else f" ({count} partitions)"
        name = context.key.to_user_string()
        # the log of a tick keeps the text and drops its arguments
        tick_log(context).info(f"{name}{partitions} is stale: {reason}")
