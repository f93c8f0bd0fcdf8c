"""Image files that others wrote: read, or refused in one sentence."""

from __future__ import annotations

import struct
import zlib
from os import PathLike

from PIL import Image, UnidentifiedImageError

from .foreign import ForeignFileError

UNDECODABLE = (
    OSError,
    ValueError,
    SyntaxError,
    RuntimeError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for files that are no images, or are damaged."""


def why_undecodable(error: Exception) -> str:
    """What the user is told of one of these."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def load_image(path: str | PathLike[str], remedy: str) -> Image.Image:
    """An image with its pixels.

    Raises:
        ForeignFileError: the file is no image, or damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except UNDECODABLE as error:
        raise ForeignFileError(f"'{path}' cannot be read ({why_undecodable(error)}); {remedy}") from error
