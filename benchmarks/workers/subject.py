"""What the benchmark calls: as little as possible, or something that only a kill ends."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path


def add(a: int, b: int) -> int:
    return a + b


def sleeping(seconds: float, marker: str) -> None:
    Path(marker).touch()
    time.sleep(seconds)


def spinning(seconds: float, marker: str) -> None:
    Path(marker).touch()
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        pass


def in_c(seconds: float, marker: str) -> None:
    """One call that lasts far longer than `seconds` and looks at nothing meanwhile."""
    Path(marker).touch()
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", int(seconds * 2_000_000))
