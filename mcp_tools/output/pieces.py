"""The pieces of a result, cut so that together they are within a number of characters and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mcp_tools.output.plain import encodable
from mcp_tools.output.preview import fitting_chars, head_and_tail
from mcp_tools.output.tokens import estimate_tokens
from mcp_tools.types import Content, MediaContent, ResourceLink, TextContent, ToolOutput

MAX_PIECES: Final = 1_000
MIN_PIECE_CHARS: Final = 200
"""Rather than cutting pieces to less than this, some are left out."""

_MARK_CHARS: Final = 60
_MAX_LINK_CHARS: Final = 2_000
IMAGE_TOKENS: Final = 1_600
"""What a large picture costs a model; small ones cost less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPage(ToolOutput):
    """A part of a kept output: masked before that was kept, and made to fit, so it goes out as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Pieces that fit, and what to say of those that do not, in a few words; empty if all is there."""

    pieces: Sequence[Content]
    left_out: str = ""


def seen(piece: Content) -> str:
    """Return what a reader of text gets of a piece."""
    match piece:
        case TextContent():
            return piece.text
        case MediaContent():
            return f"[{piece.media_type}, {len(piece.data)} bytes]"
        case ResourceLink():
            return f"[{piece.name}: {piece.uri}]" + (piece.description or "")


def chars_of(pieces: Sequence[Content]) -> int:
    """Return how many characters a reader of text gets."""
    return sum(map(_length, pieces))


def tokens_of(pieces: Sequence[Content]) -> int:
    """Return about how many tokens these cost a model, pictures included."""
    pictures = sum(isinstance(piece, MediaContent) for piece in pieces)
    return _text_tokens(pieces) + pictures * IMAGE_TOKENS


def fit_pieces(pieces: Sequence[Content], *, max_chars: int, max_tokens: int) -> Fitted:
    """Cut the middle out of the longest texts, until all pieces are within both limits.

    Pictures and sounds stay. Of over 1,000 pieces, or more than there is room for, some in the middle go.
    """
    all_chars = chars_of(pieces)
    if len(pieces) <= MAX_PIECES and all_chars <= max_chars and _text_tokens(pieces) <= max_tokens:
        return Fitted(pieces=pieces)
    chars = fitting_chars(
        lambda attempt: _text_tokens(_cut(pieces, attempt).pieces),
        max_chars=min(max_chars, all_chars),
        max_tokens=max_tokens,
    )
    return _cut(pieces, chars)


def missing_mark(count: int, what: str = "characters") -> str:
    """Return what stands in the text where a part of it is missing."""
    return f"[… {count:,} {what} are missing here …]"


def _cut(pieces: Sequence[Content], max_chars: int) -> Fitted:
    said: list[str] = []
    count = max(2, min(MAX_PIECES, max_chars // MIN_PIECE_CHARS))
    chosen = [_as_text_if_long(piece) for piece in _ends(pieces, count)]
    if (dropped := len(pieces) - len(chosen)) > 0:
        said.append(f"{dropped:,} of {len(pieces):,} pieces are missing")
        chosen.insert(count - count // 4, TextContent(text=missing_mark(dropped, "pieces")))
    cap = _cap([_length(piece) for piece in chosen], max_chars)
    missing = 0
    for number, piece in enumerate(chosen):
        if isinstance(piece, TextContent) and len(piece.text) > cap:
            cut = head_and_tail(piece.text, max(0, cap - _MARK_CHARS))
            mark = missing_mark(cut.missing_chars)
            before = "\n" if cut.head and not cut.head.endswith("\n") else ""
            chosen[number] = TextContent(text=f"{cut.head}{before}{mark}\n{cut.tail}")
            missing += cut.missing_chars
    if missing:
        said.append(f"{missing:,} characters are missing")
    return Fitted(pieces=chosen, left_out=" and ".join(said))


def _ends(pieces: Sequence[Content], count: int) -> list[Content]:
    if len(pieces) <= count:
        return list(pieces)
    tail = count // 4
    return [*pieces[: count - tail], *pieces[len(pieces) - tail :]]


def _cap(lengths: Sequence[int], max_chars: int) -> int:
    """Return the length to which the longer ones must be cut so that all are within `max_chars`."""
    left = max_chars
    ascending = sorted(lengths)
    for number, length in enumerate(ascending):
        share = left // (len(ascending) - number)
        if length > share:
            return share
        left -= length
    return max_chars


def _length(piece: Content) -> int:
    return len(seen(piece)) + 1


def _text_tokens(pieces: Sequence[Content]) -> int:
    return sum(estimate_tokens(seen(piece)) for piece in pieces)


def _as_text_if_long(piece: Content) -> Content:
    if isinstance(piece, ResourceLink) and _length(piece) > _MAX_LINK_CHARS:
        return TextContent(text=encodable(seen(piece)))
    return piece
