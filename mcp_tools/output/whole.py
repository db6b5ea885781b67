"""The whole of a result as one text, and the words for how it can be read."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Final

from mcp_tools.output.pieces import chars_of, seen
from mcp_tools.output.store import Kept, NotKept, OutputStore
from mcp_tools.types import Content, MediaContent

_BASE64_STEP: Final = 3 * 65_536


def keep_whole(
    store: OutputStore | None,
    principal: str,
    pieces: Sequence[Content],
    media: Sequence[MediaContent],
    data: str | None,
) -> tuple[Kept | None, str]:
    """Keep everything a result had as one text: its pieces, then pictures as base64, then its data as JSON.

    Args:
        store: None: there is none.
        media: Only those that are not sent.
    Returns:
        What is kept, or None; and whole sentences for the model.
    """
    if store is None:
        return None, "Ask for less at a time."
    try:
        kept = store.keep(principal, _parts(pieces, media, data))
    except NotKept as error:
        return None, f"The whole could not be kept ({str(error)[:100]}); ask for less at a time."
    minutes = max(1, round(store.ttl_s / 60))
    said = [
        f'The whole is kept for {minutes:,} minutes: read_output(output_id="{kept.id}", offset=0) reads it, '
        'with pattern="…" it finds lines.'
    ]
    if kept.dropped_chars:
        said.append(f"Its last {kept.dropped_chars:,} characters could not be kept.")
    start = chars_of(pieces)
    for number, piece in enumerate(media):
        if number < 2:
            said.append(f"{piece.media_type[:40]} in base64 begins at {start:,}.")
        start += -(-len(piece.data) // 3) * 4 + 1
    if data is not None and start:
        said.append(f"The data begins at {start:,}.")
    return kept, " ".join(said)


def _parts(pieces: Sequence[Content], media: Sequence[MediaContent], data: str | None) -> Iterator[str]:
    separator = ""
    for piece in pieces:
        yield separator
        yield seen(piece)
        separator = "\n"
    for medium in media:
        yield separator
        for start in range(0, len(medium.data), _BASE64_STEP):
            yield base64.b64encode(medium.data[start : start + _BASE64_STEP]).decode()
        separator = "\n"
    if data is not None:
        yield separator
        yield data
