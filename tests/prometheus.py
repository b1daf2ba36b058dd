"""A real Prometheus for tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
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
    """A Prometheus of this test's own; scrapes every second. `consoles` is a directory of console templates."""

    def __init__(self, directory: Path, targets: Mapping[str, Target], *, consoles: Path | None = None) -> None:
        binary = shutil.which("prometheus")
        if binary is None:
            missing("Prometheus")
        jobs = [
            {"job_name": name, "static_configs": [{"targets": [f"{server.host}:{server.port}"]}]}
            for name, server in targets.items()
        ]
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
        directory.mkdir()
        # JSON is YAML.
        (directory / "prometheus.yml").write_text(json.dumps(config))
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

    def log(self) -> str:
        """What it has said so far."""
        self._log.flush()
        return Path(self._log.name).read_text()

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
