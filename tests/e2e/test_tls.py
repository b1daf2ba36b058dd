"""Redis over TLS with client certificates and access rules: docs/howto/redis.md, followed to the letter."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from assay import Client
from assay.connections import connect
from assay.embedded import redis_executable
from assay.errors import QueueError
from assay.queue import Queue
from deployment import Deployment, total, wait_until
from servers import free_port, missing

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "redis.md").read_text(encoding="utf-8")
RULES = dict(re.findall(r"```acl (\w+)\n(.*?)\n```", PAGE, re.DOTALL))


def openssl(directory: Path, *arguments: str) -> None:
    if shutil.which("openssl") is None:
        missing("openssl")
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """`ca.pem`, of another `stranger.pem`, and `server` and `client` with keys; all synthetic."""
    directory = tmp_path / "certificates"
    directory.mkdir()
    new = ("req", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    for name in ("ca", "stranger"):
        openssl(directory, *new, "-x509", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN=test {name}")
    for name in ("server", "client"):
        openssl(directory, *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (directory / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl(directory, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return directory


@pytest.fixture
def server(tmp_path: Path, certificates: Path) -> Iterator[str]:
    """Host and port of a redis-server that speaks TLS alone, knows `app` and `worker`, and asks for certificates."""
    port = free_port()
    config = tmp_path / "redis.conf"
    config.write_text(
        f"bind 127.0.0.1\nport 0\ntls-port {port}\ntls-auth-clients yes\ndir {tmp_path}\nappendonly yes\n"
        f"tls-cert-file {certificates}/server.pem\ntls-key-file {certificates}/server.key\n"
        f'tls-ca-cert-file {certificates}/ca.pem\nmaxmemory-policy noeviction\nsave ""\n'
        f"user default off\nuser app on >of-app {RULES['app']}\nuser worker on >of-worker {RULES['worker']}\n"
    )
    log = tmp_path / "redis.log"
    with log.open("wb") as sink:
        process = subprocess.Popen([redis_executable(), str(config)], stdout=sink, stderr=sink)
    try:
        deadline = time.monotonic() + 20
        while b"Ready to accept" not in log.read_bytes():
            if process.poll() is not None and b"TLS" in log.read_bytes():
                pytest.skip("this redis-server was built without TLS")
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_all_parts_over_tls_by_the_documented_rules(tmp_path: Path, server: str, certificates: Path) -> None:
    own = f"ssl_certfile={certificates}/client.pem&ssl_keyfile={certificates}/client.key"
    options = f"ssl_ca_certs={certificates}/ca.pem&{own}"
    app_url, worker_url = (f"rediss://{user}:of-{user}@{server}/0?{options}" for user in ("app", "worker"))
    settings = {"redis_url": worker_url, "judge": "lexical", "budget_usd_per_day": 5}
    with Deployment(tmp_path, f"sqlite:///{tmp_path}/assay.db", **settings) as deployment:
        worker = deployment.start_worker("--concurrency", "2")
        metrics = deployment.start_exporter()
        client = Client(app="shop", redis_url=app_url, sample_rate=1.0)
        for index in range(40):
            client.record(input=f"question {index}", output="answer", contexts=["context"])
        client.flush(30)
        client.close()
        assert client.stats().sent == 40
        deployment.drain(worker, seconds=60)
        wait_until(lambda: deployment.record_rows() == 40, worker)
        time.sleep(1.5)  # the exporter's scrape cache
        assert total(metrics, "assay_records_total", outcome="received") == 40
        assert total(metrics, "assay_up", component="redis") == 1
        done = deployment.run("doctor", "--no-judge", check=False)
        assert re.search(rb"ok +workers +assay-", done.stdout), done.stdout.decode()
        # The app may do nothing else.
        with connect(app_url, timeout_seconds=5) as raw:
            batches = "assay:assay:batches"
            for refused in (("HGETALL", batches), ("DEL", batches), ("FLUSHALL",), ("GET", "x")):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    raw.execute_command(*refused)
        with connect(worker_url, timeout_seconds=5) as raw, pytest.raises(redis.exceptions.NoPermissionError):
            raw.execute_command("FLUSHALL")
    for wrong in (own, f"ssl_ca_certs={certificates}/stranger.pem&{own}", f"ssl_ca_certs={certificates}/ca.pem"):
        queue = Queue.from_url(f"rediss://worker:of-worker@{server}/0?{wrong}", retries=0)
        with pytest.raises(QueueError) as away:
            queue.ping()
        assert "\n" not in str(away.value)
        assert "of-worker" not in str(away.value)
        queue.close()
