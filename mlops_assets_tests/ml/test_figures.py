"""Figures: which there are, that they are small, and equal for an equal evaluation."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mlops_assets.ml.evaluate import evaluate
from mlops_assets.ml.figures import figures
from mlops_assets.ml.train import train
from mlops_assets.spec import ModelSpec


def _evaluation(target: list[object], estimator: str, column: str = "x") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({column: rng.random(len(target)), "z": rng.random(len(target))})
    frame["y"] = target
    return evaluate(train(frame, ModelSpec(estimator=estimator), target="y"), frame)


LOGISTIC = "sklearn.linear_model.LogisticRegression"
CURVES = {"roc", "precision_recall", "calibration"}


@pytest.mark.parametrize(
    ("target", "estimator", "names"),
    [
        (["no", "yes"] * 30, LOGISTIC, {"confusion_matrix", "feature_importance", *CURVES}),
        (
            [f"a class with a long name {row % 20}" for row in range(200)],
            LOGISTIC,
            {"confusion_matrix", "feature_importance", *CURVES},
        ),
        (
            ["no", "yes"] * 30,
            "sklearn.svm.LinearSVC",
            {"confusion_matrix", "feature_importance", "roc", "precision_recall"},
        ),
        (
            [row / 7 for row in range(60)],
            "sklearn.linear_model.Ridge",
            {"predicted_vs_actual", "residuals", "feature_importance"},
        ),
    ],
)
def test_every_kind_of_problem_has_its_figures(
    target: list[object], estimator: str, names: set[str]
) -> None:
    drawn = figures(_evaluation(target, estimator))
    assert set(drawn) == names
    for png in drawn.values():
        assert len(png) < 40_000
        image = Image.open(io.BytesIO(png))
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1_000_000)) > 10


@pytest.mark.filterwarnings("error")
def test_a_script_that_the_font_lacks_is_drawn_without_a_warning() -> None:
    assert figures(_evaluation(["小", "大"] * 30, LOGISTIC, column="東\a京"))


def test_names_are_no_formulas() -> None:
    assert figures(_evaluation(["$a", "b$_{"] * 20, LOGISTIC, column=r"$\frac{1}{"))


def test_an_equal_evaluation_gives_equal_bytes_in_another_process(tmp_path: Path) -> None:
    evaluation = _evaluation(["no", "yes"] * 30, LOGISTIC)
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    code = (
        "import json, hashlib\n"
        "from mlops_assets.ml.figures import figures\n"
        "drawn = figures(json.load(open('evaluation.json')))\n"
        "print(hashlib.sha256(b''.join(drawn.values())).hexdigest())\n"
        "import sys; assert 'matplotlib.pyplot' not in sys.modules"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True
        ).stdout
        for _ in range(2)
    }
    assert len(printed) == 1
