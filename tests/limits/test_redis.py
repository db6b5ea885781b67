"""A Redis server that fails, forgets, or is somebody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.abc
import pytest

from mcp_tools.errors import ConfigError
from mcp_tools.limits import build_limiter, open_store
from mcp_tools.types import LimitsUnavailable
from tests.limits.calls import count, run
from tests.limits.redis_process import RedisProcess, make_certificate

RULE = "*: 5 calls / hour"


@pytest.fixture
def own_server(tmp_path: Path, redis_server: RedisProcess) -> Iterator[RedisProcess]:
    """One that a test may stop; `redis_server` decides whether there can be any."""
    del redis_server
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisProcess(folder)
    server.start()
    yield server
    server.stop()


async def test_a_server_that_is_gone_refuses_calls_and_is_found_again(own_server: RedisProcess) -> None:
    one = build_limiter([RULE], open_store(own_server.url))
    assert await count(one, 2) == 2
    own_server.stop()
    for _ in range(3):
        with pytest.raises(LimitsUnavailable, match="cannot be reached"):
            await run(one)
    own_server.start()
    assert await count(one, 10) == 5  # it kept nothing: its own settings decide that
    one.close()


async def test_a_server_that_forgot_the_script_gets_it_again(own_server: RedisProcess) -> None:
    import redis

    one = build_limiter([RULE], open_store(own_server.url))
    assert await count(one, 2) == 2
    with redis.Redis.from_url(own_server.url) as client:
        client.script_flush()
    assert await count(one, 10) == 3
    one.close()


async def test_a_server_without_memory_refuses_calls(own_server: RedisProcess) -> None:
    import redis

    one = build_limiter([RULE], open_store(own_server.url))
    assert await count(one, 1) == 1
    with redis.Redis.from_url(own_server.url) as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(LimitsUnavailable, match="maxmemory"):
            await run(one)
        client.config_set("maxmemory", "0")
    assert await count(one, 10) == 4
    one.close()


async def test_a_server_that_never_answers_refuses_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_tools.limits.redis_server.ANSWER_S", 0.1)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        one = build_limiter([RULE], open_store(f"redis://:s3cret@127.0.0.1:{port}/0"))
        with anyio.fail_after(20), pytest.raises(LimitsUnavailable) as caught:
            await run(one)
        one.close()
    assert "s3cret" not in str(caught.value)


@pytest.fixture
def tls_server(tmp_path: Path, redis_server: RedisProcess) -> Iterator[RedisProcess]:
    del redis_server
    folder = tmp_path / "redis"
    folder.mkdir()
    make_certificate(folder)
    port = RedisProcess(folder).port
    files = ("--tls-cert-file", str(folder / "cert.pem"), "--tls-key-file", str(folder / "key.pem"))
    server = RedisProcess(folder, "--tls-port", str(port), "--tls-auth-clients", "no", *files)
    server.port = port
    server.start(plain_port=0)
    yield server
    server.stop()


async def test_a_server_over_tls_must_be_the_one_that_was_meant(
    tls_server: RedisProcess, tmp_path: Path
) -> None:
    url = tls_server.url.replace("redis://", "rediss://")
    one = build_limiter([RULE], open_store(f"{url}?ssl_ca_certs={tmp_path}/redis/cert.pem"))
    assert await count(one, 10) == 5
    one.close()
    stranger = build_limiter([RULE], open_store(url))  # signed by nobody it trusts
    with pytest.raises(LimitsUnavailable, match="certificate"):
        await run(stranger)
    stranger.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "redis://127.0.0.1:port/0", "redis://[::1/0", "x://"])
def test_a_url_that_cannot_be_read_is_refused_at_start(url: str) -> None:
    with pytest.raises(ConfigError, match="limits"):
        open_store(url)
