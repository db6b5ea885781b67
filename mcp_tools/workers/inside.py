"""A worker's own side: import the function once, then serve calls, one at a time, until the end.

Descriptor 3 leads to the server; 1 and 2 lead to its log, so nothing that is printed meets the protocol.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from mcp_tools.workers.frames import MessageTooLarge, framed_json, receive
from mcp_tools.workers.report import raised, returned
from mcp_tools.workers.shim import WORKER_FD
from mcp_tools.workers.target import Target, found_in_this_process
from mcp_tools.workers.view import context_in_worker


def main() -> NoReturn:
    """Serve until the server goes."""
    os.set_inheritable(WORKER_FD, False)
    server = _Server(socket.socket(fileno=WORKER_FD))
    setup = receive(server.channel)
    if setup is not None:
        function = _function(server, json.loads(setup))
        while function is not None and (request := receive(server.channel)) is not None:
            server.serve(function, request)
    os._exit(0)


def _function(server: _Server, setup: dict[str, Any]) -> Callable[..., Any] | None:
    """Import what is to be served, and say whether that went well."""
    sys.path[:] = setup["sys_path"]
    sys.argv[:] = setup["argv"]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    try:
        function = found_in_this_process(Target(**setup["target"]))
    except BaseException as error:
        server.send({**raised(error), "kind": "failed"})
        return None
    server.send({"kind": "ready"})
    return function


class _Server:
    """The channel to the server, shared by all threads of the function."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self._own = os.getpid()
        self._numbers = itertools.count(1)
        self._sending = threading.Lock()
        self._asking = threading.Lock()
        self._call = 0

    def send(self, message: dict[str, Any]) -> None:
        """Send a message of the call that runs.

        Raises:
            MessageTooLarge: It was not sent.
        """
        frame = framed_json(message)
        if os.getpid() != self._own:
            return  # a fork of the worker: the channel is not its to use
        with self._sending:
            self.channel.sendall(frame)

    def serve(self, function: Callable[..., Any], request: bytes) -> None:
        """Make one call and report what came of it."""
        self._call = number = next(self._numbers)
        try:
            wanted = pickle.loads(request)  # noqa: S301 - it comes from the server, never the other way
            keywords = wanted["arguments"]
            if wanted["context_parameter"] is not None:
                keywords[wanted["context_parameter"]] = context_in_worker(
                    wanted["context"],
                    lambda said: self._tell(number, said),
                    lambda said: self._ask(number, said),
                )
            value = function(**keywords)
            if inspect.isawaitable(value):
                value = asyncio.run(_awaited(value))
            report = framed_json({**returned(value), "call": number})
        except MessageTooLarge as error:
            report = framed_json({**raised(ValueError(f"the result is too large: {error}")), "call": number})
        except BaseException as error:
            report = framed_json({**raised(error), "call": number})
        if os.getpid() != self._own:
            os._exit(0)  # a process that the function forked, and that came back instead of ending
        with self._asking:  # a thread of the function may still wait for an answer, which is not ours to read
            self._call = 0
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # noqa: S112 - the function closed or replaced it
                continue
        with self._sending:
            self.channel.sendall(report)

    def _tell(self, number: int, message: dict[str, Any]) -> None:
        if number == self._call:  # a thread may outlive its call
            self.send({**message, "call": number})

    def _ask(self, number: int, message: dict[str, Any]) -> Any:
        with self._asking:
            if number != self._call or os.getpid() != self._own:
                raise RuntimeError("the call that this belongs to is over")
            self.send({**message, "call": number})
            answer = receive(self.channel)
            if answer is None:
                os._exit(0)
            return json.loads(answer)["decision"]


async def _awaited(value: Any) -> Any:
    return await value
