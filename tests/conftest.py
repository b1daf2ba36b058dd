"""Fixtures that every test may use."""

import gc
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from servers import (  # noqa: F401
    _shared_postgres,
    _shared_redis,
    postgres_server,
    postgres_url,
    rabbit,
    redis_server,
    redis_url,
    sentinels,
)
from trace_servers import mlflow, phoenix  # noqa: F401

# A shell that runs the tests in the background has them ignore SIGINT, and every process that they start would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Files whose tests share servers that take long to start: one process runs them. (`xdist_group` has no effect: the
#: suffix that it gives to a node id is lost in pytest 9.)
TOGETHER = {
    "test_trace_stores.py": "trace stores",
    "test_pull_servers.py": "trace stores",
    "test_alerts.py": "alerts",
    "test_dashboards.py": "dashboards",
    "test_real_model.py": "real model",
}


def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Each test goes to whichever process is free, but those that share a server stay together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByServer(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(nodeid.partition("::")[0].rpartition("/")[2], nodeid)

    return ByServer(config, log)


@pytest.fixture(scope="module", autouse=True)
def _left_open() -> Iterator[None]:
    """What a file's tests leave open fails at its end, not a test of another file that happens to run later."""
    gc.freeze()  # what other files made is none of its business, and would take a second to go through
    yield
    gc.collect()
