"""Sheets of captioned images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

OVERVIEWS = SHEET, TRACE = "contact_sheet.png", "trace.png"
"""Pictures beside the images of a folder."""

TILE_SIDE = 256
GAP = 16
FONT_SIZE = 16
TITLE_SIZE = 22
INK = (20, 20, 20)
PAPER = (255, 255, 255)


@dataclass(frozen=True)
class Tile:
    """An image with a caption under it, and a coloured frame if a colour is given."""

    image: Image.Image
    caption: str
    frame: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Block:
    """Tiles under a common title."""

    title: str
    tiles: Sequence[Tile]


def draw_sheet(blocks: Sequence[Block], columns: int) -> Image.Image:
    """One image with the blocks under each other and `columns` tiles in a row."""
    width = GAP + columns * (TILE_SIDE + GAP)
    parts = [part for block in blocks for part in _block_parts(block, columns, width)]
    sheet = Image.new("RGB", (width, GAP + sum(part.height for part in parts)), PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def enlarge(image: Image.Image, side: int = TILE_SIDE) -> Image.Image:
    """The image fitted into a square: small ones by whole multiples of their pixels, large ones smoothly."""
    factor = side / max(image.size)
    if factor >= 1:
        # Every pixel of a small image stays a sharp square.
        whole = max(int(factor), 1)
        return image.resize((image.width * whole, image.height * whole), Image.Resampling.NEAREST)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _block_parts(block: Block, columns: int, width: int) -> list[Image.Image]:
    parts = [_title(block.title, width)] if block.title else []
    rows = [block.tiles[start : start + columns] for start in range(0, len(block.tiles), columns)]
    return parts + [_row(row, width) for row in rows]


def default_font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "with a size it is one that scales"
    return font


def _title(text: str, width: int) -> Image.Image:
    font = default_font(TITLE_SIZE)
    lines = wrap(text, font, width - 2 * GAP)
    part = Image.new("RGB", (width, GAP + len(lines) * (TITLE_SIZE + 6)), PAPER)
    ImageDraw.Draw(part).multiline_text((GAP, GAP), "\n".join(lines), fill=INK, font=font, spacing=6)
    return part


def _row(tiles: Sequence[Tile], width: int) -> Image.Image:
    font = default_font(FONT_SIZE)
    captions = [wrap(tile.caption, font, TILE_SIDE) for tile in tiles]
    images = [enlarge(tile.image.convert("RGB")) for tile in tiles]
    tallest = max(image.height for image in images)
    lines = max(len(caption) for caption in captions)
    part = Image.new("RGB", (width, GAP + tallest + 8 + lines * (FONT_SIZE + 4)), PAPER)
    draw = ImageDraw.Draw(part)
    for column, (tile, image, caption) in enumerate(zip(tiles, images, captions, strict=True)):
        left, top = GAP + column * (TILE_SIDE + GAP), GAP
        part.paste(image, (left, top))
        if tile.frame is not None:
            corners = (left - 4, top - 4, left + image.width + 3, top + image.height + 3)
            draw.rectangle(corners, outline=tile.frame, width=4)
        draw.multiline_text((left, top + tallest + 8), "\n".join(caption), fill=INK, font=font, spacing=4)
    return part


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The words of a text in lines of at most `width` pixels; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
