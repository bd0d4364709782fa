"""Pictures as they are looked at: upright, in 8-bit RGB, on a white ground.

    orientation   the EXIF tag, in all eight values
    8 bits        PIL's ``convert("RGB")``
    16 bits       the upper eight; integers of 32 bits hold 16, from 0 to 65535
    floats        0 to 1, or 0 to 255 where a value exceeds 1
    transparency  on white

What fits no rule is refused, never clipped.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

GROUND = (255, 255, 255)
WIDE = ("I", "F")  # and everything that starts with I;16


def open_picture(encoded: bytes | Path) -> Image:
    """Return an encoded image, or that of a file, as it is looked at.

    Raises:
        ValueError: if there is no such file, its format is not known, or its values fit no rule.
    """
    from PIL import Image as pil

    if isinstance(encoded, Path) and not os.path.isfile(encoded):
        raise ValueError(f"there is no file {encoded}")
    file = encoded if isinstance(encoded, Path) else io.BytesIO(encoded)
    try:
        image = pil.open(file)
    except pil.UnidentifiedImageError as error:
        raise ValueError("its format is not known") from error
    return upright_rgb(image)


def upright_rgb(image: Image) -> Image:
    """Return an image turned as its EXIF says, in 8-bit RGB; see the rules of this module.

    Raises:
        ValueError: if its values fit no rule.
    """
    from PIL import Image as pil
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in WIDE or image.mode.startswith("I;16"):
        return _narrowed(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    ground = pil.new("RGBA", layer.size, (*GROUND, 255))
    return pil.alpha_composite(ground, layer).convert("RGB")


def _narrowed(image: Image) -> Image:
    """Return a one-channel image of more than 8 bits in RGB."""
    import numpy as np
    from PIL import Image as pil

    values = np.asarray(image)
    grey = _from_floats(values) if image.mode == "F" else _from_integers(values, image.mode)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # PNG: the one grey that is not there
        grey = np.where(values == clear, np.uint8(GROUND[0]), grey)
    return pil.fromarray(grey).convert("RGB")


def _from_integers(values: np.ndarray, mode: str) -> np.ndarray:
    """Return the upper 8 of 16 bits.

    Raises:
        ValueError: if 32-bit integers are not in the range of 16 bits, or only in that of 8.
    """
    low, high = int(values.min()), int(values.max())
    if mode == "I" and (low < 0 or high > 65535):
        raise ValueError(f"its 32-bit integers run from {low} to {high}; 0 to 65535 is read")
    if mode == "I" and 0 < high < 256:
        # read as 16 bits it would be black; some writers mean 8 bits by this, and nothing in the file tells
        raise ValueError(f"its 32-bit integers run to {high} only; store it with 8 or 16 bits")
    return (values >> 8).astype("uint8")


def _from_floats(values: np.ndarray) -> np.ndarray:
    """Return floats in the range of 8 bits, rounded.

    Raises:
        ValueError: if they are neither from 0 to 1 nor from 0 to 255.
    """
    import numpy as np

    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # so written that NaN is refused too
        raise ValueError(f"its floats run from {low:g} to {high:g}; 0 to 1 or 0 to 255 is read")
    scale = 255 if high <= 1 else 1
    return np.rint(values * scale).astype(np.uint8)
