"""Tasks of printed characters, split by font family: letters, digits, scripts, kana."""

import re
import string
from pathlib import Path

import numpy as np
from names import KANA, KANA_FONTS, SCRIPT_TEST_FONTS
from paths import deb
from pools import DIGITS, Pool, fill
from render import font_glyphs, to_rgb

SCRIPTS = {  # class: first and last code point of its letters
    "arabic": (0x0621, 0x064A),
    "armenian": (0x0531, 0x0586),
    "bengali": (0x0985, 0x09B9),
    "devanagari": (0x0904, 0x0939),
    "ethiopic": (0x1200, 0x1357),
    "georgian": (0x10D0, 0x10F0),
    "greek": (0x0391, 0x03C9),
    "gujarati": (0x0A85, 0x0AB9),
    "gurmukhi": (0x0A05, 0x0A39),
    "hebrew": (0x05D0, 0x05EA),
    "kannada": (0x0C85, 0x0CB9),
    "khmer": (0x1780, 0x17B3),
    "lao": (0x0E81, 0x0EAE),
    "malayalam": (0x0D05, 0x0D39),
    "myanmar": (0x1000, 0x102A),
    "tamil": (0x0B85, 0x0BB9),
    "telugu": (0x0C05, 0x0C39),
    "thai": (0x0E01, 0x0E2E),
    "tifinagh": (0x2D30, 0x2D67),
}


def latin_fonts() -> dict[str, list[Path]]:
    """The display fonts by part (pre, train, val, test); a family, told by its name's first letters, is in one part."""
    paths = sorted(deb("fonts-aenigma").glob("**/*.ttf"))
    family = {p: re.sub(r"[^a-z]", "", p.name.lower())[:5] for p in paths}
    names = np.random.default_rng(7).permutation(sorted(set(family.values())))
    cuts = [int(share * len(names)) for share in (0.2, 0.62, 0.72)]
    parts = dict(zip(("pre", "train", "val", "test"), np.split(names, cuts), strict=True))
    found = {}
    for part, members in parts.items():
        families = set(members)
        found[part] = [p for p in paths if family[p] in families]
    return found


def _stack(found: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*found, strict=True)
    return to_rgb(np.array(images)), np.array(labels)


def _latin(chars: str, classes: list[str], counts: dict, seed: int) -> Pool:
    sides = {}
    for part, paths in latin_fonts().items():
        sides[part] = _stack(
            [(g, chars.index(c)) for path in paths for g, c in font_glyphs(path, chars)]
        )
    return fill(
        Pool(classes, "font family (464 display fonts), each family in one split"),
        sides,
        counts,
        seed,
    )


def letters(counts: dict, seed: int) -> Pool:
    """Capital Latin letters in display fonts."""
    return _latin(string.ascii_uppercase, list(string.ascii_uppercase), counts, seed)


def digits(counts: dict, seed: int) -> Pool:
    """Printed digits in display fonts."""
    return _latin(string.digits, DIGITS, counts, seed)


def script_fonts() -> dict[str, list[Path]]:
    """Noto Sans for training, Noto Serif for validation, families by other designers for test."""
    noto = deb("fonts-noto-core") / "usr/share/fonts/truetype/noto"
    sans = sorted(p for p in noto.glob("NotoSans*.ttf") if "Tifinagh" not in p.name) + [
        noto / "NotoSansTifinagh-Regular.ttf"
    ]
    serif = sorted(noto.glob("NotoSerif*.ttf")) + sorted(noto.glob("NotoNaskh*.ttf"))
    serif += [
        noto / "NotoSansTifinaghAhaggar-Regular.ttf",
        noto / "NotoSansTifinaghAir-Regular.ttf",
    ]
    test: list[Path] = []
    for pattern in SCRIPT_TEST_FONTS:
        where = (
            noto.glob(f"{pattern}*.ttf")
            if pattern.startswith("Noto")
            else deb("").glob(f"{pattern}/**/*.[to]tf")
        )
        test += [p for p in sorted(where) if not re.search("Mono|Condensed|ExtraLight", p.name)]
    return {"train": sans, "val": serif, "test": test}


def scripts(counts: dict, seed: int) -> Pool:
    """The writing system of a single letter."""
    sides = {}
    for part, paths in script_fonts().items():
        found = []
        for index, (first, last) in enumerate(SCRIPTS.values()):
            chars = [chr(code) for code in range(first, last + 1)]
            for path in paths:
                found += [(g, index) for g, _ in font_glyphs(path, chars)]
        sides[part] = _stack(found)
    rule = (
        "font family: Noto Sans for training, Noto Serif and Naskh for validation, "
        "families by other designers for test"
    )
    return fill(Pool(list(SCRIPTS), rule), sides, counts, seed)


def kana(counts: dict, seed: int) -> Pool:
    """Hiragana syllables in Japanese fonts."""
    order = np.random.default_rng(11).permutation(sorted(KANA_FONTS))
    parts = dict(zip(("train", "val", "test"), np.split(order, [9, 12]), strict=True))
    chars, sides = list(KANA), {}
    for part, names in parts.items():
        found = []
        for name in names:
            for path in sorted(deb(f"fonts-{name}").glob("**/*.[to]t[fc]"))[:4]:
                found += [(g, chars.index(c)) for g, c in font_glyphs(path, chars)]
        sides[part] = _stack(found)
    return fill(
        Pool(list(KANA.values()), "font package, each package in one split"), sides, counts, seed
    )
