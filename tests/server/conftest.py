"""One connection per transport and era, shared by the tests of a module: starting a server takes a second."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.server.peers import ERAS, PEERS, HttpServers, Peer, connected

IMPATIENT = '{"confirm_timeout_s": 0.5}'


class _Pool:
    """Holds connections open, each in a task of its own: they must be closed by the task that opened them."""

    def __init__(self, make_folder: Callable[[], Path]) -> None:
        self._servers = HttpServers(make_folder)
        self._peers: dict[Any, Peer] = {}
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def get(self, transport: str, era: str, **options: Any) -> Peer:
        """Return the connection with these options, opened at its first use."""
        key = (transport, era, *sorted(options.items()))
        if key not in self._peers:
            ready: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()
            self._tasks.append(asyncio.create_task(self._hold(ready, transport, era, options)))
            self._peers[key] = await ready
        peer = self._peers[key]
        peer.on_question = None
        peer.questions.clear()
        return peer

    async def _hold(
        self, ready: asyncio.Future[Peer], transport: str, era: str, options: dict[str, Any]
    ) -> None:
        try:
            async with connected(self._servers, transport, era, **options) as peer:
                ready.set_result(peer)
                await self._closing.wait()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    async def close(self) -> None:
        """Close every connection."""
        self._closing.set()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        await self._servers.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[_Pool]:
    connections = _Pool(lambda: tmp_path_factory.mktemp("server"))
    yield connections
    with contextlib.suppress(asyncio.CancelledError):
        await connections.close()


@pytest.fixture(params=list(ERAS), scope="module")
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(PEERS), scope="module")
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(loop_scope="module")
async def peer(pool: _Pool, transport: str, era: str) -> Peer:
    """A client that can show a form."""
    return await pool.get(transport, era)


@pytest_asyncio.fixture(loop_scope="module")
async def handshake_peer(pool: _Pool, transport: str) -> Peer:
    """A client that the server can ask while a call waits."""
    return await pool.get(transport, "2025-11-25")


@pytest_asyncio.fixture(loop_scope="module")
async def modern_peer(pool: _Pool, transport: str) -> Peer:
    """A client that carries the state of a question."""
    return await pool.get(transport, "2026-07-28")


@pytest_asyncio.fixture(loop_scope="module")
async def other_modern_peer(pool: _Pool, transport: str) -> Peer:
    """The like, of another server process."""
    return await pool.get(transport, "2026-07-28", options=IMPATIENT)


@pytest_asyncio.fixture(loop_scope="module")
async def mute_peer(pool: _Pool, transport: str, era: str) -> Peer:
    """A client that cannot ask anybody."""
    return await pool.get(transport, era, elicits=False)


@pytest_asyncio.fixture(loop_scope="module")
async def impatient_peer(pool: _Pool, transport: str, era: str) -> Peer:
    """A client of a server that gives a person half a second."""
    return await pool.get(transport, era, options=IMPATIENT)
