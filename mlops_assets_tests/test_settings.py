from pathlib import Path

import pytest

from mlops_assets.errors import SettingsError
from mlops_assets.settings import Settings


def test_an_empty_environment_works_on_a_laptop() -> None:
    settings = Settings.from_environment({})

    assert settings.deployment == "local"
    assert Path(settings.store_url).is_absolute()
    assert settings.tracking_uri.startswith("sqlite:////")
    assert (Path(settings.pipelines) / "iris.yaml").is_file()
    assert settings.alert_urls == ()


def test_an_empty_value_counts_as_not_set() -> None:
    assert Settings.from_environment({"MLOPS_STORE_URL": " "}) == Settings.from_environment({})


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MLOPS_DEPLOYMENT", "kubernetes", "allowed are local, k8s"),
        ("MLOPS_DEPLOYMENT", "k8", "did you mean 'k8s'?"),
        ("MLOPS_STORE_URL", "ftp://host/store", "s3://"),
        ("MLOPS_STORE_URL", "s3://", "the bucket is missing"),
        ("MLOPS_S3_ENDPOINT_URL", "minio:9000", "http://minio:9000"),
        ("MLOPS_ALERT_URLS", "slack", "entry 1 of 1"),
        ("MLOPS_ALERT_URLS", "mailto://host?to=a@x.org,b@x.org", "written %2C"),
        ("MLOPS_UI_URL", "dagster.example.org", "https://dagster.example.org"),
        ("MLOPS_UI_URL", "ftp://dagster", "http:// or https://"),
        ("MLOPS_UI_URL", "http://", "http:// or https://"),
        ("MLOPS_UI_URL", "http://dagster:port", "http:// or https://"),
        ("MLOPS_UI_URL", "http://[dagster", "http:// or https://"),
        ("MLOPS_UI_URL", "http://dagster?run=1", "http:// or https://"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is(
    variable: str, value: str, said: str
) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.from_environment({variable: value})

    assert variable in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("url", ["s3://bucket/prefix/", "gs://bucket", "memory://test"])
def test_object_stores_are_kept_as_urls(url: str) -> None:
    assert Settings.from_environment({"MLOPS_STORE_URL": url}).store_url == url.rstrip("/")


def test_a_relative_store_does_not_move_with_the_working_directory() -> None:
    assert Settings.from_environment({"MLOPS_STORE_URL": "store"}).store_url == str(
        Path.cwd() / "store"
    )


def test_no_message_and_no_representation_shows_a_password() -> None:
    secret = "hunter2"
    for variable, value in [
        ("MLOPS_ALERT_URLS", f"mailto:{secret}"),
        ("MLOPS_STORE_URL", f"s3://user:{secret}@bucket"),
        ("MLOPS_UI_URL", f"http://user:{secret}@dagster:x"),
    ]:
        with pytest.raises(SettingsError) as error:
            Settings.from_environment({variable: value})
        assert secret not in str(error.value)
    alerting = Settings.from_environment({"MLOPS_ALERT_URLS": f"slack://{secret}/b/c"})
    assert secret not in repr(alerting)


def test_links_into_the_ui_may_have_a_prefix() -> None:
    assert Settings.from_environment({}).ui_url == "http://localhost:3000"
    given = {"MLOPS_UI_URL": "https://ml.example.org/dagster/"}
    assert Settings.from_environment(given).ui_url == "https://ml.example.org/dagster"
