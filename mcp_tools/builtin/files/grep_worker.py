"""Matches one regular expression in a process of its own, because `re` cannot be interrupted.

Run by `regex_process.py` as a script, with nothing of this package importable. Reads blocks of whole
lines from stdin and answers each with the lines that match; ends with its input or its parent.
"""

import json
import re
import resource
import signal
import struct
import sys

CPU_SECONDS = 15
MEMORY_BYTES = 1024 * 1024 * 1024
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer block after block until the input ends."""
    limit_self()
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer

    def answer(value: object) -> None:
        encoded = json.dumps(value).encode()
        stdout.write(struct.pack("!I", len(encoded)) + encoded)
        stdout.flush()

    def block() -> bytes | None:
        header = stdin.read(4)
        return stdin.read(struct.unpack("!I", header)[0]) if len(header) == 4 else None

    answer("started")
    first = block()
    if first is None:
        return
    request = json.loads(first)
    try:
        pattern = re.compile(request["pattern"], re.IGNORECASE if request["ignore_case"] else 0)
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        answer({"error": str(error) or type(error).__name__})
        return
    answer("compiled")
    while (content := block()) is not None:
        found = []
        for number, line in enumerate(content.decode("utf-8", "surrogateescape").split("\n")):
            match = pattern.search(line.removesuffix("\r"))
            if match is not None:
                found.append([number, match.start()])
        answer(found)


def limit_self() -> None:
    """Bound what a pattern can cost even when nobody is left to end this process."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


if __name__ == "__main__":
    main()
