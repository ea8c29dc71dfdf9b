"""Drawing how far a day is from the reference, as PNG images, from the result of `drift` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlops_assets.ml.figures import BLUE, GREY, png, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mlops_assets.spec import Levels

_LEVEL_COLORS = {"ok": BLUE, "warn": "#e0a030", "error": "#b03a5b"}
_MOST_COLUMNS = 20
_WORST = 3


def drift_figures(
    features: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]], limits: Levels
) -> dict[str, bytes]:
    """Draw judged columns.

    Parameters
    ----------
    features, scores
        As `drift.judge` returned them.
    limits
        Of the stability index, drawn as lines.

    Returns
    -------
    dict
        Name -> PNG: ``stability``, and the distributions then and now of the three worst features
        and of the worst score, by column.
    """
    columns = [*scores, *features[: _MOST_COLUMNS - len(scores)]]
    shown = {"columns": sorted(columns, key=lambda one: one["psi"]), "limits": limits}
    return {
        "stability": png(_draw_indices, shown),
        **{one["column"]: png(_draw_shares, one) for one in [*features[:_WORST], *scores[:1]]},
    }


def _draw_indices(axes: Axes, drawn: Mapping[str, Any]) -> None:
    columns, limits = drawn["columns"], drawn["limits"]
    positions = range(len(columns))
    colors = [_LEVEL_COLORS[one["level"]] for one in columns]
    axes.barh(positions, [one["psi"] for one in columns], color=colors)
    axes.set_yticks(positions, [shortened(one["column"]) for one in columns])
    axes.tick_params(axis="y", length=0)
    for level in ("warn", "error"):
        if (limit := getattr(limits, level)) is not None:
            axes.axvline(limit, color=_LEVEL_COLORS[level], linestyle=":", label=level)
    if limits.warn is not None or limits.error is not None:
        axes.legend(frameon=False, loc="lower right")
    axes.set(title="Shift since training", xlabel="population stability index")


def _draw_shares(axes: Axes, column: Mapping[str, Any]) -> None:
    bins = column["bins"]
    positions = range(len(bins["labels"]))
    then, now = ([position + shift for position in positions] for shift in (-0.2, 0.2))
    axes.bar(then, bins["reference"], width=0.4, color=GREY, label="reference")
    axes.bar(now, bins["now"], width=0.4, color=_LEVEL_COLORS[column["level"]], label="now")
    is_ordered = column["type"] in ("number", "datetime")  # a range has no end if it is cut
    names = [label if is_ordered else shortened(label) for label in bins["labels"]]
    axes.set_xticks(positions, names, rotation=0 if len("".join(names)) < 40 else 90)
    axes.legend(frameon=False)
    name, index = shortened(column["column"]), column["psi"]
    axes.set(title=f"{name}: stability index {index:.3g}", ylabel="share of rows")
