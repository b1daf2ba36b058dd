"""A real Prometheus scrapes over TLS with a token, and is refused without."""

from __future__ import annotations

from pathlib import Path

import pytest

from assay.exporter import serve_worker
from assay.listener import Certificate, Guard
from assay.metrics import WorkerMetrics
from prometheus import Prometheus, wait_for
from servers import make_certificate

pytestmark = pytest.mark.integration


def test_prometheus_scrapes_with_a_token_over_tls(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    guard = Guard(tokens=("s3cret",), certificate=Certificate(certificate, key))
    with serve_worker(WorkerMetrics(), port=0, guard=guard) as server:
        targets = [{"targets": [f"127.0.0.1:{server.port}"]}]
        # What docs/howto/production.md shows.
        shown = {
            "scheme": "https",
            "tls_config": {"ca_file": str(certificate)},
            "authorization": {"credentials_file": str(token)},
            "static_configs": targets,
        }
        wrong = {**shown, "authorization": {"credentials": "wrong"}}
        config = {"scrape_configs": [{"job_name": "right", **shown}, {"job_name": "wrong", **wrong}]}
        prometheus = Prometheus(tmp_path / "prometheus", {}, config=config)
        try:
            wait_for(lambda: prometheus.query('up{job="right"} == 1'))
            wait_for(lambda: prometheus.query('up{job="wrong"} == 0'))
            told = {t["labels"]["job"]: t["lastError"] for t in prometheus.get("targets")["activeTargets"]}
            assert told["right"] == ""
            assert "401" in told["wrong"]
            assert prometheus.query('count({job="right",__name__=~"assay_.*"})')[0][1] > 0
        finally:
            prometheus.close()
