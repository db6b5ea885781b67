"""Pictures of results: a model is shown those that its API takes, and the history stays one that it takes."""

from __future__ import annotations

import base64
import io
import os
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anthropic import AsyncAnthropic, BadRequestError
from openai import AsyncOpenAI
from PIL import Image

from mcp_tools import ToolSystem
from mcp_tools.agent import history, pictures
from mcp_tools.agent.anthropic import AnthropicMessages
from mcp_tools.agent.loop import run_agent
from mcp_tools.agent.openai import OpenAIResponses
from mcp_tools.agent.types import AgentRun, StopReason
from mcp_tools.output import pictures as output_pictures
from mcp_tools.types import MediaContent, ToolOutput
from tests.agent import openai_server
from tests.agent.anthropic_server import KEY, MODEL, AnthropicServer, Failure, asks, says, use
from tests.output.pictures import PNG_START, png, png_chunk, png_header

JPEG_START = b"\xff\xd8\xff\xe0\0\4ab"


def saved(kind: str, *, size: tuple[int, int] = (31, 17), **options: Any) -> bytes:
    written = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(written, kind, **options)
    return written.getvalue()


def large(number: int) -> bytes:
    """A picture of 3.7 MB, since nothing in it repeats itself."""
    written = io.BytesIO()
    noise = os.urandom(1_900 * 1_950)
    Image.frombytes("L", (1_900, 1_950), bytes([number]) + noise[1:]).save(written, "PNG", compress_level=0)
    return written.getvalue()


def showing(*pictures: bytes) -> ToolSystem:
    tools = ToolSystem()

    @tools.register
    async def show(number: int = -1) -> ToolOutput:
        """Show them, or one of them."""
        shown = pictures if number < 0 else pictures[number : number + 1]
        return ToolOutput(content=[MediaContent(data=data, media_type="image/png") for data in shown])

    return tools


@asynccontextmanager
async def talking(script: Any) -> AsyncIterator[tuple[AnthropicServer, AsyncAnthropic]]:
    with AnthropicServer(script) as server, anyio.fail_after(20):
        async with AsyncAnthropic(api_key=KEY, base_url=server.url, max_retries=0) as client:
            yield server, client


def parts(request: dict[str, Any], at: int = -1) -> list[dict[str, Any]]:
    return [part for block in request["messages"][at]["content"] for part in block["content"]]


def kinds(found: Sequence[dict[str, Any]]) -> list[str]:
    return [part["type"] for part in found]


WHOLE = [
    png(),
    saved("JPEG", progressive=True, size=(300, 300)),
    saved("JPEG", comment=b"\xff\xd9"),
    saved("GIF"),
    saved("WEBP"),
    saved("WEBP", lossless=True),
    saved("WEBP", exif=b"Exif\0\0II*\0"),
    png(2_000, 2_000),
]
WIDE = [saved(kind, size=(2_001, 9)) for kind in ("PNG", "JPEG", "GIF", "WEBP")]
NO_PICTURE = "not shown: it is no whole PNG, JPEG, GIF or WebP]"
DAMAGED = [
    png()[:40],
    PNG_START,
    png(0, 1),
    png_header(1, 1) + png_chunk(b"IEND", b""),
    b"\xff\xd8\xff<html>",
    JPEG_START * 3,
    b"\xff\xd8\xff" + b"\xff" * 100_000,
    *(saved(kind, comment=b"\xff\xd9")[:-5] for kind in ("JPEG", "GIF", "WEBP")),
    b"GIF89a\x01\0\x01\0\0\0;",
    b"RIFF" + struct.pack("<I", 12) + b"WEBPVP8 \0\0\0\0",
]


async def test_pictures_that_are_whole_are_shown_on_both_apis() -> None:
    tools = showing(*WHOLE)
    async with talking([asks(use("c1", "show")), says("Nice.")]) as (server, client):
        run = await run_agent("Show.", tools, client=client, model=MODEL)
    assert (run.text, server.refused) == ("Nice.", [])
    sent = [base64.b64decode(part["source"]["data"]) for part in parts(server.requests[1])]
    assert sent == WHOLE
    run, openai = await over_openai(tools)
    assert (run.text, openai.refused) == ("Nice.", [])
    assert kinds(openai.requests[1]["input"][-1]["output"]) == ["input_image"] * len(WHOLE)


async def over_openai(tools: ToolSystem) -> tuple[AgentRun, openai_server.OpenAIServer]:
    script = [openai_server.Answer(calls=[("c1", "show", {})]), openai_server.Answer(texts=["Nice."])]
    with openai_server.OpenAIServer(script) as server, anyio.fail_after(20):
        async with AsyncOpenAI(api_key=KEY, base_url=server.url, max_retries=0) as client:
            return await run_agent("Show.", tools, client=client, model=openai_server.MODEL), server


@pytest.mark.parametrize(
    ("pictures", "why"),
    [
        (DAMAGED, NO_PICTURE),
        (WIDE, " pixels; a side may have 2000]"),
        ([b"<svg/>", b"", b"RIFF\0\0\0\0WAVEfmt "], NO_PICTURE),
    ],
    ids=["damaged", "wide", "other"],
)
async def test_what_the_api_would_refuse_is_a_line_that_says_why(pictures: list[bytes], why: str) -> None:
    tools = showing(*pictures)
    async with talking([asks(use("c1", "show")), says("I see.")]) as (server, client):
        run = await run_agent("Show.", tools, client=client, model=MODEL)
    assert (run.text, server.refused) == ("I see.", [])
    lines = [part["text"] for part in parts(server.requests[1])]
    assert [line.endswith(why) for line in lines] == [True] * len(pictures), lines
    _, openai = await over_openai(tools)
    assert openai.refused == []
    assert kinds(openai.requests[1]["input"][-1]["output"]) == ["input_text"] * len(pictures)


async def test_the_server_refuses_what_we_do_not_send() -> None:
    async with talking([says("never")]) as (_, client):
        for data in DAMAGED:
            source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(data).decode()}
            message: Any = {"role": "user", "content": [{"type": "image", "source": source}]}
            with pytest.raises(BadRequestError, match=r"Could not process|appears to be"):
                await client.messages.create(model=MODEL, max_tokens=5, messages=[message])


async def test_of_many_pictures_in_one_result_twenty_are_shown() -> None:
    async with talking([asks(use("c1", "show")), says("Nice.")]) as (server, client):
        await run_agent("Show.", showing(*[png()] * 22), client=client, model=MODEL)
    sent = parts(server.requests[1])
    assert kinds(sent) == ["image"] * 20 + ["text"] * 2
    assert "20 pictures at most" in sent[-1]["text"]


async def test_large_pictures_keep_a_request_within_what_the_api_takes() -> None:
    """Six of them would be 30 MB in base64, and each result alone is within its own bound."""
    tools = showing(*map(large, range(3)))
    calls = [use(f"c{number}", "show") for number in range(3)]
    async with talking([asks(*calls), says("Nice.")]) as (server, client):
        run = await run_agent("Show.", tools, client=client, model=MODEL)
    assert (run.text, server.refused) == ("Nice.", [])
    first, second, third = (block["content"] for block in server.requests[1]["messages"][-1]["content"])
    assert kinds(third) == ["image", "image", "text"]
    assert "7,500,000 bytes together" in third[2]["text"]
    assert [*kinds(first), *kinds(second)] == ["text"] * 4 + ["image", "text"]
    assert "later pictures" in first[0]["text"]
    # The history holds them all, for whoever can take more.
    assert kinds(run.messages[-2]["content"][0]["content"]) == ["image", "image", "text"]


async def test_the_oldest_pictures_are_left_out_in_steps_so_that_the_cache_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = base64.b64encode(png()).decode()
    monkeypatch.setattr(history, "MAX_REQUEST_CHARS", 8 * len(picture))
    monkeypatch.setattr(history, "_STEP_CHARS", 4 * len(picture))
    monkeypatch.setattr(history, "LEAST_CHARS", 1)
    script = [*(asks(use(f"c{n}", "show", {"number": n}), said=f"{n}") for n in range(12)), says("Done.")]
    async with talking(script) as (server, client):
        await run_agent("Show.", showing(*[png()] * 12), client=client, model=MODEL)
    left_out = []
    for request in server.requests[1:]:
        found = [kinds(parts(request, at)) for at in range(2, len(request["messages"]), 2)]
        left_out.append(found.count(["text"]))
        assert found == sorted(found, reverse=True)  # the oldest
        assert found.count(["image"]) <= 8
    assert left_out == [0] * 8 + [4] * 4


def picky(request: dict[str, Any]) -> Any:
    """An API that takes no picture at all, for a reason that nobody can know."""
    if '"image"' in str(request).replace("'", '"'):
        return Failure(status=400, kind="invalid_request_error", message="Could not process image")
    return says("I see no picture.") if len(request["messages"]) < 5 else says("Still none.")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_is_refused_is_asked_once_more_without_pictures(stream: bool) -> None:
    tools, on_text = showing(png(), b"x"), (lambda _: None) if stream else None
    script: list[Callable[..., Any] | Any] = [asks(use("c1", "show")), *[picky] * 4]
    async with talking(script) as (server, client):
        model = AnthropicMessages(client)
        run = await run_agent("Show.", tools, client=model, model=MODEL, on_text=on_text)
        assert (run.stop, run.text) == (StopReason.FINISHED, "I see no picture.")
        again = [*run.messages, {"role": "user", "content": "And now?"}]
        assert (await run_agent(again, tools, client=model, model=MODEL)).text == "Still none."
    _, refused, without, later = server.requests
    assert kinds(parts(refused)) == ["image", "text"]
    (line, _) = parts(without)
    assert (
        line["text"] == f"[image/png, {len(png())} bytes; not shown: the provider refused a request with it]"
    )
    assert parts(later, 2) == parts(without)


async def test_so_it_is_with_openai_and_a_refusal_of_something_else_stays_one() -> None:
    refusal = openai_server.Failure(status=400, message="not this")
    script = [openai_server.Answer(calls=[("c1", "show", {})]), refusal, openai_server.Answer(texts=["No."])]
    with openai_server.OpenAIServer(script) as server, anyio.fail_after(20):
        async with AsyncOpenAI(api_key=KEY, base_url=server.url, max_retries=0) as client:
            model = OpenAIResponses(client)
            run = await run_agent("Show.", showing(png()), client=model, model=openai_server.MODEL)
    assert (run.text, len(server.requests)) == ("No.", 3)
    (line,) = server.requests[2]["input"][-1]["output"]
    assert line["type"] == "input_text"
    assert line["text"].startswith("[image/png, 6")
    script = [openai_server.Answer(calls=[("c1", "show", {})]), refusal, refusal]
    with openai_server.OpenAIServer(script) as server, anyio.fail_after(20):
        async with AsyncOpenAI(api_key=KEY, base_url=server.url, max_retries=0) as client:
            run = await run_agent("Show.", showing(png()), client=client, model=openai_server.MODEL)
    assert (run.stop, len(server.requests)) == (StopReason.FAILED, 3)
    assert "not this" in run.detail


@pytest.mark.parametrize("code", ["invalid_image", "image_content_policy_violation"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_picture_that_openai_names_in_its_answer_is_left_out_too(code: str, stream: bool) -> None:
    tools = showing(png())
    script = [
        openai_server.Answer(calls=[("c1", "show", {})]),
        openai_server.Answer(failed=(code, "The image data is not valid.")),
        openai_server.Answer(texts=["I see no picture."]),
        openai_server.Answer(texts=["Still none."]),
    ]
    with openai_server.OpenAIServer(script) as server, anyio.fail_after(20):
        async with AsyncOpenAI(api_key=KEY, base_url=server.url, max_retries=0) as client:
            model = OpenAIResponses(client)
            told: Any = [].append if stream else None
            run = await run_agent("Show.", tools, client=model, model=openai_server.MODEL, on_text=told)
            assert run.text == "I see no picture."
            again = [*run.messages, {"role": "user", "content": "And now?"}]
            run = await run_agent(again, tools, client=model, model=openai_server.MODEL, on_text=told)
    assert (run.text, server.refused, len(server.requests)) == ("Still none.", [], 4)
    assert [str(request["input"]).count("input_image'") for request in server.requests] == [0, 1, 0, 0]


async def test_no_more_pictures_are_looked_at_than_could_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[bytes] = []

    def measured(data: bytes) -> Any:
        looked_at.append(data)
        return output_pictures.measured(data)

    monkeypatch.setattr(pictures, "measured", measured)
    for data, most in ((png(), 20), (png()[:40], 40)):
        looked_at.clear()
        found = list(pictures.shown([MediaContent(data=data, media_type="image/png")] * 100))
        assert (len(found), len(looked_at)) == (100, most)
    (line,) = pictures.shown([MediaContent(data=b"", media_type="image/\ud800")])
    assert str(line).isascii()


async def test_a_request_without_pictures_that_is_refused_is_not_asked_again() -> None:
    async with talking([Failure(status=400, message="no"), says("never")]) as (server, client):
        run = await run_agent("Go.", showing(), client=client, model=MODEL)
    assert (run.stop, len(server.requests)) == (StopReason.FAILED, 1)
