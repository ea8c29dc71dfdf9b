"""What counts as a change of code, and what does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from mlops_assets.code_version import Code, code_of, look_again

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes modules of a user; names are of this file, for a module is looked up by its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write_modules(**modules: str) -> None:
        for name, text in modules.items():
            path = tmp_path / (f"{name}.py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(dedent(text))
        look_again()

    yield write_modules
    look_again()


FIRST = '''\
    """What it is for."""

    from cv_helper import factor


    def features(frame):
        """Double it."""
        return frame * 2 * factor  # twice
    '''


def version(name: str = "cv_first") -> str:
    return code_of({}, [name]).version


def test_comments_docstrings_and_formatting_do_not_count(write: Write) -> None:
    write(cv_first=FIRST, cv_helper="factor = 3\n")
    before = version()
    write(
        cv_first='''\
        from cv_helper import (
            factor,
        )

        # another comment
        def features( frame ):
            """Another docstring, on
            two lines."""


            return (frame * 2
                    * factor)
        '''
    )

    assert version() == before


@pytest.mark.parametrize(
    "change",
    [
        ("frame * 2", "frame * 3"),
        ("frame * 2", "frame + 2"),
        ("frame * 2", "frame * 2.0"),
        ("def features(frame)", "def features(frame, *, scale=1)"),
        ("def features(frame)", "def features(frame: float)"),
        ('"""Double it."""', '"""Double it."""; "a statement"; frame = frame.copy()'),
        ("from cv_helper import factor", "from cv_helper import factor; factor += 1"),
    ],
)
def test_what_the_code_does_counts(write: Write, change: tuple[str, str]) -> None:
    write(cv_first=FIRST, cv_helper="factor = 3\n")
    before = version()
    write(cv_first=FIRST.replace(*change))

    assert version() != before


def test_a_changed_helper_counts_two_imports_away_and_back_again(write: Write) -> None:
    write(
        cv_first=FIRST,
        cv_helper="def _late():\n    from cv_deep.numbers import three\n    return three\n"
        "factor = _late()\n",
        **{"cv_deep/__init__": "", "cv_deep/numbers": "three = 3\n"},
    )
    before = code_of({}, ["cv_first"])
    write(**{"cv_deep/numbers": "three = 4\n"})
    after = code_of({}, ["cv_first"])
    write(**{"cv_deep/numbers": "three = 3  # as it was\n"})

    changed = {name for name in after.modules if after.modules[name] != before.modules[name]}
    assert changed == {"cv_deep.numbers"}
    assert after.version != before.version == version()


def test_packages_around_a_module_and_relative_imports_count(write: Write) -> None:
    write(
        **{
            "cv_around/__init__": "seed = 1\n",
            "cv_around/inner": "from . import sibling\nfrom .other import value\n",
            "cv_around/sibling": "",
            "cv_around/other": "value = 1\n",
        }
    )

    assert set(code_of({}, ["cv_around.inner"]).modules) == {
        "cv_around",
        "cv_around.inner",
        "cv_around.other",
        "cv_around.sibling",
    }


def test_imports_for_the_type_checker_alone_are_not_followed(write: Write) -> None:
    write(
        cv_typed="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import cv_only_types\n",
        cv_only_types="x: int = 1\n",
    )

    assert set(code_of({}, ["cv_typed"]).modules) == {"cv_typed"}


def test_modules_that_import_each_other_are_read_once(write: Write) -> None:
    write(
        cv_a="import cv_b\n",
        cv_b="import cv_a\nfrom importlib import import_module\nimport_module('cv_c')\n",
        cv_c="",
    )

    assert set(code_of({}, ["cv_a"]).modules) == {"cv_a", "cv_b", "cv_c"}


def test_libraries_count_with_their_version_and_not_their_source() -> None:
    import sklearn

    code = code_of({}, ["sklearn.linear_model.Ridge"])

    assert code.libraries == {"scikit-learn": sklearn.__version__}
    assert code.modules == {}


def test_an_xgboost_without_cuda_is_the_same_library() -> None:
    import xgboost

    assert code_of({}, ["xgboost.XGBClassifier"]).libraries == {"xgboost": xgboost.__version__}


def test_what_tells_of_the_gpu_has_no_part_in_a_model() -> None:
    code = code_of({}, ["mlops_assets.ml.train"])

    assert "mlops_assets.ml.accelerate" in code.modules
    assert "mlops_assets.ml.device" not in code.modules
    assert "nvidia-ml-py" not in code.libraries


def test_code_that_cannot_be_read_counts_as_it_is_written(write: Write) -> None:
    write(cv_broken="def f(:\n")
    before = version("cv_broken")
    write(cv_broken="def g(:\n")

    assert version("cv_broken") != before
    assert code_of({}, ["no_such_module_anywhere"]).modules == {}


def test_the_order_of_parameters_is_no_change() -> None:
    first, second = Code({"a": 1, "b": 2}, {}, {}), Code({"b": 2, "a": 1}, {}, {})

    assert first.version == second.version != Code({"a": 1, "b": 2.5}, {}, {}).version


@pytest.mark.parametrize(
    ("stage", "reached", "not_reached"),
    [
        ("raw", {"ml.read", "ml.files", "ml.checks"}, {"ml.split", "ml.train", "ml.evaluate"}),
        ("split", {"ml.split", "ml.task"}, {"ml.read", "ml.train", "ml.evaluate"}),
        ("model", {"ml.train", "ml.features", "ml.estimators"}, {"ml.read", "ml.evaluate"}),
        ("metrics", {"ml.evaluate", "ml.figures", "scorers"}, {"ml.read", "ml.train", "ml.split"}),
        ("champion", {"ml.promote", "ml.evaluate"}, {"ml.train", "ml.model_card"}),
    ],
)
def test_a_stage_depends_on_its_own_code_and_not_on_that_of_others(
    stage: str, reached: set[str], not_reached: set[str]
) -> None:
    modules = set(code_of({}, [f"mlops_assets.assets.{stage}"]).modules)

    assert {f"mlops_assets.{name}" for name in {*reached, f"assets.{stage}"}} <= modules
    assert modules.isdisjoint(f"mlops_assets.{name}" for name in not_reached)


def test_another_process_finds_the_same_versions_without_importing_the_code() -> None:
    program = (
        "import sys; from mlops_assets.code_version import code_of;"
        "print(code_of({}, ['mlops_assets.assets.model', 'sklearn.linear_model.Ridge']).version);"
        "assert not {'sklearn', 'dagster', 'pandas', 'mlops_assets.ml.train'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    own = code_of({}, ["mlops_assets.assets.model", "sklearn.linear_model.Ridge"]).version
    assert done.stdout.strip() == own, done.stderr
