"""Fixtures that every test may use."""

from servers import (  # noqa: F401
    _shared_postgres,
    _shared_redis,
    postgres_server,
    postgres_url,
    redis_server,
    redis_url,
)
