"""URLs of Redis: what they say, and what is refused in one line that keeps the password."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.sentinel import MasterNotFoundError

from assay.connections import connect, connect_async, connection_pool, parse
from assay.errors import SettingsError


@pytest.mark.parametrize(
    ("url", "shown", "database"),
    [
        ("redis://h", "redis://h/0", 0),
        ("redis://user:pass%2F@h:6380/2", "redis://h:6380/2", 2),
        ("rediss://:p@h/1?ssl_cert_reqs=none", "redis://h/1", 1),
        ("redis://h?db=4", "redis://h/4", 4),
        ("unix:///run/redis.sock?db=3", "redis://localhost/3", 3),
        ("redis+sentinel://:p@a:1,b:2/main/5", "redis://main/5", 5),
        ("rediss+sentinel://a,b/main", "redis://main/0", 0),
    ],
)
def test_what_a_url_says(url: str, shown: str, database: int) -> None:
    address = parse(url)
    assert (address.shown, address.database) == (shown, database)


def test_sentinels() -> None:
    url = "redis+sentinel://me:p%40ss@a:26380,[::1],c:26381/the%20primary/3?sentinel_password=q&ssl_cert_reqs=CERT_NONE"
    address = parse(url)
    assert address.sentinels == (("a", 26380), ("::1", 26379), ("c", 26381))
    assert (address.master, address.database) == ("the primary", 3)
    assert address.sentinel_login == (("password", "q"),)
    pool = connection_pool(url, timeout_seconds=1)
    known = pool.connection_kwargs
    assert (known["username"], known["password"], known["db"]) == ("me", "p@ss", 3)
    assert "sentinel_password" not in known
    assert "host" not in known


def test_no_sentinel_is_lost_when_several_ask_at_once() -> None:
    """As redis-py would: both find the second one answering, and each moves what is first then to its place."""
    pool = connection_pool("redis+sentinel://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3/main", timeout_seconds=0.2)
    manager = pool.sentinel_manager
    every = list(manager.sentinels)
    for _ in range(2):
        manager.sentinels[0], manager.sentinels[1] = every[1], manager.sentinels[0]
    assert every[0] not in manager.sentinels
    with pytest.raises(MasterNotFoundError, match=r"port=1.*port=2.*port=3"):
        manager.discover_master("main")
    assert set(manager.sentinels) == set(every)
    pool.disconnect()


def test_no_sentinel_is_lost_on_an_event_loop_either() -> None:
    async def run() -> None:
        url = "redis+sentinel://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3/main"
        async with connect_async(url, timeout_seconds=0.2) as client:
            manager = client.connection_pool.sentinel_manager
            every = list(manager.sentinels)
            manager.sentinels[0] = every[1]
            with pytest.raises(AsyncMasterNotFoundError, match=r"port=1.*port=2.*port=3"):
                await manager.discover_master("main")
            assert set(manager.sentinels) == set(every)

    asyncio.run(run())


def test_options_of_tls(tmp_path: Path) -> None:
    ca = tmp_path / "ca of ours.pem"
    ca.touch()
    pool = connection_pool(f"rediss://h/0?ssl_ca_certs={ca}&ssl_cert_reqs=CERT_REQUIRED", timeout_seconds=1)
    assert pool.connection_kwargs["ssl_ca_certs"] == str(ca)
    assert pool.connection_kwargs["ssl_cert_reqs"] == "required"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("localhost:6379", "must begin with redis://"),
        ("http://h", "must begin with redis://"),
        ("sentinel://:secret@a:1;sentinel://:secret@b:1", r"write sentinels as redis\+sentinel://"),
        ("redis+sentinel://:secret@a:1,b:2", "/MASTER/0"),
        ("redis+sentinel://:secret@/main", "/MASTER/0"),
        ("redis+sentinel://:secret@a,,b/main", "has no host"),
        ("redis+sentinel://:secret@a:x/main", "cannot be read"),
        ("redis+sentinel://:secret@a/main/x", "cannot be read"),
        ("redis://:secret@h:x/0", "cannot be read"),
        ("redis://:secret@h/x", "cannot be read"),
        ("redis://:secret@[h/0", "cannot be read"),
        ("redis://:secret@h/0?socket_timeout=soon", "Invalid value for 'socket_timeout'"),
        ("rediss://:secret@h/0?ssl_cert_reqs=maybe", "ssl_cert_reqs must be required, optional or none"),
        ("rediss://:secret@h/0?ssl_ca_certs=/nowhere/ca.pem", "ssl_ca_certs: there is no file /nowhere/ca.pem"),
    ],
)
def test_what_is_refused(url: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as refused:
        connect(url, timeout_seconds=1)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
