"""`assay report` as a user runs it, and the worker that sends it by itself."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deployment import Deployment, wait_until
from seeded import commit, judged, some_records

pytestmark = pytest.mark.e2e


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with Deployment(tmp_path, f"sqlite:///{tmp_path}/assay.db") as made:
        for days, passing in ((10, 0.95), (3, 0.6)):
            records = some_records(120, datetime.now(UTC) - timedelta(days=days), seed=days)
            commit(made.store, records, judged(records, passing=passing))
        yield made


@pytest.fixture
def received() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """The address of a webhook, and what it got."""
    bodies: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", bodies
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_is_printed_written_and_sent(
    deployment: Deployment, tmp_path: Path, received: tuple[str, list[dict[str, object]]]
) -> None:
    url, bodies = received
    printed = deployment.run("report", "--weeks", "2").stdout.decode()
    assert printed.startswith("# Quality, ")
    assert "**fell**" in printed
    plain = json.loads(deployment.run("report", "--weeks", "2", "--json").stdout)
    assert len(plain["bounds"]) == 3
    assert {one["value"] for one in plain["clusters"]} >= {"checkout", "small"}
    quiet = deployment.run("report", "--weeks", "3", "--out", "r.html", "--markdown", "r.md")
    assert quiet.stdout == b""
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "r.md").read_text().startswith("# Quality, ")
    refused = deployment.run("report", "--send", check=False)
    assert refused.returncode == 2
    assert b"ASSAY_REPORT_WEBHOOK" in refused.stderr
    deployment.settings["report_webhook"] = url
    deployment.run("report", "--weeks", "2", "--send")
    assert "fell" in str(bodies[0]["text"])
    earlier = (datetime.now(UTC) - timedelta(days=365)).strftime("%Y-%m-%d")
    assert "othing" in deployment.run("report", "--until", earlier).stdout.decode()


def test_a_file_that_cannot_be_written_is_one_line(deployment: Deployment) -> None:
    done = deployment.run("report", "--out", os.path.join("no", "such", "r.html"), check=False)
    assert done.returncode == 2
    assert len(done.stderr.decode().strip().splitlines()) == 1


def test_two_workers_send_one_report(deployment: Deployment, received: tuple[str, list[dict[str, object]]]) -> None:
    url, bodies = received
    # Due an hour ago at the latest: the first turn of the chore sends it.
    moment = datetime.now(UTC)
    deployment.settings |= {"report_webhook": url, "report_weekday": f"{moment:%A}".lower(), "report_hour": moment.hour}
    workers = [deployment.start_worker() for _ in range(2)]
    wait_until(lambda: bodies, *workers, seconds=40)
    assert len(bodies) == 1
    # Whoever asks again finds it sent.
    due = int(moment.replace(minute=0, second=0, microsecond=0).timestamp())
    wait_until(lambda: not deployment.store.claim_report(due, now=moment.timestamp() + 3600), *workers)
    logs = "".join(worker.log.read_text() for worker in workers)  # type: ignore[attr-defined]
    assert "weekly report sent" in logs
    assert url not in logs
