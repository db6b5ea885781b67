"""What else runs Python code: bare, behind walls of others, in a kernel that is kept, in a subset."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.sandbox.subject import (
    CALL_LIMIT_S,
    ENVIRONMENT,
    PANDAS_SNIPPET,
    SNIPPET,
    Blocking,
    Command,
    NotAvailable,
    Subject,
    run,
)

PYTHON = "/usr/bin/python3"
# Where Debian looks for packages; a `.pth` file in one of them runs in every start of the interpreter.
SITE_FOLDERS = ("/usr/lib/python3/dist-packages", "/usr/local/lib/python{}/dist-packages")


def clean_python(scratch: Path) -> str:
    """The system's interpreter in an empty environment: the same start, without hooks of this machine."""
    if not Path(PYTHON).exists():
        raise NotAvailable(f"no {PYTHON}")
    folder = scratch / "clean"
    if not folder.exists():
        run([PYTHON, "-m", "venv", "--without-pip", str(folder)])
    return str(folder / "bin/python")


class CleanPython(Command):
    async def open(self) -> None:
        self.argv = [clean_python(self.scratch), "-c", SNIPPET]


class Python(Command):
    async def open(self) -> None:
        clean_python(self.scratch)
        self.argv = [PYTHON, "-c", SNIPPET]


class BarestPython(Command):
    async def open(self) -> None:
        clean_python(self.scratch)
        self.argv = [PYTHON, "-I", "-S", "-c", SNIPPET]


class ColdPandas(Command):
    """Our own interpreter with its packages, nothing else of its environment, and the import in each call."""

    snippet = PANDAS_SNIPPET

    async def open(self) -> None:
        import pandas

        packages = str(Path(pandas.__file__).parent.parent)
        set_path = f"import sys; sys.path.append({packages!r})\n"
        self.argv = [sys.executable, "-I", "-S", "-c", set_path + self.snippet]
        self.run(0)


class Bubblewrap(Command):
    """`bwrap` as its manual advises for programs one does not trust, around a bare interpreter."""

    async def open(self) -> None:
        self.argv = bwrap_argv()
        try:
            self.run(0)
        except RuntimeError as error:
            raise NotAvailable(str(error)) from None


def bwrap_argv() -> list[str]:
    bwrap = shutil.which("bwrap", path=ENVIRONMENT["PATH"])
    if bwrap is None:
        raise NotAvailable("bwrap is not installed (package bubblewrap)")
    version = run([PYTHON, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    walls = "--unshare-all --unshare-user --disable-userns --die-with-parent --new-session --clearenv"
    walls += " --cap-drop ALL --uid 1000 --gid 1000 --hostname sandbox --proc /proc --dev /dev"
    tree = ["--ro-bind", "/usr", "/usr", "--size", str(64 * 1024**2), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    for name in ("bin", "lib", "lib64"):
        if Path("/", name).is_symlink():
            tree += ["--symlink", f"usr/{name}", f"/{name}"]
        elif Path("/", name).exists():
            tree += ["--ro-bind", f"/{name}", f"/{name}"]
    for folder in SITE_FOLDERS:
        if Path(folder.format(version)).exists():
            tree += ["--tmpfs", folder.format(version)]
    return [bwrap, *walls.split(), *tree, "--", PYTHON, "-c", SNIPPET]


class Sandlock(Blocking):
    """Landlock, seccomp and a supervisor around a process for each call."""

    async def open(self) -> None:
        try:
            import sandlock
        except ImportError:
            raise NotAvailable("sandlock is not installed") from None
        self.sandlock: Any = sandlock
        self.argv = [clean_python(self.scratch), "-c", SNIPPET]
        self.writable = self.scratch / "sandlock"
        self.writable.mkdir(exist_ok=True)
        try:
            self.run(0)
        except (RuntimeError, sandlock.SandlockError) as error:
            raise NotAvailable(str(error)) from None

    def run(self, caller: int) -> str:
        sandbox = self.sandlock.Sandbox(
            fs_readable=["/usr", "/lib", "/lib64", "/etc", "/proc", "/dev", str(self.scratch / "clean")],
            fs_writable=[str(self.writable)],
            max_memory="256M",
            max_processes=32,
            clean_env=True,
            env=dict(ENVIRONMENT),
        )
        result = sandbox.run(self.argv, timeout=CALL_LIMIT_S)
        if not result.success:
            raise RuntimeError(f"sandlock: {result}")
        return str(result.stdout.decode())

    async def close(self) -> None:
        """Nothing is left of a call."""


class LlmSandbox(Blocking):
    """llm-sandbox with its daemonless backend, a session for each call, no set-up of packages."""

    async def open(self) -> None:
        try:
            from llm_sandbox import SandboxBackend, SandboxSession
        except ImportError:
            raise NotAvailable("llm-sandbox is not installed") from None

        def session() -> Any:
            return SandboxSession(
                backend=SandboxBackend.BUBBLEWRAP, lang="python", skip_environment_setup=True
            )

        self.session = session
        try:
            self.run(0)
        except Exception as error:
            raise NotAvailable(f"{type(error).__name__}: {error}") from None

    def run(self, caller: int) -> str:
        with self.session() as session:
            return str(session.run(SNIPPET).stdout)

    async def close(self) -> None:
        """Nothing is left of a call."""


class Monty(Blocking):
    """An interpreter of its own for a subset of Python, in warm worker processes."""

    async def open(self) -> None:
        try:
            import pydantic_monty
        except ImportError:
            raise NotAvailable("pydantic-monty is not installed") from None
        self.monty: Any = pydantic_monty
        self.open_things = contextlib.ExitStack()
        self.pool: Any = self.open_things.enter_context(pydantic_monty.Monty(min_processes=2))
        self.run(0)

    def run(self, caller: int) -> str:
        printed = self.monty.CollectString()
        with self.pool.checkout() as session:
            session.feed_run(SNIPPET, print_callback=printed)
        return str(printed.output)

    async def close(self) -> None:
        self.open_things.close()


class Jupyter(Subject):
    """A kernel that runs one call after another in the same process, as notebooks do: no walls."""

    async def open(self) -> None:
        try:
            import ipykernel  # noqa: F401
            from jupyter_client.manager import start_new_async_kernel
        except ImportError:
            raise NotAvailable("ipykernel and jupyter-client are not installed") from None
        self.manager, client = await start_new_async_kernel()
        self.client: Any = client
        self.waiting: dict[str, asyncio.Future[str]] = {}
        self.printed: dict[str, str] = {}
        self.reader = asyncio.create_task(self._read())
        await self.call(0)

    async def _read(self) -> None:
        while True:
            message = await self.client.get_iopub_msg()
            call = message["parent_header"].get("msg_id")
            if call not in self.waiting:
                continue
            if message["msg_type"] == "stream":
                self.printed[call] = self.printed.get(call, "") + message["content"]["text"]
            elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                self.waiting.pop(call).set_result(self.printed.pop(call, ""))

    async def call(self, caller: int) -> str:
        call = self.client.execute(SNIPPET, store_history=False)
        self.waiting[call] = answer = asyncio.get_running_loop().create_future()
        return await asyncio.wait_for(answer, CALL_LIMIT_S)

    async def close(self) -> None:
        self.reader.cancel()
        self.client.stop_channels()
        await self.manager.shutdown_kernel(now=True)
