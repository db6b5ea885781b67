"""The tool itself: arguments to the sandbox, its answer or its refusal to the model."""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import anyio
from pydantic import BaseModel, ConfigDict, Field

from mcp_tools.builtin.python.options import (
    PythonOptions,
    is_closed,
    network,
    readable_folders,
    sandbox_config,
    writable_folders,
)
from mcp_tools.builtin.python.result import output
from mcp_tools.builtin.workspace.problems import shown
from mcp_tools.errors import ToolError
from mcp_tools.types import CallContext, Preview, ToolOutput, Usage

if TYPE_CHECKING:
    from sandbox import Sandbox, SandboxConfig, SandboxResult

logger = logging.getLogger(__name__)

_FOR_THE_OWNER: Final = "Only the owner of this server can change that; trying again will not help."


class FileBytes(BaseModel):
    """A file that is no text."""

    model_config = ConfigDict(defer_build=True, extra="forbid")

    base64: str = Field(description="Its bytes.")


Files = Mapping[str, str | FileBytes]


class PythonTool:
    """`execute_python` over one sandbox, which starts at the first call.

    Args:
        limits: What a call may use.
        always_confirm: A person is asked before each call, whatever rules say.
    """

    def __init__(self, limits: PythonOptions | SandboxConfig, *, always_confirm: bool = False) -> None:
        self.limits = limits
        self._always_confirm = always_confirm
        self._lock = threading.Lock()
        self._sandbox: Sandbox | None = None
        self._is_closed = False

    async def run(
        self,
        code: str,
        session: str | None,
        files: Files | None,
        timeout_seconds: float | None,
        context: CallContext,
    ) -> ToolOutput:
        """Run the code and return what came of it.

        That the code failed is an answer, not a tool error: an error's text is cut at 10,000 characters and
        carries neither data nor pictures, and what a failing program printed is what a model needs most.

        Raises:
            ToolError: It was not run, or not to its end, for a reason outside of the code.
        Cancelling ends all its processes.
        """
        given = _decoded(files)
        if self._sandbox is None:
            await context.report_progress(0, None, "starting the sandbox")
        sandbox = await anyio.to_thread.run_sync(self._ready, abandon_on_cancel=True)
        from sandbox import (
            SandboxBusy,
            SandboxClosed,
            SandboxConfigError,
            SandboxDied,
            SandboxError,
            SandboxUnavailable,
        )

        key = None if session is None else _session_key(session, context)
        try:
            result: SandboxResult = await sandbox.execute(
                code,
                session=key,
                files=given,
                timeout_seconds=timeout_seconds,
                tenant=context.principal,
            )
        except SandboxConfigError as error:
            raise ToolError(f"nothing was run: {error}") from error
        except SandboxUnavailable as error:
            raise _cannot_run(error) from error
        except SandboxBusy as error:
            raise ToolError(f"nothing was run: {error}. Try again in a few seconds") from error
        except SandboxDied as error:
            raise ToolError(
                f"the code was ended because the sandbox around it died ({error}); sessions may be lost. "
                "Trying again makes sense"
            ) from error
        except SandboxClosed as error:
            raise ToolError("nothing was run: the sandbox is closed, this server is ending") from error
        except SandboxError as error:
            # All its sessions are busy, one ended or did not start, or this process is out of descriptors.
            said = str(error) if key is None else str(error).replace(repr(key), shown(str(session)))
            raise ToolError(
                f"nothing came of this call: {said}. Try again in a few seconds, without `session` where the "
                "code does not need one; where that does not help either, only the owner of this server can"
            ) from error
        context.meter.add(Usage(sandbox_cpu_s=result.cpu_ms / 1000))
        return output(result, session=session)

    def preview(
        self,
        code: str,
        session: str | None,
        files: Files | None,
        timeout_seconds: float | None,
    ) -> Preview:
        """Say what the code could reach, and show it."""
        reach = []
        if self.limits.allow_network:
            reach.append(network(self.limits))
        for folder, target in writable_folders(self.limits):
            where = "" if folder == target else f", which it sees as {shown(target)}"
            reach.append(f"It can change everything in {shown(folder)}{where}.")
        for folder, _ in readable_folders(self.limits):
            reach.append(f"It can read everything in {shown(folder)}.")
        if is_closed(self.limits):
            reach.append("It can change nothing outside of its sandbox.")
        if session is not None:
            reach.append(f"It continues session {shown(session)}, with what earlier calls left there.")
        seconds = self.limits.timeout_seconds if timeout_seconds is None else timeout_seconds
        reach.append(f"It may run for {seconds:g} s.")
        return Preview(text="\n".join([*reach, "", code]), shows=frozenset({"code"}))

    def must_ask(
        self,
        code: str,
        session: str | None,
        files: Files | None,
        timeout_seconds: float | None,
    ) -> str | None:
        """Say why a person is asked even where a rule allows the call."""
        return "the setting python_always_confirm wants it" if self._always_confirm else None

    def close(self) -> None:
        """End the sandbox with everything in it. Later calls fail. Can be called again."""
        with self._lock:
            self._is_closed = True
            sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            sandbox.close()

    def _ready(self) -> Sandbox:
        """The sandbox, which the first call chooses and starts. Blocks meanwhile."""
        with self._lock:
            if self._is_closed:
                raise ToolError("nothing was run: the sandbox is closed, this server is ending")
            if self._sandbox is None:
                self._sandbox = self._start()
            return self._sandbox

    def _start(self) -> Sandbox:
        try:
            from sandbox import SandboxConfigError, SandboxError, SandboxUnavailable, choose

            limits = self.limits
            of_containers: dict[str, Any] = {}
            if isinstance(limits, PythonOptions):
                names = ("backend", "image", "runtime", "engine")
                of_containers = {name: getattr(limits, name) for name in names}
            choice = choose(sandbox_config(limits), **of_containers)
        except SandboxConfigError as error:
            raise ToolError(f"execute_python is not set up right: {error}. {_FOR_THE_OWNER}") from error
        except (ImportError, SandboxUnavailable) as error:
            raise _cannot_run(error) from error
        except SandboxError as error:
            raise ToolError(f"the sandbox did not start: {error}. Trying again makes sense") from error
        logger.info("execute_python runs at %s (%s)", choice.level, choice.backend)
        for each in choice.missing:
            logger.info("nothing stronger: %s", each)
        return choice.sandbox


def _cannot_run(error: Exception) -> ToolError:
    return ToolError(f"execute_python cannot run here: {error}\n{_FOR_THE_OWNER}")


def _session_key(name: str, context: CallContext) -> str:
    """Two connections of one principal do not share sessions, whatever their models call them.

    A connection over stdio is alone with its server. From the 2026-07-28 protocol on, HTTP knows no
    sessions: there the names are the principal's.
    """
    connection = context.session_id
    prefix = "" if connection is None else hashlib.sha256(connection.encode()).hexdigest()[:16]
    return f"{prefix}:{name}"


def _decoded(files: Files | None) -> dict[str, bytes | str] | None:
    if not files:
        return None
    found: dict[str, bytes | str] = {}
    for name, content in files.items():
        if isinstance(content, str):
            found[name] = content
            continue
        try:
            found[name] = base64.b64decode(content.base64, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ToolError(f"nothing was run: files.{name}.base64 is not base64 ({error})") from error
    return found
