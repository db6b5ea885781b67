"""A `Web` for tests: a real HTTP client that may dial loopback, with the promised bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import httpx2

from mcp_tools.web.types import Unreachable, WebResponse

MAX_BYTES = 8 * 1024**2


class LoopbackWeb:
    def __init__(self) -> None:
        self._client = httpx2.AsyncClient(trust_env=False, follow_redirects=False)

    async def get(
        self, url: str, *, accept: str = "*/*", headers: Mapping[str, str] | None = None
    ) -> WebResponse:
        return await self.ask("GET", url, headers={"accept": accept, **(headers or {})})

    async def ask(
        self, method: str, url: str, *, json: Any = None, headers: Mapping[str, str] | None = None
    ) -> WebResponse:
        try:
            with anyio.fail_after(20):
                async with self._client.stream(method, url, json=json, headers=headers) as response:
                    body = b""
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > MAX_BYTES:
                            break
                    return WebResponse(
                        url=url,
                        status=response.status_code,
                        headers=dict(response.headers),
                        body=body[:MAX_BYTES],
                        is_cut=len(body) > MAX_BYTES,
                    )
        except (httpx2.HTTPError, TimeoutError) as error:
            raise Unreachable(f"the connection failed ({type(error).__name__})") from None

    async def aclose(self) -> None:
        await self._client.aclose()
