"""What may be secret in a URL is not said: `redacted`, and where a URL of a user's is told of."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from mlops_assets.errors import DataError, SettingsError
from mlops_assets.ml.files import find, mendable
from mlops_assets.ml.inbox import NoFilesError, files_of_day
from mlops_assets.pipeline_file import PipelineFileError, load_pipeline
from mlops_assets.settings import Settings
from mlops_assets.spec import PipelineSpec
from mlops_assets.stages import scoring_stages, stages
from mlops_assets.wording import redacted, shown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://me:hunter2@host/a.csv", "https://…@host/a.csv"),
        ("https://me:hun@ter2@host/a.csv", "https://…@host/a.csv"),
        ("https://me:hun/ter2@host/a.csv", "https://…@host/a.csv"),
        ("https://hunter2@host", "https://…@host"),
        ("postgresql+psycopg2://me:hunter2@host:5432/db", "postgresql+psycopg2://…@host:5432/db"),
        ("https://host:8080/a@b.csv", "https://host:8080/a@b.csv"),
        ("https://host/a.csv?hunter2", "https://host/a.csv?…"),
        ("https://host/a.csv?sig=hunter2&X-Amz-Signature=hunter3", "https://host/a.csv?…"),
        ("s3://bucket/a.csv?versionId=hunter2", "s3://bucket/a.csv?…"),
        ("'http://me:hunter2@a' or `http://b?hunter2`.", "'http://…@a' or `http://b?…`."),
        (
            "Max retries exceeded with url: /a.csv?sig=hunter2 (Caused by it)",
            "Max retries exceeded with url: /a.csv?… (Caused by it)",
        ),
        ('{"uri": "https://me:hunter2@host/a?b"}', '{"uri": "https://…@host/a?…"}'),
        ("s3://bucket/2026-0?-*.csv", "s3://bucket/2026-0?-*.csv"),
        ("abfs://container@account/a.csv", "abfs://container@account/a.csv"),
        ("abfs://container:hunter2@account/a.csv", "abfs://…@account/a.csv"),
        ("http://host/#/experiments/1", "http://host/#/experiments/1"),
        ("mail to me@example.org", "mail to me@example.org"),
        ("why? because", "why? because"),
    ],
)
def test_what_may_be_secret_in_urls_is_hidden_and_nothing_else(text: str, told: str) -> None:
    assert redacted(text) == told
    assert redacted(told) == told


@pytest.mark.parametrize(
    "part", ["a", "a.", "://", "http://", "://a:b/", "http://?", "://?", "a@", "="]
)
def test_a_long_text_does_not_take_long(part: str) -> None:
    """Were the time quadratic, this would take minutes."""
    text = part * 20_000
    assert redacted(f"{text} http://me:hunter2@host").endswith(" http://…@host")


def test_a_value_that_is_cut_for_a_message_is_without_its_secret() -> None:
    assert shown(f"https://me:hunter2@host/{'x' * 100}").startswith("'https://…@host/xxx")


HOUSES = """\
data:
  uri: {uri}
  target: price
model:
  estimator: sklearn.linear_model.LinearRegression
score:
  uri: https://me:hunter2@host/{{date}}/a.csv?sig=hunter2
  id: [house]
  labels: https://me:hunter2@host/labels/{{date}}.csv?sig=hunter2
"""


def houses(folder: Path, uri: str) -> PipelineSpec:
    path = folder / "houses.yaml"
    path.write_text(HOUSES.format(uri=uri))
    spec = load_pipeline(path)
    assert isinstance(spec, PipelineSpec)
    return spec


def test_what_is_written_down_of_a_pipeline_has_no_secret(tmp_path: Path) -> None:
    spec = houses(tmp_path, "https://me:hunter2@host/houses.csv?sig=hunter2")
    computations = {**stages(spec), **scoring_stages(spec)}
    parameters = json.dumps([stage.code.parameters for stage in computations.values()])
    for written in (parameters, spec.model_dump_json(), str(spec.model_dump())):
        assert "https://" in written
        assert "hunter2" not in written
    assert spec.data.uri == "https://me:hunter2@host/houses.csv?sig=hunter2"


def test_another_password_or_signature_computes_nothing_again(tmp_path: Path) -> None:
    before = houses(tmp_path, "https://me:hunter2@host/houses.csv?sig=hunter2")
    after = houses(tmp_path, "https://me:hunter3@host/houses.csv?sig=hunter3")
    other = houses(tmp_path, "https://me:hunter2@host/flats.csv?sig=hunter2")
    versions = [
        {name: stage.code.version for name, stage in stages(spec).items()}
        for spec in (before, after, other)
    ]
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:hunter2@bucket/houses.csv",
        "gs://hunter2@bucket/houses.csv",
        "abfs://container:hunter2@account/houses.csv",
        "https://me:hunter2@host/houses.xls?sig=hunter2",
        "https://me:hunter2@host/houses.xls?sig=hunter2#hunter2",
    ],
)
def test_a_mistake_in_an_address_is_told_without_its_secret(tmp_path: Path, uri: str) -> None:
    with pytest.raises(PipelineFileError) as error:
        houses(tmp_path, uri)
    assert "hunter2" not in str(error.value)


def test_a_container_in_an_account_is_no_password(tmp_path: Path) -> None:
    uri = "abfs://container@account/houses.csv"
    assert houses(tmp_path, uri).model_dump()["data"]["uri"] == uri


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLOPS_STORE_URL", "s3://key:hunter2@bucket"),
        ("MLOPS_STORE_URL", "abfs://container:hunter2@account"),
        ("MLOPS_STORE_URL", "abfs://container@account/prefix?sig=hunter2"),
        ("MLOPS_STORE_URL", "ftp://me:hunter2@host"),
        ("MLOPS_S3_ENDPOINT_URL", "http://key:hunter2@minio:9000"),
        ("MLOPS_S3_ENDPOINT_URL", "http://minio:9000?token=hunter2"),
        ("MLOPS_S3_ENDPOINT_URL", "ftp://key:hunter2@minio:9000"),
    ],
)
def test_credentials_in_a_setting_are_refused_and_not_repeated(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable) as error:
        Settings.from_environment({variable: value})
    assert "hunter2" not in str(error.value)


SECRET_URL = "https://me:hunter2@127.0.0.1:9/houses.csv?sig=hunter2"


def everything_told(error: BaseException | None) -> str:
    """Return the texts of an error and of those behind it that Dagster keeps."""
    texts = []
    while error is not None:
        texts.append(f"{error!r} {error}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(texts)


@pytest.mark.parametrize("cause", [ValueError, FileNotFoundError, PermissionError, DataError])
def test_an_error_that_quotes_a_secret_url_is_told_without(cause: type[Exception]) -> None:
    def fail() -> None:
        try:
            raise cause(SECRET_URL)
        except cause as error:
            raise cause("behind it") from error

    with pytest.raises((OSError, DataError)) as caught, mendable(SECRET_URL):
        fail()
    assert "hunter2" not in everything_told(caught.value)
    assert "127.0.0.1" in str(caught.value) or "behind it" in str(caught.value)


def test_an_error_without_a_secret_keeps_what_is_behind_it() -> None:
    with pytest.raises(DataError) as caught, mendable("https://host/houses.csv"):
        raise FileNotFoundError("gone")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_server_that_does_not_answer_is_told_of_without_the_password(tmp_path: Path) -> None:
    for uri in (SECRET_URL, SECRET_URL.partition("?")[0]):
        (file,) = find(uri, tmp_path)
        assert "hunter2" not in file.name
        assert file.part == "houses.csv"
        for ask in (file.read, file.tag):
            with pytest.raises(OSError, match=r"127\.0\.0\.1") as caught:
                ask()
            assert "hunter2" not in everything_told(caught.value)


def test_no_file_of_a_day_is_told_without_the_password(tmp_path: Path) -> None:
    uri = SECRET_URL.replace("houses", "{date}").replace("https", "memory")
    with pytest.raises(NoFilesError) as caught:
        files_of_day(uri, tmp_path, date.today().isoformat())
    assert "hunter2" not in everything_told(caught.value)
