"""A real Prometheus for tests, a real Alertmanager, and somebody whom it tells."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol, TypeVar

from servers import free_port, missing

T = TypeVar("T")


class Target(Protocol):
    """Something to scrape."""

    host: str
    port: int


def wait_for(read: Callable[[], T], seconds: float = 30) -> T:
    """What `read` gives once it gives anything."""
    limit = time.monotonic() + seconds
    while not (got := read()):
        assert time.monotonic() < limit, "Prometheus did not get there"
        time.sleep(0.1)
    return got


class Prometheus:
    """A Prometheus of this test's own; scrapes every second. `consoles` is a directory of console templates.

    `config` is what it is told besides, such as rule files, in place of the top-level keys of the same names.
    """

    def __init__(
        self,
        directory: Path,
        targets: Mapping[str, Target],
        *,
        consoles: Path | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        binary = shutil.which("prometheus")
        if binary is None:
            missing("Prometheus")
        jobs = [
            {"job_name": name, "static_configs": [{"targets": [f"{server.host}:{server.port}"]}]}
            for name, server in targets.items()
        ]
        own = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
        directory.mkdir()
        # JSON is YAML.
        (directory / "prometheus.yml").write_text(json.dumps({**own, **(config or {})}))
        self._log = (directory / "log").open("w+")
        self.url = f"http://127.0.0.1:{free_port()}"
        self._process = subprocess.Popen(
            [
                str(binary),
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                f"--web.console.templates={consoles or 'none'}",
                f"--web.console.libraries={consoles or 'none'}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def get(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of the HTTP API; None while it is starting."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        except (urllib.error.URLError, ConnectionError):
            assert self._process.poll() is None, self.log()
            return None

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of an instant query."""
        data = self.get("query", query=expression) or {"result": []}
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def values(self, expression: str, start: float) -> dict[str, list[tuple[float, float]]]:
        """Moment and value, second by second since `start`, of each series of a range query; by its labels as JSON."""
        data = self.get("query_range", query=expression, start=str(start), end=str(time.time()), step="1")
        return {
            json.dumps(series["metric"], sort_keys=True): [(at, float(value)) for at, value in series["values"]]
            for series in data["result"]
        }

    def log(self) -> str:
        """What it has said so far."""
        self._log.flush()
        return Path(self._log.name).read_text()

    def close(self) -> None:
        """End it."""
        _end(self._process)
        self._log.close()


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Alertmanager:
    """An Alertmanager of this test's own, with the text of its configuration; speaks to no other."""

    def __init__(self, directory: Path, config: str) -> None:
        binary = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
        if binary is None:
            missing("Alertmanager")
        directory.mkdir()
        file = directory / "alertmanager.yml"
        file.write_text(config)
        self._log = (directory / "log").open("w+")
        self.address = f"127.0.0.1:{free_port()}"
        self._process = subprocess.Popen(
            [
                str(binary),
                f"--config.file={file}",
                f"--storage.path={directory}/data",
                f"--web.listen-address={self.address}",
                "--cluster.listen-address=",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def get(self, path: str) -> Any:
        """An answer of the HTTP API; None while it is starting."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/api/v2/{path}", timeout=10) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            assert self._process.poll() is None, Path(self._log.name).read_text()
            return None

    def close(self) -> None:
        """End it."""
        _end(self._process)
        self._log.close()


@dataclass(frozen=True, kw_only=True)
class Notification:
    """One alert as a webhook was told of it."""

    at: float
    receiver: str
    #: firing or resolved
    status: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    #: the Authorization header
    authorization: str | None


class Webhook:
    """A receiver of Alertmanager's notifications that remembers them."""

    def __init__(self) -> None:
        self.notifications: list[Notification] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                webhook.notifications += [
                    Notification(
                        at=time.time(),
                        receiver=told["receiver"],
                        status=alert["status"],
                        labels=alert["labels"],
                        annotations=alert["annotations"],
                        authorization=self.headers.get("Authorization"),
                    )
                    for alert in told["alerts"]
                ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def told(self, alert: str, status: str = "firing", **labels: str) -> list[Notification]:
        """Notifications of that alert with these labels, in the order in which they came."""
        wanted = {"alertname": alert, **labels}.items()
        return [told for told in list(self.notifications) if told.status == status and wanted <= told.labels.items()]

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
