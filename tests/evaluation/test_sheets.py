import numpy as np
from PIL import Image, ImageFont

from diamond_diffusers.evaluation.sheets import GAP, TILE_SIDE, Block, Tile, draw_sheet, enlarge, wrap


def test_small_images_keep_sharp_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    enlarged = np.asarray(enlarge(Image.fromarray(pixels)))
    assert enlarged.shape == (256, 192, 3)
    assert (enlarged[::4, ::4] == pixels).all()
    assert (enlarged[3::4, 3::4] == pixels).all()


def test_large_images_are_fitted():
    assert enlarge(Image.new("RGB", (1024, 512))).size == (TILE_SIDE, TILE_SIDE // 2)


def test_lines_fit_and_lose_no_word():
    font = ImageFont.load_default(16)
    text = "a purple triangle left of a yellow diamond with an unbelievablyextraordinarilylongword"
    lines = wrap(text, font, 200)
    assert " ".join(lines) == text
    assert all(font.getlength(line) <= 200 for line in lines if " " in line)


def test_tiles_lie_where_they_should():
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    sheet = draw_sheet([Block("", [Tile(red, "one"), Tile(blue, "two"), Tile(blue, "three")])], columns=2)
    assert sheet.width == 2 * TILE_SIDE + 3 * GAP
    assert sheet.getpixel((GAP + 5, GAP + 5)) == (255, 0, 0)
    assert sheet.getpixel((TILE_SIDE + 2 * GAP + 5, GAP + 5)) == (0, 0, 255)
    assert sheet.getpixel((TILE_SIDE + 2 * GAP + 5, sheet.height - 60)) == (255, 255, 255)
