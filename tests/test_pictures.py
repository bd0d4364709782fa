"""Pictures as they are looked at: turned, narrowed to 8 bits and laid on white by stated rules, or refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from taskvec.data.pictures import open_picture, upright_rgb

SEEDS = pytest.mark.parametrize("seed", [5, 240])


def noise(seed: int, *shape: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape)


def encoded(image: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


# what a viewer does for each value of the tag (EXIF 2.3, 4.6.4 A), written with numpy's own turns
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@SEEDS
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_are_turned_as_their_tag_says(orientation, kind, seed):
    stored = noise(seed, 7, 11, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(Image.fromarray(stored), kind, exif=exif, **settings)
    assert np.array_equal(pixels(open_picture(content)), TURNS[orientation](stored))


def eight_bits(mode: str, seed: int) -> Image.Image:
    colours = Image.fromarray(noise(seed, 9, 14, 3).astype(np.uint8))
    if mode == "P":
        return colours.quantize(17)
    return colours.convert(mode)


@SEEDS
@pytest.mark.parametrize("orientation", [1, 6, 7])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1", "YCbCr", "HSV"])
def test_eight_bits_without_alpha_are_pils_conversion_after_the_turn(mode, orientation, seed):
    image = eight_bits(mode, seed)
    image.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(pixels(upright_rgb(image)), np.asarray(expected))
    assert expected.size == ((14, 9) if orientation == 1 else (9, 14))


@SEEDS
@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "GIF")],
)
def test_files_of_eight_bits_are_pils_conversion(mode, kind, seed):
    content = encoded(eight_bits(mode, seed), kind)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(pixels(open_picture(content)), expected)


@SEEDS
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_of_sixteen_bits_the_upper_eight_are_seen(kind, seed):
    wide = noise(seed, 8, 6, high=65536).astype(np.uint16)
    wide[0, :2] = 0, 65535
    found = pixels(open_picture(encoded(Image.fromarray(wide), kind)))
    assert np.array_equal(found, np.repeat((wide // 256)[..., None], 3, axis=2))


@SEEDS
def test_a_picture_stored_with_more_bits_is_the_same_picture(seed):
    grey = noise(seed, 8, 6).astype(np.uint8)
    grey[0, :2] = 0, 255
    expected = np.repeat(grey[..., None], 3, axis=2)
    for wider in (
        grey.astype(np.uint16) * 257,
        grey.astype(np.uint16) * 256,
        grey.astype(np.int32) * 257,
        grey.astype(np.float32) / 255,
        grey.astype(np.float32),
    ):
        assert np.array_equal(
            pixels(open_picture(encoded(Image.fromarray(wider), "TIFF"))), expected
        )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            np.array([[-1, 70000]], np.int32),
            "32-bit integers run from -1 to 70000; 0 to 65535 is read",
        ),
        (
            np.array([[0, 200]], np.int32),
            "32-bit integers run to 200 only; store it with 8 or 16 bits",
        ),
        (
            np.array([[0, 65535]], np.float32),
            "floats run from 0 to 65535; 0 to 1 or 0 to 255 is read",
        ),
        (np.array([[-0.5, 0.5]], np.float32), "floats run from -0.5 to 0.5"),
        (np.array([[0.1, np.nan]], np.float32), "floats run from nan to nan"),
    ],
)
def test_values_that_fit_no_rule_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        open_picture(encoded(Image.fromarray(values), "TIFF"))


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


@SEEDS
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_a_white_ground(mode, kind, seed):
    values = noise(seed, 8, 6, 4).astype(np.uint8)
    values[0, :, 3] = 0
    values[1, :, 3] = 255
    if mode == "LA":
        values[..., 1] = values[..., 2] = values[..., 0]
    image = Image.fromarray(values).convert(mode)
    settings = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = pixels(open_picture(encoded(image, kind, **settings)))
    assert np.abs(found - on_white(values[..., :3].astype(float), values[..., 3])).max() <= 1
    assert (found[0] == 255).all() and np.array_equal(found[1], values[1, :, :3])


def test_one_transparent_colour_of_a_palette_or_a_grey_is_white():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    expected = np.where(grey == 40, 255, grey)
    for image in (Image.fromarray(grey), Image.fromarray(grey).convert("P")):
        found = pixels(open_picture(encoded(image, "PNG", transparency=40)))
        assert np.array_equal(found[..., 0], expected)
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    found = pixels(open_picture(encoded(wide, "PNG", transparency=40 * 257)))
    assert np.array_equal(found[..., 1], expected)


@SEEDS
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_a_truncated_picture_is_an_error(kind, seed, tmp_path: Path):
    content = encoded(Image.fromarray(noise(seed, 64, 64, 3).astype(np.uint8)), kind)
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    for place in (content[: len(content) // 2], tmp_path / "cut"):
        with pytest.raises((OSError, ValueError)):
            open_picture(place).load()
    with pytest.raises(ValueError, match="there is no file"):
        open_picture(tmp_path / "none.png")
