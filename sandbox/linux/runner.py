"""Runs code inside a child: as `__main__`, with the value of its last expression, and reports once at the
end.

Everything here happens inside the walls and in the same process as the code, which can change all of it. So
the report is only what the code says of itself; how the call ended is measured outside.
"""

from __future__ import annotations

import _ast
import atexit
import builtins
import gc
import io
import json
import linecache
import os
import socket
import stat
import sys
import threading
import traceback
import types

from sandbox.linux import wire

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from sandbox.linux.wire import Message

FILENAME = "<code>"
MAX_VALUE_CHARS = 10_000
MAX_NAME_CHARS = 512
OUT = "/tmp/out"  # noqa: S108 - inside the sandbox
REHEARSALS = (
    "import sys\ndef f(n):\n    return [str(i) + 'a' for i in range(n)]\n"
    "print(len(f(50)), {'a': 1.5})\nsum(range(100))",
    "class A:\n    x: int = 1\nprint('b', file=__import__('sys').stderr)\nraise ValueError('rehearsal')",
)


def streams() -> None:
    """Point Python's streams at descriptors 0, 1 and 2, unbuffered: what is printed survives any end."""
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    for name, fd in (("stdout", 1), ("stderr", 2)):
        raw = io.FileIO(fd, "w", closefd=False)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def fresh_main() -> dict[str, object]:
    """A new `__main__` module; returns its namespace."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    return module.__dict__


def run(code: str, namespace: dict[str, object], filename: str = FILENAME) -> Message:
    """Run `code` and say what became of it: `exit_code`, `value`, `exception` and, for an `OSError`, `errno`.

    The value of a last expression is its `repr`. What went wrong is on stderr, as an interpreter prints it.
    """
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    said: Message = {"exit_code": 0, "value": None, "exception": None}
    try:
        tree: Any = compile(code, filename, "exec", _ast.PyCF_ONLY_AST)
        body = tree.body
        last = body.pop() if body and isinstance(body[-1], _ast.Expr) else None
        if body:
            exec(compile(tree, filename, "exec"), namespace)  # noqa: S102 - what this is for
        if last is not None:
            value = eval(compile(_ast.Expression(last.value), filename, "eval"), namespace)  # noqa: S307
            if value is not None:
                namespace["_"] = value
                said["value"] = shorten(repr(value))
    except SystemExit as exit_:
        said["exit_code"] = _exit_code(exit_.code)
    except BaseException as error:
        said["exit_code"] = 1
        said["exception"] = type(error).__name__
        if isinstance(error, OSError):
            said["errno"] = error.errno
        _print_exception(error)
    return said


def shorten(text: str) -> str:
    if len(text) <= MAX_VALUE_CHARS:
        return text
    return f"{text[:MAX_VALUE_CHARS]}… ({len(text) - MAX_VALUE_CHARS} more characters)"


def rehearse() -> None:
    """Run two snippets through the real path, so that the pages that code needs are there already."""
    for code in REHEARSALS:
        said = run(code, fresh_main(), "<rehearsal>")
        json.dumps(said)
        collect(1, 1)
    linecache.cache.clear()


def warm_up() -> None:
    """Touch what the next call of a session will, without a trace in it: a fork shares every page."""
    main = sys.modules["__main__"]
    said = run("1 + 1", fresh_main(), "<rehearsal>")
    json.dumps(said)
    collect(1, 1)
    sys.modules["__main__"] = main
    linecache.cache.pop("<rehearsal>", None)


def finish(said: Message) -> None:
    """What an interpreter does at its end: wait for threads, run exit functions. Errors go to stderr."""
    for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            step()
        except SystemExit as exit_:
            said["exit_code"] = _exit_code(exit_.code)
        except BaseException as error:
            _print_exception(error)


def figures() -> None:
    """Save every open matplotlib figure that the code did not save itself as `figure-N.png`."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return
    try:
        for number in pyplot.get_fignums():
            path = f"{OUT}/figure-{number}.png"
            if not os.path.exists(path):
                pyplot.figure(number).savefig(path, bbox_inches="tight")
        pyplot.close("all")
    except Exception as error:
        print(f"a figure could not be saved: {type(error).__name__}: {error}", file=sys.stderr)


def collect(max_files: int, max_bytes: int) -> tuple[list[list[object]], list[bytes], list[str]]:
    """What is in `/tmp/out`: `[name, size]` of each file, their bytes, and what was left out with the reason.

    Links are not followed; files over the limits are named and left out whole.
    """
    names: list[list[object]] = []
    blobs: list[bytes] = []
    left_out: list[str] = []
    found = 0
    for folder, folders, files in os.walk(OUT):
        folders.sort()
        for file in sorted(files):
            path = f"{folder}/{file}"
            name = path[len(OUT) + 1 :].encode("utf-8", "backslashreplace").decode()[:MAX_NAME_CHARS]
            found += 1
            if len(names) >= max_files or len(left_out) >= max_files + 16:
                if found - len(names) <= 16:
                    left_out.append(f"{name}: more than {max_files} files")
                continue
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                left_out.append(f"{name}: {error.strerror}")
                continue
            with open(fd, "rb") as opened:
                about = os.fstat(fd)
                if not stat.S_ISREG(about.st_mode):
                    left_out.append(f"{name}: not an ordinary file")
                elif about.st_size > max_bytes:
                    left_out.append(f"{name}: {about.st_size} bytes are more than the {max_bytes} left")
                else:
                    data = opened.read(max_bytes)
                    max_bytes -= len(data)
                    names.append([name, len(data)])
                    blobs.append(data)
    return names, blobs, left_out


def receive(channel: socket.socket) -> tuple[Message, list[bytes]]:
    """Wait for a request: its header and the contents of its files.

    Raises:
        EOFError: The server is gone.
    """
    size = int.from_bytes(wire.read_exactly(channel, wire.LENGTH_BYTES), "little")
    header = json.loads(wire.read_exactly(channel, size))
    return header, [wire.read_exactly(channel, length) for _, length in header["files"]]


def place(names: list[list[object]], blobs: list[bytes]) -> None:
    """Write a request's files into the working folder."""
    for (name, _), data in zip(names, blobs, strict=True):
        folder = os.path.dirname(str(name))
        if folder:
            os.makedirs(folder, exist_ok=True)
        with open(str(name), "wb") as file:
            file.write(data)


def perform(header: Message, blobs: list[bytes], namespace: dict[str, object], *, last: bool) -> bytes:
    """Carry out a request and return the report as a frame. `last`: this process ends with it."""
    try:
        place(header["files"], blobs)
    except OSError as error:
        print(f"the input files could not be written: {error}", file=sys.stderr)
        said: Message = {
            "exit_code": 1,
            "value": None,
            "exception": "OSError",
            "errno": error.errno,
        }
    else:
        own = os.getpid()
        said = run(str(header["code"]), namespace)
        if os.getpid() != own:
            _leave_as_copy(said)
        figures()
        if last:
            finish(said)
    _flush()
    names, contents, left_out = collect(int(header["max_files"]), int(header["max_bytes"]))
    said["artifacts"] = names
    said["left_out"] = left_out
    return wire.frame(said, contents)


def _leave_as_copy(said: Message) -> NoReturn:
    """End a process that the code forked and that came to the code's end: the report is not its to make."""
    finish(said)
    _flush()
    os._exit(int(said["exit_code"]) & 0xFF)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: S110 - the code closed or replaced it
            pass


def serve_one(channel: socket.socket) -> None:
    """Run the one call of this process, report, and leave. Never returns."""
    try:
        header, blobs = receive(channel)
    except EOFError:
        os._exit(0)
    exit_code = 1
    try:
        namespace = fresh_main()
        report = perform(header, blobs, namespace, last=True)
        exit_code = json.loads(report[4 : 4 + int.from_bytes(report[:4], "little")])["exit_code"]
        channel.sendall(report)
    except BaseException as error:
        _print_exception(error)
    os._exit(exit_code & 0xFF)


def prepare() -> None:
    """Done once in the zygote: what children would otherwise each do.

    The rehearsal imports what a traceback needs and fills caches: 2 ms of CPU less for each child.
    """
    kept = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            rehearse()
        finally:
            sys.stdout, sys.stderr = kept
    gc.collect()
    gc.freeze()


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _print_exception(error: BaseException) -> None:
    """Print a traceback without our own frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    try:
        traceback.print_exception(type(error), error, trace)
    except BaseException:
        try:
            os.write(2, f"{type(error).__name__} (its text cannot be shown)\n".encode())
        except OSError:
            pass
