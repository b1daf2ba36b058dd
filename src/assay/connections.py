"""Connections to Redis, made from a URL: the one place that knows its spellings.

    redis://[user:password@]host[:6379][/db][?options]
    rediss://...                                        the same over TLS
    unix://[user:password@]/path/of/socket[?db=0]
    redis+sentinel://[user:password@]host[:26379],host[:26379]/master[/db][?options]
    rediss+sentinel://...                               the same over TLS, to the sentinels too

Options are those of redis-py: `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile` (paths), `ssl_cert_reqs` (required,
optional or none) and so on; for sentinels that want a password, also `sentinel_username` and `sentinel_password`.

Standard library only at import; `redis` loads when a connection is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from assay.errors import SettingsError

if TYPE_CHECKING:
    from redis import ConnectionPool, Redis
    from redis.asyncio import Redis as AsyncRedis

_SENTINEL: Final = ("redis+sentinel", "rediss+sentinel")
_SCHEMES: Final = ("redis", "rediss", "unix", *_SENTINEL)
_SENTINEL_PORT: Final = 26379
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
#: How Celery spells them, and what redis-py takes.
_CERT_REQS: Final = {"CERT_REQUIRED": "required", "CERT_OPTIONAL": "optional", "CERT_NONE": "none"}
#: A sentinel that does not answer must not hold up the question to the next.
_SENTINEL_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """What a URL says. `url` is what redis-py reads: of the server, or, with sentinels, of nothing but the options."""

    url: str
    database: int
    sentinels: tuple[tuple[str, int], ...] = ()
    #: what the sentinels call the primary
    master: str = ""
    sentinel_login: tuple[tuple[str, str], ...] = ()

    @property
    def shown(self) -> str:
        """Where it is, without user, password and options: for messages."""
        if self.sentinels:
            return f"redis://{self.master}/{self.database}"
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"redis://{parts.hostname or 'localhost'}{port}/{self.database}"

    @property
    def is_tls(self) -> bool:
        """Whether what goes there is encrypted."""
        return self.url.startswith("rediss:")


def parse(url: str) -> Address:
    """Read a URL; files that it names must be there.

    Raises:
        SettingsError: it cannot be one of a Redis. The message never quotes it, for it may hold a password.
    """
    scheme = url.partition("://")[0]
    if scheme not in _SCHEMES:
        if scheme == "sentinel":
            raise SettingsError("Redis URL: write sentinels as redis+sentinel://HOST:26379,HOST:26379/MASTER/0")
        raise SettingsError(
            "Redis URL (ASSAY_REDIS_URL): must begin with redis://, rediss://, unix:// or redis+sentinel://"
        )
    try:
        if scheme in _SENTINEL:
            place, _, query = url.partition("?")
            # Several hosts are none: some Pythons refuse an IPv6 address with others beside it.
            hosts, _, path = place.partition("://")[2].partition("/")
            return _sentinels(scheme, hosts, path, _read_options(query))
        parts = urlsplit(url)
        options = _read_options(parts.query)
        path = parts.path.strip("/") if scheme != "unix" else ""
        database = int(options.get("db") or path or 0)
        if scheme != "unix":
            # Of what cannot be a port or a host it raises ValueError.
            _ = parts.port
        query = f"?{urlencode(options)}" if options else ""
        return Address(url.partition("?")[0] + query, database)
    except ValueError:
        raise SettingsError(
            "Redis URL (ASSAY_REDIS_URL): cannot be read: write it like redis://USER:PASSWORD@HOST:6379/0"
        ) from None


def _read_options(query: str) -> dict[str, str]:
    options = {name: values[0] for name, values in parse_qs(query).items()}
    reqs = options.get("ssl_cert_reqs")
    if reqs is not None:
        options["ssl_cert_reqs"] = _CERT_REQS.get(reqs, reqs)
        if options["ssl_cert_reqs"] not in _CERT_REQS.values():
            raise SettingsError("Redis URL: ssl_cert_reqs must be required, optional or none")
    for name in _FILES:
        if name in options and not Path(options[name]).is_file():
            raise SettingsError(f"Redis URL: {name}: there is no file {options[name]}")
    return options


def _sentinels(scheme: str, netloc: str, path: str, options: dict[str, str]) -> Address:
    login, _, hosts = netloc.rpartition("@")
    master, _, database = path.strip("/").partition("/")
    if not hosts or not master:
        raise SettingsError(f"Redis URL: write sentinels as {scheme}://HOST:26379,HOST:26379/MASTER/0")
    number = int(database or options.pop("db", "0"))
    sentinels = []
    for host in hosts.split(","):
        named = urlsplit(f"//{host}")
        if not named.hostname:
            raise SettingsError("Redis URL: a sentinel in it has no host")
        sentinels.append((named.hostname, named.port or _SENTINEL_PORT))
    names = ("username", "password")
    known = [(name, options.pop(f"sentinel_{name}", "")) for name in names]
    # The host is a placeholder: the sentinels say where the primary is.
    place = f"{login}@sentinel" if login else "sentinel"
    query = f"?{urlencode(options)}" if options else ""
    return Address(
        url=f"{scheme.removesuffix('+sentinel')}://{place}/{number}{query}",
        database=number,
        sentinels=tuple(sentinels),
        master=unquote(master),
        sentinel_login=tuple((name, value) for name, value in known if value),
    )


def connect(url: str, *, timeout_seconds: float, retries: int = 0) -> Redis:
    """A client of the server at `url`, or of the primary that its sentinels name; it connects at the first call.

    `timeout_seconds` bounds each connect and each reply; `retries` is how often a call that met a broken connection or
    a timeout is repeated at once.

    Raises:
        SettingsError: the URL cannot be one of a Redis.
    """
    from redis import Redis

    return Redis.from_pool(connection_pool(url, timeout_seconds=timeout_seconds, retries=retries))


def connection_pool(url: str, *, timeout_seconds: float, retries: int = 0, **options: Any) -> ConnectionPool:
    """What `connect` stands on, for those who bring a client of their own. `options` are redis-py's.

    Raises:
        SettingsError: the URL cannot be one of a Redis.
    """
    from redis import ConnectionPool
    from redis.backoff import ExponentialBackoff
    from redis.retry import Retry
    from redis.sentinel import Sentinel, SentinelConnectionPool

    class All(Sentinel):
        def discover_master(self, service_name: str) -> Any:
            _put_back(self, sentinels)
            return super().discover_master(service_name)  # type: ignore[no-untyped-call]

    class Pool(SentinelConnectionPool):
        """Closed, it closes what the sentinels were asked through too."""

        def disconnect(self, inuse_connections: bool = True) -> None:
            super().disconnect(inuse_connections)
            if inuse_connections:
                for asked in sentinels:
                    asked.close()

    address = parse(url)
    given = _options(address, timeout_seconds, Retry(ExponentialBackoff(cap=0.5, base=0.05), retries)) | options
    try:
        plain = ConnectionPool.from_url(address.url, **given)
    except ValueError as error:
        raise SettingsError(f"Redis URL: {error}") from error
    if not address.sentinels:
        return plain
    known = plain.connection_kwargs
    sentinel = All(  # type: ignore[no-untyped-call]
        address.sentinels,
        sentinel_kwargs=_of_sentinels(address, known, timeout_seconds, Retry(ExponentialBackoff(), 0)),
    )
    sentinels = tuple(sentinel.sentinels)
    return Pool(address.master, sentinel, **_of_primary(address, known))  # type: ignore[no-untyped-call]


def connect_async(url: str, *, timeout_seconds: float, retries: int = 0, max_connections: int = 8) -> AsyncRedis:
    """`connect`, for an event loop; whoever comes while all connections are in use waits for `timeout_seconds`.

    Raises:
        SettingsError: the URL cannot be one of a Redis.
    """
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
    from redis.backoff import ExponentialBackoff

    class All(Sentinel):
        async def discover_master(self, service_name: str) -> Any:
            _put_back(self, sentinels)
            return await super().discover_master(service_name)

    class Pool(SentinelConnectionPool, BlockingConnectionPool):
        """Bounded, and one that waits; closed, it closes what the sentinels were asked through too."""

        async def disconnect(self, inuse_connections: bool = True) -> None:
            await super().disconnect(inuse_connections)
            if inuse_connections:
                for asked in sentinels:
                    await asked.aclose()

    address = parse(url)
    bounds = {"max_connections": max_connections, "timeout": timeout_seconds}
    given = _options(address, timeout_seconds, Retry(ExponentialBackoff(cap=0.5, base=0.05), retries))
    try:
        plain = BlockingConnectionPool.from_url(address.url, **bounds, **given)
    except ValueError as error:
        raise SettingsError(f"Redis URL: {error}") from error
    if not address.sentinels:
        return Redis.from_pool(plain)
    known = plain.connection_kwargs
    sentinel = All(  # type: ignore[no-untyped-call]
        address.sentinels,
        sentinel_kwargs=_of_sentinels(address, known, timeout_seconds, Retry(ExponentialBackoff(), 0)),
    )
    sentinels = tuple(sentinel.sentinels)
    pool = Pool(address.master, sentinel, **bounds, **_of_primary(address, known))  # type: ignore[no-untyped-call]
    return Redis.from_pool(pool)


def _put_back(manager: Any, sentinels: tuple[Any, ...]) -> None:
    """redis-py puts the one that answered first; when several ask at once, that can lose another for good."""
    if {id(one) for one in manager.sentinels} != {id(one) for one in sentinels}:
        manager.sentinels = list(sentinels)


def _options(address: Address, timeout_seconds: float, retry: Any) -> dict[str, Any]:
    options = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "health_check_interval": 30,
        "retry": retry,
    }
    # A Unix socket has no such option.
    return options if address.url.startswith("unix:") else options | {"socket_keepalive": True}


def _of_primary(address: Address, known: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in known.items() if name not in {"host", "port"}} | {"ssl": address.is_tls}


def _of_sentinels(address: Address, known: dict[str, Any], timeout_seconds: float, retry: Any) -> dict[str, Any]:
    """How to ask a sentinel: with its own login, and the certificates that the servers are asked with."""
    wait = min(timeout_seconds, _SENTINEL_SECONDS)
    options = {name: value for name, value in known.items() if name.startswith("ssl_")} if address.is_tls else {}
    return {
        **options,
        **dict(address.sentinel_login),
        "ssl": address.is_tls,
        "socket_timeout": wait,
        "socket_connect_timeout": wait,
        "retry": retry,
    }
