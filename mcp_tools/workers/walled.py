"""A function in a sandbox of its own for each call, called as the executor calls any function."""

from __future__ import annotations

import collections.abc
import json
import logging
import threading
import types
import typing
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread

from mcp_tools.calling import Raised, Returned
from mcp_tools.errors import RegistrationError, ToolError
from mcp_tools.output.plain import to_plain
from mcp_tools.types import CallContext, Usage
from mcp_tools.workers.bundle import SCRIPT, bundle_of
from mcp_tools.workers.results import WorkerFailed, WorkersClosed, outcome_of
from mcp_tools.workers.target import target_of

if TYPE_CHECKING:
    from sandbox import Sandbox, SandboxConfig, SandboxResult

logger = logging.getLogger(__name__)

MAX_RESULT_BYTES: Final = 16 * 1024 * 1024

_LONGEST_S: Final = 7 * 24 * 3600.0
"""A call's own deadline ends it; this is the most a sandbox allows."""
_MAX_LOG_CHARS: Final = 4_000
_FOLDER, _REQUEST, _RESULT = ".mcp_tools", "request.json", "result.json"
_CODE: Final = f"""
import os, sys
folder = os.path.abspath("{_FOLDER}")
sys.path.insert(0, folder)
import {SCRIPT}
{SCRIPT}.main(folder, folder + "/{_REQUEST}", os.environ["SANDBOX_OUT"] + "/{_RESULT}")
"""
_PRELOAD: Final = ("base64", "copy", "dataclasses", "datetime", "enum", "json", "typing")
"""What report.py and the words import, but for what costs each child time."""
_DATA: Final = (None, types.NoneType, bool, int, float, str, list, dict, tuple, object, Any)


class SandboxCallee:
    """A function that runs in a fresh sandbox for each call: no state, no network, no files of yours.

    Args:
        function: Importable by module and name, from sources; what its module imports at its top is of the
            standard library, its owner's own code, or in the packages of `config`.
        context_parameter: Must be None: a sandbox has no way back to the server.
        name: The tool's.
        config: What the code may use. None: the defaults. Tools with equal ones share a sandbox.
    Raises:
        RegistrationError: It cannot run in a sandbox, and why.
    """

    is_async: Final = True
    context_parameter: Final = None

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        context_parameter: str | None,
        name: str,
        config: SandboxConfig | None,
    ) -> None:
        if context_parameter is not None:
            raise RegistrationError(
                f"tool {name!r} cannot run with isolation='sandbox': its parameter {context_parameter!r} "
                "wants a CallContext, but nothing leads back to the server; use isolation='process'"
            )
        _check_annotations(function, name)
        from sandbox import SandboxConfig

        config = config or SandboxConfig()
        target = target_of(function, name)
        bundle = bundle_of(target, name, has_packages=config.packages is not None)
        self.function = function
        self._name = name
        self._wanted = {
            "module": bundle.module,
            "qualname": target.qualname,
            "first_line": target.first_line,
        }
        self._files = {f"{_FOLDER}/{path}": source.encode() for path, source in bundle.files.items()}
        self._room = _room_for(config, self, (*_PRELOAD, *bundle.preload))

    async def call(self, arguments: Mapping[str, Any], context: CallContext) -> Returned | Raised:
        """Call the function in a fresh sandbox and wait for it.

        Returns:
            Its result as plain data, or a `ToolOutput`; or what it raised. `WorkerFailed` says that it came
            to no end of its own, `TypeError` that its arguments are no JSON data.
        Cancelling ends all its processes before the cancellation goes on.
        """
        from sandbox import (
            SandboxBusy,
            SandboxClosed,
            SandboxConfigError,
            SandboxError,
            SandboxUnavailable,
        )

        try:
            wanted = json.dumps({**self._wanted, "arguments": dict(arguments)}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            return Raised(TypeError(f"a function in a sandbox takes JSON data only: {error}"))
        files = {**self._files, f"{_FOLDER}/{_REQUEST}": wanted.encode()}
        try:
            sandbox = await anyio.to_thread.run_sync(self._room.sandbox_for, self, abandon_on_cancel=True)
            result = await sandbox.execute(_CODE, files=files, tenant=context.principal)
        except SandboxConfigError as error:
            return Raised(ToolError(f"nothing was run: {error}"))
        except SandboxBusy as error:
            return Raised(ToolError(f"nothing was run: {error}", is_passing=True))
        except (ImportError, SandboxUnavailable) as error:
            text = f"{self._name} cannot run here: {error}\nOnly the owner of this server can change that."
            return Raised(ToolError(text))
        except SandboxClosed:
            return Raised(WorkersClosed("the server is ending"))
        except SandboxError as error:
            return Raised(WorkerFailed(str(error)))
        context.meter.add(Usage(sandbox_cpu_s=result.cpu_ms / 1000))
        self._log(result)
        return await anyio.to_thread.run_sync(_outcome, result)

    def warm(self) -> None:
        """Start the sandbox, in the background; returns at once. What goes wrong the next call says."""
        name = "mcp-tools-sandbox-start"
        threading.Thread(target=self._room.warm, args=(self,), name=name, daemon=True).start()

    def close(self) -> None:
        """End the sandbox with the last tool that shares it, within 2 s. Can be called again."""
        self._room.leave(self)

    def _log(self, result: SandboxResult) -> None:
        for stream, text in (("stdout", result.stdout), ("stderr", result.stderr)):
            if text:
                logger.info("sandbox of %s: %s: %r", self._name, stream, text[:_MAX_LOG_CHARS])


def _outcome(result: SandboxResult) -> Returned | Raised:
    data = next((each.data for each in result.artifacts if each.name == _RESULT), None)
    if data is None:
        why = result.error or "it left without a result"
        return Raised(WorkerFailed(f"the function did not come to its end in the sandbox: {why}"))
    try:
        message = to_plain(json.loads(data))
    except (ValueError, RecursionError):
        message = None
    match message:
        case {"kind": "failed", "type": str(kind), "text": str(text)}:
            return Raised(WorkerFailed(f"its function cannot be imported in a sandbox: {kind}: {text}"))
        case dict():
            return outcome_of(message)
    return Raised(WorkerFailed("what came from the sandbox is no result; nothing is known of this call"))


def _check_annotations(function: Callable[..., Any], name: str) -> None:
    """Refuse parameters that JSON has no values for, as far as annotations tell."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # names that only exist where the function was registered; a call says the rest
        return
    for parameter, annotation in hints.items():
        if parameter != "return" and (odd := _no_data(annotation)) is not None:
            raise RegistrationError(
                f"tool {name!r} cannot run with isolation='sandbox': its parameter {parameter!r} takes "
                f"{getattr(odd, '__qualname__', odd)!r}, and only JSON data can be sent there; use text, "
                "numbers, lists and dicts, or isolation='process'"
            )


def _no_data(annotation: Any) -> Any:
    """Return the part of an annotation that is no JSON data, or None."""
    if any(annotation is each for each in _DATA) or isinstance(annotation, typing.TypeVar):
        return None
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return None
    if origin is not None:
        sequences = (collections.abc.Sequence, collections.abc.Mapping, collections.abc.Iterable)
        is_known = origin in (*_DATA, *sequences, typing.Union, types.UnionType, typing.Annotated)
        parts = (part for part in typing.get_args(annotation) if part is not Ellipsis)
        return (
            next((odd for part in parts if (odd := _no_data(part)) is not None), None) if is_known else origin
        )
    is_typed_dict = isinstance(annotation, type) and issubclass(annotation, dict)
    return None if is_typed_dict else annotation


# --- one sandbox for all tools that want the same of it --------------------------------------


class _Room:
    """A sandbox that several tools share, started when the first of them is called."""

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config
        self.preload: set[str] = set()
        # Weakly: one whose registration failed in the end is never closed.
        self.tools: weakref.WeakSet[SandboxCallee] = weakref.WeakSet()
        self._starting = threading.Lock()
        self._sandbox: Sandbox | None = None

    def sandbox_for(self, tool: SandboxCallee) -> Sandbox:
        """Return the sandbox. Blocks while it starts.

        Raises:
            SandboxError: It does not start.
        """
        from sandbox import SandboxClosed, choose

        with self._starting:
            if tool not in self.tools:
                raise SandboxClosed("the server is ending")
            if self._sandbox is None:
                config = replace(
                    self.config,
                    timeout_seconds=_LONGEST_S,
                    max_artifact_bytes=MAX_RESULT_BYTES,
                    preload=tuple(sorted({*self.config.preload, *self.preload})),
                )
                choice = choose(config)
                logger.info("tools in a sandbox run at %s (%s)", choice.level, choice.backend)
                self._sandbox = choice.sandbox
            return self._sandbox

    def warm(self, tool: SandboxCallee) -> None:
        try:
            self.sandbox_for(tool)
        except Exception as error:
            logger.warning("the sandbox for tools did not start: %s", error)

    def leave(self, tool: SandboxCallee) -> None:
        with _rooms_lock:
            self.tools.discard(tool)
            if self.tools:
                return
            if self in _rooms:
                _rooms.remove(self)
        with self._starting:
            sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            sandbox.close()


_rooms_lock = threading.Lock()
_rooms: list[_Room] = []


def _room_for(config: SandboxConfig, tool: SandboxCallee, preload: tuple[str, ...]) -> _Room:
    with _rooms_lock:
        room = next((each for each in _rooms if each.config == config), None)
        if room is None:
            room = _Room(config)
            _rooms.append(room)
        room.tools.add(tool)
        room.preload.update(preload)
        return room
