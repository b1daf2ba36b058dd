"""The weekly report goes to a real local HTTP server: once, again after a failure, and never anywhere else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from assay import wiring
from assay.errors import SettingsError
from assay.report_delivery import WEEKDAYS, ReportError, last_due, post, send_due
from assay.settings import load_settings
from assay.store import Store
from seeded import COHORT_LABELS, commit, judged, some_records
from servers import free_port

MONDAY = datetime(2026, 5, 4, 7, tzinfo=UTC)
SECRET = "T000-synthetic-secret"


class Webhook:
    """Keeps what it is sent; answers by `answers` (status, headers), then 200."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, object]] = []
        self.paths: list[str] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                webhook.bodies.append(json.loads(self.rfile.read(length)))
                webhook.paths.append(self.path)
                assert self.headers["Content-Type"] == "application/json; charset=utf-8"
                status, headers = webhook.answers.pop(0) if webhook.answers else (200, {})
                self.send_response(status)
                for name, value in {"Content-Length": "2", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"ok")

            def do_GET(self) -> None:
                webhook.paths.append(f"GET {self.path}")
                self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/services/{SECRET}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{tmp_path}/scores.db", cohort_labels=COHORT_LABELS) as made:
        made.upgrade()
        records = some_records(60, MONDAY - timedelta(days=2))
        commit(made, records, judged(records))
        yield made


def send(store: Store, url: str, at: datetime = MONDAY + timedelta(hours=1)) -> bool:
    return send_due(store, url, weekday="monday", hour=7, weeks=2, clock=at.timestamp)


# -- when it is due


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (MONDAY, MONDAY),
        (MONDAY - timedelta(seconds=1), MONDAY - timedelta(days=7)),
        (MONDAY + timedelta(days=6, hours=23), MONDAY),
        (MONDAY + timedelta(days=7), MONDAY + timedelta(days=7)),
    ],
)
def test_it_is_due_on_its_day_at_its_hour(now: datetime, expected: datetime) -> None:
    assert last_due(now, "monday", 7) == expected


def test_every_weekday_is_due_once_a_week() -> None:
    for index, weekday in enumerate(WEEKDAYS):
        dues = {last_due(MONDAY + timedelta(hours=hours), weekday, 15) for hours in range(24 * 14)}
        assert all(due.weekday() == index and due.hour == 15 for due in dues)
        assert len(dues) == 3


# -- once


def test_it_is_sent_once_a_week(store: Store, webhook: Webhook) -> None:
    assert send(store, webhook.url)
    assert not send(store, webhook.url, MONDAY + timedelta(days=6))
    assert len(webhook.bodies) == 1
    assert "Quality, week to May 4 2026" in json.dumps(webhook.bodies[0])
    assert "`shop` `relevance`" in json.dumps(webhook.bodies[0])
    assert send(store, webhook.url, MONDAY + timedelta(days=7, minutes=3))
    assert len(webhook.bodies) == 2


def test_many_workers_send_it_once(store: Store, webhook: Webhook, tmp_path: Path) -> None:
    stores = [Store(f"sqlite:///{tmp_path}/scores.db", cohort_labels=COHORT_LABELS) for _ in range(5)]
    sent: list[bool] = []
    together = threading.Barrier(len(stores))

    def work(own: Store) -> None:
        together.wait()
        sent.append(send(own, webhook.url))

    threads = [threading.Thread(target=work, args=(own,)) for own in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own in stores:
        own.close()
    assert sorted(sent) == [False] * 4 + [True]
    assert len(webhook.bodies) == 1


def test_one_that_was_refused_is_sent_ten_minutes_later(store: Store, webhook: Webhook) -> None:
    webhook.answers = [(403, {})]
    with pytest.raises(ReportError, match="answered 403"):
        send(store, webhook.url)
    assert len(webhook.bodies) == 1, "another try would not help"
    later = MONDAY + timedelta(hours=1)
    assert not send(store, webhook.url, later + timedelta(minutes=9))
    assert len(webhook.bodies) == 1
    assert send(store, webhook.url, later + timedelta(minutes=10))
    assert len(webhook.bodies) == 2


def test_its_last_week_ends_when_it_was_due(store: Store, webhook: Webhook) -> None:
    late = some_records(60, MONDAY + timedelta(hours=20), app="late")
    commit(store, late, judged(late))
    assert send(store, webhook.url, MONDAY + timedelta(days=1))
    assert "late" not in json.dumps(webhook.bodies[0])


# -- tries


def test_what_may_pass_is_tried_again_and_no_sooner_than_asked(webhook: Webhook) -> None:
    webhook.answers = [(503, {}), (429, {"Retry-After": "17"})]
    pauses: list[float] = []
    post(webhook.url, {"text": "x"}, sleep=pauses.append)
    assert len(webhook.bodies) == 3
    assert pauses == [1.0, 17.0]


@pytest.mark.parametrize(("asked", "pause"), [("99999", 30.0), ("soon", 1.0), ("-5", 1.0), ("²", 1.0), ("", 1.0)])
def test_what_the_receiver_asks_for_is_bounded(webhook: Webhook, asked: str, pause: float) -> None:
    webhook.answers = [(429, {"Retry-After": asked.encode("latin-1").decode("latin-1")})]
    pauses: list[float] = []
    post(webhook.url, {"text": "x"}, sleep=pauses.append)
    assert pauses == [pause]


def test_it_gives_up_after_three_tries(webhook: Webhook) -> None:
    webhook.answers = [(500, {})] * 5
    with pytest.raises(ReportError, match="answered 500"):
        post(webhook.url, {"text": "x"}, sleep=lambda _: None)
    assert len(webhook.bodies) == 3


def test_a_redirect_is_not_followed(webhook: Webhook) -> None:
    webhook.answers = [(302, {"Location": "/elsewhere"}), (307, {"Location": "/elsewhere"})]
    for _ in range(2):
        with pytest.raises(ReportError, match="answered 30"):
            post(webhook.url, {"text": "x"}, sleep=lambda _: None)
    assert all(path.endswith(SECRET) for path in webhook.paths)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:{port}/", "http://host.invalid/", "http://user:pw@127.0.0.1:{port}/"]
)
def test_the_address_is_in_no_message(address: str) -> None:
    url = address.format(port=free_port()) + SECRET
    with pytest.raises(ReportError) as caught:
        post(url, {"text": "x"}, sleep=lambda _: None)
    assert SECRET not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    assert "ASSAY_REPORT_WEBHOOK" in str(caught.value)


def test_half_characters_are_sent_as_something(webhook: Webhook) -> None:
    post(webhook.url, {"text": "half \ud800"}, sleep=lambda _: None)
    assert webhook.bodies[0]["text"] == "half ?"


# -- settings


def test_workers_send_one_only_where_an_address_is_set(store: Store) -> None:
    def chores(**given: object) -> set[str]:
        return {chore.name for chore in wiring.build_chores(load_settings(**given), store)}

    assert "report" not in chores()
    assert "report" in chores(report_webhook="https://hooks.example/x")


def test_an_address_out_of_a_file_may_end_in_a_newline() -> None:
    settings = load_settings(report_webhook=f"https://hooks.example/{SECRET}\n")
    assert settings.report_webhook is not None
    assert settings.report_webhook.get_secret_value() == f"https://hooks.example/{SECRET}"
    assert SECRET not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("report_webhook", f"hooks.example/{SECRET}"),
        ("report_webhook", f"file:///{SECRET}"),
        ("report_weekday", "caturday"),
        ("report_hour", 24),
        ("report_weeks", 1),
    ],
)
def test_a_wrong_setting_is_named_and_its_value_is_not(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"ASSAY_{name.upper()}") as caught:
        load_settings(**{name: value})
    assert SECRET not in str(caught.value)
