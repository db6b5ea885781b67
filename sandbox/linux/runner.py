"""Runs code inside a child: as `__main__`, with the value of its last expression, and reports once at the
end.

Everything here happens inside the walls and in the same process as the code, which can change all of it. So
the report is only what the code says of itself; how the call ended is measured outside.
"""

from __future__ import annotations

import _ast
import _sitebuiltins
import atexit
import builtins
import errno
import gc
import io
import json
import linecache
import os
import socket
import sys
import traceback
import types

from sandbox.linux import artifacts, wire

TYPE_CHECKING = False  # typing itself is not loaded: it would cost milliseconds and pages
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from sandbox.linux.wire import Message

FILENAME = "<code>"
_MEASURE_S = 0.05  # a server that runs needs a hundredth of this
MAX_VALUE_CHARS = 10_000
MAX_EXCEPTION_CHARS = 200
OUT = "/tmp/out"  # noqa: S108 - inside the sandbox
REHEARSALS = (
    "import sys\ndef f(n):\n    return [str(i) + 'a' for i in range(n)]\n"
    "print(len(f(50)), {'a': 1.5})\nsum(range(100))",
    "class A:\n    x: int = 1\nprint('b', file=__import__('sys').stderr)\nraise ValueError('rehearsal')",
)


_FORKING = {"fork", "forkpty", "fork_exec", "_fork_exec", "posix_spawn", "posix_spawnp"}
_SPARE_BYTES = 1024 * 1024

_streams: list[io.TextIOWrapper] = []
_streams_of_zygote: list[object] = []  # kept: to let go of them would cost each child pages
_spare: list[bytes] = []  # given back when memory runs out, so that there is some to say so
_calls = 0  # of this session, so far


def streams() -> None:
    """Point Python's streams at descriptors 0, 1 and 2, unbuffered: what is printed survives any end."""
    stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    out, err = (
        io.TextIOWrapper(
            io.FileIO(fd, "w", closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
        )
        for fd in (1, 2)
    )
    _streams[:] = (stdin, out, err)
    use_streams()


def _prepare_streams() -> None:
    """Make Python's streams for children that will have a null device and two pipes: that costs 50 pages."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    kept = [os.dup(fd) for fd in range(3)]
    try:
        for number, fd in enumerate((null, writer, writer)):
            os.dup2(fd, number)
        streams()
    finally:
        for number, fd in enumerate(kept):
            os.dup2(fd, number)
        for fd in (null, reader, writer, *kept):
            os.close(fd)


def use_streams() -> None:
    """Have what was prepared as `sys.stdin`, `sys.stdout` and `sys.stderr`."""
    for name, stream in zip(("stdin", "stdout", "stderr"), _streams, strict=True):
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _streams_again() -> None:
    """Undo what an earlier call of the session did to the streams: each call has its own."""
    try:
        if not any(stream.closed for stream in _streams):
            use_streams()
            return
    except ValueError:
        pass  # detached from its descriptor
    streams()


def fresh_main() -> dict[str, object]:
    """A new `__main__` module; returns its namespace."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    return module.__dict__


def run(code: str, namespace: dict[str, object], filename: str = FILENAME) -> Message:
    """Run `code` and say what became of it: `exit_code`, `value`, `exception`, and the `limit` that it met.

    The value of a last expression is its `repr`. What went wrong is on stderr, as an interpreter prints it.
    """
    # As a parser counts lines: `splitlines` also ends them at form feeds and the like.
    lines = [f"{line}\n" for line in code.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    linecache.cache[filename] = (len(code), None, lines, filename)
    said: Message = {"exit_code": 0, "value": None, "exception": None}
    tree: Any = None
    try:
        tree = compile(code, filename, "exec", _ast.PyCF_ONLY_AST)
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
        _spare.clear()
        said |= _failure(error)
        if tree is None:
            said["limit"] = None  # the parser calls code that is nested too deeply a lack of memory
        if isinstance(error, SyntaxError) and error.filename == filename and error.text is None:
            # Found in the tree, which has no text: an interpreter would show the line of its file.
            error.text = "".join(lines[(error.lineno or 0) - 1 : error.lineno])
        _print_exception(error)
    return said


def _failure(error: BaseException) -> Message:
    """What a report says of an exception that nothing caught."""
    return {
        "exit_code": 1,
        "exception": type(error).__name__[:MAX_EXCEPTION_CHARS],
        "limit": _limit_met(error),
    }


def _limit_met(error: BaseException) -> str | None:
    """Which limit this exception comes from, of those that end nothing by themselves."""
    trace = _own_frames_left_out(error)
    number = error.errno if isinstance(error, OSError) else 0
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return "memory"
    if number in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return "disk"
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return "processes"
    if number == errno.EAGAIN and trace is not None:
        # What a descriptor that does not block says, too: it depends on what was tried.
        while trace.tb_next is not None:
            trace = trace.tb_next
        if _FORKING.intersection(trace.tb_frame.f_code.co_names):
            return "processes"
    return None


def shorten(text: str) -> str:
    if len(text) <= MAX_VALUE_CHARS:
        return text
    return f"{text[:MAX_VALUE_CHARS]}… ({len(text) - MAX_VALUE_CHARS} more characters)"


def rehearse(snippets: tuple[str, ...] = REHEARSALS[:1]) -> None:
    """Run snippets through the real path, so that the pages that code needs are there already.

    A child runs the first only: what an exception needs costs each call a millisecond, and few have one.
    """
    for code in snippets:
        json.dumps(run(code, fresh_main(), "<rehearsal>"))
        _rehearse_collecting()
    linecache.cache.clear()


def warm_up() -> None:
    """Touch what the next call of a session will, without a trace in it: a fork shares every page."""
    main = sys.modules["__main__"]
    json.dumps(run("1 + 1", fresh_main(), "<rehearsal>"))
    _rehearse_collecting()
    sys.modules["__main__"] = main
    linecache.cache.pop("<rehearsal>", None)


def _rehearse_collecting() -> None:
    artifacts.collect(OUT, 1, 1, known={}, pictures=[])


def finish(said: Message) -> None:
    """What an interpreter does at its end: wait for threads, run exit functions. Errors go to stderr."""
    # Nothing here imports `threading`: what it does after a fork would cost each child half a millisecond.
    threading: Any = sys.modules.get("threading")
    steps = [threading._shutdown] if hasattr(threading, "_shutdown") else []
    for step in (*steps, atexit._run_exitfuncs):
        try:
            step()
        except SystemExit as exit_:
            said["exit_code"] = _exit_code(exit_.code)
        except BaseException as error:
            _print_exception(error)


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
    global _calls  # noqa: PLW0603 - of this process, as its streams are
    if not _spare:
        _spare.append(bytes(_SPARE_BYTES))  # from fresh pages, which take no memory until they are used
    filename, known = FILENAME, {}
    if not last:
        _streams_again()
        _calls += 1
        filename = f"<code {_calls}>"
        known = artifacts.stamps(OUT)
    pictures = []
    try:
        place(header["files"], blobs)
    except OSError as error:
        print(f"the input files could not be written: {error}", file=sys.stderr)
        said: Message = {"value": None, **_failure(error)}
    else:
        own = os.getpid()
        said = run(str(header["code"]), namespace, filename)
        if os.getpid() != own:
            _leave_as_copy(said)
        pictures = artifacts.figures(OUT)
        if last:
            finish(said)
            namespace.clear()  # files that the code left open are written, as at an interpreter's end
    _flush()
    max_files, max_bytes = int(header["max_files"]), int(header["max_bytes"])
    found = artifacts.collect(OUT, max_files, max_bytes, known=known, pictures=pictures)
    return wire.frame({**said, "artifacts": found.names, "left_out": found.left_out}, found.blobs)


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
    exit_code = 1
    try:
        header, blobs = receive(channel)
        report = perform(header, blobs, fresh_main(), last=True)
        exit_code = json.loads(report[4 : 4 + int.from_bytes(report[:4], "little")])["exit_code"]
        channel.sendall(report)
        if exit_code == 0:
            _let_measure(channel)
    except EOFError:
        exit_code = 0  # the server is gone
    except BaseException as error:
        _spare.clear()
        _print_exception(error)
        said = {"value": None, **_failure(error), "artifacts": [], "left_out": []}
        channel.sendall(wire.frame(said, []))
    os._exit(exit_code & 0xFF)


def _let_measure(channel: socket.socket) -> None:
    """Stay until the server looked at what this process used: going takes longer than most calls do.

    It ends us or lets us go; when it is stopped, we go by ourselves.
    """
    try:
        channel.settimeout(_MEASURE_S)
        channel.recv(1)
    except OSError:
        pass


def prepare() -> None:
    """Done once in the zygote: what children would otherwise each do.

    The rehearsal imports what a traceback needs and fills caches: 2 ms of CPU less for each child.
    """
    sys.argv, sys.orig_argv = [""], [sys.executable]  # what ours are is not for the code, nor its parser's
    for name in ("exit", "quit"):  # of the module `site`, which is left out
        setattr(builtins, name, sys.exit)
    setattr(builtins, "help", _sitebuiltins._Helper())  # noqa: B010 - not in a checker's list of builtins
    artifacts.watch_figures()
    kept = sys.stdin, sys.stdout, sys.stderr
    _streams_of_zygote.extend(kept)
    _prepare_streams()
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            rehearse(REHEARSALS)
        finally:
            sys.stdin, sys.stdout, sys.stderr = kept
    gc.collect()
    gc.freeze()


def _exit_code(code: object) -> int:
    """The status that an interpreter ends with; what is no number it prints."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(2**63) <= code < 2**63 else 0xFF
    try:
        print(code, file=sys.stderr)
    except BaseException as error:
        _print_exception(error)
    return 1


def _own_frames_left_out(error: BaseException) -> types.TracebackType | None:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    return trace


def _print_exception(error: BaseException) -> None:
    """Print a traceback without our own frames."""
    try:
        traceback.print_exception(type(error), error, _own_frames_left_out(error))
    except BaseException:
        try:
            os.write(2, f"{type(error).__name__} (its text cannot be shown)\n".encode())
        except OSError:
            pass
