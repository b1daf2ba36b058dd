"""Fixtures that every test may use."""

import signal

from servers import (  # noqa: F401
    _shared_postgres,
    _shared_redis,
    postgres_server,
    postgres_url,
    redis_server,
    redis_url,
)
from trace_servers import mlflow, phoenix  # noqa: F401

# A shell that runs the tests in the background has them ignore SIGINT, and every process that they start would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
