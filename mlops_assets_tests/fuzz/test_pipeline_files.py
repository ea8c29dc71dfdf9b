"""Any pipeline file is a pipeline or mistakes with a place: changed values, layouts, attacks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given

from mlops_assets.errors import UserError
from mlops_assets.pipeline_file import PipelineFileError, load_pipeline, load_pipelines
from mlops_assets.spec import Pipeline
from mlops_assets.stages import stages

from .strategies import examples, pipeline_files
from .targets import PIPELINES

LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
"""As YAML counts lines."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a file that is overwritten."""
    return tmp_path_factory.mktemp("pipelines")


def as_json(spec: Pipeline) -> Any:
    return json.loads(spec.model_dump_json())


@examples(150)
@given(content=pipeline_files(PIPELINES))
def test_any_pipeline_file_is_a_pipeline_or_mistakes_at_their_places(
    content: bytes, folder: Path
) -> None:
    path = folder / "fuzz.yaml"
    path.write_bytes(content)
    try:
        spec = load_pipeline(path)
    except PipelineFileError as error:
        event("refused")
        lines = len(LINE_BREAK.split(content.decode("utf-8", "replace")))
        for problem in error.problems:
            assert 1 <= problem.place.line <= lines
            assert problem.message
            assert len(problem.message) < 3000
        return
    event("read")
    again = type(spec).model_validate(spec.model_dump())
    # as JSON, since .nan is not equal to itself
    assert as_json(spec) == as_json(load_pipeline(path)) == as_json(again)
    assert load_pipelines(folder).broken.keys() <= {"fuzz"}
    try:
        assert stages(spec)
    except UserError as error:
        event(f"no stages: {type(error).__name__}")
