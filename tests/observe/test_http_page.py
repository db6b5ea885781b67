"""`/metrics` on the HTTP server: behind the same checks as everything else there."""

from __future__ import annotations

import urllib.error
import urllib.request

import anyio
import anyio.to_thread
import pytest

from mcp_tools import ToolSystem
from mcp_tools.observe.metrics import PrometheusMetrics
from mcp_tools.server.handler import build_server
from mcp_tools.server.http.serve import Listening, serve_http
from mcp_tools.server.http.tokens import TokenTable
from tests.observe.conftest import MakeSystem

TOKEN = "a-token-of-more-than-thirty-two-characters"


def get(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


@pytest.mark.parametrize("with_token", [True, False])
async def test_metrics_are_served_to_those_who_may_call(make_system: MakeSystem, with_token: bool) -> None:
    metrics = PrometheusMetrics()
    system: ToolSystem = make_system(observers=[metrics])
    await system.execute("echo", {"text": "a"})
    shutdown, ready = anyio.Event(), anyio.Event()
    places: list[Listening] = []

    def listening(where: Listening) -> None:
        places.append(where)
        ready.set()

    async def serve() -> None:
        await serve_http(
            build_server(system.executor),
            port=0,
            tokens=TokenTable([("ann", TOKEN)]) if with_token else None,
            pages={"/metrics": metrics.asgi_app()},
            on_listening=listening,
            shutdown=shutdown,
        )

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            await ready.wait()
            url = f"http://127.0.0.1:{places[0].port}/metrics"

            async def scrape(**headers: str) -> tuple[int, str]:
                return await anyio.to_thread.run_sync(lambda: get(url, **headers))

            status, text = await scrape(Authorization=f"Bearer {TOKEN}")
            assert status == 200
            assert 'mcp_tools_calls_total{status="success",tool="echo"} 1.0' in text
            assert (await scrape())[0] == (401 if with_token else 200)
            assert (await scrape(Host="evil.example"))[0] == 421
            shutdown.set()
