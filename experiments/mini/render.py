"""Rendering of glyphs (TrueType outlines) and icons (SVG bodies) to 32x32 images."""

import hashlib
import io
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import resvg_py
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

SIZE = 32
logging.getLogger("fontTools").setLevel(logging.ERROR)


def to_rgb(gray: np.ndarray) -> np.ndarray:
    """Gray 32x32 images as RGB ones."""
    return np.repeat(np.asarray(gray, dtype=np.uint8)[..., None], 3, axis=-1)


def glyph(font: ImageFont.FreeTypeFont, char: str) -> np.ndarray | None:
    """One character in white on black, its longer side scaled to 26 pixels; None for an empty glyph."""
    canvas = Image.new("L", (192, 192), 0)
    ImageDraw.Draw(canvas).text((96, 96), char, font=font, fill=255, anchor="mm")
    box = canvas.getbbox()
    if box is None:
        return None
    crop = canvas.crop(box)
    scale = 26 / max(crop.size)
    crop = crop.resize(
        [max(1, round(side * scale)) for side in crop.size], Image.Resampling.LANCZOS
    )
    out = Image.new("L", (SIZE, SIZE), 0)
    out.paste(crop, ((SIZE - crop.width) // 2, (SIZE - crop.height) // 2))
    return np.array(out)


def font_glyphs(path: Path, chars: Iterable[str], index: int = 0) -> list[tuple[np.ndarray, str]]:
    """The characters a font really covers; repeated pictures (placeholder boxes) are dropped."""
    try:
        covered = TTFont(path, lazy=True, fontNumber=index).getBestCmap() or {}
        font = ImageFont.truetype(str(path), 64, index=index, layout_engine=ImageFont.Layout.BASIC)
    except (TTLibError, OSError):
        return []
    seen: set[str] = set()
    result = []
    for char in chars:
        if ord(char) not in covered:
            continue
        try:
            image = glyph(font, char)
        except (OSError, ValueError, RuntimeError):
            continue
        if image is None:
            continue
        digest = hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest()
        if digest not in seen:
            seen.add(digest)
            result.append((image, char))
    return result


def icon(collection: dict, name: str) -> np.ndarray | None:
    """One icon of an Iconify collection on white, centred in a square; None where it cannot be drawn."""
    entry = collection["icons"][name]
    width = entry.get("width", collection.get("width", 16))
    height = entry.get("height", collection.get("height", 16))
    left, top = (
        entry.get("left", collection.get("left", 0)),
        entry.get("top", collection.get("top", 0)),
    )
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{box}" color="black">{entry["body"]}</svg>'
    )
    try:
        data = bytes(
            resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True)
        )
    except ValueError:
        return None
    image = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    return image if image.shape == (SIZE, SIZE, 3) and image.std() > 1 else None


def png(image: np.ndarray) -> bytes:
    """PNG bytes of one RGB image."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG", optimize=True)
    return stream.getvalue()
