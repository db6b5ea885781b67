"""Connections to addresses that were checked. Nothing here looks up a name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ssl import SSLContext
from typing import Any, Final

import anyio
import httpcore2

from mcp_tools.web.types import Unreachable

ATTEMPT_S: Final = 4.0
CLOSE_S: Final = 1.0
MAX_ATTEMPTS: Final = 6
MAX_HEAD_BYTES: Final = 128 * 1024


class Dialler(httpcore2.AsyncNetworkBackend):
    """Dials the addresses it was given, in their order, whatever host it is told.

    Args:
        addresses: Texts of addresses, all of them checked.
        max_bytes: Taken from one connection at most, of everything.
    """

    def __init__(self, addresses: Sequence[str], *, max_bytes: int) -> None:
        self._addresses = addresses[:MAX_ATTEMPTS]
        self._max_bytes = max_bytes
        self._network = httpcore2.AnyIOBackend()
        self._raw: httpcore2.AsyncNetworkStream | None = None
        self.stream: Bounded | None = None

    async def aclose(self) -> None:
        """Close the connection, whatever became of it: cancelled in a TLS handshake, nobody else does."""
        if self._raw is not None:
            with anyio.move_on_after(CLOSE_S, shield=True):
                await self._raw.aclose()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that answers.

        Raises:
            httpcore2.ConnectError, httpcore2.ConnectTimeout: None did.
        """
        last = len(self._addresses) - 1
        for position, address in enumerate(self._addresses):
            try:
                # A dead address must leave time for the next; the last has what the request has.
                stream = await self._network.connect_tcp(
                    address, port, timeout=timeout if position == last else ATTEMPT_S
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if position == last:
                    raise
            else:
                self._raw = stream
                self.stream = Bounded(stream, self, max_bytes=self._max_bytes)
                return self.stream
        raise httpcore2.ConnectError("no address")


class Bounded(httpcore2.AsyncNetworkStream):
    """A stream that ends when more comes than any answer needs: of heads, and of everything."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream, dialler: Dialler, *, max_bytes: int) -> None:
        self._stream = stream
        self._dialler = dialler
        self._max_bytes = max_bytes
        self._read = 0
        self.in_body = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read, within the limits.

        Raises:
            Unreachable: They are passed.
        """
        data = await self._stream.read(max_bytes if self.in_body else min(max_bytes, 16384), timeout)
        self._read += len(data)
        if not self.in_body and self._read > MAX_HEAD_BYTES:
            raise Unreachable(f"the answer has more than {MAX_HEAD_BYTES} bytes of headers")
        if self._read > self._max_bytes:
            raise Unreachable("the answer wraps little content in too many bytes")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Speak TLS from here on; the same limits hold for what is inside."""
        stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        self._dialler.stream = Bounded(stream, self._dialler, max_bytes=self._max_bytes)
        return self._dialler.stream

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
