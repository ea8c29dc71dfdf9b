"""Drawing as PNG images: an evaluation from its dict alone, and what was compared or searched.

Only matplotlib's object interface: pyplot keeps global state and may want a display. The same
evaluation gives the same bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mlops_assets.ml.promote import Comparison

BLUE = "#2f6db5"
GREY = "#8a8f98"
_CLASS_COLORS = (
    "#2f6db5", "#d1652f", "#3a8f5b", "#b03a5b", "#7a5bb0",
    "#a0802c", "#2f9aa0", "#6b6f76", "#d08fb5", "#8fae3c",
)  # fmt: skip
_COLORS = 48
_MOST_COLUMNS = 20
_LONGEST_NAME = 24


def figures(evaluation: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw an evaluation.

    Parameters
    ----------
    evaluation
        What `evaluate` returned.

    Returns
    -------
    dict
        Name -> PNG. Always ``feature_importance``; of a classification ``confusion_matrix`` and, if
        the estimator ranks rows, ``roc``, ``precision_recall`` and (given probabilities)
        ``calibration``; of a regression ``predicted_vs_actual`` and ``residuals``.
    """
    drawings: dict[str, Callable[[Axes, Mapping[str, Any]], None]] = {
        "feature_importance": _draw_importance
    }
    if evaluation["task"] == "regression":
        drawings |= {"predicted_vs_actual": _draw_predictions, "residuals": _draw_residuals}
    else:
        curves = {"roc": _draw_roc, "precision_recall": _draw_recall, "calibration": _draw_shares}
        drawings["confusion_matrix"] = _draw_confusion
        drawings |= {name: draw for name, draw in curves.items() if evaluation[name]}
    return {name: png(draw, evaluation) for name, draw in drawings.items()}


def comparison_figure(comparison: Comparison) -> bytes:
    """Draw how a challenger's difference to the champion varies with the rows tested, as a PNG."""
    return png(_draw_comparison, {"comparison": comparison})


def search_figure(values: Sequence[float | None], by: str) -> bytes:
    """Draw what the trials of a search found, and the best so far; None for one without value."""
    return png(_draw_search, {"values": values, "by": by})


def png(draw: Callable[[Axes, Mapping[str, Any]], None], evaluation: Mapping[str, Any]) -> bytes:
    """Return what `draw` puts on the axes, in the style that all figures have in common."""
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    with (
        # names of columns and classes may hold a $, which is no formula
        rc_context({"text.parse_math": False, "font.size": 9, "font.family": "DejaVu Sans"}),
        warnings.catch_warnings(),
    ):
        # a character that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(6, 4.5), dpi=100, layout="constrained")
        canvas: Any = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, evaluation)
        canvas.draw()
    file = io.BytesIO()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # few colours, a third of the bytes
    picture.quantize(_COLORS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _draw_confusion(axes: Axes, evaluation: Mapping[str, Any]) -> None:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    counts = np.asarray(evaluation["confusion_matrix"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    blues = LinearSegmentedColormap.from_list("blues", ["#f5f7fa", BLUE])
    axes.imshow(shares, cmap=blues, vmin=0, vmax=1)
    names = [shortened(label) for label in evaluation["classes"]]
    axes.set_xticks(range(len(names)), names, rotation=0 if len("".join(names)) < 30 else 90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="actual", title="Confusion matrix (shade: share of row)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(names) > 20:
        return
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.55 else "#1c2733"
        size = 12 if len(names) <= 5 else 9 if len(names) <= 10 else 6
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=size)


def _draw_roc(axes: Axes, evaluation: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    _draw_curves(axes, evaluation["roc"])
    axes.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")


def _draw_recall(axes: Axes, evaluation: Mapping[str, Any]) -> None:
    _draw_curves(axes, evaluation["precision_recall"])
    axes.set(title="Precision and recall", xlabel="recall", ylabel="precision")


def _draw_shares(axes: Axes, evaluation: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    _draw_curves(axes, evaluation["calibration"], marker="o", markersize=4)
    axes.set(title="Calibration", xlabel="predicted probability", ylabel="actual share")


def _draw_curves(axes: Axes, curves: Sequence[Mapping[str, Any]], **style: Any) -> None:
    for curve, color in zip(curves, _CLASS_COLORS, strict=False):
        label = shortened(curve["class"])
        axes.plot(curve["x"], curve["y"], color=color, linewidth=1.6, label=label, **style)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(color="#e6e8eb", linewidth=0.7)
    axes.legend(title="class", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_importance(axes: Axes, evaluation: Mapping[str, Any]) -> None:
    shown = evaluation["feature_importance"][:_MOST_COLUMNS][::-1]
    metric = evaluation["importance_metric"]
    positions = range(len(shown))
    axes.barh(
        positions,
        [one["mean"] for one in shown],
        xerr=[one["std"] for one in shown],
        color=BLUE,
        error_kw={"ecolor": GREY, "elinewidth": 1},
    )
    axes.set_yticks(positions, [shortened(one["column"]) for one in shown])
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(title="Feature importance", xlabel=f"loss of {metric} when the column is permuted")


def _draw_predictions(axes: Axes, evaluation: Mapping[str, Any]) -> None:
    points = evaluation["points"]
    ends = [
        min(points["actual"] + points["predicted"]),
        max(points["actual"] + points["predicted"]),
    ]
    axes.plot(ends, ends, color=GREY, linestyle=":", linewidth=1)
    _draw_points(axes, points["actual"], points["predicted"])
    target = shortened(evaluation["target"])
    axes.set(title="Predicted and actual", xlabel=f"actual {target}", ylabel=f"predicted {target}")


def _draw_residuals(axes: Axes, evaluation: Mapping[str, Any]) -> None:
    points = evaluation["points"]
    residuals = [a - p for a, p in zip(points["actual"], points["predicted"], strict=True)]
    axes.axhline(0, color=GREY, linestyle=":", linewidth=1)
    _draw_points(axes, points["predicted"], residuals)
    target = shortened(evaluation["target"])
    axes.set(title="Residuals", xlabel=f"predicted {target}", ylabel="actual minus predicted")


def _draw_comparison(axes: Axes, evaluation: Mapping[str, Any]) -> None:
    import numpy as np

    comparison: Comparison = evaluation["comparison"]
    values = comparison.differences
    # equal but for the last digits, they have no width to divide into bins
    if len(values) and np.ptp(values) > 1e-9 * np.abs(values).max():
        axes.hist(values, bins=40, color=BLUE, alpha=0.6)
    if comparison.interval is not None:
        axes.axvspan(*comparison.interval, color=BLUE, alpha=0.12, label="95 % interval")
    axes.axvline(0, color=GREY, linestyle=":", label="no difference")
    axes.axvline(comparison.difference, color=BLUE, label=f"{comparison.difference:+.3g} observed")
    axes.legend(frameon=False, fontsize=8)
    axes.set(
        title="Challenger and champion on the same test rows",
        xlabel=f"{comparison.by}: challenger minus champion",
        ylabel=f"of {len(values)} resamples",
    )


def _draw_search(axes: Axes, search: Mapping[str, Any]) -> None:
    found = [(trial, value) for trial, value in enumerate(search["values"]) if value is not None]
    trials, values = zip(*found, strict=True)
    _draw_points(axes, trials, values)
    best = list(accumulate(values, max))
    axes.step(trials, best, where="post", color=GREY, linewidth=1, label="best so far")
    axes.legend(frameon=False)
    axes.set(title="Search for parameters", xlabel="trial", ylabel=search["by"])


def _draw_points(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    axes.scatter(x, y, s=14, color=BLUE, alpha=0.5, linewidths=0)
    axes.grid(color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)


def shortened(name: object) -> str:
    """Return a name that may stand beside an axis."""
    text = str(name)
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"
