"""How the server and the agent in a container talk: frames over the container's stdin and stdout.

A frame is 4 bytes of length (little-endian), a JSON object of that length, and then the blobs whose lengths
the object's `"blobs"` lists. Both sides use this module; it needs no particular system.

Server to agent:

- `{"setup": {…}}`: once, first; see `_DEFAULTS` in `sandbox.docker.inside.agent` for its keys.
- `{"call": n, "wall_s": s, "code": "…", "files": [[name, size], …], "max_files": m, "max_bytes": b}` with the
  contents of the files as blobs. `n` is the number of the last `ready`.
- `{"kill": n}`: end that call. The end of the stream: end everything and exit.

Agent to server:

- `{"hello": {"python", "machine", "seccomp", "landlock", "cgroup", "limits_memory", "limits_processes",
  "keeps_state", "cap_eff", "no_new_privs", "uid"}}`: at once.
- `{"ready": n}`: a locked-down child waits for call `n`.
- `{"failed": "reason"}`: it cannot go on, and exits. With `"needs": "no init"` it could run in a container
  where it is the first process itself.
- `{"out": 1 | 2}` with one blob: something from stdout or stderr, within the limit of the stream.
- `{"report": n}` with one blob: a part of what the child reports; the parts of a call are to be joined.
- `{"ended": n, "exit", "signal", "why", "cpu_ns", "peak_bytes", "ooms", "refused_forks", "dropped": [o, e],
  "state"}`: the last frame of a call. Every other frame of the call came before it. With `exit` and `signal`
  both null the call was over by its report, and its process lives on as the state of the session.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False  # the agent imports this: typing itself would cost milliseconds and pages
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    Header = dict[str, Any]

LENGTH_BYTES = 4
MAX_BLOBS = 4096

OWN_PROCESSES = 2
"""Beside those of a call: docker's init and the agent."""
OWN_PROCESSES_OF_SESSION = 4
"""Beside those of a call: also the init of the session, and the copy of its last good state."""


class BrokenFrame(ValueError):
    """What came is no frame, or is larger than its reader takes. The stream cannot be read any further."""


def encode(header: Header, blobs: Sequence[bytes | memoryview] = ()) -> bytes:
    """A frame with `blobs`, whose lengths are added to `header`."""
    if blobs:
        header = {**header, "blobs": [len(blob) for blob in blobs]}
    # As UTF-8, which is at most half of the same text in escapes; code may hold halves of surrogate pairs.
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b"".join([len(text).to_bytes(LENGTH_BYTES, "little"), text, *blobs])


class Reader:
    """Takes frames out of bytes as they come; holds at most one unfinished frame.

    Args:
        max_header_bytes: Of the JSON text of a frame.
        max_blob_bytes: Of all blobs of a frame together.
    """

    def __init__(self, *, max_header_bytes: int, max_blob_bytes: int) -> None:
        self._max_header_bytes = max_header_bytes
        self._max_blob_bytes = max_blob_bytes
        self._data = bytearray()
        self._header: Header | None = None
        self._lengths: list[int] = []

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[Header, list[bytes]]]:
        """Take more bytes; the frames that are complete now, as pairs of header and blobs.

        Raises:
            BrokenFrame: These bytes are no frame, or one beyond the limits. Nothing more can be read.
        """
        self._data += data
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> tuple[Header, list[bytes]] | None:
        if self._header is None:
            if len(self._data) < LENGTH_BYTES:
                return None
            size = int.from_bytes(self._data[:LENGTH_BYTES], "little")
            if not 0 < size <= self._max_header_bytes:
                raise BrokenFrame(f"a frame's header of {size} bytes")
            if len(self._data) < LENGTH_BYTES + size:
                return None
            self._header, self._lengths = self._understood(self._data[LENGTH_BYTES : LENGTH_BYTES + size])
            del self._data[: LENGTH_BYTES + size]
        if len(self._data) < sum(self._lengths):
            return None
        header, blobs, at = self._header, [], 0
        for length in self._lengths:
            blobs.append(bytes(self._data[at : at + length]))
            at += length
        del self._data[:at]
        self._header, self._lengths = None, []
        return header, blobs

    def _understood(self, text: bytearray) -> tuple[Header, list[int]]:
        try:
            header = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BrokenFrame("a frame's header is no JSON") from error
        if not isinstance(header, dict):
            raise BrokenFrame("a frame's header is no object")
        lengths = header.get("blobs", [])
        if (
            not isinstance(lengths, list)
            or len(lengths) > MAX_BLOBS
            or any(type(each) is not int or each < 0 for each in lengths)
            or sum(lengths) > self._max_blob_bytes
        ):
            raise BrokenFrame("a frame announces blobs beyond the limits")
        return header, lengths
