"""How much of a result a reader can take, and what is known of certain clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

MAX_CHARS: Final = 100_000
MAX_TOKENS: Final = 25_000
MAX_MEDIA_BYTES: Final = 16 * 1024**2
MIN_CHARS: Final = 1_000
MIN_TOKENS: Final = 300
"""Less would not hold the note that says how to read the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What one result may have.

    Args:
        max_chars: Characters of all its text, and again of its structured part as indented JSON: clients show
            the model one or the other. At least 1,000.
        max_tokens: Estimated tokens, likewise. At least 300.
        max_media_bytes: Bytes of pictures and sounds together, as they are before base64.
    """

    max_chars: int = MAX_CHARS
    max_tokens: int = MAX_TOKENS
    max_media_bytes: int = MAX_MEDIA_BYTES

    def __post_init__(self) -> None:
        if self.max_chars < MIN_CHARS or self.max_tokens < MIN_TOKENS or self.max_media_bytes < 0:
            raise ValueError(
                f"max_chars must be at least {MIN_CHARS:,}, max_tokens {MIN_TOKENS}, max_media_bytes 0"
            )

    def within(self, other: Room) -> Room:
        """Return what both allow."""
        return Room(
            max_chars=min(self.max_chars, other.max_chars),
            max_tokens=min(self.max_tokens, other.max_tokens),
            max_media_bytes=min(self.max_media_bytes, other.max_media_bytes),
        )


_ANY: Final = 1_000_000_000

KNOWN_CLIENTS: Final[Mapping[str, Room]] = MappingProxyType(
    {
        # Over 25,000 tokens or 50,000 characters it writes a file and shows 2 KB of it; 25,000 of its tokens
        # can be 18,000 of our estimate.
        "claude-code": Room(max_chars=48_000, max_tokens=18_000, max_media_bytes=_ANY),
        # Claude Desktop refuses what is over 1 MB as a whole, base64 and both halves of a result together.
        "claude-ai": Room(max_chars=60_000, max_tokens=_ANY, max_media_bytes=650_000),
        # 10,000 bytes, then its middle is cut out for good.
        "codex": Room(max_chars=9_500, max_tokens=_ANY, max_media_bytes=_ANY),
        "github-copilot-developer": Room(max_chars=9_500, max_tokens=_ANY, max_media_bytes=_ANY),
        # 8,000 characters, then the rest is gone.
        "cline": Room(max_chars=7_600, max_tokens=_ANY, max_media_bytes=_ANY),
    }
)
"""By how the name begins that a client gives of itself, upper and lower case being the same. Only those that
lose or refuse something beyond their limit.

Source: anthropics/claude-agent-sdk-python#756, anthropics/claude-code#66519, openai/codex#6544 and #7906,
github/copilot-cli#1732, cline/cline#13263; names from apify/mcp-client-capabilities.
"""


def room_for(client: str | None, own: Room, per_client: Mapping[str, Room]) -> Room:
    """Return what a client can take of what we would send. The longest name that matches counts."""
    name = (client or "").casefold()
    matching = [known for known in per_client if name.startswith(known.casefold())]
    return own.within(per_client[max(matching, key=len)]) if matching else own
