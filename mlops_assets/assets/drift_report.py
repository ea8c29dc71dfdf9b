"""What Dagster is told of a day's drift: the metadata of `p/drift`, and its checks in words.

What was found is `ml.drift` and `ml.realised`; when it is looked for is `assets.drift`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dagster import AssetCheckResult, AssetCheckSeverity, MetadataValue, TableRecord

from mlops_assets.assets.common import as_markdown
from mlops_assets.ml.drift import Level, worst
from mlops_assets.spec import PipelineSpec
from mlops_assets.wording import listed, shown

FEATURES, SCORES, REALISED = "features_drift", "score_drift", "realised_metrics"
"""Names of the checks."""

_MOST_NAMED = 5
_NOTABLE = 0.01  # change of the share of missing values that is worth a word


def facts(found: Mapping[str, Any], figures: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the metadata of a day; the numbers among them are curves over the days in the UI."""
    realised = (found["realised"] or {}).get("metrics", {})
    return {
        "rows": found["rows"],
        "model_version": found["model_version"],
        "largest_feature_psi": max((one["psi"] for one in found["features"]), default=0.0),
        "largest_score_psi": max(one["psi"] for one in found["scores"]),
        **{
            f"realised_{name}": one["now"]
            for name, one in realised.items()
            if one["now"] is not None
        },
        "columns": MetadataValue.table(
            [_as_record(one) for one in [*found["scores"], *found["features"]]]
        ),
        "figures": MetadataValue.md(as_markdown(figures)),
    }


def reports(found: Mapping[str, Any], spec: PipelineSpec) -> Iterator[AssetCheckResult]:
    """Return the results of the checks of a day."""
    least = spec.drift.min_rows
    few = f"{found['rows']} rows are too few to tell: at least {least} are needed"
    for name, part in ((FEATURES, "features"), (SCORES, "scores")):
        text = few if found["rows"] < least else _shift(found[part])
        yield _check(name, found, worst(found[part]), text)
    if spec.score is not None and spec.score.labels is not None:
        yield _check(REALISED, found, *_realised(found["realised"], least))


def _shift(columns: Sequence[Mapping[str, Any]]) -> str:
    if not columns:
        return "there is no column to compare"
    shifted = [one for one in columns if one["level"] != "ok"]
    named = listed(map(_shift_of, shifted or columns[:1]), _MOST_NAMED)
    said = (
        f"{len(shifted)} of {len(columns)} columns shifted: {named}"
        if shifted
        else f"none of {len(columns)} columns shifted, most of all {named}"
    )
    unseen = [_new_in(one) for one in columns if one["new"] and one["new"]["rows"]]
    return f"{said}; never seen in training: {listed(unseen, _MOST_NAMED)}" if unseen else said


def _shift_of(column: Mapping[str, Any]) -> str:
    missing, index = column["missing"], f"{column['column']} (index {column['psi']:.3g}"
    is_emptier = abs(missing["now"] - missing["reference"]) >= _NOTABLE
    share = f", missing {missing['reference']:.1%} → {missing['now']:.1%}" if is_emptier else ""
    return f"{index}{share}, {column['level']})"


def _new_in(column: Mapping[str, Any]) -> str:
    new = column["new"]
    names = listed(map(shown, new["examples"]), _MOST_NAMED, new["categories"])
    return f"{column['column']} {names} ({new['rows']} rows)"


def _realised(realised: Mapping[str, Any] | None, least: int) -> tuple[Level, str]:
    if realised is None:
        return "ok", "no labels yet"
    if "error" in realised:
        return "error", realised["error"]
    few = f", too few to judge: at least {least} are needed" * (realised["rows"] < least)
    said = [f"{realised['rows']} predictions have a label{few}"]
    if realised["without_answer"]:
        said.append(f"{realised['without_answer']} labels have no prediction")
    said += [
        f"{name} {_number(one['now'])}, at promotion {_number(one['at_promotion'])}"
        + f" ({one['level']})" * (one["level"] != "ok")
        for name, one in realised["metrics"].items()
    ]
    said += [f"{name} {why}" for name, why in realised["undefined"].items()]
    return realised["level"], "; ".join(said)


def _check(name: str, found: Mapping[str, Any], level: Level, description: str) -> AssetCheckResult:
    is_error = level == "error"
    return AssetCheckResult(
        check_name=name,
        passed=level == "ok",
        severity=AssetCheckSeverity.ERROR if is_error else AssetCheckSeverity.WARN,
        description=description,
        metadata={"partition": found["date"], "rows": found["rows"]},
    )


def _as_record(column: Mapping[str, Any]) -> TableRecord:
    distance, new = column["kolmogorov_smirnov"], column["new"]
    return TableRecord(
        {
            "column": column["column"],
            "type": column["type"],
            "level": column["level"],
            "psi": column["psi"],
            "p_value": column["chi_squared"]["p_value"],
            "ks": distance["statistic"] if distance else None,
            "missing_then": column["missing"]["reference"],
            "missing_now": column["missing"]["now"],
            "never_seen_rows": new["rows"] if new else None,
        }
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
