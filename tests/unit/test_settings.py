"""Settings: what is read, what wins, and what a mistake says."""

from __future__ import annotations

from pathlib import Path

import pytest

from assay import tasks
from assay.cli._options import settings_of
from assay.errors import SettingsError
from assay.settings import Settings, load_settings, settings_markdown, unknown_variables


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(("ASSAY_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_WINDOWS", "5m, 2h ,")
    monkeypatch.setenv("ASSAY_COHORT_LABELS", "route")
    settings = load_settings()
    assert settings.windows == ("5m", "2h")
    assert settings.cohort_labels == ("route",)


@pytest.mark.parametrize(
    ("ragas", "installed", "lists"),
    [
        ("auto", False, ["q"]),
        ("auto", True, ["q", "q.ragas"]),
        ("never", True, ["q"]),
        ("only", True, ["q.ragas"]),
    ],
)
def test_which_doorbells_a_worker_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ragas: str, *, installed: bool, lists: list[str]
) -> None:
    if installed:
        # Found, and never imported.
        (tmp_path / "ragas.py").write_text("raise AssertionError('ragas was imported')")
        monkeypatch.syspath_prepend(tmp_path)
    settings = load_settings(ragas=ragas, queue="q")
    assert settings.serves_ragas == ("q.ragas" in lists)
    assert tasks.doorbell_lists(settings) == lists


def test_an_empty_variable_is_as_good_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """docker-compose passes empty strings for what is not set."""
    monkeypatch.setenv("ASSAY_JUDGE", "")
    monkeypatch.setenv("ASSAY_JUDGE_BASE_URL", "")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert load_settings().judge_engine == "lexical"


@pytest.mark.parametrize("name", ["APPS", "SINK_REDACT", "RUBRICS", "SINKS"])
@pytest.mark.parametrize("text", [" ", ",", " , ,"])
def test_a_list_without_a_name_in_it_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """Half a template that came to nothing must neither show all tenants nor stop redaction."""
    monkeypatch.setenv(f"ASSAY_{name}", text)
    with pytest.raises(SettingsError, match=f"ASSAY_{name}: .*is blank"):
        load_settings()


def test_so_is_an_empty_file_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "assay_apps").write_text("\n")
    monkeypatch.setenv("ASSAY_SECRETS_DIR", str(tmp_path))
    with pytest.raises(SettingsError, match=r"ASSAY_APPS: .*is blank"):
        load_settings()


def test_so_is_an_app_without_a_name() -> None:
    with pytest.raises(SettingsError, match="--app: name an app"):
        settings_of([""])


@pytest.mark.parametrize(
    ("environment", "engine"),
    [
        ({}, "lexical"),
        ({"OPENAI_API_KEY": "k"}, "openai"),
        ({"ASSAY_JUDGE_BASE_URL": "http://localhost:1/v1"}, "openai"),
        ({"OPENAI_API_KEY": "k", "ASSAY_JUDGE": "rules"}, "rules"),
    ],
)
def test_the_judge_follows_from_what_is_configured(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], engine: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings().judge_engine == engine


def test_own_key_before_openai_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert load_settings().api_key == "theirs"
    monkeypatch.setenv("ASSAY_JUDGE_API_KEY", "ours")
    assert load_settings().api_key == "ours"


def test_overrides_win_and_none_is_no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_CONCURRENCY", "3")
    assert load_settings(concurrency=5).concurrency == 5
    assert load_settings(concurrency=None).concurrency == 3


def test_a_secret_file_stands_for_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "assay_database_url").write_text("postgresql+psycopg://assay:pw@db/assay")
    monkeypatch.setenv("ASSAY_SECRETS_DIR", str(tmp_path / "keys"))
    assert load_settings().store_url == "postgresql+psycopg://assay:pw@db/assay"
    monkeypatch.setenv("ASSAY_SECRETS_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match="ASSAY_SECRETS_DIR"):
        load_settings()


def test_secrets_do_not_show() -> None:
    shown = repr(
        load_settings(redis_url="redis://:pw1@h/0", database_url="postgresql://a:pw2@h/d", judge_api_key="pw3")
    )
    assert "pw" not in shown.replace("pwd", "")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("CONCURRENCY", "many", "ASSAY_CONCURRENCY"),
        ("CONCURRENCY", "0", "ASSAY_CONCURRENCY"),
        ("REDIS_URL", "localhost:6379", "redis://"),
        ("JUDGE_BASE_URL", "localhost", "http://"),
        ("JUDGE", "gpt", "'openai', 'lexical' or 'rules'"),
        ("QUEUE", "a b", "ASSAY_QUEUE"),
        ("JUDGE_TIMEOUT_SECONDS", "nan", "ASSAY_JUDGE_TIMEOUT_SECONDS"),
        ("LEASE_SECONDS", "inf", "ASSAY_LEASE_SECONDS"),
    ],
)
def test_a_mistake_names_the_variable_and_not_the_value_of_a_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(f"ASSAY_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("scores", "dead"), [(7, 30), (0.5, 0.5), (0, 0)])
def test_scores_outlive_what_can_be_replayed(scores: float, dead: float) -> None:
    message = "^ASSAY_KEEP_SCORE_DAYS must be at least 1 and not below ASSAY_KEEP_DEAD_DAYS: .*$"
    with pytest.raises(SettingsError, match=message):
        load_settings(keep_score_days=scores, keep_dead_days=dead)
    assert load_settings(keep_score_days=30, keep_dead_days=30).keep_score_days == 30
    assert load_settings(keep_score_days=1, keep_dead_days=0).keep_score_days == 1


def test_a_wrong_redis_url_does_not_show_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_REDIS_URL", "reds://:hunter2@h/0")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_no_redis_says_what_to_do() -> None:
    with pytest.raises(SettingsError, match="assay dev"):
        _ = load_settings().queue_url


def test_every_setting_is_described_and_in_the_table() -> None:
    table = settings_markdown()
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"`ASSAY_{name.upper()}`" in table


def test_variables_that_nothing_reads_are_named_with_what_was_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert unknown_variables() == []
    for name in ("ASSAY_JUDGE_MODEL", "ASSAY_SAMPLE_RATE", "ASSAY_SINK_ANY_URL", "JUDGE_MODLE"):
        monkeypatch.setenv(name, "x")
    assert unknown_variables() == []
    monkeypatch.setenv("ASSAY_JUDGE_MODLE", "x")
    (tmp_path / ".env").write_text("ASSAY_WHATEVER_THIS_IS=1\nASSAY_QUEUE=q\n")
    assert unknown_variables() == [
        "ASSAY_JUDGE_MODLE is not a setting: did you mean ASSAY_JUDGE_MODEL?",
        "ASSAY_WHATEVER_THIS_IS is not a setting",
    ]
