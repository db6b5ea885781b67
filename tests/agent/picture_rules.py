"""Why the API of a model would refuse a picture: by a library that reads them, and not by our own code."""

from __future__ import annotations

import base64
import io

from PIL import Image

MAX_CHARS = 5 * 1024 * 1024


def picture_problem(encoded: str, media_type: str, *, of: int) -> str | None:
    """Say what the API says; None: it takes the picture.

    Args:
        encoded: In base64.
        of: How many pictures the request holds.
    """
    if len(encoded) > MAX_CHARS:
        return "image exceeds 5 MB maximum"
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as picture:
            picture.load()
            kind, largest_px = picture.get_format_mimetype(), max(picture.size)
    except (OSError, SyntaxError, ValueError):
        return "Could not process image"
    if kind != media_type:
        return f"the image appears to be {kind}, not {media_type}"
    most_px = 2_000 if of > 20 else 8_000
    return f"image dimensions exceed max allowed size: {most_px} pixels" if largest_px > most_px else None
